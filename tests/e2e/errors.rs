//! What callers are told when it does not work: status, `Bearerd-Error`, body in JSON and XML, `Retry-After`
//! (product.md §3).

use std::time::Duration;

use bearerd_tests::{Deployment, Reply, Request, Setup, wait_until};
use http::Method;
use serde_json::{Value, json};
use servicenow_sim::{Behaviour, ErrorShape, Fault, FaultOn, FaultRule};

const INCIDENT: &str = "/api/now/table/incident?sysparm_limit=1";

#[test]
fn keys_that_are_no_keys() {
    let deployment = Deployment::start_default("errors-keys");
    let key = deployment.connect();
    let call = |key: &str| deployment.daemon.call(Method::GET, INCIDENT, key);

    let anonymous = bearerd_tests::get(&format!("{}{INCIDENT}", deployment.daemon.proxy_origin()));
    check(&anonymous, 401, "caller_key_missing", false);
    let other = Deployment::start_default("errors-other-keys");
    let foreign = other.connect();
    check(&call(&foreign), 401, "caller_key_invalid", false);
    let mut mistyped = key.clone();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == 'a' { 'b' } else { 'a' });
    check(&call(&mistyped), 401, "caller_key_invalid", false);
    check(&call("nonsense"), 401, "caller_key_invalid", false);
    check(&call(deployment.daemon.admin_key()), 401, "caller_key_invalid", false);
    check(&call(&key).header("x-api-key", &foreign), 400, "key_ambiguous", false);
    assert_eq!(call(&key).header("x-sn-apikey", &key).send().status, 200, "the same key twice is one key");

    let words = ["key", "add", "--description", "short", "--policy", "open", "--expires-in", "2s"];
    let issued = deployment.daemon.cli(&words).json();
    let short = issued["caller_key"].as_str().unwrap().to_owned();
    assert_eq!(call(&short).send().status, 200, "a key works until it expires");
    wait_until("the key expires", Duration::from_secs(10), || {
        (call(&short).send().status == 401).then_some(())
    });
    check(&call(&short), 401, "caller_key_expired", false);

    let id = issued["id"].as_str().unwrap();
    assert_eq!(deployment.daemon.admin(Method::DELETE, &format!("/v1/keys/{id}")).send().status, 204);
    wait_until("the key is gone", Duration::from_secs(2), || {
        (call(&short).send().header("bearerd-error") == "caller_key_invalid").then_some(())
    });
}

#[test]
fn what_no_policy_opens() {
    let deployment = Deployment::start_default("errors-policy");
    deployment.connect();
    deployment.add_connection("pending", "hr", None);
    let rule = json!({"connections": {"ids": ["hr-prod", "pending"]}, "tables": {"named": ["incident"]}, "methods": ["GET"]});
    deployment.daemon.put("/v1/policies/read-incidents", &json!({"rules": [rule]}));
    let key = deployment.daemon.new_key("read-incidents");
    let call = |method: Method, path: &str, connection: &str| {
        deployment.daemon.call(method, path, &key).header("connection-id", connection)
    };

    assert_eq!(call(Method::GET, INCIDENT, "hr-prod").send().status, 200);
    let denied = check(&call(Method::GET, "/api/now/table/problem", "hr-prod"), 403, "policy_denied", false);
    assert!(denied["error"]["detail"].as_str().is_some_and(|detail| detail.contains("no rule")), "{denied}");
    let record = "/api/now/table/incident/46e18c0fa9fe19810066a0083f76bd56";
    let denied = check(&call(Method::DELETE, record, "hr-prod"), 403, "policy_denied", false);
    let detail = denied["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("read-incidents") && detail.contains("DELETE"), "names the rule: {denied}");
    for closed in ["/api/now/v1/batch", "/api/now/batch", "/api/now/tinyurl", "/api/now/stats/incident"] {
        check(&call(Method::POST, closed, "hr-prod").json(&json!({})), 403, "policy_denied", false);
    }
    check(&call(Method::GET, INCIDENT, "pending"), 409, "connection_pending", false);

    // Nobody learns from the answer whether a connection exists (S-16).
    deployment.add_connection("secret", "hr", None);
    let unknown = call(Method::GET, INCIDENT, "no-such-connection");
    let forbidden = call(Method::GET, INCIDENT, "secret");
    check(&unknown, 404, "connection_unknown", false);
    let (unknown, forbidden) = (unknown.send(), forbidden.send());
    assert_eq!(unknown.body, forbidden.body);
    assert_eq!(comparable(&unknown), comparable(&forbidden));
    let by_path = |id: &str| deployment.daemon.call(Method::GET, &format!("/c/{id}{INCIDENT}"), &key).send();
    assert_eq!(by_path("hr-prod").status, 200);
    assert_eq!(by_path("no-such-connection").body, by_path("secret").body);
    assert_eq!(by_path("secret").body, forbidden.body);

    let freeze = json!({"reason": "CHG0030001"});
    deployment.daemon.post("/v1/connections/hr-prod/freeze", &freeze);
    wait_for_code(&call(Method::GET, INCIDENT, "hr-prod"), "connection_frozen");
    check(&call(Method::GET, INCIDENT, "hr-prod"), 409, "connection_frozen", false);
    assert_eq!(deployment.daemon.admin(Method::POST, "/v1/connections/hr-prod/unfreeze").send().status, 200);
    wait_until("calls go out again", Duration::from_secs(2), || {
        (call(Method::GET, INCIDENT, "hr-prod").send().status == 200).then_some(())
    });
}

/// Requests that no policy is asked about.
#[test]
fn requests_that_are_not_for_us() {
    let setup = Setup::new("errors-requests").set("proxy.hosts", "bearerd.example,other.example:8443");
    let behaviour = Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() };
    let deployment = Deployment::start(setup, behaviour);
    let key = deployment.connect();
    let at = |host: &str, method: Method, path: &str| {
        deployment.daemon.call(method, path, &key).header("host", host)
    };
    for host in ["bearerd.example", "other.example:8443"] {
        assert_eq!(at(host, Method::GET, INCIDENT).send().status, 200, "{host}");
    }
    let ours = "bearerd.example";
    check(&at("evil.example", Method::GET, INCIDENT), 421, "misdirected", false);
    check(&at(ours, Method::OPTIONS, INCIDENT), 405, "method_refused", false);
    for path in
        ["/api/now/table/incident%2f..", "/api/now//table/incident", "/v1/connections", "/metrics", "/"]
    {
        check(&at(ours, Method::GET, path), 400, "path_refused", false);
    }
    let long = format!("{INCIDENT}&sysparm_query={}", "a".repeat(9_000));
    check(&at(ours, Method::GET, &long), 414, "target_too_long", false);
    let large = at(ours, Method::GET, INCIDENT).header("x-large", &"a".repeat(66_000));
    check(&large, 431, "headers_too_large", false);
    let unexpected = at(ours, Method::POST, INCIDENT).header("expect", "200-ok");
    check(&unexpected, 417, "expectation_refused", false);
}

/// The instance refused the newest refresh token: a person must consent again, and the caller is told so with a
/// status that makes no client log in again.
#[test]
fn a_dead_grant_is_424() {
    let behaviour = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        error_shape: ErrorShape::Rfc6749,
        ..Behaviour::default()
    };
    let deployment = Deployment::start(Setup::new("errors-dead"), behaviour);
    let key = deployment.connect();
    let call = deployment.incidents(&key);
    assert_eq!(call.send().status, 200);
    deployment.sim().revoke_user("abel.tuter", false);
    wait_for_code(&call, "reauthorization_required");
    let told = check(&call, 424, "reauthorization_required", false);
    assert!(
        told["error"]["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
        "since when and why: {told}"
    );
    let shown = deployment.daemon.show("/v1/connections/hr-prod");
    assert_eq!(shown["state"]["name"], "reauthorization_required", "{shown}");
    assert_eq!(shown["state"]["cause"], "grant_refused", "{shown}");
    let told = deployment.daemon.cli(&["connection", "show", "hr-prod", "--output", "table"]);
    assert!(told.stdout.contains("bearerd connection reauthorize hr-prod"), "{told:?}");
}

/// The token endpoint fails for longer than the token lives: calls are told to wait, and go on by themselves
/// afterwards.
#[test]
fn no_token_to_be_had() {
    let behaviour = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        access_token_lifetime_s: 2,
        ..Behaviour::default()
    };
    let deployment = Deployment::start(Setup::new("errors-tokens").set("tokens.wait_max_s", "1"), behaviour);
    let key = deployment.connect();
    let call = deployment.incidents(&key);
    deployment.sim().add_fault(FaultRule::new(FaultOn::Token, Fault::Asleep));
    wait_for_code(&call, "token_unavailable");
    check(&call, 503, "token_unavailable", true);
    let shown = deployment.daemon.show("/v1/connections/hr-prod");
    assert_eq!(shown["state"]["name"], "active", "a sleeping instance refuses no grant: {shown}");
    assert_eq!(shown["health"]["name"], "failing", "{shown}");
    deployment.sim().clear_faults();
    wait_until("calls go out again", Duration::from_mins(1), || (call.send().status == 200).then_some(()));
    assert_eq!(deployment.daemon.show("/v1/connections/hr-prod")["health"]["name"], "ok");
}

#[test]
fn an_instance_in_trouble() {
    let setup = Setup::new("errors-instance")
        .set("proxy.table.first_byte_timeout_s", "1")
        .set("tokens.wait_max_s", "1");
    let behaviour = Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() };
    let mut deployment = Deployment::start(setup, behaviour);
    let key = deployment.connect();
    let call = deployment.incidents(&key);
    let during = |fault: Fault, examine: &dyn Fn()| {
        let id = deployment.sim().add_fault(FaultRule::new(FaultOn::Table, fault)).unwrap();
        examine();
        deployment.sim().remove_fault(id);
    };

    during(Fault::Accepted202, &|| {
        check(&call, 503, "instance_dropped_request", true);
    });
    during(Fault::Asleep, &|| {
        check(&call, 503, "instance_asleep", true);
    });
    during(Fault::Html { status: 200 }, &|| {
        check(&call, 503, "instance_asleep", true);
    });
    during(Fault::DelayMs { ms: 3_000, after_effect: false }, &|| {
        check(&call, 504, "instance_timeout", false);
    });
    during(Fault::DropBefore, &|| {
        check(&call, 502, "instance_unreachable", false);
    });
    // What the instance itself says passes untouched.
    during(Fault::Cancelled500, &|| {
        let reply = call.send();
        assert_eq!((reply.status, reply.header("bearerd-error")), (500, ""));
        assert!(reply.text().contains("Transaction cancelled"), "{}", reply.text());
    });
    during(Fault::RateLimit429 { retry_after_s: 7 }, &|| {
        let reply = call.send();
        assert_eq!(
            (reply.status, reply.header("bearerd-error"), reply.header("retry-after")),
            (429, "", "7")
        );
    });
    // A second 401 in a row is the instance's own.
    during(Fault::Unauthorized401, &|| {
        let reply = call.send();
        assert_eq!((reply.status, reply.header("bearerd-error")), (401, ""), "{}", reply.text());
    });
    assert_eq!(call.send().status, 200, "and afterwards all is well");

    deployment.stop_instance();
    check(&call, 502, "instance_unreachable", false);
}

/// Sends the call as it is and asking for XML, and looks at both answers. Answers the JSON body.
#[track_caller]
fn check(call: &Request, status: u16, code: &str, retry_after: bool) -> Value {
    let reply = call.send();
    let about = format!("{code}: {}", reply.everything());
    assert_eq!(reply.status, status, "{about}");
    check_headers(&reply, code, retry_after);
    assert_eq!(reply.header("content-type").split(';').next(), Some("application/json"), "{about}");
    let body = reply.json();
    assert_eq!(body["status"], "failure", "{about}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{about}");
    assert!(body["error"].as_object().unwrap().contains_key("detail"), "{about}");
    assert_eq!(body["bearerd"]["code"], code, "{about}");
    assert!(body["bearerd"]["retryable"].is_boolean(), "{about}");
    assert!(body["bearerd"]["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{about}");
    assert!(!reply.text().contains(reply.header("x-request-id")), "the request id is a header only: {about}");

    let reply = call.clone().replace_header("accept", "application/xml").send();
    let about = format!("{code} as XML: {}", reply.everything());
    assert_eq!(reply.status, status, "{about}");
    check_headers(&reply, code, retry_after);
    assert!(reply.header("content-type").contains("xml"), "{about}");
    let text = reply.text();
    for piece in ["<error><message>", "<status>failure</status>", &format!("<code>{code}</code>")] {
        assert!(text.contains(piece), "{piece} in {about}");
    }
    body
}

#[track_caller]
fn check_headers(reply: &Reply, code: &str, retry_after: bool) {
    let about = reply.everything();
    assert_eq!(reply.header("bearerd-error"), code, "{about}");
    assert!(!reply.header("x-request-id").is_empty(), "{about}");
    assert_eq!(reply.header("cache-control"), "no-store", "{about}");
    assert!(reply.headers.get("set-cookie").is_none(), "{about}");
    let secs = reply.header("retry-after").parse::<u64>();
    assert_eq!(secs.is_ok(), retry_after, "Retry-After: {about}");
}

/// All headers but those that differ from call to call.
fn comparable(reply: &Reply) -> Vec<(String, String)> {
    let varying = ["date", "x-request-id"];
    let headers = reply.headers.iter().filter(|(name, _)| !varying.contains(&name.as_str()));
    headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

#[track_caller]
fn wait_for_code(call: &Request, code: &str) {
    wait_until(code, Duration::from_secs(20), || (call.send().header("bearerd-error") == code).then_some(()));
}
