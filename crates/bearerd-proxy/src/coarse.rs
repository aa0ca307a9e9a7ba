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

    /// Is `since` at least `limit_ms` ago?
    pub(crate) fn is_past(&self, since: u64, limit_ms: u64) -> bool {
        self.now() >= since.saturating_add(limit_ms)
    }
}

/// How late a limit may be noticed.
pub(crate) const TICK: Duration = Duration::from_millis(250);
