//! What an idle daemon costs.

use std::time::Duration;

use bearerd_tests::{Deployment, Setup, release_binary, wait_until};
use servicenow_sim::Behaviour;

/// One connection, one call, no traffic. Issue 2 promises less than 25 MiB of the release build; a debug build is
/// held to a bound that only a leak exceeds.
#[test]
fn an_idle_daemon_is_small() {
    let setup = Setup::new("memory");
    let (setup, build, bound_mib) = match release_binary() {
        Some(binary) => (setup.binary(binary), "release", 25),
        None => (setup, "debug", 80),
    };
    let behaviour = Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() };
    let deployment = Deployment::start(setup, behaviour);
    let key = deployment.connect();
    assert_eq!(deployment.incidents(&key).send().status, 200);
    // At rest: the same figure twice, half a second apart.
    let mut last = 0;
    let resident = wait_until("memory is at rest", Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = deployment.daemon.resident_kib();
        (std::mem::replace(&mut last, now) == now).then_some(now)
    });
    let mib = resident.div_ceil(1024);
    println!(
        "resident memory with one connection and no traffic: {mib} MiB ({build} build; bound {bound_mib} MiB)"
    );
    assert!(mib < bound_mib, "{mib} MiB");
}
