//! The door as the binary starts and stops it.

use std::{io, sync::Arc, sync::mpsc, thread, time::Duration};

use bearerd_audit::{AccessLog, AccessWriter};
use bearerd_model::Clock;
use bearerd_net::Listener;
use bearerd_policy::SharedSnapshot;
use bearerd_tokens::AccessTokens;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::watch,
};

use crate::{
    metrics::{ProxyMetrics, Shard},
    places::AllPlaces,
    settings::{ProxySettings, ProxySettingsError},
    worker::{Worker, WorkerParts},
};

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error(transparent)]
    Settings(#[from] ProxySettingsError),
    #[error("a worker of the proxy door could not be started")]
    Worker(#[from] io::Error),
}

/// The running proxy door. Dropping it cuts what is under way; [`Self::shutdown`] does not.
#[derive(Debug)]
pub struct ProxyDoor {
    stop: watch::Sender<Option<Duration>>,
    workers: Vec<thread::JoinHandle<()>>,
}

impl ProxyDoor {
    /// What the door speaks over TLS, best first.
    pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

    /// Starts the workers, each on a thread of its own, all accepting from `listener`. The door serves when this
    /// returns. It needs no runtime around it.
    ///
    /// # Errors
    /// [`DoorError`]; no worker is left running.
    pub fn start(
        settings: &ProxySettings,
        listener: Listener,
        snapshot: Arc<SharedSnapshot>,
        tokens: Arc<dyn AccessTokens>,
        clock: Arc<dyn Clock>,
        metrics: &ProxyMetrics,
        access: &AccessLog,
    ) -> Result<Self, DoorError> {
        let mut limits = settings.limits()?;
        limits.tls = listener.is_tls();
        let places = Arc::new(AllPlaces::new(limits.places));
        let parts = WorkerParts { limits: Arc::new(limits), shared: snapshot, tokens, clock, places };
        let (stop, stopped) = watch::channel(None);
        let mut door = Self { stop, workers: Vec::new() };
        for number in 0..settings.worker_count() {
            let (listener, parts, shard) = (listener.try_clone()?, parts.clone(), metrics.shard());
            let access = access.writer();
            let stopped = stopped.clone();
            let (up, is_up) = mpsc::sync_channel(1);
            let worker = thread::Builder::new()
                .name(format!("proxy-{number}"))
                .spawn(move || run_worker(listener, parts, shard, access, stopped, &up))?;
            door.workers.push(worker);
            is_up.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))?;
        }
        drop(listener);
        Ok(door)
    }

    /// Stops accepting, lets calls under way end within `drain`, cuts the rest, and returns when all is over.
    pub async fn shutdown(mut self, drain: Duration) {
        self.stop.send_replace(Some(drain));
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(|| {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker of the proxy door panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("waiting for the proxy door's workers failed");
        }
    }
}

fn run_worker(
    listener: Listener,
    parts: WorkerParts,
    shard: Arc<Shard>,
    access: AccessWriter,
    stopped: watch::Receiver<Option<Duration>>,
    up: &mpsc::SyncSender<io::Result<()>>,
) {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(POLLS_PER_LOOK);
    let runtime = match builder.build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return drop(up.send(Err(error))),
    };
    runtime.block_on(async move {
        match listener.into_acceptor() {
            Ok(acceptor) => {
                let worker = Worker::new(parts, shard, access, Arc::clone(acceptor.handshaker().callers()));
                drop(up.send(Ok(())));
                worker.run(acceptor, stopped).await;
            }
            Err(error) => drop(up.send(Err(error))),
        }
    });
}

/// Tasks that run before a worker looks for new events at the latest: as many as are usually ready at once, twice
/// (`line_up`). Timers and new connections wait as long.
const POLLS_PER_LOOK: u32 = 128;
