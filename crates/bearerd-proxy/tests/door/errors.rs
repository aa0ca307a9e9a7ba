//! Calls that are refused: the code, the bytes, and that nothing of them reaches an instance.

use std::{sync::Arc, time::Duration};

use bearerd_model::{Clock, DeathCause, UnixTime};
use bearerd_policy::{ApiKey, KeyKind};
use bearerd_proxy::ProxySettings;
use bearerd_tokens::{LendError, Standing};

use crate::support::{Door, Instance, ids, ok, rule, snapshot, token, upstream};

/// P-01, P-02, P-15, P-16: shapes that smuggle, each on a connection of its own.
#[tokio::test]
async fn hostile_heads_are_refused_and_the_connection_closed() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let key = door.key.expose();
    let path = "/api/now/table/incident";
    let good = format!("host: b.example\r\nx-api-key: {key}\r\n");
    let mut refused = 0;
    for (what, bytes) in [
        (
            "CL then TE",
            format!(
                "POST {path} HTTP/1.1\r\n{good}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "TE then CL",
            format!(
                "POST {path} HTTP/1.1\r\n{good}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n"
            ),
        ),
        ("two CL", format!("POST {path} HTTP/1.1\r\n{good}content-length: 1\r\ncontent-length: 1\r\n\r\na")),
        ("LF in request line", format!("GET {path} HTTP/1.1\n{good}\r\n")),
        ("LF after header", format!("GET {path} HTTP/1.1\r\n{good}x: y\n\r\n")),
        ("LF at the end", format!("GET {path} HTTP/1.1\r\n{good}\n")),
        ("LF only", format!("GET {path} HTTP/1.1\n{}\n", good.replace("\r\n", "\n"))),
        ("no host", format!("GET {path} HTTP/1.1\r\nx-api-key: {key}\r\n\r\n")),
        ("no host in 1.0", format!("GET {path} HTTP/1.0\r\nx-api-key: {key}\r\n\r\n")),
        ("two hosts", format!("GET {path} HTTP/1.1\r\n{good}host: b.example\r\n\r\n")),
        ("host with space", format!("GET {path} HTTP/1.1\r\nhost: b example\r\nx-api-key: {key}\r\n\r\n")),
        ("host with user", format!("GET {path} HTTP/1.1\r\nhost: u@b.example\r\nx-api-key: {key}\r\n\r\n")),
        ("empty host", format!("GET {path} HTTP/1.1\r\nhost:\r\nx-api-key: {key}\r\n\r\n")),
        ("authority form", format!("GET b.example:80 HTTP/1.1\r\n{good}\r\n")),
        ("asterisk form", format!("GET * HTTP/1.1\r\n{good}\r\n")),
        ("absolute form", format!("GET http://b.example{path} HTTP/1.1\r\n{good}\r\n")),
        ("foreign absolute form", format!("GET https://evil{path} HTTP/1.1\r\n{good}\r\n")),
        ("fragment", format!("GET {path}#x HTTP/1.1\r\n{good}\r\n")),
        ("underscore", format!("GET {path} HTTP/1.1\r\n{good}x_api_key: 1\r\n\r\n")),
        ("upgrade", format!("GET {path} HTTP/1.1\r\n{good}upgrade: h2c\r\nconnection: upgrade\r\n\r\n")),
        ("GET with body", format!("GET {path} HTTP/1.1\r\n{good}content-length: 1\r\n\r\na")),
        ("CONNECT", format!("CONNECT b.example:443 HTTP/1.1\r\n{good}\r\n")),
        ("TRACE", format!("TRACE {path} HTTP/1.1\r\n{good}\r\n")),
        ("TRACK", format!("TRACK {path} HTTP/1.1\r\n{good}\r\n")),
        ("OPTIONS *", format!("OPTIONS * HTTP/1.1\r\n{good}\r\n")),
        ("lower-case method", format!("get {path} HTTP/1.1\r\n{good}\r\n")),
        ("expectation", format!("POST {path} HTTP/1.1\r\n{good}expect: 200-ok\r\n\r\n")),
        // What hyper would refuse with a bare status.
        ("TE in 1.0", format!("POST {path} HTTP/1.0\r\n{good}transfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        (
            "TE not chunked",
            format!("POST {path} HTTP/1.1\r\n{good}transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        ),
        ("space before colon", format!("GET {path} HTTP/1.1\r\n{good}x : y\r\n\r\n")),
        ("fold", format!("GET {path} HTTP/1.1\r\n{good}x: y\r\n z\r\n\r\n")),
        ("bare CR", format!("GET {path} HTTP/1.1\r\n{good}x: y\rz\r\n\r\n")),
        ("NUL", format!("GET {path} HTTP/1.1\r\n{good}x: y\0z\r\n\r\n")),
        ("version", format!("GET {path} HTTP/1.2\r\n{good}\r\n")),
        ("HTTP/0.9", format!("GET {path}\r\n\r\n")),
        ("two spaces", format!("GET  {path} HTTP/1.1\r\n{good}\r\n")),
        (
            "differing CL",
            format!("POST {path} HTTP/1.1\r\n{good}content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        ),
        ("CL with sign", format!("POST {path} HTTP/1.1\r\n{good}content-length: +1\r\n\r\na")),
        ("many headers", format!("GET {path} HTTP/1.1\r\n{good}{}\r\n", "x: y\r\n".repeat(101))),
        ("long header", format!("GET {path} HTTP/1.1\r\n{good}x: {}\r\n\r\n", "y".repeat(70_000))),
        ("long target", format!("GET {path}?{} HTTP/1.1\r\n{good}\r\n", "y".repeat(9_000))),
    ] {
        let mut caller = door.call().await;
        // The rest would be a clean request; nobody must take it for one.
        caller.try_send(bytes + &door.head(&format!("GET {path}"), "")).await;
        let answer = caller.answer(false).await;
        let expected = match what {
            "CONNECT" | "TRACE" | "TRACK" | "OPTIONS *" | "lower-case method" => (405, "method_refused"),
            "expectation" => (417, "expectation_refused"),
            "many headers" | "long header" => (431, "headers_too_large"),
            "long target" => (414, "target_too_long"),
            _ => (400, "request_malformed"),
        };
        assert_eq!((answer.status, answer.code()), expected, "{what}");
        assert!(answer.header("x-request-id").is_some(), "{what}");
        refused += 1;
        let rest = caller.closed().await;
        assert!(rest.is_empty(), "{what}: {}", String::from_utf8_lossy(&rest));
    }
    assert_eq!(instance.accepted(), 0);
    let counted: u64 = ["GET", "POST", "other"]
        .map(|method| {
            let labels = format!("{{method=\"{method}\",origin=\"bearerd\",status_class=\"4xx\"}}");
            door.metric(&format!("bearerd_proxy_requests_total{labels}"))
        })
        .iter()
        .sum();
    assert_eq!(counted, refused);
}

/// Who has closed its sending side behind it is answered all the same, and counted.
#[tokio::test]
async fn a_hostile_head_that_is_the_last_is_refused_too() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send_and_end("GET / HTTP/1.1\nHost: a\n\n").await;
    assert_eq!(caller.answer(false).await.code(), "request_malformed");
    assert_eq!(caller.closed().await, b"");
    door.until(r#"bearerd_proxy_requests_total{method="GET",origin="bearerd",status_class="4xx"}"#, 1).await;
}

/// P-02: a fault in a later request does not spoil the ones before it, and ends what comes after it.
#[tokio::test]
async fn a_hostile_head_behind_a_good_one_is_refused_in_its_turn() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    let good = door.head("POST /api/now/table/incident", "content-length: 2\r\n") + "ab";
    let bad =
        door.head("POST /api/now/table/incident", "content-length: 2\r\ntransfer-encoding: chunked\r\n");
    caller.send(format!("{good}{bad}0\r\n\r\n{good}")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
    assert_eq!(caller.answer(false).await.code(), "request_malformed");
    assert_eq!(caller.closed().await, b"");
}

/// P-10, P-11 at the door: the answer, and no byte at the instance.
#[tokio::test]
async fn tricks_in_the_path_reach_no_instance() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    for (path, status, code) in [
        ("/", 400, "path_refused"),
        ("/login.do", 400, "path_refused"),
        ("/oauth_token.do", 400, "request_malformed"),
        ("/api/now/table/../../../oauth_token.do", 400, "path_refused"),
        ("/api/now/table/%2e%2e/x", 400, "path_refused"),
        ("/api/now/table/incident;x=y", 400, "path_refused"),
        ("/api/now/table/incident%2fx", 400, "path_refused"),
        ("//api/now/table/incident", 400, "path_refused"),
        ("/api/now/table/incident/", 400, "path_refused"),
        ("/api/now/v1/batch", 403, "policy_denied"),
        ("/api/now/tinyurl", 403, "policy_denied"),
        ("/api/now/stats/incident", 403, "policy_denied"),
        ("/api/now/attachment", 403, "policy_denied"),
        ("/api/now/table/incident?access_token=x", 400, "request_malformed"),
        ("/api/now/table/incident?a=1&%61ccess_token=x", 400, "request_malformed"),
    ] {
        let answer = door.once(&format!("POST {path}"), "").await;
        assert_eq!((answer.status, answer.code()), (status, code), "{path}");
    }
    assert_eq!(instance.accepted(), 0);
}

#[tokio::test]
async fn keys_are_refused_for_what_they_are() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let (stranger, admin) = (ApiKey::generate(KeyKind::Caller), ApiKey::generate(KeyKind::Admin));
    let key = door.key.expose().to_owned();
    let mut mistyped = key.clone();
    mistyped.replace_range(20..21, if &key[20..21] == "x" { "y" } else { "x" });
    let check = async |header: &str, status: u16, code: &str| {
        let mut caller = door.call().await;
        caller.send(format!("GET /api/now/table/incident HTTP/1.1\r\nhost: b\r\n{header}\r\n")).await;
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{header}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
        assert!(!answer.text().contains("bd_"));
    };
    check("", 401, "caller_key_missing").await;
    check("cookie: x\r\n", 401, "caller_key_missing").await;
    check("x-api-key: secret\r\n", 401, "caller_key_invalid").await;
    check(&format!("x-api-key: {mistyped}\r\n"), 401, "caller_key_invalid").await;
    check(&format!("x-api-key: {}\r\n", stranger.expose()), 401, "caller_key_invalid").await;
    check(&format!("x-api-key: {}\r\n", admin.expose()), 401, "caller_key_invalid").await;
    check("authorization: Negotiate x\r\n", 401, "caller_key_invalid").await;
    let both = format!("x-api-key: {key}\r\nauthorization: Bearer {}\r\n", stranger.expose());
    check(&both, 400, "key_ambiguous").await;
    door.clock.advance(Duration::from_hours(40));
    door.shared.confirm(door.clock.now());
    check(&format!("x-api-key: {key}\r\n"), 401, "caller_key_expired").await;
    assert_eq!(instance.accepted(), 0);
}

/// S-14, I-5: a revoked key is refused by its next call, on an open connection too.
#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|_| ok("{}", ""));
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
    let stranger = ApiKey::generate(KeyKind::Caller);
    door.shared.publish(snapshot(&stranger, vec![], None), door.shared.confirmed_at());
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    assert_eq!(caller.answer(false).await.code(), "caller_key_invalid");
}

#[tokio::test]
async fn keys_that_the_store_has_not_confirmed_for_too_long_open_nothing() {
    let instance = Instance::listen().await;
    let door = Door::open_with(&instance, ProxySettings { stale_keys_max_s: 60, ..ProxySettings::default() });
    instance.serve(|_| ok("{}", ""));
    for (step_secs, status) in [(0, 200), (61, 200), (2, 503)] {
        door.clock.advance(Duration::from_secs(step_secs));
        assert_eq!(door.once("GET /api/now/table/incident", "").await.status, status);
    }
    door.shared.confirm(UnixTime::from_secs(1_063));
    assert_eq!(door.once("GET /api/now/table/incident", "").await.status, 200);
}

#[tokio::test]
async fn a_denied_call_names_the_rule_that_decided() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    for (call, more, detail) in [
        ("POST /api/now/table/problem", "", "rule 2 of policy policy-1 opens this table, but not for POST."),
        ("GET /api/now/table/sys_user", "", "no rule opens this table on this connection."),
        ("GET /api/now/table/Incident", "", "no rule opens this table on this connection."),
        (
            "DELETE /api/now/table/incident",
            "connection-id: it\r\n",
            "no rule opens this table on this connection.",
        ),
    ] {
        let answer = door.once(call, more).await;
        assert_eq!((answer.status, answer.code()), (403, "policy_denied"), "{call}");
        assert!(answer.text().contains(detail), "{}", answer.text());
    }
    door.shared.publish(snapshot(&door.key, vec![], None), door.shared.confirmed_at());
    assert_eq!(door.once("GET /api/now/table/incident", "").await.code(), "policy_denied");
    assert_eq!(instance.accepted(), 0);
}

/// S-16: unknown, forbidden and impossible connections give the same bytes, in either format.
#[tokio::test]
async fn unknown_and_forbidden_connections_cannot_be_told_apart() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let next = snapshot(&door.key, vec![rule(ids(&["hr"]), &["incident"], &["GET"])], None);
    door.shared.publish(next, door.shared.confirmed_at());
    for more in ["", "accept: application/xml\r\n"] {
        let mut bodies = Vec::new();
        for (path, name) in [
            ("", "it"),
            ("", "nobody"),
            ("", "NOT-AN-ID"),
            ("", "a.b"),
            ("/c/it", ""),
            ("/c/nobody", ""),
            ("/c/Nope", ""),
        ] {
            let named = if name.is_empty() { String::new() } else { format!("connection-id: {name}\r\n") };
            let call = format!("GET {path}/api/now/table/incident");
            let answer = door.once(&call, &format!("x-request-id: same\r\n{named}{more}")).await;
            assert_eq!(answer.status, 404);
            let headers: Vec<_> =
                answer.message.headers.iter().filter(|(name, _)| name != "date").cloned().collect();
            bodies.push((answer.message.first_line.clone(), headers, answer.message.body.clone()));
        }
        assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
    }
    assert_eq!(door.tokens.loads(), 0, "what no rule can open is not even looked up");
}

#[tokio::test]
async fn a_connection_without_a_token_says_why() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let dead = LendError::ReauthorizationRequired {
        since: UnixTime::from_secs(1_000_000_000),
        cause: DeathCause::RefreshTokenExpired,
    };
    let busy = LendError::Unavailable { retry_after: Duration::from_millis(2_100), reason: "refresh failed" };
    for (error, status, code, retry_after, said) in [
        (LendError::Unknown, 404, "connection_unknown", None, "No such connection"),
        (LendError::Pending, 409, "connection_pending", None, "awaits consent"),
        (LendError::Frozen, 409, "connection_frozen", None, "frozen"),
        (
            dead,
            424,
            "reauthorization_required",
            None,
            "Since 2001-09-09T01:46:40Z: the refresh token reached",
        ),
        (busy, 503, "token_unavailable", Some("3"), "refresh failed"),
    ] {
        door.tokens.set_standing("hr", Standing::Closed(error.clone()));
        let answer = door.once("GET /api/now/table/incident", "").await;
        assert_eq!((answer.status, answer.code(), answer.header("retry-after")), (status, code, retry_after));
        assert!(answer.text().contains(said), "{}", answer.text());
        // One who may not use the connection learns nothing of it.
        assert_eq!(door.once("GET /api/now/table/sys_user", "").await.code(), "policy_denied");
        // The same where the token has to be waited for.
        door.tokens.set_standing("hr", Standing::Ready(door.tokens.token_of("hr", "old", 1)));
        door.tokens.will_acquire(Err(error));
        door.clock.advance(Duration::from_secs(2_000));
        door.shared.confirm(door.clock.now());
        assert_eq!(door.once("GET /api/now/table/incident", "").await.code(), code);
    }
    assert_eq!(instance.accepted(), 0);
}

#[tokio::test]
async fn a_token_past_its_use_is_waited_for() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| ok(request.header("authorization").unwrap(), ""));
    door.tokens.will_acquire(Ok(door.tokens.token_of("hr", "fresh", 8)));
    for (step_secs, expected) in [(999, "Bearer token-of-hr"), (1, "Bearer fresh")] {
        door.clock.advance(Duration::from_secs(step_secs));
        assert_eq!(door.once("GET /api/now/table/incident", "").await.text(), expected);
    }
}

/// A connection that lives by client credentials, before its first token or after a purge.
#[tokio::test]
async fn a_connection_without_a_token_gets_one() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| ok(request.header("authorization").unwrap(), ""));
    door.tokens.set_standing("hr", Standing::NeedsToken);
    door.tokens.will_acquire(Ok(door.tokens.token_of("hr", "first", 1)));
    assert_eq!(door.once("GET /api/now/table/incident", "").await.text(), "Bearer first");
    assert_eq!(door.tokens.last_use("hr"), Some(door.clock.now()));
    // One who may not use the connection makes nobody ask.
    door.tokens.set_standing("it", Standing::NeedsToken);
    let more = "connection-id: it\r\n";
    assert_eq!(door.once("GET /api/now/table/sys_user", more).await.code(), "policy_denied");
    assert_eq!(door.tokens.last_use("it"), None);
}

/// I-4: a token that came for another instance, or for another connection of the same id, goes nowhere.
#[tokio::test]
async fn a_token_of_a_connection_that_nobody_judged_goes_nowhere() {
    let instance = Instance::listen().await;
    let elsewhere = Instance::listen().await;
    let door = Door::open(&instance);
    door.tokens.set_standing("hr", Standing::NeedsToken);
    for changed in [&elsewhere, &instance] {
        door.tokens.will_acquire(Ok(token("other", 1, &Arc::new(upstream(changed)))));
        let answer = door.once("POST /api/now/table/incident", "").await;
        assert_eq!((answer.status, answer.code()), (503, "token_unavailable"));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(answer.text().contains("\"retryable\":true"), "nothing was sent: {}", answer.text());
    }
    assert_eq!((instance.accepted(), elsewhere.accepted()), (0, 0));
}

#[tokio::test]
async fn errors_have_the_shape_that_was_asked_for() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let json = door.once("GET /api/now/table/sys_user", "").await;
    assert_eq!(json.header("content-type"), Some("application/json;charset=UTF-8"));
    assert!(json.text().starts_with("{\"error\":{\"message\":\""), "{}", json.text());
    assert!(json.text().contains("\"bearerd\":{\"code\":\"policy_denied\""), "{}", json.text());
    let xml = door.once("GET /api/now/table/sys_user", "accept: application/xml\r\n").await;
    assert_eq!(xml.header("content-type"), Some("application/xml;charset=UTF-8"));
    assert!(xml.text().contains("<response><error><message>"), "{}", xml.text());
    let head = door.once("HEAD /api/now/table/sys_user", "").await;
    assert_eq!((head.status, head.code(), head.text()), (403, "policy_denied", ""));
    let id = json.header("x-request-id").unwrap();
    assert_eq!(id.len(), 21);
    assert!(!json.text().contains(id), "the id is a header only");
    for hostile in ["a b", "a\tb", "<script>", &"x".repeat(65)] {
        let answer = door.once("GET /api/now/table/sys_user", &format!("x-request-id: {hostile}\r\n")).await;
        assert_eq!(answer.header("x-request-id").map(str::len), Some(21));
    }
}
