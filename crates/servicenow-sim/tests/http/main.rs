//! The simulator as its clients meet it: over TCP, through a client small enough to see every byte.

#![expect(clippy::unwrap_used, reason = "test code: clippy knows only #[test] functions as such")]

mod client;
mod control;
mod families;
mod faults;
mod ledger;
mod oauth;
mod rest;
mod table;
mod tls;
mod wire;
