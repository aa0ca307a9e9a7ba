//! The snapshot in force, published by control and read by every worker without a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use bearerd_model::UnixTime;

use crate::Snapshot;

/// Where control puts a new snapshot and workers find it.
#[derive(Debug)]
pub struct SharedSnapshot {
    current: Arc<ArcSwap<Snapshot>>,
    /// Milliseconds: when the store last confirmed that the snapshot is what it holds. Only grows.
    confirmed_at: AtomicU64,
}

impl SharedSnapshot {
    /// `confirmed_at`: when `snapshot` was read from the store.
    pub fn new(snapshot: Snapshot, confirmed_at: UnixTime) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            confirmed_at: AtomicU64::new(confirmed_at.as_millis()),
        }
    }

    /// Puts `next`, read from the store at `confirmed_at`, in force. One writer at a time.
    pub fn publish(&self, mut next: Snapshot, confirmed_at: UnixTime) {
        next.go_on_from(&self.current.load());
        self.current.store(Arc::new(next));
        self.confirm(confirmed_at);
    }

    /// The store said at `at` that nothing has changed.
    pub fn confirm(&self, at: UnixTime) {
        self.confirmed_at.fetch_max(at.as_millis(), Ordering::Relaxed);
    }

    pub fn confirmed_at(&self) -> UnixTime {
        UnixTime::from_millis(self.confirmed_at.load(Ordering::Relaxed))
    }

    /// May keys still be checked against the snapshot, `stale_max` after the store last confirmed it? With zero,
    /// keys are refused as soon as the store has failed to answer for two seconds.
    pub fn is_usable(&self, stale_max: Duration, now: UnixTime) -> bool {
        now.since(self.confirmed_at()) <= stale_max.saturating_add(CONFIRM_SLACK)
    }

    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader(Cache::new(Arc::clone(&self.current)))
    }
}

/// One thread's view of the shared snapshot: reading it is one relaxed load while nothing changes.
#[derive(Debug, Clone)]
pub struct SnapshotReader(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

impl SnapshotReader {
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.0.load()
    }
}

/// The change counter is read every 250 ms; this allows for a few slow reads before "not confirmed" means anything.
const CONFIRM_SLACK: Duration = Duration::from_secs(2);
