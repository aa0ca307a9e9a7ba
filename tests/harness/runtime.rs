//! Where asynchronous things run, and how a test waits.

use std::{
    future::Future,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

/// Runs a future to its end. The runtime behind it lives as long as the process: simulators serve on it while tests
/// block elsewhere.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

/// Waits until `probe` answers something, and answers that.
///
/// # Panics
/// After `limit`, naming what was waited for.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    poll(limit, probe).unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}

/// The first thing that `probe` answers; `None` after `limit`.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let found = probe();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
}

const PAUSE: Duration = Duration::from_millis(15);
