//! Several processes on one Redis: a connection is refreshed once, whoever asks, and outages of either far side fail
//! no call that a cached token can answer. Every run ends with the history checker.

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use bearerd_tests::{
    Daemon, Deployment, Expectations, FailedCalls, Load, LoadReport, Recorder, Redis, Request, Setup,
    Subject, block_on, get, wait_until,
};
use http::Method;
use serde_json::json;
use servicenow_sim::{Behaviour, Fault, FaultOn, FaultRule};

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2&sysparm_fields=number,sys_id";
const PROCESSES: usize = 3;
const CALLS_PER_SECOND: u32 = 10;

fn behaviour(access_token_lifetime_s: u64, rotation: bool) -> Behaviour {
    Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        access_token_lifetime_s,
        rotation,
        rotation_reuse_revokes: rotation,
        rotation_previous_ok_s: if rotation { 60 } else { 0 },
        ..Behaviour::default()
    }
}

fn setup(name: &str, redis: &Redis) -> Setup {
    Setup::new(name).redis(redis).spilling().set("tokens.call_timeout_s", "2")
}

/// `rotates_refresh_tokens` of the integration, as the instance does.
fn rotates(rotation: bool) -> serde_json::Value {
    json!({"rotates_refresh_tokens": rotation})
}

/// The usual connection, and a caller key that every process knows by now.
fn connect(deployment: &Deployment, rotation: bool) -> String {
    let key = deployment.connect_under(rotates(rotation));
    for call in calls(deployment, &key) {
        wait_until("the key is known", Duration::from_secs(5), || {
            call.try_send().is_ok_and(|reply| reply.status == 200).then_some(())
        });
    }
    key
}

/// The same call, at each process.
fn calls(deployment: &Deployment, key: &str) -> Vec<Request> {
    deployment.daemons().map(|daemon| daemon.call(Method::GET, INCIDENTS, key)).collect()
}

fn load(deployment: &Deployment, key: &str, length: Duration) -> Vec<Load> {
    calls(deployment, key).into_iter().map(|call| Load::start(call, CALLS_PER_SECOND, length)).collect()
}

fn together(loads: Vec<Load>) -> LoadReport {
    let reports = loads.into_iter().map(Load::finish).inspect(|report| println!("{report}"));
    reports.fold(LoadReport::default(), LoadReport::and)
}

fn subject(deployment: &Deployment, key: &str) -> Subject {
    Subject::new("hr-prod", "abel.tuter").calling(deployment.incidents(key))
}

/// I-2, I-8: tokens of three seconds, in three processes, under rotation: no call fails, and no refresh token is spent
/// twice.
#[test]
fn three_processes_refresh_as_one() {
    let redis = Redis::start();
    let deployment = Deployment::start_many(setup("company", &redis), PROCESSES, behaviour(3, true));
    let key = connect(&deployment, true);
    let recorder = Recorder::start(deployment.sim(), deployment.watched(), vec![subject(&deployment, &key)]);
    let length = Duration::from_secs(15);
    let report = together(load(&deployment, &key, length));
    let history = recorder.finish(report);
    history.check(&Expectations {
        failed_calls: FailedCalls::None,
        // One for each 2.4 seconds that pass before it is due, and what the recovery takes.
        token_calls_max: Some(12),
        ..Expectations::default()
    });
    for daemon in deployment.daemons() {
        let metrics =
            get(&format!("{}/metrics", daemon.admin_origin())).bearer(daemon.admin_key()).send().text();
        let of_window = |line: &&str| {
            line.starts_with("bearerd_refresh_unsaved_seconds_sum")
                || line.starts_with("bearerd_refresh_unsaved_seconds_count")
        };
        for line in metrics.lines().filter(of_window) {
            println!("{line}");
        }
    }
}

/// I-8: a thousand callers of three processes on one token that has ended: one token call, no error.
#[test]
fn a_thousand_callers_share_one_token_call() {
    const CALLERS: usize = 1_000;
    let redis = Redis::start();
    let setup =
        setup("company-herd", &redis).set("tokens.warm_for_h", "0").set("tokens.call_timeout_s", "20");
    let deployment = Deployment::start_many(setup, PROCESSES, behaviour(4, true));
    let key = connect(&deployment, true);
    let usable = |daemon: &Daemon| {
        let shown = daemon.show("/v1/connections/hr-prod");
        shown["access_token_usable"].as_bool().unwrap_or_else(|| panic!("{shown}"))
    };
    wait_until("the token has ended", Duration::from_secs(20), || {
        deployment.daemons().all(|daemon| !usable(daemon)).then_some(())
    });
    deployment.sim().reset_counters();
    deployment
        .sim()
        .add_fault(FaultRule::new(FaultOn::Token, Fault::DelayMs { ms: 1_500, after_effect: false }));
    let calls = calls(&deployment, &key);
    let answers = block_on(async {
        let sent: Vec<_> = (0..CALLERS)
            .map(|number| {
                let call = calls[number % calls.len()].clone();
                tokio::spawn(async move { call.send_async().await })
            })
            .collect();
        let mut answers = BTreeMap::<String, usize>::new();
        for sent in sent {
            let what = match sent.await.unwrap() {
                Ok(reply) => format!("{} {}", reply.status, reply.header("bearerd-error")),
                Err(error) => error,
            };
            *answers.entry(what).or_default() += 1;
        }
        answers
    });
    let refreshes = deployment.sim().counters().token.get("refresh_token").cloned().unwrap_or_default();
    println!("{CALLERS} callers at {PROCESSES} processes: {answers:?}; token calls: {refreshes:?}");
    assert_eq!(answers, BTreeMap::from([("200 ".to_owned(), CALLERS)]));
    assert_eq!(refreshes.values().sum::<u64>(), 1, "{refreshes:?}");
}

/// I-7: the token endpoint is down for 25 of a token's 30 seconds: no call fails.
#[test]
fn a_token_endpoint_that_is_down_for_most_of_a_tokens_life_fails_no_call() {
    let redis = Redis::start();
    let deployment =
        Deployment::start_many(setup("company-provider", &redis), PROCESSES, behaviour(30, true));
    let key = connect(&deployment, true);
    let recorder = Recorder::start(deployment.sim(), deployment.watched(), vec![subject(&deployment, &key)]);
    let down =
        Fault::Status { status: 503, body: String::new(), headers: BTreeMap::new(), after_effect: false };
    deployment.sim().add_fault(FaultRule::new(FaultOn::Token, down));
    let loads = load(&deployment, &key, Duration::from_secs(35));
    thread::sleep(Duration::from_secs(25)); // how long it is down is what is tested
    deployment.sim().clear_faults();
    let history = recorder.finish(together(loads));
    history.check(&Expectations { failed_calls: FailedCalls::None, ..Expectations::default() });
}

/// Redis is away for thirty seconds: calls go on with what is cached, and where refresh tokens stay, refreshes go on
/// from memory; what they brought is stored when it is back.
#[test]
fn redis_away_for_thirty_seconds_fails_no_call() {
    let mut redis = Redis::start();
    let deployment = Deployment::start_many(setup("company-redis", &redis), PROCESSES, behaviour(10, false));
    let key = connect(&deployment, false);
    let recorder = Recorder::start(deployment.sim(), deployment.watched(), vec![subject(&deployment, &key)]);
    redis.kill();
    let loads = load(&deployment, &key, Duration::from_secs(35));
    thread::sleep(Duration::from_secs(30)); // how long it is away is what is tested
    redis.restart();
    let history = recorder.finish(together(loads));
    history.check(&Expectations {
        // Without the store each process refreshes for itself what does not rotate.
        partition: true,
        failed_calls: FailedCalls::None,
        ..Expectations::default()
    });
}

/// I-1: a Redis that was emptied is not taken for one in which everything was deleted: the process goes on with what it
/// holds, says so, and goes on as before when the data is back.
#[test]
fn an_emptied_redis_is_not_believed() {
    let mut redis = Redis::start();
    let deployment = Deployment::start(setup("company-emptied", &redis), behaviour(1_800, true));
    let key = connect(&deployment, true);
    let (data, copy) = (redis.folder().join("appendonlydir"), redis.folder().join("copy"));
    copy_folder(&data, &copy);
    assert_eq!(redis.cli(&["FLUSHALL"]).trim(), "OK");
    let readiness = get(&format!("{}/readyz", deployment.daemon.admin_origin()));
    let is_ready = || readiness.try_send().is_ok_and(|reply| reply.status == 200);
    wait_until("it is noticed", Duration::from_secs(5), || (!is_ready()).then_some(()));
    assert_eq!(deployment.incidents(&key).send().status, 200, "with what it holds");
    let refused =
        deployment.daemon.admin(Method::PUT, "/v1/policies/anew").json(&json!({"rules": []})).send();
    assert_eq!(refused.status, 503, "{}", refused.text());

    redis.kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&copy, &data);
    redis.restart();
    wait_until("its data is back", Duration::from_secs(10), || is_ready().then_some(()));
    deployment.daemon.post("/v1/connections/hr-prod/refresh", &json!({}));
    assert_eq!(deployment.incidents(&key).send().status, 200);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
