//! The engine over a real socket and a store that fails on demand. Each test waits for what it wants to see.

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst};

use bearerd_crypto::KeyRing;
use bearerd_model::{
    ClientSecret, DeathCause, Endpoints, Exchanges, Freeze, Generation, Grant, GrantType, IntegrationId,
    Intent, Lifecycle, Owner, ProfileName, Provider, RefreshToken, TokenEndpointAuth,
};
use bearerd_net::EgressSettings;
use bearerd_store::Backend;
use http::HeaderValue;

use super::*;
use crate::{
    Standing, Upstream,
    testing::{After, Answer, AuthServer, FrailBackend, Habit, RunningClock, eventually},
};

const LIFE: Duration = Duration::from_mins(30);
const REFRESH_LIFE: Duration = Duration::from_hours(100 * 24);
const NEW: Habit = Habit::New(LIFE);

/// One engine, one store, one authorization server, integration `i`, connection `c`.
struct World {
    clock: Arc<RunningClock>,
    backend: Arc<FrailBackend>,
    store: Store,
    server: AuthServer,
    engine: Arc<TokenEngine>,
}

fn c() -> ConnectionId {
    ConnectionId::parse("c").unwrap()
}

fn keys(names: &[(Kind, &str)]) -> Vec<RecordKey> {
    names.iter().map(|(kind, id)| RecordKey::new(*kind, *id)).collect()
}

fn integration_at(id: &str, server: &AuthServer, grant_type: GrantType) -> Integration {
    Integration {
        id: IntegrationId::parse(id).unwrap(),
        provider: Provider::Servicenow,
        endpoints: Endpoints::servicenow(&server.origin),
        instance: server.origin.clone(),
        client_id: "our-client".to_owned(),
        client_secret: Some(ClientSecret::parse("our-secret".to_owned()).unwrap()),
        token_endpoint_auth: TokenEndpointAuth::Body,
        pkce: true,
        redirect_uri: "http://127.0.0.1:1/oauth/callback".to_owned(),
        profiles: BTreeMap::from([(ProfileName::default(), Profile { grant_type, scopes: Vec::new() })]),
        refresh_token_lifetime: REFRESH_LIFE,
        rotates_refresh_tokens: false,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        http2: false,
        created_at: UnixTime::default(),
        updated_at: UnixTime::default(),
    }
}

fn connection_under(id: &str, integration: &str, grant: Option<Grant>, now: UnixTime) -> Connection {
    Connection {
        id: ConnectionId::parse(id).unwrap(),
        integration: IntegrationId::parse(integration).unwrap(),
        profile: ProfileName::default(),
        labels: BTreeMap::new(),
        expected_user: None,
        user: None,
        lifecycle: Lifecycle::Active { since: now },
        frozen: None,
        health: Health::Ok,
        grant,
        exchanges: Exchanges::default(),
        due_at: None,
        created_at: now,
        last_used_at: None,
    }
}

/// `at-1` and `rt-1`, with `left` of a life of `life`.
fn grant(now: UnixTime, life: Duration, left: Duration) -> Grant {
    Grant {
        generation: Generation(1),
        access_token: AccessToken::parse("at-1".to_owned()).unwrap(),
        access_lifetime: life,
        access_expires_at: now + left,
        refresh_token: Some(RefreshToken::parse("rt-1".to_owned()).unwrap()),
        previous_refresh_token: None,
        refresh_expires_at: Some(now + REFRESH_LIFE),
        granted_at: now,
        refreshed_at: now + left - life,
        scope: None,
    }
}

impl World {
    /// With a connection whose token has `left` of `life`; `None`: client credentials, without a token.
    async fn new(habit: Habit, token: Option<(Duration, Duration)>) -> Self {
        Self::with(habit, token, TokenSettings::default()).await
    }

    async fn expired(habit: Habit) -> Self {
        Self::new(habit, Some((LIFE, Duration::ZERO))).await
    }

    async fn fresh(habit: Habit) -> Self {
        Self::new(habit, Some((LIFE, LIFE))).await
    }

    async fn with(habit: Habit, token: Option<(Duration, Duration)>, settings: TokenSettings) -> Self {
        let clock = Arc::new(RunningClock::new());
        let server = AuthServer::start(clock.clone(), habit).await;
        let backend = Arc::new(FrailBackend::default());
        let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
        let store = Store::open(backend.clone() as Arc<dyn Backend>, ring).await.unwrap();
        let grant_type =
            if token.is_some() { GrantType::AuthorizationCode } else { GrantType::ClientCredentials };
        store.create(&integration_at("i", &server, grant_type)).await.unwrap().unwrap();
        let grant = token.map(|(life, left)| grant(clock.now(), life, left));
        if let Some(grant) = &grant {
            server.has_issued("at-1", grant.access_expires_at);
        }
        store.create(&connection_under("c", "i", grant, clock.now())).await.unwrap().unwrap();
        let connector = Connector::new(&EgressSettings::default()).unwrap();
        let engine = TokenEngine::start(
            store.clone(),
            connector,
            clock.clone(),
            settings,
            ProcessPlace::alone(),
            &Registry::new(),
        )
        .unwrap();
        engine.begin();
        Self { clock, backend, store, server, engine: Arc::new(engine) }
    }

    async fn acquire(&self) -> Result<LentToken, LendError> {
        self.engine.acquire(&c()).await
    }

    /// Reports that the instance refused `at-{number}`.
    fn refused(&self, number: u64) -> Waiting<AfterRefusal> {
        let upstream = self.engine.peek(&c()).map_or_else(|| self.elsewhere(), |view| view.upstream.clone());
        let bearer = HeaderValue::try_from(format!("Bearer at-{number}")).unwrap();
        let usable_until = self.clock.now();
        self.engine
            .refused(&c(), &LentToken { generation: Generation(number), upstream, bearer, usable_until })
    }

    /// An upstream that is nobody's.
    fn elsewhere(&self) -> Arc<Upstream> {
        Arc::new(Upstream {
            integration: IntegrationId::parse("i").unwrap(),
            instance: self.server.origin.clone(),
            connector: Connector::new(&EgressSettings::default()).unwrap(),
        })
    }

    /// Waits for nothing but the token endpoint's taking the call.
    async fn acquire_and_leave_waiting(&self) -> tokio::task::JoinHandle<Result<LentToken, LendError>> {
        let before = self.server.count();
        let waiting = tokio::spawn(self.engine.acquire(&c()));
        eventually("a token call", async || self.server.count() > before).await;
        waiting
    }

    async fn load(&self) -> Arc<ConnectionView> {
        self.engine.load(&c()).await.unwrap()
    }

    fn slot(&self) -> Arc<Slot> {
        self.engine.inner.held(&c()).unwrap()
    }

    fn refreshing(&self) -> bool {
        self.slot().read(|state| state.refresher.is_exchanging())
    }

    async fn refreshed(&self) {
        eventually("the refresh has ended", async || !self.refreshing()).await;
    }

    async fn stored(&self) -> Connection {
        self.store.load::<Connection>("c").await.unwrap().unwrap().record
    }

    async fn stored_tokens(&self) -> (u64, String, String) {
        let grant = self.stored().await.grant.unwrap();
        let refresh = grant.refresh_token.as_ref().map_or("none", RefreshToken::expose).to_owned();
        (grant.generation.0, grant.access_token.expose().to_owned(), refresh)
    }

    /// What another writer does.
    async fn write(&self, change: impl Fn(&mut Connection) + Send + Sync) {
        let changed = self.store.update::<Connection, ()>("c", |connection| {
            change(connection);
            Ok(())
        });
        changed.await.unwrap().unwrap();
    }

    async fn freeze(&self) {
        let since = self.clock.now();
        self.write(|connection| connection.frozen = Some(Freeze { since, reason: String::new() })).await;
    }

    async fn apply(&self, kind: Kind, id: &str) {
        let left = self.engine.apply(&keys(&[(kind, id)])).await;
        assert!(left.is_empty(), "{left:?}");
    }

    fn closed(&self) -> Option<LendError> {
        match &self.engine.peek(&c())?.standing {
            Standing::Ready(_) | Standing::NeedsToken => None,
            Standing::Closed(why) => Some(why.clone()),
        }
    }
}

#[track_caller]
fn bearer(lent: &LentToken) -> &str {
    lent.bearer.to_str().unwrap().strip_prefix("Bearer ").unwrap()
}

fn is_unavailable(error: &LendError) -> bool {
    matches!(error, LendError::Unavailable { .. })
}

// --- one refresh for all ----------------------------------------------------------------------------------------

/// A connection that lives by client credentials needs nobody to get a token, be it the first or one after a purge.
#[tokio::test]
async fn a_connection_without_a_token_asks_for_one() {
    let world = World::new(NEW, None).await;
    for number in 2..4 {
        assert!(matches!(world.load().await.standing, Standing::NeedsToken));
        world.clock.leap(Duration::from_secs(2));
        let before = world.clock.now();
        assert_eq!(bearer(&world.acquire().await.unwrap()), format!("at-{number}"));
        assert!(world.engine.last_used(&c()).is_some_and(|at| at >= before));
        assert!(matches!(world.load().await.standing, Standing::Ready(_)));
        world.write(|connection| connection.grant = None).await;
        world.apply(Kind::Connection, "c").await;
    }
}

/// I-8: any number of callers, one token call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiters_share_one_token_call() {
    let world = World::expired(NEW).await;
    world.server.answers(false);
    let waiting: Vec<_> = (0..1_000).map(|_| tokio::spawn(world.engine.acquire(&c()))).collect();
    eventually("all wait", async || {
        world.engine.inner.held(&c()).is_some_and(|slot| slot.waiting() == 1_000)
    })
    .await;
    eventually("a token call", async || world.server.count() == 1).await;
    world.server.answers(true);
    for waiter in waiting {
        let lent = waiter.await.unwrap().unwrap();
        assert_eq!((lent.generation, bearer(&lent)), (Generation(2), "at-2"));
    }
    assert_eq!(world.server.count(), 1);
    assert_eq!(world.stored_tokens().await, (2, "at-2".into(), "rt-1".into()));
}

/// A caller that leaves never cancels a refresh, and its grant is kept.
#[tokio::test]
async fn a_refresh_outlives_its_callers() {
    let world = World::expired(Habit::Rotating(LIFE)).await;
    world.server.answers(false);
    let waiting = world.acquire_and_leave_waiting().await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    world.server.answers(true);
    eventually("the grant is stored", async || {
        world.stored_tokens().await == (2, "at-2".into(), "rt-2".into())
    })
    .await;
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
    assert_eq!(world.server.count(), 1);
}

#[tokio::test]
async fn a_connection_in_use_is_refreshed_ahead_of_expiry_without_callers() {
    let life = Duration::from_secs(1);
    let world = World::new(Habit::New(life), Some((life, life))).await;
    assert_eq!(world.acquire().await.unwrap().generation, Generation(1));
    eventually("three refreshes", async || world.server.count() >= 3).await;
    eventually("their grants", async || world.stored_tokens().await.0 >= 4).await;
}

/// Connections that nobody uses are left alone until somebody does.
#[tokio::test]
async fn a_connection_out_of_use_is_not_refreshed_ahead() {
    let settings = TokenSettings { warm_for_h: 1, ..TokenSettings::default() };
    let world = World::with(NEW, Some((LIFE, LIFE)), settings).await;
    world.acquire().await.unwrap();
    world.clock.leap(Duration::from_hours(2));
    world.apply(Kind::Connection, "c").await; // the scheduler looks again
    eventually("it was looked at", async || lock(&world.engine.inner.due).next().is_none()).await;
    assert_eq!((world.server.count(), world.refreshing()), (0, false));
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
}

/// Tokens of 1 to 3 seconds, in each way that a server may answer: callers wait at times, and never fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_lives_never_fail_a_caller() {
    let mut runs = Vec::new();
    for life in [1, 2, 3].map(Duration::from_secs) {
        for habit in [Habit::Remaining(life), Habit::Renewed(life), Habit::New(life), Habit::Rotating(life)] {
            runs.push(tokio::spawn(async move {
                let world = World::new(habit, Some((life, life))).await;
                let ends = world.clock.now() + Duration::from_secs(5);
                let mut newest = Generation(0);
                while world.clock.now() < ends {
                    let asked_at = world.clock.now();
                    let lent = world.acquire().await.unwrap_or_else(|error| panic!("{habit:?}: {error}"));
                    assert!(lent.generation >= newest, "{habit:?}: the generation went back");
                    assert!(lent.usable_until > asked_at, "{habit:?}: lent a token that has ended");
                    let end = world.server.end_of(bearer(&lent)).unwrap();
                    assert!(lent.usable_until <= end, "{habit:?}: lent for longer than the server admits it");
                    newest = lent.generation;
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                if let Habit::New(_) = habit {
                    assert!(newest > Generation(2), "{habit:?}: {newest:?}");
                }
            }));
        }
    }
    for run in runs {
        run.await.unwrap();
    }
}

/// A server that does not renew before expiry: calls inside the skew wait for the first token after it.
#[tokio::test]
async fn the_same_token_inside_the_skew_makes_callers_wait() {
    let life = Duration::from_mins(1);
    let world = World::new(Habit::Remaining(life), Some((life, Duration::from_millis(300)))).await;
    let lent = world.acquire().await.unwrap();
    assert_eq!((lent.generation, bearer(&lent)), (Generation(2), "at-2"));
    assert_eq!(world.server.count(), 2); // the old one, and a second later the new one
}

/// A token that has ended before it is here is no reason to ask as fast as the server answers.
#[tokio::test]
async fn tokens_without_a_life_are_not_asked_for_in_a_loop() {
    let settings = TokenSettings { wait_max_s: 2, ..TokenSettings::default() };
    let world = World::with(Habit::New(Duration::ZERO), Some((LIFE, Duration::ZERO)), settings).await;
    assert!(is_unavailable(&world.acquire().await.unwrap_err()));
    assert!((2..=3).contains(&world.server.count()), "{}", world.server.count());
}

/// An instance that hangs holds up no other.
#[tokio::test]
async fn an_instance_that_hangs_holds_up_no_other() {
    let world = World::expired(NEW).await;
    world.server.answers(false);
    let other = AuthServer::start(world.clock.clone(), NEW).await;
    let elsewhere = integration_at("other", &other, GrantType::ClientCredentials);
    world.store.create(&elsewhere).await.unwrap().unwrap();
    let mut waiting = Vec::new();
    for number in 0..=TOKEN_CALLS_MAX {
        let expired = grant(world.clock.now(), LIFE, Duration::ZERO);
        let id = format!("hanging-{number}");
        let hanging = connection_under(&id, "i", Some(expired), world.clock.now());
        world.store.create(&hanging).await.unwrap().unwrap();
        waiting.push(tokio::spawn(world.engine.acquire(&hanging.id)));
    }
    eventually("all calls hang", async || world.server.count() == TOKEN_CALLS_MAX).await;
    let at_other = connection_under("at-other", "other", None, world.clock.now());
    world.store.create(&at_other).await.unwrap().unwrap();
    world.engine.acquire(&at_other.id).await.unwrap();
    world.server.answers(true);
    for waiter in waiting {
        waiter.await.unwrap().unwrap();
    }
}

// --- failures ---------------------------------------------------------------------------------------------------

/// I-7: a valid token is lent whatever the token endpoint does.
#[tokio::test]
async fn a_valid_token_is_lent_while_refreshes_fail() {
    let world = World::new(NEW, Some((LIFE, Duration::from_mins(4)))).await; // inside the margin
    for answer in [Answer::unavailable(None), Answer::denied(), Answer::json(200, "<html>asleep</html>")] {
        world.clock.leap(Duration::from_secs(5)); // past the pause after the failure before
        world.server.next(answer);
        let connection = world.engine.refresh_now(&c()).await.unwrap().unwrap();
        assert!(matches!(connection.health, Health::Failing { .. }));
        assert_eq!(world.acquire().await.unwrap().generation, Generation(1));
        assert!(matches!(world.engine.peek(&c()).unwrap().standing, Standing::Ready(_)));
    }
    assert!(matches!(world.stored().await.health, Health::Failing { strikes: 1, .. }));
    world.engine.refresh_now(&c()).await.unwrap();
    assert_eq!((world.stored().await.health, world.stored_tokens().await.0), (Health::Ok, 2));
}

#[tokio::test]
async fn an_expired_token_is_never_lent() {
    let world = World::expired(NEW).await;
    world.server.next(Answer::unavailable(Some("120")));
    let error = world.acquire().await.unwrap_err();
    let LendError::Unavailable { retry_after, .. } = error else { panic!("{error}") };
    assert!(retry_after > Duration::from_secs(100), "{retry_after:?}");
    assert!(is_unavailable(&world.acquire().await.unwrap_err())); // and no further call before that
    assert_eq!(world.server.count(), 1);
    let view = world.engine.peek(&c()).unwrap();
    let Standing::Ready(token) = &view.standing else { panic!("{view:?}") };
    assert!(token.usable_until <= world.clock.now());
    world.clock.leap(Duration::from_secs(121));
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
}

/// A passing fault is waited out within the caller's limit.
#[tokio::test]
async fn callers_wait_for_the_next_try() {
    let world = World::expired(NEW).await;
    world.server.next(Answer::unavailable(None));
    world.server.next(Answer::denied());
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
    assert_eq!((world.server.count(), world.stored().await.health), (3, Health::Ok));
}

#[tokio::test]
async fn a_dead_grant_is_told_to_callers() {
    let world = World::expired(NEW).await;
    world.server.next(Answer::invalid_grant());
    let error = world.acquire().await.unwrap_err();
    let dead = |error: &LendError| {
        matches!(error, LendError::ReauthorizationRequired { cause: DeathCause::GrantRefused, .. })
    };
    assert!(dead(&error), "{error}");
    assert_eq!(world.stored().await.lifecycle.name(), "reauthorization_required");
    assert!(world.acquire().await.is_err_and(|error| dead(&error)));
    assert_eq!(world.server.count(), 1);
    // The operator may try all the same, and a token brings the connection back.
    let connection = world.engine.refresh_now(&c()).await.unwrap().unwrap();
    assert_eq!((connection.lifecycle.name(), connection.health), ("active", Health::Ok));
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
}

/// ServiceNow refuses now and then for no reason (servicenow.md §0.4): four in a row kill nothing.
#[tokio::test]
async fn five_refusals_without_a_reason_kill() {
    let world = World::expired(NEW).await;
    for strike in 1..=5 {
        world.clock.leap(Duration::from_mins(2)); // past the pause after the strike before
        world.server.next(Answer::denied());
        let connection = world.engine.refresh_now(&c()).await.unwrap().unwrap();
        assert_eq!(connection.lifecycle.name() == "active", strike < 5, "strike {strike}");
    }
    assert_eq!(world.stored().await.lifecycle.name(), "reauthorization_required");
}

/// An operator who asks again and again inside the pause learns that it fails, and kills nothing.
#[tokio::test]
async fn an_impatient_operator_is_no_strike() {
    let world = World::fresh(NEW).await;
    for _ in 0..10 {
        world.server.next(Answer::denied());
        let connection = world.engine.refresh_now(&c()).await.unwrap().unwrap();
        assert_eq!(connection.lifecycle.name(), "active");
        assert!(connection.health != Health::Ok);
    }
    world.acquire().await.unwrap();
}

/// I-7: an access token is lent to its end, whatever became of the refresh token; unless the instance refuses it.
#[tokio::test]
async fn a_token_outlives_its_grant() {
    let world = World::fresh(NEW).await;
    world.server.next(Answer::invalid_grant());
    let connection = world.engine.refresh_now(&c()).await.unwrap().unwrap();
    assert_eq!(connection.lifecycle.name(), "reauthorization_required");
    assert_eq!(world.acquire().await.unwrap().generation, Generation(1));
    world.server.next(Answer::invalid_grant());
    assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
    let dead = |error: &LendError| matches!(error, LendError::ReauthorizationRequired { .. });
    assert!(world.acquire().await.is_err_and(|error| dead(&error)));
    assert!(world.closed().is_some_and(|why| dead(&why)));
}

#[tokio::test]
async fn without_a_refresh_token_the_grant_ends_with_the_access_token() {
    let world = World::fresh(NEW).await;
    world.write(|connection| connection.grant.as_mut().unwrap().refresh_token = None).await;
    world.acquire().await.unwrap();
    // Nothing to ask with: neither a 401 nor an operator makes a call, and the token stays in use.
    assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
    world.engine.refresh_now(&c()).await.unwrap();
    world.acquire().await.unwrap();
    world.clock.leap(LIFE);
    let error = world.acquire().await.unwrap_err();
    let cause = DeathCause::NoRefreshToken;
    assert!(matches!(error, LendError::ReauthorizationRequired { cause: told, .. } if told == cause));
    assert_eq!(world.server.count(), 0);
}

/// An active connection that holds nothing and can ask for nothing (its profile became another) says so, instead of
/// reading the store in a loop.
#[tokio::test]
async fn an_active_connection_without_a_grant_asks_for_a_consent() {
    let world = World::fresh(NEW).await;
    world.write(|connection| connection.grant = None).await;
    let error = world.acquire().await.unwrap_err();
    assert!(matches!(error, LendError::ReauthorizationRequired { .. }), "{error}");
    assert!(world.backend.loads.load(SeqCst) < 30);
    assert_eq!(world.server.count(), 0);
}

#[tokio::test]
async fn client_credentials_without_a_grant_obtain_one() {
    let world = World::new(NEW, None).await;
    world.server.next(Answer::token("first", Some("nobody-asked"), 1_800));
    assert_eq!(bearer(&world.acquire().await.unwrap()), "first");
    assert_eq!(world.stored_tokens().await, (1, "first".into(), "none".into()));
    assert_eq!(world.server.calls()[0]["grant_type"], "client_credentials");
    world.clock.leap(LIFE);
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
    assert_eq!(world.server.calls()[1]["grant_type"], "client_credentials");
}

/// A wrong client secret is the integration's fault: once it is mended, the connection works, without a consent that
/// nobody could give.
#[tokio::test]
async fn refused_client_credentials_do_not_kill_the_connection() {
    let world = World::new(NEW, None).await;
    for _ in 0..6 {
        world.server.next(Answer::denied());
        world.engine.refresh_now(&c()).await.unwrap();
    }
    assert_eq!(world.stored().await.lifecycle.name(), "active");
    world.clock.leap(Duration::from_mins(2));
    world.acquire().await.unwrap();
}

/// A store command that panics is one without an answer.
#[tokio::test]
async fn a_panic_does_not_leave_the_slot_stuck() {
    let settings = TokenSettings { wait_max_s: 1, ..TokenSettings::default() };
    let world = World::with(NEW, Some((LIFE, Duration::ZERO)), settings).await;
    world.load().await;
    world.backend.panics.store(1, SeqCst);
    assert_eq!(
        world.acquire().await.unwrap().generation,
        Generation(2),
        "as where the store does not answer"
    );
    assert_eq!(world.backend.panics.load(SeqCst), 0);
    world.refreshed().await;
    world.engine.refresh_now(&c()).await.unwrap();
    assert_eq!(world.acquire().await.unwrap().generation, Generation(3));
}

#[tokio::test]
async fn shutdown_waits_for_a_refresh_under_way() {
    let world = World::expired(Habit::Rotating(LIFE)).await;
    world.server.answers(false);
    let waiting = world.acquire_and_leave_waiting().await;
    let engine = world.engine.clone();
    let shutdown = tokio::spawn(async move { engine.shutdown(Duration::from_secs(20)).await });
    eventually("closing", async || world.engine.inner.closing.is_cancelled()).await;
    assert!(!shutdown.is_finished());
    world.server.answers(true);
    shutdown.await.unwrap();
    assert_eq!(world.stored_tokens().await, (2, "at-2".into(), "rt-2".into()));
    assert_eq!(waiting.await.unwrap().unwrap().generation, Generation(2));
    world.clock.leap(LIFE);
    assert!(is_unavailable(&world.acquire().await.unwrap_err()));
    assert_eq!(world.server.count(), 1);
}

// --- 401 --------------------------------------------------------------------------------------------------------

/// P-26
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refusals_make_one_token_call() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    world.server.answers(false);
    let refused: Vec<_> = (0..1_000).map(|_| tokio::spawn(world.refused(1))).collect();
    eventually("all wait", async || world.slot().waiting() == 1_000).await;
    eventually("a token call", async || world.server.count() == 1).await;
    world.server.answers(true);
    for one in refused {
        let after = one.await.unwrap();
        assert!(matches!(after, AfterRefusal::Replay(token) if token.generation == Generation(2)));
    }
    assert_eq!(world.server.count(), 1);
    // Latecomers with the old token get the new one, without a call.
    let after = world.refused(1).await;
    assert!(matches!(after, AfterRefusal::Replay(token) if bearer(&token) == "at-2"));
    assert_eq!(world.server.count(), 1);
}

/// P-26: the refused token came back: 401s pass through, and this generation has had its refresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_that_comes_back_passes_through() {
    let world = World::fresh(Habit::Remaining(LIFE)).await;
    world.acquire().await.unwrap();
    world.server.answers(false);
    let refused: Vec<_> = (0..1_000).map(|_| tokio::spawn(world.refused(1))).collect();
    eventually("all wait", async || world.slot().waiting() == 1_000).await;
    world.server.answers(true);
    for one in refused {
        assert!(matches!(one.await.unwrap(), AfterRefusal::PassThrough));
    }
    for _ in 0..3 {
        assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
        world.clock.leap(Duration::from_secs(1));
    }
    assert_eq!(world.server.count(), 1);
    assert_eq!(world.acquire().await.unwrap().generation, Generation(1)); // still lent: it may be the one call's fault
}

/// A forced refresh that brought no answer is not the generation's one.
#[tokio::test]
async fn a_failed_forced_refresh_may_be_repeated_after_its_pause() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    world.server.next(Answer::unavailable(Some("60")));
    for _ in 0..3 {
        assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
    }
    assert_eq!(world.server.count(), 1);
    world.clock.leap(Duration::from_mins(1));
    let after = world.refused(1).await;
    assert!(matches!(after, AfterRefusal::Replay(token) if token.generation == Generation(2)));
    assert_eq!(world.server.count(), 2);
}

#[tokio::test]
async fn a_refusal_of_what_is_not_held_makes_no_call() {
    let world = World::fresh(NEW).await;
    assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
    let lent = world.acquire().await.unwrap();
    // Another token than the refused one is there.
    let after = world.refused(7).await;
    assert!(matches!(after, AfterRefusal::Replay(token) if bearer(&token) == "at-1"));
    // The same token of another connection: of the one that was deleted, where this one was made anew.
    let of_another = LentToken { upstream: world.elsewhere(), ..lent };
    assert!(matches!(world.engine.refused(&c(), &of_another).await, AfterRefusal::PassThrough));
    assert_eq!(world.server.count(), 0);
}

/// The refusal of an old token says nothing about that of a grant after a purge.
#[tokio::test]
async fn a_refusal_of_a_purged_token_says_nothing_about_the_next() {
    let world = World::fresh(NEW).await;
    let old = world.acquire().await.unwrap();
    let now = world.clock.now() + Duration::from_millis(1);
    let new =
        Grant { access_token: AccessToken::parse("anew".to_owned()).unwrap(), ..grant(now, LIFE, LIFE) };
    for grant in [None, Some(new)] {
        world
            .write(|connection| {
                if let Some(grant) = grant.clone() {
                    connection.lifecycle = Lifecycle::Active { since: now };
                    connection.put_grant(grant, now);
                } else {
                    connection.lifecycle = Lifecycle::AwaitingConsent { since: now };
                    connection.purge_grant(now);
                }
            })
            .await;
        world.apply(Kind::Connection, "c").await;
    }
    let AfterRefusal::Replay(lent) = world.engine.refused(&c(), &old).await else { panic!() };
    assert_eq!(bearer(&lent), "anew");
    assert!(lent.generation > old.generation, "generations only grow, over a purge too (I-3)");
    assert_eq!(world.server.count(), 0);
    // The new one has its own forced refresh.
    assert!(matches!(world.engine.refused(&c(), &lent).await, AfterRefusal::Replay(_)));
    assert_eq!(world.server.count(), 1);
}

// --- the store --------------------------------------------------------------------------------------------------

/// I-1: a rotated refresh token outlives a store that is away at the moment of the commit.
#[tokio::test]
async fn a_grant_that_the_store_does_not_take_is_offered_until_it_does() {
    for (down, read_only) in [(true, false), (false, true)] {
        let world = World::expired(Habit::Rotating(LIFE)).await;
        world.load().await;
        world.backend.down.store(down, SeqCst);
        world.backend.read_only.store(read_only, SeqCst);
        let lent = world.acquire().await.unwrap();
        assert_eq!(bearer(&lent), "at-2");
        world.refreshed().await;
        world.backend.down.store(false, SeqCst);
        // A change that arrives meanwhile does not put the old grant back.
        world.apply(Kind::Connection, "c").await;
        assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
        world.backend.read_only.store(false, SeqCst);
        eventually("the store takes it", async || {
            world.stored_tokens().await == (2, "at-2".into(), "rt-2".into())
        })
        .await;
        eventually("nothing is left", async || world.slot().read(|state| !state.refresher.is_unsettled()))
            .await;
        assert_eq!(world.server.count(), 1);
    }
}

/// I-1: the write landed without a confirmation, and then the store was away. What rotates is not spent without it.
#[tokio::test]
async fn a_write_that_landed_unconfirmed_is_no_obstacle_to_the_next() {
    let world = World::expired(Habit::Rotating(LIFE)).await;
    world.load().await;
    world.backend.unconfirmed_after(1, 1);
    let backend = world.backend.clone();
    world.backend.on(After::Replace(Kind::Connection), 1, async move || {
        backend.down.store(true, SeqCst);
    });
    assert_eq!(bearer(&world.acquire().await.unwrap()), "at-2");
    world.refreshed().await;
    world.engine.refresh_now(&c()).await.unwrap();
    assert_eq!((bearer(&world.acquire().await.unwrap()), world.server.count()), ("at-2", 1));
    world.backend.down.store(false, SeqCst);
    eventually("the store holds it for certain", async || {
        !world.slot().read(|state| state.refresher.is_unsettled())
    })
    .await;
    world.engine.refresh_now(&c()).await.unwrap();
    assert_eq!(world.stored_tokens().await, (3, "at-3".into(), "rt-3".into()));
    assert_eq!(world.server.count(), 2);
}

/// Where the refresh token stays, a refresh goes on without the store, and is written down later.
#[tokio::test]
async fn what_does_not_rotate_is_refreshed_without_the_store() {
    let world = World::expired(NEW).await;
    world.load().await;
    world.backend.down.store(true, SeqCst);
    for number in 2..5 {
        world.engine.refresh_now(&c()).await.unwrap();
        let lent = world.acquire().await.unwrap();
        assert_eq!((lent.generation, bearer(&lent)), (Generation(number), format!("at-{number}").as_str()));
    }
    world.backend.down.store(false, SeqCst);
    eventually("the newest is stored", async || world.stored_tokens().await.1 == "at-4").await;
    assert_eq!(world.server.count(), 3);
}

/// A claim without a confirmation, that landed or did not: the call goes out once, under a claim that stands.
#[tokio::test]
async fn an_unconfirmed_claim_is_looked_for() {
    let world = World::expired(Habit::Rotating(LIFE)).await;
    world.backend.unconfirmed_after(0, 1);
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
    world.refreshed().await;
    assert_eq!(world.stored_tokens().await, (2, "at-2".into(), "rt-2".into()));
    assert_eq!((world.server.count(), world.stored().await.exchanges.intent), (1, None));
}

#[tokio::test]
async fn an_unconfirmed_write_that_landed_is_ours() {
    let world = World::expired(Habit::Rotating(LIFE)).await;
    world.backend.unconfirmed_after(1, 1);
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
    eventually("it is recognised", async || world.slot().read(|state| !state.refresher.is_unsettled())).await;
    assert_eq!(world.stored_tokens().await, (2, "at-2".into(), "rt-2".into()));
    let lost = world.engine.inner.metrics.commits.with_label_values(&["lost"]).get();
    assert_eq!((lost, world.server.count()), (0, 1));
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
}

/// I-3: a consent that was finished during the refresh stands.
#[tokio::test]
async fn a_grant_that_another_writer_put_there_stands() {
    let world = World::expired(NEW).await;
    world.server.answers(false);
    let waiting = world.acquire_and_leave_waiting().await;
    let now = world.clock.now();
    world
        .write(|connection| {
            let grant = grant(now, LIFE, LIFE);
            let grant = Grant {
                generation: Generation(5),
                access_token: AccessToken::parse("theirs".to_owned()).unwrap(),
                refresh_token: Some(RefreshToken::parse("theirs-too".to_owned()).unwrap()),
                ..grant
            };
            connection.put_grant(grant, now);
        })
        .await;
    world.server.answers(true);
    let lent = waiting.await.unwrap().unwrap();
    assert_eq!((lent.generation, bearer(&lent)), (Generation(5), "theirs"));
    assert_eq!(world.stored_tokens().await, (5, "theirs".into(), "theirs-too".into()));
}

/// I-6: what was refused is no longer what is stored.
#[tokio::test]
async fn the_refusal_of_an_old_refresh_token_kills_nothing() {
    for answer in [Answer::invalid_grant(), Answer::denied()] {
        let world = World::expired(NEW).await;
        world.server.next(answer);
        world.server.answers(false);
        let waiting = world.acquire_and_leave_waiting().await;
        world
            .write(|connection| {
                let refresh_token = Some(RefreshToken::parse("rt-newer".to_owned()).unwrap());
                let grant = Grant { refresh_token, ..connection.grant.clone().unwrap() };
                connection.put_grant(grant, world.clock.now());
            })
            .await;
        world.server.answers(true);
        assert_eq!(waiting.await.unwrap().unwrap().generation, Generation(3));
        assert_eq!(
            (world.stored().await.lifecycle.name(), world.stored().await.health),
            ("active", Health::Ok)
        );
        assert_eq!(world.server.calls()[1]["refresh_token"], "rt-newer");
    }
}

/// I-6: without the store nobody knows whether the refused token was the newest.
#[tokio::test]
async fn nothing_dies_while_the_store_is_away() {
    let world = World::expired(NEW).await;
    world.load().await;
    world.backend.down.store(true, SeqCst);
    world.server.next(Answer::invalid_grant());
    assert!(is_unavailable(&world.acquire().await.unwrap_err()));
    assert!(matches!(world.slot().read(|state| state.connection().health.clone()), Health::Failing { .. }));
    world.backend.down.store(false, SeqCst);
    world.clock.leap(Duration::from_mins(1));
    assert_eq!(world.acquire().await.unwrap().generation, Generation(2));
}

#[tokio::test]
async fn without_the_store_nothing_new_is_loaded() {
    let world = World::fresh(NEW).await;
    world.backend.down.store(true, SeqCst);
    assert!(is_unavailable(&world.acquire().await.unwrap_err()));
    world.backend.down.store(false, SeqCst);
    world.acquire().await.unwrap();
    world.backend.down.store(true, SeqCst);
    world.acquire().await.unwrap();
    let unknown = ConnectionId::parse("unknown").unwrap();
    world.backend.down.store(false, SeqCst);
    assert_eq!(world.engine.acquire(&unknown).await.unwrap_err(), LendError::Unknown);
}

// --- changes by others --------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_deleted_connection_is_closed() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let revision = world.store.load::<Connection>("c").await.unwrap().unwrap().revision;
    assert!(world.store.delete::<Connection>("c", revision).await.unwrap());
    world.apply(Kind::Connection, "c").await;
    assert!(world.engine.peek(&c()).is_none());
    assert_eq!(world.acquire().await.unwrap_err(), LendError::Unknown);
    assert!(matches!(world.refused(1).await, AfterRefusal::PassThrough));
    assert!(world.engine.refresh_now(&c()).await.unwrap().is_none());
}

/// A refresh that finds its connection gone asks for nothing.
#[tokio::test]
async fn a_refresh_of_a_deleted_connection_makes_no_call() {
    let world = World::expired(NEW).await;
    world.load().await;
    let slot = world.slot();
    let revision = world.store.load::<Connection>("c").await.unwrap().unwrap().revision;
    assert!(world.store.delete::<Connection>("c", revision).await.unwrap());
    assert_eq!(world.acquire().await.unwrap_err(), LendError::Unknown);
    eventually("the refresh has ended", async || !slot.read(|state| state.refresher.is_exchanging())).await;
    assert_eq!(world.server.count(), 0);
}

/// I-5: the end of a refresh does not open again what was deleted during it.
#[tokio::test]
async fn a_connection_deleted_during_its_refresh_stays_closed() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let slot = world.slot();
    world.server.answers(false);
    let refused = tokio::spawn(world.refused(1));
    eventually("a token call", async || world.server.count() == 1).await;
    let revision = world.store.load::<Connection>("c").await.unwrap().unwrap().revision;
    assert!(world.store.delete::<Connection>("c", revision).await.unwrap());
    world.apply(Kind::Connection, "c").await;
    world.server.answers(true);
    eventually("the refresh has ended", async || !slot.read(|state| state.refresher.is_exchanging())).await;
    assert!(matches!(slot.view().standing, Standing::Closed(LendError::Unknown)));
    assert!(matches!(refused.await.unwrap(), AfterRefusal::PassThrough));
    assert!(world.engine.peek(&c()).is_none());
    assert!(world.store.load::<Connection>("c").await.unwrap().is_none());
    assert_eq!(world.server.count(), 1);
}

/// Revisions have no order (Redis draws them at random): whatever the store says last, counts.
#[tokio::test]
async fn a_change_counts_whatever_its_revision() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    for _ in 0..2 {
        world.freeze().await;
        world.apply(Kind::Connection, "c").await;
        assert_eq!(world.closed(), Some(LendError::Frozen));
        assert_eq!(world.acquire().await.unwrap_err(), LendError::Frozen);
        world.write(|connection| connection.frozen = None).await;
        assert!(world.engine.apply_all().await.is_empty());
        assert_eq!(world.closed(), None);
        world.acquire().await.unwrap();
    }
    let awaits = Lifecycle::AwaitingConfirmation { since: world.clock.now() };
    world.write(|connection| connection.lifecycle = awaits.clone()).await;
    world.apply(Kind::Connection, "c").await;
    assert_eq!(world.acquire().await.unwrap_err(), LendError::Pending);
}

/// I-5: a freeze that arrives between a commit and its way into memory is not overwritten by the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_right_after_a_commit_is_not_lost() {
    let world = Arc::new(World::expired(NEW).await);
    world.load().await;
    let other = world.clone();
    world.backend.on(After::Replace(Kind::Connection), 0, async move || {
        other.freeze().await;
        let applying = tokio::spawn({
            let other = other.clone();
            async move { other.apply(Kind::Connection, "c").await }
        });
        // What follows the store either waits for the commit to be in memory, or is through before it is.
        let _ = tokio::time::timeout(Duration::from_millis(200), applying).await;
    });
    let _ = world.acquire().await;
    world.refreshed().await;
    eventually("frozen", async || world.closed() == Some(LendError::Frozen)).await;
    assert_eq!((world.stored_tokens().await.0, world.stored().await.frozen.is_some()), (2, true));
    assert_eq!(world.acquire().await.unwrap_err(), LendError::Frozen);
}

/// A change between reading a connection and holding it does not go unnoticed, of the connection nor its integration.
#[tokio::test]
async fn a_change_during_the_load_is_seen() {
    for skip in 0..2 {
        let world = Arc::new(World::fresh(NEW).await);
        let other = world.clone();
        world.backend.on(After::Load(Kind::Connection), skip, async move || {
            other.freeze().await;
            other.apply(Kind::Connection, "c").await; // not held yet: in vain
            let renamed = other.store.update::<Integration, ()>("i", |integration| {
                integration.client_secret = Some(ClientSecret::parse("rotated".to_owned()).unwrap());
                Ok(())
            });
            renamed.await.unwrap().unwrap();
            other.apply(Kind::Integration, "i").await; // the same
        });
        let view = world.load().await;
        assert!(matches!(view.standing, Standing::Closed(LendError::Frozen)), "{view:?}");
        let secret = world.slot().read(|state| state.integration.client_secret.clone().unwrap());
        assert_eq!(secret.expose(), "rotated");
    }
}

/// I-4: a connection made anew under another integration brings nothing of the old one along.
#[tokio::test]
async fn a_connection_made_anew_is_another() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let held = world.slot();
    let elsewhere = AuthServer::start(world.clock.clone(), NEW).await;
    let other = integration_at("other", &elsewhere, GrantType::AuthorizationCode);
    world.store.create(&other).await.unwrap().unwrap();
    let revision = world.store.load::<Connection>("c").await.unwrap().unwrap().revision;
    assert!(world.store.delete::<Connection>("c", revision).await.unwrap());
    world.clock.leap(Duration::from_millis(5));
    let now = world.clock.now();
    let anew = connection_under("c", "other", Some(grant(now, LIFE, LIFE)), now);
    world.store.create(&anew).await.unwrap().unwrap();
    world.apply(Kind::Connection, "c").await; // deletion and creation, told at once
    assert!(matches!(held.view().standing, Standing::Closed(_)));
    let view = world.load().await;
    assert_eq!(view.upstream.instance, elsewhere.origin);
    assert!(matches!(view.standing, Standing::Ready(_)));
}

/// I-4: once an integration names another instance or client, the old client's tokens are lent to nobody, even before
/// they are purged.
#[tokio::test]
async fn tokens_do_not_follow_their_integration_to_another_instance() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let held = world.slot();
    let elsewhere = AuthServer::start(world.clock.clone(), NEW).await;
    world.write(|connection| connection.purge_grant(world.clock.now())).await;
    let moved = world.store.update::<Integration, ()>("i", |integration| {
        integration.instance = elsewhere.origin.clone();
        integration.endpoints = Endpoints::servicenow(&elsewhere.origin);
        Ok(())
    });
    moved.await.unwrap().unwrap();
    world.apply(Kind::Integration, "i").await; // before the connection's own change
    assert!(matches!(held.view().standing, Standing::Closed(_)));
    assert_eq!(held.view().upstream.instance, world.server.origin);
    assert!(world.engine.peek(&c()).is_none());
    assert!(world.acquire().await.is_err());
    assert_eq!((world.server.count(), elsewhere.count()), (0, 0));
}

/// P-17: calls go another way as soon as the integration says so; the token stays.
#[tokio::test]
async fn another_protocol_is_another_way() {
    let world = World::fresh(NEW).await;
    let first = world.acquire().await.unwrap();
    let changed = world.store.update::<Integration, ()>("i", |integration| {
        integration.http2 = true;
        Ok(())
    });
    changed.await.unwrap().unwrap();
    world.apply(Kind::Integration, "i").await;
    let second = world.acquire().await.unwrap();
    assert_eq!(bearer(&first), bearer(&second));
    let (before, after) = (&first.upstream.connector, &second.upstream.connector);
    assert_eq!((before.http2(), after.http2()), (false, true));
    assert!(!Arc::ptr_eq(&first.upstream, &second.upstream) && before.pool_key() != after.pool_key());
}

/// I-4: whoever holds a token can tell whether another one goes the same way for the same connection.
#[tokio::test]
async fn a_token_knows_where_it_may_go() {
    let world = World::fresh(NEW).await;
    let first = world.acquire().await.unwrap();
    assert!(Arc::ptr_eq(&first.upstream, &world.load().await.upstream));
    assert_eq!(first.upstream.instance, world.server.origin);
    // A new token, and an integration told again with another secret, change nothing of the way.
    let renamed = world.store.update::<Integration, ()>("i", |integration| {
        integration.client_secret = Some(ClientSecret::parse("rotated".to_owned()).unwrap());
        Ok(())
    });
    renamed.await.unwrap().unwrap();
    world.apply(Kind::Integration, "i").await;
    let AfterRefusal::Replay(second) = world.refused(1).await else { panic!() };
    assert!(Arc::ptr_eq(&first.upstream, &second.upstream));
    // Another connection to the same instance goes a way of its own.
    let now = world.clock.now();
    let other = connection_under("d", "i", Some(grant(now, LIFE, LIFE)), now);
    world.store.create(&other).await.unwrap().unwrap();
    let others = world.engine.acquire(&other.id).await.unwrap();
    world.apply(Kind::Integration, "i").await;
    let later = [world.acquire().await.unwrap(), world.engine.acquire(&other.id).await.unwrap()];
    assert!(!Arc::ptr_eq(&first.upstream, &others.upstream));
    assert!(Arc::ptr_eq(&first.upstream, &later[0].upstream));
    assert!(Arc::ptr_eq(&others.upstream, &later[1].upstream));
    // And so does this connection once it is made anew, be it under the same integration.
    let revision = world.store.load::<Connection>("c").await.unwrap().unwrap().revision;
    assert!(world.store.delete::<Connection>("c", revision).await.unwrap());
    world.clock.leap(Duration::from_millis(5));
    let now = world.clock.now();
    let anew =
        connection_under("c", "i", Some(Grant { generation: Generation(3), ..grant(now, LIFE, LIFE) }), now);
    world.store.create(&anew).await.unwrap().unwrap();
    world.apply(Kind::Connection, "c").await;
    assert!(!Arc::ptr_eq(&first.upstream, &world.acquire().await.unwrap().upstream));
    assert!(matches!(world.engine.refused(&c(), &second).await, AfterRefusal::PassThrough));
}

/// I-4: a grant that another process got from the new instance is not lent for the old one while this process has yet
/// to hear of the move.
#[tokio::test]
async fn a_grant_of_the_new_instance_is_not_lent_for_the_old_one() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let elsewhere = AuthServer::start(world.clock.clone(), NEW).await;
    world.write(|connection| connection.grant = None).await;
    let moved = world.store.update::<Integration, ()>("i", |integration| {
        integration.instance = elsewhere.origin.clone();
        integration.endpoints = Endpoints::servicenow(&elsewhere.origin);
        Ok(())
    });
    moved.await.unwrap().unwrap();
    let now = world.clock.now() + Duration::from_millis(1);
    let theirs = Grant {
        access_token: AccessToken::parse("of-the-new-instance".to_owned()).unwrap(),
        ..grant(now, LIFE, LIFE)
    };
    world.write(|connection| connection.put_grant(theirs.clone(), now)).await;
    world.apply(Kind::Connection, "c").await; // before the integration's own change
    let view = world.engine.peek(&c());
    let lends = view.is_some_and(|view| matches!(view.standing, Standing::Ready(_)));
    assert!(!lends, "the new instance's token, for the old instance");
    let lent = world.acquire().await.unwrap();
    assert_eq!((bearer(&lent), &lent.upstream.instance), ("of-the-new-instance", &elsewhere.origin));
}

/// S-03, S-04: what cannot be used is closed, and everything else goes on being followed.
#[tokio::test]
async fn a_damaged_record_closes_itself_and_nothing_else() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let other = AuthServer::start(world.clock.clone(), NEW).await;
    world
        .store
        .create(&integration_at("other", &other, GrantType::ClientCredentials))
        .await
        .unwrap()
        .unwrap();
    let mut open = Vec::new();
    for (id, integration) in [("damaged", "i"), ("untrusted", "other")] {
        let now = world.clock.now();
        let connection = connection_under(id, integration, Some(grant(now, LIFE, LIFE)), now);
        world.store.create(&connection).await.unwrap().unwrap();
        world.engine.acquire(&connection.id).await.unwrap();
        open.push(connection.id);
    }
    world.backend.corrupt(&RecordKey::new(Kind::Connection, "damaged")).await;
    let away = world.store.update::<Integration, ()>("other", |integration| {
        integration.ca_file = Some("/nonexistent/ca.pem".to_owned());
        Ok(())
    });
    away.await.unwrap().unwrap();
    world.freeze().await;
    let changed =
        keys(&[(Kind::Connection, "damaged"), (Kind::Integration, "other"), (Kind::Connection, "c")]);
    assert!(world.engine.apply(&changed).await.is_empty());
    assert_eq!(world.closed(), Some(LendError::Frozen));
    for id in &open {
        assert!(world.engine.peek(id).is_none());
        assert!(is_unavailable(&world.engine.acquire(id).await.unwrap_err()));
    }
    assert!(world.engine.apply_all().await.is_empty());
}

/// Whoever sees that a token is no longer the one in memory finds the newer one, and not the same again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_there_as_soon_as_its_state_is() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    let slot = world.engine.inner.held(&c()).unwrap();
    let ends = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = ends.clone();
    let looking = std::thread::spawn(move || {
        while !ended.load(SeqCst) {
            let held = slot.read(|state| state.connection().grant.as_ref().map(|grant| grant.generation));
            if let Standing::Ready(token) = &slot.view().standing {
                assert!(Some(token.generation) >= held, "{:?} after {held:?}", token.generation);
            }
        }
    });
    for _ in 0..300 {
        world.engine.refresh_now(&c()).await.unwrap();
    }
    ends.store(true, SeqCst);
    looking.join().unwrap();
}

// --- the roster -----------------------------------------------------------------------------------------------------

async fn labelled(world: &World) -> Arc<[(ConnectionId, BTreeMap<String, String>)]> {
    let roster = match world.engine.roster() {
        Some(known) => known,
        None => world.engine.load_roster().await.unwrap(),
    };
    let Roster::Few(connections) = roster else { panic!("they are few") };
    connections
}

async fn roster(world: &World) -> Vec<String> {
    labelled(world).await.iter().map(|(id, _)| id.to_string()).collect()
}

/// An answer that was read before a change is not kept after it.
#[tokio::test]
async fn the_roster_is_of_all_connections() {
    let world = Arc::new(World::fresh(NEW).await);
    let other = world.clone();
    world.backend.on(After::List(Kind::Connection), 0, async move || {
        let second = connection_under("d", "i", None, other.clock.now());
        other.store.create(&second).await.unwrap().unwrap();
        other.apply(Kind::Connection, "d").await;
    });
    roster(&world).await;
    assert!(world.engine.roster().is_none());
    assert_eq!(roster(&world).await, ["c", "d"]);
    let revision = world.store.load::<Connection>("d").await.unwrap().unwrap().revision;
    world.store.delete::<Connection>("d", revision).await.unwrap();
    assert_eq!(roster(&world).await, ["c", "d"]); // kept, until the change is told
    world.engine.apply_all().await; // nothing is held: told all the same
    assert_eq!(roster(&world).await, ["c"]);
}

/// Also of a connection that memory holds, which was changed while the others were read.
#[tokio::test]
async fn a_roster_that_was_read_before_a_change_of_labels_is_not_kept() {
    let world = Arc::new(World::fresh(NEW).await);
    world.acquire().await.unwrap();
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    let (other, changed) = (world.clone(), labels.clone());
    world.backend.on(After::List(Kind::Connection), 0, async move || {
        other.write(|connection| connection.labels = changed.clone()).await;
        other.apply(Kind::Connection, "c").await;
    });
    world.engine.load_roster().await.unwrap();
    assert!(world.engine.roster().is_none());
    assert_eq!(labelled(&world).await[0].1, labels);
}

/// A rule may select by labels: a connection that has others is another answer, also where memory took it over before it was
/// told of the change.
#[tokio::test]
async fn the_roster_has_the_labels_of_now() {
    let world = World::fresh(NEW).await;
    let labels = |env: &str| BTreeMap::from([("env".to_owned(), env.to_owned())]);
    assert_eq!(labelled(&world).await[0].1, BTreeMap::new());
    world.write(|connection| connection.labels = labels("prod")).await;
    world.acquire().await.unwrap(); // loads it, as it is by now
    world.apply(Kind::Connection, "c").await;
    assert_eq!(labelled(&world).await[0].1, labels("prod"));
    world.write(|connection| connection.labels = labels("test")).await;
    world.apply(Kind::Connection, "c").await;
    assert_eq!(labelled(&world).await[0].1, labels("test"));
}

/// A call that names no connection is one that a cached token can answer: an outage of the store does not fail it, and a
/// refresh is no reason to ask anew.
#[tokio::test]
async fn the_roster_is_known_without_the_store() {
    let world = World::fresh(NEW).await;
    world.acquire().await.unwrap();
    assert_eq!(roster(&world).await, ["c"]);
    world.backend.on(After::List(Kind::Connection), 0, async || panic!("asked again"));
    world.engine.refresh_now(&c()).await.unwrap();
    world.apply(Kind::Connection, "c").await;
    assert_eq!(roster(&world).await, ["c"]);
    world.backend.down.store(true, SeqCst);
    assert!(!world.engine.apply_all().await.is_empty());
    assert_eq!(roster(&world).await, ["c"], "as it was last");
}

/// An outage is told as one, not as a fault of the call.
#[tokio::test]
async fn a_roster_that_was_never_read_is_unavailable() {
    let world = World::fresh(NEW).await;
    world.backend.down.store(true, SeqCst);
    assert!(is_unavailable(&world.engine.load_roster().await.unwrap_err()));
    world.backend.down.store(false, SeqCst);
    assert_eq!(roster(&world).await, ["c"]);
}

/// However many ask at once, the store is asked once.
#[tokio::test]
async fn the_roster_is_read_by_one_at_a_time() {
    let world = World::fresh(NEW).await;
    world.backend.on(After::List(Kind::Connection), 1, async || panic!("asked again"));
    let asking = (0..50).map(|_| world.engine.load_roster());
    let asking: Vec<_> = asking.map(tokio::spawn).collect();
    for asked in asking {
        assert!(matches!(asked.await.unwrap().unwrap(), Roster::Few(connections) if connections.len() == 1));
    }
}

#[path = "company_tests.rs"]
mod company;
