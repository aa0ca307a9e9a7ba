//! Bodies on their way through, in both directions: one chunk at a time, fetched when the far side asks for it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::yield_now;

use crate::{
    caller::CallerConnection,
    coarse::Coarse,
    pool::Pool,
    under_way::UnderWay,
    upstream::{AnswerStream, ExchangeFault},
};

/// Why a caller's body did not reach the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyFault {
    #[error("the body is longer than the family admits")]
    TooLarge,
    #[error("the caller's body is malformed")]
    Malformed,
    #[error("the caller left inside its body")]
    Left,
    #[error("the body went to another attempt")]
    Superseded,
}

/// The body of one call. The chunks that passed are kept, up to a limit, for the one replay after a 401; beyond it
/// nothing is kept.
#[derive(Debug, Clone)]
pub(crate) struct CallerBody(Rc<SentBody>);

#[derive(Debug)]
struct SentBody {
    incoming: RefCell<Incoming>,
    caller: Rc<CallerConnection>,
    kept: RefCell<Kept>,
    /// What its family admits.
    bytes_max: Cell<u64>,
    received: Cell<u64>,
    ended: Cell<bool>,
    fault: Cell<Option<BodyFault>>,
    /// The instance asks for more and the caller has sent no more since.
    waiting_since: Cell<Option<u64>>,
    progressed_at: Cell<u64>,
    /// Attempts so far; only the newest may read.
    attempts: Cell<u32>,
    /// Of the one that waits for more.
    reader: RefCell<Option<Waker>>,
    now: Coarse,
}

#[derive(Debug)]
struct Kept {
    /// Views into the parser's buffers where they are large, copies where they are small.
    chunks: VecDeque<Bytes>,
    /// How many of them the newest attempt has taken.
    taken: usize,
    /// With what keeping them costs.
    bytes: usize,
    bytes_max: usize,
    /// No attempt can begin anew: what was taken is gone, and what is taken goes.
    overflown: bool,
    /// Nothing of it has been sent yet.
    keeps_all: bool,
}

impl CallerBody {
    pub(crate) fn new(
        incoming: Incoming,
        caller: Rc<CallerConnection>,
        keep_bytes_max: usize,
        now: Coarse,
    ) -> Self {
        Self(Rc::new(SentBody {
            caller,
            ended: Cell::new(incoming.is_end_stream()),
            incoming: RefCell::new(incoming),
            kept: RefCell::new(Kept::new(keep_bytes_max)),
            bytes_max: Cell::new(u64::MAX),
            received: Cell::new(0),
            fault: Cell::new(None),
            waiting_since: Cell::new(None),
            progressed_at: Cell::new(now.now()),
            attempts: Cell::new(0),
            reader: RefCell::new(None),
            now,
        }))
    }

    pub(crate) fn may_have(&self, bytes_max: u64) {
        self.0.bytes_max.set(bytes_max);
    }

    /// Bytes that are certain to come.
    pub(crate) fn stated(&self) -> u64 {
        self.0.incoming.borrow().size_hint().lower()
    }

    /// Nobody wants it: what has come of it is thrown away. `true`: that was all of it.
    pub(crate) async fn discard(&self) -> bool {
        self.end_attempts();
        self.keep_no_more();
        for _ in 0..DISCARDS_MAX {
            let chunk = poll_fn(|cx| Poll::Ready(self.0.poll_new_chunk(cx))).await;
            match chunk {
                Poll::Ready(Ok(None)) => return true,
                Poll::Ready(Ok(Some(_))) if self.has_ended() => return true,
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Err(_)) => return false,
                // Its connection moves on what it has read already.
                Poll::Pending => yield_now().await,
            }
        }
        false
    }

    /// The body from its beginning, for the next attempt; an earlier one gets no more of it. `None`: its beginning is
    /// no longer [at hand](Self::is_at_hand).
    pub(crate) fn attempt(&self) -> Option<UpstreamBody> {
        if !self.is_at_hand() {
            return None;
        }
        let attempt = self.0.attempts.get() + 1;
        self.0.attempts.set(attempt);
        self.0.wake_reader();
        self.0.waiting_since.set(None); // nobody has asked for it yet
        self.0.kept.borrow_mut().taken = 0;
        Some(UpstreamBody(Some(Attempt { body: Rc::clone(&self.0), number: attempt })))
    }

    /// All of it has come, or enough to begin with.
    pub(crate) fn has_first(&self) -> bool {
        self.0.ended.get() || self.0.kept.borrow().bytes >= FIRST_BYTES
    }

    /// Reads a first piece before anybody is there to take it: all of a small body. A caller that sends slowly holds
    /// nothing but its connection meanwhile.
    pub(crate) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFault>> {
        while !self.0.ended.get() && self.0.kept.borrow().bytes < FIRST_BYTES {
            self.0.kept.borrow_mut().keeps_all = true;
            let chunk = self.0.poll_new_chunk(cx);
            self.0.kept.borrow_mut().keeps_all = false;
            match chunk {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Can it be sent once more, from its beginning? What is under way may change that at any wait.
    pub(crate) fn is_at_hand(&self) -> bool {
        !self.0.kept.borrow().overflown && self.0.fault.get().is_none()
    }

    /// No attempt gets any more of it.
    pub(crate) fn end_attempts(&self) {
        self.0.attempts.set(u32::MAX);
        self.0.wake_reader();
    }

    /// No replay can come any more: what was kept for it, and was sent, is let go.
    pub(crate) fn keep_no_more(&self) {
        self.0.kept.borrow_mut().let_go();
    }

    /// The caller has sent all of it and the instance has taken all of it.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.ended.get()
    }

    /// Bytes that the caller has sent of it.
    pub(crate) fn received(&self) -> u64 {
        self.0.received.get()
    }

    pub(crate) fn fault(&self) -> Option<BodyFault> {
        self.0.fault.get()
    }

    /// The instance has waited for the caller's next bytes for that long.
    pub(crate) fn is_stalled(&self, limit_ms: u64) -> bool {
        self.0.waiting_since.get().is_some_and(|since| self.0.now.is_past(since, limit_ms))
    }

    /// The instance asks for more, and the caller has not sent it.
    pub(crate) fn waits_for_caller(&self) -> bool {
        self.0.waiting_since.get().is_some()
    }

    /// When the instance last took a chunk.
    pub(crate) fn progressed_at(&self) -> u64 {
        self.0.progressed_at.get()
    }
}

/// What is sent to the instance: nothing, or a caller's body.
#[derive(Debug)]
pub(crate) struct UpstreamBody(Option<Attempt>);

#[derive(Debug)]
struct Attempt {
    body: Rc<SentBody>,
    number: u32,
}

impl UpstreamBody {
    pub(crate) const EMPTY: Self = Self(None);
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match &mut self.get_mut().0 {
            None => Poll::Ready(None),
            Some(attempt) => attempt.poll_chunk(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|attempt| {
            attempt.is_newest() && attempt.body.ended.get() && !attempt.body.kept.borrow().has_more()
        })
    }

    /// Exact if the caller stated a length, so that the instance is told the same one.
    fn size_hint(&self) -> SizeHint {
        let Some(attempt) = &self.0 else { return SizeHint::with_exact(0) };
        let kept = attempt.body.kept.borrow();
        let again: u64 = kept.chunks.iter().skip(kept.taken).map(|chunk| chunk.len() as u64).sum();
        let coming = attempt.body.incoming.borrow().size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(coming.lower() + again);
        if let Some(upper) = coming.upper() {
            hint.set_upper(upper + again);
        }
        hint
    }
}

impl Attempt {
    fn is_newest(&self) -> bool {
        self.body.attempts.get() == self.number
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        let body = &self.body;
        if !self.is_newest() {
            return Poll::Ready(Some(Err(BodyFault::Superseded)));
        }
        if let Some(fault) = body.fault.get() {
            return Poll::Ready(Some(Err(fault)));
        }
        let kept = body.kept.borrow_mut().take();
        let chunk = match kept {
            Some(chunk) => Some(chunk),
            None if body.ended.get() => None,
            None => match body.poll_new_chunk(cx) {
                Poll::Ready(chunk) => {
                    let chunk = chunk?;
                    let _kept = body.kept.borrow_mut().take();
                    chunk
                }
                Poll::Pending => {
                    let mut reader = body.reader.borrow_mut();
                    if !reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                        *reader = Some(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            },
        };
        body.progressed_at.set(body.now.now());
        Poll::Ready(chunk.map(Ok))
    }
}

impl SentBody {
    /// Whoever waits for more learns that there is none for it: over HTTP/2 a task of its own, which would wait for ever.
    fn wake_reader(&self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    /// The next chunk from the caller; trailers are dropped.
    fn poll_new_chunk(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyFault>> {
        let mut incoming = self.incoming.borrow_mut();
        loop {
            let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if self.waiting_since.get().is_none() {
                        self.waiting_since.set(Some(self.now.now()));
                    }
                    return Poll::Pending;
                }
            };
            self.waiting_since.set(None);
            // What was read is known to be right or wrong before the parser hands it on.
            if self.caller.body_fault().is_some() {
                return Poll::Ready(Err(self.fail(BodyFault::Malformed)));
            }
            match frame {
                Some(Ok(frame)) => {
                    let Ok(chunk) = frame.into_data() else { continue };
                    self.received.set(self.received.get().saturating_add(chunk.len() as u64));
                    if self.received.get() > self.bytes_max.get() {
                        return Poll::Ready(Err(self.fail(BodyFault::TooLarge)));
                    }
                    self.ended.set(incoming.is_end_stream());
                    self.caller.forwards();
                    self.kept.borrow_mut().keep(&chunk);
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Some(Err(error)) => {
                    let has_left = self.caller.speaks_http2() || is_end_of_connection(&error);
                    let fault = if has_left { BodyFault::Left } else { BodyFault::Malformed };
                    return Poll::Ready(Err(self.fail(fault)));
                }
                // A reset that says "no error" ends a body like its last frame (RFC 9113 §8.1), wherever it comes.
                None if self.caller.speaks_http2() && !incoming.is_end_stream() => {
                    return Poll::Ready(Err(self.fail(BodyFault::Left)));
                }
                None => {
                    self.ended.set(true);
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn fail(&self, fault: BodyFault) -> BodyFault {
        self.fault.set(Some(fault));
        fault
    }
}

/// Not a fault of the body's bytes (over HTTP/1).
fn is_end_of_connection(error: &hyper::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut, UnexpectedEof,
    };
    let ended = |error: &io::Error| {
        let kinds = [BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut, UnexpectedEof];
        kinds.contains(&error.kind())
    };
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(ended) || error.is_incomplete_message() || error.is_closed() || error.is_canceled()
}

impl Kept {
    fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), taken: 0, bytes: 0, bytes_max, overflown: false, keeps_all: false }
    }

    fn keep(&mut self, chunk: &Bytes) {
        // A small piece would hold all of the parser's buffer, and costs more than its bytes.
        let is_small = chunk.len() < SMALL_BYTES;
        let is_joined =
            is_small && self.has_more() && self.chunks.back().is_some_and(|last| last.len() < SMALL_BYTES);
        let overhead = if is_small && !is_joined && !self.chunks.is_empty() { PIECE_BYTES } else { 0 };
        self.bytes = self.bytes.saturating_add(chunk.len() + overhead);
        if self.overflown || (self.bytes > self.bytes_max && !self.keeps_all) {
            self.let_go();
        } else if is_joined {
            let last = self.chunks.pop_back().unwrap_or_default();
            let mut joined = last.try_into_mut().unwrap_or_else(|last| BytesMut::from(&last[..]));
            joined.extend_from_slice(chunk);
            self.chunks.push_back(joined.freeze());
        } else {
            self.chunks.push_back(if is_small { Bytes::copy_from_slice(chunk) } else { chunk.clone() });
        }
    }

    fn has_more(&self) -> bool {
        self.chunks.len() > self.taken
    }

    /// The next one that the newest attempt has not taken.
    fn take(&mut self) -> Option<Bytes> {
        if self.overflown {
            return self.chunks.pop_front();
        }
        let chunk = self.chunks.get(self.taken)?.clone();
        self.taken += 1;
        Some(chunk)
    }

    fn let_go(&mut self) {
        self.overflown = true;
        self.chunks.drain(..std::mem::take(&mut self.taken));
    }
}

/// A chunk below this is copied to be kept.
const SMALL_BYTES: usize = 4 * 1024;
/// What keeping one costs besides its bytes.
const PIECE_BYTES: usize = 128;
/// How often a body that nobody wants is looked at for more.
const DISCARDS_MAX: usize = 8;
/// What is read of a body before a call takes a place where these are few.
const FIRST_BYTES: usize = 16 * 1024;

/// Why an answer ended before its end; the caller's connection is cut, so that it cannot take it for whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerFault {
    #[error("the instance's answer broke off")]
    Cut(#[source] ExchangeFault),
    #[error("the instance's answer stood still")]
    Stalled,
    #[error("the call took longer than its family may")]
    TooLong,
}

/// What a caller is answered with: a few bytes of our own, or the instance's body as it comes.
#[derive(Debug)]
pub(crate) struct AnswerBody(Kind);

#[derive(Debug)]
enum Kind {
    /// The call ends when they are taken.
    Own(Bytes, Option<UnderWay>),
    Streamed(InstanceBody, UnderWay),
}

/// A body of the instance, as it comes.
#[derive(Debug)]
pub(crate) struct InstanceBody {
    /// `None`: it was read to its end, and its connection has gone back to the pool. Dropped before, it closes the
    /// connection.
    answer: Option<AnswerStream>,
    pool: Rc<Pool>,
    idle_max_ms: u64,
    waiting_since: Option<u64>,
    now: Coarse,
    /// It has broken off, which the caller is told next.
    fault: Option<AnswerFault>,
}

impl AnswerBody {
    pub(crate) fn own(bytes: Bytes) -> Self {
        Self(Kind::Own(bytes, None))
    }

    /// The same of an answer of our own, which ends the call.
    pub(crate) fn ending(self, mut under_way: UnderWay) -> Self {
        match self.0 {
            Kind::Own(bytes, _) => {
                if bytes.is_empty() {
                    under_way.ended();
                } else {
                    under_way.streams(None);
                }
                Self(Kind::Own(bytes, Some(under_way)))
            }
            streamed @ Kind::Streamed(..) => Self(streamed),
        }
    }

    /// Bytes of an answer of our own.
    pub(crate) fn own_len(&self) -> usize {
        match &self.0 {
            Kind::Own(bytes, _) => bytes.len(),
            Kind::Streamed(..) => 0,
        }
    }

    pub(crate) fn streamed(mut stream: InstanceBody, mut under_way: UnderWay) -> Self {
        if stream.size_hint().exact().is_none() {
            under_way.ends_by_close();
        }
        stream.end_at_end(&mut under_way);
        if stream.answer.is_some() {
            under_way.streams(Some(&stream.pool));
        }
        Self(Kind::Streamed(stream, under_way))
    }
}

impl InstanceBody {
    pub(crate) fn new(answer: AnswerStream, pool: Rc<Pool>, idle_max_ms: u64, now: Coarse) -> Self {
        Self { answer: Some(answer), pool, idle_max_ms, waiting_since: None, now, fault: None }
    }

    fn end_at_end(&mut self, under_way: &mut UnderWay) {
        if let Some(answer) = self.answer.take_if(|answer| answer.is_ended()) {
            under_way.ended();
            if let Some(connection) = answer.into_connection() {
                self.pool.put(connection);
            }
        }
    }

    fn poll_frame(
        &mut self,
        under_way: &mut UnderWay,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerFault>>> {
        under_way.asked();
        if under_way.is_over() && self.answer.is_some() {
            return Poll::Ready(Some(Err(AnswerFault::TooLong)));
        }
        let Some(answer) = &mut self.answer else { return Poll::Ready(None) };
        match answer.poll_chunk(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                self.waiting_since = None;
                under_way.sent(bytes.len());
                self.end_at_end(under_way);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(fault))) => Poll::Ready(Some(Err(AnswerFault::Cut(fault)))),
            Poll::Ready(None) => {
                self.end_at_end(under_way);
                Poll::Ready(None)
            }
            Poll::Pending => {
                // An instance that answers early may still be taking the request.
                let since = *self.waiting_since.get_or_insert_with(|| self.now.now());
                let since = since.max(under_way.body_progressed_at());
                if self.now.is_past(since, self.idle_max_ms) {
                    Poll::Ready(Some(Err(AnswerFault::Stalled)))
                } else {
                    Poll::Pending
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.answer.as_ref().map_or(Some(0), AnswerStream::length);
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerFault>>> {
        match &mut self.get_mut().0 {
            Kind::Own(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Kind::Own(bytes, under_way) => {
                let bytes = std::mem::take(bytes);
                if let Some(under_way) = under_way {
                    under_way.sent(bytes.len());
                    under_way.ended();
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Streamed(stream, under_way) => {
                if let Some(fault) = stream.fault.take() {
                    return Poll::Ready(Some(Err(fault)));
                }
                let polled = stream.poll_frame(under_way, cx);
                let Poll::Ready(Some(Err(fault))) = polled else { return polled };
                under_way.cut(&fault);
                // hyper throws away what it has not sent as soon as it is told: it first gets the chance to send head and
                // pieces that came before.
                stream.fault = Some(fault);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(bytes, _) => bytes.is_empty(),
            Kind::Streamed(stream, _) => stream.answer.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streamed(stream, _) => stream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Act {
        /// The newest attempt asks for more.
        Take,
        /// A first piece is read before there is an attempt.
        ReadFirst,
        BeginAnew,
        KeepNoMore,
    }

    /// P-20: what is kept for a replay is bounded in memory, not in bytes alone: a body that comes byte by byte would hold a
    /// buffer of the parser for each.
    #[test]
    fn small_pieces_count_for_what_they_cost() {
        let bytes_max = 64 * 1024;
        let mut kept = Kept::new(bytes_max);
        let mut count = 0;
        while !kept.overflown {
            kept.keep(&Bytes::from_static(b"x"));
            let _ = kept.take();
            count += 1;
        }
        assert!(count < 1_000, "{count}");
        let whole = Bytes::from(vec![0; bytes_max]);
        let mut kept = Kept::new(bytes_max);
        kept.keep(&whole);
        assert!(!kept.overflown, "a body of the stated size is kept");
        // Before anything is sent, pieces are joined.
        let mut kept = Kept::new(bytes_max);
        kept.keeps_all = true;
        (0..FIRST_BYTES).for_each(|_| kept.keep(&Bytes::from_static(b"x")));
        assert!(kept.chunks.len() < 8, "{}", kept.chunks.len());
        assert!(kept.bytes < FIRST_BYTES + 1_024, "{}", kept.bytes);
    }

    proptest! {
        /// I-11: whatever is let go or joined and when, the newest attempt gets every byte once, from the first one on.
        #[test]
        fn an_attempt_gets_the_whole_body_in_order(
            acts in collection::vec(
                prop_oneof![
                    8 => Just(Act::Take), 2 => Just(Act::ReadFirst), 1 => Just(Act::BeginAnew), 1 => Just(Act::KeepNoMore),
                ],
                0..60,
            ),
            len in prop_oneof![1..4_usize, 3_000..6_000_usize],
            bytes_max in 0..20_000_usize,
        ) {
            let chunk = |number: u8| Bytes::from(vec![number; len]);
            let mut kept = Kept::new(bytes_max);
            let (mut read, mut got, mut begun) = (0_u8, Vec::new(), false);
            for act in acts {
                match act {
                    Act::ReadFirst if !begun && !kept.overflown => {
                        kept.keeps_all = true;
                        kept.keep(&chunk(read));
                        kept.keeps_all = false;
                        read += 1;
                    }
                    Act::BeginAnew if !kept.overflown => {
                        (kept.taken, begun) = (0, true);
                        got.clear();
                    }
                    Act::ReadFirst | Act::BeginAnew => {}
                    Act::KeepNoMore => kept.let_go(),
                    Act::Take => {
                        begun = true;
                        let taken = kept.take().unwrap_or_else(|| {
                            let new = chunk(read);
                            kept.keep(&new);
                            read += 1;
                            let _kept = kept.take();
                            new
                        });
                        got.extend_from_slice(&taken);
                    }
                }
                let sent: Vec<u8> = (0..read).flat_map(|number| vec![number; len]).collect();
                prop_assert!(sent.starts_with(&got));
                prop_assert_eq!(kept.has_more(), got.len() < sent.len());
            }
        }
    }
}
