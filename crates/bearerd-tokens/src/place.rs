//! Where an engine runs: who it is among the processes of a store, and what this machine keeps for it.

use bearerd_crypto::random_bytes;
use bearerd_model::Owner;
use bearerd_spill::{Spill, SpillEntry};

/// This process among those that share the store.
#[derive(Debug)]
pub struct ProcessPlace {
    pub(crate) owner: Owner,
    pub(crate) exclusive: bool,
    pub(crate) spill: Option<Spill>,
    pub(crate) recovered: Vec<SpillEntry>,
}

impl ProcessPlace {
    /// No other process can have the store open.
    pub fn alone() -> Self {
        Self { exclusive: true, ..Self::shared() }
    }

    /// One of any number of processes.
    pub fn shared() -> Self {
        let owner = Owner { node: random(), run: random() };
        Self { owner, exclusive: false, spill: None, recovered: Vec::new() }
    }

    /// Keeps on this machine what the store has not taken; `recovered` is what an earlier run left there. The folder's
    /// node is this process's from now on: what its earlier runs had under way is over.
    #[must_use]
    pub fn with_spill(mut self, spill: Spill, recovered: Vec<SpillEntry>) -> Self {
        self.owner.node = spill.node();
        self.spill = Some(spill);
        self.recovered = recovered;
        self
    }
}

fn random() -> u64 {
    u64::from_be_bytes(*random_bytes::<8>())
}
