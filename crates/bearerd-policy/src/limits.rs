//! How many calls a caller key may make by one policy: on average ([`RateLimit`]) and at once. Counted in this process,
//! by every worker together, without a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_model::{RateLimit, UnixTime};

/// The limits that one policy sets to one key, and what is counted against them.
#[derive(Debug)]
pub struct KeyLimits {
    rate: Option<Arc<Gcra>>,
    concurrency_max: Option<u32>,
    in_flight: Arc<AtomicU32>,
}

/// Why a call is not admitted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitRefusal {
    /// The rate is used up; the next call is admitted after that long, if no other comes before.
    Rate { retry_after: Duration },
    /// As many calls as may be are under way.
    Concurrency,
}

/// Counts a call as under way until dropped.
#[derive(Debug)]
#[must_use = "the call counts as under way until this is dropped"]
pub struct InFlight(Option<Arc<AtomicU32>>);

/// The generic cell rate algorithm: a bucket of `burst` calls that fills by one each `interval_ns`, kept as the one time
/// at which it is full again.
#[derive(Debug)]
struct Gcra {
    limit: RateLimit,
    /// Rounded up, so that rounding never admits more.
    interval_ns: u64,
    /// Nanoseconds since 1970 (until 2554).
    full_at_ns: AtomicU64,
}

impl KeyLimits {
    pub(crate) fn new(rate: Option<RateLimit>, concurrency_max: Option<u32>) -> Self {
        Self { rate: rate.map(|rate| Arc::new(Gcra::new(rate))), concurrency_max, in_flight: Arc::default() }
    }

    /// These limits, with what was counted under `earlier` ones of the same key and policy: calls under way go on
    /// counting, and so does a rate that has not changed.
    pub(crate) fn going_on_from(&self, earlier: &Self) -> Self {
        let rate = match (&self.rate, &earlier.rate) {
            (Some(next), Some(earlier)) if next.limit == earlier.limit => Some(Arc::clone(earlier)),
            (next, _) => next.clone(),
        };
        Self { rate, concurrency_max: self.concurrency_max, in_flight: Arc::clone(&earlier.in_flight) }
    }

    /// Counts a call, or says why it may not go out. A refused call uses nothing up. `now` is every worker's same clock,
    /// which may stand still; where it goes back, the rate waits for it to come back, or, after a step of
    /// more than a minute, begins with an empty bucket.
    ///
    /// # Errors
    /// [`LimitRefusal`].
    pub fn admit(&self, now: UnixTime) -> Result<InFlight, LimitRefusal> {
        let in_flight = self.enter()?;
        if let Some(rate) = &self.rate {
            rate.take(now).map_err(|retry_after| LimitRefusal::Rate { retry_after })?;
        }
        Ok(in_flight)
    }

    pub fn rate(&self) -> Option<RateLimit> {
        self.rate.as_ref().map(|rate| rate.limit)
    }

    pub fn concurrency_max(&self) -> Option<u32> {
        self.concurrency_max
    }

    /// Calls under way in this process; without a `concurrency_max` none are counted.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Result<InFlight, LimitRefusal> {
        let Some(max) = self.concurrency_max else { return Ok(InFlight(None)) };
        let one_more = |count: u32| (count < max).then_some(count + 1);
        match self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(InFlight(Some(Arc::clone(&self.in_flight)))),
            Err(_) => Err(LimitRefusal::Concurrency),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.0 {
            in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Gcra {
    fn new(limit: RateLimit) -> Self {
        let per_ns = u64::from(limit.per_s.max(1)).saturating_mul(NANOS_PER_SEC);
        let interval_ns = per_ns.div_ceil(u64::from(limit.calls.max(1)));
        Self { limit, interval_ns, full_at_ns: AtomicU64::new(0) }
    }

    /// Takes one call out of the bucket, or says how long until one is in it.
    fn take(&self, now: UnixTime) -> Result<(), Duration> {
        let now_ns = now.as_millis().saturating_mul(NANOS_PER_MILLI);
        // The bucket holds a call from `ahead_ns` before it is full.
        let others = if self.limit.calls == 0 { None } else { self.limit.burst().checked_sub(1) };
        let Some(others) = others else { return Err(Duration::from_nanos(self.interval_ns)) };
        let ahead_ns = u64::from(others).saturating_mul(self.interval_ns);
        // What lies beyond was written before the clock went back. It is waited for, so that no call is there twice, but
        // not for hours: after a great step the bucket is empty.
        let empty_ns = now_ns.saturating_add(ahead_ns).saturating_add(self.interval_ns);
        let mut full_at_ns = self.full_at_ns.load(Ordering::Relaxed);
        loop {
            let stepped_back = full_at_ns > empty_ns.saturating_add(CLOCK_STEP_NANOS_MAX);
            let from_ns = if stepped_back { empty_ns } else { full_at_ns.max(now_ns) };
            let early_ns = (from_ns - now_ns).saturating_sub(ahead_ns);
            if early_ns > 0 && !stepped_back {
                return Err(Duration::from_nanos(early_ns));
            }
            let next_ns = if early_ns > 0 { from_ns } else { from_ns.saturating_add(self.interval_ns) };
            match self.full_at_ns.compare_exchange_weak(
                full_at_ns,
                next_ns,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) if early_ns > 0 => return Err(Duration::from_nanos(early_ns)),
                Ok(_) => return Ok(()),
                Err(changed) => full_at_ns = changed,
            }
        }
    }
}

/// A clock that goes back by more was set, not disciplined.
const CLOCK_STEP_NANOS_MAX: u64 = 60 * NANOS_PER_SEC;
const NANOS_PER_SEC: u64 = 1_000_000_000;
const NANOS_PER_MILLI: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::{collection, prelude::*};

    use super::*;

    fn limit(calls: u32, per_s: u32, burst: Option<u32>) -> RateLimit {
        RateLimit { calls, per_s, burst }
    }

    fn at(millis: u64) -> UnixTime {
        UnixTime::from_millis(1_800_000_000_000 + millis)
    }

    fn rate(retry_after_ms: u64) -> LimitRefusal {
        LimitRefusal::Rate { retry_after: Duration::from_millis(retry_after_ms) }
    }

    #[test]
    fn a_burst_then_evenly() {
        let limits = KeyLimits::new(Some(limit(2, 1, Some(3))), None);
        for (now_ms, expected) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(rate(500))),
            (499, Err(rate(1))),
            (500, Ok(())),
            (500, Err(rate(500))),
            (100, Err(rate(900))), // the clock went back: no call is there twice
            (60_000, Ok(())),
            (60_000, Ok(())),
            (60_000, Ok(())),
            (60_000, Err(rate(500))),
        ] {
            assert_eq!(limits.admit(at(now_ms)).map(drop), expected, "at {now_ms}");
        }
    }

    /// A clock that was an hour ahead does not close a key for an hour.
    #[test]
    fn a_great_step_back_leaves_an_empty_bucket() {
        const HOUR_MS: u64 = 3_600_000;
        let limits = KeyLimits::new(Some(limit(2, 1, Some(3))), None);
        for (now_ms, expected) in [
            (HOUR_MS, Ok(())),
            (0, Err(rate(500))),
            (0, Err(rate(500))),
            (500, Ok(())),
            (500, Err(rate(500))),
            (2_000, Ok(())),
        ] {
            assert_eq!(limits.admit(at(now_ms)).map(drop), expected, "at {now_ms}");
        }
    }

    /// A limit that validation would not let in closes instead of opening.
    #[test]
    fn nothing_in_no_time_is_nothing() {
        for (calls, per_s, burst) in [(0, 1, None), (0, 1, Some(5)), (5, 1, Some(0))] {
            let limits = KeyLimits::new(Some(limit(calls, per_s, burst)), None);
            assert!(matches!(limits.admit(at(0)), Err(LimitRefusal::Rate { .. })), "{calls} {burst:?}");
        }
        let limits = KeyLimits::new(Some(limit(1, 0, None)), Some(0));
        assert_eq!(limits.admit(at(0)).map(drop), Err(LimitRefusal::Concurrency));
    }

    #[test]
    fn calls_under_way_count_until_they_end() {
        let limits = KeyLimits::new(Some(limit(3, 3_600, None)), Some(2));
        let (first, second) = (limits.admit(at(0)).unwrap(), limits.admit(at(0)).unwrap());
        for _ in 0..5 {
            assert_eq!(limits.admit(at(0)).map(drop), Err(LimitRefusal::Concurrency), "uses up no rate");
        }
        assert_eq!(limits.in_flight(), 2);
        drop(first);
        let third = limits.admit(at(0)).unwrap();
        drop(second);
        let refused = limits.admit(at(0)).map(drop);
        assert!(matches!(refused, Err(LimitRefusal::Rate { .. })), "{refused:?}");
        assert_eq!(limits.in_flight(), 1, "a refused call is not under way");
        drop(third);
        assert_eq!(limits.in_flight(), 0);
    }

    #[test]
    fn counts_go_on_under_other_limits() {
        let slow = limit(1, 3_600, None);
        let earlier = KeyLimits::new(Some(slow), Some(2));
        let call = earlier.admit(at(0)).unwrap();
        let same = KeyLimits::new(Some(slow), Some(1)).going_on_from(&earlier);
        assert_eq!((same.in_flight(), same.admit(at(0)).map(drop)), (1, Err(LimitRefusal::Concurrency)));
        drop(call);
        assert_eq!(same.in_flight(), 0);
        assert_eq!(same.admit(at(0)).map(drop), Err(rate(3_600_000)), "the rate is used up as before");
        // An hour's wait was another limit's.
        let faster = KeyLimits::new(Some(limit(1, 1, None)), Some(1)).going_on_from(&same);
        assert!(faster.admit(at(0)).is_ok());
    }

    #[test]
    fn workers_share_one_bucket() {
        let limits = KeyLimits::new(Some(limit(1_000, 1, None)), Some(700));
        let held: Vec<InFlight> = thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| (0..400).filter_map(|_| limits.admit(at(0)).ok()).collect::<Vec<_>>())
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!((held.len(), limits.in_flight()), (700, 700));
        drop(held);
        assert_eq!((0..400).filter(|_| limits.admit(at(0)).is_ok()).count(), 300);
        assert_eq!(limits.in_flight(), 0);
    }

    proptest! {
        /// In no window of time are more calls admitted than `burst + rate · window`, whatever the clock does; and a
        /// caller that keeps below the rate is never refused.
        #[test]
        fn no_window_holds_more_than_the_limit(
            (calls, per_s, burst) in (1..50_u32, 1..20_u32, prop::option::of(1..20_u32)),
            steps_ms in collection::vec(prop_oneof![Just(0_i64), -500..1_500_i64, 0..20_000_i64], 1..300),
        ) {
            let given = limit(calls, per_s, burst);
            let limits = KeyLimits::new(Some(given), None);
            let (mut now_ms, mut latest_ms, mut admitted) = (10_000_i64, 0_i64, Vec::new());
            for step in steps_ms {
                now_ms = (now_ms + step).max(0);
                latest_ms = latest_ms.max(now_ms);
                match limits.admit(at(now_ms.unsigned_abs())) {
                    Ok(_) => admitted.push(i128::from(latest_ms)),
                    Err(LimitRefusal::Rate { retry_after }) => {
                        // Exactly then, and not a millisecond before.
                        let wait_ms = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap();
                        prop_assert!(wait_ms > 0);
                        let probe = KeyLimits::new(Some(given), None).going_on_from(&limits);
                        if wait_ms > 1 {
                            prop_assert!(probe.admit(at(now_ms.unsigned_abs() + wait_ms - 1)).is_err());
                        }
                    }
                    Err(refusal) => prop_assert!(false, "{:?}", refusal),
                }
            }
            let (calls, per_ms) = (i128::from(calls), i128::from(per_s) * 1_000);
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let count = i128::try_from(last - first + 1).unwrap();
                    let most = i128::from(given.burst()) + (to - from) * calls / per_ms;
                    prop_assert!(count <= most, "{} calls in {} ms, at most {}", count, to - from, most);
                }
            }
        }

        /// However the clock was set: who waits as long as it is told is admitted, and nobody is told to wait for long.
        #[test]
        fn whatever_the_clock_does_the_wait_is_short_and_true(
            (calls, per_s, burst) in (1..50_u32, 1..20_u32, prop::option::of(1..20_u32)),
            steps_ms in collection::vec(prop_oneof![-100..100_i64, -90_000..90_000_i64, -90_000_000..90_000_000_i64], 1..100),
        ) {
            let limits = KeyLimits::new(Some(limit(calls, per_s, burst)), None);
            let interval = Duration::from_secs(per_s.into()) / calls;
            let mut now_ms = 100_000_000_i64;
            for step in steps_ms {
                now_ms = (now_ms + step).max(0);
                if let Err(LimitRefusal::Rate { retry_after }) = limits.admit(at(now_ms.unsigned_abs())) {
                    prop_assert!(retry_after <= interval + Duration::from_millis(60_001), "{:?}", retry_after);
                    now_ms += i64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap();
                    prop_assert!(limits.admit(at(now_ms.unsigned_abs())).is_ok());
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_admitted(
            (calls, per_s) in (1..50_u32, 1..20_u32), extra_ms in collection::vec(0..100_u64, 1..100),
        ) {
            let limits = KeyLimits::new(Some(limit(calls, per_s, Some(1))), None);
            let interval_ms = (u64::from(per_s) * 1_000).div_ceil(u64::from(calls));
            let mut now_ms = 0;
            for extra in extra_ms {
                prop_assert!(limits.admit(at(now_ms)).is_ok());
                now_ms += interval_ms + extra;
            }
        }
    }
}
