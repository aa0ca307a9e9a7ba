//! The simulator's own clock: the machine's time at start, plus the time that has passed, plus what a test advanced
//! it by. Everything else takes a [`SimTime`], so that the 100-day life of a refresh token can be tested in a moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::Instant;

/// An instant: milliseconds since the UNIX epoch on the simulator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SimTime(u64);

impl SimTime {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The instant `duration` later; stops at the end of time rather than wrap.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// The instant `duration` earlier, at most back to the epoch.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// How long `self` is after `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The form in which ServiceNow stores a `glide_date_time`: `2026-01-31 23:59:59`, UTC.
    pub fn to_glide(self) -> String {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        let timestamp = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        timestamp.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The clock itself. It follows tokio's clock, so a paused test runtime pauses it too.
#[derive(Debug)]
pub(crate) struct SimClock {
    started_at: SimTime,
    started: Instant,
    advanced: Duration,
}

impl SimClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the simulator's one reading of the wall clock, at its start"
    )]
    pub(crate) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_at: SimTime(millis(since_epoch)), started: Instant::now(), advanced: Duration::ZERO }
    }

    pub(crate) fn now(&self) -> SimTime {
        self.started_at.after(self.started.elapsed()).after(self.advanced)
    }

    /// Moves the clock forward; it never goes back.
    pub(crate) fn advance(&mut self, duration: Duration) {
        self.advanced = self.advanced.saturating_add(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glide_form_is_utc() {
        assert_eq!(SimTime::from_secs(0).to_glide(), "1970-01-01 00:00:00");
        assert_eq!(SimTime::from_secs(1_790_000_000).to_glide(), "2026-09-21 14:13:20");
    }

    #[test]
    fn time_saturates() {
        let end = SimTime(u64::MAX);
        assert_eq!(end.after(Duration::from_secs(1)), end);
        assert_eq!(SimTime::from_secs(1).since(SimTime::from_secs(2)), Duration::ZERO);
        assert_eq!(SimTime::from_secs(1).before(Duration::from_secs(2)), SimTime::from_secs(0));
        assert!(!end.to_glide().is_empty());
    }
}
