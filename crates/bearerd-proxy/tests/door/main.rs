//! The whole door over loopback: real workers, a scripted instance on a raw socket, a fake of the token engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod answers;
mod calls;
mod errors;
mod lifecycle;
mod replay;
mod streams;
mod support;
