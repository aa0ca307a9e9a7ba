//! OAuth 2.0 messages as values: what we send to an authorization server, and what its answers mean. No I/O, no
//! clock, no state; every parser takes hostile bytes.

mod authorization;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod revocation;
mod token_request;
mod token_response;

pub use authorization::{AuthorizationRequest, CallbackError, pkce_challenge_is_valid};
pub use revocation::{RevocableToken, RevocationError, parse_revocation_response};
pub use token_request::{Client, EncodedTokenRequest, TokenRequest};
pub use token_response::{TokenEndpointError, TokenResponse, Verdict, parse_token_response};
