//! The store over a backend: how it begins, what it refuses, and how writers meet.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bearerd_crypto::{KeyRing, Sealed};
use bearerd_model::{ConnectLink, Connection, ConnectionId, UnixTime};
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, MemoryBackend, OpenStoreError, RecordKey, Revision,
    Root, Store, StoreError, StoredRecord, Times, UpdateError, Versioned, contract::canary_connection,
};

#[tokio::test]
async fn processes_that_begin_a_store_at_once_share_its_root() {
    for rival_comes in [Moment::BeforeTheFirstList, Moment::BeforeTheFirstCreate] {
        let ring = ring();
        let contested = Arc::new(Contested {
            inner: Arc::new(MemoryBackend::default()),
            ring: Arc::clone(&ring),
            rival_comes,
            came: AtomicBool::new(false),
        });
        let inner = Arc::clone(&contested.inner) as Arc<dyn Backend>;
        let store = Store::open(Arc::clone(&contested) as Arc<dyn Backend>, Arc::clone(&ring)).await.unwrap();
        assert!(contested.came.load(Ordering::SeqCst));
        let rival = Store::open(inner, ring).await.unwrap();
        assert_eq!(store.root().expose(), rival.root().expose(), "{rival_comes:?}");
    }
}

/// S-07: nothing is written with a new key over old data.
#[tokio::test]
async fn another_master_key_is_refused() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    let store = Store::open(Arc::clone(&backend), ring()).await.unwrap();
    store.create(&canary_connection("hr")).await.unwrap().unwrap();
    let before = everything(backend.as_ref()).await;
    let error = Store::open(Arc::clone(&backend), ring()).await.unwrap_err();
    assert!(matches!(error, OpenStoreError::WrongMasterKey(_)), "{error}");
    assert_eq!(everything(backend.as_ref()).await, before);
}

#[tokio::test]
async fn records_without_a_root_are_refused() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    let store = Store::open(Arc::clone(&backend), ring()).await.unwrap();
    store.create(&canary_connection("hr")).await.unwrap().unwrap();
    backend.take(&RecordKey::new(Kind::Root, Root::ID)).await.unwrap().unwrap();
    let before = everything(backend.as_ref()).await;
    let error = Store::open(Arc::clone(&backend), ring()).await.unwrap_err();
    assert!(matches!(error, OpenStoreError::RootMissing), "{error}");
    assert_eq!(everything(backend.as_ref()).await, before);
}

#[tokio::test]
async fn an_update_sees_what_a_faster_writer_wrote() {
    let store = Store::open(Arc::new(MemoryBackend::default()), ring()).await.unwrap();
    store.create(&canary_connection("hr")).await.unwrap().unwrap();
    let writers: tokio::task::JoinSet<()> = (0..8)
        .map(|writer| {
            let store = store.clone();
            async move {
                let label = |connection: &mut Connection| -> Result<(), Infallible> {
                    connection.labels.insert(format!("writer-{writer}"), String::new());
                    Ok(())
                };
                store.update("hr", label).await.unwrap().unwrap();
            }
        })
        .collect();
    writers.join_all().await;
    let Versioned { record, .. } = store.load::<Connection>("hr").await.unwrap().unwrap();
    assert_eq!(record.labels.keys().filter(|label| label.starts_with("writer-")).count(), 8);

    let declined = store.update("hr", |_: &mut Connection| Err("no")).await;
    assert!(matches!(declined, Err(UpdateError::Declined("no"))));
    let absent = store.update("nobody", |_: &mut Connection| Err("no")).await;
    assert!(matches!(absent, Ok(None)));
}

/// O-08: what has expired is not given, whether or not the backend has forgotten it.
#[tokio::test]
async fn an_expired_record_is_not_taken() {
    let store = Store::open(Arc::new(MemoryBackend::default()), ring()).await.unwrap();
    let link = |hash: &str| ConnectLink {
        hash: hash.to_owned(),
        connection: ConnectionId::parse("hr").unwrap(),
        requested_by: String::new(),
        created_at: UnixTime::from_secs(100),
        expires_at: UnixTime::from_secs(700),
    };
    for (hash, now_secs, given) in [("aa", 699, true), ("bb", 700, false), ("cc", 701, false)] {
        store.create(&link(hash)).await.unwrap().unwrap();
        let taken = store.take::<ConnectLink>(hash, UnixTime::from_secs(now_secs)).await.unwrap();
        assert_eq!(taken.is_some(), given, "at {now_secs}");
        assert!(store.load::<ConnectLink>(hash).await.unwrap().is_none());
    }
}

fn ring() -> Arc<KeyRing> {
    Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap())
}

async fn everything(backend: &dyn Backend) -> Vec<StoredRecord> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        all.extend(backend.list(kind, None, 1_000).await.unwrap());
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    BeforeTheFirstList,
    BeforeTheFirstCreate,
}

/// A backend on which another process begins the store at the worst moment.
#[derive(Debug)]
struct Contested {
    inner: Arc<MemoryBackend>,
    ring: Arc<KeyRing>,
    rival_comes: Moment,
    came: AtomicBool,
}

impl Contested {
    async fn at(&self, moment: Moment) {
        if moment == self.rival_comes && !self.came.swap(true, Ordering::SeqCst) {
            let rival =
                Store::open(Arc::clone(&self.inner) as Arc<dyn Backend>, Arc::clone(&self.ring)).await;
            rival.unwrap().create(&canary_connection("rival")).await.unwrap().unwrap();
        }
    }
}

#[async_trait]
impl Backend for Contested {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        self.inner.load(key).await
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        self.at(Moment::BeforeTheFirstCreate).await;
        self.inner.create(key, value, times).await
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        self.inner.replace(key, expected, next, due_at).await
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        self.inner.delete(key, expected).await
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        self.inner.take(key).await
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        self.at(Moment::BeforeTheFirstList).await;
        self.inner.list(kind, after, limit).await
    }

    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        self.inner.changes(after).await
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        self.inner.due(kind, after, until, limit).await
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        self.inner.sweep(now).await
    }
}

/// I-1: a store that was emptied, or put in another's place, holds no record either. What it does not hold is not taken
/// for deleted, and nothing is written to it.
#[tokio::test]
async fn absence_is_believed_only_of_the_store_that_was_opened() {
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let backend = Arc::new(MemoryBackend::default());
    let store = Store::open(backend.clone(), ring.clone()).await.unwrap();
    assert!(store.load::<Connection>("hr").await.unwrap().is_none());
    let root = backend.take(&Store::root_key()).await.unwrap().unwrap();

    let is_unreachable = |error: StoreError| matches!(error, StoreError::Unreachable(_));
    assert!(is_unreachable(store.load::<Connection>("hr").await.unwrap_err()));
    assert!(is_unreachable(store.list::<Connection>(None, 10).await.unwrap_err()));
    assert!(is_unreachable(store.changes(ChangeCounter(9)).await.unwrap_err()));
    assert!(is_unreachable(store.create(&canary_connection("hr")).await.unwrap_err()));

    let other = Store::open(backend.clone(), ring).await.unwrap();
    other.create(&canary_connection("hr")).await.unwrap().expect("it is begun anew");
    assert!(is_unreachable(store.load::<Connection>("hr").await.unwrap_err()), "another's");

    backend.take(&Store::root_key()).await.unwrap().unwrap();
    backend.create(&Store::root_key(), root, Times::default()).await.unwrap().unwrap();
    assert!(store.load::<Connection>("hr").await.unwrap().is_some(), "its own again");
    assert!(store.load::<Connection>("it").await.unwrap().is_none());
}
