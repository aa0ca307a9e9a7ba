//! Which records an encoded query selects, and in what order. Comparisons ignore case, as on the databases under
//! ServiceNow.

use std::cmp::Ordering;
use std::time::Duration;

use crate::clock::SimTime;
use crate::query::{Condition, Operator, Query};
use crate::tables::{Database, FieldKind, Record, Table};

/// Whose query it is: `javascript:` values depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewer<'a> {
    pub(crate) sys_id: &'a str,
    pub(crate) user_name: &'a str,
    pub(crate) now: SimTime,
}

/// A condition that makes sense on the queried table.
struct Test<'q> {
    path: &'q str,
    kind: &'q FieldKind,
    operator: Operator,
    /// Lower case.
    value: String,
}

/// The selected records in order. Invalid conditions are ignored, or with `strict` select nothing.
pub(crate) fn select<'d>(
    database: &'d Database,
    table: &'d Table,
    query: &Query,
    viewer: Viewer<'_>,
    strict: bool,
) -> Vec<(&'d Table, &'d Record)> {
    let Some(groups) = compile(database, table, query, viewer, strict) else { return Vec::new() };
    let mut rows = database.rows(&table.schema.name);
    if !groups.is_empty() {
        rows.retain(|(store, record)| groups.iter().any(|group| group_holds(database, store, record, group)));
    }
    sort(database, table, query, &mut rows);
    rows
}

fn compile<'q>(
    database: &'q Database,
    table: &'q Table,
    query: &'q Query,
    viewer: Viewer<'_>,
    strict: bool,
) -> Option<Vec<Vec<Vec<Test<'q>>>>> {
    let mut groups = Vec::new();
    for group in &query.groups {
        let mut all = Vec::new();
        for alternatives in &group.all {
            let tests: Vec<_> = alternatives
                .iter()
                .filter_map(|condition| compile_test(database, table, condition, viewer))
                .collect();
            if strict && tests.len() < alternatives.len() {
                return None;
            }
            if !tests.is_empty() {
                all.push(tests);
            }
        }
        groups.push(all);
    }
    Some(groups)
}

fn compile_test<'q>(
    database: &'q Database,
    table: &'q Table,
    condition: &'q Condition,
    viewer: Viewer<'_>,
) -> Option<Test<'q>> {
    let Condition::Test { field, operator, value } = condition else { return None };
    let kind = &database.field_at(table, field)?.kind;
    let value = match value.strip_prefix("javascript:") {
        Some(script) => run_script(script, viewer)?,
        None => value.clone(),
    };
    if matches!(operator, Operator::SameAs | Operator::NotSameAs) {
        database.field_at(table, &value)?;
    }
    Some(Test { path: field, kind, operator: *operator, value: value.to_lowercase() })
}

/// The server-side calls that clients use in queries; anything else is an invalid condition here.
fn run_script(script: &str, viewer: Viewer<'_>) -> Option<String> {
    let call = script.trim().trim_end_matches(';');
    match call {
        "gs.getUserID()" | "gs.getUser().getID()" => return Some(viewer.sys_id.to_owned()),
        "gs.getUserName()" | "gs.getUser().getName()" => return Some(viewer.user_name.to_owned()),
        "gs.now()" | "gs.nowDateTime()" => return Some(viewer.now.to_glide()),
        _ => {}
    }
    let (unit_s, argument) = [("gs.daysAgo(", 86_400), ("gs.hoursAgo(", 3_600), ("gs.minutesAgo(", 60)]
        .into_iter()
        .find_map(|(name, unit_s)| Some((unit_s, call.strip_prefix(name)?.strip_suffix(')')?)))?;
    let count: u64 = argument.trim().parse().ok()?;
    Some(viewer.now.before(Duration::from_secs(count.saturating_mul(unit_s))).to_glide())
}

fn group_holds(database: &Database, table: &Table, record: &Record, group: &[Vec<Test<'_>>]) -> bool {
    group.iter().all(|alternatives| alternatives.iter().any(|test| holds(database, table, record, test)))
}

fn holds(database: &Database, table: &Table, record: &Record, test: &Test<'_>) -> bool {
    let found = database.value(table, record, test.path).unwrap_or_default().to_lowercase();
    let wanted = test.value.as_str();
    let order = || compare(test.kind, &found, wanted);
    let same_as = || database.value(table, record, wanted).unwrap_or_default().to_lowercase() == found;
    match test.operator {
        Operator::Equal => found == wanted,
        Operator::NotEqual => found != wanted,
        Operator::Greater => !found.is_empty() && order().is_gt(),
        Operator::GreaterOrEqual => !found.is_empty() && order().is_ge(),
        Operator::Less => !found.is_empty() && order().is_lt(),
        Operator::LessOrEqual => !found.is_empty() && order().is_le(),
        Operator::Like => found.contains(wanted),
        Operator::NotLike => !found.contains(wanted),
        Operator::StartsWith => found.starts_with(wanted),
        Operator::EndsWith => found.ends_with(wanted),
        Operator::In => wanted.split(',').any(|one| one == found),
        Operator::NotIn => wanted.split(',').all(|one| one != found),
        Operator::IsEmpty | Operator::EmptyString => found.is_empty(),
        Operator::IsNotEmpty => !found.is_empty(),
        Operator::Anything => true,
        Operator::Between => wanted.split_once('@').is_some_and(|(low, high)| {
            !found.is_empty()
                && compare(test.kind, &found, low).is_ge()
                && compare(test.kind, &found, high).is_le()
        }),
        Operator::SameAs => same_as(),
        Operator::NotSameAs => !same_as(),
    }
}

/// Numbers by value where both sides are numbers and the field counts or chooses; all else as text.
fn compare(kind: &FieldKind, left: &str, right: &str) -> Ordering {
    let numeric = matches!(kind, FieldKind::Integer | FieldKind::Choice(_));
    match (numeric, left.parse::<i64>(), right.parse::<i64>()) {
        (true, Ok(left), Ok(right)) => left.cmp(&right),
        _ => left.cmp(right),
    }
}

fn sort(database: &Database, table: &Table, query: &Query, rows: &mut [(&Table, &Record)]) {
    let keys: Vec<_> = query
        .order
        .iter()
        .filter_map(|order| Some((order, database.field_at(table, &order.field)?)))
        .collect();
    if keys.is_empty() {
        return;
    }
    rows.sort_by_cached_key(|(store, record)| {
        let values = keys.iter().map(|(order, field)| {
            let value = database.value(store, record, &order.field).unwrap_or_default();
            let shown = if matches!(field.kind, FieldKind::Reference(_)) {
                database.display_of(field, value)
            } else {
                value
            };
            SortKey { text: shown.to_lowercase(), kind: &field.kind, descending: order.descending }
        });
        values.collect::<Vec<_>>()
    });
}

struct SortKey<'d> {
    text: String,
    kind: &'d FieldKind,
    descending: bool,
}

impl Ord for SortKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = compare(self.kind, &self.text, &other.text);
        if self.descending { order.reverse() } else { order }
    }
}

impl PartialOrd for SortKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SortKey<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for SortKey<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SeedData;
    use crate::settings::UserSettings;
    use proptest::prelude::*;

    const NOW: SimTime = SimTime::from_secs(1_790_000_000);
    const ABEL: Viewer<'_> =
        Viewer { sys_id: "62826bf03710200044e0bfc8bcbe5df1", user_name: "abel.tuter", now: NOW };

    fn demo() -> Database {
        SeedData::demo().build(&UserSettings::demo())
    }

    fn count(database: &Database, query: &str, strict: bool) -> usize {
        select(database, database.table("incident").unwrap(), &Query::parse(query), ABEL, strict).len()
    }

    fn values(database: &Database, query: &str, path: &str) -> Vec<String> {
        let table = database.table("incident").unwrap();
        let rows = select(database, table, &Query::parse(query), ABEL, false);
        rows.into_iter().map(|(store, row)| database.value(store, row, path).unwrap().to_owned()).collect()
    }

    #[test]
    fn every_selected_row_meets_the_condition_and_the_rest_do_not() {
        let database = demo();
        let total = count(&database, "", false);
        assert!(total >= 60);
        for (query, path, good) in [
            ("active=true", "active", (|value| value == "true") as fn(&str) -> bool),
            ("priority<=2", "priority", |value| value == "1" || value == "2"),
            ("priority>2", "priority", |value| ["3", "4", "5"].contains(&value)),
            ("priorityBETWEEN2@3", "priority", |value| value == "2" || value == "3"),
            ("stateIN1,2", "state", |value| value == "1" || value == "2"),
            ("stateNOT IN1,2", "state", |value| value != "1" && value != "2"),
            ("short_descriptionLIKEEMAIL", "short_description", |value| {
                value.to_lowercase().contains("email")
            }),
            ("numberENDSWITH7", "number", |value| value.ends_with('7')),
            ("assigned_toISEMPTY", "assigned_to", str::is_empty),
            ("caller_id.user_name=abel.tuter", "caller_id.user_name", |value| value == "abel.tuter"),
            ("caller_id=javascript:gs.getUserID()", "caller_id.user_name", |value| value == "abel.tuter"),
            ("caller_id.department.name=IT", "caller_id.department.name", |value| value == "IT"),
        ] {
            let found = values(&database, query, path);
            assert!(!found.is_empty() && found.len() < total, "{query}: {} rows", found.len());
            assert!(found.iter().all(|value| good(value)), "{query}: {found:?}");
            let all = values(&database, "", path);
            assert_eq!(all.iter().filter(|value| good(value)).count(), found.len(), "{query}");
        }
    }

    #[test]
    fn complements_add_up() {
        let database = demo();
        let total = count(&database, "", false);
        for (one, other) in [
            ("active=true", "active!=true"),
            ("numberLIKE5", "numberNOT LIKE5"),
            ("assigned_toISEMPTY", "assigned_toISNOTEMPTY"),
            ("opened_bySAMEAScaller_id", "opened_byNSAMEAScaller_id"),
            ("stateIN1,2,3", "stateNOT IN1,2,3"),
        ] {
            let (one_rows, other_rows) = (count(&database, one, false), count(&database, other, false));
            assert_eq!(one_rows + other_rows, total, "{one} and {other}");
            assert_eq!(count(&database, &format!("{one}^NQ{other}"), false), total);
            assert_eq!(count(&database, &format!("{one}^{other}"), false), 0);
            assert_eq!(count(&database, &format!("{one}^OR{other}"), false), total);
        }
    }

    #[test]
    fn invalid_conditions_are_ignored_unless_strict() {
        let database = demo();
        let total = count(&database, "", false);
        let active = count(&database, "active=true", false);
        for invalid in ["nonsense=1", "numberFROB1", "caller_id=javascript:gs.evil()", "number.name=x", "=1"]
        {
            assert_eq!(count(&database, invalid, false), total, "{invalid}");
            assert_eq!(count(&database, &format!("active=true^{invalid}"), false), active, "{invalid}");
            assert_eq!(count(&database, invalid, true), 0, "{invalid}");
        }
    }

    #[test]
    fn rows_come_in_order() {
        let database = demo();
        let up = values(&database, "ORDERBYnumber", "number");
        assert!(up.is_sorted());
        let mut down = values(&database, "ORDERBYDESCnumber", "number");
        down.reverse();
        assert_eq!(up, down);
        let two_keys = values(&database, "ORDERBYpriority^ORDERBYDESCnumber", "priority");
        assert!(two_keys.is_sorted());
    }

    proptest! {
        #[test]
        fn evaluation_never_panics(text in "[a-z_.]{1,20}(=|LIKE|BETWEEN|>|SAMEAS|IN)[ -~é^]{0,60}") {
            static DEMO: std::sync::LazyLock<Database> = std::sync::LazyLock::new(demo);
            prop_assert!(count(&DEMO, &text, false) <= DEMO.rows("incident").len());
        }
    }
}
