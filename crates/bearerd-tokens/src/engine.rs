//! The token engine: connections in memory, their access tokens, and what other crates may ask of them.
//!
//! What becomes of a connection is decided by `bearerd_refresh::Refresher`, one a connection, which does no I/O;
//! `shell` does what it asks for. `loading` brings connections into memory and follows their records, `lending` hands
//! out access tokens, `ahead` looks after what is due.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bearerd_model::{
    AccessToken, AuthorizationCode, Clock, Connection, ConnectionId, Generation, Health, InstanceOrigin,
    InstanceUser, Integration, PkceVerifier, Profile, UnixTime,
};
use bearerd_net::{Connector, EgressError};
use bearerd_oauth::{RevocableToken, TokenRequest};
use bearerd_refresh::{Actions, Cause, Due, NotBegun, Now, Obtained, Protocol, Refresher, TokenCallError};
use bearerd_store::{Kind, RecordKey, Store, StoreError};
use prometheus::Registry;
use serde::de::DeserializeOwned;
use tokio::{runtime::Handle, sync::Notify, task::JoinSet, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

use crate::{
    AccessTokens, AfterRefusal, ConnectionView, LendError, LentToken, ProcessPlace, RecordsCallError,
    RevocationCallError, Roster, TokenSettings, UserCallError, Waiting,
    ahead::Recovered,
    endpoint::{call_token_endpoint, connector_for, read_records, read_user, revoke_token},
    gates::{Gates, TOKEN_CALLS_MAX},
    metrics::Metrics,
    roster::HeldRoster,
    slot::Slot,
};

/// Keeps connections and their access tokens in memory. One per process.
#[derive(Debug)]
pub struct TokenEngine {
    pub(crate) inner: Arc<Inner>,
}

/// Records, and where they were read.
#[derive(Debug)]
pub struct ReadRecords<T> {
    pub instance: InstanceOrigin,
    pub records: Vec<T>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) connector: Connector,
    pub(crate) settings: TokenSettings,
    pub(crate) place: ProcessPlace,
    pub(crate) protocol: Protocol,
    pub(crate) slots: papaya::HashMap<ConnectionId, Arc<Slot>>,
    pub(crate) due: Mutex<Due>,
    pub(crate) due_changed: Notify,
    pub(crate) recovered: Recovered,
    pub(crate) roster: HeldRoster,
    pub(crate) gates: Gates,
    pub(crate) metrics: Metrics,
    pub(crate) runtime: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenEngine").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl TokenEngine {
    /// An engine on the current runtime.
    ///
    /// # Errors
    /// A metric's name is registered already.
    pub fn start(
        store: Store,
        connector: Connector,
        clock: Arc<dyn Clock>,
        settings: TokenSettings,
        mut place: ProcessPlace,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let protocol =
            Protocol::new(place.owner, place.exclusive, settings.call_timeout(), settings.warm_for());
        let recovered = Recovered::of(std::mem::take(&mut place.recovered));
        let inner = Arc::new(Inner {
            store,
            clock,
            connector,
            settings,
            place,
            protocol,
            slots: papaya::HashMap::new(),
            due: Mutex::default(),
            due_changed: Notify::new(),
            recovered,
            roster: HeldRoster::default(),
            gates: Gates::default(),
            metrics: Metrics::register(registry)?,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        Ok(Self { inner })
    }

    /// Begins to look after connections by itself: refreshes ahead of time, what is due, what was kept. Until then it does
    /// what it is asked for. Once.
    pub fn begin(&self) {
        for task in [Inner::refresh_ahead_boxed, Inner::look_after_boxed, Inner::recover_boxed] {
            self.inner.tasks.spawn_on(task(self.inner.clone()), &self.inner.runtime);
        }
    }

    /// Begins no further exchange and waits for those under way and their commits: at most `limit`, or the life of a
    /// claim if that is longer.
    pub async fn shutdown(&self, limit: Duration) {
        let limit = limit.max(self.inner.protocol.lease);
        self.inner.closing.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(limit, self.inner.tasks.wait()).await.is_err() {
            error!("refreshes still under way after {limit:?} were left");
        }
    }

    /// Exchanges an authorization code (RFC 6749 §4.1.3).
    ///
    /// # Errors
    /// [`TokenCallError`]; the code is spent in any case but `NotSent`.
    pub async fn exchange_code(
        &self,
        integration: &Integration,
        code: &AuthorizationCode,
        redirect_uri: &str,
        verifier: Option<&PkceVerifier>,
    ) -> Result<Obtained, TokenCallError> {
        let request = TokenRequest::AuthorizationCode { code, redirect_uri, verifier };
        self.inner.call(integration, request).await
    }

    /// Asks for tokens by client credentials (RFC 6749 §4.4).
    ///
    /// # Errors
    /// [`TokenCallError`].
    pub async fn client_credentials(
        &self,
        integration: &Integration,
        profile: &Profile,
    ) -> Result<Obtained, TokenCallError> {
        let request = TokenRequest::ClientCredentials { scopes: &profile.scopes };
        let mut obtained = self.inner.call(integration, request).await?;
        // There should be none (RFC 6749 §4.4.3), and nobody would use it: the next token is asked for the same way.
        obtained.response.refresh_token = None;
        Ok(obtained)
    }

    /// Reads the record of the user that `token` acts as.
    ///
    /// # Errors
    /// [`UserCallError`].
    pub async fn read_user(
        &self,
        integration: &Integration,
        token: &AccessToken,
    ) -> Result<InstanceUser, UserCallError> {
        read_user(&self.inner.connector, integration, token, self.inner.settings.call_timeout()).await
    }

    /// Reads records over a connection, as its user may see them: what an instance says of its own tables. `path_and_query`
    /// is one of the Table API.
    ///
    /// # Errors
    /// [`RecordsCallError`].
    pub async fn read_records<T: DeserializeOwned>(
        &self,
        id: &ConnectionId,
        path_and_query: &str,
    ) -> Result<ReadRecords<T>, RecordsCallError> {
        let token = self.inner.clone().acquire(id.clone()).await?;
        let records = read_records(&token, path_and_query, self.inner.settings.call_timeout()).await?;
        Ok(ReadRecords { instance: token.upstream.instance.clone(), records })
    }

    /// Revokes a token (RFC 7009 §2.1). Asks nobody whether a live connection still holds it: that is for the caller to
    /// know (product contract §5).
    ///
    /// # Errors
    /// [`RevocationCallError`]; the token may still be alive.
    pub async fn revoke(
        &self,
        integration: &Integration,
        token: RevocableToken<'_>,
    ) -> Result<(), RevocationCallError> {
        revoke_token(&self.inner.connector, integration, token, self.inner.settings.call_timeout()).await
    }

    /// Whether the integration's own trust, if it names one, can be used.
    ///
    /// # Errors
    /// Its CA file cannot be read or holds no certificate.
    pub fn check_trust(&self, integration: &Integration) -> Result<(), EgressError> {
        connector_for(&self.inner.connector, integration).map(|_| ())
    }

    /// Refreshes a connection now, whatever its token's age, and waits for the outcome; where another process is at
    /// it, for that one's. The connection as it is then; its health says what went wrong. `None`: no such connection.
    ///
    /// # Errors
    /// The store, where the connection had to be read.
    pub async fn refresh_now(&self, id: &ConnectionId) -> Result<Option<Connection>, StoreError> {
        let Some(slot) = self.inner.slot(id).await? else { return Ok(None) };
        let mut changed = slot.subscribe();
        // The exchange itself is bounded by the call's own limit; this bounds waiting for the store as well.
        let deadline = Instant::now() + self.inner.settings.call_timeout() * 2;
        loop {
            changed.borrow_and_update();
            let until = match self.inner.ask(&slot, Cause::Operator) {
                Ok(()) => break,
                Err(NotBegun::Ended) => return Ok(Some(slot.read(|state| state.connection().clone()))),
                Err(NotBegun::Before(until) | NotBegun::Claimed(until)) => {
                    Instant::now() + until.since(self.inner.clock.now())
                }
            };
            if Instant::now() >= deadline {
                break;
            }
            let _ = tokio::time::timeout_at(until.min(deadline), changed.changed()).await;
        }
        let ended = async {
            while slot.read(|state| state.refresher.is_exchanging()) && changed.changed().await.is_ok() {}
        };
        let _ = tokio::time::timeout_at(deadline, ended).await;
        Ok(Some(slot.read(|state| state.connection().clone())))
    }

    /// Takes over what other writers changed: records named by the change counter, or by an act of this process.
    ///
    /// A record that the store has but that cannot be used is no failure: what depends on it is closed, and everything
    /// else goes on (S-04). What could not be read comes back with the reason, to be named again later; in a cluster that
    /// may be the records of one node alone.
    pub async fn apply(&self, keys: &[RecordKey]) -> Vec<(RecordKey, StoreError)> {
        let mut reading = JoinSet::new();
        let mut refused = Vec::new();
        let mut keys = keys.iter().cloned();
        loop {
            while reading.len() < READS_MAX
                && let Some(key) = keys.next()
            {
                let engine = self.inner.clone();
                reading.spawn_on(async move { (engine.reload(&key).await, key) }, &self.inner.runtime);
            }
            let Some(read) = reading.join_next().await else { return refused };
            let Ok((outcome, key)) = read else { continue }; // it panicked, which is told where it happened
            refused.extend(outcome.err().map(|error| (key, error)));
        }
    }

    /// Takes everything over again, as [`Self::apply`] does: the change log does not reach back far enough, or the
    /// store may have gone back a few writes. What memory holds newer than the store is offered to it again.
    pub async fn apply_all(&self) -> Vec<(RecordKey, StoreError)> {
        self.inner.roster.changes();
        let ids: Vec<ConnectionId> = self.inner.slots.pin().keys().cloned().collect();
        let connections: Vec<RecordKey> =
            ids.iter().map(|id| RecordKey::new(Kind::Connection, id.as_str())).collect();
        let mut refused = self.apply(&connections).await;
        let integration_of =
            |id: &ConnectionId| Some(self.inner.held(id)?.read(|state| state.integration.id.clone()));
        let integrations: BTreeSet<_> = ids.iter().filter_map(integration_of).collect();
        let integrations: Vec<RecordKey> =
            integrations.iter().map(|id| RecordKey::new(Kind::Integration, id.as_str())).collect();
        refused.extend(self.apply(&integrations).await);
        refused
    }

    /// How the connection's refreshes go, with every failure that this process saw; stored is only what changes in
    /// kind. `None`: not in memory.
    pub fn health(&self, id: &ConnectionId) -> Option<Health> {
        let slot = self.inner.held(id)?;
        Some(slot.read(|state| match state.connection().health.clone() {
            Health::Failing { since, failures, strikes, reason } => {
                let failures = failures.max(state.refresher.failures());
                Health::Failing { since, failures, strikes, reason }
            }
            Health::Ok => Health::Ok,
        }))
    }

    /// When this process last used the connection.
    pub fn last_used(&self, id: &ConnectionId) -> Option<UnixTime> {
        self.inner.held(id)?.last_use.at()
    }
}

/// Records read at once where many have changed: a revoked key waits for all of them.
const READS_MAX: usize = 64;

impl Inner {
    /// A token call that is no connection's: whoever asks waits for the answer.
    async fn call(
        &self,
        integration: &Integration,
        request: TokenRequest<'_>,
    ) -> Result<Obtained, TokenCallError> {
        let limit = self.settings.call_timeout();
        // An instance that hangs must not hold up a consent without end.
        let Ok(_place) = self.gates.of(integration).place(limit).await else {
            let reason = format!("{TOKEN_CALLS_MAX} other token calls are under way there");
            return Err(TokenCallError::NotSent { reason });
        };
        call_token_endpoint(&self.connector, &self.clock, integration, request, limit).await
    }

    async fn reload(self: &Arc<Self>, key: &RecordKey) -> Result<(), StoreError> {
        match key.kind {
            Kind::Connection => self.reload_connection(&key.id).await,
            Kind::Integration => self.reload_integration(&key.id).await,
            _ => Ok(()),
        }
    }

    /// Begins an exchange, or finds one under way.
    pub(crate) fn ask(self: &Arc<Self>, slot: &Arc<Slot>, cause: Cause) -> Result<(), NotBegun> {
        self.begin(slot, |refresher, now, actions| refresher.ask(cause, now, actions))
    }

    /// The same, where the instance refused the token of this generation.
    pub(crate) fn ask_refused(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        generation: Generation,
    ) -> Result<(), NotBegun> {
        self.begin(slot, |refresher, now, actions| refresher.ask_refused(generation, now, actions))
    }

    fn begin(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        ask: impl FnOnce(&mut Refresher, Now, &mut Actions) -> Result<(), NotBegun>,
    ) -> Result<(), NotBegun> {
        if self.closing.is_cancelled() {
            return Err(NotBegun::Ended);
        }
        let now = self.moment();
        let mut actions = Vec::new();
        let begun = slot.act(&mut actions, |state, actions| ask(&mut state.refresher, now, actions));
        self.run(slot, actions);
        begun
    }
}

pub(crate) fn unavailable(retry_after: Duration, reason: &'static str) -> LendError {
    LendError::Unavailable { retry_after, reason }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl AccessTokens for TokenEngine {
    fn peek(&self, id: &ConnectionId) -> Option<Arc<ConnectionView>> {
        self.inner.slots.pin().get(id).map(|slot| slot.view())
    }

    fn load(&self, id: &ConnectionId) -> Waiting<Result<Arc<ConnectionView>, LendError>> {
        let (engine, id) = (self.inner.clone(), id.clone());
        Box::pin(async move { Ok(engine.slot_or_lend_error(&id).await?.view()) })
    }

    fn acquire(&self, id: &ConnectionId) -> Waiting<Result<LentToken, LendError>> {
        Box::pin(self.inner.clone().acquire(id.clone()))
    }

    fn refused(&self, id: &ConnectionId, token: &LentToken) -> Waiting<AfterRefusal> {
        Box::pin(self.inner.clone().refused(id.clone(), token.clone()))
    }

    fn roster(&self) -> Option<Roster> {
        self.inner.roster.known()
    }

    fn load_roster(&self) -> Waiting<Result<Roster, LendError>> {
        Box::pin(self.inner.clone().load_roster())
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
