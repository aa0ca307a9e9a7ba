//! A caller's stream as the HTTP parser sees it. Over HTTP/1 a head goes on when it is whole, and only if nothing is wrong
//! with it; for one that is refused goes on a harmless one in its place, so that the refusal is answered, counted and
//! recorded as any other ([`CallerConnection::call_begins`] says what was wrong). Over HTTP/2 all goes on.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bearerd_net::ServerStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::{
    caller::CallerConnection,
    coarse::Coarse,
    wire::{self, Reading},
};

pub(crate) struct Gate {
    stream: ServerStream,
    caller: Rc<CallerConnection>,
    now: Coarse,
    /// The connection's first bytes, read to tell its protocol: up to the length of HTTP/2's preface.
    first: [u8; PREFACE.len()],
    first_len: usize,
    /// How much of them has been taken from here.
    first_at: usize,
    /// What was read and has not gone on; empty but for a connection's first head, and heads that come in pieces.
    held: Vec<u8>,
    /// How many bytes of it may go on.
    ready: usize,
    /// A head was refused: nothing that comes behind it is looked at.
    refused: bool,
    /// Nothing more is sent.
    is_shut: bool,
}

impl Gate {
    pub(crate) fn new(stream: ServerStream, caller: Rc<CallerConnection>, now: Coarse) -> Self {
        let first = [0; PREFACE.len()];
        Self {
            stream,
            caller,
            now,
            first,
            first_len: 0,
            first_at: 0,
            held: Vec::new(),
            ready: 0,
            refused: false,
            is_shut: false,
        }
    }

    /// Whether the caller speaks HTTP/2: as agreed in the TLS handshake, or with prior knowledge (RFC 9113 §3.3). Waits
    /// for as many bytes as it takes; bound it.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        match self.stream.alpn() {
            Some(protocol) => return Ok(protocol == b"h2"),
            // Over TLS, HTTP/2 is agreed on or not spoken.
            None if matches!(self.stream, ServerStream::Tls(_)) => return Ok(false),
            None => {}
        }
        while self.first_len < PREFACE.len() {
            let read = self.stream.read(&mut self.first[self.first_len..]).await?;
            self.first_len += read;
            if read == 0 || self.first[..self.first_len] != PREFACE[..self.first_len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first_at == self.first_len {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let end = self.first_len.min(self.first_at + buffer.remaining());
        buffer.put_slice(&self.first[self.first_at..end]);
        self.first_at = end;
        Poll::Ready(Ok(()))
    }

    fn release(&mut self, buffer: &mut ReadBuf<'_>) {
        let len = self.ready.min(buffer.remaining());
        buffer.put_slice(&self.held[..len]);
        self.ready -= len;
        self.held.drain(..len);
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }

    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.caller.writes(outcome.is_ready(), self.now.now());
        outcome
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            if self.ready > 0 {
                self.release(buffer);
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_source(cx, buffer))?;
            let read = &buffer.filled()[before..];
            if read.is_empty() {
                // The end: a head that has not ended is nobody's. But a refusal is under way, and not to be given up for it.
                return if self.refused { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            if self.refused {
                buffer.set_filled(before);
                continue;
            }
            let Reading { passed, refused } = self.caller.read(read, self.now.now());
            if passed == read.len() && self.held.is_empty() {
                return Poll::Ready(Ok(())); // almost always
            }
            if self.held.is_empty() {
                self.held.extend_from_slice(&read[passed..]);
                buffer.set_filled(before + passed);
            } else {
                // What is held is the beginning of one head.
                self.ready = if passed == 0 { 0 } else { self.held.len() + passed };
                self.held.extend_from_slice(read);
                buffer.set_filled(before);
            }
            if refused {
                self.refused = true;
                let instead = wire::in_place_of(&self.held[self.ready..]);
                let ready = self.ready;
                self.held.truncate(ready);
                self.held.extend_from_slice(&instead);
                self.ready = self.held.len();
            }
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// What its caller goes on to send is read and thrown away for a while: a reset could take the answer with it
    /// (RFC 9112 §9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.is_shut = true;
            if !self.refused && !self.caller.is_sending() {
                return Poll::Ready(Ok(()));
            }
            self.caller.lingers(self.now.now());
        }
        loop {
            let mut room = [MaybeUninit::uninit(); LINGER_BUFFER_BYTES];
            let mut buffer = ReadBuf::uninit(&mut room);
            if ready!(self.poll_source(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LINGER_BUFFER_BYTES: usize = 8 * 1024;
