//! What arrives byte by byte, and answers that no careful server would send.

use std::time::Duration;

use serde_json::{Value, json};
use servicenow_sim::{GeneratedFile, Sim, pattern};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::*;

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2";

async fn add(sim: &Sim, rule: Value) {
    let answer = control(sim, "POST", "faults", &rule).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn connect(sim: &Sim) -> TcpStream {
    TcpStream::connect(sim.local_addr()).await.unwrap()
}

/// Reads until `marker` has come, or the end.
async fn read_until(stream: &mut TcpStream, marker: &str) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4_096];
    while !String::from_utf8_lossy(&text).contains(marker) {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await; // a reset is an end too
    bytes
}

fn request(target: &str, more: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: sim\r\n{more}\r\n")
}

#[tokio::test]
async fn records_show_heads_connections_and_digests() {
    let sim = sim().await;
    let mut stream = connect(&sim).await;
    let head = "POST /a?b=%5E^ HTTP/1.1\r\nHost: sim\r\nx-ODD:  1\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(format!("{head}abc").as_bytes()).await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
    let chunked = "POST /c HTTP/1.1\r\nHost: sim\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\nX-Tail: t\r\n\r\n";
    stream.write_all(chunked.as_bytes()).await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
    get(&sim, "/d", &[]).await;
    let records = sim.state().last_requests();
    let [first, second, third] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(first.raw_head.as_deref(), Some(head.as_bytes()));
    assert_eq!(first.raw_lines(), ["POST /a?b=%5E^ HTTP/1.1", "Host: sim", "x-ODD:  1", "Content-Length: 3"]);
    assert_eq!((first.connection, first.request_on_connection), (1, 1));
    assert_eq!((second.connection, second.request_on_connection), (1, 2));
    assert_eq!((third.connection, third.request_on_connection), (2, 1));
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((first.body_sha256.as_deref(), second.body_sha256.as_deref()), (Some(abc), Some(abc)));
    assert_eq!((first.body_bytes, second.body_bytes, third.body_bytes), (3, 3, 0));
    assert_eq!(second.trailers, [("x-tail".to_owned(), "t".to_owned())]);
    assert!(records.iter().all(|record| record.findings.is_empty() && record.version == "HTTP/1.1"));
    let counters = sim.state().counters();
    assert_eq!((counters.malformed_requests, counters.pipelined_requests), (0, 0));
    let shown = control(&sim, "GET", "last-requests?n=1", &Value::Null).await.json();
    assert!(shown[0]["raw_head"].as_str().unwrap().starts_with("R0VU"), "base64");
}

/// P-01 … P-05: whatever of this kind reaches the instance is counted, whether or not hyper refuses it.
#[tokio::test]
async fn what_is_not_one_well_formed_request_is_counted() {
    for malformed in [
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\nHost: a\n\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
    ] {
        let sim = sim().await;
        let mut stream = connect(&sim).await;
        stream.write_all(malformed.as_bytes()).await.unwrap();
        sim.state().wait_for(|counters| counters.malformed_requests == 1).await;
        let shown = control(&sim, "GET", "malformed", &Value::Null).await.json();
        assert!(!shown[0]["findings"].as_array().unwrap().is_empty(), "{malformed}");
    }
}

#[tokio::test]
async fn pipelining_is_counted() {
    let sim = sim().await;
    let mut stream = connect(&sim).await;
    let two = [request("/a", ""), request("/b", "Connection: close\r\n")].concat();
    stream.write_all(two.as_bytes()).await.unwrap();
    read_all(&mut stream).await;
    let counters = sim.state().counters();
    assert_eq!((counters.malformed_requests, counters.pipelined_requests), (0, 1));
    assert_eq!(counters.requests, 2);
}

async fn answer_to(sim: &Sim, fault: Value, more: &str) -> (String, TcpStream) {
    let header = bearer(sim).await;
    add(sim, json!({"on": "table", "times": 1, "fault": fault})).await;
    let mut stream = connect(sim).await;
    let head = request(INCIDENTS, &format!("Authorization: {header}\r\n{more}"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let marker = if fault["kind"] == "two_answers" { "nobody asked" } else { "\r\n\r\n" };
    let text = read_until(&mut stream, marker).await;
    (text, stream)
}

#[tokio::test]
async fn answers_that_are_none_are_sent_as_they_are() {
    for (fault, sign) in [
        (json!({"kind": "length_and_chunked"}), "content-length: 5\r\n"),
        (
            json!({"kind": "two_answers"}),
            "HTTP/1.1 200 OK\r\ncontent-type: application/json;charset=utf-8\r\n",
        ),
        (json!({"kind": "bad_chunks", "flaw": "not_hex"}), "zz\r\n"),
        (json!({"kind": "ghost_body"}), "HTTP/1.1 304 Not Modified\r\n"),
        (json!({"kind": "raw", "text": "HTTP/1.1 200 OK\r\nX: \r\n\r\n"}), "X: \r\n"),
    ] {
        let sim = sim().await;
        let (mut text, mut stream) = answer_to(&sim, fault.clone(), "").await;
        let lower = |text: &str| text.to_ascii_lowercase();
        if !lower(&text).contains(&lower(sign)) {
            text.push_str(&read_until(&mut stream, sign).await);
        }
        assert!(lower(&text).contains(&lower(sign)), "{fault}: {text}");
        // The connection stays open, and a further request on it is seen and not answered.
        stream.write_all(request("/again", "").as_bytes()).await.unwrap();
        sim.state().wait_for(|counters| counters.requests_after_raw == 1).await;
        assert_eq!(sim.state().counters().requests_to("other"), 0);
    }
}

#[tokio::test]
async fn odd_but_lawful_answers_end_the_connection() {
    for (fault, sign) in [
        (json!({"kind": "informational", "count": 2}), "HTTP/1.1 103 Early Hints\r\n"),
        (json!({"kind": "trailers", "trailers": {"x-tail": "t"}}), "0\r\nx-tail: t\r\n\r\n"),
        (json!({"kind": "bad_chunks", "flaw": "no_end"}), "2\r\n{}\r\n"),
    ] {
        let sim = sim().await;
        let (text, mut stream) = answer_to(&sim, fault.clone(), "").await;
        let text = text + &String::from_utf8(read_all(&mut stream).await).unwrap();
        assert!(text.contains(sign), "{fault}: {text}");
        assert!(text.contains("HTTP/1.1 200 OK\r\n"), "{fault}");
        assert!(text.to_ascii_lowercase().contains("set-cookie: jsessionid="), "{fault}");
    }
}

#[tokio::test]
async fn a_huge_header_is_sent() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    add(&sim, json!({"on": "api", "times": 1, "fault": {"kind": "huge_header"}})).await;
    let answer = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    assert_eq!(answer.header("x-sim-huge").unwrap().len(), 1024 * 1024);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    for close in [false, true] {
        let sim = sim().await;
        add(&sim, json!({"on": "any", "times": 1, "fault": {"kind": "answer_early", "close": close}})).await;
        let mut stream = connect(&sim).await;
        let head = "POST /api/now/table/incident HTTP/1.1\r\nHost: sim\r\nContent-Length: 100000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = read_until(&mut stream, "0\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
        if close {
            assert_eq!(read_all(&mut stream).await, b"", "closed");
        } else {
            stream.write_all(&vec![b'x'; 100_000]).await.unwrap();
            stream.write_all(request("/next", "Connection: close\r\n").as_bytes()).await.unwrap();
            assert!(String::from_utf8(read_all(&mut stream).await).unwrap().starts_with("HTTP/1.1 404 "));
        }
        assert_eq!(sim.state().counters().malformed_requests, 0);
        assert_eq!(sim.state().counters().pipelined_requests, 0);
    }
}

#[tokio::test]
async fn continue_can_come_late() {
    let sim = sim().await;
    add(&sim, json!({"times": 1, "fault": {"kind": "continue_late", "gate": "c"}})).await;
    let mut stream = connect(&sim).await;
    let head =
        "POST /oauth_token.do HTTP/1.1\r\nHost: sim\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    sim.state().wait_for(|counters| counters.held_now == 1).await;
    let early = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(early.is_err(), "no byte yet");
    sim.state().release(Some("c"));
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"x").await.unwrap();
    let text = read_until(&mut stream, "\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 4"), "{text}");
}

#[tokio::test]
async fn generated_files_come_in_any_size_and_are_never_held() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let bytes = 48 * 1024 * 1024 + 5;
    for sized in [false, true] {
        let target = format!("/api/now/attachment/{}/file", GeneratedFile { bytes, sized }.sys_id());
        let mut stream = connect(&sim).await;
        let head = request(&target, &format!("Authorization: {header}\r\nConnection: close\r\n"));
        stream.write_all(head.as_bytes()).await.unwrap();
        let raw = read_all(&mut stream).await;
        let head_end = raw.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(raw[..head_end].to_vec()).unwrap();
        assert_eq!(head.contains(&format!("content-length: {bytes}\r\n")), sized, "{head}");
        let body = if sized { raw[head_end..].to_vec() } else { dechunk(&raw[head_end..]).0 };
        assert!(body == pattern(0, usize::try_from(bytes).unwrap()), "{sized}");
    }
}

#[tokio::test]
async fn a_generated_file_can_be_cut() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    add(&sim, json!({"on": "api", "fault": {"kind": "cut_body", "after_bytes": 70_000}})).await;
    let target =
        format!("/api/now/attachment/{}/file", GeneratedFile { bytes: 1 << 32, sized: false }.sys_id());
    let answer = get(&sim, &target, &[("Authorization", &header)]).await;
    assert!(!answer.complete);
    assert!(answer.body == pattern(0, 70_000));
}

#[tokio::test]
async fn large_uploads_are_counted_and_hashed() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let found = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    let id = found.json()["result"][0]["sys_id"].as_str().unwrap().to_owned();
    let bytes = 17 * 1024 * 1024;
    let mut stream = connect(&sim).await;
    let head = format!(
        "POST /api/now/attachment/file?table_name=incident&table_sys_id={id}&file_name=big HTTP/1.1\r\nHost: sim\r\n\
         Authorization: {header}\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&pattern(0, bytes)).await.unwrap();
    let text = String::from_utf8(read_all(&mut stream).await).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 201 ") && text.contains(&format!("\"size_bytes\":\"{bytes}\"")),
        "{text}"
    );
    let record = sim.state().last_requests().pop().unwrap();
    assert_eq!(record.body_bytes, u64::try_from(bytes).unwrap());
    assert_eq!(record.body_sha256.unwrap().len(), 64);
    assert_eq!(record.user.as_deref(), Some("svc.integration"));
}

#[tokio::test]
async fn a_broken_off_upload_and_a_client_that_left_are_counted() {
    let sim = sim().await;
    let mut stream = connect(&sim).await;
    let head = "POST /api/now/attachment/file HTTP/1.1\r\nHost: sim\r\nContent-Length: 1000\r\n\r\nsome";
    stream.write_all(head.as_bytes()).await.unwrap();
    sim.state().wait_for(|counters| counters.requests == 1).await;
    drop(stream);
    sim.state().wait_for(|counters| counters.cut_requests == 1).await;

    let header = bearer(&sim).await;
    add(&sim, json!({"on": "table", "fault": {"kind": "hold"}})).await;
    let before = sim.state().counters().left_early;
    let mut stream = connect(&sim).await;
    stream.write_all(request(INCIDENTS, &format!("Authorization: {header}\r\n")).as_bytes()).await.unwrap();
    sim.state().wait_for(|counters| counters.held_now == 1).await;
    drop(stream);
    sim.state().wait_for(|counters| counters.left_early == before + 1).await;
}

#[tokio::test]
async fn marked_answers_say_whose_they_are() {
    let sim = sim_with(json!({"echo_marker": true})).await;
    let header = bearer(&sim).await;
    let headers = [("Authorization", header.as_str()), ("X-Sim-Marker", "m-17")];
    let plain = get(&sim, INCIDENTS, &headers).await;
    assert_eq!(plain.header("x-sim-marker"), Some("m-17"));
    assert_eq!(plain.header("x-sim-user"), Some("svc.integration"));
    assert_eq!(plain.json()["result"].as_array().unwrap().len(), 2);
    control(&sim, "PUT", "behaviour", &json!({"echo_bytes": 5_000})).await;
    let filled = get(&sim, &format!("{INCIDENTS}&sysparm_sim_marker=q-18"), &headers[..1]).await;
    assert_eq!(filled.body.len(), 5_000);
    assert_eq!(filled.json()["result"]["marker"], "q-18");
    assert_eq!(filled.json()["result"]["user"], "svc.integration");
    assert_eq!(get(&sim, INCIDENTS, &[("X-Sim-Marker", "m")]).await.header("x-sim-user"), Some(""));
    let write = [
        headers[0],
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
        ("X-Sim-Marker", "w-1"),
    ];
    for repeated in [0, 1, 2] {
        let answer = send(sim.local_addr(), "POST", "/api/now/table/incident", &write, "{}").await.unwrap();
        assert_eq!((answer.status, answer.header("x-sim-marker")), (201, Some("w-1")));
        assert_eq!(sim.state().counters().repeated_writes, repeated);
    }
}

#[tokio::test]
async fn connections_end_gracefully_and_when_idle() {
    let sim = sim_with(json!({"connection_requests_max": 2})).await;
    let mut stream = connect(&sim).await;
    for is_last in [false, true] {
        stream.write_all(request("/a", "").as_bytes()).await.unwrap();
        let text = read_until(&mut stream, "0\r\n\r\n").await.to_ascii_lowercase();
        assert_eq!(text.contains("connection: close\r\n"), is_last, "{text}");
    }
    assert_eq!(read_all(&mut stream).await, b"", "closed");
    control(&sim, "PUT", "behaviour", &json!({"connection_requests_max": 0, "connection_idle_ms": 50})).await;
    let mut stream = connect(&sim).await;
    stream.write_all(request("/a", "").as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
    assert_eq!(read_all(&mut stream).await, b"", "closed");
}

/// Back-pressure: what the instance does not read stays with the sender.
#[tokio::test]
async fn a_body_can_be_read_slowly() {
    let sim = sim().await;
    add(&sim, json!({"times": 1, "fault": {"kind": "slow_read", "interval_ms": 60_000}})).await;
    let mut stream = connect(&sim).await;
    let head = "POST /api/now/attachment/file HTTP/1.1\r\nHost: sim\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (_, mut writer) = stream.into_split();
    let sender = tokio::spawn(async move { writer.write_all(&vec![0; 100_000_000]).await });
    let arrived = || sim.state().last_requests().first().map_or(0, |record| record.body_bytes);
    sim.state().wait_for(|counters| counters.requests == 1).await;
    while arrived() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(arrived() < 1_000_000, "{}", arrived());
    assert!(!sender.is_finished());
    sender.abort();
}
