//! Bodies flow while they are made: nothing is gathered, limits hold while streaming, and whoever leaves stops it.

use std::time::Duration;

use bearerd_model::{FamilyName, TableSet};
use bearerd_proxy::{FamilySettings, ProxySettings};
use bearerd_tokens::Standing;

use crate::support::{Door, Instance, ids, ok, respond, rule, soon};

/// The instance sends its second chunk only when the caller has the first.
#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n").await;
    let head = caller.head().await.unwrap();
    assert_eq!((head.status, head.header("trailer")), (200, None));
    for chunk in ["first", "second"] {
        peer.send(format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
        assert_eq!(caller.chunk().await.unwrap(), chunk.as_bytes());
    }
    peer.send("0\r\nx-t: dropped\r\n\r\n").await;
    assert_eq!(caller.chunk().await.unwrap(), b"");
    // Read to its end: the connection carries the next call.
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    peer.request().await;
    peer.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.text(), "{}");
}

/// The caller sends its second piece only when the instance has the first; the answer comes before the body's end.
#[tokio::test]
async fn a_request_is_passed_on_as_it_comes() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "transfer-encoding: chunked\r\n")).await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    for chunk in ["first", "second"] {
        caller.send(format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
        assert_eq!(peer.chunk().await.unwrap(), chunk.as_bytes());
    }
    caller.send("0\r\n\r\n").await;
    assert_eq!(peer.chunk().await.unwrap(), b"");
    peer.send(respond(201, "{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 201);
}

#[tokio::test]
async fn one_who_expects_a_continue_gets_it_when_the_instance_takes_the_body() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller
        .send(door.head("POST /api/now/table/incident", "expect: 100-continue\r\ncontent-length: 2\r\n"))
        .await;
    assert_eq!(caller.head().await.unwrap().status, 100);
    caller.send("ab").await;
    let mut peer = instance.accept().await;
    let request = peer.request().await;
    assert_eq!((request.text(), request.header("expect")), ("ab", None));
    peer.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
    // Refused before: no continue, so that the body is never sent.
    let mut caller = door.call().await;
    let more = "expect: 100-continue\r\ncontent-length: 2\r\n";
    caller.send(door.head("POST /api/now/table/problem", more)).await;
    assert_eq!(caller.answer(false).await.code(), "policy_denied");
}

#[tokio::test]
async fn a_body_that_states_too_great_a_length_is_refused_unsent() {
    let instance = Instance::listen().await;
    let settings = ProxySettings {
        table: FamilySettings { body_bytes_max: 2_000, ..FamilySettings::TABLE },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    let answer = door.once("POST /api/now/table/incident", "content-length: 2001\r\n").await;
    assert_eq!((answer.status, answer.code()), (413, "body_too_large"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(instance.accepted(), 0);
}

/// RFC 9112 §9.6: who sends on is not cut off by a reset, which could take the answer with it; nor is it listened to for ever.
#[tokio::test]
async fn a_refusal_reaches_a_caller_that_is_still_sending() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let too_long = door.head("POST /api/now/table/incident", "content-length: 99999999999\r\n");
    let malformed = "GET / HTTP/1.1\r\nhost : a\r\n\r\n".to_owned();
    for (bytes, code) in [(too_long, "body_too_large"), (malformed, "request_malformed")] {
        let mut caller = door.call().await;
        caller.send(bytes).await;
        assert_eq!(caller.answer(false).await.code(), code);
        let piece = "x".repeat(64 * 1024);
        for _ in 0..64 {
            caller.send(&piece).await;
        }
        let begun = std::time::Instant::now();
        while caller.try_send(&piece).await {
            assert!(begun.elapsed() < crate::support::LONG);
        }
    }
    door.until("bearerd_proxy_caller_connections", 0).await;
}

#[tokio::test]
async fn a_body_that_grows_too_great_is_cut_and_refused() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings {
        table: FamilySettings { body_bytes_max: 2_000, ..FamilySettings::TABLE },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "transfer-encoding: chunked\r\n")).await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1_000));
    for _ in 0..2 {
        caller.send(&chunk).await;
        assert_eq!(peer.chunk().await.unwrap().len(), 1_000);
    }
    caller.send("1\r\nx\r\n").await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (413, "body_too_large"));
    caller.closed().await;
    // No last chunk: the instance cannot take it for whole.
    assert!(!peer.closed().await.ends_with(b"0\r\n\r\n"));
}

/// P-18.
#[tokio::test]
async fn a_caller_who_leaves_while_waiting_cancels_the_call() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    drop(caller);
    peer.closed().await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    door.until("bearerd_proxy_caller_connections", 0).await;
    assert_eq!(door.tokens.refused(), []);
}

#[tokio::test]
async fn a_caller_who_leaves_inside_a_body_cancels_the_call() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    caller.head().await.unwrap();
    assert_eq!(caller.chunk().await.unwrap(), b"x");
    drop(caller);
    peer.closed().await;
    // The other direction: the caller leaves while it sends.
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 10\r\n") + "abc").await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    assert_eq!(peer.bytes(3).await.unwrap(), b"abc");
    drop(caller);
    peer.closed().await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
}

/// The instance answers before it has read the body: the caller learns it at once, and neither connection goes on.
#[tokio::test]
async fn an_early_answer_is_passed_on() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 100000\r\n") + "abc").await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    peer.send(respond(400, "{\"error\":1}", "")).await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.text()), (400, "{\"error\":1}"));
    peer.closed().await;
    caller.closed().await;
}

#[tokio::test]
async fn a_malformed_body_is_the_callers_fault() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller
        .send(door.head("POST /api/now/table/incident", "transfer-encoding: chunked\r\n") + "3\r\nabc\r\n")
        .await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    assert_eq!(peer.chunk().await.unwrap(), b"abc");
    caller.send("zz\r\n").await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (400, "request_malformed"));
    peer.closed().await;
}

/// A megabyte each way, in pieces that no buffer holds.
#[tokio::test]
async fn large_bodies_arrive_whole() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut caller = door.call().await;
    let head = door.head("PUT /api/now/table/incident/abc", &format!("content-length: {}\r\n", body.len()));
    let sent = body.clone();
    let echoing = async {
        let mut peer = instance.accept().await;
        let request = peer.request().await;
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", request.body.len()).into_bytes();
        answer.extend_from_slice(&request.body);
        peer.send(answer).await;
        peer
    };
    let calling = async {
        caller.send(head).await;
        caller.send(sent).await;
        caller.answer(false).await
    };
    let (_peer, answer) = tokio::join!(echoing, calling);
    assert!(answer.message.body == body);
}

/// P-19: neither has a call all the time in the world, and its caller is told.
#[tokio::test]
async fn no_call_takes_longer_than_its_family_may() {
    let mut instance = Instance::listen().await;
    let table = FamilySettings { total_timeout_s: 1, ..FamilySettings::TABLE };
    let door = Door::open_with(&instance, ProxySettings { table, ..ProxySettings::default() });
    // An instance that does not answer.
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (504, "instance_timeout"));
    peer.closed().await;
    // A caller that sends a little now and then.
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 100000\r\n")).await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    let answer = soon(async {
        loop {
            caller.try_send("x").await;
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(20), caller.answer(false)).await {
                break answer;
            }
        }
    });
    let answer = answer.await;
    assert_eq!((answer.status, answer.code()), (408, "request_too_slow"));
    peer.closed().await;
    // An answer that does not end is cut off.
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nabc").await;
    assert!(caller.try_answer(false).await.is_none());
    peer.closed().await;
    let timed_out = r#"bearerd_proxy_errors_total{code="instance_timeout"}"#;
    door.until(timed_out, 2).await;
}

/// P-19: silence has its limits.
#[tokio::test]
async fn whoever_stands_still_is_not_waited_for() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings {
        header_read_timeout_s: 1,
        keep_alive_s: 1,
        body_idle_timeout_s: 1,
        table: FamilySettings { first_byte_timeout_s: 2, ..FamilySettings::TABLE },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    // A caller that says nothing, one that says half a head, and one that is done.
    let (mut silent, mut slow, mut done) = (door.call().await, door.call().await, door.call().await);
    slow.send("GET /api/now/table/incident HTTP/1.1\r\nhost: b\r\n").await;
    done.send("GET /x HTTP/1.1\r\nhost: b\r\n\r\n").await;
    assert_eq!(done.answer(false).await.code(), "path_refused");
    let answer = slow.answer(false).await;
    assert_eq!((answer.status, answer.code()), (408, "request_too_slow"));
    assert_eq!(answer.header("connection"), Some("close"));
    for caller in [&mut silent, &mut slow, &mut done] {
        assert_eq!(caller.closed().await, b"");
    }
    // A caller that stops inside its body.
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 10\r\n") + "abc").await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (408, "request_too_slow"));
    peer.closed().await;
    // An instance that does not answer.
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (504, "instance_timeout"));
    assert!(answer.text().contains("\"retryable\":true"));
    peer.closed().await;
    // And one whose write may have been executed.
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (504, "instance_timeout"));
    assert!(answer.text().contains("\"retryable\":false"));
    // An instance that stops inside its answer.
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(caller.try_answer(false).await.is_none());
    peer.closed().await;
}

/// An HTTP/1.0 caller knows the end of such an answer by the end of its connection: broken off, it is told by a reset.
#[tokio::test]
async fn a_cut_answer_does_not_look_whole_to_http10() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    for is_cut in [true, false] {
        let mut caller = door.call().await;
        let key = door.key.expose();
        let head = format!("GET /api/now/table/incident HTTP/1.0\r\nhost: b\r\nx-api-key: {key}\r\n\r\n");
        caller.send(head).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        let answer = caller.head().await.unwrap();
        assert_eq!((answer.status, answer.header("content-length")), (200, None));
        peer.send_and_close(if is_cut { "" } else { "0\r\n\r\n" }).await;
        assert_eq!(caller.is_reset().await, is_cut);
    }
}

/// The limit on the instance's first byte counts from the request's last one; what a caller takes to send it is its own.
#[tokio::test]
async fn a_caller_that_pauses_is_not_the_instances_fault() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings {
        body_idle_timeout_s: 30,
        table: FamilySettings { first_byte_timeout_s: 1, ..FamilySettings::TABLE },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "content-length: 6\r\n") + "abc").await;
    let mut peer = instance.accept().await;
    let head = peer.head().await.unwrap();
    assert_eq!(peer.bytes(3).await.unwrap(), b"abc");
    assert_eq!(head.header("content-length"), Some("6"));
    // Longer than the limit, by as much as it may be late: the pause is what is tested.
    tokio::time::sleep(Duration::from_secs(2)).await;
    caller.send("def").await;
    assert_eq!(peer.bytes(3).await.unwrap(), b"def");
    peer.send(ok("{}", "")).await;
    assert_eq!(caller.answer(false).await.status, 200);
}

/// A call's whole time counts wherever it waits, and its end is answered.
#[tokio::test]
async fn a_call_ends_in_time_wherever_it_waits() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings {
        instance_calls_max: 1,
        instance_queue_wait_s: 60,
        table: FamilySettings { total_timeout_s: 2, ..FamilySettings::TABLE },
        attachment: FamilySettings { total_timeout_s: 60, ..FamilySettings::ATTACHMENT },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    // For a token.
    door.tokens.set_standing("it", Standing::NeedsToken);
    door.tokens.never_acquires();
    let waits_for_token = door.once("GET /api/now/table/problem", "connection-id: it\r\n").await;
    assert_eq!((waits_for_token.status, waits_for_token.code()), (503, "token_unavailable"));
    // For a place.
    door.change_policy(|policy| {
        let mut opening = rule(ids(&["hr"]), &[], &["GET"]);
        opening.tables = TableSet::All;
        opening.families = [FamilyName::parse("attachment").unwrap()].into();
        policy.rules.push(opening);
    });
    let mut holder = door.call().await;
    holder.send(door.head("GET /api/now/attachment", "connection-id: hr\r\n")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let waits_for_place = door.once("GET /api/now/table/incident", "connection-id: hr\r\n").await;
    assert_eq!((waits_for_place.status, waits_for_place.code()), (503, "overloaded"));
}

/// An answer that was handed on whole is still sent: a slow reader is not idle.
#[tokio::test]
async fn a_slow_reader_of_a_whole_answer_gets_all_of_it() {
    let instance = Instance::listen().await;
    let settings = ProxySettings { keep_alive_s: 1, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let body = "x".repeat(4_000_000);
    instance.serve(move |_| ok(&body, ""));
    let mut caller = door.call_with_buffer(4_096).await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let answer = caller.head().await.unwrap();
    let length: usize = answer.header("content-length").unwrap().parse().unwrap();
    let mut got = 0;
    while got < length {
        let piece = (length - got).min(400_000);
        caller.bytes(piece).await.expect("it is sent to its end");
        got += piece;
        tokio::time::sleep(Duration::from_millis(300)).await; // its pace
    }
}

/// Whoever holds a connection open without a word holds up no drain.
#[tokio::test]
async fn silence_holds_up_no_drain() {
    let instance = Instance::listen().await;
    let mut door = Door::open(&instance);
    let mut silent = door.call().await;
    // One that began to speak HTTP/2, and answers nothing.
    let mut mute = door.call().await;
    mute.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(mute.bytes(4).await.unwrap()[3], 4, "SETTINGS");
    door.until("bearerd_proxy_caller_connections", 2).await;
    let running = door.running.take().unwrap();
    let begun = std::time::Instant::now();
    soon(running.shutdown(Duration::from_mins(1))).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "the limit on heads is ten");
    assert_eq!(silent.closed().await, b"");
}

/// A refused body that has come is read: the connection serves the next call.
#[tokio::test]
async fn a_refusal_keeps_the_connection_where_the_body_has_come() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    for _ in 0..3 {
        let body = "x".repeat(1_000);
        let head = door.head("POST /api/now/table/secret", "content-length: 1000\r\n");
        caller.send(head + &body).await;
        let answer = caller.answer(false).await;
        assert_eq!((answer.code(), answer.header("connection")), ("policy_denied", None));
    }
    // One that has not come is not waited for; nor is one asked for that is held back.
    for more in ["content-length: 1000\r\n", "content-length: 1000\r\nexpect: 100-continue\r\n"] {
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/secret", more)).await;
        let answer = caller.answer(false).await;
        assert_eq!((answer.code(), answer.header("connection")), ("policy_denied", Some("close")));
        assert_eq!(caller.closed().await, b"");
    }
}

/// P-19: who takes nothing of an answer loses it to who waits for its place, in time; and keeps it while nobody waits.
#[tokio::test]
async fn a_place_that_is_waited_for_is_not_held_by_who_takes_nothing() {
    let instance = Instance::listen().await;
    let settings =
        ProxySettings { instance_calls_max: 2, instance_queue_wait_s: 4, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let large = "x".repeat(16_000_000);
    instance.serve(
        move |request| if request.first_line.contains("large") { ok(&large, "") } else { ok("{}", "") },
    );
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut caller = door.call_with_buffer(4_096).await;
        caller.send(door.head("GET /api/now/table/incident?large", "")).await;
        assert_eq!(caller.head().await.unwrap().status, 200);
        idle.push(caller);
    }
    let answer = door.once("GET /api/now/table/incident", "").await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

/// P-01: what is no chunk is refused in words, in whatever pieces it comes.
#[tokio::test]
async fn a_malformed_chunk_is_told_as_one() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let long = "x".repeat(20_000);
    let shapes: [&[&str]; 5] = [
        &["3\r\nabcdef\r\n0\r\n\r\n"],
        &["z", "z\r\nabc\r\n"],
        &["3\r\nabc", "x", "\r\n0\r\n\r\n"],
        &["3;", &long, "\r\nabc\r\n0\r\n\r\n"],
        &["3\r\nabc\r\n0\r\nx: ", &long, "\r\n\r\n"],
    ];
    for pieces in shapes {
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/incident", "transfer-encoding: chunked\r\n")).await;
        let mut peer = instance.accept().await;
        peer.head().await.unwrap();
        for piece in pieces {
            caller.try_send(piece).await;
        }
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.code()), (400, "request_malformed"), "{:.30}", pieces.concat());
        assert!(!String::from_utf8_lossy(&peer.closed().await).contains("0\r\n\r\n"));
    }
    let malformed = r#"bearerd_proxy_errors_total{code="request_malformed"}"#;
    door.until(malformed, 5).await;
}

/// P-19: nor is one held by who sends nothing of its body.
#[tokio::test]
async fn a_place_that_is_waited_for_is_not_held_by_who_sends_nothing() {
    let mut instance = Instance::listen().await;
    let settings =
        ProxySettings { instance_calls_max: 1, instance_queue_wait_s: 4, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut idle = door.call().await;
    idle.send(door.head("POST /api/now/table/incident", "content-length: 10\r\n") + "abc").await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    let waits = door.once("GET /api/now/table/incident", "");
    let served = async {
        let mut next = instance.accept().await;
        next.request().await;
        next.send(ok("{}", "")).await;
    };
    let (waited, ()) = tokio::join!(waits, served);
    assert_eq!(waited.status, 200);
    assert_eq!(idle.answer(false).await.code(), "request_too_slow");
}

/// P-26: a refresh that does not end holds nobody up beyond the call's time.
#[tokio::test]
async fn a_call_ends_in_time_while_its_token_is_refreshed() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings {
        table: FamilySettings { total_timeout_s: 2, ..FamilySettings::TABLE },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    let _never = door.tokens.hold_refresh();
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(respond(401, "{\"error\":{}}", "")).await;
    let answer = caller.answer(false).await;
    assert_eq!((answer.status, answer.code()), (503, "token_unavailable"));
}

/// What was handed on and not sent is no end either.
#[tokio::test]
async fn what_was_not_sent_does_not_look_whole_to_http10() {
    let instance = Instance::listen().await;
    let settings = ProxySettings { body_idle_timeout_s: 1, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    // More than the sockets hold, and then a little more: bearerd has all of it.
    let body = "x".repeat(8_000_000);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    instance.serve(move |_| chunked.clone());
    let mut caller = door.call_with_buffer(4_096).await;
    let key = door.key.expose();
    let head = format!("GET /api/now/table/incident HTTP/1.0\r\nhost: b\r\nx-api-key: {key}\r\n\r\n");
    caller.send(head).await;
    assert_eq!(caller.head().await.unwrap().status, 200);
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    assert!(caller.is_reset().await);
}

/// P-19: whoever reads steadily is not cut, however slowly and however much of the answer waits: what counts is the pause.
#[tokio::test]
async fn a_steady_reader_is_not_taken_for_one_that_stands_still() {
    let instance = Instance::listen().await;
    let settings = ProxySettings { body_idle_timeout_s: 1, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let body = "x".repeat(12_000_000);
    instance.serve(move |_| ok(&body, ""));
    let mut caller = door.call_with_buffer(32_768).await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    assert_eq!(caller.head().await.unwrap().status, 200);
    // Some 600 kB a second: what the kernel could hold of it would take longer than the limit.
    for _ in 0..100 {
        caller.bytes(30_000).await.expect("it is not cut");
        tokio::time::sleep(Duration::from_millis(50)).await; // its pace
    }
}
