//! Group commit. redb admits one write transaction at a time and each ends in an fsync, so one thread does all the
//! writing: what arrives while it syncs goes into its next transaction together.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use bearerd_store::{ChangeCounter, StoreError};
use redb::StorageError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{file::StoreFile, tables::WriteTables};

/// Hands writes to the thread. Dropping it waits until the thread has finished what it was given.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// One write, and who waits for it.
trait Job: Send {
    fn apply(&mut self, tables: &mut WriteTables<'_>) -> Result<(), StorageError>;
    /// Tells the outcome, once that of the transaction is known.
    fn settle(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Pending<T, W> {
    write: W,
    outcome: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, W> Job for Pending<T, W>
where
    T: Send,
    W: FnMut(&mut WriteTables<'_>) -> Result<T, StorageError> + Send,
{
    fn apply(&mut self, tables: &mut WriteTables<'_>) -> Result<(), StorageError> {
        self.outcome = Some((self.write)(tables)?);
        Ok(())
    }

    fn settle(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { outcome, reply, .. } = *self;
        drop(reply.send(committed.and_then(|()| outcome.ok_or_else(unsettled)))); // the caller may be gone; the write stands
    }
}

impl Writer {
    /// `changed` is told the last change of each transaction that is on disk.
    pub(crate) fn start(file: Arc<StoreFile>, changed: watch::Sender<ChangeCounter>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let run = move || run(&file, receiver, &changed);
        let thread = thread::Builder::new().name("bearerd-store".to_owned()).spawn(run)?;
        Ok(Self { jobs: Some(sender), thread: Some(thread) })
    }

    /// Once the write is handed over it happens, whether or not its caller still waits.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        write: impl FnMut(&mut WriteTables<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(Box::new(Pending { write, outcome: None, reply })).await.map_err(|_| stopped())?;
        outcome.await.unwrap_or_else(|_| Err(unsettled()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // at most one queue's worth of commits; a panic in it was told to its callers
        }
    }
}

fn run(file: &StoreFile, mut jobs: mpsc::Receiver<Box<dyn Job>>, changed: &watch::Sender<ChangeCounter>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while jobs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let mut newest_change = None;
        let all = || {
            file.write(|tables| {
                batch.iter_mut().try_for_each(|job| job.apply(tables))?;
                newest_change = tables.newest_change();
                Ok(())
            })
        };
        let committed = catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|_| {
            file.discard_current(); // redb met pages that were altered from outside; it is not asked again as it is
            Err(StoreError::OutcomeUnknown("writing the store file failed: it may be damaged".to_owned()))
        });
        if let (Ok(()), Some(newest)) = (&committed, newest_change) {
            changed.send_replace(newest);
        }
        for job in batch.drain(..) {
            job.settle(committed.clone());
        }
    }
}

fn stopped() -> StoreError {
    StoreError::Unreachable("the writer of the store file has stopped".to_owned())
}

fn unsettled() -> StoreError {
    StoreError::OutcomeUnknown("the writer of the store file stopped in between".to_owned())
}

/// Writes that share a transaction: far more than ever wait at once, and few enough that none waits long.
const BATCH_MAX: usize = 256;
/// Writes that wait to be taken up; further callers wait to hand theirs over.
const QUEUE_MAX: usize = 1_024;
