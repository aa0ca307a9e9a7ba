//! What a record costs: its worker, to fill in and hand over; the scribe, to format and write; and `serde_json`, to format.
//!
//! `cargo run --release -p bearerd-audit --example record-cost [FILE]`, or with `-` for standard output, sent where it shall
//! go; it says what it measured on standard error. Times are CPU times but for the worker's, who never waits.

#![expect(clippy::print_stderr, reason = "it prints what it measured")]

use std::{
    fs,
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use bearerd_audit::{AccessLog, AccessRecord, AccessSettings, HttpVersion, OnStall, SinkKind, Text};
use bearerd_model::UnixTime;
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
    let mut filling = Duration::ZERO;
    let mut handing = Duration::ZERO;
    for round in 0..ROUNDS {
        // Both with what a call has at hand: slices.
        let began = Instant::now();
        for number in 0..BURST {
            black_box(record(black_box(round * BURST + number)));
        }
        filling += began.elapsed();
        let began = Instant::now();
        for number in 0..BURST {
            writer.record(record(black_box(round * BURST + number)));
        }
        handing += began.elapsed();
        while metrics.written() < (round + 1) * BURST {
            writer.flush();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let records = ROUNDS * BURST;
    let per_record = |time: Duration| time.as_nanos() / u128::from(records);
    eprintln!("worker: {} ns to fill a record in", per_record(filling));
    eprintln!("worker: {} ns to fill it in and hand it over", per_record(handing));
    eprintln!("scribe: {} ns of CPU to format and write it", per_record(scribe_cpu()?));

    let record = record(7);
    let mut out = Vec::new();
    let began = Instant::now();
    for _ in 0..records {
        out.clear();
        serde_json::to_writer(&mut out, &Line::of(black_box(&record)))?;
        black_box(&out);
    }
    eprintln!("serde_json: {} ns to format it, {} bytes", per_record(began.elapsed()), out.len() + 1);
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

const ROUNDS: u64 = 100;
/// Less than the queue holds.
const BURST: u64 = 8_192;
