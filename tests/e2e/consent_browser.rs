//! The consent in headless Chromium: what a person sees, and what another person cannot do. Names begin with the ids of
//! `reference/security.md`.

use std::time::Duration;

use bearerd_tests::{Browser, Browsers, Deployment, Setup, get, wait_until};
use http::StatusCode;
use servicenow_sim::{Behaviour, ClientSettings, DenyReturns};

use crate::consent::exchanges;

const DESK: u32 = 1_000;
const PHONE: u32 = 390;

/// The main road, twice: a first consent, and a second one that replaces the grant.
#[test]
fn o24_o28_o29_a_person_connects_and_reconnects() {
    let deployment = Deployment::start(Setup::new("consent-main"), Behaviour::default());
    deployment.add_integration("hr");
    let link = deployment.add_connection("hr-prod", "hr", Some("admin"));
    let browsers = Browsers::start();
    let browser = browsers.open("consent", PHONE);

    // Looking at the page uses nothing up: mail scanners look too.
    for _ in 0..3 {
        assert_eq!(get(&link).send().status, 200);
    }
    browser.goto(&link);
    let page = browser.wait_for("Continue to");
    assert!(page.contains("hr-prod") && page.contains("admin"), "{page}");
    check_page(&browser);
    browser.screenshot("1-link");
    browser.press("form button");
    browser.sign_in("admin", "admin", "#allow");
    let page = browser.wait_for("Connected");
    assert!(page.contains("System Administrator"), "{page}");
    assert!(page.contains(deployment.instance.trim_start_matches("http://")), "{page}");
    browser.screenshot("2-connected");
    check_page(&browser);
    let address = browser.address();
    let done = format!("{}/connect/done/", deployment.daemon.connect_origin());
    assert!(address.starts_with(&done) && !address.contains('?') && !address.contains('#'), "{address}");
    check_requests(&browser, &deployment);
    check_headers_of(&address);

    // The result page is shown to whoever has its address, as often as they like; the link is not.
    browser.goto(&link);
    browser.wait_for("This link no longer works");
    check_page(&browser);

    deployment.add_open_policy("open");
    let key = deployment.daemon.new_key("open");
    assert_eq!(deployment.incidents(&key).send().status, 200);
    let again = deployment.daemon.cli(&["connection", "reauthorize", "hr-prod"]).json();
    assert_eq!(deployment.connection_state("hr-prod"), "active", "the old grant goes on meanwhile");
    browser.goto(again["url"].as_str().unwrap());
    browser.wait_for("Continue to");
    browser.press("form button");
    browser.sign_in("admin", "admin", "#allow");
    browser.wait_for("Connected");
    assert_eq!(deployment.incidents(&key).send().status, 200);

    // A working connection is not given to somebody else (O-21, O-23).
    let again = deployment.daemon.cli(&["connection", "reauthorize", "hr-prod"]).json();
    browser.goto(again["url"].as_str().unwrap());
    browser.wait_for("Continue to");
    browser.press("form button");
    browser.sign_in("abel.tuter", "demo", "#allow");
    let page = browser.wait_for("Not connected");
    assert!(page.contains("other_user"), "{page}");
    assert_eq!(deployment.daemon.show("/v1/connections/hr-prod")["user"]["user_name"], "admin");
    assert_eq!(deployment.incidents(&key).send().status, 200);
}

/// What goes wrong on the way is told on a page, with what the operator must change.
#[test]
fn o21_o23_o33_failures_are_told_and_unexpected_users_wait() {
    let deployment = Deployment::start(Setup::new("consent-failures"), Behaviour::default());
    deployment.add_integration("hr");
    let browsers = Browsers::start();
    let browser = browsers.open("failure", DESK);
    let new_link = || {
        let link = deployment.daemon.cli(&["connection", "reauthorize", "hr-prod"]).json();
        link["url"].as_str().unwrap().to_owned()
    };
    let arrive = |link: &str| {
        browser.goto(link);
        browser.wait_for("Continue to");
        browser.press("form button");
    };

    // Denied, as the RFC has it, and as a bare return.
    let link = deployment.add_connection("hr-prod", "hr", Some("abel.tuter"));
    arrive(&link);
    browser.sign_in("abel.tuter", "demo", "#deny");
    let page = browser.wait_for("Not connected");
    assert!(page.contains("consent_denied") && page.contains("not allowed"), "{page}");
    browser.screenshot("1-denied");
    check_page(&browser);
    assert_eq!(deployment.connection_state("hr-prod"), "pending");
    deployment.sim().change_behaviour(|behaviour| behaviour.deny_returns = DenyReturns::Bare);
    arrive(&new_link());
    browser.sign_in("abel.tuter", "demo", "#deny");
    browser.wait_for("nothing was connected");
    assert_eq!(deployment.connection_state("hr-prod"), "pending");

    // Wrong client secret: the instance says only access_denied, the page says where to look.
    let right = deployment.sim().clients().remove(0);
    deployment.sim().put_client(ClientSettings { client_secret: Some("other".to_owned()), ..right.clone() });
    arrive(&new_link());
    browser.sign_in("abel.tuter", "demo", "#allow");
    let page = browser.wait_for("Not connected");
    assert!(page.contains("client secret") && page.contains("Application Registry"), "{page}");
    assert!(page.contains("Error id"), "{page}");
    browser.screenshot("2-wrong-secret");
    deployment.sim().put_client(right);
    assert_eq!(deployment.connection_state("hr-prod"), "pending");

    // Somebody else consents: nothing is lent until an operator says so.
    arrive(&new_link());
    browser.sign_in("beth.anglin", "demo", "#allow");
    let page = browser.wait_for("Connected");
    assert!(page.contains("bearerd connection confirm hr-prod --user"), "{page}");
    browser.screenshot("3-waits-for-confirmation");
    let shown = deployment.daemon.show("/v1/connections/hr-prod");
    assert_eq!(shown["state"]["cause"], "awaiting_confirmation", "{shown}");
    deployment.add_open_policy("open");
    let key = deployment.daemon.new_key("open");
    assert_eq!(deployment.incidents(&key).send().header("bearerd-error"), "connection_pending");
    let wrong = deployment.daemon.cli(&["connection", "confirm", "hr-prod", "--user", "admin"]);
    assert_ne!(wrong.code, 0, "{wrong:?}");
    let confirmed = deployment.daemon.cli(&["connection", "confirm", "hr-prod", "--user", "beth.anglin"]);
    assert_eq!(confirmed.json()["state"]["name"], "active");
    wait_until("calls go out", Duration::from_secs(2), || {
        (deployment.incidents(&key).send().status == 200).then_some(())
    });
}

/// One person starts, another finishes: neither gets a connection, and the code is never exchanged.
#[test]
fn o02_o04_another_browser_cannot_finish() {
    let deployment = Deployment::start(Setup::new("consent-other-browser"), Behaviour::default());
    deployment.add_integration("hr");
    let link = deployment.add_connection("hr-prod", "hr", None);
    let browsers = Browsers::start();
    let (mallory, alice) = (browsers.open("mallory", DESK), browsers.open("alice", DESK));
    mallory.goto(&link);
    mallory.wait_for("Continue to");
    mallory.press("form button");
    mallory.wait_for("Allow access");

    alice.goto(&mallory.address());
    alice.sign_in("admin", "admin", "#allow");
    let page = alice.wait_for("Started in another browser");
    assert!(page.contains("other_browser"), "{page}");
    alice.screenshot("other-browser");
    check_page(&alice);

    mallory.sign_in("admin", "admin", "#allow");
    mallory.wait_for("This sign-in cannot be finished"); // burnt by the attempt (O-07)
    assert_eq!(exchanges(&deployment), 0);
    assert_eq!(deployment.connection_state("hr-prod"), "pending");
}

/// No script, nothing from elsewhere, and readable where it is shown (O-28).
#[track_caller]
fn check_page(browser: &Browser) {
    let found = browser.evaluate(
        "return {scripts: document.scripts.length, \
                 handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length, \
                 loaded: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.endsWith('/favicon.ico')), \
                 fits: document.documentElement.scrollWidth <= window.innerWidth}",
    );
    let expected = serde_json::json!({"scripts": 0, "handlers": 0, "loaded": [], "fits": true});
    assert_eq!(found, expected, "{}", browser.address());
}

/// Nobody but the daemon and the instance was asked anything, and the instance learnt no address of ours (O-29).
#[track_caller]
fn check_requests(browser: &Browser, deployment: &Deployment) {
    let requests = browser.requests();
    let (ours, theirs) = (deployment.daemon.connect_origin(), deployment.instance.clone());
    assert!(requests.iter().any(|request| request.url.contains("/oauth/callback?code=")), "{requests:#?}");
    for request in &requests {
        let local = request.url.starts_with("data:") || request.url.starts_with("chrome");
        assert!(local || request.url.starts_with(&ours) || request.url.starts_with(&theirs), "{request:?}");
        assert!(!request.referer.contains("/connect/"), "the link must not leave: {request:?}");
        assert!(!request.referer.contains("code="), "{request:?}");
    }
}

/// The headers of a result page (O-28 to O-31).
#[track_caller]
fn check_headers_of(address: &str) {
    let page = get(address).send().expect(StatusCode::OK);
    let policy = page.header("content-security-policy");
    for piece in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"] {
        assert!(policy.contains(piece), "{piece} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(page.header("cache-control").contains("no-store"));
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("x-frame-options"), "DENY");
}
