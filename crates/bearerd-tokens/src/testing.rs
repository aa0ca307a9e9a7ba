//! Far sides for this crate's tests: an authorization server that follows a script, a store that fails on demand, a
//! clock that runs and leaps.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bearerd_crypto::Sealed;
use bearerd_model::{Clock, InstanceOrigin, UnixTime};
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, MemoryBackend, RecordKey, Revision, StoreError,
    StoredRecord, Times,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};
use url::form_urlencoded;

/// Waits for `condition`; the limit only ends a test that has failed.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs with the real one, and leaps ahead when told.
#[derive(Debug)]
pub(crate) struct RunningClock {
    started: Instant,
    ahead_ms: AtomicU64,
}

impl RunningClock {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), ahead_ms: AtomicU64::default() }
    }

    pub(crate) fn leap(&self, span: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(span.as_millis()).unwrap(), SeqCst);
    }
}

impl Clock for RunningClock {
    fn now(&self) -> UnixTime {
        let ahead = Duration::from_millis(self.ahead_ms.load(SeqCst));
        UnixTime::from_secs(1_800_000_000) + self.started.elapsed() + ahead
    }
}

// --- authorization server -------------------------------------------------------------------------------------------

/// What the authorization server does where its script is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Each call brings another token of this life.
    New(Duration),
    /// The token it has, and what is left of it in whole seconds; another one once that has ended. ServiceNow's way.
    Remaining(Duration),
    /// The token it has, renewed to its whole life; another one once it has ended.
    Renewed(Duration),
    /// Another refresh token with each call, and only the newest is good (RFC 9700 §4.14).
    Rotating(Duration),
}

/// One answer of the script.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    retry_after: Option<&'static str>,
    body: String,
}

impl Answer {
    pub(crate) fn json(status: u16, body: impl Into<String>) -> Self {
        Self { status, retry_after: None, body: body.into() }
    }

    /// ServiceNow's flattened refusal.
    pub(crate) fn denied() -> Self {
        Self::json(401, r#"{"error_description":"access_denied","error":"server_error"}"#)
    }

    pub(crate) fn invalid_grant() -> Self {
        Self::json(400, r#"{"error":"invalid_grant"}"#)
    }

    pub(crate) fn unavailable(retry_after: Option<&'static str>) -> Self {
        Self { retry_after, ..Self::json(503, "{}") }
    }

    pub(crate) fn token(access_token: &str, refresh_token: Option<&str>, expires_in: u64) -> Self {
        let refresh = refresh_token.map(|token| format!(r#","refresh_token":"{token}""#)).unwrap_or_default();
        Self::json(200, format!(r#"{{"access_token":"{access_token}","expires_in":{expires_in}{refresh}}}"#))
    }
}

pub(crate) struct AuthServer {
    pub(crate) origin: InstanceOrigin,
    shared: Arc<ServerState>,
}

struct ServerState {
    clock: Arc<dyn Clock>,
    habit: Habit,
    script: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<HashMap<String, String>>>,
    /// While false, calls are taken and not answered.
    answers: watch::Sender<bool>,
    issued: Mutex<Issued>,
    /// Calls under way, now and at most.
    in_flight: Mutex<(usize, usize)>,
}

struct Issued {
    /// `at-{number}` and `rt-{number}` are the newest.
    number: u64,
    refresh_number: u64,
    ends: HashMap<String, UnixTime>,
}

impl AuthServer {
    /// Begins with `at-1` issued to its end, and `rt-1`.
    pub(crate) async fn start(clock: Arc<dyn Clock>, habit: Habit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let issued = Issued { number: 1, refresh_number: 1, ends: HashMap::new() };
        let shared = Arc::new(ServerState {
            clock,
            habit,
            script: Mutex::default(),
            calls: Mutex::default(),
            answers: watch::Sender::new(true),
            issued: Mutex::new(issued),
            in_flight: Mutex::default(),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = serving.clone();
                let service = service_fn(move |request| answer(state.clone(), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { origin: InstanceOrigin::parse(&format!("http://{address}")).unwrap(), shared }
    }

    pub(crate) fn next(&self, answer: Answer) {
        lock(&self.shared.script).push_back(answer);
    }

    /// Holds answers back, or lets them go.
    pub(crate) fn answers(&self, answers: bool) {
        self.shared.answers.send_replace(answers);
    }

    /// The forms of the token calls so far.
    pub(crate) fn calls(&self) -> Vec<HashMap<String, String>> {
        lock(&self.shared.calls).clone()
    }

    /// The most calls that were ever under way at once.
    pub(crate) fn most_in_flight(&self) -> usize {
        lock(&self.shared.in_flight).1
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.shared.calls).len()
    }

    /// When the server stops admitting a token that it issued.
    pub(crate) fn end_of(&self, token: &str) -> Option<UnixTime> {
        lock(&self.shared.issued).ends.get(token).copied()
    }

    /// The token that the script's tests begin with was issued here, and ends then.
    pub(crate) fn has_issued(&self, token: &str, ends: UnixTime) {
        lock(&self.shared.issued).ends.insert(token.to_owned(), ends);
    }
}

async fn answer(
    state: Arc<ServerState>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let form: HashMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
    lock(&state.calls).push(form.clone());
    {
        let mut in_flight = lock(&state.in_flight);
        in_flight.0 += 1;
        in_flight.1 = in_flight.1.max(in_flight.0);
    }
    let _ = state.answers.subscribe().wait_for(|answers| *answers).await;
    let scripted = lock(&state.script).pop_front();
    let answer = scripted.unwrap_or_else(|| state.by_habit(&form));
    lock(&state.in_flight).0 -= 1;
    let mut response = Response::builder().status(answer.status).header("content-type", "application/json");
    if let Some(seconds) = answer.retry_after {
        response = response.header("retry-after", seconds);
    }
    Ok(response.body(Full::from(answer.body)).unwrap())
}

impl ServerState {
    fn by_habit(&self, form: &HashMap<String, String>) -> Answer {
        let now = self.clock.now();
        let habit = self.habit;
        let mut issued = lock(&self.issued);
        let sent = form.get("refresh_token").map(String::as_str);
        if let Habit::Rotating(_) = habit {
            if sent != Some(format!("rt-{}", issued.refresh_number).as_str()) {
                return Answer::invalid_grant();
            }
            issued.refresh_number += 1;
        }
        let current = format!("at-{}", issued.number);
        let ends = issued.ends.get(&current).copied().filter(|ends| *ends > now);
        let (token, ends) = match (habit, ends) {
            (Habit::Remaining(_), Some(ends)) => (current, ends),
            (Habit::Renewed(life), Some(_)) => (current, now + life),
            (Habit::New(life) | Habit::Remaining(life) | Habit::Renewed(life) | Habit::Rotating(life), _) => {
                issued.number += 1;
                (format!("at-{}", issued.number), now + life)
            }
        };
        issued.ends.insert(token.clone(), ends);
        let refresh = sent.map(|_| format!("rt-{}", issued.refresh_number));
        Answer::token(&token, refresh.as_deref(), ends.since(now).as_secs())
    }
}

// --- store ------------------------------------------------------------------------------------------------------

/// After which command a hook is called, with the command's outcome still under way to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Load(Kind),
    Replace(Kind),
    List(Kind),
}

type Hook = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The in-memory backend with faults. Its revisions have no order, like those of Redis.
#[derive(Default)]
pub(crate) struct FrailBackend {
    inner: MemoryBackend,
    /// Reads and writes fail; nothing happens.
    pub(crate) down: AtomicBool,
    /// Writes fail; nothing happens.
    pub(crate) read_only: AtomicBool,
    /// This many replacements happen, and are not confirmed; so many before them are.
    unconfirmed: Mutex<(usize, usize)>,
    /// This many loads panic.
    pub(crate) panics: AtomicUsize,
    pub(crate) loads: AtomicUsize,
    /// With how many passes of the point to let go by first.
    hooks: Mutex<Vec<(After, usize, Hook)>>,
}

impl fmt::Debug for FrailBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrailBackend")
    }
}

impl FrailBackend {
    /// Calls `hook` the next time but `skip` that a store command reaches `point`.
    pub(crate) fn on<F: Future<Output = ()> + Send + 'static>(
        &self,
        point: After,
        skip: usize,
        hook: impl FnOnce() -> F + Send + 'static,
    ) {
        lock(&self.hooks).push((point, skip, Box::new(move || Box::pin(hook()))));
    }

    /// After `skip` replacements, `count` happen and are not confirmed.
    pub(crate) fn unconfirmed_after(&self, skip: usize, count: usize) {
        *lock(&self.unconfirmed) = (skip, count);
    }

    fn is_confirmed(&self) -> bool {
        let mut unconfirmed = lock(&self.unconfirmed);
        match &mut *unconfirmed {
            (0, 0) => true,
            (0, count) => {
                *count -= 1;
                false
            }
            (skip, _) => {
                *skip -= 1;
                true
            }
        }
    }

    /// Puts bytes that do not open in a record's place.
    pub(crate) async fn corrupt(&self, key: &RecordKey) {
        let (revision, _) = self.inner.load(key).await.unwrap().unwrap();
        self.inner.replace(key, revision, Sealed::from_bytes(vec![7; 64]), None).await.unwrap().unwrap();
    }

    async fn reached(&self, point: After) {
        let due = {
            let mut hooks = lock(&self.hooks);
            let at = hooks.iter_mut().position(|(wanted, skip, _)| {
                let passes = *wanted == point && *skip > 0;
                *skip -= usize::from(passes);
                *wanted == point && !passes
            });
            at.map(|at| hooks.remove(at).2)
        };
        if let Some(hook) = due {
            hook().await;
        }
    }

    fn check(&self, is_write: bool) -> Result<(), StoreError> {
        if self.down.load(SeqCst) {
            return Err(StoreError::Unreachable("down".to_owned()));
        }
        if is_write && self.read_only.load(SeqCst) {
            return Err(StoreError::Refused("read-only".to_owned()));
        }
        Ok(())
    }
}

/// A bijection that turns the order round.
fn disordered(revision: Revision) -> Revision {
    Revision(u64::MAX - revision.0)
}

fn take_one(counter: &AtomicUsize) -> bool {
    counter.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1)).is_ok()
}

#[async_trait]
impl Backend for FrailBackend {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        self.check(false)?;
        self.loads.fetch_add(1, SeqCst);
        assert!(!take_one(&self.panics), "a load panics, as the test wants it");
        let loaded = self.inner.load(key).await?;
        self.reached(After::Load(key.kind)).await;
        Ok(loaded.map(|(revision, sealed)| (disordered(revision), sealed)))
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        self.check(true)?;
        Ok(self.inner.create(key, value, times).await?.map(disordered))
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        self.check(true)?;
        let replaced = self.inner.replace(key, disordered(expected), next, due_at).await?;
        self.reached(After::Replace(key.kind)).await;
        if !self.is_confirmed() {
            return Err(StoreError::OutcomeUnknown("no reply".to_owned()));
        }
        Ok(replaced.map(disordered))
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        self.check(true)?;
        self.inner.delete(key, disordered(expected)).await
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        self.check(true)?;
        self.inner.take(key).await
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        self.check(false)?;
        let mut page = self.inner.list(kind, after, limit).await?;
        self.reached(After::List(kind)).await;
        for record in &mut page {
            if let Ok((revision, _)) = &mut record.content {
                *revision = disordered(*revision);
            }
        }
        Ok(page)
    }

    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        self.check(false)?;
        self.inner.changes(after).await
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        self.check(false)?;
        self.inner.due(kind, after, until, limit).await
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        self.check(true)?;
        self.inner.sweep(now).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
