//! What the calls of a backend do to the tables of the file, within one transaction.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bearerd_crypto::Sealed;
use bearerd_model::UnixTime;
use bearerd_store::{
    CHANGES_KEPT_MAX, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoredRecord, Times,
};
use redb::{
    AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTable, StorageError, Table, TableDefinition,
    TableError, WriteTransaction,
};

type Key = (&'static str, &'static str);
type Value = (u64, Option<u64>, &'static [u8]);
/// Kind first, so that what is due of one kind stands together.
type DueKey = (&'static str, u64, &'static str);

const RECORDS: TableDefinition<'_, Key, Value> = TableDefinition::new("records");
const EXPIRIES: TableDefinition<'_, (u64, &str, &str), ()> = TableDefinition::new("expiries");
const DUE: TableDefinition<'_, DueKey, ()> = TableDefinition::new("due");
const DUE_TIMES: TableDefinition<'_, Key, u64> = TableDefinition::new("due_times");
const CHANGES: TableDefinition<'_, u64, Key> = TableDefinition::new("changes");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

const FORMAT: &str = "format";
const REVISION: &str = "revision";
const CHANGE: &str = "changes";

/// Version of the tables' layout. 2 added what is due: `due` and `due_times`.
pub(crate) const FORMAT_VERSION: u64 = 2;

/// The tables as of one moment.
pub(crate) struct ReadTables {
    records: ReadOnlyTable<Key, Value>,
    /// `None` in a file of format 1 that was only peeked into.
    due: Option<ReadOnlyTable<DueKey, ()>>,
    changes: ReadOnlyTable<u64, Key>,
    counters: ReadOnlyTable<&'static str, u64>,
}

/// The tables as a transaction changes them.
pub(crate) struct WriteTables<'txn> {
    records: Table<'txn, Key, Value>,
    expiries: Table<'txn, (u64, &'static str, &'static str), ()>,
    due: Table<'txn, DueKey, ()>,
    due_times: Table<'txn, Key, u64>,
    changes: Table<'txn, u64, Key>,
    counters: Table<'txn, &'static str, u64>,
    changed: bool,
    newest_change: Option<ChangeCounter>,
}

/// A record as it stands.
struct Found {
    revision: Revision,
    expires_at: Option<u64>,
    value: Sealed,
}

/// What stands in a record's place: the record, or what is wrong with it.
pub(crate) type Content = Result<(Revision, Sealed), &'static str>;

impl ReadTables {
    pub(crate) fn open(transaction: &ReadTransaction) -> Result<Self, TableError> {
        let due = match transaction.open_table(DUE) {
            Err(TableError::TableDoesNotExist(_)) => None,
            opened => Some(opened?),
        };
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            due,
            changes: transaction.open_table(CHANGES)?,
            counters: transaction.open_table(COUNTERS)?,
        })
    }

    pub(crate) fn load(&self, key: &RecordKey) -> Result<Option<Content>, redb::Error> {
        let found = find(&self.records, key)?;
        Ok(found.map(|found| found.map(|found| (found.revision, found.value))))
    }

    pub(crate) fn list(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<StoredRecord>, redb::Error> {
        let mut page = Vec::new();
        for entry in self.records.range((kind.name(), after.unwrap_or_default())..)? {
            if page.len() == limit {
                break;
            }
            let (key, value) = entry?;
            let (kind_name, id) = key.value();
            if kind_name != kind.name() {
                break;
            }
            if after == Some(id) {
                continue;
            }
            let content = decode(&value).map(|found| (found.revision, found.value)).map_err(str::to_owned);
            page.push(StoredRecord { id: id.to_owned(), content });
        }
        Ok(page)
    }

    /// Reads what it gives and one entry more.
    pub(crate) fn due(
        &self,
        kind: Kind,
        after: Option<&DueRecord>,
        until: UnixTime,
        limit: usize,
    ) -> Result<Vec<DueRecord>, redb::Error> {
        let mut page = Vec::new();
        let Some(due) = &self.due else { return Ok(page) };
        let (at, id) = after.map_or((0, ""), |after| (after.at.as_millis(), after.id.as_str()));
        for entry in due.range((kind.name(), at, id)..)? {
            if page.len() == limit {
                break;
            }
            let (key, _) = entry?;
            let (kind_name, at, id) = key.value();
            if kind_name != kind.name() || at > until.as_millis() {
                break;
            }
            let record = DueRecord { at: UnixTime::from_millis(at), id: id.to_owned() };
            if after != Some(&record) {
                page.push(record);
            }
        }
        Ok(page)
    }

    pub(crate) fn counter(&self) -> Result<ChangeCounter, redb::Error> {
        Ok(ChangeCounter(self.counters.get(CHANGE)?.map_or(0, |last| last.value())))
    }

    pub(crate) fn changes(&self, after: ChangeCounter) -> Result<Changes, redb::Error> {
        let counter = self.counter()?;
        let oldest = self.changes.first()?.map_or(counter.0, |(at, _)| at.value() - 1);
        if after > counter || after.0 < oldest {
            return Ok(Changes::Missed { counter });
        }
        let mut keys = Vec::new();
        if after < counter {
            for entry in self.changes.range(after.0 + 1..)? {
                let (_, key) = entry?;
                let (kind, id) = key.value();
                keys.extend(Kind::from_name(kind).map(|kind| RecordKey::new(kind, id)));
            }
        }
        Ok(Changes::since(counter, keys))
    }
}

impl<'txn> WriteTables<'txn> {
    /// Opens the tables, making those that are not there.
    pub(crate) fn open(transaction: &'txn WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            expiries: transaction.open_table(EXPIRIES)?,
            due: transaction.open_table(DUE)?,
            due_times: transaction.open_table(DUE_TIMES)?,
            changes: transaction.open_table(CHANGES)?,
            counters: transaction.open_table(COUNTERS)?,
            changed: false,
            newest_change: None,
        })
    }

    /// Whether there is anything to commit.
    pub(crate) fn changed(&self) -> bool {
        self.changed
    }

    /// The last change that was logged in this transaction.
    pub(crate) fn newest_change(&self) -> Option<ChangeCounter> {
        self.newest_change
    }

    /// Brings the layout up to this version, and says which it is then: a newer one stays as it is. The tables that an
    /// older one lacks are made by opening them, and its records stand as they are: none of them had a due time.
    pub(crate) fn migrate(&mut self) -> Result<u64, StorageError> {
        let format = self.counters.get(FORMAT)?.map_or(0, |format| format.value());
        if format < FORMAT_VERSION {
            self.changed = true;
            self.counters.insert(FORMAT, FORMAT_VERSION)?;
        }
        Ok(format.max(FORMAT_VERSION))
    }

    pub(crate) fn create(
        &mut self,
        key: &RecordKey,
        value: &Sealed,
        times: Times,
    ) -> Result<Option<Revision>, StorageError> {
        if find(&self.records, key)?.is_some() {
            return Ok(None);
        }
        let expires_at = times.expires_at.map(UnixTime::as_millis);
        if let Some(at) = expires_at {
            self.expiries.insert((at, key.kind.name(), key.id.as_str()), ())?;
        }
        self.put(key, value, expires_at, times.due_at).map(Some)
    }

    pub(crate) fn replace(
        &mut self,
        key: &RecordKey,
        expected: Revision,
        next: &Sealed,
        due_at: Option<UnixTime>,
    ) -> Result<Option<Revision>, StorageError> {
        match find(&self.records, key)? {
            Some(Ok(found)) if found.revision == expected => {
                self.put(key, next, found.expires_at, due_at).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn delete(&mut self, key: &RecordKey, expected: Revision) -> Result<bool, StorageError> {
        match find(&self.records, key)? {
            Some(Ok(found)) if found.revision == expected => {
                self.remove(key, found.expires_at)?;
                self.log_change(key)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A damaged record stays, and is nobody's.
    pub(crate) fn take(&mut self, key: &RecordKey) -> Result<Option<Sealed>, StorageError> {
        let Some(Ok(found)) = find(&self.records, key)? else { return Ok(None) };
        self.remove(key, found.expires_at)?;
        self.log_change(key)?;
        Ok(Some(found.value))
    }

    /// Forgets up to `limit` records that expired by `now`; says how many.
    pub(crate) fn sweep(&mut self, now: UnixTime, limit: usize) -> Result<usize, StorageError> {
        let mut due = Vec::new();
        for entry in self.expiries.iter()?.take(limit) {
            let (key, _) = entry?;
            let (at, kind, id) = key.value();
            if at > now.as_millis() {
                break;
            }
            due.push((at, kind.to_owned(), id.to_owned()));
        }
        for (at, kind, id) in &due {
            self.changed = true;
            self.records.remove((kind.as_str(), id.as_str()))?;
            self.expiries.remove((*at, kind.as_str(), id.as_str()))?;
            self.set_due(kind, id, None)?;
        }
        Ok(due.len())
    }

    fn put(
        &mut self,
        key: &RecordKey,
        value: &Sealed,
        expires_at: Option<u64>,
        due_at: Option<UnixTime>,
    ) -> Result<Revision, StorageError> {
        self.changed = true;
        let revision = self.count(REVISION)?;
        self.records.insert((key.kind.name(), key.id.as_str()), (revision, expires_at, value.as_bytes()))?;
        self.set_due(key.kind.name(), &key.id, due_at.map(UnixTime::as_millis))?;
        self.log_change(key)?;
        Ok(Revision(revision))
    }

    fn remove(&mut self, key: &RecordKey, expires_at: Option<u64>) -> Result<(), StorageError> {
        self.changed = true;
        self.records.remove((key.kind.name(), key.id.as_str()))?;
        if let Some(at) = expires_at {
            self.expiries.remove((at, key.kind.name(), key.id.as_str()))?;
        }
        self.set_due(key.kind.name(), &key.id, None)
    }

    fn set_due(&mut self, kind: &str, id: &str, due_at: Option<u64>) -> Result<(), StorageError> {
        let before = self.due_times.get((kind, id))?.map(|before| before.value());
        if before == due_at {
            return Ok(());
        }
        if let Some(before) = before {
            self.due.remove((kind, before, id))?;
            self.due_times.remove((kind, id))?;
        }
        if let Some(at) = due_at {
            self.due.insert((kind, at, id), ())?;
            self.due_times.insert((kind, id), at)?;
        }
        Ok(())
    }

    fn log_change(&mut self, key: &RecordKey) -> Result<(), StorageError> {
        if !key.kind.is_watched() {
            return Ok(());
        }
        let counter = self.count(CHANGE)?;
        self.newest_change = Some(ChangeCounter(counter));
        self.changes.insert(counter, (key.kind.name(), key.id.as_str()))?;
        if let Some(overrun) = counter.checked_sub(CHANGES_KEPT_MAX as u64) {
            self.changes.remove(overrun)?;
        }
        Ok(())
    }

    fn count(&mut self, counter: &'static str) -> Result<u64, StorageError> {
        let next = self.counters.get(counter)?.map_or(0, |last| last.value()) + 1;
        self.counters.insert(counter, next)?;
        Ok(next)
    }
}

fn find(
    records: &impl ReadableTable<Key, Value>,
    key: &RecordKey,
) -> Result<Option<Result<Found, &'static str>>, StorageError> {
    Ok(records.get((key.kind.name(), key.id.as_str()))?.map(|stored| decode(&stored)))
}

/// The seal tells what was altered on disk within it. Of the few bytes before it redb takes for granted that they are
/// as it wrote them, and panics where they are not: that must not cost other records (S-04).
fn decode(stored: &AccessGuard<'_, Value>) -> Result<Found, &'static str> {
    let decode = || {
        let (revision, expires_at, value) = stored.value();
        Found { revision: Revision(revision), expires_at, value: Sealed::from_bytes(value.to_vec()) }
    };
    catch_unwind(AssertUnwindSafe(decode)).map_err(|_| "its entry in the store file was altered")
}
