//! Every run at small bounds: the shipped `Refresher::handle`, driven through each order of deliveries and each outcome
//! of each store command and token call, with crashes and a partition at any moment. A state that was seen before is
//! not followed again.
//!
//! Time stands still but where it is let pass, to an instant that somebody waits for; a timer may fire late. A process's
//! messages may be delayed over any time, but for the answer of a call: that comes by the call's end (see
//! [`Action::Call`]).

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    rc::Rc,
    time::Duration,
};

use bearerd_model::{Connection, UnixTime};
use bearerd_refresh::{Action, Actions, Cause, Event, Purpose, Spends};
use bearerd_store::{Revision, StoreError};

use crate::{
    bugs::Bug,
    history::{Limits, Violation, refresh_of},
    scheduler::FRESH_AFTER_MAX_MS,
    server::{Again, Answer, ServerRules, number},
    world::{Address, Found, PATIENCE_MS, Process, Setup, World, Written},
};

/// How far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub processes: usize,
    /// kill -9, each followed by a start at any later moment.
    pub crashes: u32,
    /// One process is cut off from the store, each time until any later moment.
    pub partitions: u32,
    /// Single commands and calls that fail: nothing done, done but not confirmed, done later.
    pub losses: u32,
    /// How often time passes.
    pub passes: u32,
    pub again: Again,
    pub bug: Option<Bug>,
    /// Gives up after so many states.
    pub states_max: u64,
}

impl Default for Bounds {
    /// What fits into CI.
    fn default() -> Self {
        Self {
            processes: 2,
            crashes: 1,
            partitions: 1,
            losses: 1,
            passes: 2,
            again: Again::Another,
            bug: None,
            states_max: u64::MAX,
        }
    }
}

/// What it came to.
#[derive(Debug, Clone, Default)]
pub struct Explored {
    pub states: u64,
    pub steps: u64,
    /// States with nothing under way, from which it was seen that all becomes well.
    pub settled: u64,
    /// Whether there was nothing left to explore.
    pub complete: bool,
    /// What was broken first, and the steps that lead there.
    pub violation: Option<(Violation, Vec<String>)>,
}

#[derive(Clone)]
struct State {
    world: World,
    jobs: Vec<Job>,
    /// Digests of the processes, as far as they have not changed.
    digests: Vec<Option<u64>>,
    /// Who has not heard of the newest change, and timers, per process.
    untold: Vec<bool>,
    timers: Vec<Vec<UnixTime>>,
    cut: Option<usize>,
    crashes: u32,
    partitions: u32,
    losses: u32,
    passes: u32,
    /// Calls so far: names them.
    calls: u32,
}

/// Something under way.
#[derive(Clone)]
enum Job {
    Read(Address),
    Loaded(Address, Found),
    Write {
        at: Address,
        expected: Revision,
        next: Rc<Connection>,
        purpose: Purpose,
        answers: bool,
    },
    Replaced {
        at: Address,
        next: Rc<Connection>,
        purpose: Purpose,
        written: Written,
    },
    /// A call that waits for its answer, until then.
    Open {
        at: Address,
        call: u32,
        until: u64,
        sent_at: UnixTime,
    },
    Serve {
        at: Address,
        call: u32,
        refresh: usize,
    },
    Answered {
        at: Address,
        answer: Answer,
    },
    Keep {
        at: Address,
        record: Rc<Connection>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Plain,
    /// Nothing was done.
    Fails,
    /// Done, and nobody is told; or told that it may not be.
    Unconfirmed,
    /// Told that it may not be done, and done at some later moment or never.
    Later,
    /// Done, and told at any later moment.
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Job(usize, Fate),
    Ask(usize),
    Tell(usize),
    Wake(usize, usize),
    Pass(u64),
    Crash(usize),
    Start(usize),
    Cut(usize),
    Mend,
}

/// Life of an access token, and the limit of a call.
const LIFE_SECS: u64 = 20;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const JITTER: f64 = 0.5;
/// Steps after which what should have settled counts as stuck.
const SETTLE_STEPS_MAX: usize = 2_000;

/// Explores everything within `bounds`.
pub fn explore(bounds: Bounds) -> Explored {
    let mut explored = Explored::default();
    let mut seen = HashSet::new();
    let mut begin = State::new(bounds);
    seen.insert(begin.digest());
    let choices = begin.choices();
    let mut stack = vec![(begin, choices, 0_usize)];
    while let Some((state, choices, next)) = stack.last_mut() {
        let Some(choice) = choices.get(*next).copied() else {
            stack.pop();
            continue;
        };
        *next += 1;
        let mut after = state.clone();
        after.apply(choice);
        explored.steps += 1;
        if !after.world.history.violations.is_empty() {
            explored.states = seen.len() as u64;
            let path = stack.iter().map(|(_, choices, next)| choices[next - 1]).collect();
            return tell_path(explored, bounds, path, after, false);
        }
        if !seen.insert(after.digest()) {
            continue;
        }
        if after.is_quiet() {
            explored.settled += 1;
            let mut settled = after.clone();
            settled.settle();
            if !settled.world.history.violations.is_empty() {
                explored.states = seen.len() as u64;
                let path = stack.iter().map(|(_, choices, next)| choices[next - 1]).collect();
                return tell_path(explored, bounds, path, settled, true);
            }
        }
        if seen.len() as u64 >= bounds.states_max {
            explored.states = seen.len() as u64;
            return explored;
        }
        let choices = after.choices();
        stack.push((after, choices, 0));
    }
    explored.states = seen.len() as u64;
    explored.complete = true;
    explored
}

/// The same steps once more, with everything written down.
fn tell_path(
    mut explored: Explored,
    bounds: Bounds,
    path: Vec<Choice>,
    end: State,
    settles: bool,
) -> Explored {
    let mut state = State::new(bounds);
    state.world.history.trace = Some(Vec::new());
    for choice in path {
        state.apply(choice);
    }
    if settles {
        state.settle();
    }
    let violation = end.world.history.violations.into_iter().next();
    let trace = state.world.history.trace.unwrap_or_default();
    explored.violation = violation.map(|violation| (violation, trace));
    explored
}

impl State {
    fn new(bounds: Bounds) -> Self {
        let rules = ServerRules {
            rotates: true,
            leeway_ms: u64::MAX,
            again: bounds.again,
            // A call that the server takes up late must not end the grant: no client could prevent that.
            reuse_revokes: false,
            life_secs: LIFE_SECS,
        };
        let mut world = World::new(Setup {
            connections: 1,
            call_timeout: CALL_TIMEOUT,
            rules,
            declared_rotating: true,
            skews: vec![0; bounds.processes],
            limits: Limits {
                in_flight_max: 1,
                forgiving: true,
                durable: true,
                memory_counts: false,
                quiet: false,
                skew_ms: 0,
            },
            bug: bounds.bug,
        });
        world.now = LIFE_SECS * 800; // the moment from which a refresh is due
        for process in 0..bounds.processes {
            world.start(process, JITTER);
        }
        Self {
            world,
            jobs: Vec::new(),
            digests: vec![None; bounds.processes],
            untold: vec![false; bounds.processes],
            timers: vec![Vec::new(); bounds.processes],
            cut: None,
            crashes: bounds.crashes,
            partitions: bounds.partitions,
            losses: bounds.losses,
            passes: bounds.passes,
            calls: 0,
        }
    }

    // --- what can happen ------------------------------------------------------------------------------------------

    fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (index, job) in self.jobs.iter().enumerate() {
            choices.extend(self.fates(job).into_iter().map(|fate| Choice::Job(index, fate)));
        }
        for process in 0..self.untold.len() {
            if !self.world.processes[process].alive {
                if self.cut != Some(process) {
                    choices.push(Choice::Start(process));
                }
                continue;
            }
            if self.untold[process] && self.cut != Some(process) {
                choices.push(Choice::Tell(process));
            }
            if self.may_ask(process) {
                choices.push(Choice::Ask(process));
            }
            for (index, at) in self.timers[process].iter().enumerate() {
                if *at <= self.world.clock(process) {
                    choices.push(Choice::Wake(process, index));
                }
            }
            if self.crashes > 0 && self.is_busy(process) {
                choices.push(Choice::Crash(process));
            }
            if self.partitions > 0 && self.cut.is_none() {
                choices.push(Choice::Cut(process));
            }
        }
        if self.cut.is_some() {
            choices.push(Choice::Mend);
        }
        if self.passes > 0 {
            choices.extend(self.instants().into_iter().map(Choice::Pass));
        }
        choices
    }

    fn fates(&self, job: &Job) -> Vec<Fate> {
        let spare = self.losses > 0;
        let is_cut = |at: &Address| self.cut == Some(at.process) && self.world.lives(*at);
        match job {
            Job::Read(at) if is_cut(at) => vec![Fate::Fails],
            Job::Read(_) if spare => vec![Fate::Plain, Fate::Fails, Fate::Slow],
            Job::Write { at, answers: true, .. } if is_cut(at) => vec![Fate::Fails, Fate::Later],
            Job::Write { answers: true, .. } if spare => {
                vec![Fate::Plain, Fate::Fails, Fate::Unconfirmed, Fate::Later, Fate::Slow]
            }
            Job::Serve { call, .. } if spare && self.is_open(*call) => vec![Fate::Plain, Fate::Fails],
            Job::Answered { .. } if spare => vec![Fate::Plain, Fate::Unconfirmed],
            Job::Open { until, .. } if self.world.now < *until => Vec::new(),
            _ => vec![Fate::Plain],
        }
    }

    fn may_ask(&self, process: usize) -> bool {
        let refresher = &self.world.slot(self.world.address(process, 0)).refresher;
        let now = self.world.clock(process);
        !refresher.is_exchanging() && refresher.next_refresh(now).is_some_and(|at| at <= now)
    }

    /// A crash of a process that does nothing and holds nothing of its own changes nothing.
    fn is_busy(&self, process: usize) -> bool {
        !self.world.slot(self.world.address(process, 0)).refresher.is_at_rest()
            || self.world.processes[process].spill[0].is_some()
    }

    /// Instants that somebody waits for, none after the end of a call under way.
    fn instants(&self) -> Vec<u64> {
        let mut instants = Vec::new();
        let mut end = u64::MAX;
        for job in &self.jobs {
            if let Job::Open { until, .. } = job {
                end = end.min(*until);
                instants.push(*until);
            }
        }
        for (process, timers) in self.timers.iter().enumerate() {
            if !self.world.processes[process].alive {
                continue;
            }
            instants.extend(timers.iter().map(|at| self.world.true_time(process, *at)));
            let slot = self.world.slot(self.world.address(process, 0));
            if !slot.refresher.is_exchanging()
                && let Some(at) = slot.refresher.next_refresh(self.world.clock(process))
            {
                instants.push(self.world.true_time(process, at));
            }
            if let Some((_, since)) = slot.seen {
                instants.push(since + PATIENCE_MS);
            }
        }
        instants.retain(|at| *at > self.world.now && *at <= end);
        instants.sort_unstable();
        instants.dedup();
        instants
    }

    // --- what happens ---------------------------------------------------------------------------------------------

    fn apply(&mut self, choice: Choice) {
        match choice {
            Choice::Job(index, fate) => {
                let job = self.jobs.remove(index);
                self.run(job, fate);
            }
            Choice::Ask(process) => {
                let at = self.world.address(process, 0);
                let (_, actions) = self.world.ask(at, Cause::Due, JITTER);
                self.perform(at, actions);
            }
            Choice::Tell(process) => {
                self.untold[process] = false;
                self.tell(self.world.address(process, 0), Event::Told);
            }
            Choice::Wake(process, index) => {
                self.timers[process].remove(index);
                self.tell(self.world.address(process, 0), Event::Woken);
            }
            Choice::Pass(to) => {
                self.passes -= 1;
                self.pass(to);
            }
            Choice::Crash(process) => {
                self.crashes -= 1;
                self.crash(process);
            }
            Choice::Start(process) => {
                self.digests[process] = None;
                // The disk of a dead process is still by the time that another one reads it.
                self.jobs.retain(|job| !matches!(job, Job::Keep { at, .. } if at.process == process));
                for (at, actions) in self.world.start(process, JITTER) {
                    self.perform(at, actions);
                }
            }
            Choice::Cut(process) => {
                self.partitions -= 1;
                self.cut = Some(process);
            }
            Choice::Mend => self.mend(),
        }
    }

    fn pass(&mut self, to: u64) {
        self.world.now = to;
        let stored = &self.world.records[0].1;
        let Some(intent) = &stored.exchanges.intent else { return };
        // What was not told is read in time.
        for process in 0..self.untold.len() {
            self.untold[process] |= intent.owner.node != process as u64;
        }
    }

    fn mend(&mut self) {
        if let Some(process) = self.cut.take() {
            self.untold[process] = true;
            if self.world.processes[process].alive {
                self.timers[process].push(self.world.clock(process));
            }
        }
    }

    fn crash(&mut self, process: usize) {
        let at = self.world.address(process, 0);
        self.digests[process] = None;
        self.world.crash(process);
        self.timers[process].clear();
        self.untold[process] = false;
        // What was sent may still arrive; what was to be received does not.
        self.jobs.retain_mut(|job| match job {
            Job::Read(to)
            | Job::Loaded(to, _)
            | Job::Replaced { at: to, .. }
            | Job::Open { at: to, .. }
            | Job::Answered { at: to, .. } => *to != at,
            Job::Write { at: to, answers, .. } => {
                *answers &= *to != at;
                true
            }
            Job::Serve { .. } | Job::Keep { .. } => true,
        });
    }

    fn run(&mut self, job: Job, fate: Fate) {
        let unreachable = || StoreError::Unreachable("refused".to_owned());
        let unknown = || StoreError::OutcomeUnknown("no reply".to_owned());
        let is_cut = |at: &Address| self.cut == Some(at.process);
        let costs = match &job {
            Job::Read(at) | Job::Write { at, .. } => !is_cut(at),
            _ => true,
        };
        if fate != Fate::Plain && costs {
            self.losses -= 1;
        }
        match job {
            Job::Read(at) => {
                self.digests[at.process] = None;
                let found = if fate == Fate::Fails { Err(unreachable()) } else { Ok(self.world.load(at)) };
                let loaded = Job::Loaded(at, found);
                if fate == Fate::Slow { self.jobs.push(loaded) } else { self.run(loaded, Fate::Plain) }
            }
            Job::Loaded(at, found) => {
                let found =
                    found.map(|(revision, record)| Some((revision, Box::new(Connection::clone(&record)))));
                self.tell(at, Event::Loaded(found));
            }
            Job::Write { at, expected, next, purpose, answers } => {
                let written = match fate {
                    Fate::Fails => Err(unreachable()),
                    Fate::Later => {
                        let next = next.clone();
                        self.jobs.push(Job::Write { at, expected, next, purpose, answers: false });
                        Err(unknown())
                    }
                    Fate::Plain | Fate::Slow | Fate::Unconfirmed => {
                        let written = self.world.replace(at.connection, expected, &next, purpose);
                        if written.is_some() {
                            for process in 0..self.untold.len() {
                                self.untold[process] |=
                                    process != at.process && self.world.processes[process].alive;
                            }
                        }
                        if fate == Fate::Unconfirmed { Err(unknown()) } else { Ok(written) }
                    }
                };
                let replaced = Job::Replaced { at, next, purpose, written };
                match fate {
                    Fate::Slow => self.jobs.push(replaced),
                    _ if answers => self.run(replaced, Fate::Plain),
                    _ => {}
                }
            }
            Job::Replaced { at, next, purpose, written } => {
                let written = self.world.reported(at.connection, purpose, written);
                if let Ok(Some(_)) = written {
                    self.world.told_safe(at.connection, &next);
                }
                self.tell(at, Event::Replaced(written));
            }
            Job::Open { at, .. } => self.answer(at, Answer::NoReply),
            Job::Serve { at, .. } if fate == Fate::Fails => self.answer(at, Answer::NotSent),
            Job::Serve { at, call, refresh } => {
                let answer = self.world.exchange(at.connection, refresh);
                if self.is_open(call) {
                    self.jobs.push(Job::Answered { at, answer });
                }
            }
            Job::Answered { at, answer } => {
                self.answer(at, if fate == Fate::Plain { answer } else { Answer::Unavailable });
            }
            Job::Keep { at, record } => {
                self.digests[at.process] = None;
                self.world.keep(at, &record);
                if self.world.lives(at) {
                    self.world.told_safe(at.connection, &record);
                    self.tell(at, Event::Kept(true));
                }
            }
        }
    }

    /// Whether somebody waits for the call's answer.
    fn is_open(&self, call: u32) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Open { call: open, .. } if *open == call))
    }

    /// The call is over for its caller.
    fn answer(&mut self, at: Address, answer: Answer) {
        let mut sent = None;
        self.jobs.retain(|job| match job {
            Job::Open { at: open, sent_at, .. } if *open == at => {
                sent = Some(*sent_at);
                false
            }
            Job::Answered { at: late, .. } => *late != at,
            _ => true,
        });
        let sent_at = sent.unwrap_or_else(|| self.world.clock(at.process) - CALL_TIMEOUT);
        self.tell(at, Event::Answered(answer.into_result(sent_at)));
    }

    fn tell(&mut self, at: Address, event: Event) {
        self.digests[at.process] = None;
        let actions = self.world.tell(at, event, JITTER);
        self.perform(at, actions);
    }

    fn perform(&mut self, at: Address, actions: Actions) {
        self.digests[at.process] = None;
        for action in actions {
            if self.world.perform(at, &action, JITTER) {
                continue;
            }
            match action {
                Action::Enter => {
                    let event = self.world.enter(at);
                    self.tell(at, event);
                }
                Action::Load | Action::Look => self.jobs.push(Job::Read(at)),
                Action::Replace { expected, next, purpose } => {
                    self.jobs.push(Job::Write { at, expected, next: Rc::new(*next), purpose, answers: true });
                }
                Action::Call { spends: Spends::RefreshToken(token), not_after } => {
                    self.call(at, &token, not_after);
                }
                Action::Keep(record) => self.jobs.push(Job::Keep { at, record: Rc::new(*record) }),
                Action::Wake(wake) => {
                    self.timers[at.process].push(wake);
                    self.timers[at.process].sort_unstable();
                    self.timers[at.process].dedup();
                }
                _ => {}
            }
        }
    }

    fn call(&mut self, at: Address, token: &bearerd_model::RefreshToken, not_after: UnixTime) {
        let sent_at = self.world.clock(at.process);
        let until = if self.world.setup.bug == Some(Bug::LeaseShorterThanCall) {
            self.world.true_time(at.process, sent_at + CALL_TIMEOUT)
        } else {
            self.world.true_time(at.process, not_after)
        };
        let refresh = number(token.expose());
        self.calls += 1;
        let call = self.calls;
        self.jobs.push(Job::Open { at, call, until, sent_at });
        self.world.call_begins(at, refresh);
        self.jobs.push(Job::Serve { at, call, refresh });
    }

    // --- how it ends ----------------------------------------------------------------------------------------------

    /// Nothing is under way but what a dead process sent.
    fn is_quiet(&self) -> bool {
        self.jobs.iter().all(|job| self.is_orphan(job))
    }

    fn is_orphan(&self, job: &Job) -> bool {
        match job {
            Job::Write { answers, .. } => !answers,
            Job::Serve { call, .. } => !self.is_open(*call),
            Job::Keep { at, .. } => !self.world.lives(*at),
            _ => false,
        }
    }

    /// No more faults: what was sent by the dead is lost, everything else goes as it should. All must become well.
    fn settle(&mut self) {
        let orphans: Vec<_> = self.jobs.iter().map(|job| self.is_orphan(job)).collect();
        let mut orphans = orphans.into_iter();
        self.jobs.retain(|_| !orphans.next().unwrap_or(false));
        self.world.history.note(self.world.now, || "calm".to_owned());
        self.mend();
        let since = self.world.now;
        for process in 0..self.untold.len() {
            if !self.world.processes[process].alive {
                self.apply(Choice::Start(process));
            }
            self.untold[process] = true;
        }
        for _ in 0..SETTLE_STEPS_MAX {
            if !self.world.history.violations.is_empty() {
                return;
            }
            let next = self.choices().into_iter().find(|choice| match choice {
                Choice::Job(_, fate) => *fate == Fate::Plain,
                Choice::Ask(_) | Choice::Tell(_) | Choice::Wake(..) => true,
                _ => false,
            });
            if let Some(choice) = next {
                self.losses = 0;
                self.apply(choice);
                continue;
            }
            let well = (0..self.untold.len())
                .map(|process| self.world.address(process, 0))
                .all(|at| self.world.is_fresh(at) && self.world.slot(at).refresher.is_at_rest());
            if well {
                return self.world.check_settled();
            }
            if self.world.now > since + FRESH_AFTER_MAX_MS {
                break;
            }
            let Some(to) = self.instants().into_iter().next() else { break };
            self.pass(to);
            self.untold.fill(true);
        }
        let evidence = format!("no token that is taken, {} ms after the last fault", self.world.now - since);
        self.world.history.broken("I-14", 0, self.world.now, evidence);
    }

    // --- which state it is ----------------------------------------------------------------------------------------

    fn digest(&mut self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        let state = (self.world.now, self.cut, self.crashes, self.partitions, self.losses, self.passes);
        state.hash(&mut digest.0);
        self.untold.hash(&mut digest.0);
        self.timers.hash(&mut digest.0);
        self.world.server.hash(&mut digest.0);
        for (process, known) in self.world.processes.iter().zip(&mut self.digests) {
            known.get_or_insert_with(|| digest_of_process(process)).hash(&mut digest.0);
        }
        digest.debug(&self.world.records[0].0);
        digest.record(Some(&self.world.records[0].1));
        let facts = &self.world.history.connections[0];
        digest.debug(&(&facts.safe, &facts.in_flight, &facts.refused));
        // The order of what is under way means nothing: a sum does not see it.
        let jobs = self.jobs.iter().fold(0_u64, |sum, job| sum.wrapping_add(digest_of(job)));
        jobs.hash(&mut digest.0);
        digest.0.finish()
    }
}

fn digest_of_process(process: &Process) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    (process.alive, process.run).hash(&mut digest.0);
    digest.record(process.spill[0].as_deref());
    for slot in &process.slots {
        (slot.places, slot.seen).hash(&mut digest.0);
        digest.debug(&slot.refresher);
        digest.record(Some(slot.refresher.connection()));
    }
    digest.debug(&process.breaker);
    digest.0.finish()
}

fn digest_of(job: &Job) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    std::mem::discriminant(job).hash(&mut digest.0);
    match job {
        Job::Read(at) => at.hash(&mut digest.0),
        Job::Loaded(at, found) => {
            at.hash(&mut digest.0);
            digest.debug(&found.as_ref().map(|(revision, _)| revision));
            digest.record(found.as_ref().ok().map(|(_, record)| &**record));
        }
        Job::Write { at, expected, next, purpose, answers } => {
            (at, purpose, answers).hash(&mut digest.0);
            digest.debug(expected);
            digest.record(Some(next));
        }
        Job::Replaced { at, next, purpose, written } => {
            (at, purpose).hash(&mut digest.0);
            digest.debug(written);
            digest.record(Some(next));
        }
        Job::Open { at, call, until, sent_at } => (at, call, until, sent_at).hash(&mut digest.0),
        Job::Serve { at, call, refresh } => (at, call, refresh).hash(&mut digest.0),
        Job::Answered { at, answer } => (at, answer).hash(&mut digest.0),
        Job::Keep { at, record } => {
            at.hash(&mut digest.0);
            digest.record(Some(record));
        }
    }
    digest.0.finish()
}

/// Hashes what `Debug` shows, without keeping it.
struct Digest(DefaultHasher);

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Digest {
    fn debug(&mut self, value: &impl fmt::Debug) {
        write!(self, "{value:?}").expect("hashing does not fail");
    }

    /// `Debug` hides tokens. A grant's scope shows from which answer it is.
    fn record(&mut self, record: Option<&Connection>) {
        let Some(record) = record else { return 0.hash(&mut self.0) };
        refresh_of(record).hash(&mut self.0);
        let previous = record.grant.as_ref().and_then(|grant| grant.previous_refresh_token.as_ref());
        previous.map(|token| number(token.expose())).hash(&mut self.0);
        self.debug(record);
    }
}
