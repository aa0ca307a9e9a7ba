use std::{collections::BTreeSet, net::IpAddr};

use bearerd_crypto::RootSecret;
use bearerd_model::{MethodSet, Policy, RateLimit, RecordRule, Rule, TableSet};
use proptest::{collection, option, prelude::*, sample};

use super::*;
use crate::{
    LimitRefusal, Method, Snapshot,
    fuzzing::{
        CONDITIONS, CONNECTIONS, FAMILIES, INSTANCES, LABELS, METHODS, NETWORKS, NOW_S, SOURCES, TABLES,
        agrees_with_the_contract, caller_key, connection, family, ids, instance, key_with, labels, policy,
        policy_id,
    },
};

fn rule(connections: ConnectionSelector, tables: &[&str], methods: &[&str]) -> Rule {
    Rule::new(
        connections,
        TableSet::Named(tables.iter().map(|name| (*name).to_owned()).collect()),
        MethodSet(methods.iter().map(|name| (*name).to_owned()).collect()),
    )
}

/// A read of a table's collection, from nowhere.
fn read(table: &str) -> Call<'_> {
    Call {
        family: "table",
        table: Some(table),
        item: false,
        method: Method::Get,
        source: None,
        now: UnixTime::from_secs(NOW_S),
    }
}

#[track_caller]
fn check(key: &CompiledKey, name: &str, call: Call<'_>, expected: &str) {
    let (id, labels, instance) = (connection(name), labels([]), instance(INSTANCES[0]));
    let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
    let said = match key.decide(facts, &call) {
        Decision::Allow(Opened { policy, rule, .. }) => format!("rule {rule} of policy {policy}"),
        Decision::Deny(reason) => reason.to_string(),
    };
    assert_eq!(said, expected);
}

#[test]
fn the_answer_names_the_rule_that_decided() {
    let none = key_with(vec![vec![]]);
    check(&none, "hr", read("incident"), "the key has no policy, so no rule opens anything");
    let key = key_with(vec![
        vec![rule(ids(&["it"]), &["problem"], &["GET"])],
        vec![
            rule(ids(&["hr"]), &["incident"], &["GET"]),
            rule(ids(&["hr"]), &["incident"], &["GET", "POST"]),
        ],
    ]);
    let with = |method| Call { method, ..read("incident") };
    check(&key, "hr", read("incident"), "rule 1 of policy p1");
    check(&key, "hr", with(Method::Head), "rule 1 of policy p1");
    check(&key, "hr", with(Method::Post), "rule 2 of policy p1");
    let why = "rule 1 of policy p1 opens this table, but not for DELETE";
    check(&key, "hr", with(Method::Delete), why);
    check(&key, "hr", read("problem"), "no rule opens this table on this connection");
    check(&key, "hr", read("Incident"), "no rule opens this table on this connection");
    let stats = Call { family: "stats", ..read("incident") };
    check(&key, "hr", stats, "no rule opens this family on this connection");
    check(&key, "ops", read("incident"), "no rule opens the connection");
    let files = BTreeSet::from([family("attachment")]);
    let methods = MethodSet(BTreeSet::from(["GET".to_owned()]));
    let files = Rule { families: files, ..Rule::new(ids(&["hr"]), TableSet::All, methods) };
    let upload = Call { family: "attachment", table: None, method: Method::Post, ..read("") };
    let why = "rule 1 of policy p0 opens this family, but not for POST";
    check(&key_with(vec![vec![files]]), "hr", upload, why);
}

/// The nearest miss, one step nearer each time.
#[test]
fn the_nearest_rule_is_named() {
    let incident = || rule(ids(&["hr"]), &["incident"], &["GET"]);
    let networks = vec!["10.0.0.0/8".parse().unwrap()];
    let over = Some(UnixTime::from_secs(NOW_S));
    let mut rules = vec![rule(ids(&["it"]), &["incident"], &["GET"])];
    for (next, expected) in [
        (Rule { families: BTreeSet::from([family("stats")]), ..incident() }, "this family"),
        (rule(ids(&["hr"]), &["problem"], &["GET"]), "no rule opens this table"),
        (
            rule(ids(&["hr"]), &["incident"], &["POST"]),
            "rule 4 of policy p0 opens this table, but not for GET",
        ),
        (
            Rule { networks, ..incident() },
            "rule 5 of policy p0 opens this, but not from where the call comes",
        ),
        (Rule { expires_at: over, ..incident() }, "rule 6 of policy p0 opened this, but has expired"),
    ] {
        rules.push(next);
        let mut either_way = rules.clone();
        for _ in 0..2 {
            let key = key_with(vec![either_way.clone()]);
            let (id, labels, instance) = (connection("hr"), labels([]), instance(INSTANCES[0]));
            let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
            let Decision::Deny(reason) = key.decide(facts, &read("incident")) else { panic!("{expected}") };
            let said = reason.to_string().replace("rule 1 ", &format!("rule {} ", rules.len()));
            assert!(said.contains(expected), "{said}");
            either_way.reverse();
        }
    }
}

/// An address has one meaning, however a socket shows it; a rule with networks admits nobody without an address.
#[test]
fn a_source_is_inside_one_of_the_networks() {
    let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let here = |texts| {
        key_with(vec![vec![Rule {
            networks: networks(texts),
            ..rule(ids(&["hr"]), &["incident"], &["GET"])
        }]])
    };
    let from = |source: &str| Call { source: source.parse().ok(), ..read("incident") };
    let (opened, denied) =
        ("rule 1 of policy p0", "rule 1 of policy p0 opens this, but not from where the call comes");
    let key = here(&["10.0.0.0/8", "2001:db8::/32"]);
    for source in ["10.255.0.1", "::ffff:10.0.0.1", "2001:db8::7"] {
        check(&key, "hr", from(source), opened);
    }
    for source in ["11.0.0.1", "::ffff:11.0.0.1", "::10.0.0.1", "2001:db9::7", "no address"] {
        check(&key, "hr", from(source), denied);
    }
    check(&here(&["::/0"]), "hr", from("10.0.0.1"), denied);
    check(&here(&["0.0.0.0/0"]), "hr", from("::ffff:10.0.0.1"), opened);
    check(&here(&[]), "hr", from("no address"), opened);
}

/// S-14 in small: what a key may do at once, and over time, does not begin anew with each change of anything.
#[test]
fn limits_go_on_from_snapshot_to_snapshot() {
    let limits_of = |key: &CompiledKey| {
        let (id, labels, instance) = (connection("hr"), labels([]), instance(INSTANCES[0]));
        let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
        match key.decide(facts, &read("incident")) {
            Decision::Allow(opened) => Arc::clone(opened.limits),
            Decision::Deny(reason) => panic!("{reason}"),
        }
    };
    let compiled = |concurrency_max: u32| {
        let limited = Policy {
            rate: Some(RateLimit { calls: 2, per_s: 60, burst: None }),
            concurrency_max: Some(concurrency_max),
            ..policy(0, vec![rule(ids(&["hr"]), &["incident"], &["GET"])])
        };
        let policies = [(policy_id(0), Arc::new(CompiledPolicy::new(&limited)))];
        CompiledKey::new(caller_key(1), &policies.into())
    };
    let now = UnixTime::from_secs(NOW_S);
    let earlier = compiled(1);
    let call = limits_of(&earlier).admit(now).unwrap();
    let mut later = compiled(2);
    later.go_on_from(&earlier);
    let second = limits_of(&later).admit(now).unwrap();
    assert_eq!(limits_of(&later).admit(now).map(drop), Err(LimitRefusal::Concurrency));
    drop((call, second));
    let refused = limits_of(&later).admit(now).map(drop);
    assert_eq!(refused, Err(LimitRefusal::Rate { retry_after: std::time::Duration::from_secs(30) }));
    assert!(limits_of(&compiled(2)).admit(now).is_ok(), "another key has limits of its own");
}

#[test]
fn the_sole_connection_is_the_only_one_that_rules_can_mean() {
    let sole = |selectors: &[ConnectionSelector]| {
        let rules = selectors.iter().map(|one| rule(one.clone(), &["incident"], &["GET"])).collect();
        let key = key_with(vec![rules]);
        match key.sole_connection() {
            Sole::Named(id) => id.to_string(),
            Sole::Selected => "selected".to_owned(),
            Sole::None => "none".to_owned(),
        }
    };
    assert_eq!(sole(&[]), "none");
    assert_eq!(sole(&[ids(&["hr"])]), "hr");
    assert_eq!(sole(&[ids(&["hr"]), ids(&["hr"])]), "hr");
    assert_eq!(sole(&[ids(&["hr", "it"])]), "none");
    assert_eq!(sole(&[ids(&["hr"]), ids(&["it"])]), "none");
    assert_eq!(sole(&[ConnectionSelector::All]), "selected");
    assert_eq!(sole(&[ids(&["hr"]), ConnectionSelector::All]), "selected");
    assert_eq!(sole(&[ids(&["hr", "it"]), ConnectionSelector::All]), "selected");
    assert_eq!(sole(&[ConnectionSelector::Labels(labels([("env", "prod")]))]), "selected");
}

#[test]
fn the_sole_connection_of_those_that_there_are_is_the_only_selected_one() {
    let roster = [("hr", "prod"), ("it", "prod"), ("hr-test", "test")]
        .map(|(id, env)| (ConnectionId::parse(id).unwrap(), labels([("env", env)])));
    let sole = |selectors: &[ConnectionSelector]| {
        let rules = selectors.iter().map(|one| rule(one.clone(), &["incident"], &["GET"])).collect();
        let roster = roster.iter().map(|(id, labels)| (id, labels));
        key_with(vec![rules]).sole_of(roster).map(ToString::to_string)
    };
    let (prod, test) = (labels([("env", "prod")]), labels([("env", "test")]));
    let of = ConnectionSelector::Labels;
    assert_eq!(sole(&[of(test.clone())]).as_deref(), Some("hr-test"));
    assert_eq!(sole(&[of(test.clone()), ids(&["hr-test", "gone"])]).as_deref(), Some("hr-test"));
    assert_eq!(sole(&[of(test.clone()), ids(&["hr"])]), None);
    assert_eq!(sole(&[of(prod)]), None);
    assert_eq!(sole(&[of(labels([("env", "none")]))]), None);
    assert_eq!(sole(&[ConnectionSelector::All]), None);
}

#[test]
fn a_mark_is_set_at_most_once_a_second_and_drained_once() {
    let key = key_with(vec![]);
    assert_eq!(key.drain_last_used(), None);
    for (now_ms, mark_ms) in [(5_000, 5_000), (5_999, 5_000), (6_000, 6_000)] {
        key.mark_used(UnixTime::from_millis(now_ms));
        assert_eq!(key.last_used.0.load(Ordering::Relaxed), mark_ms);
    }
    assert_eq!(key.drain_last_used(), Some(UnixTime::from_millis(6_000)));
    assert_eq!(key.drain_last_used(), None);
}

fn any_selector() -> impl Strategy<Value = ConnectionSelector> {
    prop_oneof![
        Just(ConnectionSelector::All),
        sample::subsequence(CONNECTIONS.to_vec(), 0..=3).prop_map(|names| ids(&names)),
        sample::subsequence(LABELS.to_vec(), 0..=2)
            .prop_map(|pairs| ConnectionSelector::Labels(labels(pairs))),
    ]
}

fn any_records() -> impl Strategy<Value = RecordRule> {
    let condition = sample::select(CONDITIONS.to_vec());
    let checked_at = sample::subsequence(INSTANCES.to_vec(), 0..=2);
    (condition, checked_at).prop_map(|(condition, checked_at)| RecordRule {
        condition: condition.to_owned(),
        fields: None,
        limit_max: 100,
        checked_at: checked_at.into_iter().map(instance).collect(),
    })
}

/// Stored as they are, whatever validation would say of them.
fn any_rule() -> impl Strategy<Value = Rule> {
    let tables = prop_oneof![
        1 => Just(TableSet::All),
        3 => sample::subsequence(TABLES.to_vec(), 0..=4)
            .prop_map(|names| TableSet::Named(names.into_iter().map(str::to_owned).collect())),
    ];
    let methods = sample::subsequence(METHODS.to_vec(), 0..=7)
        .prop_map(|names| MethodSet(names.into_iter().map(str::to_owned).collect()));
    let families = sample::subsequence(FAMILIES.to_vec(), 0..=6)
        .prop_map(|names| names.into_iter().map(family).collect::<BTreeSet<_>>());
    let networks = prop_oneof![
        2 => Just(vec![]),
        1 => sample::subsequence(NETWORKS.to_vec(), 1..=3)
            .prop_map(|texts| texts.into_iter().map(|text| text.parse().unwrap()).collect()),
    ];
    let expires_at = option::of(sample::select(vec![NOW_S - 1, NOW_S, NOW_S + 1]));
    let records = option::weighted(0.1, any_records());
    (any_selector(), families, tables, methods, networks, expires_at, records).prop_map(
        |(connections, families, tables, methods, networks, expires_at, records)| Rule {
            connections,
            families,
            tables,
            methods,
            networks,
            expires_at: expires_at.map(UnixTime::from_secs),
            records,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))] // each of some 6,000 cells

    /// S-15: every cell of the authorization matrix, against a plain restatement.
    #[test]
    fn decisions_agree_with_the_contract(
        policies in collection::vec(collection::vec(any_rule(), 0..4), 0..3),
        held in sample::subsequence(LABELS.to_vec(), 0..=4),
        at in sample::select(INSTANCES.to_vec()),
    ) {
        let key = key_with(policies.clone());
        let (labels, instance) = (labels(held), instance(at));
        let calls = every_call();
        for id in CONNECTIONS.map(connection) {
            let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
            for call in &calls {
                agrees_with_the_contract(&policies, &key, facts, call);
            }
        }
    }
}

proptest! {
    /// Whatever a call names, a key without rules opens nothing.
    #[test]
    fn nothing_is_open_by_default(
        family in prop_oneof!["\\PC{0,90}", sample::select(FAMILIES.to_vec()).prop_map(str::to_owned)],
        table in option::of("\\PC{0,90}"),
        method in sample::select(Method::ALL.to_vec()),
        item: bool,
    ) {
        let (key, id) = (key_with(vec![]), connection("hr"));
        let (labels, instance) = (labels([]), instance(INSTANCES[0]));
        let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
        let call = Call { family: &family, table: table.as_deref(), item, method, ..read("incident") };
        let decision = key.decide(facts, &call);
        prop_assert!(matches!(decision, Decision::Deny(DenyReason::NoPolicy)), "{:?}", decision);
    }

    /// What a reason says to the caller holds no name that the caller did not send, and no network.
    #[test]
    fn reasons_tell_nothing(rules in collection::vec(any_rule(), 1..6), source in sample::select(SOURCES.to_vec())) {
        let key = key_with(vec![rules]);
        let (id, labels, instance) = (connection("hr"), labels([]), instance(INSTANCES[0]));
        let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
        let source = source.parse().ok();
        if let Decision::Deny(reason) = key.decide(facts, &Call { source, ..read("nothing") }) {
            let said = reason.to_string();
            for secret in TABLES.iter().chain(&FAMILIES[1..]).chain(&NETWORKS).chain(&INSTANCES) {
                prop_assert!(!said.split(' ').any(|word| word == *secret), "{}", said);
            }
            prop_assert!(!said.contains(['.', ':', '/']), "{}", said);
        }
    }
}

/// Every combination of what a call can say.
fn every_call() -> Vec<Call<'static>> {
    let now = UnixTime::from_secs(NOW_S);
    let tables: Vec<Option<&str>> = TABLES.into_iter().map(Some).chain([None]).collect();
    let sources: Vec<Option<IpAddr>> =
        SOURCES.into_iter().map(|text| Some(text.parse().unwrap())).chain([None]).collect();
    let mut calls = Vec::new();
    for family in FAMILIES {
        for table in tables.iter().copied() {
            for method in Method::ALL {
                for source in sources.iter().copied() {
                    let call = |item| Call { family, table, item, method, source, now };
                    calls.extend([false, true].map(call));
                }
            }
        }
    }
    calls
}

#[test]
fn a_snapshot_without_keys_knows_nobody() {
    let snapshot = Snapshot::compile([], [], RootSecret::from_bytes([1; 32]).keyed_hash("caller key"));
    let key = crate::ApiKey::generate(crate::KeyKind::Caller);
    let now = UnixTime::from_secs(1);
    assert_eq!(snapshot.authenticate(&key.presented(), now).unwrap_err(), KeyRefusal::Invalid);
}
