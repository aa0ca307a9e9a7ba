//! The shared backend: Redis or Valkey; one server, a primary that sentinels watch, or a cluster. Every write of a
//! record is one Lua script, so it happens as a whole, and it is safe to repeat, so a reply that got lost is asked
//! for again instead of leaving the outcome in doubt.
//!
//! # Keys
//!
//! `bearerd` is the prefix from the settings; the braces are Cluster's hash tags.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `bearerd:{c}:r:<kind>:<id>` | hash | a record of any kind but `connection`: `r` its revision, `v` the sealed bytes, `d` when it is due |
//! | `bearerd:{<id>}:connection` | hash | a connection, likewise |
//! | `bearerd:{c}:i:<kind>` | sorted set | ids of a kind, all with score 0: their order is that of their bytes |
//! | `bearerd:{c}:due:<kind>` | sorted set | ids of a kind that are due some time, by Unix ms |
//! | `bearerd:{c}:x` | sorted set | `<kind>:<id>` of records that expire, by Unix ms |
//! | `bearerd:{c}:log` | stream | the newest changes; an entry's id is the change counter, its field the record |
//! | `bearerd:{c}:w:<write id>`, `bearerd:{<id>}:w:<write id>` | string | a receipt: what a write of the last minutes came to |
//! | `bearerd:{c}:u` | sorted set | Cluster: `<id>:<write id>` of connections being written, by Unix ms |
//! | `bearerd:{c}:t` | hash | Cluster: of each such connection, who entered last |
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
//! - **Another primary**, or another life of the same server, may have lost writes that nobody can name. It is known
//!   by its run id and its line of replication (`master_replid`), and makes [`Changes::Missed`] the next answer.
//!   Where the user may not ask `INFO`, each new connection is taken for one.
//! - **Replicas**: where the settings want some, a write of a watched kind, or of what is to be revoked, has a server
//!   connection for itself, and its script and `WAIT` go through it together. Too few in time is
//!   [`StoreError::OutcomeUnknown`]. A repeat whose receipt is found writes to it, so that its own `WAIT` has something
//!   to count.
//! - **Eviction**: a server that may throw records away when it is full is refused at the start. One that is met later,
//!   after a failover, takes no writes until its policy is `noeviction`; reads go on.
//! - **Expiry**: by `PEXPIREAT`. The id stays in its index until the next sweep; a list passes over it.
//! - Reads are plain commands, and one script that writes nothing. Nothing is written before the first write.
//! - **Damage**: half a hash, another type, a revision that is none: whatever stands in a record's place and is no
//!   record costs that one, and is told as [`StoreError::Damaged`] or as such an entry of a list.
//!
//! # In a cluster
//!
//! All keys of a script but a connection's lie in the slot of `{c}`, so only writes of connections fall apart, into
//! three steps: (1) in `{c}`: the write enters into the unsettled set, and a new id into the index; (2) in `{<id>}`:
//! the record and the receipt; (3) in `{c}`: it settles, which appends to the log, brings both indexes into line with
//! what was written, and leaves the unsettled set. The call returns after (3).
//!
//! Writers of one connection may settle in another order than they wrote. So each leaves a token in (1), and what it
//! saw goes into the indexes in (3) only if its token is still the last: nobody else can have written since. Otherwise
//! it leaves a new token, reads the record, and tries again; the last to write settles last.
//!
//! A primary that fails may take a writer's entry with it. Then (3) enters anew, reads the record, and settles, as it
//! does when a repeat finds that all was done.
//!
//! A writer that dies in between leaves its entry. Once the time that a write may take is over, [`Backend::changes`]
//! tells such ids too, each time, until a sweep has settled them for it.
//!
//! Redis runs no script on a slot that is half on one node and half on another (TRYAGAIN): while a slot is moved, writes
//! of its connections wait, and reads go on.

mod cluster;
mod dialer;
mod keys;
mod link;
mod log_reader;
mod scripts;
mod sentinel;
mod servers;
mod settings;
mod write;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bearerd_crypto::Sealed;
use bearerd_model::UnixTime;
use bearerd_store::{
    Backend, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoreError, StoredRecord, Times,
};
use redis::{FromRedisValue, Value, cmd};
use tokio::time::sleep;
use tracing::warn;

pub use crate::settings::{ConnectRedisError, RedisSettings};
use crate::{
    dialer::Pause,
    keys::{CONTROL, Keys, tag},
    link::{Failure, Request},
    log_reader::LogReader,
    scripts::Script,
    servers::Servers,
    write::{Leaves, Replicas, Write, exact_millis, hex, is_done, read_error},
};

/// Keeps records in Redis. A call takes at most `connect_timeout` plus twice `response_timeout`, and what it waits for
/// replicas; in a cluster, a write of a connection twice that. A read that meets no reply takes at most the time of one
/// connect and one reply, twice where another server may take over.
pub struct RedisBackend {
    servers: Arc<Servers>,
    keys: Keys,
    connect_timeout: Duration,
    response_timeout: Duration,
    replicas: Option<Replicas>,
    log_reader: LogReader,
    followed: Mutex<Followed>,
    warnings: Vec<String>,
}

/// What [`Backend::changes`] can vouch for.
struct Followed {
    /// [`Servers::turns`] at the last answer.
    turns: u64,
    /// Where the log stood at the last turn: who is not yet there has not read everything since.
    from: ChangeCounter,
}

impl RedisBackend {
    /// Connects and checks that the servers may hold connections. Writes nothing.
    ///
    /// # Errors
    /// [`ConnectRedisError`] in one line: which server, what is wrong, what to do.
    pub async fn connect(settings: RedisSettings) -> Result<Self, ConnectRedisError> {
        let servers = Arc::new(settings.servers().await?);
        let replicas = (settings.replicas_min > 0)
            .then_some(Replicas { min: settings.replicas_min, timeout: settings.replicas_timeout });
        let warnings = settings::check_servers(&servers, replicas).await?;
        let keys = Keys { prefix: settings.key_prefix };
        let log_reader = LogReader::new(Arc::clone(&servers), keys.log(), settings.response_timeout);
        let followed = Mutex::new(Followed { turns: servers.turns(), from: ChangeCounter(0) });
        Ok(Self {
            servers,
            keys,
            connect_timeout: settings.connect_timeout,
            response_timeout: settings.response_timeout,
            replicas,
            log_reader,
            followed,
            warnings,
        })
    }

    /// What an operator should know about the servers, one sentence each; empty is best.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    async fn read<T: FromRedisValue>(&self, tag: &str, command: &redis::Cmd) -> Result<T, StoreError> {
        let value = self.ask(tag, Request::One(command)).await?;
        T::from_redis_value(value).map_err(|_| self.not_ours("an answer"))
    }

    /// Runs a script that writes nothing.
    async fn read_by(
        &self,
        script: &Script,
        fill: impl Fn(redis::Cmd) -> redis::Cmd,
    ) -> Result<Value, StoreError> {
        let by_hash = fill(script.by_hash());
        match self.ask_patiently(CONTROL, Request::One(&by_hash)).await {
            Err(Failure::Answered { error, .. }) if error.code() == Some("NOSCRIPT") => {
                self.ask(CONTROL, Request::One(&fill(script.in_full()))).await
            }
            answer => answer.map_err(read_error),
        }
    }

    /// What stands in the place of each of `keys`.
    async fn read_records(&self, keys: &[RecordKey]) -> Result<Vec<Option<Content>>, StoreError> {
        let fields = |key: &RecordKey| {
            let mut command = cmd("HMGET");
            command.arg(self.keys.record(key)).arg("r").arg("v");
            command
        };
        let mut answers: Vec<Value> = vec![Value::Nil; keys.len()];
        for (tag, places) in self.by_server(keys).await? {
            let mut commands = redis::pipe();
            for place in &places {
                commands.add_command(fields(&keys[*place]));
            }
            let Value::Array(found) = self.ask(tag, Request::Many(&commands)).await? else {
                return Err(self.not_ours("an answer"));
            };
            for (place, answer) in places.into_iter().zip(found) {
                answers[place] = match answer {
                    // It has moved since the map was made.
                    Value::ServerError(error)
                        if cluster::is_passing(error.code()) && self.servers.is_cluster() =>
                    {
                        self.ask(keys::tag(&keys[place]), Request::One(&fields(&keys[place]))).await?
                    }
                    answer => answer,
                };
            }
        }
        answers.into_iter().map(|answer| self.content(answer)).collect()
    }

    /// The places in `keys` of those that one server has, with a tag that leads to it.
    async fn by_server<'a>(
        &self,
        keys: &'a [RecordKey],
    ) -> Result<impl Iterator<Item = (&'a str, Vec<usize>)> + use<'a>, StoreError> {
        let mut servers: BTreeMap<usize, (&str, Vec<usize>)> = BTreeMap::new();
        for (place, key) in keys.iter().enumerate() {
            let server = match &*self.servers {
                Servers::One(_) => 0,
                Servers::Cluster(cluster) => Arc::as_ptr(&cluster.link(tag(key)).await?).addr(),
            };
            servers.entry(server).or_insert_with(|| (tag(key), Vec::new())).1.push(place);
        }
        Ok(servers.into_values())
    }

    /// Asks something that writes nothing.
    async fn ask(&self, tag: &str, request: Request<'_>) -> Result<Value, StoreError> {
        self.ask_patiently(tag, request).await.map_err(read_error)
    }

    async fn ask_patiently(&self, tag: &str, request: Request<'_>) -> Result<Value, Failure> {
        let mut answer = self.servers.ask(tag, request).await;
        // The server had closed the link in the meantime, most often: a read may simply be sent again.
        if matches!(answer, Err(Failure::Lost { timed_out: false, .. })) {
            answer = self.servers.ask(tag, request).await;
        }
        if let Err(failure) = &answer
            && self.servers.passes(failure)
        {
            sleep(Pause::between(READ_AGAIN_AFTER, READ_AGAIN_AFTER).next()).await;
            answer = self.servers.ask(tag, request).await;
        }
        answer
    }

    /// The log's answer alone.
    async fn changes_in_log(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        let log = self.keys.log();
        if after.0 <= COUNTER_MAX {
            let mut range = cmd("XRANGE");
            range.arg(&log).arg(format!("{}-0", after.0)).arg("+");
            let entries: Vec<LogEntry> = self.read(CONTROL, &range).await?;
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
        let entries: Vec<LogEntry> = self.read(CONTROL, &newest).await?;
        let counter = entries.first().map_or(Some(0), |(at, _)| counter_of(at));
        Ok(Changes::Missed { counter: ChangeCounter(counter.ok_or_else(|| self.not_ours("a change log"))?) })
    }

    /// Whether `changes`, asked for after `after`, may leave out what another primary has lost.
    fn has_turned(&self, after: ChangeCounter, changes: &Changes) -> bool {
        let turns = self.servers.turns();
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.turns != turns {
            *followed = Followed { turns, from: changes.counter() };
            warn!(
                "{}: another server has become a primary, or one was restarted; its last writes may be lost, so \
                 everything is read again",
                self.servers.name()
            );
            return true;
        }
        followed.from = followed.from.min(changes.counter()); // of a log that was emptied since
        after < followed.from
    }

    fn not_ours(&self, what: &str) -> StoreError {
        StoreError::Refused(self.servers.text(&format!(
            "gave {what} that is not bearerd's: give bearerd a key prefix or a database of its own"
        )))
    }

    /// Of the answer for one record. `None`: there is none.
    fn content(&self, answer: Value) -> Result<Option<Content>, StoreError> {
        let answer = match answer {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => {
                return Ok(Some(Err("something else than a record stands in its place")));
            }
            Value::ServerError(error) => return Err(link::refusal(&self.servers.name(), &error.into())),
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
        let text = |at: Option<UnixTime>| at.map(|at| exact_millis(at).to_string()).unwrap_or_default();
        let write = Write {
            value: value.as_bytes(),
            expires_at: text(times.expires_at),
            due_at: text(times.due_at),
            ..Write::of(key, Leaves::NewRecord)
        };
        let outcome = self.write(&scripts::CREATE, &write).await?;
        Ok(is_done(&outcome).then_some(Revision(write.id)))
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        let write = Write {
            value: next.as_bytes(),
            expected: hex(expected.0),
            due_at: due_at.map(|at| exact_millis(at).to_string()).unwrap_or_default(),
            ..Write::of(key, Leaves::Record)
        };
        let outcome = self.write(&scripts::REPLACE, &write).await?;
        Ok(is_done(&outcome).then_some(Revision(write.id)))
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        let write = Write { expected: hex(expected.0), ..Write::of(key, Leaves::Nothing) };
        Ok(is_done(&self.write(&scripts::DELETE, &write).await?))
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        let outcome = self.write(&scripts::TAKE, &Write::of(key, Leaves::Nothing)).await?;
        Ok(outcome.strip_prefix(write::DONE).map(|value| Sealed::from_bytes(value.to_vec())))
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
            range.arg(self.keys.index(kind)).arg(&from).arg("+").arg("LIMIT").arg(0).arg(wanted);
            let ids: Vec<Vec<u8>> = self.read(CONTROL, &range).await?;
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
        let mut changes = self.changes_in_log(after).await?;
        if let Changes::Since { keys, .. } = &mut changes
            && self.servers.is_cluster()
        {
            for (id, _) in self.unsettled(self.write_time_max()).await? {
                let key = RecordKey::new(Kind::Connection, id);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        let counter = changes.counter();
        Ok(if self.has_turned(after, &changes) { Changes::Missed { counter } } else { changes })
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        let mut page: Vec<DueRecord> = Vec::new();
        let mut from = after.map(|after| (exact_millis(after.at), after.id.clone().into_bytes()));
        while page.len() < limit {
            let wanted = (limit - page.len()).min(LIST_MAX);
            let fill = |mut script: redis::Cmd| {
                script.arg(1).arg(self.keys.due(kind)).arg(exact_millis(until)).arg(wanted);
                match &from {
                    Some((at, id)) => script.arg(at).arg(id),
                    None => script.arg("").arg(""),
                };
                script
            };
            let found = self.read_by(&scripts::DUE, fill).await?;
            let found =
                Vec::<(Vec<u8>, u64)>::from_redis_value(found).map_err(|_| self.not_ours("an index"))?;
            let is_last = found.len() < wanted;
            for (id, at) in found {
                from = Some((at, id.clone()));
                // What is no text is no id of ours.
                if let Ok(id) = String::from_utf8(id) {
                    page.push(DueRecord { at: UnixTime::from_millis(at), id });
                }
            }
            if is_last {
                break;
            }
        }
        Ok(page)
    }

    async fn changed(&self, after: ChangeCounter) {
        self.log_reader.changed(after.0).await;
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        // What is not settled keeps nothing from being forgotten.
        let settled = if self.servers.is_cluster() { self.settle_for_others().await } else { Ok(()) };
        let mut forgotten = 0;
        loop {
            let command = |mut script: redis::Cmd| {
                script.arg(1).arg(self.keys.expiries()).arg(&self.keys.prefix);
                script.arg(exact_millis(now)).arg(SWEEP_MAX);
                script
            };
            let by_hash = command(scripts::SWEEP.by_hash());
            let answer = match self.servers.ask(CONTROL, Request::Write(&by_hash)).await {
                Err(Failure::Answered { error, .. }) if error.code() == Some("NOSCRIPT") => {
                    self.servers.ask(CONTROL, Request::Write(&command(scripts::SWEEP.in_full()))).await
                }
                answer => answer,
            };
            let answer = answer.map_err(|failure| match failure {
                Failure::Lost { why, .. } => StoreError::OutcomeUnknown(why),
                failure => read_error(failure),
            })?;
            let part = u64::from_redis_value(answer).map_err(|_| self.not_ours("an answer"))?;
            forgotten += part;
            if part < SWEEP_MAX {
                return settled.map(|()| forgotten);
            }
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisBackend({}, prefix {})", self.servers.name(), self.keys.prefix)
    }
}

/// An entry of the log: its id, and the record in its one field.
type LogEntry = (String, Vec<String>);

/// `None` for what no script of ours wrote.
fn revision_of(text: &[u8]) -> Option<Revision> {
    let revision = u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
    (hex(revision).as_bytes() == text).then_some(Revision(revision))
}

fn counter_of(entry_id: &str) -> Option<u64> {
    entry_id.strip_suffix("-0")?.parse().ok()
}

/// `None` for a kind that a newer bearerd watches and this one does not know.
fn key_of(fields: &[String]) -> Option<RecordKey> {
    let (kind, id) = fields.get(1)?.split_once(':')?;
    Some(RecordKey::new(Kind::from_name(kind)?, id))
}

/// Records asked for in one round trip of a list.
const LIST_MAX: usize = 256;
/// Records that one run of the sweep script forgets: Redis does nothing else meanwhile.
const SWEEP_MAX: u64 = 256;
/// As microseconds, the year 2255.
const COUNTER_MAX: u64 = 1 << 53;
/// Pause before a read that met a server which another is about to replace.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);
