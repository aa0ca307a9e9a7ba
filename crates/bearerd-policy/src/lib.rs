//! Caller keys and policies: parse, compile, evaluate, explain. Nothing here does I/O, waits or reads a clock, so
//! that all of it can be fuzzed; the proxy door calls it on every request.
//!
//! The life of a check: [`PresentedKey::parse`] (shape and checksum, no look-up) → [`Snapshot::authenticate`] (one
//! HMAC, one look-up) → [`CompiledKey::sole_connection`] where the call names none → [`CompiledKey::may_open`] (else
//! the connection is as good as unknown) → [`CompiledKey::decide`] → [`KeyLimits::admit`], and
//! [`CompiledRecords::rewrite`] where the rule has a record rule.

mod compiled;
mod decision;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod limits;
mod method;
mod record_rule;
mod records;
mod rule;
mod shared;
mod snapshot;
mod validate;

pub use compiled::{CompiledKey, Sole};
pub use decision::{Call, ConnectionFacts, Decision, DenyReason, Opened};
pub use key::{ApiKey, KeyFault, KeyKind, PresentedKey};
pub use limits::{InFlight, KeyLimits, LimitRefusal};
pub use method::{Method, Methods};
pub use record_rule::{EncodedQueryFault, Excerpt, QueryRefused, RecordRule, RecordRuleFault};
pub use records::{CompiledRecords, compile as compile_records};
pub use shared::{SharedSnapshot, SnapshotReader};
pub use snapshot::{KeyRefusal, Snapshot};
pub use validate::{PolicyFault, is_table_name, validate_policy};
