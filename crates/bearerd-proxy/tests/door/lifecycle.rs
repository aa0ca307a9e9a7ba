//! Start, drain and end of the door.

use std::{sync::Arc, time::Duration};

use bearerd_proxy::{DoorError, ProxyDoor, ProxyMetrics, ProxySettings};
use tokio::net::TcpStream;

use crate::support::{Door, Instance, no_records, ok, soon};

#[tokio::test]
async fn a_drain_lets_calls_end_and_closes_what_is_idle() {
    let mut instance = Instance::listen().await;
    let mut door = Door::open(&instance);
    let (mut idle, mut busy, mut streaming) = (door.call().await, door.call().await, door.call().await);
    idle.send(door.head("GET /x", "")).await;
    assert_eq!(idle.answer(false).await.code(), "path_refused");
    streaming.send(door.head("GET /api/now/table/incident?streaming", "")).await;
    let mut stream_peer = instance.accept().await;
    stream_peer.request().await;
    stream_peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await;
    streaming.head().await.unwrap();
    assert_eq!(streaming.chunk().await.unwrap(), b"a");
    busy.send(door.head("GET /api/now/table/incident?busy", "")).await;
    let mut busy_peer = instance.accept().await;
    busy_peer.request().await;

    let running = door.running.take().unwrap();
    let shutdown = tokio::spawn(running.shutdown(Duration::from_mins(1)));
    assert_eq!(idle.closed().await, b"");
    // The calls under way know nothing of it.
    busy_peer.send(ok("late", "")).await;
    let answer = busy.answer(false).await;
    assert_eq!((answer.text(), answer.header("connection")), ("late", Some("close")));
    assert!(!shutdown.is_finished());
    stream_peer.send("1\r\nb\r\n0\r\n\r\n").await;
    assert_eq!(streaming.chunk().await.unwrap(), b"b");
    assert_eq!(streaming.chunk().await.unwrap(), b"");
    soon(shutdown).await.unwrap();
    for caller in [&mut busy, &mut streaming] {
        assert_eq!(caller.closed().await, b"");
    }
    assert!(TcpStream::connect(door.address).await.is_err(), "the socket is closed");
    assert_eq!(door.metric("bearerd_proxy_caller_connections"), 0);
}

#[tokio::test]
async fn a_drain_ends_when_its_time_is_over() {
    let mut instance = Instance::listen().await;
    let mut door = Door::open(&instance);
    let mut caller = door.call().await;
    caller.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    soon(door.running.take().unwrap().shutdown(Duration::ZERO)).await;
    assert_eq!(caller.closed().await, b"");
    peer.closed().await;
}

#[tokio::test]
async fn a_dropped_door_stops() {
    let instance = Instance::listen().await;
    let mut door = Door::open(&instance);
    let mut caller = door.call().await;
    drop(door.running.take());
    assert_eq!(caller.closed().await, b"");
}

#[tokio::test]
async fn several_workers_share_one_socket() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|_| ok("{}", ""));
    let settings = ProxySettings { listen: "127.0.0.1:0".into(), workers: 3, ..ProxySettings::default() };
    let listener = bearerd_net::Listener::bind(&settings.listen_settings(), &[]).unwrap();
    let address = listener.address().tcp().unwrap();
    let metrics = ProxyMetrics::default();
    let wide = ProxyDoor::start(
        &settings,
        listener,
        Arc::clone(&door.shared),
        Arc::clone(&door.tokens) as _,
        Arc::clone(&door.clock) as _,
        &metrics,
        &no_records(),
    )
    .unwrap();
    for _ in 0..50 {
        let mut caller = crate::support::Caller::connect(address).await;
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        assert_eq!(caller.answer(false).await.status, 200);
    }
    soon(wide.shutdown(Duration::from_mins(1))).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn settings_out_of_range_open_no_door() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let settings = ProxySettings { listen: "127.0.0.1:0".into(), pool_idle_s: 0, ..ProxySettings::default() };
    let listener = bearerd_net::Listener::bind(&settings.listen_settings(), &[]).unwrap();
    let opened = ProxyDoor::start(
        &settings,
        listener,
        Arc::clone(&door.shared),
        Arc::clone(&door.tokens) as _,
        Arc::clone(&door.clock) as _,
        &ProxyMetrics::default(),
        &no_records(),
    );
    assert!(matches!(opened, Err(DoorError::Settings(_))));
}
