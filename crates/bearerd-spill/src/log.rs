//! The segments of the log: appended to, closed after a failure, compacted, emptied. One thread does it all.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bearerd_model::ConnectionId;

use crate::{
    Found, OpenSpillError, SpillEntry,
    folder::Disk,
    framing::{self, HEADER_BYTES, NewerFormat},
    index::{DEAD_BYTES_MIN, Kept, LogSize, Place, SharedIndex, Tidying},
};

pub(crate) struct Log {
    disk: Box<dyn Disk>,
    path: PathBuf,
    index: SharedIndex,
    /// Gets the next entries; everything in it is fsynced. `None` until there are any.
    active: Option<Active>,
    /// Those that get no more entries, oldest first.
    closed: Vec<Closed>,
    /// Number of the next segment. None is given twice.
    next: u64,
    /// Length of all frames that were appended since the start.
    appended_bytes: u64,
    /// No tidying before that much was appended: the last one failed.
    hold_until_bytes: u64,
}

struct Active {
    number: u64,
    file: File,
    bytes: u64,
}

struct Closed {
    number: u64,
    bytes: u64,
    /// Holds entries that do not read.
    damaged: bool,
}

impl Log {
    /// Reads what is there and puts it in order.
    pub(crate) fn open(
        path: &Path,
        disk: impl Disk,
        index: SharedIndex,
    ) -> Result<(Self, Found), OpenSpillError> {
        let mut log = Self {
            disk: Box::new(disk),
            path: path.to_path_buf(),
            index,
            active: None,
            closed: Vec::new(),
            next: 1,
            appended_bytes: 0,
            hold_until_bytes: 0,
        };
        let found = log.read()?;
        log.report(&found);
        if !log.closed.is_empty() {
            let tidied = if found.entries.is_empty() { log.empty() } else { log.compact() };
            log.hold_after(tidied);
        }
        log.tidy();
        Ok((log, found))
    }

    /// Puts the frames on disk and says where the first of them begins: its segment and place in it. After a failure
    /// the entries before them are as they were.
    pub(crate) fn append(&mut self, frames: &[u8]) -> io::Result<(u64, u64)> {
        if let Some(active) = self.active.take() {
            match self.append_to(&active, frames) {
                Ok(()) => {
                    let at = active.bytes;
                    let number = active.number;
                    self.active = Some(Active { bytes: at + frames.len() as u64, ..active });
                    self.appended_bytes += frames.len() as u64;
                    return Ok((number, at));
                }
                Err(error) => self.close(&active, &error),
            }
        }
        self.begin_segment(frames)
    }

    /// Makes the log smaller where that is worth it.
    pub(crate) fn tidy(&mut self) {
        loop {
            let tidied = match self.index.look(self.size()) {
                Tidying::Needless => return,
                Tidying::Empty => self.empty(),
                Tidying::Compact => self.compact(),
            };
            self.hold_after(tidied);
        }
    }

    fn read(&mut self) -> Result<Found, OpenSpillError> {
        let failed = |error| OpenSpillError::of_io(&self.path, error);
        let names = self.disk.names().map_err(failed)?;
        for name in names.iter().filter(|name| number(name, UNFINISHED).is_some()) {
            drop(self.disk.remove(name)); // it is in nobody's way, as no number is given twice
        }
        let numbers = names.iter().filter_map(|name| Some(number(name, "")?.max(1)));
        self.next = numbers.max().map_or(1, |last| last.saturating_add(1));
        let mut segments: Vec<u64> = names.iter().filter_map(|name| number(name, LOG)).collect();
        segments.sort_unstable();

        let mut found = Found::default();
        let mut newest: BTreeMap<ConnectionId, SpillEntry> = BTreeMap::new();
        for number in segments {
            let name = name_of(number, LOG);
            let bytes = self.disk.read(&name).map_err(failed)?;
            let parsed = framing::parse(&bytes).map_err(|NewerFormat(format)| {
                OpenSpillError::UnknownFormat { path: self.path.join(&name), format }
            })?;
            found.cut_bytes += parsed.torn_bytes;
            found.damaged += parsed.damaged;
            self.closed.push(Closed { number, bytes: bytes.len() as u64, damaged: parsed.damaged > 0 });
            for framing::ParsedEntry { at, bytes, entry } in parsed.entries {
                let place = Place { segment: number, at, bytes };
                self.index.put(&entry.id, Kept { version: entry.version, place });
                match newest.get(&entry.id) {
                    Some(before) if before.version > entry.version => {}
                    _ => drop(newest.insert(entry.id.clone(), entry)),
                }
            }
        }
        found.entries = newest.into_values().collect();
        Ok(found)
    }

    fn report(&self, found: &Found) {
        let folder = self.path.display();
        let Found { entries, cut_bytes, damaged } = found;
        if *cut_bytes > 0 {
            tracing::warn!(%folder, cut_bytes, "cut a torn end of {cut_bytes} bytes from the spill log in {folder}");
        }
        if *damaged > 0 {
            tracing::warn!(%folder, damaged, "{damaged} entries of the spill log in {folder} are damaged: check its disk");
        }
        if !entries.is_empty() {
            let count = entries.len();
            tracing::info!(%folder, count, "the spill log in {folder} holds records of {count} connections");
        }
    }

    fn append_to(&self, active: &Active, frames: &[u8]) -> io::Result<()> {
        let name = name_of(active.number, LOG);
        self.disk.append(&name, &active.file, frames)?;
        self.disk.sync(&name, &active.file)
    }

    /// What of the failed write is on disk is unknown, so nothing more goes into this segment. Cutting it back makes
    /// room and keeps out what was told as not kept; that it may fail is why the segment is closed.
    fn close(&mut self, active: &Active, error: &io::Error) {
        let folder = self.path.display();
        tracing::warn!(%folder, error = error as &dyn std::error::Error, "writing the spill log in {folder} failed");
        drop(self.disk.truncate(&name_of(active.number, LOG), &active.file, active.bytes));
        self.closed.push(Closed { number: active.number, bytes: active.bytes, damaged: false });
    }

    fn begin_segment(&mut self, frames: &[u8]) -> io::Result<(u64, u64)> {
        let (number, name) = self.next_name(LOG);
        let file = self.disk.create(&name)?;
        let content = [&framing::header(), frames].concat();
        let bytes = content.len() as u64;
        let write = || {
            self.disk.append(&name, &file, &content)?;
            self.disk.sync(&name, &file)?;
            self.disk.sync_names()
        };
        if let Err(error) = write() {
            if self.disk.remove(&name).is_err() {
                self.closed.push(Closed { number, bytes, damaged: false });
            }
            return Err(error);
        }
        self.active = Some(Active { number, file, bytes });
        self.appended_bytes += frames.len() as u64;
        Ok((number, HEADER_BYTES as u64))
    }

    /// Removes everything; nothing in it counts.
    fn empty(&mut self) -> io::Result<()> {
        self.retire_closed()?;
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let bytes = HEADER_BYTES as u64;
        if let Err(error) = self.disk.truncate(&name_of(active.number, LOG), &active.file, bytes) {
            self.closed.push(Closed { number: active.number, bytes: active.bytes, damaged: false });
            return Err(error);
        }
        active.bytes = bytes;
        self.active = Some(active);
        Ok(())
    }

    /// Writes what counts into a new segment and removes the others once that one is on disk, name and all.
    fn compact(&mut self) -> io::Result<()> {
        let (content, moves) = self.copy_of_kept(self.next)?;
        let (number, unfinished) = self.next_name(UNFINISHED);
        let name = name_of(number, LOG);
        let file = self.disk.create(&unfinished)?;
        let write = || {
            self.disk.append(&unfinished, &file, &content)?;
            self.disk.sync(&unfinished, &file)?;
            self.disk.rename(&unfinished, &name)?;
            self.disk.sync_names()
        };
        if let Err(error) = write() {
            drop((self.disk.remove(&unfinished), self.disk.remove(&name))); // one of them is there
            return Err(error);
        }
        self.index.moved(&moves);
        let active = Active { number, file, bytes: content.len() as u64 };
        if let Some(before) = self.active.replace(active) {
            self.closed.push(Closed { number: before.number, bytes: before.bytes, damaged: false });
        }
        self.retire_closed()
    }

    /// The content of segment `number`, made of what counts, and where each entry of it comes to stand.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn copy_of_kept(&self, number: u64) -> io::Result<(Vec<u8>, Vec<(ConnectionId, Kept, Place)>)> {
        let mut content = framing::header().to_vec();
        let mut moves = Vec::new();
        let mut source: Option<(u64, Vec<u8>)> = None;
        for (id, kept) in self.index.kept() {
            let Place { segment, at, bytes } = kept.place;
            let from = match source {
                Some((number, from)) if number == segment => from,
                _ => self.disk.read(&name_of(segment, LOG))?,
            };
            let frame = usize::try_from(at).ok().and_then(|at| from.get(at..)).and_then(|from| {
                let (entry, length) = framing::decode(from)?;
                (entry.id == id && entry.version == kept.version).then_some(&from[..length])
            });
            let Some(frame) = frame else {
                let text = format!("the entry of connection {id} does not read any more");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            };
            moves.push((id, kept, Place { segment: number, at: content.len() as u64, bytes }));
            content.extend_from_slice(frame);
            source = Some((segment, from));
        }
        Ok((content, moves))
    }

    fn retire_closed(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        for closed in std::mem::take(&mut self.closed) {
            let name = name_of(closed.number, LOG);
            let retired = if closed.damaged {
                self.disk.rename(&name, &name_of(closed.number, DAMAGED))
            } else {
                self.disk.remove(&name)
            };
            match retired {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.closed.push(closed);
                    outcome = Err(error);
                }
                _ => {}
            }
        }
        outcome
    }

    fn hold_after(&mut self, tidied: io::Result<()>) {
        let Err(error) = tidied else { return };
        let folder = self.path.display();
        let error = &error as &dyn std::error::Error;
        tracing::warn!(%folder, error, "the spill log in {folder} could not be made smaller; it goes on as it is");
        self.hold_until_bytes = self.appended_bytes + DEAD_BYTES_MIN;
    }

    fn size(&self) -> LogSize {
        let active = self.active.as_ref().map_or(0, |active| active.bytes - HEADER_BYTES as u64);
        LogSize {
            bytes: active + self.closed.iter().map(|closed| closed.bytes).sum::<u64>(),
            closed: self.closed.len(),
            on_hold: self.appended_bytes < self.hold_until_bytes,
        }
    }

    fn next_name(&mut self, ending: &str) -> (u64, String) {
        let number = self.next;
        self.next += 1;
        (number, name_of(number, ending))
    }
}

fn name_of(number: u64, ending: &str) -> String {
    format!("{PREFIX}{number}{ending}")
}

/// The number of the segment that `name` is, if it ends so; an empty ending means any of ours.
fn number(name: &str, ending: &str) -> Option<u64> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = match ending {
        "" => [LOG, UNFINISHED, DAMAGED].iter().find_map(|ending| rest.strip_suffix(ending))?,
        ending => rest.strip_suffix(ending)?,
    };
    digits.parse().ok()
}

const PREFIX: &str = "spill-";
const LOG: &str = ".log";
const UNFINISHED: &str = ".unfinished";
const DAMAGED: &str = ".damaged";

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
