//! What is looked after without anybody asking: tokens of connections in use before they end, connections that the
//! store's index says are due, and what an earlier run of this machine kept.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bearerd_model::{Connection, ConnectionId, UnixTime};
use bearerd_refresh::{Cause, Event, NotBegun};
use bearerd_spill::SpillEntry;
use bearerd_store::{DueRecord, StoreError};
use tracing::{error, info, warn};

use crate::{
    engine::{Inner, lock},
    shell::jitter,
    slot::{Closed, Slot, SlotState},
};

/// Longest sleep of the scheduler with nothing due.
const IDLE_PAUSE: Duration = Duration::from_mins(1);
/// How often the store's index of what is due is read. What is in use is not in it before whoever uses it has had the
/// time to refresh it.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(5);
/// Entries of the index read at once, and taken up in one go.
const DUE_PAGE: usize = 256;
const DUE_MAX: usize = 4_096;
/// Least time that a connection stays in memory.
const HELD_MIN: Duration = Duration::from_mins(1);

/// What an earlier run kept on this machine and the store may not hold.
#[derive(Debug, Default)]
pub(crate) struct Recovered(Mutex<HashMap<ConnectionId, SpillEntry>>);

impl Recovered {
    pub(crate) fn of(entries: Vec<SpillEntry>) -> Self {
        Self(Mutex::new(entries.into_iter().map(|entry| (entry.id.clone(), entry)).collect()))
    }
}

/// A task of the engine's own.
type Own = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Inner {
    pub(crate) fn refresh_ahead_boxed(self: Arc<Self>) -> Own {
        Box::pin(self.refresh_ahead())
    }

    pub(crate) fn look_after_boxed(self: Arc<Self>) -> Own {
        Box::pin(self.look_after())
    }

    pub(crate) fn recover_boxed(self: Arc<Self>) -> Own {
        Box::pin(self.recover())
    }

    pub(crate) fn schedule(&self, slot: &Slot) {
        let now = self.clock.now();
        let at = slot.read(|state| {
            let at = state.refresher.next_refresh(now)?;
            // Spread over the first fifth of the margin, so that what was issued together is not renewed together.
            // What was put off already is not put off further: its token may be near its end.
            let grant = state.connection().grant.as_ref().filter(|grant| at <= grant.refresh_at());
            let margin = grant.map(|grant| grant.usable_until().since(grant.refresh_at()));
            Some(at + margin.unwrap_or_default().mul_f64(jitter() / 5.0))
        });
        self.set_due(&slot.id, at);
    }

    pub(crate) fn set_due(&self, id: &ConnectionId, at: Option<UnixTime>) {
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
                    let wants = |slot: &Arc<Slot>| {
                        self.is_warm(slot, now) || slot.read(|state| state.refresher.is_in_doubt())
                    };
                    if let Some(slot) = self.held(&id).filter(wants)
                        && let Err(NotBegun::Before(at) | NotBegun::Claimed(at)) = self.ask(&slot, Cause::Due)
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

    // --- the store's index ----------------------------------------------------------------------------------------

    /// Takes up what nobody has refreshed in time, in this process or another: what a restart left behind, and the
    /// daily probe of what nobody uses. Its cost follows what is due, not what is stored.
    async fn look_after(self: Arc<Self>) {
        // At first what an earlier run had under way, whose claims are over before their deadline.
        if let Err(error) = self.take_up_due(self.clock.now() + self.protocol.lease).await {
            warn!(%error, "the index of due connections could not be read");
        }
        loop {
            let pause = LOOK_AFTER_EVERY.mul_f64(0.75 + jitter() / 2.0);
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.drop_unused();
            self.count();
            if let Err(error) = self.take_up_due(self.clock.now()).await {
                warn!(%error, "the index of due connections could not be read");
            }
        }
    }

    fn count(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.gates_shut.set(gauge(self.gates.shut(self.clock.now())));
        self.metrics.spilled.set(gauge(self.place.spill.as_ref().map_or(0, bearerd_spill::Spill::unsettled)));
    }

    async fn take_up_due(self: &Arc<Self>, until: UnixTime) -> Result<(), StoreError> {
        let (mut after, mut seen): (Option<DueRecord>, usize) = (None, 0);
        while seen < DUE_MAX && !self.closing.is_cancelled() {
            let page = self.store.due::<Connection>(after.as_ref(), until, DUE_PAGE).await?;
            seen += page.len();
            let is_last = page.len() < DUE_PAGE;
            for due in &page {
                let Ok(id) = ConnectionId::parse(&due.id) else { continue };
                match self.slot(&id).await {
                    Ok(Some(slot)) => drop(self.ask(&slot, Cause::Due)),
                    Ok(None) => {}
                    Err(error @ StoreError::Unreachable(_)) => return Err(error),
                    Err(error) => {
                        warn!(connection.id = %id, %error, "connection {id} is due and could not be read");
                    }
                }
            }
            after = page.into_iter().last();
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Lets go of what nobody uses: memory follows what is in use, not what was ever looked at.
    fn drop_unused(&self) {
        let now = self.clock.now();
        let unused: Vec<Arc<Slot>> = self
            .slots
            .pin()
            .values()
            .filter(|slot| !self.is_warm(slot, now) && now.since(slot.loaded_at) >= HELD_MIN)
            .filter(|slot| {
                slot.read(|SlotState { refresher, .. }| {
                    refresher.is_at_rest() && !refresher.is_paused(now) && !refresher.is_in_doubt()
                })
            })
            .cloned()
            .collect();
        for slot in unused {
            self.forget(&slot, Closed::Unused);
        }
    }

    // --- what was kept --------------------------------------------------------------------------------------------

    /// Tells a slot what was kept of its connection. Before anything is exchanged for it.
    pub(crate) fn recover_into(self: &Arc<Self>, slot: &Arc<Slot>) {
        let Some(entry) = lock(&self.recovered.0).remove(&slot.id) else { return };
        match self.store.open_sealed::<Connection>(slot.id.as_str(), &entry.sealed) {
            Ok(record) => {
                info!(connection.id = %slot.id, "this machine kept a grant of connection {}; it is offered to the store where it is the newer one", slot.id);
                self.drive(slot, Event::Recovered(Box::new(record)));
            }
            Err(error) => {
                error!(connection.id = %slot.id, %error, "what the spill log holds of connection {} does not open; it stays there", slot.id);
            }
        }
    }

    /// Brings what was kept into memory, and so to the store, whether or not anybody uses it.
    async fn recover(self: Arc<Self>) {
        loop {
            let ids: Vec<(ConnectionId, SpillEntry)> =
                lock(&self.recovered.0).iter().map(|(id, entry)| (id.clone(), entry.clone())).collect();
            if ids.is_empty() {
                return;
            }
            for (id, entry) in ids {
                match self.slot(&id).await {
                    Ok(Some(slot)) => self.recover_into(&slot),
                    Ok(None) => {
                        if lock(&self.recovered.0).remove(&id).is_some()
                            && let Some(spill) = &self.place.spill
                        {
                            spill.settle(&id, entry.version); // deleted since
                        }
                    }
                    Err(error) => {
                        warn!(connection.id = %id, %error, "what was kept of connection {id} waits for the store");
                    }
                }
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}
