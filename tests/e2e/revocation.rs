//! Revocation never kills a live grant (product contract §5): ServiceNow gives one client and user the same tokens.

use std::{collections::BTreeMap, time::Duration};

use bearerd_tests::{Deployment, Redis, Setup, WebClient, wait_until};
use http::Method;
use servicenow_sim::{Behaviour, Fault, FaultOn, FaultRule};

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2";

#[test]
fn a_token_given_again_is_not_revoked_with_the_file() {
    check("revocation-embedded", None);
}

#[test]
fn a_token_given_again_is_not_revoked_with_redis() {
    check("revocation-redis", Some(&Redis::start()));
}

/// Delete, revocation endpoint down, the same user connects again, endpoint up: the new connection still works. Then it
/// goes too, over a restart, and its tokens are revoked.
fn check(name: &str, redis: Option<&Redis>) {
    let behaviour = Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() };
    let setup = Setup::new(name);
    let setup = if let Some(redis) = redis { setup.redis(redis) } else { setup };
    let mut deployment = Deployment::start(setup, behaviour);
    let key = deployment.connect();
    let token_before = fingerprint(&deployment, "hr-prod");

    deployment.sim().add_fault(endpoint_down());
    delete(&deployment, "hr-prod");
    wait_until("the revocation was tried in vain", Duration::from_secs(20), || {
        (deployment.sim().counters().requests_to("revoke") > 0).then_some(())
    });
    let link = deployment.add_connection("hr-again", "hr", Some("abel.tuter"));
    let page = WebClient::new().consent(&link);
    assert!(page.text().contains("Connected"), "{}", page.text());
    assert_eq!(fingerprint(&deployment, "hr-again"), token_before, "the instance gave the same token");
    deployment.sim().clear_faults();
    wait_until("the queue is empty", Duration::from_mins(1), || (skipped(&deployment) == 2).then_some(()));
    assert!(deployment.sim().counters().revoke.is_empty(), "{:?}", deployment.sim().counters().revoke);
    assert_eq!(deployment.call(Method::GET, INCIDENTS, &key).status, 200);
    deployment.daemon.post("/v1/connections/hr-again/refresh", &serde_json::json!({}));
    assert_eq!(deployment.call(Method::GET, INCIDENTS, &key).status, 200);

    // Down once more; the process ends; the next one finds what is queued.
    deployment.sim().add_fault(endpoint_down());
    delete(&deployment, "hr-again");
    wait_until("the revocation was tried in vain again", Duration::from_secs(20), || {
        (deployment.daemon.log().matches("revocation.failed").count() == 2).then_some(())
    });
    deployment.daemon.kill();
    deployment.sim().clear_faults();
    deployment.daemon.start_again();
    wait_until("both tokens are revoked", Duration::from_mins(1), || {
        (deployment.sim().counters().revoke.get("revoked") == Some(&2)).then_some(())
    });
}

fn endpoint_down() -> FaultRule {
    let fault =
        Fault::Status { status: 503, body: String::new(), headers: BTreeMap::new(), after_effect: false };
    FaultRule::new(FaultOn::Revoke, fault)
}

fn delete(deployment: &Deployment, id: &str) {
    let path = format!("/v1/connections/{id}");
    assert_eq!(deployment.daemon.admin(Method::DELETE, &path).send().status, 204);
}

fn fingerprint(deployment: &Deployment, id: &str) -> String {
    let shown = deployment.daemon.show(&format!("/v1/connections/{id}"));
    shown["fingerprint"].as_str().unwrap().to_owned()
}

/// Revocations that the daemon left out because a live connection holds the token, as its log has them.
fn skipped(deployment: &Deployment) -> usize {
    deployment.daemon.log().matches("revocation.skipped").count()
}
