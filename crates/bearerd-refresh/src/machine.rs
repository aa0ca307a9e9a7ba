//! One connection's refreshes, as this process takes part in them. [`Refresher::handle`] takes what happened and gives
//! what to do; it neither waits nor reads a clock, so that a scheduler can run whole clusters of it in one thread.

use std::{mem, time::Duration};

use bearerd_model::{
    Connection, DeathCause, Epoch, Generation, Grant, GrantType, GrantVersion, Health, Intent, Lifecycle,
    Owner, RefreshToken, UnixTime,
};
use bearerd_oauth::Verdict;
use bearerd_store::{Revision, StoreError};

use crate::{
    Obtained, RefreshFailure, TokenCall, TokenCallError, grant_from,
    transition::{
        can_refresh, due_at, is_wanted, pause_after_failure, record_failure, record_issue, worth_storing,
    },
};

/// What all connections of a process have in common.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub owner: Owner,
    /// No other process can have the store open: whose intent is found is gone.
    pub exclusive: bool,
    /// Limit of one token call.
    pub call_timeout: Duration,
    /// Life of a claim. Longer than `call_timeout` by what the store may take before and after the call.
    pub lease: Duration,
    /// A connection used within this span is refreshed ahead of its token's end.
    pub warm_for: Duration,
}

impl Protocol {
    pub fn new(owner: Owner, exclusive: bool, call_timeout: Duration, warm_for: Duration) -> Self {
        Self { owner, exclusive, call_timeout, lease: call_timeout + margin(call_timeout), warm_for }
    }
}

/// Of a lease, what is left after a call that took its longest: for the answer's way into the store.
fn margin(call_timeout: Duration) -> Duration {
    (call_timeout / 4).max(MARGIN_MIN)
}

const MARGIN_MIN: Duration = Duration::from_secs(2);
/// Pause before the store is asked again for what a rotating refresh cannot do without it.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// First and longest pause between two offers of a grant that the store did not take.
const OFFER_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Lost races after which a write of ours waits for the next occasion. Each means that another writer made progress.
const CONFLICTS_MAX: u32 = 32;

/// What the integration says about a connection's exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub grant_type: GrantType,
    /// A refresh spends the refresh token.
    pub rotates: bool,
    pub refresh_token_lifetime: Duration,
}

/// Why an exchange is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The access token is near or past its end.
    Due,
    /// The instance refused the access token of this generation.
    Refused(Generation),
    Operator,
}

/// What an exchange spends.
#[derive(Debug, Clone)]
pub enum Spends {
    RefreshToken(RefreshToken),
    ClientCredentials,
}

/// When something happens, and a number between 0 and 1 that nobody can foresee.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub at: UnixTime,
    pub jitter: f64,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Answers [`Action::Enter`].
    Admitted,
    /// Answers [`Action::Enter`]: no call before then.
    Barred { until: UnixTime },
    /// Answers [`Action::Load`] and [`Action::Look`].
    Loaded(Result<Option<(Revision, Box<Connection>)>, StoreError>),
    /// Answers [`Action::Replace`].
    Replaced(Result<Option<Revision>, StoreError>),
    /// Answers [`Action::Call`].
    Answered(Result<Obtained, TokenCallError>),
    /// Answers [`Action::Keep`]: whether it is on disk.
    Kept(bool),
    /// Somebody may have changed the record.
    Told,
    /// What a log on disk held from an earlier run.
    Recovered(Box<Connection>),
    /// A time asked for by [`Action::Wake`] has come.
    Woken,
}

/// What to do. The answer to each is an [`Event`], except where none is named.
#[derive(Debug, Clone)]
pub enum Action {
    /// Ask for a place among the instance's token calls. Each is left by [`Action::Leave`].
    Enter,
    /// Nothing to answer.
    Leave(Passage),
    Load,
    /// As `Load`, because somebody told of a change.
    Look,
    Replace {
        expected: Revision,
        next: Box<Connection>,
        purpose: Purpose,
    },
    /// Call the token endpoint, and answer by `not_after` at the latest: from then on others may exchange.
    Call {
        spends: Spends,
        not_after: UnixTime,
    },
    /// Put the record on this machine's disk.
    Keep(Box<Connection>),
    /// The store holds this state, or a later one: what was kept of it is no longer needed. Nothing to answer.
    Settle(GrantVersion),
    /// [`Refresher::connection`] or [`Refresher::is_exchanging`] has changed. Nothing to answer.
    Publish,
    /// [`Event::Woken`] at that time.
    Wake(UnixTime),
    /// The record is gone, or another one's by now: this refresher has ended. Nothing to answer.
    End(Gone),
    /// For logs and metrics. Nothing to answer.
    Note(Note),
}

/// What a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The intent to exchange.
    Claim,
    /// What an exchange brought.
    Commit,
    /// What a failed exchange means, and the end of its claim.
    Settle,
    /// What only memory holds.
    Offer,
}

/// How a call went, as far as it concerns other calls at the same instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    NotCalled,
    /// It answered, whatever it said.
    Answered,
    Failed,
    Throttled {
        retry_after: Option<Duration>,
    },
}

#[derive(Debug, Clone)]
pub enum Gone {
    Deleted,
    /// Made anew under the same name, or under another integration.
    Replaced,
    Damaged(StoreError),
}

#[derive(Debug, Clone)]
pub enum Note {
    Issued {
        same_token: bool,
    },
    Failed {
        failure: RefreshFailure,
        retry_at: UnixTime,
    },
    /// The store does not answer: refreshed from memory, which risks nothing where refresh tokens stay.
    FromMemory(StoreError),
    /// The store does not answer, and the refresh token must not be spent without it.
    StoreDown(StoreError),
    /// An exchange before this one was left in doubt; the token that it spent is tried again.
    Uncertain,
    Committed,
    Lost,
    /// Served from memory, and offered to the store until it is taken. `kept`: it is on this machine's disk.
    NotTaken {
        error: StoreError,
        kept: bool,
    },
    /// What was in memory only is in the store.
    Taken,
    Died(DeathCause),
}

/// Why no exchange was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBegun {
    /// The last one has failed, or brought nothing new.
    Before(UnixTime),
    /// Another process is at it, until then at the latest.
    Claimed(UnixTime),
    /// The refresher has ended.
    Ended,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Refresher {
    protocol: Protocol,
    terms: Terms,
    /// As memory has it: what the store holds, or ahead of it.
    connection: Connection,
    /// When it was last used here.
    last_used: Option<UnixTime>,
    step: Step,
    /// The store command under way; there is one at a time, so that memory never goes back to what was read before a
    /// newer state was written.
    under_way: UnderWay,
    told: bool,
    /// The store may not hold what memory holds.
    unsettled: Option<Offer>,
    /// No call before this.
    not_before: UnixTime,
    /// Failed exchanges in a row, as this process saw them.
    failures: u32,
    /// The generation that has had its forced refresh.
    forced: Option<Generation>,
    /// The generation whose access token the instance has refused.
    refused: Option<Generation>,
    /// The newest claim of ours, which nobody but this refresher holds.
    mine: Option<Epoch>,
    /// Our newest exchange may have been answered without our knowing.
    in_doubt: bool,
    /// The claim of another process, and since when this one has watched it.
    watched: Option<(Epoch, UnixTime)>,
    ended: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Idle,
    Entering(Cause),
    Claiming(Claim),
    Calling(Exchange),
    Keeping(Exchange, Box<Grant>),
    Committing(Commit),
    Settling(Settlement),
}

#[derive(Debug, Clone)]
struct Claim {
    cause: Cause,
    early: bool,
    /// The state whose newest refresh token was refused: the one before it is tried.
    previous_of: Option<GrantVersion>,
    ask: Ask,
    /// The claim's own write was not confirmed.
    unconfirmed: bool,
    conflicts: u32,
}

/// An exchange under way.
#[derive(Debug, Clone)]
struct Exchange {
    cause: Cause,
    /// Asked for by an operator inside a pause: its refusal is no strike.
    early: bool,
    epoch: Epoch,
    /// The revision that the claim was written at; `None`: from memory, without a claim.
    revision: Option<Revision>,
    version: GrantVersion,
    from: Option<Grant>,
    spends_previous: bool,
    in_doubt: bool,
}

#[derive(Debug, Clone)]
struct Commit {
    exchange: Exchange,
    grant: Box<Grant>,
    kept: bool,
    ask: Ask,
    unconfirmed: u32,
    conflicts: u32,
}

impl Commit {
    fn of(exchange: Exchange, grant: Box<Grant>, kept: bool, ask: Ask) -> Self {
        Self { exchange, grant, kept, ask, unconfirmed: 0, conflicts: 0 }
    }
}

/// Writes down what a failed exchange means, and removes its claim.
#[derive(Debug, Clone)]
struct Settlement {
    exchange: Exchange,
    failure: Option<RefreshFailure>,
    /// What was written and not confirmed: one refusal is one strike, however often it is written.
    unconfirmed: Option<Box<Connection>>,
    ask: Ask,
    conflicts: u32,
}

impl Settlement {
    fn of(exchange: Exchange, failure: Option<RefreshFailure>) -> Self {
        Self { exchange, failure, unconfirmed: None, ask: Ask::Load, conflicts: 0 }
    }
}

/// The next store command of a step.
#[derive(Debug, Clone)]
enum Ask {
    Load,
    Replace { expected: Revision, next: Box<Connection> },
}

#[derive(Debug, Clone)]
enum UnderWay {
    Nothing,
    /// A look at the record, because somebody told of a change.
    Look,
    /// The step's.
    Step,
    /// An offer of what memory holds: its reading, then its writing.
    OfferLoad,
    OfferReplace(Box<Connection>),
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    at: UnixTime,
    pause: Duration,
}

/// What follows, in order.
pub type Actions = Vec<Action>;

impl Refresher {
    /// For a record as just read.
    pub fn new(protocol: Protocol, terms: Terms, connection: Connection, now: UnixTime) -> Self {
        let mut refresher = Self {
            protocol,
            terms,
            last_used: connection.last_used_at,
            connection,
            step: Step::Idle,
            under_way: UnderWay::Nothing,
            told: false,
            unsettled: None,
            not_before: UnixTime::default(),
            failures: 0,
            forced: None,
            refused: None,
            mine: None,
            in_doubt: false,
            watched: None,
            ended: false,
        };
        refresher.watch(now);
        refresher
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The integration may have changed.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// The connection was used here.
    pub fn set_last_used(&mut self, at: Option<UnixTime>) {
        self.last_used = self.last_used.max(at);
    }

    pub fn is_exchanging(&self) -> bool {
        !matches!(self.step, Step::Idle)
    }

    /// Nothing is under way, and memory holds nothing that the store might not.
    pub fn is_at_rest(&self) -> bool {
        !self.is_exchanging() && matches!(self.under_way, UnderWay::Nothing) && self.unsettled.is_none()
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ends it: what is still under way for it changes nothing any more, but that tokens which it brings are offered
    /// to the store.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Failed exchanges in a row, as this process saw them.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// No exchange is begun by itself before a time to come.
    pub fn is_paused(&self, now: UnixTime) -> bool {
        now < self.not_before
    }

    /// Whether memory holds what the store might not.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// The instance refused the access token of `generation`, which is the one in memory. It gets one forced exchange.
    ///
    /// # Errors
    /// [`NotBegun`]; `Ended` also where it has had its forced exchange.
    pub fn ask_refused(
        &mut self,
        generation: Generation,
        now: Now,
        actions: &mut Actions,
    ) -> Result<(), NotBegun> {
        if self.refused.replace(generation) != Some(generation) {
            actions.push(Action::Publish);
        }
        if self.is_exchanging() {
            return Ok(());
        }
        if self.forced == Some(generation) {
            return Err(NotBegun::Ended);
        }
        self.ask(Cause::Refused(generation), now, actions)?;
        self.forced = Some(generation);
        Ok(())
    }

    /// The generation whose access token the instance refused.
    pub fn refused(&self) -> Option<Generation> {
        self.refused
    }

    /// When the next exchange is due, for a connection that is in use.
    pub fn next_refresh(&self, now: UnixTime) -> Option<UnixTime> {
        if self.ended || !matches!(self.connection.lifecycle, Lifecycle::Active { .. }) {
            return None;
        }
        let at = self.due_at().filter(|_| !self.is_in_doubt()).unwrap_or_default();
        Some(at.max(self.not_before).max(self.blocked_until(now).unwrap_or_default()))
    }

    /// Nobody is at it, and an earlier exchange of the refresh token may have been answered: it is tried again at once,
    /// whatever the access token's age, since a server honours a refresh token that it has replaced for seconds, if at
    /// all.
    pub fn is_in_doubt(&self) -> bool {
        self.rotates() && !self.is_exchanging() && self.connection.exchanges.intent.is_some()
    }

    /// When the grant in memory wants an exchange; `None`: at once.
    fn due_at(&self) -> Option<UnixTime> {
        let grant = self.connection.grant.as_ref()?;
        Some(if can_refresh(&self.connection, self.terms.grant_type) {
            grant.refresh_at()
        } else {
            grant.usable_until()
        })
    }

    /// Begins an exchange, or finds one under way.
    ///
    /// # Errors
    /// [`NotBegun`]: not before a time, or not at all.
    pub fn ask(&mut self, cause: Cause, now: Now, actions: &mut Actions) -> Result<(), NotBegun> {
        if self.ended {
            return Err(NotBegun::Ended);
        }
        if self.is_exchanging() {
            return Ok(());
        }
        let paused = now.at < self.not_before
            && match cause {
                Cause::Due | Cause::Refused(_) => true,
                Cause::Operator => false,
            };
        if paused {
            return Err(NotBegun::Before(self.not_before));
        }
        let waits = |due: &UnixTime| cause == Cause::Due && now.at < *due && !self.is_in_doubt();
        if let Some(due) = self.due_at().filter(waits) {
            return Err(NotBegun::Before(due));
        }
        if let Some(until) = self.blocked_until(now.at) {
            return Err(NotBegun::Claimed(until));
        }
        self.step = Step::Entering(cause);
        actions.push(Action::Enter);
        Ok(())
    }

    /// Takes what happened; adds what follows to `actions`.
    pub fn handle(&mut self, event: Event, now: Now, actions: &mut Actions) {
        match event {
            Event::Admitted => self.admitted(now),
            Event::Barred { until } => {
                self.forced = None;
                self.not_before = self.not_before.max(until);
                self.step = Step::Idle;
                actions.push(Action::Publish);
            }
            Event::Loaded(loaded) => self.loaded(loaded, now, actions),
            Event::Replaced(replaced) => self.replaced(replaced, now, actions),
            Event::Answered(answer) => self.answered(answer, now, actions),
            Event::Kept(kept) => self.kept(kept, now),
            Event::Told => self.told = true,
            Event::Recovered(kept) => self.recovered(*kept, now, actions),
            Event::Woken => {
                if let Some(offer) = &mut self.unsettled {
                    offer.at = offer.at.min(now.at);
                }
            }
        }
        self.pump(now, actions);
    }

    /// Gives the next store command, if none is under way.
    fn pump(&mut self, now: Now, actions: &mut Actions) {
        if !matches!(self.under_way, UnderWay::Nothing) {
            return;
        }
        let ask = match &self.step {
            Step::Claiming(Claim { ask, .. }) => Some((ask.clone(), Purpose::Claim)),
            Step::Committing(Commit { ask, .. }) => Some((ask.clone(), Purpose::Commit)),
            Step::Settling(Settlement { ask, .. }) => Some((ask.clone(), Purpose::Settle)),
            Step::Idle | Step::Entering(_) | Step::Calling(_) | Step::Keeping(..) => None,
        };
        if let Some((ask, purpose)) = ask {
            self.under_way = UnderWay::Step;
            actions.push(match ask {
                Ask::Load => Action::Load,
                Ask::Replace { expected, next } => Action::Replace { expected, next, purpose },
            });
        } else if mem::take(&mut self.told) && !self.ended {
            self.under_way = UnderWay::Look;
            actions.push(Action::Look);
        } else if self.unsettled.is_some_and(|offer| offer.at <= now.at) && matches!(self.step, Step::Idle) {
            self.under_way = UnderWay::OfferLoad;
            actions.push(Action::Load);
        }
    }

    // --- the store answers ----------------------------------------------------------------------------------------

    fn loaded(
        &mut self,
        loaded: Result<Option<(Revision, Box<Connection>)>, StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let under_way = mem::replace(&mut self.under_way, UnderWay::Nothing);
        let found = match loaded {
            Ok(Some((revision, stored))) if self.is_of(&stored) => Ok((revision, *stored)),
            Ok(Some(_)) => return self.gone(Gone::Replaced, actions),
            Ok(None) => return self.gone(Gone::Deleted, actions),
            Err(error @ StoreError::Damaged { .. }) => return self.gone(Gone::Damaged(error), actions),
            Err(error) => Err(error),
        };
        match (under_way, mem::replace(&mut self.step, Step::Idle)) {
            (UnderWay::Step, Step::Claiming(claim)) => self.claim_loaded(claim, found, now, actions),
            (UnderWay::Step, Step::Committing(commit)) => self.commit_loaded(commit, found, now, actions),
            (UnderWay::Step, Step::Settling(settlement)) => {
                self.settlement_loaded(settlement, found, now, actions);
            }
            (UnderWay::OfferLoad, step) => {
                self.step = step;
                self.offer_loaded(found, now, actions);
            }
            (_, step) => {
                self.step = step;
                if let Ok((_, stored)) = found {
                    self.adopt(stored, now, actions);
                    actions.push(Action::Publish);
                }
            }
        }
    }

    fn replaced(&mut self, replaced: Result<Option<Revision>, StoreError>, now: Now, actions: &mut Actions) {
        let under_way = mem::replace(&mut self.under_way, UnderWay::Nothing);
        match (under_way, mem::replace(&mut self.step, Step::Idle)) {
            (UnderWay::Step, Step::Claiming(claim)) => self.claim_replaced(claim, replaced, now, actions),
            (UnderWay::Step, Step::Committing(commit)) => {
                self.commit_replaced(commit, replaced, now, actions);
            }
            (UnderWay::Step, Step::Settling(settlement)) => {
                self.settlement_replaced(settlement, &replaced, now, actions);
            }
            (UnderWay::OfferReplace(next), step) => {
                self.step = step;
                self.offer_replaced(*next, &replaced, now, actions);
            }
            (_, step) => self.step = step,
        }
    }

    // --- claiming -------------------------------------------------------------------------------------------------

    fn admitted(&mut self, now: Now) {
        let Step::Entering(cause) = self.step else { return };
        let early = cause == Cause::Operator && self.failures > 0 && now.at < self.not_before;
        self.step = Step::Claiming(Claim {
            cause,
            early,
            previous_of: None,
            ask: Ask::Load,
            unconfirmed: false,
            conflicts: 0,
        });
    }

    fn claim_loaded(
        &mut self,
        mut claim: Claim,
        found: Result<(Revision, Connection), StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let (revision, stored) = match found {
            Ok(found) => found,
            Err(error) => return self.claim_without_store(&claim, error, now, actions),
        };
        let written = |intent: &Intent| self.is_mine(intent) && claim.unconfirmed;
        if stored.exchanges.intent.as_ref().is_some_and(written) {
            // Another grant was put under the claim meanwhile: its newest refresh token is the one to spend.
            claim.previous_of = claim.previous_of.filter(|version| *version == stored.exchanges.version);
            return self.claimed(&claim, revision, stored, now, actions);
        }
        self.adopt(stored, now, actions);
        actions.push(Action::Publish);
        // Another grant stands there by now: what was refused says nothing about it.
        if claim.previous_of.is_some_and(|version| version != self.connection.exchanges.version) {
            return self.not_called(actions);
        }
        let cause = if self.is_in_doubt() { Cause::Operator } else { claim.cause };
        if self.ended || !is_wanted(&self.connection, self.terms.grant_type, cause, now.at) {
            return self.not_wanted(actions);
        }
        if self.blocked_until(now.at).is_some() {
            // Whoever waits is told when that claim ends; if it brought nothing, a refused token is asked for again.
            return self.not_called(actions);
        }
        let mut next = self.connection.clone();
        let epoch = next.exchanges.next_epoch(now.at);
        // What stands there is a claim of ours whose outcome we know, or one that was left in doubt.
        let before = next.exchanges.intent.take();
        let in_doubt = self.rotates()
            && before.is_some_and(|intent| {
                let ours = self.is_mine(&intent);
                intent.generation == next.exchanges.generation && (intent.in_doubt || !ours || self.in_doubt)
            });
        next.exchanges.claimed = epoch;
        next.due_at = Some(now.at + self.protocol.lease); // for whoever lives then, if this process does not
        next.exchanges.intent = Some(Intent {
            epoch,
            owner: self.protocol.owner,
            generation: next.exchanges.generation,
            began_at: now.at,
            deadline: now.at + self.protocol.lease,
            in_doubt,
        });
        self.mine = Some(epoch);
        claim.unconfirmed = false;
        claim.ask = Ask::Replace { expected: revision, next: Box::new(next) };
        self.step = Step::Claiming(claim);
    }

    fn claim_replaced(
        &mut self,
        mut claim: Claim,
        replaced: Result<Option<Revision>, StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let Ask::Replace { next, .. } = mem::replace(&mut claim.ask, Ask::Load) else { return };
        match replaced {
            Ok(Some(revision)) => {
                self.unsettled = None; // the claim's record holds what memory was ahead with
                actions.push(Action::Settle(next.exchanges.version));
                self.claimed(&claim, revision, *next, now, actions);
            }
            Ok(None) if claim.conflicts < CONFLICTS_MAX => {
                claim.conflicts += 1;
                self.step = Step::Claiming(claim);
            }
            Ok(None) => self.not_called(actions),
            Err(StoreError::OutcomeUnknown(_)) if claim.conflicts < CONFLICTS_MAX => {
                claim.conflicts += 1;
                claim.unconfirmed = true;
                self.step = Step::Claiming(claim);
            }
            Err(error) => self.claim_without_store(&claim, error, now, actions),
        }
    }

    /// The claim stands at `revision`. Calls the token endpoint, unless the store took so long that the claim could
    /// end before the answer.
    fn claimed(
        &mut self,
        claim: &Claim,
        revision: Revision,
        record: Connection,
        now: Now,
        actions: &mut Actions,
    ) {
        let Some(intent) = record.exchanges.intent.clone() else { return };
        self.connection = record;
        self.watch(now.at);
        let exchange = self.exchange(claim, intent.epoch, Some(revision), intent.in_doubt);
        let not_after = intent.deadline - margin(self.protocol.call_timeout);
        if now.at + self.protocol.call_timeout / 2 > not_after {
            actions.push(Action::Leave(Passage::NotCalled));
            self.not_before = now.at + STORE_PAUSE;
            self.step = Step::Settling(Settlement::of(exchange, None));
            return;
        }
        if intent.in_doubt {
            actions.push(Action::Note(Note::Uncertain));
        }
        self.call(exchange, not_after.min(now.at + self.protocol.call_timeout), now, actions);
    }

    /// The store does not answer. A refresh token that stays may be spent all the same: nothing can be lost by it.
    fn claim_without_store(&mut self, claim: &Claim, error: StoreError, now: Now, actions: &mut Actions) {
        if self.ended || !is_wanted(&self.connection, self.terms.grant_type, claim.cause, now.at) {
            return self.not_wanted(actions);
        }
        if self.rotates() {
            self.not_before = now.at + STORE_PAUSE.mul_f64(0.5 + now.jitter / 2.0);
            actions.push(Action::Note(Note::StoreDown(error)));
            return self.not_called(actions);
        }
        actions.push(Action::Note(Note::FromMemory(error)));
        let epoch = self.connection.exchanges.next_epoch(now.at);
        self.connection.exchanges.claimed = epoch;
        let exchange = self.exchange(claim, epoch, None, false);
        self.call(exchange, now.at + self.protocol.call_timeout, now, actions);
    }

    fn exchange(&self, claim: &Claim, epoch: Epoch, revision: Option<Revision>, in_doubt: bool) -> Exchange {
        Exchange {
            cause: claim.cause,
            early: claim.early,
            epoch,
            revision,
            version: self.connection.exchanges.version,
            from: self.connection.grant.clone(),
            spends_previous: claim.previous_of.is_some(),
            in_doubt,
        }
    }

    fn call(&mut self, exchange: Exchange, not_after: UnixTime, now: Now, actions: &mut Actions) {
        let refresh_token = exchange.from.as_ref().and_then(|grant| {
            if exchange.spends_previous { &grant.previous_refresh_token } else { &grant.refresh_token }
                .clone()
        });
        let spends = match (self.terms.grant_type, refresh_token) {
            (GrantType::ClientCredentials, _) => Spends::ClientCredentials,
            (GrantType::AuthorizationCode, Some(token)) => Spends::RefreshToken(token),
            (GrantType::AuthorizationCode, None) => {
                actions.push(Action::Leave(Passage::NotCalled));
                return self.failed(exchange, RefreshFailure::NoRefreshToken, now, actions);
            }
        };
        self.step = Step::Calling(exchange);
        actions.push(Action::Call { spends, not_after });
    }

    /// Ends a step that led to no call.
    fn not_called(&mut self, actions: &mut Actions) {
        self.forced = None; // a forced refresh that made no call does not count
        self.not_wanted(actions);
    }

    /// The same where the record wants none: whoever reports the same refusal again is told so at once.
    fn not_wanted(&mut self, actions: &mut Actions) {
        self.step = Step::Idle;
        actions.push(Action::Leave(Passage::NotCalled));
        actions.push(Action::Publish);
    }

    // --- the token endpoint answers -------------------------------------------------------------------------------

    fn answered(&mut self, answer: Result<Obtained, TokenCallError>, now: Now, actions: &mut Actions) {
        let Step::Calling(exchange) = mem::replace(&mut self.step, Step::Idle) else { return };
        match answer {
            Ok(obtained) => {
                actions.push(Action::Leave(Passage::Answered));
                self.issued(exchange, obtained, now, actions);
            }
            Err(error) => {
                let failure = RefreshFailure::from(error);
                if self.may_try_previous(&exchange, &failure, now.at) {
                    return self.try_previous(&exchange);
                }
                actions.push(Action::Leave(match failure.verdict(exchange.in_doubt) {
                    Verdict::Transient => Passage::Failed,
                    Verdict::Throttled => Passage::Throttled { retry_after: failure.retry_after() },
                    Verdict::GrantDead | Verdict::Suspect | Verdict::ClientRefused => Passage::Answered,
                }));
                self.failed(exchange, failure, now, actions);
            }
        }
    }

    fn issued(&mut self, exchange: Exchange, obtained: Obtained, now: Now, actions: &mut Actions) {
        self.in_doubt = false;
        let call = match self.terms.grant_type {
            GrantType::AuthorizationCode => TokenCall::Refresh,
            GrantType::ClientCredentials => TokenCall::NewGrant,
        };
        let mut grant = grant_from(exchange.from.as_ref(), call, obtained, self.terms.refresh_token_lifetime);
        if let Some(from) = exchange.from.as_ref().filter(|_| exchange.spends_previous) {
            grant.previous_refresh_token.clone_from(&from.previous_refresh_token); // the one that has worked
        }
        let before = exchange.from.as_ref();
        let same_token = before.is_some_and(|held| held.access_token.matches(&grant.access_token));
        actions.push(Action::Note(Note::Issued { same_token }));
        let held = before.and_then(|held| held.refresh_token.as_ref());
        let spent =
            grant.refresh_token.as_ref().is_some_and(|next| !held.is_some_and(|held| held.matches(next)));
        // Only the owner of what it was obtained for may use it: a consent, a purge or a deletion came in between; or
        // what memory has taken over since is newer.
        let ours = GrantVersion { lineage: exchange.version.lineage, epoch: exchange.epoch };
        let memory = self.connection.exchanges.version;
        if memory.lineage != ours.lineage || memory > ours {
            actions.push(Action::Note(Note::Lost));
            return self.finish(actions);
        }
        let mut record = self.connection.clone();
        self.put_issue(&mut record, &grant, exchange.epoch, now.at);
        if spent {
            self.step = Step::Keeping(exchange, Box::new(grant));
            actions.push(Action::Keep(Box::new(record)));
        } else if exchange.revision.is_none() {
            // The store did not answer before the call: who waits for the token does not wait for the store once more.
            let commit = Commit::of(exchange, Box::new(grant), false, Ask::Load);
            let error = StoreError::Unreachable("it did not answer before the call".to_owned());
            self.not_taken(&commit, error, now, actions);
        } else {
            self.commit(exchange, Box::new(grant), false, now);
        }
    }

    fn kept(&mut self, kept: bool, now: Now) {
        match mem::replace(&mut self.step, Step::Idle) {
            Step::Keeping(exchange, grant) => self.commit(exchange, grant, kept, now),
            step => self.step = step,
        }
    }

    /// What an exchange brought, put into a record as it stands.
    fn put_issue(&self, record: &mut Connection, grant: &Grant, epoch: Epoch, now: UnixTime) {
        record_issue(record, grant.clone(), epoch, now);
        record.last_used_at = record.last_used_at.max(self.last_used);
        record.due_at = due_at(record, self.protocol.warm_for, now);
    }

    // --- committing -----------------------------------------------------------------------------------------------

    fn commit(&mut self, exchange: Exchange, grant: Box<Grant>, kept: bool, now: Now) {
        // The record is most often as the claim left it: it need not be read again.
        let is_as_claimed =
            self.connection.exchanges.intent.as_ref().map(|intent| intent.epoch) == Some(exchange.epoch);
        let ask = match exchange.revision.filter(|_| is_as_claimed) {
            Some(expected) => {
                let mut next = Box::new(self.connection.clone());
                self.put_issue(&mut next, &grant, exchange.epoch, now.at);
                Ask::Replace { expected, next }
            }
            None => Ask::Load,
        };
        self.step = Step::Committing(Commit::of(exchange, grant, kept, ask));
    }

    fn commit_loaded(
        &mut self,
        mut commit: Commit,
        found: Result<(Revision, Connection), StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let (revision, stored) = match found {
            Ok(found) => found,
            Err(error) => return self.not_taken(&commit, error, now, actions),
        };
        let (version, epoch) = (stored.exchanges.version, commit.exchange.epoch);
        // What memory has taken over since may be newer too, and gone from the store.
        let ours = GrantVersion { lineage: commit.exchange.version.lineage, epoch };
        let memory = self.connection.exchanges.version;
        if version.lineage != ours.lineage || version > ours || memory > ours {
            self.adopt(stored, now, actions);
            actions.push(Action::Note(Note::Lost));
            actions.push(Action::Settle(GrantVersion { lineage: commit.exchange.version.lineage, epoch }));
            return self.finish(actions);
        }
        // Written already, and not confirmed: written once more, so that it is.
        let mut next = Box::new(stored);
        if version.epoch < epoch {
            // Another exchange of the same refresh token was stored first. Should the server hold to what that one
            // brought, it is the token to fall back on.
            let other = next.grant.as_ref().and_then(|grant| grant.refresh_token.as_ref());
            if let Some(other) = other.filter(|_| version > commit.exchange.version)
                && !commit.grant.refresh_token.as_ref().is_some_and(|ours| ours.matches(other))
            {
                commit.grant.previous_refresh_token = Some(other.clone());
            }
            self.put_issue(&mut next, &commit.grant, epoch, now.at);
        }
        commit.ask = Ask::Replace { expected: revision, next };
        self.step = Step::Committing(commit);
    }

    fn commit_replaced(
        &mut self,
        mut commit: Commit,
        replaced: Result<Option<Revision>, StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let Ask::Replace { next, .. } = mem::replace(&mut commit.ask, Ask::Load) else { return };
        match replaced {
            Ok(Some(_)) => {
                actions.push(Action::Settle(next.exchanges.version));
                actions.push(Action::Note(Note::Committed));
                self.unsettled = None;
                self.take_issue(*next, &commit, now.at);
                self.finish(actions);
            }
            Ok(None) if commit.conflicts < CONFLICTS_MAX => {
                commit.conflicts += 1;
                self.step = Step::Committing(commit);
            }
            Ok(None) => {
                let error =
                    StoreError::Refused("the record is changed by too many writers at once".to_owned());
                self.not_taken(&commit, error, now, actions);
            }
            Err(StoreError::OutcomeUnknown(_)) if commit.unconfirmed == 0 => {
                commit.unconfirmed += 1;
                self.step = Step::Committing(commit);
            }
            Err(error) => self.not_taken(&commit, error, now, actions),
        }
    }

    /// Memory takes over a record with what `commit` brought.
    fn take_issue(&mut self, record: Connection, commit: &Commit, now: UnixTime) {
        let before = commit.exchange.from.as_ref();
        self.connection = record;
        self.failures = 0;
        self.not_before = UnixTime::default();
        // The refused access token came back beside another refresh token: it is no other token for that.
        self.follow(before);
        self.watch(now);
    }

    /// Nobody but memory, and this machine's disk if `kept`, has the grant: it is served, and offered from now on.
    fn not_taken(&mut self, commit: &Commit, error: StoreError, now: Now, actions: &mut Actions) {
        let mut record = self.connection.clone();
        if record.exchanges.version.epoch < commit.exchange.epoch {
            self.put_issue(&mut record, &commit.grant, commit.exchange.epoch, now.at);
        }
        self.take_issue(record, commit, now.at);
        self.offer_after(OFFER_PAUSES.0, now.at, actions);
        actions.push(Action::Note(Note::NotTaken { error, kept: commit.kept }));
        self.finish(actions);
    }

    // --- offering -------------------------------------------------------------------------------------------------

    fn offer_after(&mut self, pause: Duration, now: UnixTime, actions: &mut Actions) {
        self.unsettled = Some(Offer { at: now + pause, pause });
        actions.push(Action::Wake(now + pause));
    }

    fn offer_again(&mut self, now: UnixTime, actions: &mut Actions) {
        let doubled = self.unsettled.map_or(OFFER_PAUSES.0, |offer| offer.pause * 2);
        let pause = doubled.clamp(OFFER_PAUSES.0, OFFER_PAUSES.1);
        self.offer_after(pause, now, actions);
    }

    fn offer_loaded(
        &mut self,
        found: Result<(Revision, Connection), StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let Ok((revision, stored)) = found else { return self.offer_again(now.at, actions) };
        let offered = self.connection.exchanges.version;
        if stored.exchanges.version > offered {
            self.adopt(stored, now, actions);
            actions.push(Action::Settle(offered));
            actions.push(Action::Note(Note::Lost));
            actions.push(Action::Publish);
            return;
        }
        let next = Box::new(self.merged(stored));
        self.under_way = UnderWay::OfferReplace(next.clone());
        actions.push(Action::Replace { expected: revision, next, purpose: Purpose::Offer });
    }

    fn offer_replaced(
        &mut self,
        next: Connection,
        replaced: &Result<Option<Revision>, StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        match replaced {
            Ok(Some(_)) => {
                actions.push(Action::Settle(next.exchanges.version));
                actions.push(Action::Note(Note::Taken));
                actions.push(Action::Publish);
                self.unsettled = None;
                self.hold(next);
                self.watch(now.at);
            }
            Ok(None) => self.offer_after(Duration::ZERO, now.at, actions),
            Err(_) => self.offer_again(now.at, actions),
        }
    }

    /// What this process kept on disk in an earlier run. It is offered, unless what the store holds is newer.
    fn recovered(&mut self, kept: Connection, now: Now, actions: &mut Actions) {
        let (version, stored) = (kept.exchanges.version, self.connection.exchanges.version);
        // What was refreshed of a grant that has been replaced or purged since is of a smaller lineage.
        if !self.is_of(&kept) || version < stored {
            actions.push(Action::Settle(version));
            return;
        }
        if version > stored {
            let stored = mem::replace(&mut self.connection, kept);
            self.connection = self.merged(stored);
            actions.push(Action::Publish);
        }
        // Written already, and maybe not confirmed: written once more, so that it is.
        self.offer_after(Duration::ZERO, now.at, actions);
    }

    // --- failing --------------------------------------------------------------------------------------------------

    fn failed(&mut self, exchange: Exchange, failure: RefreshFailure, now: Now, actions: &mut Actions) {
        let is_newest = self.connection.exchanges.version == exchange.version;
        // Doubt ends with an answer that brings tokens, and no sooner.
        self.in_doubt = self.rotates() && (self.in_doubt || exchange.in_doubt || failure.leaves_doubt());
        let mut after = self.connection.clone();
        if is_newest && !Self::is_no_strike(&exchange, &failure) {
            record_failure(&mut after, &failure, exchange.in_doubt, now.at);
        }
        let strikes = match after.health {
            Health::Failing { strikes, .. } => strikes,
            Health::Ok => 0,
        };
        self.forced = None; // a forced refresh that brought no answer does not count
        if is_newest {
            self.failures = self.failures.saturating_add(1);
            let pause = pause_after_failure(&failure, exchange.in_doubt, self.failures, strikes, now.jitter);
            self.not_before = now.at + pause;
        }
        actions.push(Action::Note(Note::Failed { failure: failure.clone(), retry_at: self.not_before }));
        let writes = is_newest && worth_storing(&self.connection, &after);
        if writes || (exchange.revision.is_some() && !self.in_doubt) {
            self.step = Step::Settling(Settlement::of(exchange, Some(failure)));
        } else {
            self.connection.health = after.health;
            self.finish(actions);
        }
    }

    /// The newest refresh token is refused and has never worked; the one before it is kept for this. In doubt it is the
    /// last resort, before a person is asked: a server may have put it in force again by answering a late repetition.
    fn may_try_previous(&self, exchange: &Exchange, failure: &RefreshFailure, now: UnixTime) -> bool {
        let previous = exchange.from.as_ref().and_then(|grant| grant.previous_refresh_token.as_ref());
        previous.is_some()
            && !exchange.spends_previous
            && !self.ended
            && exchange.revision.is_some()
            && self.connection.exchanges.version == exchange.version
            && match failure.verdict(exchange.in_doubt) {
                Verdict::GrantDead => true,
                Verdict::Suspect => exchange.in_doubt && self.would_die(failure, now),
                _ => false,
            }
    }

    /// Whether this failure is the one that ends the grant.
    fn would_die(&self, failure: &RefreshFailure, now: UnixTime) -> bool {
        let mut after = self.connection.clone();
        record_failure(&mut after, failure, true, now);
        after.lifecycle != self.connection.lifecycle
    }

    /// Renews the claim for a second call, in the place that the first one had.
    fn try_previous(&mut self, exchange: &Exchange) {
        self.step = Step::Claiming(Claim {
            cause: exchange.cause,
            early: exchange.early,
            previous_of: Some(exchange.version),
            ask: Ask::Load,
            unconfirmed: false,
            conflicts: 0,
        });
    }

    fn is_no_strike(exchange: &Exchange, failure: &RefreshFailure) -> bool {
        exchange.early && failure.verdict(exchange.in_doubt) == Verdict::Suspect
    }

    fn settlement_loaded(
        &mut self,
        mut settlement: Settlement,
        found: Result<(Revision, Connection), StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let Ok((revision, stored)) = found else {
            return self.settled_without_store(&settlement, now, actions);
        };
        if self.is_written(&settlement, &stored) {
            return self.settled(stored, now, actions);
        }
        let Settlement { exchange, failure, .. } = &settlement;
        let mut next = Box::new(stored.clone());
        // I-6: only the refusal of the newest refresh token counts.
        if let Some(failure) = failure
            && stored.exchanges.version == exchange.version
            && !Self::is_no_strike(exchange, failure)
        {
            record_failure(&mut next, failure, exchange.in_doubt, now.at);
            next.due_at = if self.in_doubt {
                Some(self.not_before)
            } else {
                due_at(&next, self.protocol.warm_for, now.at).map(|at| at.max(self.not_before))
            };
        }
        if !self.in_doubt {
            next.exchanges.settle(exchange.epoch);
        }
        if stored.exchanges.version > exchange.version {
            self.failures = 0; // that was about a grant which is no longer there
            self.not_before = UnixTime::default();
        }
        let unchanged = next.exchanges == stored.exchanges && !worth_storing(&stored, &next);
        self.adopt(stored, now, actions);
        if unchanged {
            if self.connection.exchanges.version == exchange.version {
                self.connection.health = next.health;
            }
            return self.finish(actions);
        }
        settlement.ask = Ask::Replace { expected: revision, next };
        self.step = Step::Settling(settlement);
    }

    fn settlement_replaced(
        &mut self,
        mut settlement: Settlement,
        replaced: &Result<Option<Revision>, StoreError>,
        now: Now,
        actions: &mut Actions,
    ) {
        let Ask::Replace { next, .. } = mem::replace(&mut settlement.ask, Ask::Load) else { return };
        match replaced {
            Ok(Some(_)) => self.settled(*next, now, actions),
            Ok(None) | Err(StoreError::OutcomeUnknown(_)) if settlement.conflicts < CONFLICTS_MAX => {
                settlement.conflicts += 1;
                settlement.unconfirmed = replaced.is_err().then_some(next);
                self.step = Step::Settling(settlement);
            }
            Ok(None) | Err(_) => self.settled_without_store(&settlement, now, actions),
        }
    }

    /// Whether the write that was not confirmed is there after all.
    fn is_written(&self, settlement: &Settlement, stored: &Connection) -> bool {
        let ours = |intent: &Intent| intent.epoch <= settlement.exchange.epoch;
        settlement.unconfirmed.as_ref().is_some_and(|next| {
            stored.health == next.health
                && stored.lifecycle == next.lifecycle
                && (self.in_doubt || !stored.exchanges.intent.as_ref().is_some_and(ours))
        })
    }

    fn settled(&mut self, record: Connection, now: Now, actions: &mut Actions) {
        if let Lifecycle::ReauthorizationRequired { cause, .. } = record.lifecycle
            && !matches!(self.connection.lifecycle, Lifecycle::ReauthorizationRequired { .. })
        {
            actions.push(Action::Note(Note::Died(cause)));
        }
        self.adopt(record, now, actions);
        self.finish(actions);
    }

    /// Without the store nobody knows whether the refused token was the newest: the connection lives on, and the next
    /// refresh, after the pause, finds out (I-6). The claim ends by its deadline.
    fn settled_without_store(&mut self, settlement: &Settlement, now: Now, actions: &mut Actions) {
        if let Some(failure) = &settlement.failure {
            let mut after = self.connection.clone();
            record_failure(&mut after, failure, settlement.exchange.in_doubt, now.at);
            self.connection.health = after.health;
        }
        self.finish(actions);
    }

    fn finish(&mut self, actions: &mut Actions) {
        self.step = Step::Idle;
        actions.push(Action::Publish);
    }

    // --- memory and store -----------------------------------------------------------------------------------------

    /// Takes the record as the store has it, but for a grant that is newer in memory: that is offered.
    fn adopt(&mut self, stored: Connection, now: Now, actions: &mut Actions) {
        let (theirs, ours) = (stored.exchanges.version, self.connection.exchanges.version);
        if theirs < ours {
            let merged = self.merged(stored);
            self.hold(merged);
            if self.unsettled.is_none() {
                self.offer_after(Duration::ZERO, now.at, actions);
            }
        } else {
            if theirs > ours {
                self.unsettled = None;
                self.failures = 0;
                self.not_before = UnixTime::default();
                self.forced = None;
                self.refused = None;
                self.in_doubt = false;
                actions.push(Action::Settle(theirs));
            }
            self.connection = stored;
        }
        self.watch(now.at);
    }

    /// The stored record with the grant that memory holds. A refresh brings a grant and nothing else; a consent that
    /// the store has lost brings its user and its lifecycle too.
    fn merged(&self, stored: Connection) -> Connection {
        let ours = &self.connection;
        let mut merged = if stored.exchanges.version.lineage == ours.exchanges.version.lineage {
            let lifecycle = match (&stored.lifecycle, &ours.lifecycle) {
                (Lifecycle::ReauthorizationRequired { .. }, ours) => ours.clone(),
                (theirs, _) => theirs.clone(),
            };
            Connection { lifecycle, ..stored.clone() }
        } else {
            Connection { labels: stored.labels.clone(), frozen: stored.frozen.clone(), ..ours.clone() }
        };
        merged.grant.clone_from(&ours.grant);
        merged.health = ours.health.clone();
        merged.due_at = ours.due_at;
        merged.last_used_at = stored.last_used_at.max(ours.last_used_at);
        let (theirs, held) = (stored.exchanges, &mut merged.exchanges);
        held.version = ours.exchanges.version;
        held.claimed = theirs.claimed.max(ours.exchanges.claimed);
        held.generation = theirs.generation.max(ours.exchanges.generation);
        // Other tokens were stored meanwhile, under our generation or a later one: ours come after them (I-3).
        if let Some(grant) = &mut merged.grant {
            grant.generation = match &stored.grant {
                Some(stored) if stored.has_same_tokens(grant) => grant.generation.max(stored.generation),
                _ if grant.generation <= theirs.generation => theirs.generation.next(),
                _ => grant.generation,
            };
            held.generation = held.generation.max(grant.generation);
        }
        held.rotated = theirs.rotated || ours.exchanges.rotated;
        held.intent = theirs.intent;
        held.settle(ours.exchanges.version.epoch);
        merged
    }

    /// Memory takes over a record that holds the same grant, be it as another generation: marks follow the token.
    fn hold(&mut self, record: Connection) {
        let before = mem::replace(&mut self.connection, record).grant;
        self.follow(before.as_ref());
    }

    /// Where memory holds the access token of `before` as another generation, what was noted of it goes with it.
    fn follow(&mut self, before: Option<&Grant>) {
        if let (Some(before), Some(after)) = (before, &self.connection.grant)
            && before.access_token.matches(&after.access_token)
        {
            for marked in [&mut self.forced, &mut self.refused] {
                if *marked == Some(before.generation) {
                    *marked = Some(after.generation);
                }
            }
        }
    }

    fn is_of(&self, stored: &Connection) -> bool {
        self.connection.id == stored.id
            && self.connection.created_at == stored.created_at
            && self.connection.integration == stored.integration
    }

    fn gone(&mut self, why: Gone, actions: &mut Actions) {
        if matches!(self.step, Step::Claiming(_)) {
            actions.push(Action::Leave(Passage::NotCalled));
        }
        if !matches!(self.step, Step::Calling(_) | Step::Keeping(..)) {
            self.step = Step::Idle;
        }
        self.unsettled = None;
        if !matches!(why, Gone::Damaged(_)) {
            let lineage = self.connection.exchanges.version.lineage;
            actions.push(Action::Settle(GrantVersion { lineage, epoch: Epoch(u64::MAX) }));
        }
        if !mem::replace(&mut self.ended, true) {
            actions.push(Action::End(why));
        }
        actions.push(Action::Publish);
    }

    /// Whether a refresh spends the refresh token: by the integration's word, or because it was seen.
    fn rotates(&self) -> bool {
        self.terms.grant_type == GrantType::AuthorizationCode
            && (self.terms.rotates || self.connection.exchanges.rotated)
    }

    /// Whether it is the newest claim of ours. Two processes may give theirs the same epoch; one of them is stored.
    fn is_mine(&self, intent: &Intent) -> bool {
        Some(intent.epoch) == self.mine && intent.owner == self.protocol.owner
    }

    /// Notes since when another process's claim has stood.
    fn watch(&mut self, now: UnixTime) {
        let epoch = self.connection.exchanges.intent.as_ref().map(|intent| intent.epoch);
        if epoch != self.watched.map(|(epoch, _)| epoch) {
            self.watched = epoch.map(|epoch| (epoch, now));
        }
    }

    /// Until when another process's claim keeps this one from exchanging.
    fn blocked_until(&self, now: UnixTime) -> Option<UnixTime> {
        let intent = self.connection.exchanges.intent.as_ref()?;
        let owner = intent.owner;
        let is_ours = self.is_mine(intent);
        let is_dead = self.protocol.exclusive || owner.node == self.protocol.owner.node;
        if is_ours || (is_dead && owner.run != self.protocol.owner.run) {
            return None;
        }
        let since = self.watched.map_or(now, |(_, since)| since);
        let until = since + intent.deadline.since(intent.began_at);
        (now < until).then_some(until)
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
