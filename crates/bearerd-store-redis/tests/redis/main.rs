//! The Redis backend against real servers, and against what goes wrong with them (F-03, F-04).

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod cluster;
mod replicas;
mod sentinels;
mod server;
mod topology;

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bearerd_crypto::{KeyRing, Sealed};
use bearerd_model::{SecretText, UnixTime};
use bearerd_store::{
    Backend, ChangeCounter, Changes, Kind, RecordKey, Revision, Store, StoreError, Times,
    contract::{self, CANARY, canary_connection, canary_integration},
};
use bearerd_store_redis::{ConnectRedisError, RedisBackend, RedisSettings};
use tokio::task::JoinSet;

use crate::server::{Certificates, Proxy, Server, free_port, settings_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let server = Server::start();
    let stores = AtomicU32::new(0);
    contract::check(async || {
        let number = stores.fetch_add(1, Ordering::SeqCst);
        let settings = RedisSettings {
            key_prefix: format!("store-{number}"),
            response_timeout: Duration::from_secs(20), // the machine may be busy; patience is tested elsewhere
            ..server.settings()
        };
        Arc::new(RedisBackend::connect(settings).await.unwrap()) as Arc<dyn Backend>
    })
    .await;
}

/// Nobody has to be told twice: two processes of one store see each other's writes at once, and of all their callers
/// one takes a flow (I-13).
#[tokio::test]
async fn processes_share_a_store() {
    let server = Server::start();
    let (here, there) = (Arc::new(server.backend().await), Arc::new(server.backend().await));
    here.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let (revision, _) = there.load(&key("hr")).await.unwrap().unwrap();
    let counter = here.changes(ChangeCounter(0)).await.unwrap().counter();
    there.replace(&key("hr"), revision, sealed("2"), None).await.unwrap().unwrap();
    assert_eq!(here.replace(&key("hr"), revision, sealed("3"), None).await.unwrap(), None);
    let Changes::Since { keys, .. } = here.changes(counter).await.unwrap() else {
        panic!("the log is whole")
    };
    assert_eq!(keys, [key("hr")]);

    let flow = RecordKey::new(Kind::ConsentFlow, "flow");
    here.create(&flow, sealed("flow"), Times::default()).await.unwrap().unwrap();
    let takers: JoinSet<bool> = (0..50)
        .map(|number| {
            let (backend, flow) = (Arc::clone(if number % 2 == 0 { &here } else { &there }), flow.clone());
            async move { backend.take(&flow).await.unwrap().is_some() }
        })
        .collect();
    assert_eq!(takers.join_all().await.into_iter().filter(|taken| *taken).count(), 1);
}

#[tokio::test]
async fn prefixes_keep_stores_apart() {
    let server = Server::start();
    let ours = server.backend().await;
    let settings = RedisSettings { key_prefix: "other".to_owned(), ..server.settings() };
    let theirs = RedisBackend::connect(settings).await.unwrap();
    ours.create(&key("hr"), sealed("ours"), Times::default()).await.unwrap().unwrap();
    assert_eq!(theirs.load(&key("hr")).await.unwrap(), None);
    assert_eq!(theirs.list(Kind::Connection, None, 10).await.unwrap(), []);
    assert_eq!(theirs.changes(ChangeCounter(0)).await.unwrap().counter(), ChangeCounter(0));
}

/// S-07 rests on this: a process with the wrong master key has not touched the store when it gives up.
#[tokio::test]
async fn connecting_and_reading_write_nothing() {
    let server = Server::start();
    let backend = server.backend().await;
    assert_eq!(backend.load(&key("hr")).await.unwrap(), None);
    assert_eq!(backend.list(Kind::Connection, None, 10).await.unwrap(), []);
    backend.changes(ChangeCounter(0)).await.unwrap();
    let stats: String = redis::cmd("INFO").arg("persistence").query(&mut server.raw()).unwrap();
    assert!(stats.contains("rdb_changes_since_last_save:0\r\n"), "{stats}");
}

/// S-04: whatever stands in a record's place costs that record alone. Another tool, a mistyped command or a half-done
/// restore may have left it there.
#[tokio::test]
async fn a_damaged_record_costs_one_record() {
    let poisons: [&[&[&[u8]]]; 7] = [
        &[&[b"HSET", RECORD, b"r", b"not hex"]],
        &[&[b"HSET", RECORD, b"r", b"\xff\xfe"]],
        &[&[b"HDEL", RECORD, b"r"]],
        &[&[b"HDEL", RECORD, b"v"]],
        &[&[b"HSET", RECORD, b"v", b"not sealed"], &[b"HSET", RECORD, b"r", b""]],
        &[&[b"SET", RECORD, b"a string"]],
        &[&[b"DEL", RECORD], &[b"RPUSH", RECORD, b"a", b"list"]],
    ];
    let server = Server::start();
    for poison in poisons {
        redis::cmd("FLUSHALL").exec(&mut server.raw()).unwrap();
        contract::a_damaged_record_hides_no_other(
            Arc::new(server.backend().await),
            async |backend, key: &RecordKey| {
                assert_eq!(format!("bearerd:{{{}}}:connection", key.id).as_bytes(), RECORD);
                for command in poison {
                    println!("{}", command.concat().escape_ascii());
                    redis::cmd("EVAL")
                        .arg("return redis.call(unpack(ARGV))")
                        .arg(0)
                        .arg(*command)
                        .exec(&mut server.raw())
                        .unwrap();
                }
                backend
            },
        )
        .await;
    }
}

/// An id that no bearerd wrote into an index names no record, and hides none.
#[tokio::test]
async fn a_foreign_id_in_an_index_hides_no_record() {
    let server = Server::start();
    let backend = server.backend().await;
    for id in ["a", "z"] {
        backend.create(&key(id), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
    let foreign: &[u8] = b"b\xff";
    redis::cmd("ZADD").arg("bearerd:{c}:i:connection").arg(0).arg(foreign).exec(&mut server.raw()).unwrap();
    for limit in [1, 2, 10] {
        let (mut found, mut after): (Vec<String>, _) = (Vec::new(), None);
        loop {
            let page = backend.list(Kind::Connection, after.as_deref(), limit).await.unwrap();
            let is_last = page.len() < limit;
            found.extend(page.into_iter().map(|entry| entry.id));
            after = found.last().cloned();
            if is_last {
                break;
            }
        }
        assert_eq!(found, ["a", "z"], "in pages of {limit}");
    }
}

/// A server that refuses to answer for one record of many does not answer: nothing is passed off as damaged.
#[tokio::test]
async fn a_refused_read_is_no_damage() {
    let server = Server::start();
    let backend = server.backend().await;
    for id in ["a", "b"] {
        backend.create(&key(id), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("narrow")
        .arg(&["on", ">pass", "~bearerd:{c}:*", "~bearerd:{a}:*", "+@all"])
        .exec(&mut server.raw())
        .unwrap();
    let settings = RedisSettings {
        username: Some("narrow".to_owned()),
        password: Some(SecretText::parse("pass".to_owned()).unwrap()),
        ..server.settings()
    };
    let narrow = RedisBackend::connect(settings).await.unwrap();
    for error in [
        narrow.load(&key("b")).await.unwrap_err(),
        narrow.list(Kind::Connection, None, 10).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::Refused(why) if why.contains("NOPERM")), "{error}");
    }
}

/// F-04: the server is killed and comes back between two calls. The link mends itself; with a file that is
/// appended to, nothing is lost.
#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let mut server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = server.backend().await;
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    for round in 0..3 {
        let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
        server.kill();
        server.restart();
        assert_eq!(backend.load(&key("hr")).await.unwrap(), Some((revision, sealed("1"))), "round {round}");
        assert_eq!(
            backend.changes(counter).await.unwrap(),
            Changes::Missed { counter },
            "it may have lost some"
        );
        assert_eq!(backend.changes(counter).await.unwrap(), Changes::Since { counter, keys: vec![] });
        server.kill();
        server.restart();
        let other = key(&format!("other-{round}"));
        backend.create(&other, sealed("2"), Times::default()).await.unwrap().unwrap();
        assert!(backend.load(&other).await.unwrap().is_some());
        let taken = backend.take(&other).await.unwrap();
        assert_eq!(taken, Some(sealed("2")));
        let Changes::Missed { counter: newest } = backend.changes(counter).await.unwrap() else {
            panic!("it was killed again")
        };
        assert_eq!(backend.changes(newest).await.unwrap(), Changes::Since { counter: newest, keys: vec![] });
    }
}

/// While nothing listens, a read says so at once, and so does a write: it was never sent, so nothing is in doubt.
#[tokio::test]
async fn a_server_that_is_down_leaves_nothing_in_doubt() {
    let mut server = Server::start();
    let backend = server.backend().await;
    server.kill();
    let error = backend.load(&key("hr")).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unreachable(why) if why.contains(&server.port().to_string())),
        "{error}"
    );
    let begun = Instant::now();
    let error = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    server.restart();
    assert_eq!(backend.load(&key("hr")).await.unwrap(), None);
}

/// F-03: the server did what was asked and its reply was lost. Asking again gives that reply, and does nothing twice.
#[tokio::test]
async fn a_lost_reply_is_asked_for_again() {
    let server = Server::start();
    let proxy = Proxy::start(server.port()).await;
    let backend = proxy.backend().await;
    backend.create(&key("log-start"), sealed(""), Times::default()).await.unwrap();
    let mut counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let mut one_change = async || {
        let Changes::Since { counter: newer, keys } = backend.changes(counter).await.unwrap() else {
            panic!("the log is whole")
        };
        assert_eq!(keys, [key("hr")]);
        counter = newer;
        let length: usize = redis::cmd("XLEN").arg("bearerd:{c}:log").query(&mut server.raw()).unwrap();
        length
    };
    let links = proxy.links();

    proxy.cut_next_reply();
    let first =
        backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().expect("our own create");
    assert_eq!(backend.load(&key("hr")).await.unwrap(), Some((first, sealed("1"))));
    assert_eq!(one_change().await, 2);

    proxy.cut_next_reply();
    let second =
        backend.replace(&key("hr"), first, sealed("2"), None).await.unwrap().expect("our own replace");
    assert_eq!(backend.load(&key("hr")).await.unwrap(), Some((second, sealed("2"))));
    assert_eq!(one_change().await, 3);

    proxy.cut_next_reply();
    assert!(backend.delete(&key("hr"), second).await.unwrap(), "our own delete");
    assert_eq!(one_change().await, 4);

    backend.create(&key("hr"), sealed("3"), Times::default()).await.unwrap().unwrap();
    proxy.cut_next_reply();
    assert_eq!(backend.take(&key("hr")).await.unwrap(), Some(sealed("3")), "our own take, with the value");
    assert_eq!(one_change().await, 6);

    proxy.cut_next_reply();
    assert_eq!(backend.load(&key("hr")).await.unwrap(), None, "a read is sent again");
    proxy.cut_next_reply();
    assert_eq!(
        backend.replace(&key("hr"), second, sealed("4"), None).await.unwrap(),
        None,
        "a loser stays one"
    );
    assert_eq!(proxy.links() - links, 6, "each cut cost one link");
}

/// F-04: a server that hangs. Calls end in their time, the link is given up, and when the server goes on, so does
/// the store.
#[tokio::test]
async fn a_hanging_server_ends_calls_in_time() {
    let server = Server::start();
    let backend = server.backend().await;
    let RedisSettings { connect_timeout, response_timeout, .. } = server.settings();
    let patience = Duration::from_secs(3); // for a busy machine
    backend.load(&key("hr")).await.unwrap();
    server.stop();

    let begun = Instant::now();
    let error = backend.load(&key("hr")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(begun.elapsed() < response_timeout + patience, "{:?}", begun.elapsed());

    let begun = Instant::now();
    let error = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap_err();
    assert!(!matches!(error, StoreError::Refused(_)), "{error}");
    assert!(begun.elapsed() < connect_timeout + 2 * response_timeout + patience, "{:?}", begun.elapsed());

    server.go_on();
    let found = eventually(async || backend.load(&key("hr")).await.ok()).await;
    match found {
        None => assert!(backend.create(&key("hr"), sealed("2"), Times::default()).await.unwrap().is_some()),
        Some((_, value)) => assert_eq!(value, sealed("1")),
    }
}

/// A write that was under way when the server hung is in doubt, and is told so; it then happens whole or not at all.
#[tokio::test]
async fn a_write_into_a_hanging_server_is_in_doubt() {
    let server = Server::start();
    let backend = server.backend().await;
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    server.stop();
    let error = backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap_err();
    assert!(matches!(error, StoreError::OutcomeUnknown(_)), "{error}");
    server.go_on();
    let (found, value) = eventually(async || backend.load(&key("hr")).await.ok()).await.unwrap();
    assert_eq!(found == revision, value == sealed("1"));
    assert!([sealed("1"), sealed("2")].contains(&value));
}

#[tokio::test]
async fn what_is_in_the_way_at_start_is_named() {
    let nobody = free_port();
    let begun = Instant::now();
    let error = RedisBackend::connect(settings_for(nobody)).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("Redis at 127.0.0.1:{nobody} does not accept connections")), "{text}");
    assert!(text.contains("start Redis there") && !text.contains('\n'), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    let server = Server::start_with(&["--requirepass", "right"]);
    let error = server.settings_with_password(None).await.unwrap_err();
    assert!(error.to_string().contains("wants a password (NOAUTH): set it in the settings"), "{error}");
    let error = server.settings_with_password(Some("canary-wrong")).await.unwrap_err();
    assert!(error.to_string().contains("refused the user name or password (WRONGPASS)"), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    server.settings_with_password(Some("right")).await.unwrap();

    let hanging = Server::start();
    hanging.stop();
    let begun = Instant::now();
    let error = RedisBackend::connect(hanging.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_may_lose_connections_is_refused_or_warned_of() {
    let server = Server::start();
    let backend = server.backend().await;
    let [warning] = backend.warnings() else { panic!("one warning: {:?}", backend.warnings()) };
    assert!(warning.contains("keeps no append-only file") && warning.contains("appendonly yes"), "{warning}");

    let set = |setting: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(setting).arg(value).exec(&mut server.raw()).unwrap();
    };
    set("appendonly", "yes");
    let backend = server.backend().await;
    assert!(backend.warnings()[0].contains("appendfsync everysec"), "{:?}", backend.warnings());
    set("appendfsync", "always");
    assert_eq!(server.backend().await.warnings(), [] as [String; 0]);

    set("maxmemory-policy", "allkeys-lru");
    let error = RedisBackend::connect(server.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Evicts { .. }), "{error}");
    assert!(error.to_string().contains("allkeys-lru") && error.to_string().contains("noeviction"), "{error}");
    set("maxmemory-policy", "noeviction");

    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec(&mut server.raw()).unwrap();
    let error = RedisBackend::connect(server.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Replica { .. }), "{error}");
}

/// F-04: a server that is met after the start is looked at too. It takes no writes while it may throw them away, with
/// replicas asked for or not; reads go on, and it is taken back once it is mended.
#[tokio::test]
async fn an_evicting_server_that_is_met_later_takes_no_writes() {
    let server = Server::start();
    let confirmed = RedisSettings { replicas_min: 1, ..server.settings() };
    let confirmed = RedisBackend::connect(confirmed).await.unwrap();
    let backend = server.backend().await;
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "allkeys-lru"]).exec(&mut server.raw()).unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec(&mut server.raw()).unwrap();
    for backend in [&backend, &confirmed] {
        assert!(backend.load(&key("hr")).await.unwrap().is_some());
        for _ in 0..2 {
            let error = backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap_err();
            let StoreError::Refused(why) = &error else { panic!("{error}") };
            assert!(
                why.ends_with(
                    "may throw connections away when it is full (maxmemory-policy allkeys-lru): \
                     set `maxmemory-policy noeviction`"
                ),
                "{why}"
            );
        }
        assert!(matches!(backend.sweep(UnixTime::from_secs(1)).await, Err(StoreError::Refused(_))));
        assert_eq!(backend.load(&key("hr")).await.unwrap().unwrap().0, revision, "nothing was written");
    }
    redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "noeviction"]).exec(&mut server.raw()).unwrap();
    backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap().unwrap();
}

/// A user who may not ask about the server still gets a store, and is told what was not checked.
#[tokio::test]
async fn a_user_of_few_rights_is_enough() {
    let server = Server::start();
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("bearerd")
        .arg(&["on", ">pass", "~bearerd:*", "-@all", "+@read", "+@write", "+@scripting", "+ping", "+time"])
        .exec(&mut server.raw())
        .unwrap();
    let settings = RedisSettings {
        username: Some("bearerd".to_owned()),
        password: Some(SecretText::parse("pass".to_owned()).unwrap()),
        ..server.settings()
    };
    let backend = RedisBackend::connect(settings.clone()).await.unwrap();
    assert!(backend.warnings()[0].contains("INFO"), "{:?}", backend.warnings());
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    assert!(backend.delete(&key("hr"), revision).await.unwrap());
    assert_eq!(backend.sweep(UnixTime::from_secs(1)).await.unwrap(), 0);

    let elsewhere = RedisSettings { key_prefix: "elsewhere".to_owned(), ..settings };
    let backend = RedisBackend::connect(elsewhere).await.unwrap();
    let error = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("NOPERM")), "{error}");
}

/// F-03: what the server itself declines is a refusal with a remedy, and nothing was written.
#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Server::start();
    let backend = server.backend().await;
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let refused = async |part: &str| {
        for error in [
            backend.create(&key("new"), sealed("2"), Times::default()).await.unwrap_err(),
            backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap_err(),
            backend.delete(&key("hr"), revision).await.unwrap_err(),
            backend.take(&key("hr")).await.unwrap_err(),
        ] {
            assert!(matches!(&error, StoreError::Refused(why) if why.contains(part)), "{error}");
        }
        assert_eq!(backend.load(&key("hr")).await.unwrap(), Some((revision, sealed("1"))));
        assert_eq!(backend.load(&key("new")).await.unwrap(), None);
        assert_eq!(backend.changes(counter).await.unwrap(), Changes::Since { counter, keys: vec![] });
    };
    let raw = |words: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).exec(&mut server.raw()).unwrap();
    };
    raw(&["CONFIG", "SET", "maxmemory", "1"]);
    refused("is full (OOM): raise its maxmemory").await;
    raw(&["CONFIG", "SET", "maxmemory", "0"]);

    raw(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    refused("too few replicas").await;
    raw(&["CONFIG", "SET", "min-replicas-to-write", "0"]);

    raw(&["REPLICAOF", "127.0.0.1", "1"]);
    raw(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    refused("read-only replica (READONLY): name the primary").await;
    raw(&["REPLICAOF", "NO", "ONE"]);

    assert!(backend.delete(&key("hr"), revision).await.unwrap(), "the refusals were not for ever");
}

/// Redis forgets a record by itself and leaves its id in the index: lists pass over it without a short page in the
/// middle, and a sweep clears it away.
#[tokio::test]
async fn expired_records_do_not_break_lists() {
    let server = Server::start();
    let backend = server.backend().await;
    let link = |number: u32| RecordKey::new(Kind::ConnectLink, format!("{number:02}"));
    for number in 0..10 {
        let expires_at = (number % 3 != 0).then(|| UnixTime::from_secs(1)); // 0, 3, 6 and 9 stay
        backend
            .create(&link(number), sealed("x"), Times { expires_at, due_at: None })
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(backend.load(&link(1)).await.unwrap(), None);
    assert_eq!(backend.take(&link(2)).await.unwrap(), None);
    let ids = async |after: Option<&str>, limit| -> Vec<String> {
        let page = backend.list(Kind::ConnectLink, after, limit).await.unwrap();
        page.into_iter().map(|record| record.id).collect()
    };
    assert_eq!(ids(None, 2).await, ["00", "03"]);
    assert_eq!(ids(Some("03"), 2).await, ["06", "09"]);
    assert_eq!(ids(None, 100).await, ["00", "03", "06", "09"]);
    assert!(backend.create(&link(1), sealed("again"), Times::default()).await.unwrap().is_some());
    assert_eq!(backend.sweep(UnixTime::from_secs(2)).await.unwrap(), 5);
    assert_eq!(ids(None, 100).await, ["00", "01", "03", "06", "09"]);
    let indexed: usize =
        redis::cmd("ZCARD").arg("bearerd:{c}:i:connect_link").query(&mut server.raw()).unwrap();
    assert_eq!(indexed, 5);
}

/// Any number may be due in the same millisecond, and the entry where a page ended may be gone when the next is asked
/// for. Time and id decide where it goes on.
#[tokio::test]
async fn what_is_due_at_once_is_paged() {
    let server = Server::start();
    let backend = server.backend().await;
    let due_at = |number: usize| UnixTime::from_millis(if number < 10 { 5 } else { 7 });
    for number in 0..400 {
        let times = Times { expires_at: None, due_at: Some(due_at(number)) };
        backend.create(&key(&format!("{number:03}")), sealed("1"), times).await.unwrap().unwrap();
    }
    let later = Times { expires_at: None, due_at: Some(UnixTime::from_millis(8)) };
    backend.create(&key("later"), sealed("1"), later).await.unwrap().unwrap();
    for limit in [1, 7, 300, 1_000] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let until = UnixTime::from_millis(7);
            let page = backend.due(Kind::Connection, after.as_ref(), until, limit).await.unwrap();
            assert!(page.len() <= limit);
            let is_last = page.len() < limit;
            after = page.last().cloned().or(after);
            found.extend(page);
            if let (Some(last), false) = (&after, limit == 1) {
                // As after its refresh.
                redis::cmd("ZREM")
                    .arg("bearerd:{c}:due:connection")
                    .arg(&last.id)
                    .exec(&mut server.raw())
                    .unwrap();
            }
            if is_last {
                break;
            }
        }
        assert!(found.is_sorted() && found.windows(2).all(|pair| pair[0] != pair[1]), "in pages of {limit}");
        let mut ids: Vec<String> = found.into_iter().map(|due| due.id).collect();
        ids.sort();
        match limit {
            1 | 7 => assert_eq!(ids, (0..400).map(|number| format!("{number:03}")).collect::<Vec<_>>()),
            _ => assert!(ids.len() > 300),
        }
    }
}

/// A flush, or a replica promoted without the last writes: whoever followed the old history is told that he missed
/// something, even when the new one has grown past his counter.
#[tokio::test]
async fn another_history_is_noticed() {
    let server = Server::start();
    let backend = server.backend().await;
    for id in ["a", "b", "c"] {
        backend.create(&key(id), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let lost = format!("{}-0", counter.0);
    redis::cmd("XDEL").arg("bearerd:{c}:log").arg(lost).exec(&mut server.raw()).unwrap();
    assert!(
        matches!(backend.changes(counter).await.unwrap(), Changes::Missed { counter: newest } if newest < counter)
    );
    backend.create(&key("d"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let Changes::Missed { counter: newest } = backend.changes(counter).await.unwrap() else {
        panic!("`c` was told and then lost")
    };
    assert!(newest > counter);

    redis::cmd("FLUSHALL").exec(&mut server.raw()).unwrap();
    assert_eq!(backend.changes(newest).await.unwrap(), Changes::Missed { counter: ChangeCounter(0) });
    backend.create(&key("e"), sealed("1"), Times::default()).await.unwrap().unwrap();
    assert!(
        matches!(backend.changes(newest).await.unwrap(), Changes::Missed { counter } if counter > newest)
    );
}

/// Receipts and the log are all that grows by writing, and both are bounded.
#[tokio::test]
async fn nothing_is_left_behind_for_ever() {
    let server = Server::start();
    let backend = server.backend().await;
    for number in 0..20 {
        let id = format!("{number}");
        let revision = backend.create(&key(&id), sealed("1"), Times::default()).await.unwrap().unwrap();
        let link = RecordKey::new(Kind::ConnectLink, id.clone());
        backend
            .create(
                &link,
                sealed("2"),
                Times { expires_at: Some(UnixTime::from_secs(4_000_000_000)), due_at: None },
            )
            .await
            .unwrap()
            .unwrap();
        assert!(backend.delete(&key(&id), revision).await.unwrap());
        backend.take(&link).await.unwrap().unwrap();
    }
    let mut raw = server.raw();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut raw).unwrap();
    assert!(keys.iter().all(|key| key.starts_with("bearerd:{")), "{keys:?}");
    let (receipts, others): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| key.contains("}:w:"));
    assert_eq!(receipts.len(), 20 * 4);
    for receipt in receipts {
        let life_ms: i64 = redis::cmd("PTTL").arg(&receipt).query(&mut raw).unwrap();
        assert!((1..=120_000).contains(&life_ms), "{receipt} lives {life_ms} ms");
    }
    assert_eq!(others, ["bearerd:{c}:log"]);
}

/// S-08, I-9: neither the dump nor the append-only file, which holds every command as it was sent, shows a secret.
#[tokio::test]
async fn the_server_sees_no_secret() {
    let server = Server::start_with(&["--appendonly", "yes", "--rdbcompression", "no"]);
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let backend: Arc<dyn Backend> = Arc::new(server.backend().await);
    let store = Store::open(backend, ring).await.unwrap();
    let revision = store.create(&canary_connection("hr")).await.unwrap().unwrap();
    store.replace(revision, &canary_connection("hr")).await.unwrap().unwrap();
    store.create(&canary_integration()).await.unwrap().unwrap();
    redis::cmd("SAVE").exec(&mut server.raw()).unwrap();

    let files = files_below(server.folder());
    let holding = |text: &[u8]| -> Vec<&str> {
        let holds = |content: &[u8]| content.windows(text.len()).any(|window| window == text);
        files.iter().filter(|(_, content)| holds(content)).map(|(name, _)| name.as_str()).collect()
    };
    assert!(
        holding(b"bearerd:{hr}:connection").len() >= 2,
        "the dump and the append-only file were looked into"
    );
    assert_eq!(holding(CANARY.as_bytes()), [] as [&str; 0]);
    assert_eq!(holding(store.root().expose()), [] as [&str; 0]);
}

#[tokio::test]
async fn tls_checks_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path(), Ipv4Addr::LOCALHOST);
    let tls_port = free_port();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let _server = Server::start_with(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &text(&certificates.certificate),
        "--tls-key-file",
        &text(&certificates.key),
        "--tls-ca-cert-file",
        &text(&certificates.authority),
        "--tls-auth-clients",
        "no",
    ]);
    let settings = RedisSettings {
        url: format!("rediss://127.0.0.1:{tls_port}"),
        ca_file: Some(certificates.authority.clone()),
        ..settings_for(tls_port)
    };
    let backend = RedisBackend::connect(settings.clone()).await.unwrap();
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();

    let untrusted = RedisSettings { ca_file: None, ..settings.clone() };
    let error = RedisBackend::connect(untrusted).await.unwrap_err();
    assert!(
        matches!(&error, ConnectRedisError::Unreachable { why } if why.contains("certificate")),
        "{error}"
    );
    let another_name = RedisSettings { url: format!("rediss://localhost:{tls_port}"), ..settings.clone() };
    let error = RedisBackend::connect(another_name).await.unwrap_err();
    assert!(
        matches!(&error, ConnectRedisError::Unreachable { why } if why.contains("certificate")),
        "{error}"
    );
    let not_a_ca = RedisSettings { ca_file: Some(certificates.key.clone()), ..settings };
    let error = RedisBackend::connect(not_a_ca).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::MalformedCaFile { .. }), "{error}");
}

impl Server {
    async fn settings_with_password(
        &self,
        password: Option<&str>,
    ) -> Result<RedisBackend, ConnectRedisError> {
        let password = password.map(|password| SecretText::parse(password.to_owned()).unwrap());
        RedisBackend::connect(RedisSettings { password, ..self.settings() }).await
    }
}

/// Asks until there is an answer. Each call waits for the server by itself, so this neither sleeps nor spins.
async fn eventually<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("the condition came true in 30 s")
}

fn files_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found
}

fn key(id: &str) -> RecordKey {
    RecordKey::new(Kind::Connection, id)
}

fn revision(number: u64) -> Revision {
    Revision(number)
}

fn sealed(text: &str) -> Sealed {
    Sealed::from_bytes(text.as_bytes().to_vec())
}

/// The connection `b`, which the contract has damaged.
const RECORD: &[u8] = b"bearerd:{b}:connection";
