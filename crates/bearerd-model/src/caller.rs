//! Caller keys and policies, as stored. What they admit is decided in `bearerd-policy`.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{CallerKeyId, ConnectionId, FamilyName, InstanceOrigin, PolicyId, UnixTime};

/// One of the (at most two) live secrets of a caller key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeySecret {
    /// HMAC-SHA-256 of the secret part.
    pub hmac: [u8; 32],
    pub created_at: UnixTime,
    /// Set on the older secret by a rotation.
    pub expires_at: Option<UnixTime>,
}

/// The API key of an internal service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CallerKey {
    pub id: CallerKeyId,
    /// Who calls with it, for people.
    pub description: String,
    pub secrets: Vec<KeySecret>,
    pub policies: Vec<PolicyId>,
    /// Used where a call names no connection.
    pub default_connection: Option<ConnectionId>,
    pub expires_at: Option<UnixTime>,
    pub created_at: UnixTime,
    /// Stored beside the key, as a [`CallerKeyUse`]: `None` in a key as it comes from the store.
    #[serde(skip)]
    pub last_used_at: Option<UnixTime>,
}

/// When a caller key was last used, by whichever process.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CallerKeyUse {
    pub id: CallerKeyId,
    pub last_used_at: UnixTime,
}

/// Which connections a rule opens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionSelector {
    All,
    Ids(BTreeSet<ConnectionId>),
    /// Every one of these labels with these values.
    Labels(BTreeMap<String, String>),
}

impl ConnectionSelector {
    pub fn selects(&self, id: &ConnectionId, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::Ids(ids) => ids.contains(id),
            // An empty set of labels would match everything: validation refuses it, and so do we.
            Self::Labels(wanted) => {
                !wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
            }
        }
    }
}

/// Which tables a rule opens, in families whose paths name one. Names match `[a-z0-9_]{1,80}`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableSet {
    All,
    Named(BTreeSet<String>),
}

/// Which methods a rule opens: a set of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`. `GET` brings `HEAD`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MethodSet(pub BTreeSet<String>);

/// Opens what lies in all of its sets at once. A rule that says nothing of a later member is what [`Rule::new`] makes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    pub connections: ConnectionSelector,
    #[serde(default = "table_alone")]
    pub families: BTreeSet<FamilyName>,
    pub tables: TableSet,
    pub methods: MethodSet,
    /// Where calls may come from; empty: from anywhere.
    #[serde(default)]
    pub networks: Vec<IpNet>,
    /// From then on the rule opens nothing.
    #[serde(default)]
    pub expires_at: Option<UnixTime>,
    /// Which records of the tables it opens; `None`: all.
    #[serde(default)]
    pub records: Option<RecordRule>,
}

/// Which records of its tables a rule opens, and which of their fields.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordRule {
    /// An encoded query that every record meets.
    pub condition: String,
    /// The only fields that callers may name or see; `None`: every one.
    pub fields: Option<BTreeSet<String>>,
    /// Records of one answer at most: 1 to 10,000.
    pub limit_max: u32,
    /// Instances where every field that the rule names was found. ServiceNow ignores a condition on a field that it
    /// does not know, so anywhere else the rule opens nothing. Filled by control, never by an operator.
    pub checked_at: BTreeSet<InstanceOrigin>,
}

/// How many calls a caller key may make by one policy, on average and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RateLimit {
    /// Calls in every `per_s` seconds, spread evenly.
    pub calls: u32,
    pub per_s: u32,
    /// Calls at once after a pause; `None`: as many as `calls`.
    pub burst: Option<u32>,
}

/// What a caller may do with which connections. What no rule opens is denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Policy {
    pub id: PolicyId,
    pub description: String,
    pub rules: Vec<Rule>,
    /// Of each caller key, for the calls that a rule of this policy opened.
    #[serde(default)]
    pub rate: Option<RateLimit>,
    /// Calls of each caller key under way at once, of those that a rule of this policy opened.
    #[serde(default)]
    pub concurrency_max: Option<u32>,
    pub created_at: UnixTime,
    pub updated_at: UnixTime,
}

impl Rule {
    /// A rule of the family `table`, from anywhere, for ever and for all records.
    pub fn new(connections: ConnectionSelector, tables: TableSet, methods: MethodSet) -> Self {
        Self {
            connections,
            families: table_alone(),
            tables,
            methods,
            networks: Vec::new(),
            expires_at: None,
            records: None,
        }
    }

    /// Whether [`Rule::new`] could have made it.
    pub fn is_plain(&self) -> bool {
        let Self { connections: _, families, tables: _, methods: _, networks, expires_at, records } = self;
        *families == table_alone() && networks.is_empty() && expires_at.is_none() && records.is_none()
    }
}

impl Policy {
    /// Whether it holds nothing but plain rules, as policies did before there was more.
    pub fn is_plain(&self) -> bool {
        self.rate.is_none() && self.concurrency_max.is_none() && self.rules.iter().all(Rule::is_plain)
    }
}

impl RateLimit {
    pub fn burst(self) -> u32 {
        self.burst.unwrap_or(self.calls)
    }
}

fn table_alone() -> BTreeSet<FamilyName> {
    BTreeSet::from([FamilyName::table()])
}
