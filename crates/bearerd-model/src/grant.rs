//! A grant: the tokens one resource owner has given us, and the rules for how long each may be used.

use std::time::Duration;

use crate::{AccessToken, RefreshToken, UnixTime};

/// Counts the tokens of one connection. Grows whenever a different access token or refresh token is stored, and never
/// otherwise, so "the token of generation 7 was refused" names one token.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The tokens of one connection.
#[derive(Debug, Clone)]
pub struct Grant {
    pub generation: Generation,
    pub access_token: AccessToken,
    /// How long the access token lived when it was issued or renewed; the margin and the skew come from it.
    pub access_lifetime: Duration,
    /// Time the request was *sent* plus `expires_in` (RFC 6749 §5.1).
    pub access_expires_at: UnixTime,
    /// Absent for `client_credentials`.
    pub refresh_token: Option<RefreshToken>,
    /// The refresh token before the current one, kept until the current one has worked once.
    pub previous_refresh_token: Option<RefreshToken>,
    /// Fixed at consent; moves only when a *different* refresh token arrives. `None`: not known.
    pub refresh_expires_at: Option<UnixTime>,
    pub granted_at: UnixTime,
    /// When the token endpoint last issued, renewed or confirmed the access token.
    pub refreshed_at: UnixTime,
    /// As answered (RFC 6749 §5.1); `None` if the server left it out.
    pub scope: Option<String>,
}

/// How an access token may be used at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// Usable; time to ask for the next one.
    RefreshSoon,
    /// Inside the skew or past expiry: never injected.
    Expired,
}

/// When to refresh, from the life of the access token (product contract §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshRules {
    /// Ask for the next token this long before expiry.
    pub margin: Duration,
    /// Stop using the token this long before expiry.
    pub skew: Duration,
}

impl RefreshRules {
    /// Margin = min(300 s, life / 5); skew = min(5 s, life / 20).
    pub fn for_lifetime(life: Duration) -> Self {
        Self { margin: MARGIN_MAX.min(life / 5), skew: SKEW_MAX.min(life / 20) }
    }

    pub fn freshness(self, expires_at: UnixTime, now: UnixTime) -> Freshness {
        if now >= expires_at - self.skew {
            Freshness::Expired
        } else if now >= expires_at - self.margin {
            Freshness::RefreshSoon
        } else {
            Freshness::Fresh
        }
    }
}

impl Grant {
    pub fn freshness(&self, now: UnixTime) -> Freshness {
        RefreshRules::for_lifetime(self.access_lifetime).freshness(self.access_expires_at, now)
    }

    /// When others look after the connection, if whoever uses it has not asked for the next access token by then.
    pub fn overdue_at(&self) -> UnixTime {
        let margin = RefreshRules::for_lifetime(self.access_lifetime).margin;
        self.refresh_at() + OVERDUE_MAX.min(margin / 3)
    }

    /// Whether there has been an access token: an import may bring a refresh token alone.
    pub fn has_access_token(&self) -> bool {
        self.access_expires_at != UnixTime::default()
    }

    /// Whether both hold the same access token and the same refresh token.
    pub fn has_same_tokens(&self, other: &Self) -> bool {
        let same_refresh = match (&self.refresh_token, &other.refresh_token) {
            (None, None) => true,
            (Some(one), Some(other)) => one.matches(other),
            _ => false,
        };
        same_refresh && self.access_token.matches(&other.access_token)
    }

    /// The last moment (exclusive) at which the access token may be injected.
    pub fn usable_until(&self) -> UnixTime {
        self.access_expires_at - RefreshRules::for_lifetime(self.access_lifetime).skew
    }

    /// When to ask for the next access token: a margin before its end, but no sooner than after half of what was left
    /// of it at the last answer, at least one second. A server that will not renew yet is not asked in a loop, by
    /// however many processes (product contract §5).
    pub fn refresh_at(&self) -> UnixTime {
        let margin = RefreshRules::for_lifetime(self.access_lifetime).margin;
        let left = self.access_expires_at.since(self.refreshed_at);
        (self.access_expires_at - margin).max(self.refreshed_at + (left / 2).max(REFRESH_PAUSE_MIN))
    }
}

/// Least time between an answer and the next question.
const REFRESH_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest time that whoever uses a connection is left to refresh it, before others do.
const OVERDUE_MAX: Duration = Duration::from_secs(90);
/// Longest time before expiry at which a refresh begins.
const MARGIN_MAX: Duration = Duration::from_mins(5);
/// Longest time before expiry at which a token is no longer used: covers clock error and the call's own way.
const SKEW_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, FakeClock};

    #[test]
    fn token_ages_from_fresh_to_expired() {
        let clock = FakeClock::at(UnixTime::from_secs(1_000));
        let expires_at = clock.now() + Duration::from_mins(30);
        let rules = RefreshRules::for_lifetime(Duration::from_mins(30));
        for (step_secs, expected) in [
            (1_499, Freshness::Fresh), // last second before the margin
            (1, Freshness::RefreshSoon),
            (294, Freshness::RefreshSoon), // last second before the skew
            (1, Freshness::Expired),
        ] {
            clock.advance(Duration::from_secs(step_secs));
            assert_eq!(rules.freshness(expires_at, clock.now()), expected, "at {:?}", clock.now());
        }
    }

    /// Of a token that lives `life`, with `left` of it at the last answer.
    fn asked_again_after(life: u64, left: u64) -> Duration {
        let answered = UnixTime::from_secs(1_000);
        let grant = Grant {
            generation: Generation(1),
            access_token: AccessToken::parse("at".to_owned()).unwrap(),
            access_lifetime: Duration::from_secs(life),
            access_expires_at: answered + Duration::from_secs(left),
            refresh_token: None,
            previous_refresh_token: None,
            refresh_expires_at: None,
            granted_at: answered,
            refreshed_at: answered,
            scope: None,
        };
        grant.refresh_at().since(answered)
    }

    #[test]
    fn a_server_that_does_not_renew_is_asked_again_after_half_of_what_is_left() {
        for (life, left, expected_s) in [
            (1_800, 1_800, 1_500), // a new token: its margin decides
            (1_800, 299, 149),
            (1_800, 3, 1),
            (1_800, 1, 1),
            (1_800, 0, 1), // ended already
            (3, 3, 2),
            (0, 0, 1),
        ] {
            assert_eq!(asked_again_after(life, left).as_secs(), expected_s, "{left} of {life}");
        }
    }

    #[test]
    fn short_lives_have_short_margins() {
        let rules = RefreshRules::for_lifetime(Duration::from_secs(3));
        assert_eq!(
            rules,
            RefreshRules { margin: Duration::from_millis(600), skew: Duration::from_millis(150) }
        );
        assert_eq!(RefreshRules::for_lifetime(Duration::ZERO).margin, Duration::ZERO);
    }
}
