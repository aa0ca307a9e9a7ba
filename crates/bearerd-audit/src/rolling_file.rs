//! A file that is rolled: `access.jsonl` is written, `access.jsonl.1` is the one before, and so on. Whoever else moves or
//! removes the file (logrotate) is noticed with the next write.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::sink::{Place, Sink};

#[derive(Debug)]
pub(crate) struct RollingFile {
    path: PathBuf,
    /// 0: not rolled.
    bytes_max: u64,
    /// With the one being written.
    files_max: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    id: FileId,
    /// What somebody wrote before us ends inside a line.
    torn: bool,
}

/// Device and inode.
type FileId = (u64, u64);

impl RollingFile {
    /// # Errors
    /// The file can neither be opened nor made, or is something else than a file.
    pub(crate) fn open(path: &Path, bytes_max: u64, files_max: u32) -> io::Result<Self> {
        let (open, _) = Open::at(path)?;
        Ok(Self { path: path.to_path_buf(), bytes_max, files_max, open: Some(open) })
    }

    /// The file's length, if it still is the one that is open.
    fn length(&self) -> io::Result<Option<u64>> {
        let Some(open) = &self.open else { return Ok(None) };
        match fs::metadata(&self.path) {
            Ok(found) if id(&found) == open.id => Ok(Some(found.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn reopen(&mut self) -> io::Result<u64> {
        self.open = None;
        let (open, length) = Open::at(&self.path)?;
        self.open = Some(open);
        Ok(length)
    }

    /// Moves every file one number up; the last one goes. Where a number is free, those above it stay: an attempt that failed
    /// half-way, and is made again, costs no file.
    fn roll(&self) -> io::Result<()> {
        let last = self.files_max - 1;
        let mut free = 1;
        while free < last && is_there(&self.numbered(free))? {
            free += 1;
        }
        for number in (1..free).rev() {
            fs::rename(self.numbered(number), self.numbered(number + 1))?;
        }
        fs::rename(&self.path, self.numbered(1))?;
        // Left by a greater files_max of before.
        let mut beyond = self.files_max;
        while is_there(&self.numbered(beyond))? {
            fs::remove_file(self.numbered(beyond))?;
            beyond += 1;
        }
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Sink for RollingFile {
    fn prepare(&mut self, bytes: u64, mid_line: bool) -> io::Result<Place> {
        let (mut place, mut length) = match self.length()? {
            Some(length) => (Place::Same, length),
            None => (Place::Fresh, self.reopen()?),
        };
        let is_full = self.bytes_max > 0 && length > 0 && length.saturating_add(bytes) > self.bytes_max;
        // A line is finished in the file in which it was begun.
        if is_full && (place == Place::Fresh || !mid_line) {
            self.roll()?;
            length = self.reopen()?;
            place = Place::Fresh;
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.torn) {
            if length > 0 {
                open.file.write_all(b"\n")?;
            }
            open.torn = false;
        }
        Ok(place)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.open {
            Some(open) => open.file.write(bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Open {
    /// Opens or makes the file; gives its length too.
    fn at(path: &Path) -> io::Result<(Self, u64)> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let torn = match found.len().checked_sub(1) {
            Some(last) => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, last)?;
                byte != *b"\n"
            }
            None => false,
        };
        Ok((Self { file, id: id(&found), torn }, found.len()))
    }
}

fn id(found: &Metadata) -> FileId {
    (found.dev(), found.ino())
}

fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// For its owner, and for the group to read: what ships logs.
const MODE: u32 = 0o640;
