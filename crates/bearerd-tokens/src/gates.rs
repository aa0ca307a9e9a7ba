//! The ways to the token endpoints: how many calls are under way at once at an instance, and whether any may go out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bearerd_model::{Integration, UnixTime};
use bearerd_refresh::{Breaker, Passage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Token calls under way at once at one instance. A restart or an outage makes many refreshes due together; more at
/// once would only fill the instance's own queue (servicenow.md §6). An instance that hangs holds up no other.
pub(crate) const TOKEN_CALLS_MAX: usize = 32;

/// Places are an instance's; a breaker is a client's at an instance: what one client's calls meet says nothing about
/// another's.
#[derive(Debug, Default)]
pub(crate) struct Gates(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    places: HashMap<String, Arc<Semaphore>>,
    gates: HashMap<(String, String), Arc<Gate>>,
}

#[derive(Debug)]
pub(crate) struct Gate {
    calls: Arc<Semaphore>,
    breaker: Mutex<Breaker>,
}

/// A place among the calls under way; dropping it without a word gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    is_probe: bool,
    left: bool,
    _permit: OwnedSemaphorePermit,
}

/// Why there is no place.
pub(crate) enum Barred {
    Until(UnixTime),
    /// All were taken for too long.
    Full,
}

impl Gates {
    pub(crate) fn of(&self, integration: &Integration) -> Arc<Gate> {
        let instance = integration.instance.as_str().to_owned();
        let mut known = lock(&self.0);
        let places = known.places.entry(instance.clone());
        let calls = places.or_insert_with(|| Arc::new(Semaphore::new(TOKEN_CALLS_MAX))).clone();
        let gate = || Arc::new(Gate { calls, breaker: Mutex::default() });
        known.gates.entry((instance, integration.client_id.clone())).or_insert_with(gate).clone()
    }

    /// Gates that let nothing through at the moment.
    pub(crate) fn shut(&self, now: UnixTime) -> usize {
        lock(&self.0).gates.values().filter(|gate| lock(&gate.breaker).is_open(now)).count()
    }
}

impl Gate {
    /// Waits for a place, at most `limit`. Whatever the breaker says.
    pub(crate) async fn place(self: &Arc<Self>, limit: Duration) -> Result<Place, Barred> {
        match tokio::time::timeout(limit, self.calls.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { gate: self.clone(), is_probe: false, left: false, _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(Barred::Full),
        }
    }

    /// The same, where the breaker lets a call through.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        limit: Duration,
        now: impl Fn() -> UnixTime,
    ) -> Result<Place, Barred> {
        if let Some(until) = lock(&self.breaker).shut(now()) {
            return Err(Barred::Until(until)); // without waiting in line for it
        }
        let mut place = self.place(limit).await?;
        place.is_probe = lock(&self.breaker).enter(now()).map_err(Barred::Until)?;
        Ok(place)
    }
}

impl Place {
    pub(crate) fn leave(mut self, passage: Passage, now: UnixTime, jitter: f64) {
        self.left = true;
        lock(&self.gate.breaker).leave(passage, self.is_probe, now, jitter);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left {
            lock(&self.gate.breaker).leave(Passage::NotCalled, self.is_probe, UnixTime::default(), 0.0);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
