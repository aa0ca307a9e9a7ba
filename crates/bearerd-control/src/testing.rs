//! The world of this crate's tests: an instance that consents, issues tokens and knows its users, on a real socket;
//! a store that fails on demand; a control between them.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bearerd_crypto::{KeyRing, Sealed, base64url, sha256};
use bearerd_model::{
    ClientSecret, Clock, Connection, ConnectionId, GrantType, InstanceOrigin, IntegrationId, Profile,
    ProfileName, Provider, SecretText, TokenEndpointAuth, UnixTime,
};
use bearerd_net::{Connector, EgressSettings};
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, MemoryBackend, RecordKey, Revision, Store, StoreError,
    StoredRecord, Times,
};
use bearerd_tokens::{
    AccessTokens, LendError, LentToken, ProcessPlace, Standing, TokenEngine, TokenSettings,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use tokio::{net::TcpListener, sync::watch};
use url::{Url, form_urlencoded};

use crate::{
    BegunConsent, Callback, ConnectRules, ConnectionSpec, Control, InstanceRules, IntegrationSpec, Operator,
    revocation::RevocationWork,
};

pub(crate) const PUBLIC_URL: &str = "https://connect.example";

/// Waits for `condition`; the limit only ends a test that has failed.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs with the real one, and leaps ahead when told.
#[derive(Debug)]
pub(crate) struct RunningClock {
    started: Instant,
    ahead_ms: AtomicU64,
}

impl RunningClock {
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

// --- the instance ---------------------------------------------------------------------------------------------------

/// A ServiceNow of one client, as strict as RFC 6749 and RFC 7636 want it.
pub(crate) struct Instance {
    pub(crate) origin: InstanceOrigin,
    shared: Arc<InstanceState>,
}

#[derive(Default)]
struct InstanceState {
    /// Codes that wait for their exchange, with what they were given for.
    codes: Mutex<HashMap<String, GivenCode>>,
    /// Whose each access token is.
    tokens: Mutex<HashMap<String, String>>,
    issued: AtomicU64,
    calls: Mutex<Vec<HashMap<String, String>>>,
    /// Answers out of turn: status, content type, body.
    token_script: Mutex<VecDeque<(u16, &'static str, String)>>,
    user_script: Mutex<VecDeque<(u16, &'static str, String)>>,
    /// Does this instance rotate refresh tokens?
    rotates: AtomicBool,
    /// While true, token calls are taken and not answered.
    holds: watch::Sender<bool>,
    /// The same for the user call, and for revocations.
    holds_users: watch::Sender<bool>,
    holds_revocations: watch::Sender<bool>,
    /// Does this instance give one client and user the same tokens (servicenow.md §1)?
    shares: AtomicBool,
    shared: Mutex<HashMap<String, (String, String)>>,
    revocation_calls: Mutex<Vec<HashMap<String, String>>>,
    /// While it is not 200, revocations are answered so and have no effect.
    revocation_status: AtomicU16,
    revoked: Mutex<HashSet<String>>,
    /// Tables: what each extends, and its own fields.
    tables: Mutex<BTreeMap<String, (String, Vec<String>)>>,
    /// While it is not 200, nothing is said of tables.
    dictionary_status: AtomicU16,
    /// Targets of the looks at tables so far.
    looks: Mutex<Vec<String>>,
}

#[derive(Clone)]
struct GivenCode {
    user: String,
    asked: HashMap<String, String>,
}

impl Instance {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(InstanceState::default());
        shared.revocation_status.store(200, SeqCst);
        shared.dictionary_status.store(200, SeqCst);
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

    /// `user` allows what the browser was sent to ask for; the code that the browser brings back.
    pub(crate) fn allows(&self, authorization_url: &str, user: &str) -> String {
        let code = format!("code-{}", self.shared.issued.fetch_add(1, SeqCst));
        let given = GivenCode { user: user.to_owned(), asked: parameters(authorization_url) };
        lock(&self.shared.codes).insert(code.clone(), given);
        code
    }

    /// The next token call is answered so.
    pub(crate) fn next_token_answer(&self, status: u16, kind: &'static str, body: &str) {
        lock(&self.shared.token_script).push_back((status, kind, body.to_owned()));
    }

    pub(crate) fn next_user_answer(&self, status: u16, kind: &'static str, body: &str) {
        lock(&self.shared.user_script).push_back((status, kind, body.to_owned()));
    }

    pub(crate) fn rotates(&self) {
        self.shared.rotates.store(true, SeqCst);
    }

    pub(crate) fn holds(&self, holds: bool) {
        self.shared.holds.send_replace(holds);
    }

    pub(crate) fn holds_users(&self, holds: bool) {
        self.shared.holds_users.send_replace(holds);
    }

    pub(crate) fn holds_revocations(&self, holds: bool) {
        self.shared.holds_revocations.send_replace(holds);
    }

    pub(crate) fn shares_tokens(&self) {
        self.shared.shares.store(true, SeqCst);
    }

    /// How revocations are answered from now on.
    pub(crate) fn answers_revocations(&self, status: u16) {
        self.shared.revocation_status.store(status, SeqCst);
    }

    /// Has a table, which extends `parent` unless that is empty.
    pub(crate) fn has_table(&self, name: &str, parent: &str, fields: &[&str]) {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        lock(&self.shared.tables).insert(name.to_owned(), (parent.to_owned(), fields));
    }

    /// How looks at the tables are answered from now on.
    pub(crate) fn answers_looks(&self, status: u16) {
        self.shared.dictionary_status.store(status, SeqCst);
    }

    /// Targets of the looks at tables so far.
    pub(crate) fn looks(&self) -> Vec<String> {
        lock(&self.shared.looks).clone()
    }

    /// The forms of the revocations so far.
    pub(crate) fn revocations(&self) -> Vec<HashMap<String, String>> {
        lock(&self.shared.revocation_calls).clone()
    }

    /// The forms of the token calls so far.
    pub(crate) fn calls(&self) -> Vec<HashMap<String, String>> {
        lock(&self.shared.calls).clone()
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.shared.calls).len()
    }

    /// A token of `user`'s that was issued elsewhere.
    pub(crate) fn knows_token(&self, token: &str, user: &str) {
        lock(&self.shared.tokens).insert(token.to_owned(), user.to_owned());
    }
}

/// The query of a URL; each parameter is there once (RFC 6749 §3.1).
pub(crate) fn parameters(url: &str) -> HashMap<String, String> {
    let pairs: Vec<(String, String)> = Url::parse(url).unwrap().query_pairs().into_owned().collect();
    let parameters: HashMap<_, _> = pairs.iter().cloned().collect();
    assert_eq!(pairs.len(), parameters.len(), "repeated: {pairs:?}");
    parameters
}

async fn answer(
    state: Arc<InstanceState>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (status, kind, text) = if head.uri.path() == "/oauth_token.do" {
        let form: HashMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
        lock(&state.calls).push(form.clone());
        let _ = state.holds.subscribe().wait_for(|holds| !holds).await;
        let scripted = lock(&state.token_script).pop_front();
        scripted.unwrap_or_else(|| state.token(&form))
    } else if head.uri.path() == "/oauth_revoke_token.do" {
        assert_eq!((head.method.as_str(), head.uri.query()), ("POST", None)); // O-40
        let form: HashMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
        lock(&state.revocation_calls).push(form.clone());
        let _ = state.holds_revocations.subscribe().wait_for(|holds| !holds).await;
        state.revoke(&form)
    } else if let Some(table) = head.uri.path().strip_prefix("/api/now/table/sys_d") {
        let token = head.headers["authorization"].to_str().unwrap().trim_start_matches("Bearer ");
        let target = head.uri.path_and_query().unwrap().as_str();
        lock(&state.looks).push(target.to_owned());
        state.look(token, table, &parameters(&format!("http://instance{target}"))["sysparm_query"])
    } else {
        let token = head.headers["authorization"].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
        let _ = state.holds_users.subscribe().wait_for(|holds| !holds).await;
        let scripted = lock(&state.user_script).pop_front();
        scripted.unwrap_or_else(|| state.user(&token))
    };
    Ok(Response::builder().status(status).header("content-type", kind).body(Full::from(text)).unwrap())
}

const JSON: &str = "application/json;charset=UTF-8";

impl InstanceState {
    fn token(&self, form: &HashMap<String, String>) -> (u16, &'static str, String) {
        let refused = |code: &str| (400, JSON, format!(r#"{{"error":"{code}"}}"#));
        if form.get("client_secret").map(String::as_str) != Some("our-secret") {
            return refused("invalid_client");
        }
        let user = match form["grant_type"].as_str() {
            "authorization_code" => {
                let given = lock(&self.codes).remove(&form["code"]);
                match given {
                    Some(given) if matches(&given, form) => given.user,
                    _ => return refused("invalid_grant"),
                }
            }
            "refresh_token" if lock(&self.revoked).contains(&form["refresh_token"]) => {
                return refused("invalid_grant");
            }
            "refresh_token" => form["refresh_token"].trim_start_matches("rt-").to_owned(),
            _ => "application".to_owned(),
        };
        if self.shares.load(SeqCst) {
            return self.shared_tokens(user);
        }
        let number = self.issued.fetch_add(1, SeqCst);
        let access = format!("at-{number}");
        lock(&self.tokens).insert(access.clone(), user.clone());
        let rotated = if self.rotates.load(SeqCst) { number.to_string() } else { user };
        let body = format!(
            r#"{{"access_token":"{access}","refresh_token":"rt-{rotated}","expires_in":1800,"token_type":"Bearer"}}"#
        );
        (200, JSON, body)
    }

    /// As long as the access token lives, it is the one; so for the refresh token.
    fn shared_tokens(&self, user: String) -> (u16, &'static str, String) {
        let mut shared = lock(&self.shared);
        let revoked = lock(&self.revoked);
        let (access, refresh) =
            shared.entry(user.clone()).or_insert_with(|| (String::new(), format!("rt-{user}")));
        if access.is_empty() || revoked.contains(access) {
            *access = format!("at-{}", self.issued.fetch_add(1, SeqCst));
        }
        while revoked.contains(refresh) {
            *refresh = format!("rt-{refresh}"); // another one, of the same user
        }
        lock(&self.tokens).insert(access.clone(), user);
        let body = format!(
            r#"{{"access_token":"{access}","refresh_token":"{refresh}","expires_in":1800,"token_type":"Bearer"}}"#
        );
        (200, JSON, body)
    }

    fn revoke(&self, form: &HashMap<String, String>) -> (u16, &'static str, String) {
        let status = self.revocation_status.load(SeqCst);
        if status == 200 {
            lock(&self.revoked).insert(form["token"].clone());
            lock(&self.tokens).remove(&form["token"]);
        }
        (status, JSON, String::new())
    }

    /// `sys_db_object` and `sys_dictionary`, as far as `xINa,b^yINc` goes; what is not understood is ignored.
    fn look(&self, token: &str, table: &str, query: &str) -> (u16, &'static str, String) {
        let status = self.dictionary_status.load(SeqCst);
        if !lock(&self.tokens).contains_key(token) {
            return (401, JSON, "{}".to_owned());
        }
        let listed = |name: &str| -> Option<Vec<&str>> {
            query
                .split('^')
                .find_map(|term| Some(term.strip_prefix(name)?.strip_prefix("IN")?.split(',').collect()))
        };
        let is_in = |name: &str, value: &str| listed(name).is_none_or(|values| values.contains(&value));
        let mut rows = Vec::new();
        for (name, (parent, fields)) in &*lock(&self.tables) {
            if !is_in("name", name) {
                continue;
            }
            if table == "b_object" {
                rows.push(format!(r#"{{"name":"{name}","super_class.name":"{parent}"}}"#));
                continue;
            }
            for field in fields.iter().filter(|field| is_in("element", field)) {
                let active = !field.starts_with("u_gone");
                rows.push(format!(r#"{{"name":"{name}","element":"{field}","active":"{active}"}}"#));
            }
        }
        (status, JSON, format!(r#"{{"result":[{}]}}"#, rows.join(",")))
    }

    fn user(&self, token: &str) -> (u16, &'static str, String) {
        match lock(&self.tokens).get(token) {
            Some(user) => {
                let record = format!(
                    r#"{{"result":[{{"sys_id":"id-of-{user}","user_name":"{user}","name":"The {user}"}}]}}"#
                );
                (200, JSON, record)
            }
            None => (401, JSON, "{}".to_owned()),
        }
    }
}

/// Whether the exchange is the one that the code was given for (RFC 6749 §4.1.3, RFC 7636 §4.6).
fn matches(given: &GivenCode, form: &HashMap<String, String>) -> bool {
    let same = |name: &str| given.asked.get(name) == form.get(name);
    let proven = match (given.asked.get("code_challenge"), form.get("code_verifier")) {
        (Some(challenge), Some(verifier)) => *challenge == base64url(&sha256(verifier.as_bytes())),
        (None, None) => true,
        _ => false,
    };
    same("redirect_uri") && same("client_id") && proven
}

// --- the store ------------------------------------------------------------------------------------------------------

/// Before or after which command a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    BeforeCreate(Kind),
    BeforeReplace(Kind),
    AfterLoad(Kind),
}

type Hook = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The in-memory backend with faults. Its revisions have no order, like those of Redis.
#[derive(Default)]
pub(crate) struct FrailBackend {
    inner: MemoryBackend,
    /// Reads and writes fail; nothing happens.
    pub(crate) down: AtomicBool,
    /// The log of changes reaches back to nothing.
    pub(crate) forgetful: AtomicBool,
    /// This record is not given, for this reason.
    pub(crate) withheld: Mutex<Option<(RecordKey, StoreError)>>,
    /// Records of this kind are replaced, and that is not confirmed.
    pub(crate) unconfirmed: Mutex<Option<Kind>>,
    /// With how many passes of the point to let go by first.
    hooks: Mutex<Vec<(Point, usize, Hook)>>,
    /// Tells at once what changes.
    pub(crate) tells: AtomicBool,
    written: watch::Sender<u64>,
    /// How often changes were asked for.
    pub(crate) looks: AtomicU64,
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
        point: Point,
        skip: usize,
        hook: impl FnOnce() -> F + Send + 'static,
    ) {
        lock(&self.hooks).push((point, skip, Box::new(move || Box::pin(hook()))));
    }

    /// Puts bytes that do not open in a record's place.
    pub(crate) async fn corrupt(&self, kind: Kind, id: &str) {
        let key = RecordKey::new(kind, id);
        let (revision, _) = self.inner.load(&key).await.unwrap().unwrap();
        self.inner.replace(&key, revision, Sealed::from_bytes(vec![7; 64]), None).await.unwrap().unwrap();
    }

    /// Does not give the record, for this reason.
    pub(crate) fn withhold(&self, kind: Kind, id: &str, why: StoreError) {
        *lock(&self.withheld) = Some((RecordKey::new(kind, id), why));
    }

    async fn reached(&self, point: Point) {
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

    fn check(&self) -> Result<(), StoreError> {
        if self.down.load(SeqCst) { Err(StoreError::Unreachable("down".to_owned())) } else { Ok(()) }
    }
}

/// A bijection that turns the order round.
fn disordered(revision: Revision) -> Revision {
    Revision(u64::MAX - revision.0)
}

#[async_trait]
impl Backend for FrailBackend {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        self.check()?;
        if let Some((withheld, error)) = &*lock(&self.withheld)
            && withheld == key
        {
            return Err(error.clone());
        }
        let loaded = self.inner.load(key).await?;
        self.reached(Point::AfterLoad(key.kind)).await;
        Ok(loaded.map(|(revision, sealed)| (disordered(revision), sealed)))
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        self.check()?;
        self.reached(Point::BeforeCreate(key.kind)).await;
        let created = self.inner.create(key, value, times).await?.map(disordered);
        self.written.send_modify(|count| *count += 1);
        Ok(created)
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        self.check()?;
        self.reached(Point::BeforeReplace(key.kind)).await;
        let replaced = self.inner.replace(key, disordered(expected), next, due_at).await?.map(disordered);
        self.written.send_modify(|count| *count += 1);
        if *lock(&self.unconfirmed) == Some(key.kind) {
            return Err(StoreError::OutcomeUnknown("cut off".to_owned()));
        }
        Ok(replaced)
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        self.check()?;
        let deleted = self.inner.delete(key, disordered(expected)).await?;
        self.written.send_modify(|count| *count += 1);
        Ok(deleted)
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        self.check()?;
        self.inner.take(key).await
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        self.check()?;
        let mut page = self.inner.list(kind, after, limit).await?;
        for record in &mut page {
            if let Ok((revision, _)) = &mut record.content {
                *revision = disordered(*revision);
            }
        }
        Ok(page)
    }

    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        self.looks.fetch_add(1, SeqCst);
        self.check()?;
        let changes = self.inner.changes(after).await?;
        if self.forgetful.load(SeqCst) {
            return Ok(Changes::Missed { counter: changes.counter() });
        }
        Ok(changes)
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        self.check()?;
        self.inner.due(kind, after, until, limit).await
    }

    async fn changed(&self, after: ChangeCounter) {
        let mut written = self.written.subscribe();
        loop {
            if self.tells.load(SeqCst) && self.inner.changes(after).await.unwrap().counter() > after {
                return;
            }
            written.changed().await.unwrap();
        }
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        self.check()?;
        self.inner.sweep(now).await
    }
}

// --- the world ------------------------------------------------------------------------------------------------------

/// One store and one instance `a`, with as many controls as a test wants.
pub(crate) struct World {
    pub(crate) clock: Arc<RunningClock>,
    pub(crate) backend: Arc<FrailBackend>,
    pub(crate) store: Store,
    pub(crate) instance: Instance,
    pub(crate) control: Control,
    pub(crate) tokens: Arc<TokenEngine>,
}

pub(crate) fn operator() -> Operator {
    Operator { name: "maria".to_owned() }
}

pub(crate) fn integration_id(text: &str) -> IntegrationId {
    IntegrationId::parse(text).unwrap()
}

pub(crate) fn connection_id(text: &str) -> ConnectionId {
    ConnectionId::parse(text).unwrap()
}

pub(crate) fn text(secret: &str) -> SecretText {
    SecretText::parse(secret.to_owned()).unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::confirming(true).await
    }

    /// With integration `a` at [`Self::instance`].
    pub(crate) async fn confirming(confirm: bool) -> Self {
        let clock = Arc::new(RunningClock { started: Instant::now(), ahead_ms: AtomicU64::default() });
        let backend = Arc::new(FrailBackend::default());
        let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
        let store = Store::open(backend.clone() as Arc<dyn Backend>, ring).await.unwrap();
        let instance = Instance::start().await;
        let (control, tokens) = control_over(&store, &clock, confirm);
        control.load().await.unwrap();
        let world = Self { clock, backend, store, instance, control, tokens };
        world.put("a", spec(&world.instance)).await.unwrap();
        world
    }

    /// Another process on the same store.
    pub(crate) async fn another_process(&self) -> (Control, Arc<TokenEngine>) {
        let (control, tokens) = control_over(&self.store, &self.clock, true);
        control.load().await.unwrap();
        (control, tokens)
    }

    pub(crate) async fn put(&self, id: &str, spec: IntegrationSpec) -> Result<(), crate::ActError> {
        self.control.put_integration(integration_id(id), spec, None, false).await.map(drop)
    }

    /// A connection that waits for a consent, and its link.
    pub(crate) async fn connect(&self, id: &str, integration: &str, expected: Option<&str>) -> SecretText {
        let spec =
            ConnectionSpec { expected_user: expected.map(str::to_owned), ..connection_spec(integration) };
        let created = self.control.create_connection(connection_id(id), spec, &operator()).await.unwrap();
        link_of(&created.connect_link.unwrap().url)
    }

    pub(crate) async fn link(&self, id: &str) -> SecretText {
        link_of(&self.control.reauthorize(&connection_id(id), &operator()).await.unwrap().url)
    }

    pub(crate) async fn begin(&self, link: &SecretText) -> BegunConsent {
        self.control.begin_consent(link).await.unwrap()
    }

    /// From a new link to the outcome, with `user` in front of the browser.
    pub(crate) async fn consent(&self, id: &str, user: &str) -> bearerd_model::ConsentResult {
        let begun = self.begin(&self.link(id).await).await;
        let code = self.instance.allows(&begun.authorization_url, user);
        self.control.finish_consent(callback(&begun, Some(&code))).await.unwrap().result
    }

    /// A working connection of `user`'s under integration `a`.
    pub(crate) async fn connected(&self, id: &str, user: &str) {
        self.connect(id, "a", Some(user)).await;
        self.consent(id, user).await;
        assert_eq!(self.stored(id).await.lifecycle.name(), "active");
    }

    pub(crate) async fn stored(&self, id: &str) -> Connection {
        self.store.load::<Connection>(id).await.unwrap().unwrap().record
    }

    pub(crate) async fn acquire(&self, id: &str) -> Result<LentToken, LendError> {
        self.tokens.acquire(&connection_id(id)).await
    }

    /// Who the token that is lent acts as.
    pub(crate) async fn lent_to(&self, id: &str) -> Option<String> {
        let lent = self.acquire(id).await.ok()?;
        let token = lent.bearer.to_str().unwrap().trim_start_matches("Bearer ").to_owned();
        lock(&self.instance.shared.tokens).get(&token).cloned()
    }

    pub(crate) fn is_lent_from_memory(&self, id: &str) -> bool {
        let view = self.tokens.peek(&connection_id(id));
        view.is_some_and(|view| matches!(view.standing, Standing::Ready(_)))
    }

    /// One look at the revocation queue, by this control.
    pub(crate) async fn revoke(&self) -> usize {
        self.control.revoke_due().await.unwrap()
    }

    pub(crate) async fn count<R: bearerd_store::Record>(&self) -> usize {
        self.store.list::<R>(None, 1_000).await.unwrap().records.len()
    }
}

impl Control {
    /// Works on whatever is due to its end. How many entries that were.
    pub(crate) async fn revoke_due(&self) -> Result<usize, StoreError> {
        let (mut work, mut worked_on) = (RevocationWork::default(), 0);
        loop {
            worked_on += self.begin_due(&mut work).await?;
            if !work.all_ended().await {
                return Ok(worked_on);
            }
        }
    }
}

fn control_over(store: &Store, clock: &Arc<RunningClock>, confirm: bool) -> (Control, Arc<TokenEngine>) {
    let connector = Connector::new(&EgressSettings::default()).unwrap();
    let tokens = TokenEngine::start(
        store.clone(),
        connector,
        clock.clone(),
        TokenSettings::default(),
        ProcessPlace::shared(),
        &Registry::new(),
    );
    let tokens = Arc::new(tokens.unwrap());
    tokens.begin();
    let connect =
        ConnectRules { public_url: PUBLIC_URL.to_owned(), confirm, link_lifetime: Duration::from_mins(30) };
    let control =
        Control::new(store.clone(), tokens.clone(), clock.clone(), connect, InstanceRules::default());
    (control, tokens)
}

pub(crate) fn spec(instance: &Instance) -> IntegrationSpec {
    IntegrationSpec {
        provider: Provider::Servicenow,
        instance: instance.origin.clone(),
        client_id: "our-client".to_owned(),
        client_secret: Some(ClientSecret::parse("our-secret".to_owned()).unwrap()),
        authorization_endpoint: None,
        token_endpoint: None,
        revocation_endpoint: None,
        token_endpoint_auth: TokenEndpointAuth::Body,
        pkce: true,
        redirect_uri: None,
        profiles: BTreeMap::from([(
            ProfileName::parse("machine").unwrap(),
            Profile { grant_type: GrantType::ClientCredentials, scopes: Vec::new() },
        )]),
        refresh_token_lifetime: None,
        rotates_refresh_tokens: None,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        http2: false,
    }
}

pub(crate) fn connection_spec(integration: &str) -> ConnectionSpec {
    ConnectionSpec {
        integration: integration_id(integration),
        profile: ProfileName::default(),
        labels: BTreeMap::new(),
        expected_user: None,
        import: None,
    }
}

pub(crate) fn link_of(url: &str) -> SecretText {
    text(url.strip_prefix(&format!("{PUBLIC_URL}/connect/")).unwrap())
}

/// What the browser that began brings back, on the path that it was sent to come back on.
pub(crate) fn callback(begun: &BegunConsent, code: Option<&str>) -> Callback {
    let asked = parameters(&begun.authorization_url);
    let path = asked["redirect_uri"].strip_prefix(&format!("{PUBLIC_URL}/oauth/callback")).unwrap();
    Callback {
        path_integration: path.strip_prefix('/').map(str::to_owned),
        state: Some(text(&asked["state"])),
        code: code.map(text),
        error: None,
        error_description: None,
        iss: None,
        cookies: vec![(begun.cookie_name.clone(), begun.cookie_value.clone())],
    }
}
