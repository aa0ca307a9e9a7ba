//! What would become of a call, and which rule decides: the same decision that the proxy door makes.

use std::{net::IpAddr, sync::Arc};

use bearerd_model::{
    CallerKey, CallerKeyId, Connection, ConnectionId, FamilyName, Integration, PolicyId, RateLimit,
};
use bearerd_policy::{
    Call, CompiledKey, ConnectionFacts, Decision, DenyReason, Method, Opened, Snapshot, is_table_name,
};

use crate::{ActError, Control};

/// A call to explain.
#[derive(Debug, Clone)]
pub struct CallSpec {
    pub holder: Holder,
    pub connection: ConnectionId,
    pub family: FamilyName,
    pub table: Option<String>,
    /// A single record, or something below it.
    pub item: bool,
    pub method: Method,
    pub source: Option<IpAddr>,
    /// As it stands after `?`.
    pub query: Option<String>,
}

/// Who would call.
#[derive(Debug, Clone)]
pub enum Holder {
    Key(CallerKeyId),
    /// A key that has these policies.
    Policies(Vec<PolicyId>),
}

/// What would become of the call, in this process and now. Whether its limits would admit it is not part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    pub allowed: bool,
    /// The rule that decides, or came nearest. Counts from 1.
    pub policy: Option<PolicyId>,
    pub rule: Option<usize>,
    /// Why not, as the caller would be told; for a connection that it may not know of, as it is not told.
    pub reason: Option<String>,
    /// What the nearest rule lacks, in one stable word: see `DenyReason::name`, and `key_expired`, `query`.
    pub nearest: Option<&'static str>,
    /// `false`: the caller is told that there is no such connection.
    pub connection_known: bool,
    /// The query that would go out, where the rule has a record rule.
    pub query: Option<String>,
    pub limits: Option<Limits>,
}

/// The limits that the deciding policy sets to the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub rate: Option<RateLimit>,
    pub concurrency_max: Option<u32>,
    /// Calls under way in this process.
    pub in_flight: u32,
}

impl Control {
    /// # Errors
    /// `NotFound` (key, policy), `Invalid` (`table`, `policies`), `Store`.
    pub async fn explain(&self, spec: CallSpec) -> Result<Explanation, ActError> {
        check_table(&spec)?;
        let (id, snapshot) = match &spec.holder {
            Holder::Key(id) => {
                let key = self.found::<CallerKey>("caller key", id.as_str()).await?.record;
                if key.expires_at.is_some_and(|expires_at| self.clock.now() >= expires_at) {
                    let reason = Some("the caller key has expired".to_owned());
                    return Ok(Explanation {
                        reason,
                        nearest: Some("key_expired"),
                        ..Explanation::default()
                    });
                }
                (id.clone(), self.snapshot.load())
            }
            Holder::Policies(ids) => self.key_holding(ids).await?,
        };
        let absent = || ActError::NotFound { what: "caller key", id: id.to_string() };
        let key = snapshot.key(&id).ok_or_else(absent)?;
        let Some(connection) = self.store.load::<Connection>(spec.connection.as_str()).await? else {
            let reason = Some(format!("there is no connection {}", spec.connection));
            return Ok(Explanation { reason, nearest: Some("connection"), ..Explanation::default() });
        };
        let integration = connection.record.integration.as_str().to_owned();
        let integration = self.found::<Integration>("integration", &integration).await?.record;
        let facts = ConnectionFacts {
            id: &connection.record.id,
            labels: &connection.record.labels,
            instance: &integration.instance,
        };
        Ok(self.explained(key, facts, &spec))
    }

    fn explained(&self, key: &CompiledKey, facts: ConnectionFacts<'_>, spec: &CallSpec) -> Explanation {
        let call = Call {
            family: spec.family.as_str(),
            table: spec.table.as_deref(),
            item: spec.item,
            method: spec.method,
            source: spec.source,
            now: self.clock.now(),
        };
        match key.decide(facts, &call) {
            Decision::Allow(opened) => opened_as(opened, spec.query.as_deref()),
            Decision::Deny(reason) => denied(reason),
        }
    }

    /// A snapshot of one key, which has these policies as they are stored.
    async fn key_holding(&self, ids: &[PolicyId]) -> Result<(CallerKeyId, Arc<Snapshot>), ActError> {
        if ids.is_empty() || ids.len() > POLICIES_MAX {
            return Err(ActError::invalid("policies", format!("name 1 to {POLICIES_MAX}")));
        }
        let mut policies = Vec::new();
        for id in ids {
            policies.push(self.policy(id).await?.record);
        }
        let id = CallerKeyId::parse("explained")
            .map_err(|fault| ActError::invalid("policies", fault.to_string()))?;
        let key = CallerKey {
            id: id.clone(),
            description: String::new(),
            secrets: Vec::new(),
            policies: ids.to_vec(),
            default_connection: None,
            expires_at: None,
            created_at: self.clock.now(),
            last_used_at: None,
        };
        Ok((id, Arc::new(Snapshot::compile([key], policies, self.hashes.caller_key.clone()))))
    }
}

fn opened_as(opened: Opened<'_>, query: Option<&str>) -> Explanation {
    let limits = Limits {
        rate: opened.limits.rate(),
        concurrency_max: opened.limits.concurrency_max(),
        in_flight: opened.limits.in_flight(),
    };
    let rewritten = opened.records.map(|records| records.rewrite(query)).transpose();
    let (query, refusal) = match rewritten {
        Ok(query) => (query, None),
        Err(refused) => (None, Some(refused.to_string())),
    };
    Explanation {
        allowed: refusal.is_none(),
        policy: Some(opened.policy.clone()),
        rule: Some(opened.rule),
        nearest: refusal.as_ref().map(|_| "query"),
        reason: refusal,
        connection_known: true,
        query,
        limits: Some(limits),
    }
}

fn denied(reason: DenyReason<'_>) -> Explanation {
    Explanation {
        policy: reason.rule().map(|(policy, _)| policy.clone()),
        rule: reason.rule().map(|(_, rule)| rule),
        reason: Some(reason.to_string()),
        nearest: Some(reason.name()),
        connection_known: !reason.hides_connection(),
        ..Explanation::default()
    }
}

/// A call that no path could make explains nothing.
fn check_table(spec: &CallSpec) -> Result<(), ActError> {
    let family = &spec.family;
    match &spec.table {
        None if family.names_tables() => {
            Err(ActError::invalid("table", format!("the paths of family {family} name one")))
        }
        Some(_) if !family.names_tables() => {
            Err(ActError::invalid("table", format!("the paths of family {family} name none")))
        }
        Some(table) if !is_table_name(table) => {
            Err(ActError::invalid("table", "it is 1 to 80 of a-z, 0-9 and '_'"))
        }
        _ => Ok(()),
    }
}

/// As many as a key may have.
const POLICIES_MAX: usize = 64;
