//! Three processes on a Redis whose primary is killed again and again, under load, while tokens live five seconds and
//! every refresh spends its refresh token: no grant is lost and no call fails.
//!
//! `BEARERD_FAILOVERS` says how often: 5 times in CI, 100 for `docs/reliability.md`.

use std::time::{Duration, Instant};

use bearerd_tests::{
    Deployment, Expectations, FailedCalls, Load, LoadReport, Recorder, RedisCluster, RedisSentinel, Setup,
    Subject, wait_until,
};
use http::Method;
use serde_json::json;
use servicenow_sim::Behaviour;

const PROCESSES: usize = 3;
const CALLS_PER_SECOND: u32 = 5;
const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2&sysparm_fields=number,sys_id";
/// From a promotion until a refresh is committed again.
const REFRESHED_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_killed_primary_under_sentinel_costs_no_grant_and_no_call() {
    let mut redis = RedisSentinel::start();
    check("failover-sentinel", &mut redis);
}

#[test]
fn a_killed_primary_of_a_cluster_costs_no_grant_and_no_call() {
    let mut redis = RedisCluster::start();
    check("failover-cluster", &mut redis);
}

/// A Redis that replaces a dead primary by itself.
trait Replicated {
    fn settings(&self) -> Vec<(String, String)>;
    fn kill_primary(&mut self);
    fn wait_for_new_primary(&self);
    fn restart_killed(&mut self);
}

macro_rules! replicated {
    ($name:ty) => {
        impl Replicated for $name {
            fn settings(&self) -> Vec<(String, String)> {
                self.settings()
            }
            fn kill_primary(&mut self) {
                self.kill_primary();
            }
            fn wait_for_new_primary(&self) {
                self.wait_for_new_primary();
            }
            fn restart_killed(&mut self) {
                self.restart_killed();
            }
        }
    };
}

replicated!(RedisSentinel);
replicated!(RedisCluster);

fn check(name: &str, redis: &mut impl Replicated) {
    let failovers = failovers();
    let mut setup = Setup::new(name).spilling().set("tokens.call_timeout_s", "5");
    for (name, value) in redis.settings() {
        setup = setup.set(&name, &value);
    }
    let behaviour = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        access_token_lifetime_s: 5,
        rotation: true,
        rotation_reuse_revokes: true,
        rotation_previous_ok_s: 60,
        ..Behaviour::default()
    };
    let deployment = Deployment::start_many(setup, PROCESSES, behaviour);
    let key = deployment.connect_under(json!({"rotates_refresh_tokens": true}));
    let calls: Vec<_> =
        deployment.daemons().map(|daemon| daemon.call(Method::GET, INCIDENTS, &key)).collect();
    for call in &calls {
        wait_until("the key is known", Duration::from_secs(5), || {
            call.try_send().is_ok_and(|reply| reply.status == 200).then_some(())
        });
    }
    let subject = Subject::new("hr-prod", "abel.tuter").calling(deployment.incidents(&key));
    let recorder = Recorder::start(deployment.sim(), deployment.watched(), vec![subject]);
    let length = Duration::from_mins(1) * failovers; // ended before
    let loads: Vec<Load> =
        calls.into_iter().map(|call| Load::start(call, CALLS_PER_SECOND, length)).collect();
    // As the store has it: under rotation each refresh is a generation of its own.
    let committed = || {
        let shown = deployment.daemon.admin(Method::GET, "/v1/connections/hr-prod").try_send().ok();
        shown.filter(|reply| reply.status == 200).and_then(|reply| reply.json()["generation"].as_u64())
    };
    let mut slowest = Duration::ZERO;
    for number in 1..=failovers {
        let killed_at = Instant::now();
        redis.kill_primary();
        redis.wait_for_new_primary();
        let promoted_at = Instant::now();
        let before = wait_until("the store answers", Duration::from_secs(30), &committed);
        wait_until("a refresh is committed after the promotion", Duration::from_secs(30), || {
            committed().filter(|generation| *generation > before)
        });
        let took = promoted_at.elapsed();
        println!(
            "{number}: promoted {:.2?} after the kill, refreshed {took:.2?} after that",
            promoted_at - killed_at
        );
        slowest = slowest.max(took);
        redis.restart_killed();
    }
    let reports = loads.into_iter().map(Load::stop).inspect(|report| println!("{report}"));
    let report = reports.fold(LoadReport::default(), LoadReport::and);
    let history = recorder.finish(report);
    history.check(&Expectations { failed_calls: FailedCalls::None, ..Expectations::default() });
    println!(
        "{name}: {failovers} primaries killed, grants lost: 0; slowest refresh after a promotion: {slowest:.2?}"
    );
    assert!(slowest <= REFRESHED_WITHIN, "{slowest:?}");
}

fn failovers() -> u32 {
    #[expect(clippy::disallowed_methods, reason = "the size of the test, not a setting of the daemon")]
    let asked = std::env::var("BEARERD_FAILOVERS").ok();
    asked.map_or(5, |text| text.parse().expect("BEARERD_FAILOVERS is a number"))
}
