//! The connection to the server: made when it is needed, shared by all calls, dropped at the first sign of trouble.
//!
//! Not `redis::aio::ConnectionManager`, for two reasons. It keeps a connection on which replies time out, so a link
//! whose packets vanish stays for as long as TCP retries, a quarter of an hour; and it does not tell a command that
//! was never sent from one whose reply was lost, which is the difference between "nothing was written" and "unknown".

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_store::StoreError;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::sync::Mutex;

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
}

/// Why there is no answer, or none that helps.
pub(crate) enum Failure {
    /// There was no connection to send it on.
    NotSent(StoreError),
    /// It was sent, or may have been, and no reply came.
    Lost { why: String, timed_out: bool },
    /// The server answered with an error.
    Answered(RedisError),
}

pub(crate) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    connect_timeout: Duration,
    address: Arc<str>,
    slot: Mutex<Slot>,
    /// Attempts to connect, so far. Lets calls that waited for the same failed attempt share its error instead of
    /// each waiting for one of its own.
    attempts: AtomicU64,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Which connection this is: a call drops only the one that failed it.
    number: u64,
    failure: Option<StoreError>,
}

impl Link {
    pub(crate) fn new(
        client: Client,
        address: String,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            .set_response_timeout(Some(response_timeout));
        Self {
            client,
            config,
            connect_timeout,
            address: address.into(),
            slot: Mutex::default(),
            attempts: AtomicU64::new(0),
        }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A sentence about the server.
    pub(crate) fn text(&self, what: &str) -> String {
        format!("Redis at {} {what}", self.address)
    }

    /// The answer; to [`Request::Many`], an array of answers, in which an error stands for its own command only.
    pub(crate) async fn ask(&self, request: Request<'_>) -> Result<Value, Failure> {
        let (number, mut connection) = self.connection().await.map_err(Failure::NotSent)?;
        let answer = match request {
            Request::One(command) => {
                connection.req_packed_command(command).await.and_then(Value::extract_error)
            }
            Request::Many(commands) => {
                let answers = connection.req_packed_commands(commands, 0, commands.len()).await;
                answers.map(Value::Array)
            }
        };
        match answer {
            Ok(value) => Ok(value),
            Err(error) if error.code().is_some() => Err(Failure::Answered(error)),
            Err(error) => {
                self.drop_connection(number).await;
                let timed_out = error.is_timeout();
                let why = if timed_out {
                    "did not answer in time".to_owned()
                } else {
                    format!("was lost: {error}")
                };
                Err(Failure::Lost { why: self.text(&why), timed_out })
            }
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), StoreError> {
        let attempts = self.attempts.load(Ordering::SeqCst);
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((slot.number, connection.clone()));
        }
        if self.attempts.load(Ordering::SeqCst) > attempts
            && let Some(failure) = &slot.failure
        {
            return Err(failure.clone());
        }
        let connecting = self.client.get_multiplexed_async_connection_with_config(&self.config);
        let outcome = tokio::time::timeout(self.connect_timeout, connecting).await;
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let outcome = match outcome {
            Ok(outcome) => outcome.map_err(|error| self.not_connected(&error)),
            Err(_elapsed) => Err(StoreError::Unreachable(self.text("did not accept a connection in time"))),
        };
        match outcome {
            Ok(connection) => {
                slot.number += 1;
                slot.connection = Some(connection.clone());
                slot.failure = None;
                Ok((slot.number, connection))
            }
            Err(failure) => {
                slot.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    async fn drop_connection(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }

    fn not_connected(&self, error: &RedisError) -> StoreError {
        if error.is_timeout() {
            StoreError::Unreachable(self.text("did not accept a connection in time"))
        } else if error.kind() == ErrorKind::AuthenticationFailed || error.code().is_some() {
            self.refusal(error)
        } else {
            StoreError::Unreachable(self.text(&format!("does not accept connections: {error}")))
        }
    }

    /// A refusal in words: nothing was written.
    pub(crate) fn refusal(&self, error: &RedisError) -> StoreError {
        let said = error.detail().unwrap_or_default();
        let code = if error.kind() == ErrorKind::AuthenticationFailed { "WRONGPASS" } else { code(error) };
        StoreError::Refused(match code {
            "OOM" => self.text("is full (OOM): raise its maxmemory"),
            "READONLY" => self.text("is a read-only replica (READONLY): name the primary in the settings"),
            "LOADING" => self.text("is still loading its data (LOADING): it will answer when it has"),
            "MISCONF" => {
                self.text("cannot save to its disk and so takes no writes (MISCONF): see its log, make room")
            }
            "NOREPLICAS" => self.text("has too few replicas to take writes (NOREPLICAS): bring them back"),
            "NOAUTH" => self.text("wants a password (NOAUTH): set it in the settings"),
            "WRONGPASS" => self.text("refused the user name or password (WRONGPASS): correct the settings"),
            "NOPERM" => self.text(&format!("does not let this user do that (NOPERM): {said}")),
            "BUSY" => self.text("is busy with another script (BUSY)"),
            code => self.text(&format!("refused ({code}): {said}")),
        })
    }
}

/// The server's error code. Redis before 7 wraps an error from within a script into `ERR … -CODE …`.
pub(crate) fn code(error: &RedisError) -> &str {
    let code = error.code().unwrap_or("ERR");
    let within = error.detail().unwrap_or_default();
    let wrapped = ["OOM", "READONLY", "MISCONF", "NOREPLICAS"];
    let wrapped = wrapped.into_iter().find(|code| within.contains(&format!("-{code} ")));
    wrapped.filter(|_| code == "ERR").unwrap_or(code)
}
