//! Keeps the tokens of one client that come and those that are revoked apart. ServiceNow gives one client and user the
//! same tokens, so a consent may be given the very token whose revocation is on its way. Therefore, in any number of
//! processes: whoever obtains tokens says so first and waits for a revocation call under way; nobody begins such a call
//! while someone obtains tokens, nor if someone has since it was decided.
//!
//! The gate is a record of its own for each client, changed by compare-and-swap. Every entry has an end, so that a
//! process that is gone holds nobody up for long. The client alone names it: an instance may have several addresses.

use std::{future::Future, time::Duration};

use bearerd_crypto::random_hex;
use bearerd_model::{Integration, UnixTime};
use bearerd_store::{RevocationCall, RevocationGate, StoreError};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::{Control, revocation::jitter};

/// Longest that somebody obtains tokens: the exchange, three user calls and the tries to write the grant, each at its
/// own limit.
pub(crate) const OBTAINING_MAX: Duration = Duration::from_mins(10);
/// Between two looks at a revocation call that somebody waits for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for a call, whatever the clock of who makes it says.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Changes of one gate that another writer overtook, in a row; with the pauses between them, some seconds. Many people
/// may consent at once.
const CONFLICTS_MAX: u32 = 100;
/// Longest pause after a change that was overtaken.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A call may not begin now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GateBusy;

impl Control {
    /// Runs `act`, which obtains tokens of this client and writes them down, while none of the client's is revoked.
    ///
    /// # Errors
    /// The store; `act` was not begun.
    pub(crate) async fn while_obtaining<T>(
        &self,
        integration: &Integration,
        act: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let gate = self.gate_id(integration);
        let name = random_hex(8);
        let under_way = self
            .change_gate(&gate, |gate, now| {
                gate.entered = (gate.entered + 1).max(now.as_millis());
                gate.obtaining.insert(name.clone(), now + OBTAINING_MAX);
                gate.calling.clone()
            })
            .await?;
        if let Some(call) = under_way {
            self.wait_for(&gate, &call).await;
        }
        let result = act.await;
        if let Err(error) = self.change_gate(&gate, |gate, _| gate.obtaining.remove(&name)).await {
            warn!(%error, integration.id = %integration.id, "revocations under {} wait up to {OBTAINING_MAX:?}", integration.id);
        }
        self.work.revocations_due.notify_one();
        Ok(result)
    }

    /// Waits until the call is over. No other begins meanwhile.
    async fn wait_for(&self, gate: &str, call: &RevocationCall) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.clock.now() < call.until && Instant::now() < deadline {
            let stored = self.store.load::<RevocationGate>(gate).await;
            if let Ok(stored) = stored
                && stored.is_none_or(|gate| gate.record.calling.as_ref() != Some(call))
            {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How often somebody has begun to obtain tokens. Busy while somebody does, and while a call is under way: whoever
    /// may begin none need not look for holders.
    pub(crate) async fn look_at_gate(&self, gate: &str) -> Result<Result<u64, GateBusy>, StoreError> {
        let stored = self.store.load::<RevocationGate>(gate).await?;
        let gate = stored.map(|gate| gate.record).unwrap_or_default();
        let now = self.clock.now();
        let is_busy = gate.obtaining.values().any(|until| *until > now)
            || gate.calling.is_some_and(|call| call.until > now);
        Ok(if is_busy { Err(GateBusy) } else { Ok(gate.entered) })
    }

    /// Begins a call if nobody has begun to obtain tokens since `entered`, and no other call is under way. It is over
    /// with [`Self::end_call`], at the latest at `until`.
    pub(crate) async fn begin_call(
        &self,
        gate: &str,
        entered: u64,
        lasts_at_most: Duration,
    ) -> Result<Result<RevocationCall, GateBusy>, StoreError> {
        let id = random_hex(8);
        self.change_gate(gate, |gate, now| {
            if gate.entered != entered || !gate.obtaining.is_empty() || gate.calling.is_some() {
                return Err(GateBusy);
            }
            let call = RevocationCall { id: id.clone(), until: now + lasts_at_most };
            gate.calling = Some(call.clone());
            Ok(call)
        })
        .await
    }

    pub(crate) async fn end_call(&self, gate: &str, call: &RevocationCall) -> Result<(), StoreError> {
        self.change_gate(gate, |gate, _| {
            if gate.calling.as_ref() == Some(call) {
                gate.calling = None;
            }
        })
        .await
    }

    /// `change` sees the gate without what has come to its end, afresh each time; a gate that it leaves alone is not
    /// written.
    async fn change_gate<T>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut RevocationGate, UnixTime) -> T,
    ) -> Result<T, StoreError> {
        for tries in 1..=CONFLICTS_MAX {
            let stored = self.store.load::<RevocationGate>(id).await?;
            let now = self.clock.now();
            let mut gate = match &stored {
                Some(stored) => stored.record.clone(),
                None => RevocationGate { id: id.to_owned(), ..RevocationGate::default() },
            };
            gate.obtaining.retain(|_, until| *until > now);
            gate.calling = gate.calling.take().filter(|call| call.until > now);
            let result = change(&mut gate, now);
            let written = match stored {
                Some(stored) if stored.record == gate => return Ok(result),
                Some(stored) => self.store.replace(stored.revision, &gate).await?,
                None => self.store.create(&gate).await?,
            };
            if written.is_some() {
                return Ok(result);
            }
            // Longer and longer, and none as long as another's.
            let pause = (Duration::from_millis(2) * tries).min(CONFLICT_PAUSE_MAX);
            tokio::time::sleep(pause.mul_f64(jitter())).await;
        }
        error!("revocation gate {id} is changed by too many writers at once");
        Err(StoreError::Refused("a revocation gate is changed by too many writers at once".to_owned()))
    }

    pub(crate) fn gate_id(&self, integration: &Integration) -> String {
        self.hashes.gate.hex(integration.client_id.as_bytes())
    }
}
