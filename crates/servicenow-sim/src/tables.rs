//! The instance's tables in memory: schemas with inheritance (`incident` extends `task`), records, and walking along
//! references (`caller_id.department.name`).

use std::collections::{BTreeMap, HashMap};

/// One record: field name to stored value; everything is text, empty means null.
pub type Record = BTreeMap<String, String>;

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldKind {
    String,
    Integer,
    Boolean,
    DateTime,
    /// A `sys_id` in this table.
    Reference(String),
    /// The `name` of a record in this table: how the dictionary refers. Shown with a link, not walked.
    NameIn(String),
    /// A stored value with a label each.
    Choice(Vec<(String, String)>),
}

/// One column (`sys_dictionary`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub label: String,
    pub kind: FieldKind,
}

/// One table (`sys_db_object`) with its own fields; those of `extends` come on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    pub name: String,
    pub label: String,
    pub extends: Option<String>,
    /// Field shown where a record of this table is referred to.
    pub display: String,
    /// `INC` makes `number` count `INC0010001`, `INC0010002`, …
    pub number_prefix: Option<String>,
    pub fields: Vec<Field>,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) schema: TableSchema,
    /// Own and inherited fields.
    fields: HashMap<String, Field>,
    rows: BTreeMap<u64, Record>,
    by_id: HashMap<String, u64>,
    numbers_given: u64,
}

impl Table {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// Names of own and inherited fields, in no order.
    pub(crate) fn field_names(&self) -> Vec<String> {
        self.fields.keys().cloned().collect()
    }
}

/// Why a record was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreRefusal {
    NoSuchTable,
    /// The `sys_id` exists.
    Duplicate,
    /// The simulator's memory limit.
    Full,
}

/// All tables.
#[derive(Debug, Default)]
pub(crate) struct Database {
    tables: BTreeMap<String, Table>,
    /// Table name to itself and everything that extends it.
    families: HashMap<String, Vec<String>>,
    next_row: u64,
    value_bytes: usize,
}

impl Database {
    /// Adds an empty table; a parent must have been added before its children.
    pub(crate) fn add_table(&mut self, schema: TableSchema) {
        let inherited = schema.extends.as_ref().and_then(|parent| self.tables.get(parent));
        let mut fields = inherited.map(|parent| parent.fields.clone()).unwrap_or_default();
        fields.extend(schema.fields.iter().map(|field| (field.name.clone(), field.clone())));
        let mut ancestor = Some(schema.name.clone());
        while let Some(name) = ancestor {
            let parent = self.tables.get(&name).and_then(|table| table.schema.extends.clone());
            let next = if name == schema.name { schema.extends.clone() } else { parent };
            self.families.entry(name).or_default().push(schema.name.clone());
            ancestor = next;
        }
        let table = Table { fields, rows: BTreeMap::new(), by_id: HashMap::new(), numbers_given: 0, schema };
        self.tables.insert(table.schema.name.clone(), table);
    }

    pub(crate) fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.values()
    }

    /// Every record of the table and of those that extend it, each with the table it is stored in, oldest first.
    pub(crate) fn rows(&self, table: &str) -> Vec<(&Table, &Record)> {
        let members = self.families.get(table).map(Vec::as_slice).unwrap_or_default();
        let stores: Vec<&Table> = members.iter().filter_map(|name| self.tables.get(name)).collect();
        if let [only] = stores.as_slice() {
            return only.rows.values().map(|row| (*only, row)).collect();
        }
        let mut rows: Vec<(u64, &Table, &Record)> = Vec::new();
        for store in stores {
            rows.extend(store.rows.iter().map(|(order, row)| (*order, store, row)));
        }
        rows.sort_by_key(|(order, ..)| *order);
        rows.into_iter().map(|(_, table, row)| (table, row)).collect()
    }

    /// The record with this `sys_id` in the table or in one that extends it.
    pub(crate) fn find(&self, table: &str, sys_id: &str) -> Option<(&Table, &Record)> {
        self.families.get(table)?.iter().find_map(|name| {
            let store = self.tables.get(name)?;
            let row = store.by_id.get(sys_id)?;
            store.rows.get(row).map(|record| (store, record))
        })
    }

    /// Stores a new record under its `sys_id`; gives it a `number` where the table counts. Unknown fields are dropped.
    pub(crate) fn insert(&mut self, table: &str, mut record: Record) -> Result<(), StoreRefusal> {
        let full = self.value_bytes >= VALUE_BYTES_MAX;
        let store = self.tables.get_mut(table).ok_or(StoreRefusal::NoSuchTable)?;
        if full || store.rows.len() >= ROWS_MAX {
            return Err(StoreRefusal::Full);
        }
        record.retain(|name, _| store.fields.contains_key(name));
        let sys_id = record.get("sys_id").cloned().unwrap_or_default();
        if store.by_id.contains_key(&sys_id) {
            return Err(StoreRefusal::Duplicate);
        }
        if let Some(prefix) = &store.schema.number_prefix
            && record.get("number").is_none_or(String::is_empty)
        {
            store.numbers_given += 1;
            record.insert("number".to_owned(), format!("{prefix}{:07}", 10_000 + store.numbers_given));
        }
        self.value_bytes += weight(&record);
        let store_key = self.next_row;
        store.by_id.insert(sys_id, store_key);
        store.rows.insert(store_key, record);
        self.next_row += 1;
        Ok(())
    }

    /// Changes fields of a record; unknown ones are dropped, `sys_id` stays. `false` if there is no such record.
    pub(crate) fn update(
        &mut self,
        table: &str,
        sys_id: &str,
        changes: Record,
    ) -> Result<bool, StoreRefusal> {
        if self.value_bytes >= VALUE_BYTES_MAX {
            return Err(StoreRefusal::Full);
        }
        let Some(store) = self.store_of(table, sys_id) else { return Ok(false) };
        let Some(row) = store.by_id.get(sys_id).and_then(|row| store.rows.get_mut(row)) else {
            return Ok(false);
        };
        let before = weight(row);
        for (name, value) in changes {
            if name != "sys_id" && store.fields.contains_key(&name) {
                row.insert(name, value);
            }
        }
        let after = weight(row);
        self.value_bytes = (self.value_bytes + after).saturating_sub(before);
        Ok(true)
    }

    /// `false` if there is no such record.
    pub(crate) fn delete(&mut self, table: &str, sys_id: &str) -> bool {
        let Some(store) = self.store_of(table, sys_id) else { return false };
        let Some(row) = store.by_id.remove(sys_id).and_then(|row| store.rows.remove(&row)) else {
            return false;
        };
        self.value_bytes = self.value_bytes.saturating_sub(weight(&row));
        true
    }

    /// The value at the end of a path of fields; `None` if the path is none (unknown field, too long, not a
    /// reference), empty text if a reference on the way is empty.
    pub(crate) fn value<'d>(&'d self, table: &'d Table, record: &'d Record, path: &str) -> Option<&'d str> {
        let (_, value) = self.walk(table, record, path)?;
        Some(value)
    }

    /// Field definition and value at the end of a path.
    pub(crate) fn walk<'d>(
        &'d self,
        table: &'d Table,
        record: &'d Record,
        path: &str,
    ) -> Option<(&'d Field, &'d str)> {
        let field = self.field_at(table, path)?;
        let mut here = Some((table, record));
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let Some((table, record)) = here else { return Some((field, "")) };
            let value = record.get(step).map_or("", String::as_str);
            if steps.peek().is_none() {
                return Some((field, value));
            }
            here = match table.field(step).map(|field| &field.kind) {
                Some(FieldKind::Reference(target)) => self.find(target, value),
                _ => None,
            };
        }
        None
    }

    /// The field a path ends at, judged by schemas alone.
    pub(crate) fn field_at<'d>(&'d self, table: &'d Table, path: &str) -> Option<&'d Field> {
        let mut table = table;
        let mut found = None;
        for (depth, step) in path.split('.').enumerate() {
            if depth > DOT_WALKS_MAX {
                return None;
            }
            if depth > 0 {
                let FieldKind::Reference(target) = &found.map(|field: &Field| &field.kind)? else {
                    return None;
                };
                table = self.tables.get(target)?;
            }
            found = Some(table.field(step)?);
        }
        found
    }

    /// What people see instead of the stored value.
    pub(crate) fn display_of<'d>(&'d self, field: &'d Field, value: &'d str) -> &'d str {
        match &field.kind {
            FieldKind::Reference(target) => self.find(target, value).map_or(value, |(table, record)| {
                record.get(&table.schema.display).map_or("", String::as_str)
            }),
            FieldKind::Choice(choices) => {
                choices.iter().find(|(stored, _)| stored == value).map_or(value, |(_, label)| label)
            }
            FieldKind::String
            | FieldKind::Integer
            | FieldKind::Boolean
            | FieldKind::DateTime
            | FieldKind::NameIn(_) => value,
        }
    }

    fn store_of(&mut self, table: &str, sys_id: &str) -> Option<&mut Table> {
        let family = self.families.get(table)?;
        let owner = family
            .iter()
            .find(|name| self.tables.get(*name).is_some_and(|store| store.by_id.contains_key(sys_id)))?;
        self.tables.get_mut(owner)
    }
}

fn weight(record: &Record) -> usize {
    record.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// References followed by one path.
const DOT_WALKS_MAX: usize = 3;
/// Records in one table; past it inserts are refused.
const ROWS_MAX: usize = 1_000_000;
/// Names and values of all records together; past it writes are refused.
const VALUE_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SeedData;
    use crate::settings::UserSettings;

    fn demo() -> Database {
        SeedData::demo().build(&UserSettings::demo())
    }

    fn first<'d>(database: &'d Database, table: &str) -> (&'d Table, &'d Record) {
        database.rows(table)[0]
    }

    #[test]
    fn task_holds_what_extends_it() {
        let database = demo();
        let tasks = database.rows("task").len();
        assert!(tasks > database.rows("incident").len());
        let (_, incident) = first(&database, "incident");
        assert!(database.find("task", &incident["sys_id"]).is_some());
        assert!(database.find("problem", &incident["sys_id"]).is_none());
    }

    #[test]
    fn paths_walk_references() {
        let database = demo();
        let (table, incident) = first(&database, "incident");
        let caller = database.find("sys_user", &incident["caller_id"]).unwrap().1;
        assert_eq!(database.value(table, incident, "caller_id.name"), Some(caller["name"].as_str()));
        assert!(database.value(table, incident, "caller_id.department.name").is_some());
        for wrong in ["nonsense", "caller_id.nonsense", "number.name", "", ".", "caller_id.", "a.b.c.d.e.f"] {
            assert_eq!(database.value(table, incident, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn records_come_and_go() {
        let mut database = demo();
        let record = Record::from([
            ("sys_id".to_owned(), "1".repeat(32)),
            ("short_description".to_owned(), "x".to_owned()),
            ("no_such_field".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(database.insert("incident", record.clone()), Ok(()));
        assert_eq!(database.insert("incident", record.clone()), Err(StoreRefusal::Duplicate));
        assert_eq!(database.insert("nonsense", record), Err(StoreRefusal::NoSuchTable));
        let id = "1".repeat(32);
        let stored = database.find("incident", &id).unwrap().1;
        assert!(stored["number"].starts_with("INC"));
        assert!(!stored.contains_key("no_such_field"));
        let change = Record::from([("short_description".to_owned(), "y".to_owned())]);
        assert_eq!(database.update("task", &id, change), Ok(true), "through the parent table");
        assert_eq!(database.find("incident", &id).unwrap().1["short_description"], "y");
        assert!(database.delete("incident", &id));
        assert!(!database.delete("incident", &id));
    }
}
