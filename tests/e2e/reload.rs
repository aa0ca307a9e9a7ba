//! SIGHUP (product.md §9): what can change at run time is in force, all together or not at all; calls under way do not
//! notice.

use std::{fs, time::Duration};

use bearerd_tests::{Certificates, Daemon, Deployment, Flood, Setup, outcomes, wait_until};
use http::Method;
use servicenow_sim::{Behaviour, Fault, FaultOn, FaultRule};

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=1";
const LIMIT: Duration = Duration::from_secs(30);

/// P-24: the door shows a new certificate; a broken file changes nothing and is named; kept connections, calls without
/// pause and a call that waits for its instance go on over all of it.
#[test]
fn a_new_certificate_is_shown_and_a_broken_one_is_not() {
    let deployment = Deployment::start(Setup::new("reload").tls(), Behaviour::default());
    deployment.add_application("hr", &deployment.instance);
    deployment.add_open_policy("open");
    let key = deployment.daemon.new_key("open");
    let daemon = &deployment.daemon;
    let old = daemon.certificates().unwrap().clone();
    let call = daemon.call(Method::GET, INCIDENTS, &key);
    let flood = Flood::start(vec![call.clone(); 4]);
    let held = Fault::Hold { gate: "held".to_owned(), after_effect: false };
    let held = FaultRule { path_contains: Some("held".to_owned()), ..FaultRule::new(FaultOn::Table, held) };
    deployment.sim().add_fault(held);
    let held =
        Flood::start([daemon.call(Method::GET, &format!("{INCIDENTS}&sysparm_sim_marker=held"), &key)]);
    wait_until("a call waits for its instance", LIMIT, || {
        (deployment.sim().faults().iter().any(|fault| fault.fired > 0) && flood.count(|_| true) >= 20)
            .then_some(())
    });

    let new = Certificates::make(daemon.folder(), daemon.address());
    daemon.hang_up();
    let with_new = call.clone().trusting(&new.for_strangers());
    wait_until("the new certificate is shown", LIMIT, || {
        with_new.try_send().ok().filter(|reply| reply.status == 200)
    });
    assert_eq!(call.send().status, 200, "who resumes a session looks at no certificate");
    let refused = call.clone().trusting(&old.for_strangers()).try_send().unwrap_err();
    assert!(refused.starts_with("TLS: "), "the old one is shown no more: {refused}");

    let pair = [&new.certificate, &new.key].map(|path| (path, fs::read_to_string(path).unwrap()));
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Certificates::make(elsewhere.path(), daemon.address());
    for (path, text) in [
        (&new.certificate, "no certificate".to_owned()),
        (&new.key, String::new()),
        (&new.key, fs::read_to_string(&foreign.key).unwrap()),
        (&new.certificate, fs::read_to_string(&foreign.certificate).unwrap()),
    ] {
        let before = faults_said(daemon).len();
        fs::write(path, &text).unwrap();
        daemon.hang_up();
        wait_until("the fault is said", LIMIT, || (faults_said(daemon).len() > before).then_some(()));
        let said = faults_said(daemon).pop().unwrap();
        assert!(said.contains(path.to_str().unwrap()), "names the file: {said}");
        assert_eq!(with_new.send().status, 200, "what was read before is still shown");
        for (path, text) in &pair {
            fs::write(path, text).unwrap();
        }
    }
    assert!(daemon.log().contains("other settings need a restart"));

    let calls_before = flood.count(|_| true);
    wait_until("calls go on", LIMIT, || (flood.count(|_| true) >= calls_before + 20).then_some(()));
    deployment.sim().clear_faults();
    deployment.sim().release(Some("held"));
    wait_until("the call that waited is answered", LIMIT, || (held.count(|_| true) > 0).then_some(()));
    for calls in [flood.stop(), held.stop()] {
        println!("calls meanwhile: {:?}", outcomes(&calls));
        assert!(calls.iter().all(|call| call.is("200")), "{:?}", outcomes(&calls));
    }
}

/// What the log says of files that were not taken over.
fn faults_said(daemon: &Daemon) -> Vec<String> {
    daemon.log().lines().filter(|line| line.contains("was not read again")).map(str::to_owned).collect()
}
