//! HTTP/2 from callers, with prior knowledge; and to an instance, where its integration asks for that.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Door, Instance, ok, soon};

async fn speak(door: &Door) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(door.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = soon(handshake).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(door: &Door, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("http://b.example{path}"))
        .header("x-api-key", door.key.expose())
        .body(Full::from(body.to_owned()))
        .unwrap()
}

#[tokio::test]
async fn many_calls_share_a_callers_connection() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| {
        assert!(request.header("host").is_some_and(|host| host.starts_with("127.0.0.1:")));
        ok(
            &format!("{} {}", request.first_line, request.text()),
            "set-cookie: a=b\r\nconnection: keep-alive\r\n",
        )
    });
    let sender = speak(&door).await;
    let calls = (0..50).map(|number| {
        let mut sender = sender.clone();
        let call =
            request(&door, "POST", &format!("/api/now/table/incident?n={number}"), &format!("body {number}"));
        async move {
            let answer = sender.send_request(call).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(!answer.headers().contains_key("set-cookie"));
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            let expected = format!("POST /api/now/table/incident?n={number} HTTP/1.1 body {number}");
            assert_eq!(text, expected.as_bytes());
        }
    });
    soon(futures_util::future::join_all(calls)).await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    assert_eq!(
        door.metric("bearerd_proxy_requests_total{method=\"POST\",origin=\"instance\",status_class=\"2xx\"}"),
        50
    );
    assert_eq!(door.metric("bearerd_proxy_caller_connections"), 1);
}

/// P-04.
#[tokio::test]
async fn a_fault_ends_its_call_and_not_the_connection() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|_| ok("{}", ""));
    let mut sender = speak(&door).await;
    for (call, status, code) in [
        (request(&door, "GET", "/login.do", ""), 400, "path_refused"),
        (request(&door, "GET", "/api/now/table/incident", "body"), 400, "request_malformed"),
        (request(&door, "OPTIONS", "/api/now/table/incident", ""), 405, "method_refused"),
    ] {
        let answer = soon(sender.send_request(call)).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["bearerd-error"]),
            (status, &code.parse().unwrap())
        );
        assert!(!answer.headers().contains_key("connection"));
    }
    let answer =
        soon(sender.send_request(request(&door, "GET", "/api/now/table/incident", ""))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// P-22.
#[tokio::test]
async fn a_flood_of_frames_ends_the_connection() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    for (kind, payload) in [(6_u8, &[0_u8; 8][..]), (4, &[]), (2, &[0, 0, 0, 0, 1]), (0xfa, b"x")] {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        let id = if kind == 2 { 3 } else { 0 };
        for _ in 0..10_000 {
            flood.extend([0, 0, u8::try_from(payload.len()).unwrap(), kind, 0, 0, 0, 0, id]);
            flood.extend(payload);
        }
        let before = door.metric("bearerd_proxy_floods_total");
        let _ = stream.write_all(&flood).await; // it may be closed before its end
        door.until("bearerd_proxy_floods_total", before + 1).await;
        door.until("bearerd_proxy_caller_connections", 0).await;
    }
}

/// P-18: a stream that is reset cancels its own call, and no other on the connection.
#[tokio::test]
async fn a_reset_stream_cancels_its_call() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut sender = speak(&door).await;
    let leaving = tokio::spawn(sender.send_request(request(&door, "GET", "/api/now/table/incident", "")));
    let mut peer = instance.accept().await;
    peer.request().await;
    leaving.abort();
    peer.closed().await;
    let staying = tokio::spawn(sender.send_request(request(&door, "GET", "/api/now/table/incident", "")));
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(ok("{}", "")).await;
    assert_eq!(soon(staying).await.unwrap().unwrap().status(), StatusCode::OK);
    door.until("bearerd_proxy_requests_in_flight", 0).await;
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[len[1], len[2], len[3], kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The header block of a call.
fn block(door: &Door, method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "http"),
        (":authority", "b.example"),
        (":path", path),
        ("x-api-key", door.key.expose()),
    ] {
        // RFC 7541 §6.2.2: a literal with a new name, both shorter than 127 bytes.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|len| *len < 127).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// P-19, P-22: bearerd's own answers are not held either for a caller that takes nothing.
#[tokio::test]
async fn refusals_that_nobody_takes_are_let_go() {
    let instance = Instance::listen().await;
    let settings =
        bearerd_proxy::ProxySettings { body_idle_timeout_s: 1, ..bearerd_proxy::ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    // INITIAL_WINDOW_SIZE 0 (RFC 9113 §6.5.2).
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])];
    stream.write_all(&begin.concat()).await.unwrap();
    for number in 0..50 {
        let head = frame(1, 5, 2 * number + 1, &block(&door, "GET", "/login.do"));
        stream.write_all(&head).await.unwrap();
    }
    door.until("bearerd_proxy_requests_in_flight", 50).await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    assert_eq!(door.metric("bearerd_proxy_caller_connections"), 1);
    // They are told so, one by one.
    let mut read = Vec::new();
    let is_reset = |read: &[u8], number: u8| {
        read.windows(9).any(|head| head == [0, 0, 4, 3, 0, 0, 0, 0, 2 * number + 1])
    };
    while !(0..50).all(|number| is_reset(&read, number)) {
        assert!(soon(stream.read_buf(&mut read)).await.unwrap() > 0);
    }
}

/// P-19: the limit on heads holds over HTTP/2, too: on the first one, and on one that does not come to its end.
#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let instance = Instance::listen().await;
    let settings =
        bearerd_proxy::ProxySettings { header_read_timeout_s: 1, ..bearerd_proxy::ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    instance.serve(|_| ok("{}", ""));
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    let call = block(&door, "GET", "/api/now/table/incident");
    let half_frame = frame(1, 5, 3, &call)[..20].to_vec();
    let shapes = [
        (&preface[..24], false, vec![]),
        (&preface[..30], false, vec![]),
        (&preface, false, frame(1, 1, 1, &call)),
        (&preface, true, frame(1, 1, 3, &call)),
        (&preface, true, half_frame),
    ];
    for (begins, served, rest) in shapes {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        stream.write_all(begins).await.unwrap();
        if served {
            let before = door.metric(SERVED);
            stream.write_all(&frame(1, 5, 1, &call)).await.unwrap();
            door.until(SERVED, before + 1).await;
        }
        stream.write_all(&rest).await.unwrap();
        let mut read = Vec::new();
        while soon(stream.read_buf(&mut read)).await.is_ok_and(|bytes| bytes > 0) {}
    }
    // Between calls a connection is kept.
    let mut sender = speak(&door).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // beyond the limit on heads
    for _ in 0..2 {
        let call = request(&door, "GET", "/api/now/table/incident", "");
        assert_eq!(soon(sender.send_request(call)).await.unwrap().status(), StatusCode::OK);
        tokio::time::sleep(std::time::Duration::from_secs(2)).await; // beyond the limit on heads
    }
}

const SERVED: &str = "bearerd_proxy_requests_total{method=\"GET\",origin=\"instance\",status_class=\"2xx\"}";

/// P-28, I-11: a reset that says "no error" is how a stream may end that was answered early (RFC 9113 §8.1). It is no end of
/// a body: what came of it is not executed as if it were all.
#[tokio::test]
async fn a_body_that_is_reset_is_not_taken_for_whole() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    for (number, reason) in [0_u8, 8, 2].into_iter().enumerate() {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        let block = block(&door, "POST", "/api/now/table/incident");
        let begin =
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &block)];
        stream.write_all(&begin.concat()).await.unwrap();
        stream.write_all(&frame(0, 0, 1, b"half of it")).await.unwrap();
        let mut peer = instance.accept().await;
        let head = peer.head().await.unwrap();
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(peer.chunk().await.unwrap(), b"half of it");
        stream.write_all(&frame(3, 0, 1, &[0, 0, 0, reason])).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&peer.closed().await), "", "reset with {reason}");
        door.until("bearerd_proxy_requests_in_flight", 0).await;
        let left = "bearerd_proxy_requests_total{method=\"POST\",origin=\"bearerd\",status_class=\"none\"}";
        door.until(left, u64::try_from(number).unwrap() + 1).await;
    }
}

/// RFC 9110 §9.3.2: an answer to a HEAD has no body. A client that is sent one takes it for a broken stream.
#[tokio::test]
async fn a_refused_head_has_no_body() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let mut sender = speak(&door).await;
    for (path, status) in [("/api/now/table/secret", 403), ("/login.do", 400)] {
        let answer = soon(sender.send_request(request(&door, "HEAD", path, ""))).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert!(answer.headers().contains_key("bearerd-error"));
        let stated: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
        assert!(stated > 50, "{stated}");
        assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

/// P-19, P-22: a caller that takes nothing of one answer loses that one.
#[tokio::test]
async fn an_answer_that_nobody_takes_ends_alone() {
    let mut instance = Instance::listen().await;
    let settings =
        bearerd_proxy::ProxySettings { body_idle_timeout_s: 1, ..bearerd_proxy::ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut sender = speak(&door).await;
    let mut other = sender.clone();
    let slow = tokio::spawn(other.send_request(request(&door, "GET", "/api/now/table/incident?slow", "")));
    let mut slow_peer = instance.accept().await;
    slow_peer.request().await;
    let unread = soon(sender.send_request(request(&door, "GET", "/api/now/table/incident?large", "")));
    let large = async {
        let mut peer = instance.accept().await;
        peer.request().await;
        let body = "x".repeat(16_000_000); // several times the client's windows
        let answer = ok(&body, "");
        // It is cut off inside.
        peer.try_send(&answer).await;
        peer
    };
    let (unread, _peer) = tokio::join!(unread, large);
    let unread = unread.unwrap();
    door.until("bearerd_proxy_requests_in_flight", 1).await;
    slow_peer.send(ok("{}", "")).await;
    assert_eq!(soon(slow).await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(unread.into_body().collect().await.is_err());
    assert_eq!(door.metric("bearerd_proxy_caller_connections"), 1);
}
