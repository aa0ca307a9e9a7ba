//! One access record a call, whatever becomes of it; as many as the metrics count.

use bearerd_audit::{AccessLog, AccessSettings, OnStall, SinkKind};
use bearerd_proxy::ProxySettings;
use serde_json::Value;

use crate::support::{Door, Instance, ok, soon};

/// Where no record may be lost, refusals wait for room like calls: each is a record, and nobody needs a key for them.
#[tokio::test]
async fn refusals_are_held_up_where_their_records_would_be_lost() {
    const QUEUED: usize = 1_024;
    let folder = tempfile::tempdir().unwrap();
    let settings = AccessSettings {
        sink: SinkKind::File,
        path: folder.path().join("access.jsonl"),
        on_stall: OnStall::Block,
        queue_records: QUEUED,
        ..AccessSettings::default()
    };
    let log = AccessLog::start(&settings).unwrap();
    drop(folder); // from now on no line can be written
    let instance = Instance::listen().await;
    let door = Door::open_recording(&instance, &log);
    let foreign = "GET /x HTTP/1.1\r\nhost: b.example\r\nsec-fetch-site: cross-site\r\n\r\n";
    let mut caller = door.call().await;
    let mut refused = 0;
    loop {
        caller.send(foreign).await;
        match caller.answer(false).await.code() {
            "policy_denied" => refused += 1,
            code => break assert_eq!(code, "overloaded"),
        }
        assert!(refused < 4 * QUEUED, "nothing holds them up");
    }
    assert!(refused > QUEUED / 2, "{refused}");
    let mut hostile = door.call().await;
    hostile.send("GET / HTTP/1.1\nhost: a\n\n").await;
    assert_eq!(hostile.answer(false).await.code(), "overloaded");
}

#[tokio::test]
async fn every_call_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let settings = AccessSettings { sink: SinkKind::File, path: path.clone(), ..AccessSettings::default() };
    let log = AccessLog::start(&settings).unwrap();
    let mut instance = Instance::listen().await;
    let mut door = Door::open_recording(&instance, &log);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut caller = door.call().await;
    caller
        .send(
            door.head(
                "GET /api/now/table/incident",
                &format!("x-request-id: one\r\ntraceparent: {trace}\r\n"),
            ),
        )
        .await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(ok("{\"a\":1}", "x-transaction-id: t-1\r\n")).await;
    assert_eq!(caller.answer(false).await.status, 200);
    caller.send(door.head("DELETE /api/now/table/problem", "x-request-id: two\r\n")).await;
    assert_eq!(caller.answer(false).await.code(), "policy_denied");
    caller.send("GET /login.do HTTP/1.1\r\nhost: b.example\r\nx-request-id: three\r\n\r\n").await;
    assert_eq!(caller.answer(false).await.code(), "path_refused");
    // One that leaves before its answer.
    let mut leaves = door.call().await;
    leaves.send(door.head("GET /api/now/table/incident", "x-request-id: four\r\n")).await;
    peer.request().await;
    drop(leaves);
    peer.closed().await;
    // One inside its body, and one that nobody leaves until the door is shut on it.
    let mut leaves = door.call().await;
    let more = "x-request-id: five\r\ncontent-length: 10\r\n";
    leaves.send(door.head("POST /api/now/table/incident", more) + "abc").await;
    let mut peer = instance.accept().await;
    peer.head().await.unwrap();
    leaves.send_and_end("").await;
    assert_eq!(leaves.closed().await, b"");
    peer.closed().await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    let mut stays = door.call().await;
    stays.send(door.head("GET /api/now/table/incident", "x-request-id: six\r\n")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let counted: u64 = ["2xx", "4xx", "none"]
        .into_iter()
        .flat_map(|class| ["bearerd", "instance"].map(|origin| (class, origin)))
        .flat_map(|(class, origin)| ["GET", "DELETE", "POST"].map(|method| (class, origin, method)))
        .map(|(class, origin, method)| {
            door.metric(&format!(
                "bearerd_proxy_requests_total{{method=\"{method}\",origin=\"{origin}\",status_class=\"{class}\"}}"
            ))
        })
        .sum();
    door.running.take().unwrap().shutdown(std::time::Duration::ZERO).await;
    log.shutdown(std::time::Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((records.len(), counted), (6, 5), "{text}");
    let of = |id: &str| records.iter().find(|record| record["request_id"] == id).unwrap();
    let one = of("one");
    for (name, expected) in [
        ("connection", Value::from("hr")),
        ("policy", "policy-1".into()),
        ("rule", 1.into()),
        ("family", "table".into()),
        ("table", "incident".into()),
        ("method", "GET".into()),
        ("status", 200.into()),
        ("generation", 7.into()),
        ("bytes_out", 7.into()),
        ("traceparent", trace.into()),
        ("transaction_id", "t-1".into()),
        ("source", "127.0.0.1".into()),
        ("caller_key", door.key.id().as_str().into()),
    ] {
        assert_eq!(one[name], expected, "{name} of {one}");
    }
    assert!(one["first_byte_us"].as_u64() <= one["total_us"].as_u64());
    assert_eq!((&of("two")["status"], &of("two")["error"]), (&403.into(), &"policy_denied".into()));
    assert_eq!(of("three")["error"], "path_refused");
    assert_eq!((&of("four")["status"], &of("four")["caller_left"]), (&0.into(), &true.into()));
    let five = of("five");
    assert_eq!(
        (&five["status"], &five["caller_left"], &five["bytes_out"]),
        (&0.into(), &true.into(), &0.into())
    );
    assert!(five.get("error").is_none() && five["bytes_in"] == 3, "{five}");
    let six = of("six");
    assert_eq!((&six["status"], &six["error"]), (&0.into(), &"draining".into()));
    assert!(six.get("caller_left").is_none(), "{six}");
    assert!(!text.contains(&door.key.expose()[20..]) && !text.contains("token-of-hr"), "S-09: {text}");
}

/// P-19: an answer that was handed on and that nobody took is no whole one, over HTTP/2 either.
#[tokio::test]
async fn an_answer_that_nobody_took_is_recorded_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let settings = AccessSettings { sink: SinkKind::File, path: path.clone(), ..AccessSettings::default() };
    let log = AccessLog::start(&settings).unwrap();
    let instance = Instance::listen().await;
    let limits = ProxySettings { body_idle_timeout_s: 1, ..ProxySettings::default() };
    let mut door = Door::open_recording_with(&instance, limits, &log);
    instance.serve(|_| ok("{\"a\":1}", ""));
    let stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    let handshake = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) = soon(handshake).await.unwrap();
    tokio::spawn(connection);
    let call = http::Request::get("http://b.example/api/now/table/incident")
        .header("x-api-key", door.key.expose())
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let answer = soon(sender.send_request(call)).await.unwrap();
    assert_eq!(answer.status(), 200);
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    drop(answer);
    door.running.take().unwrap().shutdown(std::time::Duration::ZERO).await;
    log.shutdown(std::time::Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let record: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&record["status"], &record["caller_left"]), (&200.into(), &true.into()), "{text}");
}
