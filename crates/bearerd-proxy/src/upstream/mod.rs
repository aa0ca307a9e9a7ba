//! The way to an instance: `answer` and `chunked` read what comes back, without I/O; `connection` carries one call at a
//! time over HTTP/1.1, `http2` many, where the integration asks for that and the instance agrees.
//!
//! Written here rather than taken from hyper's client: a call and its connection are one task, without channels between
//! them; the request's head goes from the caller's headers straight into the buffer that is sent; and of an answer's head
//! only what may pass is kept. `docs/performance.md` has the figures.

mod answer;
mod chunked;
mod connection;
mod http2;

use std::task::{Context, Poll};

use bytes::Bytes;

pub(crate) use answer::AnswerHead;
pub(crate) use connection::{Connection, Exchange, ExchangeFault};
pub(crate) use http2::{SharedConnection, taken_apart};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {
    answer::{Framing, Parsed, parse},
    chunked::Chunked,
};

use connection::Http1Stream;
use http2::Http2Stream;

/// The body of an answer, as it comes.
#[derive(Debug)]
pub(crate) enum AnswerStream {
    Http1(Box<Http1Stream>),
    Http2(Http2Stream),
}

impl AnswerStream {
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Http1(stream) => stream.is_ended(),
            Self::Http2(stream) => stream.is_ended(),
        }
    }

    /// Bytes that are still to come, where that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Http1(stream) => stream.length(),
            Self::Http2(stream) => stream.length(),
        }
    }

    /// The next piece, as much as is at hand.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeFault>>> {
        match self {
            Self::Http1(stream) => stream.poll_chunk(cx),
            Self::Http2(stream) => stream.poll_chunk(cx),
        }
    }

    /// The connection, if it was this answer's alone and another request may follow.
    pub(crate) fn into_connection(self) -> Option<Connection> {
        match self {
            Self::Http1(stream) => stream.into_connection(),
            Self::Http2(stream) => {
                stream.close();
                None
            }
        }
    }
}
