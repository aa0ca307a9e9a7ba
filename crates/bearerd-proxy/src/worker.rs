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
    task::Poll,
    time::{Duration, Instant},
};

use bearerd_audit::AccessWriter;
use bearerd_model::Clock;
use bearerd_net::{Acceptor, CallerRule, HandshakeError, PeerAddress, Socket};
use bearerd_policy::{SharedSnapshot, SnapshotReader};
use bearerd_tokens::AccessTokens;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{Notify, watch},
    task::spawn_local,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    admit::Memory,
    call,
    caller::{CallerConnection, StreamExecutor},
    coarse::{Coarse, TICK},
    error::{Code, Fault},
    gate::Gate,
    metrics::Shard,
    places::AllPlaces,
    pool::Pools,
    request_id::RequestIds,
    settings::Limits,
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
    pub(crate) access: RefCell<AccessWriter>,
    /// Whom a call comes from.
    pub(crate) callers_rule: Arc<CallerRule>,
    pub(crate) now: Coarse,
    /// No new call is begun.
    pub(crate) draining: Cell<bool>,
    /// The time to drain is over: what is under way still is cut.
    pub(crate) cuts_all: Cell<bool>,
    started: Instant,
    callers: RefCell<HashMap<u64, Rc<CallerConnection>>>,
    next_caller: Cell<u64>,
    /// A caller's connection has ended.
    ended: Notify,
}

/// What a door's workers are made of.
#[derive(Debug, Clone)]
pub(crate) struct WorkerParts {
    pub(crate) limits: Arc<Limits>,
    pub(crate) shared: Arc<SharedSnapshot>,
    pub(crate) tokens: Arc<dyn AccessTokens>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) places: Arc<AllPlaces>,
}

impl Worker {
    pub(crate) fn new(
        parts: WorkerParts,
        shard: Arc<Shard>,
        access: AccessWriter,
        callers_rule: Arc<CallerRule>,
    ) -> Rc<Self> {
        let now = Coarse::default();
        let limits = parts.limits;
        Rc::new(Self {
            pools: Pools::new(
                parts.places,
                limits.pool_idle_ms,
                limits.pool_idle_max,
                now.clone(),
                Arc::clone(&shard),
            ),
            access: RefCell::new(access),
            callers_rule,
            limits,
            snapshot: RefCell::new(parts.shared.reader()),
            shared: parts.shared,
            tokens: parts.tokens,
            clock: parts.clock,
            ids: RequestIds::new(),
            shard,
            now,
            draining: Cell::new(false),
            cuts_all: Cell::new(false),
            started: Instant::now(),
            callers: RefCell::default(),
            next_caller: Cell::new(0),
            ended: Notify::new(),
        })
    }

    /// Asks what is in memory at this moment, without waiting.
    pub(crate) fn remembering<T>(&self, ask: impl FnOnce(Memory<'_>) -> T) -> T {
        let mut reader = self.snapshot.borrow_mut();
        ask(Memory {
            limits: &self.limits,
            shared: &self.shared,
            snapshot: reader.load(),
            tokens: &*self.tokens,
            now: self.clock.now(),
        })
    }

    /// Where no access record may be lost, no call begins while none can be written.
    pub(crate) async fn room_for_records(&self) -> Result<(), Fault> {
        let room = {
            let access = self.access.borrow();
            if !access.is_stalled() {
                return Ok(());
            }
            access.room()
        };
        timeout(ROOM_WAIT_MAX, room).await.map_err(|_| {
            Fault::new(Code::Overloaded).detail("Access records cannot be written, and may not be lost.")
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
            self.cuts_all.set(true);
            let left = self.callers.borrow().len();
            tracing::warn!(connections = left, "{left} connections did not end in time and are cut");
        }
        ticking.abort();
        self.access.borrow_mut().flush();
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
            self.access.borrow_mut().flush();
            self.callers.borrow().values().for_each(|caller| caller.tick(&self.now, &self.limits));
            if tick % TICKS_PER_SECOND == 0 {
                self.callers.borrow().values().for_each(|caller| caller.tick_second());
            }
            if tick % PRUNE_EVERY_TICKS == 0 {
                self.pools.prune();
            }
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
        let caller = Rc::new(CallerConnection::new(worker.now.now(), &worker.limits));
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
    let opening = async move {
        let acceptor = acceptor; // let go when this ends: holding it would keep the socket open while connections drain
        let (stream, peer) = acceptor.handshake(socket, peer).await?;
        caller.comes_from(peer);
        let mut gate = Gate::new(stream, Rc::clone(caller), worker.now.clone());
        let is_http2 = gate.is_http2().await?;
        Ok::<_, HandshakeError>((gate, is_http2))
    };
    let mut opening = pin!(opening);
    // A connection that has asked for nothing holds up no drain.
    let opening = poll_fn(|cx| {
        caller.remember(cx);
        match opening.as_mut().poll(cx) {
            Poll::Pending if worker.draining.get() => {
                Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()))
            }
            polled => polled,
        }
    });
    let opened = timeout(Duration::from_millis(worker.limits.header_read_ms), opening).await;
    let (gate, is_http2) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return tracing::debug!(%error, "a caller's connection did not begin"),
        Err(_) => return tracing::debug!("a caller's connection took too long to begin"),
    };
    caller.is_open(worker.now.now());
    let service = service_fn(|request| call::serve(Rc::clone(worker), Rc::clone(caller), request));
    let io = TokioIo::new(gate);
    let outcome = if is_http2 {
        caller.is_http2();
        let connection = http2_builder(worker, caller).serve_connection(io, service);
        until_over(worker, caller, connection, http2::Connection::graceful_shutdown).await
    } else {
        let connection = http1::Builder::new()
            .header_read_timeout(None) // ours: one timer per worker, not one per request
            .max_buf_size(worker.limits.head_bytes_max() + PARSER_SLACK_BYTES)
            .serve_connection(io, service);
        until_over(worker, caller, connection, http1::Connection::graceful_shutdown).await
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a caller's connection ended");
    }
}

/// Drives a connection to its end: its own, or the one that its limits or a shutdown bring.
async fn until_over<C: Future<Output = hyper::Result<()>>>(
    worker: &Worker,
    caller: &CallerConnection,
    connection: C,
    shut_down: impl Fn(Pin<&mut C>),
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    let mut told_to_end = false;
    poll_fn(|cx| {
        caller.remember(cx);
        caller.refuse_late_head(&worker.now, &worker.limits);
        if caller.is_over(&worker.now, &worker.limits) {
            if caller.floods() {
                worker.shard.floods.add_one();
            }
            return Poll::Ready(Ok(()));
        }
        if worker.draining.get() && !told_to_end {
            told_to_end = true;
            if caller.speaks_http2() {
                caller.lingers(worker.now.now()); // one that does not answer is not waited for
            }
            shut_down(connection.as_mut());
        }
        connection.as_mut().poll(cx)
    })
    .await
}

/// What a caller may use of HTTP/2 (P-20, P-22; RFC 9113 §6.5.2).
fn http2_builder(worker: &Worker, caller: &Rc<CallerConnection>) -> http2::Builder<StreamExecutor> {
    let header_list_max = u32::try_from(worker.limits.headers_bytes_max * 2 + HEADER_LIST_SLACK_BYTES);
    let mut builder = http2::Builder::new(StreamExecutor(Rc::clone(caller)));
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(header_list_max.unwrap_or(u32::MAX));
    builder
}

/// Calls at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// What a caller may send of one body before the instance has taken it.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What is held of one answer whose caller takes nothing.
const SEND_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// How long a call waits for room for its access record before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
const TICKS_PER_SECOND: u64 = 4;
/// Idle connections to instances are looked through every five seconds.
const PRUNE_EVERY_TICKS: u64 = 20;
/// The parser's buffer is never full before a head is whole.
const PARSER_SLACK_BYTES: usize = 8 * 1024;
/// So that a head just over our own limits is still parsed, and refused with an answer that says so.
const HEADER_LIST_SLACK_BYTES: usize = 64 * 1024;
