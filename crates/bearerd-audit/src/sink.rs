//! Where lines go, as the scribe sees it.

use std::{fs::File, io, io::Write, os::fd::AsFd};

/// A place for lines. Its calls may take as long as the place takes: only the scribe waits for them.
pub(crate) trait Sink: Send {
    /// Called before the first of some writes that are `bytes` long together, and again after one has failed. `mid_line`: the
    /// bytes before ended inside a line.
    ///
    /// # Errors
    /// The sink is not there at the moment.
    fn prepare(&mut self, bytes: u64, mid_line: bool) -> io::Result<Place>;

    /// # Errors
    /// Nothing was written. `WouldBlock`: only that it takes nothing right now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// For the log.
    fn name(&self) -> String;
}

/// Whether the next byte goes behind the one written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Same,
    /// Another file: a line that was begun is written anew.
    Fresh,
}

/// What was open when the process began.
#[derive(Debug)]
pub(crate) struct Stream {
    file: File,
    name: &'static str,
}

impl Stream {
    /// Standard output, past the standard library's lock and buffer.
    ///
    /// # Errors
    /// It is closed, or the process has too many open files.
    pub(crate) fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self::of(file, "standard output"))
    }

    pub(crate) fn of(file: File, name: &'static str) -> Self {
        Self { file, name }
    }
}

impl Sink for Stream {
    fn prepare(&mut self, _bytes: u64, _mid_line: bool) -> io::Result<Place> {
        Ok(Place::Same)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }
}
