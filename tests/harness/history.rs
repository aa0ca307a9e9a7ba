//! What every fault run ends with: the run's history, put together from the instance's ledger, the admin API of every
//! process and the load's results, and judged by the invariants of `reference/security.md` §5.2.
//!
//! A [`Recorder`] samples while the run goes on. [`Recorder::finish`] waits for recovery, refreshes each connection
//! once more by force, and answers a [`History`]: plain values. [`History::judge`] does no I/O.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::Method;
use serde_json::Value;
use servicenow_sim::{Exchange, ExchangeOutcome, Ledger, SimState, SimTime, TokenOwner};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    deployment::CLIENT_ID,
    http::{Request, request},
    load::{FailedCall, LoadReport},
    runtime::{block_on, poll, runtime},
};

/// One process, by its admin API.
#[derive(Debug, Clone)]
pub struct Watched {
    pub process: String,
    pub admin_origin: String,
    pub admin_key: String,
}

/// One connection of the run.
#[derive(Debug, Clone)]
pub struct Subject {
    pub connection: String,
    /// Whose tokens it holds, as the instance's ledger names them.
    pub owner: TokenOwner,
    /// Sent after the faults have stopped, until the token is fresh: a connection that nobody uses is not refreshed.
    pub call: Option<Request>,
}

/// Writes a run's history down while it happens.
pub struct Recorder {
    sim: SimState,
    processes: Vec<Watched>,
    subjects: Vec<Subject>,
    samples: Arc<Mutex<Samples>>,
    stop: Arc<AtomicBool>,
    sampling: Vec<JoinHandle<()>>,
    authorizations_before: u64,
    restarts: Vec<Restart>,
    /// On the instance's clock and on this machine's.
    faults_stopped: Option<(SimTime, Instant)>,
}

/// One look at a connection through one process's admin API, where it differs from that process's look before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub process: String,
    pub connection: String,
    /// When the answer came.
    pub at: SimTime,
    pub state: String,
    pub generation: Option<u64>,
    pub fingerprint: Option<String>,
}

/// A process that came back.
#[derive(Debug, Clone)]
pub struct Restart {
    pub process: String,
    pub ready_after: Duration,
}

/// How one connection came out of the run.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub subject: Subject,
    /// From the end of the faults until every process showed a usable token. What it is refreshed with is another
    /// matter: the forced refresh proves that.
    pub fresh_after: Option<Duration>,
    /// What a process showed last.
    pub shown: Value,
    /// The refusal of the forced refresh, where it did not succeed.
    pub refresh_refused: Option<String>,
    /// An exchange of the forced refresh spent what the instance called current, and got an answer.
    pub current_spent: bool,
}

/// A run from its start to the recovery after it.
#[derive(Debug, Clone)]
pub struct History {
    pub samples: Vec<Sample>,
    /// Looks that were taken; most of them showed nothing new.
    pub looks: u64,
    pub ledger: Ledger,
    /// When the run ended and the recovery began, on the instance's clock.
    pub run_ended_at: SimTime,
    pub recoveries: Vec<Recovery>,
    pub restarts: Vec<Restart>,
    /// Authorization requests at the instance: each is a person asked to consent.
    pub authorizations: u64,
    pub calls: LoadReport,
}

/// What this run may do, beside what no run may. The default is the strictest for a run without load.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The run keeps processes apart from each other: two may exchange one refresh token at once (I-2).
    pub partition: bool,
    /// The run takes acknowledged writes away from the store: a generation may fall and must come back (I-3).
    pub store_rolls_back: bool,
    pub failed_calls: FailedCalls,
    /// Exchanges of one connection's owner at most, before the recovery (I-8).
    pub token_calls_max: Option<usize>,
    /// People whom the run itself sends to consent (I-12).
    pub consents: u64,
    /// From a process's start until it is ready (I-12).
    pub ready_within: Duration,
    /// From the end of the faults until every connection has a fresh token (I-14).
    pub fresh_within: Duration,
}

/// Which calls may fail (I-7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedCalls {
    /// The run is not about calls.
    NotJudged,
    /// None: a valid token exists all the time, in every process that is called.
    None,
    /// Those that touch one of these times; they count from the start of the load.
    Only(Vec<(Duration, Duration)>),
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            partition: false,
            store_rolls_back: false,
            failed_calls: FailedCalls::NotJudged,
            token_calls_max: None,
            consents: 0,
            ready_within: READY_WITHIN,
            fresh_within: FRESH_WITHIN,
        }
    }
}

/// What the invariants say of a history.
#[derive(Debug, Clone, Default)]
pub struct HistoryReport {
    pub rows: Vec<ReportRow>,
}

/// One invariant.
#[derive(Debug, Clone)]
pub struct ReportRow {
    pub invariant: &'static str,
    pub says: &'static str,
    /// On what it was judged.
    pub checked: String,
    /// Each names the connection and the evidence.
    pub violations: Vec<String>,
}

impl Subject {
    /// The connection `id` of [`CLIENT_ID`] and this user.
    pub fn new(id: &str, user_name: &str) -> Self {
        let owner = TokenOwner { client_id: CLIENT_ID.to_owned(), user_name: user_name.to_owned() };
        Self { connection: id.to_owned(), owner, call: None }
    }

    /// Used while it recovers.
    #[must_use]
    pub fn calling(mut self, call: Request) -> Self {
        self.call = Some(call);
        self
    }
}

#[derive(Debug, Default)]
struct Samples {
    /// By process and connection: the latest.
    latest: HashMap<(String, String), Sample>,
    changes: Vec<Sample>,
    looks: u64,
}

impl Samples {
    fn add(&mut self, sample: Sample) {
        self.looks += 1;
        let key = (sample.process.clone(), sample.connection.clone());
        let known = self.latest.get(&key);
        let same = known.is_some_and(|known| Sample { at: sample.at, ..known.clone() } == sample);
        if !same && self.changes.len() < CHANGES_MAX {
            self.changes.push(sample.clone());
        }
        self.latest.insert(key, sample);
    }
}

impl Recorder {
    /// Begins to sample. The ledger and the count of authorizations begin anew.
    pub fn start(sim: &SimState, processes: Vec<Watched>, subjects: Vec<Subject>) -> Self {
        sim.reset_ledger();
        let samples = Arc::new(Mutex::new(Samples::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let sampling = processes
            .iter()
            .map(|process| {
                let connections = subjects.iter().map(|subject| subject.connection.clone()).collect();
                runtime().spawn(sample(
                    sim.clone(),
                    process.clone(),
                    connections,
                    samples.clone(),
                    stop.clone(),
                ))
            })
            .collect();
        Self {
            authorizations_before: sim.counters().requests_to("authorize"),
            sim: sim.clone(),
            processes,
            subjects,
            samples,
            stop,
            sampling,
            restarts: Vec::new(),
            faults_stopped: None,
        }
    }

    /// A process came back, and was ready after this long.
    pub fn restarted(&mut self, process: &str, ready_after: Duration) {
        self.restarts.push(Restart { process: process.to_owned(), ready_after });
    }

    /// From now on nothing is in the way any more.
    pub fn faults_stopped(&mut self) {
        self.faults_stopped = Some((self.sim.now(), Instant::now()));
    }

    /// Waits for the recovery of every connection, proves it by a forced refresh, and ends the history.
    pub fn finish(mut self, calls: LoadReport) -> History {
        if self.faults_stopped.is_none() {
            self.faults_stopped();
        }
        let (run_ended_at, stopped) = self.faults_stopped.expect("just set");
        let fresh: Vec<_> = self.subjects.iter().map(|subject| self.wait_fresh(subject, stopped)).collect();
        let recoveries = self
            .subjects
            .iter()
            .zip(fresh)
            .map(|(subject, (fresh_after, shown))| self.recover(subject, fresh_after, shown))
            .collect();
        self.stop.store(true, Ordering::Relaxed);
        for sampling in self.sampling.drain(..) {
            drop(block_on(sampling));
        }
        let samples = std::mem::take(&mut *self.samples.lock().unwrap());
        let authorizations = self.sim.counters().requests_to("authorize");
        History {
            samples: samples.changes,
            looks: samples.looks,
            ledger: self.sim.ledger(),
            run_ended_at,
            recoveries,
            restarts: std::mem::take(&mut self.restarts),
            authorizations: authorizations.saturating_sub(self.authorizations_before),
            calls,
        }
    }

    /// How long it took until every process showed a usable token, and what was shown last.
    fn wait_fresh(&self, subject: &Subject, since: Instant) -> (Option<Duration>, Value) {
        let mut shown = Value::Null;
        let mut next_call = Instant::now();
        let limit = RECOVERY_LIMIT.saturating_sub(since.elapsed());
        let fresh = poll(limit, || {
            let all_fresh = self.processes.iter().all(|process| {
                let looked = block_on(look(process, &subject.connection));
                shown = looked.unwrap_or_else(|why| Value::String(format!("{}: {why}", process.process)));
                shown["access_token_usable"] == true && shown["state"]["name"] == "active"
            });
            if !all_fresh
                && Instant::now() >= next_call
                && let Some(call) = &subject.call
            {
                next_call = Instant::now() + CALL_PAUSE;
                drop(call.try_send()); // only to be of use; what it answers is not judged
            }
            all_fresh.then(|| since.elapsed())
        });
        (fresh, shown)
    }

    fn recover(&self, subject: &Subject, fresh_after: Option<Duration>, shown: Value) -> Recovery {
        let forced_at = self.sim.now();
        let mut refused = None;
        let mut next_try = Instant::now();
        // The first exchange may spend the previous token, where an answer was lost; the next one spends its successor.
        let current_spent = poll(FORCE_LIMIT, || {
            if Instant::now() < next_try {
                return None;
            }
            next_try = Instant::now() + CALL_PAUSE;
            let path = format!("/v1/connections/{}/refresh", subject.connection);
            refused = match self.processes[0].request(Method::POST, &path).try_send() {
                Ok(reply) if reply.status < 300 => None,
                Ok(reply) => Some(format!("{} {}", reply.status, reply.text())),
                Err(error) => Some(error),
            };
            let exchanges = self.sim.ledger().exchanges;
            let spent = exchanges.iter().any(|exchange| {
                exchange.began_at >= forced_at
                    && exchange.is_of(&subject.owner)
                    && exchange.spent_current
                    && exchange.outcome.is_success()
                    && !exchange.reply_lost
            });
            (refused.is_none() && spent).then_some(())
        });
        let subject = subject.clone();
        Recovery {
            subject,
            fresh_after,
            shown,
            refresh_refused: refused,
            current_spent: current_spent.is_some(),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Watched {
    fn request(&self, method: Method, path: &str) -> Request {
        request(method, &format!("{}{path}", self.admin_origin)).bearer(&self.admin_key)
    }
}

async fn sample(
    sim: SimState,
    process: Watched,
    connections: Vec<String>,
    samples: Arc<Mutex<Samples>>,
    stop: Arc<AtomicBool>,
) {
    loop {
        let is_last = stop.load(Ordering::Relaxed); // one look more, at how everything ended
        for connection in &connections {
            // A process that is down, or a connection that is not there yet, is no sample.
            let Ok(shown) = look(&process, connection).await else { continue };
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let sample = Sample {
                process: process.process.clone(),
                connection: connection.clone(),
                at: sim.now(),
                state: text(&shown["state"]["name"]).unwrap_or_default(),
                generation: shown["generation"].as_u64(),
                fingerprint: text(&shown["fingerprint"]),
            };
            samples.lock().unwrap().add(sample);
        }
        if is_last {
            return;
        }
        tokio::time::sleep(SAMPLE_PAUSE).await;
    }
}

/// A connection as a process shows it.
async fn look(process: &Watched, connection: &str) -> Result<Value, String> {
    let looking = process.request(Method::GET, &format!("/v1/connections/{connection}"));
    let reply = timeout(LOOK_LIMIT, looking.send_async()).await.map_err(|_| "no answer".to_owned())??;
    if reply.status == 200 { Ok(reply.json()) } else { Err(format!("{} {}", reply.status, reply.text())) }
}

impl History {
    /// Judges, prints the report, and fails the test over the first violation.
    ///
    /// # Panics
    /// An invariant does not hold.
    #[track_caller]
    pub fn check(&self, expected: &Expectations) -> HistoryReport {
        assert!(self.looks > 0, "nobody has looked at anything: there is no history");
        let calls = self.calls.calls();
        assert!(
            calls > 0 || expected.failed_calls == FailedCalls::NotJudged,
            "no call was made that could fail"
        );
        let report = self.judge(expected);
        assert!(report.holds(), "the history breaks an invariant\n{report}\n{}", self.evidence());
        report
    }

    /// Every invariant, whether it holds or not.
    pub fn judge(&self, expected: &Expectations) -> HistoryReport {
        let rows = vec![
            self.no_grant_lost(),
            self.one_exchange_at_a_time(expected),
            self.generation_only_grows(expected),
            self.reauthorization_only_after_a_refusal(),
            self.no_call_failed(expected),
            self.token_calls_bounded(expected),
            self.restarts_need_nobody(expected),
            self.consents_used_once(),
            self.fresh_after_the_faults(expected),
        ];
        HistoryReport { rows }
    }

    fn no_grant_lost(&self) -> ReportRow {
        let lost = self.recoveries.iter().filter_map(|recovery| {
            let id = &recovery.subject.connection;
            let state = &recovery.shown["state"];
            if let Some(refused) = &recovery.refresh_refused {
                return Some(format!("{id}: the forced refresh was refused: {refused}; state {state}"));
            }
            (!recovery.current_spent).then(|| {
                format!(
                    "{id}: no exchange spent the refresh token that the server calls current; state {state}"
                )
            })
        });
        let revoked =
            self.exchanges().filter(|one| one.outcome == ExchangeOutcome::FamilyRevoked).map(|one| {
                format!(
                    "{}: a replaced refresh token was spent, and the server ended the family: {}",
                    self.named(one),
                    told(one)
                )
            });
        ReportRow {
            invariant: "I-1",
            says: "no grant is lost",
            checked: format!("{} connections refreshed by force", self.recoveries.len()),
            violations: lost.chain(revoked).collect(),
        }
    }

    fn one_exchange_at_a_time(&self, expected: &Expectations) -> ReportRow {
        let limit = if expected.partition { 2 } else { 1 };
        let over = self.exchanges().filter(|one| one.at_once > limit);
        ReportRow {
            invariant: "I-2",
            says: "one exchange of a refresh token at a time",
            checked: format!(
                "{} exchanges, {} of one token at once",
                self.exchanges().count(),
                self.ledger.in_flight_max_per_token
            ),
            violations: over
                .map(|one| format!("{}: {} at once: {}", self.named(one), one.at_once, told(one)))
                .collect(),
        }
    }

    fn generation_only_grows(&self, expected: &Expectations) -> ReportRow {
        let mut violations = Vec::new();
        let mut by_look: BTreeMap<(&str, &str), Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            by_look.entry((&sample.connection, &sample.process)).or_default().push(sample);
        }
        for ((connection, process), samples) in &by_look {
            let falls = samples.windows(2).filter(|pair| pair[1].generation < pair[0].generation);
            let told = falls.map(|pair| {
                let (before, after) = (pair[0].generation, pair[1].generation);
                format!("{connection}: {process} showed {} after {}", generation(after), generation(before))
            });
            if !expected.store_rolls_back {
                violations.extend(told);
            }
        }
        for recovery in &self.recoveries {
            let id = &recovery.subject.connection;
            let of_this = self.samples.iter().filter(|sample| sample.connection == *id);
            let greatest = of_this.clone().filter_map(|sample| sample.generation).max();
            let mut last: BTreeMap<&str, Option<u64>> = BTreeMap::new();
            for sample in of_this {
                last.insert(&sample.process, sample.generation);
            }
            // At the end every process shows the greatest there was.
            for (process, shown) in last.into_iter().filter(|(_, shown)| *shown < greatest) {
                violations.push(format!(
                    "{id}: {process} ended with {}, and {} had been there",
                    generation(shown),
                    generation(greatest)
                ));
            }
        }
        ReportRow {
            invariant: "I-3",
            says: "the stored generation only grows",
            checked: format!("{} looks, {} changes", self.looks, self.samples.len()),
            violations,
        }
    }

    fn reauthorization_only_after_a_refusal(&self) -> ReportRow {
        let dead = self.samples.iter().filter(|sample| sample.state == "reauthorization_required");
        let undue = dead.clone().filter(|sample| {
            let subject = self.recoveries.iter().find(|one| one.subject.connection == sample.connection);
            let Some(owner) = subject.map(|one| &one.subject.owner) else { return false };
            !self.exchanges().any(|one| {
                one.is_of(owner)
                    && one.spent_current
                    && one.outcome.is_refusal()
                    && one.ended_at.is_some_and(|ended_at| ended_at <= sample.at)
            })
        });
        ReportRow {
            invariant: "I-6",
            says: "reauthorization only where the server refused its current token",
            checked: format!("{} looks found it required", dead.clone().count()),
            violations: undue
                .map(|sample| {
                    format!("{}: {} showed it at {}", sample.connection, sample.process, at(sample.at))
                })
                .collect(),
        }
    }

    fn no_call_failed(&self, expected: &Expectations) -> ReportRow {
        let failed = self.calls.bad.iter().chain(&self.calls.unanswered);
        let excused = |call: &FailedCall| match &expected.failed_calls {
            FailedCalls::NotJudged => true,
            FailedCalls::None => false,
            FailedCalls::Only(times) => {
                times.iter().any(|(from, to)| call.ended >= *from && call.began <= *to)
            }
        };
        let undue = failed.filter(|call| !excused(call));
        ReportRow {
            invariant: "I-7",
            says: "no call fails while there is a valid token",
            checked: match expected.failed_calls {
                FailedCalls::NotJudged => "not judged".to_owned(),
                FailedCalls::None | FailedCalls::Only(_) => {
                    format!("{} calls, {} good", self.calls.calls(), self.calls.good)
                }
            },
            violations: undue
                .map(|call| format!("a call from {:.2?} to {:.2?}: {}", call.began, call.ended, call.what))
                .collect(),
        }
    }

    fn token_calls_bounded(&self, expected: &Expectations) -> ReportRow {
        let counts: Vec<(&str, usize)> = self
            .recoveries
            .iter()
            .map(|recovery| {
                let owner = &recovery.subject.owner;
                let during = |one: &&Exchange| one.is_of(owner) && one.began_at < self.run_ended_at;
                (recovery.subject.connection.as_str(), self.exchanges().filter(during).count())
            })
            .collect();
        let greatest = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let over =
            counts.iter().filter(|(_, count)| expected.token_calls_max.is_some_and(|max| *count > max));
        ReportRow {
            invariant: "I-8",
            says: "token calls are bounded",
            checked: format!(
                "at most {greatest} a connection; {}",
                expected.token_calls_max.map_or("no limit set".to_owned(), |max| format!("limit {max}"))
            ),
            violations: over.map(|(id, count)| format!("{id}: {count} token calls")).collect(),
        }
    }

    fn restarts_need_nobody(&self, expected: &Expectations) -> ReportRow {
        let slow = self.restarts.iter().filter(|restart| restart.ready_after > expected.ready_within);
        let mut violations: Vec<String> = slow
            .map(|restart| format!("{} was ready after {:.2?}", restart.process, restart.ready_after))
            .collect();
        if self.authorizations > expected.consents {
            violations.push(format!(
                "people were asked to consent {} times, where the run sent {}",
                self.authorizations, expected.consents
            ));
        }
        let slowest = self.restarts.iter().map(|restart| restart.ready_after).max().unwrap_or_default();
        ReportRow {
            invariant: "I-12",
            says: "a restart needs nobody",
            checked: format!("{} restarts, slowest {slowest:.2?}", self.restarts.len()),
            violations,
        }
    }

    fn consents_used_once(&self) -> ReportRow {
        let mut uses: BTreeMap<&str, Vec<&Exchange>> = BTreeMap::new();
        for exchange in self.ledger.exchanges.iter().filter(|one| one.grant_type == "authorization_code") {
            uses.entry(&exchange.spent).or_default().push(exchange);
        }
        let repeated = uses.values().filter(|uses| uses.len() > 1);
        ReportRow {
            invariant: "I-13",
            says: "a consent is used once",
            checked: format!("{} codes exchanged", uses.len()),
            violations: repeated
                .map(|uses| {
                    format!(
                        "{}: a code was sent {} times: {}",
                        self.named(uses[0]),
                        uses.len(),
                        told(uses[0])
                    )
                })
                .collect(),
        }
    }

    fn fresh_after_the_faults(&self, expected: &Expectations) -> ReportRow {
        let late = self
            .recoveries
            .iter()
            .filter(|one| one.fresh_after.is_none_or(|took| took > expected.fresh_within));
        let slowest = self.recoveries.iter().filter_map(|one| one.fresh_after).max().unwrap_or_default();
        ReportRow {
            invariant: "I-14",
            says: "a fresh token soon after the faults",
            checked: format!("slowest {slowest:.2?}, limit {:.0?}", expected.fresh_within),
            violations: late
                .map(|one| {
                    let took = one.fresh_after.map_or("never".to_owned(), |took| format!("after {took:.2?}"));
                    format!("{}: {took}; last shown: {}", one.subject.connection, one.shown)
                })
                .collect(),
        }
    }

    /// Exchanges of refresh tokens.
    fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.ledger.exchanges.iter().filter(|exchange| exchange.grant_type == "refresh_token")
    }

    /// The connection that an exchange belongs to.
    fn named(&self, exchange: &Exchange) -> String {
        let subject = self.recoveries.iter().map(|one| &one.subject).find(|one| exchange.is_of(&one.owner));
        subject.map_or_else(|| format!("{:?}", exchange.owner), |subject| subject.connection.clone())
    }

    /// The latest exchanges and samples: what a person looks at first.
    fn evidence(&self) -> String {
        let exchanges = &self.ledger.exchanges;
        let latest = &exchanges[exchanges.len().saturating_sub(EVIDENCE_MAX)..];
        let exchanges = latest.iter().map(|one| format!("  {}\n", told(one)));
        let samples = &self.samples[self.samples.len().saturating_sub(EVIDENCE_MAX)..];
        let samples = samples.iter().map(|one| {
            let Sample { process, connection, state, .. } = one;
            format!(
                "  {} {process} showed {connection}: {state}, {}\n",
                at(one.at),
                generation(one.generation)
            )
        });
        format!(
            "latest exchanges:\n{}latest changes:\n{}",
            exchanges.collect::<String>(),
            samples.collect::<String>()
        )
    }
}

impl HistoryReport {
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|row| row.violations.is_empty())
    }

    /// The invariants that do not hold.
    pub fn broken(&self) -> Vec<&'static str> {
        self.rows.iter().filter(|row| !row.violations.is_empty()).map(|row| row.invariant).collect()
    }
}

impl fmt::Display for HistoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let verdict = if row.violations.is_empty() { "holds" } else { "BROKEN" };
            writeln!(f, "{:<5} {verdict:<6} {:<64} {}", row.invariant, row.says, row.checked)?;
            for violation in row.violations.iter().take(VIOLATIONS_SHOWN) {
                writeln!(f, "      - {violation}")?;
            }
            if row.violations.len() > VIOLATIONS_SHOWN {
                writeln!(f, "      - and {} more", row.violations.len() - VIOLATIONS_SHOWN)?;
            }
        }
        Ok(())
    }
}

/// What is asked of an exchange here.
trait Of {
    fn is_of(&self, owner: &TokenOwner) -> bool;
}

impl Of for Exchange {
    fn is_of(&self, owner: &TokenOwner) -> bool {
        self.owner.as_ref() == Some(owner)
    }
}

/// One exchange in a line; of secrets no more than tells them apart.
fn told(exchange: &Exchange) -> String {
    let Exchange { seq, spent_current, outcome, reply_lost, .. } = exchange;
    let start: String = exchange.spent.chars().take(6).collect();
    let which = if *spent_current { "current" } else { "not current" };
    let ended = exchange.ended_at.map_or("still under way".to_owned(), at);
    let reason = exchange.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let lost = if *reply_lost { ", reply lost" } else { "" };
    format!(
        "exchange {seq}: {} {start}… ({which}), {} to {ended}: {outcome:?}{reason}{lost}",
        exchange.grant_type,
        at(exchange.began_at)
    )
}

fn generation(generation: Option<u64>) -> String {
    generation.map_or("no generation".to_owned(), |generation| format!("generation {generation}"))
}

/// Seconds with three places: enough to tell events of one run apart.
fn at(time: SimTime) -> String {
    let millis = time.as_millis();
    format!("{}.{:03}", millis / 1_000 % 100_000, millis % 1_000)
}

/// A debug build on a busy machine; the promise of one second is measured with a release build.
const READY_WITHIN: Duration = Duration::from_secs(5);
const FRESH_WITHIN: Duration = Duration::from_secs(30);
/// Longer than any limit that is judged, so that the report says how late it was.
const RECOVERY_LIMIT: Duration = Duration::from_secs(45);
const FORCE_LIMIT: Duration = Duration::from_secs(20);
const SAMPLE_PAUSE: Duration = Duration::from_millis(40);
const CALL_PAUSE: Duration = Duration::from_millis(250);
const LOOK_LIMIT: Duration = Duration::from_secs(3);
const CHANGES_MAX: usize = 1_000_000;
const VIOLATIONS_SHOWN: usize = 10;
const EVIDENCE_MAX: usize = 30;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const START_S: u64 = 1_000;

    fn second(second: u64) -> SimTime {
        SimTime::from_secs(START_S + second)
    }

    fn exchange(seq: u64, from: u64, to: u64) -> Exchange {
        Exchange {
            seq,
            grant_type: "refresh_token",
            spent: format!("token-{seq}"),
            owner: Some(Subject::new("hr", "abel.tuter").owner),
            began_at: second(from),
            ended_at: Some(second(to)),
            outcome: ExchangeOutcome::Issued,
            reason: None,
            spent_current: true,
            refresh_token: Some(format!("token-{}", seq + 1)),
            reply_lost: false,
            at_once: 1,
        }
    }

    fn sample(process: &str, at: u64, generation: u64) -> Sample {
        Sample {
            process: process.to_owned(),
            connection: "hr".to_owned(),
            at: second(at),
            state: "active".to_owned(),
            generation: Some(generation),
            fingerprint: None,
        }
    }

    /// Two processes, three exchanges, a restart: everything as it should be.
    fn good() -> History {
        let code =
            Exchange { grant_type: "authorization_code", spent: "code".to_owned(), ..exchange(1, 0, 1) };
        History {
            samples: vec![sample("a", 1, 1), sample("b", 1, 1), sample("a", 5, 2), sample("b", 6, 2)],
            looks: 40,
            ledger: Ledger {
                exchanges: vec![code, exchange(2, 4, 5), exchange(3, 11, 12)],
                ..Ledger::default()
            },
            run_ended_at: second(10),
            recoveries: vec![Recovery {
                subject: Subject::new("hr", "abel.tuter"),
                fresh_after: Some(Duration::from_secs(1)),
                shown: json!({"state": {"name": "active"}}),
                refresh_refused: None,
                current_spent: true,
            }],
            restarts: vec![Restart { process: "a".to_owned(), ready_after: Duration::from_millis(300) }],
            authorizations: 0,
            calls: LoadReport { good: 10, ..LoadReport::default() },
        }
    }

    fn strict() -> Expectations {
        Expectations { failed_calls: FailedCalls::None, token_calls_max: Some(1), ..Expectations::default() }
    }

    fn failed_call() -> FailedCall {
        let (began, ended) = (Duration::from_secs(2), Duration::from_secs(3));
        FailedCall { began, ended, what: "503".to_owned() }
    }

    #[track_caller]
    fn check_broken(expected: &[&str], spoil: impl FnOnce(&mut History)) {
        let mut history = good();
        spoil(&mut history);
        let report = history.judge(&strict());
        assert_eq!(report.broken(), expected, "{report}");
        for row in report.rows.iter().filter(|row| !row.violations.is_empty()) {
            // I-7 and the restarts are of a run and not of a connection.
            let run = ["I-7", "I-12"].contains(&row.invariant);
            assert!(run || row.violations.iter().all(|violation| violation.contains("hr")), "{report}");
        }
    }

    #[test]
    fn a_good_history_holds() {
        let report = good().check(&strict());
        assert_eq!(report.rows.len(), 9);
        assert!(report.to_string().contains("I-14  holds"), "{report}");
    }

    /// I-1 to I-14: each violation is found, and no other invariant is blamed.
    #[test]
    fn each_violation_is_named() {
        check_broken(&["I-1"], |history| history.recoveries[0].refresh_refused = Some("502".to_owned()));
        check_broken(&["I-1"], |history| history.recoveries[0].current_spent = false);
        check_broken(&["I-1"], |history| {
            history.ledger.exchanges[1].outcome = ExchangeOutcome::FamilyRevoked;
        });
        check_broken(&["I-2"], |history| history.ledger.exchanges[1].at_once = 2);
        check_broken(&["I-3"], |history| history.samples.insert(2, sample("b", 2, 0)));
        check_broken(&["I-3"], |history| {
            history.samples.pop();
        });
        check_broken(&["I-6"], |history| {
            history.samples[0].state = "reauthorization_required".to_owned();
        });
        check_broken(&["I-7"], |history| history.calls.bad.push(failed_call()));
        check_broken(&["I-7"], |history| history.calls.unanswered.push(failed_call()));
        check_broken(&["I-8"], |history| history.ledger.exchanges.push(exchange(4, 6, 7)));
        check_broken(&["I-12"], |history| history.restarts[0].ready_after = Duration::from_mins(1));
        check_broken(&["I-12"], |history| history.authorizations = 1);
        check_broken(&["I-13"], |history| {
            history.ledger.exchanges.push(history.ledger.exchanges[0].clone());
        });
        check_broken(&["I-14"], |history| history.recoveries[0].fresh_after = None);
        check_broken(&["I-14"], |history| {
            history.recoveries[0].fresh_after = Some(Duration::from_secs(31));
        });
    }

    #[test]
    fn a_refusal_of_the_current_token_excuses_what_comes_after_it() {
        for (refused, expected) in [
            (Exchange { outcome: ExchangeOutcome::Refused, ..exchange(2, 3, 4) }, &[][..]),
            (Exchange { outcome: ExchangeOutcome::Refused, ..exchange(2, 3, 6) }, &["I-6"]),
            (
                Exchange { outcome: ExchangeOutcome::Refused, spent_current: false, ..exchange(2, 3, 4) },
                &["I-6"],
            ),
            (Exchange { outcome: ExchangeOutcome::Prevented, ..exchange(2, 3, 4) }, &["I-6"]),
            (Exchange { outcome: ExchangeOutcome::Refused, owner: None, ..exchange(2, 3, 4) }, &["I-6"]),
        ] {
            check_broken(expected, |history| {
                history.ledger.exchanges[1] = refused;
                history.samples[2].state = "reauthorization_required".to_owned(); // at 5
            });
        }
    }

    #[test]
    fn a_run_may_be_excused() {
        let mut history = good();
        history.ledger.exchanges[1].at_once = 2;
        history.samples.insert(3, sample("b", 2, 0));
        history.calls.bad.push(failed_call());
        history.authorizations = 1;
        let excused = Expectations {
            partition: true,
            store_rolls_back: true,
            failed_calls: FailedCalls::Only(vec![(Duration::from_secs(3), Duration::from_secs(9))]),
            consents: 1,
            ..strict()
        };
        history.check(&excused);
        history.ledger.exchanges[1].at_once = 3;
        history.samples.pop();
        history.calls.bad.push(FailedCall { ended: Duration::from_millis(2_900), ..failed_call() });
        assert_eq!(history.judge(&excused).broken(), ["I-2", "I-3", "I-7"]);
    }
}
