//! Typed records over a backend: sealed on the way in, opened on the way out.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bearerd_crypto::{KeyRing, RootSecret, SealContext, Sealed, UnsealError};
use bearerd_model::UnixTime;

use crate::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, Record, RecordKey, Revision, Root, StoreError,
    StoredRecord, Times,
};

/// The one way to records. Cheap to clone.
///
/// Absence is believed only of the store that was opened. One that was emptied, or put in another's place, holds no
/// record either: where it says so of a kind that processes hold in memory, and wherever it may have gone back, its root
/// record is looked at first, and without it nothing is read from it or written to it until it is back.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    ring: Arc<KeyRing>,
    root: RootSecret,
    /// Its root record was found missing, or another's.
    is_another: Arc<AtomicBool>,
}

/// A record and the revision it was read or written at.
#[derive(Debug, Clone)]
pub struct Versioned<R> {
    pub revision: Revision,
    pub record: R,
}

/// Part of a list. `next` continues it.
#[derive(Debug)]
pub struct Page<R> {
    pub records: Vec<Versioned<R>>,
    /// Id to list after; `None` at the end.
    pub next: Option<String>,
    /// Records of this page that could not be read; they are left as they are.
    pub damaged: Vec<RecordKey>,
}

/// Why a store was not opened. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    #[error("the master key does not open this store: {0}")]
    WrongMasterKey(UnsealError),
    #[error("the store holds records but not the root record that every store begins with")]
    RootMissing,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an update did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    /// The change itself declined.
    #[error("declined")]
    Declined(E),
    #[error("{0} was changed by others {CONFLICTS_MAX} times in a row")]
    Contended(RecordKey),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Lost races after which an update gives up. Each lost race means that another writer made progress, and a record
/// has few writers, so a run this long is a fault.
const CONFLICTS_MAX: usize = 32;
/// What is said of a store that was emptied or exchanged. Nothing in memory is given up for it.
const ANOTHER: &str = "it is not the store that this process was started with: its root record is gone, or another's; \
                       restore its data, and everything goes on; to begin anew with an empty store, restart every process";
/// The seal's field for a whole record.
const FIELD: &str = "record";

impl Store {
    /// Proves that `ring` opens the store, or begins a new store.
    ///
    /// # Errors
    /// [`OpenStoreError::WrongMasterKey`] if the store was made under a key that `ring` does not hold.
    pub async fn open(backend: Arc<dyn Backend>, ring: Arc<KeyRing>) -> Result<Self, OpenStoreError> {
        let key = Self::root_key();
        if let Some((_, sealed)) = backend.load(&key).await? {
            return Self::from_root(backend, ring, &sealed);
        }
        for kind in Kind::ALL {
            if !backend.list(kind, None, 1).await?.is_empty() {
                return Self::join(backend, ring).await;
            }
        }
        let root = Root { secret: RootSecret::random() };
        let sealed = seal(&ring, &root);
        if backend.create(&key, sealed, Times::default()).await?.is_some() {
            return Ok(Self { backend, ring, root: root.secret, is_another: Arc::default() });
        }
        Self::join(backend, ring).await
    }

    /// Opens a store that another process began a moment ago: every store begins with its root record.
    async fn join(backend: Arc<dyn Backend>, ring: Arc<KeyRing>) -> Result<Self, OpenStoreError> {
        match backend.load(&Self::root_key()).await? {
            Some((_, sealed)) => Self::from_root(backend, ring, &sealed),
            None => Err(OpenStoreError::RootMissing),
        }
    }

    /// Where the root record is, which proves the master key.
    pub fn root_key() -> RecordKey {
        RecordKey::new(Kind::Root, Root::ID)
    }

    /// Proves that `ring` opens the store with this root record: for whoever can read it before opening the store.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn prove(ring: &KeyRing, root: &Sealed) -> Result<(), OpenStoreError> {
        Self::open_root(ring, root).map(drop)
    }

    fn from_root(
        backend: Arc<dyn Backend>,
        ring: Arc<KeyRing>,
        sealed: &Sealed,
    ) -> Result<Self, OpenStoreError> {
        let root = Self::open_root(&ring, sealed)?;
        Ok(Self { backend, ring, root: root.secret, is_another: Arc::default() })
    }

    fn open_root(ring: &KeyRing, sealed: &Sealed) -> Result<Root, OpenStoreError> {
        let context = SealContext { kind: Kind::Root.name(), id: Root::ID, field: FIELD };
        let plain = ring.open(context, sealed).map_err(OpenStoreError::WrongMasterKey)?;
        let root = Root::decode(&plain)
            .map_err(|fault| StoreError::Damaged { key: Self::root_key(), fault: fault.to_string() })?;
        Ok(root)
    }

    /// The store's own secret, from which keyed hashes are derived.
    pub fn root(&self) -> &RootSecret {
        &self.root
    }

    /// # Errors
    /// [`StoreError::Damaged`] if the record does not open or read; otherwise as the backend says.
    pub async fn load<R: Record>(&self, id: &str) -> Result<Option<Versioned<R>>, StoreError> {
        self.check_known().await?;
        let key = RecordKey::new(R::KIND, id);
        let Some((revision, sealed)) = self.backend.load(&key).await? else {
            if R::KIND.is_watched() {
                self.check().await?;
            }
            return Ok(None);
        };
        let record = self.open_record(&key, &sealed)?;
        Ok(Some(Versioned { revision, record }))
    }

    /// `None`: a record of this id exists; nothing was written.
    ///
    /// # Errors
    /// As the backend says.
    pub async fn create<R: Record>(&self, record: &R) -> Result<Option<Revision>, StoreError> {
        self.check_known().await?;
        let key = RecordKey::new(R::KIND, record.id());
        let times = Times { expires_at: record.expires_at(), due_at: record.due_at() };
        self.backend.create(&key, seal(&self.ring, record), times).await
    }

    /// `None`: the record is no longer at `expected`; nothing was written.
    ///
    /// # Errors
    /// [`StoreError::OutcomeUnknown`] if the write may or may not have happened.
    pub async fn replace<R: Record>(
        &self,
        expected: Revision,
        next: &R,
    ) -> Result<Option<Revision>, StoreError> {
        self.check_known().await?;
        let key = RecordKey::new(R::KIND, next.id());
        self.backend.replace(&key, expected, seal(&self.ring, next), next.due_at()).await
    }

    /// Applies `change` to the record as it stands, again if another writer was faster. `None`: no such record.
    /// `change` sees a fresh copy each time.
    ///
    /// # Errors
    /// [`UpdateError::Declined`] with what `change` returned; nothing was written.
    pub async fn update<R: Record + Clone, E>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut R) -> Result<(), E> + Send,
    ) -> Result<Option<Versioned<R>>, UpdateError<E>> {
        for _ in 0..CONFLICTS_MAX {
            let Some(Versioned { revision, mut record }) = self.load::<R>(id).await? else { return Ok(None) };
            change(&mut record).map_err(UpdateError::Declined)?;
            if let Some(revision) = self.replace(revision, &record).await? {
                return Ok(Some(Versioned { revision, record }));
            }
        }
        Err(UpdateError::Contended(RecordKey::new(R::KIND, id)))
    }

    /// `false`: the record is no longer at `expected`.
    ///
    /// # Errors
    /// As the backend says.
    pub async fn delete<R: Record>(&self, id: &str, expected: Revision) -> Result<bool, StoreError> {
        self.check_known().await?;
        self.backend.delete(&RecordKey::new(R::KIND, id), expected).await
    }

    /// Removes a single-use record and gives it to this caller alone. An expired one is `None`.
    ///
    /// # Errors
    /// As the backend says.
    pub async fn take<R: Record>(&self, id: &str, now: UnixTime) -> Result<Option<R>, StoreError> {
        self.check_known().await?;
        let key = RecordKey::new(R::KIND, id);
        let Some(sealed) = self.backend.take(&key).await? else { return Ok(None) };
        let record: R = self.open_record(&key, &sealed)?;
        Ok(record.expires_at().is_none_or(|at| at > now).then_some(record))
    }

    /// Records in the order of their ids, after `after`, at most `limit` of them. A damaged record is named and
    /// skipped: it must not hide the others (S-04).
    ///
    /// # Errors
    /// As the backend says.
    pub async fn list<R: Record>(&self, after: Option<&str>, limit: usize) -> Result<Page<R>, StoreError> {
        self.check_known().await?;
        let stored = self.backend.list(R::KIND, after, limit).await?;
        if stored.is_empty() && R::KIND.is_watched() {
            self.check().await?;
        }
        let next = if stored.len() < limit { None } else { stored.last().map(|last| last.id.clone()) };
        let mut page = Page { records: Vec::with_capacity(stored.len()), next, damaged: Vec::new() };
        for StoredRecord { id, content } in stored {
            let key = RecordKey::new(R::KIND, id);
            let opened = content.ok().and_then(|(revision, sealed)| {
                Some(Versioned { revision, record: self.open_record(&key, &sealed).ok()? })
            });
            match opened {
                Some(versioned) => page.records.push(versioned),
                None => page.damaged.push(key),
            }
        }
        Ok(page)
    }

    /// What is due of a kind, by time: see [`Backend::due`].
    ///
    /// # Errors
    /// As the backend says.
    pub async fn due<R: Record>(
        &self,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        self.backend.due(R::KIND, after, until, limit).await
    }

    /// Seals a record as the store would, for a copy that is kept elsewhere.
    pub fn seal<R: Record>(&self, record: &R) -> Sealed {
        seal(&self.ring, record)
    }

    /// Opens what [`Self::seal`] made.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it does not open or read.
    pub fn open_sealed<R: Record>(&self, id: &str, sealed: &Sealed) -> Result<R, StoreError> {
        self.open_record(&RecordKey::new(R::KIND, id), sealed)
    }

    /// Comes back once something may have changed: see [`Backend::changed`].
    pub async fn changed(&self, after: ChangeCounter) {
        self.backend.changed(after).await;
    }

    /// # Errors
    /// As the backend says.
    pub async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        self.check_known().await?;
        let changes = self.backend.changes(after).await?;
        if let Changes::Missed { .. } = changes {
            self.check().await?; // it may have gone back, or be another one
        }
        Ok(changes)
    }

    async fn check_known(&self) -> Result<(), StoreError> {
        if self.is_another.load(Ordering::Relaxed) { self.check().await } else { Ok(()) }
    }

    /// Whether this still is the store that was opened.
    async fn check(&self) -> Result<(), StoreError> {
        let found = self.backend.load(&Self::root_key()).await?;
        let root = found.and_then(|(_, sealed)| Self::open_root(&self.ring, &sealed).ok());
        let is_another = root.is_none_or(|root| root.secret.expose() != self.root.expose());
        self.is_another.store(is_another, Ordering::Relaxed);
        if is_another { Err(StoreError::Unreachable(ANOTHER.to_owned())) } else { Ok(()) }
    }

    /// # Errors
    /// As the backend says.
    pub async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        self.backend.sweep(now).await
    }

    fn open_record<R: Record>(&self, key: &RecordKey, sealed: &Sealed) -> Result<R, StoreError> {
        let damaged =
            |fault: &dyn fmt::Display| StoreError::Damaged { key: key.clone(), fault: fault.to_string() };
        let context = SealContext { kind: R::KIND.name(), id: &key.id, field: FIELD };
        let plain = self.ring.open(context, sealed).map_err(|fault| damaged(&fault))?;
        let record = R::decode(&plain).map_err(|fault| damaged(&fault))?;
        if record.id() == key.id { Ok(record) } else { Err(damaged(&"it names another record")) }
    }
}

fn seal<R: Record>(ring: &KeyRing, record: &R) -> Sealed {
    let context = SealContext { kind: R::KIND.name(), id: record.id(), field: FIELD };
    ring.seal(context, &record.encode())
}

impl UpdateError<Infallible> {
    /// For changes that cannot decline.
    pub fn into_store_error(self) -> StoreError {
        match self {
            Self::Declined(never) => match never {},
            Self::Contended(key) => {
                StoreError::Refused(format!("{key} is changed by too many writers at once"))
            }
            Self::Store(error) => error,
        }
    }
}
