//! Connections to instances, of one worker. A connection carries one request at a time, and returns to its pool only
//! after the answer was read to its end; all others are closed (P-05, P-17). The newest idle one is taken first, so
//! that a quiet pool shrinks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bearerd_model::InstanceOrigin;
use bearerd_net::{ConnectError, ConnectStage, Connector};
use bearerd_tokens::Upstream;
use http::{HeaderValue, uri::Scheme};
use tokio::{
    sync::Mutex,
    task::{coop::has_budget_remaining, yield_now},
    time::timeout,
};

use crate::{
    coarse::Coarse,
    metrics::Shard,
    places::{AllPlaces, Places},
    upstream::{Connection, SharedConnection},
};

/// All pools of a worker.
#[derive(Debug)]
pub(crate) struct Pools {
    /// By connector within an origin: a connection is never lent across trust roots or ways out.
    by_origin: RefCell<HashMap<InstanceOrigin, Vec<Rc<Pool>>>>,
    /// The pool that was asked for last, and for what: most calls of a moment go the same way.
    last: RefCell<Option<(Arc<Upstream>, Rc<Pool>)>>,
    places: Arc<AllPlaces>,
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
    /// The `Host` of every request; over HTTP/2, the authority.
    pub(crate) host: HeaderValue,
    pub(crate) scheme: Scheme,
    /// Those of the instance, whatever leads there.
    pub(crate) places: Arc<Places>,
    /// The longest idle one first.
    idle: RefCell<Vec<Idle>>,
    /// Over HTTP/2, where the connector offers that.
    shared: RefCell<Vec<Rc<SharedConnection>>>,
    opening: Mutex<()>,
    /// The instance did not agree to HTTP/2 when it was last asked: there is nothing to wait for.
    is_http1: Cell<bool>,
    idle_max: usize,
    used_at: Cell<u64>,
    now: Coarse,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: u64,
}

/// A connection for one request.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) way: Way,
    /// It has carried a request before.
    pub(crate) is_reused: bool,
}

#[derive(Debug)]
pub(crate) enum Way {
    /// For this request alone.
    Http1(Connection),
    /// Beside others.
    Http2(Rc<SharedConnection>),
}

impl Pools {
    pub(crate) fn new(
        places: Arc<AllPlaces>,
        idle_max_ms: u64,
        idle_max: usize,
        now: Coarse,
        shard: Arc<Shard>,
    ) -> Self {
        let (by_origin, last) = (RefCell::default(), RefCell::default());
        Self { by_origin, last, places, idle_max_ms, idle_max, now, shard }
    }

    /// The pool for calls to `upstream`.
    pub(crate) fn pool(&self, upstream: &Arc<Upstream>) -> Rc<Pool> {
        let mut last = self.last.borrow_mut();
        match &*last {
            Some((known, pool)) if Arc::ptr_eq(known, upstream) => Rc::clone(pool),
            _ => {
                let pool = self.look_up(upstream);
                *last = Some((Arc::clone(upstream), Rc::clone(&pool)));
                pool
            }
        }
    }

    fn look_up(&self, upstream: &Upstream) -> Rc<Pool> {
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
            scheme: if upstream.instance.is_tls() { Scheme::HTTPS } else { Scheme::HTTP },
            places: self.places.of(&upstream.instance),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: Mutex::default(),
            is_http1: Cell::new(false),
            idle_max: self.idle_max,
            used_at: Cell::new(self.now.now()),
            now: self.now.clone(),
        });
        pools.entry(upstream.instance.clone()).or_default().push(Rc::clone(&pool));
        pool
    }

    /// A connection that nothing is under way on: idle, or new, within `limit`.
    pub(crate) async fn take(&self, pool: &Pool, limit: Duration) -> Result<Taken, ConnectError> {
        pool.used_at.set(self.now.now());
        if pool.connector.http2() {
            return self.take_shared(pool, limit).await;
        }
        match self.take_idle(pool).await {
            Some(taken) => Ok(taken),
            None => self.open(pool, limit).await,
        }
    }

    /// As [`Self::take`], where connections can be shared. They are opened one at a time, and whoever waits for that looks
    /// for room on the new one first; all within one `limit`.
    async fn take_shared(&self, pool: &Pool, limit: Duration) -> Result<Taken, ConnectError> {
        let until = Instant::now() + limit;
        loop {
            let roomy = pool.shared.borrow().iter().find(|shared| shared.has_room()).cloned();
            if let Some(shared) = roomy {
                self.shard.upstream_reused.add_one();
                return Ok(Taken { way: Way::Http2(shared), is_reused: true });
            }
            if let Some(taken) = self.take_idle(pool).await {
                return Ok(taken); // the instance did not agree to HTTP/2
            }
            // One that has said nothing yet is not worth another beside it.
            let growing = pool.shared.borrow().iter().find(|shared| shared.may_grow()).cloned();
            if let Some(shared) = growing {
                shared.grown().await;
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            let opening = pool.opening.try_lock();
            if opening.is_err() && !pool.is_http1.get() {
                let waited = timeout(left, pool.opening.lock()).await;
                drop(waited.map_err(|_| ConnectError::TimedOut { stage: ConnectStage::Tcp, limit })?);
                continue;
            }
            let taken = self.open(pool, left).await?;
            pool.is_http1.set(matches!(taken.way, Way::Http1(_)));
            if let Way::Http2(shared) = &taken.way {
                let mut pooled = pool.shared.borrow_mut();
                pooled.retain(|shared| !shared.is_closed());
                pooled.push(Rc::clone(shared));
            }
            return Ok(taken);
        }
    }

    async fn take_idle(&self, pool: &Pool) -> Option<Taken> {
        let connection = pool.take_idle(self.idle_max_ms).await?;
        self.shard.upstream_reused.add_one();
        Some(Taken { way: Way::Http1(connection), is_reused: true })
    }

    async fn open(&self, pool: &Pool, limit: Duration) -> Result<Taken, ConnectError> {
        let stream = pool.connector.connect_limited(&pool.instance, limit).await?;
        self.shard.upstream_opened.add_one();
        let way = if stream.negotiated_h2() {
            let shared = SharedConnection::begin(stream).await.map_err(|_| ConnectError::ClosedEarly)?;
            Way::Http2(Rc::new(shared))
        } else {
            Way::Http1(Connection::new(stream))
        };
        Ok(Taken { way, is_reused: false })
    }

    /// Closes what was idle for too long or was closed by its instance, and forgets instances that nobody calls. A few
    /// times a minute.
    pub(crate) fn prune(&self) {
        let forgotten = |pool: &Pool| self.now.is_past(pool.used_at.get(), FORGOTTEN_AFTER_MS);
        self.last.borrow_mut().take_if(|(_, pool)| forgotten(pool));
        self.by_origin.borrow_mut().retain(|_, pools| {
            pools.retain(|pool| {
                let mut idle = pool.idle.borrow_mut();
                idle.retain_mut(|idle| {
                    !self.now.is_past(idle.since, self.idle_max_ms) && idle.connection.is_quiet()
                });
                // One that nobody calls over is closed with the pool, or by its instance.
                let mut shared = pool.shared.borrow_mut();
                let quiet = self.now.is_past(pool.used_at.get(), self.idle_max_ms);
                shared.retain(|shared| !(shared.is_closed() || quiet && Rc::strong_count(shared) == 1));
                // A pool under way is kept alive by its calls, and made anew beside them if it must be.
                !idle.is_empty() || !shared.is_empty() || !forgotten(pool)
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
            if self.now.is_past(since, idle_max_ms) {
                continue;
            }
            if self.now.is_past(since, PROBED_AFTER_MS) {
                // Lets the poller look at the socket once: a close that has arrived is seen before the request goes.
                yield_now().await;
            }
            if !has_budget_remaining() {
                yield_now().await; // without one, the socket is not looked at
            }
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// For the next request.
    pub(crate) fn put(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.idle_max {
            idle.push(Idle { connection, since: self.now.now() });
        }
    }
}

/// An idle connection younger than this is used as it is: under load, the poller has looked at it a moment ago.
const PROBED_AFTER_MS: u64 = 1_000;
/// An instance that was not called for this long is forgotten, its name and connector with it.
const FORGOTTEN_AFTER_MS: u64 = 600_000;
