//! What a new instance holds: schemas and records, the same in every run.

use crate::demo;
use crate::secrets::sys_id_for;
use crate::settings::UserSettings;
use crate::tables::{Database, Field, FieldKind, Record, TableSchema};

/// Tables and records of a new instance. The rows of `sys_user` and `sys_user_has_role` come from the users.
#[derive(Clone, Debug)]
pub struct SeedData {
    /// Parents before the tables that extend them.
    pub schemas: Vec<TableSchema>,
    /// Table name and record; a record without `sys_id` gets one derived from table and position.
    pub records: Vec<(String, Record)>,
}

impl Default for SeedData {
    fn default() -> Self {
        Self::demo()
    }
}

impl SeedData {
    /// The demo instance: 80 incidents and what hangs together with them.
    pub fn demo() -> Self {
        Self { schemas: demo::schemas(), records: demo::records() }
    }

    /// The demo instance's tables without its records (users, groups and the dictionary stay).
    pub fn empty() -> Self {
        Self { schemas: demo::schemas(), records: Vec::new() }
    }

    /// Puts the database together.
    pub(crate) fn build(&self, users: &[UserSettings]) -> Database {
        let mut database = Database::default();
        for schema in &self.schemas {
            database.add_table(schema.clone());
        }
        for user in users {
            put_user_rows(&mut database, user);
        }
        for (position, (table, record)) in self.records.iter().enumerate() {
            let mut record = record.clone();
            record.entry("sys_id".to_owned()).or_insert_with(|| sys_id_for(&format!("{table}:{position}")));
            insert_with_defaults(&mut database, table, record);
        }
        add_dictionary(&mut database);
        database
    }
}

/// Inserts or replaces the rows that describe a user.
pub(crate) fn put_user_rows(database: &mut Database, user: &UserSettings) {
    let sys_id = user.sys_id();
    let email = user.email.clone().unwrap_or_else(|| format!("{}@example.com", user.user_name));
    let department = if user.roles.is_empty() { "Sales" } else { "IT" };
    let row = record(&[
        ("sys_id", &sys_id),
        ("user_name", &user.user_name),
        ("first_name", &user.first_name),
        ("last_name", &user.last_name),
        ("name", &user.display_name()),
        ("email", &email),
        ("active", flag(user.active)),
        ("locked_out", flag(user.locked_out)),
        ("department", &sys_id_for(&format!("cmn_department:{department}"))),
        ("title", if user.roles.is_empty() { "Employee" } else { "Support Engineer" }),
    ]);
    if database.find("sys_user", &sys_id).is_some() {
        // The row exists, so the only refusal left is a full memory, which leaves it as it was.
        let _ = database.update("sys_user", &sys_id, row);
    } else {
        insert_with_defaults(database, "sys_user", row);
    }
    for role in &user.roles {
        let has_role = record(&[
            ("sys_id", &sys_id_for(&format!("sys_user_has_role:{}:{role}", user.user_name))),
            ("user", &sys_id),
            ("role", &sys_id_for(&format!("sys_user_role:{role}"))),
            ("state", "active"),
            ("inherited", "false"),
        ]);
        insert_with_defaults(database, "sys_user_has_role", has_role);
    }
}

fn flag(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}

pub(crate) fn record(members: &[(&str, &str)]) -> Record {
    members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Seed data is ours and the memory empty: an insert that is refused all the same (a table that a custom seed lacks,
/// a role given twice) leaves nothing out that anyone asked for.
fn insert_with_defaults(database: &mut Database, table: &str, mut record: Record) {
    for (name, value) in [
        ("sys_created_on", SEEDED_ON),
        ("sys_created_by", "admin"),
        ("sys_updated_on", SEEDED_ON),
        ("sys_updated_by", "admin"),
        ("sys_mod_count", "0"),
        ("sys_class_name", table),
    ] {
        record.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    if let Some(table) = database.table(table) {
        for name in table.field_names() {
            record.entry(name).or_default();
        }
    }
    let _ = database.insert(table, record);
}

/// `sys_db_object` and `sys_dictionary` describe every table, themselves included. As on a real instance a field has
/// its row under the table that brings it, not under those that inherit it, and each table has a row of its own.
fn add_dictionary(database: &mut Database) {
    let mut rows = Vec::new();
    for table in database.tables() {
        let schema = &table.schema;
        let parent = schema.extends.as_ref().map(|parent| sys_id_for(&format!("sys_db_object:{parent}")));
        rows.push((
            "sys_db_object",
            record(&[
                ("sys_id", &sys_id_for(&format!("sys_db_object:{}", schema.name))),
                ("name", &schema.name),
                ("label", &schema.label),
                ("super_class", parent.as_deref().unwrap_or_default()),
            ]),
        ));
        let parent = schema.extends.as_ref().and_then(|parent| database.table(parent));
        let is_own = |field: &&Field| parent.is_none_or(|parent| parent.field(&field.name).is_none());
        rows.push(("sys_dictionary", collection_row(schema)));
        let own = schema.fields.iter().filter(is_own);
        rows.extend(own.map(|field| ("sys_dictionary", dictionary_row(schema, field))));
    }
    for (table, row) in rows {
        insert_with_defaults(database, table, row);
    }
}

fn dictionary_row(schema: &TableSchema, field: &Field) -> Record {
    let (internal_type, reference) = match &field.kind {
        FieldKind::String => ("string", ""),
        FieldKind::Integer | FieldKind::Choice(_) => ("integer", ""),
        FieldKind::Boolean => ("boolean", ""),
        FieldKind::DateTime => ("glide_date_time", ""),
        FieldKind::Reference(target) | FieldKind::NameIn(target) => ("reference", target.as_str()),
    };
    let internal_type = if field.name == "sys_id" { "GUID" } else { internal_type };
    record(&[
        ("sys_id", &sys_id_for(&format!("sys_dictionary:{}.{}", schema.name, field.name))),
        ("name", &schema.name),
        ("element", &field.name),
        ("column_label", &field.label),
        ("internal_type", internal_type),
        ("reference", reference),
        ("active", "true"),
        ("mandatory", "false"),
    ])
}

fn collection_row(schema: &TableSchema) -> Record {
    record(&[
        ("sys_id", &sys_id_for(&format!("sys_dictionary:{}", schema.name))),
        ("name", &schema.name),
        ("column_label", &schema.label),
        ("internal_type", "collection"),
        ("active", "true"),
        ("mandatory", "false"),
    ])
}

pub(crate) const SEEDED_ON: &str = "2026-09-01 08:00:00";
