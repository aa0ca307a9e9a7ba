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

/// A connection that was accepted.
pub(crate) trait CallerStream: AsyncRead + AsyncWrite + Unpin {
    /// Once dropped, its other end sees a reset and not an end.
    fn reset_when_dropped(&self);
}

impl CallerStream for ServerStream {
    fn reset_when_dropped(&self) {
        self.socket().reset_when_dropped();
    }
}

pub(crate) struct Gate<S: CallerStream = ServerStream> {
    stream: S,
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
    /// Whether the caller speaks HTTP/2: as agreed in the TLS handshake, or with prior knowledge (RFC 9113 §3.3). Waits
    /// for as many bytes as it takes; bound it.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        match self.stream.alpn() {
            Some(protocol) => Ok(protocol == b"h2"),
            // Over TLS, HTTP/2 is agreed on or not spoken.
            None if matches!(self.stream, ServerStream::Tls(_)) => Ok(false),
            None => self.begins_as_http2().await,
        }
    }
}

impl<S: CallerStream> Drop for Gate<S> {
    fn drop(&mut self) {
        if self.caller.must_be_reset() {
            self.stream.reset_when_dropped();
        }
    }
}

impl<S: CallerStream> Gate<S> {
    pub(crate) fn new(stream: S, caller: Rc<CallerConnection>, now: Coarse) -> Self {
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

    async fn begins_as_http2(&mut self) -> io::Result<bool> {
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

    /// Something harmless goes on in place of the head that is held.
    fn refuse(&mut self) {
        self.refused = true;
        let instead = wire::in_place_of(&self.held[self.ready..]);
        self.held.truncate(self.ready);
        self.held.extend_from_slice(&instead);
        self.ready = self.held.len();
    }

    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let taken = match &outcome {
            Poll::Ready(written) => Some(written.as_ref().map_or(0, |bytes| *bytes)),
            Poll::Pending => None,
        };
        self.caller.writes(taken, self.now.now());
        outcome
    }
}

impl<S: CallerStream> AsyncRead for Gate<S> {
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
            if !self.refused && self.caller.head_is_refused() {
                self.refuse(); // for its time is up
                continue;
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
                self.refuse();
            }
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: CallerStream> AsyncWrite for Gate<S> {
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
            self.caller.is_told_the_end();
            if self.caller.speaks_http2() {
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::{collection, prelude::*};

    use super::*;
    use crate::{fuzzing, wire::Scanner};

    /// What a caller sends, in pieces, and whatever is sent to it.
    struct Pieces(VecDeque<Vec<u8>>);

    impl CallerStream for Pieces {
        fn reset_when_dropped(&self) {}
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(piece) = self.0.front_mut() else { return Poll::Ready(Ok(())) };
            if piece.is_empty() {
                self.0.pop_front();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&std::mem::replace(piece, rest));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gate(pieces: impl IntoIterator<Item = Vec<u8>>) -> Gate<Pieces> {
        let now = Coarse::default();
        let caller = Rc::new(CallerConnection::new(now.now(), fuzzing::limits()));
        Gate::new(Pieces(pieces.into_iter().collect()), caller, now)
    }

    /// All that goes on, read through buffers of `room` bytes; ends where nothing can come any more.
    fn goes_on(gate: &mut Gate<Pieces>, room: usize) -> Vec<u8> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut passed = Vec::new();
        loop {
            let mut bytes = vec![0; room];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *gate).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(outcome) => {
                    outcome.unwrap();
                    if buffer.filled().is_empty() {
                        return passed;
                    }
                    passed.extend_from_slice(buffer.filled());
                }
                Poll::Pending if gate.stream.0.is_empty() => return passed,
                Poll::Pending => {}
            }
        }
    }

    const GOOD: &str = "POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc";

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            6 => Just(GOOD.as_bytes().to_vec()),
            2 => Just(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n".to_vec()),
            1 => Just(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n".to_vec()),
            1 => Just(b"HEAD /#x HTTP/1.1\r\nX-Request-Id: 7\r\n\r\n".to_vec()),
            1 => Just(b"\r\n".to_vec()),
            1 => collection::vec(any::<u8>(), 0..20),
        ];
        collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// P-02: in whatever pieces a stream comes and is read, the same goes on: what the scanner passes, and in place of the
        /// head that it refuses the stand-in.
        #[test]
        fn whole_heads_and_one_stand_in_go_on(
            stream in stream(),
            piece in 1_usize..40,
            pauses: bool,
            rooms in (1_usize..50, 1_usize..50),
            first in 0_usize..24,
        ) {
            let mut scanner: Scanner = fuzzing::scanner();
            let mut expected = Vec::new();
            let Reading { passed, refused } = scanner.feed(&stream);
            expected.extend_from_slice(&stream[..passed]);
            let pieces = stream.chunks(piece).flat_map(|piece| {
                [piece.to_vec(), vec![]].into_iter().take(1 + usize::from(pauses))
            });
            let mut gate = gate(pieces.collect::<Vec<_>>());
            // As reading for the preface leaves them.
            gate.first_len = first.min(stream.len());
            let mut left = gate.first_len;
            while left > 0 {
                let piece = gate.stream.0.front_mut().unwrap();
                let taken = left.min(piece.len());
                let at = gate.first_len - left;
                gate.first[at..at + taken].copy_from_slice(&piece[..taken]);
                piece.drain(..taken);
                left -= taken;
                if piece.is_empty() {
                    gate.stream.0.pop_front();
                }
            }
            let mut gone_on = Vec::new();
            for room in [rooms.0, rooms.1] {
                gone_on.extend(goes_on(&mut gate, room));
            }
            if refused {
                let instead = gone_on.split_off(passed);
                let text = String::from_utf8_lossy(&instead).into_owned();
                prop_assert!(text.ends_with("\r\n\r\n") && text.contains(" / HTTP/1."), "{text:?}");
            }
            prop_assert_eq!(gone_on, expected);
            prop_assert_eq!(gate.refused, refused);
            prop_assert!(refused || gate.held.len() <= stream.len() - passed);
        }
    }

    /// P-19: a head that takes too long is refused with what has come of it, and nothing of it goes on.
    #[test]
    fn a_late_head_is_refused() {
        let mut gate =
            gate([[GOOD.as_bytes(), b"HEAD /secret HTTP/1.1\r\nX-Request-Id: 7\r\nX-Ha"].concat()]);
        gate.stream.0.push_back(vec![]);
        gate.stream.0.push_back(b"lf: b\r\n\r\n".to_vec());
        assert_eq!(goes_on_once(&mut gate), GOOD.as_bytes());
        let limits = fuzzing::limits();
        gate.caller.refuse_late_head(&gate.now, limits);
        assert!(!gate.caller.head_is_refused(), "it is not late yet");
        gate.now.set(std::time::Duration::from_millis(limits.header_read_ms + 1_000));
        gate.caller.refuse_late_head(&gate.now, limits);
        let instead = "HEAD / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 7\r\n\r\n";
        assert_eq!(goes_on(&mut gate, 7), instead.as_bytes());
        assert_eq!(gate.caller.call_begins(0), None);
        assert_eq!(gate.caller.call_begins(0), Some(wire::WireFault::TooSlow));
    }

    /// A connection that has said nothing is not answered.
    #[test]
    fn silence_is_no_late_head() {
        let gate = gate([]);
        gate.now.set(std::time::Duration::from_hours(1));
        gate.caller.refuse_late_head(&gate.now, fuzzing::limits());
        assert!(!gate.caller.head_is_refused());
        assert!(gate.caller.is_over(&gate.now, fuzzing::limits()));
    }

    fn goes_on_once(gate: &mut Gate<Pieces>) -> Vec<u8> {
        let mut bytes = [0; 4_096];
        let mut buffer = ReadBuf::new(&mut bytes);
        let polled =
            Pin::new(gate).poll_read(&mut Context::from_waker(std::task::Waker::noop()), &mut buffer);
        assert!(polled.is_ready());
        buffer.filled().to_vec()
    }
}
