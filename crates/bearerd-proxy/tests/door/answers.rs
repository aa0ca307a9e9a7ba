//! Answers that are broken, hostile or none (P-05), and what the caller is told.

use crate::support::{Door, Instance, ok, respond};

async fn answered(bytes: &str) -> (u16, String, String) {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("POST /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(bytes).await;
    drop(peer);
    let answer = caller.answer(false).await;
    assert_eq!(instance.accepted(), 1, "nothing is repeated");
    (answer.status, answer.code().to_owned(), answer.text().to_owned())
}

#[tokio::test]
async fn a_broken_head_is_a_502_and_is_not_repeated() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\n",
        "nonsense\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: 1\r\n\r\n",
    ] {
        let (status, code, text) = answered(bytes).await;
        assert_eq!((status, code.as_str()), (502, "instance_reply_invalid"), "{bytes:?}");
        assert!(text.contains("\"retryable\":false"), "a write: {text}");
    }
    // Not a byte of one: there is nothing to look at.
    let (status, code, text) = answered("").await;
    assert_eq!((status, code.as_str()), (502, "instance_unreachable"));
    assert!(text.contains("\"retryable\":false"), "a write: {text}");
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    assert_eq!(answered(&endless).await.1, "instance_reply_invalid");
}

/// P-28, I-11: once a byte of it was written, a call is never sent again, whatever becomes of its connection.
#[tokio::test]
async fn a_call_cut_on_a_reused_connection_is_not_repeated() {
    for (call, more, body) in [("POST", "content-length: 2\r\n", "ab"), ("POST", "", ""), ("GET", "", "")] {
        let mut instance = Instance::listen().await;
        let door = Door::open(&instance);
        let mut caller = door.call().await;
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(ok("{}", "")).await;
        assert_eq!(caller.answer(false).await.status, 200);
        caller.send(door.head(&format!("{call} /api/now/table/incident"), more) + body).await;
        peer.request().await;
        drop(peer);
        let answer = caller.answer(false).await;
        assert_eq!((answer.status, answer.code()), (502, "instance_unreachable"));
        assert_eq!(answer.text().contains("\"retryable\":true"), call == "GET");
        assert_eq!(instance.accepted(), 1);
    }
}

#[tokio::test]
async fn an_instance_that_is_not_there_is_a_502() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    // Its address is free from here on.
    drop(instance);
    let mut caller = door.call().await;
    loop {
        caller.send(door.head("POST /api/now/table/incident", "")).await;
        let answer = caller.answer(false).await;
        // Until the listener's task has ended, connections are accepted and cut: by an end, or by a reset.
        if answer.text().contains("connection refused") {
            assert_eq!((answer.status, answer.code()), (502, "instance_unreachable"));
            assert!(answer.text().contains("\"retryable\":true"), "nothing was sent");
            break;
        }
        assert!(matches!(answer.code(), "instance_reply_invalid" | "instance_unreachable"));
        let sent =
            answer.text().contains("The connection broke") || answer.text().contains("The answer's head");
        assert_eq!(answer.text().contains("\"retryable\":false"), sent, "a write that was sent may have run");
    }
}

#[tokio::test]
async fn an_answer_cut_inside_its_body_cuts_the_caller() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let mut instance = Instance::listen().await;
        let door = Door::open(&instance);
        let mut caller = door.call().await;
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n")).await;
        assert_eq!(caller.head().await.unwrap().status, 200);
        drop(peer);
        let rest = caller.closed().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    }
}

/// What came before the fault, head and all, is its caller's: whoever gets nothing takes the connection for a stale one,
/// and may send a write again that the instance has executed.
#[tokio::test]
async fn an_answer_that_breaks_in_the_same_breath_is_cut_behind_what_came() {
    for fault in ["xyz\r\n", ""] {
        let mut instance = Instance::listen().await;
        let door = Door::open(&instance);
        let mut caller = door.call().await;
        caller.send(door.head("POST /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send_and_close(format!(
            "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n{fault}"
        ))
        .await;
        assert_eq!(caller.head().await.expect("a head").status, 201, "{fault:?}");
        assert_eq!(caller.chunk().await.as_deref(), Some(&b"abc"[..]), "{fault:?}");
        assert_eq!(caller.closed().await, b"", "{fault:?}");
    }
}

/// P-05: what follows an answer belongs to nobody.
#[tokio::test]
async fn a_second_answer_in_the_same_breath_reaches_no_one() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    for hostile in [
        format!("{}{}", ok("mine", ""), ok("smuggled", "")),
        format!("HTTP/1.1 204 No Content\r\n\r\n{}", ok("smuggled", "")),
        format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nabcde{}", ok("smuggled", "")),
    ] {
        let mut caller = door.call().await;
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        peer.send(&hostile).await;
        let status = caller.head().await.unwrap().status;
        assert!(matches!(status, 200 | 204 | 304));
        let mut other = door.call().await;
        other.send(door.head("GET /api/now/table/incident", "")).await;
        let mut fresh = instance.accept().await;
        fresh.request().await;
        fresh.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nright").await;
        assert_eq!(other.answer(false).await.text(), "right");
        peer.closed().await;
    }
}

#[tokio::test]
async fn informational_answers_are_kept_back() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|_| {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(50);
        format!("HTTP/1.1 100 Continue\r\n\r\n{early}{}", ok("{}", ""))
    });
    let answer = door.once("GET /api/now/table/incident", "").await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

#[tokio::test]
async fn answers_that_are_no_data_are_said_to_be() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| match request.first_line.split(' ').nth(1).unwrap().split('?').nth(1).unwrap() {
        "dropped" => "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "asleep" => "HTTP/1.1 200 OK\r\ncontent-type: text/html;charset=UTF-8\r\ncontent-length: 6\r\n\r\n<html>".to_owned(),
        "login" => "HTTP/1.1 302 Found\r\nlocation: https://sso/\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
        _ => respond(200, "{}", ""),
    });
    for (query, status, code, retry_after) in [
        ("dropped", 503, "instance_dropped_request", Some("5")),
        ("asleep", 503, "instance_asleep", Some("60")),
        ("login", 503, "instance_asleep", Some("60")),
        ("fine", 200, "", None),
    ] {
        let answer = door.once(&format!("GET /api/now/table/incident?{query}"), "").await;
        assert_eq!((answer.status, answer.code(), answer.header("retry-after")), (status, code, retry_after));
    }
    let answer = door.once("GET /api/now/table/incident?asleep", "accept: text/html\r\n").await;
    assert_eq!((answer.status, answer.text()), (200, "<html>"));
    assert_eq!(door.metric("bearerd_proxy_errors_total{code=\"instance_asleep\"}"), 2);
    let html = r#"bearerd_proxy_requests_total{method="GET",origin="bearerd",status_class="5xx"}"#;
    assert_eq!(door.metric(html), 3);
}

/// The instance may have executed a write whatever it answered; of what it dropped, nobody knows.
#[tokio::test]
async fn answers_that_are_no_data_invite_only_reads_to_be_repeated() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| {
        if request.first_line.contains("asleep") {
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>".to_owned()
        } else {
            "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
    });
    for (method, query, code, retryable) in [
        ("GET", "asleep", "instance_asleep", true),
        ("POST", "asleep", "instance_asleep", false),
        ("PUT", "asleep", "instance_asleep", false),
        ("PATCH", "asleep", "instance_asleep", false),
        ("DELETE", "asleep", "instance_asleep", false),
        ("GET", "dropped", "instance_dropped_request", false),
        ("POST", "dropped", "instance_dropped_request", false),
    ] {
        let answer = door.once(&format!("{method} /api/now/table/incident?{query}"), "").await;
        assert_eq!((answer.status, answer.code()), (503, code));
        let said = format!("\"retryable\":{retryable}");
        assert!(answer.text().contains(&said), "{method} {query}: {}", answer.text());
    }
}
