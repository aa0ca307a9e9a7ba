//! One connection of a caller: what has come over it, and its own limits. Everything here belongs to one worker.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    future::Future,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bearerd_net::{CallerRule, ForwardedFault, Peer};
use http::HeaderMap;
use tokio::task::spawn_local;

use crate::{
    coarse::Coarse,
    error::Fault,
    frames::{self, FrameGuard},
    pool::Pool,
    settings::Limits,
    wire::{Reading, Scanner, WireFault},
};

/// What a worker knows of one connection.
#[derive(Debug)]
pub(crate) struct CallerConnection {
    /// Both ends that matter, once the connection has begun.
    peer: Cell<Option<Peer>>,
    watch: RefCell<Watch>,
    waker: RefCell<Option<Waker>>,
    /// Calls whose answer has not ended.
    calls: Cell<u32>,
    /// Calls begun: what [`Scanner`] counts as well.
    begun: Cell<u64>,
    /// When the number of calls under way last changed.
    active_at: Cell<u64>,
    /// A request's head has begun and not ended.
    head_since: Cell<Option<u64>>,
    /// The caller takes no bytes.
    blocked_since: Cell<Option<u64>>,
    /// Nothing more is sent to it, and what it still sends is thrown away; or, over HTTP/2, it was told to go.
    lingers_since: Cell<Option<u64>>,
    /// When the call under way must have ended, over HTTP/1: a caller that takes a little now and then is not asked for
    /// more in between.
    call_until: Cell<Option<u64>>,
    /// An answer under way has no end but the connection's (HTTP/1.0): broken off, it must not look whole.
    ends_by_close: Cell<bool>,
    /// Over HTTP/1: where the answer under way comes from.
    answering: RefCell<Option<Rc<Pool>>>,
    /// Of an HTTP/2 connection: a task for each call.
    streams: Streams,
}

/// Who reads along.
#[derive(Debug)]
enum Watch {
    Http1(Scanner),
    Http2(FrameGuard),
}

#[derive(Debug)]
struct StreamedAnswer {
    asked_at: u64,
    /// Where it comes from; `None`: it is bearerd's own.
    pool: Option<Rc<Pool>>,
}

/// The calls of an HTTP/2 connection, each of which hyper runs as a task of its own.
#[derive(Debug, Default)]
struct Streams {
    next: Cell<u64>,
    /// The one whose task runs.
    current: Cell<u64>,
    /// To be woken for their limits.
    wakers: RefCell<HashMap<u64, Waker>>,
    /// When an answer was last asked for more: a caller that takes nothing stops that.
    answers: RefCell<HashMap<u64, StreamedAnswer>>,
    /// Those whose caller has taken nothing for too long.
    overdue: RefCell<HashSet<u64>>,
    /// One of them is just being ended.
    cuts: Cell<bool>,
}

impl CallerConnection {
    pub(crate) fn new(now: u64, limits: &Limits) -> Self {
        Self {
            peer: Cell::new(None),
            watch: RefCell::new(Watch::Http1(Scanner::new(limits))),
            waker: RefCell::new(None),
            calls: Cell::new(0),
            begun: Cell::new(0),
            active_at: Cell::new(now),
            // A connection that says nothing is as slow as one that says half a head.
            head_since: Cell::new(Some(now)),
            blocked_since: Cell::new(None),
            lingers_since: Cell::new(None),
            call_until: Cell::new(None),
            ends_by_close: Cell::new(false),
            answering: RefCell::new(None),
            streams: Streams::default(),
        }
    }

    pub(crate) fn comes_from(&self, peer: Peer) {
        self.peer.set(Some(peer));
    }

    /// The caller's address, as far as it is known and believed.
    ///
    /// # Errors
    /// A trusted proxy is to say who calls, and does not.
    pub(crate) fn source(&self, rule: &CallerRule, headers: &HeaderMap) -> Result<Option<IpAddr>, Fault> {
        let Some(peer) = self.peer.get() else { return Ok(None) };
        rule.caller_of(&peer, headers).map_err(|fault| {
            Fault::malformed(match fault {
                ForwardedFault::Missing => "The proxy before bearerd sent no Forwarded header.",
                ForwardedFault::Hidden => "The Forwarded header hides the caller's address.",
                _ => "The Forwarded header is malformed.",
            })
        })
    }

    pub(crate) fn speaks_http2(&self) -> bool {
        matches!(&*self.watch.borrow(), Watch::Http2(_))
    }

    /// From here on the caller's bytes are HTTP/2.
    pub(crate) fn is_http2(&self) {
        *self.watch.borrow_mut() = Watch::Http2(FrameGuard::default());
    }

    /// A call has begun; gives what is wrong with it on the wire.
    pub(crate) fn call_begins(&self, now: u64) -> Option<WireFault> {
        let index = self.begun.get();
        self.begun.set(index + 1);
        self.calls.set(self.calls.get() + 1);
        self.active_at.set(now);
        self.head_since.set(None);
        match &*self.watch.borrow() {
            Watch::Http1(scanner) => scanner.fault().filter(|(at, _)| *at <= index).map(|(_, fault)| fault),
            Watch::Http2(_) => None,
        }
    }

    /// What is wrong with the body of the call under way, as far as it has come.
    pub(crate) fn body_fault(&self) -> Option<WireFault> {
        match &*self.watch.borrow() {
            Watch::Http1(scanner) => {
                scanner.fault().filter(|(at, _)| at + 1 == self.begun.get()).map(|(_, fault)| fault)
            }
            Watch::Http2(_) => None,
        }
    }

    pub(crate) fn ends_by_close(&self) {
        self.ends_by_close.set(true);
    }

    /// All that it was sent has gone out, with its end.
    pub(crate) fn is_told_the_end(&self) {
        self.ends_by_close.set(false);
    }

    /// Closed now, it would take what came of its answer for all of it.
    pub(crate) fn must_be_reset(&self) -> bool {
        self.ends_by_close.get()
    }

    /// The call that has begun last must end by then.
    pub(crate) fn call_ends_by(&self, at: u64) {
        if !self.speaks_http2() {
            self.call_until.set(Some(at));
        }
    }

    /// `whole`: its answer went out to its end. A call that its caller gave up pays for no frames.
    pub(crate) fn call_ends(&self, now: u64, whole: bool) {
        self.calls.set(self.calls.get().saturating_sub(1));
        self.active_at.set(now);
        self.call_until.set(None);
        match &mut *self.watch.borrow_mut() {
            // A next head that began to arrive meanwhile has waited for us, not we for it.
            Watch::Http1(scanner) => self.head_since.set(scanner.is_in_head().then_some(now)),
            Watch::Http2(guard) if whole => guard.earn(frames::FRAMES_PER_CALL),
            Watch::Http2(_) => {}
        }
    }

    /// A piece of a body went on to the instance, however small it was.
    pub(crate) fn forwards(&self) {
        if let Watch::Http2(guard) = &mut *self.watch.borrow_mut() {
            guard.earn(1);
        }
    }

    /// Notes the bytes of an answer under way.
    pub(crate) fn answers(&self, bytes: usize) {
        if let Watch::Http2(guard) = &mut *self.watch.borrow_mut() {
            // Rounded up: an answer in small pieces makes its caller answer in small frames.
            guard.earn(u32::try_from(bytes as u64 / frames::ANSWER_BYTES_PER_FRAME).unwrap_or(u32::MAX) + 1);
        }
    }

    /// Bytes alone keep no connection: only a call does. Gives what of them may go on.
    pub(crate) fn read(&self, bytes: &[u8], now: u64) -> Reading {
        match &mut *self.watch.borrow_mut() {
            Watch::Http1(scanner) => {
                // Whatever comes between calls begins a head, and has so long to end it.
                if self.calls.get() == 0 && self.head_since.get().is_none() {
                    self.head_since.set(Some(now));
                }
                scanner.feed(bytes)
            }
            Watch::Http2(guard) => {
                guard.feed(bytes);
                if guard.is_in_head() {
                    self.head_since.set(self.head_since.get().or(Some(now)));
                } else if guard.has_begun() {
                    self.head_since.set(None);
                }
                Reading { passed: bytes.len(), refused: false }
            }
        }
    }

    /// Its handshake is done; now it may begin to speak.
    pub(crate) fn is_open(&self, now: u64) {
        self.head_since.set(Some(now));
    }

    /// `taken`: the caller takes so many bytes, or none at the moment.
    pub(crate) fn writes(&self, taken: Option<usize>, now: u64) {
        let of_answer = if self.speaks_http2() { CONTROL_BYTES_MAX } else { 0 };
        if self.calls.get() == 0 && taken.is_some_and(|bytes| bytes > of_answer) {
            self.active_at.set(now); // of an answer that was handed on whole
        }
        let taken = taken.is_some();
        if taken != self.blocked_since.get().is_none() {
            self.blocked_since.set((!taken).then_some(now));
        }
    }

    /// It was told all that it will be.
    pub(crate) fn lingers(&self, now: u64) {
        self.lingers_since.set(Some(now));
    }

    /// A head that began does not come to its end in time: from here on it is refused. A connection that has said nothing
    /// asked for nothing.
    pub(crate) fn refuse_late_head(&self, now: &Coarse, limits: &Limits) {
        let is_late = self.head_since.get().is_some_and(|since| now.is_past(since, limits.header_read_ms));
        if is_late
            && self.calls.get() == 0
            && let Watch::Http1(scanner) = &mut *self.watch.borrow_mut()
            && scanner.refuse_late_head()
        {
            self.head_since.set(None);
            self.active_at.set(now.now());
        }
    }

    /// The head under way is refused, whatever of it has come.
    pub(crate) fn head_is_refused(&self) -> bool {
        matches!(&*self.watch.borrow(), Watch::Http1(scanner) if scanner.head_is_refused())
    }

    /// Past a limit of its own: it is closed without an answer, which no one waits for.
    pub(crate) fn is_over(&self, now: &Coarse, limits: &Limits) -> bool {
        let past = |since: Option<u64>, limit_ms| since.is_some_and(|since| now.is_past(since, limit_ms));
        let between_calls = self.calls.get() == 0;
        self.floods()
            || past(self.blocked_since.get(), idle_ms_of(self.answering.borrow().as_deref(), limits))
            || past(self.call_until.get(), 0)
            || (past(self.lingers_since.get(), LINGER_MS)
                && (!self.speaks_http2() || self.is_quiet(now, limits)))
            || (between_calls && past(self.head_since.get(), limits.header_read_ms))
            || (between_calls
                && self.head_since.get().is_none()
                && now.is_past(self.active_at.get(), limits.keep_alive_ms))
    }

    /// No call is under way, and nothing of an answer has gone out for as long as a caller may take nothing.
    fn is_quiet(&self, now: &Coarse, limits: &Limits) -> bool {
        let wait_ms = if self.begun.get() == 0 { LINGER_MS } else { limits.body_idle_ms };
        self.calls.get() == 0 && now.is_past(self.active_at.get(), wait_ms)
    }

    /// The call that is dropped just now is ended for its caller, which took nothing of the answer.
    pub(crate) fn cuts_stream(&self) -> bool {
        self.streams.cuts.get()
    }

    /// The caller sends what moves nothing forward, and too much of it.
    pub(crate) fn floods(&self) -> bool {
        matches!(&*self.watch.borrow(), Watch::Http2(guard) if guard.is_exhausted())
    }

    /// A few times a second. Wakes the connection if it is over, or if it has a call that has been under way for a while
    /// and may have limits of its own.
    pub(crate) fn tick(&self, now: &Coarse, limits: &Limits) {
        let calls = self.calls.get() > 0;
        self.streams.find_overdue(now, limits);
        self.streams.wakers.borrow().values().for_each(Waker::wake_by_ref);
        if (calls && now.is_past(self.active_at.get(), LOOKED_AT_AFTER_MS)) || self.is_over(now, limits) {
            self.wake();
        }
    }

    /// Once a second.
    pub(crate) fn tick_second(&self) {
        if let Watch::Http2(guard) = &mut *self.watch.borrow_mut() {
            guard.earn(if guard.is_exhausted() { 0 } else { frames::FRAMES_PER_SECOND });
        }
    }

    pub(crate) fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// How long a caller may stand still while it holds a place there.
pub(crate) fn idle_ms_of(pool: Option<&Pool>, limits: &Limits) -> u64 {
    if pool.is_some_and(|pool| pool.places.are_wanted()) {
        limits.pressed_idle_ms
    } else {
        limits.body_idle_ms
    }
}

/// An answer that streams, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Streaming {
    caller: Rc<CallerConnection>,
    /// Over HTTP/2; over HTTP/1 a caller that takes nothing shows in the socket.
    stream: Option<u64>,
}

impl Streaming {
    pub(crate) fn new(caller: &Rc<CallerConnection>, pool: Option<&Rc<Pool>>, now: u64) -> Self {
        let stream = caller.speaks_http2().then(|| caller.streams.current.get());
        match stream {
            Some(number) => {
                let answer = StreamedAnswer { asked_at: now, pool: pool.cloned() };
                caller.streams.answers.borrow_mut().insert(number, answer);
            }
            None => *caller.answering.borrow_mut() = pool.cloned(),
        }
        Self { caller: Rc::clone(caller), stream }
    }

    /// The caller has room for more of the answer.
    pub(crate) fn asked(&self, now: u64) {
        let Some(number) = self.stream else { return };
        if let Some(answer) = self.caller.streams.answers.borrow_mut().get_mut(&number) {
            answer.asked_at = now;
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        match self.stream {
            Some(number) => drop(self.caller.streams.answers.borrow_mut().remove(&number)),
            None => *self.caller.answering.borrow_mut() = None,
        }
    }
}

impl Streams {
    fn find_overdue(&self, now: &Coarse, limits: &Limits) {
        self.answers.borrow_mut().retain(|number, answer| {
            let is_overdue = now.is_past(answer.asked_at, idle_ms_of(answer.pool.as_deref(), limits));
            if is_overdue {
                self.overdue.borrow_mut().insert(*number);
            }
            !is_overdue
        });
    }

    fn take_number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }
}

/// Runs the calls of an HTTP/2 connection on the worker's own thread.
#[derive(Debug, Clone)]
pub(crate) struct StreamExecutor(pub(crate) Rc<CallerConnection>);

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, call: F) {
        let number = self.0.streams.take_number();
        spawn_local(Ticking { call: Some(Box::pin(call)), caller: Rc::clone(&self.0), number });
    }
}

/// A call that is woken for its limits, and ended by the one on a caller that takes nothing.
struct Ticking<F> {
    /// `None`: it was ended.
    call: Option<Pin<Box<F>>>,
    caller: Rc<CallerConnection>,
    number: u64,
}

impl<F: Future<Output = ()>> Future for Ticking<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.caller.streams.overdue.borrow().contains(&self.number) {
            self.caller.streams.cuts.set(true);
            self.call = None; // which resets its stream, and no other
            self.caller.streams.cuts.set(false);
        }
        let Ticking { call: Some(call), caller, number } = &mut *self else { return Poll::Ready(()) };
        caller.streams.current.set(*number);
        let outcome = call.as_mut().poll(cx);
        if outcome.is_pending() {
            self.caller.streams.wakers.borrow_mut().insert(self.number, cx.waker().clone());
        }
        outcome
    }
}

impl<F> Drop for Ticking<F> {
    fn drop(&mut self) {
        self.caller.streams.wakers.borrow_mut().remove(&self.number);
        self.caller.streams.overdue.borrow_mut().remove(&self.number);
    }
}

/// What goes to a caller at once that asks for nothing: acknowledgements and the like.
const CONTROL_BYTES_MAX: usize = 1_024;
/// How long a caller may send on after its answer.
const LINGER_MS: u64 = 2_000;
/// A call younger than this has run into no limit yet: the shortest is a second.
const LOOKED_AT_AFTER_MS: u64 = 500;
