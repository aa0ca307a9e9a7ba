//! What a backend promises. The promises are checked by `contract`.

use std::{collections::HashSet, fmt};

use async_trait::async_trait;
use bearerd_crypto::Sealed;
use bearerd_model::UnixTime;

/// Kind of record. Its name is part of every store key and of the seal, so it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The store's own secret; opening it proves the master key. One record.
    Root,
    Integration,
    Connection,
    CallerKey,
    /// When a caller key was last used. Beside the key and not part of it: a stamp once a minute must not be a change
    /// of the key, which every process would take over.
    CallerKeyUse,
    Policy,
    /// Makes a value unique across records, such as a redirect URI.
    Claim,
    ConnectLink,
    ConsentFlow,
    ConsentOutcome,
    /// A token that is wiped here and still to be revoked at its instance.
    Revocation,
    /// Keeps the tokens of one client that come and those that are revoked apart.
    RevocationGate,
    /// When a connection's refresh token is to be looked at, because its end comes near. Beside the connection and not
    /// part of it, as the connection has a due time of its own.
    ExpiryNotice,
}

impl Kind {
    pub const ALL: [Self; 13] = [
        Self::Root,
        Self::Integration,
        Self::Connection,
        Self::CallerKey,
        Self::CallerKeyUse,
        Self::Policy,
        Self::Claim,
        Self::ConnectLink,
        Self::ConsentFlow,
        Self::ConsentOutcome,
        Self::Revocation,
        Self::RevocationGate,
        Self::ExpiryNotice,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Integration => "integration",
            Self::Connection => "connection",
            Self::CallerKey => "caller_key",
            Self::CallerKeyUse => "caller_key_use",
            Self::Policy => "policy",
            Self::Claim => "claim",
            Self::ConnectLink => "connect_link",
            Self::ConsentFlow => "consent_flow",
            Self::ConsentOutcome => "consent_outcome",
            Self::Revocation => "revocation",
            Self::RevocationGate => "revocation_gate",
            Self::ExpiryNotice => "expiry_notice",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether processes hold records of this kind in memory and so must hear of every change to one.
    pub fn is_watched(self) -> bool {
        matches!(self, Self::Integration | Self::Connection | Self::CallerKey | Self::Policy)
    }
}

/// Names a record. The id's alphabet is that of `bearerd_model`'s ids, or lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    pub kind: Kind,
    pub id: String,
}

impl RecordKey {
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.id)
    }
}

/// Names one write of one record. No two writes of the same key ever share a revision, not even across a delete.
/// Opaque: a later write's revision need not be a greater one (those of Redis are random), so there is no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision(pub u64);

/// Grows with every change to a watched record; the one thing that each process reads every 250 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChangeCounter(pub u64);

/// What changed after a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These records, oldest change first, each named once; empty if nothing changed.
    Since { counter: ChangeCounter, keys: Vec<RecordKey> },
    /// The log no longer reaches back that far (or the store is another one): read everything again.
    Missed { counter: ChangeCounter },
}

impl Changes {
    /// `changed` in the order of the changes; repeats are dropped.
    pub fn since(counter: ChangeCounter, changed: impl IntoIterator<Item = RecordKey>) -> Self {
        let mut seen = HashSet::new();
        let keys = changed.into_iter().filter(|key| seen.insert(key.clone())).collect();
        Self::Since { counter, keys }
    }

    /// Where to continue from.
    pub fn counter(&self) -> ChangeCounter {
        match self {
            Self::Since { counter, .. } | Self::Missed { counter } => *counter,
        }
    }
}

/// Changes that a backend remembers. A process asks every 250 ms, so one that is further behind was away, and reads
/// everything again.
pub const CHANGES_KEPT_MAX: usize = 4_096;

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    pub id: String,
    /// The record, as [`Backend::load`] gives it; or what is wrong with what stands in its place (S-04), not quoting it.
    pub content: Result<(Revision, Sealed), String>,
}

/// The times of a record that a backend must know. It knows nothing else of what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// From then on the backend may forget the record.
    pub expires_at: Option<UnixTime>,
    /// When a process should look after the record, for [`Backend::due`].
    pub due_at: Option<UnixTime>,
}

/// An entry of the index of what is due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueRecord {
    pub at: UnixTime,
    pub id: String,
}

/// Why a store did not do what was asked. `Clone` because one failure may be told to many waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The write may or may not have happened; reload before deciding again.
    #[error("the store did not confirm a write: {0}")]
    OutcomeUnknown(String),
    /// The store answered with a refusal of its own (full, read-only, misconfigured). Nothing was written.
    #[error("the store refused: {0}")]
    Refused(String),
    /// A record does not open or does not read. Others are unaffected.
    #[error("{key} cannot be read: {fault}")]
    Damaged { key: RecordKey, fault: String },
}

/// Durable home of sealed records. Every implementation passes `bearerd_store::contract`.
///
/// A write has happened, durably, when its call returns `Ok`. All calls are cancel-safe: a dropped call leaves the
/// record either as before or as asked.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// `None` when there is no such record: absence is not an error.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if something stands in the record's place that is none.
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError>;

    /// Writes a record that does not exist yet. `None`: it exists, nothing was written. From `expires_at` on the
    /// backend may forget it; that is not a change that [`Self::changes`] tells, so watched kinds have none.
    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError>;

    /// Writes `next` only if the stored revision is still `expected`, so that a rotated refresh token is never
    /// overwritten by a slower writer. `None`: another writer won, or the record is gone; reload before deciding.
    /// The record's `expires_at` stays; `due_at` takes the place of the one before.
    ///
    /// # Errors
    /// [`StoreError::OutcomeUnknown`] if the write may or may not have happened (time-out).
    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError>;

    /// Removes the record if its revision is still `expected`. `false`: another writer won, or it is gone.
    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError>;

    /// Removes the record and gives it to this caller alone: of any number of calls, one gets it (O-06, I-13).
    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError>;

    /// Records of one kind, ascending by id, beginning after `after`; at most `limit`. A page shorter than `limit`
    /// is the last one. A damaged record is an entry like any other: it does not hide the others (S-04).
    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError>;

    /// What changed after `after`, which is 0 or a counter that this gave earlier. The change of a write is visible
    /// here before the write returns. [`Changes::Missed`] is always a right answer; a backend gives it where it
    /// cannot vouch for the list.
    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError>;

    /// Records of one kind whose `due_at` is at or before `until`, ascending by time and then by id, beginning after
    /// `after`; at most `limit`. Its cost follows what is due, not what is stored. A record that goes, goes from here
    /// too.
    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError>;

    /// Comes back once something has changed after `after`, or might have: whoever waits asks [`Self::changes`] then. A
    /// hint that makes the spread of a change faster and is never relied upon; this default never comes back.
    async fn changed(&self, after: ChangeCounter) {
        let _ = after;
        std::future::pending::<()>().await;
    }

    /// Forgets records whose `expires_at` is at or before `now`; says how many. Redis does so by itself.
    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError>;
}
