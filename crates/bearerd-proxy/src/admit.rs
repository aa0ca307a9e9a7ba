//! May this call go out, and with which token? Nothing here waits: where memory has no answer, the call waits and
//! asks again, so that what was true before the wait is checked anew after it.

use std::{net::IpAddr, sync::Arc};

use bearerd_audit::Text;
use bearerd_model::{CallerKeyId, ConnectionId, DeathCause, PolicyId, UnixTime};
use bearerd_policy::{
    Call, CompiledKey, ConnectionFacts, Decision, DenyReason, KeyRefusal, LimitRefusal, Method, Opened,
    PresentedKey, SharedSnapshot, Snapshot, Sole,
};
use bearerd_tokens::{AccessTokens, ConnectionView, LendError, LentToken, Roster, Standing};
use http::HeaderMap;

use crate::{
    error::{Code, Fault},
    names,
    route::Route,
    settings::Limits,
    under_way::UnderWay,
};

/// What a call asks for, as far as policy cares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The caller key as presented, whatever it is.
    pub(crate) key: &'a [u8],
    /// The connection, if header or path name one.
    pub(crate) named: Option<&'a str>,
    pub(crate) route: &'a Route<'a>,
    /// The family as policies name it.
    pub(crate) family: &'a str,
    pub(crate) method: Method,
    pub(crate) query: Option<&'a str>,
    /// Where the call comes from, as far as that is known.
    pub(crate) source: Option<IpAddr>,
}

/// A call that policy has let through.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) key: CallerKeyId,
    pub(crate) view: Arc<ConnectionView>,
    /// What a record rule made of the caller's query.
    pub(crate) query: Option<String>,
}

/// What earlier waits of the same call brought.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The answer to [`Step::Enumerate`]; what memory has by now comes first.
    pub(crate) roster: Option<Roster>,
    /// The answer to [`Step::Load`]; what memory has by now comes first.
    pub(crate) view: Option<Arc<ConnectionView>>,
    /// The answer to [`Step::Acquire`].
    pub(crate) acquired: Option<LentToken>,
}

#[derive(Debug)]
pub(crate) enum Step {
    /// The call may go out with this token.
    Go(Opening, LentToken),
    /// It may, once there is a usable token.
    Acquire(Opening),
    /// The connection is not in memory.
    Load(ConnectionId),
    /// The call names no connection, the key's rules may select one, and memory does not know which there are.
    Enumerate,
}

/// What decides: what is in memory at this moment.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) shared: &'a SharedSnapshot,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) tokens: &'a dyn AccessTokens,
    pub(crate) now: UnixTime,
}

/// Key, then connection, then policy, then the connection's standing: one who may not see a connection does not
/// learn how it stands. What is decided is noted in `under_way`.
pub(crate) fn step(
    memory: Memory<'_>,
    asked: Asked<'_>,
    known: &Known,
    under_way: &mut UnderWay,
) -> Result<Step, Fault> {
    let (tokens, now) = (memory.tokens, memory.now);
    let key = authenticate(memory, asked.key, under_way)?;
    let id = match (asked.named, key.default_connection()) {
        (Some(named), _) => ConnectionId::parse(named).map_err(|_| unknown())?,
        (None, Some(id)) => id.clone(),
        (None, None) => match key.sole_connection() {
            Sole::Named(id) => id.clone(),
            Sole::Selected => match tokens.roster().or_else(|| known.roster.clone()) {
                None => return Ok(Step::Enumerate),
                Some(Roster::Few(connections)) => {
                    let connections = connections.iter().map(|(id, labels)| (id, labels));
                    key.sole_of(connections).cloned().ok_or_else(unnamed)?
                }
                Some(Roster::TooMany) => return Err(unnamed()),
            },
            Sole::None if !key.has_rules() => return Err(denied(DenyReason::NoPolicy)),
            Sole::None => return Err(unnamed()),
        },
    };
    if !key.may_open(&id) {
        return Err(unknown());
    }
    let loaded = || known.view.as_ref().filter(|view| view.id == id).cloned();
    let Some(view) = tokens.peek(&id).or_else(loaded) else { return Ok(Step::Load(id)) };
    let query = open(key, &view, asked, now, under_way)?;
    key.mark_used(now);
    let ready = match &view.standing {
        Standing::Closed(error) => return Err(not_lent(error)),
        Standing::Ready(token) if now < token.usable_until => Some(token.clone()),
        // Another upstream: another connection under the same id, and nobody has asked for that one.
        Standing::Ready(_) | Standing::NeedsToken => match &known.acquired {
            Some(token) if !Arc::ptr_eq(&token.upstream, &view.upstream) => return Err(changed_meanwhile()),
            acquired => acquired.clone(),
        },
    };
    let opening = Opening { key: key.id().clone(), view, query };
    Ok(match ready {
        Some(token) => {
            opening.view.last_use.mark(now);
            Step::Go(opening, token)
        }
        None => Step::Acquire(opening),
    })
}

/// Whose key it is.
pub(crate) fn authenticate<'a>(
    memory: Memory<'a>,
    key: &[u8],
    under_way: &mut UnderWay,
) -> Result<&'a CompiledKey, Fault> {
    if !memory.shared.is_usable(memory.limits.stale_keys_max, memory.now) {
        let detail = "Caller keys cannot be confirmed: the store does not answer.";
        return Err(Fault::new(Code::TokenUnavailable).detail(detail));
    }
    let presented = PresentedKey::parse(key).map_err(|_| Fault::new(Code::CallerKeyInvalid))?;
    under_way.record().caller_key = Text::new(presented.id());
    memory.snapshot.authenticate(&presented, memory.now).map_err(|refusal| match refusal {
        KeyRefusal::Invalid => Fault::new(Code::CallerKeyInvalid),
        KeyRefusal::Expired => Fault::new(Code::CallerKeyExpired),
    })
}

/// Asks the policies; gives the query, where a record rule makes one. The call counts against the limits of the policy
/// that opens it from its first "yes" on.
fn open(
    key: &CompiledKey,
    view: &ConnectionView,
    asked: Asked<'_>,
    now: UnixTime,
    under_way: &mut UnderWay,
) -> Result<Option<String>, Fault> {
    let facts = ConnectionFacts { id: &view.id, labels: &view.labels, instance: &view.upstream.instance };
    let call = Call {
        family: asked.family,
        table: asked.route.table,
        item: asked.route.item,
        method: asked.method,
        source: asked.source,
        now,
    };
    under_way.record().connection = Text::new(view.id.as_str());
    let Opened { policy, rule, records, limits } = match key.decide(facts, &call) {
        Decision::Allow(opened) => opened,
        Decision::Deny(reason) if reason.hides_connection() => return Err(unknown()),
        Decision::Deny(reason) => {
            if let Some((policy, rule)) = reason.rule() {
                note_rule(under_way, policy, rule);
            }
            return Err(denied(reason));
        }
    };
    note_rule(under_way, policy, rule);
    under_way.decided();
    let query = match records {
        None => None,
        Some(records) => Some(records.rewrite(asked.query).map_err(|refused| {
            let said = format!("Rule {rule} of policy {policy} opens some records only. {refused}.");
            Fault::new(Code::PolicyDenied).detail(said)
        })?),
    };
    if under_way.in_flight().is_none() {
        *under_way.in_flight() = Some(limits.admit(now).map_err(limited)?);
    }
    Ok(query)
}

fn note_rule(under_way: &mut UnderWay, policy: &PolicyId, rule: usize) {
    let record = under_way.record();
    record.policy = Text::new(policy.as_str());
    record.rule = u16::try_from(rule).ok();
}

fn limited(refusal: LimitRefusal) -> Fault {
    match refusal {
        LimitRefusal::Rate { retry_after } => {
            let secs = retry_after.as_millis().div_ceil(1_000).max(1);
            Fault::new(Code::CallerRateLimited).retry_after(u64::try_from(secs).unwrap_or(u64::MAX))
        }
        LimitRefusal::Concurrency => Fault::new(Code::CallerConcurrency),
    }
}

/// The connection that a call names, by its path or by `Connection-Id`.
pub(crate) fn named_connection<'a>(
    route: &Route<'a>,
    headers: &'a HeaderMap,
) -> Result<Option<&'a str>, Fault> {
    let mut named = route.connection;
    for value in headers.get_all(&names::CONNECTION_ID) {
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
    Fault::new(Code::TokenUnavailable)
        .detail("The connection or the policy was changed meanwhile.")
        .retry_after(1)
}

/// Says nothing that differs between a connection that does not exist and one that the key may not use (S-16).
fn unknown() -> Fault {
    Fault::new(Code::ConnectionUnknown)
}

fn unnamed() -> Fault {
    Fault::new(Code::RequestMalformed)
        .detail("The call names no connection, and the key does not open exactly one.")
        .fix("Send the header Connection-Id, or call /c/{connection}/api/now/…")
}

fn denied(reason: DenyReason<'_>) -> Fault {
    Fault::new(Code::PolicyDenied).detail(format!("{reason}."))
}

fn utc(time: UnixTime) -> String {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(secs).map_or_else(|_| "long ago".to_owned(), |time| time.to_string())
}
