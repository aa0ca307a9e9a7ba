//! Every promise of [`Backend`] as a check that any backend can be put to. A backend's tests call [`check`] with a
//! function that makes a fresh, empty store; a broken promise panics with what was expected.
//!
//! [`random_histories_match_the_model`] compares a random sequence of calls with a model of a few lines; on failure
//! the output names the seed, and [`history_matches_the_model`] replays it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bearerd_crypto::{KeyRing, Sealed};
use bearerd_model::{
    AccessToken, ClientSecret, Connection, ConnectionId, Endpoints, Exchanges, Generation, Grant, Health,
    InstanceOrigin, Integration, IntegrationId, Lifecycle, Profile, ProfileName, Provider, RefreshToken,
    TokenEndpointAuth, UnixTime,
};
use tokio::task::JoinSet;

use crate::{
    Backend, CHANGES_KEPT_MAX, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, Store,
    StoreError, StoredRecord, Times,
};

/// Puts a backend to every check, each on a fresh store from `make`. Wants a multi-threaded runtime.
pub async fn check(make: impl AsyncFn() -> Arc<dyn Backend>) {
    absence_is_not_an_error(make().await).await;
    a_record_is_created_once(make().await).await;
    one_of_many_creates_wins(make().await).await;
    a_replace_needs_the_current_revision(make().await).await;
    one_of_many_replaces_wins(make().await).await;
    a_revision_is_never_given_twice(make().await).await;
    a_delete_needs_the_current_revision(make().await).await;
    a_record_is_taken_once(make().await).await;
    take_and_delete_do_not_both_win(make().await).await;
    lists_are_ordered_and_paged(make().await).await;
    kinds_are_kept_apart(make().await).await;
    ids_may_be_at_their_longest(make().await).await;
    values_keep_every_byte(make().await).await;
    a_change_is_told_before_its_write_returns(make().await).await;
    a_write_that_loses_is_no_change(make().await).await;
    only_watched_kinds_are_told(make().await).await;
    changes_are_told_in_order_and_once(make().await).await;
    no_change_slips_between_two_readings(make().await).await;
    an_overrun_log_says_so(make().await).await;
    a_counter_from_elsewhere_says_so(make().await).await;
    a_sweep_forgets_what_expired_and_nothing_else(make().await).await;
    a_replace_keeps_the_expiry(make().await).await;
    what_is_due_is_told_by_time(make().await).await;
    a_dropped_call_writes_all_or_nothing(make().await).await;
    random_histories_match_the_model(make).await;
}

pub async fn absence_is_not_an_error(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for kind in Kind::ALL {
        let key = RecordKey::new(kind, "nobody");
        assert_eq!(store.load(&key).await, None);
        assert_eq!(store.replace(&key, Revision(1), b"x").await, None);
        assert!(!store.delete(&key, Revision(1)).await);
        assert_eq!(store.take(&key).await, None);
        assert_eq!(store.list(kind, None, 10).await, []);
        assert_eq!(store.list(kind, Some("nobody"), 10).await, []);
    }
    assert_eq!(store.sweep(NOW).await, 0);
    let counter = store.counter().await;
    assert_eq!(store.changes(counter).await, Changes::Since { counter, keys: vec![] });
}

pub async fn a_record_is_created_once(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for kind in Kind::ALL {
        let key = RecordKey::new(kind, "hr");
        let revision = store.create(&key, b"first").await.expect("there is no such record yet");
        assert_eq!(store.load(&key).await, Some((revision, b"first".to_vec())));
        assert_eq!(store.create(&key, b"second").await, None);
        assert_eq!(store.load(&key).await, Some((revision, b"first".to_vec())), "the loser wrote nothing");
    }
}

pub async fn one_of_many_creates_wins(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = connection("hr");
    let outcomes = at_once(RIVALS, |rival| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.create(&key, &rival.to_be_bytes()).await.map(|revision| (revision, rival)) }
    });
    let winners: Vec<_> = outcomes.await.into_iter().flatten().collect();
    let [(revision, rival)] = winners[..] else { panic!("one create wins, not {}", winners.len()) };
    assert_eq!(store.load(&key).await, Some((revision, rival.to_be_bytes().to_vec())));
}

pub async fn a_replace_needs_the_current_revision(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = connection("hr");
    let first = store.create(&key, b"1").await.expect("created");
    let second = store.replace(&key, first, b"2").await.expect("the revision is current");
    assert_ne!(first, second);
    assert_eq!(store.replace(&key, first, b"3").await, None, "a slower writer does not win");
    assert_eq!(store.load(&key).await, Some((second, b"2".to_vec())));
    let same_again = store.replace(&key, second, b"2").await.expect("the revision is current");
    assert_ne!(second, same_again, "a write of the same bytes is a write");
}

/// Each round has one winner, and each winner's bytes are what the next round finds.
pub async fn one_of_many_replaces_wins(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = connection("hr");
    let mut current = store.create(&key, b"").await.expect("created");
    for _ in 0..3 {
        let outcomes = at_once(RIVALS, |rival| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let won = store.replace(&key, current, &rival.to_be_bytes()).await;
                won.map(|revision| (revision, rival))
            }
        });
        let winners: Vec<_> = outcomes.await.into_iter().flatten().collect();
        let [(revision, rival)] = winners[..] else { panic!("one replace wins, not {}", winners.len()) };
        assert_eq!(store.load(&key).await, Some((revision, rival.to_be_bytes().to_vec())));
        current = revision;
    }
}

/// A revision from before a delete does not match the record of the same name that came after.
pub async fn a_revision_is_never_given_twice(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for key in [connection("hr"), RecordKey::new(Kind::ConnectLink, "hr")] {
        let mut given = HashSet::new();
        for round in 0..10 {
            let first = store.create(&key, b"same").await.expect("created");
            let second = store.replace(&key, first, b"same").await.expect("replaced");
            for revision in [first, second] {
                assert!(given.insert(revision), "{key}: {revision:?} was given twice");
            }
            for stale in given.iter().filter(|revision| **revision != second) {
                assert_eq!(store.replace(&key, *stale, b"x").await, None);
                assert!(!store.delete(&key, *stale).await);
            }
            if round % 2 == 0 {
                assert!(store.delete(&key, second).await);
            } else {
                assert!(store.take(&key).await.is_some());
            }
        }
    }
}

pub async fn a_delete_needs_the_current_revision(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = connection("hr");
    let first = store.create(&key, b"1").await.expect("created");
    let second = store.replace(&key, first, b"2").await.expect("replaced");
    assert!(!store.delete(&key, first).await);
    assert_eq!(store.load(&key).await, Some((second, b"2".to_vec())));
    let outcomes = at_once(RIVALS, |_| {
        let (store, key) = (store.clone(), key.clone());
        async move { store.delete(&key, second).await }
    });
    assert_eq!(outcomes.await.into_iter().filter(|deleted| *deleted).count(), 1);
    assert_eq!(store.load(&key).await, None);
    assert_eq!(store.list(Kind::Connection, None, 10).await, []);
    assert_eq!(store.replace(&key, second, b"3").await, None, "a replace does not bring a record back");
}

/// O-06, I-13: of any number of takers, one gets the record.
pub async fn a_record_is_taken_once(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for round in 0..5 {
        let key = RecordKey::new(Kind::ConsentFlow, format!("{round:064x}"));
        store.create(&key, b"flow").await.expect("created");
        let outcomes = at_once(RIVALS, |_| {
            let (store, key) = (store.clone(), key.clone());
            async move { store.take(&key).await }
        });
        let taken: Vec<_> = outcomes.await.into_iter().flatten().collect();
        assert_eq!(taken, [b"flow".to_vec()], "one taker gets the record");
        assert_eq!(store.load(&key).await, None);
    }
    assert_eq!(store.list(Kind::ConsentFlow, None, 10).await, []);
}

pub async fn take_and_delete_do_not_both_win(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for round in 0..10 {
        let key = RecordKey::new(Kind::ConnectLink, format!("{round:064x}"));
        let revision = store.create(&key, b"link").await.expect("created");
        let outcomes = at_once(RIVALS, |rival| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                if rival % 2 == 0 {
                    store.delete(&key, revision).await
                } else {
                    store.take(&key).await.is_some()
                }
            }
        });
        assert_eq!(outcomes.await.into_iter().filter(|won| *won).count(), 1);
    }
}

pub async fn lists_are_ordered_and_paged(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    // In the order of their bytes: '-' < digits < '_' < letters, and a prefix before what it begins.
    let ordered = ["0", "9", "a", "a-", "a-a", "a0", "a_", "aa", "b", "hr-prod", "hr-prod2", "zz"];
    for id in ["a_", "zz", "0", "hr-prod2", "a-a", "b", "a", "9", "aa", "hr-prod", "a0", "a-"] {
        store.create(&connection(id), id.as_bytes()).await.expect("created");
    }
    for limit in [1, 2, 5, 11, 12, 13, 1_000] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().cloned();
            let page = store.list(Kind::Connection, after.as_deref(), limit).await;
            assert!(page.len() <= limit);
            let is_last = page.len() < limit;
            for (id, revision, value) in page {
                assert_eq!(store.load(&connection(&id)).await, Some((revision, value)));
                found.push(id);
            }
            if is_last {
                break;
            }
        }
        assert_eq!(found, ordered, "in pages of {limit}");
    }
    assert_eq!(store.list(Kind::Connection, None, 0).await, []);
    let ids = async |after| -> Vec<String> {
        store.list(Kind::Connection, Some(after), 3).await.into_iter().map(|(id, _, _)| id).collect()
    };
    assert_eq!(ids("a1").await, ["a_", "aa", "b"], "`after` need not exist");
    assert_eq!(ids("zz").await, [] as [&str; 0]);
    let (revision, _) = store.load(&connection("a0")).await.expect("created above");
    assert!(store.delete(&connection("a0"), revision).await);
    assert_eq!(ids("a-a").await, ["a_", "aa", "b"], "a deleted record leaves no gap");
}

/// The same id under two kinds is two records.
pub async fn kinds_are_kept_apart(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for kind in Kind::ALL {
        store.create(&RecordKey::new(kind, "same"), kind.name().as_bytes()).await.expect("created");
    }
    for kind in Kind::ALL {
        let key = RecordKey::new(kind, "same");
        let (revision, value) = store.load(&key).await.expect("created above");
        assert_eq!(value, kind.name().as_bytes());
        assert_eq!(store.list(kind, None, 10).await, [("same".to_owned(), revision, value)]);
        assert!(store.take(&key).await.is_some());
        assert_eq!(store.list(kind, None, 10).await, []);
    }
}

pub async fn ids_may_be_at_their_longest(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for id in ["z".repeat(63), "f".repeat(64)] {
        for kind in Kind::ALL {
            let key = RecordKey::new(kind, id.clone());
            let revision = store.create(&key, b"x").await.expect("created");
            let revision = store.replace(&key, revision, b"y").await.expect("replaced");
            let listed = store.list(kind, None, 1).await;
            assert_eq!(listed, [(id.clone(), revision, b"y".to_vec())]);
            assert_eq!(store.take(&key).await, Some(b"y".to_vec()));
        }
    }
}

pub async fn values_keep_every_byte(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = connection("hr");
    let mut revision = store.create(&key, b"").await.expect("created");
    assert_eq!(store.load(&key).await, Some((revision, vec![])), "an empty value is a value");
    for length in [1, 255, 256, 4_095, 4_096, 4_097, 65_536, VALUE_BYTES_MAX] {
        let value: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
        revision = store.replace(&key, revision, &value).await.expect("replaced");
        assert!(store.load(&key).await == Some((revision, value.clone())), "a value of {length} bytes");
        let listed = store.list(Kind::Connection, None, 1).await;
        assert!(listed == [("hr".to_owned(), revision, value)], "a listed value of {length} bytes");
    }
    assert_eq!(store.take(&key).await.map(|value| value.len()), Some(VALUE_BYTES_MAX));
}

pub async fn a_change_is_told_before_its_write_returns(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_watched()) {
        let key = RecordKey::new(kind, "hr");
        let mut counter = store.begin_log().await;
        let first = store.create(&key, b"1").await.expect("created");
        store.expect_change(&mut counter, &key).await;
        let second = store.replace(&key, first, b"2").await.expect("replaced");
        store.expect_change(&mut counter, &key).await;
        assert!(store.delete(&key, second).await);
        store.expect_change(&mut counter, &key).await;
        store.create(&key, b"3").await.expect("created");
        store.expect_change(&mut counter, &key).await;
        assert!(store.take(&key).await.is_some());
        store.expect_change(&mut counter, &key).await;
    }
}

pub async fn a_write_that_loses_is_no_change(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let (here, gone) = (connection("here"), connection("gone"));
    let stale = store.create(&here, b"1").await.expect("created");
    store.replace(&here, stale, b"2").await.expect("replaced");
    let counter = store.counter().await;
    assert_eq!(store.create(&here, b"x").await, None);
    assert_eq!(store.replace(&here, stale, b"x").await, None);
    assert!(!store.delete(&here, stale).await);
    assert_eq!(store.replace(&gone, stale, b"x").await, None);
    assert!(!store.delete(&gone, stale).await);
    assert_eq!(store.take(&gone).await, None);
    assert_eq!(store.changes(counter).await, Changes::Since { counter, keys: vec![] });
}

pub async fn only_watched_kinds_are_told(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let counter = store.begin_log().await;
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_watched()) {
        let key = RecordKey::new(kind, "hr");
        let revision = store.create(&key, b"1").await.expect("created");
        let revision = store.replace(&key, revision, b"2").await.expect("replaced");
        assert!(store.delete(&key, revision).await);
        store.create(&key, b"3").await.expect("created");
        assert!(store.take(&key).await.is_some());
    }
    assert_eq!(store.changes(counter).await, Changes::Since { counter, keys: vec![] });
}

pub async fn changes_are_told_in_order_and_once(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let start = store.begin_log().await;
    let keys = [
        connection("b"),
        RecordKey::new(Kind::Policy, "b"),
        connection("a"),
        RecordKey::new(Kind::Policy, "a"),
    ];
    let mut revisions = Vec::new();
    for key in &keys {
        revisions.push(store.create(key, b"1").await.expect("created"));
    }
    let middle = store.counter().await;
    for at in [2, 0, 2] {
        revisions[at] = store.replace(&keys[at], revisions[at], b"2").await.expect("replaced");
    }
    let end = store.counter().await;
    assert!(start < middle && middle < end);
    assert_eq!(store.changes(start).await, Changes::Since { counter: end, keys: keys.to_vec() });
    let newer = vec![keys[2].clone(), keys[0].clone()];
    assert_eq!(store.changes(middle).await, Changes::Since { counter: end, keys: newer });
    assert_eq!(store.changes(end).await, Changes::Since { counter: end, keys: vec![] });
}

/// A reader that always continues from the counter it was given hears of every change, however many write at once.
pub async fn no_change_slips_between_two_readings(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let mut counter = store.begin_log().await;
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for record in 0..25 {
                store.create(&connection(&format!("{writer}-{record}")), b"x").await.expect("created");
            }
        });
    }
    let mut heard = BTreeSet::new();
    loop {
        let finished = writers.is_empty();
        let Changes::Since { counter: newer, keys } = store.changes(counter).await else {
            panic!("the log reaches back")
        };
        assert!(if keys.is_empty() { newer == counter } else { newer > counter });
        for key in keys {
            assert!(heard.insert(key.clone()), "{key} was told twice and changed once");
            assert!(store.load(&key).await.is_some(), "{key} was told before it could be read");
        }
        counter = newer;
        if finished {
            break;
        }
        while let Some(writer) = writers.try_join_next() {
            writer.expect("a writer failed");
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(heard.len(), 8 * 25);
}

/// The log keeps [`CHANGES_KEPT_MAX`] changes and no more.
pub async fn an_overrun_log_says_so(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let start = store.begin_log().await;
    let mut left = CHANGES_KEPT_MAX;
    while left > 0 {
        let writes = left.min(128);
        at_once(writes, |write| {
            let (store, key) = (store.clone(), connection(&format!("{left}-{write}")));
            async move { store.create(&key, b"x").await.expect("created") }
        })
        .await;
        left -= writes;
    }
    let Changes::Since { counter, keys } = store.changes(start).await else { panic!("the log reaches back") };
    assert_eq!(keys.len(), CHANGES_KEPT_MAX);
    let last = connection("last");
    for _ in 0..2 {
        let revision = store.create(&last, b"x").await.expect("created");
        assert!(store.delete(&last, revision).await);
    }
    let end = store.counter().await;
    assert_eq!(store.changes(start).await, Changes::Missed { counter: end });
    assert_eq!(store.changes(counter).await, Changes::Since { counter: end, keys: vec![last] });
}

/// Such a counter comes from another store, or from this one before it was restored.
pub async fn a_counter_from_elsewhere_says_so(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let empty = store.counter().await;
    let future = ChangeCounter(empty.0 + 1);
    assert_eq!(store.changes(future).await, Changes::Missed { counter: empty });
    let counter = store.begin_log().await;
    for future in [counter.0 + 1, counter.0 + 1_000_000_000, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        assert_eq!(store.changes(ChangeCounter(future)).await, Changes::Missed { counter });
    }
}

pub async fn a_sweep_forgets_what_expired_and_nothing_else(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let link = |id: &str| RecordKey::new(Kind::ConnectLink, id);
    store.create(&link("for-ever"), b"x").await.expect("created");
    store.create_until(&link("later"), b"x", LATER).await.expect("created");
    for id in ["past-1", "past-2"] {
        store.create_until(&link(id), b"x", PAST).await.expect("created");
    }
    assert_eq!(store.sweep(UnixTime::from_millis(PAST.as_millis() - 1)).await, 0);
    assert_eq!(store.sweep(PAST).await, 2, "`expires_at` itself is no longer part of a record's life");
    assert_eq!(store.sweep(NOW).await, 0);
    assert_eq!(store.load(&link("past-1")).await, None);
    assert_eq!(store.take(&link("past-2")).await, None);
    let listed: Vec<String> =
        store.list(Kind::ConnectLink, None, 10).await.into_iter().map(|(id, _, _)| id).collect();
    assert_eq!(listed, ["for-ever", "later"]);

    store.create(&link("past-1"), b"again").await.expect("a forgotten record may be created again");
    assert_eq!(store.sweep(NOW).await, 0, "a record does not inherit the expiry of an earlier one");
    assert!(store.take(&link("later")).await.is_some());
    store.create(&link("later"), b"again").await.expect("created");
    assert_eq!(store.sweep(UnixTime::from_millis(LATER.as_millis() + 1)).await, 0);
    for id in ["later", "past-1"] {
        assert!(store.load(&link(id)).await.is_some_and(|(_, value)| value == b"again"), "{id}");
    }
}

pub async fn a_replace_keeps_the_expiry(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let key = RecordKey::new(Kind::ConsentOutcome, "outcome");
    let revision = store.create_until(&key, b"1", LATER).await.expect("created");
    store.replace(&key, revision, b"2").await.expect("replaced");
    assert_eq!(store.sweep(NOW).await, 0);
    assert!(store.load(&key).await.is_some());
    assert_eq!(store.sweep(LATER).await, 1);
    assert_eq!(store.load(&key).await, None);
}

/// The index of what is due follows every write of its records, and is read in pages by time.
pub async fn what_is_due_is_told_by_time(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let at = UnixTime::from_secs;
    let entry = |secs, id: &str| DueRecord { at: at(secs), id: id.to_owned() };
    let late = store.create_due(&connection("late"), Some(at(30))).await;
    let moved = store.create_due(&connection("moved"), Some(at(10))).await;
    let cleared = store.create_due(&connection("cleared"), Some(at(11))).await;
    let deleted = store.create_due(&connection("deleted"), Some(at(12))).await;
    let set_later = store.create_due(&connection("set-later"), None).await;
    for id in ["b", "a", "c"] {
        store.create_due(&connection(id), Some(at(20))).await;
    }
    assert_eq!(store.due(None, at(9), 100).await, []);
    let first = [entry(10, "moved"), entry(11, "cleared"), entry(12, "deleted")];
    assert_eq!(store.due(None, at(12), 100).await, first, "what is due at `until` is due");

    store.replace_due(&connection("moved"), moved, Some(at(25))).await;
    store.replace_due(&connection("cleared"), cleared, None).await;
    store.replace_due(&connection("set-later"), set_later, Some(at(26))).await;
    assert!(store.delete(&connection("deleted"), deleted).await);
    let all = [
        entry(20, "a"),
        entry(20, "b"),
        entry(20, "c"),
        entry(25, "moved"),
        entry(26, "set-later"),
        entry(30, "late"),
    ];
    assert_eq!(store.due(None, at(30), 100).await, all);
    for limit in 1..=all.len() {
        let (mut read, mut after) = (Vec::new(), None);
        loop {
            let page = store.due(after.as_ref(), at(30), limit).await;
            read.extend(page.iter().cloned());
            after = page.last().cloned();
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(read, all, "in pages of {limit}");
    }
    let stale = store.replace_due(&connection("late"), late, Some(at(31))).await;
    assert_eq!(store.replace(&connection("late"), late, b"x").await, None, "a lost write changes no time");
    assert_eq!(store.due(None, at(31), 100).await.last(), Some(&entry(31, "late")));
    assert!(store.take(&connection("a")).await.is_some());
    assert_eq!(store.due(None, at(20), 100).await, [entry(20, "b"), entry(20, "c")]);
    store.replace_due(&connection("late"), stale, None).await;
    assert!(store.due(None, at(40), 100).await.iter().all(|due| due.id != "late"));
}

/// F-02: a call dropped at any of its awaits leaves the record as before or as asked.
pub async fn a_dropped_call_writes_all_or_nothing(backend: Arc<dyn Backend>) {
    let store = Subject(backend);
    let (before, after) = (vec![1; 50_000], vec![2; 60_000]);
    for polls in 0..12 {
        let key = connection(&format!("hr-{polls}"));
        let revision = store.create(&key, &before).await.expect("created");
        drop_after(polls, store.replace(&key, revision, &after)).await;
        match store.load(&key).await {
            Some((found, value)) if found == revision => assert!(value == before),
            Some((_, value)) => assert!(value == after),
            None => panic!("{key} is gone"),
        }
        drop_after(polls, store.take(&key)).await;
        drop_after(polls, store.create(&key, &before)).await;
        let value = store.load(&key).await.map(|(_, value)| value);
        assert!(value.is_none_or(|value| value == before || value == after));
    }
}

/// S-04: `damage` spoils the record of the key that it is given, in a way of the backend's own, and gives the store
/// back, which it may have closed and opened meanwhile. Not part of [`check`]: only the backend's tests reach below it.
pub async fn a_damaged_record_hides_no_other(
    backend: Arc<dyn Backend>,
    damage: impl AsyncFnOnce(Arc<dyn Backend>, &RecordKey) -> Arc<dyn Backend>,
) {
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).expect("a key file"));
    let store = Store::open(Arc::clone(&backend), Arc::clone(&ring)).await.expect("a new store");
    for id in ["a", "b", "c"] {
        answered("create", store.create(&canary_connection(id)).await).expect("created");
    }
    drop(store);
    let spoilt = connection("b");
    let backend = damage(backend, &spoilt).await;

    let is_named = |error: &StoreError| matches!(error, StoreError::Damaged { key, .. } if *key == spoilt);
    let error = backend.load(&spoilt).await.expect_err("it is damaged");
    assert!(is_named(&error), "{error}");
    assert!(!error.to_string().contains(CANARY), "{error}");
    for limit in [1, 2, 3, 10] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = answered("list", backend.list(Kind::Connection, after.as_deref(), limit).await);
            let is_last = page.len() < limit;
            after = page.last().map(|last| last.id.clone());
            found.extend(page.into_iter().map(|entry| (entry.id, entry.content.is_ok())));
            if is_last {
                break;
            }
        }
        let expected = [("a", true), ("b", false), ("c", true)].map(|(id, whole)| (id.to_owned(), whole));
        assert_eq!(found, expected, "in pages of {limit}");
    }
    let created = backend.create(&spoilt, sealed(b"new"), Times::default()).await;
    assert_eq!(answered("create", created), None, "something stands in its place");

    let store = Store::open(backend, ring).await.expect("the root is whole");
    let error = store.load::<Connection>("b").await.expect_err("it is damaged");
    assert!(is_named(&error), "{error}");
    let page = answered("list", store.list::<Connection>(None, 10).await);
    assert_eq!(page.damaged, [spoilt]);
    let whole: Vec<_> = page.records.iter().map(|entry| entry.record.id.as_str()).collect();
    assert_eq!(whole, ["a", "c"]);
}

/// Some fixed seeds, and a fresh one each time.
pub async fn random_histories_match_the_model(make: impl AsyncFn() -> Arc<dyn Backend>) {
    for seed in [1, 2, 3, RandomState::new().hash_one("seed")] {
        history_matches_the_model(make().await, seed).await;
    }
}

/// Makes a few hundred random calls and compares every answer with the model's.
pub async fn history_matches_the_model(backend: Arc<dyn Backend>, seed: u64) {
    println!("contract: random history of seed {seed}"); // shown by the test runner if the test fails
    let store = Subject(backend);
    let counter = store.begin_log().await;
    let mut model = Model { counters: vec![counter], ..Model::default() };
    model.records.insert(log_start(), store.load(&log_start()).await.expect("begin_log() made it"));
    let mut random = Random(seed);
    for step in 0..HISTORY_CALLS {
        model.step(&store, &mut random).await.unwrap_or_else(|difference| {
            panic!("seed {seed}, call {step}: {difference}");
        });
    }
}

/// What a store holds and has told.
#[derive(Default)]
struct Model {
    records: BTreeMap<RecordKey, (Revision, Vec<u8>)>,
    /// Every revision ever given, by key.
    given: BTreeMap<RecordKey, Vec<Revision>>,
    /// Every change, oldest first …
    changed: Vec<RecordKey>,
    /// … and the counters around them: the change `changed[n]` lies between `counters[n]` and `counters[n + 1]`.
    counters: Vec<ChangeCounter>,
}

impl Model {
    async fn step(&mut self, store: &Subject, random: &mut Random) -> Result<(), String> {
        let key = random.key();
        let value: Vec<u8> = (0..random.below(40)).map(|_| random.next().to_le_bytes()[0]).collect();
        let current = self.records.get(&key).cloned();
        let expected = self.some_revision(&key, random);
        let matches = current.as_ref().is_some_and(|(revision, _)| *revision == expected);
        let changed = match random.below(9) {
            0 => {
                same(&format!("load {key}"), &store.load(&key).await, &current)?;
                false
            }
            1 => {
                let after = random.chance().then(|| random.key().id);
                let limit = random.below(9);
                self.compare_list(store, key.kind, after.as_deref(), limit).await?;
                false
            }
            2 | 3 => {
                let revision = store.create(&key, &value).await;
                same(&format!("create {key}"), &revision.is_some(), &current.is_none())?;
                self.written(&key, revision, value)?
            }
            4 | 5 => {
                let revision = store.replace(&key, expected, &value).await;
                same(&format!("replace {key} at {expected:?}"), &revision.is_some(), &matches)?;
                self.written(&key, revision, value)?
            }
            6 => {
                let deleted = store.delete(&key, expected).await;
                same(&format!("delete {key} at {expected:?}"), &deleted, &matches)?;
                deleted && self.records.remove(&key).is_some()
            }
            7 => {
                let taken = store.take(&key).await;
                same(&format!("take {key}"), &taken, &current.map(|(_, value)| value))?;
                self.records.remove(&key).is_some()
            }
            _ => {
                let from = random.below(self.counters.len());
                self.compare_changes(store, from).await?;
                false
            }
        };
        if changed && key.kind.is_watched() {
            self.changed.push(key);
            self.counters.push(store.counter().await);
        }
        self.compare_changes(store, self.counters.len().saturating_sub(2)).await
    }

    /// Most often the current one, else any that the key ever had, else none that it ever had.
    fn some_revision(&self, key: &RecordKey, random: &mut Random) -> Revision {
        let given = self.given.get(key).map_or(&[][..], Vec::as_slice);
        match (self.records.get(key), given) {
            (Some((revision, _)), _) if random.below(3) > 0 => *revision,
            (_, []) => Revision(random.next()),
            (_, given) => given[random.below(given.len())],
        }
    }

    fn written(
        &mut self,
        key: &RecordKey,
        revision: Option<Revision>,
        value: Vec<u8>,
    ) -> Result<bool, String> {
        let Some(revision) = revision else { return Ok(false) };
        let given = self.given.entry(key.clone()).or_default();
        if given.contains(&revision) {
            return Err(format!("{key}: {revision:?} was given twice"));
        }
        given.push(revision);
        self.records.insert(key.clone(), (revision, value));
        Ok(true)
    }

    async fn compare_list(
        &self,
        store: &Subject,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(), String> {
        let expected: Vec<_> = self
            .records
            .iter()
            .filter(|(key, _)| key.kind == kind && after.is_none_or(|after| key.id.as_str() > after))
            .take(limit)
            .map(|(key, (revision, value))| (key.id.clone(), *revision, value.clone()))
            .collect();
        let found = store.list(kind, after, limit).await;
        same(&format!("list {limit} of {} after {after:?}", kind.name()), &found, &expected)
    }

    async fn compare_changes(&self, store: &Subject, from: usize) -> Result<(), String> {
        let newest = *self.counters.last().expect("it begins with one");
        let expected = Changes::since(newest, self.changed[from..].iter().cloned());
        let after = self.counters[from];
        same(&format!("changes after {after:?}"), &store.changes(after).await, &expected)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(call: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{call} gave {found:?}, not {expected:?}")) }
}

/// A small generator (`SplitMix64`): the same seed gives the same history for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn chance(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of few, so that calls meet.
    fn key(&mut self) -> RecordKey {
        let kinds = [Kind::Connection, Kind::CallerKey, Kind::ConnectLink];
        let ids = ["a", "a-", "a0", "a_", "b", "ff"];
        RecordKey::new(kinds[self.below(kinds.len())], ids[self.below(ids.len())])
    }
}

/// Stands in every member of the canary records that must not be readable in a store (S-08).
pub const CANARY: &str = "canary";

/// A connection whose tokens, user and labels hold the [`CANARY`].
pub fn canary_connection(id: &str) -> Connection {
    let secret = |what: &str| format!("{CANARY}-{what}");
    let at = UnixTime::from_secs(1_700_000_000);
    Connection {
        id: ConnectionId::parse(id).expect("an id"),
        integration: IntegrationId::parse("dev1").expect("an id"),
        profile: ProfileName::default(),
        labels: [("team".to_owned(), secret("label"))].into(),
        expected_user: Some(secret("user@example.com")),
        user: None,
        lifecycle: Lifecycle::Active { since: at },
        frozen: None,
        health: Health::Ok,
        grant: Some(Grant {
            generation: Generation(1),
            access_token: AccessToken::parse(secret("access")).expect("a token"),
            access_lifetime: Duration::from_mins(30),
            access_expires_at: at + Duration::from_mins(30),
            refresh_token: Some(RefreshToken::parse(secret("refresh")).expect("a token")),
            previous_refresh_token: Some(RefreshToken::parse(secret("previous")).expect("a token")),
            refresh_expires_at: Some(at + Integration::REFRESH_TOKEN_LIFETIME_DEFAULT),
            granted_at: at,
            refreshed_at: at,
            scope: None,
        }),
        exchanges: Exchanges::default(),
        due_at: None,
        created_at: at,
        last_used_at: None,
    }
}

/// An integration whose instance, client id and client secret hold the [`CANARY`].
pub fn canary_integration() -> Integration {
    let instance =
        InstanceOrigin::parse(&format!("https://{CANARY}.service-now.com")).expect("an instance origin");
    let at = UnixTime::from_secs(1_700_000_000);
    Integration {
        id: IntegrationId::parse("dev1").expect("an id"),
        provider: Provider::Servicenow,
        client_id: format!("{CANARY}-client"),
        client_secret: Some(ClientSecret::parse(format!("{CANARY}-secret")).expect("a client secret")),
        endpoints: Endpoints::servicenow(&instance),
        instance,
        token_endpoint_auth: TokenEndpointAuth::Body,
        pkce: true,
        redirect_uri: "https://connect.example.com/oauth/callback".to_owned(),
        profiles: [(ProfileName::default(), Profile::default())].into(),
        refresh_token_lifetime: Integration::REFRESH_TOKEN_LIFETIME_DEFAULT,
        rotates_refresh_tokens: false,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        http2: false,
        created_at: at,
        updated_at: at,
    }
}

/// The backend under test. Here a store error is a broken promise.
#[derive(Clone)]
struct Subject(Arc<dyn Backend>);

impl Subject {
    async fn load(&self, key: &RecordKey) -> Option<(Revision, Vec<u8>)> {
        let found = answered("load", self.0.load(key).await);
        found.map(|(revision, value)| (revision, value.as_bytes().to_vec()))
    }

    async fn create(&self, key: &RecordKey, value: &[u8]) -> Option<Revision> {
        answered("create", self.0.create(key, sealed(value), Times::default()).await)
    }

    async fn create_until(&self, key: &RecordKey, value: &[u8], expires_at: UnixTime) -> Option<Revision> {
        answered(
            "create",
            self.0.create(key, sealed(value), Times { expires_at: Some(expires_at), due_at: None }).await,
        )
    }

    async fn replace(&self, key: &RecordKey, expected: Revision, next: &[u8]) -> Option<Revision> {
        answered("replace", self.0.replace(key, expected, sealed(next), None).await)
    }

    async fn create_due(&self, key: &RecordKey, due_at: Option<UnixTime>) -> Revision {
        let times = Times { expires_at: None, due_at };
        answered("create", self.0.create(key, sealed(b"1"), times).await).expect("created")
    }

    async fn replace_due(&self, key: &RecordKey, expected: Revision, due_at: Option<UnixTime>) -> Revision {
        let replaced = self.0.replace(key, expected, sealed(b"2"), due_at).await;
        answered("replace", replaced).expect("replaced")
    }

    async fn due(&self, after: Option<&DueRecord>, until: UnixTime, limit: usize) -> Vec<DueRecord> {
        answered("due", self.0.due(Kind::Connection, after, until, limit).await)
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> bool {
        answered("delete", self.0.delete(key, expected).await)
    }

    async fn take(&self, key: &RecordKey) -> Option<Vec<u8>> {
        answered("take", self.0.take(key).await).map(|value| value.as_bytes().to_vec())
    }

    async fn list(&self, kind: Kind, after: Option<&str>, limit: usize) -> Vec<(String, Revision, Vec<u8>)> {
        let page = answered("list", self.0.list(kind, after, limit).await);
        page.into_iter()
            .map(|StoredRecord { id, content }| {
                let (revision, value) = content.unwrap_or_else(|fault| panic!("list: {id}: {fault}"));
                (id, revision, value.as_bytes().to_vec())
            })
            .collect()
    }

    async fn changes(&self, after: ChangeCounter) -> Changes {
        answered("changes", self.0.changes(after).await)
    }

    async fn counter(&self) -> ChangeCounter {
        self.changes(ChangeCounter::default()).await.counter()
    }

    async fn sweep(&self, now: UnixTime) -> u64 {
        answered("sweep", self.0.sweep(now).await)
    }

    /// Makes sure that there is a change, so that the counter is one that the backend vouches for.
    async fn begin_log(&self) -> ChangeCounter {
        self.create(&log_start(), b"").await;
        self.counter().await
    }

    async fn expect_change(&self, counter: &mut ChangeCounter, key: &RecordKey) {
        let newer = self.counter().await;
        assert!(newer > *counter, "the counter grows");
        let expected = Changes::Since { counter: newer, keys: vec![key.clone()] };
        assert_eq!(self.changes(*counter).await, expected);
        *counter = newer;
    }
}

fn answered<T>(call: &str, answer: Result<T, StoreError>) -> T {
    answer.unwrap_or_else(|error| panic!("{call}: {error}"))
}

fn sealed(bytes: &[u8]) -> Sealed {
    Sealed::from_bytes(bytes.to_vec()) // a backend must not look inside, so anything will do
}

fn connection(id: &str) -> RecordKey {
    RecordKey::new(Kind::Connection, id)
}

fn log_start() -> RecordKey {
    RecordKey::new(Kind::Integration, "log-start")
}

/// Makes `count` calls at once and gives their answers.
async fn at_once<F>(count: usize, call: impl Fn(usize) -> F) -> Vec<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let calls: JoinSet<F::Output> = (0..count).map(call).collect();
    calls.join_all().await
}

/// Polls `call` up to `polls` times and then drops it.
async fn drop_after(polls: usize, call: impl Future) {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 || call.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        Poll::Pending
    })
    .await;
}

/// Callers that want the same thing at the same time.
const RIVALS: usize = 50;
/// Largest value that a backend must keep: far above any record, which is a few KiB.
const VALUE_BYTES_MAX: usize = 1 << 20;
const HISTORY_CALLS: usize = 400;
/// Long ago by any clock: a backend that expires records by itself has done so at once.
const PAST: UnixTime = UnixTime::from_secs(1_000_000_000);
/// 2033.
const NOW: UnixTime = UnixTime::from_secs(2_000_000_000);
/// 2096: after [`NOW`], and after the clock of any machine that runs this.
const LATER: UnixTime = UnixTime::from_secs(4_000_000_000);
