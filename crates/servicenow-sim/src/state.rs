//! The handle to a running simulator: everything the control endpoint offers, in process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::behaviour::Behaviour;
use crate::clock::SimTime;
use crate::counters::Counters;
use crate::faults::{FaultRule, FaultStatus};
use crate::ledger::Ledger;
use crate::marker::WrittenMarkers;
use crate::request_log::{MalformedRequest, RequestRecord};
use crate::settings::{ClientSettings, UserSettings};
use crate::tokens::{TokenFamily, TokenSelection, WhichTokens};
use crate::world::World;

/// What the connections of one simulator share.
pub(crate) struct Shared {
    world: Mutex<World>,
    held: Mutex<Vec<Held>>,
    /// Bumped after every change of the counters.
    changed: watch::Sender<u64>,
}

/// One request waiting at a `hold` fault.
struct Held {
    gate: String,
    release: oneshot::Sender<()>,
}

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self { world: Mutex::new(world), held: Mutex::new(Vec::new()), changed: watch::Sender::new(0) }
    }

    /// The world; never held across an await.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_change(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits at the gate until it is released.
    pub(crate) async fn hold(&self, gate: &str) {
        let (release, released) = oneshot::channel();
        self.held().push(Held { gate: gate.to_owned(), release });
        self.world().counters.held_now += 1;
        self.note_change();
        let _ = released.await; // a dropped sender releases as well
        self.world().counters.held_now -= 1;
        self.note_change();
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and steers a running simulator. Clones share it.
#[derive(Clone)]
pub struct SimState {
    pub(crate) shared: Arc<Shared>,
}

impl SimState {
    pub fn behaviour(&self) -> Behaviour {
        self.shared.world().behaviour.clone()
    }

    /// Changes some switches.
    pub fn change_behaviour(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.world().behaviour);
    }

    /// Applies an RFC 7396 merge patch and answers the behaviour now in force; `null` puts a default back.
    ///
    /// # Errors
    /// What is wrong with the patch: unknown switch, wrong type. Nothing has changed then.
    pub fn patch_behaviour(&self, patch: &Value) -> Result<Behaviour, String> {
        let mut world = self.shared.world();
        world.behaviour = world.behaviour.patched(patch)?;
        Ok(world.behaviour.clone())
    }

    /// Adds a rule and answers its id; `None` if 1,000 rules are in force already.
    pub fn add_fault(&self, rule: FaultRule) -> Option<u64> {
        self.shared.world().faults.add(rule)
    }

    /// `false` if there is no such rule.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.shared.world().faults.remove(id)
    }

    /// Ends every rule and lets every held request go.
    pub fn clear_faults(&self) {
        self.shared.world().faults.clear();
        self.release(None);
    }

    pub fn faults(&self) -> Vec<FaultStatus> {
        self.shared.world().faults.list().to_vec()
    }

    /// Lets the requests go that wait at this gate now (`None`: at any gate); answers how many.
    pub fn release(&self, gate: Option<&str>) -> usize {
        let mut held = self.shared.held();
        let (released, kept): (Vec<_>, Vec<_>) =
            held.drain(..).partition(|one| gate.is_none_or(|gate| gate == one.gate));
        *held = kept;
        let count = released.len();
        for one in released {
            let _ = one.release.send(()); // the request may be gone
        }
        count
    }

    pub fn counters(&self) -> Counters {
        self.shared.world().counters.clone()
    }

    pub fn reset_counters(&self) {
        let mut world = self.shared.world();
        world.counters.reset();
        world.written_markers = WrittenMarkers::default();
    }

    /// Waits until the counters satisfy `condition`. Put a time-out around it. Cancel safe.
    pub async fn wait_for(&self, mut condition: impl FnMut(&Counters) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        while !condition(&self.shared.world().counters) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The latest requests, oldest first, as they reached the instance.
    pub fn last_requests(&self) -> Vec<RequestRecord> {
        self.shared.world().log.list()
    }

    /// The latest of what arrived and was not one well-formed request, oldest first.
    pub fn malformed_requests(&self) -> Vec<MalformedRequest> {
        self.shared.world().malformed.list()
    }

    pub fn clear_last_requests(&self) {
        self.shared.world().log.clear();
    }

    pub fn now(&self) -> SimTime {
        self.shared.world().now()
    }

    /// Moves the simulator's clock forward and answers the new time.
    pub fn advance_clock(&self, by: Duration) -> SimTime {
        let mut world = self.shared.world();
        world.clock.advance(by);
        world.now()
    }

    /// Every exchange so far, and what each family has now.
    pub fn ledger(&self) -> Ledger {
        self.shared.world().ledger()
    }

    /// Exchanges under way; cheaper to watch than [`Self::ledger`].
    pub fn exchanges_in_flight(&self) -> u64 {
        self.shared.world().exchanges.in_flight()
    }

    /// Forgets the exchanges and revocations that have ended.
    pub fn reset_ledger(&self) {
        self.shared.world().exchanges.reset();
    }

    pub fn tokens(&self) -> Vec<TokenFamily> {
        self.shared.world().tokens.list()
    }

    /// Ends the selected tokens now; answers how many families that touched.
    pub fn expire_tokens(&self, selection: &TokenSelection) -> usize {
        self.shared.world().tokens.end(selection)
    }

    /// Ends every token of the user, and with `deactivate` the account too.
    pub fn revoke_user(&self, user_name: &str, deactivate: bool) -> usize {
        let mut world = self.shared.world();
        if deactivate && let Some(user) = world.directory.get(user_name).cloned() {
            world.put_user(UserSettings { active: false, ..user });
        }
        let user = Some(user_name.to_owned());
        world.tokens.end(&TokenSelection { client_id: None, user, which: WhichTokens::All })
    }

    /// Ends every token of the client, and with `deactivate` the client record too.
    pub fn revoke_client(&self, client_id: &str, deactivate: bool) -> usize {
        let mut world = self.shared.world();
        if deactivate && let Some(client) = world.clients.get_mut(client_id) {
            client.active = false;
        }
        let client_id = Some(client_id.to_owned());
        world.tokens.end(&TokenSelection { client_id, user: None, which: WhichTokens::All })
    }

    pub fn clients(&self) -> Vec<ClientSettings> {
        let mut clients: Vec<_> = self.shared.world().clients.values().cloned().collect();
        clients.sort_by(|one, other| one.client_id.cmp(&other.client_id));
        clients
    }

    /// Adds or replaces a client; `false` if its id is empty or there are 10,000 already.
    pub fn put_client(&self, client: ClientSettings) -> bool {
        let mut world = self.shared.world();
        let fits = !client.client_id.is_empty() && world.clients.len() < RECORDS_MAX;
        if fits {
            world.put_client(client);
        }
        fits
    }

    /// Adds or replaces a user; `false` if its name is empty or there are 10,000 already.
    pub fn put_user(&self, user: UserSettings) -> bool {
        let mut world = self.shared.world();
        let fits = !user.user_name.is_empty() && world.directory.len() < RECORDS_MAX;
        if fits {
            world.put_user(user);
        }
        fits
    }
}

/// Clients, and users, at most.
const RECORDS_MAX: usize = 10_000;
