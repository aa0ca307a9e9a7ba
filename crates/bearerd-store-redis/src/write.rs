//! Writes: run until their outcome is known, confirmed by replicas where that is asked for, and in a cluster in
//! three steps.

use std::time::Duration;

use bearerd_crypto::random_bytes;
use bearerd_model::UnixTime;
use bearerd_store::{CHANGES_KEPT_MAX, Kind, RecordKey, StoreError};
use redis::{Cmd, FromRedisValue, Value, cmd};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    RedisBackend,
    dialer::Pause,
    keys::{self, CONTROL},
    link::{self, Failure, Request},
    scripts::{self, Script, WriteScript},
};

/// One write of a record.
pub(crate) struct Write<'a> {
    pub(crate) key: &'a RecordKey,
    /// The receipt's name and the record's revision.
    pub(crate) id: u64,
    pub(crate) value: &'a [u8],
    /// The revision that must be found, as hex.
    pub(crate) expected: String,
    /// Unix ms; empty: never.
    pub(crate) expires_at: String,
    /// Likewise.
    pub(crate) due_at: String,
    /// What there is of the record if the write is done.
    pub(crate) leaves: Leaves,
}

/// What a write leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaves {
    NewRecord,
    Record,
    Nothing,
}

/// What replicas must confirm.
#[derive(Clone, Copy)]
pub(crate) struct Replicas {
    pub(crate) min: u32,
    pub(crate) timeout: Duration,
}

/// What a script came to, and how many replicas have it, where that was asked.
struct Ran {
    outcome: Vec<u8>,
    confirmed_by: Option<i64>,
}

/// What a settling writer knows of the record.
struct Seen {
    exists: bool,
    due_at: String,
}

/// Adds keys and arguments to a script's command; told whether it is sent again.
type Fill<'a> = &'a (dyn Fn(Cmd, bool) -> Cmd + Sync);

impl<'a> Write<'a> {
    pub(crate) fn of(key: &'a RecordKey, leaves: Leaves) -> Self {
        Self {
            key,
            id: random_id(),
            value: b"",
            expected: String::new(),
            expires_at: String::new(),
            due_at: String::new(),
            leaves,
        }
    }
}

impl RedisBackend {
    /// What the script answered.
    pub(crate) async fn write(&self, script: &WriteScript, write: &Write<'_>) -> Result<Vec<u8>, StoreError> {
        let wanted = self.replicas.filter(|_| is_confirmed(write.key.kind));
        let tag = keys::tag(write.key);
        let ran = if self.servers.is_cluster() && tag != CONTROL {
            self.write_apart(&script.apart, write, wanted).await?
        } else {
            let keys = &self.keys;
            let fill = |mut script: Cmd, repeated| {
                script.arg(6).arg(keys.record(write.key)).arg(keys.receipt(write.key, write.id));
                script.arg(keys.index(write.key.kind)).arg(keys.log()).arg(keys.expiries());
                script.arg(keys.due(write.key.kind));
                self.arguments(script, write, repeated)
            };
            self.run(tag, &script.whole, wanted, self.deadline(wanted), &fill).await?
        };
        if is_done(&ran.outcome) {
            enough(wanted, ran.confirmed_by, &self.servers.name())?;
        }
        Ok(ran.outcome)
    }

    fn arguments(&self, mut script: Cmd, write: &Write<'_>, repeated: bool) -> Cmd {
        let Write { key, id, value, expected, expires_at, due_at, .. } = write;
        script
            .arg(millis(self.receipt_life()))
            .arg(u8::from(repeated))
            .arg(&key.id)
            .arg(name(key))
            .arg(u8::from(key.kind.is_watched()))
            .arg(CHANGES_KEPT_MAX)
            .arg(hex(*id))
            .arg(value)
            .arg(expected)
            .arg(expires_at)
            .arg(due_at);
        script
    }

    /// The write of a connection in a cluster: it enters, is written, and settles.
    async fn write_apart(
        &self,
        script: &Script,
        write: &Write<'_>,
        wanted: Option<Replicas>,
    ) -> Result<Ran, StoreError> {
        let Write { key, id, .. } = write;
        let (member, token) = (format!("{}:{}", key.id, hex(*id)), hex(*id));
        let is_new = write.leaves == Leaves::NewRecord;
        let deadline = self.deadline(wanted);
        self.enter(&member, &key.id, &token, is_new, deadline).await.map_err(|error| match error {
            StoreError::OutcomeUnknown(why) => StoreError::Unreachable(why), // of the record, nothing is written
            error => error,
        })?;
        let fill = |mut script: Cmd, repeated| {
            script.arg(2).arg(self.keys.record(key)).arg(self.keys.receipt(key, *id));
            self.arguments(script, write, repeated)
        };
        let ran = self.run(keys::tag(key), script, wanted, deadline, &fill).await;
        let is_written = match &ran {
            Ok(ran) => is_done(&ran.outcome),
            Err(StoreError::OutcomeUnknown(_)) => return ran, // left to the sweep, which looks what came of it
            Err(_) => false,
        };
        if !is_written {
            // If this fails, the sweep does it.
            drop(self.withdraw(&member, &key.id, &token, self.deadline(None)).await);
            return ran;
        }
        let seen = Seen { exists: write.leaves != Leaves::Nothing, due_at: write.due_at.clone() };
        // A lost entry of the index would hide the connection. All else that is kept there may be late or early.
        let wanted = wanted.filter(|_| is_new);
        self.settle(key, &member, token, seen, wanted).await.map_err(|error| {
            let why = match error {
                StoreError::OutcomeUnknown(why) => why,
                error => error.to_string(),
            };
            StoreError::OutcomeUnknown(format!(
                "{key} is written, but its place in the index is in doubt: {why}"
            ))
        })?;
        ran
    }

    async fn enter(
        &self,
        member: &str,
        id: &str,
        token: &str,
        is_new: bool,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let keys = &self.keys;
        let fill = |mut script: Cmd, _repeated| {
            script.arg(3).arg(keys.unsettled()).arg(keys.tokens()).arg(keys.index(Kind::Connection));
            script.arg(member).arg(id).arg(token).arg(u8::from(is_new));
            script
        };
        self.run(CONTROL, &scripts::ENTER, None, deadline, &fill).await.map(drop)
    }

    async fn withdraw(
        &self,
        member: &str,
        id: &str,
        token: &str,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let keys = &self.keys;
        let fill = |mut script: Cmd, _repeated| {
            script.arg(2).arg(keys.unsettled()).arg(keys.tokens()).arg(member).arg(id).arg(token);
            script
        };
        self.run(CONTROL, &scripts::WITHDRAW, None, deadline, &fill).await.map(drop)
    }

    /// Tells the change and brings the indexes into line with the record. If the server knows nothing of the writer's
    /// entry, that was lost with another primary, or this is a repeat of what was done: which of them cannot be told,
    /// so all is done again.
    async fn settle(
        &self,
        key: &RecordKey,
        member: &str,
        mut token: String,
        mut seen: Seen,
        wanted: Option<Replicas>,
    ) -> Result<(), StoreError> {
        let deadline = self.deadline(wanted);
        let keys = &self.keys;
        let mut is_told = false;
        loop {
            let next_token = hex(random_id());
            let fill = |mut script: Cmd, _repeated| {
                script.arg(5).arg(keys.unsettled()).arg(keys.tokens()).arg(keys.index(key.kind));
                script.arg(keys.log()).arg(keys.due(key.kind));
                script.arg(member).arg(&key.id).arg(name(key)).arg(&token).arg(&next_token);
                script.arg(u8::from(!is_told)).arg(CHANGES_KEPT_MAX);
                script.arg(u8::from(seen.exists)).arg(&seen.due_at);
                script
            };
            let ran = self.run(CONTROL, &scripts::SETTLE, wanted, deadline, &fill).await?;
            if is_done(&ran.outcome) {
                return enough(wanted, ran.confirmed_by, &self.servers.name());
            }
            if Instant::now() >= deadline {
                return Err(StoreError::OutcomeUnknown(format!(
                    "{key} is being written by others all the time"
                )));
            }
            is_told = true;
            token = next_token;
            seen = self.look(key).await?;
        }
    }

    async fn look(&self, key: &RecordKey) -> Result<Seen, StoreError> {
        let mut fields = cmd("HMGET");
        fields.arg(self.keys.record(key)).arg("r").arg("v").arg("d");
        let found = match self.servers.ask(keys::tag(key), Request::One(&fields)).await {
            Ok(found) => found,
            Err(Failure::Answered { error, .. }) if error.code() == Some("WRONGTYPE") => {
                return Ok(Seen { exists: true, due_at: String::new() }); // damaged, and listed as such
            }
            Err(failure) => return Err(read_error(failure)),
        };
        let found =
            Vec::<Option<Vec<u8>>>::from_redis_value(found).map_err(|_| self.not_ours("an answer"))?;
        let due_at = found.get(2).cloned().flatten().and_then(|due_at| String::from_utf8(due_at).ok());
        let due_at = due_at.filter(|due_at| due_at.bytes().all(|byte| byte.is_ascii_digit()));
        let exists = found.iter().any(Option::is_some);
        Ok(Seen { exists, due_at: due_at.unwrap_or_default() })
    }

    /// Ids of connections whose writers have not settled, though the time they had is over; with it, what they
    /// entered.
    pub(crate) async fn unsettled(
        &self,
        for_longer_than: Duration,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let mut range = cmd("ZRANGE");
        range.arg(self.keys.unsettled()).arg(0).arg(UNSETTLED_MAX - 1).arg("WITHSCORES");
        let members: Vec<String> = self.read(CONTROL, &range).await?;
        if members.is_empty() {
            return Ok(vec![]);
        }
        let [seconds, micros]: [u64; 2] = self.read(CONTROL, &cmd("TIME")).await?;
        let now = seconds * 1_000 + micros / 1_000;
        let is_over = |entered_at: &str| {
            entered_at.parse::<u64>().is_ok_and(|at| at.saturating_add(millis(for_longer_than)) < now)
        };
        let over = members.chunks_exact(2).filter(|pair| is_over(&pair[1]));
        Ok(over.filter_map(|pair| Some((pair[0].rsplit_once(':')?.0.to_owned(), pair[0].clone()))).collect())
    }

    /// Settles what writers left behind. A record that cannot be settled does not hold up the others; the first
    /// error is told at the end.
    pub(crate) async fn settle_for_others(&self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for (id, member) in self.unsettled(self.receipt_life()).await? {
            let (key, token) = (RecordKey::new(Kind::Connection, id), hex(random_id()));
            // Where this fails, it fails for all: the keys are shared.
            self.enter(&member, &key.id, &token, false, self.deadline(None)).await?;
            let settled = match self.look(&key).await {
                Ok(seen) => self.settle(&key, &member, token, seen, None).await,
                Err(error) => Err(error),
            };
            outcome = outcome.and(settled);
        }
        outcome
    }

    /// Runs a script until its outcome is known or time is up.
    async fn run(
        &self,
        tag: &str,
        script: &Script,
        wanted: Option<Replicas>,
        deadline: Instant,
        fill: Fill<'_>,
    ) -> Result<Ran, StoreError> {
        let mut pause = Pause::between(REPEAT_AFTER, REPEAT_AFTER_MAX);
        let mut in_doubt: Option<String> = None;
        loop {
            let attempt = self.attempt(tag, script, wanted, in_doubt.is_some(), fill);
            let answer = timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
                Err(Failure::Lost { why: self.servers.text("did not answer in time"), timed_out: true })
            });
            let (wait, error) = match (answer, &in_doubt) {
                (Ok((Value::BulkString(outcome), confirmed_by)), _) => {
                    return Ok(Ran { outcome, confirmed_by });
                }
                (Ok(_), _) => return Err(self.not_ours("an answer")),
                (Err(Failure::Lost { why, timed_out }), None) => {
                    in_doubt = Some(why.clone());
                    (timed_out, StoreError::OutcomeUnknown(why))
                }
                (Err(failure), None) => {
                    let passes = self.servers.passes(&failure);
                    let error = read_error(failure);
                    if !passes {
                        return Err(error);
                    }
                    (true, error)
                }
                (Err(_), Some(why)) => (true, StoreError::OutcomeUnknown(why.clone())), // as little known as before
            };
            let pause = if wait { pause.next() } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        tag: &str,
        script: &Script,
        wanted: Option<Replicas>,
        repeated: bool,
        fill: Fill<'_>,
    ) -> Result<(Value, Option<i64>), Failure> {
        match self.ask_once(tag, fill(script.by_hash(), repeated), wanted).await {
            Err(Failure::Answered { error, .. }) if error.code() == Some("NOSCRIPT") => {
                self.ask_once(tag, fill(script.in_full(), repeated), wanted).await
            }
            answer => answer,
        }
    }

    async fn ask_once(
        &self,
        tag: &str,
        script: Cmd,
        wanted: Option<Replicas>,
    ) -> Result<(Value, Option<i64>), Failure> {
        let Some(Replicas { min, timeout }) = wanted else {
            return Ok((self.servers.ask(tag, Request::Write(&script)).await?, None));
        };
        let mut wait = cmd("WAIT");
        wait.arg(min).arg(millis(timeout));
        let patience = self.response_timeout + timeout;
        let [outcome, confirmed_by] = self.servers.ask_alone(tag, &script, &wait, patience).await?;
        let confirmed_by = if let Value::Int(count) = confirmed_by { count } else { 0 };
        Ok((outcome, Some(confirmed_by)))
    }

    fn deadline(&self, wanted: Option<Replicas>) -> Instant {
        let waiting = wanted.map_or(Duration::ZERO, |replicas| replicas.timeout);
        Instant::now() + self.connect_timeout + 2 * self.response_timeout + waiting
    }

    /// What a writer has at most: of the record, and to settle.
    pub(crate) fn write_time_max(&self) -> Duration {
        let waiting = self.replicas.map_or(Duration::ZERO, |replicas| replicas.timeout);
        2 * (self.connect_timeout + 2 * self.response_timeout + waiting)
    }

    /// Far longer than any caller repeats a write or any network holds one back.
    fn receipt_life(&self) -> Duration {
        RECEIPT_LIFE_MIN.max(10 * self.write_time_max())
    }
}

/// Whether replicas must have a write of this kind. What is watched is what operators and callers rely on: a grant
/// that was refreshed, a key that was deleted. A revocation that is lost leaves a token alive.
fn is_confirmed(kind: Kind) -> bool {
    kind.is_watched() || matches!(kind, Kind::Revocation | Kind::RevocationGate)
}

/// Whether as many replicas as asked have what is written.
fn enough(wanted: Option<Replicas>, confirmed_by: Option<i64>, servers: &str) -> Result<(), StoreError> {
    let (Some(Replicas { min, .. }), Some(count)) = (wanted, confirmed_by) else { return Ok(()) };
    if count >= i64::from(min) {
        return Ok(());
    }
    Err(StoreError::OutcomeUnknown(format!(
        "written on the primary, but only {count} of {min} replicas have it ({servers})"
    )))
}

/// What a failure says of a call that, if it failed so, has written nothing.
pub(crate) fn read_error(failure: Failure) -> StoreError {
    match failure {
        Failure::NotSent(error) => error,
        Failure::Lost { why, .. } => StoreError::Unreachable(why),
        Failure::Answered { error, by } => link::refusal(&by, &error),
    }
}

pub(crate) fn is_done(outcome: &[u8]) -> bool {
    outcome.starts_with(DONE)
}

/// Unix ms that scripts and sorted sets keep exactly.
pub(crate) fn exact_millis(at: UnixTime) -> u64 {
    at.as_millis().min(MILLIS_MAX)
}

pub(crate) fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn name(key: &RecordKey) -> String {
    format!("{}:{}", key.kind.name(), key.id)
}

fn random_id() -> u64 {
    u64::from_be_bytes(*random_bytes::<8>())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a script answers when it did what was asked; a taken value follows it.
pub(crate) const DONE: &[u8] = b"1";
/// Pauses before a write whose outcome is in doubt is asked about again.
const REPEAT_AFTER: Duration = Duration::from_millis(50);
const REPEAT_AFTER_MAX: Duration = Duration::from_millis(500);
const RECEIPT_LIFE_MIN: Duration = Duration::from_mins(1);
/// Unsettled writes that are looked at in one go: far more than are ever under way.
const UNSETTLED_MAX: usize = 4_096;
/// Largest integer that Lua and sorted-set scores keep exactly; as Unix ms it is 285 000 years away.
const MILLIS_MAX: u64 = 1 << 53;
