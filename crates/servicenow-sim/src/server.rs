//! The listener: accepts connections, in clear text or TLS, serves HTTP/1.1 and HTTP/2 on them, and cuts them or takes
//! them over when a fault says so.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::SimBody;
use crate::exchange::{self, Outcome};
use crate::line::{Line, Socket, Tap, TlsFacts};
use crate::settings::SimSettings;
use crate::state::{Shared, SimState};
use crate::tls;
use crate::wire::{Seat, Wire};
use crate::world::World;

/// A running simulator. Dropping it stops it too, without waiting.
pub struct Sim {
    address: SocketAddr,
    origin: String,
    state: SimState,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sim {
    /// Listens and serves on the current tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the certificate, its key or the clients' CA are none.
    pub async fn start(settings: SimSettings) -> io::Result<Self> {
        let tls = settings.tls.as_ref().map(tls::acceptor).transpose()?;
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let origin = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let world = World::new(settings, origin.clone());
        let state = SimState { shared: Arc::new(Shared::new(world)) };
        let sim = Self { address, origin, state, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let acceptor =
            Acceptor { state: sim.state.clone(), tls, stop: sim.stop.clone(), tasks: sim.tasks.clone() };
        let stopped = sim.stop.clone().cancelled_owned();
        sim.tasks.spawn(async move {
            tokio::select! {
                () = stopped => {}
                () = acceptor.accept(listener) => {}
            }
        });
        Ok(sim)
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn origin(&self) -> String {
        self.origin.clone()
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
    tls: Option<TlsAcceptor>,
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
            let number = self.state.shared.world().accept_connection();
            let acceptor = self.clone();
            self.tasks.spawn(async move {
                acceptor.serve(stream, number).await;
                drop(place);
            });
        }
    }

    async fn serve(&self, stream: TcpStream, number: u64) {
        let _ = stream.set_nodelay(true); // only a matter of speed
        let cut = self.stop.child_token();
        let opened = tokio::select! {
            () = cut.cancelled() => return,
            opened = self.open(stream) => opened,
        };
        let Some((socket, facts)) = opened else { return };
        let line = Line::new(number, facts, &self.state.shared);
        let tap = Tap::new(socket, Arc::clone(&line));
        self.speak(tap.clone(), &line, &cut).await;
        if let Some(raw) = line.raw_answer() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                _ = tap.answer_raw(raw) => {} // its client may have left
            }
        }
    }

    /// Speaks HTTP until the connection ends, or is cut.
    async fn speak(&self, tap: Tap, line: &Arc<Line>, cut: &CancellationToken) {
        let last = CancellationToken::new();
        let service =
            service_fn(|request| self.clone().answer(request, Arc::clone(line), cut.clone(), last.clone()));
        let (idle, streams_max) = {
            let world = self.state.shared.world();
            (Duration::from_millis(world.behaviour.connection_idle_ms), world.behaviour.http2_streams_max)
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(HEAD_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams_max)
            .max_header_list_size(HEAD_BYTES_MAX_H2);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(tap), service));
        let mut is_last = false;
        loop {
            tokio::select! {
                biased;
                () = cut.cancelled() => return,
                () = last.cancelled(), if !is_last => {
                    is_last = true;
                    connection.as_mut().graceful_shutdown();
                }
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection ended early: {error}");
                    }
                    return;
                }
            }
        }
    }

    /// The socket to speak HTTP on; `None` if the TLS handshake failed.
    async fn open(&self, stream: TcpStream) -> Option<(Box<dyn Socket>, TlsFacts)> {
        let Some(tls) = &self.tls else { return Some((Box::new(stream), TlsFacts::default())) };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
        let mut world = self.state.shared.world();
        let opened = if let Ok(Ok(stream)) = handshake {
            world.counters.tls_handshakes += 1;
            world.counters.tls_resumptions += u64::from(tls::is_resumed(&stream));
            let facts = tls::facts(&stream);
            Some((Box::new(stream) as Box<dyn Socket>, facts))
        } else {
            world.counters.tls_failures += 1;
            None
        };
        drop(world);
        self.state.shared.note_change();
        opened
    }

    /// The request runs in a task of its own: as on the real instance, it takes effect even if its client leaves.
    async fn answer(
        self,
        request: Request<Incoming>,
        line: Arc<Line>,
        cut: CancellationToken,
        last: CancellationToken,
    ) -> Result<Response<SimBody>, io::Error> {
        let (state, stop) = (self.state, self.stop);
        let arrival = line.arrival(&request);
        let requests_max = state.shared.world().behaviour.connection_requests_max;
        if requests_max > 0 && arrival.number >= requests_max {
            last.cancel();
            tokio::task::yield_now().await; // the connection learns of it before the answer is written
        }
        let is_http2 = request.version() == Version::HTTP_2;
        let is_head = request.method() == Method::HEAD;
        state.shared.world().counters.http2_requests += u64::from(is_http2);
        let wire = Wire::new(&state.shared, &line);
        let seat = Seat::at(&wire);
        let exchange = self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => Outcome::Cut,
                outcome = exchange::answer(state, request, arrival, wire) => outcome,
            }
        });
        match exchange.await.unwrap_or(Outcome::Cut) {
            Outcome::Answer(response) if is_head => {
                seat.leave(true); // the body will not be sent
                return Ok(*response);
            }
            Outcome::Answer(response) => return Ok(response.map(|body| body.seated(seat))),
            Outcome::Raw(raw) => {
                seat.leave(true);
                line.take_over(raw);
            }
            Outcome::Cut => seat.leave(false),
            Outcome::CutConnection => {
                seat.leave(false);
                cut.cancel();
            }
        }
        if is_http2 && !cut.is_cancelled() {
            return Err(io::Error::other("cut by a fault")); // resets the stream alone
        }
        cut.cancel();
        pending().await
    }
}

/// Connections at a time; further ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 4_096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client that does not finish its TLS handshake is cut.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// ServiceNow takes long URLs: an encoded query of 50 KB is no exception.
const HEAD_BYTES_MAX: usize = 256 * 1024;
const HEAD_BYTES_MAX_H2: u32 = 256 * 1024;
