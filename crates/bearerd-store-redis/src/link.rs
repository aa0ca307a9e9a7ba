//! The connection to one server, or to the primary that sentinels name: made when it is needed, shared by all calls,
//! dropped at the first sign of trouble or of another primary.
//!
//! Not `redis::aio::ConnectionManager`, for two reasons. It keeps a connection on which replies time out, so a link
//! whose packets vanish stays for as long as TCP retries, a quarter of an hour; and it does not tell a command that
//! was never sent from one whose reply was lost, which is the difference between "nothing was written" and "unknown".
//! Nor redis's `SentinelClient`: it asks for the primary when it connects and never again (redis-rs issue 1438).
//!
//! Beside the shared connection there are some that one call has for itself alone: `WAIT` counts for the connection's
//! own last write, so the write and its `WAIT` must have gone through the same one.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_store::StoreError;
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cmd,
};
use tokio::{sync::Mutex, time::timeout};
use tracing::error;

use crate::{
    dialer::{Address, Dialer},
    sentinel::{Listening, Sentinels},
};

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    One(&'a Cmd),
    /// What writes: not sent to a server that may throw it away.
    Write(&'a Cmd),
    Many(&'a Pipeline),
}

/// Why there is no answer, or none that helps.
pub(crate) enum Failure {
    /// There was no connection to send it on.
    NotSent(StoreError),
    /// It was sent, or may have been, and no reply came.
    Lost { why: String, timed_out: bool },
    /// The server, `Redis at host:port`, answered with an error.
    Answered { error: RedisError, by: String },
}

pub(crate) struct Link {
    dialer: Dialer,
    way: Way,
    slot: Mutex<Slot>,
    /// Attempts to connect, so far. Lets calls that waited for the same failed attempt share its error instead of
    /// each waiting for one of its own.
    attempts: AtomicU64,
    /// How often another server, or another life of the same one, was met than at the connection before.
    turns: AtomicU64,
    /// Connections for one call alone that are not in use.
    idle: StdMutex<Vec<Open>>,
    /// Servers that may throw records away when they are full, as last seen.
    evicting: StdMutex<BTreeSet<Address>>,
}

/// Which server it is.
enum Way {
    Fixed(Address),
    Sentinels { sentinels: Arc<Sentinels>, _listening: Listening },
}

#[derive(Default)]
struct Slot {
    open: Option<Open>,
    /// Which connection this is: a call drops only the one that failed it.
    number: u64,
    failure: Option<StoreError>,
    history: Option<History>,
}

/// A connection to a server that was seen to be what is looked for.
#[derive(Clone)]
pub(crate) struct Open {
    connection: MultiplexedConnection,
    at: Address,
    number: u64,
    /// What [`Sentinels::word`] was when the primary was asked for.
    word: u64,
}

/// Names the data that a server holds: another run of it, or another line of replication, may have lost writes.
/// `None` where the server does not tell, which is taken for another one each time.
type History = Option<[String; 2]>;

impl Link {
    pub(crate) fn fixed(dialer: Dialer, address: Address) -> Self {
        Self::new(dialer, Way::Fixed(address))
    }

    pub(crate) fn through(dialer: Dialer, sentinels: Sentinels) -> Self {
        let sentinels = Arc::new(sentinels);
        let listening = Listening::begin(&sentinels);
        Self::new(dialer, Way::Sentinels { sentinels, _listening: listening })
    }

    fn new(dialer: Dialer, way: Way) -> Self {
        Self {
            dialer,
            way,
            slot: Mutex::default(),
            attempts: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            idle: StdMutex::default(),
            evicting: StdMutex::default(),
        }
    }

    /// `Redis at host:port`, or by the name that sentinels know it under.
    pub(crate) fn name(&self) -> String {
        match &self.way {
            Way::Fixed(address) => format!("Redis at {address}"),
            Way::Sentinels { sentinels, .. } => sentinels.name(),
        }
    }

    /// A sentence about the server.
    pub(crate) fn text(&self, what: &str) -> String {
        format!("{} {what}", self.name())
    }

    /// Whether another server may take this one's place.
    pub(crate) fn moves(&self) -> bool {
        matches!(self.way, Way::Sentinels { .. })
    }

    /// Grows each time that writes may have been lost with a server.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    /// The answer; to [`Request::Many`], an array of answers, in which an error stands for its own command only.
    pub(crate) async fn ask(&self, request: Request<'_>) -> Result<Value, Failure> {
        let open = self.open().await.map_err(Failure::NotSent)?;
        if matches!(request, Request::Write(_)) {
            self.keeps_writes(&open).await?;
        }
        let mut connection = open.connection.clone();
        match self.unless_left(&open, send(&mut connection, request)).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failure(&open, error).await),
        }
    }

    /// Fails where [`Request::Write`] would, before it is sent.
    pub(crate) async fn takes_writes(&self) -> Result<(), Failure> {
        let open = self.open().await.map_err(Failure::NotSent)?;
        self.keeps_writes(&open).await
    }

    /// Refuses for a server that was seen to evict, unless it has been mended since.
    async fn keeps_writes(&self, open: &Open) -> Result<(), Failure> {
        if !self.evicting().contains(&open.at) {
            return Ok(());
        }
        let (mut connection, mut question) = (open.connection.clone(), cmd("INFO"));
        question.arg("memory");
        let answer = match self.unless_left(open, send(&mut connection, Request::One(&question))).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match self.failure(open, error).await {
                    // The write itself was not sent.
                    Failure::Lost { why, .. } => Failure::NotSent(StoreError::Unreachable(why)),
                    failure => failure,
                });
            }
        };
        match self.note_policy(&open.at, &text_of(&answer)) {
            Some(refusal) => Err(Failure::NotSent(StoreError::Refused(refusal))),
            None => Ok(()),
        }
    }

    /// Keeps in mind whether the server at `at` evicts, by what it says of itself. The sentence on it, if it does,
    /// which is logged when it is news.
    fn note_policy(&self, at: &Address, info: &str) -> Option<String> {
        let Some(policy) = evicting_policy(info) else {
            self.evicting().remove(at);
            return None;
        };
        let sentence = format!(
            "Redis at {at} may throw connections away when it is full (maxmemory-policy {policy}): \
             set `maxmemory-policy noeviction`"
        );
        if self.evicting().insert(at.clone()) {
            error!("{sentence}; until then nothing is written to it");
        }
        Some(sentence)
    }

    fn evicting(&self) -> MutexGuard<'_, BTreeSet<Address>> {
        self.evicting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers to `command`, which writes, and to `then`, sent together on a connection that no other call uses
    /// meanwhile and that is given up after the least trouble. `asking`: of a node that is taking the slot over.
    pub(crate) async fn ask_alone(
        &self,
        asking: bool,
        command: &Cmd,
        then: &Cmd,
        response_timeout: Duration,
    ) -> Result<[Value; 2], Failure> {
        let mut alone = self.alone().await?;
        if let Err(failure) = self.keeps_writes(&alone).await {
            self.give_back(alone);
            return Err(failure);
        }
        alone.connection.set_response_timeout(response_timeout);
        let mut commands = redis::pipe();
        if asking {
            commands.add_command(cmd("ASKING"));
        }
        commands.add_command(command.clone()).add_command(then.clone());
        let mut connection = alone.connection.clone();
        let asked = connection.req_packed_commands(&commands, 0, commands.len());
        let mut answers = match self.unless_left(&alone, asked).await {
            Ok(answers) => answers,
            Err(error) => return Err(self.failure(&alone, error).await),
        };
        let (after, answer) = (answers.pop().unwrap_or(Value::Nil), answers.pop().unwrap_or(Value::Nil));
        if let Value::ServerError(error) = answer {
            let failure = self.failure(&alone, error.into()).await;
            self.give_back(alone);
            return Err(failure);
        }
        self.give_back(alone);
        Ok([answer, after])
    }

    /// A connection to the same server as the shared one, for one user alone.
    pub(crate) async fn alone(&self) -> Result<Open, Failure> {
        let open = self.open().await.map_err(Failure::NotSent)?;
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|kept| kept.number == open.number);
            idle.pop()
        };
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let dialling = timeout(self.dialer.connect_timeout, self.dialer.dial(&open.at));
        match self.unless_left(&open, async { Ok(dialling.await) }).await {
            Ok(Ok(Ok(connection))) => Ok(Open { connection, ..open }),
            Ok(Ok(Err(error))) => {
                self.drop_connection(open.number).await;
                Err(Failure::NotSent(not_connected(&format!("Redis at {}", open.at), &error)))
            }
            Ok(Err(_elapsed)) => {
                self.drop_connection(open.number).await;
                let why = format!("Redis at {} did not accept a connection in time", open.at);
                Err(Failure::NotSent(StoreError::Unreachable(why)))
            }
            Err(error) => {
                self.drop_connection(open.number).await;
                let why = format!("Redis at {} {error}", open.at);
                Err(Failure::NotSent(StoreError::Unreachable(why)))
            }
        }
    }

    /// Asks on a connection of [`Self::alone`], which is left to its user whatever comes of it.
    pub(crate) async fn ask_on(
        &self,
        alone: &mut Open,
        command: &Cmd,
        response_timeout: Duration,
    ) -> Result<Value, Failure> {
        alone.connection.set_response_timeout(response_timeout);
        let mut connection = alone.connection.clone();
        match self.unless_left(alone, send(&mut connection, Request::One(command))).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failure(alone, error).await),
        }
    }

    fn give_back(&self, alone: Open) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(alone);
        }
    }

    /// What comes of `asking`; an error once the sentinels name another primary, which may be long before a dead one's
    /// reply is overdue.
    async fn unless_left<T>(
        &self,
        open: &Open,
        asking: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        match &self.way {
            Way::Fixed(_) => asking.await,
            Way::Sentinels { sentinels, .. } => tokio::select! {
                answer = asking => answer,
                () = sentinels.another_word(open.word) => {
                    Err(RedisError::from((ErrorKind::Io, "is no longer the primary")))
                }
            },
        }
    }

    /// What an error on `open` means for the call, and for the connections that others would use.
    async fn failure(&self, open: &Open, error: RedisError) -> Failure {
        let by = format!("Redis at {}", open.at);
        if error.code().is_some() {
            // A replica now: the name that led here may lead elsewhere by now, and sentinels know where to.
            if code(&error) == "READONLY" {
                self.drop_connection(open.number).await;
            }
            return Failure::Answered { error, by };
        }
        self.drop_connection(open.number).await;
        let timed_out = error.is_timeout();
        let why = if timed_out { "did not answer in time".to_owned() } else { format!("was lost: {error}") };
        Failure::Lost { why: format!("{by} {why}"), timed_out }
    }

    async fn open(&self) -> Result<Open, StoreError> {
        let attempts = self.attempts.load(Ordering::SeqCst);
        let mut slot = self.slot.lock().await;
        if let Some(open) = &slot.open
            && self.is_the_word(open.word)
        {
            return Ok(open.clone());
        }
        if self.attempts.load(Ordering::SeqCst) > attempts
            && let Some(failure) = &slot.failure
        {
            return Err(failure.clone());
        }
        slot.open = None;
        let outcome = timeout(self.dialer.connect_timeout, self.connect()).await;
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let outcome = outcome.unwrap_or_else(|_| {
            Err(StoreError::Unreachable(self.text("did not accept a connection in time")))
        });
        match outcome {
            Ok((connection, at, word, history)) => {
                slot.number += 1;
                if slot.history.as_ref().is_some_and(|before| history.is_none() || *before != history) {
                    self.turns.fetch_add(1, Ordering::SeqCst);
                }
                slot.history = Some(history);
                slot.failure = None;
                let open = Open { connection, at, number: slot.number, word };
                slot.open = Some(open.clone());
                Ok(open)
            }
            Err(failure) => {
                slot.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    fn is_the_word(&self, word: u64) -> bool {
        match &self.way {
            Way::Fixed(_) => true,
            Way::Sentinels { sentinels, .. } => sentinels.word() == word,
        }
    }

    async fn connect(&self) -> Result<(MultiplexedConnection, Address, u64, History), StoreError> {
        let sentinels = match &self.way {
            Way::Fixed(at) => {
                let (connection, _, history) = self.dial(at).await?;
                return Ok((connection, at.clone(), 0, history));
            }
            Way::Sentinels { sentinels, .. } => sentinels,
        };
        loop {
            let word = sentinels.word();
            let at = sentinels.primary().await?;
            sentinels.use_primary(&at);
            let (connection, role, history) = tokio::select! {
                dialled = self.dial(&at) => dialled?,
                () = sentinels.another_word(word) => continue,
            };
            if role == Role::Replica {
                let text = "is named as the primary by the sentinels and is none yet, or no longer";
                return Err(StoreError::Unreachable(format!("Redis at {at} {text}")));
            }
            return Ok((connection, at, word, history));
        }
    }

    /// Connects, and asks the server who it is.
    async fn dial(&self, at: &Address) -> Result<(MultiplexedConnection, Role, History), StoreError> {
        let name = format!("Redis at {at}");
        let mut connection = self.dialer.dial(at).await.map_err(|error| not_connected(&name, &error))?;
        let mut questions = redis::pipe();
        questions.cmd("ROLE");
        for section in ["server", "replication", "memory"] {
            questions.cmd("INFO").arg(section);
        }
        let answers = connection.req_packed_commands(&questions, 0, questions.len()).await;
        let answers = answers.map_err(|error| not_connected(&name, &error))?;
        let info: String = answers.iter().skip(1).map(text_of).collect();
        self.note_policy(at, &info);
        let field = |name| info_field(&info, name).map(str::to_owned);
        let history = field("run_id").zip(field("master_replid")).map(|(run, line)| [run, line]);
        let role = match answers.first() {
            Some(Value::Array(parts)) => match parts.first() {
                Some(Value::BulkString(role)) => Some(role == b"slave"),
                Some(Value::SimpleString(role)) => Some(role == "slave"),
                _ => None,
            },
            _ => None,
        };
        let is_replica = role.unwrap_or_else(|| field("role").as_deref() == Some("slave"));
        Ok((connection, if is_replica { Role::Replica } else { Role::Primary }, history))
    }

    async fn drop_connection(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.open = None;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Or a server that does not say.
    Primary,
    Replica,
}

async fn send(connection: &mut MultiplexedConnection, request: Request<'_>) -> Result<Value, RedisError> {
    match request {
        Request::One(command) | Request::Write(command) => {
            connection.req_packed_command(command).await.and_then(Value::extract_error)
        }
        Request::Many(commands) => {
            let answers = connection.req_packed_commands(commands, 0, commands.len()).await;
            answers.map(Value::Array)
        }
    }
}

/// Why the server called `name` was not connected to.
pub(crate) fn not_connected(name: &str, error: &RedisError) -> StoreError {
    if error.is_timeout() {
        StoreError::Unreachable(format!("{name} did not accept a connection in time"))
    } else if error.kind() == ErrorKind::AuthenticationFailed || error.code().is_some() {
        refusal(name, error)
    } else {
        StoreError::Unreachable(format!("{name} does not accept connections: {error}"))
    }
}

/// A refusal by the server called `name`, in words: nothing was written.
pub(crate) fn refusal(name: &str, error: &RedisError) -> StoreError {
    let said = error.detail().unwrap_or_default();
    let code = if error.kind() == ErrorKind::AuthenticationFailed { "WRONGPASS" } else { code(error) };
    let what = match code {
        "OOM" => "is full (OOM): raise its maxmemory",
        "READONLY" => "is a read-only replica (READONLY): name the primary in the settings",
        "LOADING" => "is still loading its data (LOADING): it will answer when it has",
        "MISCONF" => "cannot save to its disk and so takes no writes (MISCONF): see its log, make room",
        "NOREPLICAS" => "has too few replicas to take writes (NOREPLICAS): bring them back",
        "NOAUTH" => "wants a password (NOAUTH): set it in the settings",
        "WRONGPASS" => "refused the user name or password (WRONGPASS): correct the settings",
        "CLUSTERDOWN" => "says that its cluster is down (CLUSTERDOWN): bring the missing nodes back",
        "MOVED" | "ASK" => "is a node of a cluster: name the nodes in redis.cluster",
        "BUSY" => "is busy with another script (BUSY)",
        "NOPERM" => {
            return StoreError::Refused(format!("{name} does not let this user do that (NOPERM): {said}"));
        }
        code => return StoreError::Refused(format!("{name} refused ({code}): {said}")),
    };
    StoreError::Refused(format!("{name} {what}"))
}

/// The server's error code. Redis before 7 wraps an error from within a script into `ERR … -CODE …`.
pub(crate) fn code(error: &RedisError) -> &str {
    let code = error.code().unwrap_or("ERR");
    let within = error.detail().unwrap_or_default();
    let wrapped = ["OOM", "READONLY", "MISCONF", "NOREPLICAS"];
    let wrapped = wrapped.into_iter().find(|code| within.contains(&format!("-{code} ")));
    wrapped.filter(|_| code == "ERR").unwrap_or(code)
}

/// `None` where the server throws nothing away, or does not tell.
pub(crate) fn evicting_policy(info: &str) -> Option<&str> {
    info_field(info, "maxmemory_policy").filter(|policy| *policy != "noeviction")
}

/// Empty where the user may not ask.
fn text_of(answer: &Value) -> String {
    match answer {
        Value::BulkString(text) => String::from_utf8_lossy(text).into_owned(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Connections for one call alone that are kept: as many as write at once, mostly.
const IDLE_MAX: usize = 16;
