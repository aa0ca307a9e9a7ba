//! "A usable access token for this connection": the cache that the proxy door reads, and the engine that keeps it
//! fresh. The only code that calls a token endpoint.
//!
//! What an outcome makes of a connection, and what a process may do in company, is decided in `bearerd-refresh`,
//! without I/O; here is what waits.
//!
//! - [`lend`](AccessTokens): what the proxy door may ask, answered from memory where it can be
//! - `lending`, `loading`, `ahead`: the engine's sides: callers, the store, and time
//! - `shell`: does what a connection's state machine asks for
//! - `roster`: which connections there are, for calls that name none
//! - `gates`: how many token calls go out, and whether any does
//! - `endpoint`: the token call, the user call and looks at an instance's tables, and what can go wrong with them

mod ahead;
mod endpoint;
mod engine;
mod gates;
mod lend;
mod lending;
mod loading;
mod metrics;
mod place;
mod roster;
mod settings;
mod shell;
mod slot;
#[cfg(test)]
mod testing;

pub use bearerd_refresh::{Obtained, TokenCall, TokenCallError, grant_from};
pub use endpoint::{RecordsCallError, RevocationCallError, UserCallError};
pub use engine::{ReadRecords, TokenEngine};
pub use lend::{
    AccessTokens, AfterRefusal, ConnectionView, LastUse, LendError, LentToken, Roster, Standing, Upstream,
    Waiting,
};
pub use place::ProcessPlace;
pub use settings::TokenSettings;
