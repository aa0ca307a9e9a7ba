//! What each outcome of a token call makes of a grant and its connection. Nothing here waits, reads a clock, draws
//! randomness or touches the network: the caller passes times and jitter.

use std::time::Duration;

use bearerd_model::{
    Connection, DeathCause, Generation, Grant, GrantType, Health, Lifecycle, RefreshToken, UnixTime,
};
use bearerd_oauth::{TokenEndpointError, TokenResponse, Verdict};

use crate::TokenCallError;

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

/// The earliest next attempt after an answer: an unchanged token is asked for again after half of its remaining
/// life, at least one second; a new one needs no pause, unless it came too late to be used.
pub(crate) fn pause_after_issue(before: Generation, after: &Grant, now: UnixTime) -> UnixTime {
    if after.generation == before {
        let remaining = after.access_expires_at.since(now);
        return now + (remaining / 2).max(ISSUE_PAUSE_MIN);
    }
    if now < after.usable_until() { now } else { now + ISSUE_PAUSE_MIN }
}

/// Least pause after an answer that brought the same token, or one that has ended already.
const ISSUE_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Puts a refreshed grant into its connection.
pub(crate) fn record_issue(connection: &mut Connection, grant: Grant, now: UnixTime) {
    connection.health = Health::Ok;
    if let Lifecycle::ReauthorizationRequired { .. } = connection.lifecycle {
        connection.lifecycle = Lifecycle::Active { since: now };
    }
    connection.grant = Some(grant);
}

/// Whether a connection's grant can be refreshed at all.
pub(crate) fn can_refresh(connection: &Connection, grant_type: GrantType) -> bool {
    match grant_type {
        GrantType::ClientCredentials => true,
        GrantType::AuthorizationCode => {
            connection.grant.as_ref().is_some_and(|grant| grant.refresh_token.is_some())
        }
    }
}

/// Why a refresh brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefreshFailure {
    #[error(transparent)]
    Call(#[from] TokenCallError),
    #[error("the grant came without a refresh token and its access token has ended")]
    NoRefreshToken,
}

impl RefreshFailure {
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Call(TokenCallError::Endpoint(error)) => error.verdict(),
            Self::Call(_) => Verdict::Transient,
            Self::NoRefreshToken => Verdict::GrantDead,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Call(TokenCallError::Endpoint(error)) => error.retry_after(),
            _ => None,
        }
    }

    /// The metric's label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self.verdict() {
            Verdict::GrantDead => "grant_refused",
            Verdict::Suspect => "denied",
            Verdict::ClientRefused => "client_refused",
            Verdict::Throttled => "throttled",
            Verdict::Transient => match self {
                Self::Call(TokenCallError::NoReply { .. }) => "uncertain",
                _ => "transient",
            },
        }
    }
}

/// Puts a failure into its connection: health always, lifecycle only where the *newest* refresh token was refused
/// for good, or is missing. The caller has checked that the refused token is still the stored one (I-6). A connection
/// without a refresh token lives by client credentials: a refusal says nothing about a grant, since there is none
/// that a person could renew.
pub(crate) fn record_failure(connection: &mut Connection, failure: &RefreshFailure, now: UnixTime) {
    let (since, failures, strikes) = match connection.health {
        Health::Ok => (now, 0, 0),
        Health::Failing { since, failures, strikes, .. } => (since, failures, strikes),
    };
    let verdict = failure.verdict();
    let strikes = if verdict == Verdict::Suspect { strikes.saturating_add(1) } else { strikes };
    connection.health =
        Health::Failing { since, failures: failures.saturating_add(1), strikes, reason: failure.to_string() };
    let Some(cause) = death_cause(connection, failure, strikes, now) else { return };
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
    strikes: u32,
    now: UnixTime,
) -> Option<DeathCause> {
    if matches!(failure, RefreshFailure::NoRefreshToken) {
        return Some(DeathCause::NoRefreshToken);
    }
    let grant = connection.grant.as_ref().filter(|grant| grant.refresh_token.is_some())?;
    let refresh_ended = grant.refresh_expires_at.is_some_and(|ends| ends <= now);
    match failure.verdict() {
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
/// Backoff of passing faults: doubles from the first to the second of these. A token is fresh at most the second
/// after the fault has passed (I-14).
const TRANSIENT_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Pause after the grant was refused for good, where that could not be written down.
const GRANT_DEAD_PAUSE: Duration = Duration::from_mins(1);
/// Pause after our client was refused: an operator has to act.
const CLIENT_REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a 429 that names none, and the longest that is obeyed.
const THROTTLED_PAUSES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// How long to leave the token endpoint alone after the `failures`-th failure in a row. `jitter` is 0 to 1.
pub(crate) fn pause_after_failure(
    failure: &RefreshFailure,
    failures: u32,
    strikes: u32,
    jitter: f64,
) -> Duration {
    let spread = |pause: Duration| pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    match failure.verdict() {
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

/// Which grant a refresh began from, if any; its result may only replace that.
#[derive(Debug, Clone)]
pub(crate) struct Base(Option<BaseGrant>);

#[derive(Debug, Clone)]
struct BaseGrant {
    generation: Generation,
    refresh_token: Option<RefreshToken>,
    /// Tells two grants with the same tokens apart.
    granted_at: UnixTime,
}

impl Base {
    pub(crate) fn of(connection: &Connection) -> Self {
        Self(connection.grant.as_ref().map(BaseGrant::of))
    }

    pub(crate) fn of_grant(grant: &Grant) -> Self {
        Self(Some(BaseGrant::of(grant)))
    }

    /// Whether `stored` still holds the grant that the refresh began from.
    pub(crate) fn is_current_in(&self, stored: &Connection) -> bool {
        match (&self.0, &stored.grant) {
            (None, None) => true,
            (Some(base), Some(grant)) => {
                grant.generation == base.generation
                    && grant.granted_at == base.granted_at
                    && same(base.refresh_token.as_ref(), grant.refresh_token.as_ref())
            }
            _ => false,
        }
    }
}

impl BaseGrant {
    fn of(grant: &Grant) -> Self {
        Self {
            generation: grant.generation,
            refresh_token: grant.refresh_token.clone(),
            granted_at: grant.granted_at,
        }
    }
}

/// Whether `stored` already holds `grant`: an earlier write of ours whose outcome was not known.
pub(crate) fn holds(stored: &Connection, grant: &Grant) -> bool {
    stored.grant.as_ref().is_some_and(|held| {
        held.generation == grant.generation
            && held.access_token.matches(&grant.access_token)
            && held.access_expires_at == grant.access_expires_at
            && same(held.refresh_token.as_ref(), grant.refresh_token.as_ref())
    })
}

fn same(one: Option<&RefreshToken>, other: Option<&RefreshToken>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.matches(other),
        _ => false,
    }
}

/// For the token endpoint's own errors.
impl From<TokenEndpointError> for RefreshFailure {
    fn from(error: TokenEndpointError) -> Self {
        Self::Call(TokenCallError::Endpoint(error))
    }
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
