//! Connections to instances, of one worker. A connection carries one request at a time, and returns to its pool only
//! after the answer was read to its end; all others are closed (P-05, P-17). The newest idle one is taken first, so
//! that a quiet pool shrinks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use bearerd_model::InstanceOrigin;
use bearerd_net::{ConnectError, Connector};
use bearerd_tokens::Upstream;
use http::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::{AbortHandle, spawn_local, yield_now};

use crate::{
    body::{CallerBody, UpstreamBody},
    coarse::Coarse,
    metrics::Shard,
};

/// All pools of a worker.
#[derive(Debug)]
pub(crate) struct Pools {
    /// By connector within an origin: a connection is never lent across trust roots or ways out.
    by_origin: RefCell<HashMap<InstanceOrigin, Vec<Rc<Pool>>>>,
    idle_max_ms: u64,
    idle_max: usize,
    now: Coarse,
    shard: Arc<Shard>,
}

/// The connections to one instance through one connector.
#[derive(Debug)]
pub(crate) struct Pool {
    instance: InstanceOrigin,
    connector: Connector,
    /// The `Host` of every request.
    pub(crate) host: HeaderValue,
    /// The longest idle one first.
    idle: RefCell<Vec<Idle>>,
    idle_max: usize,
    used_at: Cell<u64>,
    now: Coarse,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: u64,
}

/// A connection that carries a request, or could. Dropping it closes it at once, whatever is under way on it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<UpstreamBody>,
    _driver: Driver,
    /// It has carried a request before.
    pub(crate) is_reused: bool,
}

/// The task that moves a connection's bytes.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection whose answer is being read.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Connection,
    pool: Rc<Pool>,
    /// The request's body may still be under way after the answer.
    body: Option<CallerBody>,
}

impl Lease {
    pub(crate) fn new(connection: Connection, pool: Rc<Pool>, body: Option<CallerBody>) -> Self {
        Self { connection, pool, body }
    }

    /// The answer was read to its end. An answer that came before the request's own end leaves a connection that
    /// nothing can be sent on: it is closed.
    pub(crate) fn give_back(self) {
        let whole = self.body.is_none_or(|body| body.has_ended());
        if whole && !self.connection.sender.is_closed() {
            self.pool.put(self.connection);
        }
    }
}

impl Pools {
    pub(crate) fn new(idle_max_ms: u64, idle_max: usize, now: Coarse, shard: Arc<Shard>) -> Self {
        Self { by_origin: RefCell::default(), idle_max_ms, idle_max, now, shard }
    }

    /// The pool for calls to `upstream`.
    pub(crate) fn pool(&self, upstream: &Upstream) -> Rc<Pool> {
        let mut pools = self.by_origin.borrow_mut();
        let key = upstream.connector.pool_key();
        let found = pools
            .get(&upstream.instance)
            .and_then(|pools| pools.iter().find(|pool| pool.connector.pool_key() == key));
        if let Some(pool) = found {
            return Rc::clone(pool);
        }
        let pool = Rc::new(Pool {
            instance: upstream.instance.clone(),
            connector: upstream.connector.clone(),
            host: HeaderValue::from_str(upstream.instance.authority())
                .expect("an authority is visible ASCII"),
            idle: RefCell::default(),
            idle_max: self.idle_max,
            used_at: Cell::new(self.now.now()),
            now: self.now.clone(),
        });
        pools.entry(upstream.instance.clone()).or_default().push(Rc::clone(&pool));
        pool
    }

    /// A connection that nothing is under way on: idle, or new.
    pub(crate) async fn take(&self, pool: &Pool) -> Result<Connection, ConnectError> {
        pool.used_at.set(self.now.now());
        if let Some(connection) = pool.take_idle(self.idle_max_ms).await {
            self.shard.upstream_reused.add_one();
            return Ok(connection);
        }
        let connection = open(pool).await?;
        self.shard.upstream_opened.add_one();
        Ok(connection)
    }

    /// Closes what was idle for too long and forgets instances that nobody calls. A few times a minute.
    pub(crate) fn prune(&self) {
        self.by_origin.borrow_mut().retain(|_, pools| {
            pools.retain(|pool| {
                let mut idle = pool.idle.borrow_mut();
                idle.retain(|idle| {
                    !self.now.is_past(idle.since, self.idle_max_ms) && !idle.connection.sender.is_closed()
                });
                // A pool under way is kept alive by its leases, and made anew beside them if it must be.
                !idle.is_empty() || !self.now.is_past(pool.used_at.get(), FORGOTTEN_AFTER_MS)
            });
            !pools.is_empty()
        });
    }
}

impl Pool {
    /// The newest idle connection that is alive, as far as this end can know.
    async fn take_idle(&self, idle_max_ms: u64) -> Option<Connection> {
        loop {
            let Idle { mut connection, since } = self.idle.borrow_mut().pop()?;
            if connection.sender.is_closed() || self.now.is_past(since, idle_max_ms) {
                continue;
            }
            if self.now.is_past(since, PROBED_AFTER_MS) {
                // Lets the poller look at the socket once: a close that has arrived is seen before the request goes.
                yield_now().await;
            }
            // Ready unless its task has yet to see the end of the last answer.
            if connection.sender.is_ready() || connection.sender.ready().await.is_ok() {
                connection.is_reused = true;
                return Some(connection);
            }
        }
    }

    fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_max {
            idle.push(Idle { connection, since: self.now.now() });
        }
    }
}

async fn open(pool: &Pool) -> Result<Connection, ConnectError> {
    let stream = pool.connector.connect(&pool.instance).await?;
    let handshake = http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .handshake::<_, UpstreamBody>(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(|_| ConnectError::ClosedEarly)?;
    let driver = Driver(
        spawn_local(async move {
            if let Err(error) = connection.await {
                // Each call on it has been told already.
                tracing::debug!(%error, "a connection to an instance ended");
            }
        })
        .abort_handle(),
    );
    sender.ready().await.map_err(|_| ConnectError::ClosedEarly)?;
    Ok(Connection { sender, _driver: driver, is_reused: false })
}

/// An idle connection younger than this is used as it is: under load, the poller has looked at it a moment ago.
const PROBED_AFTER_MS: u64 = 1_000;
/// An instance that was not called for this long is forgotten, its name and connector with it.
const FORGOTTEN_AFTER_MS: u64 = 600_000;
/// Bounds an answer's head and the bytes read ahead of the caller.
const READ_BUFFER_BYTES_MAX: usize = 256 * 1024;
