//! Spreads changes: reads the change counter every 250 ms, and as soon as the store says that there is something new,
//! and brings what changed into memory. Every act of this process does the same at once, so that an operator sees an act
//! in force when it returns.
//!
//! Two parts, each behind a lock of its own: reading what changed, with keys and policies; and taking over connections
//! and integrations, which are owed from then on until the store gave them. A revoked key waits for the first alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex as SyncMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bearerd_model::{CallerKey, Integration, IntegrationId, Policy};
use bearerd_policy::Snapshot;
use bearerd_store::{ChangeCounter, Changes, Kind, Record, RecordKey, StoreError};
use tokio::{
    sync::{Mutex, Notify},
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::Control;

/// How far this process has followed the store.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    followed: Mutex<Followed>,
    owed: SyncMutex<Owed>,
    /// There is something new in `owed`.
    owes: Notify,
    /// Held while what is owed is taken over: what was read earlier must not come in later.
    applying: Mutex<()>,
    store_reachable: AtomicBool,
    snapshot_loaded: AtomicBool,
}

#[derive(Debug, Default)]
struct Followed {
    /// Every change up to here was taken over, but for what is owed. `None`: nothing was read yet.
    counter: Option<ChangeCounter>,
    /// Keys or policies changed and were not read since.
    owes_snapshot: bool,
}

/// Connections and integrations that changed and were not taken over since. They are asked for until the store gives
/// them; what changed after them does not wait for that (S-04).
#[derive(Debug, Default)]
struct Owed {
    /// Grows with everything that is owed.
    newest: u64,
    /// Changes were missed: every record in memory is owed.
    everything: Option<u64>,
    records: BTreeMap<RecordKey, Debt>,
}

#[derive(Debug, Clone, Copy)]
struct Debt {
    since: u64,
    /// The store did not give it since then. Asked for again with the next tick.
    refused: bool,
    /// It was told that the store does not give it.
    told: bool,
}

/// What of the owed records is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// What was not refused yet: at once.
    New,
    /// All of it: with each tick.
    All,
}

/// How the store and this process stand, for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    pub store_reachable: bool,
    /// Keys and policies were read at least once.
    pub snapshot_loaded: bool,
}

/// Why a process must not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the store cannot be read: {0}")]
    Store(#[from] StoreError),
    #[error(
        "integration {0} rotates refresh tokens and the store is shared: a token that the store does not take would be \
         lost with this process; set tokens.spill_dir to a folder on a disk of this machine"
    )]
    SpillMissing(IntegrationId),
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
    /// [`LoadError`].
    pub async fn load(&self) -> Result<(), LoadError> {
        self.follow().await?;
        for integration in self.all::<Integration>().await? {
            let (held, own) = (&integration.redirect_uri, self.own_redirect_uri(&integration.id));
            if integration.rotates_refresh_tokens && !self.admits_rotation {
                return Err(LoadError::SpillMissing(integration.id));
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

    /// Follows the store until `closing` fires, takes over what changed, tidies every minute, revokes what is to be
    /// revoked, and tells of refresh tokens that end. Side by side: a deleted key must not wait for any of the rest.
    pub async fn run(&self, closing: CancellationToken) {
        let following = async {
            let mut ticks = every(FOLLOW_EVERY);
            let mut followed = None;
            while self.next_change(&mut ticks, followed, &closing).await {
                followed = self.follow_changes().await.ok(); // failures are logged where they change
                tokio::time::sleep(FOLLOW_PAUSE).await;
            }
        };
        let applying = async {
            let mut ticks = every(FOLLOW_EVERY);
            loop {
                let ask = tokio::select! {
                    biased;
                    () = closing.cancelled() => return,
                    _ = ticks.tick() => Ask::All,
                    () = self.spread.owes.notified() => Ask::New,
                };
                self.apply_owed(ask).await;
            }
        };
        let tidying = async {
            let mut ticks = every(TIDY_EVERY);
            while next(&mut ticks, &closing).await {
                self.tidy().await;
            }
        };
        tokio::join!(
            following,
            applying,
            tidying,
            self.work_on_revocations(&closing),
            self.tell_of_expiry(&closing)
        );
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

    /// Takes over all that changed since last time, keys and policies first.
    pub(crate) async fn follow(&self) -> Result<(), StoreError> {
        let followed = self.follow_changes().await;
        self.apply_owed(Ask::All).await;
        followed.map(drop)
    }

    /// Reads what changed since last time: keys and policies are in force then, the rest is owed. The counter that it
    /// followed to.
    async fn follow_changes(&self) -> Result<ChangeCounter, StoreError> {
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

    async fn follow_from(&self, followed: &mut Followed) -> Result<ChangeCounter, StoreError> {
        let asked_at = self.clock.now();
        let changes = match followed.counter {
            Some(counter) => self.store.changes(counter).await?,
            // The counter is read before the records, so that nothing falls between.
            None => match self.store.changes(ChangeCounter::default()).await? {
                Changes::Since { counter, .. } | Changes::Missed { counter } => Changes::Missed { counter },
            },
        };
        let counter = changes.counter();
        match changes {
            Changes::Since { keys, .. } => {
                let (of_snapshot, others): (Vec<_>, Vec<_>) =
                    keys.into_iter().partition(|key| matches!(key.kind, Kind::CallerKey | Kind::Policy));
                followed.owes_snapshot |= !of_snapshot.is_empty();
                if !others.is_empty() {
                    self.owed().owe(others);
                    self.spread.owes.notify_one();
                }
            }
            Changes::Missed { .. } => {
                followed.owes_snapshot = true;
                self.owed().owe_everything();
                self.spread.owes.notify_one();
            }
        }
        // Whatever it tells of is owed by now, so that the same changes need not be read again.
        followed.counter = Some(counter);
        if followed.owes_snapshot {
            self.publish_snapshot().await?;
            followed.owes_snapshot = false;
        } else {
            self.snapshot.confirm(asked_at);
        }
        Ok(counter)
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.spread.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over connections and integrations that are owed. Dropped in the middle, it leaves them owed.
    async fn apply_owed(&self, ask: Ask) {
        let _one_at_a_time = self.spread.applying.lock().await;
        let everything = self.owed().everything;
        if let Some(since) = everything {
            let refused = self.tokens.apply_all().await;
            self.owed().everything_applied(since, refused);
        }
        let asked = self.owed().asked(ask);
        if !asked.is_empty() {
            let keys: Vec<RecordKey> = asked.keys().cloned().collect();
            let refused = self.tokens.apply(&keys).await;
            self.owed().applied(&asked, refused);
        }
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

    /// Puts an act of this process in force here at once; other processes follow within 250 ms. A key or policy waits for
    /// no connection.
    pub(crate) async fn in_force(&self, kind: Kind, id: &str) {
        if let Err(error) = self.follow_changes().await {
            warn!(%error, "a change to {} {id} is stored; this process follows when the store answers", kind.name());
        }
        if !matches!(kind, Kind::CallerKey | Kind::Policy) {
            self.apply_owed(Ask::New).await;
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

impl Owed {
    fn owe(&mut self, keys: Vec<RecordKey>) {
        self.newest += 1;
        for key in keys {
            let told = self.records.get(&key).is_some_and(|debt| debt.told);
            self.records.insert(key, Debt { since: self.newest, refused: false, told });
        }
    }

    fn owe_everything(&mut self) {
        self.newest += 1;
        self.everything = Some(self.newest);
    }

    fn asked(&self, ask: Ask) -> BTreeMap<RecordKey, Debt> {
        let wanted = |debt: &Debt| ask == Ask::All || !debt.refused;
        self.records.iter().filter(|(_, debt)| wanted(debt)).map(|(key, debt)| (key.clone(), *debt)).collect()
    }

    /// Everything was asked for once; of it, what was refused is owed by itself.
    fn everything_applied(&mut self, since: u64, refused: Vec<(RecordKey, StoreError)>) {
        if self.everything == Some(since) {
            self.everything = None;
        }
        for (key, error) in refused {
            self.refuse(&key, since, &error);
        }
    }

    fn applied(&mut self, asked: &BTreeMap<RecordKey, Debt>, refused: Vec<(RecordKey, StoreError)>) {
        let mut owed = BTreeSet::new();
        for (key, error) in refused {
            let since = asked.get(&key).map_or(self.newest, |debt| debt.since);
            self.refuse(&key, since, &error);
            owed.insert(key);
        }
        for (key, debt) in asked.iter().filter(|(key, _)| !owed.contains(key)) {
            // Not one that changed again meanwhile.
            if self.records.get(key).is_some_and(|now| now.since == debt.since) {
                self.records.remove(key);
                if debt.told {
                    info!("the change of {key} is in force");
                }
            }
        }
    }

    /// The record was asked for after `since`, and the store did not give it.
    fn refuse(&mut self, key: &RecordKey, since: u64, error: &StoreError) {
        let debt = self.records.entry(key.clone()).or_insert(Debt { since, refused: true, told: false });
        debt.refused = debt.since <= since;
        if !debt.told {
            debt.told = true;
            error!(%error, "a change of {key} is not in force here until the store gives the record: {error}");
        }
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
