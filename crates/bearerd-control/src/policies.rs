//! Policies: what a caller may do with which connections.

use bearerd_model::{CallerKey, Policy, PolicyId, RateLimit, Rule};
use bearerd_policy::validate_policy;
use bearerd_store::Kind;

use crate::{ActError, Control, Page, Revision, Unchecked, Versioned, Written};

/// What an operator says of a policy.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    pub description: String,
    pub rules: Vec<Rule>,
    pub rate: Option<RateLimit>,
    pub concurrency_max: Option<u32>,
}

/// A policy as it was written.
#[derive(Debug)]
pub struct WrittenPolicy {
    pub written: Written<Policy>,
    /// Instances where its record rules were not looked up now. They open nothing there, unless the same was found there
    /// when it was saved before.
    pub unchecked: Vec<Unchecked>,
}

impl Control {
    /// Creates or changes a policy. The same content again changes nothing, but looks record rules up again. `expected`:
    /// only if it is at that revision.
    ///
    /// # Errors
    /// `Invalid` names the rule; `Conflict` (`unchecked`) where no instance could be asked for the fields of a record
    /// rule; `Changed`; `Store`.
    pub async fn put_policy(
        &self,
        id: PolicyId,
        spec: PolicySpec,
        expected: Option<Revision>,
    ) -> Result<WrittenPolicy, ActError> {
        let now = self.clock.now();
        let stored = self.store.load::<Policy>(id.as_str()).await?;
        let created_at = stored.as_ref().map_or(now, |stored| stored.record.created_at);
        let mut next = Policy {
            id,
            description: spec.description,
            rules: spec.rules,
            rate: spec.rate,
            concurrency_max: spec.concurrency_max,
            created_at,
            updated_at: now,
        };
        validate_policy(&next).map_err(|fault| ActError::invalid(fault.member(), fault.to_string()))?;
        let held = stored.as_ref().map_or(&[][..], |stored| &stored.record.rules);
        let unchecked = self.check_records(&mut next.rules, held).await?;
        let same = |old: &Policy| {
            *old == Policy { created_at: old.created_at, updated_at: old.updated_at, ..next.clone() }
        };
        let written = self.put(stored, next.clone(), expected, same).await?;
        Ok(WrittenPolicy { written, unchecked })
    }

    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn policy(&self, id: &PolicyId) -> Result<Versioned<Policy>, ActError> {
        self.found("policy", id.as_str()).await
    }

    /// # Errors
    /// `Store`.
    pub async fn policies(&self, after: Option<&str>, limit: usize) -> Result<Page<Policy>, ActError> {
        Ok(self.store.list(after, limit).await?)
    }

    /// # Errors
    /// `Conflict` (`in_use`) while a caller key names it; `NotFound`, `Changed`, `Store`.
    pub async fn delete_policy(&self, id: &PolicyId, expected: Option<Revision>) -> Result<(), ActError> {
        let stored = self.policy(id).await?;
        let users: Vec<String> = self
            .all::<CallerKey>()
            .await?
            .into_iter()
            .filter(|key| key.policies.contains(id))
            .map(|key| key.id.to_string())
            .collect();
        if let Some(first) = users.first() {
            return Err(ActError::Conflict {
                code: "in_use",
                message: format!("policy {id} is named by {} caller key(s), {first} among them", users.len()),
                fix: "Delete those keys, or give them another policy, first.".to_owned(),
            });
        }
        self.remove::<Policy>(Kind::Policy, id.as_str(), stored.revision, expected).await
    }
}
