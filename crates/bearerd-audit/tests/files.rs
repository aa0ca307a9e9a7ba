//! Access records in real files: rolled, moved by others, torn, on a full disk.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use bearerd_audit::{
    AccessError, AccessLog, AccessMetrics, AccessRecord, AccessSettings, AccessWriter, OnStall, SinkKind,
    Text,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(30);

fn settings(path: &Path) -> AccessSettings {
    AccessSettings {
        sink: SinkKind::File,
        path: path.to_path_buf(),
        on_stall: OnStall::Block,
        queue_records: 1_024,
        ..AccessSettings::default()
    }
}

/// A record whose line has some 650 bytes.
fn record(number: u64) -> AccessRecord {
    let long = "0123456789abcdef".repeat(5);
    AccessRecord {
        bytes_out: number,
        request_id: Text::new(&long),
        connection: Text::new(&long),
        policy: Text::new(&long),
        table: Text::new(&long),
        traceparent: Text::new(&long),
        transaction_id: Text::new(&long),
        ..AccessRecord::default()
    }
}

/// Gives records `from` to `to`, and returns when they are written.
fn give(writer: &mut AccessWriter, metrics: &AccessMetrics, from: u64, to: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let before = metrics.written();
    for number in from..to {
        runtime.block_on(writer.room());
        writer.record(&record(number));
    }
    let began = Instant::now();
    while metrics.written() < before + (to - from) {
        assert!(began.elapsed() < LONG, "the records are written");
        writer.flush();
        thread::yield_now();
    }
}

fn shutdown(log: AccessLog, limit: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(log.shutdown(limit));
}

/// The numbers of the records in a file; panics if a line is not whole.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{} is torn", path.display());
    let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["bytes_out"].as_u64().unwrap();
    text.lines().map(number).collect()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}", path.display()))
}

/// Rolled at its size, oldest last, without a line lost, and never larger than was said.
#[test]
fn a_file_that_is_rolled_loses_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let log =
        AccessLog::start(&AccessSettings { file_bytes_max: MIB, files_max: 50, ..settings(&path) }).unwrap();
    let mut writer = log.writer();
    give(&mut writer, &log.metrics(), 0, 12_000);
    drop(writer);
    shutdown(log, LONG);
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert!(files >= 7, "{files}");
    let mut found = Vec::new();
    for number in (1..u32::try_from(files).unwrap()).rev() {
        let rolled = numbered(&path, number);
        let length = fs::metadata(&rolled).unwrap().len();
        assert!((MIB / 2..=MIB).contains(&length), "{length}");
        found.extend(numbers(&rolled));
    }
    found.extend(numbers(&path));
    assert_eq!(found, (0..12_000).collect::<Vec<_>>());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

/// … and at most `files_max` are kept: the newest lines, without a gap; also where more were kept before.
#[test]
fn at_most_so_many_files_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    for number in 1..=5 {
        fs::write(numbered(&path, number), "").unwrap();
    }
    let log =
        AccessLog::start(&AccessSettings { file_bytes_max: MIB, files_max: 3, ..settings(&path) }).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    give(&mut writer, &metrics, 0, 12_000);
    drop(writer);
    shutdown(log, LONG);
    let names: BTreeSet<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["access.jsonl", "access.jsonl.1", "access.jsonl.2"].map(Into::into).into());
    let found = [numbers(&numbered(&path, 2)), numbers(&numbered(&path, 1)), numbers(&path)].concat();
    assert_eq!(found, (12_000 - found.len() as u64..12_000).collect::<Vec<_>>());
    assert_eq!(metrics.written(), 12_000);
}

/// logrotate moves the file, with or without making a new one, or an operator removes it: the next line is in a new file.
#[test]
fn a_file_that_others_move_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let moved = folder.path().join("moved");
    let log = AccessLog::start(&settings(&path)).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    give(&mut writer, &metrics, 0, 300);
    fs::rename(&path, &moved).unwrap();
    give(&mut writer, &metrics, 300, 310);
    assert_eq!((numbers(&moved), numbers(&path)), ((0..300).collect(), (300..310).collect()));
    fs::rename(&path, &moved).unwrap();
    fs::write(&path, "").unwrap();
    give(&mut writer, &metrics, 310, 320);
    assert_eq!((numbers(&moved), numbers(&path)), ((300..310).collect(), (310..320).collect()));
    fs::remove_file(&path).unwrap();
    give(&mut writer, &metrics, 320, 330);
    assert_eq!(numbers(&path), (320..330).collect::<Vec<_>>());
    // copytruncate
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    give(&mut writer, &metrics, 330, 340);
    assert_eq!(numbers(&path), (330..340).collect::<Vec<_>>());
    drop(writer);
    shutdown(log, LONG);
    assert_eq!(metrics.write_errors(), 0);
}

/// The folder goes, and comes back: nothing is lost.
#[test]
fn a_folder_that_is_gone_for_a_while_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("log");
    fs::create_dir(&inner).unwrap();
    let path = inner.join("access.jsonl");
    let log = AccessLog::start(&settings(&path)).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    fs::remove_dir_all(&inner).unwrap();
    writer.record(&record(0));
    writer.flush();
    let began = Instant::now();
    while metrics.write_errors() == 0 {
        assert!(began.elapsed() < LONG, "the error is counted");
        thread::yield_now();
    }
    fs::create_dir(&inner).unwrap();
    give(&mut writer, &metrics, 1, 10);
    drop(writer);
    shutdown(log, LONG);
    assert_eq!(numbers(&path), (0..10).collect::<Vec<_>>());
}

/// A crash may tear the last line; the first one of the next start stands on a line of its own.
#[test]
fn a_torn_line_of_before_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    fs::write(&path, "{\"time\":\"2026-11-").unwrap();
    let log = AccessLog::start(&settings(&path)).unwrap();
    let mut writer = log.writer();
    give(&mut writer, &log.metrics(), 0, 2);
    drop(writer);
    shutdown(log, LONG);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "{\"time\":\"2026-11-");
    assert_eq!(lines[1..].iter().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 2);
}

/// A full disk: calls go on, what does not fit into the queue is counted, and once there is room what was torn is made whole.
#[test]
fn a_full_disk_is_waited_for_and_tears_no_line() {
    let disk = SmallDisk::mount();
    let path = disk.path.join("access.jsonl");
    let settings = AccessSettings { on_stall: OnStall::DropAndCount, ..settings(&path) };
    let log = AccessLog::start(&settings).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    let ballast = disk.path.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    file.write_all(&vec![7; 700_000]).unwrap();
    let mut given = 0;
    let began = Instant::now();
    while metrics.dropped() == 0 {
        assert!(began.elapsed() < LONG, "the queue is full");
        writer.record(&record(given));
        given += 1;
    }
    assert!(metrics.write_errors() > 0 || metrics.written() < given);
    while metrics.write_errors() == 0 {
        assert!(began.elapsed() < LONG, "the error is counted");
        thread::yield_now();
    }
    fs::remove_file(&ballast).unwrap();
    drop((file, writer));
    shutdown(log, LONG);
    assert_eq!(metrics.written() + metrics.dropped(), given);
    let found = numbers(&path);
    assert_eq!(found.len() as u64, metrics.written());
    assert!(found.is_sorted(), "in the order in which they were given");
}

/// … and if there never is, the end comes all the same, and the count is right.
#[test]
fn a_disk_that_stays_full_does_not_hold_up_the_end() {
    let disk = SmallDisk::mount();
    let path = disk.path.join("access.jsonl");
    let mut ballast = fs::File::create(disk.path.join("ballast")).unwrap();
    while ballast.write_all(&[7; 4_096]).is_ok() {}
    let log = AccessLog::start(&settings(&path)).unwrap();
    let (metrics, mut writer) = (log.metrics(), log.writer());
    for number in 0..500 {
        writer.record(&record(number));
    }
    drop(writer);
    shutdown(log, Duration::from_millis(50));
    assert_eq!((metrics.written(), metrics.dropped()), (0, 500));
}

#[test]
fn what_is_in_the_way_at_the_start_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let start = |path: &Path| AccessLog::start(&settings(path)).unwrap_err();
    let missing = start(&folder.path().join("none/access.jsonl"));
    assert!(matches!(missing, AccessError::FolderMissing { .. }), "{missing}");
    let is_folder = start(folder.path());
    assert!(matches!(is_folder, AccessError::NotAFile { .. }), "{is_folder}");
    let is_device = start(Path::new("/dev/null"));
    let expected = "/dev/null is not a regular file: let access.path name one, or set access.sink to stdout";
    assert_eq!(is_device.to_string(), expected);
    let range =
        AccessLog::start(&AccessSettings { queue_records: 1, ..AccessSettings::default() }).unwrap_err();
    assert!(matches!(range, AccessError::Settings(_)), "{range}");
}

struct SmallDisk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::create_dir(&path).unwrap();
        if let Err(error) = mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(c"size=1m")) {
            panic!("this test mounts a tmpfs, which needs root (CAP_SYS_ADMIN): {error}");
        }
        Self { path, _folder: folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH); // DETACH: also while a failed test has files open
    }
}
