//! The embedded backend against real files: the contract, restarts, kill -9, and what an operator may do to a file.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use bearerd_crypto::{KeyRing, Sealed};
use bearerd_model::{Connection, UnixTime};
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, OpenStoreError, RecordKey, Revision, Store, StoreError,
    StoredRecord, Times,
    contract::{self, CANARY, canary_connection, canary_integration},
};
use bearerd_store_embedded::{EmbeddedBackend, OpenEmbeddedError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    contract::check(async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Arc::new(open(&folder.path().join(number.to_string())).await) as Arc<dyn Backend>
    })
    .await;
}

/// S-07 rests on this: who only looks leaves the file as it was, byte for byte, and one that is not a store too.
#[tokio::test]
async fn a_peek_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, None);
    assert!(!path.exists());
    let backend = open(&path).await;
    backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap();
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, None, "it is open elsewhere");
    drop(backend);
    let before = fs::read(&path).unwrap();
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, Some(sealed("1")));
    assert_eq!(EmbeddedBackend::peek(&path, &key("other")).await, None);
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::write(&path, "a letter").unwrap();
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, None);
    assert_eq!(fs::read(&path).unwrap(), b"a letter");
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (kept, gone) = (key("kept"), key("gone"));
    let link = RecordKey::new(Kind::ConnectLink, "link");

    let backend = open(&path).await;
    let first = backend.create(&kept, sealed("1"), Times::default()).await.unwrap().unwrap();
    let current = backend.replace(&kept, first, sealed("2"), None).await.unwrap().unwrap();
    let counter = backend.changes(ChangeCounter(0)).await.unwrap().counter();
    let highest = backend.create(&gone, sealed("3"), Times::default()).await.unwrap().unwrap();
    assert!(backend.delete(&gone, highest).await.unwrap());
    backend
        .create(&link, sealed("4"), Times { expires_at: Some(UnixTime::from_secs(10)), due_at: None })
        .await
        .unwrap();
    drop(backend);

    let backend = open(&path).await;
    assert_eq!(backend.load(&kept).await.unwrap(), Some((current, sealed("2"))));
    let Changes::Since { keys, .. } = backend.changes(counter).await.unwrap() else {
        panic!("the log is kept")
    };
    assert_eq!(keys, std::slice::from_ref(&gone));
    let Changes::Since { keys, .. } = backend.changes(ChangeCounter(0)).await.unwrap() else {
        panic!("the log is kept")
    };
    assert_eq!(keys, [kept, gone.clone()]);
    let again = backend.create(&gone, sealed("5"), Times::default()).await.unwrap().unwrap();
    assert_ne!(again, highest, "a revision is not given twice, not even across a restart");
    assert_eq!(backend.sweep(UnixTime::from_secs(10)).await.unwrap(), 1);
}

/// A due time is as durable as its record, and leaves nothing behind: not with a replace, a delete, a take or a sweep.
#[tokio::test]
async fn what_is_due_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let due = |secs, expires| Times {
        due_at: Some(UnixTime::from_secs(secs)),
        expires_at: Some(expires).filter(|expires| *expires > 0).map(UnixTime::from_secs),
    };
    let link = RecordKey::new(Kind::ConnectLink, "link");
    let backend = open(&path).await;
    let kept = backend.create(&key("kept"), sealed("1"), due(10, 0)).await.unwrap().unwrap();
    let gone = backend.create(&key("gone"), sealed("1"), due(10, 0)).await.unwrap().unwrap();
    backend.create(&key("taken"), sealed("1"), due(11, 0)).await.unwrap().unwrap();
    backend.create(&link, sealed("1"), due(12, 20)).await.unwrap().unwrap();
    backend.replace(&key("kept"), kept, sealed("2"), Some(UnixTime::from_secs(30))).await.unwrap().unwrap();
    drop(backend);

    let backend = open(&path).await;
    assert_eq!(due_ids(&backend, Kind::Connection, 30).await, ["gone", "taken", "kept"]);
    assert_eq!(due_ids(&backend, Kind::ConnectLink, 30).await, ["link"]);
    assert!(backend.delete(&key("gone"), gone).await.unwrap());
    assert!(backend.take(&key("taken")).await.unwrap().is_some());
    assert_eq!(backend.sweep(UnixTime::from_secs(20)).await.unwrap(), 1);
    drop(backend);
    let backend = open(&path).await;
    assert_eq!(due_ids(&backend, Kind::Connection, 29).await, [""; 0]);
    assert_eq!(due_ids(&backend, Kind::Connection, 30).await, ["kept"]);
    assert_eq!(due_ids(&backend, Kind::ConnectLink, u64::MAX / 1_000).await, [""; 0]);
    // The same names again start without a due time.
    backend.create(&key("gone"), sealed("2"), Times::default()).await.unwrap().unwrap();
    assert_eq!(due_ids(&backend, Kind::Connection, 30).await, ["kept"]);
}

/// A file of format 1, as bearerd wrote it before it knew due times: it can be peeked into as it is, opens with every
/// record, revision and counter, and takes due times from then on.
#[tokio::test]
async fn a_file_of_format_1_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    write_format_1(&path, 1);
    let before = fs::read(&path).unwrap();
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, Some(sealed("1")));
    assert_eq!(fs::read(&path).unwrap(), before);

    let backend = open(&path).await;
    assert_eq!(backend.load(&key("hr")).await.unwrap(), Some((Revision(7), sealed("1"))));
    let changes = backend.changes(ChangeCounter(0)).await.unwrap();
    assert_eq!(changes, Changes::Since { counter: ChangeCounter(1), keys: vec![key("hr")] });
    assert_eq!(due_ids(&backend, Kind::Connection, 100).await, [""; 0]);
    let at = Some(UnixTime::from_secs(10));
    let revision = backend.replace(&key("hr"), Revision(7), sealed("2"), at).await.unwrap();
    assert_eq!(revision, Some(Revision(9)), "revisions are counted on");
    assert_eq!(backend.sweep(UnixTime::from_secs(50)).await.unwrap(), 1);
    drop(backend);
    let backend = open(&path).await;
    assert_eq!(due_ids(&backend, Kind::Connection, 10).await, ["hr"]);
    drop(backend);
    assert_eq!(EmbeddedBackend::peek(&path, &key("hr")).await, Some(sealed("2")));
}

#[tokio::test]
async fn a_newer_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    write_format_1(&path, 3);
    let error = EmbeddedBackend::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::NewerFormat { format: 3, .. }), "{error}");
    let tables = redb::Database::open(&path).unwrap().begin_write().unwrap();
    assert_eq!(tables.list_tables().unwrap().count(), 4, "it got no tables");
}

/// The tables of format 1, written as they were then, with a version of the caller's.
fn write_format_1(path: &Path, format: u64) {
    use redb::TableDefinition;
    type Record = (u64, Option<u64>, &'static [u8]);
    const RECORDS: TableDefinition<'_, (&str, &str), Record> = TableDefinition::new("records");
    const EXPIRIES: TableDefinition<'_, (u64, &str, &str), ()> = TableDefinition::new("expiries");
    const CHANGES: TableDefinition<'_, u64, (&str, &str)> = TableDefinition::new("changes");
    const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
    let transaction = redb::Database::create(path).unwrap().begin_write().unwrap();
    {
        let mut records = transaction.open_table(RECORDS).unwrap();
        records.insert(("connection", "hr"), (7, None, b"1".as_slice())).unwrap();
        records.insert(("connect_link", "link"), (8, Some(50_000), b"2".as_slice())).unwrap();
        let mut expiries = transaction.open_table(EXPIRIES).unwrap();
        expiries.insert((50_000, "connect_link", "link"), ()).unwrap();
        let mut changes = transaction.open_table(CHANGES).unwrap();
        changes.insert(1, ("connection", "hr")).unwrap();
        let mut counters = transaction.open_table(COUNTERS).unwrap();
        for (counter, value) in [("format", format), ("revision", 8), ("changes", 1)] {
            counters.insert(counter, value).unwrap();
        }
    }
    transaction.commit().unwrap();
}

/// Who waits for a change is told of it, comes back at once if it has happened already, and is not woken by what
/// nobody watches.
#[tokio::test]
async fn who_waits_for_a_change_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let backend = Arc::new(open(&path).await);
    let waiters: tokio::task::JoinSet<()> = (0..10)
        .map(|_| {
            let backend = Arc::clone(&backend);
            async move { backend.changed(ChangeCounter(0)).await }
        })
        .collect();
    let link = RecordKey::new(Kind::ConnectLink, "link");
    backend.create(&link, sealed("1"), Times::default()).await.unwrap().unwrap();
    assert!(!is_told(&backend, 0).await, "links are not watched");
    let revision = backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    waiters.join_all().await;
    assert!(is_told(&backend, 0).await, "it is told before the write returns");
    assert!(!is_told(&backend, 1).await, "nothing is newer");
    assert_eq!(backend.replace(&key("hr"), Revision(99), sealed("2"), None).await.unwrap(), None);
    assert!(!is_told(&backend, 1).await, "a lost write is no change");
    assert!(backend.delete(&key("hr"), revision).await.unwrap());
    assert!(is_told(&backend, 1).await);
    drop(backend);
    let backend = open(&path).await;
    assert!(is_told(&backend, 1).await, "also what changed before a restart");
    assert!(!is_told(&backend, 2).await);
}

/// Whether [`Backend::changed`] comes back at its first poll.
async fn is_told(backend: &EmbeddedBackend, after: u64) -> bool {
    let mut changed = backend.changed(ChangeCounter(after));
    std::future::poll_fn(|context| std::task::Poll::Ready(changed.as_mut().poll(context).is_ready())).await
}

async fn due_ids(backend: &EmbeddedBackend, kind: Kind, until_secs: u64) -> Vec<String> {
    let due = backend.due(kind, None, UnixTime::from_secs(until_secs), 100).await.unwrap();
    due.into_iter().map(|DueRecord { id, .. }| id).collect()
}

/// Every write that was acknowledged is there after kill -9, the file opens without repair by hand, and what was
/// under way is whole or absent (I-1, I-12).
#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut acknowledged = 0;
    for round in 1..=5 {
        let mut child = child_on(&path);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // libtest writes "test … ..." in front of the first line.
            let Some((_, number)) = line.rsplit_once(ACKNOWLEDGED) else { continue };
            acknowledged = number.parse().unwrap();
            if acknowledged >= round * 40 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(acknowledged >= round * 40, "the child wrote no further than {acknowledged}");

        let backend = open(&path).await;
        let found = backend.list(Kind::Connection, None, 10_000).await.unwrap();
        let value = |record: &StoredRecord| record.content.clone().unwrap().1;
        for number in 1..=acknowledged {
            let record = found.iter().find(|record| record.id == format!("{number:06}"));
            let record = record.unwrap_or_else(|| panic!("write {number} was acknowledged and is gone"));
            assert_eq!(value(record), numbered(number));
        }
        for record in &found {
            assert_eq!(value(record), numbered(record.id.parse().unwrap()), "{} is torn", record.id);
        }
        acknowledged = found.len(); // the last one may have been written and not acknowledged
    }
}

/// Not a test by itself: the process that the tests with kill -9 kill.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "how the killing test tells its child where the file is")]
async fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let backend = open(Path::new(&path)).await;
    let written = backend.list(Kind::Connection, None, 10_000).await.unwrap().len();
    for number in written + 1.. {
        backend
            .create(&key(&format!("{number:06}")), numbered(number), Times::default())
            .await
            .unwrap()
            .unwrap();
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{ACKNOWLEDGED}{number}").unwrap();
        stdout.flush().unwrap();
    }
}

#[tokio::test]
async fn only_the_owner_reads_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    drop(open(&path).await);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_in_the_way_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");

    let holder = open(&path).await;
    holder.create(&key("a"), Sealed::from_bytes(vec![7; 500_000]), Times::default()).await.unwrap();
    let error = EmbeddedBackend::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::InUse { .. }), "{error}");
    drop(holder);

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 3]).unwrap();
    let error = EmbeddedBackend::open(&path).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::Damaged { .. }), "{error}");

    let error = EmbeddedBackend::open(&folder.path().join("missing/store")).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::FolderMissing { .. }), "{error}");
    let error = EmbeddedBackend::open(folder.path()).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::Io { .. }), "{error}");

    let text = folder.path().join("notes.txt");
    fs::write(&text, "not a store").unwrap();
    let error = EmbeddedBackend::open(&text).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::NotAStore { .. }), "{error}");
    assert_eq!(fs::read(&text).unwrap(), b"not a store", "it was left as it is");

    let others = folder.path().join("others");
    let transaction = redb::Database::create(&others).unwrap().begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    let error = EmbeddedBackend::open(&others).await.unwrap_err();
    assert!(matches!(error, OpenEmbeddedError::NotAStore { .. }), "{error}");
}

/// Writing over the same records again and again does not make the file grow for ever.
#[tokio::test]
async fn the_file_stays_as_large_as_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let backend = Arc::new(open(&path).await);
    let rewrite = async |rounds: usize| {
        let writers: tokio::task::JoinSet<()> = (0..50)
            .map(|writer| {
                let backend = Arc::clone(&backend);
                async move {
                    let key = key(&format!("{writer}"));
                    for _ in 0..rounds {
                        let value = Sealed::from_bytes(vec![7; 2_000]);
                        match backend.load(&key).await.unwrap() {
                            Some((revision, _)) => {
                                backend.replace(&key, revision, value, None).await.unwrap()
                            }
                            None => backend.create(&key, value, Times::default()).await.unwrap(),
                        };
                    }
                }
            })
            .collect();
        writers.join_all().await;
        fs::metadata(&path).unwrap().len()
    };
    let early = rewrite(100).await; // the change log is full: 5 000 changes
    let late = rewrite(100).await;
    assert!(late <= early * 3 / 2, "{early} bytes grew to {late}");
}

/// S-08, I-9: nothing that was sealed can be read in the file. S-07: another master key does not open it, and
/// changes nothing.
#[tokio::test]
async fn the_file_shows_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let backend = Arc::new(open(&path).await);
    let store = Store::open(Arc::clone(&backend) as Arc<dyn Backend>, ring).await.unwrap();
    let root = store.root().expose().to_vec();
    let revision = store.create(&canary_connection("hr")).await.unwrap().unwrap();
    store.replace(revision, &canary_connection("hr")).await.unwrap().unwrap();
    store.create(&canary_integration()).await.unwrap().unwrap();
    let before = backend.list(Kind::Connection, None, 10).await.unwrap();
    drop(store);

    let other = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let error = Store::open(Arc::clone(&backend) as Arc<dyn Backend>, other).await.unwrap_err();
    assert!(matches!(error, OpenStoreError::WrongMasterKey(_)), "{error}");
    assert_eq!(backend.list(Kind::Connection, None, 10).await.unwrap(), before);
    drop(backend);

    let file = fs::read(&path).unwrap();
    for secret in [CANARY.as_bytes(), &root] {
        assert!(!contains(&file, secret), "a secret stands in the file");
    }
}

/// S-04: a byte of a stored record that was flipped on disk is noticed, and the other records are served.
/// S-03: so is a record that was put in another's place.
#[tokio::test]
async fn a_flipped_byte_costs_one_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let backend = Arc::new(open(&path).await);
    let store = Store::open(Arc::clone(&backend) as Arc<dyn Backend>, Arc::clone(&ring)).await.unwrap();
    for id in ["fin", "hr", "it"] {
        store.create(&canary_connection(id)).await.unwrap().unwrap();
    }
    let (it, moved) = backend.load(&key("it")).await.unwrap().unwrap();
    let (_, hr) = backend.load(&key("hr")).await.unwrap().unwrap();
    drop((store, backend));

    let mut file = fs::read(&path).unwrap();
    let at: Vec<usize> =
        (0..file.len() - hr.as_bytes().len()).filter(|at| file[*at..].starts_with(hr.as_bytes())).collect();
    assert!(!at.is_empty(), "the record stands in the file");
    for at in at {
        file[at + hr.as_bytes().len() / 2] ^= 1;
    }
    fs::write(&path, file).unwrap();

    let backend = Arc::new(open(&path).await);
    let store = Store::open(Arc::clone(&backend) as Arc<dyn Backend>, ring).await.unwrap();
    let error = store.load::<Connection>("hr").await.unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { key, .. } if key.id == "hr"), "{error}");
    let page = store.list::<Connection>(None, 10).await.unwrap();
    assert_eq!(page.damaged, [key("hr")]);
    let ids: Vec<&str> = page.records.iter().map(|entry| entry.record.id.as_str()).collect();
    assert_eq!(ids, ["fin", "it"]);

    let (fin, _) = backend.load(&key("fin")).await.unwrap().unwrap();
    backend.replace(&key("fin"), fin, moved, None).await.unwrap().unwrap();
    assert!(matches!(store.load::<Connection>("fin").await, Err(StoreError::Damaged { .. })));
    assert!(store.load::<Connection>("it").await.unwrap().is_some_and(|found| found.revision == it));
}

/// S-04: the part of a record that is not sealed, flipped on disk.
#[tokio::test]
async fn a_record_that_does_not_decode_costs_one_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    contract::a_damaged_record_hides_no_other(
        Arc::new(open(&path).await),
        async |backend, key: &RecordKey| {
            let (revision, sealed) = backend.load(key).await.unwrap().unwrap();
            drop(backend);
            // The revision, whether there is an `expires_at`, eight bytes for it, the sealed record.
            let plain = [&revision.0.to_le_bytes()[..], &[0; 9]].concat();
            let stored = [&plain[..], sealed.as_bytes()].concat();
            let mut file = fs::read(&path).unwrap();
            let at: Vec<usize> =
                (0..file.len() - stored.len()).filter(|at| file[*at..].starts_with(&stored)).collect();
            assert!(!at.is_empty(), "the record stands in the file as it is thought to");
            for at in at {
                file[at + 8] = 0x40;
            }
            fs::write(&path, file).unwrap();
            Arc::new(open(&path).await) as Arc<dyn Backend>
        },
    )
    .await;
    // Nor does it cost the writers who wait at the same time.
    let backend = Arc::new(open(&path).await);
    let writers: tokio::task::JoinSet<bool> = (0..50)
        .map(|number| {
            let backend = Arc::clone(&backend);
            async move {
                match number % 5 {
                    0 => backend.take(&key("b")).await.unwrap().is_none(),
                    1 => !backend.delete(&key("b"), Revision(1)).await.unwrap(),
                    2 => backend.replace(&key("b"), Revision(1), sealed("1"), None).await.unwrap().is_none(),
                    _ => backend
                        .create(&key(&format!("{number}")), sealed("1"), Times::default())
                        .await
                        .unwrap()
                        .is_some(),
                }
            }
        })
        .collect();
    assert!(writers.join_all().await.into_iter().all(|expected| expected));
}

/// The process is killed while it makes the store. What it leaves behind is a store or nothing, at any moment.
#[tokio::test]
async fn a_store_is_made_whole_or_not_at_all() {
    for _ in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut child = child_on(&path);
        while fs::read_dir(folder.path()).unwrap().next().is_none() {
            assert!(child.try_wait().unwrap().is_none(), "it writes until it is killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let backend = open(&path).await;
        backend.create(&key("hr"), sealed("1"), Times::default()).await.unwrap().unwrap();
    }
}

/// Of those who make a store at the same moment one does, and the others find it; nobody's is overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn one_of_many_makes_the_store() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let rivals: tokio::task::JoinSet<bool> = (0..8)
            .map(|_| {
                let path = path.clone();
                async move {
                    match EmbeddedBackend::open(&path).await {
                        Ok(backend) => {
                            backend.create(&key("a"), sealed("1"), Times::default()).await.unwrap().is_some()
                        }
                        Err(OpenEmbeddedError::InUse { .. }) => false,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
            .collect();
        assert_eq!(rivals.join_all().await.into_iter().filter(|made| *made).count(), 1);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path], "nothing else is left in the folder");
    }
}

/// A store may be kept elsewhere and linked to, before there is one.
#[tokio::test]
async fn a_link_to_no_file_yet_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("store"), folder.path().join("elsewhere"));
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    drop(open(&link).await);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::symlink_metadata(&target).unwrap().is_file());
    drop(open(&link).await);
}

/// A process that makes the store, or opens it, and writes until it is killed.
fn child_on(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD_FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn open(path: &Path) -> EmbeddedBackend {
    EmbeddedBackend::open(path).await.unwrap()
}

fn key(id: &str) -> RecordKey {
    RecordKey::new(Kind::Connection, id)
}

fn sealed(text: &str) -> Sealed {
    Sealed::from_bytes(text.as_bytes().to_vec())
}

/// Large enough to span pages.
fn numbered(number: usize) -> Sealed {
    Sealed::from_bytes(number.to_be_bytes().repeat(1_000))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Tells the child its file.
const CHILD_FILE: &str = "BEARERD_TEST_CHILD_STORE_FILE";
/// Begins each line in which the child acknowledges a write.
const ACKNOWLEDGED: &str = "acknowledged ";
