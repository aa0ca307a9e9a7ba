//! A caller key with its policies, laid out for the question "may it?". Deny by default: only a rule opens, and
//! nothing closes what a rule opened.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bearerd_model::{
    CallerKey, CallerKeyId, ConnectionId, ConnectionSelector, KeySecret, Policy, PolicyId, Rule, TableSet,
    UnixTime,
};
use subtle::ConstantTimeEq;

use crate::{KeyRefusal, Method, Methods};

/// What a decision needs to know of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    pub id: &'a ConnectionId,
    pub labels: &'a BTreeMap<String, String>,
}

/// May the call go out?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// `rule` of `policy` opens it; rules count from 1.
    Allow {
        policy: &'a PolicyId,
        rule: usize,
    },
    Deny(DenyReason<'a>),
}

/// Which rule came nearest to opening a call. `Display` is for the caller: it names no table or method that the
/// caller did not name itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyReason<'a> {
    /// The key's policies hold no rule at all.
    NoPolicy,
    /// No rule covers the connection; to the caller, it does not exist.
    Connection,
    /// Rules cover the connection, none of them the table.
    Table,
    /// `rule` of `policy` covers connection and table, but not the method.
    Method { policy: &'a PolicyId, rule: usize, method: Method },
}

/// The connection of a call that names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sole<'a> {
    /// The policies name exactly one.
    Named(&'a ConnectionId),
    /// The policies could open any; if only one exists, it is meant.
    AnyIfOnlyOne,
    /// There is none, or there are several: the caller has to say.
    None,
}

/// One caller key in a [`crate::Snapshot`].
#[derive(Debug)]
pub struct CompiledKey {
    id: CallerKeyId,
    secrets: Vec<KeySecret>,
    expires_at: Option<UnixTime>,
    default_connection: Option<ConnectionId>,
    policies: Vec<Arc<CompiledPolicy>>,
    last_used: Arc<LastUse>,
}

/// When a key was last used, in milliseconds; 0: not since the mark was drained. Survives the snapshot it was made
/// for, see [`crate::SharedSnapshot::publish`].
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    id: PolicyId,
    rules: Vec<CompiledRule>,
}

#[derive(Debug)]
struct CompiledRule {
    connections: ConnectionSelector,
    /// Sorted; `None`: every table.
    tables: Option<Box<[Box<str>]>>,
    methods: Methods,
}

impl CompiledPolicy {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self { id: policy.id.clone(), rules: policy.rules.iter().map(CompiledRule::new).collect() }
    }
}

impl CompiledRule {
    fn new(rule: &Rule) -> Self {
        let tables = match &rule.tables {
            TableSet::All => None,
            TableSet::Named(names) => Some(names.iter().map(|name| name.as_str().into()).collect()),
        };
        let methods = Methods::from_names(rule.methods.0.iter().map(String::as_str));
        Self { connections: rule.connections.clone(), tables, methods }
    }

    fn covers_connection(&self, connection: ConnectionFacts<'_>) -> bool {
        match &self.connections {
            ConnectionSelector::All => true,
            ConnectionSelector::Ids(ids) => ids.contains(connection.id),
            // An empty set of labels would match everything: validation refuses it, and so do we.
            ConnectionSelector::Labels(wanted) => {
                !wanted.is_empty()
                    && wanted.iter().all(|(key, value)| connection.labels.get(key) == Some(value))
            }
        }
    }

    fn covers_table(&self, table: &str) -> bool {
        let found = |tables: &[Box<str>]| tables.binary_search_by(|name| (**name).cmp(table)).is_ok();
        self.tables.as_deref().is_none_or(found)
    }
}

impl CompiledKey {
    /// Policies that no longer exist open nothing.
    pub(crate) fn new(key: CallerKey, policies: &BTreeMap<PolicyId, Arc<CompiledPolicy>>) -> Self {
        Self {
            policies: key.policies.iter().filter_map(|id| policies.get(id).cloned()).collect(),
            id: key.id,
            secrets: key.secrets,
            expires_at: key.expires_at,
            default_connection: key.default_connection,
            last_used: Arc::default(),
        }
    }

    pub fn id(&self) -> &CallerKeyId {
        &self.id
    }

    /// Used where a call names no connection.
    pub fn default_connection(&self) -> Option<&ConnectionId> {
        self.default_connection.as_ref()
    }

    /// May the key call `method` on `table` through `connection`? The first rule that opens decides.
    pub fn decide(&self, connection: ConnectionFacts<'_>, table: &str, method: Method) -> Decision<'_> {
        let mut reason = DenyReason::NoPolicy;
        for (policy, rule, compiled) in self.rules() {
            if !compiled.covers_connection(connection) {
                reason = reason.or(DenyReason::Connection);
            } else if !compiled.covers_table(table) {
                reason = reason.or(DenyReason::Table);
            } else if !compiled.methods.contains(method) {
                reason = reason.or(DenyReason::Method { policy, rule, method });
            } else {
                return Decision::Allow { policy, rule };
            }
        }
        Decision::Deny(reason)
    }

    /// `false`: no rule covers `id`, whatever its labels are, so that it need not even be looked up.
    pub fn may_open(&self, id: &ConnectionId) -> bool {
        self.rules().any(|(_, _, rule)| match &rule.connections {
            ConnectionSelector::All | ConnectionSelector::Labels(_) => true,
            ConnectionSelector::Ids(ids) => ids.contains(id),
        })
    }

    pub fn has_rules(&self) -> bool {
        self.rules().next().is_some()
    }

    /// The only connection that the rules allow.
    pub fn sole_connection(&self) -> Sole<'_> {
        let mut sole = Sole::None;
        for (_, _, rule) in self.rules() {
            let ConnectionSelector::Ids(ids) = &rule.connections else { return Sole::AnyIfOnlyOne };
            for id in ids {
                match sole {
                    Sole::Named(named) if named != id => return self.several(),
                    _ => sole = Sole::Named(id),
                }
            }
        }
        sole
    }

    /// Stamps the key as used, at most once a second: on a busy key this is one relaxed load a call.
    pub fn mark_used(&self, now: UnixTime) {
        self.last_used.mark(now);
    }

    /// When the key was last used, if it was since the last time this was asked. For control, at most once a minute.
    pub fn drain_last_used(&self) -> Option<UnixTime> {
        let millis = self.last_used.0.swap(0, Ordering::Relaxed);
        (millis != 0).then(|| UnixTime::from_millis(millis))
    }

    /// Compares with every secret, so that the time does not tell which one it was.
    pub(crate) fn check_secret(&self, hmac: &[u8; 32], now: UnixTime) -> Result<(), KeyRefusal> {
        let mut refusal = Err(KeyRefusal::Invalid);
        for secret in &self.secrets {
            if bool::from(secret.hmac.ct_eq(hmac)) {
                refusal = if is_over(secret.expires_at, now) { Err(KeyRefusal::Expired) } else { Ok(()) };
            }
        }
        match refusal {
            Ok(()) if is_over(self.expires_at, now) => Err(KeyRefusal::Expired),
            refusal => refusal,
        }
    }

    pub(crate) fn share_last_use_of(&mut self, earlier: &Self) {
        self.last_used = Arc::clone(&earlier.last_used);
    }

    /// With more than one named, a further rule could still open any.
    fn several(&self) -> Sole<'_> {
        let open = |rule: &CompiledRule| !matches!(rule.connections, ConnectionSelector::Ids(_));
        if self.rules().any(|(_, _, rule)| open(rule)) { Sole::AnyIfOnlyOne } else { Sole::None }
    }

    fn rules(&self) -> impl Iterator<Item = (&PolicyId, usize, &CompiledRule)> {
        self.policies.iter().flat_map(|policy| {
            policy.rules.iter().enumerate().map(|(index, rule)| (&policy.id, index + 1, rule))
        })
    }
}

impl LastUse {
    fn mark(&self, now: UnixTime) {
        let now = now.as_millis();
        if now.saturating_sub(self.0.load(Ordering::Relaxed)) >= MARK_EVERY_MS {
            self.0.store(now, Ordering::Relaxed);
        }
    }
}

impl<'a> DenyReason<'a> {
    /// The nearer miss of the two; the earlier, where they are equally near.
    fn or(self, other: DenyReason<'a>) -> DenyReason<'a> {
        if other.nearness() > self.nearness() { other } else { self }
    }

    fn nearness(&self) -> u8 {
        match self {
            Self::NoPolicy => 0,
            Self::Connection => 1,
            Self::Table => 2,
            Self::Method { .. } => 3,
        }
    }
}

impl fmt::Display for DenyReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("the key has no policy, so no rule opens anything"),
            Self::Connection => f.write_str("no rule opens the connection"),
            Self::Table => f.write_str("no rule opens this table on this connection"),
            Self::Method { policy, rule, method } => {
                write!(f, "rule {rule} of policy {policy} opens this table, but not for {}", method.name())
            }
        }
    }
}

fn is_over(expires_at: Option<UnixTime>, now: UnixTime) -> bool {
    expires_at.is_some_and(|expires_at| now >= expires_at)
}

/// Last-use marks are this coarse, so that a busy key's cache line stays shared between the workers.
const MARK_EVERY_MS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use bearerd_crypto::RootSecret;
    use bearerd_model::MethodSet;
    use proptest::{collection, prelude::*, sample};

    use super::*;
    use crate::Snapshot;

    const CONNECTIONS: [&str; 3] = ["hr", "it", "ops"];
    const TABLES: [&str; 4] = ["incident", "problem", "sys_user", "inc"];
    const LABELS: [(&str, &str); 4] = [("env", "prod"), ("env", "dev"), ("team", "a"), ("team", "b")];

    fn connection(name: &str) -> ConnectionId {
        ConnectionId::parse(name).unwrap()
    }

    fn labels(pairs: impl IntoIterator<Item = (&'static str, &'static str)>) -> BTreeMap<String, String> {
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn key_with(policies: Vec<Vec<Rule>>) -> CompiledKey {
        let id = |n: usize| PolicyId::parse(&format!("p{n}")).unwrap();
        let now = UnixTime::from_secs(1);
        let key = CallerKey {
            id: CallerKeyId::parse("abcdef012345").unwrap(),
            description: String::new(),
            secrets: vec![],
            policies: (0..=policies.len()).map(id).collect(), // the last one does not exist
            default_connection: None,
            expires_at: None,
            created_at: now,
            last_used_at: None,
        };
        let policies: BTreeMap<_, _> = policies
            .into_iter()
            .enumerate()
            .map(|(n, rules)| {
                let description = String::new();
                Policy { id: id(n), description, rules, created_at: now, updated_at: now }
            })
            .map(|policy| (policy.id.clone(), Arc::new(CompiledPolicy::new(&policy))))
            .collect();
        CompiledKey::new(key, &policies)
    }

    fn ids(names: &[&str]) -> ConnectionSelector {
        ConnectionSelector::Ids(names.iter().map(|name| connection(name)).collect())
    }

    fn rule(connections: ConnectionSelector, tables: &[&str], methods: &[&str]) -> Rule {
        Rule {
            connections,
            tables: TableSet::Named(tables.iter().map(|name| (*name).to_owned()).collect()),
            methods: MethodSet(methods.iter().map(|name| (*name).to_owned()).collect()),
        }
    }

    #[track_caller]
    fn check(key: &CompiledKey, name: &str, table: &str, method: Method, expected: &str) {
        let (id, labels) = (connection(name), labels([]));
        let facts = ConnectionFacts { id: &id, labels: &labels };
        let said = match key.decide(facts, table, method) {
            Decision::Allow { policy, rule } => format!("rule {rule} of policy {policy}"),
            Decision::Deny(reason) => reason.to_string(),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn the_answer_names_the_rule_that_decided() {
        let none = key_with(vec![vec![]]);
        check(&none, "hr", "incident", Method::Get, "the key has no policy, so no rule opens anything");
        let key = key_with(vec![
            vec![rule(ids(&["it"]), &["problem"], &["GET"])],
            vec![
                rule(ids(&["hr"]), &["incident"], &["GET"]),
                rule(ids(&["hr"]), &["incident"], &["GET", "POST"]),
            ],
        ]);
        check(&key, "hr", "incident", Method::Get, "rule 1 of policy p1");
        check(&key, "hr", "incident", Method::Head, "rule 1 of policy p1");
        check(&key, "hr", "incident", Method::Post, "rule 2 of policy p1");
        let why = "rule 1 of policy p1 opens this table, but not for DELETE";
        check(&key, "hr", "incident", Method::Delete, why);
        check(&key, "hr", "problem", Method::Get, "no rule opens this table on this connection");
        check(&key, "hr", "Incident", Method::Get, "no rule opens this table on this connection");
        check(&key, "ops", "incident", Method::Get, "no rule opens the connection");
    }

    #[test]
    fn the_sole_connection_is_the_only_one_that_rules_can_mean() {
        let sole = |selectors: &[ConnectionSelector]| {
            let rules = selectors.iter().map(|one| rule(one.clone(), &["incident"], &["GET"])).collect();
            let key = key_with(vec![rules]);
            match key.sole_connection() {
                Sole::Named(id) => id.to_string(),
                Sole::AnyIfOnlyOne => "any".to_owned(),
                Sole::None => "none".to_owned(),
            }
        };
        assert_eq!(sole(&[]), "none");
        assert_eq!(sole(&[ids(&["hr"])]), "hr");
        assert_eq!(sole(&[ids(&["hr"]), ids(&["hr"])]), "hr");
        assert_eq!(sole(&[ids(&["hr", "it"])]), "none");
        assert_eq!(sole(&[ids(&["hr"]), ids(&["it"])]), "none");
        assert_eq!(sole(&[ConnectionSelector::All]), "any");
        assert_eq!(sole(&[ids(&["hr"]), ConnectionSelector::All]), "any");
        assert_eq!(sole(&[ids(&["hr", "it"]), ConnectionSelector::All]), "any");
        assert_eq!(sole(&[ConnectionSelector::Labels(labels([("env", "prod")]))]), "any");
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

    fn any_rule() -> impl Strategy<Value = Rule> {
        let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"];
        let tables = prop_oneof![
            1 => Just(TableSet::All),
            3 => sample::subsequence(TABLES.to_vec(), 0..=4)
                .prop_map(|names| TableSet::Named(names.into_iter().map(str::to_owned).collect())),
        ];
        let methods = sample::subsequence(methods.to_vec(), 0..=7)
            .prop_map(|names| MethodSet(names.into_iter().map(str::to_owned).collect()));
        (any_selector(), tables, methods).prop_map(|(connections, tables, methods)| Rule {
            connections,
            tables,
            methods,
        })
    }

    /// The same question, said in the words of the contract and nothing else.
    fn naive(rules: &[Rule], facts: ConnectionFacts<'_>, table: &str, method: Method) -> (bool, bool) {
        let connection = |rule: &Rule| match &rule.connections {
            ConnectionSelector::All => true,
            ConnectionSelector::Ids(ids) => ids.iter().any(|id| id == facts.id),
            ConnectionSelector::Labels(wanted) => {
                !wanted.is_empty() && wanted.iter().all(|pair| facts.labels.iter().any(|held| held == pair))
            }
        };
        let table = |rule: &Rule| match &rule.tables {
            TableSet::All => true,
            TableSet::Named(names) => names.iter().any(|name| name == table),
        };
        let named = |rule: &Rule, name: &str| rule.methods.0.iter().any(|held| held == name);
        let method =
            |rule: &Rule| named(rule, method.name()) || (method == Method::Head && named(rule, "GET"));
        (
            rules.iter().any(connection),
            rules.iter().any(|rule| connection(rule) && table(rule) && method(rule)),
        )
    }

    proptest! {
        /// S-15: every cell of the authorization matrix, against a plain restatement.
        #[test]
        fn decisions_agree_with_the_contract(
            policies in collection::vec(collection::vec(any_rule(), 0..4), 0..3),
            held in sample::subsequence(LABELS.to_vec(), 0..=4),
        ) {
            let rules: Vec<Rule> = policies.iter().flatten().cloned().collect();
            let key = key_with(policies);
            let labels = labels(held);
            for id in CONNECTIONS.map(connection) {
                let facts = ConnectionFacts { id: &id, labels: &labels };
                for table in TABLES {
                    for method in Method::ALL {
                        let (opens, allows) = naive(&rules, facts, table, method);
                        prop_assert!(key.may_open(&id) || !opens);
                        let decision = key.decide(facts, table, method);
                        prop_assert_eq!(matches!(decision, Decision::Allow { .. }), allows);
                        let hidden = matches!(
                            decision, Decision::Deny(DenyReason::Connection | DenyReason::NoPolicy)
                        );
                        prop_assert_eq!(hidden, !opens);
                        if let Decision::Allow { policy, rule } = decision {
                            prop_assert!(policy.as_str().starts_with('p') && rule >= 1);
                        }
                    }
                }
            }
        }

        /// Whatever a table is called, a key without rules opens nothing.
        #[test]
        fn nothing_is_open_by_default(table in "\\PC{0,90}", method in sample::select(Method::ALL.to_vec())) {
            let (key, id, labels) = (key_with(vec![]), connection("hr"), labels([]));
            let decision = key.decide(ConnectionFacts { id: &id, labels: &labels }, &table, method);
            prop_assert_eq!(decision, Decision::Deny(DenyReason::NoPolicy));
        }
    }

    #[test]
    fn a_snapshot_without_keys_knows_nobody() {
        let snapshot = Snapshot::compile([], [], RootSecret::from_bytes([1; 32]).keyed_hash("caller key"));
        let key = crate::ApiKey::generate(crate::KeyKind::Caller);
        let now = UnixTime::from_secs(1);
        assert_eq!(snapshot.authenticate(&key.presented(), now).unwrap_err(), KeyRefusal::Invalid);
    }
}
