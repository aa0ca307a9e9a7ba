//! Revocation (RFC 7009): tokens that were wiped here end at their instance too. Wiping never waits for that: the tokens
//! go into a durable queue first, whatever process is there works on it, and each is tried for days.
//!
//! A live grant is never killed (product contract §5): right before each call every stored connection is looked through
//! for the token, and `gate` sees to it that none is given it meanwhile. A server may end a whole grant with one of its
//! tokens, so none is revoked either while the grant that it is of is still stored, refreshed or not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bearerd_crash_points::{CrashPoint, crash_point};
use bearerd_crypto::random_bytes;
use bearerd_model::{Connection, ConnectionId, Grant, Integration, RefreshToken, UnixTime};
use bearerd_oauth::{RevocableToken, RevocationError};
use bearerd_store::{DueRecord, Revocation, RevokedGrant, RevokedToken, StoreError, Versioned};
use bearerd_tokens::RevocationCallError;
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{Control, publish::PAGE};

/// Tokens in the queue that are still to be wiped.
#[must_use = "they wait until they are armed"]
pub(crate) struct Queued(Vec<Revocation>);

/// Longest from queueing a token to wiping it. What was not wiped then is a live connection's, and stays.
const WIPED_WITHIN: Duration = Duration::from_secs(30);
/// Longest revocation call. Nobody waits for the answer, and a consent may have to wait for the call.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long the gate counts a call as under way, at the latest: whoever made it may be gone.
const CALL_LEASE: Duration = Duration::from_secs(15);
/// How long an entry belongs to the process that took it: several calls, each after those before it.
const CLAIM: Duration = Duration::from_mins(2);
/// Until the next look at an entry while tokens of its client come in.
const GATE_PAUSE: Duration = Duration::from_secs(2);
/// First and longest pause between two calls for one token.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_hours(4));
/// From then on a token is left to end by itself.
const GIVE_UP_AFTER: Duration = Duration::from_hours(7 * 24);
/// How often the queue is looked at for what other processes put there. The wish of this one is heard at once.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the queue is counted where nothing happens.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// Entries taken at once: with one scan of the connections for each client among them.
const BATCH: usize = 64;
/// Clients whose tokens this process revokes at once.
const CLIENTS_MAX: usize = 64;
/// Everything in the queue is due before: for counting.
const FAR: Duration = Duration::from_hours(30 * 24);

/// What became of an entry.
enum Outcome {
    Revoked,
    /// A live connection holds the token.
    Kept,
    /// The token's own end has come.
    Ended,
    Unsupported,
    /// A connection that may hold the token cannot be read, and has not been for as long as calls are tried.
    Unread,
    Failed(RevocationCallError),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Kept => "kept",
            Self::Ended => "ended",
            Self::Unsupported => "unsupported",
            Self::Unread => "given_up",
            Self::Failed(_) => "failed",
        }
    }
}

/// What this process does about the queue.
#[derive(Debug, Default)]
pub(crate) struct RevocationWork {
    /// Entries that do not open: told of once.
    unreadable: BTreeSet<String>,
    clients: JoinSet<Result<(), StoreError>>,
    /// The gate of each client that is worked on.
    at_work: HashMap<task::Id, String>,
    /// Entries were left because their client was being worked on.
    left: bool,
}

impl RevocationWork {
    /// A client's turn is over.
    fn ended(&mut self, done: Result<(task::Id, Result<(), StoreError>), JoinError>) {
        let id = match done {
            Ok((id, result)) => {
                if let Err(error) = result {
                    warn!(%error, "revocations are tried again: {error}");
                }
                id
            }
            Err(error) => error.id(),
        };
        self.at_work.remove(&id);
    }

    async fn one_ended(&mut self) -> bool {
        let Some(done) = self.clients.join_next_with_id().await else { return false };
        self.ended(done);
        true
    }

    /// Waits for all that was begun. Whether entries were left.
    #[cfg(test)]
    pub(crate) async fn all_ended(&mut self) -> bool {
        while self.one_ended().await {}
        self.left
    }
}

impl Control {
    /// Puts the connection's tokens into the queue: before they are wiped, so that a crash in between loses neither.
    /// They are due once they are armed, or some time later without.
    ///
    /// # Errors
    /// The store.
    pub(crate) async fn queue_revocations(&self, connection: &Connection) -> Result<Queued, StoreError> {
        if connection.grant.is_none() {
            return Ok(Queued(Vec::new()));
        }
        let integration = match self.store.load::<Integration>(connection.integration.as_str()).await {
            Ok(found) => found.map(|found| found.record),
            Err(StoreError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(integration) = integration else {
            warn!(
                connection.id = %connection.id, integration.id = %connection.integration,
                "the tokens of connection {} are wiped but not revoked: integration {} cannot be read",
                connection.id, connection.integration
            );
            return Ok(Queued(Vec::new()));
        };
        let name = Some(name_of(connection));
        self.queue_grant(&connection.id, name, connection.grant.as_ref(), &integration).await
    }

    /// As [`Self::queue_revocations`], for a grant that this client was given. `name`: of one that the connection holds.
    pub(crate) async fn queue_grant(
        &self,
        connection: &ConnectionId,
        name: Option<RevokedGrant>,
        grant: Option<&Grant>,
        integration: &Integration,
    ) -> Result<Queued, StoreError> {
        let mut queued = Vec::new();
        if integration.endpoints.revocation.is_empty() {
            return Ok(Queued(queued));
        }
        let now = self.clock.now();
        for (order, (token, ends_at)) in (0..).zip(grant.into_iter().flat_map(|grant| tokens_of(grant, now)))
        {
            let came_with = match &token {
                RevokedToken::Access(_) => grant.and_then(|grant| grant.refresh_token.as_ref()),
                RevokedToken::Refresh(_) => None,
            };
            let revocation = Revocation {
                id: self.hashes.revoked.hex(text_of(&token).as_bytes()),
                came_with: came_with.map(|token| self.hashes.revoked.hex(token.expose().as_bytes())),
                token,
                connection: connection.clone(),
                grant: name,
                integration: integration.clone(),
                queued_at: now,
                ends_at,
                attempts: 0,
                due_at: now + WIPED_WITHIN + Duration::from_millis(order),
            };
            self.put_revocation(&revocation).await?;
            crash_point(CrashPoint::RevokeQueued);
            queued.push(revocation);
        }
        Ok(Queued(queued))
    }

    /// In the place of an entry for the same token: that one may just be found to be a live connection's.
    async fn put_revocation(&self, revocation: &Revocation) -> Result<(), StoreError> {
        loop {
            let written = match self.store.load::<Revocation>(&revocation.id).await? {
                None => self.store.create(revocation).await?,
                Some(held) => self.store.replace(held.revision, revocation).await?,
            };
            if written.is_some() {
                return Ok(());
            }
        }
    }

    /// The tokens are wiped: their revocation is due now, the refresh token's first (O-41). Written anew: while they
    /// were stored, whoever came upon an entry was right to drop it.
    pub(crate) async fn arm(&self, queued: Queued) {
        let (now, has_any) = (self.clock.now(), !queued.0.is_empty());
        for (before, mut revocation) in (0..).zip(queued.0.into_iter().rev()) {
            revocation.due_at = now - Duration::from_millis(before);
            if let Err(error) = self.put_revocation(&revocation).await {
                warn!(%error, "a token is revoked some {WIPED_WITHIN:?} later");
            }
        }
        if has_any {
            self.work.revocations_due.notify_one();
        }
    }

    /// Works on the queue until `closing` fires. A call under way is left then: it is repeated.
    pub(crate) async fn work_on_revocations(&self, closing: &CancellationToken) {
        let work = async {
            let mut work = RevocationWork::default();
            let mut counted_at = None;
            loop {
                if let Err(error) = self.begin_due(&mut work).await {
                    debug!(%error, "the revocation queue cannot be read"); // `follow` tells of the store
                }
                let pause = tokio::time::sleep(LOOK_EVERY);
                tokio::pin!(pause);
                loop {
                    let now = self.clock.now();
                    if counted_at.is_none_or(|at| now >= at + COUNT_EVERY) {
                        self.count_revocations(now).await;
                        counted_at = Some(now);
                    }
                    tokio::select! {
                        Some(done) = work.clients.join_next_with_id() => {
                            work.ended(done);
                            counted_at = None;
                            if work.left {
                                break;
                            }
                        }
                        () = self.work.revocations_due.notified() => break,
                        () = &mut pause => break,
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = work => {}
        }
    }

    async fn count_revocations(&self, now: UnixTime) {
        let (mut count, mut after) = (0_usize, None::<DueRecord>);
        while let Ok(page) = self.store.due::<Revocation>(after.as_ref(), now + FAR, PAGE).await {
            count += page.len();
            if page.len() < PAGE {
                self.work.metrics.revocations_queued.set(i64::try_from(count).unwrap_or(i64::MAX));
                return;
            }
            after = page.last().cloned();
        }
    }

    /// One look at the queue: begins with whatever is due, page by page. An instance that hangs holds up no other: each
    /// client has a task of its own, and nothing here waits for one while few are at work. How many entries this process
    /// works on.
    pub(crate) async fn begin_due(&self, work: &mut RevocationWork) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let (mut worked_on, mut after) = (0, None::<DueRecord>);
        work.left = false;
        loop {
            while let Some(done) = work.clients.try_join_next_with_id() {
                work.ended(done);
            }
            while work.clients.len() >= CLIENTS_MAX && work.one_ended().await {}
            let due = self.store.due::<Revocation>(after.as_ref(), now, BATCH).await?;
            let mut by_client = BTreeMap::<String, Vec<Versioned<Revocation>>>::new();
            for due in &due {
                match self.take_revocation(&due.id, work).await {
                    Ok(Some(taken)) => {
                        worked_on += 1;
                        by_client.entry(self.gate_id(&taken.record.integration)).or_default().push(taken);
                    }
                    Ok(None) => {} // another process was faster
                    Err(error @ StoreError::Damaged { .. }) => {
                        if work.unreadable.insert(due.id.clone()) {
                            error!(%error, "a token in the revocation queue is not revoked: {error}");
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            for (gate, taken) in by_client {
                let (control, name) = (self.clone(), gate.clone());
                let begun = work.clients.spawn(async move { control.revoke_of_client(&gate, taken).await });
                work.at_work.insert(begun.id(), name);
            }
            if due.len() < BATCH {
                return Ok(worked_on);
            }
            after = due.last().cloned();
        }
    }

    /// Makes a due entry this process's for a while: by compare-and-swap, so that one of many has it. One whose client is
    /// at work here is left where it is.
    async fn take_revocation(
        &self,
        id: &str,
        work: &mut RevocationWork,
    ) -> Result<Option<Versioned<Revocation>>, StoreError> {
        let Some(Versioned { revision, mut record }) = self.store.load::<Revocation>(id).await? else {
            return Ok(None);
        };
        let now = self.clock.now();
        if record.due_at > now {
            return Ok(None);
        }
        let gate = self.gate_id(&record.integration);
        if work.at_work.values().any(|at_work| *at_work == gate) {
            work.left = true;
            return Ok(None);
        }
        record.due_at = now + CLAIM;
        let taken = self.store.replace(revision, &record).await?;
        Ok(taken.map(|revision| Versioned { revision, record }))
    }

    /// Revokes tokens of one client, one after the other: refresh tokens first (O-41).
    async fn revoke_of_client(
        &self,
        gate: &str,
        mut taken: Vec<Versioned<Revocation>>,
    ) -> Result<(), StoreError> {
        taken.sort_by_key(|entry| matches!(entry.record.token, RevokedToken::Access(_)));
        let mut taken = taken.into_iter();
        let Ok(entered) = self.look_at_gate(gate).await? else {
            return self.postpone(taken, GATE_PAUSE, 0).await;
        };
        let Some(held) = self.held_of(taken.as_slice()).await? else {
            for entry in taken {
                self.wait_for_reading(entry).await?;
            }
            return Ok(());
        };
        while let Some(entry) = taken.next() {
            let revocation = &entry.record;
            let outcome = if revocation.ends_at.is_some_and(|at| at <= self.clock.now()) {
                Outcome::Ended
            } else if held.contains(&revocation.id)
                || revocation.came_with.as_ref().is_some_and(|id| held.contains(id))
            {
                Outcome::Kept
            } else {
                match self.is_stored(revocation).await {
                    Ok(false) => {}
                    Ok(true) => {
                        self.settle_revocation(entry, Outcome::Kept).await?;
                        continue;
                    }
                    Err(StoreError::Damaged { .. }) => {
                        self.wait_for_reading(entry).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                let Ok(call) = self.begin_call(gate, entered, CALL_LEASE).await? else {
                    self.postpone([entry], GATE_PAUSE, 0).await?;
                    return self.postpone(taken, GATE_PAUSE, 0).await;
                };
                let outcome = self.revoke(revocation).await;
                crash_point(CrashPoint::RevokeCalled);
                // A call without an answer may still have its effect: the gate stays shut until its time is over.
                if !matches!(outcome, Outcome::Failed(RevocationCallError::NoReply { .. })) {
                    self.end_call(gate, &call).await?;
                }
                outcome
            };
            let is_down = matches!(outcome, Outcome::Failed(_));
            let attempts = revocation.attempts + 1;
            self.settle_revocation(entry, outcome).await?;
            if is_down {
                // Nor would the next ones come through.
                return self.postpone(taken, pause_after(attempts, jitter()), 1).await;
            }
        }
        Ok(())
    }

    /// Whether the grant that the token is of is still stored: it was not wiped after all, and goes on.
    async fn is_stored(&self, revocation: &Revocation) -> Result<bool, StoreError> {
        let Some(grant) = revocation.grant else { return Ok(false) };
        let stored = self.store.load::<Connection>(revocation.connection.as_str()).await?;
        Ok(stored.is_some_and(|stored| name_of(&stored.record) == grant))
    }

    /// Puts an entry off because a connection that may hold its token cannot be read; not for ever.
    async fn wait_for_reading(&self, entry: Versioned<Revocation>) -> Result<(), StoreError> {
        let (revocation, now) = (&entry.record, self.clock.now());
        if revocation.ends_at.is_some_and(|at| at <= now) {
            return self.settle_revocation(entry, Outcome::Ended).await;
        }
        if now >= revocation.queued_at + GIVE_UP_AFTER {
            return self.settle_revocation(entry, Outcome::Unread).await;
        }
        warn!(
            event = "revocation.failed", connection.id = %revocation.connection,
            "{} of former connection {} is not revoked yet: a stored connection cannot be read, and may hold it",
            kind_of(&revocation.token), revocation.connection
        );
        let pause = pause_after(revocation.attempts.saturating_add(1), jitter());
        self.postpone([entry], pause, 1).await
    }

    /// Which of these tokens, or of those that they came with, a stored connection holds. Looks through all of them,
    /// for however many tokens: an index would be one more write with each refresh. `None`: one cannot be read.
    async fn held_of(&self, taken: &[Versioned<Revocation>]) -> Result<Option<BTreeSet<String>>, StoreError> {
        let wanted: BTreeSet<&String> = taken
            .iter()
            .flat_map(|entry| [Some(&entry.record.id), entry.record.came_with.as_ref()])
            .flatten()
            .collect();
        let (mut held, mut after) = (BTreeSet::new(), None::<String>);
        loop {
            let page = self.store.list::<Connection>(after.as_deref(), PAGE).await?;
            if !page.damaged.is_empty() {
                return Ok(None);
            }
            for grant in page.records.iter().filter_map(|found| found.record.grant.as_ref()) {
                let refresh = [&grant.refresh_token, &grant.previous_refresh_token];
                let texts = refresh.into_iter().flatten().map(RefreshToken::expose);
                let ids = texts
                    .chain([grant.access_token.expose()])
                    .map(|text| self.hashes.revoked.hex(text.as_bytes()));
                held.extend(ids.filter(|id| wanted.contains(id)));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(Some(held)),
            }
        }
    }

    async fn revoke(&self, revocation: &Revocation) -> Outcome {
        let token = match &revocation.token {
            RevokedToken::Access(token) => RevocableToken::Access(token),
            RevokedToken::Refresh(token) => RevocableToken::Refresh(token),
        };
        // The client as it is now, where it still is the same: its secret may have been renewed.
        let stored = self.store.load::<Integration>(revocation.integration.id.as_str()).await;
        let stored = stored.ok().flatten().map(|stored| stored.record).filter(|stored| {
            let then = &revocation.integration;
            stored.instance == then.instance && stored.client_id == then.client_id
        });
        let integration = stored.as_ref().unwrap_or(&revocation.integration);
        if integration.endpoints.revocation.is_empty() {
            return Outcome::Unsupported;
        }
        match tokio::time::timeout(CALL_MAX, self.tokens.revoke(integration, token)).await {
            Ok(Ok(())) => Outcome::Revoked,
            Ok(Err(RevocationCallError::Endpoint(RevocationError::Unsupported))) => Outcome::Unsupported,
            Ok(Err(error)) => Outcome::Failed(error),
            Err(_) => {
                let reason = format!("no answer within {} s", CALL_MAX.as_secs());
                Outcome::Failed(RevocationCallError::NoReply { reason })
            }
        }
    }

    async fn settle_revocation(
        &self,
        entry: Versioned<Revocation>,
        outcome: Outcome,
    ) -> Result<(), StoreError> {
        let revocation = &entry.record;
        let (connection, kind) = (&revocation.connection, kind_of(&revocation.token));
        let gives_up = self.clock.now() >= revocation.queued_at + GIVE_UP_AFTER;
        let why = match &outcome {
            Outcome::Failed(failure) if !gives_up => {
                self.work.metrics.revocations.with_label_values(&["failed"]).inc();
                return self.try_again(entry, failure).await;
            }
            Outcome::Failed(failure) => {
                error!(
                    event = "revocation.given_up", connection.id = %connection,
                    integration.id = %revocation.integration.id, kind,
                    "{kind} of former connection {connection} was not revoked in {} days and is left to end by itself: \
                     {failure}; it can be revoked at the instance (System OAuth > Manage Tokens)",
                    GIVE_UP_AFTER.as_secs() / 86_400
                );
                None
            }
            Outcome::Revoked => {
                info!(
                    event = "revocation.done", connection.id = %connection,
                    integration.id = %revocation.integration.id, kind,
                    "{kind} of former connection {connection} revoked"
                );
                None
            }
            Outcome::Kept => Some("a live connection holds it, or the grant that it is of"),
            Outcome::Unread => {
                Some("a connection that may hold it cannot be read; it is left to end by itself")
            }
            Outcome::Ended => Some("it has ended by itself"),
            Outcome::Unsupported => Some("its server does not revoke such tokens"),
        };
        if let Some(why) = why {
            info!(
                event = "revocation.skipped", connection.id = %connection,
                integration.id = %revocation.integration.id, kind,
                "{kind} of former connection {connection} is not revoked: {why}"
            );
        }
        let name = if gives_up && outcome.name() == "failed" { "given_up" } else { outcome.name() };
        self.work.metrics.revocations.with_label_values(&[name]).inc();
        self.store.delete::<Revocation>(&revocation.id, entry.revision).await?;
        Ok(())
    }

    async fn try_again(
        &self,
        entry: Versioned<Revocation>,
        failure: &RevocationCallError,
    ) -> Result<(), StoreError> {
        let Versioned { revision, mut record } = entry;
        record.attempts += 1;
        let asked = match failure {
            RevocationCallError::Endpoint(error) => error.retry_after(),
            _ => None,
        };
        let pause = pause_after(record.attempts, jitter()).max(asked.unwrap_or_default().min(PAUSES.1));
        record.due_at = self.clock.now() + pause;
        let (connection, kind) = (&record.connection, kind_of(&record.token));
        warn!(
            event = "revocation.failed", connection.id = %connection, integration.id = %record.integration.id, kind,
            attempts = record.attempts, retry_in_ms = pause.as_millis(),
            "{kind} of former connection {connection} is not revoked yet: {failure}"
        );
        self.store.replace(revision, &record).await?;
        Ok(())
    }

    /// Puts entries of this process off. One that another writer has changed meanwhile is left to it.
    async fn postpone(
        &self,
        entries: impl IntoIterator<Item = Versioned<Revocation>>,
        pause: Duration,
        attempts: u32,
    ) -> Result<(), StoreError> {
        let due_at = self.clock.now() + pause;
        for Versioned { revision, mut record } in entries {
            record.due_at = due_at;
            record.attempts += attempts;
            self.store.replace(revision, &record).await?;
        }
        Ok(())
    }
}

/// The grant that the connection holds, by a name that stays while it is refreshed.
pub(crate) fn name_of(connection: &Connection) -> RevokedGrant {
    RevokedGrant {
        connection_created_at: connection.created_at,
        lineage: connection.exchanges.version.lineage,
    }
}

/// The tokens that are worth a call, the refresh tokens first, each with its end.
fn tokens_of(grant: &Grant, now: UnixTime) -> Vec<(RevokedToken, Option<UnixTime>)> {
    let refresh = [&grant.refresh_token, &grant.previous_refresh_token].into_iter().flatten();
    let refresh = refresh.map(|token| (RevokedToken::Refresh(token.clone()), grant.refresh_expires_at));
    let access = (grant.has_access_token() && grant.access_expires_at > now)
        .then(|| (RevokedToken::Access(grant.access_token.clone()), Some(grant.access_expires_at)));
    refresh.chain(access).filter(|(_, ends_at)| ends_at.is_none_or(|at| at > now)).collect()
}

fn text_of(token: &RevokedToken) -> &str {
    match token {
        RevokedToken::Access(token) => token.expose(),
        RevokedToken::Refresh(token) => token.expose(),
    }
}

fn kind_of(token: &RevokedToken) -> &'static str {
    match token {
        RevokedToken::Access(_) => "access token",
        RevokedToken::Refresh(_) => "refresh token",
    }
}

/// Doubles with each call, up to hours; between three quarters and five quarters of that, so that what came together
/// does not stay together. `jitter` is 0 to 1.
fn pause_after(attempts: u32, jitter: f64) -> Duration {
    let doubled = PAUSES.0.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(PAUSES.1);
    doubled.mul_f64(0.75 + jitter / 2.0)
}

/// 0 to 1.
pub(crate) fn jitter() -> f64 {
    f64::from(u16::from_be_bytes(*random_bytes::<2>())) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use bearerd_model::{AccessToken, Generation};

    use super::*;

    #[test]
    fn the_pause_doubles_up_to_hours() {
        for (attempts, least_secs, most_secs) in [
            (1, 7, 13),
            (2, 15, 25),
            (3, 30, 50),
            (11, 7_680, 12_800),
            (12, 10_800, 18_000),
            (u32::MAX, 10_800, 18_000),
        ] {
            for jitter in [0.0, 0.5, 1.0] {
                let pause = pause_after(attempts, jitter).as_secs();
                assert!((least_secs..=most_secs).contains(&pause), "{attempts}, {jitter}: {pause} s");
            }
        }
    }

    /// O-41: the refresh token first; what has ended needs no call.
    #[test]
    fn living_tokens_are_queued_in_order() {
        let now = UnixTime::from_secs(1_000);
        let refresh = |text: &str| Some(RefreshToken::parse(text.to_owned()).unwrap());
        let grant = Grant {
            generation: Generation(1),
            access_token: AccessToken::parse("at".to_owned()).unwrap(),
            access_lifetime: Duration::from_mins(30),
            access_expires_at: UnixTime::from_secs(1_001),
            refresh_token: refresh("rt"),
            previous_refresh_token: refresh("before"),
            refresh_expires_at: Some(UnixTime::from_secs(2_000)),
            granted_at: now,
            refreshed_at: now,
            scope: None,
        };
        let texts = |grant: &Grant, at: u64| -> Vec<String> {
            let tokens = tokens_of(grant, UnixTime::from_secs(at));
            tokens.iter().map(|(token, _)| text_of(token).to_owned()).collect()
        };
        assert_eq!(texts(&grant, 1_000), ["rt", "before", "at"]);
        assert_eq!(texts(&grant, 1_001), ["rt", "before"]);
        assert!(texts(&grant, 2_000).is_empty());
        let without = Grant { refresh_token: None, previous_refresh_token: None, ..grant.clone() };
        assert_eq!(texts(&without, 1_000), ["at"]);
        let never_refreshed =
            Grant { access_expires_at: UnixTime::default(), refresh_expires_at: None, ..grant };
        assert_eq!(texts(&never_refreshed, 1_000), ["rt", "before"]);
    }
}
