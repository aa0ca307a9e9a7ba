//! Policies.

use std::collections::{BTreeMap, BTreeSet};

use bearerd_model as model;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::WireTime;

/// Which connections a rule opens: `"all"`, `{"ids": ["hr-prod"]}` or `{"labels": {"env": "prod"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionSelector {
    All,
    #[schema(value_type = Vec<String>)]
    Ids(BTreeSet<model::ConnectionId>),
    /// Every one of these labels with these values.
    Labels(BTreeMap<String, String>),
}

/// Which tables a rule opens: `"all"` or `{"named": ["incident"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableSet {
    All,
    #[schema(value_type = Vec<String>)]
    Named(BTreeSet<String>),
}

/// Opens what lies in all of its sets at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub connections: ConnectionSelector,
    /// `table`, `stats`, `attachment`, `import`; `now/NAME` for a further prefix under `/api/now/`; a scope such as
    /// `sn_sc` for `/api/sn_sc/`. 1 to 64. Default: `table`.
    #[serde(default = "table_alone")]
    #[schema(value_type = Vec<String>, example = json!(["table"]), min_items = 1, max_items = 64)]
    pub families: BTreeSet<model::FamilyName>,
    /// `all`, where `families` has any but `table`, `stats` and `import`: other paths name no table.
    pub tables: TableSet,
    /// Of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`; `GET` brings `HEAD`.
    #[schema(value_type = Vec<String>, example = json!(["GET"]))]
    pub methods: BTreeSet<String>,
    /// Where calls may come from, at most 64. Left out: from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["10.0.0.0/8"]), max_items = 64)]
    pub networks: Vec<IpNet>,
    /// From then on the rule opens nothing. Left out: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<WireTime>,
    /// Left out: all records of the tables, and all their fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<RecordRule>,
}

/// Which records of its tables a rule opens, and which of their fields. A key with such a rule in any of its policies
/// may do nothing but read collections of tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordRule {
    /// An encoded query that every record meets; at most 1024 bytes.
    #[schema(example = "assignment_group=d625dccec0a8016700a222a0f7900d06^active=true")]
    pub condition: String,
    /// The only fields that callers may name or see, 1 to 100. Left out: every field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub fields: Option<BTreeSet<String>>,
    /// Records of one answer at most: 1 to 10000. Default: 1000.
    #[serde(default = "limit_max_default")]
    #[schema(minimum = 1, maximum = 10_000, default = 1_000)]
    pub limit_max: u32,
    /// In answers: the instances where every field that the rule names was found when the policy was saved. The rule
    /// opens nothing elsewhere. Not taken from requests.
    #[serde(default)]
    #[schema(value_type = Vec<String>, read_only)]
    pub checked_at: BTreeSet<model::InstanceOrigin>,
}

/// How many calls each caller key may make by the policy, in each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Calls in every `per_s` seconds, spread evenly: 1 to 1000000.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub calls: u32,
    /// Seconds: 1 to 3600. Default: 1.
    #[serde(default = "per_s_default")]
    #[schema(minimum = 1, maximum = 3_600, default = 1)]
    pub per_s: u32,
    /// Calls at once after a pause: 1 to 1000000. Left out: as many as `calls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub burst: Option<u32>,
}

/// What an operator says of a policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    #[serde(default)]
    pub description: String,
    /// What no rule opens is denied. The first rule that opens a call decides.
    pub rules: Vec<Rule>,
    /// Left out: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLimit>,
    /// Calls under way at once of each caller key, in each process: 1 to 100000. Left out: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100_000)]
    pub concurrency_max: Option<u32>,
}

/// What a caller may do with which connections. What no rule opens is denied.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    #[schema(value_type = String)]
    pub id: model::PolicyId,
    pub description: String,
    pub rules: Vec<Rule>,
    pub rate: Option<RateLimit>,
    pub concurrency_max: Option<u32>,
    pub created_at: WireTime,
    pub updated_at: WireTime,
    /// In the answer to a PUT: instances that could not be asked for the fields of its record rules. These open nothing
    /// there, unless `checked_at` names the instance from before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchecked: Vec<Unchecked>,
}

/// An instance that could not be asked whether the fields of a record rule exist.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Unchecked {
    #[schema(value_type = String)]
    pub instance: model::InstanceOrigin,
    pub reason: String,
}

impl From<bearerd_control::Unchecked> for Unchecked {
    fn from(unchecked: bearerd_control::Unchecked) -> Self {
        Self { instance: unchecked.instance, reason: unchecked.reason }
    }
}

impl From<Rule> for model::Rule {
    fn from(rule: Rule) -> Self {
        Self {
            connections: match rule.connections {
                ConnectionSelector::All => model::ConnectionSelector::All,
                ConnectionSelector::Ids(ids) => model::ConnectionSelector::Ids(ids),
                ConnectionSelector::Labels(labels) => model::ConnectionSelector::Labels(labels),
            },
            tables: match rule.tables {
                TableSet::All => model::TableSet::All,
                TableSet::Named(names) => model::TableSet::Named(names),
            },
            families: rule.families,
            methods: model::MethodSet(rule.methods),
            networks: rule.networks,
            expires_at: rule.expires_at.map(model::UnixTime::from),
            records: rule.records.map(|records| model::RecordRule {
                condition: records.condition,
                fields: records.fields,
                limit_max: records.limit_max,
                checked_at: BTreeSet::new(), // for control to fill
            }),
        }
    }
}

impl From<model::Rule> for Rule {
    fn from(rule: model::Rule) -> Self {
        Self {
            connections: match rule.connections {
                model::ConnectionSelector::All => ConnectionSelector::All,
                model::ConnectionSelector::Ids(ids) => ConnectionSelector::Ids(ids),
                model::ConnectionSelector::Labels(labels) => ConnectionSelector::Labels(labels),
            },
            tables: match rule.tables {
                model::TableSet::All => TableSet::All,
                model::TableSet::Named(names) => TableSet::Named(names),
            },
            families: rule.families,
            methods: rule.methods.0,
            networks: rule.networks,
            expires_at: rule.expires_at.map(WireTime::from),
            records: rule.records.map(|records| RecordRule {
                condition: records.condition,
                fields: records.fields,
                limit_max: records.limit_max,
                checked_at: records.checked_at,
            }),
        }
    }
}

impl From<RateLimit> for model::RateLimit {
    fn from(rate: RateLimit) -> Self {
        Self { calls: rate.calls, per_s: rate.per_s, burst: rate.burst }
    }
}

impl From<model::RateLimit> for RateLimit {
    fn from(rate: model::RateLimit) -> Self {
        Self { calls: rate.calls, per_s: rate.per_s, burst: rate.burst }
    }
}

impl From<model::Policy> for Policy {
    fn from(policy: model::Policy) -> Self {
        Self {
            id: policy.id,
            description: policy.description,
            rules: policy.rules.into_iter().map(Rule::from).collect(),
            rate: policy.rate.map(RateLimit::from),
            concurrency_max: policy.concurrency_max,
            created_at: policy.created_at.into(),
            updated_at: policy.updated_at.into(),
            unchecked: Vec::new(),
        }
    }
}

impl From<PolicyRequest> for bearerd_control::PolicySpec {
    fn from(request: PolicyRequest) -> Self {
        Self {
            description: request.description,
            rules: request.rules.into_iter().map(model::Rule::from).collect(),
            rate: request.rate.map(model::RateLimit::from),
            concurrency_max: request.concurrency_max,
        }
    }
}

fn table_alone() -> BTreeSet<model::FamilyName> {
    BTreeSet::from([model::FamilyName::table()])
}

fn limit_max_default() -> u32 {
    1_000
}

fn per_s_default() -> u32 {
    1
}
