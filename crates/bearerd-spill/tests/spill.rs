//! The spill in real folders: restarts, torn and altered files, a full disk, kill -9.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bearerd_crypto::{KeyRing, SealContext, Sealed};
use bearerd_model::{ConnectionId, Epoch, GrantVersion};
use bearerd_spill::{Found, OpenSpillError, Spill, SpillEntry, SpillError};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// I-12: a power cut anywhere in the last writes. Every entry before is there, the torn end is told, and the log goes on.
#[tokio::test]
async fn a_log_cut_at_any_byte_keeps_what_is_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    let mut ends = Vec::new();
    for number in 0..5 {
        spill.keep(entry(&format!("c{number}"), 1, 60)).await.unwrap();
        ends.push(fs::metadata(segment(&path)).unwrap().len());
    }
    drop(spill);
    let whole = fs::read(segment(&path)).unwrap();
    let first_cut = usize::try_from(ends[1]).unwrap();
    for cut in first_cut..=whole.len() {
        let path = folder.path().join(format!("cut-{cut}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("spill-1.log"), &whole[..cut]).unwrap();
        let (spill, found) = Spill::open(&path).await.unwrap();
        let left = ends.iter().filter(|end| **end <= cut as u64).count();
        let expected: Vec<_> = (0..left).map(|number| entry(&format!("c{number}"), 1, 60)).collect();
        assert_eq!(found, Found { entries: expected, cut_bytes: cut as u64 - ends[left - 1], damaged: 0 });
        spill.keep(entry("next", 1, 60)).await.unwrap();
        drop(spill);
        let (_spill, again) = Spill::open(&path).await.unwrap();
        assert_eq!((again.entries.len(), again.cut_bytes, again.damaged), (left + 1, 0, 0), "cut at {cut}");
    }
}

/// A flipped byte costs one entry, is told, and what it hit is set aside.
#[tokio::test]
async fn a_flipped_byte_costs_one_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    let mut ends = Vec::new();
    for number in 0..4 {
        spill.keep(entry(&format!("c{number}"), 1, 60)).await.unwrap();
        ends.push(usize::try_from(fs::metadata(segment(&path)).unwrap().len()).unwrap());
    }
    drop(spill);
    let whole = fs::read(segment(&path)).unwrap();
    for at in ends[0]..ends[1] {
        let path = folder.path().join(format!("flipped-{at}"));
        fs::create_dir(&path).unwrap();
        let mut altered = whole.clone();
        altered[at] ^= 0x10;
        fs::write(path.join("spill-1.log"), &altered).unwrap();
        let (spill, found) = Spill::open(&path).await.unwrap();
        let left = ["c0", "c2", "c3"].map(|id| entry(id, 1, 60));
        assert_eq!((&found.entries[..], found.cut_bytes, found.damaged), (&left[..], 0, 1), "byte {at}");
        assert_eq!(fs::read(path.join("spill-1.damaged")).unwrap(), altered, "it can be looked at");
        drop(spill);
        let (_spill, again) = Spill::open(&path).await.unwrap();
        assert_eq!((&again.entries[..], again.damaged), (&left[..], 0), "it is told once");
    }
}

/// F-08: a real disk of 1 MiB that is full.
#[tokio::test]
async fn a_full_disk_is_survived() {
    let disk = SmallDisk::mount();
    let path = disk.path.join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    spill.keep(entry("before", 1, 1_000)).await.unwrap();
    let ballast = disk.path.join("ballast");
    fs::write(&ballast, vec![7; 700_000]).unwrap();
    let mut kept = 0;
    let error = loop {
        match spill.keep(entry(&format!("c{kept}"), 1, 20_000)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpillError::Full { .. }), "{error}");
    let expected = format!("the disk of the spill folder {} is full: make room", path.display());
    assert_eq!(error.to_string(), expected);
    assert!((5..30).contains(&kept), "{kept}");
    assert_eq!(spill.unsettled(), kept + 1);
    spill.keep(entry("lost", 1, 200_000)).await.unwrap_err();
    fs::remove_file(&ballast).unwrap();
    spill.keep(entry("after", 1, 20_000)).await.unwrap();
    drop(spill);
    let (_spill, found) = Spill::open(&path).await.unwrap();
    assert_eq!((found.entries.len(), found.cut_bytes, found.damaged), (kept + 2, 0, 0));
    for expected in [entry("before", 1, 1_000), entry("c0", 1, 20_000), entry("after", 1, 20_000)] {
        assert!(found.entries.contains(&expected), "{}", expected.id);
    }
}

/// F-08: a disk that is full from the start says so, and a log that is there opens on it.
#[tokio::test]
async fn a_start_on_a_full_disk_is_told() {
    let disk = SmallDisk::mount();
    let path = disk.path.join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    spill.keep(entry("hr", 1, 1_000)).await.unwrap();
    drop(spill);
    let ballast = disk.path.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[7; 4_096]).is_ok() {}
    let (spill, found) = Spill::open(&path).await.unwrap();
    assert_eq!((found.entries, spill.unsettled()), (vec![entry("hr", 1, 1_000)], 1));
    drop(spill);
    fs::remove_file(path.join("node")).unwrap();
    while file.write_all(&[7; 4_096]).is_ok() {}
    let error = Spill::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenSpillError::Full { .. }), "{error}");
    fs::remove_file(&ballast).unwrap();
    drop(file);
    assert_eq!(Spill::open(&path).await.unwrap().1.entries.len(), 1);
}

/// I-1: whatever was acknowledged is found after kill -9.
#[tokio::test]
async fn acknowledged_entries_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let mut acknowledged: u64 = 0;
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_keeps_until_it_is_killed", "--nocapture"])
            .env(CHILD_FOLDER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // libtest writes "test … ..." in front of the first line.
            let Some((_, epoch)) = line.rsplit_once(ACKNOWLEDGED) else { continue };
            acknowledged = epoch.parse().unwrap();
            if acknowledged >= round * 200 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(acknowledged >= round * 200, "the child kept no more than {acknowledged}");
        let (_spill, found) = Spill::open(&path).await.unwrap();
        assert_eq!(found.damaged, 0);
        // The child keeps each connection's next version in turn.
        for (number, found) in found.entries.iter().enumerate() {
            let newest = (1..=acknowledged).rev().find(|epoch| epoch % CHILD_CONNECTIONS == number as u64);
            let newest = newest.unwrap();
            assert!(found.version.epoch.0 >= newest, "{} {:?}, not {newest}", found.id, found.version);
            assert_eq!(*found, entry(found.id.as_str(), found.version.epoch.0, 3_000), "it is whole");
        }
        assert_eq!(found.entries.len() as u64, CHILD_CONNECTIONS);
        acknowledged = found.entries.iter().map(|found| found.version.epoch.0).max().unwrap();
    }
}

/// Not a test by itself: the process that the test with kill -9 kills.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "how the killing test tells its child where the folder is")]
async fn child_that_keeps_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FOLDER) else { return };
    let (spill, found) = Spill::open(Path::new(&path)).await.unwrap();
    let newest = found.entries.iter().map(|found| found.version.epoch.0).max().unwrap_or(0);
    for epoch in newest + 1.. {
        let id = format!("c{}", epoch % CHILD_CONNECTIONS);
        spill.keep(entry(&id, epoch, 3_000)).await.unwrap();
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{ACKNOWLEDGED}{epoch}").unwrap();
        stdout.flush().unwrap();
    }
}

#[tokio::test]
async fn the_newest_version_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, found) = Spill::open(&path).await.unwrap();
    assert_eq!((found, spill.unsettled()), (Found::default(), 0));
    for (id, epoch) in [("it", 1), ("hr", 3), ("hr", 2), ("it", 4)] {
        spill.keep(entry(id, epoch, 100)).await.unwrap();
    }
    spill.settle(&id("hr"), version(2));
    assert_eq!(spill.unsettled(), 2);
    drop(spill);
    for _ in 0..2 {
        let (spill, found) = Spill::open(&path).await.unwrap();
        assert_eq!(found.entries, [entry("hr", 3, 100), entry("it", 4, 100)]);
        assert_eq!(spill.unsettled(), 2);
    }
}

#[tokio::test]
async fn what_is_in_the_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    let clone = spill.clone();
    drop(spill);
    let error = Spill::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenSpillError::InUse { .. }), "{error}");
    let sentence =
        format!("the spill folder {} is in use: stop the other process, or give this one", path.display());
    assert!(error.to_string().starts_with(&sentence), "{error}");
    drop(clone);
    drop(Spill::open(&path).await.unwrap());

    let error = Spill::open(&folder.path().join("missing/spill")).await.unwrap_err();
    assert!(matches!(error, OpenSpillError::ParentMissing { .. }), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, "a letter").unwrap();
    for path in [file.clone(), file.join("spill")] {
        let error = Spill::open(&path).await.unwrap_err();
        assert!(matches!(error, OpenSpillError::NotAFolder { .. }), "{error}");
    }
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    drop(Spill::open(&link).await.unwrap());
}

#[tokio::test]
async fn the_node_keeps_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let first = Spill::open(&here).await.unwrap().0.node();
    assert_eq!(Spill::open(&here).await.unwrap().0.node(), first);
    assert_ne!(Spill::open(&there).await.unwrap().0.node(), first);
    // Killed while it was written, and altered: a start needs no human (I-12).
    fs::write(here.join("node.unfinished"), "12").unwrap();
    fs::write(here.join("node"), [0xff; 16]).unwrap();
    let second = Spill::open(&here).await.unwrap().0.node();
    assert_ne!(second, first);
    assert_eq!(Spill::open(&here).await.unwrap().0.node(), second);
}

/// I-9: the folder shows ids, versions and sealed bytes to its owner, and nobody else anything.
#[tokio::test]
async fn the_folder_shows_no_secret() {
    const CANARY: &[u8] = b"canary-refresh-token";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let ring = KeyRing::parse(&KeyRing::new_key_file()).unwrap();
    let sealed = ring.seal(SealContext { kind: "connection", id: "hr", field: "record" }, CANARY);
    let (spill, _) = Spill::open(&path).await.unwrap();
    spill.keep(SpillEntry { id: id("hr"), version: version(1), sealed }).await.unwrap();
    assert_eq!(mode(&path), 0o700);
    for file in fs::read_dir(&path).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        let content = fs::read(&file).unwrap();
        assert!(!content.windows(CANARY.len()).any(|window| window == CANARY), "{}", file.display());
    }
}

#[tokio::test]
async fn a_record_larger_than_any_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (spill, _) = Spill::open(&folder.path().join("spill")).await.unwrap();
    let error = spill.keep(entry("hr", 1, 2 << 20)).await.unwrap_err();
    assert!(matches!(&error, SpillError::TooLarge { id } if id.as_str() == "hr"), "{error}");
    assert_eq!(spill.unsettled(), 0);
}

/// The store may take an entry before the disk does; whichever is first, nothing is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeping_and_settling_at_once_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    let mut rivals = tokio::task::JoinSet::new();
    for connection in 0..50 {
        let spill = spill.clone();
        rivals.spawn(async move {
            let id = id(&format!("c{connection}"));
            for epoch in 1..=20 {
                let keep = spill.keep(entry(id.as_str(), epoch, 2_000));
                if epoch % 2 == 0 {
                    keep.await.unwrap();
                    spill.settle(&id, version(epoch));
                } else {
                    let mut keep = Box::pin(keep);
                    let polled = std::future::poll_fn(|context| {
                        std::task::Poll::Ready(keep.as_mut().poll(context).is_ready())
                    });
                    let ready = polled.await;
                    spill.settle(&id, version(epoch));
                    if !ready {
                        keep.await.unwrap();
                    }
                }
            }
        });
    }
    rivals.join_all().await;
    assert_eq!(spill.unsettled(), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::metadata(segment(&path)).unwrap().len() > 20 {
        assert!(Instant::now() < deadline, "the log was not emptied");
        tokio::task::yield_now().await;
    }
}

/// A disk of 1 MiB, gone with the test.
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

/// The only segment.
fn segment(path: &Path) -> PathBuf {
    let files = fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
    let segments: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|end| end == "log")).collect();
    let [segment] = &segments[..] else { panic!("there is one segment, not {segments:?}") };
    segment.clone()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn id(name: &str) -> ConnectionId {
    ConnectionId::parse(name).unwrap()
}

fn version(epoch: u64) -> GrantVersion {
    GrantVersion { lineage: Epoch(1), epoch: Epoch(epoch) }
}

fn entry(name: &str, epoch: u64, bytes: usize) -> SpillEntry {
    let sealed = Sealed::from_bytes(epoch.to_be_bytes().into_iter().cycle().take(bytes).collect());
    SpillEntry { id: id(name), version: version(epoch), sealed }
}

/// Tells the child its folder.
const CHILD_FOLDER: &str = "BEARERD_TEST_CHILD_SPILL_FOLDER";
/// Connections that the child keeps.
const CHILD_CONNECTIONS: u64 = 10;
/// Begins each line in which the child acknowledges an entry.
const ACKNOWLEDGED: &str = "acknowledged ";
