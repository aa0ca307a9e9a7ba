//! Caller keys: the API keys of internal services.

use std::time::Duration;

use bearerd_model::{
    CallerKey, CallerKeyId, CallerKeyUse, Connection, ConnectionId, KeySecret, Policy, PolicyId, SecretText,
    UnixTime,
};
use bearerd_policy::{ApiKey, KeyKind};
use bearerd_store::{Kind, UpdateError};

use tracing::warn;

use crate::{ActError, Control, Page, Revision, StoreError, Versioned};

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
        let mut found: Versioned<CallerKey> = self.found("caller key", id.as_str()).await?;
        found.record.last_used_at = self.last_use(id).await?;
        Ok(found)
    }

    /// # Errors
    /// `Store`.
    pub async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Page<CallerKey>, ActError> {
        let mut page = self.store.list::<CallerKey>(after, limit).await?;
        for Versioned { record, .. } in &mut page.records {
            record.last_used_at = self.last_use(&record.id).await?;
        }
        Ok(page)
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
        let last_used_at = self.last_use(id).await?;
        let mut altered = self
            .alter::<CallerKey>("caller key", id.as_str(), expected, |key| {
                key.description.clone_from(&spec.description);
                key.policies.clone_from(&spec.policies);
                key.default_connection.clone_from(&spec.default_connection);
                key.expires_at = spec.expires_at;
                Ok(())
            })
            .await?;
        altered.record.last_used_at = last_used_at;
        Ok(altered)
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
        let last_used_at = self.last_use(id).await?;
        let mut versioned = self
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
        versioned.record.last_used_at = last_used_at;
        Ok(IssuedKey { versioned, text: text_of(&key) })
    }

    /// # Errors
    /// `NotFound`, `Changed`, `Store`.
    pub async fn delete_key(&self, id: &CallerKeyId, expected: Option<Revision>) -> Result<(), ActError> {
        let stored: Versioned<CallerKey> = self.found("caller key", id.as_str()).await?;
        self.remove::<CallerKey>(Kind::CallerKey, id.as_str(), stored.revision, expected).await?;
        // After the key: see `write_last_use`.
        if let Err(error) = self.forget_last_use(id).await {
            warn!(%error, "caller key {id} is deleted; when it was last used is left in the store");
        }
        Ok(())
    }

    /// Stamps the key as used at `used_at`, if that is later than what is stored. A key that is gone gets no stamp.
    pub(crate) async fn write_last_use(&self, id: &CallerKeyId, used_at: UnixTime) -> Result<(), StoreError> {
        let first = CallerKeyUse { id: id.clone(), last_used_at: used_at };
        loop {
            let forwards = |stored: &mut CallerKeyUse| {
                let is_later = used_at > stored.last_used_at;
                stored.last_used_at = used_at;
                if is_later { Ok(()) } else { Err(()) }
            };
            match self.store.update(id.as_str(), forwards).await {
                Ok(Some(_)) | Err(UpdateError::Declined(()) | UpdateError::Contended(_)) => return Ok(()),
                Err(UpdateError::Store(error)) => return Err(error),
                Ok(None) => {}
            }
            if self.store.create(&first).await?.is_some() {
                break;
            }
        }
        // The key may have been deleted meanwhile. Whoever deletes it takes the stamp away after it, so one of the two
        // sees the other.
        if self.store.load::<CallerKey>(id.as_str()).await?.is_none() {
            self.forget_last_use(id).await?;
        }
        Ok(())
    }

    async fn forget_last_use(&self, id: &CallerKeyId) -> Result<(), StoreError> {
        match self.store.take::<CallerKeyUse>(id.as_str(), self.clock.now()).await {
            Ok(_) | Err(StoreError::Damaged { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A stamp that cannot be read is none: it must not hide its key (S-04).
    async fn last_use(&self, id: &CallerKeyId) -> Result<Option<UnixTime>, StoreError> {
        match self.store.load::<CallerKeyUse>(id.as_str()).await {
            Ok(stored) => Ok(stored.map(|stored| stored.record.last_used_at)),
            Err(StoreError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
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
