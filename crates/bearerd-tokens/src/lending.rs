//! Hands out access tokens: at once where memory has one, else after the refresh that brings one.

use std::{sync::Arc, time::Duration};

use bearerd_model::ConnectionId;
use bearerd_refresh::{Cause, NotBegun};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    AfterRefusal, LendError, LentToken,
    engine::{Inner, unavailable},
    slot::{Lendable, Slot},
};

impl Inner {
    pub(crate) async fn acquire(self: Arc<Self>, id: ConnectionId) -> Result<LentToken, LendError> {
        let mut slot = self.slot_or_lend_error(&id).await?;
        let deadline = Instant::now() + self.settings.wait_max();
        let mut changed = slot.subscribe();
        loop {
            changed.borrow_and_update();
            let now = self.clock.now();
            match slot.lendable(now) {
                Lendable::Now(token) => {
                    slot.last_use.mark(now);
                    return Ok(token);
                }
                Lendable::Never(error) => return Err(error),
                Lendable::Elsewhere => {
                    slot = self.slot_or_lend_error(&id).await?;
                    changed = slot.subscribe();
                    continue;
                }
                Lendable::AfterRefresh => {}
            }
            let wake = match self.ask(&slot, Cause::Due) {
                Ok(()) => deadline,
                Err(NotBegun::Before(at)) => Instant::now() + at.since(now),
                Err(NotBegun::Claimed(until)) => deadline.min(Instant::now() + until.since(now)),
                Err(NotBegun::Ended) if self.closing.is_cancelled() => {
                    return Err(unavailable(Duration::from_secs(1), "shutting down"));
                }
                Err(NotBegun::Ended) => continue, // says why above
            };
            if wake > deadline {
                return Err(unavailable(
                    wake - Instant::now(),
                    "the last refresh failed; the next one is later",
                ));
            }
            // Checks the deadline before each wait: a refresh that starts, fails and pauses again must not loop.
            if Instant::now() >= deadline {
                return Err(unavailable(Duration::from_secs(1), "no token came in time"));
            }
            let _ = tokio::time::timeout_at(wake, changed.changed()).await;
        }
    }

    pub(crate) async fn slot_or_lend_error(
        self: &Arc<Self>,
        id: &ConnectionId,
    ) -> Result<Arc<Slot>, LendError> {
        if let Some(slot) = self.held(id) {
            return Ok(slot);
        }
        // On the engine's runtime: a caller that leaves must not cut a store command short.
        let (engine, wanted) = (self.clone(), id.clone());
        let loading = self.runtime.spawn(async move { engine.slot(&wanted).await });
        match loading.await {
            Ok(Ok(Some(slot))) => Ok(slot),
            Ok(Ok(None)) => Err(LendError::Unknown),
            Ok(Err(error)) => {
                warn!(connection.id = %id, %error, "connection {id} could not be read");
                Err(unavailable(Duration::from_secs(1), "the store cannot be read"))
            }
            Err(_) => Err(unavailable(Duration::from_secs(1), "shutting down")),
        }
    }

    pub(crate) async fn refused(self: Arc<Self>, id: ConnectionId, refused: LentToken) -> AfterRefusal {
        let Some(slot) = self.held(&id) else { return AfterRefusal::PassThrough };
        let deadline = Instant::now() + self.settings.wait_max();
        let mut changed = slot.subscribe();
        loop {
            changed.borrow_and_update();
            // Told apart by the tokens themselves: a grant after a purge may count its generations anew.
            let Some(generation) = slot.read(|state| state.generation_of(&refused)) else {
                match slot.lendable(self.clock.now()) {
                    Lendable::Now(token) if Arc::ptr_eq(&token.upstream, &refused.upstream) => {
                        return AfterRefusal::Replay(token);
                    }
                    Lendable::Now(_) => return AfterRefusal::PassThrough, // for another instance (I-4)
                    // An exchange under way will tell.
                    _ if slot.read(|state| state.refresher.is_exchanging())
                        && tokio::time::timeout_at(deadline, changed.changed()).await.is_ok() =>
                    {
                        continue;
                    }
                    _ => return AfterRefusal::PassThrough,
                }
            };
            // One forced refresh a generation: whoever comes first starts it, everyone else waits for its end.
            let wake = match self.ask_refused(&slot, generation) {
                Ok(()) => deadline,
                // Another process is at it, for the same reason most often: its outcome is awaited.
                Err(NotBegun::Claimed(until)) => deadline.min(Instant::now() + until.since(self.clock.now())),
                Err(NotBegun::Before(_) | NotBegun::Ended) => return AfterRefusal::PassThrough,
            };
            if tokio::time::timeout_at(wake, changed.changed()).await.is_err() && wake == deadline {
                return AfterRefusal::PassThrough;
            }
        }
    }
}
