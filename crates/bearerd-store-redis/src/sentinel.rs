//! Where the primary is, by the word of the sentinels.
//!
//! Each is asked whom it holds for the primary and by which vote (its configuration epoch). The word of the newest
//! vote counts, because a vote is a majority's; among sentinels of one vote, that of the most. A sentinel that was cut
//! off, or a server that was voted out and does not know it, is overruled in this way, unless they are all that can
//! be reached. There is a task for each sentinel that listens for `+switch-master`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bearerd_store::StoreError;
use futures_util::StreamExt;
use redis::{
    FromRedisValue, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSubStream},
};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::dialer::{Address, Dialer, Pause};

pub(crate) struct Sentinels {
    service: String,
    nodes: Vec<Arc<Node>>,
    in_use: Mutex<Option<Address>>,
    /// Grows each time that another primary is named than the one in use.
    word: watch::Sender<u64>,
}

/// One sentinel.
struct Node {
    address: Address,
    dialer: Dialer,
    connection: AsyncMutex<Option<MultiplexedConnection>>,
}

/// What a sentinel says.
#[derive(Clone)]
struct Word {
    epoch: u64,
    primary: Option<Address>,
}

impl Sentinels {
    pub(crate) fn new(service: String, addresses: Vec<Address>, dialer: &Dialer) -> Self {
        // A sentinel that does not answer must leave time to connect to the primary that others name.
        let part = dialer.connect_timeout / 3;
        let dialer = Dialer {
            connect_timeout: part,
            response_timeout: dialer.response_timeout.min(part),
            ..dialer.clone()
        };
        let node = |address| Node { address, dialer: dialer.clone(), connection: AsyncMutex::default() };
        let nodes = addresses.into_iter().map(|address| Arc::new(node(address))).collect();
        Self { service, nodes, in_use: Mutex::default(), word: watch::Sender::new(0) }
    }

    pub(crate) fn name(&self) -> String {
        match &*self.in_use() {
            Some(address) => format!("Redis at {address}"),
            None => format!("Redis's service {}", self.service),
        }
    }

    /// The primary.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if no sentinel answers, [`StoreError::Refused`] if none of them knows the service.
    pub(crate) async fn primary(&self) -> Result<Address, StoreError> {
        let words = self.words().await?;
        let newest = words.iter().filter(|word| word.primary.is_some()).map(|word| word.epoch).max();
        let mut votes: HashMap<&Address, usize> = HashMap::new();
        for word in words.iter().filter(|word| Some(word.epoch) == newest) {
            if let Some(primary) = &word.primary {
                *votes.entry(primary).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(address, votes)| (*votes, *address));
        most.map(|(address, _)| address.clone()).ok_or_else(|| {
            StoreError::Refused(format!(
                "no sentinel knows a service {}: correct redis.sentinel_service",
                self.service
            ))
        })
    }

    /// What the sentinels say: all of them, or a majority and who else answers a moment later, or whoever does in time.
    async fn words(&self) -> Result<Vec<Word>, StoreError> {
        let mut asking = JoinSet::new();
        for node in &self.nodes {
            let (node, service) = (Arc::clone(node), self.service.clone());
            asking.spawn(async move { (node.word(&service).await, node.address.clone()) });
        }
        let (mut words, mut last_error) = (Vec::new(), String::new());
        let mut until: Option<Instant> = None;
        loop {
            let joined = match until {
                Some(until) => match timeout_at(until, asking.join_next()).await {
                    Ok(joined) => joined,
                    Err(_elapsed) => break,
                },
                None => asking.join_next().await,
            };
            match joined {
                None => break,
                Some(Ok((Ok(word), _))) => words.push(word),
                Some(Ok((Err(error), address))) => last_error = format!("{address}: {error}"),
                Some(Err(error)) => last_error = error.to_string(),
            }
            if until.is_none() && words.len() > self.nodes.len() / 2 {
                until = Some(Instant::now() + STRAGGLERS);
            }
        }
        if words.is_empty() {
            return Err(StoreError::Unreachable(format!(
                "no sentinel of {} answers ({last_error})",
                self.service
            )));
        }
        Ok(words)
    }

    /// Notes which primary is being connected to.
    pub(crate) fn use_primary(&self, address: &Address) {
        *self.in_use() = Some(address.clone());
    }

    /// Changes when another primary is named than the one in use.
    pub(crate) fn word(&self) -> u64 {
        *self.word.borrow()
    }

    /// Comes back once [`Self::word`] is no longer `word`.
    pub(crate) async fn another_word(&self, word: u64) {
        // The sender is `self`, so this ends with the condition only.
        let _ = self.word.subscribe().wait_for(|newest| *newest != word).await;
    }

    /// Asks whether the primary in use still is the primary.
    async fn look_again(&self) {
        let Ok(primary) = self.primary().await else { return };
        let is_another = self.in_use().as_ref().is_some_and(|in_use| *in_use != primary);
        if is_another {
            *self.in_use() = Some(primary);
            self.word.send_modify(|word| *word += 1);
        }
    }

    /// Never comes back.
    async fn listen_to(&self, node: &Node) {
        let mut pause = Pause::between(LISTEN_PAUSE, LISTEN_PAUSE_MAX);
        loop {
            if let Ok(mut messages) = node.subscribe().await {
                pause.reset();
                // What was said before is not said again.
                self.look_again().await;
                // A link whose packets vanish gives no message and no error: a look from time to time instead.
                while let Ok(Some(_)) | Err(_) = timeout(LOOK_EVERY, messages.next()).await {
                    self.look_again().await;
                }
            }
            sleep(pause.next()).await;
        }
    }

    fn in_use(&self) -> std::sync::MutexGuard<'_, Option<Address>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    async fn word(&self, service: &str) -> Result<Word, RedisError> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.dialer.dial(&self.address).await?,
        };
        let mut questions = redis::pipe();
        questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        questions.cmd("SENTINEL").arg("MASTER").arg(service);
        // Kept only if it answered; a dropped call drops it too.
        let answers = connection.req_packed_commands(&questions, 0, questions.len()).await?;
        *slot = Some(connection);
        let mut answers = answers.into_iter();
        let named = answers.next().unwrap_or(Value::Nil).extract_error()?;
        let primary = match Option::<(String, u16)>::from_redis_value(named) {
            Ok(named) => named.map(|(host, port)| Address { host, port }),
            Err(_) => None,
        };
        let details = answers.next().and_then(|answer| Vec::<String>::from_redis_value(answer).ok());
        let details = details.unwrap_or_default();
        let epoch = details.chunks_exact(2).find(|pair| pair[0] == "config-epoch");
        Ok(Word { epoch: epoch.and_then(|pair| pair[1].parse().ok()).unwrap_or(0), primary })
    }

    async fn subscribe(&self) -> Result<PubSubStream, RedisError> {
        let subscribing = async {
            let mut link = self.dialer.client(&self.address)?.get_async_pubsub().await?;
            link.subscribe("+switch-master").await?;
            Ok(link.into_on_message())
        };
        let elapsed = |_| RedisError::from((redis::ErrorKind::Io, "did not answer in time"));
        timeout(self.dialer.connect_timeout, subscribing).await.map_err(elapsed)?
    }
}

/// The tasks that listen; dropping it ends them.
pub(crate) struct Listening(#[expect(dead_code, reason = "dropping it ends its tasks")] JoinSet<()>);

impl Listening {
    pub(crate) fn begin(sentinels: &Arc<Sentinels>) -> Self {
        let mut tasks = JoinSet::new();
        for node in &sentinels.nodes {
            let (sentinels, node) = (Arc::clone(sentinels), Arc::clone(node));
            tasks.spawn(async move { sentinels.listen_to(&node).await });
        }
        Self(tasks)
    }
}

/// How long a majority's word waits for that of the others.
const STRAGGLERS: Duration = Duration::from_millis(100);
/// Pauses before a sentinel is listened to again.
const LISTEN_PAUSE: Duration = Duration::from_millis(250);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(10);
