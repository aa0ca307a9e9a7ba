//! The question "may it?", and its answers.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use bearerd_model::{ConnectionId, InstanceOrigin, PolicyId, UnixTime};

use crate::{CompiledRecords, KeyLimits, Method};

/// What a decision needs to know of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    pub id: &'a ConnectionId,
    pub labels: &'a BTreeMap<String, String>,
    pub instance: &'a InstanceOrigin,
}

/// What a decision needs to know of a call.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// As [`bearerd_model::FamilyName`] spells it. What no family is called opens nothing.
    pub family: &'a str,
    /// Where the path names one.
    pub table: Option<&'a str>,
    /// The path goes on after the table: a single record, or something below it.
    pub item: bool,
    pub method: Method,
    /// The caller's address; `None`: there is none (a unix socket). An IPv4 address in IPv6 form counts as IPv4.
    pub source: Option<IpAddr>,
    pub now: UnixTime,
}

/// May the call go out?
#[derive(Debug, Clone)]
pub enum Decision<'a> {
    Allow(Opened<'a>),
    Deny(DenyReason<'a>),
}

/// The rule that opens a call, and on what terms.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    pub policy: &'a PolicyId,
    /// Counts from 1.
    pub rule: usize,
    /// The query goes out only as this rewrites it.
    pub records: Option<&'a CompiledRecords>,
    /// The call goes out only once this admits it.
    pub limits: &'a Arc<KeyLimits>,
}

/// Which rule came nearest to opening a call. `Display` is for the caller: it names no family, table, network or
/// method that the caller did not name itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenyReason<'a> {
    /// The key's policies hold no rule at all.
    NoPolicy,
    /// No rule covers the connection; to the caller, it does not exist.
    Connection,
    /// Rules cover the connection, none of them the family.
    Family,
    /// Rules cover connection and family, none of them the table.
    Table,
    /// `rule` of `policy` covers all before, but not the method.
    Method { policy: &'a PolicyId, rule: usize, method: Method, names_table: bool },
    /// It covers all before, but not the network that the call comes from.
    Network { policy: &'a PolicyId, rule: usize },
    /// It covers all before, but is over.
    Expired { policy: &'a PolicyId, rule: usize },
    /// It covers all before, but a record rule of the key leaves nothing but reads of table collections.
    RecordRuleKey { policy: &'a PolicyId, rule: usize },
    /// It covers all before, but its record rule was not checked at the connection's instance, or cannot be read.
    RecordsUnchecked { policy: &'a PolicyId, rule: usize },
}

/// Why one rule does not open a call. The later, the nearer it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Miss {
    Connection,
    Family,
    Table,
    Method,
    Network,
    Expired,
    RecordRuleKey,
    RecordsUnchecked,
}

impl Miss {
    pub(crate) fn reason<'a>(self, policy: &'a PolicyId, rule: usize, call: &Call<'_>) -> DenyReason<'a> {
        match self {
            Self::Connection => DenyReason::Connection,
            Self::Family => DenyReason::Family,
            Self::Table => DenyReason::Table,
            Self::Method => {
                let (method, names_table) = (call.method, call.table.is_some());
                DenyReason::Method { policy, rule, method, names_table }
            }
            Self::Network => DenyReason::Network { policy, rule },
            Self::Expired => DenyReason::Expired { policy, rule },
            Self::RecordRuleKey => DenyReason::RecordRuleKey { policy, rule },
            Self::RecordsUnchecked => DenyReason::RecordsUnchecked { policy, rule },
        }
    }
}

impl<'a> DenyReason<'a> {
    /// The caller must not learn that the connection exists (S-16).
    pub fn hides_connection(self) -> bool {
        matches!(self, Self::NoPolicy | Self::Connection)
    }

    /// The rule that came nearest, where it is one.
    pub fn rule(self) -> Option<(&'a PolicyId, usize)> {
        match self {
            Self::NoPolicy | Self::Connection | Self::Family | Self::Table => None,
            Self::Method { policy, rule, .. }
            | Self::Network { policy, rule }
            | Self::Expired { policy, rule }
            | Self::RecordRuleKey { policy, rule }
            | Self::RecordsUnchecked { policy, rule } => Some((policy, rule)),
        }
    }

    /// Stable, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Connection => "connection",
            Self::Family => "family",
            Self::Table => "table",
            Self::Method { .. } => "method",
            Self::Network { .. } => "network",
            Self::Expired { .. } => "expired",
            Self::RecordRuleKey { .. } => "record_rule_key",
            Self::RecordsUnchecked { .. } => "records_unchecked",
        }
    }
}

impl fmt::Display for DenyReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("the key has no policy, so no rule opens anything"),
            Self::Connection => f.write_str("no rule opens the connection"),
            Self::Family => f.write_str("no rule opens this family on this connection"),
            Self::Table => f.write_str("no rule opens this table on this connection"),
            Self::Method { policy, rule, method, names_table } => {
                let (what, method) = (if *names_table { "table" } else { "family" }, method.name());
                write!(f, "rule {rule} of policy {policy} opens this {what}, but not for {method}")
            }
            Self::Network { policy, rule } => {
                write!(f, "rule {rule} of policy {policy} opens this, but not from where the call comes")
            }
            Self::Expired { policy, rule } => {
                write!(f, "rule {rule} of policy {policy} opened this, but has expired")
            }
            Self::RecordRuleKey { policy, rule } => write!(
                f,
                "rule {rule} of policy {policy} opens this, but a record rule leaves the key GET and HEAD of whole \
                 tables only"
            ),
            Self::RecordsUnchecked { policy, rule } => {
                write!(f, "the record rule in rule {rule} of policy {policy} is not checked at this instance")
            }
        }
    }
}
