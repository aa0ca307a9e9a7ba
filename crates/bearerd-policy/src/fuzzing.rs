//! What holds for any key and any decision. The property tests call these with values that they make up, the targets of
//! `tests/fuzz` with bytes that reach new code. A rule that does not hold panics.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bearerd_model::{
    CallerKey, CallerKeyId, ConnectionId, ConnectionSelector, FamilyName, InstanceOrigin, MethodSet, Policy,
    PolicyId, RecordRule, Rule, TableSet, UnixTime,
};

use crate::{
    ApiKey, Call, CompiledKey, ConnectionFacts, Decision, KeyKind, Method, Opened, PresentedKey,
    key::checksum, rule::CompiledPolicy,
};

/// S-12: what passes is a key to the last byte, and every flipped bit is seen. The bytes are read as they are, and once
/// more with the checksum that they should have.
pub fn key(bytes: &[u8]) {
    check_key(bytes);
    let mended = [bytes, &checksum(bytes)].concat();
    let shaped = [KeyKind::Caller, KeyKind::Admin].iter().any(|kind| {
        let rest = bytes.strip_prefix(kind.prefix().as_bytes()).and_then(<[u8]>::split_first_chunk::<12>);
        rest.is_some_and(|(id, secret)| {
            id.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && secret.len() == 33
                && secret[0] == b'_'
                && secret[1..].iter().all(u8::is_ascii_alphanumeric)
        })
    });
    assert_eq!(PresentedKey::parse(&mended).is_ok(), shaped, "{}", mended.escape_ascii());
    check_key(&mended);
}

fn check_key(bytes: &[u8]) {
    let Ok(key) = PresentedKey::parse(bytes) else { return };
    let text = std::str::from_utf8(bytes).expect("a key is ASCII");
    let (body, sum) = bytes.split_at(bytes.len() - 6);
    assert_eq!(checksum(body), sum);
    assert!(text.starts_with(&format!("{}{}_", key.kind().prefix(), key.id())), "{text}");
    let kept = ApiKey::parse(text).expect("a key that was presented");
    assert_eq!((kept.expose(), kept.id().as_str()), (text, key.id()));
    let secret = &text[text.len() - 38..];
    assert!(!format!("{key:?} {kept:?}").contains(secret));
    let mut flipped = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            flipped[at] ^= 1 << bit;
            assert!(PresentedKey::parse(&flipped).is_err(), "{text} with bit {bit} of byte {at}");
            flipped[at] ^= 1 << bit;
        }
    }
}

/// S-15: a decision is the one that the contract says, whatever the rules are.
pub fn decision(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let policies: Vec<Vec<Rule>> = (0..choices.below(3))
        .map(|_| (0..choices.below(4)).map(|_| any_rule(&mut choices)).collect())
        .collect();
    let labels = labels(choices.some(&LABELS));
    let (id, instance) = (connection(choices.one(&CONNECTIONS)), instance(choices.one(&INSTANCES)));
    let facts = ConnectionFacts { id: &id, labels: &labels, instance: &instance };
    let key = key_with(policies.clone());
    for _ in 0..CALLS_MAX {
        if choices.0.is_empty() {
            break;
        }
        let sources = SOURCES.len() + 1;
        let call = Call {
            family: choices.one(&FAMILIES),
            table: TABLES.get(choices.below(TABLES.len() + 1)).copied(),
            item: choices.below(2) == 1,
            method: choices.one(&Method::ALL),
            source: SOURCES.get(choices.below(sources)).and_then(|text| text.parse().ok()),
            now: UnixTime::from_secs(NOW_S),
        };
        agrees_with_the_contract(&policies, &key, facts, &call);
    }
}

/// Numbers out of bytes; 0 where they have run out.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Up to eight of them, each by a bit.
    fn some<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let bits = self.byte();
        all.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, one)| *one).collect()
    }
}

fn any_rule(choices: &mut Choices<'_>) -> Rule {
    let connections = match choices.below(3) {
        0 => ConnectionSelector::All,
        1 => ids(&choices.some(&CONNECTIONS)),
        _ => ConnectionSelector::Labels(labels(choices.some(&LABELS))),
    };
    let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let tables = match choices.below(4) {
        0 => TableSet::All,
        _ => TableSet::Named(names(choices.some(&TABLES))),
    };
    let methods = MethodSet(names(choices.some(&METHODS)));
    let expires_at = [None, Some(NOW_S - 1), Some(NOW_S), Some(NOW_S + 1)];
    let records = (choices.below(8) == 7).then(|| RecordRule {
        condition: choices.one(&CONDITIONS).to_owned(),
        fields: None,
        limit_max: 100,
        checked_at: choices.some(&INSTANCES).into_iter().map(instance).collect(),
    });
    Rule {
        families: choices.some(&FAMILIES).into_iter().map(family).collect::<BTreeSet<_>>(),
        networks: choices.some(&NETWORKS).into_iter().filter_map(|text| text.parse().ok()).collect(),
        expires_at: choices.one(&expires_at).map(UnixTime::from_secs),
        records,
        ..Rule::new(connections, tables, methods)
    }
}

/// `key` has `policies` and answers `call` as they say.
pub(crate) fn agrees_with_the_contract(
    policies: &[Vec<Rule>],
    key: &CompiledKey,
    facts: ConnectionFacts<'_>,
    call: &Call<'_>,
) {
    let rules: Vec<&Rule> = policies.iter().flatten().collect();
    let (covers, opens) = naive(&rules, facts, call);
    assert!(key.may_open(facts.id) || !covers);
    match key.decide(facts, call) {
        Decision::Allow(Opened { policy, rule, records, limits: _ }) => {
            let n: usize = policy.as_str()[1..].parse().expect("policies are numbered");
            let index = policies[..n].iter().map(Vec::len).sum::<usize>() + rule - 1;
            assert_eq!(Some(index), opens, "{call:?}");
            assert_eq!(records.is_some(), rules[index].records.is_some());
        }
        Decision::Deny(reason) => {
            assert_eq!(None, opens, "{call:?} {reason:?}");
            assert_eq!(reason.hides_connection(), !covers, "{call:?} {reason:?}");
        }
    }
}

/// The same question, said in the words of the contract and nothing else: whether a rule covers the connection, and
/// which rule opens the call.
fn naive(rules: &[&Rule], facts: ConnectionFacts<'_>, call: &Call<'_>) -> (bool, Option<usize>) {
    let connection = |rule: &Rule| match &rule.connections {
        ConnectionSelector::All => true,
        ConnectionSelector::Ids(ids) => ids.iter().any(|id| id == facts.id),
        ConnectionSelector::Labels(wanted) => {
            !wanted.is_empty() && wanted.iter().all(|pair| facts.labels.iter().any(|held| held == pair))
        }
    };
    let family = |rule: &Rule| rule.families.iter().any(|family| family.as_str() == call.family);
    let table = |rule: &Rule| match &rule.tables {
        TableSet::All => true,
        TableSet::Named(names) => names.iter().any(|name| Some(name.as_str()) == call.table),
    };
    let named = |rule: &Rule, name: &str| rule.methods.0.iter().any(|held| held == name);
    let method =
        |rule: &Rule| named(rule, call.method.name()) || (call.method == Method::Head && named(rule, "GET"));
    let plain = |source: IpAddr| match source {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(source, IpAddr::V4),
        IpAddr::V4(_) => source,
    };
    let network = |rule: &Rule| {
        rule.networks.is_empty()
            || call.source.is_some_and(|source| rule.networks.iter().any(|net| net.contains(&plain(source))))
    };
    let not_over = |rule: &Rule| rule.expires_at.is_none_or(|expires_at| call.now < expires_at);
    let records = |rule: &Rule| {
        rule.records.as_ref().is_none_or(|records| {
            crate::compile_records(records).is_ok() && records.checked_at.contains(facts.instance)
        })
    };
    let reads_collection = call.family == "table"
        && call.table.is_some()
        && !call.item
        && [Method::Get, Method::Head].contains(&call.method);
    let key_allows = reads_collection || rules.iter().all(|rule| rule.records.is_none());
    let opens = |rule: &Rule| {
        connection(rule)
            && family(rule)
            && table(rule)
            && method(rule)
            && network(rule)
            && not_over(rule)
            && records(rule)
            && key_allows
    };
    (rules.iter().any(|rule| connection(rule)), rules.iter().position(|rule| opens(rule)))
}

pub(crate) fn connection(name: &str) -> ConnectionId {
    ConnectionId::parse(name).expect("one of CONNECTIONS")
}

pub(crate) fn instance(text: &str) -> InstanceOrigin {
    InstanceOrigin::parse(text).expect("one of INSTANCES")
}

pub(crate) fn family(text: &str) -> FamilyName {
    FamilyName::parse(text).expect("one of FAMILIES")
}

pub(crate) fn labels(
    pairs: impl IntoIterator<Item = (&'static str, &'static str)>,
) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(crate) fn caller_key(policies: usize) -> CallerKey {
    CallerKey {
        id: CallerKeyId::parse("abcdef012345").expect("12 of [a-z0-9]"),
        description: String::new(),
        secrets: vec![],
        policies: (0..=policies).map(policy_id).collect(), // the last one does not exist
        default_connection: None,
        expires_at: None,
        created_at: UnixTime::from_secs(1),
        last_used_at: None,
    }
}

pub(crate) fn policy_id(n: usize) -> PolicyId {
    PolicyId::parse(&format!("p{n}")).expect("a letter and digits")
}

pub(crate) fn policy(n: usize, rules: Vec<Rule>) -> Policy {
    let now = UnixTime::from_secs(1);
    Policy {
        id: policy_id(n),
        description: String::new(),
        rules,
        rate: None,
        concurrency_max: None,
        created_at: now,
        updated_at: now,
    }
}

pub(crate) fn key_with(policies: Vec<Vec<Rule>>) -> CompiledKey {
    let key = caller_key(policies.len());
    let compiled = policies.into_iter().enumerate().map(|(n, rules)| CompiledPolicy::new(&policy(n, rules)));
    CompiledKey::new(key, &compiled.map(|policy| (policy.id.clone(), Arc::new(policy))).collect())
}

pub(crate) fn ids(names: &[&str]) -> ConnectionSelector {
    ConnectionSelector::Ids(names.iter().map(|name| connection(name)).collect())
}

/// Of one input: more say nothing new about its rules.
const CALLS_MAX: usize = 32;
pub(crate) const CONNECTIONS: [&str; 3] = ["hr", "it", "ops"];
pub(crate) const TABLES: [&str; 4] = ["incident", "problem", "sys_user", "inc"];
pub(crate) const LABELS: [(&str, &str); 4] = [("env", "prod"), ("env", "dev"), ("team", "a"), ("team", "b")];
pub(crate) const FAMILIES: [&str; 6] = ["table", "stats", "import", "attachment", "now/ui", "sn_sc"];
pub(crate) const NETWORKS: [&str; 4] = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32"];
pub(crate) const SOURCES: [&str; 5] = ["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.8", "2001:db8::1", "::1"];
pub(crate) const INSTANCES: [&str; 2] = ["https://one.service-now.com", "https://two.service-now.com"];
pub(crate) const NOW_S: u64 = 1_000;
/// The last one is none.
pub(crate) const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"];
/// The last one cannot be read.
pub(crate) const CONDITIONS: [&str; 2] = ["active=true", "^^not a condition"];
