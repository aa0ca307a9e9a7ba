//! What each test is made of: [`Door`] (the door under test), [`Instance`] (a raw server whose every byte a test
//! decides), [`FakeTokens`], and [`Caller`] (a raw client).

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bearerd_audit::{AccessLog, AccessSettings, SinkKind};
use bearerd_crypto::RootSecret;
use bearerd_model::{
    CallerKey, Clock, ConnectionId, ConnectionSelector, FakeClock, Generation, InstanceOrigin, IntegrationId,
    KeySecret, MethodSet, Policy, PolicyId, Rule, TableSet, UnixTime,
};
use bearerd_net::{Connector, EgressSettings, Listener};
use bearerd_policy::{ApiKey, KeyKind, SharedSnapshot, Snapshot};
use bearerd_proxy::{ProxyDoor, ProxyMetrics, ProxySettings};
use bearerd_tokens::{
    AccessTokens, AfterRefusal, ConnectionView, LendError, LentToken, Roster, Standing, Upstream, Waiting,
};
use http::HeaderValue;
use prometheus::{TextEncoder, core::Collector};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Longer than anything takes; a test that waits for it has failed. Shorter than `pool_idle_s`, which would hide a
/// connection to the instance that is kept and should have been closed.
pub(crate) const LONG: Duration = Duration::from_secs(15);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it happens soon")
}

pub(crate) fn id(text: &str) -> ConnectionId {
    ConnectionId::parse(text).unwrap()
}

// ------------------------------------------------------------------------------------------------ the token engine

#[derive(Debug)]
pub(crate) struct FakeTokens {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    views: HashMap<ConnectionId, Arc<ConnectionView>>,
    /// In the store, not in memory.
    stored: HashMap<ConnectionId, Arc<ConnectionView>>,
    refused: Vec<(ConnectionId, Generation)>,
    after_refusal: Option<AfterRefusal>,
    refresh_ends: Option<oneshot::Receiver<()>>,
    acquire: Option<Result<LentToken, LendError>>,
    never_acquires: bool,
    roster: Option<Roster>,
    roster_in_store: Option<Roster>,
    loads: usize,
}

impl FakeTokens {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn refused(&self) -> Vec<(ConnectionId, Generation)> {
        self.lock().refused.clone()
    }

    pub(crate) fn loads(&self) -> usize {
        self.lock().loads
    }

    pub(crate) fn after_refusal(&self, outcome: AfterRefusal) {
        self.lock().after_refusal = Some(outcome);
    }

    /// The next forced refresh is under way until the sender is used or dropped.
    pub(crate) fn hold_refresh(&self) -> oneshot::Sender<()> {
        let (ends, ended) = oneshot::channel();
        self.lock().refresh_ends = Some(ended);
        ends
    }

    /// When a call last went out through a connection.
    pub(crate) fn last_use(&self, name: &str) -> Option<UnixTime> {
        self.lock().views[&id(name)].last_use.at()
    }

    /// Whoever waits for a token waits for ever.
    pub(crate) fn never_acquires(&self) {
        self.lock().never_acquires = true;
    }

    pub(crate) fn will_acquire(&self, outcome: Result<LentToken, LendError>) {
        self.lock().acquire = Some(outcome);
    }

    /// In the store, not in memory; `None`: the store does not answer.
    pub(crate) fn set_roster(&self, roster: Option<Roster>) {
        let mut state = self.lock();
        state.roster_in_store = roster;
        state.roster = None;
    }

    /// Another token of a connection, for where its calls go.
    pub(crate) fn token_of(&self, name: &str, text: &str, generation: u64) -> LentToken {
        token(text, generation, &self.lock().views[&id(name)].upstream)
    }

    pub(crate) fn set_standing(&self, name: &str, standing: Standing) {
        let mut state = self.lock();
        let view = ConnectionView { standing, ..(*state.views[&id(name)]).clone() };
        state.views.insert(id(name), Arc::new(view));
    }

    /// Out of memory, into the store.
    pub(crate) fn evict(&self, name: &str) {
        let mut state = self.lock();
        let view = state.views.remove(&id(name)).unwrap();
        state.stored.insert(id(name), view);
    }
}

impl AccessTokens for FakeTokens {
    fn peek(&self, id: &ConnectionId) -> Option<Arc<ConnectionView>> {
        self.lock().views.get(id).cloned()
    }

    fn load(&self, id: &ConnectionId) -> Waiting<Result<Arc<ConnectionView>, LendError>> {
        let mut state = self.lock();
        state.loads += 1;
        let found = state.stored.get(id).cloned().ok_or(LendError::Unknown);
        Box::pin(async { found })
    }

    fn acquire(&self, _id: &ConnectionId) -> Waiting<Result<LentToken, LendError>> {
        let state = self.lock();
        if state.never_acquires {
            return Box::pin(std::future::pending());
        }
        let outcome = state.acquire.clone().expect("the test says what acquire gives");
        Box::pin(async { outcome })
    }

    fn refused(&self, id: &ConnectionId, token: &LentToken) -> Waiting<AfterRefusal> {
        let mut state = self.lock();
        state.refused.push((id.clone(), token.generation));
        let outcome = state.after_refusal.clone().unwrap_or(AfterRefusal::PassThrough);
        let refresh_ends = state.refresh_ends.take();
        Box::pin(async {
            if let Some(ended) = refresh_ends {
                let _ = ended.await;
            }
            outcome
        })
    }

    fn roster(&self) -> Option<Roster> {
        self.lock().roster.clone()
    }

    fn load_roster(&self) -> Waiting<Result<Roster, LendError>> {
        let mut state = self.lock();
        let loaded = state.roster_in_store.clone();
        state.roster.clone_from(&loaded);
        Box::pin(async {
            loaded.ok_or(LendError::Unavailable {
                retry_after: Duration::from_secs(1),
                reason: "the store cannot be read",
            })
        })
    }
}

pub(crate) fn upstream(instance: &Instance) -> Upstream {
    Upstream {
        integration: IntegrationId::parse("sn").unwrap(),
        instance: instance.origin.clone(),
        connector: Connector::new(&EgressSettings::default()).unwrap(),
    }
}

pub(crate) fn token(text: &str, generation: u64, upstream: &Arc<Upstream>) -> LentToken {
    LentToken {
        generation: Generation(generation),
        upstream: Arc::clone(upstream),
        bearer: HeaderValue::from_str(&format!("Bearer {text}")).unwrap(),
        usable_until: UnixTime::from_secs(2_000),
    }
}

// ------------------------------------------------------------------------------------------------------ the door

/// A door with one worker, two connections (`hr`, `it`) to one instance, and a key that may do anything with
/// `incident` on `hr` and read `problem` on both.
pub(crate) struct Door {
    pub(crate) running: Option<ProxyDoor>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) key: ApiKey,
    pub(crate) tokens: Arc<FakeTokens>,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) shared: Arc<SharedSnapshot>,
    pub(crate) metrics: ProxyMetrics,
}

pub(crate) fn no_records() -> AccessLog {
    AccessLog::start(&AccessSettings { sink: SinkKind::None, ..AccessSettings::default() }).unwrap()
}

pub(crate) fn rule(connections: ConnectionSelector, tables: &[&str], methods: &[&str]) -> Rule {
    Rule::new(
        connections,
        TableSet::Named(tables.iter().map(|name| (*name).to_owned()).collect()),
        MethodSet(methods.iter().map(|name| (*name).to_owned()).collect()),
    )
}

pub(crate) fn ids(names: &[&str]) -> ConnectionSelector {
    ConnectionSelector::Ids(names.iter().map(|name| id(name)).collect())
}

fn rules() -> Vec<Rule> {
    vec![
        rule(ids(&["hr"]), &["incident"], &["GET", "POST", "PUT", "PATCH", "DELETE"]),
        rule(ids(&["hr", "it"]), &["problem"], &["GET"]),
    ]
}

pub(crate) fn snapshot(key: &ApiKey, rules: Vec<Rule>, default_connection: Option<&str>) -> Snapshot {
    snapshot_of(key, default_connection, |policy| policy.rules = rules)
}

fn snapshot_of(key: &ApiKey, default_connection: Option<&str>, change: impl FnOnce(&mut Policy)) -> Snapshot {
    let hash = RootSecret::from_bytes([5; 32]).keyed_hash("caller key");
    let now = UnixTime::from_secs(0);
    let policy = PolicyId::parse("policy-1").unwrap();
    let record = CallerKey {
        id: key.id(),
        description: String::new(),
        secrets: vec![KeySecret { hmac: key.secret_hmac(&hash), created_at: now, expires_at: None }],
        policies: vec![policy.clone()],
        default_connection: default_connection.map(id),
        expires_at: Some(UnixTime::from_secs(100_000)),
        created_at: now,
        last_used_at: None,
    };
    let mut policy = Policy {
        id: policy,
        description: String::new(),
        rules: rules(),
        rate: None,
        concurrency_max: None,
        created_at: now,
        updated_at: now,
    };
    change(&mut policy);
    Snapshot::compile([record], [policy], hash)
}

impl Door {
    /// Puts the key's policy in force as `change` leaves it.
    pub(crate) fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        self.shared.publish(snapshot_of(&self.key, Some("hr"), change), self.clock.now());
    }

    /// With access records.
    pub(crate) fn open_recording(instance: &Instance, log: &AccessLog) -> Self {
        Self::opened(instance, ProxySettings::default(), log)
    }

    pub(crate) fn open_recording_with(instance: &Instance, settings: ProxySettings, log: &AccessLog) -> Self {
        Self::opened(instance, settings, log)
    }

    pub(crate) fn open(instance: &Instance) -> Self {
        Self::open_with(instance, ProxySettings::default())
    }

    /// `settings.listen` and `settings.workers` are set here.
    pub(crate) fn open_with(instance: &Instance, settings: ProxySettings) -> Self {
        Self::opened(instance, settings, &no_records())
    }

    fn opened(instance: &Instance, settings: ProxySettings, log: &AccessLog) -> Self {
        let clock = Arc::new(FakeClock::at(UnixTime::from_secs(1_000)));
        let key = ApiKey::generate(KeyKind::Caller);
        let shared = Arc::new(SharedSnapshot::new(snapshot(&key, rules(), Some("hr")), clock.now()));
        let way = upstream(instance);
        let view = |name: &str| {
            let upstream = Arc::new(way.clone());
            let view = ConnectionView {
                id: id(name),
                labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
                standing: Standing::Ready(token(&format!("token-of-{name}"), 7, &upstream)),
                upstream,
                last_use: Arc::default(),
            };
            (id(name), Arc::new(view))
        };
        let views = HashMap::from([view("hr"), view("it")]);
        let tokens = Arc::new(FakeTokens { state: Mutex::new(State { views, ..State::default() }) });
        let settings = ProxySettings { listen: "127.0.0.1:0".to_owned(), workers: 1, ..settings };
        let listener = Listener::bind(&settings.listen_settings(), &[]).unwrap();
        let address = listener.address().tcp().unwrap();
        let metrics = ProxyMetrics::default();
        let running = ProxyDoor::start(
            &settings,
            listener,
            Arc::clone(&shared),
            Arc::clone(&tokens) as _,
            Arc::clone(&clock) as _,
            &metrics,
            log,
        );
        Self { running: Some(running.unwrap()), address, key, tokens, clock, shared, metrics }
    }

    pub(crate) async fn call(&self) -> Caller {
        Caller::connect(self.address).await
    }

    /// As [`Self::call`], with so small a buffer at the caller.
    pub(crate) async fn call_with_buffer(&self, bytes: u32) -> Caller {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        let stream = soon(socket.connect(self.address)).await.unwrap();
        Caller(Peer { stream, read: Vec::new() })
    }

    /// `METHOD PATH` with host, key and the given further header lines, each ending in CR LF.
    pub(crate) fn head(&self, request_line: &str, more: &str) -> String {
        format!(
            "{request_line} HTTP/1.1\r\nhost: b.example\r\nx-api-key: {}\r\n{more}\r\n",
            self.key.expose()
        )
    }

    /// One call on a connection of its own.
    pub(crate) async fn once(&self, request_line: &str, more: &str) -> Answer {
        let mut caller = self.call().await;
        caller.send(self.head(request_line, more)).await;
        caller.answer(request_line.starts_with("HEAD")).await
    }

    /// The value of one series, `name{labels}`; 0 if there is none.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = TextEncoder::new().encode_to_string(&self.metrics.collect()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or_default()
    }

    pub(crate) async fn until(&self, series: &str, value: u64) {
        soon(async {
            while self.metric(series) != value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

// -------------------------------------------------------------------------------------------------- the instance

/// Listens on loopback and hands each connection to the test.
pub(crate) struct Instance {
    pub(crate) origin: InstanceOrigin,
    connections: mpsc::UnboundedReceiver<Peer>,
    accepted: Arc<AtomicUsize>,
}

impl Instance {
    pub(crate) async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = InstanceOrigin::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (connected, connections) = mpsc::unbounded_channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                if connected.send(Peer { stream, read: Vec::new() }).is_err() {
                    return;
                }
            }
        });
        Self { origin, connections, accepted }
    }

    /// The next connection.
    pub(crate) async fn accept(&mut self) -> Peer {
        soon(self.connections.recv()).await.unwrap()
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Answers every request of every connection with what `respond` gives for it, from now on.
    pub(crate) fn serve(
        mut self,
        respond: impl Fn(&Message) -> String + Send + Sync + 'static,
    ) -> InstanceOrigin {
        let (respond, origin) = (Arc::new(respond), self.origin.clone());
        tokio::spawn(async move {
            while let Some(mut peer) = self.connections.recv().await {
                let respond = Arc::clone(&respond);
                tokio::spawn(async move {
                    while let Some(request) = peer.try_request().await {
                        if !peer.try_send(respond(&request)).await {
                            break;
                        }
                    }
                });
            }
        });
        origin
    }
}

/// One end of a raw connection.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

/// A request or an answer as it stood on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) first_line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    fn parse(head: &[u8]) -> Self {
        let text = std::str::from_utf8(head).unwrap();
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap().to_owned();
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        Self { first_line, headers, body: Vec::new() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) {
        soon(self.stream.write_all(text.as_ref())).await.unwrap();
    }

    /// More bytes; `false` at the end, or when the connection was cut.
    async fn fill(&mut self) -> bool {
        matches!(soon(self.stream.read_buf(&mut self.read)).await, Ok(1..))
    }

    /// As [`Self::send`], where the far side may close before.
    pub(crate) async fn try_send(&mut self, text: impl AsRef<[u8]>) -> bool {
        soon(self.stream.write_all(text.as_ref())).await.is_ok()
    }

    /// Whether the far side ends with a reset.
    pub(crate) async fn is_reset(&mut self) -> bool {
        loop {
            match soon(self.stream.read_buf(&mut self.read)).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Sends and closes in one segment, so that whoever reads the bytes sees the end with them.
    pub(crate) async fn send_and_close(mut self, text: impl AsRef<[u8]>) {
        SockRef::from(&self.stream).set_tcp_cork(true).unwrap();
        self.send(text).await;
    }

    /// The next head; the body's bytes stay unread. `None`: the connection ended first.
    pub(crate) async fn head(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                let head = std::mem::replace(&mut self.read, rest);
                return Some(Message::parse(&head[..end + 2]));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub(crate) async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        let rest = self.read.split_off(count);
        Some(std::mem::replace(&mut self.read, rest))
    }

    /// Up to CR LF, which is dropped.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.bytes(end + 2).await?;
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// One chunk of a chunked body; empty: the last.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
        let mut chunk = self.bytes(size + 2).await?;
        chunk.truncate(size);
        Some(chunk)
    }

    async fn body_of(&mut self, message: &mut Message, bodyless: bool) -> Option<()> {
        if bodyless {
            return Some(());
        }
        if message.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    return Some(());
                }
                message.body.extend_from_slice(&chunk);
            }
        }
        if let Some(length) = message.header("content-length") {
            message.body = self.bytes(length.parse().unwrap()).await?;
        }
        Some(())
    }

    pub(crate) async fn try_request(&mut self) -> Option<Message> {
        let mut request = self.head().await?;
        self.body_of(&mut request, false).await?;
        Some(request)
    }

    pub(crate) async fn request(&mut self) -> Message {
        self.try_request().await.expect("a whole request")
    }

    /// Waits until the far side has closed, and gives what it had sent before.
    pub(crate) async fn closed(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.read)
    }
}

/// `200` with a JSON body and further header lines, each ending in CR LF.
pub(crate) fn ok(body: &str, more: &str) -> String {
    respond(200, body, more)
}

pub(crate) fn respond(status: u16, body: &str, more: &str) -> String {
    let mut text = format!("HTTP/1.1 {status} Any\r\ncontent-type: application/json\r\n");
    write!(text, "content-length: {}\r\n{more}\r\n{body}", body.len()).unwrap();
    text
}

// ---------------------------------------------------------------------------------------------------- the caller

/// A client on one connection.
pub(crate) struct Caller(Peer);

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) message: Message,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.message.header(name)
    }

    pub(crate) fn text(&self) -> &str {
        self.message.text()
    }

    /// The code of an error that bearerd made; empty if the instance answered.
    pub(crate) fn code(&self) -> &str {
        self.header("bearerd-error").unwrap_or_default()
    }

    fn of(message: Message) -> Self {
        let status = message.first_line.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, message }
    }
}

impl Caller {
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(Peer { stream, read: Vec::new() })
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes).await;
    }

    /// Sends, and closes this side in the same segment.
    pub(crate) async fn send_and_end(&mut self, bytes: impl AsRef<[u8]>) {
        SockRef::from(&self.0.stream).set_tcp_cork(true).unwrap();
        self.send(bytes).await;
        soon(self.0.stream.shutdown()).await.unwrap();
    }

    /// As [`Self::send`], where the door may have closed already: then `false`.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.try_send(bytes).await
    }

    pub(crate) async fn is_reset(&mut self) -> bool {
        self.0.is_reset().await
    }

    pub(crate) async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        self.0.bytes(count).await
    }

    pub(crate) async fn head(&mut self) -> Option<Answer> {
        Some(Answer::of(self.0.head().await?))
    }

    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        self.0.chunk().await
    }

    /// `None`: the connection ended before the answer did.
    pub(crate) async fn try_answer(&mut self, bodyless: bool) -> Option<Answer> {
        let mut message = self.0.head().await?;
        self.0.body_of(&mut message, bodyless).await?;
        Some(Answer::of(message))
    }

    pub(crate) async fn answer(&mut self, bodyless: bool) -> Answer {
        self.try_answer(bodyless).await.expect("a whole answer")
    }

    pub(crate) async fn closed(&mut self) -> Vec<u8> {
        self.0.closed().await
    }
}
