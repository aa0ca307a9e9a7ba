//! Caller keys and policies, as stored. What they admit is decided in `bearerd-policy`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{CallerKeyId, ConnectionId, PolicyId, UnixTime};

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

/// Which tables a rule opens. Names match `[a-z0-9_]{1,80}`.
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

/// Opens what lies in all of its sets at once.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    pub connections: ConnectionSelector,
    pub tables: TableSet,
    pub methods: MethodSet,
}

/// What a caller may do with which connections. What no rule opens is denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Policy {
    pub id: PolicyId,
    pub description: String,
    pub rules: Vec<Rule>,
    pub created_at: UnixTime,
    pub updated_at: UnixTime,
}
