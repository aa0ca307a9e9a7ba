//! One worker: a thread with a runtime of its own, its pools, its view of the snapshot, and the connections of its
//! callers. Nothing here is shared with another worker but the accept socket, the snapshot and the token engine.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bearerd_model::Clock;
use bearerd_net::{Acceptor, PeerAddress, ServerStream, Socket};
use bearerd_policy::{SharedSnapshot, SnapshotReader};
use bearerd_tokens::AccessTokens;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, watch},
    task::spawn_local,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    call,
    coarse::{Coarse, TICK},
    metrics::Shard,
    pool::Pools,
    request_id::RequestIds,
    settings::Limits,
    wire::{Scanner, WireFault},
};

/// What every call of a worker reads.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) limits: Arc<Limits>,
    pub(crate) shared: Arc<SharedSnapshot>,
    pub(crate) snapshot: RefCell<SnapshotReader>,
    pub(crate) tokens: Arc<dyn AccessTokens>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) pools: Pools,
    pub(crate) ids: RequestIds,
    pub(crate) shard: Arc<Shard>,
    pub(crate) now: Coarse,
    /// No new call is begun.
    pub(crate) draining: Cell<bool>,
    started: Instant,
    callers: RefCell<HashMap<u64, Rc<CallerConnection>>>,
    next_caller: Cell<u64>,
    /// A caller's connection has ended.
    ended: Notify,
}

/// What a door's workers are made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) limits: Arc<Limits>,
    pub(crate) shared: Arc<SharedSnapshot>,
    pub(crate) tokens: Arc<dyn AccessTokens>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Worker {
    pub(crate) fn new(parts: Parts, shard: Arc<Shard>) -> Rc<Self> {
        let now = Coarse::default();
        let limits = parts.limits;
        Rc::new(Self {
            pools: Pools::new(limits.pool_idle_ms, limits.pool_idle_max, now.clone(), Arc::clone(&shard)),
            limits,
            snapshot: RefCell::new(parts.shared.reader()),
            shared: parts.shared,
            tokens: parts.tokens,
            clock: parts.clock,
            ids: RequestIds::new(),
            shard,
            now,
            draining: Cell::new(false),
            started: Instant::now(),
            callers: RefCell::default(),
            next_caller: Cell::new(0),
            ended: Notify::new(),
        })
    }

    /// Accepts until `stop` says to drain or is dropped; then ends what is under way, within the time it says.
    pub(crate) async fn run(self: Rc<Self>, acceptor: Acceptor, mut stop: watch::Receiver<Option<Duration>>) {
        let ticking = spawn_local(Rc::clone(&self).tick_for_ever());
        let drain = {
            let acceptor = Rc::new(acceptor);
            let stopped = async {
                // Err: the door is gone.
                stop.wait_for(Option::is_some).await.map_or(Duration::ZERO, |drain| drain.unwrap_or_default())
            };
            tokio::select! {
                biased;
                drain = stopped => drain,
                () = self.accept_for_ever(acceptor) => Duration::ZERO,
            }
        };
        self.draining.set(true);
        self.callers.borrow().values().for_each(|caller| caller.wake());
        let emptied = async {
            while !self.callers.borrow().is_empty() {
                self.ended.notified().await;
            }
        };
        if timeout(drain, emptied).await.is_err() {
            let left = self.callers.borrow().len();
            tracing::warn!(connections = left, "{left} connections did not end in time and are cut");
        }
        ticking.abort();
    }

    async fn accept_for_ever(self: &Rc<Self>, acceptor: Rc<Acceptor>) {
        loop {
            while self.callers.borrow().len() >= self.limits.connections_max {
                self.ended.notified().await;
            }
            let (socket, peer) = acceptor.accept().await;
            let registered = Registered::new(Rc::clone(self));
            spawn_local(serve_connection(registered, Rc::clone(&acceptor), socket, peer));
        }
    }

    /// Moves the coarse clock and wakes the connections that have waited for something for a while: they look
    /// at their own limits.
    async fn tick_for_ever(self: Rc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0_u64.. {
            ticks.tick().await;
            self.now.set(self.started.elapsed());
            self.callers
                .borrow()
                .values()
                .filter(|caller| caller.is_due(&self))
                .for_each(|caller| caller.wake());
            if tick % PRUNE_EVERY_TICKS == 0 {
                self.pools.prune();
            }
        }
    }
}

/// One connection of a caller.
#[derive(Debug)]
pub(crate) struct CallerConnection {
    scanner: RefCell<Scanner>,
    waker: RefCell<Option<Waker>>,
    /// Calls whose answer has not ended.
    calls: Cell<u32>,
    /// Calls begun: what [`Scanner`] counts as well.
    begun: Cell<u64>,
    /// When the number of calls under way, or a byte from the caller, last changed anything.
    active_at: Cell<u64>,
    /// A request's head has begun and not ended.
    head_since: Cell<Option<u64>>,
    /// The caller takes no bytes.
    blocked_since: Cell<Option<u64>>,
}

impl CallerConnection {
    fn new(now: u64) -> Self {
        Self {
            scanner: RefCell::default(),
            waker: RefCell::default(),
            calls: Cell::new(0),
            begun: Cell::new(0),
            active_at: Cell::new(now),
            // A connection that says nothing is as slow as one that says half a head.
            head_since: Cell::new(Some(now)),
            blocked_since: Cell::new(None),
        }
    }

    /// A call has begun; gives what is wrong with it on the wire.
    pub(crate) fn call_begins(&self, now: u64) -> Option<WireFault> {
        let index = self.begun.get();
        self.begun.set(index + 1);
        self.calls.set(self.calls.get() + 1);
        self.active_at.set(now);
        self.scanner.borrow().fault().filter(|(at, _)| *at <= index).map(|(_, fault)| fault)
    }

    pub(crate) fn call_ends(&self, now: u64) {
        self.calls.set(self.calls.get().saturating_sub(1));
        self.active_at.set(now);
        // A next head that began to arrive meanwhile has waited for us, not we for it.
        self.head_since.set(self.scanner.borrow().is_in_head().then_some(now));
    }

    fn read(&self, bytes: &[u8], now: u64) {
        let mut scanner = self.scanner.borrow_mut();
        scanner.feed(bytes);
        self.active_at.set(now);
        self.head_since.set(scanner.is_in_head().then(|| self.head_since.get().unwrap_or(now)));
    }

    /// Past a limit of its own: it is closed without an answer, which no one waits for.
    fn is_over(&self, worker: &Worker) -> bool {
        let (now, limits) = (&worker.now, &worker.limits);
        let past = |since: Option<u64>, limit_ms| since.is_some_and(|since| now.is_past(since, limit_ms));
        let between_calls = self.calls.get() == 0;
        past(self.blocked_since.get(), limits.body_idle_ms)
            || (between_calls && past(self.head_since.get(), limits.header_read_ms))
            || (between_calls && now.is_past(self.active_at.get(), limits.keep_alive_ms))
    }

    /// Over, or with a call that has been under way for a while and may have limits of its own.
    fn is_due(&self, worker: &Worker) -> bool {
        let long = self.calls.get() > 0 && worker.now.is_past(self.active_at.get(), LOOKED_AT_AFTER_MS);
        long || self.is_over(worker)
    }

    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A connection in its worker's list, for as long as this lives.
struct Registered {
    worker: Rc<Worker>,
    caller: Rc<CallerConnection>,
    key: u64,
}

impl Registered {
    fn new(worker: Rc<Worker>) -> Self {
        let key = worker.next_caller.get();
        worker.next_caller.set(key + 1);
        let caller = Rc::new(CallerConnection::new(worker.now.now()));
        worker.callers.borrow_mut().insert(key, Rc::clone(&caller));
        worker.shard.caller_connections.add_one();
        Self { worker, caller, key }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.callers.borrow_mut().remove(&self.key);
        self.worker.shard.caller_connections.take_one();
        self.worker.ended.notify_one();
    }
}

async fn serve_connection(registered: Registered, acceptor: Rc<Acceptor>, socket: Socket, peer: PeerAddress) {
    let Registered { worker, caller, .. } = &registered;
    let handshake_max = Duration::from_millis(worker.limits.header_read_ms);
    let (stream, _peer) = match timeout(handshake_max, acceptor.handshake(socket, peer)).await {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake with a caller failed"),
        Err(_) => return tracing::debug!("handshake with a caller took too long"),
    };
    // Holding it would keep the socket open while connections drain.
    drop(acceptor);
    let observed = Observed { stream, caller: Rc::clone(caller), now: worker.now.clone() };
    let service = service_fn(|request| call::serve(Rc::clone(worker), Rc::clone(caller), request));
    let connection = http1::Builder::new()
        .header_read_timeout(None) // ours: one timer per worker, not one per request
        .max_buf_size(worker.limits.headers_bytes_max * 2 + PARSER_SLACK_BYTES)
        .serve_connection(TokioIo::new(observed), service);
    let mut connection = pin!(connection);
    let mut told_to_end = false;
    let outcome = poll_fn(|cx| {
        caller.remember(cx);
        if caller.is_over(worker) {
            return Poll::Ready(Ok(()));
        }
        if worker.draining.get() && !told_to_end {
            told_to_end = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = outcome {
        tracing::debug!(%error, "a caller's connection ended");
    }
}

/// A caller's stream, read along.
struct Observed {
    stream: ServerStream,
    caller: Rc<CallerConnection>,
    now: Coarse,
}

impl Observed {
    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let since = self.caller.blocked_since.get();
        match (&outcome, since) {
            (Poll::Pending, None) => self.caller.blocked_since.set(Some(self.now.now())),
            (Poll::Ready(_), Some(_)) => self.caller.blocked_since.set(None),
            _ => {}
        }
        outcome
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if outcome.is_ready() {
            self.caller.read(&buffer.filled()[before..], self.now.now());
        }
        outcome
    }
}

impl AsyncWrite for Observed {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A call younger than this has run into no limit yet: the shortest is a second.
const LOOKED_AT_AFTER_MS: u64 = 500;
/// Idle connections to instances are looked through every five seconds.
const PRUNE_EVERY_TICKS: u64 = 20;
/// So that a head just over our own limits is still parsed, and refused with an answer that says so.
const PARSER_SLACK_BYTES: usize = 64 * 1024;
