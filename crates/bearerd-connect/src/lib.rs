//! Door 2, browsers: connect links, redirection endpoint, result pages. A thin shell: it parses requests strictly,
//! asks `bearerd-control` and shows pages that hold no script and reach no other place.
//!
//! | address | methods | answer |
//! |---|---|---|
//! | `/connect/{link}` | GET, HEAD | 200: who asks for what; looking uses nothing up |
//! | | POST | 303 to the authorization endpoint, with the flow's cookie |
//! | `/oauth/callback`, `/oauth/callback/{integration}` | GET | 303 to the result page, cookie cleared |
//! | `/connect/done/{outcome}` | GET, HEAD | 200: connected, or why not |
//!
//! | status | codes of the pages that stop |
//! |---|---|
//! | 400 | `state_invalid`, `other_browser`, `other_integration`, `callback_malformed`, `request_malformed` |
//! | 403 | `cross_site_refused` |
//! | 404 | `page_unknown`, `result_unknown` |
//! | 405 | `method_refused`, with `Allow` |
//! | 408, 413 | `request_too_slow`, `body_too_large` |
//! | 410 | `connect_link_invalid`: used, expired or unknown look the same |
//! | 500 | `internal` |
//! | 503 | `store_unavailable`, `overloaded`, with `Retry-After` |
//!
//! Deliberately absent: a redirect to an address that a request named, a script, a cookie that outlives a flow, a
//! look at `Host` or a forwarding header.

mod callback;
mod consents;
mod cookie;
mod door;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod pages;
mod route;
mod router;
#[cfg(test)]
mod router_tests;
mod sender;
mod settings;
mod shown;

pub use consents::Consents;
pub use door::ConnectDoor;
pub use router::Router;
pub use settings::{ConnectSettings, InvalidConnectSettings};
