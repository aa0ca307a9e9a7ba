//! The single-node backend: one redb file. A write is on disk, fsynced, when its call returns; writers that wait at
//! the same time share a transaction and its fsync.
//!
//! # Tables of the file
//!
//! | table | key | value |
//! |---|---|---|
//! | `records` | kind, id | revision, `expires_at` in Unix ms, sealed record |
//! | `expiries` | `expires_at`, kind, id | – (finds what a sweep forgets without reading every record) |
//! | `due` | kind, `due_at`, id | – (finds what is due without reading what is not) |
//! | `due_times` | kind, id | `due_at` in Unix ms, of records that have one |
//! | `changes` | counter | kind, id (the newest [`CHANGES_KEPT_MAX`](bearerd_store::CHANGES_KEPT_MAX)) |
//! | `counters` | `format`, `revision`, `changes` | the format's version; the last revision and counter given |
//!
//! Kinds are stored by name. Revisions and counters are never given twice, not even across a restart, because they
//! are counted in the transaction of the write that they name. A due time stands beside its record and not in it, so
//! that a file of format 1, which has none, opens without its records being rewritten.
//!
//! redb keeps the pages of the last transaction intact until the next one is on disk, and reuses pages that are no
//! longer needed, so the file is as large as the records ever were at once, never compacted, and safe to kill.
//!
//! # What opening writes
//!
//! Opening a file marks it as open, and after a kill redb first repairs it: it drops what was never committed and
//! counts its pages anew. That is recovery and no change of content: every record, revision and counter is as the last
//! commit left it. A file of an older format is also given the tables that it lacks. All this comes before anyone could
//! prove the master key, which only the records can (S-07); [`EmbeddedBackend::peek`] proves it without writing a byte
//! where the file was closed in order.
//!
//! A new file is made under a name of its own (`.bearerd-unfinished-…`, in the same folder), with its tables, and gets
//! its own name when it is whole and on disk. A process that is killed meanwhile leaves no half-made store in its
//! place, but may leave that other file, which may be deleted.

mod file;
mod tables;
mod writer;

use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;
use bearerd_crypto::Sealed;
use bearerd_model::UnixTime;
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoreError, StoredRecord, Times,
};
use tokio::sync::watch;

pub use crate::file::OpenEmbeddedError;
use crate::{
    file::StoreFile,
    tables::{ReadTables, WriteTables},
    writer::Writer,
};

/// Keeps records in one file of this machine.
pub struct EmbeddedBackend {
    file: Arc<StoreFile>,
    writer: Writer,
    /// The newest change on disk.
    changed: watch::Receiver<ChangeCounter>,
}

impl EmbeddedBackend {
    /// Opens the store file, or makes one, readable by its owner alone. One process has it open at a time.
    ///
    /// # Errors
    /// [`OpenEmbeddedError`] says what is in the way. A file that is not a store is left as it is, and the content of
    /// one that is a store, too.
    pub async fn open(path: &Path) -> Result<Self, OpenEmbeddedError> {
        let path = path.to_path_buf();
        let file = Arc::new(StoreFile::open(path).await?);
        let (newest_change, changed) = watch::channel(ChangeCounter::default());
        let writer = Writer::start(Arc::clone(&file), newest_change.clone())
            .map_err(|source| OpenEmbeddedError::Io { path: file.path().to_path_buf(), source })?;
        let backend = Self { file, writer, changed };
        if let Ok(counter) = backend.read(ReadTables::counter).await {
            newest_change.send_replace(counter); // nobody writes yet
        }
        Ok(backend)
    }

    /// One record of a file that is there, read without changing a byte: opening a file, as [`Self::open`] does, marks
    /// it as open. `None` if there is no such record, or if only opening can tell: no store, in use, or left behind by
    /// a process that was killed.
    pub async fn peek(path: &Path, key: &RecordKey) -> Option<Sealed> {
        let (path, key) = (path.to_path_buf(), key.clone());
        tokio::task::spawn_blocking(move || file::peek(&path, &key)).await.ok()?
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTables) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        match tokio::task::spawn_blocking(move || file.read(read)).await {
            Ok(outcome) => outcome,
            Err(_panicked) => Err(self.file.unreadable()),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        write: impl FnMut(&mut WriteTables<'_>) -> Result<T, redb::StorageError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.write(write).await
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        let wanted = key.clone();
        let found = self.read(move |tables| tables.load(&wanted)).await?;
        let damaged = |fault: &str| StoreError::Damaged { key: key.clone(), fault: fault.to_owned() };
        found.transpose().map_err(damaged)
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        let key = key.clone();
        self.write(move |tables| tables.create(&key, &value, times)).await
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        let key = key.clone();
        self.write(move |tables| tables.replace(&key, expected, &next, due_at)).await
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        let key = key.clone();
        self.write(move |tables| tables.delete(&key, expected)).await
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        let key = key.clone();
        self.write(move |tables| tables.take(&key)).await
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let after = after.map(str::to_owned);
        self.read(move |tables| tables.list(kind, after.as_deref(), limit)).await
    }

    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        self.read(move |tables| tables.changes(after)).await
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        let after = after.cloned();
        self.read(move |tables| tables.due(kind, after.as_ref(), until, limit)).await
    }

    /// Told by the thread that writes.
    async fn changed(&self, after: ChangeCounter) {
        let mut changed = self.changed.clone();
        if changed.wait_for(|newest| *newest > after).await.is_err() {
            std::future::pending::<()>().await; // that thread is gone, and with it whatever it could tell
        }
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let part = self.write(move |tables| tables.sweep(now, SWEEP_MAX)).await?;
            forgotten += part as u64;
            if part < SWEEP_MAX {
                return Ok(forgotten);
            }
        }
    }
}

impl fmt::Debug for EmbeddedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmbeddedBackend({})", self.file.path().display())
    }
}

/// Records that a sweep forgets in one transaction, so that other writers do not wait for a long one.
const SWEEP_MAX: usize = 256;
