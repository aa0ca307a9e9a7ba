//! Connections come into memory, follow their records, and leave again.

use std::{sync::Arc, time::Duration};

use bearerd_model::{Connection, ConnectionId, Integration};
use bearerd_refresh::Event;
use bearerd_store::{Kind, RecordKey, StoreError};
use tracing::error;

use crate::{
    Upstream,
    endpoint::connector_for,
    engine::{Inner, unavailable},
    shell::DAMAGED_PAUSE,
    slot::{Closed, Slot},
};

impl Inner {
    pub(crate) fn held(&self, id: &ConnectionId) -> Option<Arc<Slot>> {
        self.slots.pin().get(id).cloned()
    }

    /// The connection's slot, from memory or from the store. `None`: no such connection.
    pub(crate) async fn slot(self: &Arc<Self>, id: &ConnectionId) -> Result<Option<Arc<Slot>>, StoreError> {
        if let Some(slot) = self.held(id) {
            return Ok(Some(slot));
        }
        let Some((connection, integration)) = self.read_both(id).await? else { return Ok(None) };
        let integration = Arc::new(integration);
        let upstream = self.upstream(&integration)?;
        let now = self.clock.now();
        let fresh = Arc::new(Slot::new(connection, integration.clone(), upstream, self.protocol, now));
        let slot = self.slots.pin().get_or_insert(id.clone(), fresh).clone();
        // Before anything is exchanged for it: what this machine kept may be newer than what the store holds.
        self.recover_into(&slot);
        self.count_slots();
        // A change between the reads above and the insertion went unnoticed: read once more, now that it is held.
        self.reload_integration_of(&slot).await?;
        self.reload_connection(id.as_str()).await?;
        if let Some(slot) = self.held(id) {
            self.schedule(&slot);
        }
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

    pub(crate) async fn reload_connection(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        let Ok(id) = ConnectionId::parse(id) else { return Ok(()) };
        let Some(slot) = self.held(&id) else {
            self.roster.changes(); // it may be a new one
            return Ok(());
        };
        let looked = self.look(&slot).await;
        if slot.read(|state| state.refresher.has_ended()) {
            self.roster.changes();
        } else {
            self.keep_roster_true(&id, &slot.view().labels);
        }
        looked
    }

    /// Has the record read, and waits until memory has taken it over.
    async fn look(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), StoreError> {
        let mut looks = slot.looks.subscribe();
        let number = slot.read(|state| state.looks_begun) + 1; // one that has begun already may have read too early
        self.drive(slot, Event::Told);
        match looks.wait_for(|looked| looked.number >= number).await {
            Ok(looked) => looked.outcome.clone(),
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn forget(&self, slot: &Arc<Slot>, why: Closed) {
        let slots = self.slots.pin();
        // Another slot may be in its place by now; that one stays.
        if let Ok(Some(_)) = slots.remove_if(&slot.id, |_, held| Arc::ptr_eq(held, slot)) {
            self.set_due(&slot.id, None);
        }
        self.count_slots();
        slot.close(why);
    }

    fn count_slots(&self) {
        self.metrics.connections_in_memory.set(i64::try_from(self.slots.len()).unwrap_or(i64::MAX));
    }

    pub(crate) async fn reload_integration(&self, id: &str) -> Result<(), StoreError> {
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
        for slot in &under_it {
            self.follow_integration(slot, &integration, &upstream);
        }
        Ok(())
    }

    /// As [`Self::reload_integration`], for one slot.
    async fn reload_integration_of(&self, slot: &Arc<Slot>) -> Result<(), StoreError> {
        let id = slot.read(|state| state.integration.id.clone());
        let integration = match self.store.load::<Integration>(id.as_str()).await {
            Ok(Some(versioned)) => Arc::new(versioned.record),
            Ok(None) => return Ok(()),
            Err(error @ StoreError::Damaged { .. }) => {
                self.forget_all(std::slice::from_ref(slot), &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match self.upstream(&integration) {
            Ok(upstream) => self.follow_integration(slot, &integration, &upstream),
            Err(error) => self.forget_all(std::slice::from_ref(slot), &error),
        }
        Ok(())
    }

    fn follow_integration(&self, slot: &Arc<Slot>, integration: &Arc<Integration>, upstream: &Upstream) {
        if slot.read(|state| state.is_client_of(integration)) {
            slot.change(|state| state.follow(integration, upstream));
        } else {
            // What is in memory belongs to the old client: it must reach the new instance in no way (I-4).
            let why = unavailable(Duration::from_secs(1), "the integration was changed");
            self.forget(slot, Closed::Because(why));
        }
    }

    /// Whether the slot's integration names another client or instance by now, which this process has yet to be told.
    pub(crate) async fn has_moved(&self, slot: &Slot) -> Result<bool, StoreError> {
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
            self.forget(slot, Closed::Because(unavailable(DAMAGED_PAUSE, "the integration cannot be used")));
        }
    }
}
