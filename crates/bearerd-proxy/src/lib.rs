//! Door 1: callers. A service calls with its own key; bearerd checks its policy, injects a fresh access token and
//! streams the answer back.
//!
//! The life of a call, in `call`: `wire` and `head` refuse what is no clean HTTP request → `route` parses the
//! path → `credentials` finds the key → `admit` decides, from snapshots in memory, and names the token →
//! `places` has room at the instance → `upstream_head` rebuilds the request → `pool` has a connection → `upstream` sends
//! on it and reads what comes back → `answer_head` scrubs it → `body` streams. `under_way` follows the call from its
//! beginning to its end, for counts and records. `error` is what bearerd itself answers.
//!
//! Deliberately absent: a store, a call of a token endpoint, another door, a cookie jar, a follower of redirects, a retry other
//! than the one after a 401, and locks on the way of a call.

mod admit;
mod answer_head;
mod body;
mod call;
mod caller;
mod coarse;
mod credentials;
mod door;
mod error;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod head;
mod line_up;
mod metrics;
mod names;
mod passing;
mod places;
mod pool;
mod request_id;
mod route;
mod settings;
mod token_endpoint;
mod under_way;
mod upstream;
mod upstream_head;
mod wire;
mod worker;

pub use door::{DoorError, ProxyDoor};
pub use error::Code as ErrorCode;
pub use metrics::ProxyMetrics;
pub use settings::{FamilySettings, ProxySettings, ProxySettingsError};
