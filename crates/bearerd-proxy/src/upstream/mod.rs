//! The way to an instance: `answer` and `chunked` read what comes back, without I/O; `connection` carries one call at a
//! time over HTTP/1.1.
//!
//! Written here rather than taken from hyper's client: a call and its connection are one task, without channels between
//! them; the request's head goes from the caller's headers straight into the buffer that is sent; and of an answer's head
//! only what may pass is kept. `docs/performance.md` has the figures.

mod answer;
mod chunked;
mod connection;

#[cfg(test)]
pub(crate) use answer::parse;
pub(crate) use answer::{AnswerHead, Parsed};
pub(crate) use connection::{AnswerStream, Connection, Exchange, ExchangeFault};
