//! A policy's rules, laid out for quick answers: names sorted, nothing allocated to ask.

use std::net::IpAddr;

use bearerd_model::{ConnectionSelector, FamilyName, Policy, PolicyId, RateLimit, Rule, TableSet, UnixTime};
use ipnet::IpNet;

use crate::{Call, CompiledRecords, ConnectionFacts, Methods, decision::Miss};

#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    pub(crate) id: PolicyId,
    pub(crate) rules: Vec<CompiledRule>,
    pub(crate) rate: Option<RateLimit>,
    pub(crate) concurrency_max: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) connections: ConnectionSelector,
    /// Sorted.
    families: Box<[FamilyName]>,
    /// Sorted; `None`: every table.
    tables: Option<Box<[Box<str>]>>,
    methods: Methods,
    /// Empty: from anywhere.
    networks: Box<[IpNet]>,
    expires_at: Option<UnixTime>,
    records: Records,
}

/// Which records of its tables a rule opens.
#[derive(Debug)]
enum Records {
    All,
    Some(CompiledRecords),
    /// The stored record rule cannot be read.
    None,
}

impl CompiledPolicy {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            id: policy.id.clone(),
            rules: policy.rules.iter().map(CompiledRule::new).collect(),
            rate: policy.rate,
            concurrency_max: policy.concurrency_max,
        }
    }

    pub(crate) fn has_record_rule(&self) -> bool {
        self.rules.iter().any(|rule| !matches!(rule.records, Records::All))
    }
}

impl CompiledRule {
    fn new(rule: &Rule) -> Self {
        let tables = match &rule.tables {
            TableSet::All => None,
            TableSet::Named(names) => Some(names.iter().map(|name| name.as_str().into()).collect()),
        };
        let records = match &rule.records {
            None => Records::All,
            Some(records) => CompiledRecords::compile(records).map_or(Records::None, Records::Some),
        };
        Self {
            connections: rule.connections.clone(),
            families: rule.families.iter().cloned().collect(),
            tables,
            methods: Methods::from_names(rule.methods.0.iter().map(String::as_str)),
            networks: rule.networks.iter().copied().collect(),
            expires_at: rule.expires_at,
            records,
        }
    }

    /// Whether the rule opens `call`, and which records then (`None`: all). `source` is the call's, in its plain form;
    /// `reads_only`: the key has a record rule.
    pub(crate) fn opens(
        &self,
        connection: ConnectionFacts<'_>,
        call: &Call<'_>,
        source: Option<IpAddr>,
        reads_only: bool,
    ) -> Result<Option<&CompiledRecords>, Miss> {
        if !self.connections.selects(connection.id, connection.labels) {
            return Err(Miss::Connection);
        }
        if self.families.binary_search_by(|family| family.as_str().cmp(call.family)).is_err() {
            return Err(Miss::Family);
        }
        if !self.covers_table(call.table) {
            return Err(Miss::Table);
        }
        if !self.methods.contains(call.method) {
            return Err(Miss::Method);
        }
        if !self.covers_source(source) {
            return Err(Miss::Network);
        }
        if self.expires_at.is_some_and(|expires_at| call.now >= expires_at) {
            return Err(Miss::Expired);
        }
        if reads_only && !call.reads_collection() {
            return Err(Miss::RecordRuleKey);
        }
        match &self.records {
            Records::All => Ok(None),
            Records::Some(records) if records.is_checked_at(connection.instance) => Ok(Some(records)),
            Records::Some(_) | Records::None => Err(Miss::RecordsUnchecked),
        }
    }

    /// A path that names no table is in no set of named ones.
    fn covers_table(&self, table: Option<&str>) -> bool {
        match (self.tables.as_deref(), table) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(tables), Some(table)) => tables.binary_search_by(|name| (**name).cmp(table)).is_ok(),
        }
    }

    fn covers_source(&self, source: Option<IpAddr>) -> bool {
        self.networks.is_empty()
            || source.is_some_and(|source| self.networks.iter().any(|network| network.contains(&source)))
    }
}

impl Call<'_> {
    /// The only thing that a key with a record rule may do: anywhere else, no query could be narrowed.
    fn reads_collection(&self) -> bool {
        self.family == "table" && self.table.is_some() && !self.item && self.method.is_safe()
    }
}
