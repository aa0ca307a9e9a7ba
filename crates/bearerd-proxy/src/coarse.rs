//! Time for limits that are counted in seconds: a cell that the worker moves a few times a second, so that a call
//! arms no timer and asks no clock for them.

use std::{cell::Cell, rc::Rc, time::Duration};

/// Milliseconds since the worker began, at most [`TICK`] late.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coarse(Rc<Cell<u64>>);

impl Coarse {
    pub(crate) fn now(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn set(&self, since_start: Duration) {
        self.0.set(u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX));
    }

    /// Is `since` at least `limit_ms` ago? Never too early, and so up to two ticks late: the time that was noted may be
    /// one tick behind.
    pub(crate) fn is_past(&self, since: u64, limit_ms: u64) -> bool {
        self.now() >= since.saturating_add(limit_ms).saturating_add(TICK_MS)
    }
}

/// How far the time may be behind.
pub(crate) const TICK: Duration = Duration::from_millis(TICK_MS);
const TICK_MS: u64 = 250;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_ends_early() {
        let now = Coarse::default();
        // Noted at the very end of the first tick.
        let (noted, since) = (now.now(), 249);
        for millis in [500, 1_000, 1_248, 1_249, 1_250, 1_499, 1_500, 2_000] {
            now.set(Duration::from_millis(millis / TICK_MS * TICK_MS));
            assert!(!now.is_past(noted, 1_000) || millis >= since + 1_000, "{millis}");
        }
        assert!(now.is_past(noted, 1_000));
    }
}
