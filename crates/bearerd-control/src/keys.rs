//! Caller keys: the API keys of internal services.

use std::time::Duration;

use bearerd_model::{
    CallerKey, CallerKeyId, Connection, ConnectionId, KeySecret, Policy, PolicyId, SecretText, UnixTime,
};
use bearerd_policy::{ApiKey, KeyKind};
use bearerd_store::Kind;

use crate::{ActError, Control, Page, Revision, Versioned};

/// What an operator says of a caller key.
#[derive(Debug, Clone)]
pub struct KeySpec {
    pub description: String,
    pub policies: Vec<PolicyId>,
    pub default_connection: Option<ConnectionId>,
    pub expires_at: Option<UnixTime>,
}

/// A key as handed out: `text` is shown once and stored nowhere.
#[derive(Debug)]
pub struct IssuedKey {
    pub versioned: Versioned<CallerKey>,
    pub text: SecretText,
}

/// Longest description of a key, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1_000;
/// Most policies of one key.
const POLICIES_MAX: usize = 64;
/// Longest time for which a rotated-out secret goes on.
const OVERLAP_MAX: Duration = Duration::from_hours(90 * 24);

impl Control {
    /// # Errors
    /// `Invalid` (unknown policy or connection, expiry in the past), `Store`.
    pub async fn create_key(&self, spec: KeySpec) -> Result<IssuedKey, ActError> {
        self.check_key(&spec).await?;
        let now = self.clock.now();
        let key = ApiKey::generate(KeyKind::Caller);
        let record = CallerKey {
            id: key.id(),
            description: spec.description,
            secrets: vec![self.secret_of(&key, now)],
            policies: spec.policies,
            default_connection: spec.default_connection,
            expires_at: spec.expires_at,
            created_at: now,
            last_used_at: None,
        };
        let revision = self.store.create(&record).await?.ok_or(ActError::Exists)?;
        self.in_force(Kind::CallerKey, record.id.as_str()).await;
        Ok(IssuedKey { versioned: Versioned { revision, record }, text: text_of(&key) })
    }

    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn key(&self, id: &CallerKeyId) -> Result<Versioned<CallerKey>, ActError> {
        self.found("caller key", id.as_str()).await
    }

    /// # Errors
    /// `Store`.
    pub async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Page<CallerKey>, ActError> {
        Ok(self.store.list(after, limit).await?)
    }

    /// # Errors
    /// As [`Self::create_key`]; `NotFound`, `Changed`.
    pub async fn change_key(
        &self,
        id: &CallerKeyId,
        spec: KeySpec,
        expected: Option<Revision>,
    ) -> Result<Versioned<CallerKey>, ActError> {
        self.check_key(&spec).await?;
        self.alter::<CallerKey>("caller key", id.as_str(), expected, |key| {
            key.description.clone_from(&spec.description);
            key.policies.clone_from(&spec.policies);
            key.default_connection.clone_from(&spec.default_connection);
            key.expires_at = spec.expires_at;
            Ok(())
        })
        .await
    }

    /// A second secret for the key; the newest of the old ones goes on for `overlap`, at most 90 days.
    ///
    /// # Errors
    /// `Invalid` (overlap), `NotFound`, `Changed`, `Store`.
    pub async fn rotate_key(&self, id: &CallerKeyId, overlap: Duration) -> Result<IssuedKey, ActError> {
        if overlap > OVERLAP_MAX {
            return Err(ActError::invalid("overlap_s", "it is longer than 90 days"));
        }
        let now = self.clock.now();
        let key = ApiKey::generate_for(KeyKind::Caller, id)
            .ok_or_else(|| ActError::NotFound { what: "caller key", id: id.to_string() })?;
        let versioned = self
            .alter::<CallerKey>("caller key", id.as_str(), None, |record| {
                record.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.created_at));
                record.secrets.truncate(1); // with the new one: two live secrets
                for old in &mut record.secrets {
                    let ends = now + overlap;
                    old.expires_at = Some(old.expires_at.map_or(ends, |earlier| earlier.min(ends)));
                }
                record.secrets.insert(0, self.secret_of(&key, now));
                Ok(())
            })
            .await?;
        Ok(IssuedKey { versioned, text: text_of(&key) })
    }

    /// # Errors
    /// `NotFound`, `Changed`, `Store`.
    pub async fn delete_key(&self, id: &CallerKeyId, expected: Option<Revision>) -> Result<(), ActError> {
        let stored = self.key(id).await?;
        self.remove::<CallerKey>(Kind::CallerKey, id.as_str(), stored.revision, expected).await
    }

    fn secret_of(&self, key: &ApiKey, now: UnixTime) -> KeySecret {
        KeySecret { hmac: key.secret_hmac(&self.hashes.caller_key), created_at: now, expires_at: None }
    }

    async fn check_key(&self, spec: &KeySpec) -> Result<(), ActError> {
        if spec.description.len() > DESCRIPTION_BYTES_MAX {
            return Err(ActError::invalid(
                "description",
                format!("it is longer than {DESCRIPTION_BYTES_MAX} bytes"),
            ));
        }
        if spec.policies.is_empty() || spec.policies.len() > POLICIES_MAX {
            return Err(ActError::invalid(
                "policies",
                format!("name 1 to {POLICIES_MAX}; a key without one may do nothing"),
            ));
        }
        if spec.expires_at.is_some_and(|at| at <= self.clock.now()) {
            return Err(ActError::invalid("expires_at", "it is in the past"));
        }
        for policy in &spec.policies {
            if self.store.load::<Policy>(policy.as_str()).await?.is_none() {
                return Err(ActError::invalid("policies", format!("there is no policy {policy}")));
            }
        }
        if let Some(connection) = &spec.default_connection
            && self.store.load::<Connection>(connection.as_str()).await?.is_none()
        {
            return Err(ActError::invalid(
                "default_connection",
                format!("there is no connection {connection}"),
            ));
        }
        Ok(())
    }
}

fn text_of(key: &ApiKey) -> SecretText {
    SecretText::parse(key.expose().to_owned()).expect("a key is visible ASCII")
}
