//! One connection in memory: the view that the proxy door reads without waiting, and the state behind it.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use bearerd_model::{
    Connection, ConnectionId, Generation, Grant, GrantType, Integration, Lifecycle, Profile, UnixTime,
};
use tokio::sync::watch;

use crate::{
    ConnectionView, LastUse, LendError, LentToken, Standing, Upstream,
    transition::{Base, can_refresh, record_issue},
};

pub(crate) struct Slot {
    pub(crate) id: ConnectionId,
    pub(crate) last_use: Arc<LastUse>,
    view: ArcSwap<ConnectionView>,
    /// Told whenever the view changed or a refresh ended.
    changed: watch::Sender<()>,
    /// Held from a store command about this connection until its result is in `state`. Revisions have no order, so
    /// this is what keeps memory from going back to a record that was read before a newer one was written.
    pub(crate) in_step: tokio::sync::Mutex<()>,
    state: Mutex<SlotState>,
}

/// Behind the view; locked for moments, never across a wait.
pub(crate) struct SlotState {
    pub(crate) connection: Connection,
    pub(crate) integration: Arc<Integration>,
    pub(crate) upstream: Arc<Upstream>,
    /// One refresh at a time.
    pub(crate) refreshing: bool,
    /// No token call before this.
    pub(crate) not_before: UnixTime,
    /// Failed refreshes in a row, as this process saw them.
    pub(crate) failures: u32,
    /// The generation that has had its forced refresh.
    pub(crate) forced: Option<Generation>,
    /// The generation whose access token the instance has refused.
    pub(crate) refused: Option<Generation>,
    /// The refresh under way was asked for by an operator inside a pause: its refusal is no strike.
    pub(crate) early: bool,
    /// What the store may hold while it has not taken the grant that memory holds: the grant that memory is ahead
    /// of, and each one offered since whose write was not confirmed. Empty: memory holds what the store holds.
    pub(crate) uncommitted: Vec<Base>,
    /// Set, for good, once this slot no longer stands for a connection.
    closed: Option<LendError>,
}

/// What a caller who needs a token finds.
pub(crate) enum Lendable {
    Now(LentToken),
    /// A refresh may bring one.
    AfterRefresh,
    Never(LendError),
}

impl Slot {
    pub(crate) fn new(connection: Connection, integration: Arc<Integration>, upstream: Upstream) -> Self {
        let id = connection.id.clone();
        let last_use = Arc::new(LastUse::starting_at(connection.last_used_at));
        let state = SlotState {
            connection,
            integration,
            upstream: Arc::new(upstream),
            refreshing: false,
            not_before: UnixTime::default(),
            failures: 0,
            forced: None,
            refused: None,
            early: false,
            uncommitted: Vec::new(),
            closed: None,
        };
        Self {
            id,
            view: ArcSwap::from_pointee(state.view(&last_use)),
            last_use,
            changed: watch::Sender::new(()),
            in_step: tokio::sync::Mutex::new(()),
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

    /// Changes what no view shows; wakes nobody.
    pub(crate) fn change_quietly<T>(&self, change: impl FnOnce(&mut SlotState) -> T) -> T {
        change(&mut self.lock())
    }

    /// Takes the record as the store has it; a grant that is only in memory stays. Under [`Slot::in_step`].
    pub(crate) fn adopt(&self, mut stored: Connection) {
        self.change(|state| {
            let held = Base::of(&state.connection);
            if state.uncommitted.iter().any(|base| base.is_current_in(&stored)) {
                if let Some(grant) = state.connection.grant.take() {
                    let issued_at = grant.refreshed_at;
                    record_issue(&mut stored, grant, issued_at);
                }
                stored.health = mem::take(&mut state.connection.health);
            } else {
                state.uncommitted.clear(); // taken by now, or another writer replaced what ours began from
                if !held.is_current_in(&stored) {
                    state.failures = 0;
                    state.not_before = UnixTime::default();
                    state.forced = None;
                    state.refused = None;
                }
            }
            state.connection = stored;
        });
    }

    pub(crate) fn lendable(&self, now: UnixTime) -> Lendable {
        if let Some(closed) = self.read(|state| state.closed.clone()) {
            return Lendable::Never(closed);
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

    /// Ends the slot: whatever still holds it, a refresh under way among them, lends no token through it any more.
    pub(crate) fn close(&self, why: LendError) {
        self.change(|state| state.closed = Some(why));
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

impl SlotState {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// What a proxied call may do with the connection as it stands.
    fn view(&self, last_use: &Arc<LastUse>) -> ConnectionView {
        ConnectionView {
            id: self.connection.id.clone(),
            labels: self.connection.labels.clone(),
            upstream: self.upstream.clone(),
            standing: self.closed.clone().map_or_else(|| self.standing(), Standing::Closed),
            last_use: last_use.clone(),
        }
    }

    fn standing(&self) -> Standing {
        match (&self.connection.lifecycle, &self.connection.grant) {
            (Lifecycle::AwaitingConsent { .. } | Lifecycle::AwaitingConfirmation { .. }, _) => {
                Standing::Closed(LendError::Pending)
            }
            (Lifecycle::ReauthorizationRequired { since, cause }, held)
                if !self.outlives_death(held.as_ref()) =>
            {
                Standing::Closed(LendError::ReauthorizationRequired { since: *since, cause: *cause })
            }
            _ if self.connection.frozen.is_some() => Standing::Closed(LendError::Frozen),
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
        held.is_some_and(|grant| self.refused != Some(grant.generation))
    }

    /// What is said where the grant is dead and its access token has ended too.
    fn death(&self) -> Option<LendError> {
        match self.connection.lifecycle {
            Lifecycle::ReauthorizationRequired { since, cause } => {
                Some(LendError::ReauthorizationRequired { since, cause })
            }
            _ => None,
        }
    }

    /// Takes the integration as it is now. The upstream stays the same one while it leads the same way.
    pub(crate) fn follow(&mut self, integration: &Arc<Integration>, upstream: &Upstream) {
        self.integration = integration.clone();
        if !self.upstream.leads_as(upstream) {
            self.upstream = Arc::new(upstream.clone());
        }
    }

    /// Whether it is this client, at this instance, that the tokens in memory were issued to.
    pub(crate) fn is_client_of(&self, integration: &Integration) -> bool {
        self.integration.instance == integration.instance
            && self.integration.client_id == integration.client_id
    }

    /// Whether `stored` holds a grant that another writer put there.
    pub(crate) fn is_behind(&self, stored: &Connection) -> bool {
        let known = Base::of(&self.connection);
        stored.grant.is_some()
            && !self.uncommitted.iter().chain([&known]).any(|base| base.is_current_in(stored))
    }

    /// The generation of `lent`, if that is the token in memory.
    pub(crate) fn generation_of(&self, lent: &LentToken) -> Option<Generation> {
        let held = self.connection.grant.as_ref().filter(|_| Arc::ptr_eq(&self.upstream, &lent.upstream))?;
        (held.access_token.to_bearer_header() == lent.bearer).then_some(held.generation)
    }

    pub(crate) fn profile(&self) -> Profile {
        self.integration.profiles.get(&self.connection.profile).cloned().unwrap_or_default()
    }

    pub(crate) fn grant_type(&self) -> GrantType {
        self.integration
            .profiles
            .get(&self.connection.profile)
            .map_or(GrantType::default(), |profile| profile.grant_type)
    }

    /// When the next token call is due, for a connection that is in use.
    pub(crate) fn next_refresh(&self) -> Option<UnixTime> {
        if !matches!(self.connection.lifecycle, Lifecycle::Active { .. }) {
            return None;
        }
        let at = match &self.connection.grant {
            Some(grant) if can_refresh(&self.connection, self.grant_type()) => grant.refresh_at(),
            Some(grant) => grant.access_expires_at,
            None => UnixTime::default(),
        };
        Some(at.max(self.not_before))
    }
}
