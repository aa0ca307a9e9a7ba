//! What a store costs that holds far more connections than are in use: nothing much.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bearerd_crypto::KeyRing;
use bearerd_model::{Connection, ConnectionId};
use bearerd_store::{Backend, Store};
use bearerd_store_embedded::EmbeddedBackend;
use bearerd_tests::{Daemon, Deployment, Setup, block_on, release_binary, wait_until};
use http::Method;
use serde_json::json;
use servicenow_sim::Behaviour;
use tokio::task::JoinSet;

/// Connections that are in use.
const WARM: usize = 1_000;
/// For how long an idle process is watched.
const WATCHED_FOR: Duration = Duration::from_secs(15);

/// What an idle process takes.
#[derive(Debug, Clone, Copy)]
struct Idle {
    resident_kib: u32,
    /// Milliseconds of processor time a second.
    cpu_ms_per_s: f64,
}

/// Memory and processor time follow what is in use, not what is stored. `BEARERD_STORED` says how many are stored:
/// 30,000 in CI, 1,000,000 for `docs/reliability.md`.
#[test]
fn an_idle_process_costs_what_is_in_use_and_not_what_is_stored() {
    #[expect(clippy::disallowed_methods, reason = "the size of the test, not a setting of the daemon")]
    let asked = std::env::var("BEARERD_STORED").ok();
    let stored = asked.map_or(30_000, |text| text.parse().expect("BEARERD_STORED is a number"));
    let few = measure("scale-few", WARM);
    let many = measure("scale-many", stored);
    let memory = f64::from(many.resident_kib) / f64::from(few.resident_kib);
    let cpu = many.cpu_ms_per_s / few.cpu_ms_per_s;
    println!("{WARM} stored, all warm: {few:?}\n{stored} stored, {WARM} warm: {many:?}");
    // In a debug build redb walks the whole file when it opens it, and keeps the end of it.
    let memory_max = if release_binary().is_some() { 1.5 } else { 2.5 };
    println!("memory × {memory:.2} (may be {memory_max}), processor time × {cpu:.2} (may be 1.5)");
    assert!(memory <= memory_max && cpu <= 1.5, "memory × {memory:.2}, processor time × {cpu:.2}");
}

fn measure(name: &str, stored: usize) -> Idle {
    let mut setup = Setup::new(name);
    if let Some(binary) = release_binary() {
        setup = setup.binary(binary);
    }
    let mut deployment = Deployment::start(setup, Behaviour::default());
    let integration = json!({
        "instance": deployment.instance,
        "client_id": bearerd_tests::CLIENT_ID,
        "client_secret": bearerd_tests::CLIENT_SECRET,
        "profiles": {"default": {"grant_type": "client_credentials"}},
    });
    deployment.daemon.put("/v1/integrations/hr", &integration);
    deployment.add_open_policy("open");
    let key = deployment.daemon.new_key("open");
    for number in 0..WARM {
        deployment.daemon.put(&format!("/v1/connections/{}", id(number)), &json!({"integration": "hr"}));
    }
    deployment.daemon.terminate();
    block_on(fill(deployment.daemon.folder().to_path_buf(), stored));
    deployment.daemon.start_again();
    println!("{stored} stored: {} KiB resident when ready", deployment.daemon.resident_kib());
    for number in 0..WARM {
        let path = format!("/c/{}/api/now/table/incident?sysparm_limit=1", id(number));
        let reply = deployment.daemon.call(Method::GET, &path, &key).send();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    // At rest: the same figure twice, half a second apart.
    let mut last = 0;
    let resident_kib = wait_until("memory is at rest", Duration::from_mins(1), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = deployment.daemon.resident_kib();
        (std::mem::replace(&mut last, now) == now).then_some(now)
    });
    let (began, before) = (Instant::now(), cpu(&deployment.daemon));
    std::thread::sleep(WATCHED_FOR); // what is measured is this time
    let spent = cpu(&deployment.daemon).saturating_sub(before);
    let resident_kib = u32::try_from(resident_kib).unwrap();
    Idle { resident_kib, cpu_ms_per_s: spent.as_secs_f64() * 1e3 / began.elapsed().as_secs_f64() }
}

fn id(number: usize) -> String {
    format!("c{number:07}")
}

/// Connections beside those that are there, used by nobody for a day and due tomorrow: copies of the first.
async fn fill(folder: std::path::PathBuf, stored: usize) {
    let store = open(&folder).await;
    let model = store.load::<Connection>(&id(0)).await.unwrap().expect("the first one").record;
    let mut writing = JoinSet::new();
    for number in WARM..stored {
        let id = ConnectionId::parse(&id(number)).unwrap();
        let due_at = model.due_at.map(|at| at + Duration::from_hours(24));
        let idle = Connection { id, due_at, last_used_at: None, ..model.clone() };
        let store = store.clone();
        writing.spawn(async move { store.create(&idle).await.unwrap().expect("a new id") });
        while writing.len() >= 512 {
            writing.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
}

async fn open(folder: &Path) -> Store {
    let ring = std::fs::read_to_string(folder.join("master.key")).unwrap();
    let backend: Arc<dyn Backend> =
        Arc::new(EmbeddedBackend::open(&folder.join("bearerd.redb")).await.unwrap());
    Store::open(backend, Arc::new(KeyRing::parse(&ring).unwrap())).await.unwrap()
}

/// Processor time of all threads that live, to the nanosecond.
fn cpu(daemon: &Daemon) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.process_id())).unwrap();
    let of = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(of).sum())
}
