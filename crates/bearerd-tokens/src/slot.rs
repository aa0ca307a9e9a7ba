//! One connection in memory: the view that the proxy door reads without waiting, and the state behind it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use bearerd_model::{
    Connection, ConnectionId, Generation, GrantType, Integration, Lifecycle, Profile, UnixTime,
};
use bearerd_store::{Revision, Versioned};
use tokio::sync::watch;

use crate::{
    ConnectionView, LastUse, LendError, LentToken, Standing, Upstream,
    transition::{Base, can_refresh},
};

pub(crate) struct Slot {
    pub(crate) id: ConnectionId,
    pub(crate) last_use: Arc<LastUse>,
    view: ArcSwap<ConnectionView>,
    /// Told whenever the view changed or a refresh ended.
    changed: watch::Sender<()>,
    state: Mutex<SlotState>,
}

/// Behind the view; locked for moments, never across a wait.
pub(crate) struct SlotState {
    pub(crate) revision: Revision,
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
    /// The stored grant that memory is ahead of, while the store does not take the newer one.
    pub(crate) uncommitted: Option<Base>,
}

/// What a caller who needs a token finds.
pub(crate) enum Lendable {
    Now(LentToken),
    /// A refresh may bring one.
    AfterRefresh,
    Never(LendError),
}

impl Slot {
    pub(crate) fn new(
        versioned: Versioned<Connection>,
        integration: Arc<Integration>,
        upstream: Arc<Upstream>,
    ) -> Self {
        let last_use = Arc::new(LastUse::starting_at(versioned.record.last_used_at));
        let view = view_of(&versioned.record, &upstream, &last_use);
        Self {
            id: versioned.record.id.clone(),
            last_use,
            view: ArcSwap::from_pointee(view),
            changed: watch::Sender::new(()),
            state: Mutex::new(SlotState {
                revision: versioned.revision,
                connection: versioned.record,
                integration,
                upstream,
                refreshing: false,
                not_before: UnixTime::default(),
                failures: 0,
                forced: None,
                uncommitted: None,
            }),
        }
    }

    pub(crate) fn view(&self) -> Arc<ConnectionView> {
        self.view.load_full()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&SlotState) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the state, then publishes what follows from it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut SlotState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let view = view_of(&state.connection, &state.upstream, &self.last_use);
        self.view.store(Arc::new(view)); // under the lock: views appear in the order of the states
        drop(state);
        self.changed.send_replace(());
        result
    }

    /// Changes what no view shows; wakes nobody.
    pub(crate) fn change_quietly<T>(&self, change: impl FnOnce(&mut SlotState) -> T) -> T {
        change(&mut self.lock())
    }

    /// Takes a record as the store has it. An older one is ignored, and a grant that is only in memory stays.
    pub(crate) fn adopt(&self, versioned: Versioned<Connection>) {
        self.change(|state| {
            if versioned.revision < state.revision {
                return;
            }
            let mut connection = versioned.record;
            if let Some(base) = &state.uncommitted {
                if base.is_current_in(&connection) {
                    connection.grant = state.connection.grant.take();
                } else {
                    state.uncommitted = None; // another writer replaced what ours began from
                }
            }
            if connection.grant.as_ref().map(|grant| grant.generation) != state.generation() {
                state.failures = 0;
                state.not_before = UnixTime::default();
            }
            state.revision = versioned.revision;
            state.connection = connection;
        });
    }

    pub(crate) fn lendable(&self, now: UnixTime) -> Lendable {
        let view = self.view.load();
        match &view.standing {
            Standing::Ready(token) if now < token.usable_until => Lendable::Now(token.clone()),
            Standing::Ready(_) | Standing::Closed(LendError::Unavailable { .. }) => Lendable::AfterRefresh,
            Standing::Closed(error) => Lendable::Never(error.clone()),
        }
    }

    /// Closes the slot for a connection that is gone.
    pub(crate) fn close(&self) {
        let state = self.lock();
        let mut view = view_of(&state.connection, &state.upstream, &self.last_use);
        view.standing = Standing::Closed(LendError::Unknown);
        self.view.store(Arc::new(view));
        drop(state);
        self.changed.send_replace(());
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
    pub(crate) fn generation(&self) -> Option<Generation> {
        self.connection.grant.as_ref().map(|grant| grant.generation)
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

/// What a proxied call may do with the connection as it stands.
fn view_of(connection: &Connection, upstream: &Arc<Upstream>, last_use: &Arc<LastUse>) -> ConnectionView {
    let standing = match (&connection.lifecycle, &connection.grant) {
        (Lifecycle::AwaitingConsent { .. } | Lifecycle::AwaitingConfirmation { .. }, _) => {
            Standing::Closed(LendError::Pending)
        }
        (Lifecycle::ReauthorizationRequired { since, cause }, _) => {
            Standing::Closed(LendError::ReauthorizationRequired { since: *since, cause: *cause })
        }
        _ if connection.frozen.is_some() => Standing::Closed(LendError::Frozen),
        (Lifecycle::Active { .. }, Some(grant)) => Standing::Ready(LentToken {
            generation: grant.generation,
            bearer: grant.access_token.to_bearer_header(),
            usable_until: grant.usable_until(),
        }),
        (Lifecycle::Active { .. }, None) => Standing::Closed(LendError::Unavailable {
            retry_after: Duration::from_secs(1),
            reason: "no access token yet",
        }),
    };
    ConnectionView {
        id: connection.id.clone(),
        labels: connection.labels.clone(),
        upstream: upstream.clone(),
        standing,
        last_use: last_use.clone(),
    }
}
