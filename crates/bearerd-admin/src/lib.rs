//! Door 3, operators: the admin API (`/v1`), its description (`/openapi.json`), health and metrics. A thin shell over
//! `bearerd-control`: it parses, checks the admin key, calls one act and shows the result. It decides nothing about
//! tokens and shows none.
//!
//! Where to look: `router` for what surrounds every request, `wire` for the messages, `integrations`, `connections`,
//! `keys` and `policies` for the resources, `refusal` for errors.

mod admin_key;
mod connections;
mod extract;
mod integrations;
mod keys;
mod openapi;
mod policies;
mod probes;
mod process;
mod refusal;
mod reply;
mod router;
mod settings;
pub mod wire;

#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use axum::Router;
use bearerd_control::Control;
use bearerd_net::{Listener, ServeLimits};
use hyper_util::service::TowerToHyperService;
use prometheus::{Gauge, Opts, Registry};
use tokio_util::sync::CancellationToken;

pub use admin_key::{AdminKeys, MalformedAdminKey};
pub use openapi::openapi_json;
pub use settings::AdminSettings;

use process::ProcessMetrics;
use router::{App, Shared};

/// The admin door, ready to be served.
#[derive(Debug)]
pub struct AdminDoor {
    app: App,
    limits: ServeLimits,
}

/// What the door stands on.
#[derive(Debug)]
pub struct AdminParts {
    pub control: Arc<Control>,
    pub keys: AdminKeys,
    /// What `/metrics` shows beside the process's own figures, which must not be in it.
    pub registry: Registry,
    /// Fired when the process begins to drain: `/readyz` says 503 from then on.
    pub draining: CancellationToken,
}

impl AdminDoor {
    /// Makes the door.
    ///
    /// # Panics
    /// Never: the metrics' names are constants.
    pub fn new(settings: &AdminSettings, parts: AdminParts) -> Self {
        let own_registry = Registry::new();
        let (process, store_up) = own_metrics(&own_registry).expect("constant names, an empty registry");
        let document = openapi::document(settings.public_url.as_deref());
        let started_at = parts.control.clock().now();
        let app = App::new(Shared {
            control: parts.control,
            keys: parts.keys,
            metrics_require_key: settings.metrics_require_key,
            registry: parts.registry,
            own_registry,
            process,
            store_up,
            draining: parts.draining,
            started_at,
            openapi: document.to_json().expect("the document is plain data").into(),
            tls: settings.tls.is_some(),
        });
        Self { app, limits: settings.limits() }
    }

    /// Answers on `listener` until `shutdown` fires and the requests in flight have ended.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime; nothing was served.
    pub async fn serve(self, listener: Listener, shutdown: CancellationToken) -> io::Result<()> {
        let limits = self.limits;
        bearerd_net::serve(listener, limits, shutdown, TowerToHyperService::new(self.into_router())).await
    }

    /// The door as a service, for tests and for other shells.
    pub fn into_router(self) -> Router {
        router::router(self.app)
    }
}

fn own_metrics(registry: &Registry) -> prometheus::Result<(ProcessMetrics, Gauge)> {
    let process = ProcessMetrics::register(registry)?;
    let store_up = Gauge::new("bearerd_store_up", "Whether the store answered last time (1) or not (0).")?;
    registry.register(Box::new(store_up.clone()))?;
    let build = Opts::new("bearerd_build_info", "Always 1; the labels say what runs.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = Gauge::with_opts(build)?;
    build.set(1.0);
    registry.register(Box::new(build))?;
    Ok((process, store_up))
}
