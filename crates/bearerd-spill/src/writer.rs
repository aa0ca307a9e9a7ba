//! Group commit. Each write ends in an fsync, so one thread does all the writing: what arrives while it syncs goes into
//! its next write together.

use std::{io, sync::Arc, thread};

use tokio::sync::{mpsc, oneshot};

use crate::{
    index::{Place, UnderWay},
    log::Log,
};

/// Hands entries to the thread. Dropping it waits until the thread has finished what it was given.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The thread is gone.
pub(crate) struct Stopped;

type Outcome = Result<(), Arc<io::Error>>;

enum Job {
    Keep { frame: Vec<u8>, under_way: UnderWay, reply: oneshot::Sender<Outcome> },
    Tidy,
}

impl Writer {
    pub(crate) fn start(log: Log) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let thread =
            thread::Builder::new().name("bearerd-spill".to_owned()).spawn(move || run(log, receiver))?;
        Ok(Self { jobs: Some(sender), thread: Some(thread) })
    }

    /// Once the entry is handed over it is written, whether or not its caller still waits.
    pub(crate) async fn keep(&self, frame: Vec<u8>, under_way: UnderWay) -> Result<Outcome, Stopped> {
        let (reply, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(Stopped)?;
        jobs.send(Job::Keep { frame, under_way, reply }).await.map_err(|_| Stopped)?;
        outcome.await.map_err(|_| Stopped)
    }

    /// Asks the thread to look at what was settled. Where its queue is full it looks by itself soon.
    pub(crate) fn tidy(&self) {
        if let Some(jobs) = &self.jobs {
            drop(jobs.try_send(Job::Tidy));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // at most one queue's worth of writes; a panic in it was told to its callers
        }
    }
}

fn run(mut log: Log, mut jobs: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut frames = Vec::new();
    while jobs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        for job in &batch {
            if let Job::Keep { frame, .. } = job {
                frames.extend_from_slice(frame);
            }
        }
        let written = if frames.is_empty() { Ok((0, 0)) } else { log.append(&frames).map_err(Arc::new) };
        settle(batch.drain(..), &written);
        frames.clear();
        frames.shrink_to(FRAMES_KEPT_BYTES);
        log.tidy();
    }
}

/// Tells everyone of the batch, whose frames begin at the place `written`, how it ended.
fn settle(batch: impl Iterator<Item = Job>, written: &Result<(u64, u64), Arc<io::Error>>) {
    let mut offset = 0;
    for job in batch {
        let Job::Keep { frame, under_way, reply } = job else { continue };
        let bytes = frame.len() as u64;
        let outcome = match written {
            Ok((segment, first)) => {
                under_way.arrived(Place { segment: *segment, at: first + offset, bytes });
                Ok(())
            }
            Err(error) => Err(Arc::clone(error)),
        };
        offset += bytes;
        drop(reply.send(outcome)); // the caller may be gone; the entry is kept
    }
}

/// Entries that share an fsync: far more than ever wait at once, and few enough that none waits long.
const BATCH_MAX: usize = 256;
/// Entries that wait to be taken up; further callers wait to hand theirs over.
const QUEUE_MAX: usize = 1_024;
/// Room for a full batch of usual records, kept from batch to batch.
const FRAMES_KEPT_BYTES: usize = 1 << 20;
