//! Whether the fields that record rules name are there, asked of the instances when a policy is saved. An instance
//! ignores a condition on a field that it does not know, so a typo would open the whole table: a record rule opens
//! nothing at an instance that has not vouched for every field (`RecordRule::checked_at`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bearerd_model::{
    Connection, ConnectionId, ConnectionSelector, InstanceOrigin, Integration, IntegrationId, Lifecycle,
    RecordRule, Rule, TableSet,
};
use bearerd_policy::compile_records;
use bearerd_tokens::RecordsCallError;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::task::JoinSet;

use crate::{ActError, Control};

/// An instance that a record rule is meant for and that could not be asked for its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchecked {
    pub instance: InstanceOrigin,
    pub reason: String,
}

/// A rule whose fields are to be looked up.
struct Looked {
    /// Counts from 1.
    number: usize,
    tables: BTreeSet<String>,
    fields: BTreeSet<String>,
    instances: BTreeSet<InstanceOrigin>,
}

/// What is to be asked of one instance.
#[derive(Default)]
struct Place {
    /// Those in use.
    connections: BTreeSet<ConnectionId>,
    wanted: Wanted,
}

/// Fields by table.
type Wanted = BTreeMap<String, BTreeSet<String>>;
/// Of the wanted fields, those that are there; a table that is not there is left out.
type Found = BTreeMap<String, BTreeSet<String>>;

impl Control {
    /// Fills `checked_at` of every record rule, and names the instances that could not be asked. Where one cannot be asked
    /// now, what it said of the same rule when the `earlier` ones were saved goes on counting.
    ///
    /// # Errors
    /// `Invalid` names the rule, field, table and instance; `Conflict` (`unchecked`) if no instance could be asked;
    /// `Store`.
    pub(crate) async fn check_records(
        &self,
        rules: &mut [Rule],
        earlier: &[Rule],
    ) -> Result<Vec<Unchecked>, ActError> {
        let (looked, places) = self.places(rules).await?;
        let answers = self.ask_all(places).await;
        let mut unchecked = BTreeMap::new();
        for looked in looked {
            let Some(rule) = rules.get_mut(looked.number - 1) else { continue };
            let held = earlier.iter().filter(|earlier| asks_the_same(earlier, rule));
            let held: BTreeSet<InstanceOrigin> = held
                .filter_map(|rule| rule.records.as_ref())
                .flat_map(|records| records.checked_at.clone())
                .collect();
            let mut checked_at = BTreeSet::new();
            let mut reasons = Vec::new();
            for instance in &looked.instances {
                match answers.get(instance) {
                    Some(Ok(found)) => {
                        looked.judge(instance, found)?;
                        checked_at.insert(instance.clone());
                    }
                    Some(Err(reason)) => {
                        reasons.push(format!("{instance}: {reason}"));
                        unchecked.insert(instance.clone(), reason.clone());
                        checked_at.extend(held.get(instance).cloned());
                    }
                    None => {}
                }
            }
            if checked_at.is_empty() {
                return Err(nobody_asked(looked.number, &reasons));
            }
            if let Some(records) = &mut rule.records {
                records.checked_at = checked_at;
            }
        }
        Ok(unchecked.into_iter().map(|(instance, reason)| Unchecked { instance, reason }).collect())
    }

    /// Which rules are to be looked at, and what is to be asked where.
    async fn places(
        &self,
        rules: &[Rule],
    ) -> Result<(Vec<Looked>, BTreeMap<InstanceOrigin, Place>), ActError> {
        let mut known = Known { control: self, all: None, instances: BTreeMap::new() };
        let mut places: BTreeMap<InstanceOrigin, Place> = BTreeMap::new();
        let mut all_looked = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let (Some(records), TableSet::Named(tables)) = (&rule.records, &rule.tables) else { continue };
            let mut looked = Looked {
                number: index + 1,
                tables: tables.clone(),
                fields: fields_of(records),
                instances: BTreeSet::new(),
            };
            for (id, instance, in_use) in known.connections(&rule.connections).await? {
                let place = places.entry(instance.clone()).or_default();
                if in_use {
                    place.connections.insert(id);
                }
                for table in &looked.tables {
                    place.wanted.entry(table.clone()).or_default().extend(looked.fields.iter().cloned());
                }
                looked.instances.insert(instance);
            }
            if places.len() > INSTANCES_MAX {
                let number = looked.number;
                let problem = format!(
                    "rule {number}: the record rules would be looked up at more than {INSTANCES_MAX} instances; name \
                     fewer connections"
                );
                return Err(ActError::invalid("rules", problem));
            }
            all_looked.push(looked);
        }
        Ok((all_looked, places))
    }

    /// Asks every instance at once: one that hangs holds up no other.
    async fn ask_all(
        &self,
        places: BTreeMap<InstanceOrigin, Place>,
    ) -> BTreeMap<InstanceOrigin, Result<Found, String>> {
        let mut asking = JoinSet::new();
        for (instance, place) in places {
            let control = self.clone();
            asking.spawn(async move {
                let asked = tokio::time::timeout(ASK_MAX, control.ask(&instance, &place)).await;
                let answer = asked.unwrap_or_else(|_| Err("it took too long to answer".to_owned()));
                (instance, answer)
            });
        }
        let mut answers = BTreeMap::new();
        while let Some(asked) = asking.join_next().await {
            answers.extend(asked.ok()); // one that panicked has told so, and has not vouched for anything
        }
        answers
    }

    /// Over one connection after another, until one brings an answer.
    async fn ask(&self, instance: &InstanceOrigin, place: &Place) -> Result<Found, String> {
        let mut reason = "no connection there is in use".to_owned();
        for connection in place.connections.iter().take(CONNECTIONS_ASKED_MAX) {
            match self.look_up(connection, instance, &place.wanted).await {
                Ok(found) => return Ok(found),
                Err(error) => reason = format!("over connection {connection}: {error}"),
            }
        }
        Err(reason)
    }

    async fn look_up(
        &self,
        connection: &ConnectionId,
        instance: &InstanceOrigin,
        wanted: &Wanted,
    ) -> Result<Found, RecordsCallError> {
        let parents = self.parents(connection, instance, wanted.keys().cloned().collect()).await?;
        let mut found = Found::new();
        for (table, fields) in wanted {
            if !parents.contains_key(table) {
                continue;
            }
            let line = line_of(table, &parents);
            let mut there = BTreeSet::new();
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            for some in fields.chunks(FIELDS_ASKED_MAX) {
                let query = format!("nameIN{}%5EelementIN{}", line.join(","), some.join(","));
                let rows: Vec<FieldRow> =
                    self.rows(connection, instance, "sys_dictionary", &query, "name,element,active").await?;
                let ours = |row: &FieldRow| {
                    line.contains(&row.name.as_str())
                        && some.contains(&row.element.as_str())
                        && row.active != "false"
                };
                there.extend(rows.into_iter().filter(ours).map(|row| row.element));
            }
            found.insert(table.clone(), there);
        }
        Ok(found)
    }

    /// The tables that are there, and those that they extend, each with the one that it extends.
    async fn parents(
        &self,
        connection: &ConnectionId,
        instance: &InstanceOrigin,
        tables: BTreeSet<String>,
    ) -> Result<BTreeMap<String, String>, RecordsCallError> {
        let (mut parents, mut next, mut asked) = (BTreeMap::new(), tables, BTreeSet::new());
        for _ in 0..=DEPTH_MAX {
            if next.is_empty() {
                break;
            }
            let names: Vec<&str> = next.iter().map(String::as_str).collect();
            let query = format!("nameIN{}", names.join(","));
            let rows: Vec<TableRow> =
                self.rows(connection, instance, "sys_db_object", &query, "name,super_class.name").await?;
            let ours = |row: &TableRow| next.contains(&row.name);
            parents.extend(rows.into_iter().filter(ours).map(|row| (row.name, row.parent)));
            asked.append(&mut next);
            let is_new = |parent: &&String| is_name(parent) && !asked.contains(*parent);
            next = parents.values().filter(is_new).cloned().collect();
        }
        Ok(parents)
    }

    async fn rows<T: DeserializeOwned>(
        &self,
        connection: &ConnectionId,
        instance: &InstanceOrigin,
        table: &str,
        query: &str,
        fields: &str,
    ) -> Result<Vec<T>, RecordsCallError> {
        let path = format!(
            "/api/now/table/{table}?sysparm_query={query}&sysparm_fields={fields}&sysparm_limit={ROWS_MAX}\
             &sysparm_exclude_reference_link=true"
        );
        let read = self.tokens.read_records(connection, &path).await?;
        // The connection was moved meanwhile: that is another instance's word.
        if read.instance == *instance { Ok(read.records) } else { Err(RecordsCallError::Malformed) }
    }
}

/// Connections with the instances that they are at, each read once.
struct Known<'a> {
    control: &'a Control,
    all: Option<Vec<Connection>>,
    instances: BTreeMap<IntegrationId, Option<InstanceOrigin>>,
}

impl Known<'_> {
    /// What `selector` selects now, and whether each is in use.
    async fn connections(
        &mut self,
        selector: &ConnectionSelector,
    ) -> Result<Vec<(ConnectionId, InstanceOrigin, bool)>, ActError> {
        let connections = match selector {
            ConnectionSelector::Ids(ids) => {
                let mut named = Vec::new();
                for id in ids {
                    named.extend(
                        self.control.store.load::<Connection>(id.as_str()).await?.map(|one| one.record),
                    );
                }
                named
            }
            ConnectionSelector::All | ConnectionSelector::Labels(_) => {
                if self.all.is_none() {
                    self.all = Some(self.control.all::<Connection>().await?);
                }
                let selected = |one: &&Connection| selector.selects(&one.id, &one.labels);
                self.all.iter().flatten().filter(selected).cloned().collect()
            }
        };
        let mut placed = Vec::new();
        for connection in connections {
            let in_use =
                matches!(connection.lifecycle, Lifecycle::Active { .. }) && connection.frozen.is_none();
            if let Some(instance) = self.instance(&connection.integration).await? {
                placed.push((connection.id, instance, in_use));
            }
        }
        Ok(placed)
    }

    async fn instance(&mut self, id: &IntegrationId) -> Result<Option<InstanceOrigin>, ActError> {
        if let Some(instance) = self.instances.get(id) {
            return Ok(instance.clone());
        }
        let stored = self.control.store.load::<Integration>(id.as_str()).await?;
        let instance = stored.map(|stored| stored.record.instance);
        self.instances.insert(id.clone(), instance.clone());
        Ok(instance)
    }
}

impl Looked {
    fn judge(&self, instance: &InstanceOrigin, found: &Found) -> Result<(), ActError> {
        let number = self.number;
        for table in &self.tables {
            let Some(there) = found.get(table) else {
                let problem = format!(
                    "rule {number}: {instance} shows no table {table} in sys_db_object: there is none, or the \
                     connection's user may not read that"
                );
                return Err(ActError::invalid("rules", problem));
            };
            if let Some(field) = self.fields.iter().find(|field| !there.contains(*field)) {
                let problem = format!(
                    "rule {number}: {instance} shows no field {field} of table {table} in sys_dictionary: there is \
                     none, or the connection's user may not read that"
                );
                return Err(ActError::invalid("rules", problem));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct TableRow {
    name: String,
    #[serde(rename = "super_class.name", default)]
    parent: String,
}

#[derive(Deserialize)]
struct FieldRow {
    name: String,
    element: String,
    #[serde(default)]
    active: String,
}

/// Whether what `earlier` was checked for is all that `rule` would be checked for.
fn asks_the_same(earlier: &Rule, rule: &Rule) -> bool {
    let fields = |rule: &Rule| rule.records.as_ref().map(fields_of);
    earlier.tables == rule.tables && earlier.records.is_some() && fields(earlier) == fields(rule)
}

/// Validation has compiled it a moment ago; what does not compile opens nothing anyway.
fn fields_of(records: &RecordRule) -> BTreeSet<String> {
    compile_records(records)
        .map(|compiled| compiled.fields_named().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// A table and all that it extends, nearest first.
fn line_of<'a>(table: &'a str, parents: &'a BTreeMap<String, String>) -> Vec<&'a str> {
    let mut line = vec![table];
    while let Some(parent) = line.last().and_then(|last| parents.get(*last)) {
        if !is_name(parent) || line.contains(&parent.as_str()) || line.len() > DEPTH_MAX {
            break;
        }
        line.push(parent);
    }
    line
}

/// What came from an instance goes back into a query only if it is plain.
fn is_name(text: &str) -> bool {
    bearerd_policy::is_table_name(text)
}

fn nobody_asked(number: usize, reasons: &[String]) -> ActError {
    let reasons =
        if reasons.is_empty() { "it opens no connection that exists".to_owned() } else { reasons.join("; ") };
    ActError::Conflict {
        code: "unchecked",
        message: format!("rule {number}: no instance could be asked whether the fields of its record rule exist: {reasons}"),
        fix: "Connect one of the rule's connections first (bearerd connection list), and save the policy again."
            .to_owned(),
    }
}

/// Instances that one policy's record rules are looked up at.
const INSTANCES_MAX: usize = 20;
/// Connections tried at one instance: another user may be allowed to read what the first may not.
const CONNECTIONS_ASKED_MAX: usize = 3;
/// Ten tables above a table: ServiceNow's own deepest lines are half of that.
const DEPTH_MAX: usize = 10;
/// Keeps a request target below 4 KiB.
const FIELDS_ASKED_MAX: usize = 25;
/// A field of each name in each table of a line, and then some.
const ROWS_MAX: usize = 1_000;
/// For everything that is asked of one instance: an operator waits for it.
const ASK_MAX: Duration = Duration::from_secs(30);
