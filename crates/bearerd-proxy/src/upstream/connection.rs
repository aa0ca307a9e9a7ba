//! One HTTP/1.1 connection to an instance, and one request on it: sends head and body, reads the answer's head, then its
//! body, all in the task of the call that it is for. While idle it belongs to no task at all.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bearerd_net::Stream;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    body::UpstreamBody,
    passing::Passing,
    upstream::{
        answer::{self, Framing, HeadFault, Parsed},
        chunked::{ChunkFault, Chunked},
    },
    upstream_head::Length,
};

/// A connection that nothing is under way on. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    read: BytesMut,
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeFault {
    /// The connection had ended before a byte of the request was taken: the request can go elsewhere.
    #[error("the connection had ended before")]
    NotSent,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("the connection ended before the answer did")]
    CutOff,
    #[error("the HTTP/2 connection broke")]
    Http2(#[source] hyper::Error),
    #[error(transparent)]
    Head(#[from] HeadFault),
    #[error(transparent)]
    Chunks(#[from] ChunkFault),
    /// The caller's body did not come whole; what is wrong with it, the body says.
    #[error("the request's body broke off")]
    Body,
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, read: BytesMut::new() }
    }

    /// Nothing has come over it, and it has not ended, as far as this end knows: no system call while the poller has seen
    /// nothing.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        self.read.is_empty()
            && Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Reads once, up to `wanted` bytes; 0: the instance has closed its side. By way of a buffer that every connection of the
    /// thread uses: TLS wants one that is initialised, and would zero a fresh one before each read.
    fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        thread_local! {
            static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[..wanted.min(READ_BYTES_MAX)]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            self.read.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: Connection,
    sending: Sending,
    to_head: bool,
    interim: u8,
}

/// What is still to be sent.
struct Sending {
    /// The head, or what stands before a chunk.
    frame: BytesMut,
    data: Bytes,
    /// What stands after a chunk.
    tail: &'static [u8],
    body: UpstreamBody,
    /// The body goes in chunks: its length is not known.
    chunked: bool,
    /// Bytes of the body that were stated and have not come.
    left: u64,
    state: SendState,
    /// The connection has taken something.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Writing,
    /// All is written, not all is flushed.
    Flush,
    Done,
    /// No more can be sent; the answer may still come.
    Failed,
}

impl Exchange {
    /// `head` ends with its empty line.
    pub(crate) fn new(
        connection: Connection,
        head: BytesMut,
        body: UpstreamBody,
        length: Length,
        to_head: bool,
    ) -> Self {
        let left = if let Length::Known(length) = length { length } else { 0 };
        let sending = Sending {
            frame: head,
            data: Bytes::new(),
            tail: &[],
            body,
            chunked: length == Length::Unknown,
            left,
            state: SendState::Writing,
            begun: false,
        };
        Self { connection, sending, to_head, interim: 0 }
    }

    /// Not a byte of it was taken: gives back the body, as it was.
    pub(crate) fn into_unsent(self) -> UpstreamBody {
        self.sending.body
    }

    /// Sends, and waits for the head of the answer. An answer may come before all was sent.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        passing: &Passing,
    ) -> Poll<Result<Parsed, ExchangeFault>> {
        let sent = self.sending.poll_send(&mut self.connection.stream, cx);
        let failure = match sent {
            Poll::Ready(Err(fault @ (ExchangeFault::NotSent | ExchangeFault::Body))) => {
                return Poll::Ready(Err(fault));
            }
            // The instance may have answered before it closed its side.
            Poll::Ready(Err(fault)) => Some(fault),
            _ => None,
        };
        loop {
            match self.connection.poll_fill(cx, HEAD_READ_BYTES) {
                Poll::Ready(Ok(0)) => {
                    let nothing_came = self.connection.read.is_empty() && self.interim == 0;
                    let broken = || ExchangeFault::Broken(io::ErrorKind::UnexpectedEof.into());
                    let ended = || if nothing_came { broken() } else { ExchangeFault::CutOff };
                    return Poll::Ready(Err(failure.unwrap_or_else(ended)));
                }
                Poll::Ready(Ok(_)) => {
                    let parsed =
                        answer::parse(&mut self.connection.read, self.to_head, &mut self.interim, passing)?;
                    if let Some(parsed) = parsed {
                        return Poll::Ready(Ok(parsed));
                    }
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(failure.unwrap_or(ExchangeFault::Broken(error))));
                }
                Poll::Pending => return failure.map_or(Poll::Pending, |fault| Poll::Ready(Err(fault))),
            }
        }
    }

    /// A last try to have sent all, where nobody will ask for more of the answer.
    fn flush_now(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let _ = self.sending.poll_send(&mut self.connection.stream, &mut cx);
    }

    /// The body that follows the head.
    pub(crate) fn into_body(self, parsed: &Parsed) -> Http1Stream {
        let rest = match parsed.framing {
            Framing::Empty => Rest::Length(0),
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Chunked::default()),
            Framing::UntilClose => Rest::UntilClose,
        };
        let mut stream = Http1Stream { exchange: self, rest, keeps_alive: parsed.keeps_alive };
        if stream.is_ended() {
            // No one will ask it for more, so that a small request is flushed here.
            stream.exchange.flush_now();
        }
        stream
    }
}

/// Without the bytes: the head holds the access token.
impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Sending {
    fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeFault>> {
        loop {
            match self.state {
                SendState::Done | SendState::Failed => return Poll::Ready(Ok(())),
                SendState::Flush => {
                    ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(|error| self.failed(error))?;
                    self.state = SendState::Done;
                }
                SendState::Writing if self.is_written() => ready!(self.poll_next(cx))?,
                SendState::Writing => {
                    ready!(self.poll_write(stream, cx)).map_err(|error| self.failed(error))?;
                }
            }
        }
    }

    fn is_written(&self) -> bool {
        self.frame.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    fn poll_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = if self.begun {
            let parts = [IoSlice::new(&self.frame), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            let first = usize::from(self.frame.is_empty());
            ready!(Pin::new(stream).poll_write_vectored(cx, &parts[first..]))?
        } else {
            // The head alone: nothing of the body is asked for before it is written.
            let first = self.frame.len().min(FIRST_WRITE_BYTES_MAX);
            ready!(Pin::new(stream).poll_write(cx, &self.frame[..first]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.begun = true;
        let of_frame = written.min(self.frame.len());
        self.frame.advance(of_frame);
        let of_data = (written - of_frame).min(self.data.len());
        self.data.advance(of_data);
        self.tail = &self.tail[written - of_frame - of_data..];
        Poll::Ready(Ok(()))
    }

    /// Asks for more of the body.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeFault>> {
        let ended = self.body.is_end_stream();
        let chunk = if ended { None } else { ready!(Pin::new(&mut self.body).poll_frame(cx)) };
        match chunk {
            Some(Ok(frame)) => {
                self.data = frame.into_data().unwrap_or_default();
                if !self.chunked {
                    // One byte more or less than was stated, and the next request on this connection is another's.
                    let left = self.left.checked_sub(self.data.len() as u64);
                    self.left = left.ok_or_else(|| self.broken_off())?;
                }
                if self.chunked && !self.data.is_empty() {
                    push_hex(&mut self.frame, self.data.len());
                    self.frame.put_slice(b"\r\n");
                    self.tail = b"\r\n";
                }
            }
            Some(Err(_)) => return Poll::Ready(Err(self.broken_off())),
            None if self.chunked => {
                self.tail = b"0\r\n\r\n";
                self.chunked = false;
            }
            None if self.left > 0 => return Poll::Ready(Err(self.broken_off())),
            None => self.state = SendState::Flush,
        }
        Poll::Ready(Ok(()))
    }

    fn broken_off(&mut self) -> ExchangeFault {
        self.state = SendState::Failed;
        self.data = Bytes::new();
        ExchangeFault::Body
    }

    fn failed(&mut self, error: io::Error) -> ExchangeFault {
        self.state = SendState::Failed;
        if self.begun { ExchangeFault::Broken(error) } else { ExchangeFault::NotSent }
    }

    fn is_done(&self) -> bool {
        self.state == SendState::Done
    }
}

/// The body of an answer, and the connection that it comes over.
#[derive(Debug)]
pub(crate) struct Http1Stream {
    exchange: Exchange,
    rest: Rest,
    keeps_alive: bool,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Rest {
    fn is_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_ended(),
            Self::UntilClose => false,
        }
    }

    /// The next piece of the body out of what was read.
    fn take(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, ChunkFault> {
        match self {
            Self::Chunked(chunked) => {
                let piece = chunked.next(read)?;
                chunked.settle(read);
                Ok(piece)
            }
            _ if read.is_empty() => Ok(None),
            Self::UntilClose => Ok(Some(read.split().freeze())),
            Self::Length(0) => Ok(None),
            Self::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= here as u64;
                Ok(Some(read.split_to(here).freeze()))
            }
        }
    }

    /// How much is worth reading at once.
    fn wanted(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(READ_BYTES_MAX),
            Self::Chunked(_) | Self::UntilClose => READ_BYTES_MAX,
        }
    }
}

impl Http1Stream {
    pub(crate) fn is_ended(&self) -> bool {
        self.rest.is_ended()
    }

    /// Bytes that are still to come, where that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.rest {
            Rest::Length(left) => Some(*left),
            Rest::Chunked(chunked) => chunked.is_ended().then_some(0),
            Rest::UntilClose => None,
        }
    }

    /// The next piece, as much as is at hand. What is left of the request goes on being sent meanwhile.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeFault>>> {
        let Exchange { connection, sending, .. } = &mut self.exchange;
        if !sending.is_done() {
            // Whether it arrives shows in the answer.
            let _ = sending.poll_send(&mut connection.stream, cx);
        }
        loop {
            match self.rest.take(&mut connection.read) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if self.rest.is_ended() => return Poll::Ready(None),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
            match ready!(connection.poll_fill(cx, self.rest.wanted())) {
                Ok(0) if matches!(self.rest, Rest::UntilClose) => {
                    self.rest = Rest::Length(0);
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(ExchangeFault::CutOff))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(ExchangeFault::Broken(error)))),
            }
        }
    }

    /// The connection, if another request may go over it: the answer has ended, nothing came after it, and the request had
    /// been sent whole.
    pub(crate) fn into_connection(self) -> Option<Connection> {
        let clean = self.is_ended()
            && self.keeps_alive
            && self.exchange.sending.is_done()
            && self.exchange.connection.read.is_empty();
        clean.then_some(self.exchange.connection)
    }
}

/// In hex, as the size of a chunk.
fn push_hex(into: &mut BytesMut, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        into.put_u8(b"0123456789abcdef"[number >> (4 * place) & 15]);
    }
}

/// The first write is one TLS record at most (RFC 8446 §5.1). Where it fails, the record did not go out whole, and the
/// instance can read nothing of it: the request can go elsewhere (P-28).
const FIRST_WRITE_BYTES_MAX: usize = 16 * 1024;
/// Heads of answers are a few hundred bytes, and small answers come with theirs.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// What is read at once, and so the most that is held of a body: a TLS record.
const READ_BYTES_MAX: usize = 16 * 1024;
