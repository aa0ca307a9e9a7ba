//! The one thread that formats and writes.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    line::{LINE_BYTES_MAX, Lines},
    queue::{Batch, Ended, Queue},
    sink::{Place, Sink},
};

pub(crate) struct Scribe {
    queue: Arc<Queue>,
    sink: Box<dyn Sink>,
    lines: Lines,
    /// Lines not yet written, the bytes of them that are, and how many they are.
    buffer: Vec<u8>,
    done: usize,
    held: usize,
    /// Formatted; go back to the workers.
    empty: Vec<Batch>,
    retry_pause: Duration,
    failing: bool,
    told: Told,
}

/// What the operator was last told about dropped records.
struct Told {
    dropped: u64,
    at: Instant,
}

impl Scribe {
    pub(crate) fn new(queue: Arc<Queue>, sink: Box<dyn Sink>, retry_pause: Duration) -> Self {
        Self {
            queue,
            sink,
            lines: Lines::default(),
            buffer: Vec::with_capacity(WRITE_BYTES + LINE_BYTES_MAX),
            done: 0,
            held: 0,
            empty: Vec::new(),
            retry_pause,
            failing: false,
            told: Told { dropped: 0, at: Instant::now() },
        }
    }

    /// Returns when the log is closed and all is written, or its time is over.
    pub(crate) fn run(mut self) {
        let mut taken = VecDeque::new();
        while self.queue.take(&mut taken).is_ok() {
            if self.write_all(&mut taken).is_err() {
                // Of the lines in hand, those that are whole at the far side are written.
                let whole = self.buffer[..self.done].split(|byte| *byte == b'\n').count() - 1;
                let _ = self.queue.settle(whole, &mut self.empty);
                break;
            }
            self.tell_dropped(Instant::now());
        }
        self.queue.end();
    }

    fn write_all(&mut self, taken: &mut VecDeque<Batch>) -> Result<(), Ended> {
        for mut batch in taken.drain(..) {
            for record in &batch {
                self.lines.append(record, &mut self.buffer);
                self.held += 1;
                if self.buffer.len() >= WRITE_BYTES {
                    self.put()?;
                }
            }
            batch.clear();
            self.empty.push(batch);
        }
        self.put()
    }

    /// Writes the buffer, however long that takes.
    fn put(&mut self) -> Result<(), Ended> {
        while let Err(error) = self.try_put() {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.queue.pause(SLOW_READER_PAUSE)?;
            } else {
                self.failed(&error);
                self.queue.pause(self.retry_pause)?;
            }
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!("access records are written to {} again", self.sink.name());
        }
        self.queue.settle(self.held, &mut self.empty)?;
        (self.done, self.held) = (0, 0);
        self.buffer.clear();
        Ok(())
    }

    fn try_put(&mut self) -> io::Result<()> {
        let line_start =
            self.buffer[..self.done].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let left = (self.buffer.len() - self.done) as u64;
        if self.sink.prepare(left, line_start < self.done)? == Place::Fresh {
            self.done = line_start;
        }
        while self.done < self.buffer.len() {
            match self.sink.write(&self.buffer[self.done..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) {
        self.queue.metrics.write_errors.inc();
        if !self.failing {
            let name = self.sink.name();
            tracing::error!(%error, "access records cannot be written to {name}, which is tried again: {error}");
        }
        self.failing = true;
    }

    fn tell_dropped(&mut self, now: Instant) {
        let dropped = self.queue.metrics.dropped();
        if dropped > self.told.dropped && now.duration_since(self.told.at) >= TELL_EVERY {
            let records = dropped - self.told.dropped;
            tracing::warn!(
                records,
                "{records} access records were dropped: {} is too slow",
                self.sink.name()
            );
            self.told = Told { dropped, at: now };
        }
    }
}

/// A write of this size costs the system little more than its bytes; several fit into the cache.
const WRITE_BYTES: usize = 64 * 1024;
/// Standard output that does not block, and whose reader is behind.
const SLOW_READER_PAUSE: Duration = Duration::from_millis(10);
/// A sink that is too slow is so for long.
const TELL_EVERY: Duration = Duration::from_mins(1);
