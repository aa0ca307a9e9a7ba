//! Record rules against generated queries, most of them hostile: read back by a reader that knows nothing of the
//! parser, and answered by the simulator, which ignores conditions that it does not understand.

#![expect(clippy::unwrap_used, reason = "test code: clippy knows only #[test] functions as such")]

mod invariants;
mod properties;
mod queries;
mod reader;
mod simulator;
