//! One function per act: each checks what was asked, stores the result and publishes it. The connect door, the admin
//! door and the command line are thin shells over [`Control`]. Tokens are obtained by `bearerd-tokens`; nothing here
//! talks to a token endpoint by itself.

mod connections;
mod consent;
mod error;
mod integrations;
mod keys;
mod policies;
mod publish;
mod record;
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
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;
use tracing::error;

pub use connections::{
    ConnectionChange, ConnectionSpec, CreatedConnection, ImportedTokens, IssuedLink, TestReport,
};
pub use consent::{BegunConsent, Callback, ConsentFault, LinkPage};
pub use error::{ActError, Field};
pub use integrations::IntegrationSpec;
pub use keys::{IssuedKey, KeySpec};
pub use policies::PolicySpec;
pub use publish::Readiness;
use publish::Spread;
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
            integration_acts: Arc::default(),
            acts: TaskTracker::new(),
        }
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
