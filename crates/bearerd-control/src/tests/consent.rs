//! The clauses of `reference/security.md` §2 that control decides, by their ids.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bearerd_model::{ConsentFlow, ConsentOutcome, ConsentResult, Lifecycle, Provider, SecretText};
use bearerd_store::Kind;
use bearerd_tokens::LendError;

use crate::{
    Callback, ConnectionChange, ConnectionSpec, ConsentFault, IntegrationSpec,
    testing::{
        Instance, PUBLIC_URL, Point, World, callback, connection_id, connection_spec, eventually,
        integration_id, operator, parameters, spec, text,
    },
};

fn failure_code(result: &ConsentResult) -> &str {
    match result {
        ConsentResult::Failed { code, .. } => code,
        ConsentResult::Connected { .. } => "connected",
    }
}

fn awaits_confirmation(result: &ConsentResult) -> bool {
    match result {
        ConsentResult::Connected { awaits_confirmation, .. } => *awaits_confirmation,
        ConsentResult::Failed { code, .. } => panic!("{code}"),
    }
}

/// A callback that `change` makes hostile is refused: no token call, no grant, and the flow is burnt.
async fn check_refused(
    name: &str,
    world: &World,
    change: impl FnOnce(&mut Callback),
    expected: ConsentFault,
    burnt: bool,
) {
    let begun = world.begin(&world.link("c").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let mut hostile = callback(&begun, Some(&code));
    change(&mut hostile);
    let before = world.instance.count();
    assert_eq!(world.control.finish_consent(hostile).await.unwrap_err(), expected, "{name}");
    assert_eq!(world.instance.count(), before, "{name}: no token call");
    assert!(world.stored("c").await.grant.is_none(), "{name}: no grant");
    let after = world.control.finish_consent(callback(&begun, Some(&code))).await;
    if burnt {
        assert_eq!(after.unwrap_err(), ConsentFault::StateInvalid, "{name}: burnt");
        assert_eq!(world.instance.count(), before, "{name}: no token call");
    } else {
        assert_eq!(failure_code(&after.unwrap().result), "connected", "{name}: not burnt");
    }
}

/// O-02, O-03, O-04, O-13: the browser that finishes is the one that began.
#[tokio::test]
async fn o_02_03_04_a_state_counts_in_its_own_browser_only() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let other = world.begin(&world.link("c").await).await;
    let other = (other.cookie_name, other.cookie_value);
    let fault = ConsentFault::OtherBrowser;
    check_refused("no cookie", &world, |callback| callback.cookies.clear(), fault.clone(), true).await;
    check_refused(
        "another flow's",
        &world,
        |callback| callback.cookies = vec![other.clone()],
        fault.clone(),
        true,
    )
    .await;
    let renamed = |callback: &mut Callback| callback.cookies[0].1 = other.1.clone();
    check_refused("another flow's, renamed", &world, renamed, fault.clone(), true).await;
    let one = |callback: &mut Callback| callback.cookies[0].1 = text("1");
    check_refused("1", &world, one, fault.clone(), true).await;
    let cut = |callback: &mut Callback| {
        let whole = callback.cookies[0].1.expose().to_owned();
        callback.cookies[0].1 = text(&whole[..whole.len() - 1]);
    };
    check_refused("truncated", &world, cut, fault.clone(), true).await;
    let longer = |callback: &mut Callback| {
        callback.cookies[0].1 = text(&format!("{}0", callback.cookies[0].1.expose()));
    };
    check_refused("lengthened", &world, longer, fault.clone(), true).await;
    let upper = |callback: &mut Callback| {
        callback.cookies[0].1 = text(&callback.cookies[0].1.expose().to_ascii_uppercase());
    };
    check_refused("upper case", &world, upper, fault, true).await;
}

/// A cookie that someone else planted beside ours does not shut the owner out.
#[tokio::test]
async fn o_03_a_planted_cookie_of_the_same_name_does_no_harm() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", None).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let mut callback = callback(&begun, Some(&code));
    callback.cookies.insert(0, (begun.cookie_name.clone(), text("planted")));
    let outcome = world.control.finish_consent(callback).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connected");
}

/// O-01, O-04, O-09: what leaves is random and means nothing; what is kept is a hash.
#[tokio::test]
async fn o_01_state_and_cookie_are_random_and_kept_as_hashes() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let begun = world.begin(&world.link("c").await).await;
        let state = parameters(&begun.authorization_url)["state"].clone();
        for value in [state, begun.cookie_value.expose().to_owned()] {
            assert!(value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
            assert!(seen.insert(value));
        }
        assert!(seen.insert(begun.cookie_name));
    }
    let flows = world.store.list::<ConsentFlow>(None, 100).await.unwrap().records;
    assert!(flows.iter().all(|flow| !seen.contains(&flow.record.state_hash)));
}

/// O-06, I-13: a state is used once, however many callbacks bring it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_06_fifty_parallel_callbacks_make_one_exchange() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", Some("abel")).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let (other, _tokens) = world.another_process().await;
    let all: Vec<_> = (0..50)
        .map(|number| {
            let control = if number % 2 == 0 { world.control.clone() } else { other.clone() };
            let callback = callback(&begun, Some(&code));
            tokio::spawn(async move { control.finish_consent(callback).await })
        })
        .collect();
    let mut connected = 0;
    for one in all {
        match one.await.unwrap() {
            Ok(outcome) => {
                assert_eq!(failure_code(&outcome.result), "connected");
                connected += 1;
            }
            Err(fault) => assert_eq!(fault, ConsentFault::StateInvalid),
        }
    }
    assert_eq!((connected, world.instance.count()), (1, 1));
    let again = world.control.finish_consent(callback(&begun, Some(&code))).await;
    assert_eq!(again.unwrap_err(), ConsentFault::StateInvalid);
    assert_eq!(world.lent_to("c").await.as_deref(), Some("abel"));
}

/// O-07: an error burns the state like a code.
#[tokio::test]
async fn o_07_an_error_burns_the_state() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", None).await).await;
    let denied = Callback { error: Some("access_denied".to_owned()), ..callback(&begun, None) };
    let outcome = world.control.finish_consent(denied).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "consent_denied");
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let after = world.control.finish_consent(callback(&begun, Some(&code))).await;
    assert_eq!(after.unwrap_err(), ConsentFault::StateInvalid);
    assert_eq!(world.instance.count(), 0);
}

/// O-08: ten minutes, then nothing is left.
#[tokio::test]
async fn o_08_a_state_lives_ten_minutes() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    for (wait, lives) in [(590, true), (601, false)] {
        let begun = world.begin(&world.link("c").await).await;
        let code = world.instance.allows(&begun.authorization_url, "abel");
        world.clock.leap(Duration::from_secs(wait));
        let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await;
        assert_eq!(outcome.is_ok(), lives, "{wait} s");
        assert_eq!(world.count::<ConsentFlow>().await, 0, "{wait} s");
    }
    world.begin(&world.link("c").await).await;
    world.clock.leap(Duration::from_secs(601));
    world.store.sweep(bearerd_model::Clock::now(&*world.clock)).await.unwrap();
    assert_eq!(world.count::<ConsentFlow>().await, 0);
}

/// O-09, O-10: what is not exactly one good answer is none. Repeats are the door's to refuse.
#[tokio::test]
async fn o_09_10_a_callback_is_one_answer_to_one_question() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let both = |callback: &mut Callback| callback.error = Some("access_denied".to_owned());
    check_refused("code and error", &world, both, ConsentFault::MalformedCallback, true).await;
    let invalid = || ConsentFault::StateInvalid;
    check_refused("unknown state", &world, |callback| callback.state = Some(text("00")), invalid(), false)
        .await;
    let world = World::new().await;
    world.connect("c", "a", None).await;
    check_refused("no state", &world, |callback| callback.state = None, invalid(), false).await;
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", None).await).await;
    let state = parameters(&begun.authorization_url)["state"].clone();
    for at in 0..state.len() {
        let flipped: String =
            state.chars().enumerate().map(|(index, char)| if index == at { 'x' } else { char }).collect();
        let hostile = Callback { state: Some(text(&flipped)), ..callback(&begun, Some("code")) };
        assert_eq!(world.control.finish_consent(hostile).await.unwrap_err(), ConsentFault::StateInvalid);
    }
    // A bare return: nothing was given (servicenow.md §1).
    let outcome = world.control.finish_consent(callback(&begun, None)).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "consent_denied");
    assert_eq!(world.instance.count(), 0);
}

/// O-11, O-12, O-15: S256 with a verifier of its own; the redirect URI, byte for byte.
#[tokio::test]
async fn o_11_12_15_the_exchange_proves_what_the_request_promised() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let mut verifiers = HashSet::new();
    for _ in 0..20 {
        let begun = world.begin(&world.link("c").await).await;
        let asked = parameters(&begun.authorization_url);
        assert_eq!((&*asked["response_type"], &*asked["code_challenge_method"]), ("code", "S256"));
        let code = world.instance.allows(&begun.authorization_url, "abel"); // compares challenge and redirect URI
        let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
        assert_eq!(failure_code(&outcome.result), "connected");
        let form = world.instance.calls().pop().unwrap();
        assert_eq!(form["redirect_uri"], asked["redirect_uri"]);
        assert!((43..=128).contains(&form["code_verifier"].len()));
        assert!(verifiers.insert(form["code_verifier"].clone()));
    }
}

/// PKCE is off only where the integration says so; then the other defences hold alone (O-13).
#[tokio::test]
async fn o_13_without_pkce_the_browser_still_counts() {
    let world = World::new().await;
    let mut without = spec(&world.instance);
    without.pkce = false;
    world.put("a", without).await.unwrap();
    world.connect("c", "a", None).await;
    check_refused("no cookie", &world, |callback| callback.cookies.clear(), ConsentFault::OtherBrowser, true)
        .await;
    let begun = world.begin(&world.link("c").await).await;
    assert!(!begun.authorization_url.contains("code_challenge"));
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connected");
    assert!(!world.instance.calls()[0].contains_key("code_verifier"));
}

/// O-14: a code that was given for another flow ends at the server, and leaves no trace here.
#[tokio::test]
async fn o_14_an_injected_code_connects_nobody() {
    let world = World::new().await;
    let mallory = world.begin(&world.connect("m", "a", None).await).await;
    let alice = world.begin(&world.connect("c", "a", Some("alice")).await).await;
    let injected = world.instance.allows(&mallory.authorization_url, "mallory");
    let outcome = world.control.finish_consent(callback(&alice, Some(&injected))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "exchange_refused");
    let connection = world.stored("c").await;
    assert!(connection.grant.is_none() && connection.user.is_none());
    assert!(matches!(connection.lifecycle, Lifecycle::AwaitingConsent { .. }));
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
}

/// O-17, O-18: each integration has a redirect URI of its own, and a code never reaches another's token endpoint.
#[tokio::test]
async fn o_17_18_a_code_stays_with_its_integration() {
    let world = World::new().await;
    let hostile = Instance::start().await;
    world.put("b", spec(&hostile)).await.unwrap();
    let uri = async |id| world.control.integration(&integration_id(id)).await.unwrap().record.redirect_uri;
    assert_eq!(uri("a").await, format!("{PUBLIC_URL}/oauth/callback"));
    assert_eq!(uri("b").await, format!("{PUBLIC_URL}/oauth/callback/b"));
    world.connect("c", "a", None).await;
    world.connect("d", "b", None).await;
    let fault = || ConsentFault::OtherIntegration;
    for path in ["b", "a", "unknown", ""] {
        let elsewhere = |callback: &mut Callback| callback.path_integration = Some(path.to_owned());
        check_refused(path, &world, elsewhere, fault(), true).await;
    }
    for path in [None, Some("a")] {
        let begun = world.begin(&world.link("d").await).await;
        let code = hostile.allows(&begun.authorization_url, "abel");
        let path_integration = path.map(str::to_owned);
        let callback = Callback { path_integration, ..callback(&begun, Some(&code)) };
        assert_eq!(world.control.finish_consent(callback).await.unwrap_err(), fault());
    }
    assert_eq!((world.instance.count(), hostile.count()), (0, 0));
    let begun = world.begin(&world.link("d").await).await;
    let code = hostile.allows(&begun.authorization_url, "abel");
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connected");
    assert_eq!((world.instance.count(), hostile.count()), (0, 1));
}

/// O-19 (RFC 9207 §2.4): compared as strings.
#[tokio::test]
async fn o_19_an_issuer_that_is_named_is_the_one_that_was_asked() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let origin = world.instance.origin.as_str().to_owned();
    for wrong in
        [format!("{origin}/"), "https://evil.example".to_owned(), origin.to_uppercase(), String::new()]
    {
        let named = |callback: &mut Callback| callback.iss = Some(wrong.clone());
        check_refused(&wrong, &world, named, ConsentFault::OtherIntegration, true).await;
    }
    let begun = world.begin(&world.link("c").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let right = Callback { iss: Some(origin), ..callback(&begun, Some(&code)) };
    assert_eq!(failure_code(&world.control.finish_consent(right).await.unwrap().result), "connected");
}

/// O-21: whoever consents, nothing is lent until the operator knows who it was.
#[tokio::test]
async fn o_21_a_stranger_s_consent_waits_for_a_confirmation() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    assert!(awaits_confirmation(&world.consent("c", "mallory").await));
    assert_eq!(world.stored("c").await.user.unwrap().user_name, "mallory"); // O-23
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
    // The same stranger again is still a stranger.
    assert!(awaits_confirmation(&world.consent("c", "mallory").await));
    let id = connection_id("c");
    assert_eq!(world.control.confirm(&id, "alice").await.unwrap_err().code(), "other_user");
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
    // The right person in the stranger's place, confirmed by sys_id.
    assert!(awaits_confirmation(&world.consent("c", "alice").await));
    world.control.confirm(&id, "id-of-alice").await.unwrap();
    assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"));
    assert_eq!(world.control.confirm(&id, "alice").await.unwrap_err().code(), "nothing_to_confirm");
}

/// O-21, O-23: `expected_user` is the confirmation, and nobody else is.
#[tokio::test]
async fn o_21_23_the_expected_user_needs_no_confirmation() {
    for expected in ["alice", "id-of-alice"] {
        let world = World::new().await;
        world.connect("c", "a", Some(expected)).await;
        assert!(awaits_confirmation(&world.consent("c", "mallory").await));
        assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
        assert!(!awaits_confirmation(&world.consent("c", "alice").await));
        assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"));
    }
    // Also where nobody confirms: then it is the only word there is.
    let world = World::confirming(false).await;
    world.connect("c", "a", Some("alice")).await;
    assert!(awaits_confirmation(&world.consent("c", "mallory").await));
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
}

/// `connect.confirm = false`: operators consent for themselves.
#[tokio::test]
async fn o_21_without_confirmations_the_first_consent_lends() {
    let world = World::confirming(false).await;
    world.connect("c", "a", None).await;
    assert!(!awaits_confirmation(&world.consent("c", "alice").await));
    assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"));
}

/// A working connection is given to nobody else, with confirmations or without.
#[tokio::test]
async fn o_21_a_working_grant_is_never_replaced_by_another_user_s() {
    for confirm in [true, false] {
        let world = World::confirming(confirm).await;
        world.connect("c", "a", None).await;
        world.consent("c", "alice").await;
        let _ = world.control.confirm(&connection_id("c"), "alice").await;
        assert_eq!(failure_code(&world.consent("c", "mallory").await), "other_user", "confirm: {confirm}");
        assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"), "confirm: {confirm}");
        assert_eq!(world.stored("c").await.user.unwrap().user_name, "alice");
    }
}

/// The word of the operator who changed his mind counts: the old user's new consent is not taken for the new one's.
#[tokio::test]
async fn o_23_a_changed_expectation_counts_for_the_old_user_too() {
    let world = World::new().await;
    world.connected("c", "alice").await;
    let change = crate::ConnectionChange { expected_user: Some(Some("bob".to_owned())), labels: None };
    world.control.change_connection(&connection_id("c"), change, None).await.unwrap();
    assert_eq!(failure_code(&world.consent("c", "alice").await), "other_user");
    assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"));
    world.instance.next_token_answer(400, "application/json", r#"{"error":"invalid_grant"}"#);
    world.control.refresh(&connection_id("c")).await.unwrap_err();
    assert!(awaits_confirmation(&world.consent("c", "alice").await));
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
    assert!(!awaits_confirmation(&world.consent("c", "bob").await));
    assert_eq!(world.lent_to("c").await.as_deref(), Some("bob"));
}

/// O-21: a stranger's grant that dies, or is purged, before anyone confirmed it does not make the stranger known.
#[tokio::test]
async fn o_21_a_stranger_whose_grant_died_is_still_a_stranger() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    world.consent("c", "mallory").await;
    world.instance.next_token_answer(400, "application/json", r#"{"error":"invalid_grant"}"#);
    world.control.refresh(&connection_id("c")).await.unwrap_err();
    assert_eq!(world.stored("c").await.lifecycle.name(), "pending");
    assert!(awaits_confirmation(&world.consent("c", "mallory").await));
    let mut other = spec(&world.instance);
    other.client_secret = Some(bearerd_model::ClientSecret::parse("another".to_owned()).unwrap());
    world.control.put_integration(integration_id("a"), other, None, true).await.unwrap();
    assert_eq!(world.stored("c").await.lifecycle.name(), "pending");
    world.put("a", spec(&world.instance)).await.unwrap();
    assert!(awaits_confirmation(&world.consent("c", "mallory").await));
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
}

/// The user who held a grant that died may give another, without a confirmation.
#[tokio::test]
async fn the_same_user_revives_a_dead_connection() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    world.consent("c", "alice").await;
    world.control.confirm(&connection_id("c"), "alice").await.unwrap();
    world.instance.next_token_answer(400, "application/json", r#"{"error":"invalid_grant"}"#);
    world.control.refresh(&connection_id("c")).await.unwrap_err();
    assert!(matches!(world.stored("c").await.lifecycle, Lifecycle::ReauthorizationRequired { .. }));
    assert!(!awaits_confirmation(&world.consent("c", "alice").await));
    assert_eq!(world.lent_to("c").await.as_deref(), Some("alice"));
}

/// A new consent of the same user takes the old one's place between two calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_consent_leaves_no_gap() {
    let world = Arc::new(World::new().await);
    world.connected("c", "alice").await;
    let before = world.acquire("c").await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (world, stop) = (world.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    assert!(world.is_lent_from_memory("c"));
                    world.acquire("c").await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for round in 1..=5 {
        assert!(!awaits_confirmation(&world.consent("c", "alice").await));
        let lent = world.acquire("c").await.unwrap();
        assert_eq!(lent.generation.0, before.generation.0 + round);
    }
    stop.cancel();
    for caller in callers {
        caller.await.unwrap();
    }
}

/// O-23: without a name nothing is lent; the tokens are kept until somebody can say whose they are.
#[tokio::test]
async fn o_23_a_consent_of_nobody_in_particular_is_not_lent() {
    const JSON: &str = "application/json";
    let two =
        r#"{"result":[{"sys_id":"1","user_name":"a","name":""},{"sys_id":"2","user_name":"b","name":""}]}"#;
    let nameless = r#"{"result":[{"sys_id":"","user_name":"a","name":""}]}"#;
    for (status, kind, body, code) in [
        (403, JSON, "{}", "user_unreadable"),
        (401, JSON, "{}", "token_refused"),
        (200, "text/html", "<html>asleep</html>", "instance_asleep"),
        (200, "Text/HTML; charset=utf-8", "asleep", "instance_asleep"),
        (200, JSON, " <html>asleep</html>", "instance_asleep"),
        (200, JSON, r#"{"result":[]}"#, "user_unreadable"),
        (200, JSON, nameless, "user_unreadable"),
        (200, JSON, two, "user_unreadable"), // the instance ignored the question who asks
    ] {
        let world = World::new().await;
        world.connect("c", "a", Some("a")).await;
        world.instance.next_user_answer(status, kind, body);
        assert_eq!(failure_code(&world.consent("c", "a").await), code, "{status} {body}");
        let stored = world.stored("c").await;
        assert!(matches!(stored.lifecycle, Lifecycle::AwaitingConfirmation { .. }), "{status} {body}");
        assert!(stored.grant.is_some() && stored.user.is_none(), "{status} {body}");
        assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
        assert_eq!(
            world.control.confirm(&connection_id("c"), "a").await.unwrap_err().code(),
            "nothing_to_confirm"
        );
        // The fault is mended: a test call finds the expected user.
        assert_eq!(world.control.test(&connection_id("c")).await.unwrap().user.user_name, "a");
        world.acquire("c").await.unwrap();
    }
    // A passing fault is tried again.
    let world = World::new().await;
    world.connect("c", "a", Some("a")).await;
    world.instance.next_user_answer(503, JSON, "");
    assert_eq!(failure_code(&world.consent("c", "a").await), "connected");
}

/// O-24: looking does not use a link up; beginning does, once; and it ends.
#[tokio::test]
async fn o_24_a_link_is_used_up_by_beginning() {
    let world = World::new().await;
    let link = world.connect("c", "a", Some("abel")).await;
    for _ in 0..3 {
        let page = world.control.link_page(&link).await.unwrap();
        assert_eq!((page.requested_by.as_str(), page.expected_user.as_deref()), ("maria", Some("abel")));
        assert_eq!((page.connection, page.instance), (connection_id("c"), world.instance.origin.clone()));
    }
    world.begin(&link).await;
    assert_eq!(world.control.link_page(&link).await.unwrap_err(), ConsentFault::LinkInvalid);
    assert_eq!(world.control.begin_consent(&link).await.unwrap_err(), ConsentFault::LinkInvalid);
    let late = world.link("c").await;
    world.clock.leap(Duration::from_mins(30));
    assert_eq!(world.control.link_page(&late).await.unwrap_err(), ConsentFault::LinkInvalid);
    assert_eq!(world.control.begin_consent(&late).await.unwrap_err(), ConsentFault::LinkInvalid);
    let orphan = world.link("c").await;
    world.control.delete_connection(&connection_id("c"), None).await.unwrap();
    assert_eq!(world.control.link_page(&orphan).await.unwrap_err(), ConsentFault::LinkInvalid);
    assert_eq!(world.control.begin_consent(&orphan).await.unwrap_err(), ConsentFault::LinkInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_24_a_link_begins_one_flow() {
    let world = World::new().await;
    let link = world.connect("c", "a", None).await;
    let begins: Vec<_> = (0..20)
        .map(|_| {
            let (control, link): (_, SecretText) = (world.control.clone(), link.clone());
            tokio::spawn(async move { control.begin_consent(&link).await.is_ok() })
        })
        .collect();
    let mut begun = 0;
    for one in begins {
        begun += usize::from(one.await.unwrap());
    }
    assert_eq!((begun, world.count::<ConsentFlow>().await), (1, 1));
}

/// O-33: every error of RFC 6749 §4.1.2.1 has its code, and a person's no is not a fault of the integration. O-32: what
/// the server says is cut and cleaned.
#[tokio::test]
async fn o_33_each_error_has_its_outcome() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    for (error, expected) in [
        ("access_denied", "consent_denied"),
        ("unauthorized_client", "client_refused"),
        ("invalid_scope", "scope_refused"),
        ("invalid_request", "request_refused"),
        ("unsupported_response_type", "request_refused"),
        ("server_error", "instance_unavailable"),
        ("temporarily_unavailable", "instance_unavailable"),
        ("<script>", "consent_failed"),
    ] {
        let begun = world.begin(&world.link("c").await).await;
        let error_description = Some(format!("a\r\nb\0{}", "x".repeat(10_000)));
        let said = Callback { error: Some(error.to_owned()), error_description, ..callback(&begun, None) };
        let outcome = world.control.finish_consent(said).await.unwrap();
        assert_eq!(failure_code(&outcome.result), expected, "{error}");
        let ConsentResult::Failed { detail: Some(detail), error_id, .. } = &outcome.result else {
            panic!("{outcome:?}")
        };
        assert!(detail.starts_with(error) && detail.chars().count() <= 300);
        assert!(!detail.chars().any(char::is_control) && error_id.len() == 10);
        assert_eq!(world.control.consent_outcome(&outcome.id).await, Some(outcome));
    }
    assert_eq!(world.instance.count(), 0);
}

/// O-33, O-57: what the token endpoint says of a code.
#[tokio::test]
async fn o_33_57_each_refused_exchange_has_its_outcome() {
    const JSON: &str = "application/json";
    let flattened = r#"{"error_description":"access_denied","error":"server_error"}"#;
    let world = World::new().await;
    world.connect("c", "a", Some("abel")).await;
    for (status, kind, body, expected) in [
        (401, JSON, flattened, "exchange_refused"),
        (400, JSON, r#"{"error":"invalid_grant"}"#, "exchange_refused"),
        (401, JSON, r#"{"error":"invalid_client"}"#, "exchange_refused"),
        (400, JSON, r#"{"error":"invalid_scope"}"#, "exchange_refused"),
        (200, "text/html", "<html>Instance Hibernating</html>", "instance_asleep"), // O-57
        (200, JSON, "<html>log in</html>", "instance_asleep"),
        (503, JSON, "{}", "instance_unavailable"),
        (429, JSON, "{}", "instance_unavailable"),
        (200, JSON, "{}", "instance_unavailable"),
        (302, JSON, "", "instance_unavailable"), // O-39
    ] {
        world.instance.next_token_answer(status, kind, body);
        assert_eq!(failure_code(&world.consent("c", "abel").await), expected, "{status} {body}");
        assert!(world.stored("c").await.grant.is_none(), "{status} {body}");
    }
    assert_eq!(failure_code(&world.consent("c", "abel").await), "connected");
}

/// O-56: two tabs.
#[tokio::test]
async fn o_56_two_flows_in_one_browser_both_end_well() {
    let world = World::new().await;
    let one = world.begin(&world.connect("c", "a", Some("abel")).await).await;
    let two = world.begin(&world.connect("d", "a", Some("abel")).await).await;
    assert_ne!(one.cookie_name, two.cookie_name);
    let jar: Vec<_> = [&one, &two]
        .map(|begun| (begun.cookie_name.clone(), begun.cookie_value.clone()))
        .into_iter()
        .collect();
    for (begun, id) in [(&two, "d"), (&one, "c")] {
        let code = world.instance.allows(&begun.authorization_url, "abel");
        let tab = Callback { cookies: jar.clone(), ..callback(begun, Some(&code)) };
        let outcome = world.control.finish_consent(tab).await.unwrap();
        assert_eq!(failure_code(&outcome.result), "connected");
        assert_eq!(world.lent_to(id).await.as_deref(), Some("abel"));
    }
}

/// A browser that leaves does not take the exchange along: the code is spent, its tokens are kept.
#[tokio::test]
async fn the_exchange_outlives_its_browser() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", Some("abel")).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.instance.holds(true);
    let control = world.control.clone();
    let callback = callback(&begun, Some(&code));
    let browser = tokio::spawn(async move { control.finish_consent(callback).await });
    eventually("the exchange", async || world.instance.count() == 1).await;
    browser.abort();
    assert!(browser.await.unwrap_err().is_cancelled());
    world.instance.holds(false);
    eventually("the grant", async || world.stored("c").await.lifecycle.name() == "active").await;
    eventually("the outcome", async || world.count::<ConsentOutcome>().await == 1).await;
    assert_eq!(world.lent_to("c").await.as_deref(), Some("abel"));
}

/// I-4: a consent that was given to the old client, and comes in behind the change of the client, is purged too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consent_that_meets_a_change_of_its_integration_is_not_kept() {
    for at in [Point::AfterLoad(Kind::Connection), Point::BeforeReplace(Kind::Connection)] {
        let world = Arc::new(World::new().await);
        let elsewhere = Instance::start().await;
        let moved = spec(&elsewhere);
        let begun = world.begin(&world.connect("c", "a", Some("abel")).await).await;
        let code = world.instance.allows(&begun.authorization_url, "abel");
        let other = world.clone();
        world.backend.on(at, 0, async move || {
            other.control.put_integration(integration_id("a"), moved, None, true).await.unwrap();
        });
        let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
        assert_eq!(failure_code(&outcome.result), "integration_changed", "{at:?}");
        assert!(world.stored("c").await.grant.is_none(), "{at:?}");
        assert!(world.acquire("c").await.is_err(), "{at:?}");
    }
}

/// A store that takes the grant and never says so: the grant is in force, or purged where it is another client's by now
/// (I-4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_was_written_without_a_confirmation_counts() {
    let consented = async |is_changed: bool| {
        let world = World::new().await;
        let begun = world.begin(&world.connect("c", "a", Some("abel")).await).await;
        let code = world.instance.allows(&begun.authorization_url, "abel");
        *world.backend.unconfirmed.lock().unwrap() = Some(Kind::Connection);
        let control = world.control.clone();
        let finishing =
            tokio::spawn(async move { control.finish_consent(callback(&begun, Some(&code))).await });
        eventually("written", async || world.stored("c").await.grant.is_some()).await;
        if is_changed {
            let mut stored = world.control.integration(&integration_id("a")).await.unwrap();
            stored.record.client_id = "another".to_owned();
            world.store.replace(stored.revision, &stored.record).await.unwrap().unwrap();
        }
        let outcome = finishing.await.unwrap().unwrap();
        let is_held = world.stored("c").await.grant.is_some();
        (failure_code(&outcome.result).to_owned(), is_held, world.lent_to("c").await)
    };
    let (same, changed) = tokio::join!(consented(false), consented(true));
    assert_eq!(same, ("connected".to_owned(), true, Some("abel".to_owned())));
    // The store does not confirm the purge either.
    assert_eq!(changed, ("store_unavailable".to_owned(), false, None));
}

#[tokio::test]
async fn what_is_deleted_during_a_consent_is_not_brought_back() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", None).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.control.delete_connection(&connection_id("c"), None).await.unwrap();
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connection_gone");
    assert_eq!(world.control.connection(&connection_id("c")).await.unwrap_err().code(), "not_found");
    // Made anew under another integration meanwhile: not its grant either.
    let other = Instance::start().await;
    world.put("b", spec(&other)).await.unwrap();
    let begun = world.begin(&world.connect("c", "a", None).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.control.delete_connection(&connection_id("c"), None).await.unwrap();
    world.connect("c", "b", None).await;
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connection_changed");
    assert!(world.stored("c").await.grant.is_none());
}

/// A result page can be reloaded for ten minutes, by those who know its address.
#[tokio::test]
async fn an_outcome_is_shown_for_a_while() {
    let world = World::new().await;
    let begun = world.begin(&world.connect("c", "a", Some("abel")).await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    let shown = async |id: &str| world.control.consent_outcome(id).await;
    assert_eq!(shown(&outcome.id).await.as_ref(), Some(&outcome));
    for other in ["", "x", "../x", &"x".repeat(65)] {
        assert_eq!(shown(other).await, None);
    }
    world.clock.leap(Duration::from_mins(10));
    assert_eq!(shown(&outcome.id).await, None);
}

/// The store fails before anything is spent, and after: the old grant stays in use.
#[tokio::test]
async fn a_store_that_is_away_is_said_to_be() {
    use std::sync::atomic::Ordering::SeqCst;
    let world = World::new().await;
    world.connected("c", "abel").await;
    let link = world.link("c").await;
    world.backend.down.store(true, SeqCst);
    assert_eq!(world.control.link_page(&link).await.unwrap_err(), ConsentFault::StoreUnavailable);
    assert_eq!(world.control.begin_consent(&link).await.unwrap_err(), ConsentFault::StoreUnavailable);
    world.backend.down.store(false, SeqCst);
    let begun = world.begin(&link).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.backend.down.store(true, SeqCst);
    let away = world.control.finish_consent(callback(&begun, Some(&code))).await;
    assert_eq!(away.unwrap_err(), ConsentFault::StoreUnavailable);
    world.backend.down.store(false, SeqCst);
    assert_eq!(world.instance.count(), 1);
    let outcome = world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    assert_eq!(failure_code(&outcome.result), "connected");
}

/// Re-consent swaps the grant without downtime, after a test call: until the new access token has answered the user
/// call, the old one serves.
#[tokio::test]
async fn the_old_token_serves_until_the_new_one_is_tested() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let old = world.acquire("c").await.unwrap();
    let begun = world.begin(&world.link("c").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.instance.holds_users(true);
    let (control, exchanges) = (world.control.clone(), world.instance.count());
    let finishing =
        tokio::spawn(async move { control.finish_consent(callback(&begun, Some(&code))).await.unwrap() });
    eventually("the code is exchanged", async || world.instance.count() > exchanges).await;
    for _ in 0..10 {
        assert_eq!(world.acquire("c").await.unwrap().bearer, old.bearer);
        assert_eq!(world.stored("c").await.lifecycle.name(), "active");
    }
    world.instance.holds_users(false);
    assert_eq!(failure_code(&finishing.await.unwrap().result), "connected");
    let new = world.acquire("c").await.unwrap();
    assert!(new.bearer != old.bearer && new.generation > old.generation);
    assert_eq!(world.lent_to("c").await.as_deref(), Some("abel"));
}

/// A new access token that does not pass its test changes nothing: the old grant serves, and refreshes.
#[tokio::test]
async fn a_failed_test_keeps_the_old_grant() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let before = world.stored("c").await;
    for (status, expected) in [(401, "token_refused"), (403, "user_unreadable")] {
        world.instance.next_user_answer(status, "application/json", "{}");
        assert_eq!(failure_code(&world.consent("c", "abel").await), expected);
        let after = world.stored("c").await;
        assert!(after.grant.unwrap().has_same_tokens(before.grant.as_ref().unwrap()));
        assert_eq!((after.lifecycle, after.user), (before.lifecycle.clone(), before.user.clone()));
    }
    world.control.refresh(&connection_id("c")).await.unwrap();
    assert_eq!(world.lent_to("c").await.as_deref(), Some("abel"));
}

/// A generic provider does not say who consented: an operator vouches, and nobody takes over a connection that works.
#[tokio::test]
async fn o_21_23_a_generic_provider_s_consent_waits_for_an_operator() {
    for confirm in [true, false] {
        let world = World::confirming(confirm).await;
        let endpoint = |path: &str| Some(format!("{}{path}", world.instance.origin));
        let generic = IntegrationSpec {
            provider: Provider::Generic,
            authorization_endpoint: endpoint("/authorize"),
            token_endpoint: endpoint("/oauth_token.do"),
            ..spec(&world.instance)
        };
        world.put("a", generic).await.unwrap();
        let expecting = ConnectionSpec { expected_user: Some("abel".to_owned()), ..connection_spec("a") };
        let refused = world.control.create_connection(connection_id("c"), expecting, &operator()).await;
        assert_eq!(refused.unwrap_err().code(), "invalid_request");
        world.connect("c", "a", None).await;
        let expecting = ConnectionChange { labels: None, expected_user: Some(Some("abel".to_owned())) };
        let refused = world.control.change_connection(&connection_id("c"), expecting, None).await;
        assert_eq!(refused.unwrap_err().code(), "invalid_request");

        let first = world.consent("c", "abel").await;
        assert_eq!(awaits_confirmation(&first), confirm);
        if confirm {
            assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
            let confirmed = world.control.confirm(&connection_id("c"), "abel").await.unwrap().record;
            assert_eq!(confirmed.user.unwrap().user_name, "abel");
        }
        assert_eq!(world.lent_to("c").await.as_deref(), Some("abel"));
        let again = world.consent("c", "mallory").await;
        assert_eq!(failure_code(&again), if confirm { "user_unknown" } else { "connected" });
        let expected = if confirm { "abel" } else { "mallory" };
        assert_eq!(world.lent_to("c").await.as_deref(), Some(expected));
        assert_eq!(world.control.test(&connection_id("c")).await.unwrap_err().code(), "no_user_call");
        world.control.delete_connection(&connection_id("c"), None).await.unwrap();
        world.revoke().await;
        assert!(world.instance.revocations().is_empty(), "no endpoint was given");
    }
}
