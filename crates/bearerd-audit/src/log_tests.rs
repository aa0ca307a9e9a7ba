//! The whole log over sinks that fail, stall, and take a part: what was given is written or counted as dropped, once.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, PipeReader, Read},
    os::fd::OwnedFd,
    sync::Mutex,
};

use proptest::{collection::vec, prelude::*};
use serde_json::Value;

use super::*;
use crate::{record::AccessRecord, settings::OnStall, sink::Place, text::Text};

/// A far side that does what a script says, and then takes everything.
#[derive(Debug, Clone, Default)]
struct Scripted(Arc<Mutex<Far>>);

#[derive(Debug, Default)]
struct Far {
    files: Vec<Vec<u8>>,
    script: Vec<Act>,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// Takes at most so many bytes.
    Take(usize),
    /// Fails; what was written stays.
    Fail(io::ErrorKind),
    /// Is another file from here on.
    Move,
}

impl Scripted {
    fn new(mut script: Vec<Act>) -> Self {
        script.reverse();
        Self(Arc::new(Mutex::new(Far { files: vec![Vec::new()], script })))
    }

    /// The numbers of the records whose lines are whole, by worker; panics if one is there twice or does not parse.
    fn numbers(&self) -> BTreeSet<(u64, u64)> {
        let far = self.0.lock().unwrap();
        let mut numbers = BTreeSet::new();
        for file in &far.files {
            // What was torn when the file was left is written anew in the next.
            let whole = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in file[..whole].split_inclusive(|byte| *byte == b'\n') {
                assert!(numbers.insert(number(line)), "twice: {}", String::from_utf8_lossy(line));
            }
        }
        numbers
    }
}

impl Sink for Scripted {
    fn prepare(&mut self, _bytes: u64, _mid_line: bool) -> io::Result<Place> {
        let mut far = self.0.lock().unwrap();
        if let Some(Act::Move) = far.script.last() {
            far.script.pop();
            far.files.push(Vec::new());
            return Ok(Place::Fresh);
        }
        Ok(Place::Same)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut far = self.0.lock().unwrap();
        let most = match far.script.pop() {
            Some(Act::Fail(kind)) => return Err(kind.into()),
            Some(Act::Take(most)) => most.min(bytes.len()),
            Some(Act::Move) => return Err(io::ErrorKind::NotFound.into()), // seen when it is prepared
            None => bytes.len(),
        };
        far.files.last_mut().unwrap().extend_from_slice(&bytes[..most]);
        Ok(most)
    }

    fn name(&self) -> String {
        "a script".to_owned()
    }
}

/// Which record a line is of: its worker and its number.
fn number(line: &[u8]) -> (u64, u64) {
    let value: Value = serde_json::from_slice(line).unwrap();
    (value["bytes_in"].as_u64().unwrap(), value["bytes_out"].as_u64().unwrap())
}

fn record(worker: u64, number: u64) -> AccessRecord {
    AccessRecord {
        bytes_in: worker,
        bytes_out: number,
        request_id: Text::new("a request id of some length"),
        ..AccessRecord::default()
    }
}

fn settings(on_stall: OnStall) -> AccessSettings {
    AccessSettings { on_stall, queue_records: 1_024, ..AccessSettings::default() }
}

fn start(on_stall: OnStall, sink: impl Sink + 'static) -> AccessLog {
    AccessLog::start_with(&settings(on_stall), Box::new(sink), Duration::from_millis(1)).unwrap()
}

/// Lets each worker, a thread, give its records; blocked, it waits for room as a worker of the door does.
fn give(log: &AccessLog, workers: &[u64]) {
    thread::scope(|scope| {
        for (worker, records) in (0..).zip(workers) {
            let mut writer = log.writer();
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                for number in 0..*records {
                    runtime.block_on(writer.room());
                    writer.record(&record(worker, number));
                    if number % 100 == 99 {
                        writer.flush();
                    }
                }
            });
        }
    });
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        thread::yield_now();
    }
}

const LONG: Duration = Duration::from_secs(30);

fn an_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_usize..40_000).prop_map(Act::Take),
        2 => prop::sample::select(vec![
            io::ErrorKind::StorageFull,
            io::ErrorKind::Interrupted,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::BrokenPipe,
        ]).prop_map(Act::Fail),
        1 => Just(Act::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The invariant: with any number of workers, and whatever the sink does, written and dropped are what was given, and
    /// the lines at the far side are those counted as written, each once and whole.
    #[test]
    fn written_and_dropped_are_what_was_given(
        script in vec(an_act(), 0..40),
        workers in vec(0_u64..3_000, 1..4),
        blocks in any::<bool>(),
    ) {
        let sink = Scripted::new(script);
        let on_stall = if blocks { OnStall::Block } else { OnStall::DropAndCount };
        let log = start(on_stall, sink.clone());
        let metrics = log.metrics();
        give(&log, &workers);
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(log.shutdown(LONG));
        let numbers = sink.numbers();
        prop_assert_eq!(metrics.written() + metrics.dropped(), workers.iter().sum::<u64>());
        prop_assert_eq!(metrics.written(), numbers.len() as u64);
        prop_assert_eq!(metrics.queued.get(), 0);
        if blocks {
            prop_assert_eq!(metrics.dropped(), 0);
        }
    }
}

/// A sink that fails until the end: its time is over, and the count is exact, to the line that is half there.
#[tokio::test]
async fn a_sink_that_never_recovers_is_given_up_at_the_end() {
    for on_stall in [OnStall::DropAndCount, OnStall::Block] {
        let mut script = vec![Act::Take(1_000)];
        script.extend(std::iter::repeat_n(Act::Fail(io::ErrorKind::StorageFull), 100_000));
        let sink = Scripted::new(script);
        let log = start(on_stall, sink.clone());
        let metrics = log.metrics();
        give(&log, &[300]);
        log.shutdown(Duration::from_millis(50)).await;
        let whole = {
            let far = sink.0.lock().unwrap();
            assert_eq!(far.files[0].len(), 1_000);
            far.files[0].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).count()
                as u64
        };
        assert!(whole > 0);
        assert_eq!((metrics.written(), metrics.dropped()), (whole, 300 - whole));
        assert!(metrics.write_errors() > 0);
    }
}

#[tokio::test]
async fn a_tick_is_enough_for_a_line_to_be_written() {
    let sink = Scripted::new(Vec::new());
    let log = start(OnStall::DropAndCount, sink.clone());
    let (metrics, mut writer) = (log.metrics(), log.writer());
    // Half a batch; and a whole one, for which alone nobody is woken.
    for (records, sum) in [(1, 1), (128, 129), (128, 257), (3, 260)] {
        for _ in 0..records {
            writer.record(&record(0, metrics.written()));
        }
        writer.flush();
        wait_until("the records of a tick are written", || metrics.written() == sum);
    }
    drop(writer);
    log.shutdown(LONG).await;
}

/// A log that nobody shuts down, as when the daemon does not start, still writes what it was given.
#[test]
fn a_dropped_log_writes_what_it_has() {
    let sink = Scripted::new(Vec::new());
    let log = start(OnStall::DropAndCount, sink.clone());
    let metrics = log.metrics();
    give(&log, &[500]);
    drop(log);
    wait_until("all is written", || metrics.written() == 500);
    assert_eq!(sink.numbers().len(), 500);
}

#[tokio::test]
async fn without_a_sink_nothing_is_made_or_counted() {
    let log =
        AccessLog::start(&AccessSettings { sink: SinkKind::None, ..AccessSettings::default() }).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    writer.record(&record(0, 0));
    writer.flush();
    assert!(!writer.is_stalled());
    writer.room().await;
    drop(writer);
    log.shutdown(LONG).await;
    assert_eq!((metrics.written(), metrics.dropped()), (0, 0));
}

/// A pipe, as standard output often is.
fn pipe() -> (PipeReader, Stream) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, Stream::of(File::from(OwnedFd::from(writer)), "a pipe"))
}

/// A pipe that nobody reads holds up no worker and not the end; what it had taken is whole lines but for the last.
#[tokio::test]
async fn a_pipe_that_nobody_reads_drops_and_counts() {
    let (mut reader, sink) = pipe();
    let log = start(OnStall::DropAndCount, sink);
    let metrics = log.metrics();
    let workers = [20_000, 20_000, 20_000];
    give(&log, &workers);
    assert!(metrics.dropped() > 0);
    log.shutdown(Duration::from_millis(50)).await;
    assert_eq!(metrics.written() + metrics.dropped(), 60_000);
    // The stuck write ends with the pipe; what it brought was already counted as dropped.
    let read = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let bytes = read.join().unwrap();
    let lines: BTreeSet<_> = bytes.split_inclusive(|byte| *byte == b'\n').map(number).collect();
    assert!(lines.len() as u64 >= metrics.written());
    assert_eq!(metrics.written() + metrics.dropped(), 60_000);
}

/// `block`: the same pipe holds up the workers until somebody reads, and then brings everything.
#[tokio::test]
async fn a_pipe_that_is_read_late_blocks_and_loses_nothing() {
    let (reader, sink) = pipe();
    let log = start(OnStall::Block, sink);
    let metrics = log.metrics();
    let workers = [10_000, 10_000];
    let numbers = thread::scope(|scope| {
        let (log, metrics) = (&log, &metrics);
        let giving = scope.spawn(move || give(log, &workers));
        wait_until("the workers are blocked", || metrics.blocked() > 0);
        assert!(!giving.is_finished());
        let reading = scope.spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.take(20_000).map(|line| number(line.as_bytes())).collect::<BTreeSet<_>>()
        });
        giving.join().unwrap();
        reading.join().unwrap()
    });
    log.shutdown(LONG).await;
    assert_eq!(numbers.len(), 20_000);
    assert_eq!((metrics.written(), metrics.dropped()), (20_000, 0));
}

/// A reader that left does not come back, and ends nothing but the records.
#[tokio::test]
async fn a_pipe_without_a_reader_is_an_error_that_is_counted() {
    let (reader, sink) = pipe();
    drop(reader);
    let log = start(OnStall::DropAndCount, sink);
    let metrics = log.metrics();
    give(&log, &[10_000]);
    wait_until("the error is counted", || metrics.write_errors() > 0);
    log.shutdown(Duration::from_millis(50)).await;
    assert_eq!((metrics.written(), metrics.dropped()), (0, 10_000));
}
