//! The log on a disk that records, fails and waits when told.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bearerd_crypto::Sealed;
use bearerd_model::{Epoch, GrantVersion};

use super::*;
use crate::{Spill, SpillError, folder::Folder};

/// What was done to the disk, in order, and what was promised in between.
#[derive(Debug, Clone)]
enum Step {
    Create(String),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Sync(String),
    Rename(String, String),
    Remove(String),
    SyncNames,
    /// `keep` returned `Ok`.
    Kept(SpillEntry),
    /// The store is about to be said to hold it.
    Settled(ConnectionId, GrantVersion),
}

type Verdict = dyn Fn(&Step) -> io::Result<()> + Send + Sync;

/// A folder whose steps can be counted, failed and replayed.
struct Watched {
    folder: Folder,
    steps: Arc<Mutex<Vec<Step>>>,
    verdict: Arc<Verdict>,
}

impl Watched {
    fn step(&self, step: Step, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        (self.verdict)(&step)?;
        run()?;
        self.steps.lock().unwrap().push(step);
        Ok(())
    }
}

impl Disk for Watched {
    fn names(&self) -> io::Result<Vec<String>> {
        self.folder.names()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.folder.read(name)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut file = None;
        self.step(Step::Create(name.into()), || {
            file = Some(self.folder.create(name)?);
            Ok(())
        })?;
        Ok(file.unwrap())
    }

    fn append(&self, name: &str, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.step(Step::Append(name.into(), bytes.into()), || self.folder.append(name, file, bytes))
    }

    fn truncate(&self, name: &str, file: &File, bytes: u64) -> io::Result<()> {
        self.step(Step::Truncate(name.into(), bytes), || self.folder.truncate(name, file, bytes))
    }

    fn sync(&self, name: &str, file: &File) -> io::Result<()> {
        self.step(Step::Sync(name.into()), || self.folder.sync(name, file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step(Step::Rename(from.into(), to.into()), || self.folder.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step(Step::Remove(name.into()), || self.folder.remove(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.step(Step::SyncNames, || self.folder.sync_names())
    }
}

fn open_watched(
    path: &Path,
    verdict: impl Fn(&Step) -> io::Result<()> + Send + Sync + 'static,
) -> (Spill, Found, Arc<Mutex<Vec<Step>>>) {
    let steps = Arc::default();
    let (spill, found) = open_recorded(path, &steps, Arc::new(verdict));
    (spill, found, steps)
}

/// Goes on with the recording of an earlier run.
fn open_recorded(path: &Path, steps: &Arc<Mutex<Vec<Step>>>, verdict: Arc<Verdict>) -> (Spill, Found) {
    let disk = Watched { folder: Folder::open(path).unwrap(), steps: Arc::clone(steps), verdict };
    Spill::start(path, 1, disk).unwrap()
}

fn id(name: &str) -> ConnectionId {
    ConnectionId::parse(name).unwrap()
}

fn version(epoch: u64) -> GrantVersion {
    GrantVersion { lineage: Epoch(1), epoch: Epoch(epoch) }
}

fn entry(name: &str, epoch: u64, bytes: usize) -> SpillEntry {
    let sealed = Sealed::from_bytes(vec![u8::try_from(epoch % 251).unwrap(); bytes]);
    SpillEntry { id: id(name), version: version(epoch), sealed }
}

fn log_bytes(path: &Path) -> u64 {
    let files = fs::read_dir(path).unwrap().map(Result::unwrap);
    files
        .filter(|file| file.file_name().to_str().unwrap().ends_with(LOG))
        .map(|file| file.metadata().unwrap().len())
        .sum()
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "the condition never held");
        tokio::task::yield_now().await;
    }
}

/// A disk that loses, in a crash, whatever it was not made to keep.
#[derive(Clone, Default)]
struct Model {
    /// Content of each file as fsynced, and as written.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    names: HashMap<String, usize>,
    /// Names that are on disk, and what was done to names since, with the file that a creation made.
    durable_names: HashMap<String, usize>,
    pending: Vec<(Step, usize)>,
}

impl Model {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Create(_) => self.files.push(Default::default()),
            Step::Append(name, bytes) => self.files[self.names[name]].1.extend_from_slice(bytes),
            Step::Truncate(name, bytes) => {
                self.files[self.names[name]].1.truncate(usize::try_from(*bytes).unwrap());
            }
            Step::Sync(name) => {
                let file = &mut self.files[self.names[name]];
                file.0.clone_from(&file.1);
            }
            Step::SyncNames => {
                self.durable_names.clone_from(&self.names);
                self.pending.clear();
            }
            Step::Rename(..) | Step::Remove(_) | Step::Kept(_) | Step::Settled(..) => {}
        }
        if matches!(step, Step::Create(_) | Step::Rename(..) | Step::Remove(_)) {
            let made = self.files.len() - 1;
            rename(&mut self.names, step, made);
            self.pending.push((step.clone(), made));
        }
    }

    /// Every state that a crash now may leave: any of the changes of names that were not put on disk happened or not,
    /// and unsynced content is there, is not, or is there by half.
    fn after_a_crash(&self) -> Vec<HashMap<String, Vec<u8>>> {
        let mut states = Vec::new();
        for happened in 0..1_u32 << self.pending.len() {
            let mut names = self.durable_names.clone();
            for (number, (step, made)) in self.pending.iter().enumerate() {
                if happened & (1 << number) != 0 {
                    rename(&mut names, step, *made);
                }
            }
            for share in 0..3 {
                let content = |file: &usize| {
                    let (synced, written) = &self.files[*file];
                    if written.len() < synced.len() {
                        return if share == 0 { synced.clone() } else { written.clone() };
                    }
                    written[..synced.len() + (written.len() - synced.len()) * share / 2].to_vec()
                };
                states.push(names.iter().map(|(name, file)| (name.clone(), content(file))).collect());
            }
        }
        states
    }
}

fn rename(names: &mut HashMap<String, usize>, step: &Step, made: usize) {
    match step {
        Step::Create(name) => drop(names.insert(name.clone(), made)),
        Step::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Step::Remove(name) => drop(names.remove(name)),
        _ => {}
    }
}

/// I-1: crashes between every two steps, with every state of the disk that each may leave: what was kept and is not
/// settled is found, in that version or a later one. The run compacts, empties, goes on after failed writes, and is
/// started anew in between.
#[tokio::test]
async fn no_crash_loses_what_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (steps, syncs) = (Arc::default(), AtomicUsize::new(0));
    let verdict: Arc<Verdict> = Arc::new(move |step: &Step| {
        let fails = matches!(step, Step::Sync(name) if name.ends_with(LOG))
            && syncs.fetch_add(1, Ordering::SeqCst) % 7 == 6;
        if fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    });
    for round in 0..4 {
        let (spill, found) = open_recorded(&path, &steps, Arc::clone(&verdict));
        assert_eq!((found.cut_bytes, found.damaged), (0, 0));
        let settle = |name: &str, epoch| {
            steps.lock().unwrap().push(Step::Settled(id(name), version(epoch)));
            spill.settle(&id(name), version(epoch));
        };
        for epoch in round * 20 + 1..=round * 20 + 20 {
            for name in ["fin", "hr", "it"] {
                let entry = entry(name, epoch, 10_000);
                while spill.keep(entry.clone()).await.is_err() {} // one fsync in seven fails
                steps.lock().unwrap().push(Step::Kept(entry));
            }
            if epoch % 6 == 0 {
                settle("fin", epoch);
            }
            if epoch % 3 == 0 {
                settle("hr", epoch - 1);
            }
        }
        if round % 2 == 1 {
            for name in ["fin", "hr", "it"] {
                settle(name, round * 20 + 20);
            }
        }
    }
    drop(verdict);

    let steps = Arc::try_unwrap(steps).unwrap().into_inner().unwrap();
    let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|step| wanted(step)).count();
    assert!(count(|step| matches!(step, Step::Rename(_, to) if to.ends_with(LOG))) > 3, "it compacted");
    assert!(count(|step| matches!(step, Step::Truncate(_, 20))) >= 1, "it emptied");
    assert!(count(|step| matches!(step, Step::Truncate(_, bytes) if *bytes > 20)) > 3, "it closed segments");

    let (mut model, mut owed) = (Model::default(), HashMap::<ConnectionId, GrantVersion>::new());
    let mut crashes = 0;
    for (number, step) in steps.iter().enumerate() {
        model.apply(step);
        match step {
            Step::Kept(entry) => drop(owed.insert(entry.id.clone(), entry.version)),
            Step::Settled(id, settled) if owed.get(id).is_some_and(|kept| kept <= settled) => {
                owed.remove(id);
            }
            _ => {}
        }
        if matches!(step, Step::Kept(_) | Step::Settled(..)) {
            continue; // the disk is as before
        }
        for state in model.after_a_crash() {
            crashes += 1;
            let mut newest = HashMap::new();
            for (_, content) in state.iter().filter(|(name, _)| name.ends_with(LOG)) {
                let parsed = framing::parse(content).unwrap();
                assert_eq!(parsed.damaged, 0, "after step {number}: a crash damages nothing");
                for found in parsed.entries {
                    let version = newest.entry(found.entry.id).or_insert(found.entry.version);
                    *version = found.entry.version.max(*version);
                }
            }
            for (id, version) in &owed {
                let found = newest.get(id);
                assert!(found >= Some(version), "after step {number}: {id} {version:?}, but {found:?}");
            }
        }
    }
    assert!(crashes > 1_000, "{crashes}");
}

/// The same by way of real files: the folder is copied before every step of a compaction and opened.
#[tokio::test]
async fn a_killed_compaction_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let copies = Arc::new(AtomicUsize::new(0));
    let (from, number, copied_to) = (path.clone(), Arc::clone(&copies), folder.path().to_path_buf());
    let (spill, _, steps) = open_watched(&path, move |_| {
        let to = copied_to.join(format!("copy-{}", number.fetch_add(1, Ordering::SeqCst)));
        fs::create_dir(&to)?;
        for file in fs::read_dir(&from)? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
        Ok(())
    });
    spill.keep(entry("hr", 1, 1_000)).await.unwrap();
    let first_copy = copies.load(Ordering::SeqCst);
    for epoch in 1..=12 {
        spill.keep(entry("big", epoch, 30_000)).await.unwrap();
    }
    let renamed = |step: &Step| matches!(step, Step::Rename(..));
    until(|| steps.lock().unwrap().iter().any(renamed)).await;
    spill.keep(entry("it", 1, 1_000)).await.unwrap();
    drop(spill);
    assert!(steps.lock().unwrap().iter().any(|step| matches!(step, Step::Remove(_))));
    assert!(log_bytes(&path) < 120_000);
    for copy in first_copy..copies.load(Ordering::SeqCst) {
        let path = folder.path().join(format!("copy-{copy}"));
        let (spill, found) = Spill::open(&path).await.unwrap();
        assert!(found.entries.iter().any(|found| *found == entry("hr", 1, 1_000)), "copy {copy}");
        assert_eq!((found.damaged, spill.unsettled()), (0, found.entries.len()), "copy {copy}");
        spill.keep(entry("hr", 2, 10)).await.unwrap();
        drop(spill);
        let names = Folder::open(&path).unwrap().names().unwrap();
        assert!(!names.iter().any(|name| name.ends_with(UNFINISHED)), "copy {copy}: {names:?}");
    }
}

/// Entries that arrive while the disk syncs share the next fsync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_wait_share_an_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let syncs = Arc::new(AtomicUsize::new(0));
    let (gate, waits) = std::sync::mpsc::channel::<()>();
    let (seen, waits) = (Arc::clone(&syncs), Mutex::new(waits));
    let (spill, _, steps) = open_watched(&path, move |step| {
        if matches!(step, Step::Sync(_)) {
            seen.fetch_add(1, Ordering::SeqCst);
            let _ = waits.lock().unwrap().recv(); // until there is no gate any more
        }
        Ok(())
    });
    let mut keeps = tokio::task::JoinSet::new();
    let keep = |name: String| {
        let spill = spill.clone();
        async move { spill.keep(entry(&name, 1, 100)).await.unwrap() }
    };
    keeps.spawn(keep("first".to_owned()));
    until(|| syncs.load(Ordering::SeqCst) == 1).await;
    for number in 0..100 {
        // Handed over at the first poll; that the call is dropped then changes nothing (F-02).
        let mut call = Box::pin(keep(format!("c{number}")));
        assert!(
            std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context)))
                .await
                .is_pending()
        );
        if number % 2 == 0 {
            keeps.spawn(call);
        }
    }
    drop(gate);
    keeps.join_all().await;
    until(|| spill.unsettled() == 101).await; // nobody waits for the last one
    assert_eq!(syncs.load(Ordering::SeqCst), 2);
    drop(spill);
    assert_eq!(steps.lock().unwrap().iter().filter(|step| matches!(step, Step::Append(..))).count(), 2);
    assert_eq!(Spill::open(&path).await.unwrap().1.entries.len(), 101);
}

/// F-08: after a failed fsync nothing more goes into that file, whatever the disk says later.
#[tokio::test]
async fn a_segment_whose_fsync_failed_gets_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let broken = Arc::new(Mutex::new(String::new()));
    let fails = Arc::clone(&broken);
    let (spill, _, steps) = open_watched(&path, move |step| match step {
        Step::Sync(name) if *fails.lock().unwrap() == *name => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    });
    spill.keep(entry("before", 1, 100)).await.unwrap();
    "spill-1.log".clone_into(&mut broken.lock().unwrap());
    spill.keep(entry("during", 1, 100)).await.unwrap();
    broken.lock().unwrap().clear();
    spill.keep(entry("after", 1, 100)).await.unwrap();
    let to: Vec<String> = steps
        .lock()
        .unwrap()
        .iter()
        .filter_map(|step| match step {
            Step::Append(name, _) => Some(name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(to, ["spill-1.log", "spill-1.log", "spill-2.log", "spill-2.log"]);
    assert_eq!(spill.unsettled(), 3);
    drop(spill);
    let (_spill, found) = Spill::open(&path).await.unwrap();
    let ids: Vec<&str> = found.entries.iter().map(|found| found.id.as_str()).collect();
    assert_eq!((ids, found.cut_bytes), (vec!["after", "before", "during"], 0));
}

/// F-08: each obstacle has its sentence, costs nothing that was kept, and is forgotten when it is gone.
#[tokio::test]
async fn a_failing_disk_is_survived() {
    for (kind, sentence) in [
        (io::ErrorKind::StorageFull, "is full: make room"),
        (
            io::ErrorKind::ReadOnlyFilesystem,
            "cannot be written: make it writable for the user that runs bearerd",
        ),
        (io::ErrorKind::Other, "failed: check its disk"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spill");
        let state = Arc::new(Mutex::new(None));
        let told = Arc::clone(&state);
        let (spill, _, _) = open_watched(&path, move |_| {
            let kind: Option<io::ErrorKind> = *told.lock().unwrap();
            kind.map_or(Ok(()), |kind| Err(kind.into()))
        });
        spill.keep(entry("before", 1, 100)).await.unwrap();
        *state.lock().unwrap() = Some(kind);
        for _ in 0..3 {
            let error = spill.keep(entry("during", 1, 100)).await.unwrap_err();
            assert!(error.to_string().ends_with(sentence), "{error}");
            assert_eq!(spill.unsettled(), 1);
        }
        *state.lock().unwrap() = None;
        spill.keep(entry("after", 1, 100)).await.unwrap();
        drop(spill);
        let (_spill, found) = Spill::open(&path).await.unwrap();
        let ids: Vec<&str> = found.entries.iter().map(|found| found.id.as_str()).collect();
        assert!(ids == ["after", "before"] || ids == ["after", "before", "during"], "{ids:?}");
    }
}

/// A start on a full disk goes on with the log as it is.
#[tokio::test]
async fn a_log_opens_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _) = Spill::open(&path).await.unwrap();
    spill.keep(entry("hr", 1, 100)).await.unwrap();
    drop(spill);
    let full = Arc::new(Mutex::new(true));
    let told = Arc::clone(&full);
    let (spill, found, _) = open_watched(&path, move |step| match step {
        Step::Append(..) if *told.lock().unwrap() => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    assert_eq!((found.entries.len(), spill.unsettled()), (1, 1));
    let error = spill.keep(entry("it", 1, 100)).await.unwrap_err();
    assert!(matches!(error, SpillError::Full { .. }), "{error}");
    *full.lock().unwrap() = false;
    spill.keep(entry("it", 1, 100)).await.unwrap();
    drop(spill);
    assert_eq!(Spill::open(&path).await.unwrap().1.entries.len(), 2);
}

/// The log stays within twice what counts in it, and some; settled, it is empty.
#[tokio::test]
async fn the_log_is_as_large_as_what_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spill");
    let (spill, _, _) = open_watched(&path, |_| Ok(()));
    let mut largest = 0;
    for epoch in 1..=100 {
        for connection in 0..10 {
            spill.keep(entry(&format!("c{connection}"), epoch, 4_000)).await.unwrap();
        }
        largest = largest.max(log_bytes(&path));
    }
    let live = 10 * 4_100;
    assert!(largest < 2 * (live + DEAD_BYTES_MIN), "{largest}");
    for connection in 0..10 {
        assert_eq!(spill.unsettled(), 10 - connection);
        spill.settle(&id(&format!("c{connection}")), version(100));
    }
    until(|| log_bytes(&path) <= HEADER_BYTES as u64).await;
    spill.keep(entry("hr", 1, 10)).await.unwrap();
    drop(spill);
    let (spill, found) = Spill::open(&path).await.unwrap();
    assert_eq!(found.entries, [entry("hr", 1, 10)]);
    spill.settle(&id("hr"), version(1));
    drop(spill);
    let (_spill, found) = Spill::open(&path).await.unwrap();
    assert_eq!(found, Found::default());
}
