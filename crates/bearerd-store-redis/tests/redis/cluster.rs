//! A cluster of six nodes, and what goes wrong with it (F-04).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bearerd_model::{SecretText, UnixTime};
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, RecordKey, StoreError, Times, contract,
};
use bearerd_store_redis::{ConnectRedisError, RedisBackend, RedisSettings};

use crate::{
    eventually, key, sealed,
    server::Server,
    topology::{ClusterNodes, Node, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_over_a_cluster() {
    let cluster = ClusterNodes::start();
    let stores = AtomicU32::new(0);
    contract::check(async || {
        let settings = RedisSettings {
            key_prefix: format!("store-{}", stores.fetch_add(1, Ordering::SeqCst)),
            response_timeout: Duration::from_secs(20),
            ..cluster.settings()
        };
        Arc::new(RedisBackend::connect(settings).await.unwrap()) as Arc<dyn Backend>
    })
    .await;
}

/// F-04, I-1: the nodes that hold the indexes, and some connections, are killed in turn. What replicas had confirmed is
/// still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_loses_nothing_that_was_confirmed() {
    let mut cluster = ClusterNodes::start();
    let settings = RedisSettings { replicas_min: 1, ..cluster.settings() };
    let confirmed = RedisBackend::connect(settings).await.unwrap();
    let backend = cluster.backend().await; // a node's only replica, promoted, has none to confirm
    let at = |number: u64| UnixTime::from_secs(1_000 + number);
    let mut kept = Vec::new();
    let mut counter = ChangeCounter(0);
    for (round, tag) in ["c", "r0000"].into_iter().enumerate() {
        for _ in 0..20 {
            let number = kept.len() as u64;
            let key = key(&format!("r{number:04}"));
            let times = Times { expires_at: None, due_at: Some(at(number)) };
            let revision = confirmed.create(&key, sealed("1"), times).await.unwrap().unwrap();
            kept.push((key, revision));
        }
        counter = backend.changes(counter).await.unwrap().counter();
        let killed = cluster.owner(tag);
        cluster.nodes[killed].kill();
        let begun = Instant::now();
        for number in 0..8 {
            let first = key(&format!("after-{round}-{number}"));
            eventually(async || backend.create(&first, sealed("2"), Times::default()).await.ok()).await;
        }
        let took = begun.elapsed();
        println!("round {round}: writes work {took:?} after the kill");
        assert!(took < Duration::from_secs(10), "{took:?}");
        for (key, revision) in &kept {
            let found = eventually(async || backend.load(key).await.ok()).await;
            assert_eq!(found.map(|(revision, _)| revision), Some(*revision), "{key} was confirmed");
        }
        let ids: Vec<String> = eventually(async || backend.list(Kind::Connection, None, 1_000).await.ok())
            .await
            .into_iter()
            .map(|record| record.id)
            .collect();
        assert!(kept.iter().all(|(key, _)| ids.contains(&key.id)), "{ids:?}");
        let due = backend.due(Kind::Connection, None, at(100_000), 1_000).await.unwrap();
        let expected: Vec<DueRecord> = (0..kept.len() as u64)
            .map(|number| DueRecord { at: at(number), id: format!("r{number:04}") })
            .collect();
        assert_eq!(due, expected);
        let missed = eventually(async || match backend.changes(counter).await {
            Ok(Changes::Missed { counter }) => Some(counter),
            _ => None,
        });
        counter = missed.await;
        cluster.restart(killed);
    }
}

/// A node that nobody happens to talk to changes, and `changes` says so all the same.
#[tokio::test]
async fn a_change_of_any_node_is_noticed() {
    let mut cluster = ClusterNodes::start();
    let backend = cluster.backend().await;
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let of_log = cluster.owner("c");
    let other = (0..3).find(|number| *number != of_log).unwrap();
    cluster.nodes[other].kill();
    cluster.restart(other);
    eventually(async || match backend.changes(counter).await {
        Ok(Changes::Missed { .. }) => Some(()),
        _ => None,
    })
    .await;
}

/// A slot moves while it is written to: MOVED and ASK are followed, and no call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_may_move_under_writes() {
    let cluster = ClusterNodes::start();
    let backend = Arc::new(cluster.backend().await);
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let slot: u16 = cluster.nodes[0].ask(&["CLUSTER", "KEYSLOT", "{hr}"]);
    let slot = slot.to_string();
    let from = cluster.owner("hr");
    let to = (0..3).find(|number| *number != from).unwrap();
    let id = |number: usize| -> String { cluster.nodes[number].ask(&["CLUSTER", "MYID"]) };
    cluster.nodes[to].ask::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    cluster.nodes[from].ask::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    loop {
        let keys: Vec<String> = cluster.nodes[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
        let Some(moved) = keys.first() else { break };
        let (host, port) = (cluster.nodes[to].address.to_string(), cluster.nodes[to].port.to_string());
        cluster.nodes[from].ask::<()>(&["MIGRATE", &host, &port, moved, "0", "2000"]);
    }
    assert!(backend.load(&key("hr")).await.unwrap().is_some(), "ASK is followed");
    // Redis does not run a script on a slot that is half here and half there (TRYAGAIN): the write waits for its end.
    let writing = Arc::clone(&backend);
    let writing = tokio::spawn(async move { writing.replace(&key("hr"), revision, sealed("2"), None).await });
    eventually(async || {
        let refused: String = cluster.nodes[to].ask(&["INFO", "errorstats"]);
        refused.contains("TRYAGAIN").then_some(())
    })
    .await;
    for number in [to, from] {
        cluster.nodes[number].ask::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    let revision = writing.await.unwrap().unwrap().unwrap();
    backend.replace(&key("hr"), revision, sealed("4"), None).await.unwrap().unwrap();
    let listed = backend.list(Kind::Connection, None, 10).await.unwrap();
    assert_eq!(listed.len(), 1, "MOVED is followed");
    let stored: String = cluster.nodes[to].ask(&["HGET", "bearerd:{hr}:connection", "v"]);
    assert_eq!(stored, "4");
}

/// A writer that died between its steps: what it wrote is told, and put into the indexes by a sweep.
#[tokio::test]
async fn a_dead_writers_change_is_told_and_settled() {
    let cluster = ClusterNodes::start();
    let backend = cluster.backend().await;
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    // As it leaves things after its second step: entered long ago, and the record gone and due no more.
    let control = &cluster.nodes[cluster.owner("c")];
    control.ask::<()>(&["ZADD", "bearerd:{c}:u", "1000", "hr:0123456789abcdef"]);
    control.ask::<()>(&["HSET", "bearerd:{c}:t", "hr", "0123456789abcdef"]);
    control.ask::<()>(&["ZADD", "bearerd:{c}:due:connection", "1000", "hr"]);
    for _ in 0..2 {
        let told = backend.changes(counter).await.unwrap();
        assert_eq!(told, Changes::Since { counter, keys: vec![key("hr")] });
    }
    let due = async || backend.due(Kind::Connection, None, UnixTime::from_secs(100), 10).await.unwrap();
    assert_eq!(due().await.len(), 1);
    backend.sweep(UnixTime::from_secs(1)).await.unwrap();
    assert_eq!(due().await, [], "the record says so");
    let Changes::Since { counter, keys } = backend.changes(counter).await.unwrap() else {
        panic!("no node changed")
    };
    assert_eq!(keys, [key("hr")]);
    assert_eq!(backend.changes(counter).await.unwrap(), Changes::Since { counter, keys: vec![] });
    assert_eq!(control.ask::<usize>(&["EXISTS", "bearerd:{c}:u"]), 0);
    assert_eq!(control.ask::<usize>(&["EXISTS", "bearerd:{c}:t"]), 0);
    assert_eq!(backend.list(Kind::Connection, None, 10).await.unwrap().len(), 1);
    assert!(backend.delete(&key("hr"), revision).await.unwrap());
    assert_eq!(backend.list(Kind::Connection, None, 10).await.unwrap(), []);
}

/// F-04, I-1: the primary that a writer entered at fails before a replica has heard of it. The record is elsewhere, and
/// is there; its change is told all the same, and both indexes have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_was_lost_with_a_primary_is_made_again() {
    let cluster = ClusterNodes::start();
    let settings = RedisSettings { response_timeout: Duration::from_secs(20), ..cluster.settings() };
    let backend = Arc::new(RedisBackend::connect(settings).await.unwrap());
    backend.create(&key("first"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let (control, of_record) = (cluster.owner("c"), cluster.owner("r0000"));
    assert_ne!(control, of_record, "the record is on another node");
    let (control, of_record) = (&cluster.nodes[control], &cluster.nodes[of_record]);
    of_record.ask::<()>(&["CLIENT", "PAUSE", "30000", "WRITE"]);
    let writing = Arc::clone(&backend);
    let at = UnixTime::from_secs(1_000);
    let writing = tokio::spawn(async move {
        let times = Times { expires_at: None, due_at: Some(at) };
        writing.create(&key("r0000"), sealed("1"), times).await
    });
    // As the promoted replica finds things.
    until("the writer has entered", || (control.ask::<usize>(&["DEL", "bearerd:{c}:u"]) == 1).then_some(()));
    control.ask::<()>(&["DEL", "bearerd:{c}:t"]);
    control.ask::<()>(&["ZREM", "bearerd:{c}:i:connection", "r0000"]);
    of_record.ask::<()>(&["CLIENT", "UNPAUSE"]);
    writing.await.unwrap().unwrap().unwrap();
    let Changes::Since { keys, .. } = backend.changes(counter).await.unwrap() else {
        panic!("no node changed")
    };
    assert_eq!(keys, [key("r0000")]);
    let ids = backend.list(Kind::Connection, None, 10).await.unwrap();
    assert_eq!(ids.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["first", "r0000"]);
    let due = backend.due(Kind::Connection, None, at, 10).await.unwrap();
    assert_eq!(due, [DueRecord { at, id: "r0000".to_owned() }]);
    assert_eq!(control.ask::<usize>(&["EXISTS", "bearerd:{c}:u"]), 0);
    assert_eq!(control.ask::<usize>(&["EXISTS", "bearerd:{c}:t"]), 0);
}

/// A record that cannot be read keeps a sweep neither from settling others nor from forgetting what has expired.
#[tokio::test]
async fn one_record_does_not_hold_up_a_sweep() {
    let cluster = ClusterNodes::start();
    let backend = cluster.backend().await;
    for id in ["r0000", "first"] {
        backend.create(&key(id), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
    let flow = RecordKey::new(Kind::ConsentFlow, "old");
    let times = Times { expires_at: Some(UnixTime::from_secs(4_000_000_000)), due_at: None };
    backend.create(&flow, sealed("1"), times).await.unwrap().unwrap();
    let (control, of_record) = (&cluster.nodes[cluster.owner("c")], &cluster.nodes[cluster.owner("r0000")]);
    control.ask::<()>(&["ZADD", "bearerd:{c}:u", "1000", "r0000:0123456789abcdef"]);
    control.ask::<()>(&["ZADD", "bearerd:{c}:u", "2000", "first:0123456789abcdef"]);
    of_record.ask::<()>(&["ACL", "SETUSER", "default", "resetkeys", "~bearerd:{first}:*"]);
    let error = backend.sweep(UnixTime::from_secs(4_000_000_001)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("NOPERM")), "{error}");
    let left: Vec<String> = control.ask(&["ZRANGE", "bearerd:{c}:u", "0", "-1"]);
    assert_eq!(left, ["r0000:0123456789abcdef"]);
    assert_eq!(backend.load(&flow).await.unwrap(), None);
    of_record.ask::<()>(&["ACL", "SETUSER", "default", "allkeys"]);
    backend.sweep(UnixTime::from_secs(1)).await.unwrap();
    assert_eq!(control.ask::<usize>(&["EXISTS", "bearerd:{c}:u", "bearerd:{c}:t"]), 0);
}

/// Whoever waits for a change of a connection hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_hears_of_a_change_in_a_cluster() {
    let cluster = ClusterNodes::start();
    let (here, there) = (cluster.backend().await, cluster.backend().await);
    here.create(&key("start"), sealed("1"), Times::default()).await.unwrap().unwrap();
    let counter = here.changes(ChangeCounter(0)).await.unwrap().counter();
    here.changed(ChangeCounter(0)).await;
    let change = async {
        there.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
        Instant::now()
    };
    let (written_at, woken_at) = tokio::join!(change, async {
        here.changed(counter).await;
        Instant::now()
    });
    assert!(woken_at.saturating_duration_since(written_at) < Duration::from_millis(300));
    let Changes::Since { keys, .. } = here.changes(counter).await.unwrap() else { panic!("no node changed") };
    assert_eq!(keys, [key("hr")]);
}

/// TLS between all nodes, and a user of few rights.
#[tokio::test]
async fn tls_and_users_go_with_a_cluster() {
    let cluster = ClusterNodes::start_with_tls();
    for node in &cluster.nodes {
        node.ask::<()>(&["ACL", "SETUSER", "bearerd", "on", ">pass", "~bearerd:*", "-@all"]);
        let rights = ["+@read", "+@write", "+@scripting", "+ping", "+time", "+wait", "+info", "+role"];
        let of_cluster = ["+cluster|slots", "+cluster|info", "+asking"];
        node.ask::<()>(&[&["ACL", "SETUSER", "bearerd"], &rights[..], &of_cluster[..]].concat());
    }
    let settings = RedisSettings {
        username: Some("bearerd".to_owned()),
        password: Some(SecretText::parse("pass".to_owned()).unwrap()),
        replicas_min: 1,
        ..cluster.settings()
    };
    let backend = RedisBackend::connect(settings.clone()).await.unwrap();
    for number in 0..10 {
        backend.create(&key(&format!("{number}")), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
    assert_eq!(backend.list(Kind::Connection, None, 100).await.unwrap().len(), 10);
    let untrusted = RedisSettings { ca_file: None, ..settings };
    let error = RedisBackend::connect(untrusted).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// Each node that takes writes is looked at; no node that answers is no cluster; one server is none either.
#[tokio::test]
async fn what_a_cluster_lacks_is_named() {
    let mut cluster = ClusterNodes::start();
    cluster.nodes[2].ask::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let error = RedisBackend::connect(cluster.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Evicts { .. }), "{error}");
    assert!(error.to_string().contains(":7003"), "{error}");

    let one = Server::start();
    let settings = RedisSettings { cluster: vec![format!("127.0.0.1:{}", one.port())], ..one.settings() };
    let error = RedisBackend::connect(settings).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("cluster support disabled"), "{error}");

    let node = &cluster.nodes[0];
    let mut settings = cluster.settings();
    (settings.url, settings.cluster) = (format!("redis://{}:{}", node.address, node.port), vec![]);
    let as_one = RedisBackend::connect(settings).await.unwrap();
    let mut errors = Vec::new();
    for number in 0..20 {
        errors.extend(as_one.load(&key(&format!("{number}"))).await.err());
    }
    let error = errors.first().expect("one of 20 ids is another node's");
    assert!(error.to_string().contains("redis.cluster"), "{error}");

    cluster.nodes.iter_mut().for_each(Node::kill);
    let error = RedisBackend::connect(cluster.settings()).await.unwrap_err();
    assert!(matches!(error, ConnectRedisError::Unreachable { .. }), "{error}");
}
