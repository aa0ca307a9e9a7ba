//! Tokens that live three seconds, under twenty calls a second for half a minute: no call fails, whatever the server
//! answers to a refresh.

use std::time::Duration;

use bearerd_tests::{Deployment, Load, Setup};
use servicenow_sim::{Behaviour, RefreshWithinLife};

const LENGTH: Duration = Duration::from_secs(30);
const CALLS_PER_SECOND: u32 = 20;

#[test]
fn no_call_fails_while_tokens_live_three_seconds() {
    let short = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        access_token_lifetime_s: 3,
        ..Behaviour::default()
    };
    let modes = [
        ("remaining", Behaviour { refresh_within_life: RefreshWithinLife::Remaining, ..short.clone() }),
        ("renewed", Behaviour { refresh_within_life: RefreshWithinLife::Renewed, ..short.clone() }),
        ("new", Behaviour { refresh_within_life: RefreshWithinLife::New, ..short.clone() }),
        (
            "rotation",
            Behaviour { rotation: true, rotation_reuse_revokes: true, rotation_previous_ok: false, ..short },
        ),
    ];
    let running = modes.map(|(name, behaviour)| {
        std::thread::Builder::new().name(name.to_owned()).spawn(move || check(name, behaviour)).unwrap()
    });
    let failed: Vec<&str> = running
        .into_iter()
        .zip(["remaining", "renewed", "new", "rotation"])
        .filter_map(|(running, name)| running.join().is_err().then_some(name))
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn check(name: &str, behaviour: Behaviour) {
    let deployment = Deployment::start(Setup::new(&format!("tokens-{name}")), behaviour);
    let key = deployment.connect();
    deployment.sim().reset_counters();
    let report = Load::start(deployment.incidents(&key), CALLS_PER_SECOND, LENGTH).finish();
    let counters = deployment.sim().counters();
    let outcomes = counters.token.get("refresh_token").cloned().unwrap_or_default();
    println!("{name}: {report}; refreshes at the instance: {outcomes:?}");

    assert!(report.bad.is_empty() && report.unanswered.is_empty(), "{name}: {report}");
    // Half a minute of three-second tokens takes at least nine of them; an even pace asks about every other second.
    let refreshes: u64 = outcomes.values().sum();
    assert!(outcomes.keys().all(|outcome| ["issued", "repeated"].contains(outcome)), "{name}: {outcomes:?}");
    assert!((9..=60).contains(&refreshes), "{name}: {outcomes:?}");
    assert_eq!(counters.requests_to("authorize"), 0, "{name}: nobody was asked to consent again");
    let calls: u64 = counters.table.get("GET").map(|by_status| by_status.values().sum()).unwrap_or_default();
    assert!(calls >= report.good as u64, "{name}: {calls} calls reached the instance");
    let wrong =
        counters.table.get("GET").and_then(|by_status| by_status.get(&401)).copied().unwrap_or_default();
    assert_eq!(wrong, 0, "{name}: no call was sent with a dead token");
}
