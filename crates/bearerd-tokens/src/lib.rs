//! "A usable access token for this connection": the cache that the proxy door reads, and the engine that keeps it
//! fresh. The only code that calls a token endpoint.
//!
//! - [`lend`](AccessTokens): what the proxy door may ask, answered from memory where it can be
//! - `transition`: what each outcome of a token call makes of a connection; pure
//! - `due`: which refresh comes next; pure
//! - `endpoint`: the token call and the user call, and what can go wrong with them
//! - `engine`: the shell that loads, waits, calls, commits and publishes

mod due;
mod endpoint;
mod engine;
mod lend;
mod metrics;
mod settings;
mod slot;
#[cfg(test)]
mod testing;
mod transition;

pub use endpoint::{TokenCallError, UserCallError};
pub use engine::TokenEngine;
pub use lend::{
    AccessTokens, AfterRefusal, ConnectionView, LastUse, LendError, LentToken, Standing, Upstream, Waiting,
};
pub use settings::TokenSettings;
pub use transition::{Obtained, TokenCall, grant_from};
