//! The whole door over loopback: real workers, a scripted instance on a raw socket, a fake of the token engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod answers;
mod calls;
mod errors;
mod families;
mod http2;
mod lifecycle;
mod records;
mod replay;
mod streams;
mod support;
mod token_endpoint;
