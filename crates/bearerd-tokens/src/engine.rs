//! The shell around `transition`: loads connections, waits, calls the token endpoint, commits and publishes.
//!
//! A refresh runs in a task of its own on the engine's runtime: it never dies with the request that asked for it,
//! and there is at most one per connection. A new grant is written by compare-and-swap *before* anyone uses it; if
//! the store does not take it, memory serves it and a committer offers it again until the store does.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bearerd_crypto::random_bytes;
use bearerd_model::{
    AccessToken, AuthorizationCode, Clock, Connection, ConnectionId, Grant, GrantType, Health,
    InstanceOrigin, InstanceUser, Integration, Lifecycle, PkceVerifier, Profile, RefreshToken, UnixTime,
};
use bearerd_net::{Connector, EgressError};
use bearerd_oauth::{TokenRequest, Verdict};
use bearerd_store::{Kind, RecordKey, Store, StoreError, UpdateError, Versioned};
use prometheus::Registry;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    AccessTokens, AfterRefusal, ConnectionView, LendError, LentToken, Obtained, TokenCallError,
    TokenSettings, Upstream, UserCallError, Waiting,
    due::Due,
    endpoint::{call_token_endpoint, connector_for, read_user},
    metrics::Metrics,
    slot::{Lendable, Slot, SlotState},
    transition::{
        Base, RefreshFailure, TokenCall, can_refresh, grant_from, holds, pause_after_failure,
        pause_after_issue, record_failure, record_issue,
    },
};

/// Keeps connections and their access tokens in memory. One per process.
#[derive(Debug)]
pub struct TokenEngine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Arc<dyn Clock>,
    connector: Connector,
    settings: TokenSettings,
    slots: papaya::HashMap<ConnectionId, Arc<Slot>>,
    due: Mutex<Due>,
    due_changed: Notify,
    sole: Mutex<Sole>,
    calls: Mutex<HashMap<InstanceOrigin, Arc<Semaphore>>>,
    metrics: Metrics,
    runtime: Handle,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenEngine").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Token calls under way at once at one instance. A restart or an outage makes many refreshes due together; more at
/// once would only fill the instance's own queue (servicenow.md §6). An instance that hangs holds up no other.
const TOKEN_CALLS_MAX: usize = 32;
/// First and longest pause between two offers of a grant that the store did not take.
const COMMIT_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The answer to "which is the only connection?", until a connection changes.
#[derive(Debug, Default)]
struct Sole {
    known: Known,
    /// Grows with every change, so that an answer that was read before one is not kept after it.
    changes: u64,
}

#[derive(Debug, Default)]
enum Known {
    #[default]
    Not,
    As(Option<ConnectionId>),
}

/// Why a refresh is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The access token is near or past its end.
    Due,
    /// The instance refused the access token of this generation, or an operator asks.
    Forced,
}

/// Why no refresh was started.
enum NotStarted {
    Before(UnixTime),
    /// The engine ends.
    Closing,
    /// The slot stands for no connection any more.
    Closed,
}

impl TokenEngine {
    /// Starts the engine on the current runtime.
    ///
    /// # Errors
    /// A metric's name is registered already.
    pub fn start(
        store: Store,
        connector: Connector,
        clock: Arc<dyn Clock>,
        settings: TokenSettings,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let inner = Arc::new(Inner {
            store,
            clock,
            connector,
            settings,
            slots: papaya::HashMap::new(),
            due: Mutex::default(),
            due_changed: Notify::new(),
            sole: Mutex::default(),
            calls: Mutex::default(),
            metrics: Metrics::register(registry)?,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        let scheduler = inner.clone();
        inner.tasks.spawn(async move { scheduler.refresh_ahead().await });
        Ok(Self { inner })
    }

    /// Starts no further refresh and waits, at most `limit`, for those under way and their commits.
    pub async fn shutdown(&self, limit: Duration) {
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
        self.inner.client_credentials(integration, profile).await
    }

    /// Spends a refresh token that is not (yet) a connection's: for an import.
    ///
    /// # Errors
    /// [`TokenCallError`].
    pub async fn refresh_imported(
        &self,
        integration: &Integration,
        token: &RefreshToken,
    ) -> Result<Obtained, TokenCallError> {
        self.inner.call(integration, TokenRequest::RefreshToken(token)).await
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

    /// Whether the integration's own trust, if it names one, can be used.
    ///
    /// # Errors
    /// Its CA file cannot be read or holds no certificate.
    pub fn check_trust(&self, integration: &Integration) -> Result<(), EgressError> {
        connector_for(&self.inner.connector, integration).map(|_| ())
    }

    /// Refreshes a connection now, whatever its token's age, and waits for the outcome. The connection as it is
    /// then; its health says what went wrong. `None`: no such connection.
    ///
    /// # Errors
    /// The store, where the connection had to be read.
    pub async fn refresh_now(&self, id: &ConnectionId) -> Result<Option<Connection>, StoreError> {
        let Some(slot) = self.inner.slot(id).await? else { return Ok(None) };
        let mut changed = slot.subscribe();
        let now = self.inner.clock.now();
        slot.change(|state| {
            state.early = !state.refreshing && state.failures > 0 && now < state.not_before;
            state.not_before = UnixTime::default(); // an operator may ask at any time
        });
        if self.inner.start_refresh(&slot, Cause::Forced).is_ok() {
            let ended =
                async { while slot.read(|state| state.refreshing) && changed.changed().await.is_ok() {} };
            // The refresh itself is bounded by the call's own limit; this bounds waiting for the store as well.
            let _ = tokio::time::timeout(self.inner.settings.call_timeout() * 2, ended).await;
        }
        Ok(Some(slot.read(|state| state.connection.clone())))
    }

    /// Takes over what other writers changed: records named by the change counter, or by an act of this process.
    ///
    /// A record that the store has but that cannot be used is not an error here: what depends on it is closed, and
    /// everything else goes on (S-04). Nor is one that the store refuses to give: those come back with the refusal, to
    /// be named again later, and everything else is taken over.
    ///
    /// # Errors
    /// The store; what was not taken over is tried again with the next call that names it.
    pub async fn apply(&self, keys: &[RecordKey]) -> Result<Vec<(RecordKey, StoreError)>, StoreError> {
        let mut refused = Vec::new();
        for key in keys {
            let outcome = match key.kind {
                Kind::Connection => self.inner.reload_connection(&key.id).await,
                Kind::Integration => self.inner.reload_integration(&key.id).await,
                _ => Ok(()),
            };
            refused.extend(own_refusal(outcome)?.map(|refusal| (key.clone(), refusal)));
        }
        Ok(refused)
    }

    /// Takes everything over again, as [`Self::apply`] does: the change log does not reach back far enough.
    ///
    /// # Errors
    /// The store.
    pub async fn apply_all(&self) -> Result<Vec<(RecordKey, StoreError)>, StoreError> {
        self.inner.sole_is_unknown();
        let ids: Vec<ConnectionId> = self.inner.slots.pin().keys().cloned().collect();
        let mut refused = Vec::new();
        for id in ids {
            refused.extend(self.apply(&[RecordKey::new(Kind::Connection, id.as_str())]).await?);
            let integration =
                self.inner.held(&id).map(|slot| slot.read(|state| state.integration.id.clone()));
            if let Some(integration) = integration {
                refused.extend(self.apply(&[RecordKey::new(Kind::Integration, integration.as_str())]).await?);
            }
        }
        Ok(refused)
    }

    /// How the connection's refreshes go, with every failure that this process saw; stored is only what changes in
    /// kind. `None`: not in memory.
    pub fn health(&self, id: &ConnectionId) -> Option<Health> {
        let slot = self.inner.held(id)?;
        Some(slot.read(|state| match state.connection.health.clone() {
            Health::Failing { since, failures, strikes, reason } => {
                Health::Failing { since, failures: failures.max(state.failures), strikes, reason }
            }
            Health::Ok => Health::Ok,
        }))
    }

    /// When this process last used the connection.
    pub fn last_used(&self, id: &ConnectionId) -> Option<UnixTime> {
        self.inner.held(id)?.last_use.at()
    }
}

/// What the store refused of one record while it goes on answering; its other failures are those of all records.
fn own_refusal(outcome: Result<(), StoreError>) -> Result<Option<StoreError>, StoreError> {
    match outcome {
        Ok(()) => Ok(None),
        Err(refusal @ (StoreError::Refused(_) | StoreError::Damaged { .. })) => Ok(Some(refusal)),
        Err(error) => Err(error),
    }
}

impl Inner {
    async fn call(
        &self,
        integration: &Integration,
        request: TokenRequest<'_>,
    ) -> Result<Obtained, TokenCallError> {
        let calls = lock(&self.calls)
            .entry(integration.instance.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(TOKEN_CALLS_MAX)))
            .clone();
        let limit = self.settings.call_timeout();
        // An instance that hangs must not hold up a consent without end.
        let Ok(_permit) = tokio::time::timeout(limit, calls.acquire()).await else {
            let reason = format!("{TOKEN_CALLS_MAX} other token calls are under way there");
            return Err(TokenCallError::NotSent { reason });
        };
        call_token_endpoint(&self.connector, &self.clock, integration, request, limit).await
    }

    async fn client_credentials(
        &self,
        integration: &Integration,
        profile: &Profile,
    ) -> Result<Obtained, TokenCallError> {
        let request = TokenRequest::ClientCredentials { scopes: &profile.scopes };
        let mut obtained = self.call(integration, request).await?;
        // There should be none (RFC 6749 §4.4.3), and nobody would use it: the next token is asked for the same way.
        obtained.response.refresh_token = None;
        Ok(obtained)
    }

    fn held(&self, id: &ConnectionId) -> Option<Arc<Slot>> {
        self.slots.pin().get(id).cloned()
    }

    /// The connection's slot, from memory or from the store. `None`: no such connection.
    async fn slot(&self, id: &ConnectionId) -> Result<Option<Arc<Slot>>, StoreError> {
        if let Some(slot) = self.held(id) {
            return Ok(Some(slot));
        }
        let Some((connection, integration)) = self.read_both(id).await? else { return Ok(None) };
        let integration = Arc::new(integration);
        let upstream = self.upstream(&integration)?;
        let slot = Arc::new(Slot::new(connection, integration.clone(), upstream));
        self.slots.pin().get_or_insert(id.clone(), slot);
        self.metrics.connections_in_memory.set(i64::try_from(self.slots.len()).unwrap_or(i64::MAX));
        // A change between the reads above and the insertion went unnoticed: read once more, now that it is held.
        self.reload_integration(integration.id.as_str()).await?;
        self.reload_connection(id.as_str()).await?;
        Ok(self.held(id))
    }

    /// A connection as read *after* its integration. The tokens of connections are purged before the integration's
    /// client changes, so this order never pairs one client's token with another client's instance.
    async fn read_both(&self, id: &ConnectionId) -> Result<Option<(Connection, Integration)>, StoreError> {
        let Some(first) = self.store.load::<Connection>(id.as_str()).await? else { return Ok(None) };
        let integration_id = first.record.integration;
        let Some(integration) = self.store.load::<Integration>(integration_id.as_str()).await? else {
            return Err(StoreError::Damaged {
                key: RecordKey::new(Kind::Connection, id.as_str()),
                fault: format!("its integration {integration_id} does not exist"),
            });
        };
        let Some(second) = self.store.load::<Connection>(id.as_str()).await? else { return Ok(None) };
        if second.record.integration != integration_id {
            return Err(StoreError::Refused(format!("connection {id} is being replaced")));
        }
        Ok(Some((second.record, integration.record)))
    }

    fn upstream(&self, integration: &Integration) -> Result<Upstream, StoreError> {
        let connector = connector_for(&self.connector, integration)
            .map_err(|error| StoreError::Refused(format!("integration {}: {error}", integration.id)))?;
        Ok(Upstream {
            integration: integration.id.clone(),
            instance: integration.instance.clone(),
            connector,
        })
    }

    async fn reload_connection(&self, id: &str) -> Result<(), StoreError> {
        self.sole_is_unknown();
        let Ok(id) = ConnectionId::parse(id) else { return Ok(()) };
        let Some(slot) = self.held(&id) else { return Ok(()) };
        let _in_step = slot.in_step.lock().await;
        match self.store.load::<Connection>(id.as_str()).await {
            Ok(Some(Versioned { record, .. })) => {
                let same = slot.read(|state| {
                    state.integration.id == record.integration
                        && state.connection.created_at == record.created_at
                });
                if same && slot.read(|state| state.is_behind(&record)) && self.has_moved(&slot).await? {
                    // Their grant is the new client's: the old instance must not see it (I-4).
                    self.forget(&slot, unavailable(Duration::from_secs(1), "the integration was changed"));
                } else if same {
                    slot.adopt(record);
                    self.schedule(&slot);
                } else {
                    // Deleted and made anew under the same name; the next caller loads it.
                    self.forget(&slot, unavailable(Duration::from_secs(1), "the connection was replaced"));
                }
            }
            Ok(None) => self.forget(&slot, LendError::Unknown),
            Err(error @ StoreError::Damaged { .. }) => {
                error!(connection.id = %id, %error, "connection {id} is closed: {error}");
                self.forget(&slot, unavailable(DAMAGED_PAUSE, "the connection's record cannot be read"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn forget(&self, slot: &Arc<Slot>, why: LendError) {
        let slots = self.slots.pin();
        // Another slot may be in its place by now; that one stays.
        if let Ok(Some(_)) = slots.remove_if(&slot.id, |_, held| Arc::ptr_eq(held, slot)) {
            self.set_due(&slot.id, None);
        }
        self.metrics.connections_in_memory.set(i64::try_from(self.slots.len()).unwrap_or(i64::MAX));
        slot.close(why);
    }

    async fn reload_integration(&self, id: &str) -> Result<(), StoreError> {
        let under_it: Vec<Arc<Slot>> = self
            .slots
            .pin()
            .values()
            .filter(|slot| slot.read(|state| state.integration.id.as_str() == id))
            .cloned()
            .collect();
        if under_it.is_empty() {
            return Ok(());
        }
        let integration = match self.store.load::<Integration>(id).await {
            Ok(Some(versioned)) => Arc::new(versioned.record),
            Ok(None) => return Ok(()),
            Err(error @ StoreError::Damaged { .. }) => {
                self.forget_all(&under_it, &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let upstream = match self.upstream(&integration) {
            Ok(upstream) => upstream,
            Err(error) => {
                self.forget_all(&under_it, &error);
                return Ok(());
            }
        };
        for slot in under_it {
            if slot.read(|state| state.is_client_of(&integration)) {
                slot.change(|state| state.follow(&integration, &upstream));
            } else {
                // What is in memory belongs to the old client: it must reach the new instance in no way (I-4).
                self.forget(&slot, unavailable(Duration::from_secs(1), "the integration was changed"));
            }
        }
        Ok(())
    }

    /// Whether the slot's integration names another client or instance by now, which this process has yet to be told.
    async fn has_moved(&self, slot: &Slot) -> Result<bool, StoreError> {
        let id = slot.read(|state| state.integration.id.clone());
        match self.store.load::<Integration>(id.as_str()).await {
            Ok(Some(stored)) => Ok(!slot.read(|state| state.is_client_of(&stored.record))),
            Ok(None) | Err(StoreError::Damaged { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// An integration that cannot be used takes its connections out of use, and nothing else.
    fn forget_all(&self, slots: &[Arc<Slot>], error: &StoreError) {
        error!(%error, connections = slots.len(), "an integration cannot be used; its connections are closed: {error}");
        for slot in slots {
            self.forget(slot, unavailable(DAMAGED_PAUSE, "the integration cannot be used"));
        }
    }

    fn sole_is_unknown(&self) {
        let mut sole = lock(&self.sole);
        sole.known = Known::Not;
        sole.changes += 1;
    }

    // --- when -------------------------------------------------------------------------------------------------

    fn schedule(&self, slot: &Slot) {
        let at = slot.read(|state| {
            let at = state.next_refresh()?;
            // Spread over the first fifth of the margin, so that what was issued together is not renewed together.
            // What was put off already is not put off further: its token may be near its end.
            let grant = state.connection.grant.as_ref().filter(|grant| at <= grant.refresh_at());
            let margin = grant.map(|grant| grant.usable_until().since(grant.refresh_at()));
            Some(at + margin.unwrap_or_default().mul_f64(jitter() / 5.0))
        });
        self.set_due(&slot.id, at);
    }

    fn set_due(&self, id: &ConnectionId, at: Option<UnixTime>) {
        if lock(&self.due).set(id, at) {
            self.due_changed.notify_one();
        }
    }

    /// Refreshes what is in use ahead of its expiry, until the engine closes.
    async fn refresh_ahead(self: Arc<Self>) {
        loop {
            let now = self.clock.now();
            let next = {
                let mut due = lock(&self.due);
                due.pop(now).map_or_else(|| Err(due.next()), Ok)
            };
            match next {
                Ok(id) => {
                    if let Some(slot) = self.held(&id).filter(|slot| self.is_warm(slot, now))
                        && let Err(NotStarted::Before(at)) = self.start_refresh(&slot, Cause::Due)
                    {
                        self.set_due(&id, Some(at));
                    }
                }
                Err(next) => {
                    let pause = next
                        .map_or(IDLE_PAUSE, |at| at.since(now).clamp(Duration::from_millis(1), IDLE_PAUSE));
                    tokio::select! {
                        () = self.closing.cancelled() => return,
                        () = self.due_changed.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
            if self.closing.is_cancelled() {
                return;
            }
        }
    }

    fn is_warm(&self, slot: &Slot, now: UnixTime) -> bool {
        slot.last_use.at().is_some_and(|used| now.since(used) <= self.settings.warm_for())
    }

    // --- refresh ----------------------------------------------------------------------------------------------

    /// Starts a refresh, or finds one under way.
    fn start_refresh(self: &Arc<Self>, slot: &Arc<Slot>, cause: Cause) -> Result<(), NotStarted> {
        if self.closing.is_cancelled() {
            return Err(NotStarted::Closing);
        }
        let now = self.clock.now();
        let start = slot.change_quietly(|state| {
            if state.is_closed() {
                return Err(NotStarted::Closed);
            }
            if state.refreshing {
                return Ok(false);
            }
            let pausing = now < state.not_before && (cause == Cause::Due || state.failures > 0);
            if pausing {
                return Err(NotStarted::Before(state.not_before));
            }
            state.refreshing = true;
            Ok(true)
        })?;
        if start {
            let mut under_way = UnderWay { engine: self.clone(), slot: slot.clone(), settled: false };
            self.tasks.spawn_on(
                async move {
                    under_way.engine.refresh(&under_way.slot, cause).await;
                    under_way.settled = true;
                    drop(under_way);
                },
                &self.runtime,
            );
        }
        Ok(())
    }

    /// One refresh, from reading the record to publishing the outcome.
    async fn refresh(self: &Arc<Self>, slot: &Arc<Slot>, cause: Cause) {
        if let Err(error) = self.reload_connection(slot.id.as_str()).await {
            // ServiceNow does not rotate, so a refresh from memory risks nothing; it is committed later.
            warn!(connection.id = %slot.id, %error, "refreshing connection {} from memory: the store did not answer", slot.id);
        }
        let (closed, connection, integration, profile) = slot.read(|state| {
            (state.is_closed(), state.connection.clone(), state.integration.clone(), state.profile())
        });
        let now = self.clock.now();
        if closed || !is_wanted(&connection, &profile, cause, now) {
            return;
        }
        let started = Instant::now();
        let outcome = self.ask(&connection, &integration, &profile, now).await;
        self.metrics.refresh_seconds.observe(started.elapsed().as_secs_f64());
        match outcome {
            Ok(obtained) => {
                let lifetime = integration.refresh_token_lifetime;
                let call = match profile.grant_type {
                    GrantType::AuthorizationCode => TokenCall::Refresh,
                    GrantType::ClientCredentials => TokenCall::NewGrant,
                };
                let grant = grant_from(connection.grant.as_ref(), call, obtained, lifetime);
                self.settle_issue(slot, &connection, grant).await;
            }
            Err(failure) => self.settle_failure(slot, &connection, &failure).await,
        }
    }

    async fn ask(
        &self,
        connection: &Connection,
        integration: &Integration,
        profile: &Profile,
        now: UnixTime,
    ) -> Result<Obtained, RefreshFailure> {
        if profile.grant_type == GrantType::ClientCredentials {
            return Ok(self.client_credentials(integration, profile).await?);
        }
        if let Some(token) = connection.grant.as_ref().and_then(|grant| grant.refresh_token.as_ref()) {
            Ok(self.call(integration, TokenRequest::RefreshToken(token)).await?)
        } else {
            debug!(connection.id = %connection.id, at = now.as_secs(), "no refresh token");
            Err(RefreshFailure::NoRefreshToken)
        }
    }

    async fn settle_issue(self: &Arc<Self>, slot: &Arc<Slot>, before: &Connection, grant: Grant) {
        let now = self.clock.now();
        let old_generation = before.grant.as_ref().map(|grant| grant.generation).unwrap_or_default();
        let same = grant.generation == old_generation;
        self.metrics.refreshes.with_label_values(&[if same { "same_token" } else { "new_token" }]).inc();
        let not_before = pause_after_issue(old_generation, &grant, now);
        let in_step = slot.in_step.lock().await;
        // The slot was closed during the call: the connection is gone, or the client that was asked is no longer the
        // integration's. Nobody may use what it answered.
        if slot.read(SlotState::is_closed) && before.grant.is_none() {
            return;
        }
        // What memory was already ahead of stays what the store is compared with.
        let mut bases = slot.read(|state| state.uncommitted.clone());
        let committing = !bases.is_empty();
        if !committing {
            bases.push(Base::of(before));
        }
        let outcome = self.commit(slot, &mut bases, &grant).await;
        slot.change(|state| {
            state.failures = 0;
            state.not_before = not_before;
            match &outcome {
                Commit::Done(connection) => {
                    state.uncommitted.clear();
                    state.connection = (**connection).clone();
                }
                Commit::Lost => {}
                Commit::NotTaken(_) => {
                    state.uncommitted = bases;
                    record_issue(&mut state.connection, grant, now);
                }
            }
        });
        drop(in_step);
        match outcome {
            Commit::Done(_) => debug!(connection.id = %slot.id, "refreshed connection {}", slot.id),
            Commit::Lost => {
                info!(connection.id = %slot.id, "another writer changed the grant of connection {}; theirs stands", slot.id);
                let _ = self.reload_connection(slot.id.as_str()).await;
            }
            Commit::NotTaken(error) => {
                error!(connection.id = %slot.id, %error, "a refreshed grant of connection {} is in memory only; offering it to the store until it is taken", slot.id);
                if !committing {
                    let (engine, slot) = (self.clone(), slot.clone());
                    self.tasks.spawn_on(async move { engine.commit_until_taken(&slot).await }, &self.runtime);
                }
            }
        }
    }

    /// Writes `grant` where the store still holds one of `bases`. A write that may have happened becomes one of them:
    /// the next grant replaces whichever is there. Under [`Slot::in_step`].
    async fn commit(&self, slot: &Slot, bases: &mut Vec<Base>, grant: &Grant) -> Commit {
        let now = self.clock.now();
        let last_used = slot.last_use.at();
        let result = self
            .store
            .update::<Connection, ()>(slot.id.as_str(), |stored| {
                if !holds(stored, grant) {
                    if !bases.iter().any(|base| base.is_current_in(stored)) {
                        return Err(());
                    }
                    record_issue(stored, grant.clone(), now);
                }
                stored.last_used_at = stored.last_used_at.max(last_used);
                Ok(())
            })
            .await;
        if let Err(UpdateError::Store(StoreError::OutcomeUnknown(_))) = result {
            bases.truncate(BASES_MAX - 1);
            bases.insert(0, Base::of_grant(grant));
        }
        let (label, outcome) = match result {
            Ok(Some(versioned)) => ("committed", Commit::Done(Box::new(versioned.record))),
            Ok(None) | Err(UpdateError::Declined(())) => ("lost", Commit::Lost),
            Err(UpdateError::Contended(key)) => {
                ("retried", Commit::NotTaken(StoreError::Refused(format!("{key} is contended"))))
            }
            Err(UpdateError::Store(error)) => ("retried", Commit::NotTaken(error)),
        };
        self.metrics.commits.with_label_values(&[label]).inc();
        outcome
    }

    /// Offers what is only in memory to the store, until it is taken or overtaken. One per slot: it is started by
    /// whoever puts the first base into `uncommitted`, and ends with the last.
    async fn commit_until_taken(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut pause = COMMIT_PAUSES.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(COMMIT_PAUSES.1);
            let in_step = slot.in_step.lock().await;
            let (mut bases, grant) =
                slot.read(|state| (state.uncommitted.clone(), state.connection.grant.clone()));
            let Some(grant) = grant.filter(|_| !bases.is_empty()) else {
                return; // a refresh, or another writer, was faster
            };
            match self.commit(slot, &mut bases, &grant).await {
                Commit::Done(connection) => {
                    slot.change(|state| {
                        state.uncommitted.clear();
                        state.connection = *connection;
                    });
                    info!(connection.id = %slot.id, "the store took the grant of connection {}", slot.id);
                    return;
                }
                Commit::Lost => {
                    slot.change_quietly(|state| state.uncommitted.clear());
                    drop(in_step);
                    let _ = self.reload_connection(slot.id.as_str()).await;
                    return;
                }
                Commit::NotTaken(_) => slot.change_quietly(|state| state.uncommitted = bases),
            }
        }
    }

    async fn settle_failure(&self, slot: &Slot, before: &Connection, failure: &RefreshFailure) {
        self.metrics.refreshes.with_label_values(&[failure.outcome()]).inc();
        let now = self.clock.now();
        let early = slot.change_quietly(|state| std::mem::take(&mut state.early));
        let mut after = before.clone();
        if !(early && failure.verdict() == Verdict::Suspect) {
            record_failure(&mut after, failure, now);
        }
        let strikes = match after.health {
            Health::Failing { strikes, .. } => strikes,
            Health::Ok => 0,
        };
        let not_before = slot.change_quietly(|state| {
            state.forced = None; // a forced refresh that brought no answer does not count
            state.failures = state.failures.saturating_add(1);
            state.not_before = now + pause_after_failure(failure, state.failures, strikes, jitter());
            state.not_before
        });
        warn!(
            connection.id = %slot.id, retry_in_ms = not_before.since(now).as_millis(), failure = %failure,
            "token refresh for connection {} failed: {failure}", slot.id
        );
        if worth_storing(before, &after) {
            self.store_failure(slot, before, failure, after.health).await;
        } else {
            slot.change(|state| state.connection.health = after.health);
        }
    }

    /// `health`: what the failure makes of it, for memory alone where the store does not answer.
    async fn store_failure(
        &self,
        slot: &Slot,
        before: &Connection,
        failure: &RefreshFailure,
        health: Health,
    ) {
        let now = self.clock.now();
        let base = Base::of(before);
        let in_step = slot.in_step.lock().await;
        let result = self
            .store
            .update::<Connection, ()>(slot.id.as_str(), |stored| {
                // I-6: only the refusal of the newest refresh token counts.
                if !base.is_current_in(stored) {
                    return Err(());
                }
                record_failure(stored, failure, now);
                Ok(())
            })
            .await;
        match result {
            Ok(Some(Versioned { record, .. })) => {
                if let Lifecycle::ReauthorizationRequired { cause, .. } = &record.lifecycle {
                    error!(connection.id = %slot.id, ?cause, "connection {} needs a new consent: bearerd connection reauthorize {}", slot.id, slot.id);
                }
                slot.change(|state| state.connection = record);
            }
            Ok(None) | Err(UpdateError::Declined(())) => {
                drop(in_step);
                let _ = self.reload_connection(slot.id.as_str()).await;
            }
            // Without the store nobody knows whether the refused token was the newest: the connection lives on, and
            // the next refresh, after the pause, finds out (I-6).
            Err(_) => slot.change(|state| state.connection.health = health),
        }
    }

    // --- lending ----------------------------------------------------------------------------------------------

    async fn acquire(self: Arc<Self>, id: ConnectionId) -> Result<LentToken, LendError> {
        let slot = self.slot_or_lend_error(&id).await?;
        let deadline = Instant::now() + self.settings.wait_max();
        let mut changed = slot.subscribe();
        loop {
            changed.borrow_and_update();
            let now = self.clock.now();
            match slot.lendable(now) {
                Lendable::Now(token) => {
                    slot.last_use.mark(now);
                    return Ok(token);
                }
                Lendable::Never(error) => return Err(error),
                Lendable::AfterRefresh => {}
            }
            let wake = match self.start_refresh(&slot, Cause::Due) {
                Ok(()) => deadline,
                Err(NotStarted::Before(at)) => Instant::now() + at.since(now),
                Err(NotStarted::Closing) => return Err(unavailable(Duration::from_secs(1), "shutting down")),
                Err(NotStarted::Closed) => continue, // says why above
            };
            if wake > deadline {
                return Err(unavailable(
                    wake - Instant::now(),
                    "the last refresh failed; the next one is later",
                ));
            }
            // Checks the deadline before each wait: a refresh that starts, fails and pauses again must not loop.
            if Instant::now() >= deadline {
                return Err(unavailable(Duration::from_secs(1), "the token endpoint takes too long"));
            }
            let _ = tokio::time::timeout_at(wake, changed.changed()).await;
        }
    }

    async fn slot_or_lend_error(self: &Arc<Self>, id: &ConnectionId) -> Result<Arc<Slot>, LendError> {
        if let Some(slot) = self.held(id) {
            return Ok(slot);
        }
        // On the engine's runtime: a caller that leaves must not cut a store command short.
        let (engine, wanted) = (self.clone(), id.clone());
        let loading = self.runtime.spawn(async move { engine.slot(&wanted).await });
        match loading.await {
            Ok(Ok(Some(slot))) => Ok(slot),
            Ok(Ok(None)) => Err(LendError::Unknown),
            Ok(Err(error)) => {
                warn!(connection.id = %id, %error, "connection {id} could not be read");
                Err(unavailable(Duration::from_secs(1), "the store cannot be read"))
            }
            Err(_) => Err(unavailable(Duration::from_secs(1), "shutting down")),
        }
    }

    async fn refused(self: Arc<Self>, id: ConnectionId, refused: LentToken) -> AfterRefusal {
        let Some(slot) = self.held(&id) else { return AfterRefusal::PassThrough };
        let deadline = Instant::now() + self.settings.wait_max();
        let mut changed = slot.subscribe();
        loop {
            changed.borrow_and_update();
            // Told apart by the tokens themselves: a grant after a purge may count its generations anew.
            if let Lendable::Now(token) = slot.lendable(self.clock.now())
                && token.bearer != refused.bearer
            {
                return if Arc::ptr_eq(&token.upstream, &refused.upstream) {
                    AfterRefusal::Replay(token)
                } else {
                    AfterRefusal::PassThrough // another connection's, or for another instance (I-4)
                };
            }
            // One forced refresh a generation: whoever marks it starts it, everyone else waits for its end.
            let (mine, refreshing) = slot.change_quietly(|state| {
                let held = state.generation_of(&refused);
                state.refused = held.or(state.refused);
                let mine = held.is_some() && !state.refreshing && state.forced != held;
                if mine {
                    state.forced = held;
                }
                (mine, state.refreshing)
            });
            if mine {
                if self.start_refresh(&slot, Cause::Forced).is_err() {
                    slot.change(|state| state.forced = None); // paused after failures: may be asked again
                    return AfterRefusal::PassThrough;
                }
            } else if !refreshing {
                return AfterRefusal::PassThrough;
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return AfterRefusal::PassThrough;
            }
        }
    }

    async fn sole_connection(self: Arc<Self>) -> Option<ConnectionId> {
        let changes = {
            let sole = lock(&self.sole);
            if let Known::As(known) = &sole.known {
                return known.clone();
            }
            sole.changes
        };
        let page = self.store.list::<Connection>(None, 2).await.ok()?;
        let found = match page.records.as_slice() {
            [only] if page.damaged.is_empty() => Some(only.record.id.clone()),
            _ => None,
        };
        let mut sole = lock(&self.sole);
        if sole.changes == changes {
            sole.known = Known::As(found.clone());
        }
        found
    }
}

/// A record that does not open will not do so a moment later.
const DAMAGED_PAUSE: Duration = Duration::from_secs(30);
/// Unconfirmed writes of one connection that are remembered: more in a row, without one that was confirmed or
/// overtaken, would need a store that reads and never confirms for that many tokens' lives.
const BASES_MAX: usize = 32;
/// Longest sleep of the scheduler with nothing due.
const IDLE_PAUSE: Duration = Duration::from_mins(1);

enum Commit {
    Done(Box<Connection>),
    /// Another writer replaced the grant, or the connection is gone.
    Lost,
    NotTaken(StoreError),
}

/// Marks a refresh as under way; ends it even if the task panics.
struct UnderWay {
    engine: Arc<Inner>,
    slot: Arc<Slot>,
    /// It came to its end.
    settled: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.engine.clock.now();
        self.slot.change(|state| {
            state.refreshing = false;
            state.early = false;
            if !self.settled {
                state.forced = None;
                state.failures = state.failures.saturating_add(1);
                state.not_before = now + PANIC_PAUSE; // or whoever waits would start the next one at once
            }
        });
        if self.engine.held(&self.slot.id).is_some_and(|held| Arc::ptr_eq(&held, &self.slot)) {
            self.engine.schedule(&self.slot);
        }
    }
}

/// Pause after a refresh that panicked.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Whether the record, as just read, still wants the refresh.
fn is_wanted(connection: &Connection, profile: &Profile, cause: Cause, now: UnixTime) -> bool {
    if !matches!(connection.lifecycle, Lifecycle::Active { .. } | Lifecycle::AwaitingConfirmation { .. })
        && cause == Cause::Due
    {
        return false;
    }
    match &connection.grant {
        // Without a grant that a person gave, an active connection has nothing to live by: the refresh says so.
        None => {
            profile.grant_type == GrantType::ClientCredentials
                || matches!(connection.lifecycle, Lifecycle::Active { .. })
        }
        Some(grant) if !can_refresh(connection, profile.grant_type) => now >= grant.usable_until(),
        Some(grant) => cause == Cause::Forced || now >= grant.refresh_at(),
    }
}

/// Health is stored when it changes in kind, not with every failure: an outage must not become a write storm.
fn worth_storing(before: &Connection, after: &Connection) -> bool {
    let strikes = |connection: &Connection| match connection.health {
        Health::Ok => None,
        Health::Failing { strikes, .. } => Some(strikes),
    };
    before.lifecycle != after.lifecycle || strikes(before) != strikes(after)
}

fn unavailable(retry_after: Duration, reason: &'static str) -> LendError {
    LendError::Unavailable { retry_after, reason }
}

/// 0 to 1.
fn jitter() -> f64 {
    f64::from(u16::from_be_bytes(*random_bytes::<2>())) / f64::from(u16::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

    fn sole_connection(&self) -> Waiting<Option<ConnectionId>> {
        Box::pin(self.inner.clone().sole_connection())
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
