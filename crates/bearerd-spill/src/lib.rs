//! The spill: a local log, fsynced, of sealed connection records that the store has not, or not yet certainly, taken. A
//! refresh token that rotated is never in memory alone (I-1).
//!
//! Entries go in with [`Spill::keep`] and go out with [`Spill::settle`], once the store holds the same state of the
//! connection or a later one. What a crash leaves is offered to the store at the next start ([`Found`]); a settled entry
//! may be offered once more, which is harmless: versions decide.
//!
//! # The folder
//!
//! | file | what it is |
//! |---|---|
//! | `lock` | held by the process that uses the folder |
//! | `node` | this node's id, sixteen hexadecimal digits |
//! | `spill-<n>.log` | a segment of the log; a later one has the greater number |
//! | `spill-<n>.unfinished` | a segment that a crash left half-made; removed at the next start |
//! | `spill-<n>.damaged` | a segment with entries that do not read, kept for whoever wants to look; may be deleted |
//!
//! A folder belongs to one node: a copy of it would be a second node of the same id.
//!
//! # What a crash can do
//!
//! Entries are only ever appended. After a failed write or fsync nobody knows what of the file is on disk, and asking
//! again proves nothing, so that segment gets no more entries: the next one goes on. For the same reason a start
//! writes what it finds into a segment of its own. A segment is removed when the entries that still count stand,
//! fsynced, in another, whose name is fsynced too.

mod folder;
mod framing;
mod index;
mod log;
mod writer;

use std::{fmt, io, path::Path, path::PathBuf, sync::Arc};

use bearerd_crypto::Sealed;
use bearerd_model::{ConnectionId, GrantVersion};

use crate::{folder::Folder, index::SharedIndex, log::Log, writer::Writer};

/// The open log. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Spill {
    node: u64,
    path: Arc<Path>,
    index: SharedIndex,
    writer: Arc<Writer>,
}

/// A connection's sealed record, and which state of the connection it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillEntry {
    pub id: ConnectionId,
    pub version: GrantVersion,
    pub sealed: Sealed,
}

/// What was in the log when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The newest version of each connection, by id. They stay in the log until they are settled.
    pub entries: Vec<SpillEntry>,
    /// Length of the torn ends that were cut: writes that a crash cut short, which nobody was told had happened.
    pub cut_bytes: u64,
    /// Entries that do not read although others follow: the disk has altered them. Their segment is set aside.
    pub damaged: u64,
}

/// Why the log was not opened. Each is one sentence for the operator, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenSpillError {
    #[error("the spill folder {} is in use: stop the other process, or give this one a folder of its own", folder.display())]
    InUse { folder: PathBuf },
    #[error("the spill folder {} cannot be made, as the folder it belongs in does not exist: create that, writable by the user that runs bearerd", folder.display())]
    ParentMissing { folder: PathBuf },
    #[error("the spill folder {} is not a folder: name another one", folder.display())]
    NotAFolder { folder: PathBuf },
    #[error("no permission to read and write the spill folder {}: give it to the user that runs bearerd", folder.display())]
    NoPermission { folder: PathBuf, source: io::Error },
    #[error("the disk of the spill folder {} is full: make room, or name a folder on another disk", folder.display())]
    Full { folder: PathBuf, source: io::Error },
    #[error("{} has format {format}, which this bearerd does not know: run the newer one", path.display())]
    UnknownFormat { path: PathBuf, format: u32 },
    #[error("the spill folder {} cannot be opened", folder.display())]
    Io { folder: PathBuf, source: io::Error },
}

/// Why an entry was not kept. It may be found on disk later nevertheless, which is harmless. `Clone` because one failure
/// is told to all that shared the write.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpillError {
    #[error("the disk of the spill folder {} is full: make room", folder.display())]
    Full { folder: Arc<Path>, source: Arc<io::Error> },
    #[error("the spill folder {} cannot be written: make it writable for the user that runs bearerd", folder.display())]
    NotWritable { folder: Arc<Path>, source: Arc<io::Error> },
    #[error("writing to the spill folder {} failed: check its disk", folder.display())]
    Io { folder: Arc<Path>, source: Arc<io::Error> },
    #[error("the record of connection {id} is larger than a connection's record can be")]
    TooLarge { id: ConnectionId },
    #[error("the writer of the spill folder {} has stopped: restart bearerd", folder.display())]
    Stopped { folder: Arc<Path> },
}

impl Spill {
    /// Opens the log in `folder`, which is made, accessible to its owner alone, if it is missing. One process has it
    /// open at a time. What was found is put in order: torn ends are cut, damaged segments set aside.
    ///
    /// # Errors
    /// [`OpenSpillError`] says what is in the way. Neither damage nor a full disk is where a log is there already.
    pub async fn open(folder: &Path) -> Result<(Self, Found), OpenSpillError> {
        let path = folder.to_path_buf();
        let opening = move || {
            let folder = Folder::open(&path)?;
            let node = folder.node().map_err(|error| OpenSpillError::of_io(&path, error))?;
            Self::start(&path, node, folder)
        };
        tokio::task::spawn_blocking(opening).await.unwrap_or_else(|stopped| {
            Err(OpenSpillError::Io { folder: folder.to_path_buf(), source: io::Error::other(stopped) })
        })
    }

    fn start(path: &Path, node: u64, disk: impl folder::Disk) -> Result<(Self, Found), OpenSpillError> {
        let index = SharedIndex::default();
        let (log, found) = Log::open(path, disk, index.clone())?;
        let writer = Writer::start(log).map_err(|error| OpenSpillError::of_io(path, error))?;
        Ok((Self { node, path: path.into(), index, writer: Arc::new(writer) }, found))
    }

    /// This node's id: drawn when the folder was made, the same over restarts.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// Puts the entry on disk, fsynced. Entries that arrive together share an fsync. Once the entry is handed to the
    /// writer, at the first poll unless a thousand wait before it, it is kept even if the call is dropped.
    ///
    /// # Errors
    /// [`SpillError`] says why the entry may not be on disk; the next call tries anew.
    pub async fn keep(&self, entry: SpillEntry) -> Result<(), SpillError> {
        let Some(frame) = framing::encode(&entry) else { return Err(SpillError::TooLarge { id: entry.id }) };
        let under_way = self.index.begin(entry.id, entry.version);
        match self.writer.keep(frame, under_way).await {
            Ok(outcome) => outcome.map_err(|error| self.failed(error)),
            Err(writer::Stopped) => Err(SpillError::Stopped { folder: Arc::clone(&self.path) }),
        }
    }

    /// The store holds this version of the connection, or a later one. Waits for no disk: a crash may forget it, and
    /// then the entry is offered once more.
    pub fn settle(&self, id: &ConnectionId, version: GrantVersion) {
        if self.index.settle(id, version) {
            self.writer.tidy();
        }
    }

    /// Connections whose newest entry is not settled.
    pub fn unsettled(&self) -> usize {
        self.index.unsettled()
    }

    fn failed(&self, source: Arc<io::Error>) -> SpillError {
        let folder = Arc::clone(&self.path);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                SpillError::Full { folder, source }
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => {
                SpillError::NotWritable { folder, source }
            }
            _ => SpillError::Io { folder, source },
        }
    }
}

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spill({})", self.path.display())
    }
}

impl OpenSpillError {
    fn of_io(folder: &Path, source: io::Error) -> Self {
        let folder = folder.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::ParentMissing { folder },
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Self::NotAFolder { folder },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NoPermission { folder, source }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { folder, source },
            _ => Self::Io { folder, source },
        }
    }
}
