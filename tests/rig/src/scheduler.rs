//! Whole clusters in one thread and virtual time. A seed decides everything: what the processes, the store, the server
//! and the clocks do, and when each thing happens. The same seed gives the same run.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    rc::Rc,
    time::Duration,
};

use bearerd_model::{Connection, UnixTime};
use bearerd_refresh::{Action, Actions, Cause, Event, NotBegun, Purpose, Spends};
use bearerd_store::{Revision, StoreError};

use crate::{
    bugs::Bug,
    history::{Limits, Violation},
    random::Random,
    server::{Again, Answer, ServerRules, number},
    world::{Address, Found, Setup, World, Written},
};

/// Kinds of faults; a seed has some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, between any two actions and at any time.
    Crash,
    /// SIGSTOP, past the lease and not.
    Pause,
    /// One process is cut off from the store or from the server.
    Partition,
    /// Single commands: refused, slow, unknown outcome with and without effect, effect later.
    Command,
    /// The store is down or read-only for everybody.
    Outage,
    /// Writes that no replica had are lost; every process is told.
    Failover,
    /// Single token calls: 5xx and HTML before and after processing, reply lost, slow, throttled.
    Call,
    /// `invalid_grant` or ServiceNow's flattened refusal for a good refresh token, rarely.
    Wrong,
    /// Messages about changes are late or lost.
    Feed,
    /// Clocks are up to 4 s apart.
    Skew,
    /// Clocks are up to 60 s off.
    FarSkew,
    /// Operators freeze, purge and consent again.
    Operator,
    /// The instance refuses access tokens before their end.
    Unauthorized,
    /// The spill log takes nothing.
    Disk,
}

impl Fault {
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::Pause,
        Self::Partition,
        Self::Command,
        Self::Outage,
        Self::Failover,
        Self::Call,
        Self::Wrong,
        Self::Feed,
        Self::Skew,
        Self::FarSkew,
        Self::Operator,
        Self::Unauthorized,
        Self::Disk,
    ];
}

/// What a seed decides before anything happens.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub faults: Vec<Fault>,
    pub processes: usize,
    pub connections: usize,
    pub rules: ServerRules,
    pub declared_rotating: bool,
    /// Replicated writes are confirmed only then; the others have an unknown outcome.
    pub waits: bool,
    pub call_timeout_ms: u64,
    /// How long there are faults, in milliseconds.
    pub trouble_ms: u64,
    /// Refreshes begin together, not spread.
    pub herd: bool,
    pub bug: Option<Bug>,
}

impl Plan {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let mut faults: Vec<_> = Fault::ALL.into_iter().filter(|_| random.chance(4_000)).collect();
        if random.chance(1_000) {
            faults.clear();
        }
        // Far clocks allow more than what is promised; they have few runs of their own.
        if !random.chance(1_500) {
            faults.retain(|fault| *fault != Fault::FarSkew);
        }
        let rotates = !random.chance(2_500);
        let leeway_ms = match random.below(4) {
            0 => 0,
            1 => 30_000,
            _ => u64::MAX,
        };
        let again = [Again::Same, Again::Another, Again::Instead][random.below(3)];
        let rules = ServerRules {
            rotates,
            leeway_ms,
            again,
            reuse_revokes: random.chance(5_000),
            life_secs: [20, 45, 120][random.below(3)],
        };
        Self {
            seed,
            faults,
            processes: if random.chance(8_000) { 3 } else { 2 },
            connections: random.below(3) + 1,
            rules,
            declared_rotating: rotates,
            waits: random.chance(7_500),
            call_timeout_ms: [4_000, 10_000][random.below(2)],
            trouble_ms: random.between(40_000, 180_000),
            herd: random.chance(3_000),
            bug,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn limits(&self, skew_ms: u64) -> Limits {
        let apart = self.has(Fault::Pause) || self.has(Fault::Failover);
        Limits {
            in_flight_max: if self.has(Fault::FarSkew) || !self.rules.rotates {
                self.processes
            } else if apart {
                2
            } else {
                1
            },
            forgiving: self.rules.forgives() && !self.has(Fault::FarSkew),
            durable: self.waits || !self.has(Fault::Failover),
            memory_counts: self.has(Fault::Disk),
            quiet: self.faults.is_empty(),
            skew_ms,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub trace: Vec<String>,
    pub events: u64,
    pub calls: u64,
    pub issues: u64,
    pub crashes: u64,
    pub virtual_ms: u64,
    /// From the last fault until every process could lend a token that is taken.
    pub fresh_after_ms: u64,
}

/// Runs a plan.
pub fn run(plan: &Plan, traced: bool) -> Outcome {
    Run::new(plan.clone(), traced).finish()
}

/// I-14: from the last fault until each process can lend a token that is taken.
pub const FRESH_AFTER_MAX_MS: u64 = 60_000;
/// How long all that is under way may take to end after that.
const REST_MAX_MS: u64 = 60_000;
/// A message about a change that was lost is made good for by a read, this often.
const NET_MS: u64 = 5_000;

enum Work {
    /// What is left of a list of actions.
    Rest(Address, Vec<Action>),
    Admit(Address),
    Read {
        at: Address,
        answers_at: u64,
    },
    Loaded(Address, Found),
    Write {
        at: Address,
        expected: Revision,
        next: Rc<Connection>,
        purpose: Purpose,
        answers: Option<u64>,
    },
    Replaced {
        at: Address,
        next: Rc<Connection>,
        purpose: Purpose,
        written: Written,
    },
    Serve {
        at: Address,
        call: u64,
        refresh: usize,
        then: Then,
        answers_at: u64,
    },
    Answered {
        at: Address,
        call: u64,
        answer: Answer,
    },
    Keep {
        at: Address,
        record: Rc<Connection>,
        answers_at: u64,
    },
    Kept {
        at: Address,
        record: Option<Rc<Connection>>,
    },
    Wake(Address),
    Due(Address, UnixTime),
    Told(usize, usize),
    Net(usize),
    Use(usize, usize),
    Trouble,
    Start(usize),
    Mend(Mend),
    Consent(usize),
    Calm,
}

/// What becomes of an answer that the server has made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Reply,
    Unavailable,
    Asleep,
    Lost,
}

#[derive(Clone, Copy)]
enum Mend {
    StoreOf(usize),
    ServerOf(usize),
    Store,
    FailOver,
}

struct Entry(Reverse<(u64, u64)>, Work);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StoreState {
    Up,
    Down,
    ReadOnly,
}

/// What the surroundings of one process do.
#[derive(Clone, Default)]
struct Around {
    paused_until: u64,
    store_cut: bool,
    server_cut: bool,
    /// Per connection: the call under way, and the refresh timer that is set.
    calls: Vec<u64>,
    armed: Vec<Option<UnixTime>>,
    fresh: Vec<bool>,
}

struct Run {
    plan: Plan,
    world: World,
    queue: BinaryHeap<Entry>,
    count: u64,
    random: Random,
    around: Vec<Around>,
    store: StoreState,
    /// No more faults since then.
    calm_since: Option<u64>,
    /// No new ones.
    ends: bool,
    outcome: Outcome,
}

impl Run {
    fn new(plan: Plan, traced: bool) -> Self {
        let mut random = Random::new(plan.seed.wrapping_mul(31).wrapping_add(7));
        let skew_max = match (plan.has(Fault::FarSkew), plan.has(Fault::Skew)) {
            (true, _) => 60_000,
            (false, true) => 2_000,
            (false, false) => 0,
        };
        let skews: Vec<_> = (0..plan.processes)
            .map(|_| i64::try_from(random.between(0, 2 * skew_max)).unwrap_or(0) - skew_max.cast_signed())
            .collect();
        let mut world = World::new(Setup {
            connections: plan.connections,
            call_timeout: Duration::from_millis(plan.call_timeout_ms),
            rules: plan.rules,
            declared_rotating: plan.declared_rotating,
            skews,
            limits: plan.limits(2 * skew_max),
            bug: plan.bug,
        });
        world.history.trace = traced.then(Vec::new);
        let around = Around {
            calls: vec![0; plan.connections],
            armed: vec![None; plan.connections],
            fresh: vec![false; plan.connections],
            ..Around::default()
        };
        let mut run = Self {
            around: vec![around; plan.processes],
            world,
            queue: BinaryHeap::new(),
            count: 0,
            random,
            store: StoreState::Up,
            calm_since: None,
            ends: false,
            outcome: Outcome::default(),
            plan,
        };
        for process in 0..run.plan.processes {
            let at = run.random.between(1, 3_000);
            run.push(at, Work::Start(process));
            run.push(at + NET_MS, Work::Net(process));
            for connection in 0..run.plan.connections {
                let at = run.random.between(1, 20_000);
                run.push(at, Work::Use(process, connection));
            }
        }
        run.push(1_000, Work::Trouble);
        run.push(run.plan.trouble_ms, Work::Calm);
        run
    }

    fn push(&mut self, at: u64, work: Work) {
        self.count += 1;
        self.queue.push(Entry(Reverse((at.max(self.world.now), self.count)), work));
    }

    fn soon(&mut self, low: u64, high: u64) -> u64 {
        self.world.now + self.random.between(low, high)
    }

    fn happens(&mut self, fault: Fault, parts: u64) -> bool {
        !self.ends && self.plan.has(fault) && self.random.chance(parts)
    }

    // --- the run --------------------------------------------------------------------------------------------------

    fn finish(mut self) -> Outcome {
        while let Some(Entry(Reverse((at, _)), work)) = self.queue.pop() {
            self.world.now = at;
            self.outcome.events += 1;
            self.step(work);
            if !self.world.history.violations.is_empty() || self.has_ended() {
                break;
            }
        }
        let facts = &self.world.history.connections;
        self.outcome.calls = facts.iter().map(|facts| facts.calls).sum();
        self.outcome.issues = facts.iter().map(|facts| facts.issues).sum();
        self.outcome.virtual_ms = self.world.now;
        self.outcome.violations = self.world.history.violations;
        self.outcome.trace = self.world.history.trace.unwrap_or_default();
        self.outcome
    }

    /// After the last fault: measures until all is fresh, then waits until nothing is under way, and checks.
    fn has_ended(&mut self) -> bool {
        let Some(since) = self.calm_since else { return false };
        let mut waits = false;
        for process in 0..self.plan.processes {
            for connection in 0..self.plan.connections {
                if self.around[process].fresh[connection] {
                    continue;
                }
                let at = self.world.address(process, connection);
                if self.world.lives(at) && self.world.is_fresh(at) {
                    self.around[process].fresh[connection] = true;
                } else {
                    waits |= self.world.is_healthy(connection);
                }
            }
        }
        let waited = self.world.now - since;
        if waits {
            if waited <= FRESH_AFTER_MAX_MS {
                return false;
            }
            self.report_stale();
            return true;
        }
        if self.outcome.fresh_after_ms == 0 {
            self.outcome.fresh_after_ms = waited.max(1);
        }
        let rests = |slot: &crate::world::Slot| slot.refresher.is_at_rest();
        let all_rest =
            self.world.processes.iter().all(|process| process.alive && process.slots.iter().all(rests));
        if all_rest {
            self.world.check_settled();
        } else if waited > FRESH_AFTER_MAX_MS + REST_MAX_MS {
            self.report_restless();
        }
        all_rest || waited > FRESH_AFTER_MAX_MS + REST_MAX_MS
    }

    fn report_stale(&mut self) {
        for process in 0..self.plan.processes {
            for connection in 0..self.plan.connections {
                if self.around[process].fresh[connection] || !self.world.is_healthy(connection) {
                    continue;
                }
                let evidence =
                    format!("p{process} has had no token that is taken for {FRESH_AFTER_MAX_MS} ms");
                self.world.history.broken("I-14", connection, self.world.now, evidence);
            }
        }
    }

    fn report_restless(&mut self) {
        for process in 0..self.plan.processes {
            for (connection, slot) in self.world.processes[process].slots.iter().enumerate() {
                if !slot.refresher.is_at_rest() {
                    let evidence = format!(
                        "p{process} has always something under way: {:.300}",
                        format!("{:?}", slot.refresher).split("step: ").nth(1).unwrap_or("")
                    );
                    return self.world.history.broken("I-14", connection, self.world.now, evidence);
                }
            }
        }
    }

    fn step(&mut self, work: Work) {
        let Some(work) = self.unless_paused(work) else { return };
        match work {
            Work::Rest(at, actions) if self.world.lives(at) => self.perform(at, actions),
            Work::Admit(at) if self.world.lives(at) => {
                let event = self.world.enter(at);
                self.tell(at, event);
            }
            Work::Read { at, answers_at } => {
                let found = if self.reaches_store(at.process) {
                    Ok(self.world.load(at))
                } else {
                    Err(StoreError::Unreachable("cut off".to_owned()))
                };
                self.push(answers_at, Work::Loaded(at, found));
            }
            Work::Loaded(at, found) if self.world.lives(at) => {
                let found =
                    found.map(|(revision, record)| Some((revision, Box::new(Connection::clone(&record)))));
                self.tell(at, Event::Loaded(found));
            }
            Work::Write { at, expected, next, purpose, answers } => {
                self.write(at, expected, next, purpose, answers);
            }
            Work::Replaced { at, next, purpose, written } if self.world.lives(at) => {
                let written = self.world.reported(at.connection, purpose, written);
                if let Ok(Some(_)) = written {
                    self.world.told_safe(at.connection, &next);
                }
                self.tell(at, Event::Replaced(written));
            }
            Work::Serve { at, call, refresh, then, answers_at } => {
                self.serve(at, call, refresh, then, answers_at);
            }
            Work::Answered { at, call, answer } => {
                let under_way = &mut self.around[at.process].calls[at.connection];
                if !self.world.lives(at) || *under_way != call {
                    let lost = matches!(answer, Answer::Issued { .. });
                    self.world.history.connections[at.connection].disturbed |= lost;
                    return;
                }
                *under_way = 0;
                self.world.history.connections[at.connection].disturbed |= answer == Answer::NoReply;
                let sent_at =
                    self.world.clock(at.process) - Duration::from_millis(self.world.now - call / CALLS);
                self.tell(at, Event::Answered(answer.into_result(sent_at)));
            }
            // The disk of a dead process is still by the time that another one reads it.
            Work::Keep { at, record, answers_at } if self.world.processes[at.process].run == at.run => {
                let fails = self.happens(Fault::Disk, 3_000);
                if !fails {
                    self.world.keep(at, &record);
                }
                self.push(answers_at, Work::Kept { at, record: (!fails).then_some(record) });
            }
            Work::Kept { at, record } if self.world.lives(at) => {
                if let Some(record) = &record {
                    self.world.told_safe(at.connection, record);
                }
                self.tell(at, Event::Kept(record.is_some()));
            }
            Work::Wake(at) if self.world.lives(at) => self.tell(at, Event::Woken),
            Work::Due(at, armed) if self.world.lives(at) => {
                let timer = &mut self.around[at.process].armed[at.connection];
                let is_newest = *timer == Some(armed);
                timer.take_if(|_| is_newest);
                if is_newest {
                    self.ask(at, Cause::Due);
                }
            }
            Work::Told(process, connection) => {
                let at = self.world.address(process, connection);
                if self.world.lives(at) {
                    self.tell(at, Event::Told);
                }
            }
            Work::Net(process) => self.net(process),
            Work::Use(process, connection) => self.use_it(process, connection),
            Work::Trouble => self.trouble(),
            Work::Start(process) => self.start(process),
            Work::Mend(mend) => self.mend(mend),
            Work::Consent(connection) => self.consent(connection),
            Work::Calm => self.calm(),
            _ => {}
        }
    }

    /// What a stopped process would do, it does when it goes on.
    fn unless_paused(&mut self, work: Work) -> Option<Work> {
        let process = match &work {
            Work::Rest(at, _)
            | Work::Admit(at)
            | Work::Loaded(at, _)
            | Work::Replaced { at, .. }
            | Work::Answered { at, .. }
            | Work::Kept { at, .. }
            | Work::Wake(at)
            | Work::Due(at, _) => at.process,
            Work::Told(process, _) | Work::Use(process, _) => *process,
            _ => return Some(work),
        };
        let until = self.around[process].paused_until;
        if self.world.now >= until || !self.world.processes[process].alive {
            return Some(work);
        }
        // Whatever came meanwhile is there at once; which of it is seen first is chance.
        let at = until + self.random.between(0, 3);
        self.push(at, work);
        None
    }

    fn jitter(&mut self) -> f64 {
        self.random.fraction()
    }

    fn tell(&mut self, at: Address, event: Event) {
        let jitter = self.jitter();
        let actions = self.world.tell(at, event, jitter);
        self.perform(at, actions);
        self.arm(at);
    }

    fn ask(&mut self, at: Address, cause: Cause) {
        let jitter = self.jitter();
        let (begun, actions) = self.world.ask(at, cause, jitter);
        if let Err(NotBegun::Before(until) | NotBegun::Claimed(until)) = begun {
            self.arm_at(at, until);
        }
        self.perform(at, actions);
    }

    /// Sets the timer of the next refresh.
    fn arm(&mut self, at: Address) {
        if !self.world.lives(at) {
            return;
        }
        let now = self.world.clock(at.process);
        let refresher = &self.world.slot(at).refresher;
        if refresher.is_exchanging() {
            return;
        }
        let Some(next) = refresher.next_refresh(now) else { return };
        let spread = match &refresher.connection().grant {
            Some(grant) if next <= grant.refresh_at() && !self.plan.herd => {
                grant.usable_until().since(grant.refresh_at()).mul_f64(self.random.fraction() / 5.0)
            }
            _ => Duration::ZERO,
        };
        if self.around[at.process].armed[at.connection].is_none_or(|armed| next < armed || armed < now) {
            self.arm_at(at, next + spread);
        }
    }

    fn arm_at(&mut self, at: Address, next: UnixTime) {
        let soonest = self.world.clock(at.process) + Duration::from_millis(self.random.between(1, 20));
        let next = next.max(soonest);
        self.around[at.process].armed[at.connection] = Some(next);
        self.push(self.world.true_time(at.process, next), Work::Due(at, next));
    }

    // --- what a process does --------------------------------------------------------------------------------------

    fn perform(&mut self, at: Address, actions: Actions) {
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            if self.happens(Fault::Crash, 20) {
                self.crash(at.process);
                return;
            }
            if self.happens(Fault::Pause, 10) {
                let until = self.soon(10, 60_000);
                self.pause(at.process, until);
            }
            if self.world.now < self.around[at.process].paused_until {
                let rest = std::iter::once(action).chain(actions).collect();
                self.push(self.around[at.process].paused_until, Work::Rest(at, rest));
                return;
            }
            let jitter = self.jitter();
            if !self.world.perform(at, &action, jitter) {
                self.begin(at, action);
            }
        }
    }

    fn begin(&mut self, at: Address, action: Action) {
        match action {
            Action::Enter => {
                let high = if self.random.chance(500) { 800 } else { 5 };
                let then = self.soon(0, high);
                self.push(then, Work::Admit(at));
            }
            Action::Load | Action::Look => self.load(at),
            Action::Replace { expected, next, purpose } => {
                self.replace(at, expected, &Rc::new(*next), purpose);
            }
            Action::Call { spends: Spends::RefreshToken(token), not_after } => {
                self.call(at, number(token.expose()), not_after);
            }
            Action::Keep(record) => {
                let (done, slow) = (self.soon(0, 5), self.random.chance(300));
                let answers_at = done + self.random.between(0, if slow { 2_000 } else { 5 });
                self.push(done, Work::Keep { at, record: Rc::new(*record), answers_at });
            }
            Action::Wake(wake) => {
                let then = self.world.true_time(at.process, wake);
                self.push(then, Work::Wake(at));
            }
            _ => {}
        }
    }

    fn reaches_store(&self, process: usize) -> bool {
        self.store != StoreState::Down && !self.around[process].store_cut
    }

    /// How long a command is on its way, there and back.
    fn way(&mut self) -> (u64, u64) {
        let slow = self.happens(Fault::Command, 600);
        let high = if slow { 5_000 } else { 4 };
        (self.random.between(0, high), self.random.between(0, high))
    }

    fn load(&mut self, at: Address) {
        let (there, back) = self.way();
        let now = self.world.now;
        if !self.reaches_store(at.process) || self.happens(Fault::Command, 300) {
            let fails_at = now + self.random.between(1, 2_000);
            self.push(fails_at, Work::Loaded(at, Err(StoreError::Unreachable("refused".to_owned()))));
        } else {
            self.push(now + there, Work::Read { at, answers_at: now + there + back });
        }
    }

    fn replace(&mut self, at: Address, expected: Revision, next: &Rc<Connection>, purpose: Purpose) {
        let (there, back) = self.way();
        let now = self.world.now;
        let fails_at = now + self.random.between(1, 2_000);
        let replaced = |error| Work::Replaced { at, next: next.clone(), purpose, written: Err(error) };
        let unknown = || StoreError::OutcomeUnknown("no reply".to_owned());
        let write = |answers| Work::Write { at, expected, next: next.clone(), purpose, answers };
        if !self.reaches_store(at.process) {
            if self.random.chance(7_000) {
                self.push(fails_at, replaced(StoreError::Unreachable("refused".to_owned())));
            } else {
                self.push(fails_at, replaced(unknown()));
                if self.random.chance(3_000) {
                    let late = self.soon(0, 15_000);
                    self.push(late, write(None));
                }
            }
        } else if self.store == StoreState::ReadOnly {
            self.push(now + there + back, replaced(StoreError::Refused("read-only".to_owned())));
        } else if self.happens(Fault::Command, 900) {
            match self.random.below(4) {
                0 => self.push(fails_at, replaced(StoreError::Unreachable("reset".to_owned()))),
                1 => self.push(fails_at, replaced(unknown())),
                2 => {
                    self.push(now + there, write(None));
                    self.push(fails_at.max(now + there), replaced(unknown()));
                }
                _ => {
                    let late = self.soon(0, 15_000);
                    self.push(late, write(None));
                    self.push(fails_at, replaced(unknown()));
                }
            }
        } else {
            self.push(now + there, write(Some(now + there + back)));
        }
    }

    fn write(
        &mut self,
        at: Address,
        expected: Revision,
        next: Rc<Connection>,
        purpose: Purpose,
        answers: Option<u64>,
    ) {
        let takes = self.store == StoreState::Up && !(answers.is_some() && self.around[at.process].store_cut);
        let written = if takes {
            Ok(self.world.replace(at.connection, expected, &next, purpose))
        } else {
            Err(StoreError::OutcomeUnknown("reset".to_owned()))
        };
        if let Ok(Some(_)) = written {
            self.spread(at.connection);
        }
        let Some(answers_at) = answers else { return };
        let unconfirmed = self.plan.waits && !self.world.is_replicated() && matches!(written, Ok(Some(_)));
        let (answers_at, written) = if unconfirmed {
            (answers_at + 500, Err(StoreError::OutcomeUnknown("no replica has it".to_owned())))
        } else {
            (answers_at, written)
        };
        self.push(answers_at, Work::Replaced { at, next, purpose, written });
    }

    /// Tells every process of a change.
    fn spread(&mut self, connection: usize) {
        for process in 0..self.plan.processes {
            if !self.reaches_store(process) || self.happens(Fault::Feed, 4_000) {
                continue;
            }
            let high = if self.happens(Fault::Feed, 4_000) { 15_000 } else { 250 };
            let at = self.soon(1, high);
            self.push(at, Work::Told(process, connection));
        }
    }

    fn call(&mut self, at: Address, refresh: usize, not_after: UnixTime) {
        let now = self.world.now;
        let mut ends_at = self.world.true_time(at.process, not_after);
        if self.plan.bug == Some(Bug::LeaseShorterThanCall) {
            ends_at = now + self.plan.call_timeout_ms;
        }
        let call = now * CALLS + self.count % CALLS + 1;
        self.around[at.process].calls[at.connection] = call;
        if ends_at <= now {
            self.push(now, Work::Answered { at, call, answer: Answer::NotSent });
            return;
        }
        self.world.call_begins(at, refresh);
        self.push(ends_at, Work::Answered { at, call, answer: Answer::NoReply });
        let budget = ends_at - now;
        let served_at = self.soon(1, 150);
        let mut serve = (served_at, Then::Reply, served_at + self.random.between(1, 50));
        if self.around[at.process].server_cut {
            let fails_at = self.soon(1, 1_000);
            if self.random.chance(7_000) {
                self.push(fails_at, Work::Answered { at, call, answer: Answer::NotSent });
                return;
            }
            if self.random.chance(5_000) {
                return;
            }
            serve.1 = Then::Lost;
        } else if self.happens(Fault::Call, 3_000) {
            let answers_at = self.soon(1, 400);
            let answer = |answer| Work::Answered { at, call, answer };
            match self.random.below(10) {
                0 => return self.push(answers_at, answer(Answer::Unavailable)),
                1 => return self.push(answers_at, answer(Answer::Asleep)),
                2 => {
                    let secs = self.random.between(1, 15);
                    return self.push(answers_at, answer(Answer::Throttled { secs }));
                }
                3 => return self.push(answers_at, answer(Answer::NotSent)),
                4 => serve.1 = Then::Unavailable,
                5 => serve.1 = Then::Asleep,
                6 => serve.1 = Then::Lost,
                _ => {
                    // Slow, up to beyond the limit.
                    serve.0 = now + self.random.between(1, budget + budget / 4);
                    serve.2 = serve.0 + self.random.between(1, budget / 4);
                }
            }
        } else if self.happens(Fault::Wrong, 300) {
            self.world.wrong(at.connection, refresh);
            let answer = if self.random.chance(5_000) { Answer::InvalidGrant } else { Answer::Denied };
            return self.push(served_at, Work::Answered { at, call, answer });
        }
        let (served_at, then, answers_at) = serve;
        self.push(served_at, Work::Serve { at, call, refresh, then, answers_at });
    }

    fn serve(&mut self, at: Address, call: u64, refresh: usize, then: Then, answers_at: u64) {
        let answer = self.world.exchange(at.connection, refresh);
        let is_lost = then != Then::Reply
            || self.around[at.process].server_cut
            || !self.world.lives(at)
            || self.around[at.process].calls[at.connection] != call;
        self.world.history.connections[at.connection].disturbed |= is_lost;
        let answer = match then {
            Then::Unavailable => Answer::Unavailable,
            Then::Asleep => Answer::Asleep,
            Then::Lost if self.random.chance(5_000) => Answer::NoReply,
            Then::Lost => return,
            Then::Reply if self.around[at.process].server_cut => return,
            Then::Reply => answer,
        };
        self.push(answers_at, Work::Answered { at, call, answer });
    }

    // --- callers --------------------------------------------------------------------------------------------------

    fn use_it(&mut self, process: usize, connection: usize) {
        let often = if self.calm_since.is_some() { 2_000 } else { 12_000 };
        let again = self.soon(100, often);
        self.push(again, Work::Use(process, connection));
        let at = self.world.address(process, connection);
        if !self.world.lives(at) {
            return;
        }
        let Some(access) = self.world.lend(at) else { return self.ask(at, Cause::Due) };
        if self.happens(Fault::Unauthorized, 500) {
            self.world.server.forget_access(access);
        }
        if !self.world.server.takes(access, self.world.now) {
            let jitter = self.jitter();
            let actions = self.world.unauthorized(at, jitter);
            self.perform(at, actions);
        }
    }

    fn net(&mut self, process: usize) {
        let again = self.soon(NET_MS - 500, NET_MS + 500);
        self.push(again, Work::Net(process));
        if !self.world.processes[process].alive || self.world.now < self.around[process].paused_until {
            return;
        }
        for connection in 0..self.plan.connections {
            let at = self.world.address(process, connection);
            if self.world.lives(at) {
                self.tell(at, Event::Told);
            }
        }
    }

    // --- faults ---------------------------------------------------------------------------------------------------

    fn trouble(&mut self) {
        if self.ends {
            return;
        }
        let again = self.soon(200, 4_000);
        self.push(again, Work::Trouble);
        let process = self.random.below(self.plan.processes);
        if self.happens(Fault::Crash, 500) && self.world.processes[process].alive {
            self.crash(process);
        }
        let anyone = self.around.iter().any(|around| self.world.now < around.paused_until);
        if self.happens(Fault::Pause, 400) && !anyone {
            let until = self.soon(100, 60_000);
            self.pause(process, until);
        }
        let anyone = self.around.iter().any(|around| around.store_cut || around.server_cut);
        if self.happens(Fault::Partition, 600) && !anyone {
            let until = self.soon(100, 50_000);
            if self.random.chance(6_000) {
                self.around[process].store_cut = true;
                self.push(until, Work::Mend(Mend::StoreOf(process)));
            } else {
                self.around[process].server_cut = true;
                self.push(until, Work::Mend(Mend::ServerOf(process)));
            }
            self.world.history.note(self.world.now, || format!("p{process} is cut off"));
        }
        if self.happens(Fault::Outage, 400) && self.store == StoreState::Up {
            self.store = if self.random.chance(7_000) { StoreState::Down } else { StoreState::ReadOnly };
            let down = self.store == StoreState::Down;
            self.world
                .history
                .note(self.world.now, || format!("the store is {}", if down { "down" } else { "read-only" }));
            let until = self.soon(100, 40_000);
            self.push(until, Work::Mend(Mend::Store));
        }
        if self.happens(Fault::Failover, 600) && self.world.is_replicated() {
            self.world.replicas_fall_behind();
            let until = self.soon(100, 4_000);
            self.push(until, Work::Mend(Mend::FailOver));
        }
        if self.happens(Fault::Operator, 300) && self.store == StoreState::Up && self.world.is_replicated() {
            self.operate(process);
        }
    }

    fn operate(&mut self, process: usize) {
        let connection = self.random.below(self.plan.connections);
        match self.random.below(4) {
            0 => self.world.freeze(connection, process),
            1 => {
                self.world.purge(connection, process);
                let at = self.soon(100, 20_000);
                self.push(at, Work::Consent(connection));
            }
            _ => self.world.consent(connection, process),
        }
        self.spread(connection);
    }

    fn consent(&mut self, connection: usize) {
        if self.store != StoreState::Up || !self.world.is_replicated() {
            let later = self.soon(1_000, 2_000);
            return self.push(later, Work::Consent(connection));
        }
        if self.world.history.connections[connection].family.is_none() {
            let process = self.random.below(self.plan.processes);
            self.world.consent(connection, process);
            self.spread(connection);
        }
    }

    fn pause(&mut self, process: usize, until: u64) {
        // One at a time: with more, more exchanges may be in flight than is promised for one.
        if self.around.iter().all(|around| around.paused_until <= self.world.now) {
            self.world.history.note(self.world.now, || format!("p{process} is stopped until {until} ms"));
            for connection in 0..self.plan.connections {
                let at = self.world.address(process, connection);
                let exchanging = self.world.lives(at) && self.world.slot(at).refresher.is_exchanging();
                self.world.history.connections[connection].disturbed |= exchanging;
            }
            self.around[process].paused_until = until;
        }
    }

    fn crash(&mut self, process: usize) {
        self.outcome.crashes += 1;
        self.around[process].paused_until = 0;
        self.world.crash(process);
        let high = if self.random.chance(5_000) { 500 } else { 40_000 };
        let at = self.soon(10, high);
        self.push(at, Work::Start(process));
    }

    fn start(&mut self, process: usize) {
        if self.world.processes[process].alive {
            return;
        }
        if !self.reaches_store(process) {
            let later = self.soon(500, 1_000);
            return self.push(later, Work::Start(process));
        }
        self.around[process].calls.fill(0);
        self.around[process].armed.fill(None);
        let jitter = self.jitter();
        for (at, actions) in self.world.start(process, jitter) {
            self.perform(at, actions);
        }
        for connection in 0..self.plan.connections {
            let at = self.world.address(process, connection);
            self.arm(at);
        }
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::StoreOf(process) => {
                self.around[process].store_cut = false;
                self.greet(process);
            }
            Mend::ServerOf(process) => self.around[process].server_cut = false,
            Mend::Store => {
                self.store = StoreState::Up;
                self.world.history.note(self.world.now, || "the store is up".to_owned());
                for process in 0..self.plan.processes {
                    self.greet(process);
                }
            }
            Mend::FailOver if self.world.is_replicated() => {}
            Mend::FailOver => {
                if self.random.chance(3_000) {
                    return self.world.replicas_catch_up();
                }
                if !self.plan.waits {
                    self.forgive_rollback();
                }
                self.world.fail_over();
                for process in 0..self.plan.processes {
                    self.greet(process);
                }
            }
        }
    }

    /// Without confirmation by a replica, what the store had confirmed may be gone.
    fn forgive_rollback(&mut self) {
        for facts in &mut self.world.history.connections {
            facts.safe = None;
            facts.disturbed = true;
        }
        self.world.history.limits.forgiving = false;
    }

    /// The store answers this process again.
    fn greet(&mut self, process: usize) {
        for connection in 0..self.plan.connections {
            let at = self.world.address(process, connection);
            let then = self.soon(0, 300);
            self.push(then, Work::Told(process, connection));
            self.push(then, Work::Wake(at));
        }
    }

    /// The last fault is over.
    fn calm(&mut self) {
        self.ends = true;
        if let Some(until) = self.around.iter().map(|around| around.paused_until).max()
            && until > self.world.now
        {
            return self.push(until + 5, Work::Calm);
        }
        self.world.history.note(self.world.now, || "calm".to_owned());
        if !self.world.is_replicated() {
            self.world.replicas_catch_up();
        }
        self.store = StoreState::Up;
        for process in 0..self.plan.processes {
            let around = &mut self.around[process];
            (around.store_cut, around.server_cut, around.paused_until) = (false, false, 0);
            if self.world.processes[process].alive {
                self.greet(process);
            } else {
                let at = self.soon(0, 1_000);
                self.push(at, Work::Start(process));
            }
        }
        for connection in 0..self.plan.connections {
            if self.world.history.connections[connection].family.is_none() {
                self.push(self.world.now, Work::Consent(connection));
            }
        }
        self.calm_since = Some(self.world.now);
    }
}

/// Room for the number of a call beside the time at which it was sent.
const CALLS: u64 = 1 << 16;

/// The faults without which the plan does not fail the same way: the smallest plan that still does.
pub fn smallest(plan: &Plan) -> Plan {
    let fails = |plan: &Plan| run(plan, false).violations.first().map(|violation| violation.invariant);
    let wanted = fails(plan);
    let mut smallest = plan.clone();
    for fault in Fault::ALL {
        let mut without = smallest.clone();
        without.faults.retain(|other| *other != fault);
        if without.faults.len() < smallest.faults.len() && fails(&without) == wanted {
            smallest = without;
        }
    }
    for connections in 1..smallest.connections {
        let fewer = Plan { connections, ..smallest.clone() };
        if fails(&fewer) == wanted {
            smallest = fewer;
            break;
        }
    }
    smallest
}

/// What many seeds came to.
#[derive(Debug, Clone, Default)]
pub struct Total {
    pub seeds: u64,
    pub events: u64,
    pub calls: u64,
    pub issues: u64,
    pub crashes: u64,
    pub virtual_ms: u64,
    pub fresh_after_ms_max: u64,
    /// How many seeds were fresh within 30 s.
    pub fresh_within_30_s: u64,
    /// The seed and what it broke, the lowest seeds first.
    pub failed: Vec<(u64, Violation)>,
}

/// Runs seeds `from` to `from + seeds - 1` on `jobs` threads; stops early after ten failed ones.
pub fn run_seeds(from: u64, seeds: u64, jobs: usize, bug: Option<Bug>, failures_max: usize) -> Total {
    let next = std::sync::atomic::AtomicU64::new(0);
    let failures = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut total = Total::default();
        while failures.load(std::sync::atomic::Ordering::Relaxed) < failures_max {
            let step = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if step >= seeds {
                break;
            }
            let seed = from + step;
            let outcome = run(&Plan::new(seed, bug), false);
            total.seeds += 1;
            total.events += outcome.events;
            total.calls += outcome.calls;
            total.issues += outcome.issues;
            total.crashes += outcome.crashes;
            total.virtual_ms += outcome.virtual_ms;
            total.fresh_after_ms_max = total.fresh_after_ms_max.max(outcome.fresh_after_ms);
            total.fresh_within_30_s += u64::from(outcome.fresh_after_ms <= 30_000);
            if let Some(violation) = outcome.violations.into_iter().next() {
                failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                total.failed.push((seed, violation));
            }
        }
        total
    };
    let mut sum = Total::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            sum.add(thread.join().expect("a run does not panic"));
        }
    });
    sum.failed.sort_by_key(|(seed, _)| *seed);
    sum
}

impl Total {
    fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.calls += other.calls;
        self.issues += other.issues;
        self.crashes += other.crashes;
        self.virtual_ms += other.virtual_ms;
        self.fresh_after_ms_max = self.fresh_after_ms_max.max(other.fresh_after_ms_max);
        self.fresh_within_30_s += other.fresh_within_30_s;
        self.failed.extend(other.failed);
    }
}
