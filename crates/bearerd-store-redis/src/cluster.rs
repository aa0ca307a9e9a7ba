//! A cluster: which node has a key, and what to do when it has it no longer.
//!
//! Not redis's `cluster-async`: it repeats by itself what it sent, so it cannot tell "nothing was written" from
//! "unknown"; it gives no connection for one call alone, which `WAIT` needs; and its repairs wait for the calls that
//! use the retries up (redis-rs issue 2277). A node here is a [`Link`] like any other, and the map is made anew in
//! the background, at each sign of trouble and once a second.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_store::StoreError;
use redis::{Cmd, Value, cmd};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    dialer::{Address, Dialer},
    link::{self, Failure, Link, Request},
};

pub(crate) struct Cluster {
    nodes: Arc<Nodes>,
    #[expect(dead_code, reason = "dropping it ends its task")]
    watching: JoinSet<()>,
}

struct Nodes {
    dialer: Dialer,
    seeds: Vec<Address>,
    map: Mutex<Map>,
    /// How often a node was found replaced by another.
    turns: AtomicU64,
    /// When the map was last made, or tried to be. Held meanwhile, so that one does it for all.
    refreshed_at: AsyncMutex<Option<Instant>>,
}

#[derive(Default)]
struct Map {
    /// The node of each slot; empty before the first look.
    owners: Vec<Option<Address>>,
    links: HashMap<Address, Arc<Link>>,
}

/// What a node says of its cluster.
struct View {
    is_up: bool,
    epoch: u64,
    /// First slot, last slot, the node that has them.
    ranges: Vec<(u16, u16, Address)>,
}

impl Cluster {
    /// Asks the seeds for the map.
    ///
    /// # Errors
    /// None of them answers as a node of a cluster does.
    pub(crate) async fn connect(dialer: Dialer, seeds: Vec<Address>) -> Result<Self, StoreError> {
        let nodes = Arc::new(Nodes {
            dialer,
            seeds,
            map: Mutex::default(),
            turns: AtomicU64::new(0),
            refreshed_at: AsyncMutex::default(),
        });
        nodes.refresh().await?;
        let mut watching = JoinSet::new();
        let watched = Arc::clone(&nodes);
        watching.spawn(async move { watched.watch().await });
        Ok(Self { nodes, watching })
    }

    pub(crate) fn name(&self) -> String {
        let seeds: Vec<String> = self.nodes.seeds.iter().map(Address::to_string).collect();
        format!("the Redis cluster of {}", seeds.join(", "))
    }

    /// Grows each time that writes may have been lost with some node.
    pub(crate) fn turns(&self) -> u64 {
        let map = self.nodes.map();
        let of_nodes: u64 = map.links.values().map(|link| link.turns()).sum();
        of_nodes + self.nodes.turns.load(Ordering::SeqCst)
    }

    /// A link to each node that has slots.
    pub(crate) fn primaries(&self) -> Vec<Arc<Link>> {
        self.nodes.primaries()
    }

    /// The node that has the keys of `tag`.
    pub(crate) async fn link(&self, tag: &str) -> Result<Arc<Link>, StoreError> {
        self.nodes.link_of(slot(tag)).await
    }

    /// The answer of the node that has the keys of `tag`, or is about to have them.
    pub(crate) async fn ask(&self, tag: &str, request: Request<'_>) -> Result<Value, Failure> {
        let slot = slot(tag);
        for _ in 0..REDIRECTS_MAX {
            let link = self.nodes.link_of(slot).await.map_err(Failure::NotSent)?;
            let answer = link.ask(request).await;
            let Err(failure) = answer else { return answer };
            match self.nodes.consider(slot, &failure).await {
                Next::Again => {}
                Next::Asking(link) => {
                    let (Request::One(command) | Request::Write(command)) = request else {
                        return Err(failure);
                    };
                    if matches!(request, Request::Write(_)) {
                        link.takes_writes().await?;
                    }
                    let mut commands = redis::pipe();
                    commands.cmd("ASKING").add_command(command.clone());
                    let Value::Array(mut answers) = link.ask(Request::Many(&commands)).await? else {
                        return Err(failure);
                    };
                    let by = link.name();
                    return match answers.pop() {
                        Some(Value::ServerError(error)) => Err(Failure::Answered { error: error.into(), by }),
                        answer => Ok(answer.unwrap_or(Value::Nil)),
                    };
                }
                Next::GiveUp => return Err(failure),
            }
        }
        Err(too_many_redirects())
    }

    /// As [`Link::ask_alone`], of the node that has the keys of `tag`.
    pub(crate) async fn ask_alone(
        &self,
        tag: &str,
        command: &Cmd,
        then: &Cmd,
        response_timeout: Duration,
    ) -> Result<[Value; 2], Failure> {
        let slot = slot(tag);
        for _ in 0..REDIRECTS_MAX {
            let link = self.nodes.link_of(slot).await.map_err(Failure::NotSent)?;
            let answer = link.ask_alone(false, command, then, response_timeout).await;
            let Err(failure) = answer else { return answer };
            match self.nodes.consider(slot, &failure).await {
                Next::Again => {}
                Next::Asking(link) => return link.ask_alone(true, command, then, response_timeout).await,
                Next::GiveUp => return Err(failure),
            }
        }
        Err(too_many_redirects())
    }

    /// Has the map made anew before the next call, because of what a call met.
    pub(crate) async fn consider(&self, tag: &str, failure: &Failure) {
        self.nodes.consider(slot(tag), failure).await;
    }
}

/// What to do after a failure.
enum Next {
    /// The node that has the slot now is known: ask it.
    Again,
    /// This node has the key already, though not yet the slot.
    Asking(Arc<Link>),
    GiveUp,
}

impl Nodes {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, address: &Address) -> Arc<Link> {
        let mut map = self.map();
        let link = map.links.entry(address.clone());
        Arc::clone(link.or_insert_with(|| Arc::new(Link::fixed(self.dialer.clone(), address.clone()))))
    }

    fn primaries(&self) -> Vec<Arc<Link>> {
        let owners: BTreeSet<Address> = self.map().owners.iter().flatten().cloned().collect();
        owners.iter().map(|address| self.link(address)).collect()
    }

    async fn link_of(&self, slot: u16) -> Result<Arc<Link>, StoreError> {
        let owner = || self.map().owners.get(usize::from(slot)).cloned().flatten();
        let owner = if let Some(owner) = owner() {
            owner
        } else {
            self.refresh().await?;
            let missing = || StoreError::Unreachable(format!("no node of the Redis cluster has slot {slot}"));
            owner().ok_or_else(missing)?
        };
        Ok(self.link(&owner))
    }

    async fn consider(&self, slot: u16, failure: &Failure) -> Next {
        let Failure::Answered { error, .. } = failure else {
            drop(self.refresh().await);
            return Next::GiveUp;
        };
        let redirected = error.redirect_node().and_then(|(node, _)| Address::of_node(node));
        match (link::code(error), redirected) {
            ("MOVED", Some(address)) => {
                self.move_slot(slot, address);
                Next::Again
            }
            ("ASK", Some(address)) => Next::Asking(self.link(&address)),
            (code, _) if is_passing(code) => {
                drop(self.refresh().await);
                Next::GiveUp
            }
            _ => Next::GiveUp,
        }
    }

    /// Makes the map anew, unless somebody has just done so.
    async fn refresh(&self) -> Result<(), StoreError> {
        let mut refreshed_at = self.refreshed_at.lock().await;
        if refreshed_at.is_some_and(|at| at.elapsed() < REFRESH_EVERY_MIN) {
            return Ok(());
        }
        let view = self.newest_view().await;
        *refreshed_at = Some(Instant::now());
        self.take_over(view?);
        Ok(())
    }

    /// Of the nodes that answer at about the same time, the one that has seen the newest vote.
    async fn newest_view(&self) -> Result<View, StoreError> {
        let mut addresses: BTreeSet<Address> = self.seeds.iter().cloned().collect();
        addresses.extend(self.map().owners.iter().flatten().cloned());
        let mut asking = JoinSet::new();
        for address in addresses {
            let link = self.link(&address);
            asking.spawn(async move { view_of(&link, &address).await });
        }
        let (mut views, mut last_error) = (Vec::new(), None);
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
                Some(Ok(Ok(view))) => views.push(view),
                Some(Ok(Err(error))) => last_error = Some(error),
                Some(Err(_panicked)) => {}
            }
            if until.is_none() && !views.is_empty() {
                until = Some(Instant::now() + STRAGGLERS);
            }
        }
        let nobody = || StoreError::Unreachable("no node of the Redis cluster answers".to_owned());
        let newest = views.into_iter().max_by_key(|view| (view.is_up, view.epoch));
        newest.ok_or_else(|| last_error.unwrap_or_else(nobody))
    }

    fn move_slot(&self, slot: u16, owner: Address) {
        let mut map = self.map();
        let Some(place) = map.owners.get_mut(usize::from(slot)) else { return };
        let before = place.replace(owner);
        if before.is_some() && !map.owners.contains(&before) {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A node that has lost all its slots was replaced by another, which may lack its last writes; one that has lost
    /// some has handed them over, writes and all.
    fn take_over(&self, view: View) {
        let mut map = self.map();
        let mut owners = vec![None; usize::from(SLOTS)];
        for (first, last, owner) in view.ranges {
            if let Some(slots) = owners.get_mut(usize::from(first)..=usize::from(last)) {
                slots.fill(Some(owner));
            }
        }
        for (now, before) in owners.iter_mut().zip(&map.owners) {
            // What no node serves for now: kept, so that a change of its node is still seen as one.
            if now.is_none() {
                now.clone_from(before);
            }
        }
        let now: BTreeSet<&Address> = owners.iter().flatten().collect();
        let has_turned = map.owners.iter().flatten().any(|before| !now.contains(before));
        if has_turned {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
        map.owners = owners;
    }

    /// Sees changes of nodes that no call happens to use. Never comes back.
    async fn watch(&self) {
        loop {
            sleep(WATCH_EVERY).await;
            drop(self.refresh().await);
            let mut asking = JoinSet::new();
            for link in self.primaries() {
                asking.spawn(async move { drop(link.ask(Request::One(&cmd("PING"))).await) });
            }
            // One that hangs is the next round's as well.
            let _ = timeout(WATCH_EVERY, async { while asking.join_next().await.is_some() {} }).await;
        }
    }
}

async fn view_of(link: &Link, address: &Address) -> Result<View, StoreError> {
    let mut questions = redis::pipe();
    questions.cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("INFO");
    let answers = match link.ask(Request::Many(&questions)).await {
        Ok(Value::Array(answers)) => answers,
        Ok(_) => return Err(StoreError::Refused(link.text("gave no answer of a cluster's node"))),
        Err(Failure::NotSent(error)) => return Err(error),
        Err(Failure::Lost { why, .. }) => return Err(StoreError::Unreachable(why)),
        Err(Failure::Answered { error, by }) => return Err(link::refusal(&by, &error)),
    };
    let mut answers = answers.into_iter();
    let ranges = match answers.next() {
        Some(Value::Array(ranges)) => {
            ranges.into_iter().filter_map(|range| range_of(range, address)).collect()
        }
        Some(Value::ServerError(error)) => return Err(link::refusal(&link.name(), &error.into())),
        _ => vec![],
    };
    let info = match answers.next() {
        Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
        Some(Value::VerbatimString { text, .. }) => text,
        _ => String::new(),
    };
    let epoch = link::info_field(&info, "cluster_current_epoch").and_then(|epoch| epoch.parse().ok());
    let is_up = link::info_field(&info, "cluster_state") == Some("ok");
    Ok(View { is_up, epoch: epoch.unwrap_or(0), ranges })
}

/// Of `[first, last, [host, port, …], …]`; a node may leave out its host, which then is that of who was asked.
fn range_of(range: Value, asked: &Address) -> Option<(u16, u16, Address)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = &parts[..] else { return None };
    let [host, Value::Int(port), ..] = &node[..] else { return None };
    let host = match host {
        Value::BulkString(host) if !host.is_empty() && host != b"?" => {
            String::from_utf8(host.clone()).ok()?
        }
        Value::SimpleString(host) if !host.is_empty() && host != "?" => host.clone(),
        _ => asked.host.clone(),
    };
    let address = Address { host, port: u16::try_from(*port).ok()? };
    Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address))
}

/// Whether a refusal ends by itself, once a cluster has sorted itself out.
pub(crate) fn is_passing(code: &str) -> bool {
    matches!(code, "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" | "READONLY")
}

fn too_many_redirects() -> Failure {
    let why = "the nodes of the Redis cluster do not agree on who has a slot";
    Failure::NotSent(StoreError::Unreachable(why.to_owned()))
}

/// CRC-16/XMODEM, as the cluster specification has it.
fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS
}

const SLOTS: u16 = 16_384;
/// Redirections that one call follows: a slot that moves twice meanwhile is rare.
const REDIRECTS_MAX: usize = 4;
/// How long the first node's view waits for others'.
const STRAGGLERS: Duration = Duration::from_millis(100);
/// Many calls meet the same dead node at once.
const REFRESH_EVERY_MIN: Duration = Duration::from_millis(100);
const WATCH_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is the specification's own; the others are what `CLUSTER KEYSLOT` answers.
    #[test]
    fn slots_are_those_of_the_specification() {
        for (tag, expected) in [("123456789", 0x31c3), ("c", 7365), ("hr-prod", 1166), ("foo", 12182)] {
            assert_eq!(slot(tag), expected, "{tag}");
        }
    }
}
