//! Waits for the next change at the server, so that nobody has to ask every few milliseconds. One task and one
//! connection for all who wait in this process: a blocked connection answers nothing else.

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, Value, cmd};
use tokio::{
    sync::{OnceCell, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{LogEntry, counter_of, dialer::Pause, keys::CONTROL, link::Failure, servers::Servers};

pub(crate) struct LogReader {
    servers: Arc<Servers>,
    log: String,
    response_timeout: Duration,
    seen: watch::Sender<Seen>,
    /// Begins with the first who waits.
    task: OnceCell<JoinSet<()>>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// The newest change; 0 while the server cannot be asked.
    newest: u64,
    /// How often the connection was lost, and found again: something may have changed meanwhile.
    breaks: u64,
}

impl LogReader {
    pub(crate) fn new(servers: Arc<Servers>, log: String, response_timeout: Duration) -> Self {
        Self { servers, log, response_timeout, seen: watch::Sender::default(), task: OnceCell::new() }
    }

    /// Comes back once there is, or may be, a change after `after`.
    pub(crate) async fn changed(&self, after: u64) {
        let mut seen = self.seen.subscribe();
        let breaks = seen.borrow().breaks;
        let begin = async || {
            let (servers, log) = (Arc::clone(&self.servers), self.log.clone());
            let (response_timeout, seen) = (self.response_timeout, self.seen.clone());
            let mut task = JoinSet::new();
            task.spawn(async move { Reading { servers, log, response_timeout, seen }.run().await });
            task
        };
        self.task.get_or_init(begin).await;
        // The sender is `self`, so this ends with the condition only.
        let _ = seen.wait_for(|seen| seen.newest > after || seen.breaks != breaks).await;
    }
}

struct Reading {
    servers: Arc<Servers>,
    log: String,
    response_timeout: Duration,
    seen: watch::Sender<Seen>,
}

impl Reading {
    /// Never comes back.
    async fn run(&self) {
        let mut pause = Pause::between(PAUSE, PAUSE_MAX);
        let mut is_first = true;
        loop {
            let _failure = self.follow(&mut pause, is_first).await;
            is_first = false;
            self.seen.send_modify(|seen| *seen = Seen { newest: 0, breaks: seen.breaks + 1 });
            sleep(pause.next()).await;
        }
    }

    /// Ends with the connection.
    async fn follow(&self, pause: &mut Pause, is_first: bool) -> Result<(), Failure> {
        let mut alone = self.servers.alone(CONTROL).await?;
        let mut newest = cmd("XREVRANGE");
        newest.arg(&self.log).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = self.servers.ask_on(CONTROL, &mut alone, &newest, self.response_timeout).await?;
        let mut at = last_of(answer).unwrap_or(0);
        let breaks = u64::from(!is_first);
        self.seen.send_modify(|seen| *seen = Seen { newest: at, breaks: seen.breaks + breaks });
        pause.reset();
        loop {
            let mut read = cmd("XREAD");
            read.arg("BLOCK").arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX));
            read.arg("STREAMS").arg(&self.log).arg(format!("{at}-0"));
            let patience = BLOCK + self.response_timeout;
            let answer = self.servers.ask_on(CONTROL, &mut alone, &read, patience).await?;
            if answer == Value::Nil {
                continue; // nothing has changed
            }
            let streams = Vec::<(String, Value)>::from_redis_value(answer).unwrap_or_default();
            match streams.into_iter().filter_map(|(_, entries)| last_of(entries)).max() {
                Some(newest) => at = newest,
                None => return Ok(()), // no log of ours, and not to be asked about without a pause
            }
            self.seen.send_modify(|seen| seen.newest = at);
        }
    }
}

fn last_of(entries: Value) -> Option<u64> {
    let entries = Vec::<LogEntry>::from_redis_value(entries).ok()?;
    entries.iter().filter_map(|(at, _)| counter_of(at)).max()
}

/// After this long without a change the server is asked anew: notices a link whose packets vanish.
const BLOCK: Duration = Duration::from_secs(5);
/// Pauses before the connection is made again.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
