//! Crash runs (F-01): the real binary is killed with a real SIGKILL at every crash point that it lists, while a
//! connection is refreshed, consented, imported or deleted; started again, it has lost no grant. Every run ends with
//! the history checker.
//!
//! Seeds vary what leads to the point, what the instance does meanwhile, and the pass that is fatal.
//! `BEARERD_CRASH_SEEDS` says how many there are: 3 in CI, 20 for `docs/reliability.md`.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::unix::process::ExitStatusExt,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use bearerd_tests::{
    CLIENT_ID, CLIENT_SECRET, Cli, Deployment, Expectations, LoadReport, Recorder, Redis, Request, Setup,
    Subject, WebClient, poll, release_binary, request, wait_until,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use servicenow_sim::{
    Behaviour, ClientSettings, Fault, FaultOn, FaultRule, RefreshWithinLife, TokenOwner, TokenSelection,
};

#[test]
fn the_file_loses_no_grant_where_refresh_tokens_stay() {
    check("crash-embedded", false, false);
}

#[test]
fn the_file_loses_no_grant_under_rotation() {
    check("crash-embedded-rotation", false, true);
}

#[test]
fn redis_loses_no_grant_where_refresh_tokens_stay() {
    check("crash-redis", true, false);
}

#[test]
fn redis_loses_no_grant_under_rotation() {
    check("crash-redis-rotation", true, true);
}

/// What users run cannot be told to die.
#[test]
fn a_release_build_has_no_crash_points() {
    let Some(binary) = release_binary() else {
        return println!("NOT CHECKED: there is no release build of these sources; tests/run makes one");
    };
    let content = std::fs::read(binary).unwrap();
    let holds = |text: &[u8]| content.windows(text.len()).any(|window| window == text);
    assert!(holds(b"BEARERD_ADMIN_KEY"), "this search finds what is there");
    for text in ["BEARERD_CRASH_AT", "crash-points"] {
        assert!(!holds(text.as_bytes()), "{text}");
    }
}

/// What leads to a crash point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// An operator's.
    ForcedRefresh,
    /// The instance answers a call with 401.
    RefreshAfterRefusal,
    /// The process starts, and finds a token that has ended.
    DueRefresh,
    /// The token endpoint fails.
    FailedRefresh,
    Consent,
    Import,
    Delete,
}

/// One crash and the recovery from it.
struct Run {
    act: Act,
    ready_after: Duration,
    fresh_after: Duration,
}

fn check(name: &str, redis: bool, rotation: bool) {
    let (points, seeds) = (listed_points(), seeds());
    // Seed by seed, so that the long ones of one point do not gather on one bench.
    let tasks: VecDeque<(String, u32)> = (0..seeds)
        .flat_map(|seed| points.iter().map(move |point| (point.clone(), seed)))
        .filter(|(point, _)| is_passed(point, rotation))
        .collect();
    let wanted = tasks.len();
    let (tasks, runs) = (Mutex::new(tasks), Mutex::new(BTreeMap::<String, Vec<Run>>::new()));
    let failed = thread::scope(|scope| {
        let benches: Vec<_> = (1..=BENCHES)
            .map(|number| {
                let (tasks, runs) = (&tasks, &runs);
                let work = move || {
                    let mut bench = Bench::new(&format!("{name}-{number}"), redis, rotation);
                    loop {
                        let task = tasks.lock().unwrap().pop_front();
                        let Some((point, seed)) = task else { return };
                        let run = bench.crash(&point, seed);
                        runs.lock().unwrap().entry(point).or_default().push(run);
                    }
                };
                thread::Builder::new().name(format!("{name}-{number}")).spawn_scoped(scope, work).unwrap()
            })
            .collect();
        benches.into_iter().filter_map(|bench| bench.join().err()).count()
    });
    let runs = runs.into_inner().unwrap();
    for (point, runs) in &runs {
        let acts: BTreeSet<Act> = runs.iter().map(|run| run.act).collect();
        let slowest = |took: fn(&Run) -> Duration| runs.iter().map(took).max().unwrap_or_default();
        println!(
            "{point:<20} {:>3} crashes; ready after {:.2?} at most, fresh after {:.2?}; by {acts:?}",
            runs.len(),
            slowest(|run| run.ready_after),
            slowest(|run| run.fresh_after)
        );
    }
    let done: usize = runs.values().map(Vec::len).sum();
    println!("{name}: {done} of {wanted} crashes, {} points, {failed} failures", runs.len());
    assert_eq!(failed, 0, "benches stopped at a failure; each is told above");
    assert_eq!(done, wanted, "not every point was hit with every seed");
}

/// What the binary lists.
fn listed_points() -> Vec<String> {
    let listed = Cli::run(&["crash-points"]);
    assert_eq!(
        listed.code, 0,
        "this binary has no crash points: cargo build -p bearerd --features crash-points (tests/run does)"
    );
    let names: Vec<String> = serde_json::from_str(&listed.stdout).unwrap();
    assert!(!names.is_empty());
    names
}

fn seeds() -> u32 {
    #[expect(clippy::disallowed_methods, reason = "the size of the test, not a setting of the daemon")]
    let asked = std::env::var("BEARERD_CRASH_SEEDS").ok();
    asked.map_or(3, |text| text.parse().expect("BEARERD_CRASH_SEEDS is a number"))
}

/// Nothing is kept apart from the store where the refresh token that the store has stays good.
fn is_passed(point: &str, rotation: bool) -> bool {
    rotation || !point.starts_with("keep.")
}

/// # Panics
/// There is none: whoever adds a point says here what leads to it.
fn act_for(point: &str, seed: u32) -> Act {
    let refreshes = [Act::ForcedRefresh, Act::RefreshAfterRefusal, Act::DueRefresh];
    match point.split_once('.').unwrap_or_default().0 {
        "claim" | "call" | "keep" | "commit" | "publish" => refreshes[seed as usize % refreshes.len()],
        // Given back by itself where an exchange brought nothing; else with the commit.
        "release" => Act::FailedRefresh,
        "consent" => Act::Consent,
        "import" => Act::Import,
        "revoke" => Act::Delete,
        _ => panic!("no act leads to crash point {point}: say which does"),
    }
}

/// A deployment that is crashed again and again. It goes down before its Redis.
struct Bench {
    deployment: Deployment,
    key: String,
    rotation: bool,
    runs: u32,
    /// People who were sent to consent, ever.
    consents: Cell<u64>,
    _redis: Option<Redis>,
}

/// A connection of one run alone, under a client of its own: what becomes of its tokens concerns no other run.
struct Extra {
    connection: String,
    owner: TokenOwner,
    request: Value,
    refresh_token: String,
}

impl Bench {
    fn new(name: &str, redis: bool, rotation: bool) -> Self {
        let redis = redis.then(Redis::start);
        let setup = Setup::new(name).spilling().set("tokens.call_timeout_s", CALL_TIMEOUT_S);
        let setup = if let Some(redis) = &redis { setup.redis(redis) } else { setup };
        let behaviour = Behaviour {
            auto_approve: Some("abel.tuter".to_owned()),
            rotation,
            rotation_previous_ok_s: 30,
            ..Behaviour::default()
        };
        let deployment = Deployment::start(setup, behaviour);
        let key = deployment.connect_under(rotates(rotation));
        Self { deployment, key, rotation, runs: 0, consents: Cell::new(1), _redis: redis }
    }

    fn crash(&mut self, point: &str, seed: u32) -> Run {
        self.runs += 1;
        let act = act_for(point, seed);
        println!("{point}, seed {seed}: {act:?}, run {}", self.runs);
        let within_life =
            if seed.is_multiple_of(2) { RefreshWithinLife::New } else { RefreshWithinLife::Remaining };
        self.deployment.sim().change_behaviour(|behaviour| behaviour.refresh_within_life = within_life);
        let extra = matches!(act, Act::Import | Act::Delete).then(|| self.register_extra());
        match (act, &extra) {
            (Act::Delete, Some(extra)) => self.hold(extra),
            (Act::DueRefresh, _) => self.shorten_token(),
            _ => {}
        }
        let mut subjects = vec![Subject::new("hr-prod", "abel.tuter").calling(self.incidents())];
        if let (Act::Import, Some(extra)) = (act, &extra) {
            let Extra { connection, owner, .. } = extra;
            subjects.push(Subject { connection: connection.clone(), owner: owner.clone(), call: None });
        }
        let consents_before = self.consents.get();
        let mut recorder = Recorder::start(self.deployment.sim(), self.deployment.watched(), subjects);

        self.disturb(point, act, seed);
        // Later seeds die the second time that they get there.
        let is_refresh = !matches!(act, Act::Consent | Act::Import | Act::Delete | Act::DueRefresh);
        let pass = if is_refresh { 1 + seed / 3 % 2 } else { 1 };
        self.deployment.daemon.start_to_crash_at(&format!("{point}:{pass}"));
        let callbacks = self.provoke(point, act, seed, extra.as_ref());
        self.deployment.sim().clear_faults();

        let exchanged = self.deployment.sim().ledger().exchanges.len();
        self.deployment.daemon.start_again();
        let ready_after = self.deployment.daemon.ready_after;
        recorder.restarted("the daemon", ready_after);
        recorder.faults_stopped();
        for (browser, callback) in callbacks {
            self.repeat_callback(browser, &callback);
        }
        match (act, &extra) {
            (Act::Import, Some(extra)) => self.hold(extra),
            (Act::Delete, Some(extra)) => self.see_revoked(extra),
            _ => {}
        }
        if self.rotation
            && act == Act::RefreshAfterRefusal
            && ["call.answered", "keep.before"].contains(&point)
        {
            self.see_resolved(exchanged);
        }
        let history = recorder.finish(LoadReport::default());
        let consents = self.consents.get() - consents_before;
        let expected = Expectations { consents, ..Expectations::default() };
        history.check(&expected);
        let called = self.incidents().send();
        assert_eq!(called.status, 200, "{point}, seed {seed}: {}", called.text());
        let fresh_after = history.recoveries.iter().filter_map(|recovery| recovery.fresh_after).max();
        Run { act, ready_after, fresh_after: fresh_after.unwrap_or_default() }
    }

    /// A call through `hr-prod`, beside which there may be others.
    fn incidents(&self) -> Request {
        self.deployment.incidents(&self.key).header("connection-id", "hr-prod")
    }

    /// The exchange that the crash left in doubt is settled by the process itself: the token before is honoured for
    /// half a minute, and nobody may happen to call within it.
    fn see_resolved(&self, exchanged: usize) {
        let resolved = poll(RESOLVED_WITHIN, || {
            let shown = self.deployment.daemon.show("/v1/connections/hr-prod");
            let tried_again = self.deployment.sim().ledger().exchanges.len() > exchanged;
            (tried_again && shown["health"]["name"] == "ok").then_some(())
        });
        let shown = self.deployment.daemon.show("/v1/connections/hr-prod");
        assert!(resolved.is_some(), "still in doubt after {RESOLVED_WITHIN:?}: {shown}");
    }

    /// What the instance does meanwhile.
    fn disturb(&self, point: &str, act: Act, seed: u32) {
        let fault = match (point, act) {
            // An answer that is on its way for long enough; the tokens are issued before or after. Under rotation before:
            // a request of the dead process that took effect after two further refreshes would be one of an old token,
            // which ends the grant (`docs/reliability.md` says so).
            ("call.sent", _) => {
                Fault::DelayMs { ms: 1_200, after_effect: self.rotation || seed.is_multiple_of(2) }
            }
            (_, Act::FailedRefresh) => match seed % 3 {
                0 => Fault::Status {
                    status: 503,
                    body: String::new(),
                    headers: BTreeMap::new(),
                    after_effect: false,
                },
                1 => Fault::DropAfter, // the server rotates, and nobody hears of it
                _ => Fault::Html { status: 200 },
            },
            _ => return,
        };
        self.deployment.sim().clear_faults();
        let mut rule = FaultRule::new(FaultOn::Token, fault);
        rule.grant_type = Some("refresh_token".to_owned());
        self.deployment.sim().add_fault(rule).unwrap();
    }

    /// Does it until the process has died, which it must by its own hand. Answers browsers whose callback was not
    /// answered.
    fn provoke(
        &mut self,
        point: &str,
        act: Act,
        seed: u32,
        extra: Option<&Extra>,
    ) -> Vec<(WebClient, String)> {
        let mut callbacks = Vec::new();
        let deadline = Instant::now() + HIT_WITHIN;
        let status = loop {
            if let Some(status) = self.deployment.daemon.has_ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "{point}, seed {seed}: {act:?} never got there");
            let daemon = &self.deployment.daemon;
            match act {
                Act::ForcedRefresh | Act::FailedRefresh => {
                    drop(daemon.admin(Method::POST, "/v1/connections/hr-prod/refresh").try_send());
                }
                Act::RefreshAfterRefusal => {
                    let user = Some("abel.tuter".to_owned());
                    self.deployment
                        .sim()
                        .expire_tokens(&TokenSelection { user, ..TokenSelection::default() });
                    drop(self.incidents().try_send());
                }
                Act::DueRefresh => drop(self.incidents().try_send()),
                Act::Consent => callbacks.extend(self.consent()),
                Act::Import => {
                    let extra = extra.expect("an import has its connection");
                    let path = format!("/v1/connections/{}", extra.connection);
                    drop(daemon.admin(Method::PUT, &path).json(&extra.request).try_send());
                }
                Act::Delete => {
                    let path = format!("/v1/connections/{}", extra.expect("so has a deletion").connection);
                    drop(daemon.admin(Method::DELETE, &path).try_send());
                }
            }
            let daemon = &mut self.deployment.daemon;
            poll(Duration::from_millis(700), || daemon.has_ended());
        };
        assert_eq!(status.signal(), Some(9), "{point}, seed {seed}: {status}");
        let log = self.deployment.daemon.log();
        assert!(
            log.lines().rev().take(20).any(|line| line.contains(&format!("crash point {point}: "))),
            "{point}, seed {seed}: killed elsewhere"
        );
        callbacks
    }

    /// A person consents anew; answers the browser and the callback's address if the callback was not answered.
    fn consent(&self) -> Option<(WebClient, String)> {
        let link = self.deployment.daemon.post("/v1/connections/hr-prod/reauthorize", &json!({}));
        self.consents.set(self.consents.get() + 1);
        let mut browser = WebClient::new();
        let at_instance = browser.begin(link["url"].as_str().unwrap());
        let callback = browser.approve(&at_instance);
        browser.try_get(&callback).is_err().then_some((browser, callback))
    }

    /// I-13: the person presses reload. The flow was used up before the crash; its code is sent to nobody again.
    fn repeat_callback(&self, mut browser: WebClient, callback: &str) {
        let before = self.code_exchanges();
        let again = browser.get(callback);
        assert_eq!(again.status, 400, "{}", again.text());
        assert_eq!(self.code_exchanges(), before);
    }

    fn code_exchanges(&self) -> usize {
        let exchanges = self.deployment.sim().ledger().exchanges;
        exchanges.iter().filter(|exchange| exchange.grant_type == "authorization_code").count()
    }

    /// `hr-prod` has a token that ends in a moment.
    fn shorten_token(&self) {
        let lifetime_s = |seconds| {
            self.deployment.sim().change_behaviour(|behaviour| behaviour.access_token_lifetime_s = seconds);
        };
        let ended = TokenSelection { user: Some("abel.tuter".to_owned()), ..TokenSelection::default() };
        self.deployment.sim().expire_tokens(&ended); // so that a new one is issued, whatever the switches say
        lifetime_s(2);
        self.deployment.daemon.post("/v1/connections/hr-prod/refresh", &json!({}));
        lifetime_s(1_800);
    }

    /// A client, an integration and a refresh token for `beth.anglin`.
    fn register_extra(&self) -> Extra {
        let number = self.runs;
        let (client_id, connection) = (format!("{CLIENT_ID}-{number}"), format!("extra-{number}"));
        let client = ClientSettings {
            client_id: client_id.clone(),
            client_secret: Some(CLIENT_SECRET.to_owned()),
            ..ClientSettings::default()
        };
        assert!(self.deployment.sim().put_client(client));
        let instance = &self.deployment.instance;
        let mut integration = rotates(self.rotation);
        integration["instance"] = json!(instance);
        integration["client_id"] = json!(client_id);
        integration["client_secret"] = json!(CLIENT_SECRET);
        self.deployment.daemon.put(&format!("/v1/integrations/{connection}"), &integration);
        let form = format!(
            "grant_type=password&username=beth.anglin&password=demo&client_id={client_id}&client_secret={CLIENT_SECRET}"
        );
        let tokens = request(Method::POST, &format!("{instance}/oauth_token.do"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .expect(StatusCode::OK)
            .json();
        let refresh_token = tokens["refresh_token"].as_str().unwrap().to_owned();
        let request = json!({
            "integration": connection,
            "expected_user": "beth.anglin",
            "import": {"refresh_token": refresh_token},
        });
        let owner = TokenOwner { client_id, user_name: "beth.anglin".to_owned() };
        Extra { connection, owner, request, refresh_token }
    }

    /// Imports it, or brings an interrupted import to its end, as the operator is told to.
    fn hold(&self, extra: &Extra) {
        let daemon = &self.deployment.daemon;
        let path = format!("/v1/connections/{}", extra.connection);
        let mut said = String::new();
        let mut tried_at: Option<Instant> = None;
        let held = poll(Duration::from_secs(40), || {
            if tried_at.is_some_and(|at| at.elapsed() < Duration::from_millis(300)) {
                return None;
            }
            tried_at = Some(Instant::now());
            let mut say = |method: Method, path: &str, body: &Value| {
                let reply = daemon.admin(method.clone(), path).json(body).send();
                said = format!("{said}{method} {path}: {} {}\n", reply.status, reply.text());
                reply
            };
            let shown = daemon.admin(Method::GET, &path).send();
            if shown.status == 404 {
                say(Method::PUT, &path, &extra.request);
            } else if shown.json()["state"]["name"] == "active" {
                return Some(());
            } else {
                say(Method::POST, &format!("{path}/refresh"), &json!({}));
                say(Method::POST, &format!("{path}/test"), &json!({}));
                say(Method::POST, &format!("{path}/confirm"), &json!({"user": "beth.anglin"}));
            }
            None
        });
        assert!(held.is_some(), "the import of {} does not come to its end:\n{said}", extra.connection);
    }

    /// Deleted or not before the crash: after the operator's second word it is, and its tokens end at the instance.
    fn see_revoked(&self, extra: &Extra) {
        let path = format!("/v1/connections/{}", extra.connection);
        let daemon = &self.deployment.daemon;
        let deleted = daemon.admin(Method::DELETE, &path).send();
        assert!([204, 200, 404].contains(&deleted.status), "{} {}", deleted.status, deleted.text());
        assert_eq!(daemon.admin(Method::GET, &path).send().status, 404);
        wait_until("the deleted connection's refresh token is revoked", Duration::from_mins(1), || {
            let families = self.deployment.sim().ledger().families;
            let family = families.iter().find(|family| family.owner == extra.owner);
            let live = family.is_some_and(|family| family.refresh_token_live);
            // Under rotation the import has spent the token that it was made with.
            assert!(
                self.rotation
                    || family.is_some_and(|one| one.refresh_token.as_ref() == Some(&extra.refresh_token))
            );
            (!live).then_some(())
        });
    }
}

/// What an operator says of an instance that rotates; of one that does not there is nothing to say.
fn rotates(rotation: bool) -> Value {
    if rotation { json!({"rotates_refresh_tokens": true}) } else { json!({}) }
}

/// Deployments at a time. They mostly wait for each other's disk and for processes to start.
const BENCHES: u32 = 4;
/// Short, so that a crashed exchange is soon nobody's any more; longer than the instance ever takes here.
const CALL_TIMEOUT_S: &str = "3";
/// Far less than the half minute for which the token before is honoured.
const RESOLVED_WITHIN: Duration = Duration::from_secs(10);
/// From the armed process's start until it has killed itself.
const HIT_WITHIN: Duration = Duration::from_secs(30);
