//! The router on a listener.

use std::{convert::Infallible, future::Future, io, sync::Arc};

use bearerd_net::{Listener, ServeLimits, serve};
use hyper::{body::Incoming, service::service_fn};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{ConnectSettings, Consents, InvalidConnectSettings, Router};

/// Door 2, running.
#[derive(Debug)]
pub struct ConnectDoor {
    task: JoinHandle<io::Result<()>>,
}

impl ConnectDoor {
    /// Protocols for [`Listener::bind`], best first.
    pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

    /// Serves on `listener` until `shutdown` fires; `consents` is the daemon's `Control`. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConnectSettings`]; nothing is served then.
    pub fn start<C: Consents>(
        listener: Listener,
        settings: &ConnectSettings,
        consents: Arc<C>,
        shutdown: CancellationToken,
    ) -> Result<Self, InvalidConnectSettings> {
        let router = Router::new(settings, consents)?;
        Ok(Self { task: tokio::spawn(run(listener, router, shutdown)) })
    }

    /// Waits until the door has closed: after `shutdown`, requests in flight have ended or were cut.
    ///
    /// # Errors
    /// The listener could not be registered with the runtime, or the door's task failed.
    pub async fn closed(self) -> io::Result<()> {
        self.task.await.map_err(io::Error::other)?
    }
}

fn run<C: Consents>(
    listener: Listener,
    router: Router<C>,
    shutdown: CancellationToken,
) -> impl Future<Output = io::Result<()>> + Send {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.handle(request).await) }
    });
    serve(listener, ServeLimits::default(), shutdown, service)
}
