//! The consent, request by request: links and states that are used up, replayed, mixed up. Names begin with the ids of
//! `reference/security.md`.

use std::time::Duration;

use bearerd_tests::{Deployment, Setup, WebClient, get, request, wait_until};
use http::{Method, StatusCode};
use servicenow_sim::Behaviour;

/// The callback once more, the callback after an error, the callback with another flow's cookie: one exchange in all.
#[test]
fn o03_o06_o07_o10_o56_a_state_works_once() {
    let deployment = Deployment::start_default("consent-state");
    deployment.add_integration("hr");
    let link = deployment.add_connection("hr-prod", "hr", Some("abel.tuter"));
    let mut browser = WebClient::new();
    let at_instance = browser.begin(&link);
    let callback = browser.approve(&at_instance);
    assert!(at_instance.contains("code_challenge_method=S256"), "PKCE always (O-11): {at_instance}");
    // Somebody else's guess at the same callback, without the cookie, would burn it: so the right one goes first.
    assert_eq!(browser.get(&callback).status, 303);
    for visitor in [&mut browser, &mut WebClient::new()] {
        let replayed = visitor.get(&callback).expect(StatusCode::BAD_REQUEST);
        assert!(replayed.text().contains("state_invalid"), "{}", replayed.text());
    }
    assert_eq!(exchanges(&deployment), 1);
    assert_eq!(deployment.connection_state("hr-prod"), "active");

    // An error return burns the state too.
    let reauthorize = || {
        let link = deployment.daemon.post("/v1/connections/hr-prod/reauthorize", &serde_json::json!({}));
        link["url"].as_str().unwrap().to_owned()
    };
    let at_instance = browser.begin(&reauthorize());
    let callback = browser.approve(&at_instance);
    let state = callback.split("state=").nth(1).unwrap();
    let failing =
        format!("{}/oauth/callback?error=access_denied&state={state}", deployment.daemon.connect_origin());
    assert_eq!(browser.get(&failing).status, 303);
    assert_eq!(browser.get(&callback).status, 400);
    // A repeated parameter is no answer, and burns it as well.
    let at_instance = browser.begin(&reauthorize());
    let callback = browser.approve(&at_instance);
    assert_eq!(browser.get(&format!("{callback}&code=1")).status, 400);
    assert_eq!(browser.get(&callback).status, 400);
    // No cookie.
    let at_instance = browser.begin(&reauthorize());
    let callback = browser.approve(&at_instance);
    let without = WebClient::new().get(&callback).expect(StatusCode::BAD_REQUEST);
    assert!(without.text().contains("other_browser"), "{}", without.text());
    assert_eq!(exchanges(&deployment), 1, "none of these reached the token endpoint");

    // Two flows in one browser do not meet.
    let (first, second) = (browser.begin(&reauthorize()), browser.begin(&reauthorize()));
    let (first, second) = (browser.approve(&first), browser.approve(&second));
    assert_eq!(browser.get(&second).status, 303);
    assert_eq!(browser.get(&first).status, 303);
    assert_eq!(exchanges(&deployment), 3);
    assert_eq!(deployment.connection_state("hr-prod"), "active");
}

/// The shortest life that a link can have is a minute.
#[test]
fn o24_a_link_expires() {
    let setup = Setup::new("consent-expiry").set("connect.link_lifetime_s", "60");
    let deployment = Deployment::start(setup, Behaviour::default());
    deployment.add_integration("hr");
    let link = deployment.add_connection("hr-prod", "hr", None);
    assert_eq!(get(&link).send().status, 200);
    let mut looks = 0;
    wait_until("the link expires", Duration::from_secs(75), || {
        looks += 1;
        // A look every second or so is enough for a minute.
        (looks % 60 == 0 && get(&link).send().status == 410).then_some(())
    });
    let gone = request(Method::POST, &link)
        .header("origin", &deployment.daemon.connect_origin())
        .header("sec-fetch-site", "same-origin")
        .send();
    assert_eq!(gone.status, 410);
    assert_eq!(deployment.sim().counters().requests_to("authorize"), 0);
}

/// How often a code was exchanged at the instance, with whatever outcome.
pub(crate) fn exchanges(deployment: &Deployment) -> u64 {
    let counters = deployment.sim().counters();
    counters.token.get("authorization_code").map(|outcomes| outcomes.values().sum()).unwrap_or_default()
}
