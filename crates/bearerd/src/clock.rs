//! The one place that reads the wall clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bearerd_model::{Clock, UnixTime};

/// Wall time at start plus monotonic time since: never leaps back, and is not moved by a clock that is set while
/// the process runs.
#[derive(Debug)]
pub(crate) struct SystemClock {
    started: Instant,
    started_at: UnixTime,
}

impl SystemClock {
    pub(crate) fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the place that the rule names")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_at: UnixTime::default() + now }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        self.started_at + self.started.elapsed()
    }
}
