//! A primary that sentinels watch, killed, demoted, and hung (F-04).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bearerd_model::{SecretText, UnixTime};
use bearerd_store::{Backend, ChangeCounter, Changes, DueRecord, Kind, StoreError, Times, contract};
use bearerd_store_redis::{ConnectRedisError, RedisBackend, RedisSettings};

use crate::{eventually, key, sealed, topology::Watched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_over_sentinels() {
    let watched = Watched::start(3);
    let stores = AtomicU32::new(0);
    contract::check(async || {
        let settings = RedisSettings {
            key_prefix: format!("store-{}", stores.fetch_add(1, Ordering::SeqCst)),
            response_timeout: Duration::from_secs(20),
            replicas_min: 1,
            replicas_timeout: Duration::from_secs(20),
            ..watched.settings()
        };
        Arc::new(RedisBackend::connect(settings).await.unwrap()) as Arc<dyn Backend>
    })
    .await;
}

/// F-04, I-1: the primary is killed twice, under writes. What replicas had confirmed is still there, with its place in
/// the index of what is due; writes work again within 10 s; and `changes` says each time that something may be missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_nothing_that_was_confirmed() {
    let mut watched = Watched::start(3);
    let settings = RedisSettings { replicas_min: 1, ..watched.settings() };
    let backend = RedisBackend::connect(settings).await.unwrap();
    let at = |number: u64| UnixTime::from_secs(1_000 + number);
    let mut kept = Vec::new();
    backend.create(&key("start"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let mut counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    for round in 0..2 {
        for _ in 0..20 {
            let number = kept.len() as u64;
            let key = key(&format!("r{number:04}"));
            let times = Times { expires_at: None, due_at: Some(at(number)) };
            let revision = eventually(async || match backend.create(&key, sealed("1"), times).await {
                Ok(Some(revision)) => Some(revision),
                Ok(None) => backend.load(&key).await.ok().flatten().map(|(revision, _)| revision),
                Err(_) => None,
            });
            kept.push((key.clone(), revision.await));
        }
        counter = backend.changes(counter).await.unwrap().counter();
        let killed = watched.kill_primary();
        let begun = Instant::now();
        let first = key(&format!("after-{round}"));
        eventually(async || match backend.create(&first, sealed("2"), Times::default()).await {
            Ok(_) => Some(()),
            Err(_) => None,
        })
        .await;
        let took = begun.elapsed();
        println!("round {round}: writes work {took:?} after the kill");
        assert!(took < Duration::from_secs(10), "{took:?}");
        for (key, revision) in &kept {
            let found = eventually(async || backend.load(key).await.ok()).await;
            assert_eq!(found.map(|(revision, _)| revision), Some(*revision), "{key} was confirmed");
        }
        let due =
            eventually(async || backend.due(Kind::Connection, None, at(100_000), 1_000).await.ok()).await;
        let expected: Vec<DueRecord> = (0..kept.len() as u64)
            .map(|number| DueRecord { at: at(number), id: format!("r{number:04}") })
            .collect();
        assert_eq!(due, expected);
        let Changes::Missed { counter: newest } = backend.changes(counter).await.unwrap() else {
            panic!("another primary may have lost what was not confirmed")
        };
        counter = newest;
        watched.wait_for_another_than(killed);
        watched.restart(killed);
    }
}

/// A primary that is voted out lives on as one for some seconds. It is left at the sentinels' word, not when it learns
/// of it itself; the writes of the moments before are lost, as `changes` says.
#[tokio::test]
async fn a_primary_that_was_voted_out_is_left() {
    let watched = Watched::start(3);
    let backend = watched.backend().await;
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let before = watched.primary();
    watched.sentinels[1].ask::<()>(&["SENTINEL", "FAILOVER", "mymaster"]);
    let after = watched.wait_for_another_than(before);
    eventually(async || {
        let (revision, _) = backend.load(&key("hr")).await.ok().flatten()?;
        match backend.replace(&key("hr"), revision, sealed("2"), None).await {
            Ok(_) => {}
            Err(error) => assert!(!matches!(error, StoreError::Refused(_)), "{error}"),
        }
        let stored: String = watched.servers[after].ask(&["HGET", "bearerd:{hr}:connection", "v"]);
        (stored == "2").then_some(())
    })
    .await;
    assert!(matches!(backend.changes(counter).await.unwrap(), Changes::Missed { .. }));
}

/// READONLY on an open link, without a word from a sentinel before: asked again, it names the primary, and the same call
/// writes there.
#[tokio::test]
async fn a_readonly_answer_has_the_sentinels_asked_again() {
    let watched = Watched::start(1);
    let settings = RedisSettings { replicas_min: 2, ..watched.settings() };
    let confirmed = RedisBackend::connect(settings).await.unwrap();
    let backend = watched.backend().await;
    let revision = confirmed.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let [before, after, ..] = &watched.servers[..] else { unreachable!() };
    let (host, port) = (after.address.to_string(), after.port.to_string());
    after.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    before.ask::<()>(&["REPLICAOF", &host, &port]);
    // Other than a failover, this is not published.
    watched.sentinels[0].ask::<()>(&["SENTINEL", "REMOVE", "mymaster"]);
    watched.sentinels[0].ask::<()>(&["SENTINEL", "MONITOR", "mymaster", &host, &port, "1"]);
    backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap().unwrap();
    let stored: String = after.ask(&["HGET", "bearerd:{hr}:connection", "v"]);
    assert_eq!(stored, "2");
    assert!(matches!(backend.changes(counter).await.unwrap(), Changes::Missed { .. }));
}

/// A primary that hangs keeps its links: the sentinels' word ends the waiting, long before patience would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_primary_is_left_at_the_sentinels_word() {
    let watched = Watched::start(3);
    let settings = RedisSettings {
        connect_timeout: Duration::from_mins(1),
        response_timeout: Duration::from_mins(1),
        ..watched.settings()
    };
    let backend = Arc::new(RedisBackend::connect(settings).await.unwrap());
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let hung = watched.primary();
    watched.servers[hung].stop();
    let begun = Instant::now();
    let created = backend.create(&key("new"), sealed("1"), Times::default()).await;
    let took = begun.elapsed();
    println!("written {took:?} after the primary hung");
    assert!(created.unwrap().is_some());
    assert!(took < Duration::from_secs(10), "{took:?}");
    watched.servers[hung].go_on();
}

/// Whoever waits for a change hears of one at once, and after a failover too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_change_hears_of_it() {
    let mut watched = Watched::start(3);
    let (here, there) = (watched.backend().await, watched.backend().await);
    here.create(&key("start"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let mut counter = here.changes(ChangeCounter(0)).await.unwrap().counter();
    here.changed(ChangeCounter(0)).await; // there is one already, and the reader is at work
    for round in 0..3 {
        let change = async {
            there.create(&key(&format!("{round}")), sealed("1"), Times::default()).await.unwrap().unwrap();
            Instant::now()
        };
        let (written_at, woken_at) = tokio::join!(change, async {
            here.changed(counter).await;
            Instant::now()
        });
        let took = woken_at.saturating_duration_since(written_at);
        assert!(took < Duration::from_millis(300), "{took:?}");
        counter = here.changes(counter).await.unwrap().counter();
    }
    let killed = watched.kill_primary();
    here.changed(counter).await; // the lost link may hide a change
    watched.wait_for_another_than(killed);
    let mut newest = eventually(async || here.changes(counter).await.ok()).await.counter();
    let change = eventually(async || {
        there.create(&key("after"), sealed("1"), Times::default()).await.ok().flatten().map(drop)
    });
    let hearing = async {
        loop {
            here.changed(newest).await;
            let changes = here.changes(newest).await.unwrap();
            newest = changes.counter();
            if let Changes::Since { keys, .. } = changes
                && keys.contains(&key("after"))
            {
                return;
            }
        }
    };
    let both = async { tokio::join!(change, hearing) };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("it was heard of");
}

/// No sentinel, no service of that name, one sentinel of three: each has its own end.
#[tokio::test]
async fn what_the_sentinels_lack_is_named() {
    let mut watched = Watched::start(3);
    let settings = RedisSettings { sentinel_service: "other".to_owned(), ..watched.settings() };
    let error = RedisBackend::connect(settings).await.unwrap_err();
    assert!(error.to_string().contains("no sentinel knows a service other"), "{error}");
    watched.sentinels[0].kill();
    watched.sentinels[1].kill();
    watched.backend().await;
    watched.sentinels[2].kill();
    let error = RedisBackend::connect(watched.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Unreachable { .. }), "{error}");
    assert!(error.to_string().starts_with("no sentinel of mymaster answers"), "{error}");
}

/// TLS everywhere, users of few rights everywhere, and a failover: the sentinels are a way in like any other.
#[tokio::test]
async fn tls_and_users_go_with_sentinels() {
    let mut watched = Watched::start_with_tls(3);
    for server in &watched.servers {
        server.ask::<()>(&["ACL", "SETUSER", "bearerd", "on", ">pass", "~bearerd:*", "-@all"]);
        let rights = ["+@read", "+@write", "+@scripting", "+ping", "+time", "+wait", "+info", "+role"];
        server.ask::<()>(&[&["ACL", "SETUSER", "bearerd"], &rights[..]].concat());
    }
    for sentinel in &watched.sentinels {
        sentinel.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">word", "resetchannels", "&+switch-master"]);
        let rights =
            ["-@all", "+sentinel|get-master-addr-by-name", "+sentinel|master", "+subscribe", "+ping"];
        sentinel.ask::<()>(&[&["ACL", "SETUSER", "reader"], &rights[..]].concat());
    }
    let secret = |text: &str| Some(SecretText::parse(text.to_owned()).unwrap());
    let settings = RedisSettings {
        username: Some("bearerd".to_owned()),
        password: secret("pass"),
        sentinel_username: Some("reader".to_owned()),
        sentinel_password: secret("word"),
        replicas_min: 1,
        ..watched.settings()
    };
    let backend = RedisBackend::connect(settings.clone()).await.unwrap();
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let killed = watched.kill_primary();
    watched.wait_for_another_than(killed);
    eventually(async || backend.create(&key("after"), sealed("1"), Times::default()).await.ok()).await;
    assert!(backend.load(&key("hr")).await.unwrap().is_some());

    let untrusted = RedisSettings { ca_file: None, ..settings.clone() };
    let error = RedisBackend::connect(untrusted).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let wrong = RedisSettings { sentinel_password: secret("canary"), ..settings };
    let error = RedisBackend::connect(wrong).await.unwrap_err();
    assert!(error.to_string().starts_with("no sentinel of mymaster answers"), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
}
