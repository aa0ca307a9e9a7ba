//! "A usable access token for this connection": the cache that the proxy door reads, and the engine that keeps it
//! fresh. The only code that calls a token endpoint.

mod lend;

pub use lend::{AccessTokens, AfterRefusal, ConnectionView, LendError, LentToken, Standing, Upstream, Waiting};
