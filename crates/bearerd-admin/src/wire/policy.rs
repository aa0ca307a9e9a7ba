//! Policies.

use std::collections::{BTreeMap, BTreeSet};

use bearerd_model as model;
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
    pub tables: TableSet,
    /// Of `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`; `GET` brings `HEAD`.
    #[schema(value_type = Vec<String>, example = json!(["GET"]))]
    pub methods: BTreeSet<String>,
}

/// What an operator says of a policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    #[serde(default)]
    pub description: String,
    /// What no rule opens is denied.
    pub rules: Vec<Rule>,
}

/// What a caller may do with which connections. What no rule opens is denied.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    #[schema(value_type = String)]
    pub id: model::PolicyId,
    pub description: String,
    pub rules: Vec<Rule>,
    pub created_at: WireTime,
    pub updated_at: WireTime,
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
            methods: model::MethodSet(rule.methods),
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
            methods: rule.methods.0,
        }
    }
}

impl From<model::Policy> for Policy {
    fn from(policy: model::Policy) -> Self {
        Self {
            id: policy.id,
            description: policy.description,
            rules: policy.rules.into_iter().map(Rule::from).collect(),
            created_at: policy.created_at.into(),
            updated_at: policy.updated_at.into(),
        }
    }
}

impl From<PolicyRequest> for bearerd_control::PolicySpec {
    fn from(request: PolicyRequest) -> Self {
        Self {
            description: request.description,
            rules: request.rules.into_iter().map(model::Rule::from).collect(),
        }
    }
}
