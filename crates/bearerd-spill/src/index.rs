//! What of the log still counts, shared by who settles and by the thread that writes. Its lock is never held over I/O.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bearerd_model::{ConnectionId, GrantVersion};

#[derive(Clone, Default)]
pub(crate) struct SharedIndex(Arc<Mutex<Index>>);

#[derive(Default)]
struct Index {
    kept: HashMap<ConnectionId, Kept>,
    under_way: HashMap<ConnectionId, Arrivals>,
    /// Length of the frames of `kept`.
    live_bytes: u64,
    log: LogSize,
    /// The writer was asked to tidy, and has not looked yet.
    tidy_asked: bool,
}

/// The newest entry of a connection that is not settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) version: GrantVersion,
    pub(crate) place: Place,
}

/// Where a frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// How much there is on disk. Told by the writer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogSize {
    /// Length of the segments, without the header of the one that is appended to.
    pub(crate) bytes: u64,
    /// Segments that are not appended to any more.
    pub(crate) closed: usize,
    /// The last tidying failed, and it is too early to try again.
    pub(crate) on_hold: bool,
}

/// What would make the log smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tidying {
    Needless,
    /// Nothing in it counts.
    Empty,
    /// Little in it counts.
    Compact,
}

/// The entries of a connection that are on their way to disk.
#[derive(Default)]
struct Arrivals {
    count: usize,
    /// Was settled meanwhile.
    settled: Option<GrantVersion>,
}

/// An entry on its way to disk: may be settled before it is there.
pub(crate) struct UnderWay {
    index: SharedIndex,
    id: ConnectionId,
    version: GrantVersion,
}

impl SharedIndex {
    pub(crate) fn begin(&self, id: ConnectionId, version: GrantVersion) -> UnderWay {
        self.lock().under_way.entry(id.clone()).or_default().count += 1;
        UnderWay { index: self.clone(), id, version }
    }

    /// Whether the writer should now be asked to tidy.
    pub(crate) fn settle(&self, id: &ConnectionId, version: GrantVersion) -> bool {
        let mut index = self.lock();
        if let Some(arrivals) = index.under_way.get_mut(id) {
            arrivals.settled = arrivals.settled.max(Some(version));
        }
        if index.kept.get(id).is_some_and(|kept| kept.version <= version) {
            index.forget(id);
        }
        let ask = !index.tidy_asked && index.tidying() != Tidying::Needless;
        index.tidy_asked |= ask;
        ask
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.lock().kept.len()
    }

    /// The entry stands at `place`.
    pub(crate) fn put(&self, id: &ConnectionId, kept: Kept) {
        self.lock().put(id, kept);
    }

    /// What counts, in the order of the log.
    pub(crate) fn kept(&self) -> Vec<(ConnectionId, Kept)> {
        let mut kept: Vec<_> = self.lock().kept.iter().map(|(id, kept)| (id.clone(), *kept)).collect();
        kept.sort_unstable_by_key(|(_, kept)| (kept.place.segment, kept.place.at));
        kept
    }

    /// Entries that stand elsewhere now; those settled meanwhile stay so.
    pub(crate) fn moved(&self, moves: &[(ConnectionId, Kept, Place)]) {
        let mut index = self.lock();
        for (id, before, place) in moves {
            if let Some(kept) = index.kept.get_mut(id).filter(|kept| kept.place == before.place) {
                kept.place = *place;
            }
        }
    }

    /// What to do with a log of this size. From here on the writer may be asked again.
    pub(crate) fn look(&self, size: LogSize) -> Tidying {
        let mut index = self.lock();
        index.log = size;
        index.tidy_asked = false;
        index.tidying()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn put(&mut self, id: &ConnectionId, kept: Kept) {
        if self.kept.get(id).is_some_and(|before| before.version > kept.version) {
            return;
        }
        self.forget(id);
        self.live_bytes += kept.place.bytes;
        self.kept.insert(id.clone(), kept);
    }

    fn forget(&mut self, id: &ConnectionId) {
        if let Some(kept) = self.kept.remove(id) {
            self.live_bytes -= kept.place.bytes;
        }
    }

    fn tidying(&self) -> Tidying {
        let LogSize { bytes, closed, on_hold } = self.log;
        let dead_bytes = bytes.saturating_sub(self.live_bytes);
        if on_hold || bytes == 0 {
            Tidying::Needless
        } else if self.kept.is_empty() {
            Tidying::Empty
        } else if dead_bytes >= self.live_bytes.max(DEAD_BYTES_MIN) || closed >= CLOSED_MAX {
            Tidying::Compact
        } else {
            Tidying::Needless
        }
    }
}

impl UnderWay {
    /// It is on disk.
    pub(crate) fn arrived(self, place: Place) {
        let mut index = self.index.lock();
        let settled = index.under_way.get(&self.id).and_then(|arrivals| arrivals.settled);
        if settled < Some(self.version) {
            index.put(&self.id, Kept { version: self.version, place });
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut index = self.index.lock();
        if let Some(arrivals) = index.under_way.get_mut(&self.id) {
            arrivals.count -= 1;
            if arrivals.count == 0 {
                index.under_way.remove(&self.id);
            }
        }
    }
}

/// Settled and superseded entries that are let stand, however few count: some hundred records.
pub(crate) const DEAD_BYTES_MIN: u64 = 256 << 10;
/// Each is one failure of the disk away from the one before.
const CLOSED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use bearerd_model::Epoch;

    use super::*;

    const PLACE: Place = Place { segment: 1, at: 20, bytes: 100 };

    fn id() -> ConnectionId {
        ConnectionId::parse("hr").unwrap()
    }

    fn version(epoch: u64) -> GrantVersion {
        GrantVersion { lineage: Epoch(1), epoch: Epoch(epoch) }
    }

    /// The store may be quicker than the disk.
    #[test]
    fn what_is_settled_on_its_way_counts_no_more() {
        let index = SharedIndex::default();
        let (second, third) = (index.begin(id(), version(2)), index.begin(id(), version(3)));
        index.settle(&id(), version(2));
        second.arrived(PLACE);
        assert_eq!(index.unsettled(), 0);
        third.arrived(PLACE);
        assert_eq!(index.unsettled(), 1);
        index.settle(&id(), version(3));
        assert_eq!(index.unsettled(), 0);
        assert!(index.lock().under_way.is_empty());
    }

    #[test]
    fn the_newest_version_counts() {
        let index = SharedIndex::default();
        index.begin(id(), version(3)).arrived(PLACE);
        index.begin(id(), version(2)).arrived(PLACE);
        index.settle(&id(), version(2));
        assert_eq!(index.unsettled(), 1, "an older version settles no newer one");
        index.settle(&id(), version(4));
        assert_eq!((index.unsettled(), index.lock().live_bytes), (0, 0));
    }

    /// A dropped call whose entry never got to the writer leaves nothing.
    #[test]
    fn what_never_arrives_leaves_nothing() {
        let index = SharedIndex::default();
        drop(index.begin(id(), version(1)));
        assert!(index.lock().under_way.is_empty());
        assert_eq!(index.unsettled(), 0);
    }
}
