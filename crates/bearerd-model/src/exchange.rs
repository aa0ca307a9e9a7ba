//! What a connection's record says of its exchanges: which state of the grant it holds, and which exchange is under way.
//!
//! An *exchange* spends a refresh token (or client credentials) at the token endpoint. Each has an [`Epoch`]; the state
//! that it leads to carries it, so that of any two states of one connection it is plain which replaces the other.

use crate::{Generation, UnixTime};

/// Names an exchange. Grows with every claim of one connection, in whatever process: the last one plus one, or the
/// time in Unix milliseconds if that is greater, so that it also grows over a store that went back a few writes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Which state of a connection's grant a record holds. A greater one replaces a smaller one; nothing else does.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct GrantVersion {
    /// The epoch in which the grant began or was purged. An exchange changes only the grant that it began from.
    pub lineage: Epoch,
    /// The epoch of the exchange that led here.
    pub epoch: Epoch,
}

/// A process that exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// Stays over restarts; at most one living process has it.
    pub node: u64,
    /// Drawn at each start.
    pub run: u64,
}

/// An exchange under way: written before the token endpoint is called, removed with its outcome. One that is still
/// there after its deadline leaves the exchange in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Intent {
    pub epoch: Epoch,
    pub owner: Owner,
    /// The generation that it began from.
    pub generation: Generation,
    pub began_at: UnixTime,
    /// Until then no other process exchanges. Later than the call's own limit.
    pub deadline: UnixTime,
    /// An earlier exchange of the same refresh token was left in doubt: a refusal may only mean that it was answered.
    pub in_doubt: bool,
}

/// How the exchanges of a connection stand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub struct Exchanges {
    /// The newest epoch given out.
    pub claimed: Epoch,
    pub version: GrantVersion,
    /// The newest generation there has been, also of grants that were purged.
    pub generation: Generation,
    pub intent: Option<Intent>,
    /// A refresh has brought another refresh token: this server rotates, whatever the integration says.
    pub rotated: bool,
}

impl Exchanges {
    pub fn next_epoch(&self, now: UnixTime) -> Epoch {
        let newest = self.claimed.max(self.version.epoch);
        Epoch((newest.0 + 1).max(now.as_millis()))
    }

    /// Another grant, or none any more.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        self.claimed = self.claimed.max(epoch);
        self.version = GrantVersion { lineage: epoch, epoch };
        self.intent = None;
    }

    /// The exchange `epoch` has come to its end.
    pub(crate) fn advance(&mut self, epoch: Epoch) {
        self.claimed = self.claimed.max(epoch);
        self.version.epoch = epoch;
        self.settle(epoch);
    }

    /// Removes the intent of `epoch`, or of an earlier one: compare-and-delete.
    pub fn settle(&mut self, epoch: Epoch) {
        self.intent = self.intent.take().filter(|intent| intent.epoch > epoch);
    }
}
