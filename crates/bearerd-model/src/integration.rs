//! Our OAuth client as registered at one instance, and its quirks.

use std::{collections::BTreeMap, time::Duration};

use crate::{ClientSecret, InstanceOrigin, IntegrationId, ProfileName, UnixTime};

/// A kind of authorization server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    #[default]
    Servicenow,
    /// Plain RFC 6749.
    Generic,
}

impl Provider {
    /// Whether a refresh spends the refresh token and brings another one (RFC 6749 §6), where the integration does not
    /// say. ServiceNow returns the one that it was sent.
    pub fn rotates_refresh_tokens(self) -> bool {
        match self {
            Self::Servicenow => false,
            Self::Generic => true,
        }
    }
}

/// How a connection under a profile comes by its tokens (RFC 6749 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantType {
    #[default]
    AuthorizationCode,
    ClientCredentials,
}

/// Where the client credentials go in a token request (RFC 6749 §2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// `client_id` and `client_secret` as form parameters: what ServiceNow documents.
    #[default]
    Body,
    /// HTTP Basic, each part form-encoded first.
    Basic,
}

/// The authorization server's endpoints, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub authorization: String,
    pub token: String,
    pub revocation: String,
}

impl Endpoints {
    /// ServiceNow's own, under the instance.
    pub fn servicenow(instance: &InstanceOrigin) -> Self {
        Self {
            authorization: format!("{instance}/oauth_auth.do"),
            token: format!("{instance}/oauth_token.do"),
            revocation: format!("{instance}/oauth_revoke_token.do"),
        }
    }
}

/// Grant type and scopes under an integration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    pub grant_type: GrantType,
    pub scopes: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Integration {
    pub id: IntegrationId,
    pub provider: Provider,
    pub instance: InstanceOrigin,
    pub client_id: String,
    /// `None`: a public client.
    pub client_secret: Option<ClientSecret>,
    pub endpoints: Endpoints,
    pub token_endpoint_auth: TokenEndpointAuth,
    /// Send a PKCE S256 challenge (RFC 7636). Off only for servers that reject it.
    pub pkce: bool,
    /// The redirection endpoint registered at the instance, sent byte for byte (RFC 6749 §4.1.3).
    pub redirect_uri: String,
    pub profiles: BTreeMap<ProfileName, Profile>,
    /// Life of a refresh token from consent, where the server does not say: ServiceNow's default is 100 days.
    pub refresh_token_lifetime: Duration,
    /// A refresh spends the refresh token: what is not known to be stored must not be spent.
    pub rotates_refresh_tokens: bool,
    /// PEM file with the authorities that vouch for the instance, instead of the system's.
    pub ca_file: Option<String>,
    /// PEM file with the certificate shown to an instance that asks for one, then its intermediates. With
    /// `client_key_file`, or neither.
    pub client_certificate_file: Option<String>,
    /// PEM file with its private key.
    pub client_key_file: Option<String>,
    /// Calls go over HTTP/2 where the instance speaks it.
    pub http2: bool,
    pub created_at: UnixTime,
    pub updated_at: UnixTime,
}

impl Integration {
    /// ServiceNow's default life of a refresh token, per client record.
    pub const REFRESH_TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_hours(100 * 24);
}
