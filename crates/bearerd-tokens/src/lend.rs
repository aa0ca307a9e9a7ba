//! What the proxy door may ask: the narrow side of the token engine. Reading is from memory; only what memory does
//! not answer waits.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_model::{ConnectionId, DeathCause, Generation, InstanceOrigin, IntegrationId, UnixTime};
use bearerd_net::Connector;
use http::HeaderValue;

/// A future that outlives its borrow of the engine.
pub type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where a connection's calls go. Each connection has one of its own, for as long as its calls go the same way: two
/// tokens that share it (`Arc::ptr_eq`) are one connection's, for one instance (I-4).
#[derive(Debug, Clone)]
pub struct Upstream {
    pub integration: IntegrationId,
    pub instance: InstanceOrigin,
    /// Dials the instance with the integration's own trust and egress; equal connectors share a pool.
    pub connector: Connector,
}

impl Upstream {
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        self.integration == other.integration
            && self.instance == other.instance
            && self.connector.same_as(&other.connector)
    }
}

/// An access token, ready to inject.
#[derive(Debug, Clone)]
pub struct LentToken {
    pub generation: Generation,
    /// Where it was issued, and the only place that it may be sent to (I-4).
    pub upstream: Arc<Upstream>,
    /// `Bearer …`, marked sensitive.
    pub bearer: HeaderValue,
    /// From here on the token is never injected.
    pub usable_until: UnixTime,
}

/// A connection as it stands in memory. Immutable: a change puts another view in its place.
#[derive(Debug, Clone)]
pub struct ConnectionView {
    pub id: ConnectionId,
    pub labels: BTreeMap<String, String>,
    pub upstream: Arc<Upstream>,
    pub standing: Standing,
    /// The proxy door marks it with every call that goes out; shared by all views of the connection.
    pub last_use: Arc<LastUse>,
}

/// When a connection was last used, to the second. Written by many threads, without order.
#[derive(Debug, Default)]
pub struct LastUse(AtomicU64);

impl LastUse {
    pub fn starting_at(at: Option<UnixTime>) -> Self {
        Self(AtomicU64::new(at.map_or(0, UnixTime::as_millis)))
    }

    /// Cheap enough for every call: writes at most once a second.
    pub fn mark(&self, now: UnixTime) {
        if now.as_millis() >= self.0.load(Ordering::Relaxed).saturating_add(1_000) {
            self.0.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    pub fn at(&self) -> Option<UnixTime> {
        let millis = self.0.load(Ordering::Relaxed);
        (millis > 0).then(|| UnixTime::from_millis(millis))
    }
}

#[derive(Debug, Clone)]
pub enum Standing {
    /// Calls may go out with this token while `now < usable_until`; after that, [`AccessTokens::acquire`].
    Ready(LentToken),
    /// The connection is in use and holds no token yet, or none any more: [`AccessTokens::acquire`].
    NeedsToken,
    /// No call may go out.
    Closed(LendError),
}

/// Why no access token is lent. Each variant is one error code of the proxy door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    #[error("no such connection")]
    Unknown,
    #[error("the connection awaits consent or confirmation")]
    Pending,
    #[error("the connection is frozen by an operator")]
    Frozen,
    #[error("the grant is dead since {since:?}: {cause:?}")]
    ReauthorizationRequired { since: UnixTime, cause: DeathCause },
    /// The grant lives, but no usable access token could be had in time.
    #[error("no usable access token: {reason}")]
    Unavailable { retry_after: Duration, reason: &'static str },
}

/// What an upstream 401 led to.
#[derive(Debug, Clone)]
pub enum AfterRefusal {
    /// Another token of the same upstream is there: replay once with it.
    Replay(LentToken),
    /// The refused token came back, a forced refresh failed or is cooling down, or the connection was made anew: pass
    /// the 401 through.
    PassThrough,
}

/// The token engine as the proxy door sees it. Callable from any runtime.
pub trait AccessTokens: fmt::Debug + Send + Sync + 'static {
    /// The view in memory: no wait, no lock, no store command. `None`: not in memory, ask [`Self::load`].
    fn peek(&self, id: &ConnectionId) -> Option<Arc<ConnectionView>>;

    /// Brings a connection into memory. `Err(Unknown)` if there is none; `Err(Unavailable)` if the store is down.
    fn load(&self, id: &ConnectionId) -> Waiting<Result<Arc<ConnectionView>, LendError>>;

    /// Waits, bounded, for a usable access token. Its `upstream` is not the one that a view showed before the wait if
    /// the connection was changed meanwhile. Dropping the future cancels the wait, never the refresh.
    fn acquire(&self, id: &ConnectionId) -> Waiting<Result<LentToken, LendError>>;

    /// Reports that the instance refused `token` with a 401, and waits for the outcome of the one forced refresh that
    /// its generation gets.
    fn refused(&self, id: &ConnectionId, token: &LentToken) -> Waiting<AfterRefusal>;

    /// All connections as memory has them: no wait, no lock, no store command. `None`: ask [`Self::load_roster`].
    fn roster(&self) -> Option<Roster>;

    /// Reads which connections there are. `Err(Unavailable)` if the store is down and never said it.
    fn load_roster(&self) -> Waiting<Result<Roster, LendError>>;
}

/// All connections with their labels: lets a key whose rules select one of them leave it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roster {
    Few(Arc<[(ConnectionId, BTreeMap<String, String>)]>),
    /// More than 100.
    TooMany,
}
