//! F-03: the network between two processes and their Redis fails in each of its ways, under load. No call fails, and
//! the run ends with the history checker.

use std::{thread, time::Duration};

use bearerd_tests::{
    Deployment, Direction, Expectations, FailedCalls, FaultProxy, Load, LoadReport, Recorder, Redis, Setup,
    Subject, wait_until,
};
use http::Method;
use servicenow_sim::Behaviour;

#[test]
fn no_fault_between_processes_and_redis_loses_a_grant() {
    check("network", false);
}

#[test]
fn no_fault_between_processes_and_redis_loses_a_grant_under_rotation() {
    check("network-rotation", true);
}

fn check(name: &str, rotation: bool) {
    let redis = Redis::start();
    let network = FaultProxy::start(redis.url().trim_start_matches("redis://").parse().unwrap());
    let setup = Setup::new(name)
        .redis(&redis)
        .set("redis.url", &format!("redis://{}", network.address()))
        .set("redis.response_timeout_s", "1")
        .set("tokens.call_timeout_s", "3")
        .spilling();
    let behaviour = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        // A token outlives a fault by far.
        access_token_lifetime_s: 12,
        rotation,
        rotation_previous_ok_s: 30,
        ..Behaviour::default()
    };
    let deployment = Deployment::start_many(setup, 2, behaviour);
    let rotates =
        if rotation { serde_json::json!({"rotates_refresh_tokens": true}) } else { serde_json::json!({}) };
    let key = deployment.connect_under(rotates);
    let calls: Vec<_> = deployment.daemons().map(|daemon| deployment.incidents_at(daemon, &key)).collect();
    for call in &calls {
        let heard = || (call.send().status == 200).then_some(());
        wait_until("each process has heard of the key", Duration::from_secs(10), heard);
    }
    let subject = Subject::new("hr-prod", "abel.tuter").calling(calls[0].clone());
    let mut recorder = Recorder::start(deployment.sim(), deployment.watched(), vec![subject]);
    let length = 2 * LASTS * FAULTS;
    let loads: Vec<Load> =
        calls.iter().map(|call| Load::start(call.clone(), CALLS_PER_SECOND, length)).collect();
    for fault in 0..FAULTS {
        match fault {
            0 => network.latency(Direction::Both, Duration::from_millis(200)),
            1 => network.cut(),
            2 => network.reset(),
            3 => network.stall(Direction::Both, true),
            4 => network.stall(Direction::Down, true),
            5 => network.swallow(Direction::Up, true),
            6 => network.drip(Direction::Down, Some((3, Duration::from_millis(20)))),
            7 => network.cut_answer_after(1),
            _ => network.down(),
        }
        // Each fault meets an exchange; what the command is answered is not judged here.
        let forced = thread::spawn({
            let force = deployment.daemon.admin(Method::POST, "/v1/connections/hr-prod/refresh");
            move || drop(force.try_send())
        });
        thread::sleep(LASTS); // a fault lasts; nothing is waited for
        network.heal();
        forced.join().unwrap();
        network.reset(); // a connection that has lost bytes is not to be trusted again
        thread::sleep(LASTS);
    }
    recorder.faults_stopped();
    let calls = loads.into_iter().map(Load::finish).fold(LoadReport::default(), LoadReport::and);
    let history = recorder.finish(calls);
    let report = history.check(&Expectations { failed_calls: FailedCalls::None, ..Expectations::default() });
    println!("{name}\n{report}{} connections were made to Redis", network.accepted());
}

const CALLS_PER_SECOND: u32 = 10;
const FAULTS: u32 = 9;
const LASTS: Duration = Duration::from_millis(1_500);
