//! Whether a request's client is still there: what decides when its exchange ends, and whether its answer was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::line::Line;
use crate::state::Shared;

/// What the task that carries a request out knows of its connection. All writes happen under the world's lock.
pub(crate) struct Wire {
    shared: Arc<Shared>,
    line: Arc<Line>,
    /// The exchange that the request is; 0 = none, or not known yet.
    exchange: AtomicU64,
    gone: AtomicBool,
}

impl Wire {
    pub(crate) fn new(shared: &Arc<Shared>, line: &Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            line: Arc::clone(line),
            exchange: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        })
    }

    /// The request turns out to be an exchange.
    pub(crate) fn begin_exchange(&self, grant_type: &'static str, spent: &str) {
        let mut world = self.shared.world();
        let now = world.now();
        let seq = world.exchanges.begin(grant_type, spent, now);
        self.exchange.store(seq, Ordering::Relaxed);
        if self.gone.load(Ordering::Relaxed) {
            world.exchanges.end(seq, false, now);
        }
    }

    pub(crate) fn exchange(&self) -> Option<u64> {
        Some(self.exchange.load(Ordering::Relaxed)).filter(|seq| *seq != 0)
    }

    fn leave(&self, complete: bool) {
        let mut world = self.shared.world();
        self.gone.store(true, Ordering::Relaxed);
        let now = world.now();
        if let Some(seq) = self.exchange() {
            world.exchanges.end(seq, complete, now);
        }
        drop(world);
        self.line.answered();
        self.shared.note_change();
    }
}

/// The client's place at its connection: travels with the request, then with the answer's body. Dropped early, the
/// client has left.
pub(crate) struct Seat(Option<Arc<Wire>>);

impl Seat {
    pub(crate) fn at(wire: &Arc<Wire>) -> Self {
        Self(Some(Arc::clone(wire)))
    }

    /// The answer is over; `complete` if it was written whole.
    pub(crate) fn leave(mut self, complete: bool) {
        if let Some(wire) = self.0.take() {
            wire.leave(complete);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(wire) = self.0.take() {
            wire.shared.world().counters.left_early += 1;
            wire.leave(false);
        }
    }
}
