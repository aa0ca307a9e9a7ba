//! A rate rule: requests per hour and user (servicenow.md §6). 429 with `Retry-After` and `X-RateLimit-*`.

use std::collections::HashMap;

use http::StatusCode;
use http::header::{HeaderName, RETRY_AFTER};

use crate::clock::SimTime;
use crate::message::{Format, Reply};

/// What a request is told about the rule it matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateState {
    pub(crate) limit: u32,
    /// UNIX time at which the count starts anew.
    pub(crate) reset_at_s: u64,
    pub(crate) exceeded: bool,
}

/// Counts of the current hour.
#[derive(Debug, Default)]
pub(crate) struct RateRule {
    hour: u64,
    counts: HashMap<String, u32>,
}

impl RateRule {
    /// Counts one request of the user; `None` without a rule.
    pub(crate) fn count(&mut self, user_name: &str, limit: u32, now: SimTime) -> Option<RateState> {
        if limit == 0 {
            return None;
        }
        let hour = now.as_secs() / HOUR_S;
        if hour != self.hour {
            self.hour = hour;
            self.counts.clear();
        }
        let count = self.counts.entry(user_name.to_owned()).or_default();
        *count = count.saturating_add(1);
        Some(RateState { limit, reset_at_s: (hour + 1) * HOUR_S, exceeded: *count > limit })
    }
}

impl RateState {
    pub(crate) fn mark(self, reply: Reply) -> Reply {
        reply
            .with(HeaderName::from_static("x-ratelimit-limit"), &self.limit.to_string())
            .with(HeaderName::from_static("x-ratelimit-reset"), &self.reset_at_s.to_string())
            .with(HeaderName::from_static("x-ratelimit-rule"), RULE_SYS_ID)
    }

    /// The 429 of an exceeded rule.
    pub(crate) fn refusal(self, format: Format, retry_after_s: u64) -> Reply {
        let detail = format!("Rate limit of {} requests per hour for Table API exceeded", self.limit);
        let reply =
            Reply::api_error(format, StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded", Some(&detail));
        self.mark(reply.with(RETRY_AFTER, &retry_after_s.to_string()))
    }
}

const HOUR_S: u64 = 3_600;
const RULE_SYS_ID: &str = "5f2e8bb14f3a1300b2c4a1e0c310c7d1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_user_and_hour() {
        let mut rule = RateRule::default();
        let now = SimTime::from_secs(7_200);
        assert_eq!(rule.count("abel", 0, now), None);
        let state = |exceeded| Some(RateState { limit: 2, reset_at_s: 10_800, exceeded });
        assert_eq!(rule.count("abel", 2, now), state(false));
        assert_eq!(rule.count("abel", 2, now), state(false));
        assert_eq!(rule.count("abel", 2, now), state(true));
        assert_eq!(rule.count("beth", 2, now), state(false));
        assert!(!rule.count("abel", 2, SimTime::from_secs(10_800)).unwrap().exceeded);
    }
}
