//! A call, and what would become of it.

use std::net::IpAddr;

use bearerd_control::{CallSpec, Holder};
use bearerd_model as model;
use bearerd_policy::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::RateLimit;

/// A call to explain: of one caller key, or of a key that would have these policies.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Either this or `policies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub caller_key_id: Option<model::CallerKeyId>,
    /// 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub policies: Option<Vec<model::PolicyId>>,
    #[schema(value_type = String)]
    pub connection: model::ConnectionId,
    /// Default: `table`.
    #[serde(default = "model::FamilyName::table")]
    #[schema(value_type = String, default = "table")]
    pub family: model::FamilyName,
    /// For `table`, `stats` and `import`; the paths of others name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The path goes on after the table: a single record. Default: false.
    #[serde(default)]
    pub item: bool,
    /// Default: `GET`.
    #[serde(default = "get")]
    #[schema(default = "GET")]
    pub method: String,
    /// The caller's address. Left out: it has none, as on a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.1.2.3")]
    pub source: Option<IpAddr>,
    /// What stands after `?`, as sent; for rules with a record rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "sysparm_query=active=true&sysparm_limit=10")]
    pub query: Option<String>,
}

/// What would become of the call now. Whether a limit has room for it is not part of the answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub allowed: bool,
    /// The policy that decides, or came nearest.
    #[schema(value_type = Option<String>)]
    pub policy: Option<model::PolicyId>,
    /// Its rule; rules count from 1.
    pub rule: Option<usize>,
    /// Why not.
    pub reason: Option<String>,
    /// What the nearest rule lacks: `no_policy`, `connection`, `family`, `table`, `method`, `network`, `expired`,
    /// `record_rule_key`, `records_unchecked` or `query`; `key_expired` where no rule was asked.
    pub nearest: Option<String>,
    /// False: the caller is told that there is no such connection (404).
    pub connection_known: bool,
    /// Where the rule has a record rule.
    pub records: Option<RewrittenQuery>,
    /// The limits of the deciding policy.
    pub limits: Option<Limits>,
}

/// The query as it would go to the instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RewrittenQuery {
    pub query: String,
}

/// What a policy allows one key in each process.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    pub rate: Option<RateLimit>,
    pub concurrency_max: Option<u32>,
    /// Calls under way in this process; counted where there is a `concurrency_max`.
    pub in_flight: u32,
}

impl TryFrom<ExplainRequest> for CallSpec {
    /// The member, and what is wrong with it.
    type Error = (&'static str, &'static str);

    fn try_from(request: ExplainRequest) -> Result<Self, Self::Error> {
        let holder = match (request.caller_key_id, request.policies) {
            (Some(id), None) => Holder::Key(id),
            (None, Some(policies)) => Holder::Policies(policies),
            _ => return Err(("caller_key_id", "give either it or policies")),
        };
        let method = Method::parse(&request.method)
            .ok_or(("method", "it is GET, HEAD, POST, PUT, PATCH or DELETE"))?;
        Ok(Self {
            holder,
            connection: request.connection,
            family: request.family,
            table: request.table,
            item: request.item,
            method,
            source: request.source,
            query: request.query,
        })
    }
}

impl From<bearerd_control::Explanation> for Explanation {
    fn from(explanation: bearerd_control::Explanation) -> Self {
        Self {
            allowed: explanation.allowed,
            policy: explanation.policy,
            rule: explanation.rule,
            reason: explanation.reason,
            nearest: explanation.nearest.map(str::to_owned),
            connection_known: explanation.connection_known,
            records: explanation.query.map(|query| RewrittenQuery { query }),
            limits: explanation.limits.map(|limits| Limits {
                rate: limits.rate.map(RateLimit::from),
                concurrency_max: limits.concurrency_max,
                in_flight: limits.in_flight,
            }),
        }
    }
}

fn get() -> String {
    "GET".to_owned()
}
