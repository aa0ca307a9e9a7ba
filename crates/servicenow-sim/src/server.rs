//! The listener: accepts connections, serves HTTP/1.1 and HTTP/2 on them, and cuts them when a fault says so.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::SimBody;
use crate::exchange;
use crate::settings::SimSettings;
use crate::state::{Shared, SimState};
use crate::wire::{Seat, Wire};
use crate::world::World;

/// A running simulator. Dropping it stops it too, without waiting.
pub struct Sim {
    address: SocketAddr,
    state: SimState,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sim {
    /// Listens and serves on the current tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(settings: SimSettings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let world = World::new(settings, format!("http://{address}"));
        let state = SimState { shared: Arc::new(Shared::new(world)) };
        let sim = Self { address, state, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let acceptor =
            Acceptor { state: sim.state.clone(), stop: sim.stop.clone(), tasks: sim.tasks.clone() };
        let stopped = sim.stop.clone().cancelled_owned();
        sim.tasks.spawn(async move {
            tokio::select! {
                () = stopped => {}
                () = acceptor.accept(listener) => {}
            }
        });
        Ok(sim)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The handle that reads and steers this simulator.
    pub fn state(&self) -> &SimState {
        &self.state
    }

    /// Stops listening, cuts every connection and waits until nothing runs any more.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Clone)]
struct Acceptor {
    state: SimState,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn accept(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await; // out of file descriptors: let some close
                    continue;
                }
            };
            self.state.shared.world().counters.connections += 1;
            let acceptor = self.clone();
            self.tasks.spawn(async move {
                acceptor.serve(stream).await;
                drop(place);
            });
        }
    }

    async fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true); // only a matter of speed
        let cut = self.stop.child_token();
        let (acceptor, cut_by_fault) = (self.clone(), cut.clone());
        let service = service_fn(move |request| acceptor.clone().answer(request, cut_by_fault.clone()));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX);
        builder.http2().timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES_MAX_H2);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            () = cut.cancelled() => {}
            result = connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended early: {error}");
                }
            }
        }
    }

    /// The request runs in a task of its own: as on the real instance, it takes effect even if its client leaves.
    async fn answer(
        self,
        request: Request<Incoming>,
        cut: CancellationToken,
    ) -> Result<Response<SimBody>, Infallible> {
        let (state, stop) = (self.state, self.stop);
        let wire = Wire::new(&state.shared);
        let seat = Seat::at(&wire);
        let exchange = self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => None,
                response = exchange::answer(state, request, wire) => response,
            }
        });
        if let Ok(Some(response)) = exchange.await {
            return Ok(response.map(|body| body.seated(seat)));
        }
        drop(seat);
        cut.cancel();
        pending().await
    }
}

/// Connections at a time; further ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 4_096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client that does not finish its request's head is cut.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// ServiceNow takes long URLs: an encoded query of 50 KB is no exception.
const HEAD_BYTES_MAX: usize = 256 * 1024;
const HEAD_BYTES_MAX_H2: u32 = 256 * 1024;
