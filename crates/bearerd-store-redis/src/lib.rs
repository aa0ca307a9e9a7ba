//! The shared backend: Redis or Valkey, one server. Every write is one Lua script, so it happens as a whole, and it
//! is safe to repeat, so a reply that got lost is asked for again instead of leaving the outcome in doubt.
//!
//! # Keys
//!
//! `bearerd` is the prefix from the settings; the braces are Cluster's hash tags.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `bearerd:{c}:r:<kind>:<id>` | hash | a record of any kind but `connection`: `r` its revision, `v` the sealed bytes |
//! | `bearerd:{<id>}:connection` | hash | a connection, likewise |
//! | `bearerd:{c}:i:<kind>` | sorted set | ids of a kind, all with score 0: their order is that of their bytes |
//! | `bearerd:{c}:x` | sorted set | `<kind>:<id>` of records that expire, by Unix ms |
//! | `bearerd:{c}:log` | stream | the newest changes; an entry's id is the change counter, its field the record |
//! | `bearerd:{c}:w:<write id>`, `bearerd:{<id>}:w:<write id>` | string | a receipt: what a write of the last minute came to |
//!
//! # How
//!
//! - **Revision**: the write's own random 64-bit id. No two writes share one, whatever was deleted, flushed or failed
//!   over in between.
//! - **Receipt**: a script first looks whether a script of the same write id has run, and if so answers as that one
//!   did. A caller whose link drops repeats its call and learns the outcome; a repeat that overtakes the original
//!   makes the original do nothing. [`StoreError::OutcomeUnknown`] remains where the server does not come back in
//!   time.
//! - **Change counter**: the server's time in microseconds, or the last counter plus one if that is later. After a
//!   flush, or on a replica that was promoted without the last writes, a counter from before names no entry of the
//!   log, and the reader is told to read everything again.
//! - **Expiry**: by `PEXPIREAT`. The id stays in its index until the next sweep; a list passes over it.
//! - Reads are plain commands. Nothing is written before the first write.
//! - **Damage**: half a hash, another type, a revision that is none: whatever stands in a record's place and is no
//!   record costs that one, and is told as [`StoreError::Damaged`] or as such an entry of a list.
//!
//! # How Cluster will split this
//!
//! All keys of a script but a connection's lie in the slot of `{c}`, so only writes of connections fall apart. They
//! become three steps: (1) in `{c}`: enter the id into the index and into a set of unsettled ids; (2) in `{<id>}`:
//! the record and the receipt, as now; (3) in `{c}`: append to the log, leave the unsettled set, and the index if
//! the record is gone. The write returns after (3). A writer that dies between leaves the id unsettled; `changes`
//! then tells the unsettled ids too, each time, until a sweep has settled them. Lists already read index and records
//! apart and pass over ids without a record.

mod link;
mod scripts;
mod settings;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bearerd_crypto::{Sealed, random_bytes};
use bearerd_model::UnixTime;
use bearerd_store::{
    Backend, CHANGES_KEPT_MAX, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoreError,
    StoredRecord, Times,
};
use redis::{FromRedisValue, Value, cmd};
use tokio::time::Instant;

pub use crate::settings::{ConnectRedisError, RedisSettings};
use crate::{
    link::{Failure, Link, Request},
    scripts::Script,
};

/// Keeps records in Redis. A call takes at most `connect_timeout` plus twice `response_timeout`; a read that meets
/// no reply, at most that of one connect and one reply.
pub struct RedisBackend {
    link: Link,
    prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    warnings: Vec<String>,
}

impl RedisBackend {
    /// Connects and checks that the server may hold connections. Writes nothing.
    ///
    /// # Errors
    /// [`ConnectRedisError`] in one line: which server, what is wrong, what to do.
    pub async fn connect(settings: RedisSettings) -> Result<Self, ConnectRedisError> {
        let link = settings.link().await?;
        let warnings = settings::check_server(&link).await?;
        Ok(Self {
            link,
            prefix: settings.key_prefix,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            warnings,
        })
    }

    /// What an operator should know about the server, one sentence each; empty is best.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    async fn read<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, StoreError> {
        let value = self.ask(Request::One(command)).await?;
        T::from_redis_value(value).map_err(|_| self.not_ours("an answer"))
    }

    /// What stands in the place of each of `keys`.
    async fn read_records(&self, keys: &[RecordKey]) -> Result<Vec<Option<Content>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new()); // Redis does not answer nothing with nothing
        }
        let mut commands = redis::pipe();
        for key in keys {
            commands.cmd("HMGET").arg(self.record_key(key)).arg("r").arg("v");
        }
        let Value::Array(answers) = self.ask(Request::Many(&commands)).await? else {
            return Err(self.not_ours("an answer"));
        };
        answers.into_iter().map(|answer| self.content(answer)).collect()
    }

    /// Asks something that writes nothing.
    async fn ask(&self, request: Request<'_>) -> Result<Value, StoreError> {
        let answer = match self.link.ask(request).await {
            // The server had closed the link in the meantime, most often: a read may simply be sent again.
            Err(Failure::Lost { timed_out: false, .. }) => self.link.ask(request).await,
            answer => answer,
        };
        answer.map_err(|failure| match failure {
            Failure::NotSent(error) => error,
            Failure::Lost { why, .. } => StoreError::Unreachable(why),
            Failure::Answered(error) => self.link.refusal(&error),
        })
    }

    /// Runs a script until its outcome is known or time is up.
    async fn write(&self, script: &Script, write: &Write<'_>) -> Result<Vec<u8>, StoreError> {
        let deadline = Instant::now() + self.connect_timeout + 2 * self.response_timeout;
        let mut in_doubt: Option<String> = None;
        loop {
            let attempt = self.attempt(script, write, in_doubt.is_some());
            let answer = tokio::time::timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
                Err(Failure::Lost { why: self.link.text("did not answer in time"), timed_out: true })
            });
            let wait = match (answer, &in_doubt) {
                (Ok(Value::BulkString(outcome)), _) => return Ok(outcome),
                (Ok(_), _) => return Err(self.not_ours("an answer")),
                (Err(Failure::NotSent(error)), None) => return Err(error),
                (Err(Failure::Answered(error)), None) => return Err(self.link.refusal(&error)),
                (Err(Failure::Lost { why, timed_out }), None) => {
                    in_doubt = Some(why);
                    timed_out
                }
                (Err(_), Some(_)) => true, // as little known as before
            };
            let pause = if wait { REPEAT_AFTER } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                return Err(StoreError::OutcomeUnknown(in_doubt.unwrap_or_default()));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, script: &Script, write: &Write<'_>, repeated: bool) -> Result<Value, Failure> {
        match self.link.ask(Request::One(&self.command(script.by_hash(), write, repeated))).await {
            Err(Failure::Answered(error)) if error.code() == Some("NOSCRIPT") => {
                self.link.ask(Request::One(&self.command(script.in_full(), write, repeated))).await
            }
            answer => answer,
        }
    }

    fn command(&self, mut script: redis::Cmd, write: &Write<'_>, repeated: bool) -> redis::Cmd {
        let Write { key, id, first, second } = write;
        let (receipt_tag, kind) = (tag(key), key.kind.name());
        script
            .arg(5)
            .arg(self.record_key(key))
            .arg(format!("{}:{{{receipt_tag}}}:w:{id:016x}", self.prefix))
            .arg(self.index_key(key.kind))
            .arg(self.control_key("log"))
            .arg(self.control_key("x"))
            .arg(self.receipt_life_ms())
            .arg(u8::from(repeated))
            .arg(&key.id)
            .arg(format!("{kind}:{}", key.id))
            .arg(u8::from(key.kind.is_watched()))
            .arg(CHANGES_KEPT_MAX)
            .arg(format!("{id:016x}"))
            .arg(first)
            .arg(second);
        script
    }

    /// Far longer than any caller repeats a write or any network holds one back.
    fn receipt_life_ms(&self) -> u64 {
        let life = RECEIPT_LIFE_MIN.max(10 * (self.connect_timeout + self.response_timeout));
        u64::try_from(life.as_millis()).unwrap_or(u64::MAX)
    }

    fn record_key(&self, key: &RecordKey) -> String {
        let RecordKey { kind, id } = key;
        match kind {
            Kind::Connection => format!("{}:{{{id}}}:connection", self.prefix),
            kind => self.control_key(&format!("r:{}:{id}", kind.name())),
        }
    }

    fn index_key(&self, kind: Kind) -> String {
        self.control_key(&format!("i:{}", kind.name()))
    }

    fn control_key(&self, name: &str) -> String {
        format!("{}:{{c}}:{name}", self.prefix)
    }

    fn not_ours(&self, what: &str) -> StoreError {
        StoreError::Refused(self.link.text(&format!(
            "gave {what} that is not bearerd's: give bearerd a key prefix or a database of its own"
        )))
    }

    /// Of the answer for one record. `None`: there is none.
    fn content(&self, answer: Value) -> Result<Option<Content>, StoreError> {
        let answer = match answer {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => {
                return Ok(Some(Err("something else than a record stands in its place")));
            }
            Value::ServerError(error) => return Err(self.link.refusal(&error.into())),
            answer => answer,
        };
        let fields = RecordFields::from_redis_value(answer).map_err(|_| self.not_ours("an answer"))?;
        Ok(match fields {
            (None, None) => None,
            (Some(revision), Some(value)) => Some(match revision_of(&revision) {
                Some(revision) => Ok((revision, Sealed::from_bytes(value))),
                None => Err("its revision is malformed"),
            }),
            (None, Some(_)) => Some(Err("it has no revision")),
            (Some(_), None) => Some(Err("it has no value")),
        })
    }
}

/// `r` and `v` of a record's hash.
type RecordFields = (Option<Vec<u8>>, Option<Vec<u8>>);

/// What stands in a record's place: the record, or what is wrong with it.
type Content = Result<(Revision, Sealed), &'static str>;

/// One write: of which record, under which id, with the two arguments of its script.
struct Write<'a> {
    key: &'a RecordKey,
    id: u64,
    first: &'a [u8],
    second: &'a [u8],
}

impl<'a> Write<'a> {
    fn of(key: &'a RecordKey, first: &'a [u8], second: &'a [u8]) -> Self {
        Self { key, id: u64::from_be_bytes(*random_bytes::<8>()), first, second }
    }
}

#[async_trait]
impl Backend for RedisBackend {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        let found = self.read_records(std::slice::from_ref(key)).await?.pop().flatten();
        let damaged = |fault: &str| StoreError::Damaged { key: key.clone(), fault: fault.to_owned() };
        found.transpose().map_err(damaged)
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        let expires_at =
            times.expires_at.map(|at| at.as_millis().min(EXPIRY_MS_MAX).to_string()).unwrap_or_default();
        let write = Write::of(key, value.as_bytes(), expires_at.as_bytes());
        let outcome = self.write(&scripts::CREATE, &write).await?;
        Ok((outcome == DONE).then_some(Revision(write.id)))
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        _due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        let expected = format!("{:016x}", expected.0);
        let write = Write::of(key, next.as_bytes(), expected.as_bytes());
        let outcome = self.write(&scripts::REPLACE, &write).await?;
        Ok((outcome == DONE).then_some(Revision(write.id)))
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        let expected = format!("{:016x}", expected.0);
        Ok(self.write(&scripts::DELETE, &Write::of(key, b"", expected.as_bytes())).await? == DONE)
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        let outcome = self.write(&scripts::TAKE, &Write::of(key, b"", b"")).await?;
        Ok(outcome.strip_prefix(DONE).map(|value| Sealed::from_bytes(value.to_vec())))
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let mut page: Vec<StoredRecord> = Vec::new();
        let mut from = after.map_or_else(|| b"-".to_vec(), |after| format!("({after}").into_bytes());
        while page.len() < limit {
            let wanted = (limit - page.len()).min(LIST_MAX);
            let mut range = cmd("ZRANGEBYLEX");
            range.arg(self.index_key(kind)).arg(&from).arg("+").arg("LIMIT").arg(0).arg(wanted);
            let ids: Vec<Vec<u8>> = self.read(&range).await?;
            let Some(last) = ids.last() else { break };
            from = [b"(", &last[..]].concat();
            let is_last = ids.len() < wanted;
            // What is no text is no id of ours, and no record goes by it.
            let texts = ids.into_iter().filter_map(|id| String::from_utf8(id).ok());
            let keys: Vec<RecordKey> = texts.map(|id| RecordKey::new(kind, id)).collect();
            let found = self.read_records(&keys).await?;
            for (key, content) in keys.into_iter().zip(found) {
                // An id without a record: expired, or deleted since the index was read.
                if let Some(content) = content {
                    page.push(StoredRecord { id: key.id, content: content.map_err(str::to_owned) });
                }
            }
            if is_last {
                break;
            }
        }
        Ok(page)
    }

    /// One command where nothing was lost: the entry at `after` itself, which proves that the log knows it, and
    /// those behind it.
    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        let log = self.control_key("log");
        if after.0 <= COUNTER_MAX {
            let mut range = cmd("XRANGE");
            range.arg(&log).arg(format!("{}-0", after.0)).arg("+");
            let entries: Vec<LogEntry> = self.read(&range).await?;
            let counters: Option<Vec<u64>> = entries.iter().map(|(at, _)| counter_of(at)).collect();
            let counters = counters.ok_or_else(|| self.not_ours("a change log"))?;
            match counters[..] {
                [] if after.0 == 0 => return Ok(Changes::since(after, [])),
                [first, .., last] | [first @ last] if first == after.0 => {
                    let keys = entries.into_iter().skip(1).filter_map(|(_, fields)| key_of(&fields));
                    return Ok(Changes::since(ChangeCounter(last), keys));
                }
                _ => {}
            }
        }
        let mut newest = cmd("XREVRANGE");
        newest.arg(&log).arg("+").arg("-").arg("COUNT").arg(1);
        let entries: Vec<LogEntry> = self.read(&newest).await?;
        let counter = entries.first().map_or(Some(0), |(at, _)| counter_of(at));
        Ok(Changes::Missed { counter: ChangeCounter(counter.ok_or_else(|| self.not_ours("a change log"))?) })
    }

    async fn due(
        &self,
        _kind: Kind,
        _after: Option<&DueRecord>,
        _until: UnixTime,
        _limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let command = |mut script: redis::Cmd| {
                script.arg(1).arg(self.control_key("x")).arg(&self.prefix);
                script.arg(now.as_millis().min(EXPIRY_MS_MAX)).arg(SWEEP_MAX);
                script
            };
            let by_hash = command(scripts::SWEEP.by_hash());
            let answer = match self.link.ask(Request::One(&by_hash)).await {
                Err(Failure::Answered(error)) if error.code() == Some("NOSCRIPT") => {
                    self.link.ask(Request::One(&command(scripts::SWEEP.in_full()))).await
                }
                answer => answer,
            };
            let answer = answer.map_err(|failure| match failure {
                Failure::NotSent(error) => error,
                Failure::Lost { why, .. } => StoreError::OutcomeUnknown(why),
                Failure::Answered(error) => self.link.refusal(&error),
            })?;
            let part = u64::from_redis_value(answer).map_err(|_| self.not_ours("an answer"))?;
            forgotten += part;
            if part < SWEEP_MAX {
                return Ok(forgotten);
            }
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisBackend({}, prefix {})", self.link.address(), self.prefix)
    }
}

/// An entry of the log: its id, and the record in its one field.
type LogEntry = (String, Vec<String>);

/// `None` for what no script of ours wrote.
fn revision_of(text: &[u8]) -> Option<Revision> {
    let revision = u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
    (format!("{revision:016x}").as_bytes() == text).then_some(Revision(revision))
}

fn counter_of(entry_id: &str) -> Option<u64> {
    entry_id.strip_suffix("-0")?.parse().ok()
}

/// `None` for a kind that a newer bearerd watches and this one does not know.
fn key_of(fields: &[String]) -> Option<RecordKey> {
    let (kind, id) = fields.get(1)?.split_once(':')?;
    Some(RecordKey::new(Kind::from_name(kind)?, id))
}

fn tag(key: &RecordKey) -> &str {
    match key.kind {
        Kind::Connection => &key.id,
        _ => "c",
    }
}

/// What a script answers when it did what was asked; a taken value follows it.
const DONE: &[u8] = b"1";
/// Pause before a write whose outcome is in doubt is asked about again.
const REPEAT_AFTER: Duration = Duration::from_millis(50);
const RECEIPT_LIFE_MIN: Duration = Duration::from_mins(1);
/// Records asked for in one round trip of a list.
const LIST_MAX: usize = 256;
/// Records that one run of the sweep script forgets: Redis does nothing else meanwhile.
const SWEEP_MAX: u64 = 256;
/// Largest integer that Lua and sorted-set scores keep exactly. As Unix ms it is 285 000 years away.
const EXPIRY_MS_MAX: u64 = 1 << 53;
/// As microseconds, the year 2255.
const COUNTER_MAX: u64 = 1 << 53;
