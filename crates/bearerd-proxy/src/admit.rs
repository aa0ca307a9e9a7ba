//! May this call go out, and with which token? Nothing here waits: where memory has no answer, the call waits and
//! asks again, so that what was true before the wait is checked anew after it.

use std::sync::Arc;

use bearerd_model::{ConnectionId, DeathCause, UnixTime};
use bearerd_policy::{
    Call, ConnectionFacts, Decision, DenyReason, KeyRefusal, Method, PresentedKey, SharedSnapshot, Snapshot,
    Sole,
};
use bearerd_tokens::{AccessTokens, ConnectionView, LendError, LentToken, Standing};
use http::HeaderMap;

use crate::{
    error::{Code, Fault},
    route::{Route, Target},
    settings::Limits,
};

/// What a call asks for, as far as policy cares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The caller key as presented, whatever it is.
    pub(crate) key: &'a [u8],
    /// The connection, if header or path name one.
    pub(crate) named: Option<&'a str>,
    pub(crate) target: Target<'a>,
    pub(crate) method: Method,
}

/// What earlier waits of the same call brought.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The answer to [`Step::FindSole`].
    pub(crate) only: Only,
    /// The answer to [`Step::Load`].
    pub(crate) view: Option<Arc<ConnectionView>>,
}

/// The only connection that exists.
#[derive(Debug, Default)]
pub(crate) enum Only {
    #[default]
    Unasked,
    /// There is none, or there are several.
    None,
    One(ConnectionId),
}

#[derive(Debug)]
pub(crate) enum Step {
    /// The call may go out with this token.
    Go(Arc<ConnectionView>, LentToken),
    /// It may, once there is a usable token.
    Acquire(Arc<ConnectionView>),
    /// The connection is not in memory.
    Load(ConnectionId),
    /// The call names no connection, and the only one that exists is meant.
    FindSole,
}

/// Key, then connection, then policy, then the connection's standing: one who may not see a connection does not
/// learn how it stands.
pub(crate) fn step(
    limits: &Limits,
    shared: &SharedSnapshot,
    snapshot: &Snapshot,
    tokens: &dyn AccessTokens,
    asked: Asked<'_>,
    known: &Known,
    now: UnixTime,
) -> Result<Step, Fault> {
    if !shared.is_usable(limits.stale_keys_max, now) {
        let detail = "Caller keys cannot be confirmed: the store does not answer.";
        return Err(Fault::new(Code::TokenUnavailable).detail(detail));
    }
    let presented = PresentedKey::parse(asked.key).map_err(|_| Fault::new(Code::CallerKeyInvalid))?;
    let key = snapshot.authenticate(&presented, now).map_err(|refusal| match refusal {
        KeyRefusal::Invalid => Fault::new(Code::CallerKeyInvalid),
        KeyRefusal::Expired => Fault::new(Code::CallerKeyExpired),
    })?;
    let call = match asked.target {
        Target::Table { table, sys_id } => Call {
            family: "table",
            table: Some(table),
            item: sys_id.is_some(),
            method: asked.method,
            source: None,
            now,
        },
        Target::Closed { family } => {
            let detail = format!("No rule opens the family {family}; only table is open.");
            return Err(Fault::new(Code::PolicyDenied).detail(detail));
        }
    };
    let id = match (asked.named, key.default_connection()) {
        (Some(named), _) => ConnectionId::parse(named).map_err(|_| unknown())?,
        (None, Some(id)) => id.clone(),
        (None, None) => match (key.sole_connection(), &known.only) {
            (Sole::Named(id), _) | (Sole::AnyIfOnlyOne, Only::One(id)) => id.clone(),
            (Sole::AnyIfOnlyOne, Only::Unasked) => return Ok(Step::FindSole),
            (Sole::None, _) if !key.has_rules() => return Err(denied(&DenyReason::NoPolicy)),
            (Sole::None | Sole::AnyIfOnlyOne, _) => return Err(unnamed()),
        },
    };
    if !key.may_open(&id) {
        return Err(unknown());
    }
    let loaded = known.view.as_ref().filter(|view| view.id == id).cloned();
    let Some(view) = loaded.or_else(|| tokens.peek(&id)) else { return Ok(Step::Load(id)) };
    let facts = ConnectionFacts { id: &view.id, labels: &view.labels, instance: &view.upstream.instance };
    match key.decide(facts, &call) {
        Decision::Allow(opened) if opened.records.is_none() => key.mark_used(now),
        Decision::Allow(_) => {
            return Err(Fault::new(Code::PolicyDenied).detail("Record rules are not applied at this door."));
        }
        Decision::Deny(reason) if reason.hides_connection() => return Err(unknown()),
        Decision::Deny(reason) => return Err(denied(&reason)),
    }
    match &view.standing {
        Standing::Closed(error) => Err(not_lent(error)),
        Standing::Ready(token) if now < token.usable_until => {
            let token = token.clone();
            view.last_use.mark(now);
            Ok(Step::Go(view, token))
        }
        Standing::Ready(_) | Standing::NeedsToken => Ok(Step::Acquire(view)),
    }
}

/// The connection that a call names, by its path or by `Connection-Id`.
pub(crate) fn named_connection<'a>(
    route: &Route<'a>,
    headers: &'a HeaderMap,
) -> Result<Option<&'a str>, Fault> {
    let mut named = route.connection;
    for value in headers.get_all("connection-id") {
        // What is no text is no id, and so names a connection that nobody has.
        let value = value.to_str().map_err(|_| unknown())?;
        if named.is_some_and(|earlier| earlier != value) {
            return Err(Fault::malformed("The call names two different connections."));
        }
        named = Some(value);
    }
    Ok(named)
}

/// Why a connection lends no token, to one who may use it.
pub(crate) fn not_lent(error: &LendError) -> Fault {
    match error {
        LendError::Unknown => unknown(),
        LendError::Pending => Fault::new(Code::ConnectionPending),
        LendError::Frozen => Fault::new(Code::ConnectionFrozen),
        LendError::ReauthorizationRequired { since, cause } => {
            let cause = match cause {
                DeathCause::GrantRefused => "the instance refused the newest refresh token",
                DeathCause::RefreshTokenExpired => "the refresh token reached the end of its life",
                DeathCause::NoRefreshToken => "the access token ended and there was no refresh token",
                DeathCause::IntegrationChanged => "the integration's client or instance was changed",
            };
            let detail = format!("Since {}: {cause}.", utc(*since));
            Fault::new(Code::ReauthorizationRequired).detail(detail)
        }
        LendError::Unavailable { retry_after, reason } => {
            let secs = retry_after.as_millis().div_ceil(1_000).clamp(1, 3_600);
            let secs = u64::try_from(secs).unwrap_or(1);
            Fault::new(Code::TokenUnavailable).detail(*reason).retry_after(secs)
        }
    }
}

/// The connection that was judged is not, or not quite, the one that lent the token: the next call is judged anew.
pub(crate) fn changed_meanwhile() -> Fault {
    Fault::new(Code::TokenUnavailable).detail("The connection was changed meanwhile.").retry_after(1)
}

/// Says nothing that differs between a connection that does not exist and one that the key may not use (S-16).
fn unknown() -> Fault {
    Fault::new(Code::ConnectionUnknown)
}

fn unnamed() -> Fault {
    Fault::new(Code::RequestMalformed)
        .detail("The call names no connection and the key opens several: send the header Connection-Id.")
}

fn denied(reason: &DenyReason<'_>) -> Fault {
    Fault::new(Code::PolicyDenied).detail(format!("{reason}."))
}

fn utc(time: UnixTime) -> String {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(secs).map_or_else(|_| "long ago".to_owned(), |time| time.to_string())
}
