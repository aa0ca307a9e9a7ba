//! The daemon: binds the three doors, opens the store, starts everything, and ends it in order.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use bearerd_admin::{AdminDoor, AdminKeys, AdminParts};
use bearerd_audit::AccessLog;
use bearerd_connect::ConnectDoor;
use bearerd_control::Control;
use bearerd_crypto::KeyRing;
use bearerd_model::Clock;
use bearerd_net::{BoundAddress, Connector, DoorCertificate, InheritedSockets, ListenSettings, Listener};
use bearerd_proxy::{ProxyDoor, ProxyMetrics};
use bearerd_spill::Spill;
use bearerd_store::{Backend, OpenStoreError, Store};
use bearerd_store_embedded::EmbeddedBackend;
use bearerd_store_redis::RedisBackend;
use bearerd_tokens::{AccessTokens, ProcessPlace, TokenEngine};
use prometheus::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    clock::SystemClock,
    settings::{Settings, StoreKind},
};

/// The three doors' sockets, bound but not served.
pub(crate) struct Bound {
    proxy: Listener,
    connect: Listener,
    admin: Listener,
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) addresses: Addresses,
    control: Arc<Control>,
    tokens: Arc<TokenEngine>,
    access: AccessLog,
    proxy: ProxyDoor,
    connect: ConnectDoor,
    admin: JoinHandle<std::io::Result<()>>,
    following: JoinHandle<()>,
    certificates: Vec<DoorCertificate>,
    /// Fired first: `/readyz` says 503, new consents are not started.
    draining: CancellationToken,
    /// Fired last: the admin door and the follower end.
    closing: CancellationToken,
    drain: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) proxy: BoundAddress,
    pub(crate) connect: BoundAddress,
    pub(crate) admin: BoundAddress,
}

impl Bound {
    /// # Errors
    /// One line: which door, what is in the way, what to set.
    pub(crate) fn bind(settings: &Settings, mut inherited: InheritedSockets) -> Result<Self> {
        let mut bind = |setting: &str, listen: &ListenSettings, alpn: &[&[u8]]| {
            Listener::bind_or_inherit(listen, alpn, &mut inherited)
                .map_err(|error| anyhow!(error.advice(setting)))
        };
        let bound = Self {
            proxy: bind("proxy.listen", &settings.proxy.listen_settings(), ProxyDoor::ALPN)?,
            connect: bind("connect.listen", &settings.connect.listen_settings(), ConnectDoor::ALPN)?,
            admin: bind("admin.listen", &settings.admin.listen_settings(), &[b"h2", b"http/1.1"])?,
        };
        for name in inherited.names() {
            warn!(socket = name, "the inherited socket {name:?} is not the listen of any door and is closed");
        }
        Ok(bound)
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            proxy: self.proxy.address().clone(),
            connect: self.connect.address().clone(),
            admin: self.admin.address().clone(),
        }
    }
}

impl Daemon {
    /// Opens the store under the master key and serves the doors.
    ///
    /// # Errors
    /// One line with the remedy. The store is written only once its key is proved.
    pub(crate) async fn start(settings: &Settings, bound: Bound) -> Result<Self> {
        let ring = Arc::new(settings.key_ring()?);
        let admin_keys = settings.admin.bootstrap_key.as_deref().map(AdminKeys::parse).transpose();
        let admin_keys = admin_keys.context("admin.bootstrap_key")?.unwrap_or_else(|| {
            warn!("admin.bootstrap_key is not set: nobody can use the admin API; `bearerd init` makes one");
            AdminKeys::default()
        });
        let connector = Connector::new(&settings.egress).context("egress")?;
        let backend = open_backend(settings, &ring).await?;
        let store = Store::open(backend, ring).await.map_err(store_error)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let registry = Registry::new();
        let place = process_place(settings).await?;
        let engine = TokenEngine::start(
            store.clone(),
            connector,
            clock.clone(),
            settings.tokens.clone(),
            place,
            &registry,
        )?;
        let tokens = Arc::new(engine);
        let control = Control::new(
            store,
            tokens.clone(),
            clock.clone(),
            settings.connect.rules()?,
            settings.instance_rules(),
        );
        // A refresh token that rotates must be somewhere, whatever becomes of a shared store.
        let admits_rotation = settings.store != StoreKind::Redis || settings.tokens.spill_dir.is_some();
        let control = Arc::new(control.admitting_rotation(admits_rotation));
        control.register_metrics(&registry)?;
        control.load().await?;
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let addresses = bound.addresses();
        let certificates = [&bound.proxy, &bound.connect, &bound.admin];
        let certificates = certificates.into_iter().filter_map(Listener::certificate).collect();
        let following = tokio::spawn({
            let (control, closing) = (control.clone(), closing.clone());
            async move { control.run(closing).await }
        });
        let admin = AdminDoor::new(
            &settings.admin,
            AdminParts {
                control: control.clone(),
                keys: admin_keys,
                registry: registry.clone(),
                draining: draining.clone(),
            },
        );
        let admin = tokio::spawn(admin.serve(bound.admin, closing.clone()));
        let connect =
            ConnectDoor::start(bound.connect, &settings.connect, control.clone(), draining.clone())?;
        let lender: Arc<dyn AccessTokens> = tokens.clone();
        let access = AccessLog::start(&settings.access)?;
        registry.register(Box::new(access.metrics()))?;
        let metrics = ProxyMetrics::default();
        registry.register(Box::new(metrics.clone()))?;
        let proxy = ProxyDoor::start(
            &settings.proxy,
            bound.proxy,
            control.snapshot(),
            lender,
            clock,
            &metrics,
            &access,
        )?;
        tokens.begin(); // not before everything that may end the start again
        Ok(Self {
            addresses,
            control,
            tokens,
            access,
            proxy,
            connect,
            admin,
            following,
            certificates,
            draining,
            closing,
            drain: settings.drain(),
        })
    }

    /// Serves until SIGTERM or SIGINT; SIGHUP reads certificates again, the doors' and the integrations'.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub(crate) async fn run(self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => self.reload_certificates(),
            }
        }
        self.shutdown().await;
        Ok(())
    }

    fn reload_certificates(&self) {
        for certificate in &self.certificates {
            match certificate.reload() {
                Ok(()) => info!("a door's certificate was read again"),
                Err(error) => {
                    error!(%error, "a door's certificate was not read again; the old one stays: {error}");
                }
            }
        }
        let tokens = self.tokens.clone();
        tokio::spawn(async move {
            // Reads the files that integrations name; connections to instances follow where their content changed.
            for (key, error) in tokens.apply_all().await {
                warn!(record = %key, %error, "{key} was not read again: {error}");
            }
        });
        warn!("SIGHUP reads certificates again; other settings need a restart");
    }

    /// Ends refreshes and calls, then consents and other acts, then the rest.
    pub(crate) async fn shutdown(self) {
        info!("draining: calls under way may end within {} s", self.drain.as_secs());
        self.draining.cancel();
        // Refreshes end first: none is begun any more, and whoever waits for one under way gets what it brings.
        let refreshes = tokio::spawn({
            let (tokens, drain) = (self.tokens.clone(), self.drain);
            async move { tokens.shutdown(drain).await }
        });
        self.proxy.shutdown(self.drain).await;
        if let Err(error) = self.connect.closed().await {
            warn!(%error, "the connect door ended with a fault");
        }
        self.control.finish_acts(self.drain).await;
        let _ = refreshes.await;
        self.closing.cancel();
        let _ = self.following.await;
        let _ = self.admin.await;
        // Last, so that every call is in it.
        self.access.shutdown(ACCESS_FLUSH_MAX).await;
        info!("ended");
    }
}

/// A healthy sink takes a full queue in a fraction of this; a stuck one shall not hold up the end.
const ACCESS_FLUSH_MAX: Duration = Duration::from_secs(2);

/// Who this process is among those of the store, with what its machine has kept.
async fn process_place(settings: &Settings) -> Result<ProcessPlace> {
    let place = match settings.store {
        StoreKind::Embedded => ProcessPlace::alone(),
        StoreKind::Redis => ProcessPlace::shared(),
    };
    let Some(folder) = &settings.tokens.spill_dir else { return Ok(place) };
    let (spill, found) = Spill::open(folder).await.context("tokens.spill_dir")?;
    if found.damaged > 0 {
        let entries = found.damaged;
        warn!(
            entries,
            "the spill log in {} holds entries that do not read: they were set aside",
            folder.display()
        );
    }
    if !found.entries.is_empty() {
        info!(
            grants = found.entries.len(),
            "this machine kept grants that the store may not hold; they are offered to it"
        );
    }
    Ok(place.with_spill(spill, found.entries))
}

async fn open_backend(settings: &Settings, ring: &KeyRing) -> Result<Arc<dyn Backend>> {
    match settings.store {
        StoreKind::Embedded => {
            let path = &settings.embedded.path;
            // Opening a file changes it, so a wrong key is found out before (S-07).
            if let Some(root) = EmbeddedBackend::peek(path, &Store::root_key()).await {
                Store::prove(ring, &root).map_err(store_error)?;
            }
            let backend = EmbeddedBackend::open(path).await?;
            Ok(Arc::new(backend))
        }
        StoreKind::Redis => {
            let backend = RedisBackend::connect(settings.redis_settings()?).await?;
            for warning in backend.warnings() {
                warn!("{warning}");
            }
            Ok(Arc::new(backend))
        }
    }
}

fn store_error(error: OpenStoreError) -> anyhow::Error {
    match error {
        OpenStoreError::WrongMasterKey(_) => anyhow!(
            "{error}; point master_key at the key file that this store was made with (nothing was changed)"
        ),
        OpenStoreError::RootMissing => {
            anyhow!("{error}; restore the store from a backup, or use an empty one (nothing was changed)")
        }
        OpenStoreError::Store(error) => anyhow!("{error}; bring the store up and start again"),
    }
}
