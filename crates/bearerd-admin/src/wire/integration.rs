//! Integrations.

use std::{collections::BTreeMap, time::Duration};

use bearerd_control::{ActError, Field, IntegrationSpec};
use bearerd_model as model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{WireSecret, WireTime};

/// A kind of authorization server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    #[default]
    Servicenow,
    /// Plain RFC 6749. It does not say who consented: an operator confirms each consent, unless the settings switch
    /// that off.
    Generic,
}

/// How a connection under a profile comes by its tokens (RFC 6749 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantType {
    #[default]
    AuthorizationCode,
    ClientCredentials,
}

/// Where the client credentials go in a token request (RFC 6749 §2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// As form parameters: what ServiceNow documents.
    #[default]
    Body,
    /// HTTP Basic.
    Basic,
}

/// Grant type and scopes under an integration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(default)]
    pub grant_type: GrantType,
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// What an operator says of an integration. What is left out is derived.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IntegrationRequest {
    #[serde(default)]
    pub provider: Provider,
    /// The instance's address: scheme, host and port.
    #[schema(example = "https://dev12345.service-now.com")]
    pub instance: String,
    pub client_id: String,
    /// Left out on a change: the stored one stays. It is in no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub client_secret: Option<WireSecret>,
    /// Confirms that the client has no secret. A new integration says either this or `client_secret`.
    #[serde(default)]
    pub public_client: bool,
    /// Left out: `/oauth_auth.do` of the instance. A generic provider has no default.
    #[serde(default)]
    pub authorization_endpoint: Option<String>,
    /// Left out: `/oauth_token.do` of the instance. A generic provider has no default.
    #[serde(default)]
    #[schema(example = "https://dev12345.service-now.com/oauth_token.do")]
    pub token_endpoint: Option<String>,
    /// Left out: `/oauth_revoke_token.do` of the instance; under a generic provider, nothing is revoked.
    #[serde(default)]
    pub revocation_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth: TokenEndpointAuth,
    /// Send a PKCE S256 challenge (RFC 7636). Off only for servers that reject it. Default: true.
    #[serde(default = "pkce_default")]
    #[schema(default = true)]
    pub pkce: bool,
    /// Left out: bearerd's own; the answer shows it.
    #[serde(default)]
    pub redirect_uri: Option<String>,
    /// A `default` profile (`authorization_code`, no scopes) is added where none is named.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Profile>)]
    pub profiles: BTreeMap<model::ProfileName, Profile>,
    /// Life of a refresh token from consent. Left out: 8640000, 100 days.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub refresh_token_lifetime_secs: Option<u64>,
    /// Whether a refresh spends the refresh token and brings another one. Left out: as the provider does: false for
    /// servicenow, true for generic.
    #[serde(default)]
    pub rotates_refresh_tokens: Option<bool>,
    /// PEM file (an absolute path) on bearerd's machine with the authorities that vouch for the instance, instead of the system's.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// PEM file (an absolute path) on bearerd's machine with the certificate shown to the instance if it asks for one, then its
    /// intermediates. With `client_key_file`, or neither.
    #[serde(default)]
    pub client_certificate_file: Option<String>,
    /// PEM file (an absolute path) on bearerd's machine with its private key, not encrypted.
    #[serde(default)]
    pub client_key_file: Option<String>,
    /// Whether calls go over HTTP/2 where the instance speaks it. Default: false.
    #[serde(default)]
    pub http2: bool,
}

/// Our OAuth client as registered at one instance.
#[expect(clippy::struct_excessive_bools, reason = "each is a member of the document")]
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Integration {
    #[schema(value_type = String)]
    pub id: model::IntegrationId,
    pub provider: Provider,
    pub instance: String,
    pub client_id: String,
    /// Whether a client secret is stored. The secret itself is in no answer.
    pub client_secret_set: bool,
    pub authorization_endpoint: String,
    pub token_endpoint: String,
    /// Null: there is none, and nothing is revoked.
    pub revocation_endpoint: Option<String>,
    pub token_endpoint_auth: TokenEndpointAuth,
    pub pkce: bool,
    /// To be pasted into ServiceNow, byte for byte.
    pub redirect_uri: String,
    #[schema(value_type = BTreeMap<String, Profile>)]
    pub profiles: BTreeMap<model::ProfileName, Profile>,
    pub refresh_token_lifetime_secs: u64,
    /// Whether a refresh spends the refresh token.
    pub rotates_refresh_tokens: bool,
    pub ca_file: Option<String>,
    pub client_certificate_file: Option<String>,
    pub client_key_file: Option<String>,
    pub http2: bool,
    pub created_at: WireTime,
    pub updated_at: WireTime,
    /// Under a generic provider: what its server must know of this client.
    pub servicenow_form: ServicenowForm,
}

/// What to enter in ServiceNow so that this integration works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicenowForm {
    /// Where the form is.
    pub menu: String,
    /// Name and value of each field, in the form's order.
    pub fields: Vec<FormField>,
    /// What must be set elsewhere in the instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FormField {
    pub name: String,
    pub value: String,
}

fn pkce_default() -> bool {
    true
}

impl IntegrationRequest {
    /// # Errors
    /// [`ActError::Invalid`] names the member.
    pub(crate) fn into_spec(self) -> Result<IntegrationSpec, ActError> {
        if self.public_client && self.client_secret.is_some() {
            return Err(invalid(
                "public_client",
                "a public client has no client_secret: leave one of them out",
            ));
        }
        let instance =
            model::InstanceOrigin::parse(&self.instance).map_err(|fault| invalid("instance", fault))?;
        let client_secret = self
            .client_secret
            .map(|secret| model::ClientSecret::parse(secret.to_text()))
            .transpose()
            .map_err(|fault| invalid("client_secret", fault))?;
        if self.refresh_token_lifetime_secs == Some(0) {
            return Err(invalid("refresh_token_lifetime_secs", "it is at least 1"));
        }
        Ok(IntegrationSpec {
            provider: match self.provider {
                Provider::Servicenow => model::Provider::Servicenow,
                Provider::Generic => model::Provider::Generic,
            },
            instance,
            client_id: self.client_id,
            client_secret,
            authorization_endpoint: self.authorization_endpoint,
            token_endpoint: self.token_endpoint,
            revocation_endpoint: self.revocation_endpoint,
            token_endpoint_auth: match self.token_endpoint_auth {
                TokenEndpointAuth::Body => model::TokenEndpointAuth::Body,
                TokenEndpointAuth::Basic => model::TokenEndpointAuth::Basic,
            },
            pkce: self.pkce,
            redirect_uri: self.redirect_uri,
            profiles: self.profiles.into_iter().map(|(name, profile)| (name, profile.into())).collect(),
            refresh_token_lifetime: self.refresh_token_lifetime_secs.map(Duration::from_secs),
            rotates_refresh_tokens: self.rotates_refresh_tokens,
            ca_file: self.ca_file,
            client_certificate_file: self.client_certificate_file,
            client_key_file: self.client_key_file,
            http2: self.http2,
        })
    }
}

fn invalid(name: &str, problem: impl std::fmt::Display) -> ActError {
    ActError::Invalid(Field { name: name.to_owned(), problem: problem.to_string() })
}

impl From<Profile> for model::Profile {
    fn from(profile: Profile) -> Self {
        let grant_type = match profile.grant_type {
            GrantType::AuthorizationCode => model::GrantType::AuthorizationCode,
            GrantType::ClientCredentials => model::GrantType::ClientCredentials,
        };
        Self { grant_type, scopes: profile.scopes }
    }
}

impl From<model::Profile> for Profile {
    fn from(profile: model::Profile) -> Self {
        let grant_type = match profile.grant_type {
            model::GrantType::AuthorizationCode => GrantType::AuthorizationCode,
            model::GrantType::ClientCredentials => GrantType::ClientCredentials,
        };
        Self { grant_type, scopes: profile.scopes }
    }
}

impl From<model::Integration> for Integration {
    fn from(integration: model::Integration) -> Self {
        let servicenow_form = servicenow_form(&integration);
        Self {
            id: integration.id,
            provider: match integration.provider {
                model::Provider::Servicenow => Provider::Servicenow,
                model::Provider::Generic => Provider::Generic,
            },
            instance: integration.instance.as_str().to_owned(),
            client_id: integration.client_id,
            client_secret_set: integration.client_secret.is_some(),
            authorization_endpoint: integration.endpoints.authorization,
            token_endpoint: integration.endpoints.token,
            revocation_endpoint: Some(integration.endpoints.revocation).filter(|text| !text.is_empty()),
            token_endpoint_auth: match integration.token_endpoint_auth {
                model::TokenEndpointAuth::Body => TokenEndpointAuth::Body,
                model::TokenEndpointAuth::Basic => TokenEndpointAuth::Basic,
            },
            pkce: integration.pkce,
            redirect_uri: integration.redirect_uri,
            profiles: integration
                .profiles
                .into_iter()
                .map(|(name, profile)| (name, profile.into()))
                .collect(),
            refresh_token_lifetime_secs: integration.refresh_token_lifetime.as_secs(),
            rotates_refresh_tokens: integration.rotates_refresh_tokens,
            ca_file: integration.ca_file,
            client_certificate_file: integration.client_certificate_file,
            client_key_file: integration.client_key_file,
            http2: integration.http2,
            created_at: integration.created_at.into(),
            updated_at: integration.updated_at.into(),
            servicenow_form,
        }
    }
}

/// The Application Registry's fields, as ServiceNow labels them.
fn servicenow_form(integration: &model::Integration) -> ServicenowForm {
    let field = |name: &str, value: &str| FormField { name: name.to_owned(), value: value.to_owned() };
    if integration.provider == model::Provider::Generic {
        return ServicenowForm {
            menu: "the registration of this client".to_owned(),
            fields: vec![
                field("Client ID", &integration.client_id),
                field("Redirect URI", &integration.redirect_uri),
            ],
            notes: Vec::new(),
        };
    }
    let public = integration.client_secret.is_none();
    let lifespan = integration.refresh_token_lifetime.as_secs().to_string();
    let secret = if public { "(none)" } else { "(the client_secret given to bearerd)" };
    let fields = vec![
        field("Name", &format!("bearerd {}", integration.id)),
        field("Client ID", &integration.client_id),
        field("Client Secret", secret),
        field("Redirect URL", &integration.redirect_uri),
        field("Public Client", if public { "true" } else { "false" }),
        field("Active", "true"),
        field("Refresh Token Lifespan", &lifespan),
    ];
    let by_client = integration
        .profiles
        .values()
        .any(|profile| profile.grant_type == model::GrantType::ClientCredentials);
    let notes = if by_client {
        vec![
            "Client credentials: set the field OAuth Application User to the user that bearerd acts as.".to_owned(),
            "Client credentials: set the system property glide.oauth.inbound.client.credential.grant_type.enabled \
             to true."
                .to_owned(),
        ]
    } else {
        Vec::new()
    };
    ServicenowForm {
        menu: "System OAuth > Application Registry > New > Create an OAuth API endpoint for external clients"
            .to_owned(),
        fields,
        notes,
    }
}
