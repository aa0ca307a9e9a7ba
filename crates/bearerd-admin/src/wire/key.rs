//! Caller keys.

use bearerd_control::{IssuedKey, KeySpec};
use bearerd_model as model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{WireSecret, WireTime};

/// What an operator says of a caller key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Who calls with it, for people.
    #[schema(example = "ticket-sync in the HR cluster")]
    pub description: String,
    #[schema(value_type = Vec<String>)]
    pub policies: Vec<model::PolicyId>,
    /// Used where a call names no connection.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub default_connection: Option<model::ConnectionId>,
    /// Left out: the key does not expire.
    #[serde(default)]
    pub expires_at: Option<WireTime>,
}

/// How a rotation goes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Seconds for which the older secret goes on: 0 to 7776000 (90 days). Default: 86400, one day.
    #[serde(default = "overlap_default")]
    #[schema(minimum = 0, maximum = 7_776_000, default = 86_400)]
    pub overlap_secs: u64,
}

/// One of the (at most two) secrets that a caller key answers to now. The secret itself is stored nowhere.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LiveSecret {
    pub created_at: WireTime,
    /// Set on the older one by a rotation.
    pub expires_at: Option<WireTime>,
}

/// The API key of an internal service; without the key itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CallerKey {
    #[schema(value_type = String)]
    pub id: model::CallerKeyId,
    pub description: String,
    #[schema(value_type = Vec<String>)]
    pub policies: Vec<model::PolicyId>,
    #[schema(value_type = Option<String>)]
    pub default_connection: Option<model::ConnectionId>,
    pub expires_at: Option<WireTime>,
    pub created_at: WireTime,
    pub last_used_at: Option<WireTime>,
    pub live_secrets: Vec<LiveSecret>,
}

/// A caller key as handed out.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct IssuedCallerKey {
    #[serde(flatten)]
    pub key: CallerKey,
    /// The key itself. This is the only answer that ever shows it.
    pub caller_key: WireSecret,
}

/// One day: long enough to roll a new key out by hand.
fn overlap_default() -> u64 {
    86_400
}

impl Default for RotateRequest {
    fn default() -> Self {
        Self { overlap_secs: overlap_default() }
    }
}

impl From<model::CallerKey> for CallerKey {
    fn from(key: model::CallerKey) -> Self {
        let live = |secret: model::KeySecret| LiveSecret {
            created_at: secret.created_at.into(),
            expires_at: secret.expires_at.map(WireTime::from),
        };
        Self {
            id: key.id,
            description: key.description,
            policies: key.policies,
            default_connection: key.default_connection,
            expires_at: key.expires_at.map(WireTime::from),
            created_at: key.created_at.into(),
            last_used_at: key.last_used_at.map(WireTime::from),
            live_secrets: key.secrets.into_iter().map(live).collect(),
        }
    }
}

impl From<IssuedKey> for IssuedCallerKey {
    fn from(issued: IssuedKey) -> Self {
        Self {
            key: issued.versioned.record.into(),
            caller_key: WireSecret::new(issued.text.expose().to_owned()),
        }
    }
}

impl From<KeyRequest> for KeySpec {
    fn from(request: KeyRequest) -> Self {
        Self {
            description: request.description,
            policies: request.policies,
            default_connection: request.default_connection,
            expires_at: request.expires_at.map(model::UnixTime::from),
        }
    }
}
