//! The log as the binary starts and ends it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};

use crate::{
    metrics::AccessMetrics,
    queue::{AccessWriter, Queue},
    rolling_file::RollingFile,
    scribe::Scribe,
    settings::{AccessSettings, AccessSettingsError, SinkKind},
    sink::{Sink, Stream},
};

/// Why the log cannot be begun. Each is one sentence for the operator, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Settings(#[from] AccessSettingsError),
    #[error("the access file {} cannot be made, as its folder does not exist: create that, writable by the user that runs bearerd", path.display())]
    FolderMissing { path: PathBuf },
    #[error("no permission to write the access file {}: give it and its folder to the user that runs bearerd", path.display())]
    NoPermission { path: PathBuf, source: io::Error },
    #[error("{} is not a regular file: let access.path name one, or set access.sink to stdout", path.display())]
    NotAFile { path: PathBuf },
    #[error("the access file {} cannot be opened", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("standard output cannot be written to: set access.sink to file or none")]
    Stdout(#[source] io::Error),
    #[error("the thread that writes access records could not be started")]
    Thread(#[source] io::Error),
}

/// The log of access records: its sink, and the thread that writes to it. Dropping it writes what was handed over, without
/// waiting for that; [`Self::shutdown`] waits.
#[derive(Debug)]
pub struct AccessLog {
    /// None: there is no sink.
    running: Option<Running>,
    metrics: AccessMetrics,
}

struct Running {
    queue: Arc<Queue>,
    ended: oneshot::Receiver<()>,
}

impl AccessLog {
    /// Opens the sink and starts the thread. It needs no runtime around it.
    ///
    /// # Errors
    /// [`AccessError`] says what is in the way. A full disk is not: it is waited for.
    pub fn start(settings: &AccessSettings) -> Result<Self, AccessError> {
        settings.check()?;
        match settings.sink {
            SinkKind::None => Ok(Self { running: None, metrics: AccessMetrics::default() }),
            SinkKind::Stdout => {
                let sink = Stream::stdout().map_err(AccessError::Stdout)?;
                Self::start_with(settings, Box::new(sink), RETRY_PAUSE)
            }
            SinkKind::File => {
                let path = &settings.path;
                let sink = RollingFile::open(path, settings.file_bytes_max, settings.files_max)
                    .map_err(|error| AccessError::of_io(path, error))?;
                Self::start_with(settings, Box::new(sink), RETRY_PAUSE)
            }
        }
    }

    fn start_with(
        settings: &AccessSettings,
        sink: Box<dyn Sink>,
        retry_pause: Duration,
    ) -> Result<Self, AccessError> {
        let metrics = AccessMetrics::default();
        let queue = Arc::new(Queue::new(settings.queue_records, settings.on_stall, metrics.clone()));
        let scribe = Scribe::new(Arc::clone(&queue), sink, retry_pause);
        let (ending, ended) = oneshot::channel();
        let run = move || {
            let _ending = ending; // dropped however this ends
            scribe.run();
        };
        thread::Builder::new().name("access-records".to_owned()).spawn(run).map_err(AccessError::Thread)?;
        Ok(Self { running: Some(Running { queue, ended }), metrics })
    }

    /// A worker's end of it.
    pub fn writer(&self) -> AccessWriter {
        AccessWriter::new(self.running.as_ref().map(|running| Arc::clone(&running.queue)))
    }

    /// For the process's registry.
    pub fn metrics(&self) -> AccessMetrics {
        self.metrics.clone()
    }

    /// Writes all that was handed over, within `limit`; the rest is dropped and counted. To be called when the workers have
    /// dropped their writers: what these still hold, or are given later, is dropped and counted too. A sink that is stuck in a
    /// write is left behind with its thread.
    pub async fn shutdown(mut self, limit: Duration) {
        let Some(mut running) = self.running.take() else { return };
        let dropped_before = self.metrics.dropped();
        running.queue.close(Instant::now() + limit);
        let ended = timeout(limit + GIVING_UP, &mut running.ended).await;
        running.queue.end();
        let records = self.metrics.dropped() - dropped_before;
        if records > 0 || ended.is_err() {
            tracing::warn!(
                records,
                "{records} access records were dropped: their sink took nothing at the end"
            );
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.close(Instant::now());
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

impl AccessError {
    fn of_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::FolderMissing { path },
            io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput => Self::NotAFile { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NoPermission { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

/// For the thread to notice that its time is over.
const GIVING_UP: Duration = Duration::from_millis(100);
/// Between attempts at a sink that fails, such as a full disk: somebody has to do something first.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
