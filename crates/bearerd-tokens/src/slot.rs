//! One connection in memory: the view that the proxy door reads without waiting, and the state behind it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use bearerd_model::{
    Connection, ConnectionId, Generation, Grant, GrantType, Integration, Lifecycle, Profile, UnixTime,
};
use bearerd_refresh::{Action, Actions, Protocol, Refresher, Terms};
use bearerd_store::StoreError;
use tokio::sync::watch;

use crate::{ConnectionView, LastUse, LendError, LentToken, Standing, Upstream, gates::Place};

pub(crate) struct Slot {
    pub(crate) id: ConnectionId,
    pub(crate) last_use: Arc<LastUse>,
    pub(crate) loaded_at: UnixTime,
    view: ArcSwap<ConnectionView>,
    /// Told whenever the view changed or an exchange ended.
    changed: watch::Sender<()>,
    /// The looks at the record that have ended.
    pub(crate) looks: watch::Sender<Looked>,
    state: Mutex<SlotState>,
}

/// Which looks at the record have ended, and how the last one did.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    pub(crate) number: u64,
    pub(crate) outcome: Result<(), StoreError>,
}

/// Behind the view; locked for moments, never across a wait.
pub(crate) struct SlotState {
    pub(crate) refresher: Refresher,
    pub(crate) integration: Arc<Integration>,
    pub(crate) upstream: Arc<Upstream>,
    /// Among the instance's token calls.
    pub(crate) place: Option<Place>,
    /// When the last answer came.
    pub(crate) answered_at: Option<Instant>,
    /// When a refresh token came that is on no disk yet.
    pub(crate) unsaved_since: Option<Instant>,
    /// Looks at the record begun so far.
    pub(crate) looks_begun: u64,
    /// Set, for good, once this slot no longer stands for a connection.
    closed: Option<Closed>,
}

#[derive(Debug, Clone)]
pub(crate) enum Closed {
    Because(LendError),
    /// Nobody used it for long; whoever does now loads it again.
    Unused,
}

/// What a caller who needs a token finds.
pub(crate) enum Lendable {
    Now(LentToken),
    /// A refresh may bring one.
    AfterRefresh,
    /// In another slot.
    Elsewhere,
    Never(LendError),
}

impl Slot {
    pub(crate) fn new(
        connection: Connection,
        integration: Arc<Integration>,
        upstream: Upstream,
        protocol: Protocol,
        now: UnixTime,
    ) -> Self {
        let id = connection.id.clone();
        let last_use = Arc::new(LastUse::starting_at(connection.last_used_at));
        let terms = terms(&integration, &connection);
        let state = SlotState {
            refresher: Refresher::new(protocol, terms, connection, now),
            integration,
            upstream: Arc::new(upstream),
            place: None,
            answered_at: None,
            unsaved_since: None,
            looks_begun: 0,
            closed: None,
        };
        Self {
            id,
            view: ArcSwap::from_pointee(state.view(&last_use)),
            last_use,
            loaded_at: now,
            changed: watch::Sender::new(()),
            looks: watch::Sender::new(Looked { number: 0, outcome: Ok(()) }),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn view(&self) -> Arc<ConnectionView> {
        self.view.load_full()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How many wait for a change.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.changed.receiver_count()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&SlotState) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the state, then publishes what follows from it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut SlotState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let view = state.view(&self.last_use);
        self.view.store(Arc::new(view)); // under the lock: views appear in the order of the states
        drop(state);
        self.changed.send_replace(());
        result
    }

    /// Lets the connection's machine act. Nobody sees the state that it leaves without the view that follows from it; who
    /// waits is woken by [`Self::change`].
    pub(crate) fn act<T>(
        &self,
        actions: &mut Actions,
        act: impl FnOnce(&mut SlotState, &mut Actions) -> T,
    ) -> T {
        let mut state = self.lock();
        let result = act(&mut state, actions);
        if actions.iter().any(|action| matches!(action, Action::Publish)) {
            self.view.store(Arc::new(state.view(&self.last_use)));
        }
        result
    }

    /// Changes what no view shows; wakes nobody.
    pub(crate) fn change_quietly<T>(&self, change: impl FnOnce(&mut SlotState) -> T) -> T {
        change(&mut self.lock())
    }

    pub(crate) fn lendable(&self, now: UnixTime) -> Lendable {
        match self.read(|state| state.closed.clone()) {
            Some(Closed::Because(why)) => return Lendable::Never(why),
            Some(Closed::Unused) => return Lendable::Elsewhere,
            None => {}
        }
        let view = self.view.load();
        match &view.standing {
            Standing::Ready(token) if now < token.usable_until => Lendable::Now(token.clone()),
            Standing::Ready(_) => match self.read(SlotState::death) {
                Some(dead) => Lendable::Never(dead),
                None => Lendable::AfterRefresh,
            },
            Standing::NeedsToken => Lendable::AfterRefresh,
            Standing::Closed(error) => Lendable::Never(error.clone()),
        }
    }

    /// Ends the slot: whatever still holds it, an exchange under way among them, lends no token through it any more.
    pub(crate) fn close(&self, why: Closed) {
        self.change(|state| {
            state.closed = Some(why);
            state.refresher.end();
        });
        self.looks.send_replace(Looked { number: u64::MAX, outcome: Ok(()) });
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the integration says about the exchanges of a connection under it.
fn terms(integration: &Integration, connection: &Connection) -> Terms {
    let grant_type = integration
        .profiles
        .get(&connection.profile)
        .map_or(GrantType::default(), |profile| profile.grant_type);
    Terms {
        grant_type,
        rotates: integration.rotates_refresh_tokens,
        refresh_token_lifetime: integration.refresh_token_lifetime,
    }
}

impl SlotState {
    pub(crate) fn connection(&self) -> &Connection {
        self.refresher.connection()
    }

    /// What a proxied call may do with the connection as it stands.
    fn view(&self, last_use: &Arc<LastUse>) -> ConnectionView {
        let standing = match &self.closed {
            Some(Closed::Because(why)) => Standing::Closed(why.clone()),
            Some(Closed::Unused) => Standing::NeedsToken,
            None => self.standing(),
        };
        ConnectionView {
            id: self.connection().id.clone(),
            labels: self.connection().labels.clone(),
            upstream: self.upstream.clone(),
            standing,
            last_use: last_use.clone(),
        }
    }

    fn standing(&self) -> Standing {
        match (&self.connection().lifecycle, &self.connection().grant) {
            (Lifecycle::AwaitingConsent { .. } | Lifecycle::AwaitingConfirmation { .. }, _) => {
                Standing::Closed(LendError::Pending)
            }
            (Lifecycle::ReauthorizationRequired { since, cause }, held)
                if !self.outlives_death(held.as_ref()) =>
            {
                Standing::Closed(LendError::ReauthorizationRequired { since: *since, cause: *cause })
            }
            _ if self.connection().frozen.is_some() => Standing::Closed(LendError::Frozen),
            (_, Some(grant)) => Standing::Ready(LentToken {
                generation: grant.generation,
                upstream: self.upstream.clone(),
                bearer: grant.access_token.to_bearer_header(),
                usable_until: grant.usable_until(),
            }),
            (_, None) => Standing::NeedsToken,
        }
    }

    /// Whether the access token is lent to its end although its grant is dead (I-7): it is there, and the instance
    /// has not refused it.
    fn outlives_death(&self, held: Option<&Grant>) -> bool {
        held.is_some_and(|grant| self.refresher.refused() != Some(grant.generation))
    }

    /// What is said where the grant is dead and its access token has ended too.
    fn death(&self) -> Option<LendError> {
        match self.connection().lifecycle {
            Lifecycle::ReauthorizationRequired { since, cause } => {
                Some(LendError::ReauthorizationRequired { since, cause })
            }
            _ => None,
        }
    }

    /// Takes the integration as it is now. The upstream stays the same one while it leads the same way.
    pub(crate) fn follow(&mut self, integration: &Arc<Integration>, upstream: &Upstream) {
        self.integration = integration.clone();
        let terms = terms(integration, self.connection());
        self.refresher.set_terms(terms);
        if !self.upstream.leads_as(upstream) {
            self.upstream = Arc::new(upstream.clone());
        }
    }

    /// Whether it is this client, at this instance, that the tokens in memory were issued to.
    pub(crate) fn is_client_of(&self, integration: &Integration) -> bool {
        self.integration.instance == integration.instance
            && self.integration.client_id == integration.client_id
    }

    /// The generation of `lent`, if that is the token in memory.
    pub(crate) fn generation_of(&self, lent: &LentToken) -> Option<Generation> {
        let grant = self.connection().grant.as_ref();
        let held = grant.filter(|_| Arc::ptr_eq(&self.upstream, &lent.upstream))?;
        (held.access_token.to_bearer_header() == lent.bearer).then_some(held.generation)
    }

    pub(crate) fn profile(&self) -> Profile {
        self.integration.profiles.get(&self.connection().profile).cloned().unwrap_or_default()
    }
}
