//! How changes spread between processes: two controls on one backend.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use bearerd_model::{CallerKey, CallerKeyUse, Clock};
use bearerd_policy::KeyRefusal;
use bearerd_store::{ChangeCounter, Kind, StoreError};
use bearerd_tokens::{AccessTokens, LendError};
use tokio_util::sync::CancellationToken;

use super::keys::{check, key_spec};
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

/// S-04: a store that answers, but refuses one record, holds up that one only. It is asked for until it is given.
#[tokio::test]
async fn s_04_a_refused_record_does_not_stop_the_spread() {
    for everything_is_read_again in [false, true] {
        let world = World::new().await;
        let key = world.key().await;
        for id in ["b", "c", "d"] {
            world.connected(id, "abel").await;
        }
        let (other, tokens) = world.another_process().await;
        for id in ["b", "c", "d"] {
            tokens.acquire(&connection_id(id)).await.unwrap();
        }
        world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
        for id in ["c", "b", "d"] {
            world.control.freeze(&connection_id(id), String::new()).await.unwrap();
        }
        world.backend.withhold(Kind::Connection, "c", StoreError::Refused("not that one".to_owned()));
        world.backend.forgetful.store(everything_is_read_again, SeqCst);
        for _ in 0..2 {
            other.follow().await.unwrap();
            assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Err(KeyRefusal::Invalid));
            for id in ["b", "d"] {
                assert_eq!(tokens.acquire(&connection_id(id)).await.unwrap_err(), LendError::Frozen);
            }
            assert!(other.readiness().store_reachable);
            world.backend.forgetful.store(false, SeqCst);
        }
        *world.backend.withheld.lock().unwrap() = None;
        other.follow().await.unwrap();
        assert_eq!(tokens.acquire(&connection_id("c")).await.unwrap_err(), LendError::Frozen);
    }
}

/// The store gives no connection: keys and policies came first, and what is missing comes when it answers again. One
/// record, for whatever reason it is not given, does not make the store unreachable.
#[tokio::test]
async fn keys_do_not_wait_for_connections() {
    for everything_is_read_again in [false, true] {
        let world = World::new().await;
        let key = world.key().await;
        world.connected("c", "abel").await;
        let (other, tokens) = world.another_process().await;
        tokens.acquire(&connection_id("c")).await.unwrap();
        world.control.freeze(&connection_id("c"), String::new()).await.unwrap();
        world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
        world.backend.withhold(Kind::Connection, "c", StoreError::Unreachable("gone".to_owned()));
        world.backend.forgetful.store(everything_is_read_again, SeqCst);
        other.follow().await.unwrap();
        assert_eq!(check(&other.snapshot(), &key.text, world.clock.now()), Err(KeyRefusal::Invalid));
        assert!(other.readiness().store_reachable);
        *world.backend.withheld.lock().unwrap() = None;
        other.follow().await.unwrap();
        assert_eq!(tokens.acquire(&connection_id("c")).await.unwrap_err(), LendError::Frozen);
    }
}

/// I-5: a connection that the store takes its time over holds up no key, neither in following nor in an act of this
/// process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i_5_a_revoked_key_does_not_wait_for_a_slow_connection() {
    for everything_is_read_again in [false, true] {
        let world = World::new().await;
        let (theirs, own) = (world.key().await, world.key().await);
        world.connected("c", "abel").await;
        let (other, tokens) = world.another_process().await;
        tokens.acquire(&connection_id("c")).await.unwrap();
        let (reached, release) = (CancellationToken::new(), CancellationToken::new());
        let (there, held) = (reached.clone(), release.clone());
        world.control.freeze(&connection_id("c"), String::new()).await.unwrap();
        world.backend.on(Point::AfterLoad(Kind::Connection), 0, async move || {
            there.cancel();
            held.cancelled().await;
        });
        world.backend.forgetful.store(everything_is_read_again, SeqCst);
        let closing = CancellationToken::new();
        let running = tokio::spawn({
            let (other, closing) = (other.clone(), closing.clone());
            async move { other.run(closing).await }
        });
        reached.cancelled().await;
        world.backend.forgetful.store(false, SeqCst);
        let snapshot = other.snapshot();
        world.control.delete_key(&theirs.versioned.record.id, None).await.unwrap();
        eventually("it is refused", async || {
            check(&snapshot, &theirs.text, world.clock.now()) == Err(KeyRefusal::Invalid)
        })
        .await;
        other.delete_key(&own.versioned.record.id, None).await.unwrap();
        assert_eq!(check(&snapshot, &own.text, world.clock.now()), Err(KeyRefusal::Invalid));
        assert!(other.readiness().store_reachable);
        assert!(tokens.acquire(&connection_id("c")).await.is_ok(), "still being read");
        release.cancel();
        eventually("frozen", async || tokens.acquire(&connection_id("c")).await.is_err()).await;
        closing.cancel();
        running.await.unwrap();
    }
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
    world.backend.on(Point::BeforeCreate(Kind::CallerKeyUse), 0, async move || {
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
    let stored = world.control.key(&busy.versioned.record.id).await.unwrap();
    assert!(stored.record.last_used_at.is_some());
}

/// A use is no change: no process compiles its keys again for it, and an operator's `If-Match` still matches.
#[tokio::test]
async fn a_use_of_a_key_is_no_change_of_it() {
    let world = World::new().await;
    let key = world.key().await.versioned;
    let id = &key.record.id;
    let (other, _tokens) = world.another_process().await;
    let counter = async || world.store.changes(ChangeCounter::default()).await.unwrap().counter();
    let before = counter().await;
    let check = async |expected| {
        let found = world.control.key(id).await.unwrap();
        assert_eq!((found.revision, found.record.last_used_at), (key.revision, expected));
        let listed = other.keys(None, 10).await.unwrap().records;
        assert_eq!(listed.iter().map(|key| key.record.last_used_at).collect::<Vec<_>>(), [expected]);
    };
    check(None).await;
    let at = |secs| world.clock.now() + Duration::from_secs(secs);
    let (earlier, later) = (at(0), at(60));
    for (control, used_at, expected) in [
        (&world.control, earlier, earlier),
        (&other, later, later),
        (&world.control, earlier, later), // only forwards
    ] {
        control.snapshot().load().key(id).unwrap().mark_used(used_at);
        control.write_last_uses().await;
        check(Some(expected)).await;
    }
    assert_eq!(counter().await, before);

    let changed = world.control.change_key(id, key_spec(&["p"]), Some(key.revision)).await.unwrap();
    assert_eq!(changed.record.last_used_at, Some(later));
    let rotated = world.control.rotate_key(id, Duration::ZERO).await.unwrap().versioned;
    assert_eq!(rotated.record.last_used_at, Some(later));

    world.backend.corrupt(Kind::CallerKeyUse, id.as_str()).await;
    assert_eq!(world.control.key(id).await.unwrap().record.last_used_at, None);
    assert_eq!(world.control.keys(None, 10).await.unwrap().records.len(), 1);
}

/// Whether it is deleted before a use is written, or in the middle.
#[tokio::test]
async fn a_deleted_key_leaves_no_last_use() {
    for in_the_middle in [false, true] {
        let world = World::new().await;
        let id = world.key().await.versioned.record.id;
        let (other, _tokens) = world.another_process().await;
        world.control.snapshot().load().key(&id).unwrap().mark_used(world.clock.now());
        if in_the_middle {
            let (other, id) = (other.clone(), id.clone());
            let delete = async move || other.delete_key(&id, None).await.unwrap();
            world.backend.on(Point::BeforeCreate(Kind::CallerKeyUse), 0, delete);
            world.control.write_last_uses().await;
        } else {
            world.control.write_last_uses().await;
            assert_eq!(world.count::<CallerKeyUse>().await, 1);
            other.delete_key(&id, None).await.unwrap();
        }
        assert_eq!((world.count::<CallerKey>().await, world.count::<CallerKeyUse>().await), (0, 0));
    }
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

/// What another process changes is in force here as soon as the store tells of it: the tick is the net.
#[tokio::test]
async fn news_from_the_store_are_followed_at_once() {
    let world = World::new().await;
    world.backend.tells.store(true, SeqCst);
    world.connected("c", "abel").await;
    let (other, tokens) = world.another_process().await;
    let closing = CancellationToken::new();
    let running = tokio::spawn({
        let (other, closing) = (other.clone(), closing.clone());
        async move { other.run(closing).await }
    });
    let c = connection_id("c");
    tokens.acquire(&c).await.unwrap();
    let mut took = Vec::new();
    for round in 0..9 {
        let begun = Instant::now();
        if round % 2 == 0 {
            world.control.freeze(&c, String::new()).await.unwrap();
        } else {
            world.control.unfreeze(&c).await.unwrap();
        }
        eventually("in force", async || tokens.acquire(&c).await.is_err() == (round % 2 == 0)).await;
        took.push(begun.elapsed());
    }
    took.sort();
    assert!(took[4] < Duration::from_millis(125), "half of the tick, at the median: {took:?}");
    closing.cancel();
    running.await.unwrap();
}

/// A storm of changes costs a bounded number of looks, and so does a store that tells of news without end.
#[tokio::test]
async fn a_storm_of_changes_costs_few_looks() {
    let world = World::new().await;
    world.backend.tells.store(true, SeqCst);
    world.connected("c", "abel").await;
    let (other, _tokens) = world.another_process().await;
    let closing = CancellationToken::new();
    let running = tokio::spawn({
        let (other, closing) = (other.clone(), closing.clone());
        async move { other.run(closing).await }
    });
    let (begun, before) = (Instant::now(), world.backend.looks.load(SeqCst));
    let mut changes = 0_u128;
    while begun.elapsed() < Duration::from_millis(500) {
        let stored = world.store.load::<bearerd_model::Connection>("c").await.unwrap().unwrap();
        world.store.replace(stored.revision, &stored.record).await.unwrap().unwrap();
        changes += 1;
        tokio::task::yield_now().await;
    }
    // The backend asks itself once for each wake; those are not looks of the control.
    let looks = u128::from(world.backend.looks.load(SeqCst) - before);
    let bound = begun.elapsed().as_millis() / 20 + begun.elapsed().as_millis() / 250 + 5;
    assert!(looks <= bound && changes > 2 * bound, "{looks} looks for {changes} changes, at most {bound}");
    world.backend.down.store(true, SeqCst);
    let before = world.backend.looks.load(SeqCst);
    eventually("the store is asked", async || world.backend.looks.load(SeqCst) > before).await;
    closing.cancel();
    running.await.unwrap();
}
