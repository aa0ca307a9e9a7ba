use std::collections::BTreeMap;

use bearerd_model::{AccessToken, ConnectionId, Exchanges, Freshness, IntegrationId, ProfileName};
use bearerd_oauth::TokenEndpointError;
use proptest::prelude::*;

use super::*;
use crate::TokenCallError;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const LIFE: Duration = Duration::from_mins(30);
/// ServiceNow's: 100 days.
const REFRESH_LIFE: Duration = Duration::from_hours(100 * 24);

fn at(secs: u64) -> UnixTime {
    NOW + Duration::from_secs(secs)
}

fn access(text: &str) -> AccessToken {
    AccessToken::parse(text.to_owned()).unwrap()
}

fn refresh(text: &str) -> RefreshToken {
    RefreshToken::parse(text.to_owned()).unwrap()
}

fn obtained(access_token: &str, expires_in: u64, refresh_token: Option<&str>, sent_at: UnixTime) -> Obtained {
    let response = TokenResponse {
        access_token: access(access_token),
        expires_in: Some(Duration::from_secs(expires_in)),
        refresh_token: refresh_token.map(refresh),
        scope: None,
    };
    Obtained { response, sent_at }
}

fn consented() -> Grant {
    let first = obtained("at-1", LIFE.as_secs(), Some("rt-1"), NOW);
    grant_from(None, TokenCall::NewGrant, first, REFRESH_LIFE)
}

fn refreshed(previous: &Grant, obtained: Obtained) -> Grant {
    grant_from(Some(previous), TokenCall::Refresh, obtained, REFRESH_LIFE)
}

fn connection(grant: Option<Grant>) -> Connection {
    Connection {
        id: ConnectionId::parse("c").unwrap(),
        integration: IntegrationId::parse("i").unwrap(),
        profile: ProfileName::default(),
        labels: BTreeMap::new(),
        expected_user: None,
        user: None,
        lifecycle: Lifecycle::Active { since: NOW },
        frozen: None,
        health: Health::Ok,
        grant,
        exchanges: Exchanges::default(),
        due_at: None,
        created_at: NOW,
        last_used_at: None,
    }
}

fn text(token: Option<&RefreshToken>) -> Option<&str> {
    token.map(RefreshToken::expose)
}

// --- issues ---------------------------------------------------------------------------------------------------------

/// O-38: a new refresh token replaces the old one, no refresh token keeps it, the same one keeps its end.
#[test]
fn a_refresh_token_moves_only_when_another_comes() {
    let first = consented();
    let later = at(86_400);
    for (received, token, previous, expires_at) in [
        (Some("rt-2"), "rt-2", Some("rt-1"), later + REFRESH_LIFE),
        (Some("rt-1"), "rt-1", None, NOW + REFRESH_LIFE),
        (None, "rt-1", None, NOW + REFRESH_LIFE),
    ] {
        let next = refreshed(&first, obtained("at-2", 1_800, received, later));
        assert_eq!(text(next.refresh_token.as_ref()), Some(token), "{received:?}");
        assert_eq!(text(next.previous_refresh_token.as_ref()), previous, "{received:?}");
        assert_eq!(next.refresh_expires_at, Some(expires_at), "{received:?}");
        assert_eq!((next.granted_at, next.refreshed_at), (NOW, later), "{received:?}");
    }
}

/// The previous refresh token is kept until the current one has worked once.
#[test]
fn the_previous_refresh_token_goes_once_the_current_one_has_worked() {
    let rotated = refreshed(&consented(), obtained("at-2", 1_800, Some("rt-2"), at(100)));
    assert_eq!(text(rotated.previous_refresh_token.as_ref()), Some("rt-1"));
    for received in [None, Some("rt-2")] {
        let next = refreshed(&rotated, obtained("at-3", 1_800, received, at(200)));
        assert_eq!(text(next.refresh_token.as_ref()), Some("rt-2"));
        assert!(next.previous_refresh_token.is_none());
    }
    let again = refreshed(&rotated, obtained("at-3", 1_800, Some("rt-3"), at(200)));
    assert_eq!(text(again.previous_refresh_token.as_ref()), Some("rt-2"));
}

/// O-38: 100 days of refreshes every 25 minutes, and the end of the refresh token has not moved.
#[test]
fn the_hundred_day_clock_is_never_moved_by_an_unchanged_refresh_token() {
    let mut grant = consented();
    let ends = grant.refresh_expires_at;
    for step in 1..=5_760_u64 {
        let received = if step % 2 == 0 { Some("rt-1") } else { None };
        grant = refreshed(&grant, obtained(&format!("at-{step}"), 1_799, received, at(step * 1_500)));
        assert_eq!(grant.refresh_expires_at, ends);
    }
    assert!(ends <= Some(grant.refreshed_at));
}

/// A grant that a person gave anew begins a new life, even with the same refresh token; without one it has none.
#[test]
fn a_new_grant_stands_on_its_own() {
    let first = consented();
    let again = |refresh_token| {
        let new = obtained("at-1", 1_800, refresh_token, at(500));
        grant_from(Some(&first), TokenCall::NewGrant, new, REFRESH_LIFE)
    };
    let same = again(Some("rt-1"));
    assert_eq!((same.generation, same.granted_at), (first.generation, at(500)));
    assert_eq!(same.refresh_expires_at, Some(at(500) + REFRESH_LIFE));
    let without = again(None);
    assert!(without.refresh_token.is_none() && without.refresh_expires_at.is_none());
}

/// The same access token keeps its generation and its margins; its end is what the answer says.
#[test]
fn the_same_access_token_is_the_same_generation() {
    let first = consented();
    for (name, sent_at, expires_in, lifetime) in [
        ("what is left", at(1_600), 200, LIFE),
        ("what is left, rounded down", at(1_600), 199, LIFE),
        ("a second more than is left", at(1_600), 201, LIFE),
        ("renewed", at(1_600), 1_800, LIFE),
        ("renewed to another life", at(1_600), 900, Duration::from_mins(15)),
        ("nothing left", at(1_799), 0, LIFE),
    ] {
        let next = refreshed(&first, obtained("at-1", expires_in, Some("rt-1"), sent_at));
        assert_eq!(next.generation, first.generation, "{name}");
        assert_eq!(next.access_expires_at, sent_at + Duration::from_secs(expires_in), "{name}");
        assert_eq!(next.access_lifetime, lifetime, "{name}");
    }
    // Two minutes left of half an hour: inside the margin of the life it was issued with, not fresh for two minutes.
    let left = refreshed(&first, obtained("at-1", 120, None, at(1_680)));
    assert_eq!(left.freshness(at(1_680)), Freshness::RefreshSoon);
    assert_eq!(left.usable_until(), at(1_795));
}

/// O-36: a missing life is a default, not infinity.
#[test]
fn a_missing_life_is_half_an_hour() {
    let mut answer = obtained("at-2", 0, None, at(10));
    answer.response.expires_in = None;
    assert_eq!(refreshed(&consented(), answer).access_expires_at, at(10) + LIFE);
}

#[test]
fn the_scope_of_the_last_answer_that_named_one_stays() {
    let mut answer = obtained("at-1", 1_800, None, NOW);
    answer.response.scope = Some("useraccount".to_owned());
    let first = grant_from(None, TokenCall::NewGrant, answer, REFRESH_LIFE);
    let next = refreshed(&first, obtained("at-2", 1_800, None, at(1)));
    assert_eq!(next.scope.as_deref(), Some("useraccount"));
}

proptest! {
    /// I-3: over any run of answers the generation grows by one with each different token, and never otherwise.
    #[test]
    fn the_generation_counts_different_tokens(tokens in proptest::collection::vec(0_u8..4, 1..40)) {
        let mut grant = consented();
        let (mut held, mut different) = ("at-1".to_owned(), 1);
        for (step, token) in (1..).zip(tokens) {
            let token = format!("at-{token}");
            different += u64::from(token != held);
            grant = refreshed(&grant, obtained(&token, 1_800, None, at(step)));
            held = token;
            prop_assert_eq!(grant.generation, Generation(different));
            prop_assert_eq!(grant.granted_at, NOW);
            prop_assert_eq!(text(grant.refresh_token.as_ref()), Some("rt-1"));
        }
    }

    /// Expiry is the time the request was sent plus `expires_in`, for every token; margins never outlast the life.
    #[test]
    fn expiry_counts_from_the_sending(same in any::<bool>(), expires_in in 0_u64..4_000, sent in 0_u64..4_000) {
        let answer = obtained(if same { "at-1" } else { "at-2" }, expires_in, None, at(sent));
        let next = refreshed(&consented(), answer);
        prop_assert_eq!(next.access_expires_at, at(sent + expires_in));
        prop_assert!(next.access_lifetime >= Duration::from_secs(expires_in));
        // A server that will not renew is asked again after its token's end, if little is left of it.
        prop_assert!(next.refresh_at() <= next.usable_until() || same || expires_in < 2);
        prop_assert!(next.usable_until() <= next.access_expires_at);
    }
}

// --- failures -------------------------------------------------------------------------------------------------------

fn denied() -> RefreshFailure {
    TokenEndpointError::Denied.into()
}

fn refused() -> RefreshFailure {
    TokenEndpointError::GrantRefused.into()
}

fn throttled(retry_after: Option<u64>) -> RefreshFailure {
    TokenEndpointError::Throttled { retry_after: retry_after.map(Duration::from_secs) }.into()
}

fn down(retry_after: Option<u64>) -> RefreshFailure {
    TokenEndpointError::Unavailable { status: 503, retry_after: retry_after.map(Duration::from_secs) }.into()
}

fn passing() -> Vec<RefreshFailure> {
    vec![
        TokenEndpointError::ClientRefused { code: "invalid_client" }.into(),
        TokenEndpointError::RequestRefused { code: "invalid_scope" }.into(),
        TokenEndpointError::Asleep { status: 200 }.into(),
        TokenEndpointError::Malformed { fault: "" }.into(),
        down(None),
        throttled(None),
        TokenCallError::NotSent { reason: String::new() }.into(),
        TokenCallError::NoReply { reason: String::new() }.into(),
        TokenCallError::Misconfigured(String::new()).into(),
    ]
}

fn cause(connection: &Connection) -> Option<DeathCause> {
    match connection.lifecycle {
        Lifecycle::ReauthorizationRequired { cause, .. } => Some(cause),
        _ => None,
    }
}

fn failing(connection: &Connection) -> (UnixTime, u32, u32) {
    match connection.health {
        Health::Failing { since, failures, strikes, .. } => (since, failures, strikes),
        Health::Ok => panic!("it is healthy"),
    }
}

/// I-6: what says nothing about the grant never ends it, however often, and past the refresh token's end too.
#[test]
fn a_fault_that_is_not_the_grants_never_kills() {
    for failure in passing() {
        let mut connection = connection(Some(consented()));
        for step in 0..1_000 {
            record_failure(&mut connection, &failure, false, at(step) + REFRESH_LIFE);
        }
        assert_eq!(connection.lifecycle, Lifecycle::Active { since: NOW }, "{failure}");
        assert_eq!(failing(&connection), (NOW + REFRESH_LIFE, 1_000, 0), "{failure}");
    }
}

#[test]
fn the_grant_dies_of_what_ends_it() {
    let ended = NOW + REFRESH_LIFE;
    for (failure, strikes_before, now, expected) in [
        (refused(), 0, at(1), Some(DeathCause::GrantRefused)),
        (refused(), 0, ended, Some(DeathCause::GrantRefused)),
        (denied(), 0, at(1), None),
        (denied(), 3, at(1), None),
        (denied(), 4, at(1), Some(DeathCause::GrantRefused)),
        (denied(), 0, ended - Duration::from_millis(1), None),
        (denied(), 0, ended, Some(DeathCause::RefreshTokenExpired)),
        (RefreshFailure::NoRefreshToken, 0, at(1), Some(DeathCause::NoRefreshToken)),
    ] {
        let mut connection = connection(Some(consented()));
        for _ in 0..strikes_before {
            record_failure(&mut connection, &denied(), false, at(1));
        }
        record_failure(&mut connection, &failure, false, now);
        assert_eq!(cause(&connection), expected, "{failure} after {strikes_before} at {now:?}");
    }
}

/// Without a person's grant there is nothing that a person could renew: refused client credentials are a fault of the
/// integration.
#[test]
fn client_credentials_do_not_die() {
    let without_refresh = Grant { refresh_token: None, refresh_expires_at: None, ..consented() };
    for grant in [None, Some(without_refresh)] {
        let mut connection = connection(grant);
        for _ in 0..10 {
            record_failure(&mut connection, &denied(), false, at(1));
            record_failure(&mut connection, &refused(), false, at(1));
        }
        assert_eq!((cause(&connection), failing(&connection).1), (None, 20));
    }
}

/// O-21: tokens that nobody has vouched for leave nothing behind that the next consent could lean on.
#[test]
fn a_grant_that_awaits_confirmation_dies_back_to_awaiting_consent() {
    let mut connection = connection(Some(consented()));
    connection.lifecycle = Lifecycle::AwaitingConfirmation { since: NOW };
    record_failure(&mut connection, &denied(), false, at(1));
    assert_eq!(connection.lifecycle, Lifecycle::AwaitingConfirmation { since: NOW });
    record_failure(&mut connection, &refused(), false, at(2));
    assert_eq!(connection.lifecycle, Lifecycle::AwaitingConsent { since: at(2) });
}

#[test]
fn death_is_told_with_its_first_cause_and_time() {
    let mut connection = connection(Some(consented()));
    record_failure(&mut connection, &refused(), false, at(1));
    record_failure(&mut connection, &RefreshFailure::NoRefreshToken, false, at(9));
    let expected = Lifecycle::ReauthorizationRequired { since: at(1), cause: DeathCause::GrantRefused };
    assert_eq!(connection.lifecycle, expected);
}

/// An answer ends the row: strikes do not add up over months.
#[test]
fn an_issue_heals() {
    let mut connection = connection(Some(consented()));
    for _ in 0..4 {
        record_failure(&mut connection, &denied(), false, at(1));
    }
    record_issue(&mut connection, consented(), Epoch(1), at(2));
    assert_eq!(connection.health, Health::Ok);
    record_failure(&mut connection, &denied(), false, at(3));
    assert_eq!((cause(&connection), failing(&connection)), (None, (at(3), 1, 1)));
    record_failure(&mut connection, &refused(), false, at(4));
    record_issue(&mut connection, consented(), Epoch(2), at(5));
    assert_eq!(connection.lifecycle, Lifecycle::Active { since: at(5) });
}

#[test]
fn each_failure_has_its_pause() {
    let client = || RefreshFailure::from(TokenEndpointError::ClientRefused { code: "invalid_client" });
    for (failure, failures, strikes, jitter, expected_ms) in [
        (denied(), 1, 1, 0.5, 1_000),
        (denied(), 2, 2, 0.5, 10_000),
        (denied(), 3, 3, 0.5, 30_000),
        (denied(), 4, 4, 0.5, 60_000),
        (denied(), 9, 9, 0.5, 60_000),
        (denied(), 0, 0, 0.5, 1_000),
        (down(None), 1, 0, 1.0, 1_000),
        (down(None), 1, 0, 0.0, 500),
        (down(None), 2, 0, 1.0, 2_000),
        (down(None), 5, 0, 1.0, 16_000),
        (down(None), 6, 0, 1.0, 20_000),
        (down(None), u32::MAX, 0, 1.0, 20_000),
        (down(Some(7)), 1, 0, 1.0, 7_000),
        (down(Some(0)), 1, 0, 1.0, 1_000),
        (down(Some(u64::MAX)), 1, 0, 1.0, 600_000),
        (throttled(None), 1, 0, 0.5, 30_000),
        (throttled(Some(0)), 1, 0, 0.5, 1_000),
        (throttled(Some(45)), 1, 0, 0.5, 45_000),
        (throttled(Some(u64::MAX)), 1, 0, 0.5, 600_000),
        (client(), 1, 0, 0.0, 30_000),
        (client(), 1, 0, 1.0, 60_000),
        (refused(), 1, 0, 0.5, 60_000),
    ] {
        let pause = pause_after_failure(&failure, false, failures, strikes, jitter);
        assert_eq!(pause.as_millis(), expected_ms, "{failure} {failures} {strikes} {jitter}");
    }
}

proptest! {
    /// Every pause is at least half a second and at most ten minutes, whatever a server asks for; a fault that passes
    /// is over within 30 s (I-14).
    #[test]
    fn pauses_after_failures_are_bounded(
        at in 0_usize..12, failures in any::<u32>(), strikes in any::<u32>(),
        jitter in proptest::num::f64::ANY, asked in proptest::option::of(any::<u64>()),
    ) {
        let mut all = passing();
        all.extend([denied(), refused(), RefreshFailure::NoRefreshToken]);
        let asking = [throttled(asked), down(asked)];
        for failure in asking.iter().chain([&all[at]]) {
            let jitter = if jitter.is_nan() { 0.0 } else { jitter };
            let pause = pause_after_failure(failure, false, failures, strikes, jitter);
            prop_assert!(pause >= Duration::from_millis(500), "{failure}: {pause:?}");
            prop_assert!(pause <= Duration::from_mins(10), "{failure}: {pause:?}");
            if failure.verdict(false) == Verdict::Transient && asked.is_none() {
                prop_assert!(pause <= Duration::from_secs(30), "{failure}: {pause:?}");
            }
        }
    }

    /// However failures mix, strikes count refusals only, and only refusals kill.
    #[test]
    fn only_refusals_of_the_grant_kill(run in proptest::collection::vec(0_usize..10, 0..60)) {
        let others = passing();
        let mut connection = connection(Some(consented()));
        let mut strikes = 0;
        for step in run {
            let failure = others.get(step);
            strikes += u32::from(failure.is_none());
            record_failure(&mut connection, failure.unwrap_or(&denied()), false, at(1));
            prop_assert_eq!(failing(&connection).2, strikes);
            prop_assert_eq!(cause(&connection).is_some(), strikes >= 5);
        }
    }
}

// --- compare-and-swap -----------------------------------------------------------------------------------------------
