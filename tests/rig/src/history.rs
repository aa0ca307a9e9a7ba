//! What must hold whatever happens: the invariants of `security.md` §5.2 that concern tokens, as code. Every run of the
//! rig, whoever chooses what happens next, ends with this checker.
//!
//! | | checked | when |
//! |---|---|---|
//! | I-1 | the newest refresh token that a process was told is safe is in the store or a spill log | each change of either |
//! | I-1 | the stored refresh token is one that the server takes | once all has settled |
//! | I-2 | exchanges of one refresh token in flight: one; with a pause, a rollback or clocks too far apart, two | each call |
//! | I-3 | stored version and generation never fall, and one version has one refresh token | each write |
//! | I-6 | a person is asked only where the newest refresh token was refused | each write |
//! | I-7 | what is lent has not ended; what could be lent stays lendable until its end | each event, each use |
//! | I-8 | no call without a cause; no burst of calls; each place at the instance is given back | each call, the end |
//! | I-12, I-14 | after the last fault every process has a token that is taken, without anybody's help, within a bound | the end |

use bearerd_model::{Connection, DeathCause, Generation, GrantVersion, Lifecycle};

/// One invariant broken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    pub invariant: &'static str,
    pub connection: usize,
    /// Virtual time, in milliseconds.
    pub at: u64,
    pub evidence: String,
}

/// What a run may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a promise of its own")]
pub struct Limits {
    /// Exchanges of one refresh token that may be in flight at once.
    pub in_flight_max: usize,
    /// The server takes the previous refresh token until its successor was used, or keeps one for good: no grant may
    /// be lost, whatever happens.
    pub forgiving: bool,
    /// What the store has confirmed stays, whatever takes over.
    pub durable: bool,
    /// Disks may fail: then memory is what there is, until the store is back.
    pub memory_counts: bool,
    /// No fault at all: every call needs its cause.
    pub quiet: bool,
    /// How far clocks are apart, in milliseconds.
    pub skew_ms: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct History {
    pub limits: Limits,
    pub violations: Vec<Violation>,
    pub connections: Vec<Facts>,
    /// What happened, if somebody wants to read it.
    pub trace: Option<Vec<String>>,
}

/// What is known of one connection.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The family of the newest consent, if it was not purged.
    pub family: Option<usize>,
    /// The newest state of which a process was told that it is safe, and its refresh token.
    pub safe: Option<(GrantVersion, usize)>,
    /// Calls under way: process, run, refresh token.
    pub in_flight: Vec<(usize, u64, usize)>,
    /// Refresh tokens that were refused, in truth or by a fault.
    pub refused: Vec<usize>,
    /// Refresh tokens that were refused although the server takes them.
    pub wronged: Vec<usize>,
    /// An answer was lost, or its reader; a server that does not forgive may end the grant for it.
    pub disturbed: bool,
    pub calls: u64,
    pub issues: u64,
    pub forced: u64,
}

impl History {
    pub fn new(limits: Limits, connections: usize) -> Self {
        let connections = vec![Facts::default(); connections];
        Self { limits, violations: Vec::new(), connections, trace: None }
    }

    pub fn note(&mut self, at: u64, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} {}", format!("{}.{:03}", at / 1_000, at % 1_000), line()));
        }
    }

    pub fn broken(&mut self, invariant: &'static str, connection: usize, at: u64, evidence: String) {
        self.note(at, || format!("BROKEN {invariant} connection {connection}: {evidence}"));
        self.violations.push(Violation { invariant, connection, at, evidence });
    }

    // --- the store ------------------------------------------------------------------------------------------------

    /// I-3 and I-6, for a record that was written over another.
    pub fn written(&mut self, connection: usize, at: u64, before: &Connection, after: &Connection) {
        let (old, new) = (&before.exchanges, &after.exchanges);
        let generation = |record: &Connection| record.grant.as_ref().map(|grant| grant.generation);
        if new.version < old.version {
            let evidence = format!("stored version fell from {:?} to {:?}", old.version, new.version);
            self.broken("I-3", connection, at, evidence);
        } else if new.generation < old.generation || falls(generation(before), generation(after)) {
            let evidence = format!(
                "stored generation fell from {:?} ({:?}) to {:?} ({:?})",
                old.generation,
                generation(before),
                new.generation,
                generation(after)
            );
            self.broken("I-3", connection, at, evidence);
        } else if new.version == old.version && refresh_of(before) != refresh_of(after) {
            let evidence = format!(
                "version {:?} had {:?} and has {:?}",
                old.version,
                refresh_of(before),
                refresh_of(after)
            );
            self.broken("I-3", connection, at, evidence);
        }
        let was_dead = matches!(before.lifecycle, Lifecycle::ReauthorizationRequired { .. });
        if let Lifecycle::ReauthorizationRequired { cause, .. } = after.lifecycle
            && !was_dead
        {
            let newest = refresh_of(before);
            let refused = newest.is_some_and(|newest| self.connections[connection].refused.contains(&newest));
            if !refused || cause != DeathCause::GrantRefused {
                let evidence =
                    format!("{cause:?}, and the stored refresh token {newest:?} was never refused");
                self.broken("I-6", connection, at, evidence);
            }
        }
    }

    // --- calls ----------------------------------------------------------------------------------------------------

    /// I-2. Several processes may not spend one refresh token at once.
    pub fn call_begins(&mut self, connection: usize, at: u64, process: usize, run: u64, refresh: usize) {
        let facts = &mut self.connections[connection];
        facts.calls += 1;
        facts.in_flight.push((process, run, refresh));
        let same = facts.in_flight.iter().filter(|(_, _, other)| *other == refresh).count();
        facts.disturbed |= same > 1;
        if same > self.limits.in_flight_max {
            let evidence = format!("{same} exchanges of rt-{refresh} in flight: {:?}", facts.in_flight);
            self.broken("I-2", connection, at, evidence);
        }
    }

    pub fn call_ends(&mut self, connection: usize, process: usize, run: u64) {
        self.connections[connection].in_flight.retain(|call| (call.0, call.1) != (process, run));
    }

    /// The process is gone, and its calls with it.
    pub fn crashed(&mut self, process: usize) {
        for facts in &mut self.connections {
            let before = facts.in_flight.len();
            facts.in_flight.retain(|call| call.0 != process);
            facts.disturbed |= facts.in_flight.len() < before;
        }
    }

    pub fn refused(&mut self, connection: usize, refresh: usize, wronged: bool) {
        let facts = &mut self.connections[connection];
        facts.refused.push(refresh);
        if wronged {
            facts.wronged.push(refresh);
        }
    }

    // --- what is safe ---------------------------------------------------------------------------------------------

    /// A process was told that this state is on disk or in the store.
    pub fn told_safe(&mut self, connection: usize, record: &Connection) {
        let Some(refresh) = refresh_of(record) else { return };
        let safe = &mut self.connections[connection].safe;
        if safe.is_none_or(|(version, _)| version < record.exchanges.version) {
            *safe = Some((record.exchanges.version, refresh));
        }
    }

    /// I-1: `held` are the records in the store and the spill logs.
    pub fn check_safe<'a>(&mut self, connection: usize, at: u64, held: impl Iterator<Item = &'a Connection>) {
        let Some((version, refresh)) = self.connections[connection].safe else { return };
        let mut found = None;
        for record in held {
            let other = record.exchanges.version;
            // Where two exchanges may overlap, they may have drawn the same epoch; the stored one stands.
            let same = refresh_of(record) == Some(refresh) || self.limits.in_flight_max > 1;
            if other > version || (other == version && same) {
                return;
            }
            found = found.max(Some(other));
        }
        let evidence = format!(
            "rt-{refresh} of {version:?} was safe and is nowhere; the newest state left is {found:?}"
        );
        self.connections[connection].safe = None;
        self.broken("I-1", connection, at, evidence);
    }
}

fn falls(before: Option<Generation>, after: Option<Generation>) -> bool {
    matches!((before, after), (Some(before), Some(after)) if after < before)
}

/// The number of the refresh token that a record holds.
pub fn refresh_of(record: &Connection) -> Option<usize> {
    let token = record.grant.as_ref()?.refresh_token.as_ref()?;
    Some(crate::server::number(token.expose()))
}

/// The number of the refresh token before it, if the record keeps it.
pub fn previous_of(record: &Connection) -> Option<usize> {
    let token = record.grant.as_ref()?.previous_refresh_token.as_ref()?;
    Some(crate::server::number(token.expose()))
}

/// The number of the access token that a record holds.
pub fn access_of(record: &Connection) -> Option<usize> {
    let grant = record.grant.as_ref()?;
    Some(crate::server::number(grant.access_token.expose()))
}
