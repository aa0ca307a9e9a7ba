//! HTTP/2 from callers, with prior knowledge; and to an instance, where its integration asks for that.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, net::TcpStream};

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

/// P-19: a caller that opens no window for its answer is cut, and gives back what it holds.
#[tokio::test]
async fn a_caller_that_takes_nothing_is_cut() {
    let instance = Instance::listen().await;
    let settings =
        bearerd_proxy::ProxySettings { body_idle_timeout_s: 1, ..bearerd_proxy::ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let body = "x".repeat(16_000_000); // several times the client's windows
    instance.serve(move |_| ok(&body, ""));
    let mut sender = speak(&door).await;
    let answer =
        soon(sender.send_request(request(&door, "GET", "/api/now/table/incident", ""))).await.unwrap();
    // The body is held and not read: the window stays as it is.
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    drop(answer);
    tokio::time::timeout(Duration::from_secs(15), door.until("bearerd_proxy_caller_connections", 0))
        .await
        .unwrap();
}
