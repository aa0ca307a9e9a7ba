//! What a policy must be before it is stored. A policy that was stored is compiled whatever it holds: a name that is
//! no method or no table opens nothing.

use bearerd_model::{ConnectionSelector, Policy, Rule, TableSet};

use crate::Method;

/// Why a policy is not accepted. `rule` counts from 1, as people do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    #[error("the description is longer than {DESCRIPTION_BYTES_MAX} bytes")]
    DescriptionTooLong,
    #[error("a policy needs at least one rule; one without rules opens nothing")]
    NoRules,
    #[error("a policy holds at most {RULES_MAX} rules")]
    TooManyRules,
    #[error("rule {rule}: `{set}` is empty, so the rule opens nothing")]
    EmptySet { rule: usize, set: &'static str },
    #[error("rule {rule}: `{set}` holds more than {max} entries")]
    SetTooLarge { rule: usize, set: &'static str, max: usize },
    #[error("rule {rule}: {name:?} is not a table name; it is 1 to 80 of a-z, 0-9 and '_'")]
    TableName { rule: usize, name: String },
    #[error("rule {rule}: {name:?} is not a method; known are GET, HEAD, POST, PUT, PATCH, DELETE")]
    UnknownMethod { rule: usize, name: String },
    #[error("rule {rule}: a label has a key of 1 to {LABEL_BYTES_MAX} bytes and a value of at most as many")]
    Label { rule: usize },
}

/// # Errors
/// The first [`PolicyFault`] found, in the order of the rules.
pub fn validate_policy(policy: &Policy) -> Result<(), PolicyFault> {
    if policy.description.len() > DESCRIPTION_BYTES_MAX {
        return Err(PolicyFault::DescriptionTooLong);
    }
    match policy.rules.len() {
        0 => return Err(PolicyFault::NoRules),
        1..=RULES_MAX => {}
        _ => return Err(PolicyFault::TooManyRules),
    }
    policy.rules.iter().enumerate().try_for_each(|(index, rule)| validate_rule(index + 1, rule))
}

/// Table names as policies hold them: ServiceNow's own are lower-case.
pub fn is_table_name(text: &str) -> bool {
    (1..=TABLE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn validate_rule(rule: usize, given: &Rule) -> Result<(), PolicyFault> {
    match &given.connections {
        ConnectionSelector::All => {}
        ConnectionSelector::Ids(ids) => check_size(rule, "connections", ids.len(), CONNECTIONS_MAX)?,
        ConnectionSelector::Labels(labels) => {
            check_size(rule, "labels", labels.len(), LABELS_MAX)?;
            let fits = |(key, value): (&String, &String)| {
                !key.is_empty() && key.len() <= LABEL_BYTES_MAX && value.len() <= LABEL_BYTES_MAX
            };
            if !labels.iter().all(fits) {
                return Err(PolicyFault::Label { rule });
            }
        }
    }
    if let TableSet::Named(names) = &given.tables {
        check_size(rule, "tables", names.len(), TABLES_MAX)?;
        if let Some(name) = names.iter().find(|name| !is_table_name(name)) {
            return Err(PolicyFault::TableName { rule, name: cut(name) });
        }
    }
    check_size(rule, "methods", given.methods.0.len(), Method::ALL.len())?;
    match given.methods.0.iter().find(|name| Method::parse(name).is_none()) {
        Some(name) => Err(PolicyFault::UnknownMethod { rule, name: cut(name) }),
        None => Ok(()),
    }
}

fn check_size(rule: usize, set: &'static str, len: usize, max: usize) -> Result<(), PolicyFault> {
    match len {
        0 => Err(PolicyFault::EmptySet { rule, set }),
        len if len > max => Err(PolicyFault::SetTooLarge { rule, set, max }),
        _ => Ok(()),
    }
}

/// Enough of an operator's text to find it again.
fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

/// ServiceNow's own limit on a table's name.
const TABLE_BYTES_MAX: usize = 80;
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// A decision reads every rule in turn; this bounds its time to a few microseconds.
const RULES_MAX: usize = 100;
const TABLES_MAX: usize = 500;
const CONNECTIONS_MAX: usize = 1000;
const LABELS_MAX: usize = 16;
/// What a connection's labels may have.
const LABEL_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bearerd_model::{ConnectionId, MethodSet, PolicyId, UnixTime};

    use super::*;

    fn policy(rules: Vec<Rule>) -> Policy {
        let now = UnixTime::from_secs(1);
        Policy {
            id: PolicyId::parse("p").unwrap(),
            description: String::new(),
            rules,
            created_at: now,
            updated_at: now,
        }
    }

    fn rule(tables: &[&str], methods: &[&str]) -> Rule {
        Rule {
            connections: ConnectionSelector::All,
            tables: TableSet::Named(tables.iter().map(|name| (*name).to_owned()).collect()),
            methods: MethodSet(methods.iter().map(|name| (*name).to_owned()).collect()),
        }
    }

    #[track_caller]
    fn check(rule: Rule, expected: &PolicyFault) {
        assert_eq!(validate_policy(&policy(vec![rule])).unwrap_err(), *expected);
    }

    #[test]
    fn a_policy_is_small_and_names_what_exists() {
        assert_eq!(validate_policy(&policy(vec![rule(&["incident", "u_x9"], &["GET", "POST"])])), Ok(()));
        assert_eq!(validate_policy(&policy(vec![])), Err(PolicyFault::NoRules));
        let many = vec![rule(&["a"], &["GET"]); RULES_MAX + 1];
        assert_eq!(validate_policy(&policy(many)), Err(PolicyFault::TooManyRules));
        check(rule(&[], &["GET"]), &PolicyFault::EmptySet { rule: 1, set: "tables" });
        check(rule(&["a"], &[]), &PolicyFault::EmptySet { rule: 1, set: "methods" });
        for name in ["Incident", "a b", "", "a.b", "../x", "ä", &"x".repeat(81)] {
            check(rule(&[name], &["GET"]), &PolicyFault::TableName { rule: 1, name: name.to_owned() });
        }
        for name in ["get", "TRACE", "*"] {
            check(rule(&["a"], &[name]), &PolicyFault::UnknownMethod { rule: 1, name: name.to_owned() });
        }
        let tables: Vec<String> = (0..=TABLES_MAX).map(|n| format!("t{n}")).collect();
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        check(rule(&tables, &["GET"]), &PolicyFault::SetTooLarge { rule: 1, set: "tables", max: TABLES_MAX });
        let mut selected = rule(&["a"], &["GET"]);
        selected.connections = ConnectionSelector::Ids(BTreeSet::<ConnectionId>::new());
        check(selected.clone(), &PolicyFault::EmptySet { rule: 1, set: "connections" });
        selected.connections = ConnectionSelector::Labels(BTreeMap::new());
        check(selected.clone(), &PolicyFault::EmptySet { rule: 1, set: "labels" });
        selected.connections = ConnectionSelector::Labels(BTreeMap::from([(String::new(), String::new())]));
        check(selected, &PolicyFault::Label { rule: 1 });
    }

    /// The longest label that a connection may have can be selected.
    #[test]
    fn a_label_is_as_long_as_a_connections() {
        let selecting = |key_bytes: usize, value_bytes: usize| Rule {
            connections: ConnectionSelector::Labels(BTreeMap::from([(
                "k".repeat(key_bytes),
                "v".repeat(value_bytes),
            )])),
            ..rule(&["a"], &["GET"])
        };
        assert_eq!(validate_policy(&policy(vec![selecting(200, 200)])), Ok(()));
        check(selecting(201, 1), &PolicyFault::Label { rule: 1 });
        check(selecting(1, 201), &PolicyFault::Label { rule: 1 });
    }
}
