//! One request from its first byte to its answer: logged, counted, made to fail if a rule says so, let through the
//! gates, handled, and dressed with the headers and cookies of the instance.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{ALLOW, CACHE_CONTROL, EXPIRES, HeaderName, HeaderValue, PRAGMA, SERVER};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::body::SimBody;
use crate::clock::SimTime;
use crate::faults::{Fault, FaultOn, FaultSubject};
use crate::ledger::{Decision, ExchangeOutcome};
use crate::line::{Arrival, RawAnswer};
use crate::message::{Format, Reply, SimRequest};
use crate::mishap;
use crate::request_log::{BodyFacts, RequestRecord};
use crate::secrets::Sha256;
use crate::sessions::{self, Gate, GatePass};
use crate::state::{Shared, SimState};
use crate::wire::Wire;
use crate::world::World;
use crate::{api, authorize, control, marker, pages, raw, secrets, token_endpoint};

/// Kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Authorize,
    Token,
    Revoke,
    Table,
    Stats,
    Attachment,
    Import,
    Batch,
    TinyUrl,
    Catalog,
    Knowledge,
    Jwks,
    Other,
}

impl Endpoint {
    fn of(path: &str) -> Self {
        match path {
            "/oauth_auth.do" => Self::Authorize,
            "/oauth_token.do" => Self::Token,
            "/oauth_revoke_token.do" => Self::Revoke,
            "/api/now/oauth/jwks" => Self::Jwks,
            path => match api::family(path) {
                Some("table") => Self::Table,
                Some("stats") => Self::Stats,
                Some("attachment") => Self::Attachment,
                Some("import") => Self::Import,
                Some("batch") => Self::Batch,
                Some("tinyurl") => Self::TinyUrl,
                Some("catalog") => Self::Catalog,
                Some("knowledge") => Self::Knowledge,
                _ => Self::Other,
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token => "token",
            Self::Revoke => "revoke",
            Self::Table => "table",
            Self::Stats => "stats",
            Self::Attachment => "attachment",
            Self::Import => "import",
            Self::Batch => "batch",
            Self::TinyUrl => "tinyurl",
            Self::Catalog => "catalog",
            Self::Knowledge => "knowledge",
            Self::Jwks => "jwks",
            Self::Other => "other",
        }
    }

    fn fault_on(self) -> FaultOn {
        match self {
            Self::Authorize => FaultOn::Authorize,
            Self::Token => FaultOn::Token,
            Self::Revoke => FaultOn::Revoke,
            Self::Table => FaultOn::Table,
            Self::Stats
            | Self::Attachment
            | Self::Import
            | Self::Batch
            | Self::TinyUrl
            | Self::Catalog
            | Self::Knowledge
            | Self::Jwks
            | Self::Other => FaultOn::Any,
        }
    }
}

/// What comes of a request.
pub(crate) enum Outcome {
    Answer(Box<Response<SimBody>>),
    /// Bytes in place of an answer.
    Raw(RawAnswer),
    /// No answer: the connection is cut, on HTTP/2 the stream.
    Cut,
    /// The same, but on HTTP/2 too the connection.
    CutConnection,
}

/// Carries out one request.
pub(crate) async fn answer(
    state: SimState,
    request: Request<Incoming>,
    arrival: Arrival,
    wire: Arc<Wire>,
) -> Outcome {
    let (head, incoming) = request.into_parts();
    let path = head.uri.path().to_owned();
    if control::owns(&path) {
        return control_answer(&state, head, incoming).await;
    }
    let shared = &state.shared;
    let endpoint = Endpoint::of(&path);
    let visit = Visit::begin(shared, endpoint, &head, arrival, wire);
    let early = choose_early_faults(&visit, &head);
    if let Some(fault @ Fault::AnswerEarly { close, .. }) = early.iter().find(|fault| !fault.only_waits()) {
        return answer_early(&visit, fault, incoming, *close);
    }
    wait_for_body(shared, &early).await;
    let received = receive(&visit, incoming, &limits_of(endpoint, &head.method, &path), &early).await;
    let received = match received {
        Ok(received) => received,
        Err(BodyProblem::TooLarge) => {
            let reply = Reply::api_error(
                Format::Json,
                StatusCode::PAYLOAD_TOO_LARGE,
                "Request too large",
                Some("The body is over 10 MiB"),
            );
            return Outcome::Answer(into_response(&dress(&visit, None, None, reply), None));
        }
        Err(BodyProblem::Broken) => {
            shared.world().counters.cut_requests += 1;
            shared.note_change();
            return Outcome::Cut;
        }
    };
    let query = head.uri.query().map(str::to_owned);
    let request = SimRequest {
        method: head.method,
        path,
        query,
        headers: head.headers,
        body: received.held.into(),
        unheld_bytes: received.unheld_bytes,
    };
    shared.world().log.note_body(visit.seq, &request.body, received.facts);
    if endpoint == Endpoint::Token
        && let Some((grant_type, spent)) = token_endpoint::spent(&request)
    {
        visit.wire.begin_exchange(grant_type, &spent);
    }
    let faults = choose_faults(&visit, &request);
    shared.note_change();
    carry_out(&visit, &request, &faults).await
}

async fn control_answer(state: &SimState, head: http::request::Parts, incoming: Incoming) -> Outcome {
    let Ok(body) = http_body_util::Limited::new(incoming, BODY_BYTES_MAX).collect().await else {
        return Outcome::Cut;
    };
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().map(str::to_owned));
    let (method, headers, body) = (head.method, head.headers, body.to_bytes());
    let request = SimRequest { method, path, query, headers, body, unheld_bytes: None };
    Outcome::Answer(into_response(&control::answer(state, &request), None))
}

async fn carry_out(visit: &Visit, request: &SimRequest, faults: &[Fault]) -> Outcome {
    let shared = &visit.shared;
    // A slow request holds its place in the session and on the node: that is what fills their queues.
    let _passes = match enter(visit, request).await {
        Ok(passes) => passes,
        Err(reply) => {
            return Outcome::Answer(into_response(&dress(visit, Some(request), None, *reply), None));
        }
    };
    let latency = Duration::from_millis(shared.world().behaviour.latency_ms);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    wait(shared, faults, false).await;
    let fault = faults.iter().find(|fault| !fault.only_waits());
    if fault == Some(&Fault::DropBefore) {
        note_prevented(visit, request, &Fault::DropBefore);
        return Outcome::Cut;
    }
    if fault == Some(&Fault::DropConnection) {
        note_prevented(visit, request, &Fault::DropConnection);
        return Outcome::CutConnection;
    }
    let is_token = visit.endpoint == Endpoint::Token;
    let now = shared.world().now();
    let instead = fault.and_then(|fault| mishap::instead(fault, is_token, request.format(), now));
    if let (Some(fault), true) = (fault, instead.is_some()) {
        note_prevented(visit, request, fault);
    }
    let (user, reply) = instead.map_or_else(|| effect(visit, request), |reply| (None, reply));
    wait(shared, faults, true).await;
    if fault == Some(&Fault::DropAfter) {
        return Outcome::Cut;
    }
    if let (Some(fault), Some(exchange)) = (fault, visit.wire.exchange())
        && mishap::hides_tokens(fault)
    {
        shared.world().exchanges.spoil(exchange);
    }
    let reply = match fault {
        Some(fault) => mishap::spoil(fault, request.format(), reply),
        None => reply,
    };
    let reply = dress(visit, Some(request), user.as_deref(), reply);
    let is_head = request.method == Method::HEAD;
    let by_hand = fault.and_then(|fault| raw::answer(fault, &reply, is_head));
    match by_hand {
        Some(raw) if !visit.is_http2 => Outcome::Raw(raw),
        // Those that HTTP/2 can say are said by `into_response`.
        Some(_) if !matches!(fault, Some(Fault::Trailers { .. })) => Outcome::Cut,
        Some(_) | None => Outcome::Answer(into_response(&reply, fault)),
    }
}

/// Answers while the body is still on its way. The rest of it is read in the background, or by nobody.
fn answer_early(visit: &Visit, fault: &Fault, mut incoming: Incoming, close: bool) -> Outcome {
    let now = visit.shared.world().now();
    let reply = mishap::instead(fault, visit.endpoint == Endpoint::Token, Format::Json, now);
    let reply = reply.unwrap_or_else(|| Reply::new(StatusCode::PAYLOAD_TOO_LARGE));
    if close {
        drop(incoming);
    } else {
        // Ends with the connection.
        tokio::spawn(async move { while incoming.frame().await.is_some_and(|frame| frame.is_ok()) {} });
    }
    Outcome::Answer(into_response(&dress(visit, None, None, reply), None))
}

/// One request on its way: counted as in flight until dropped.
struct Visit {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    seq: u64,
    is_http2: bool,
    wire: Arc<Wire>,
}

impl Visit {
    fn begin(
        shared: &Arc<Shared>,
        endpoint: Endpoint,
        head: &http::request::Parts,
        arrival: Arrival,
        wire: Arc<Wire>,
    ) -> Self {
        let mut world = shared.world();
        let target = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
        world.counters.arrived(endpoint.name());
        world.counters.saw_headers(&head.headers, head.uri.query().unwrap_or_default());
        let record = RequestRecord {
            seq: 0,
            at: world.now(),
            method: head.method.to_string(),
            target,
            version: format!("{:?}", head.version),
            connection: arrival.connection,
            request_on_connection: arrival.number,
            is_tls: arrival.tls.is_tls,
            client_certificate: arrival.tls.client_certificate,
            raw_head: arrival.raw_head,
            findings: arrival.findings,
            headers: head.headers.iter().map(header_text).collect(),
            body: None,
            body_bytes: 0,
            body_sha256: None,
            trailers: Vec::new(),
            user: None,
            status: None,
        };
        let records_max = world.behaviour.request_log_max;
        let seq = world.log.push(record, records_max);
        drop(world);
        shared.note_change();
        let is_http2 = head.version == Version::HTTP_2;
        Self { shared: Arc::clone(shared), endpoint, seq, is_http2, wire }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.shared.world().counters.left(self.endpoint.name());
        self.shared.note_change();
    }
}

enum BodyProblem {
    TooLarge,
    Broken,
}

/// How much of a body is kept, and how much is taken at all.
struct BodyLimits {
    held_bytes_max: u64,
    bytes_max: u64,
}

/// Uploads of any size are taken: what is too long to hold is counted and hashed.
fn limits_of(endpoint: Endpoint, method: &Method, path: &str) -> BodyLimits {
    if endpoint == Endpoint::Attachment && method == Method::POST && path.ends_with("/file") {
        return BodyLimits { held_bytes_max: UPLOAD_HELD_BYTES_MAX, bytes_max: u64::MAX };
    }
    let bytes_max = u64::try_from(BODY_BYTES_MAX).unwrap_or(u64::MAX);
    BodyLimits { held_bytes_max: bytes_max, bytes_max }
}

struct Received {
    held: BytesMut,
    /// Set if the body was too long to hold; `held` is empty then.
    unheld_bytes: Option<u64>,
    facts: BodyFacts,
}

async fn receive(
    visit: &Visit,
    mut incoming: Incoming,
    limits: &BodyLimits,
    early: &[Fault],
) -> Result<Received, BodyProblem> {
    let mut digest = Sha256::new();
    let mut received = Received { held: BytesMut::new(), unheld_bytes: None, facts: BodyFacts::default() };
    while let Some(frame) = incoming.frame().await {
        match frame.map_err(|_| BodyProblem::Broken)?.into_data() {
            Ok(data) => {
                digest.update(&data);
                received.facts.bytes += u64::try_from(data.len()).unwrap_or_default();
                if received.facts.bytes > limits.bytes_max {
                    return Err(BodyProblem::TooLarge);
                }
                if received.facts.bytes <= limits.held_bytes_max {
                    received.held.extend_from_slice(&data);
                } else {
                    received.held = BytesMut::new();
                    received.unheld_bytes = Some(received.facts.bytes);
                }
                visit.shared.world().log.note_progress(visit.seq, received.facts.bytes);
                visit.shared.note_change();
                read_slowly(early).await;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    received.facts.trailers = trailers.iter().map(header_text).collect();
                }
            }
        }
    }
    received.facts.sha256 = digest.finish();
    Ok(received)
}

async fn read_slowly(early: &[Fault]) {
    for fault in early {
        if let Fault::SlowRead { interval_ms } = fault {
            tokio::time::sleep(Duration::from_millis(*interval_ms)).await;
        }
    }
}

/// Waits before the body is asked for.
async fn wait_for_body(shared: &Shared, early: &[Fault]) {
    for fault in early {
        if let Fault::ContinueLate { ms, gate } = fault {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            if let Some(gate) = gate {
                shared.hold(gate).await;
            }
        }
    }
}

fn header_text((name, value): (&HeaderName, &HeaderValue)) -> (String, String) {
    (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn choose_early_faults(visit: &Visit, head: &http::request::Parts) -> Vec<Fault> {
    let target = format!("{}?{}", head.uri.path(), head.uri.query().unwrap_or_default());
    let subject = FaultSubject {
        on: visit.endpoint.fault_on(),
        method: head.method.as_str(),
        target: &target,
        grant_type: None,
    };
    let mut world = visit.shared.world();
    let faults = world.faults.choose_early(subject);
    for fault in &faults {
        world.counters.fault(mishap::name(fault));
    }
    faults
}

fn choose_faults(visit: &Visit, request: &SimRequest) -> Vec<Fault> {
    let mut world = visit.shared.world();
    let is_token = visit.endpoint == Endpoint::Token;
    let grant_type = request.form_pairs().into_iter().find(|(name, _)| is_token && name == "grant_type");
    let query = request.query.as_deref().unwrap_or_default();
    let target = format!("{}?{query}", request.path);
    let subject = FaultSubject {
        on: visit.endpoint.fault_on(),
        method: request.method.as_str(),
        target: &target,
        grant_type: grant_type.as_ref().map(|(_, value)| value.as_str()),
    };
    let mut faults = world.faults.choose(subject);
    for fault in &faults {
        world.counters.fault(mishap::name(fault));
    }
    if world.behaviour.asleep {
        faults.retain(Fault::only_waits);
        faults.push(Fault::Asleep);
    }
    faults
}

/// A fault answers in the instance's place: nothing was spent. A scripted refusal is one all the same: it is what the
/// client sees.
fn note_prevented(visit: &Visit, request: &SimRequest, fault: &Fault) {
    let Some(exchange) = visit.wire.exchange() else { return };
    let mut world = visit.shared.world();
    let spent = token_endpoint::spent(request).map(|(_, spent)| spent).unwrap_or_default();
    let (owner, is_current) = world.tokens.refresh_token_standing(&spent).unzip();
    let refused = *fault == Fault::Unauthorized401;
    let outcome = if refused { ExchangeOutcome::Refused } else { ExchangeOutcome::Prevented };
    let reason = Some(mishap::name(fault));
    let spent_current = is_current.unwrap_or(false);
    world.exchanges.decide(exchange, Decision { outcome, reason, owner, spent_current, refresh_token: None });
}

/// Carries out the waits before or after the effect.
async fn wait(shared: &Shared, faults: &[Fault], after: bool) {
    for fault in faults {
        match fault {
            Fault::DelayMs { ms, after_effect } if *after_effect == after => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
            }
            Fault::Hold { gate, after_effect } if *after_effect == after => shared.hold(gate).await,
            _ => {}
        }
    }
}

/// What the instance does with the request; also who it was for.
fn effect(visit: &Visit, request: &SimRequest) -> (Option<String>, Reply) {
    let mut world = visit.shared.world();
    if !request.path.starts_with("/api/") {
        return (None, handle_page(&mut world, visit, request));
    }
    let now = world.now();
    let answer = api::answer(&mut world, request, now);
    note_write(&mut world, request, answer.reply.status);
    (answer.user_name, answer.reply)
}

/// Counts a write whose marker was on a write before.
fn note_write(world: &mut World, request: &SimRequest, status: StatusCode) {
    let reads = matches!(api::effective_method(world, request), Method::GET | Method::HEAD);
    if reads || !status.is_success() || !world.behaviour.echo_marker {
        return;
    }
    if let Some(marker) = marker::of(request)
        && !world.written_markers.add(&marker)
    {
        world.counters.repeated_writes += 1;
    }
}

/// Waits for a place in the session and on the node; the answer of a full queue otherwise.
async fn enter(visit: &Visit, request: &SimRequest) -> Result<Vec<GatePass>, Box<Reply>> {
    let shared = &visit.shared;
    let mut passes = Vec::new();
    if !request.path.starts_with("/api/") {
        return Ok(passes);
    }
    let (session, node) = gates(&mut shared.world(), request);
    if let Some(gate) = session {
        let Some(pass) = gate.pass().await else {
            shared.world().counters.session_overflows += 1;
            return Err(Box::new(Reply::new(StatusCode::ACCEPTED)));
        };
        passes.push(pass);
    }
    if let Some(gate) = node {
        let Some(pass) = gate.pass().await else {
            shared.world().counters.node_overflows += 1;
            return Err(Box::new(Reply::new(StatusCode::TOO_MANY_REQUESTS)));
        };
        passes.push(pass);
    }
    Ok(passes)
}

/// The gates a request must pass: that of its session, and that of the node.
fn gates(world: &mut World, request: &SimRequest) -> (Option<Arc<Gate>>, Option<Arc<Gate>>) {
    let now = world.now();
    let idle_max = Duration::from_secs(world.behaviour.session_idle_s);
    let session = request
        .cookie("JSESSIONID")
        .filter(|_| world.behaviour.session_serialisation)
        .and_then(|id| world.sessions.gate(id, idle_max, now));
    (session, world.node_gate())
}

fn handle_page(world: &mut World, visit: &Visit, request: &SimRequest) -> Reply {
    let now = world.now();
    match visit.endpoint {
        Endpoint::Authorize => authorize::answer(world, request, now),
        Endpoint::Token => token_endpoint::answer(world, request, visit.wire.exchange(), now),
        Endpoint::Revoke => token_endpoint::answer_revocation(world, request, now),
        _ => Reply::html(StatusCode::NOT_FOUND, pages::problem("Page not found")),
    }
}

/// Adds what every answer of the instance carries, cookies included, and notes the outcome.
fn dress(visit: &Visit, request: Option<&SimRequest>, user: Option<&str>, reply: Reply) -> Reply {
    let mut world = visit.shared.world();
    let now = world.now();
    world.log.note_answer(visit.seq, reply.status.as_u16(), user);
    if let (Endpoint::Table, Some(request)) = (visit.endpoint, request) {
        let method = api::effective_method(&world, request);
        world.counters.table_call(&method, reply.status);
    }
    let session_id = session_of(&mut world, request, user, now);
    let reply = match request {
        Some(request) if world.behaviour.echo_marker && request.path.starts_with("/api/") => {
            marker::mark(request, user, world.behaviour.echo_bytes, reply)
        }
        Some(_) | None => reply,
    };
    let mut reply = reply
        .with(SERVER, "ServiceNow")
        .with(CACHE_CONTROL, "no-store, no-cache, must-revalidate, max-age=-1")
        .with(PRAGMA, "no-store,no-cache")
        .with(EXPIRES, "0")
        .with(HeaderName::from_static("x-content-type-options"), "nosniff")
        .with(HeaderName::from_static("x-is-logged-in"), if user.is_some() { "true" } else { "false" })
        .with(HeaderName::from_static("x-transaction-id"), &secrets::random_hex32()[..12]);
    if reply.status == StatusCode::METHOD_NOT_ALLOWED && !reply.headers.contains_key(ALLOW) {
        reply = reply.with(ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE");
    }
    let cookies = sessions::set_cookies(&mut reply.headers, &session_id, world.origin.starts_with("https:"));
    world.counters.set_cookie_sent += u64::try_from(cookies).unwrap_or_default();
    reply
}

/// The session of the request's cookie, or a new one.
fn session_of(world: &mut World, request: Option<&SimRequest>, user: Option<&str>, now: SimTime) -> String {
    let idle_max = Duration::from_secs(world.behaviour.session_idle_s);
    if let Some(id) = request.and_then(|request| request.cookie("JSESSIONID"))
        && world.sessions.used(id, user, idle_max, now)
    {
        return id.to_owned();
    }
    let gate = Gate::new(world.behaviour.session_concurrency, world.behaviour.session_queue);
    world.sessions.start(user.map(str::to_owned), gate, now)
}

fn into_response(reply: &Reply, fault: Option<&Fault>) -> Box<Response<SimBody>> {
    let mut response = Response::new(mishap::body(fault, reply));
    *response.status_mut() = reply.status;
    reply.headers.clone_into(response.headers_mut());
    Box::new(response)
}

/// What the instance takes at most; ServiceNow's own limit for the Table API is not known.
const BODY_BYTES_MAX: usize = 10 * 1024 * 1024;
/// Of one upload.
const UPLOAD_HELD_BYTES_MAX: u64 = 16 * 1024 * 1024;
