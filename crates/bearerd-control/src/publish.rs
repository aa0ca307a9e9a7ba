//! Spreads changes: reads the change counter every 250 ms, and as soon as the store says that there is something new,
//! and brings what changed into memory. Every act of this process does the same at once, so that an operator sees an act
//! in force when it returns.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bearerd_model::{CallerKey, Integration, Policy};
use bearerd_policy::Snapshot;
use bearerd_store::{ChangeCounter, Changes, Kind, Record, RecordKey, StoreError};
use tokio::{
    sync::Mutex,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::Control;

/// How far this process has followed the store.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    followed: Mutex<Followed>,
    store_reachable: AtomicBool,
    snapshot_loaded: AtomicBool,
}

#[derive(Debug, Default)]
struct Followed {
    /// Every change up to here was taken over, but for what is owed. `None`: nothing was read yet.
    counter: Option<ChangeCounter>,
    /// Changed records that the store refused to give while it answered for others. They are asked for again each
    /// time; what changed after them does not wait for that (S-04).
    owed: BTreeSet<RecordKey>,
}

/// How the store and this process stand, for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    pub store_reachable: bool,
    /// Keys and policies were read at least once.
    pub snapshot_loaded: bool,
}

/// How often the change counter is read (product contract §7).
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// Least time between two looks: a storm of changes costs at most some fifty a second.
const FOLLOW_PAUSE: Duration = Duration::from_millis(20);
/// How often expired records are swept and last uses written.
const TIDY_EVERY: Duration = Duration::from_mins(1);
/// Records read at once where all of a kind are.
pub(crate) const PAGE: usize = 500;

impl Control {
    pub fn readiness(&self) -> Readiness {
        Readiness {
            store_reachable: self.spread.store_reachable.load(Ordering::Relaxed),
            snapshot_loaded: self.spread.snapshot_loaded.load(Ordering::Relaxed),
        }
    }

    /// Brings keys and policies into memory: before the proxy door opens.
    ///
    /// # Errors
    /// The store.
    pub async fn load(&self) -> Result<(), StoreError> {
        self.follow().await?;
        for integration in self.all::<Integration>().await? {
            let (held, own) = (&integration.redirect_uri, self.own_redirect_uri(&integration.id));
            if integration.rotates_refresh_tokens && !self.admits_rotation {
                error!(
                    integration.id = %integration.id,
                    "integration {} rotates refresh tokens, the store is shared, and tokens.spill_dir is not set: a \
                     token that the store does not take is lost with this process; set tokens.spill_dir", integration.id
                );
            }
            if *held != self.shared_redirect_uri() && *held != own {
                warn!(
                    integration.id = %integration.id,
                    "integration {} has the redirect URL {held}, which is not under connect.public_url: consents \
                     cannot come back; set it to {own} here and at the instance", integration.id
                );
            }
        }
        Ok(())
    }

    /// Follows the store until `closing` fires, tidies every minute, revokes what is to be revoked, and tells of refresh
    /// tokens that end. Side by side: a deleted key must not wait for any of the rest.
    pub async fn run(&self, closing: CancellationToken) {
        let following = async {
            let mut ticks = every(FOLLOW_EVERY);
            let mut followed = None;
            while self.next_change(&mut ticks, followed, &closing).await {
                followed = self.follow().await.ok(); // failures are logged where they change
                tokio::time::sleep(FOLLOW_PAUSE).await;
            }
        };
        let tidying = async {
            let mut ticks = every(TIDY_EVERY);
            while next(&mut ticks, &closing).await {
                self.tidy().await;
            }
        };
        tokio::join!(following, tidying, self.work_on_revocations(&closing), self.tell_of_expiry(&closing));
        self.write_last_uses().await;
    }

    /// Waits for the next tick, or for news in the store after `followed`. A store that did not answer is not asked for
    /// news: `None` waits for the tick. `false`: `closing` has fired.
    async fn next_change(
        &self,
        ticks: &mut Interval,
        followed: Option<ChangeCounter>,
        closing: &CancellationToken,
    ) -> bool {
        let news = async {
            match followed {
                Some(counter) => self.store.changed(counter).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => false,
            _ = ticks.tick() => true,
            () = news => true,
        }
    }

    /// Takes over what changed since last time. The counter that it followed to.
    pub(crate) async fn follow(&self) -> Result<ChangeCounter, StoreError> {
        let mut followed = self.spread.followed.lock().await;
        let result = self.follow_from(&mut followed).await;
        let reachable = result.is_ok();
        if self.spread.store_reachable.swap(reachable, Ordering::Relaxed) != reachable {
            match &result {
                Ok(_) => info!("the store answers"),
                Err(error) => error!(%error, "the store does not answer: {error}"),
            }
        }
        result
    }

    /// Keys and policies first: a revoked key waits for no connection.
    async fn follow_from(&self, followed: &mut Followed) -> Result<ChangeCounter, StoreError> {
        let asked_at = self.clock.now();
        let changes = match followed.counter {
            Some(counter) => self.store.changes(counter).await?,
            // The counter is read before the records, so that nothing falls between.
            None => match self.store.changes(ChangeCounter::default()).await? {
                Changes::Since { counter, .. } | Changes::Missed { counter } => Changes::Missed { counter },
            },
        };
        let refused = match &changes {
            Changes::Since { keys, .. } => {
                if keys.iter().any(|key| matches!(key.kind, Kind::CallerKey | Kind::Policy)) {
                    self.publish_snapshot().await?;
                } else {
                    self.snapshot.confirm(asked_at);
                }
                let due: BTreeSet<&RecordKey> = followed.owed.iter().chain(keys).collect();
                self.tokens.apply(&due.into_iter().cloned().collect::<Vec<_>>()).await?
            }
            Changes::Missed { .. } => {
                followed.counter = None; // until everything was read: the next answer may leave it out
                self.publish_snapshot().await?;
                self.tokens.apply_all().await?
            }
        };
        followed.counter = Some(changes.counter());
        followed.owe(refused);
        Ok(changes.counter())
    }

    async fn publish_snapshot(&self) -> Result<(), StoreError> {
        let asked_at = self.clock.now();
        let keys = self.all::<CallerKey>().await?;
        let policies = self.all::<Policy>().await?;
        let snapshot = Snapshot::compile(keys, policies, self.hashes.caller_key.clone());
        self.snapshot.publish(snapshot, asked_at);
        self.spread.snapshot_loaded.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Every record of a kind that can be read.
    pub(crate) async fn all<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        let (mut records, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list::<R>(after.as_deref(), PAGE).await?;
            for damaged in &page.damaged {
                error!(record = %damaged, "{damaged} cannot be read and is left out");
            }
            records.extend(page.records.into_iter().map(|versioned| versioned.record));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(records),
            }
        }
    }

    /// Puts an act of this process in force here at once; other processes follow within 250 ms.
    pub(crate) async fn in_force(&self, kind: Kind, id: &str) {
        if let Err(error) = self.follow().await {
            warn!(%error, "a change to {} {id} is stored; this process follows when the store answers", kind.name());
        }
    }

    async fn tidy(&self) {
        if let Err(error) = self.store.sweep(self.clock.now()).await {
            warn!(%error, "expired records were not swept");
        }
        self.write_last_uses().await;
    }

    /// Writes when each key was last used: at most once a minute, and once at the end.
    pub(crate) async fn write_last_uses(&self) {
        for (id, used_at) in self.snapshot.load().drain_last_used() {
            let Err(error) = self.write_last_use(&id, used_at).await else { continue };
            warn!(%error, "the last use of caller key {id} was not written");
            if !matches!(error, StoreError::Damaged { .. }) {
                return;
            }
        }
    }
}

impl Followed {
    fn owe(&mut self, refused: Vec<(RecordKey, StoreError)>) {
        let mut owed = BTreeSet::new();
        for (key, error) in refused {
            if !self.owed.contains(&key) {
                error!(%error, "a change of {key} is not in force here until the store gives the record: {error}");
            }
            owed.insert(key);
        }
        for key in self.owed.difference(&owed) {
            info!("the change of {key} is in force");
        }
        self.owed = owed;
    }
}

/// At once, and then once a `period`.
fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits for the next tick. `false`: `closing` has fired.
async fn next(ticks: &mut Interval, closing: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = closing.cancelled() => false,
        _ = ticks.tick() => true,
    }
}
