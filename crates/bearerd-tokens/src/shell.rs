//! The waiting: does what the state machine of a connection asks for, and tells it what came of it.
//!
//! Each thing to do runs in a task of its own on the engine's runtime, so that an exchange never dies with the request
//! that asked for it, and a shutdown can wait for all of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bearerd_crash_points::{CrashPoint, crash_point};
use bearerd_crypto::random_bytes;
use bearerd_model::{Connection, GrantVersion, UnixTime};
use bearerd_oauth::TokenRequest;
use bearerd_refresh::{Action, Event, Gone, Note, Now, Purpose, Spends, TokenCallError};
use bearerd_spill::SpillEntry;
use bearerd_store::{StoreError, Versioned};
use tracing::{debug, error, info, warn};

use crate::{
    LendError,
    endpoint::call_token_endpoint,
    engine::{Inner, unavailable},
    gates::Barred,
    slot::{Closed, Looked, Slot},
};

/// A record that does not open will not do so a moment later.
pub(crate) const DAMAGED_PAUSE: Duration = Duration::from_secs(30);
/// Pause where all places at the instance were taken for as long as a call may take, or a task panicked.
const FULL_PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    pub(crate) fn moment(&self) -> Now {
        Now { at: self.clock.now(), jitter: jitter() }
    }

    /// Tells the connection's state machine what happened, and does what follows.
    pub(crate) fn drive(self: &Arc<Self>, slot: &Arc<Slot>, event: Event) {
        let now = self.moment();
        let mut actions = Vec::new();
        slot.act(&mut actions, |state, actions| {
            state.refresher.set_last_used(slot.last_use.at());
            state.refresher.handle(event, now, actions);
        });
        self.run(slot, actions);
    }

    pub(crate) fn run(self: &Arc<Self>, slot: &Arc<Slot>, actions: Vec<Action>) {
        let mut publishes = false;
        for action in actions {
            match action {
                Action::Publish => publishes = true,
                Action::Leave(passage) => {
                    let now = self.moment();
                    if let Some(place) = slot.change_quietly(|state| state.place.take()) {
                        place.leave(passage, now.at, now.jitter);
                    }
                }
                Action::Settle(version) => self.settle(slot, version),
                Action::Note(note) => self.note(slot, note),
                Action::End(gone) => self.end(slot, gone),
                Action::Wake(at) => self.wake(slot, at),
                Action::Enter
                | Action::Load
                | Action::Look
                | Action::Replace { .. }
                | Action::Call { .. }
                | Action::Keep(_) => self.perform_apart(slot, action),
            }
        }
        if publishes {
            crash_point(CrashPoint::PublishBefore);
            slot.change(|_| ());
            if self.held(&slot.id).is_some_and(|held| Arc::ptr_eq(&held, slot)) {
                self.schedule(slot);
            }
        }
    }

    fn perform_apart(self: &Arc<Self>, slot: &Arc<Slot>, action: Action) {
        let look = matches!(action, Action::Look).then(|| {
            slot.change_quietly(|state| {
                state.looks_begun += 1;
                state.looks_begun
            })
        });
        let in_its_place = if_it_panics(&action, self.clock.now());
        let (engine, slot) = (self.clone(), slot.clone());
        self.tasks.spawn_on(
            async move {
                // In a task within, so that a panic becomes an answer like any other.
                let performing = {
                    let (engine, slot) = (engine.clone(), slot.clone());
                    engine.runtime.clone().spawn(async move { engine.perform(&slot, action).await })
                };
                let event = performing.await.unwrap_or(in_its_place);
                let failed = match &event {
                    Event::Loaded(Err(error)) if !matches!(error, StoreError::Damaged { .. }) => {
                        Err(error.clone())
                    }
                    _ => Ok(()),
                };
                engine.drive(&slot, event);
                if let Some(number) = look {
                    slot.looks.send_modify(|looked| {
                        looked.number = looked.number.max(number);
                        looked.outcome = failed;
                    });
                }
            },
            &self.runtime,
        );
    }

    async fn perform(self: &Arc<Self>, slot: &Arc<Slot>, action: Action) -> Event {
        match action {
            Action::Enter => self.enter(slot).await,
            Action::Look | Action::Load => Event::Loaded(self.load(slot).await),
            Action::Replace { expected, next, purpose } => {
                let (before, after) = match purpose {
                    Purpose::Claim => (CrashPoint::ClaimBefore, CrashPoint::ClaimWritten),
                    Purpose::Commit | Purpose::Offer => (CrashPoint::CommitBefore, CrashPoint::CommitWritten),
                    Purpose::Settle => (CrashPoint::ReleaseBefore, CrashPoint::ReleaseWritten),
                };
                crash_point(before);
                let replaced = self.store.replace(expected, &*next).await;
                crash_point(after);
                if purpose == Purpose::Commit && matches!(replaced, Ok(Some(_))) {
                    self.observe_saved(slot.change_quietly(|state| state.unsaved_since.take()));
                }
                Event::Replaced(replaced)
            }
            Action::Call { spends, not_after } => self.call_for(slot, &spends, not_after).await,
            Action::Keep(record) => {
                crash_point(CrashPoint::KeepBefore);
                let kept = self.keep(slot, &record).await;
                crash_point(CrashPoint::KeepDone);
                let answered_at = slot.change_quietly(|state| state.answered_at.take());
                if kept {
                    self.observe_saved(answered_at);
                } else {
                    slot.change_quietly(|state| state.unsaved_since = answered_at); // until the store has it
                }
                Event::Kept(kept)
            }
            // The others are done where they are met.
            _ => Event::Woken,
        }
    }

    async fn enter(self: &Arc<Self>, slot: &Arc<Slot>) -> Event {
        let gate = slot.read(|state| self.gates.of(&state.integration));
        let entering = gate.enter(self.settings.call_timeout(), || self.clock.now());
        let entered = tokio::select! {
            entered = entering => entered,
            () = self.closing.cancelled() => Err(Barred::Full), // what has not begun is not begun any more
        };
        match entered {
            Ok(place) => {
                slot.change_quietly(|state| state.place = Some(place));
                Event::Admitted
            }
            Err(Barred::Until(until)) => Event::Barred { until },
            Err(Barred::Full) => Event::Barred { until: self.clock.now() + FULL_PAUSE },
        }
    }

    /// The record. A grant that began while the integration moved to another client or instance is the new one's: this
    /// slot, which stands for the old one, ends (I-4).
    async fn load(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
    ) -> Result<Option<(bearerd_store::Revision, Box<Connection>)>, StoreError> {
        let Some(Versioned { revision, record }) = self.store.load::<Connection>(slot.id.as_str()).await?
        else {
            return Ok(None);
        };
        let (ended, known) =
            slot.read(|state| (state.refresher.has_ended(), state.connection().exchanges.version.lineage));
        if !ended && record.exchanges.version.lineage != known && self.has_moved(slot).await? {
            self.forget(slot, Closed::Because(unavailable(FULL_PAUSE, "the integration was changed")));
            return Err(StoreError::Refused(format!(
                "the integration of connection {} was changed",
                slot.id
            )));
        }
        Ok(Some((revision, Box::new(record))))
    }

    async fn call_for(&self, slot: &Arc<Slot>, spends: &Spends, not_after: UnixTime) -> Event {
        let (integration, profile) = slot.read(|state| (state.integration.clone(), state.profile()));
        let limit = not_after.since(self.clock.now()).min(self.settings.call_timeout());
        if limit.is_zero() {
            let reason = "the claim for the call ended before it began".to_owned();
            return Event::Answered(Err(TokenCallError::NotSent { reason }));
        }
        let request = match spends {
            Spends::RefreshToken(token) => TokenRequest::RefreshToken(token),
            Spends::ClientCredentials => TokenRequest::ClientCredentials { scopes: &profile.scopes },
        };
        crash_point(CrashPoint::CallBefore);
        let timer = self.metrics.refresh_seconds.start_timer();
        let _crash = crash_while_under_way();
        let mut answer =
            call_token_endpoint(&self.connector, &self.clock, &integration, request, limit).await;
        timer.observe_duration();
        let answered_at = answer.is_ok().then(Instant::now);
        slot.change_quietly(|state| state.answered_at = answered_at);
        crash_point(CrashPoint::CallAnswered);
        if let (Spends::ClientCredentials, Ok(obtained)) = (spends, &mut answer) {
            // There should be none (RFC 6749 §4.4.3), and nobody would use it: the next token is asked for the same way.
            obtained.response.refresh_token = None;
        }
        Event::Answered(answer)
    }

    /// Puts the record on this machine's disk. `false`: it is not there, and the store is all there is.
    async fn keep(&self, slot: &Slot, record: &Connection) -> bool {
        let Some(spill) = &self.place.spill else { return false };
        let sealed = self.store.seal(record);
        let entry = SpillEntry { id: slot.id.clone(), version: record.exchanges.version, sealed };
        match spill.keep(entry).await {
            Ok(()) => true,
            Err(error) => {
                error!(connection.id = %slot.id, %error, "a refreshed grant of connection {} is not in the spill log: {error}", slot.id);
                false
            }
        }
    }

    fn observe_saved(&self, answered_at: Option<Instant>) {
        if let Some(answered_at) = answered_at {
            self.metrics.unsaved_seconds.observe(answered_at.elapsed().as_secs_f64());
        }
    }

    fn settle(&self, slot: &Slot, version: GrantVersion) {
        if let Some(spill) = &self.place.spill {
            spill.settle(&slot.id, version);
        }
    }

    fn wake(self: &Arc<Self>, slot: &Arc<Slot>, at: UnixTime) {
        let (engine, slot) = (self.clone(), slot.clone());
        let pause = at.since(self.clock.now());
        self.tasks.spawn_on(
            async move {
                if engine.closing.is_cancelled() {
                    tokio::time::sleep(pause).await;
                } else {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = engine.closing.cancelled() => {} // the last occasion
                    }
                }
                engine.drive(&slot, Event::Woken);
            },
            &self.runtime,
        );
    }

    fn end(&self, slot: &Arc<Slot>, gone: Gone) {
        let why = match gone {
            Gone::Deleted => LendError::Unknown,
            // Deleted and made anew under the same name; the next caller loads it.
            Gone::Replaced => unavailable(FULL_PAUSE, "the connection was replaced"),
            Gone::Damaged(error) => {
                error!(connection.id = %slot.id, %error, "connection {} is closed: {error}", slot.id);
                unavailable(DAMAGED_PAUSE, "the connection's record cannot be read")
            }
        };
        self.forget(slot, Closed::Because(why));
    }

    fn note(&self, slot: &Slot, note: Note) {
        let id = &slot.id;
        let refreshes = |outcome: &str| self.metrics.refreshes.with_label_values(&[outcome]).inc();
        let commits = |outcome: &str| self.metrics.commits.with_label_values(&[outcome]).inc();
        match note {
            Note::Issued { same_token } => refreshes(if same_token { "same_token" } else { "new_token" }),
            Note::Failed { failure, retry_at } => {
                refreshes(failure.outcome());
                let retry_in_ms =
                    u64::try_from(retry_at.since(self.clock.now()).as_millis()).unwrap_or(u64::MAX);
                warn!(connection.id = %id, retry_in_ms, %failure, "token refresh for connection {id} failed: {failure}");
            }
            Note::FromMemory(error) => {
                refreshes("from_memory");
                // A refresh token that stays is not spent by this, so it risks nothing; it is committed later.
                warn!(connection.id = %id, %error, "refreshing connection {id} from memory: the store did not answer");
            }
            Note::StoreDown(error) => {
                refreshes("store_down");
                warn!(connection.id = %id, %error, "connection {id} is not refreshed: its refresh token would be spent, and the store does not answer");
            }
            Note::Uncertain => {
                refreshes("retried_in_doubt");
                warn!(connection.id = %id, "an exchange of connection {id} was left in doubt; its refresh token is tried again");
            }
            Note::Committed => {
                commits("committed");
                debug!(connection.id = %id, "refreshed connection {id}");
            }
            Note::Lost => {
                commits("lost");
                info!(connection.id = %id, "another writer changed the grant of connection {id}; theirs stands");
            }
            Note::NotTaken { error, kept } => {
                commits("not_taken");
                let also = if kept { "memory and in the spill log" } else { "memory" };
                error!(connection.id = %id, %error, kept, "a refreshed grant of connection {id} is in {also} only; offering it to the store until it is taken");
            }
            Note::Taken => {
                commits("taken_later");
                info!(connection.id = %id, "the store took the grant of connection {id}");
            }
            Note::Died(cause) => {
                error!(connection.id = %id, ?cause, "connection {id} needs a new consent: bearerd connection reauthorize {id}");
            }
        }
    }
}

/// Passes [`CrashPoint::CallSent`] once a call has been under way for a moment, which an instance that holds its answer
/// back makes sure of.
#[cfg(feature = "crash-points")]
fn crash_while_under_way() -> tokio_util::task::AbortOnDropHandle<()> {
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        crash_point(CrashPoint::CallSent);
    }))
}

#[cfg(not(feature = "crash-points"))]
fn crash_while_under_way() -> Option<()> {
    None
}

/// What is told to the state machine where doing what it asked for panicked.
fn if_it_panics(action: &Action, now: UnixTime) -> Event {
    let fault = || "a task panicked".to_owned();
    match action {
        Action::Load | Action::Look => Event::Loaded(Err(StoreError::Unreachable(fault()))),
        Action::Replace { .. } => Event::Replaced(Err(StoreError::OutcomeUnknown(fault()))),
        Action::Call { .. } => Event::Answered(Err(TokenCallError::NoReply { reason: fault() })),
        Action::Keep(_) => Event::Kept(false),
        _ => Event::Barred { until: now + FULL_PAUSE },
    }
}

/// 0 to 1.
pub(crate) fn jitter() -> f64 {
    f64::from(u16::from_be_bytes(*random_bytes::<2>())) / f64::from(u16::MAX)
}

/// The first state of a slot's looks.
impl Default for Looked {
    fn default() -> Self {
        Self { number: 0, outcome: Ok(()) }
    }
}
