//! The folder on disk: its lock, the node's id, and the few things that are done to its files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bearerd_crypto::random_bytes;

use crate::OpenSpillError;

/// What the log does to its files. Each is named within the folder.
pub(crate) trait Disk: Send + 'static {
    fn names(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file that is not there yet, for appending, readable and writable by its owner alone.
    fn create(&self, name: &str) -> io::Result<File>;
    fn append(&self, name: &str, file: &File, bytes: &[u8]) -> io::Result<()>;
    fn truncate(&self, name: &str, file: &File, bytes: u64) -> io::Result<()>;
    fn sync(&self, name: &str, file: &File) -> io::Result<()>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Puts on disk what was made, renamed and removed.
    fn sync_names(&self) -> io::Result<()>;
}

/// A folder of this machine, locked for this process.
pub(crate) struct Folder {
    path: PathBuf,
    handle: File,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenSpillError> {
        let failed = |error| OpenSpillError::of_io(path, error);
        make(path).map_err(failed)?;
        let handle = File::open(path).map_err(failed)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), handle, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenSpillError::InUse { folder: path.to_path_buf() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The node's id; drawn if there is none, or none that reads: a new one costs waiting for the deadlines of what the
    /// node had begun, and no more.
    pub(crate) fn node(&self) -> io::Result<u64> {
        match fs::read_to_string(self.path.join(NODE)) {
            Ok(text) => match u64::from_str_radix(text.trim_end(), 16) {
                Ok(node) => return Ok(node),
                Err(_) => self.warn_of_node(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => self.warn_of_node(),
            Err(error) => return Err(error),
        }
        let node = u64::from_be_bytes(*random_bytes::<8>());
        match fs::remove_file(self.path.join(NODE_UNFINISHED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.create(NODE_UNFINISHED)?;
        (&file).write_all(format!("{node:016x}\n").as_bytes())?;
        file.sync_all()?;
        self.rename(NODE_UNFINISHED, NODE)?;
        self.sync_names()?;
        Ok(node)
    }

    fn warn_of_node(&self) {
        let folder = self.path.display();
        tracing::warn!(%folder, "the node id in the spill folder {folder} does not read: this node gets a new one");
    }
}

impl Disk for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        // A name that is no text is none of ours.
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(FILE_MODE).open(self.path.join(name))
    }

    fn append(&self, _name: &str, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn truncate(&self, _name: &str, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    fn sync(&self, _name: &str, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(parent).and_then(|parent| parent.sync_all()) {
        // A folder may be writable and not readable. Journalling file systems put the name on disk with the first file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

const LOCK: &str = "lock";
const NODE: &str = "node";
const NODE_UNFINISHED: &str = "node.unfinished";
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
