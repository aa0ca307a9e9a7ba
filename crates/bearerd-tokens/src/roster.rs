//! All connections with their labels, where they are few: a call that names none can then be given the only one that its key
//! opens. Kept in memory until a connection comes, goes or is labelled anew; an outage of the store takes nothing away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bearerd_model::{Connection, ConnectionId};
use bearerd_store::StoreError;
use tokio::sync::Mutex;
use tracing::warn;

use crate::{
    LendError, Roster,
    engine::{Inner, unavailable},
};

#[derive(Debug, Default)]
pub(crate) struct HeldRoster {
    /// `None`: not read since the last change.
    known: ArcSwapOption<Roster>,
    /// Grows with every change, so that an answer that was read before one is not taken for one after it.
    changes: AtomicU64,
    /// How many readings have ended.
    ended: AtomicU64,
    /// One reads at a time, and who waited takes what it brought.
    reading: Mutex<LastReading>,
}

/// What the last reading brought.
#[derive(Debug, Default)]
struct LastReading {
    failed: bool,
    /// What the store last said, for when it does not answer.
    roster: Option<Roster>,
}

impl HeldRoster {
    pub(crate) fn known(&self) -> Option<Roster> {
        self.known.load().as_deref().cloned()
    }

    /// A connection came or went, or has other labels.
    pub(crate) fn changes(&self) {
        self.changes.fetch_add(1, SeqCst);
        self.known.store(None);
    }

    /// What is known of a connection is not so, or nothing is.
    fn contradicts(&self, id: &ConnectionId, labels: &BTreeMap<String, String>) -> bool {
        match self.known.load().as_deref() {
            Some(Roster::Few(connections)) => {
                !connections.iter().any(|(known, its_labels)| known == id && its_labels == labels)
            }
            Some(Roster::TooMany) => false,
            None => true, // or a reading that has begun would be taken for true
        }
    }
}

impl Inner {
    /// Follows a connection that memory holds.
    pub(crate) fn keep_roster_true(&self, id: &ConnectionId, labels: &BTreeMap<String, String>) {
        if self.roster.contradicts(id, labels) {
            self.roster.changes();
        }
    }

    pub(crate) async fn load_roster(self: Arc<Self>) -> Result<Roster, LendError> {
        let ended = self.roster.ended.load(SeqCst);
        // On the engine's runtime: a caller that leaves must not cut a store command short.
        let engine = self.clone();
        let reading = self.runtime.spawn(async move {
            let mut last = engine.roster.reading.lock().await;
            if let Some(known) = engine.roster.known() {
                return Ok(known);
            }
            if !last.failed || engine.roster.ended.load(SeqCst) == ended {
                let read = engine.read_roster().await;
                last.failed = read.is_err();
                match read {
                    Ok(roster) => last.roster = Some(roster),
                    Err(error) => warn!(%error, "the connections could not be listed"),
                }
                engine.roster.ended.fetch_add(1, SeqCst);
            }
            let unread = || unavailable(Duration::from_secs(1), "the store cannot be read");
            last.roster.clone().ok_or_else(unread) // an outage fails no call that memory can answer (product contract §7)
        });
        reading.await.unwrap_or_else(|_| Err(unavailable(Duration::from_secs(1), "shutting down")))
    }

    async fn read_roster(&self) -> Result<Roster, StoreError> {
        let changes = self.roster.changes.load(SeqCst);
        let page = self.store.list::<Connection>(None, ROSTER_MAX + 1).await?;
        // One that is damaged lends nothing: it is left out, and holds up no other.
        let roster = if page.records.len() + page.damaged.len() > ROSTER_MAX {
            Roster::TooMany
        } else {
            Roster::Few(
                page.records.into_iter().map(|stored| (stored.record.id, stored.record.labels)).collect(),
            )
        };
        self.roster.known.store(Some(Arc::new(roster.clone())));
        if self.roster.changes.load(SeqCst) != changes {
            self.roster.known.store(None); // it may be of before the change
        }
        Ok(roster)
    }
}

/// With more connections than this, only one that is named by its id can be left out of a call.
const ROSTER_MAX: usize = 100;
