//! What a policy must be before it is stored. A policy that was stored is compiled whatever it holds: a name that is
//! no method or no table opens nothing.

use std::{net::IpAddr, ops::RangeInclusive};

use bearerd_model::{ConnectionSelector, FamilyName, Policy, RateLimit, RecordRule, Rule, TableSet};
use ipnet::IpNet;

use crate::{Method, RecordRuleFault, compile_records};

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
    #[error("rule {rule}: the paths of family {family} name no table, so `tables` must be all")]
    NamesNoTable { rule: usize, family: FamilyName },
    #[error("rule {rule}: {given} is not the address of a network; write {network}")]
    HostBits { rule: usize, given: IpNet, network: IpNet },
    #[error("rule {rule}: {given} is an IPv4 network in IPv6 form; write it as IPv4")]
    MappedNetwork { rule: usize, given: IpNet },
    #[error("rule {rule}: a record rule stands beside {wanted}")]
    BesideRecords { rule: usize, wanted: &'static str },
    #[error("rule {rule}: its record rule is refused: {fault}")]
    Records { rule: usize, fault: RecordRuleFault },
    #[error("`{member}` is {} to {}", bounds.start(), bounds.end())]
    Limit { member: &'static str, bounds: RangeInclusive<u32> },
}

impl PolicyFault {
    /// The member of the policy that it is about.
    pub fn member(&self) -> &'static str {
        match self {
            Self::DescriptionTooLong => "description",
            Self::Limit { member, .. } => member,
            _ => "rules",
        }
    }
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
    policy.rules.iter().enumerate().try_for_each(|(index, rule)| validate_rule(index + 1, rule))?;
    policy.rate.map_or(Ok(()), validate_rate)?;
    match policy.concurrency_max {
        Some(max) => check_limit("concurrency_max", max, CONCURRENCY),
        None => Ok(()),
    }
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
    check_size(rule, "families", given.families.len(), FAMILIES_MAX)?;
    if let TableSet::Named(names) = &given.tables {
        check_size(rule, "tables", names.len(), TABLES_MAX)?;
        if let Some(name) = names.iter().find(|name| !is_table_name(name)) {
            return Err(PolicyFault::TableName { rule, name: cut(name) });
        }
        if let Some(family) = given.families.iter().find(|family| !family.names_tables()) {
            return Err(PolicyFault::NamesNoTable { rule, family: family.clone() });
        }
    }
    check_size(rule, "methods", given.methods.0.len(), Method::ALL.len())?;
    if let Some(name) = given.methods.0.iter().find(|name| Method::parse(name).is_none()) {
        return Err(PolicyFault::UnknownMethod { rule, name: cut(name) });
    }
    validate_networks(rule, &given.networks)?;
    given.records.as_ref().map_or(Ok(()), |records| validate_records(rule, given, records))
}

fn validate_networks(rule: usize, networks: &[IpNet]) -> Result<(), PolicyFault> {
    if networks.len() > NETWORKS_MAX {
        return Err(PolicyFault::SetTooLarge { rule, set: "networks", max: NETWORKS_MAX });
    }
    for given in networks.iter().copied() {
        let network = given.trunc();
        if network != given {
            return Err(PolicyFault::HostBits { rule, given, network });
        }
        // Sources are compared in their IPv4 form, which no IPv6 network holds.
        if let IpAddr::V6(address) = given.addr()
            && given.prefix_len() >= MAPPED_PREFIX_LEN
            && address.to_ipv4_mapped().is_some()
        {
            return Err(PolicyFault::MappedNetwork { rule, given });
        }
    }
    Ok(())
}

fn validate_records(rule: usize, given: &Rule, records: &RecordRule) -> Result<(), PolicyFault> {
    let beside = |wanted| PolicyFault::BesideRecords { rule, wanted };
    if !given.families.iter().all(|family| *family == FamilyName::table()) {
        return Err(beside("the family table alone: no other query can be narrowed"));
    }
    match &given.tables {
        TableSet::All => return Err(beside("tables by name: its fields are looked up in each")),
        TableSet::Named(names) => check_size(rule, "tables", names.len(), RECORD_TABLES_MAX)?,
    }
    if !given.methods.0.iter().filter_map(|name| Method::parse(name)).all(Method::is_safe) {
        return Err(beside("GET and HEAD alone: it opens nothing else"));
    }
    compile_records(records).map(drop).map_err(|fault| PolicyFault::Records { rule, fault })
}

fn validate_rate(rate: RateLimit) -> Result<(), PolicyFault> {
    check_limit("rate.calls", rate.calls, RATE_CALLS)?;
    check_limit("rate.per_s", rate.per_s, RATE_PER_S)?;
    check_limit("rate.burst", rate.burst(), RATE_CALLS)
}

fn check_limit(member: &'static str, given: u32, bounds: RangeInclusive<u32>) -> Result<(), PolicyFault> {
    if bounds.contains(&given) { Ok(()) } else { Err(PolicyFault::Limit { member, bounds }) }
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
/// A decision compares the source with each.
const NETWORKS_MAX: usize = 64;
const FAMILIES_MAX: usize = 64;
/// `::ffff:0:0/96` holds every IPv4 address (RFC 4291 §2.5.5.2).
const MAPPED_PREFIX_LEN: u8 = 96;
/// Each is looked up at every instance when the policy is saved.
const RECORD_TABLES_MAX: usize = 20;
const CONCURRENCY: RangeInclusive<u32> = 1..=100_000;
const RATE_CALLS: RangeInclusive<u32> = 1..=1_000_000;
/// An hour: what is counted is lost with the process.
const RATE_PER_S: RangeInclusive<u32> = 1..=3_600;

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
            rate: None,
            concurrency_max: None,
            created_at: now,
            updated_at: now,
        }
    }

    fn rule(tables: &[&str], methods: &[&str]) -> Rule {
        Rule::new(
            ConnectionSelector::All,
            TableSet::Named(tables.iter().map(|name| (*name).to_owned()).collect()),
            MethodSet(methods.iter().map(|name| (*name).to_owned()).collect()),
        )
    }

    fn families(names: &[&str]) -> BTreeSet<FamilyName> {
        names.iter().map(|name| FamilyName::parse(name).unwrap()).collect()
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

    /// A table set says nothing of a path that names no table.
    #[test]
    fn families_without_tables_are_opened_whole() {
        let opening = |names: &[&str], tables: TableSet| {
            let given = Rule { families: families(names), tables, ..rule(&["incident"], &["GET"]) };
            validate_policy(&policy(vec![rule(&["a"], &["GET"]), given]))
        };
        let incident = || TableSet::Named(BTreeSet::from(["incident".to_owned()]));
        assert_eq!(opening(&["table", "stats", "import"], incident()), Ok(()));
        assert_eq!(opening(&["table", "attachment", "now/ui", "sn_sc"], TableSet::All), Ok(()));
        for name in ["attachment", "now/ui", "sn_sc"] {
            let family = FamilyName::parse(name).unwrap();
            let fault = opening(&["table", name], incident()).unwrap_err();
            assert_eq!(fault, PolicyFault::NamesNoTable { rule: 2, family }, "{name}");
        }
        let fault = opening(&[], TableSet::All).unwrap_err();
        assert_eq!(fault, PolicyFault::EmptySet { rule: 2, set: "families" });
    }

    #[test]
    fn networks_are_written_the_one_way_that_counts() {
        let from = |networks: &[&str]| {
            let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            validate_policy(&policy(vec![Rule { networks, ..rule(&["a"], &["GET"]) }]))
                .map_err(|fault| fault.to_string())
        };
        assert_eq!(from(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::/0"]), Ok(()));
        let host = "rule 1: 10.1.0.0/8 is not the address of a network; write 10.0.0.0/8";
        assert_eq!(from(&["192.0.2.0/24", "10.1.0.0/8"]), Err(host.to_owned()));
        let mapped = "rule 1: ::ffff:10.0.0.0/104 is an IPv4 network in IPv6 form; write it as IPv4";
        assert_eq!(from(&["::ffff:10.0.0.0/104"]), Err(mapped.to_owned()));
        let many: Vec<String> = (0..=NETWORKS_MAX).map(|n| format!("10.0.{n}.0/24")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(from(&many).unwrap_err().contains("more than 64"));
    }

    #[test]
    fn limits_are_in_their_bounds() {
        let limited = |calls, per_s, burst, concurrency_max| {
            let rate = Some(RateLimit { calls, per_s, burst });
            let given = Policy { rate, concurrency_max, ..policy(vec![rule(&["a"], &["GET"])]) };
            validate_policy(&given).map_err(|fault| fault.member())
        };
        assert_eq!(limited(1, 1, None, None), Ok(()));
        assert_eq!(limited(1_000_000, 3_600, Some(1_000_000), Some(100_000)), Ok(()));
        assert_eq!(limited(0, 1, Some(1), None), Err("rate.calls"));
        assert_eq!(limited(1_000_001, 1, Some(1), None), Err("rate.calls"));
        assert_eq!(limited(1, 0, None, None), Err("rate.per_s"));
        assert_eq!(limited(1, 3_601, None, None), Err("rate.per_s"));
        assert_eq!(limited(1, 1, Some(0), None), Err("rate.burst"));
        assert_eq!(limited(1, 1, Some(1_000_001), None), Err("rate.burst"));
        assert_eq!(limited(1, 1, None, Some(0)), Err("concurrency_max"));
        assert_eq!(limited(1, 1, None, Some(100_001)), Err("concurrency_max"));
    }

    fn records(condition: &str) -> RecordRule {
        let condition = condition.to_owned();
        RecordRule { condition, fields: None, limit_max: 100, checked_at: BTreeSet::new() }
    }

    #[test]
    fn a_record_rule_stands_where_queries_can_be_narrowed() {
        let with = |change: &dyn Fn(&mut Rule, &mut RecordRule)| {
            let (mut given, mut records) = (rule(&["incident"], &["GET", "HEAD"]), records("active=true"));
            change(&mut given, &mut records);
            validate_policy(&policy(vec![Rule { records: Some(records), ..given }]))
                .map_err(|fault| fault.to_string())
        };
        let says = |change: &dyn Fn(&mut Rule, &mut RecordRule), words: &str| {
            let fault = with(change).unwrap_err();
            assert!(fault.starts_with("rule 1: ") && fault.contains(words), "{fault}");
        };
        says(&|rule, _| rule.families = families(&["table", "stats"]), "the family table alone");
        says(&|rule, _| rule.tables = TableSet::All, "tables by name");
        says(&|rule, _| rule.methods.0.extend(["PATCH".to_owned()]), "GET and HEAD alone");
        let many = (0..=RECORD_TABLES_MAX).map(|n| format!("t{n}")).collect();
        says(&|rule, _| rule.tables = TableSet::Named(BTreeSet::clone(&many)), "more than 20");
        assert_eq!(with(&|_, _| {}), Ok(()));
        says(&|_, records| records.limit_max = 0, "greatest limit is not between 1 and 10000");
        says(&|_, records| records.limit_max = 10_001, "greatest limit is not between 1 and 10000");
        says(&|_, records| records.fields = Some(BTreeSet::new()), "`fields` is empty");
        says(&|_, records| records.condition = "active=true^NQactive=false".to_owned(), "^NQ");
    }
}
