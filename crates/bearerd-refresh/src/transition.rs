//! What each outcome of a token call makes of a grant and its connection. Nothing here waits, reads a clock, draws
//! randomness or touches the network: the caller passes times and jitter.

use std::time::Duration;

use bearerd_model::{
    Connection, DeathCause, Epoch, Generation, Grant, GrantType, Health, Lifecycle, RefreshToken, UnixTime,
};
use bearerd_oauth::{TokenResponse, Verdict};

use crate::{Cause, RefreshFailure};

/// Why the token endpoint was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCall {
    /// A consent, a client-credentials request: a new grant, whose refresh token begins a new life.
    NewGrant,
    Refresh,
}

/// A token response and when its request was sent.
#[derive(Debug)]
pub struct Obtained {
    pub response: TokenResponse,
    pub sent_at: UnixTime,
}

/// Life of an access token where the server does not say (O-36): ServiceNow's default.
const EXPIRES_IN_DEFAULT: Duration = Duration::from_mins(30);

/// The grant that `obtained` makes of `previous`.
///
/// A refresh may return the access token it already had: then the generation stays. A refresh token that comes back
/// unchanged, or not at all, keeps its expiry; a different one starts a life of `refresh_token_lifetime` (O-38).
pub fn grant_from(
    previous: Option<&Grant>,
    call: TokenCall,
    obtained: Obtained,
    refresh_token_lifetime: Duration,
) -> Grant {
    let Obtained { response, sent_at } = obtained;
    let expires_in = response.expires_in.unwrap_or(EXPIRES_IN_DEFAULT);
    let access_expires_at = sent_at + expires_in;
    let same_access = previous.filter(|grant| grant.access_token.matches(&response.access_token));
    let generation = match (same_access, previous) {
        (Some(same), _) => same.generation,
        (None, Some(previous)) => previous.generation.next(),
        (None, None) => Generation(1),
    };
    // The same token with less life left keeps the margins it was issued with; a renewed one gets new ones.
    let access_lifetime = match same_access {
        Some(same) if access_expires_at <= same.access_expires_at + ROUNDING => {
            same.access_lifetime.max(expires_in)
        }
        _ => expires_in,
    };
    let refresh = refresh_side(previous, call, response.refresh_token, sent_at, refresh_token_lifetime);
    Grant {
        generation,
        access_token: response.access_token,
        access_lifetime,
        access_expires_at,
        refresh_token: refresh.token,
        previous_refresh_token: refresh.previous,
        refresh_expires_at: refresh.expires_at,
        granted_at: match (call, previous) {
            (TokenCall::Refresh, Some(previous)) => previous.granted_at,
            _ => sent_at,
        },
        refreshed_at: sent_at,
        scope: response.scope.or_else(|| previous.and_then(|grant| grant.scope.clone())),
    }
}

/// `expires_in` is in whole seconds, so two answers about one expiry may differ by this much.
const ROUNDING: Duration = Duration::from_secs(1);

struct RefreshSide {
    token: Option<RefreshToken>,
    previous: Option<RefreshToken>,
    expires_at: Option<UnixTime>,
}

fn refresh_side(
    previous: Option<&Grant>,
    call: TokenCall,
    received: Option<RefreshToken>,
    sent_at: UnixTime,
    lifetime: Duration,
) -> RefreshSide {
    let held = previous.and_then(|grant| grant.refresh_token.as_ref());
    let new_life =
        |token| RefreshSide { token: Some(token), previous: None, expires_at: Some(sent_at + lifetime) };
    match (call, received, held) {
        // A new grant stands on its own; ServiceNow extends even an unchanged refresh token's life with it.
        (TokenCall::NewGrant, Some(token), _) | (TokenCall::Refresh, Some(token), None) => new_life(token),
        (TokenCall::Refresh, Some(token), Some(held)) if !held.matches(&token) => {
            RefreshSide { previous: Some(held.clone()), ..new_life(token) }
        }
        // The current refresh token has worked: the one before it is no longer needed.
        (TokenCall::Refresh, _, Some(held)) => RefreshSide {
            token: Some(held.clone()),
            previous: None,
            expires_at: previous.and_then(|grant| grant.refresh_expires_at),
        },
        (TokenCall::NewGrant, None, _) | (TokenCall::Refresh, None, None) => {
            RefreshSide { token: None, previous: None, expires_at: None }
        }
    }
}

/// Puts what the exchange `epoch` brought into its connection.
pub(crate) fn record_issue(connection: &mut Connection, grant: Grant, epoch: Epoch, now: UnixTime) {
    connection.health = Health::Ok;
    if let Lifecycle::ReauthorizationRequired { .. } = connection.lifecycle {
        connection.lifecycle = Lifecycle::Active { since: now };
    }
    let held = connection.grant.as_ref().and_then(|held| held.refresh_token.as_ref());
    if let (Some(held), Some(next)) = (held, &grant.refresh_token) {
        connection.exchanges.rotated |= !held.matches(next);
    }
    connection.advance_grant(grant, epoch);
}

/// Whether the record, as just read, still wants the exchange.
pub(crate) fn is_wanted(connection: &Connection, grant_type: GrantType, cause: Cause, now: UnixTime) -> bool {
    let lives =
        matches!(connection.lifecycle, Lifecycle::Active { .. } | Lifecycle::AwaitingConfirmation { .. });
    if !lives && cause != Cause::Operator {
        return false;
    }
    match &connection.grant {
        // Without a grant that a person gave, an active connection has nothing to live by: the refresh says so.
        None => {
            grant_type == GrantType::ClientCredentials
                || matches!(connection.lifecycle, Lifecycle::Active { .. })
        }
        Some(grant) if !can_refresh(connection, grant_type) => now >= grant.usable_until(),
        Some(grant) => match cause {
            Cause::Due => now >= grant.refresh_at(),
            Cause::Refused(generation) => grant.generation == generation,
            Cause::Operator => true,
        },
    }
}

/// When a process should look after the connection next: when it is to be refreshed, if it is in use, else a day
/// after the last answer, so that a grant's end is noticed (product contract §5).
pub(crate) fn due_at(connection: &Connection, warm_for: Duration, now: UnixTime) -> Option<UnixTime> {
    if !matches!(connection.lifecycle, Lifecycle::Active { .. } | Lifecycle::AwaitingConfirmation { .. }) {
        return None;
    }
    let grant = connection.grant.as_ref()?;
    let next = grant.overdue_at();
    if connection.last_used_at.is_some_and(|used| next <= used + warm_for) {
        return Some(next);
    }
    // Spread over two hours, by something that differs from connection to connection and stays.
    let spread = u64::from(
        connection
            .id
            .as_str()
            .bytes()
            .fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte))),
    );
    Some(next.max(now + PROBE_EVERY - PROBE_SPREAD * u32::try_from(spread).unwrap_or(0) / (1 << 16)))
}

/// How often a connection that nobody uses is refreshed, and how much earlier at most.
const PROBE_EVERY: Duration = Duration::from_hours(24);
const PROBE_SPREAD: Duration = Duration::from_hours(2);

/// Health is stored when it changes in kind, not with every failure: an outage must not become a write storm.
pub(crate) fn worth_storing(before: &Connection, after: &Connection) -> bool {
    let strikes = |connection: &Connection| match connection.health {
        Health::Ok => None,
        Health::Failing { strikes, .. } => Some(strikes),
    };
    before.lifecycle != after.lifecycle || strikes(before) != strikes(after)
}

/// Whether a connection's grant can be refreshed at all.
pub fn can_refresh(connection: &Connection, grant_type: GrantType) -> bool {
    match grant_type {
        GrantType::ClientCredentials => true,
        GrantType::AuthorizationCode => {
            connection.grant.as_ref().is_some_and(|grant| grant.refresh_token.is_some())
        }
    }
}

/// Puts a failure into its connection: health always, lifecycle only where the *newest* refresh token was refused
/// for good, or is missing. The caller has checked that the refused token is still the stored one (I-6). A connection
/// without a refresh token lives by client credentials: a refusal says nothing about a grant, since there is none
/// that a person could renew.
pub(crate) fn record_failure(
    connection: &mut Connection,
    failure: &RefreshFailure,
    in_doubt: bool,
    now: UnixTime,
) {
    let (since, failures, strikes) = match connection.health {
        Health::Ok => (now, 0, 0),
        Health::Failing { since, failures, strikes, .. } => (since, failures, strikes),
    };
    let verdict = failure.verdict(in_doubt);
    let strikes = if verdict == Verdict::Suspect { strikes.saturating_add(1) } else { strikes };
    connection.health =
        Health::Failing { since, failures: failures.saturating_add(1), strikes, reason: failure.to_string() };
    let Some(cause) = death_cause(connection, failure, in_doubt, strikes, now) else { return };
    match connection.lifecycle {
        Lifecycle::Active { .. } => {
            connection.lifecycle = Lifecycle::ReauthorizationRequired { since: now, cause };
        }
        // Nobody has vouched for who consented, and with these tokens nobody will: the next consent waits for a
        // confirmation like the first (O-21).
        Lifecycle::AwaitingConfirmation { .. } => {
            connection.lifecycle = Lifecycle::AwaitingConsent { since: now };
        }
        Lifecycle::AwaitingConsent { .. } | Lifecycle::ReauthorizationRequired { .. } => {}
    }
}

fn death_cause(
    connection: &Connection,
    failure: &RefreshFailure,
    in_doubt: bool,
    strikes: u32,
    now: UnixTime,
) -> Option<DeathCause> {
    if matches!(failure, RefreshFailure::NoRefreshToken) {
        return Some(DeathCause::NoRefreshToken);
    }
    let grant = connection.grant.as_ref().filter(|grant| grant.refresh_token.is_some())?;
    let refresh_ended = grant.refresh_expires_at.is_some_and(|ends| ends <= now);
    match failure.verdict(in_doubt) {
        Verdict::Suspect if refresh_ended => Some(DeathCause::RefreshTokenExpired),
        Verdict::Suspect if strikes < STRIKES_MAX => None,
        Verdict::GrantDead | Verdict::Suspect => Some(DeathCause::GrantRefused),
        Verdict::ClientRefused | Verdict::Transient | Verdict::Throttled => None,
    }
}

/// Unexplained refusals in a row after which the grant counts as dead. ServiceNow refuses now and then for no
/// reason (servicenow.md §0.4), so they are spread over [`STRIKE_PAUSES`].
const STRIKES_MAX: u32 = 5;
/// Pause after the first, second … unexplained refusal: quick at first, since the next call often passes.
const STRIKE_PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30), Duration::from_mins(1)];
/// Backoff of passing faults: doubles from the first to the second of these. With the breaker's longest pause it stays
/// below the 30 s after which a token is fresh once the fault has passed (I-14).
const TRANSIENT_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// Pause after the grant was refused for good, where that could not be written down.
const GRANT_DEAD_PAUSE: Duration = Duration::from_mins(1);
/// Pause after our client was refused: an operator has to act.
const CLIENT_REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a 429 that names none, and the longest that is obeyed.
const THROTTLED_PAUSES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// How long to leave the token endpoint alone after the `failures`-th failure in a row. `jitter` is 0 to 1.
pub(crate) fn pause_after_failure(
    failure: &RefreshFailure,
    in_doubt: bool,
    failures: u32,
    strikes: u32,
    jitter: f64,
) -> Duration {
    let spread = |pause: Duration| pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    match failure.verdict(in_doubt) {
        Verdict::GrantDead => GRANT_DEAD_PAUSE,
        Verdict::Suspect => {
            let at = usize::try_from(strikes.saturating_sub(1)).unwrap_or(usize::MAX);
            *STRIKE_PAUSES.get(at).unwrap_or(&STRIKE_PAUSES[STRIKE_PAUSES.len() - 1])
        }
        Verdict::ClientRefused => spread(CLIENT_REFUSED_PAUSE * 2),
        Verdict::Throttled => {
            let pause = failure.retry_after().unwrap_or(THROTTLED_PAUSES.0);
            pause.clamp(Duration::from_secs(1), THROTTLED_PAUSES.1)
        }
        Verdict::Transient => {
            let doubled = TRANSIENT_PAUSES.0.saturating_mul(1 << failures.saturating_sub(1).min(16));
            let pause = spread(doubled.min(TRANSIENT_PAUSES.1));
            failure.retry_after().map_or(pause, |asked| asked.clamp(pause, THROTTLED_PAUSES.1))
        }
    }
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
