//! Calls that go through: what the instance receives, what the caller receives, and on which connections.

use std::{collections::BTreeMap, time::Duration};

use bearerd_model::{ConnectionSelector, UnixTime};
use bearerd_proxy::ProxySettings;
use bearerd_tokens::Roster;

use crate::support::{Door, Instance, Message, id, ids, ok, respond, rule, snapshot};

/// P-06, P-07, P-08, P-09, P-12: one call with everything wrong that a head can carry.
#[tokio::test]
async fn a_call_is_rebuilt_on_its_way_and_its_answer_scrubbed() {
    let mut instance = Instance::listen().await;
    let settings =
        ProxySettings { pass_request_headers: vec!["X-Custom".into()], ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let origin = instance.origin.clone();
    let mut caller = door.call().await;
    let more = format!(
        "authorization: Bearer {key}\r\ncookie: JSESSIONID=1\r\nx-usertoken: t\r\nx-forwarded-for: 1.2.3.4\r\n\
         x-http-method-override: DELETE\r\nconnection: x-hop, authorization\r\nx-hop: 1\r\nte: trailers\r\n\
         sec-fetch-site: same-origin\r\norigin: https://b.example\r\nx-request-id: mine\r\naccept: application/json\r\n\
         x-custom: kept\r\nx-other: dropped\r\nuser-agent: test\r\n",
        key = door.key.expose(),
    );
    let target = "/api/now/v2/table/incident?sysparm_query=a%5Eb^c%2C,d+e%20f&&x=%zz&x=1";
    caller.send(door.head(&format!("GET {target}"), &more)).await;
    let mut peer = instance.accept().await;
    let request = peer.request().await;
    assert_eq!(request.first_line, format!("GET {target} HTTP/1.1"));
    let mut headers = request.headers.clone();
    headers.sort();
    let expected = [
        ("accept", "application/json"),
        ("authorization", "Bearer token-of-hr"),
        ("host", origin.authority()),
        ("user-agent", "test"),
        ("x-custom", "kept"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let more = format!(
        "set-cookie: JSESSIONID=2; Secure\r\nset-cookie: glide_user=x\r\nserver: ServiceNow\r\nx-total-count: 7\r\n\
         strict-transport-security: max-age=1\r\nlink: <{origin}/api/now/table/incident?sysparm_offset=2>;rel=\"next\"\r\n\
         x-transaction-id: abc\r\nbearerd-error: forged\r\n"
    );
    peer.send(ok("{\"result\":[]}", &more)).await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.text()), (200, "{\"result\":[]}"));
    let names: Vec<_> = answer.message.headers.iter().map(|(name, _)| name.as_str()).collect();
    for absent in ["set-cookie", "server", "strict-transport-security", "bearerd-error"] {
        assert!(!names.contains(&absent), "{names:?}");
    }
    for (name, value) in [
        ("x-total-count", "7"),
        ("x-transaction-id", "abc"),
        ("x-request-id", "mine"),
        ("link", "<http://b.example/api/now/table/incident?sysparm_offset=2>;rel=\"next\""),
        ("content-type", "application/json"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_created_record_is_found_under_the_public_url() {
    let instance = Instance::listen().await;
    let settings = ProxySettings { public_url: Some("https://b.public".into()), ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let place = format!("location: {}/api/now/table/incident/abc\r\n", instance.origin);
    instance.serve(move |_| respond(201, "{}", &place));
    for (path, expected) in [
        ("/api/now/table/incident", "https://b.public/api/now/table/incident/abc"),
        ("/c/hr/api/now/table/incident", "https://b.public/c/hr/api/now/table/incident/abc"),
    ] {
        let answer = door.once(&format!("POST {path}"), "").await;
        assert_eq!((answer.status, answer.header("location")), (201, Some(expected)));
    }
}

/// What the instance saw, in the answer's body.
fn echo(request: &Message) -> String {
    ok(&format!("{} {}", request.first_line, request.header("authorization").unwrap_or_default()), "")
}

#[tokio::test]
async fn the_connection_is_the_named_or_the_default_or_the_only_one() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(echo);
    let called = async |path: &str, more: &str| {
        let answer = door.once(&format!("GET {path}/api/now/table/problem"), more).await;
        match answer.code() {
            "" => answer
                .text()
                .strip_prefix("GET /api/now/table/problem HTTP/1.1 Bearer token-of-")
                .unwrap()
                .to_owned(),
            code => code.to_owned(),
        }
    };
    assert_eq!(called("", "").await, "hr"); // the key's default
    assert_eq!(called("", "connection-id: it\r\n").await, "it");
    assert_eq!(called("/c/it", "").await, "it");
    assert_eq!(called("/c/it", "connection-id: it\r\n").await, "it");
    assert_eq!(called("/c/it", "connection-id: hr\r\n").await, "request_malformed");
    assert_eq!(called("", "connection-id: it\r\nconnection-id: hr\r\n").await, "request_malformed");
    let publish = |selector: ConnectionSelector| {
        let next = snapshot(&door.key, vec![rule(selector, &["problem"], &["GET"])], None);
        door.shared.publish(next, door.shared.confirmed_at());
    };
    publish(ids(&["it"]));
    assert_eq!(called("", "").await, "it");
    publish(ids(&["it", "hr"]));
    assert_eq!(called("", "").await, "request_malformed");
    let labels = |name: &str| BTreeMap::from([("name".to_owned(), name.to_owned())]);
    let roster =
        |names: &[&str]| Some(Roster::Few(names.iter().map(|name| (id(name), labels(name))).collect()));
    publish(ConnectionSelector::All);
    assert_eq!(called("", "").await, "token_unavailable"); // nobody knows which there are
    door.tokens.set_roster(Some(Roster::TooMany));
    assert_eq!(called("", "").await, "request_malformed");
    door.tokens.set_roster(roster(&["it"]));
    assert_eq!(called("", "").await, "it");
    door.tokens.set_roster(roster(&["hr", "it"]));
    assert_eq!(called("", "").await, "request_malformed");
    publish(ConnectionSelector::Labels(labels("it")));
    assert_eq!(called("", "").await, "it");
    assert_eq!(called("", "connection-id: hr\r\n").await, "connection_unknown");
    // Out of memory: loaded, and used.
    door.tokens.evict("it");
    assert_eq!(called("", "connection-id: it\r\n").await, "it");
    assert_eq!(door.tokens.loads(), 1);
}

#[tokio::test]
async fn every_way_to_give_a_key_works() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(echo);
    let key = door.key.expose();
    for header in [
        format!("authorization: Bearer {key}"),
        format!("x-api-key: {key}"),
        format!("x-sn-apikey: {key}"),
        format!("authorization: Basic {}", STANDARD.encode(format!("anyone:{key}"))),
    ] {
        let mut caller = door.call().await;
        caller.send(format!("GET /api/now/table/incident HTTP/1.1\r\nhost: b\r\n{header}\r\n\r\n")).await;
        let answer = caller.answer(false).await;
        assert_eq!(answer.text(), "GET /api/now/table/incident HTTP/1.1 Bearer token-of-hr", "{header}");
    }
}

/// P-17: calls follow each other on one connection, and each gets its own answer.
#[tokio::test]
async fn connections_to_the_instance_are_reused_one_call_at_a_time() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut first = instance.accept().await;
    first.request().await;
    first.send(ok("1", "")).await;
    assert_eq!(caller.answer(false).await.text(), "1");
    for n in 2..20 {
        let call = if n % 2 == 0 { "/c/it/api/now/table/problem" } else { "/api/now/table/incident" };
        caller.send(door.head(&format!("GET {call}?n={n}"), "")).await;
        let request = first.request().await;
        let owner = if n % 2 == 0 { "Bearer token-of-it" } else { "Bearer token-of-hr" };
        assert_eq!(request.header("authorization"), Some(owner));
        assert!(request.first_line.contains(&format!("?n={n} ")), "{}", request.first_line);
        first.send(ok(&n.to_string(), "")).await;
        assert_eq!(caller.answer(false).await.text(), n.to_string());
    }
    // While one is busy, another is opened.
    let (mut one, mut two) = (door.call().await, door.call().await);
    one.send(door.head("GET /api/now/table/incident?one", "")).await;
    assert!(first.request().await.first_line.contains("?one"));
    two.send(door.head("GET /api/now/table/incident?two", "")).await;
    let mut second = instance.accept().await;
    assert!(second.request().await.first_line.contains("?two"));
    second.send(ok("two", "")).await;
    first.send(ok("one", "")).await;
    assert_eq!((one.answer(false).await.text(), two.answer(false).await.text()), ("one", "two"));
    assert_eq!(instance.accepted(), 2);
    assert_eq!(door.metric("bearerd_proxy_upstream_connections_opened_total"), 2);
    assert_eq!(door.metric("bearerd_proxy_upstream_connections_reused_total"), 19);
}

/// P-28: a connection that died while idle is left alone, or gives the call back unwritten; a write runs once.
#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_call() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    for n in 0..30 {
        let body = format!("body {n}");
        let more = format!("content-length: {}\r\n", body.len());
        caller.send(door.head("POST /api/now/table/incident", &more) + &body).await;
        let mut peer = instance.accept().await;
        assert_eq!(peer.request().await.text(), body);
        // No `Connection: close`: it looks alive until its end is seen.
        peer.send_and_close(respond(201, "{}", "")).await;
        let answer = caller.answer(false).await;
        assert!(answer.status == 201, "{n}: {} {}", answer.status, answer.text());
    }
    assert_eq!(instance.accepted(), 30);
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_not_reused() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    for (head, closes) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nab", false),
        ("HTTP/1.1 200 OK\r\n\r\nab", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab", false),
    ] {
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(head).await;
        if closes {
            drop(peer);
            assert_eq!(caller.answer(false).await.text(), "ab");
        } else {
            assert_eq!(caller.answer(false).await.text(), "ab");
            peer.closed().await;
        }
    }
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| {
        assert!(request.first_line.starts_with("HEAD "));
        "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nx-total-count: 5\r\n\r\n".to_owned()
    });
    let mut caller = door.call().await;
    for _ in 0..3 {
        caller.send(door.head("HEAD /api/now/table/incident", "")).await;
        let answer = caller.answer(true).await;
        assert_eq!(
            (answer.status, answer.header("content-length"), answer.header("x-total-count")),
            (200, Some("1234"), Some("5"))
        );
    }
    assert_eq!(door.metric("bearerd_proxy_upstream_connections_opened_total"), 1);
}

#[tokio::test]
async fn bodyless_statuses_pass() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| {
        if request.first_line.starts_with("DELETE") {
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
        } else {
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n".to_owned()
        }
    });
    let mut caller = door.call().await;
    for (call, status) in [("DELETE", 204), ("GET", 304), ("DELETE", 204), ("GET", 304)] {
        caller.send(door.head(&format!("{call} /api/now/table/incident/abc"), "")).await;
        assert_eq!(caller.answer(true).await.status, status);
    }
    assert_eq!(door.metric("bearerd_proxy_upstream_connections_opened_total"), 1);
}

/// A write without a body says so; a stated length arrives as a length, an unstated one as chunks.
#[tokio::test]
async fn bodies_keep_their_framing() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| {
        let framing = |name| request.header(name).unwrap_or("-").to_owned();
        ok(&format!("{} {} {}", framing("content-length"), framing("transfer-encoding"), request.text()), "")
    });
    let mut caller = door.call().await;
    for (more, body, expected) in [
        ("", "", "0 - "),
        ("content-length: 0\r\n", "", "0 - "),
        ("content-length: 3\r\n", "abc", "3 - abc"),
        (
            "transfer-encoding: chunked\r\ntrailer: x-t\r\n",
            "3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 1\r\n\r\n",
            "- chunked abcde",
        ),
    ] {
        caller.send(door.head("POST /api/now/table/incident", more) + body).await;
        assert_eq!(caller.answer(false).await.text(), expected);
    }
}

#[tokio::test]
async fn pipelined_calls_are_answered_in_order() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(echo);
    let mut caller = door.call().await;
    let calls: String = (0..5).map(|n| door.head(&format!("GET /api/now/table/incident?{n}"), "")).collect();
    caller.send(calls).await;
    for n in 0..5 {
        let answer = caller.answer(false).await;
        assert!(answer.text().starts_with(&format!("GET /api/now/table/incident?{n} ")), "{}", answer.text());
    }
}

/// P-17, I-4: many callers at once, two connections, and no answer or token in the wrong place.
#[tokio::test]
async fn nothing_crosses_between_callers() {
    let instance = Instance::listen().await;
    let door = std::sync::Arc::new(Door::open(&instance));
    instance.serve(echo);
    let calls = (0..16).map(|caller_number| {
        let door = std::sync::Arc::clone(&door);
        tokio::spawn(async move {
            let mut caller = door.call().await;
            for n in 0..40 {
                let connection = if (caller_number + n) % 3 == 0 { "it" } else { "hr" };
                let call = format!("GET /api/now/table/problem?{caller_number}-{n}");
                caller.send(door.head(&call, &format!("connection-id: {connection}\r\n"))).await;
                let expected = format!("{call} HTTP/1.1 Bearer token-of-{connection}");
                assert_eq!(caller.answer(false).await.text(), expected);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    let answered = r#"bearerd_proxy_requests_total{method="GET",origin="instance",status_class="2xx"}"#;
    assert_eq!(door.metric(answered), 16 * 40);
    door.until("bearerd_proxy_requests_in_flight", 0).await;
}

#[tokio::test]
async fn a_used_key_and_a_used_connection_are_marked() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(echo);
    let marks = || (door.shared.load().drain_last_used(), door.tokens.last_use("hr"));
    assert_eq!(marks(), (vec![], None));
    let now = UnixTime::from_secs(1_000);
    door.once("GET /api/now/table/incident", "").await;
    assert_eq!(marks(), (vec![(door.key.id(), now)], Some(now)));
    assert_eq!(door.tokens.last_use("it"), None);
    // Where the token had to be waited for, too.
    door.tokens.will_acquire(Ok(door.tokens.token_of("hr", "fresh", 8)));
    door.clock.advance(Duration::from_mins(25));
    door.once("GET /api/now/table/incident", "").await;
    let now = UnixTime::from_secs(2_500);
    assert_eq!(marks(), (vec![(door.key.id(), now)], Some(now)));
}
