//! The way from the workers to the scribe: batches, and their bound.
//!
//! A worker fills a batch of its own; nobody else sees it. It is handed over, under a lock held for some instructions, when it
//! is full, with the worker's tick, and at the worker's end. The scribe takes all that wait at once, and sends them back empty.
//!
//! **The bound** is in records: those handed over and not yet written. The queue is full when less than one batch of room is
//! left. Then, with [`OnStall::DropAndCount`], a worker drops its batch once that is full, and `queue_records` is never
//! exceeded. With [`OnStall::Block`] a worker keeps its batch, and begins no new call; its batch grows by the calls that were
//! under way, and by those that are refused or given up meanwhile, up to `queue_records` once more: beyond that they are
//! dropped and counted, since whoever calls on without end must not fill memory. Besides, each worker has less than one batch that nobody has asked for yet.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{metrics::AccessMetrics, record::AccessRecord, settings::OnStall};

pub(crate) type Batch = Vec<AccessRecord>;

/// A worker's end: takes its records. It is moved to the worker's thread and stays there. Dropping it hands over what is left.
pub struct AccessWriter {
    /// None: there is no sink.
    queue: Option<Arc<Queue>>,
    batch: Batch,
    /// The scribe may sleep although this worker has handed something over.
    unannounced: bool,
    /// One thread's.
    _not_sync: PhantomData<Cell<()>>,
}

impl AccessWriter {
    pub(crate) fn new(queue: Option<Arc<Queue>>) -> Self {
        let batch = queue.as_ref().map_or_else(Batch::new, |queue| {
            queue.lock().spare_max += 1;
            new_batch()
        });
        Self { queue, batch, unannounced: false, _not_sync: PhantomData }
    }

    /// Takes the record of a call that has ended. Never waits for the sink.
    pub fn record(&mut self, record: &AccessRecord) {
        let Some(queue) = &self.queue else { return };
        if self.batch.len() >= queue.kept_max() {
            self.flush(); // there may be room again
        }
        let Some(queue) = &self.queue else { return };
        if self.batch.len() >= queue.kept_max() {
            queue.metrics.dropped.inc();
            return;
        }
        self.batch.push(*record);
        if self.batch.len() >= BATCH_RECORDS && !queue.is_stalled() {
            self.unannounced |= queue.hand_over(&mut self.batch, Wake::IfMany);
        }
    }

    /// Hands over what there is, for the scribe to write now. Called with each tick of the worker.
    pub fn flush(&mut self) {
        let Some(queue) = &self.queue else { return };
        if (self.unannounced || !self.batch.is_empty()) && !queue.is_stalled() {
            self.unannounced = queue.hand_over(&mut self.batch, Wake::Now);
        }
    }

    /// No new call may be begun: records can neither be written nor dropped. One load of an atomic.
    pub fn is_stalled(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.is_stalled())
    }

    /// Ends when [`Self::is_stalled`] no longer holds; at once if it does not. Borrows nothing, may be dropped at any time,
    /// and any number of calls may wait.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let queue = self.queue.clone();
        async move {
            if let Some(queue) = queue {
                queue.room().await;
            }
        }
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.hand_over(&mut self.batch, Wake::Last);
        }
    }
}

impl fmt::Debug for AccessWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessWriter({} records at hand)", self.batch.len())
    }
}

/// How a batch is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A batch is full. To wake a thread is a system call, so it waits for some batches.
    IfMany,
    /// What waits shall be written now.
    Now,
    /// As `Now`, and the worker cannot keep its batch any longer.
    Last,
}

pub(crate) struct Queue {
    state: Mutex<State>,
    /// Batches wait, or the end has come.
    changed: Condvar,
    /// Less than a batch of room is left. Written under the lock.
    full: AtomicBool,
    has_room: Notify,
    records_max: usize,
    wake_at: usize,
    on_stall: OnStall,
    pub(crate) metrics: AccessMetrics,
}

#[derive(Debug)]
struct State {
    /// Handed over, and not taken by the scribe.
    waiting: VecDeque<Batch>,
    /// Records in `waiting`.
    waiting_records: usize,
    /// Records handed over and neither written nor dropped.
    queued: usize,
    /// Empty batches, and how many are kept.
    spare: Vec<Batch>,
    spare_max: usize,
    scribe_sleeps: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The scribe ends when nothing waits; a sink that fails is tried again until then.
    Closing {
        until: Instant,
    },
    /// Nothing is written any more; what is still given is dropped.
    Ended,
}

/// Nothing is to be written any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended;

impl Queue {
    pub(crate) fn new(records_max: usize, on_stall: OnStall, metrics: AccessMetrics) -> Self {
        let state = State {
            waiting: VecDeque::with_capacity(records_max / BATCH_RECORDS),
            waiting_records: 0,
            queued: 0,
            spare: Vec::new(),
            spare_max: 2 * WAKE_RECORDS / BATCH_RECORDS,
            scribe_sleeps: false,
            phase: Phase::Open,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            full: AtomicBool::new(false),
            has_room: Notify::new(),
            records_max,
            wake_at: WAKE_RECORDS.min(records_max / 4),
            on_stall,
            metrics,
        }
    }

    /// Takes the batch's records and leaves an empty one; or, blocked, leaves it as it is. Says whether something waits
    /// that the scribe was not woken for.
    fn hand_over(&self, batch: &mut Batch, wake: Wake) -> bool {
        let mut state = self.lock();
        let has_room = state.queued + BATCH_RECORDS <= self.records_max;
        let blocks = self.on_stall == OnStall::Block;
        let can_wait = wake != Wake::Last && (blocks || batch.len() < BATCH_RECORDS);
        if state.phase == Phase::Ended || !(has_room || can_wait || blocks) {
            self.metrics.dropped.inc_by(batch.len() as u64);
            batch.clear();
        } else if !has_room && can_wait {
            return true; // asked again with the next record or tick
        } else if !batch.is_empty() {
            let next = state.spare.pop().unwrap_or_else(new_batch);
            let records = batch.len();
            state.waiting.push_back(mem::replace(batch, next));
            state.waiting_records += records;
            self.set_queued(&mut state, |queued| queued + records);
        }
        let something_waits = state.waiting_records > 0;
        let wakes = wake != Wake::IfMany || state.waiting_records >= self.wake_at;
        if wakes && something_waits && mem::take(&mut state.scribe_sleeps) {
            drop(state);
            self.changed.notify_one();
        }
        something_waits && !wakes
    }

    fn is_stalled(&self) -> bool {
        self.on_stall == OnStall::Block && self.full.load(Ordering::SeqCst)
    }

    /// What a worker keeps while nothing can be written.
    fn kept_max(&self) -> usize {
        self.records_max.max(2 * BATCH_RECORDS)
    }

    async fn room(&self) {
        loop {
            let mut has_room = pin!(self.has_room.notified());
            // Listen first, look then: room made in between is not missed.
            has_room.as_mut().enable();
            if !self.is_stalled() {
                return;
            }
            has_room.await;
        }
    }

    /// The scribe's: waits until batches wait, and puts them all into `taken`, which is empty.
    ///
    /// # Errors
    /// [`Ended`]: the log is closing and nothing waits.
    pub(crate) fn take(&self, taken: &mut VecDeque<Batch>) -> Result<(), Ended> {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Ended => return Err(Ended),
                _ if !state.waiting.is_empty() => {
                    state.waiting_records = 0;
                    mem::swap(&mut state.waiting, taken);
                    return Ok(());
                }
                Phase::Closing { .. } => {
                    state.phase = Phase::Ended;
                    return Err(Ended);
                }
                Phase::Open => {
                    state.scribe_sleeps = true;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.scribe_sleeps = false;
                }
            }
        }
    }

    /// The scribe's: `records` more are written, and `empty` batches can be filled again.
    ///
    /// # Errors
    /// [`Ended`]: the end did not wait for these, and they are already counted as dropped.
    pub(crate) fn settle(&self, records: usize, empty: &mut Vec<Batch>) -> Result<(), Ended> {
        let mut state = self.lock();
        if state.phase == Phase::Ended {
            return Err(Ended);
        }
        self.metrics.written.inc_by(records as u64);
        self.set_queued(&mut state, |queued| queued.saturating_sub(records));
        // A batch that grew while its worker was held up goes back to the allocator.
        empty.retain(|batch| batch.capacity() <= 2 * BATCH_RECORDS);
        let kept = empty.len().min(state.spare_max.saturating_sub(state.spare.len()));
        state.spare.extend(empty.drain(..kept));
        drop(state);
        empty.clear();
        Ok(())
    }

    /// The scribe's: waits for `pause`, for the end at most.
    ///
    /// # Errors
    /// [`Ended`]: no time is left.
    pub(crate) fn pause(&self, pause: Duration) -> Result<(), Ended> {
        let state = self.lock();
        let (phase, pause) = match state.phase {
            Phase::Open => (state.phase, pause),
            Phase::Closing { until } => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Ended);
                }
                (state.phase, pause.min(left))
            }
            Phase::Ended => return Err(Ended),
        };
        let waited = self.changed.wait_timeout_while(state, pause, |state| state.phase == phase);
        drop(waited);
        Ok(())
    }

    /// Lets the scribe write what was handed over, and end; a sink that fails then has until `until`.
    pub(crate) fn close(&self, until: Instant) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing { until };
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whatever is not written by now is dropped.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.phase = Phase::Ended;
        self.metrics.dropped.inc_by(state.queued as u64);
        state.waiting.clear();
        state.waiting_records = 0;
        self.set_queued(&mut state, |_| 0);
        drop(state);
        self.changed.notify_all();
    }

    fn set_queued(&self, state: &mut State, change: impl FnOnce(usize) -> usize) {
        state.queued = change(state.queued);
        self.metrics.queued.set(i64::try_from(state.queued).unwrap_or(i64::MAX));
        let full = state.queued + BATCH_RECORDS > self.records_max;
        let was_full = self.full.swap(full, Ordering::SeqCst);
        match self.on_stall {
            OnStall::Block if full && !was_full => self.metrics.blocked.inc(),
            OnStall::Block if was_full && !full => self.has_room.notify_waiters(),
            OnStall::Block | OnStall::DropAndCount => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_batch() -> Batch {
    Batch::with_capacity(BATCH_RECORDS)
}

/// Records that a worker hands over together: the lock and the passing on cost a hundredth of a record each, and the memory
/// stays within a core's cache.
pub(crate) const BATCH_RECORDS: usize = 128;
/// The scribe is woken for this many, or by a worker's tick: some five hundred kilobytes of lines.
const WAKE_RECORDS: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn queue(on_stall: OnStall) -> Arc<Queue> {
        Arc::new(Queue::new(8 * BATCH_RECORDS, on_stall, AccessMetrics::default()))
    }

    fn writer(queue: &Arc<Queue>) -> AccessWriter {
        AccessWriter::new(Some(Arc::clone(queue)))
    }

    fn give(writer: &mut AccessWriter, records: usize) {
        for _ in 0..records {
            writer.record(&AccessRecord::default());
        }
    }

    /// Takes what waits, as the scribe does; says how many records it was.
    fn write(queue: &Queue) -> usize {
        let mut taken = VecDeque::new();
        queue.take(&mut taken).unwrap();
        let records = taken.iter().map(Vec::len).sum();
        taken.iter_mut().for_each(Vec::clear);
        queue.settle(records, &mut taken.into()).unwrap();
        records
    }

    fn queued(queue: &Queue) -> usize {
        queue.lock().queued
    }

    #[test]
    fn batches_go_round_without_an_allocation() {
        let queue = queue(OnStall::DropAndCount);
        let mut writer = writer(&queue);
        let mut places = BTreeSet::new();
        for _ in 0..100 {
            places.insert(writer.batch.as_ptr() as usize);
            give(&mut writer, BATCH_RECORDS);
            assert_eq!((writer.batch.len(), writer.batch.capacity()), (0, BATCH_RECORDS));
            assert_eq!(write(&queue), BATCH_RECORDS);
        }
        assert_eq!(places.len(), 2, "one is filled while the other is written");
    }

    /// The bound is exact: what does not fit is dropped and counted, batch by batch; what is less than a batch is kept
    /// for as long as the worker lives.
    #[test]
    fn a_full_queue_drops_and_counts() {
        let queue = queue(OnStall::DropAndCount);
        let mut writer = writer(&queue);
        give(&mut writer, 8 * BATCH_RECORDS);
        assert_eq!((queued(&queue), queue.metrics.dropped()), (8 * BATCH_RECORDS, 0));
        give(&mut writer, BATCH_RECORDS + 5);
        writer.flush();
        assert!(!writer.is_stalled());
        assert_eq!((queued(&queue), queue.metrics.dropped()), (8 * BATCH_RECORDS, BATCH_RECORDS as u64));
        assert_eq!(write(&queue), 8 * BATCH_RECORDS);
        writer.flush();
        assert_eq!((queued(&queue), write(&queue)), (5, 5));
        give(&mut writer, 8 * BATCH_RECORDS + 3);
        drop(writer);
        assert_eq!(queue.metrics.dropped(), BATCH_RECORDS as u64 + 3);
    }

    #[tokio::test]
    async fn a_full_queue_blocks_and_keeps_all() {
        let queue = queue(OnStall::Block);
        let mut writer = writer(&queue);
        give(&mut writer, 7 * BATCH_RECORDS);
        assert!(!writer.is_stalled());
        writer.room().await;
        give(&mut writer, BATCH_RECORDS);
        assert!(writer.is_stalled());
        // Calls that were under way end.
        give(&mut writer, 3 * BATCH_RECORDS + 1);
        writer.flush();
        assert_eq!((queued(&queue), writer.batch.len()), (8 * BATCH_RECORDS, 3 * BATCH_RECORDS + 1));
        assert_eq!((queue.metrics.dropped(), queue.metrics.blocked()), (0, 1));
        let waiting = [tokio::spawn(writer.room()), tokio::spawn(writer.room())];
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|call| !call.is_finished()));
        assert_eq!(write(&queue), 8 * BATCH_RECORDS);
        for call in waiting {
            call.await.unwrap();
        }
        writer.flush();
        assert_eq!(write(&queue), 3 * BATCH_RECORDS + 1);
        assert!(queue.lock().spare.iter().all(|batch| batch.capacity() <= 2 * BATCH_RECORDS));
    }

    /// Whoever calls on without end while nothing can be written does not fill memory.
    #[test]
    fn what_a_blocked_worker_keeps_is_bounded() {
        let queue = queue(OnStall::Block);
        let mut writer = writer(&queue);
        give(&mut writer, 8 * BATCH_RECORDS);
        assert!(writer.is_stalled());
        give(&mut writer, 100 * BATCH_RECORDS);
        assert_eq!(writer.batch.len(), 8 * BATCH_RECORDS);
        assert_eq!(queue.metrics.dropped(), 92 * BATCH_RECORDS as u64);
        assert_eq!(write(&queue), 8 * BATCH_RECORDS);
        give(&mut writer, 1);
        assert_eq!(queue.metrics.dropped(), 92 * BATCH_RECORDS as u64, "there is room again");
        writer.flush();
        assert_eq!(write(&queue), 8 * BATCH_RECORDS);
    }

    /// A worker that ends while the sink is stalled leaves its records behind, not out.
    #[test]
    fn a_blocked_worker_that_ends_hands_over_beyond_the_bound() {
        let queue = queue(OnStall::Block);
        let mut writer = writer(&queue);
        give(&mut writer, 9 * BATCH_RECORDS);
        drop(writer);
        assert_eq!((queued(&queue), queue.metrics.dropped()), (9 * BATCH_RECORDS, 0));
    }

    #[test]
    fn after_the_end_records_are_dropped_and_counted_once() {
        let queue = queue(OnStall::Block);
        let mut writer = writer(&queue);
        give(&mut writer, 8 * BATCH_RECORDS);
        let mut taken = VecDeque::new();
        queue.take(&mut taken).unwrap();
        queue.close(Instant::now());
        assert_eq!(queue.pause(Duration::from_mins(1)), Err(Ended));
        queue.end();
        queue.end();
        assert_eq!(queue.settle(8 * BATCH_RECORDS, &mut Vec::new()), Err(Ended));
        assert!(!writer.is_stalled(), "nobody waits for a log that has ended");
        give(&mut writer, 7);
        drop(writer);
        assert_eq!((queue.metrics.written(), queue.metrics.dropped()), (0, 8 * BATCH_RECORDS as u64 + 7));
    }
}
