//! What a record costs: its worker, to fill in and hand over; the scribe, to format and write; and `serde_json`, to format.
//!
//! `cargo run --release -p bearerd-audit --example record-cost [FILE]`, or with `-` for standard output, sent where it shall
//! go; it says what it measured on standard error. Times are CPU times; of some, the least of many rounds, and the middle one.

#![expect(clippy::print_stderr, reason = "it prints what it measured")]

use std::{fs, hint::black_box, net::IpAddr, time::Duration};

use bearerd_audit::{AccessLog, AccessRecord, AccessSettings, HttpVersion, OnStall, SinkKind, Text};
use bearerd_model::UnixTime;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).unwrap_or_else(|| "access.jsonl".to_owned());
    let settings = AccessSettings {
        sink: if place == "-" { SinkKind::Stdout } else { SinkKind::File },
        path: place.into(),
        on_stall: OnStall::Block,
        ..AccessSettings::default()
    };
    let log = AccessLog::start(&settings)?;
    let (metrics, mut writer) = (log.metrics(), log.writer());
    let (mut filling, mut handing, mut formatting) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Both with what a call has at hand: slices.
        let began = thread_cpu();
        for number in 0..BURST {
            black_box(&record(black_box(round * BURST + number)));
        }
        filling.push(thread_cpu().saturating_sub(began));
        let began = thread_cpu();
        for number in 0..BURST {
            writer.record(&record(black_box(round * BURST + number)));
        }
        handing.push(thread_cpu().saturating_sub(began));
        while metrics.written() < (round + 1) * BURST {
            writer.flush();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let scribe = scribe_cpu()?.as_nanos() / u128::from(ROUNDS * BURST);
    let record = record(7);
    let mut out = Vec::new();
    for _ in 0..ROUNDS {
        let began = thread_cpu();
        for _ in 0..BURST {
            out.clear();
            serde_json::to_writer(&mut out, &Line::of(black_box(&record)))?;
            black_box(&out);
        }
        formatting.push(thread_cpu().saturating_sub(began));
    }
    eprintln!("a line has {} bytes", out.len() + 1);
    eprintln!("worker, to fill a record in:                  {}", shown(&mut filling));
    eprintln!("worker, to fill it in and hand it over:       {}", shown(&mut handing));
    eprintln!("scribe, to format and write it, over all:     {scribe} ns");
    eprintln!("serde_json, to format it alone:               {}", shown(&mut formatting));
    Ok(())
}

fn record(number: u64) -> AccessRecord {
    AccessRecord {
        started_at: UnixTime::from_millis(1_795_894_042_042 + number / 30),
        request_id: Text::new(black_box("7f3k2m9q-00000001")),
        caller_key: Text::new(black_box("k3y1d0000000")),
        connection: Text::new(black_box("hr-prod")),
        generation: Some(7),
        policy: Text::new(black_box("hr-readers")),
        rule: Some(0),
        family: Text::new("table"),
        table: Text::new(black_box("incident")),
        method: Text::new(black_box("GET")),
        status: 200,
        bytes_out: 1_024,
        decided_us: Some(31),
        first_byte_us: Some(48_211),
        total_us: 48_377,
        traceparent: Text::new(black_box("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
        transaction_id: Text::new(black_box("5d2c1f7a8b3e")),
        source: Some([10, 1, 200, 0].into()),
        http: HttpVersion::Http11,
        ..AccessRecord::default()
    }
}

/// Per record.
fn shown(rounds: &mut [Duration]) -> String {
    rounds.sort_unstable();
    let per_record = |time: Duration| time.as_nanos() / u128::from(BURST);
    format!("{} ns (middle: {} ns)", per_record(rounds[0]), per_record(rounds[rounds.len() / 2]))
}

/// CPU time of this thread so far.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// CPU time of the scribe so far.
fn scribe_cpu() -> Result<Duration, Box<dyn std::error::Error>> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "access-records" {
            let figures = fs::read_to_string(task.join("schedstat"))?;
            let nanos = figures.split(' ').next().unwrap_or_default().parse()?;
            return Ok(Duration::from_nanos(nanos));
        }
    }
    Err("the scribe has ended".into())
}

/// The same line by derive.
#[derive(Serialize)]
struct Line<'a> {
    time: Time,
    request_id: &'a str,
    caller_key: &'a str,
    connection: &'a str,
    generation: Option<u64>,
    policy: &'a str,
    rule: Option<u16>,
    family: &'a str,
    table: &'a str,
    method: &'a str,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    decided_us: Option<u64>,
    first_byte_us: Option<u64>,
    total_us: u64,
    traceparent: &'a str,
    transaction_id: &'a str,
    source: Option<IpAddr>,
    http: &'a str,
}

struct Time(UnixTime);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = i64::try_from(self.0.as_millis()).unwrap_or_default();
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
        serializer.collect_str(&format_args!("{time:.3}"))
    }
}

impl<'a> Line<'a> {
    fn of(record: &'a AccessRecord) -> Self {
        Self {
            time: Time(record.started_at),
            request_id: record.request_id.as_str(),
            caller_key: record.caller_key.as_str(),
            connection: record.connection.as_str(),
            generation: record.generation,
            policy: record.policy.as_str(),
            rule: record.rule,
            family: record.family.as_str(),
            table: record.table.as_str(),
            method: record.method.as_str(),
            status: record.status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            decided_us: record.decided_us,
            first_byte_us: record.first_byte_us,
            total_us: record.total_us,
            traceparent: record.traceparent.as_str(),
            transaction_id: record.transaction_id.as_str(),
            source: record.source,
            http: "1.1",
        }
    }
}

const ROUNDS: u64 = 800;
/// What the scribe is woken for.
const BURST: u64 = 1_024;
