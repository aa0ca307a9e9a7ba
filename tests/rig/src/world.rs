//! Processes, a store and an authorization server. Each thing that can happen is a function here; a scheduler or an
//! explorer chooses what happens next. Every change goes past the history checker.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use bearerd_model::{
    Connection, ConnectionId, Exchanges, GrantType, GrantVersion, Health, IntegrationId, Lifecycle, Owner,
    ProfileName, UnixTime,
};
use bearerd_refresh::{
    Action, Actions, Breaker, Cause, Event, NotBegun, Note, Now, Passage, Protocol, Purpose, Refresher,
    Terms, TokenCall, grant_from,
};
use bearerd_store::{Revision, StoreError};

use crate::{
    bugs::Bug,
    history::{History, Limits, access_of, previous_of, refresh_of},
    server::{Answer, Server, ServerRules},
};

/// What does not change during a run.
#[derive(Debug, Clone)]
pub struct Setup {
    pub connections: usize,
    pub call_timeout: Duration,
    pub rules: ServerRules,
    /// The integration says that the server rotates.
    pub declared_rotating: bool,
    /// How far the clock of each process is off, in milliseconds.
    pub skews: Vec<i64>,
    pub limits: Limits,
    pub bug: Option<Bug>,
}

/// True time 0, in Unix milliseconds.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// Clocks that are further apart may make two processes exchange at once, and a server hold to the wrong one.
const SKEW_PROMISED_MS: u64 = 30_000;
const REFRESH_LIFE: Duration = Duration::from_hours(24 * 100);
/// [`Bug::LeaseTimedOut`]: how long the reader is patient, in milliseconds.
pub const PATIENCE_MS: u64 = 4_000;
/// Calls of one connection in one process within a second: each pause is longer than half of one.
const BURST_MAX: usize = 5;

/// See the module.
#[derive(Debug, Clone)]
pub struct World {
    pub setup: Rc<Setup>,
    /// True time, in milliseconds since the beginning.
    pub now: u64,
    pub processes: Vec<Process>,
    pub records: Vec<(Revision, Rc<Connection>)>,
    revisions: u64,
    /// Records as they were before each write that no replica has.
    unreplicated: Option<Vec<(usize, Revision, Rc<Connection>)>>,
    pub server: Server,
    pub history: History,
}

#[derive(Debug, Clone)]
pub struct Process {
    pub alive: bool,
    pub run: u64,
    pub slots: Vec<Slot>,
    pub breaker: Breaker,
    /// What stands in the spill log. Survives the process.
    pub spill: Vec<Option<Rc<Connection>>>,
}

/// One connection in one process.
#[derive(Debug, Clone)]
pub struct Slot {
    pub refresher: Refresher,
    pub places: u32,
    /// The place is that of the breaker's probe.
    pub is_probe: bool,
    pub cause: Cause,
    /// Claims of others, and since when they are known here: for [`Bug::LeaseTimedOut`].
    pub seen: Option<(u64, u64)>,
    calls_at: [u64; BURST_MAX],
}

/// One connection in one run of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    pub process: usize,
    pub run: u64,
    pub connection: usize,
}

/// What a read brought.
pub type Found = Result<(Revision, Rc<Connection>), StoreError>;
/// What a write brought.
pub type Written = Result<Option<Revision>, StoreError>;

impl World {
    /// Every connection has a grant, just consented; no process runs yet.
    pub fn new(setup: Setup) -> Self {
        let history = History::new(setup.limits, setup.connections);
        let processes = setup.skews.iter().map(|_| Process {
            alive: false,
            run: 0,
            slots: Vec::new(),
            breaker: Breaker::default(),
            spill: vec![None; setup.connections],
        });
        let mut world = Self {
            processes: processes.collect(),
            setup: Rc::new(setup),
            now: 0,
            records: Vec::new(),
            revisions: 0,
            unreplicated: None,
            server: Server::new(),
            history,
        };
        for connection in 0..world.setup.connections {
            let at = UnixTime::from_millis(BEGINNING_MS);
            let record = Connection {
                id: ConnectionId::parse(&format!("c{connection}")).expect("an id"),
                integration: IntegrationId::parse("i").expect("an id"),
                profile: ProfileName::default(),
                labels: BTreeMap::new(),
                expected_user: None,
                user: None,
                lifecycle: Lifecycle::Active { since: at },
                frozen: None,
                health: Health::Ok,
                grant: None,
                exchanges: Exchanges::default(),
                due_at: None,
                created_at: at,
                last_used_at: None,
            };
            let revision = world.revision();
            world.records.push((revision, Rc::new(record)));
            world.consent(connection, 0);
        }
        world
    }

    /// The clock of a process.
    pub fn clock(&self, process: usize) -> UnixTime {
        UnixTime::from_millis((BEGINNING_MS + self.now).saturating_add_signed(self.setup.skews[process]))
    }

    /// The true time at which the clock of a process shows `at`.
    pub fn true_time(&self, process: usize, at: UnixTime) -> u64 {
        at.as_millis().saturating_sub(BEGINNING_MS).saturating_add_signed(-self.setup.skews[process])
    }

    pub fn address(&self, process: usize, connection: usize) -> Address {
        Address { process, run: self.processes[process].run, connection }
    }

    /// Whether the process still runs, in the same run.
    pub fn lives(&self, at: Address) -> bool {
        let process = &self.processes[at.process];
        process.alive && process.run == at.run
    }

    pub fn slot(&self, at: Address) -> &Slot {
        &self.processes[at.process].slots[at.connection]
    }

    pub fn slot_mut(&mut self, at: Address) -> &mut Slot {
        &mut self.processes[at.process].slots[at.connection]
    }

    fn revision(&mut self) -> Revision {
        self.revisions += 1;
        Revision(self.revisions)
    }

    fn moment(&self, process: usize, jitter: f64) -> Now {
        Now { at: self.clock(process), jitter }
    }

    // --- processes ------------------------------------------------------------------------------------------------

    /// Starts a process: it reads the store, then what an earlier run kept.
    pub fn start(&mut self, process: usize, jitter: f64) -> Vec<(Address, Actions)> {
        let now = self.clock(process);
        let (timeout, bug) = (self.setup.call_timeout, self.setup.bug);
        let run = self.processes[process].run + 1;
        let owner = Owner { node: process as u64, run: run * 1_000 + process as u64 };
        let mut protocol = Protocol::new(owner, false, timeout, Duration::from_hours(1));
        if bug == Some(Bug::LeaseShorterThanCall) {
            protocol.lease = protocol.lease.saturating_sub(timeout / 2) + Duration::from_millis(500);
        }
        let terms = Terms {
            grant_type: GrantType::AuthorizationCode,
            rotates: self.setup.declared_rotating,
            refresh_token_lifetime: REFRESH_LIFE,
        };
        let slots = self.records.iter().map(|(_, record)| Slot {
            refresher: Refresher::new(protocol, terms, Connection::clone(record), now),
            places: 0,
            is_probe: false,
            cause: Cause::Due,
            seen: None,
            calls_at: [0; BURST_MAX],
        });
        let slots = slots.collect();
        self.processes[process] = Process {
            alive: true,
            run,
            slots,
            breaker: Breaker::default(),
            spill: self.processes[process].spill.clone(),
        };
        self.history.note(self.now, || format!("p{process} starts, run {run}"));
        let kept: Vec<_> = self.processes[process].spill.clone();
        let mut begun = Vec::new();
        for (connection, kept) in kept.into_iter().enumerate() {
            if let Some(kept) = kept {
                let at = self.address(process, connection);
                let actions = self.tell(at, Event::Recovered(Box::new(Connection::clone(&kept))), jitter);
                begun.push((at, actions));
            }
        }
        begun
    }

    /// kill -9.
    pub fn crash(&mut self, process: usize) {
        self.history.note(self.now, || format!("p{process} crashes"));
        for connection in 0..self.setup.connections {
            let at = self.address(process, connection);
            if self.processes[process].slots[at.connection].refresher.is_exchanging() {
                self.history.connections[connection].disturbed = true;
            }
        }
        self.processes[process].alive = false;
        self.processes[process].slots.clear();
        if self.setup.limits.memory_counts {
            // Neither disk nor store may have had what this process held.
            self.history.connections.iter_mut().for_each(|facts| facts.safe = None);
        }
        self.history.crashed(process);
    }

    /// Tells a connection's state machine what happened.
    pub fn tell(&mut self, at: Address, event: Event, jitter: f64) -> Actions {
        let mut actions = Vec::new();
        if !self.lives(at) {
            return actions;
        }
        let now = self.moment(at.process, jitter);
        self.history.note(self.now, || format!("p{} c{} ← {}", at.process, at.connection, shown(&event)));
        if let Event::Answered(answer) = &event {
            self.history.connections[at.connection].issues += u64::from(answer.is_ok());
            self.history.call_ends(at.connection, at.process, at.run);
        }
        let before = self.lendable(at);
        let memory = self.slot(at).refresher.connection().exchanges.version;
        self.slot_mut(at).refresher.handle(event, now, &mut actions);
        self.history.note(self.now, || {
            let shown: Vec<_> = actions.iter().map(shown_action).collect();
            format!("p{} c{} → {}", at.process, at.connection, shown.join(", "))
        });
        self.check_memory(at, before, memory);
        actions
    }

    /// Somebody wants an exchange.
    pub fn ask(&mut self, at: Address, cause: Cause, jitter: f64) -> (Result<(), NotBegun>, Actions) {
        let mut actions = Vec::new();
        let now = self.moment(at.process, jitter);
        let slot = self.slot_mut(at);
        let was_exchanging = slot.refresher.is_exchanging();
        let begun = slot.refresher.ask(cause, now, &mut actions);
        if !was_exchanging && begun.is_ok() {
            slot.cause = cause;
            self.history.note(self.now, || format!("p{} c{} asks: {cause:?}", at.process, at.connection));
        }
        (begun, actions)
    }

    /// Does what needs no answer. Whether it was such a thing.
    pub fn perform(&mut self, at: Address, action: &Action, jitter: f64) -> bool {
        match action {
            Action::Leave(passage) => self.leave(at, *passage, jitter),
            Action::Settle(version) => self.settle(at, *version),
            // Only this process has it: another one may spend the refresh token before it once more.
            Action::Note(Note::NotTaken { .. }) => self.history.connections[at.connection].disturbed = true,
            Action::Publish | Action::Note(_) => {}
            Action::End(gone) => {
                let evidence = format!("ended although its record is there: {gone:?}");
                self.history.broken("I-12", at.connection, self.now, evidence);
            }
            _ => return false,
        }
        true
    }

    pub fn enter(&mut self, at: Address) -> Event {
        let now = self.clock(at.process);
        match self.processes[at.process].breaker.enter(now) {
            Ok(is_probe) => {
                let slot = self.slot_mut(at);
                slot.places += 1;
                slot.is_probe = is_probe;
                Event::Admitted
            }
            Err(until) => Event::Barred { until },
        }
    }

    fn leave(&mut self, at: Address, passage: Passage, jitter: f64) {
        let now = self.clock(at.process);
        let slot = self.slot_mut(at);
        if slot.places == 0 {
            self.history.broken(
                "I-8",
                at.connection,
                self.now,
                "left a place that it did not have".to_owned(),
            );
            return;
        }
        slot.places -= 1;
        let is_probe = std::mem::take(&mut slot.is_probe);
        self.processes[at.process].breaker.leave(passage, is_probe, now, jitter);
    }

    fn settle(&mut self, at: Address, version: GrantVersion) {
        let kept = &mut self.processes[at.process].spill[at.connection];
        if kept.as_ref().is_some_and(|kept| kept.exchanges.version <= version) {
            *kept = None;
            self.check_safe(at.connection);
        }
    }

    /// The record is on the process's disk.
    pub fn keep(&mut self, at: Address, record: &Rc<Connection>) {
        let kept = &mut self.processes[at.process].spill[at.connection];
        if kept.as_ref().is_none_or(|kept| kept.exchanges.version <= record.exchanges.version) {
            *kept = Some(record.clone());
        }
    }

    // --- checks ---------------------------------------------------------------------------------------------------

    /// The access token that a process would lend now, if the instance would take it.
    fn lendable(&self, at: Address) -> Option<usize> {
        let access = self.lent(at)?;
        self.server.takes(access, self.now).then_some(access)
    }

    /// The access token that a process would lend now.
    pub fn lent(&self, at: Address) -> Option<usize> {
        let record = self.slot(at).refresher.connection();
        let grant = record.grant.as_ref()?;
        let usable = matches!(record.lifecycle, Lifecycle::Active { .. })
            && self.clock(at.process) < grant.usable_until();
        if usable { access_of(record) } else { None }
    }

    /// I-7: what could be lent before an event can be lent after it. I-3: memory does not go back.
    fn check_memory(&mut self, at: Address, before: Option<usize>, version: GrantVersion) {
        let record = self.slot(at).refresher.connection();
        let after = record.exchanges.version;
        let lives = matches!(record.lifecycle, Lifecycle::Active { .. });
        if after < version {
            let evidence = format!("memory of p{} fell from {version:?} to {after:?}", at.process);
            self.history.broken("I-3", at.connection, self.now, evidence);
        }
        let lends = self.lent(at).is_some_and(|access| self.now < self.server.access_ends(access));
        // Clocks that are apart may order two tokens, each brought without the store, against their ends.
        let near = self.setup.limits.skew_ms == 0
            || (self.setup.limits.skew_ms <= 4_000 && self.setup.rules.rotates);
        if near && lives && after.lineage == version.lineage && before.is_some() && !lends {
            let evidence = format!("p{} could lend {before:?} and cannot any more", at.process);
            self.history.broken("I-7", at.connection, self.now, evidence);
        }
    }

    /// Somebody uses the connection. I-7: what is lent has not ended, and is of the right grant (I-4).
    pub fn lend(&mut self, at: Address) -> Option<usize> {
        let now = self.clock(at.process);
        self.slot_mut(at).refresher.set_last_used(Some(now));
        let access = self.lent(at)?;
        // A token is not used in the last part of its life; clocks that are further apart than that take the rest.
        let unused_ms = (self.setup.rules.life_secs * 1_000 / 20).min(5_000);
        let tolerated = self.setup.limits.skew_ms.saturating_sub(unused_ms);
        if self.server.access_ends(access) + tolerated <= self.now {
            let evidence = format!("p{} lent at-{access}, which has ended", at.process);
            self.history.broken("I-7", at.connection, self.now, evidence);
        }
        Some(access)
    }

    /// A call goes out. I-2 and I-8.
    pub fn call_begins(&mut self, at: Address, refresh: usize) {
        self.history.call_begins(at.connection, self.now, at.process, at.run, refresh);
        let now = self.now;
        let slot = self.slot_mut(at);
        slot.calls_at.rotate_left(1);
        let first = std::mem::replace(&mut slot.calls_at[BURST_MAX - 1], now);
        let (oldest, cause) = (slot.calls_at[0], slot.cause);
        let _ = first;
        if oldest > 0 && now - oldest < 1_000 {
            let evidence = format!("p{} called {BURST_MAX} times within a second", at.process);
            self.history.broken("I-8", at.connection, now, evidence);
        }
        if self.setup.limits.quiet && cause == Cause::Due {
            let clock = self.clock(at.process) + Duration::from_millis(self.setup.limits.skew_ms);
            let (_, stored) = &self.records[at.connection];
            if let Some(grant) = stored.grant.as_ref().filter(|grant| clock < grant.refresh_at()) {
                let evidence = format!("p{} called, and {:?} is not due", at.process, grant.generation);
                self.history.broken("I-8", at.connection, now, evidence);
            }
        }
    }

    fn check_safe(&mut self, connection: usize) {
        let Self { history, records, processes, now, .. } = self;
        let spilled = processes.iter().filter_map(|process| process.spill[connection].as_deref());
        let living = processes.iter().filter(|process| process.alive && history.limits.memory_counts);
        let memory: Vec<_> = living.map(|process| process.slots[connection].refresher.connection()).collect();
        history.check_safe(connection, *now, spilled.chain([&*records[connection].1]).chain(memory));
    }

    /// A process hears that this state is on disk, or in the store.
    pub fn told_safe(&mut self, connection: usize, record: &Connection) {
        if !self.setup.limits.durable {
            return;
        }
        self.history.told_safe(connection, record);
        self.check_safe(connection);
    }

    /// Whether the connection's grant should work: it is wanted, and the server has not ended it.
    pub fn is_healthy(&self, connection: usize) -> bool {
        let facts = &self.history.connections[connection];
        let (_, stored) = &self.records[connection];
        let lost = !self.setup.limits.forgiving && facts.disturbed;
        let honoured = self.is_honoured(stored);
        let mut held = refresh_of(stored).into_iter().chain(previous_of(stored));
        let wronged = held.any(|held| facts.wronged.contains(&held));
        let dead = matches!(stored.lifecycle, Lifecycle::ReauthorizationRequired { .. });
        facts.family.is_some_and(|family| !self.server.is_revoked(family))
            && (honoured || !lost)
            && !(dead && (lost || wronged))
    }

    /// Whether the server takes the record's refresh token, or the one before it, which is kept for that.
    fn is_honoured(&self, record: &Connection) -> bool {
        let honours = |refresh| self.server.honours(self.setup.rules, refresh, self.now);
        refresh_of(record).into_iter().chain(previous_of(record)).any(honours)
    }

    /// Whether a process can lend a token of the connection that the instance takes.
    pub fn is_fresh(&self, at: Address) -> bool {
        self.lendable(at).is_some_and(|access| {
            Some(self.server.access_family(access)) == self.history.connections[at.connection].family
        })
    }

    /// I-1, I-6, I-8: how it stands once nothing is under way any more.
    pub fn check_settled(&mut self) {
        for connection in 0..self.setup.connections {
            if !self.is_healthy(connection) {
                continue;
            }
            let stored = self.records[connection].1.clone();
            let held = refresh_of(&stored);
            let honoured = self.is_honoured(&stored);
            if !honoured {
                let evidence =
                    format!("the stored refresh token is {held:?}, and the server does not take it");
                self.history.broken("I-1", connection, self.now, evidence);
            } else if !matches!(stored.lifecycle, Lifecycle::Active { .. }) {
                let evidence = format!("{:?}, and the server takes {held:?}", stored.lifecycle);
                self.history.broken("I-6", connection, self.now, evidence);
            }
        }
        for process in 0..self.processes.len() {
            for connection in 0..self.processes[process].slots.len() {
                let slot = &self.processes[process].slots[connection];
                if slot.places > 0 && !slot.refresher.is_exchanging() {
                    let evidence = format!("p{process} holds {} places for nothing", slot.places);
                    self.history.broken("I-8", connection, self.now, evidence);
                }
            }
        }
    }

    // --- the store ------------------------------------------------------------------------------------------------

    pub fn load(&mut self, at: Address) -> (Revision, Rc<Connection>) {
        let (revision, record) = self.records[at.connection].clone();
        if self.setup.bug != Some(Bug::LeaseTimedOut) || !self.lives(at) {
            return (revision, record);
        }
        let node = at.process as u64;
        let foreign = record.exchanges.intent.as_ref().filter(|intent| intent.owner.node != node);
        let Some(epoch) = foreign.map(|intent| intent.epoch.0) else { return (revision, record) };
        let now = self.now;
        let slot = self.slot_mut(at);
        let since = match slot.seen {
            Some((seen, since)) if seen == epoch => since,
            _ => slot.seen.insert((epoch, now)).1,
        };
        if now < since + PATIENCE_MS {
            return (revision, record);
        }
        let mut unseeing = Connection::clone(&record);
        unseeing.exchanges.intent = None;
        (revision, Rc::new(unseeing))
    }

    /// Compare-and-swap, as the backend does it.
    pub fn replace(
        &mut self,
        connection: usize,
        expected: Revision,
        next: &Rc<Connection>,
        purpose: Purpose,
    ) -> Option<Revision> {
        let (revision, stored) = self.records[connection].clone();
        let blind = self.setup.bug == Some(Bug::SwapWithoutGeneration) && purpose == Purpose::Commit;
        if revision != expected && !blind {
            self.history.note(self.now, || format!("store c{connection} {purpose:?}: another writer won"));
            return None;
        }
        if self.setup.bug == Some(Bug::RefreshWithoutIntent) && purpose == Purpose::Claim {
            return Some(revision);
        }
        self.history.written(connection, self.now, &stored, next);
        Some(self.put(connection, next.clone(), purpose))
    }

    fn put(&mut self, connection: usize, next: Rc<Connection>, purpose: Purpose) -> Revision {
        let revision = self.revision();
        let (old, before) = std::mem::replace(&mut self.records[connection], (revision, next));
        if let Some(log) = &mut self.unreplicated {
            log.push((connection, old, before));
        }
        self.history.note(self.now, || {
            let (_, next) = &self.records[connection];
            format!("store c{connection} {purpose:?}: {}", shown_record(next))
        });
        self.check_safe(connection);
        revision
    }

    /// What a process hears of its write.
    ///
    /// # Errors
    /// What came of the write, where no mistake hides it.
    pub fn reported(&self, connection: usize, purpose: Purpose, written: Written) -> Written {
        match (self.setup.bug, purpose, &written) {
            (Some(Bug::CommitFailureSwallowed), Purpose::Commit, Ok(None) | Err(_)) => {
                Ok(Some(self.records[connection].0))
            }
            _ => written,
        }
    }

    /// From now on no replica has what is written.
    pub fn replicas_fall_behind(&mut self) {
        self.history.note(self.now, || "replicas fall behind".to_owned());
        self.unreplicated.get_or_insert_default();
    }

    /// Whether what is written reaches a replica.
    pub fn is_replicated(&self) -> bool {
        self.unreplicated.is_none()
    }

    pub fn replicas_catch_up(&mut self) {
        self.unreplicated = None;
    }

    /// A replica takes over: what it does not have is gone. How many writes were lost.
    pub fn fail_over(&mut self) -> usize {
        let lost = self.unreplicated.take().unwrap_or_default();
        self.history.note(self.now, || format!("the store fails over: {} writes are lost", lost.len()));
        let count = lost.len();
        for (connection, revision, record) in lost.into_iter().rev() {
            self.records[connection] = (revision, record);
        }
        for connection in 0..self.setup.connections {
            self.check_safe(connection);
        }
        count
    }

    // --- the server -----------------------------------------------------------------------------------------------

    /// The server does what it is asked.
    pub fn exchange(&mut self, connection: usize, refresh: usize) -> Answer {
        let answer = self.server.exchange(self.setup.rules, refresh, self.now);
        if answer == Answer::InvalidGrant {
            self.history.refused(connection, refresh, false);
        }
        self.history.note(self.now, || format!("server c{connection} rt-{refresh}: {answer:?}"));
        answer
    }

    /// A fault refuses a refresh token that may be good.
    pub fn wrong(&mut self, connection: usize, refresh: usize) {
        self.history.refused(connection, refresh, true);
    }

    // --- operators ------------------------------------------------------------------------------------------------

    /// A person consents, seen by the clock of `process`.
    pub fn consent(&mut self, connection: usize, process: usize) {
        let (family, answer) = self.server.consent(self.setup.rules, self.now);
        let now = self.clock(process);
        let obtained = answer.into_result(now).expect("a consent brings tokens");
        let mut record = Connection::clone(&self.records[connection].1);
        record.put_grant(grant_from(None, TokenCall::NewGrant, obtained, REFRESH_LIFE), now);
        record.lifecycle = Lifecycle::Active { since: now };
        record.health = Health::Ok;
        let facts = &mut self.history.connections[connection];
        facts.family = Some(family);
        facts.disturbed = self.setup.limits.skew_ms > SKEW_PROMISED_MS;
        self.operate(connection, record, "consent");
        let stored = self.records[connection].1.clone();
        self.told_safe(connection, &stored);
    }

    pub fn purge(&mut self, connection: usize, process: usize) {
        let now = self.clock(process);
        let mut record = Connection::clone(&self.records[connection].1);
        record.purge_grant(now);
        record.lifecycle = Lifecycle::AwaitingConsent { since: now };
        self.history.connections[connection].family = None;
        self.history.connections[connection].safe = None;
        self.operate(connection, record, "purge");
    }

    pub fn freeze(&mut self, connection: usize, process: usize) {
        let since = self.clock(process);
        let mut record = Connection::clone(&self.records[connection].1);
        record.frozen = match record.frozen {
            None => Some(bearerd_model::Freeze { since, reason: "test".to_owned() }),
            Some(_) => None,
        };
        self.operate(connection, record, "freeze");
    }

    fn operate(&mut self, connection: usize, record: Connection, act: &str) {
        self.history.note(self.now, || format!("operator c{connection}: {act}"));
        let stored = self.records[connection].1.clone();
        self.history.written(connection, self.now, &stored, &record);
        self.put(connection, Rc::new(record), Purpose::Offer);
    }

    /// The instance refused the access token that this process lent.
    pub fn unauthorized(&mut self, at: Address, jitter: f64) -> Actions {
        let mut actions = Vec::new();
        let now = self.moment(at.process, jitter);
        let slot = self.slot_mut(at);
        let Some(grant) = &slot.refresher.connection().grant else { return actions };
        let generation = grant.generation;
        let was_exchanging = slot.refresher.is_exchanging();
        let begun = slot.refresher.ask_refused(generation, now, &mut actions);
        if begun.is_ok() && !was_exchanging {
            slot.cause = Cause::Refused(generation);
            self.history.connections[at.connection].forced += 1;
            self.history.note(self.now, || {
                format!("p{} c{} is told 401 for {generation:?}", at.process, at.connection)
            });
        }
        actions
    }
}

// --- shown in traces ----------------------------------------------------------------------------------------------

fn shown(event: &Event) -> String {
    match event {
        Event::Loaded(Ok(Some((_, record)))) => format!("Loaded {}", shown_record(record)),
        Event::Recovered(record) => format!("Recovered {}", shown_record(record)),
        Event::Answered(Ok(obtained)) => {
            format!("Answered {}", obtained.response.scope.as_deref().unwrap_or(""))
        }
        Event::Answered(Err(error)) => format!("Answered: {error}"),
        event => format!("{event:?}"),
    }
}

fn shown_action(action: &Action) -> String {
    match action {
        Action::Replace { expected, next, purpose } => {
            format!("Replace {purpose:?} at {} by {}", expected.0, shown_record(next))
        }
        Action::Keep(record) => format!("Keep {}", shown_record(record)),
        Action::Call { spends: bearerd_refresh::Spends::RefreshToken(token), .. } => {
            format!("Call {}", token.expose())
        }
        action => format!("{action:?}"),
    }
}

fn shown_record(record: &Connection) -> String {
    let Exchanges { claimed, version, generation, intent, .. } = &record.exchanges;
    let epoch = |epoch: u64| epoch.saturating_sub(BEGINNING_MS);
    let intent = intent.as_ref().map_or_else(String::new, |intent| {
        let doubt = if intent.in_doubt { " in doubt" } else { "" };
        format!(" intent {} of p{} run {}{doubt}", epoch(intent.epoch.0), intent.owner.node, intent.owner.run)
    });
    let tokens = record.grant.as_ref().map_or_else(
        || "no grant".to_owned(),
        |grant| {
            format!(
                "{} {}",
                grant.access_token.expose(),
                refresh_of(record).map_or_else(String::new, |rt| format!("rt-{rt}"))
            )
        },
    );
    format!(
        "[{} {}.{} claimed {} g{} {tokens}{intent}]",
        record.lifecycle.name(),
        epoch(version.lineage.0),
        epoch(version.epoch.0),
        epoch(claimed.0),
        generation.0,
    )
}
