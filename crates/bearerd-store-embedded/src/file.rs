//! The file itself: opened, made, locked, and opened again after the disk failed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bearerd_crypto::Sealed;
use bearerd_store::{RecordKey, StoreError};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, StorageError, WriteTransaction, backends::FileBackend,
};

use crate::tables::{FORMAT_VERSION, ReadTables, WriteTables};

/// Why a store file was not opened. Each is one sentence for the operator, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenEmbeddedError {
    #[error("the store file {} is in use: stop the other process, or give this one a store of its own", path.display())]
    InUse { path: PathBuf },
    #[error("the folder of the store file {} does not exist: create it, writable by the user that runs bearerd", path.display())]
    FolderMissing { path: PathBuf },
    #[error("no permission to read and write the store file {}: give it to the user that runs bearerd", path.display())]
    NoPermission { path: PathBuf, source: io::Error },
    #[error("{} is not a bearerd store: it was left as it is; name another file", path.display())]
    NotAStore { path: PathBuf },
    #[error("the store file {} is damaged ({detail}): restore it from a backup", path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error("the store file {} has format {format}, which is newer than this bearerd: run the newer one", path.display())]
    NewerFormat { path: PathBuf, format: u64 },
    #[error("the store file {} cannot be opened", path.display())]
    Io { path: PathBuf, source: io::Error },
}

type Opener = Box<dyn Fn() -> Result<Database, OpenEmbeddedError> + Send + Sync>;

/// The open database. After an I/O error redb answers nothing more until it is opened again, and the disk may have
/// room again a minute later: so whoever meets the error discards the database, and the next call opens it.
pub(crate) struct StoreFile {
    path: PathBuf,
    open: Opener,
    current: Mutex<Option<Arc<Database>>>,
}

impl StoreFile {
    pub(crate) async fn open(path: PathBuf) -> Result<Self, OpenEmbeddedError> {
        let opener_path = path.clone();
        Self::open_with(path, Box::new(move || open_database(&opener_path))).await
    }

    async fn open_with(path: PathBuf, open: Opener) -> Result<Self, OpenEmbeddedError> {
        // redb may panic on a file that was altered from outside.
        match tokio::task::spawn_blocking(move || open().map(|database| (database, open))).await {
            Ok(Ok((database, open))) => {
                Ok(Self { path, open, current: Mutex::new(Some(Arc::new(database))) })
            }
            Ok(Err(error)) => Err(error),
            Err(_panicked) => {
                Err(OpenEmbeddedError::Damaged { path, detail: "its pages contradict each other".to_owned() })
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Blocks.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTables) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database()?;
        let begin = || -> Result<ReadTables, redb::Error> { Ok(ReadTables::open(&database.begin_read()?)?) };
        begin().and_then(|tables| read(&tables)).map_err(|error| {
            self.discard_after(&error, &database);
            self.failed(&error)
        })
    }

    /// Runs `apply` in a transaction of its own and puts it on disk. Blocks.
    pub(crate) fn write(
        &self,
        apply: impl FnOnce(&mut WriteTables<'_>) -> Result<(), StorageError>,
    ) -> Result<(), StoreError> {
        let database = self.database()?;
        let prepared = begin_write(&database).and_then(|transaction| {
            let mut tables = WriteTables::open(&transaction)?;
            apply(&mut tables)?;
            let changed = tables.changed();
            drop(tables);
            Ok((transaction, changed))
        });
        let (transaction, changed) = prepared.map_err(|error| {
            self.discard_after(&error, &database);
            self.failed(&error)
        })?;
        if !changed {
            return transaction.abort().map_err(|error| self.failed(&error.into()));
        }
        transaction.commit().map_err(|error| {
            let error = redb::Error::from(error);
            self.discard_after(&error, &database);
            let path = self.path.display();
            StoreError::OutcomeUnknown(format!("writing the store file {path} failed: {error}"))
        })
    }

    pub(crate) fn unreadable(&self) -> StoreError {
        StoreError::Unreachable(format!(
            "the store file {} is damaged: restore it from a backup",
            self.path.display()
        ))
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = current.as_ref() {
            return Ok(Arc::clone(database));
        }
        let database = (self.open)().map(Arc::new).map_err(|error| match error {
            // A call that began before the failure has not ended yet.
            OpenEmbeddedError::InUse { path } => {
                StoreError::Unreachable(format!("the store file {} is being opened again", path.display()))
            }
            error => StoreError::Unreachable(error.to_string()),
        })?;
        tracing::info!(path = %self.path.display(), "opened the store file again after a failure");
        Ok(Arc::clone(current.insert(database)))
    }

    pub(crate) fn discard_current(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn discard_after(&self, error: &redb::Error, failed: &Arc<Database>) {
        if !matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)) {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|database| Arc::ptr_eq(database, failed)) {
            *current = None;
        }
    }

    /// For failures before a commit: nothing was written.
    fn failed(&self, error: &redb::Error) -> StoreError {
        let text = format!("the store file {}: {error}", self.path.display());
        match error {
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::FileTooLarge
                        | io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::PermissionDenied
                ) =>
            {
                StoreError::Refused(text)
            }
            redb::Error::Corrupted(_) => self.unreadable(),
            _ => StoreError::Unreachable(text),
        }
    }
}

fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn open_database(path: &Path) -> Result<Database, OpenEmbeddedError> {
    let file = open_or_make(path)?;
    let backend = FileBackend::new(file).map_err(|error| of_database(path, error))?;
    prepare(path, Builder::new().set_cache_size(CACHE_BYTES_MAX).create_with_backend(backend))
}

/// See [`EmbeddedBackend::peek`](crate::EmbeddedBackend::peek). Blocks.
pub(crate) fn peek(path: &Path, key: &RecordKey) -> Option<Sealed> {
    let database = Builder::new().set_cache_size(PEEK_CACHE_BYTES_MAX).open_read_only(path).ok()?;
    let tables = ReadTables::open(&database.begin_read().ok()?).ok()?;
    Some(tables.load(key).ok()??.ok()?.1)
}

/// Makes the tables of a new file; checks whose file an old one is, and adds what a later format has.
fn prepare(path: &Path, opened: Result<Database, DatabaseError>) -> Result<Database, OpenEmbeddedError> {
    let database = opened.map_err(|error| of_database(path, error))?;
    let damaged = |error: redb::Error| match error {
        redb::Error::Io(source) => of_io(path, source),
        error => OpenEmbeddedError::Damaged { path: path.to_path_buf(), detail: error.to_string() },
    };
    let transaction = begin_write(&database).map_err(damaged)?;
    let names: Vec<String> = transaction
        .list_tables()
        .map_err(|error| damaged(error.into()))?
        .map(|table| redb::TableHandle::name(&table).to_owned())
        .collect();
    if !names.is_empty() && !names.iter().any(|name| name == "counters") {
        return Err(OpenEmbeddedError::NotAStore { path: path.to_path_buf() });
    }
    let mut tables = match WriteTables::open(&transaction) {
        Ok(tables) => tables,
        Err(redb::TableError::Storage(error)) => return Err(damaged(error.into())),
        Err(_another_type) => return Err(OpenEmbeddedError::NotAStore { path: path.to_path_buf() }),
    };
    let format = tables.migrate().map_err(|error| damaged(error.into()))?;
    drop(tables);
    if format > FORMAT_VERSION {
        return Err(OpenEmbeddedError::NewerFormat { path: path.to_path_buf(), format });
    }
    transaction.commit().map_err(|error| damaged(error.into()))?;
    Ok(database)
}

/// Opens the file; where there is none, makes it first.
fn open_or_make(path: &Path) -> Result<File, OpenEmbeddedError> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
        opened => return opened.map_err(|error| of_io(path, error)),
    }
    open().map_err(|error| of_io(path, error))
}

/// Makes a store file, readable and writable by its owner alone. It gets its name when it is whole: whoever is killed
/// before leaves nothing in its place, and what another process has put there meanwhile stays.
fn make(path: &Path) -> Result<(), OpenEmbeddedError> {
    let failed = |error| of_io(path, error);
    // A link that leads to no file yet goes on leading there.
    let path = &fs::read_link(path).map_or_else(|_| path.to_path_buf(), |target| folder(path).join(target));
    let unfinished =
        tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(folder(path)).map_err(failed)?;
    let file = unfinished.as_file().try_clone().map_err(failed)?;
    let backend = FileBackend::new(file).map_err(|error| of_database(path, error))?;
    drop(prepare(path, Builder::new().create_with_backend(backend))?); // closes it in order
    unfinished.as_file().sync_all().map_err(failed)?;
    match unfinished.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        persisted => drop(persisted.map_err(|error| failed(error.error))?),
    }
    File::open(folder(path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn of_io(path: &Path, source: io::Error) -> OpenEmbeddedError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => OpenEmbeddedError::FolderMissing { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenEmbeddedError::NoPermission { path, source }
        }
        io::ErrorKind::InvalidData => OpenEmbeddedError::NotAStore { path },
        io::ErrorKind::UnexpectedEof => {
            OpenEmbeddedError::Damaged { path, detail: "it is cut short".to_owned() }
        }
        _ => OpenEmbeddedError::Io { path, source },
    }
}

fn of_database(path: &Path, error: DatabaseError) -> OpenEmbeddedError {
    let owned = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenEmbeddedError::InUse { path: owned }
        }
        DatabaseError::Storage(StorageError::Io(source)) => of_io(path, source),
        error => OpenEmbeddedError::Damaged { path: owned, detail: error.to_string() },
    }
}

/// Begins the name of a store file that is not whole yet.
const UNFINISHED_PREFIX: &str = ".bearerd-unfinished-";
/// Pages kept in memory. What is in use is in the memory of the token engine; these are the ways to it. redb's own
/// default is 1 GiB.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// A few pages lead to one record.
const PEEK_CACHE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bearerd_crypto::Sealed;
    use bearerd_store::{Kind, RecordKey, Times};
    use redb::StorageBackend;

    use super::*;

    /// F-08: a disk that fails when told.
    #[derive(Debug)]
    struct FailingDisk {
        file: FileBackend,
        fails: Arc<AtomicBool>,
    }

    impl FailingDisk {
        fn answer(&self) -> io::Result<()> {
            if self.fails.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for FailingDisk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.answer()?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.answer()?;
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.answer()?;
            self.file.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }

    async fn on_failing_disk(path: &Path) -> (StoreFile, Arc<AtomicBool>) {
        let fails = Arc::new(AtomicBool::new(false));
        let (opener_path, disk_fails) = (path.to_path_buf(), Arc::clone(&fails));
        let open = move || {
            let file = FileBackend::new(open_or_make(&opener_path)?).unwrap();
            let disk = FailingDisk { file, fails: Arc::clone(&disk_fails) };
            prepare(&opener_path, Builder::new().create_with_backend(disk))
        };
        (StoreFile::open_with(path.to_path_buf(), Box::new(open)).await.unwrap(), fails)
    }

    fn create(file: &StoreFile, id: &str) -> Result<(), StoreError> {
        let key = RecordKey::new(Kind::Connection, id);
        file.write(|tables| {
            tables.create(&key, &Sealed::from_bytes(vec![1; 10_000]), Times::default()).map(drop)
        })
    }

    fn ids(file: &StoreFile) -> Result<Vec<String>, StoreError> {
        let records = file.read(|tables| tables.list(Kind::Connection, None, 100))?;
        Ok(records.into_iter().map(|record| record.id).collect())
    }

    /// The disk is full for a while. The write under way is in doubt, nothing before it is lost, and when there is
    /// room again the store goes on without a restart.
    #[tokio::test]
    async fn a_full_disk_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let (file, fails) = on_failing_disk(&folder.path().join("store")).await;
        create(&file, "before").unwrap();
        fails.store(true, Ordering::SeqCst);
        let error = create(&file, "during").unwrap_err();
        assert!(matches!(error, StoreError::OutcomeUnknown(_)), "{error}");
        for _ in 0..3 {
            let error = create(&file, "while-full").unwrap_err();
            assert!(!matches!(error, StoreError::OutcomeUnknown(_)), "nothing was tried: {error}");
        }
        fails.store(false, Ordering::SeqCst);
        create(&file, "after").unwrap();
        let found = ids(&file).unwrap();
        assert!(["after", "before"].iter().all(|id| found.iter().any(|found| found == id)), "{found:?}");
        assert!(!found.iter().any(|id| id == "while-full"));
    }

    #[test]
    fn each_obstacle_has_its_sentence() {
        let path = Path::new("/data/store");
        for (kind, sentence) in [
            (io::ErrorKind::NotFound, "the folder of the store file /data/store does not exist"),
            (io::ErrorKind::PermissionDenied, "no permission to read and write the store file /data/store"),
            (io::ErrorKind::ReadOnlyFilesystem, "no permission to read and write the store file /data/store"),
            (io::ErrorKind::InvalidData, "/data/store is not a bearerd store"),
            (io::ErrorKind::UnexpectedEof, "the store file /data/store is damaged (it is cut short)"),
            (io::ErrorKind::IsADirectory, "the store file /data/store cannot be opened"),
        ] {
            let text = of_io(path, kind.into()).to_string();
            assert!(text.starts_with(sentence), "{text}");
        }
        let text = of_database(path, DatabaseError::DatabaseAlreadyOpen).to_string();
        assert!(text.starts_with("the store file /data/store is in use"), "{text}");
    }
}
