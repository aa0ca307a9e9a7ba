//! How changes spread between processes: two controls on one backend.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bearerd_model::{CallerKey, Clock};
use bearerd_policy::KeyRefusal;
use bearerd_store::Kind;
use bearerd_tokens::{AccessTokens, LendError};
use tokio_util::sync::CancellationToken;

use super::keys::check;
use crate::{
    Readiness,
    testing::{Point, World, connection_id, eventually},
};

/// I-5: what one process revokes, the other refuses after one look.
#[tokio::test]
async fn i_5_a_revocation_is_seen_with_the_next_look() {
    let world = World::new().await;
    let key = world.key().await;
    world.connected("c", "abel").await;
    let (other, tokens) = world.another_process().await;
    let refused = |expected| assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), expected);
    let c = connection_id("c");
    tokens.acquire(&c).await.unwrap();
    refused(Ok(()));
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    world.control.freeze(&c, String::new()).await.unwrap();
    other.follow().await.unwrap();
    refused(Err(KeyRefusal::Invalid));
    assert_eq!(tokens.acquire(&c).await.unwrap_err(), LendError::Frozen);
    world.control.unfreeze(&c).await.unwrap();
    other.follow().await.unwrap();
    tokens.acquire(&c).await.unwrap();
    world.control.delete_connection(&c, None).await.unwrap();
    other.follow().await.unwrap();
    assert!(tokens.peek(&c).is_none());
}

/// A log that does not reach back: everything is read again.
#[tokio::test]
async fn what_was_missed_is_read_again() {
    let world = World::new().await;
    let key = world.key().await;
    world.connected("c", "abel").await;
    let (other, tokens) = world.another_process().await;
    tokens.acquire(&connection_id("c")).await.unwrap();
    world.backend.forgetful.store(true, SeqCst);
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    world.control.freeze(&connection_id("c"), String::new()).await.unwrap();
    other.follow().await.unwrap();
    assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Err(KeyRefusal::Invalid));
    assert_eq!(tokens.acquire(&connection_id("c")).await.unwrap_err(), LendError::Frozen);
}

/// Keys age by when the store last vouched for them, not by when it was last asked.
#[tokio::test]
async fn the_snapshot_is_confirmed_by_answers_only() {
    let world = World::new().await;
    let key = world.key().await;
    let confirmed_at = || world.control.snapshot().confirmed_at();
    let ready = |store_reachable| Readiness { store_reachable, snapshot_loaded: true };
    assert_eq!(world.control.readiness(), ready(true));
    let before = confirmed_at();
    world.clock.leap(Duration::from_secs(10));
    world.control.follow().await.unwrap();
    let confirmed = confirmed_at();
    assert!(confirmed >= before + Duration::from_secs(10));
    world.backend.down.store(true, SeqCst);
    for _ in 0..3 {
        world.clock.leap(Duration::from_secs(10));
        world.control.follow().await.unwrap_err();
        assert_eq!((confirmed_at(), world.control.readiness()), (confirmed, ready(false)));
    }
    let snapshot = world.control.snapshot();
    assert!(snapshot.is_usable(Duration::from_mins(1), world.clock.now()));
    assert!(!snapshot.is_usable(Duration::ZERO, world.clock.now())); // 0 fails closed
    assert_eq!(check(&snapshot, &key.text, world.clock.now()), Ok(()));
    world.backend.down.store(false, SeqCst);
    world.control.follow().await.unwrap();
    assert!(confirmed_at() >= confirmed + Duration::from_secs(30));
    assert_eq!(world.control.readiness(), ready(true));
}

/// What changed while the store could not be followed is not forgotten.
#[tokio::test]
async fn an_outage_loses_no_change() {
    let world = World::new().await;
    let key = world.key().await;
    let (other, _tokens) = world.another_process().await;
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    world.backend.down.store(true, SeqCst);
    other.follow().await.unwrap_err();
    assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Ok(()));
    world.backend.down.store(false, SeqCst);
    other.follow().await.unwrap();
    assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Err(KeyRefusal::Invalid));
}

/// S-04: a connection that does not open must not keep a revocation from spreading.
#[tokio::test]
async fn s_04_a_damaged_record_does_not_stop_the_spread() {
    let world = World::new().await;
    let key = world.key().await;
    world.connected("c", "abel").await;
    let (other, tokens) = world.another_process().await;
    tokens.acquire(&connection_id("c")).await.unwrap();
    world.backend.corrupt(Kind::Connection, "c").await;
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    other.follow().await.unwrap();
    assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Err(KeyRefusal::Invalid));
    assert!(tokens.peek(&connection_id("c")).is_none());
    assert!(other.readiness().store_reachable);
}

/// Store reachable: a revocation is in force within a second, even while last uses are being written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_does_not_wait_for_the_tidying() {
    let world = World::new().await;
    let (busy, revoked) = (world.key().await, world.key().await);
    let (other, _tokens) = world.another_process().await;
    let snapshot = other.snapshot();
    snapshot.load().key(&busy.versioned.record.id).unwrap().mark_used(world.clock.now());
    let release = CancellationToken::new();
    let (reached, held) = (Arc::new(CancellationToken::new()), release.clone());
    let there = reached.clone();
    world.backend.on(Point::BeforeReplace(Kind::CallerKey), 0, async move || {
        there.cancel();
        held.cancelled().await;
    });
    let closing = CancellationToken::new();
    let running = tokio::spawn({
        let (other, closing) = (other.clone(), closing.clone());
        async move { other.run(closing).await }
    });
    reached.cancelled().await;
    world.control.delete_key(&revoked.versioned.record.id, None).await.unwrap();
    eventually("it is refused", async || {
        check(&snapshot, &revoked.text, world.clock.now()) == Err(KeyRefusal::Invalid)
    })
    .await;
    release.cancel();
    closing.cancel();
    running.await.unwrap();
    let stored = world.store.load::<CallerKey>(busy.versioned.record.id.as_str()).await.unwrap().unwrap();
    assert!(stored.record.last_used_at.is_some());
}

/// Last uses are written at the end, too.
#[tokio::test]
async fn last_uses_are_written_before_the_process_ends() {
    let world = World::new().await;
    let key = world.key().await;
    let closing = CancellationToken::new();
    let running = tokio::spawn({
        let (control, closing) = (world.control.clone(), closing.clone());
        async move { control.run(closing).await }
    });
    let used_at = world.clock.now();
    world.control.snapshot().load().key(&key.versioned.record.id).unwrap().mark_used(used_at);
    closing.cancel();
    running.await.unwrap();
    let stored = world.control.key(&key.versioned.record.id).await.unwrap().record;
    assert_eq!(stored.last_used_at, Some(used_at));
}
