//! Runs a hyper service on a door: for the connect and admin doors. The proxy door has a loop of its own.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    caller::{CallerRule, Peer},
    listen::{Handshaker, Listener},
    socket::{PeerAddress, Socket},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// hyper refuses smaller read buffers.
const HEADERS_BYTES_MIN: usize = 8 * 1024;
/// Requests at once on one HTTP/2 connection (P-20).
const STREAMS_MAX: u32 = 100;
/// A silent HTTP/2 peer is asked whether it lives, and dropped if it does not answer in time.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How much the peers of a door may take.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections at once; further ones wait in the backlog.
    pub connections_max: usize,
    /// For a request's head; over HTTP/1 also the longest that a connection stays idle.
    pub header_read_timeout: Duration,
    /// For the PROXY protocol's header and TLS together.
    pub handshake_timeout: Duration,
    /// Request line and header section together; less than 8 KiB counts as 8 KiB. Beyond it: 431.
    pub headers_bytes_max: usize,
    /// How long requests in flight may take to end after `shutdown`.
    pub drain: Duration,
    /// HTTP/2 by ALPN, or by prior knowledge on a plain door.
    pub http2: bool,
}

impl Default for ServeLimits {
    /// For a door that people and probes use: 1000 connections, 10 s, 10 s, 32 KiB, 20 s, HTTP/2 on.
    fn default() -> Self {
        Self {
            connections_max: 1_000,
            header_read_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            headers_bytes_max: 32 * 1024,
            drain: Duration::from_secs(20),
            http2: true,
        }
    }
}

/// Serves `service` on `listener` until `shutdown` fires; then accepts no more, lets requests in flight end within
/// [`ServeLimits::drain`], cuts the rest and returns. Each request carries its [`Peer`] among its extensions, with the
/// caller that `Forwarded` names where the door goes by that; one that it does not name is not known. A failed handshake, a broken
/// connection or a panic in the service ends that connection only. Dropping the future leaves the open connections to
/// their own tasks; fire `shutdown` instead.
///
/// # Errors
/// The listener cannot be registered with the runtime; nothing was served.
pub async fn serve<S, B>(
    listener: Listener,
    limits: ServeLimits,
    shutdown: CancellationToken,
    service: S,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let acceptor = listener.into_acceptor()?;
    let (address, handshaker) = (acceptor.address().clone(), acceptor.handshaker().clone());
    let door = Arc::new(Door { handshaker, limits, shutdown, cut: CancellationToken::new() });
    let places = Arc::new(Semaphore::new(limits.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, acceptor.accept().await)
        };
        let (place, (socket, peer)) = tokio::select! {
            biased;
            () = door.shutdown.cancelled() => break,
            next = next => next,
        };
        let (door, service) = (Arc::clone(&door), service.clone());
        connections.spawn(async move {
            let _place = place;
            serve_connection(&door, socket, peer, service).await;
        });
    }
    // Closes the socket: what comes now is refused by the kernel and can go to another process.
    drop(acceptor);
    connections.close();
    if timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(
            listener = %address,
            connections = connections.len(),
            "requests on {address} did not end within the drain time and are cut"
        );
        door.cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// What the connections of one door share.
struct Door {
    handshaker: Handshaker,
    limits: ServeLimits,
    shutdown: CancellationToken,
    /// Fires when the drain time is over.
    cut: CancellationToken,
}

async fn serve_connection<S, B>(door: &Door, socket: Socket, address: PeerAddress, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let limits = &door.limits;
    let handshake = tokio::select! {
        biased;
        () = door.shutdown.cancelled() => return,
        handshake = timeout(limits.handshake_timeout, door.handshaker.handshake(socket, address)) => handshake,
    };
    let (stream, peer) = match handshake {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "handshake failed"),
        Err(_) => return tracing::debug!(peer = %address, "handshake timed out"),
    };
    let begun = Arc::new(AtomicBool::new(false));
    let callers = Arc::clone(door.handshaker.callers());
    let service = Marking { inner: service, peer, callers, begun: Arc::clone(&begun) };
    let builder = protocol(limits, stream.alpn());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper bounds a head that has begun; a peer that says nothing while the protocol is still open, or speaks HTTP/2
    // and asks for nothing, is bounded here.
    let mut first_request = pin!(sleep(limits.header_read_timeout));
    let (mut awaiting_first, mut draining) = (true, false);
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = &mut first_request, if awaiting_first => {
                awaiting_first = false;
                if !begun.load(Ordering::Relaxed) {
                    return tracing::debug!(%peer, "no request in time");
                }
            }
            () = door.shutdown.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = door.cut.cancelled() => return,
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, error, "connection ended with an error");
    }
}

fn protocol(limits: &ServeLimits, alpn: Option<&[u8]>) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let header_bytes_max = limits.headers_bytes_max.max(HEADERS_BYTES_MIN);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    match alpn {
        _ if !limits.http2 => builder.http1_only(),
        Some(b"h2") => builder.http2_only(),
        Some(_) => builder.http1_only(),
        None => builder,
    }
}

/// Puts the peer among a request's extensions and notes that one came.
struct Marking<S> {
    inner: S,
    peer: Peer,
    callers: Arc<CallerRule>,
    begun: Arc<AtomicBool>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Marking<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.begun.store(true, Ordering::Relaxed);
        let caller = self.callers.caller_of(&self.peer, request.headers()).unwrap_or_else(|fault| {
            tracing::debug!(peer = %self.peer, %fault, "a trusted proxy does not say who calls");
            None
        });
        request.extensions_mut().insert(Peer { caller, ..self.peer });
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::SocketAddr, sync::Mutex};

    use bytes::Bytes;
    use http_body_util::{Empty, Full};
    use hyper::{client::conn::http2, service::service_fn};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::Notify,
        task::JoinHandle,
        time::Instant,
    };

    use super::*;
    use crate::{
        CallerAddress, ListenSettings,
        testing::{TestCa, origin},
    };

    const GET: &[u8] = b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    /// A door with a service that tells the peer's port; `/slow` answers when told to, `/panic` never.
    struct TestDoor {
        address: SocketAddr,
        shutdown: CancellationToken,
        release: Arc<Notify>,
        /// One permit for each `/slow` request that arrived.
        arrived: Arc<Semaphore>,
        served: JoinHandle<io::Result<()>>,
    }

    impl TestDoor {
        fn open(limits: ServeLimits) -> Self {
            Self::on(Listener::bind(&ListenSettings::at("127.0.0.1:0"), &[]).unwrap(), limits)
        }

        fn on(listener: Listener, limits: ServeLimits) -> Self {
            let (release, arrived) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
            let (door_release, door_arrived) = (Arc::clone(&release), Arc::clone(&arrived));
            let service = service_fn(move |request: Request<Incoming>| {
                let (release, arrived) = (Arc::clone(&door_release), Arc::clone(&door_arrived));
                async move {
                    let peer: Peer = request.extensions().get().copied().unwrap();
                    match request.uri().path() {
                        "/slow" => {
                            arrived.add_permits(1);
                            release.notified().await;
                        }
                        "/panic" => panic!("the service's fault"),
                        _ => {}
                    }
                    let caller = peer.caller.map_or_else(|| "nobody".to_owned(), |caller| caller.to_string());
                    let text = format!("{:?} from {caller} at {}", request.version(), peer.socket);
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
                }
            });
            let (address, shutdown) = (listener.address().tcp().unwrap(), CancellationToken::new());
            let served = tokio::spawn(serve(listener, limits, shutdown.clone(), service));
            Self { address, shutdown, release, arrived, served }
        }

        async fn dial(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends `request` on a connection of its own and reads until the door closes.
        async fn say(&self, request: &[u8]) -> String {
            let mut caller = self.dial().await;
            caller.write_all(request).await.unwrap();
            rest_of(&mut caller).await
        }

        async fn check_alive(&self) {
            assert!(self.say(GET).await.starts_with("HTTP/1.1 200 OK"));
        }
    }

    async fn rest_of(caller: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset, too, is the end: what came before it counts.
        let _ = caller.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn a_request_carries_its_peer() {
        let door = TestDoor::open(ServeLimits::default());
        let mut caller = door.dial().await;
        caller.write_all(GET).await.unwrap();
        let own = caller.local_addr().unwrap();
        let expected = format!("HTTP/1.1 from {} at {own}", own.ip());
        assert!(rest_of(&mut caller).await.ends_with(&expected));
    }

    /// A PROXY protocol header for 192.0.2.7.
    const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\0\x50\x01\xbb";

    fn behind(caller_address: CallerAddress, trusted: &str) -> ListenSettings {
        let trusted_proxies = vec![trusted.parse().unwrap()];
        ListenSettings { caller_address, trusted_proxies, ..ListenSettings::at("127.0.0.1:0") }
    }

    #[tokio::test]
    async fn a_trusted_proxy_names_the_caller_before_anything_else() {
        let settings = behind(CallerAddress::ProxyProtocol, "127.0.0.0/8");
        let door = TestDoor::on(Listener::bind(&settings, &[]).unwrap(), ServeLimits::default());
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        let unknown = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";
        for (header, caller) in [(HEADER, "192.0.2.7"), (local, "127.0.0.1"), (unknown, "nobody")] {
            let reply = door.say(&[header, GET].concat()).await;
            assert!(reply.contains(&format!("HTTP/1.1 from {caller} at 127.0.0.1:")), "{reply}");
        }
        // Who does not say it is not heard, and what is said twice is no request.
        let text = [b"PROXY TCP4 192.0.2.7 10.0.0.1 80 443\r\n", GET].concat();
        for silent in [GET, &text] {
            assert_eq!(door.say(silent).await, "");
        }
        assert!(door.say(&[HEADER, HEADER, GET].concat()).await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn nobody_else_names_a_caller() {
        let settings = behind(CallerAddress::ProxyProtocol, "10.0.0.0/8");
        let door = TestDoor::on(Listener::bind(&settings, &[]).unwrap(), ServeLimits::default());
        for bytes in [&[HEADER, GET].concat()[..], GET] {
            assert_eq!(door.say(bytes).await, "");
        }
        // On a door that does not ask for it, the header is no request.
        let door = TestDoor::open(ServeLimits::default());
        assert!(door.say(&[HEADER, GET].concat()).await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_never_comes_is_closed() {
        let settings = behind(CallerAddress::ProxyProtocol, "127.0.0.0/8");
        let door = TestDoor::on(Listener::bind(&settings, &[]).unwrap(), ServeLimits::default());
        for begun in [&b""[..], &HEADER[..5], &HEADER[..20]] {
            let mut caller = door.dial().await;
            caller.write_all(begun).await.unwrap();
            let since = Instant::now();
            assert_eq!(rest_of(&mut caller).await, "");
            assert_eq!(since.elapsed(), ServeLimits::default().handshake_timeout, "{begun:?}");
        }
    }

    #[tokio::test]
    async fn forwarded_is_read_of_each_request_of_a_trusted_proxy() {
        let ask = |forwarded: &str| {
            format!("GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{forwarded}\r\n")
        };
        for (trusted, forwarded, caller) in [
            ("127.0.0.0/8", "Forwarded: for=192.0.2.7\r\n", "192.0.2.7"),
            ("127.0.0.0/8", "Forwarded: for=192.0.2.9\r\nForwarded: for=192.0.2.7\r\n", "192.0.2.7"),
            ("127.0.0.0/8", "Forwarded: for=_hidden\r\n", "nobody"),
            ("127.0.0.0/8", "X-Forwarded-For: 192.0.2.7\r\n", "nobody"),
            ("127.0.0.0/8", "", "nobody"),
            ("10.0.0.0/8", "Forwarded: for=192.0.2.7\r\n", "127.0.0.1"),
            ("10.0.0.0/8", "", "127.0.0.1"),
        ] {
            let settings = behind(CallerAddress::Forwarded, trusted);
            let door = TestDoor::on(Listener::bind(&settings, &[]).unwrap(), ServeLimits::default());
            let reply = door.say(ask(forwarded).as_bytes()).await;
            assert!(
                reply.contains(&format!("from {caller} at 127.0.0.1:")),
                "{trusted} {forwarded:?}: {reply}"
            );
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_a_door_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door.sock");
        for (caller_address, bytes, caller) in [
            (CallerAddress::Peer, GET.to_vec(), "nobody"),
            (CallerAddress::ProxyProtocol, [HEADER, GET].concat(), "192.0.2.7"),
            (
                CallerAddress::Forwarded,
                b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\nForwarded: for=192.0.2.7\r\n\r\n"
                    .to_vec(),
                "192.0.2.7",
            ),
        ] {
            let address = format!("unix:{}", path.display());
            let settings = ListenSettings { caller_address, ..ListenSettings::at(address) };
            let listener = Listener::bind(&settings, &[]).unwrap();
            let shutdown = CancellationToken::new();
            let served = tokio::spawn(serve(
                listener,
                ServeLimits::default(),
                shutdown.clone(),
                service_fn(async |request: Request<Incoming>| {
                    let peer: Peer = request.extensions().get().copied().unwrap();
                    let caller = peer.caller.map_or_else(|| "nobody".to_owned(), |caller| caller.to_string());
                    let text = format!("from {caller} at {}", peer.socket);
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
                }),
            ));
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await.unwrap();
            assert!(reply.ends_with(&format!("from {caller} at a unix socket")), "{reply}");
            shutdown.cancel();
            served.await.unwrap().unwrap();
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn http2_is_by_prior_knowledge_and_can_be_off() {
        for http2 in [true, false] {
            let door = TestDoor::open(ServeLimits { http2, ..ServeLimits::default() });
            let io = TokioIo::new(door.dial().await);
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::get("http://x/quick").body(Empty::<Bytes>::new()).unwrap();
            let reply = sender.send_request(request).await;
            assert_eq!(reply.is_ok_and(|reply| reply.version() == http::Version::HTTP_2), http2);
            connection.abort();
            door.check_alive().await;
        }
    }

    /// P-19: whatever a peer leaves unfinished, it is gone after the time-out.
    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_closed() {
        let limits = ServeLimits::default();
        for http2 in [true, false] {
            let door = TestDoor::open(ServeLimits { http2, ..limits });
            for head in [
                "",
                "PRI * HT",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                "GET /slow HTTP/1.1\r\nHost:",
                "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n",
                "GET /quick HTTP/1.1\r\nHost: x\r\n\r\nGET /slo",
            ] {
                let begun = Instant::now();
                door.say(head.as_bytes()).await;
                let took = begun.elapsed();
                assert!(took < limits.header_read_timeout + Duration::from_secs(1), "{head:?}: {took:?}");
                // Without HTTP/2 its preface is a bad request and closed at once.
                let patient = took >= limits.header_read_timeout;
                assert!(patient || head.starts_with("PRI") && !http2, "{head:?}: {took:?}");
            }
            door.check_alive().await;
        }
    }

    /// P-20
    #[tokio::test]
    async fn a_large_head_is_refused() {
        let door = TestDoor::open(ServeLimits { headers_bytes_max: 16 * 1024, ..ServeLimits::default() });
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(17 * 1024));
        assert!(door.say(head.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        door.check_alive().await;
    }

    #[tokio::test]
    async fn a_panic_ends_one_connection() {
        let door = TestDoor::open(ServeLimits { connections_max: 1, ..ServeLimits::default() });
        assert_eq!(door.say(b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").await, "");
        door.check_alive().await;
    }

    #[tokio::test]
    async fn requests_in_flight_end_before_the_door_closes() {
        let door = TestDoor::open(ServeLimits { drain: Duration::from_mins(10), ..ServeLimits::default() });
        let mut idle = door.dial().await;
        idle.write_all(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        idle.readable().await.unwrap();
        let mut busy = door.dial().await;
        busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        door.arrived.acquire().await.unwrap().forget();

        door.shutdown.cancel();
        assert!(rest_of(&mut idle).await.contains("200 OK"), "an idle connection is closed at once");
        // The socket is closed before the drain begins, so that nothing queues on a door that will not open.
        assert!(TcpStream::connect(door.address).await.is_err());
        assert!(!door.served.is_finished());
        door.release.notify_one();
        let reply = rest_of(&mut busy).await;
        assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.contains("connection: close"), "{reply}");
        door.served.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_bounded() {
        let door = TestDoor::open(ServeLimits::default());
        let mut busy = door.dial().await;
        busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        door.arrived.acquire().await.unwrap().forget();
        let begun = Instant::now();
        door.shutdown.cancel();
        door.served.await.unwrap().unwrap();
        assert_eq!(begun.elapsed(), ServeLimits::default().drain);
        assert_eq!(rest_of(&mut busy).await, "");
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait() {
        let door = TestDoor::open(ServeLimits { connections_max: 1, ..ServeLimits::default() });
        let mut first = door.dial().await;
        first.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        door.arrived.acquire().await.unwrap().forget();
        let order = Mutex::new(Vec::new());
        let second = async {
            door.check_alive().await;
            order.lock().unwrap().push("second");
        };
        let release = async {
            // Enough turns for the second to be served, were it let in.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            order.lock().unwrap().push("first");
            door.release.notify_one();
        };
        tokio::join!(second, release);
        assert_eq!(*order.lock().unwrap(), ["first", "second"]);
    }

    #[tokio::test]
    async fn a_failed_handshake_ends_one_connection() {
        let ca = TestCa::new();
        let tls = Some(ca.install(&ca.issue("127.0.0.1")));
        let settings = ListenSettings { tls, ..ListenSettings::at("127.0.0.1:0") };
        let door =
            TestDoor::on(Listener::bind(&settings, &[b"h2", b"http/1.1"]).unwrap(), ServeLimits::default());
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"\0\0\0\0\0\0\0\0"] {
            door.say(garbage).await;
        }
        drop(door.dial().await);
        let request = Request::get("/quick").body(Full::default()).unwrap();
        let to = origin(&format!("https://{}", door.address));
        let fetched =
            crate::fetch(&ca.connector(), &to, request, crate::FetchLimits::default()).await.unwrap();
        assert!(fetched.body.starts_with(b"HTTP/1.1 from"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_never_comes_is_closed() {
        let ca = TestCa::new();
        let tls = Some(ca.install(&ca.issue("127.0.0.1")));
        let settings = ListenSettings { tls, ..ListenSettings::at("127.0.0.1:0") };
        let door = TestDoor::on(Listener::bind(&settings, &[]).unwrap(), ServeLimits::default());
        let begun = Instant::now();
        assert_eq!(door.say(b"").await, "");
        assert_eq!(begun.elapsed(), ServeLimits::default().handshake_timeout);
    }
}
