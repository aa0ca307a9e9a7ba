//! The in-memory backend: for tests, and the plainest statement of what a backend does.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bearerd_crypto::Sealed;
use bearerd_model::UnixTime;

use crate::{
    Backend, CHANGES_KEPT_MAX, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoreError,
    StoredRecord, Times,
};

/// Keeps records until it is dropped.
#[derive(Debug, Default)]
pub struct MemoryBackend(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<RecordKey, Entry>,
    revision: u64,
    counter: u64,
    /// The newest changes, oldest first.
    log: VecDeque<(u64, RecordKey)>,
}

#[derive(Debug)]
struct Entry {
    revision: Revision,
    value: Sealed,
    times: Times,
}

impl MemoryBackend {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, key: &RecordKey, value: Sealed, times: Times) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.records.insert(key.clone(), Entry { revision, value, times });
        self.log_change(key);
        revision
    }

    fn remove(&mut self, key: &RecordKey) -> Option<Sealed> {
        let entry = self.records.remove(key)?;
        self.log_change(key);
        Some(entry.value)
    }

    fn log_change(&mut self, key: &RecordKey) {
        if !key.kind.is_watched() {
            return;
        }
        self.counter += 1;
        self.log.push_back((self.counter, key.clone()));
        if self.log.len() > CHANGES_KEPT_MAX {
            self.log.pop_front();
        }
    }

    fn is_at(&self, key: &RecordKey, expected: Revision) -> bool {
        self.records.get(key).is_some_and(|entry| entry.revision == expected)
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn load(&self, key: &RecordKey) -> Result<Option<(Revision, Sealed)>, StoreError> {
        Ok(self.state().records.get(key).map(|entry| (entry.revision, entry.value.clone())))
    }

    async fn create(
        &self,
        key: &RecordKey,
        value: Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StoreError> {
        let mut state = self.state();
        if state.records.contains_key(key) {
            return Ok(None);
        }
        Ok(Some(state.write(key, value, times)))
    }

    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        next: Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StoreError> {
        let mut state = self.state();
        if !state.is_at(key, expected) {
            return Ok(None);
        }
        let expires_at = state.records.get(key).and_then(|entry| entry.times.expires_at);
        Ok(Some(state.write(key, next, Times { expires_at, due_at })))
    }

    async fn delete(&self, key: &RecordKey, expected: Revision) -> Result<bool, StoreError> {
        let mut state = self.state();
        Ok(state.is_at(key, expected) && state.remove(key).is_some())
    }

    async fn take(&self, key: &RecordKey) -> Result<Option<Sealed>, StoreError> {
        Ok(self.state().remove(key))
    }

    async fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let state = self.state();
        let from = RecordKey::new(kind, after.unwrap_or_default());
        let page = state
            .records
            .range(from..)
            .take_while(|(key, _)| key.kind == kind)
            .filter(|(key, _)| after.is_none_or(|after| key.id.as_str() > after))
            .take(limit)
            .map(|(key, entry)| StoredRecord {
                id: key.id.clone(),
                content: Ok((entry.revision, entry.value.clone())),
            })
            .collect();
        Ok(page)
    }

    async fn changes(&self, after: ChangeCounter) -> Result<Changes, StoreError> {
        let state = self.state();
        let counter = ChangeCounter(state.counter);
        let reaches_back = state.log.front().map_or(state.counter, |(first, _)| first - 1) <= after.0;
        if after > counter || !reaches_back {
            return Ok(Changes::Missed { counter });
        }
        let newer = state.log.iter().filter(|(at, _)| *at > after.0).map(|(_, key)| key.clone());
        Ok(Changes::since(counter, newer))
    }

    async fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, StoreError> {
        let state = self.state();
        let of_kind = state.records.iter().filter(|(key, _)| key.kind == kind);
        let mut due: Vec<DueRecord> = of_kind
            .filter_map(|(key, entry)| Some(DueRecord { at: entry.times.due_at?, id: key.id.clone() }))
            .filter(|due| due.at <= until && after.is_none_or(|after| due > after))
            .collect();
        due.sort();
        due.truncate(limit);
        Ok(due)
    }

    async fn sweep(&self, now: UnixTime) -> Result<u64, StoreError> {
        let mut state = self.state();
        let before = state.records.len();
        state.records.retain(|_, entry| entry.times.expires_at.is_none_or(|at| at > now));
        Ok((before - state.records.len()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::contract;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        contract::check(async || Arc::new(MemoryBackend::default()) as Arc<dyn Backend>).await;
    }
}
