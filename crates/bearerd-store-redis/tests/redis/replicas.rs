//! Writes that replicas must confirm, without anybody to fail over.

use std::time::{Duration, Instant};

use bearerd_store::{Backend, Kind, RecordKey, StoreError, Times};
use bearerd_store_redis::{RedisBackend, RedisSettings};

use crate::{
    key, sealed,
    server::{Proxy, Server, settings_for},
    topology::{Node, Watched},
};

fn shortfall(error: &StoreError) -> bool {
    matches!(error, StoreError::OutcomeUnknown(why) if why.contains("written on the primary, but only 0 of 1 replicas"))
}

/// A write that no replica has in time is in doubt; once they have it, a later one is done. On a connection that was
/// never written on `WAIT` confirms anything, and also with a receipt that is found: neither is fallen for.
#[tokio::test]
async fn too_few_replicas_leave_a_write_in_doubt() {
    let watched = Watched::start(0);
    let (primary, replicas) = watched.servers.split_first().unwrap();
    let proxy = Proxy::start_to(primary.address, primary.port).await;
    let settings = RedisSettings {
        replicas_min: 1,
        replicas_timeout: Duration::from_millis(200),
        ..settings_for(proxy.port())
    };
    let patient = RedisSettings { replicas_timeout: Duration::from_secs(20), ..settings.clone() };
    let patient = RedisBackend::connect(patient).await.unwrap();
    let backend = RedisBackend::connect(settings).await.unwrap();
    let revision = patient.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();

    replicas.iter().for_each(Node::stop);
    let begun = Instant::now();
    let error = backend.replace(&key("hr"), revision, sealed("2"), None).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let (revision, value) = backend.load(&key("hr")).await.unwrap().unwrap();
    assert_eq!(value, sealed("2"), "it is written, though");

    // On a fresh connection, whose script the server no longer knows.
    primary.ask::<()>(&["SCRIPT", "FLUSH"]);
    primary.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let error = backend.replace(&key("hr"), revision, sealed("3"), None).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
    let (revision, _) = backend.load(&key("hr")).await.unwrap().unwrap();

    // The reply is lost, the repeat finds the receipt.
    proxy.cut_next_reply();
    let error = backend.replace(&key("hr"), revision, sealed("4"), None).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
    let (_, value) = backend.load(&key("hr")).await.unwrap().unwrap();
    assert_eq!(value, sealed("4"));

    let error = backend.create(&key("new"), sealed("1"), Times::default()).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
    let lost = backend.replace(&key("hr"), crate::revision(7), sealed("5"), None).await;
    assert_eq!(lost.unwrap(), None, "who writes nothing needs nobody");
    replicas.iter().for_each(Node::go_on);
    let (revision, _) = backend.load(&key("hr")).await.unwrap().unwrap();
    let confirmed = patient.replace(&key("hr"), revision, sealed("6"), None).await.unwrap().unwrap();
    let held = |replica: &Node| replica.try_ask::<String>(&["HGET", "bearerd:{hr}:connection", "v"]);
    assert!(
        replicas.iter().any(|replica| held(replica).as_deref() == Some("6")),
        "one replica was asked for"
    );
    assert!(patient.delete(&key("hr"), confirmed).await.unwrap());
}

/// What operators and callers rely on is confirmed like a connection: a deleted key must not come back with a failover.
#[tokio::test]
async fn what_is_watched_or_to_be_revoked_is_confirmed() {
    let watched = Watched::start(0);
    let (primary, replicas) = watched.servers.split_first().unwrap();
    let url = format!("redis://{}:{}", primary.address, primary.port);
    let patient = RedisSettings {
        replicas_min: 1,
        replicas_timeout: Duration::from_secs(20),
        ..RedisSettings { url, ..settings_for(primary.port) }
    };
    let hasty = RedisSettings { replicas_timeout: Duration::from_millis(100), ..patient.clone() };
    let patient = RedisBackend::connect(patient).await.unwrap();
    let hasty = RedisBackend::connect(hasty).await.unwrap();
    let caller_key = RecordKey::new(Kind::CallerKey, "old");
    let revision = patient.create(&caller_key, sealed("1"), Times::default()).await.unwrap().unwrap();
    assert!(patient.delete(&caller_key, revision).await.unwrap());
    let revision = patient.create(&caller_key, sealed("1"), Times::default()).await.unwrap().unwrap();

    replicas.iter().for_each(Node::stop);
    let error = hasty.delete(&caller_key, revision).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
    for kind in Kind::ALL {
        let created = hasty.create(&RecordKey::new(kind, "new"), sealed("1"), Times::default()).await;
        if kind.is_watched() || matches!(kind, Kind::Revocation | Kind::RevocationGate) {
            assert!(created.as_ref().is_err_and(shortfall), "{kind:?}: {created:?}");
        } else {
            assert!(created.as_ref().is_ok_and(Option::is_some), "{kind:?} waits for nobody: {created:?}");
        }
    }
    replicas.iter().for_each(Node::go_on);
}

#[tokio::test]
async fn replicas_that_are_not_there_are_warned_of() {
    let server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings =
        RedisSettings { replicas_min: 1, replicas_timeout: Duration::from_millis(50), ..server.settings() };
    let backend = RedisBackend::connect(settings).await.unwrap();
    let [warning] = backend.warnings() else { panic!("{:?}", backend.warnings()) };
    assert!(warning.contains("has 0 replicas, and redis.replicas_min wants 1"), "{warning}");
    let error = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap_err();
    assert!(shortfall(&error), "{error}");
}
