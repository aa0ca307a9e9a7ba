//! One function per act: each checks what was asked, stores the result and publishes it. The connect door, the admin
//! door and the command line are thin shells over [`Control`]. Tokens are obtained by `bearerd-tokens`; nothing here
//! talks to a token endpoint by itself.

mod connections;
mod consent;
mod dictionary;
mod error;
mod expiry;
mod explain;
mod gate;
mod integrations;
mod keys;
mod metrics;
mod policies;
mod publish;
mod record;
mod revocation;
mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use bearerd_crypto::KeyedHash;
use bearerd_model::Clock;
use bearerd_policy::{SharedSnapshot, Snapshot};
use bearerd_store::Store;
use bearerd_tokens::TokenEngine;
use metrics::Metrics;
use prometheus::Registry;
use tokio::sync::{Mutex, Notify};
use tokio_util::task::TaskTracker;
use tracing::error;

pub use connections::{
    ConnectionChange, ConnectionSpec, CreatedConnection, ImportedTokens, IssuedLink, TestReport,
};
pub use consent::{BegunConsent, Callback, ConsentFault, LinkPage};
pub use dictionary::Unchecked;
pub use error::{ActError, Field};
pub use expiry::expires_soon;
pub use explain::{CallSpec, Explanation, Holder, Limits};
pub use integrations::IntegrationSpec;
pub use keys::{IssuedKey, KeySpec};
pub use policies::{PolicySpec, WrittenPolicy};
use publish::Spread;
pub use publish::{LoadError, Readiness};
pub use settings::{ConnectRules, InstanceRules};

pub use bearerd_store::{Page, Revision, StoreError, Versioned};

/// Who asks for an act, for the records that name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// As shown to people: an admin key's id, later a person's name.
    pub name: String,
}

/// What a write found in its place.
#[derive(Debug)]
pub struct Written<R> {
    pub versioned: Versioned<R>,
    pub created: bool,
}

/// Everything the acts need. Shared by the doors as an `Arc`.
///
/// Cheap to clone: every part is shared.
#[derive(Debug, Clone)]
pub struct Control {
    store: Store,
    tokens: Arc<TokenEngine>,
    snapshot: Arc<SharedSnapshot>,
    clock: Arc<dyn Clock>,
    connect: Arc<ConnectRules>,
    instances: Arc<InstanceRules>,
    hashes: Arc<Hashes>,
    spread: Arc<Spread>,
    work: Arc<Work>,
    /// Whether an integration may rotate refresh tokens here.
    admits_rotation: bool,
    /// Acts on integrations read several records to decide: in this process, one at a time.
    integration_acts: Arc<Mutex<()>>,
    /// Acts that are brought to their end whatever becomes of who asked.
    acts: TaskTracker,
}

/// Keyed hashes, one per purpose.
#[derive(Debug)]
struct Hashes {
    caller_key: KeyedHash,
    link: KeyedHash,
    state: KeyedHash,
    cookie: KeyedHash,
    claim: KeyedHash,
    fingerprint: KeyedHash,
    revoked: KeyedHash,
    gate: KeyedHash,
}

/// What goes on behind the acts.
#[derive(Debug, Default)]
struct Work {
    metrics: Metrics,
    /// An act of this process has put a token into the revocation queue.
    revocations_due: Notify,
}

impl Control {
    /// An empty snapshot is published at once; [`Self::load`] brings the stored one.
    pub fn new(
        store: Store,
        tokens: Arc<TokenEngine>,
        clock: Arc<dyn Clock>,
        connect: ConnectRules,
        instances: InstanceRules,
    ) -> Self {
        let root = store.root();
        let hashes = Hashes {
            caller_key: root.keyed_hash("caller key"),
            link: root.keyed_hash("connect link"),
            state: root.keyed_hash("state"),
            cookie: root.keyed_hash("consent cookie"),
            claim: root.keyed_hash("claim"),
            fingerprint: root.keyed_hash("token fingerprint"),
            revoked: root.keyed_hash("revoked token"),
            gate: root.keyed_hash("revocation gate"),
        };
        let empty = Snapshot::compile([], [], hashes.caller_key.clone());
        Self {
            store,
            tokens,
            snapshot: Arc::new(SharedSnapshot::new(empty, clock.now())),
            clock,
            connect: Arc::new(connect),
            instances: Arc::new(instances),
            hashes: Arc::new(hashes),
            spread: Arc::default(),
            work: Arc::default(),
            admits_rotation: true,
            integration_acts: Arc::default(),
            acts: TaskTracker::new(),
        }
    }

    /// Whether an integration may rotate refresh tokens: not where processes share a store and `tokens.spill_dir` is
    /// not set, since a rotated token that the store does not take must be kept on this machine. Default: true.
    #[must_use]
    pub fn admitting_rotation(mut self, admits: bool) -> Self {
        self.admits_rotation = admits;
        self
    }

    /// Shows what control counts: revocations and refresh tokens near their end.
    ///
    /// # Errors
    /// A metric's name is registered already.
    pub fn register_metrics(&self, registry: &Registry) -> prometheus::Result<()> {
        self.work.metrics.register(registry)
    }

    /// Waits, at most `limit`, for acts under way: a code or a refresh token that was spent must be stored.
    pub async fn finish_acts(&self, limit: Duration) {
        self.acts.close();
        if tokio::time::timeout(limit, self.acts.wait()).await.is_err() {
            error!("acts still under way after {limit:?} were left");
        }
    }

    /// Brings `act` to its end even if the caller drops this future. `None`: the act panicked.
    async fn to_the_end<T: Send + 'static>(
        &self,
        act: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.acts.spawn(act).await.ok()
    }

    /// Keys and policies as the proxy door reads them.
    pub fn snapshot(&self) -> Arc<SharedSnapshot> {
        self.snapshot.clone()
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}
