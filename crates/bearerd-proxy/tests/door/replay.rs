//! P-26: an upstream 401 means one forced refresh, one replay, and nothing else ever runs twice.

use std::{collections::BTreeMap, sync::Arc};

use bearerd_model::{ConnectionSelector, Generation};
use bearerd_proxy::ProxySettings;
use bearerd_tokens::{AfterRefusal, Roster};

use crate::support::{Door, Instance, id, ok, respond, rule, snapshot, soon, token, upstream};

const CHALLENGE: &str = "www-authenticate: Bearer realm=\"sn\"\r\n";

#[tokio::test]
async fn a_refused_token_is_replaced_and_the_call_replayed_once() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
    for (call, more, body) in [
        ("GET", "", ""),
        ("DELETE", "", ""),
        ("POST", "content-length: 5\r\n", "abcde"),
        ("PATCH", "transfer-encoding: chunked\r\n", "2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"),
    ] {
        let mut caller = door.call().await;
        caller.send(door.head(&format!("{call} /api/now/table/incident?q"), more) + body).await;
        let mut first = instance.accept().await;
        let one = first.request().await;
        assert_eq!(one.header("authorization"), Some("Bearer token-of-hr"));
        first.send(respond(401, "{}", CHALLENGE)).await;
        let mut second = instance.accept().await;
        let two = second.request().await;
        assert_eq!(two.header("authorization"), Some("Bearer newer"));
        assert_eq!((&one.first_line, one.text()), (&two.first_line, two.text()));
        assert_eq!(two.text(), if body.is_empty() { "" } else { "abcde" });
        second.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        assert_eq!(caller.answer(false).await.text(), "ok");
        first.closed().await;
    }
    assert_eq!(door.tokens.refused(), vec![(id("hr"), Generation(7)); 4]);
    assert_eq!(door.metric("bearerd_proxy_replays_total"), 4);
    assert_eq!(instance.accepted(), 8);
}

/// I-11: key and policy are asked again after the wait, also where the call had left the connection to them.
#[tokio::test]
async fn what_is_replayed_is_judged_again() {
    for narrower in [true, false] {
        let mut instance = Instance::listen().await;
        let door = Door::open(&instance);
        let label = |name: &str| BTreeMap::from([("name".to_owned(), name.to_owned())]);
        door.tokens.set_roster(Some(Roster::Few([(id("hr"), label("hr"))].into_iter().collect())));
        let publish = |methods: &[&str]| {
            let rule = rule(ConnectionSelector::Labels(label("hr")), &["incident"], methods);
            door.shared.publish(snapshot(&door.key, vec![rule], None), door.shared.confirmed_at());
        };
        publish(&["POST"]);
        door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
        let refresh_ends = door.tokens.hold_refresh();
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/incident", "content-length: 2\r\n") + "ab").await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(respond(401, "first", CHALLENGE)).await;
        soon(async {
            while door.tokens.refused().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        publish(if narrower { &["GET"] } else { &["POST", "GET"] });
        refresh_ends.send(()).unwrap();
        if narrower {
            assert_eq!(caller.answer(false).await.code(), "policy_denied");
            assert_eq!(instance.accepted(), 1);
        } else {
            let mut again = instance.accept().await;
            assert_eq!(again.request().await.text(), "ab");
            again.send(ok("{}", "")).await;
            assert_eq!(caller.answer(false).await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_second_401_passes_through_without_its_challenge() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    for body in ["first", "second"] {
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(respond(401, body, CHALLENGE)).await;
    }
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.text(), answer.code()), (401, "second", ""));
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(door.tokens.refused().len(), 1);
    assert_eq!(instance.accepted(), 2);
}

#[tokio::test]
async fn a_401_passes_through_where_no_other_token_is_had() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.tokens.after_refusal(AfterRefusal::PassThrough);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(respond(401, "first", CHALLENGE)).await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.text(), answer.header("www-authenticate")), (401, "first", None));
    // Its answer was read to the end: the connection goes on.
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    peer.request().await;
    peer.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
}

#[tokio::test]
async fn a_body_beyond_the_buffer_is_not_replayed_but_the_token_is_refreshed() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings { replay_body_bytes_max: 4, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 5\r\n") + "abcde").await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(respond(401, "first", CHALLENGE)).await;
    assert_eq!(caller.answer(false).await.text(), "first");
    assert_eq!(door.tokens.refused().len(), 1);
    assert_eq!(instance.accepted(), 1);
}

/// The instance refuses before the body is through: the replay begins with what was kept and goes on from there.
#[tokio::test]
async fn an_early_401_is_replayed_with_the_rest_of_the_body() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 9\r\n") + "abc").await;
    let mut first = instance.accept().await;
    first.head().await.unwrap();
    assert_eq!(first.bytes(3).await.unwrap(), b"abc");
    first.send(respond(401, "{}", CHALLENGE)).await;
    let mut second = instance.accept().await;
    let head = second.head().await.unwrap();
    assert_eq!(head.header("content-length"), Some("9"));
    assert_eq!(second.bytes(3).await.unwrap(), b"abc");
    caller.send("defghi").await;
    assert_eq!(second.bytes(6).await.unwrap(), b"defghi");
    second.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
    assert_eq!(first.closed().await, b"");
}

/// I-11: while the refresh is under way nothing more of the body is read, so that a replay has all of it.
#[tokio::test]
async fn what_comes_of_a_body_during_the_refresh_waits_and_is_replayed() {
    for framing in ["content-length", "chunked"] {
        let mut instance = Instance::listen().await;
        let door = Door::open(&instance);
        door.tokens.after_refusal(AfterRefusal::Replay(door.tokens.token_of("hr", "newer", 8)));
        let refresh_ends = door.tokens.hold_refresh();
        let (start, rest) = ("a".repeat(1024), "b".repeat(199 * 1024));
        let (header, start, rest) = match framing {
            "chunked" => (
                "transfer-encoding: chunked\r\n".to_owned(),
                format!("400\r\n{start}\r\n"),
                format!("31c00\r\n{rest}\r\n0\r\n\r\n"),
            ),
            _ => (format!("content-length: {}\r\n", 200 * 1024), start, rest),
        };
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/incident", &header) + &start).await;
        let mut peer = instance.accept().await;
        peer.head().await.unwrap();
        peer.bytes(1024).await.unwrap();
        peer.send(respond(401, "first", CHALLENGE)).await;
        soon(async {
            while door.tokens.refused().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        refresh_ends.send(()).unwrap();
        // Nothing of the rest went to the refused attempt, so that all of it is at hand.
        let (caller_sends, peer_reads) = (caller.send(rest), async {
            let mut again = instance.accept().await;
            let request = again.request().await;
            assert_eq!(
                (request.header("authorization"), request.body.len()),
                (Some("Bearer newer"), 200 * 1024)
            );
            again.send(ok("{}", "")).await;
        });
        tokio::join!(caller_sends, peer_reads);
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.text()), (200, "{}"), "{framing}");
        assert_eq!(door.metric("bearerd_proxy_replays_total"), 1);
        peer.closed().await;
    }
}

/// I-4: the connection went to another instance, or was made anew, before the refresh was through.
#[tokio::test]
async fn nothing_is_replayed_with_a_token_for_elsewhere() {
    let mut instance = Instance::listen().await;
    let elsewhere = Instance::listen().await;
    let door = Door::open(&instance);
    for (attempts, changed) in [upstream(&elsewhere), upstream(&instance)].into_iter().enumerate() {
        let newer = token("of-another-connection", 8, &Arc::new(changed));
        door.tokens.after_refusal(AfterRefusal::Replay(newer));
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/incident", "content-length: 2\r\n") + "ab").await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(respond(401, "first", "connection: close\r\n")).await;
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.text(), answer.code()), (401, "first", ""));
        assert_eq!((instance.accepted(), elsewhere.accepted()), (attempts + 1, 0));
    }
    assert_eq!(door.metric("bearerd_proxy_replays_total"), 0);
}

#[tokio::test]
async fn a_403_or_any_other_failure_refreshes_nothing_and_repeats_nothing() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    let mut peer = None;
    for status in [400, 403, 404, 429, 500, 502, 503] {
        caller.send(door.head("POST /api/now/table/incident", "content-length: 2\r\n") + "ab").await;
        let mut at = match peer.take() {
            Some(peer) => peer,
            None => instance.accept().await,
        };
        at.request().await;
        at.send(respond(status, "{\"error\":{}}", "retry-after: 7\r\nx-ratelimit-limit: 9\r\n")).await;
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.text(), answer.code()), (status, "{\"error\":{}}", ""));
        assert_eq!(
            (answer.header("retry-after"), answer.header("x-ratelimit-limit")),
            (Some("7"), Some("9"))
        );
        peer = Some(at);
    }
    assert_eq!(door.tokens.refused(), []);
    assert_eq!(instance.accepted(), 1);
}
