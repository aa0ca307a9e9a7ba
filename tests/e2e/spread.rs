//! Spread of a change (product.md §7): what an operator takes away is refused by every process within a second, however
//! busy its callers are, and stays refused; nobody else notices.

use std::time::{Duration, Instant};

use bearerd_tests::{
    Daemon, Deployment, FaultProxy, Flood, FloodCall, Redis, Setup, get, outcomes, wait_until,
};
use http::{Method, StatusCode};
use serde_json::json;
use servicenow_sim::Behaviour;

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=1";
/// From the admin API's answer until no call is let through any more, anywhere.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// Callers of each kind at each process.
const CALLERS: usize = 3;
/// Calls of each kind that a process must have answered, before the change and after its time.
const CALLS_MIN: usize = 100;
/// For those calls, on a busy machine: how long they take is not what is tested.
const CALLS_LIMIT: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug)]
enum Change {
    KeyDeleted,
    PolicyNarrowed,
    ConnectionDeleted,
}

/// S-14.
#[test]
fn a_deleted_key_is_refused_within_a_second_with_the_file() {
    check("spread-key-embedded", Change::KeyDeleted, None);
}

/// S-14, at both of two processes, one of which was not told.
#[test]
fn a_deleted_key_is_refused_within_a_second_with_redis() {
    check("spread-key-redis", Change::KeyDeleted, Some(&Redis::start()));
}

/// S-15: and what the policy goes on to open stays open without a gap.
#[test]
fn a_narrowed_policy_is_in_force_within_a_second_with_the_file() {
    check("spread-policy-embedded", Change::PolicyNarrowed, None);
}

/// S-15, at both of two processes, one of which was not told.
#[test]
fn a_narrowed_policy_is_in_force_within_a_second_with_redis() {
    check("spread-policy-redis", Change::PolicyNarrowed, Some(&Redis::start()));
}

/// I-5, while the same token goes on to serve another connection.
#[test]
fn a_deleted_connection_is_refused_within_a_second_with_the_file() {
    check("spread-connection-embedded", Change::ConnectionDeleted, None);
}

/// I-5, at both of two processes, one of which was not told.
#[test]
fn a_deleted_connection_is_refused_within_a_second_with_redis() {
    check("spread-connection-redis", Change::ConnectionDeleted, Some(&Redis::start()));
}

/// §7: cut off from the store a process goes on with the keys that it holds, and says so; once the store is back it has
/// a second, as ever.
#[test]
fn a_key_deleted_while_a_process_is_cut_off_is_refused_within_a_second_of_its_return() {
    let redis = Redis::start();
    let network = FaultProxy::start(redis.url().trim_start_matches("redis://").parse().unwrap());
    let setup = Setup::new("spread-cut").redis(&redis);
    let second = setup.sibling("spread-cut-2").set("redis.url", &format!("redis://{}", network.address()));
    let mut deployment = Deployment::start(setup, Behaviour::default());
    deployment.siblings.push(second.start());
    deployment.add_application("hr", &deployment.instance);
    deployment.add_open_policy("open");
    let (key, key_id) = deployment.daemon.new_key_with_id("open");
    let second = &deployment.siblings[0];
    let call = second.call(Method::GET, INCIDENTS, &key);
    wait_until("the key is known", Duration::from_secs(5), || (call.send().status == 200).then_some(()));
    let ready = get(&format!("{}/readyz", second.admin_origin()));

    network.down();
    let flood = Flood::start(vec![call; CALLERS]);
    delete(&deployment, &format!("/v1/keys/{key_id}"));
    wait_until("it says so", CALLS_LIMIT, || (ready.send().status == 503).then_some(()));
    wait_until("calls are answered", CALLS_LIMIT, || (flood.count(|_| true) >= CALLS_MIN).then_some(()));
    let healed_at = Instant::now();
    network.heal();
    let late = |call: &FloodCall| call.began >= healed_at + REFUSED_WITHIN;
    wait_until("calls are answered", CALLS_LIMIT, || (flood.count(late) >= CALLS_MIN).then_some(()));
    let calls = flood.stop();
    let last = calls.iter().filter(|call| call.is("200")).map(|call| call.began).max().unwrap();
    println!(
        "the last call let through began {:.0?} after the return; {:?}",
        last.saturating_duration_since(healed_at),
        outcomes(&calls)
    );
    let (away, back): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.ended < healed_at);
    check_all("cut off", &away, &["200"]);
    check_all("back", &back, &["200", "401 caller_key_invalid"]);
    check_all(
        "a second later",
        &back.into_iter().filter(|call| late(call)).collect::<Vec<_>>(),
        &["401 caller_key_invalid"],
    );
    wait_until("it is ready again", CALLS_LIMIT, || (ready.send().status == 200).then_some(()));
}

/// One process with the file; two with Redis, of which the first is told.
fn check(name: &str, change: Change, redis: Option<&Redis>) {
    let setup = Setup::new(name);
    let mut deployment = match redis {
        Some(redis) => Deployment::start_many(setup.redis(redis), 2, Behaviour::default()),
        None => Deployment::start(setup, Behaviour::default()),
    };
    let instance = deployment.instance.clone();
    deployment.add_application("hr", &instance);
    for id in ["concerned", "other"] {
        deployment.daemon.put(&format!("/v1/connections/{id}"), &json!({"integration": "hr"}));
    }
    let tables = |named: &[&str]| json!({"rules": [{"connections": "all", "tables": {"named": named}, "methods": ["GET"]}]});
    deployment.daemon.put("/v1/policies/concerned", &tables(&["incident", "problem"]));
    deployment.add_open_policy("open");
    let (key, key_id) = deployment.daemon.new_key_with_id("concerned");
    let other_key = deployment.daemon.new_key("open");

    let concerned = |daemon: &Daemon| daemon.call(Method::GET, &format!("/c/concerned{INCIDENTS}"), &key);
    let unconcerned = |daemon: &Daemon| {
        let other = daemon.call(Method::GET, &format!("/c/other{INCIDENTS}"), &other_key);
        let still_open = daemon.call(Method::GET, "/c/other/api/now/table/problem?sysparm_limit=1", &key);
        if matches!(change, Change::KeyDeleted) { vec![other] } else { vec![other, still_open] }
    };
    for daemon in deployment.daemons() {
        for call in [vec![concerned(daemon)], unconcerned(daemon)].concat() {
            wait_until("the key is known", Duration::from_secs(5), || {
                (call.send().status == 200).then_some(())
            });
        }
    }
    let calling: Vec<(Flood, Flood)> = deployment
        .daemons()
        .map(|daemon| {
            let unconcerned = unconcerned(daemon).into_iter().flat_map(|call| vec![call; CALLERS]);
            (Flood::start(vec![concerned(daemon); CALLERS]), Flood::start(unconcerned))
        })
        .collect();
    wait_for_calls(&calling, |call| call.is("200"), |call| call.is("200"));

    let refusal = match change {
        Change::KeyDeleted => "401 caller_key_invalid",
        Change::PolicyNarrowed => "403 policy_denied",
        Change::ConnectionDeleted => "404 connection_unknown",
    };
    let asked_at = Instant::now();
    match change {
        Change::KeyDeleted => delete(&deployment, &format!("/v1/keys/{key_id}")),
        Change::PolicyNarrowed => {
            deployment.daemon.put("/v1/policies/concerned", &tables(&["problem"]));
        }
        Change::ConnectionDeleted => delete(&deployment, "/v1/connections/concerned"),
    }
    let answered_at = Instant::now();
    let in_force_at = answered_at + REFUSED_WITHIN;
    let late = |call: &FloodCall| call.began >= in_force_at;
    wait_for_calls(&calling, late, late);

    for (number, (concerned, unconcerned)) in (1..).zip(calling) {
        let (concerned, unconcerned) = (concerned.stop(), unconcerned.stop());
        let let_through = |call: &&FloodCall| call.is("200");
        let last = concerned.iter().filter(let_through).map(|call| call.began).max().unwrap();
        let process = format!("{name}, process {number}");
        println!(
            "{process}: the change took {:.0?}; the last call let through began {:.0?} after it; {:?}; the others: {:?}",
            answered_at - asked_at,
            last.saturating_duration_since(answered_at),
            outcomes(&concerned),
            outcomes(&unconcerned),
        );
        let (before, after): (Vec<_>, Vec<_>) = concerned.iter().partition(|call| call.ended < asked_at);
        check_all(&process, &before, &["200"]);
        check_all(&process, &after, &["200", refusal]);
        let late: Vec<_> = after.into_iter().filter(|call| late(call)).collect();
        check_all(&process, &late, &[refusal]);
        // Once refused by a process, refused by it for ever: also where it was before its time.
        let refused_at =
            concerned.iter().filter(|call| call.is(refusal)).map(|call| call.ended).min().unwrap();
        assert!(last <= refused_at, "{process}: let through {:?} after it was refused", last - refused_at);
        check_all(&process, &unconcerned.iter().collect::<Vec<_>>(), &["200"]);
    }

    for daemon in std::iter::once(&mut deployment.daemon).chain(&mut deployment.siblings) {
        daemon.terminate(); // in order: it writes when which key was last used
        daemon.start_again();
        let reply = concerned(daemon).send();
        assert_eq!(format!("{} {}", reply.status, reply.header("bearerd-error")), refusal, "after a restart");
    }
}

/// Until each process has answered enough such calls, of either kind.
#[track_caller]
fn wait_for_calls(
    calling: &[(Flood, Flood)],
    concerned_is_such: impl Fn(&FloodCall) -> bool,
    unconcerned_is_such: impl Fn(&FloodCall) -> bool,
) {
    wait_until("calls are answered", CALLS_LIMIT, || {
        let enough = calling.iter().all(|(concerned, unconcerned)| {
            concerned.count(&concerned_is_such) >= CALLS_MIN
                && unconcerned.count(&unconcerned_is_such) >= CALLS_MIN
        });
        enough.then_some(())
    });
}

#[track_caller]
fn check_all(process: &str, calls: &[&FloodCall], allowed: &[&str]) {
    let outcomes = outcomes(calls.iter().copied());
    assert!(
        outcomes.keys().all(|what| allowed.contains(&what.as_str())),
        "{process}: not only {allowed:?}: {outcomes:?}"
    );
}

#[track_caller]
fn delete(deployment: &Deployment, path: &str) {
    drop(deployment.daemon.admin(Method::DELETE, path).send().expect(StatusCode::NO_CONTENT));
}
