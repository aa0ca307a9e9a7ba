//! The way to one instance's token endpoint: a breaker. While calls fail in a row, or the instance has asked for a
//! pause, none goes out; after the pause one does, and decides for all.

use std::time::Duration;

use bearerd_model::UnixTime;

use crate::Passage;

/// Failures in a row after which the breaker opens.
const FAILURES_MAX: u32 = 5;
/// Pauses of an open breaker: doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// Pause after a 429 that names none, and the longest that is obeyed.
const THROTTLED_PAUSES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// One a client at an instance.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    failures: u32,
    /// Nothing passes before then.
    shut_until: UnixTime,
    /// A probe is under way: everybody else waits for it.
    probing: bool,
}

impl Breaker {
    /// Whether a call may go out now; `true`: it is the probe, which decides for all.
    ///
    /// # Errors
    /// When to ask again.
    pub fn enter(&mut self, now: UnixTime) -> Result<bool, UnixTime> {
        if now < self.shut_until {
            return Err(self.shut_until);
        }
        if self.failures >= FAILURES_MAX {
            if self.probing {
                return Err(now + PAUSES.0);
            }
            self.probing = true;
            return Ok(true);
        }
        Ok(false)
    }

    /// Until when nothing passes, as far as is known now.
    pub fn shut(&self, now: UnixTime) -> Option<UnixTime> {
        (now < self.shut_until).then_some(self.shut_until)
    }

    /// A call that entered has ended; `is_probe` as [`Self::enter`] said. `jitter` is 0 to 1.
    pub fn leave(&mut self, passage: Passage, is_probe: bool, now: UnixTime, jitter: f64) {
        if is_probe {
            self.probing = false;
        }
        match passage {
            Passage::NotCalled => {}
            Passage::Answered => *self = Self::default(),
            Passage::Throttled { retry_after } => {
                let pause = retry_after.unwrap_or(THROTTLED_PAUSES.0);
                let pause = pause.clamp(Duration::from_secs(1), THROTTLED_PAUSES.1);
                self.failures = 0;
                self.shut_until = self.shut_until.max(now + pause);
            }
            Passage::Failed => {
                self.failures = self.failures.saturating_add(1);
                // What was already under way when it opened says nothing new.
                if self.failures == FAILURES_MAX || (is_probe && self.failures > FAILURES_MAX) {
                    let doublings = self.failures.saturating_sub(FAILURES_MAX).min(16);
                    let pause = PAUSES.0.saturating_mul(1 << doublings).min(PAUSES.1);
                    self.shut_until = now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
                }
            }
        }
    }

    /// Whether calls are kept back.
    pub fn is_open(&self, now: UnixTime) -> bool {
        now < self.shut_until || self.failures >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_000);

    fn after(secs: u64) -> UnixTime {
        NOW + Duration::from_secs(secs)
    }

    fn broken() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.enter(NOW), Ok(false));
            breaker.leave(Passage::Failed, false, NOW, 1.0);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_decides() {
        let mut breaker = broken();
        assert_eq!(breaker.enter(NOW), Err(after(1)));
        assert_eq!(breaker.enter(after(1)), Ok(true), "the probe");
        assert!(breaker.enter(after(1)).is_err(), "everybody else waits for it");
        breaker.leave(Passage::NotCalled, false, after(1), 1.0);
        assert!(breaker.enter(after(1)).is_err(), "the end of an older call is not the probe's");
        breaker.leave(Passage::Failed, true, after(2), 1.0);
        assert_eq!(breaker.enter(after(2)), Err(after(4)), "twice as long");
        breaker.enter(after(4)).unwrap();
        breaker.leave(Passage::Answered, true, after(5), 1.0);
        for _ in 0..100 {
            assert_eq!(breaker.enter(after(5)), Ok(false));
        }
    }

    #[test]
    fn its_pauses_are_bounded() {
        let mut breaker = broken();
        let mut now = NOW;
        for _ in 0..100 {
            let Err(until) = breaker.enter(now) else { panic!("open") };
            assert!(until.since(now) <= PAUSES.1);
            now = until;
            breaker.enter(now).unwrap();
            breaker.leave(Passage::Failed, true, now, 1.0);
        }
    }

    #[test]
    fn calls_that_were_under_way_do_not_lengthen_its_pause() {
        let mut breaker = broken();
        for _ in 0..100 {
            breaker.leave(Passage::Failed, false, NOW, 1.0);
        }
        assert_eq!(breaker.enter(NOW), Err(after(1)));
    }

    #[test]
    fn a_probe_that_did_not_call_leaves_the_way_to_the_next() {
        let mut breaker = broken();
        breaker.enter(after(1)).unwrap();
        breaker.leave(Passage::NotCalled, true, after(1), 1.0);
        assert_eq!(breaker.enter(after(1)), Ok(true));
    }

    /// `Retry-After` is obeyed by all, within its bounds.
    #[test]
    fn a_throttled_call_shuts_it() {
        for (asked, pause) in [(Some(7), 7), (Some(0), 1), (Some(100_000), 600), (None, 30)] {
            let mut breaker = Breaker::default();
            breaker.enter(NOW).unwrap();
            let throttled = Passage::Throttled { retry_after: asked.map(Duration::from_secs) };
            breaker.leave(throttled, false, NOW, 0.0);
            assert_eq!(breaker.enter(NOW), Err(after(pause)), "{asked:?}");
            assert_eq!(breaker.enter(after(pause)), Ok(false));
        }
    }
}
