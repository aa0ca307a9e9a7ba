//! `bearerd integration`

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, time::Duration};

use bearerd_admin::wire::{GrantType, Integration, IntegrationRequest, Profile, Provider, TokenEndpointAuth};
use bearerd_model::{IntegrationId, ProfileName};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    api::{AdminApi, Put, read},
    error::CliError,
    input,
    output::{Report, fields, indented, or_dash, table, when_exactly},
};

#[derive(Debug, Subcommand)]
pub(crate) enum IntegrationCommand {
    /// Register an OAuth client of a ServiceNow instance
    #[command(after_help = ADD_EXAMPLE)]
    Add(Box<AddIntegration>),
    /// List integrations
    #[command(after_help = "Example:\n  bearerd integration list --output json | jq -r '.[].redirect_uri'")]
    List,
    /// Show an integration, with what to enter in ServiceNow
    #[command(after_help = "Example:\n  bearerd integration show hr")]
    Show {
        /// Integration
        id: IntegrationId,
    },
    /// Delete an integration that no connection is held under
    #[command(after_help = "Example:\n  bearerd integration delete hr --yes")]
    Delete {
        /// Integration
        id: IntegrationId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct AddIntegration {
    /// Name of the integration: a-z, 0-9, - and _
    id: IntegrationId,
    /// Address of the instance
    #[arg(long, value_name = "URL")]
    instance: String,
    /// Kind of authorization server; generic is plain RFC 6749 and needs --authorization-endpoint and --token-endpoint
    #[arg(long, value_enum, default_value = "servicenow")]
    provider: ProviderName,
    /// Client ID, as ServiceNow's Application Registry shows it
    #[arg(long, value_name = "ID")]
    client_id: String,
    /// File that holds the client secret, or - for standard input
    #[arg(long, value_name = "FILE", required_unless_present_any = ["public_client", "replace"])]
    client_secret_file: Option<PathBuf>,
    /// The client has no secret (PKCE only)
    #[arg(long, conflicts_with = "client_secret_file")]
    public_client: bool,
    /// How connections come by their tokens
    #[arg(long, value_enum, default_value = "authorization_code")]
    grant_type: Grant,
    /// Scope to ask for; may be repeated [default: what the client has]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Name that grant type and scopes get under the integration
    #[arg(long, default_value_t = ProfileName::default())]
    profile: ProfileName,
    /// Do not send a PKCE challenge: for servers that reject it
    #[arg(long)]
    no_pkce: bool,
    /// Where the client credentials go in a token request
    #[arg(long, value_enum, default_value = "body")]
    token_endpoint_auth: Auth,
    /// Authorization endpoint [default under servicenow: `/oauth_auth.do` of the instance]
    #[arg(long, value_name = "URL")]
    authorization_endpoint: Option<String>,
    /// Token endpoint [default under servicenow: `/oauth_token.do` of the instance]
    #[arg(long, value_name = "URL")]
    token_endpoint: Option<String>,
    /// Revocation endpoint [default under servicenow: `/oauth_revoke_token.do` of the instance; else none]
    #[arg(long, value_name = "URL")]
    revocation_endpoint: Option<String>,
    /// Redirect URI as registered [default: bearerd's own, which is printed]
    #[arg(long, value_name = "URL")]
    redirect_uri: Option<String>,
    /// Life of a refresh token, as set at the client record [default: 100d]
    #[arg(long, value_name = "DURATION", value_parser = input::duration)]
    refresh_token_lifetime: Option<Duration>,
    /// Whether a refresh spends the refresh token [default: false for servicenow, true for generic]
    #[arg(long, value_name = "BOOL")]
    rotates_refresh_tokens: Option<bool>,
    /// PEM file, an absolute path on bearerd's machine, with the authorities that vouch for the instance
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// PEM file, an absolute path on bearerd's machine, with the certificate shown to an instance that asks for one
    #[arg(long, value_name = "FILE", requires = "client_key_file")]
    client_certificate_file: Option<String>,
    /// PEM file, an absolute path on bearerd's machine, with its private key
    #[arg(long, value_name = "FILE", requires = "client_certificate_file")]
    client_key_file: Option<String>,
    /// Call the instance over HTTP/2 where it speaks it
    #[arg(long)]
    http2: bool,
    /// Change the integration if it exists; without a client secret, the stored one stays
    #[arg(long)]
    replace: bool,
    /// With --replace: go on where this ends the tokens of its connections
    #[arg(long, requires = "replace")]
    purge_tokens: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Grant {
    #[value(alias = "authorization-code")]
    AuthorizationCode,
    #[value(alias = "client-credentials")]
    ClientCredentials,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProviderName {
    Servicenow,
    Generic,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Auth {
    Body,
    Basic,
}

pub(super) async fn perform(
    command: IntegrationCommand,
    api: &AdminApi,
    now: Timestamp,
) -> Result<Report, CliError> {
    match command {
        IntegrationCommand::Add(add) => add_integration(*add, api).await,
        IntegrationCommand::List => list(api).await,
        IntegrationCommand::Show { id } => show(&id, api, now).await,
        IntegrationCommand::Delete { id, yes } => {
            input::confirm(&format!("Delete integration {id}?"), yes)?;
            api.delete(&format!("{PATH}/{id}")).await?;
            Ok(Report::new(Value::Null, format!("Integration {id} deleted.")))
        }
    }
}

async fn add_integration(add: AddIntegration, api: &AdminApi) -> Result<Report, CliError> {
    let id = add.id.clone();
    let purge = if add.purge_tokens { "?purge_tokens=true" } else { "" };
    let put = if add.replace { Put::CreateOrChange } else { Put::CreateOnly };
    let reply = api.put(&format!("{PATH}/{id}{purge}"), put, &add.into_request()?).await?;
    let integration: Integration = read(&reply.body)?;
    let done = if reply.created { "added" } else { "changed" };
    let mut text = format!("Integration {id} {done}.\n\n{}", form(&integration));
    let profile = integration.profiles.keys().next().filter(|name| **name != ProfileName::default());
    let profile = profile.map(|name| format!(" --profile {name}")).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\nThen: bearerd connection add NAME --integration {id}{profile}");
    Ok(Report::new(reply.body, text))
}

async fn list(api: &AdminApi) -> Result<Report, CliError> {
    let json = Value::Array(api.list(PATH).await?);
    let mut rows = Vec::new();
    for entry in json.as_array().into_iter().flatten() {
        rows.push(match read::<Integration>(entry) {
            Ok(integration) => [
                integration.id.to_string(),
                integration.instance.clone(),
                integration.client_id.clone(),
                grants(&integration).join(", "),
                integration.redirect_uri,
            ],
            Err(_) => super::output::damaged(entry),
        });
    }
    let empty = "There is no integration yet. Add one: bearerd integration add --help";
    let headings = ["ID", "INSTANCE", "CLIENT ID", "GRANTS", "REDIRECT URI"];
    Ok(Report::new(json, table(headings, rows, empty)))
}

async fn show(id: &IntegrationId, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let json = api.get(&format!("{PATH}/{id}")).await?.body;
    let integration: Integration = read(&json)?;
    let secret = if integration.client_secret_set { "set (not shown)" } else { "none: public client" };
    let lifetime = integration.refresh_token_lifetime_secs / 86_400;
    let pairs = [
        ("id", integration.id.to_string()),
        (
            "provider",
            match integration.provider {
                Provider::Servicenow => "servicenow",
                Provider::Generic => "generic",
            }
            .to_owned(),
        ),
        ("instance", integration.instance.clone()),
        ("client id", integration.client_id.clone()),
        ("client secret", secret.to_owned()),
        ("profiles", grants(&integration).join(", ")),
        ("redirect URI", integration.redirect_uri.clone()),
        ("authorization endpoint", integration.authorization_endpoint.clone()),
        ("token endpoint", integration.token_endpoint.clone()),
        ("revocation endpoint", or_dash(integration.revocation_endpoint.as_deref())),
        (
            "client credentials in",
            if integration.token_endpoint_auth == TokenEndpointAuth::Body { "body" } else { "HTTP Basic" }
                .to_owned(),
        ),
        ("PKCE", if integration.pkce { "S256" } else { "off" }.to_owned()),
        ("refresh token life", format!("{lifetime} days")),
        (
            "refresh token",
            if integration.rotates_refresh_tokens {
                "another one with each refresh"
            } else {
                "the same with each refresh"
            }
            .to_owned(),
        ),
        ("CA file", or_dash(integration.ca_file.as_deref())),
        ("client certificate", or_dash(integration.client_certificate_file.as_deref())),
        ("client key", or_dash(integration.client_key_file.as_deref())),
        ("HTTP/2", if integration.http2 { "where the instance speaks it" } else { "off" }.to_owned()),
        ("created", when_exactly(Some(integration.created_at), now)),
        ("changed", when_exactly(Some(integration.updated_at), now)),
    ];
    Ok(Report::new(json, format!("{}\n\n{}", fields(&pairs), form(&integration))))
}

impl AddIntegration {
    fn into_request(self) -> Result<IntegrationRequest, CliError> {
        let grant_type = match self.grant_type {
            Grant::AuthorizationCode => GrantType::AuthorizationCode,
            Grant::ClientCredentials => GrantType::ClientCredentials,
        };
        let profile = Profile { grant_type, scopes: self.scopes };
        Ok(IntegrationRequest {
            provider: match self.provider {
                ProviderName::Servicenow => Provider::Servicenow,
                ProviderName::Generic => Provider::Generic,
            },
            instance: self.instance,
            client_id: self.client_id,
            client_secret: self.client_secret_file.map(|path| input::client_secret(&path)).transpose()?,
            public_client: self.public_client,
            authorization_endpoint: self.authorization_endpoint,
            token_endpoint: self.token_endpoint,
            revocation_endpoint: self.revocation_endpoint,
            token_endpoint_auth: match self.token_endpoint_auth {
                Auth::Body => TokenEndpointAuth::Body,
                Auth::Basic => TokenEndpointAuth::Basic,
            },
            pkce: !self.no_pkce,
            redirect_uri: self.redirect_uri,
            profiles: BTreeMap::from([(self.profile, profile)]),
            refresh_token_lifetime_secs: self.refresh_token_lifetime.map(|life| life.as_secs()),
            rotates_refresh_tokens: self.rotates_refresh_tokens,
            ca_file: self.ca_file,
            client_certificate_file: self.client_certificate_file,
            client_key_file: self.client_key_file,
            http2: self.http2,
        })
    }
}

fn grants(integration: &Integration) -> Vec<String> {
    let one = |(name, profile): (&ProfileName, &Profile)| {
        let grant = match profile.grant_type {
            GrantType::AuthorizationCode => "authorization_code",
            GrantType::ClientCredentials => "client_credentials",
        };
        let scopes = if profile.scopes.is_empty() {
            String::new()
        } else {
            format!(" [{}]", profile.scopes.join(" "))
        };
        format!("{name}: {grant}{scopes}")
    };
    integration.profiles.iter().map(one).collect()
}

/// What to enter in ServiceNow, or elsewhere.
fn form(integration: &Integration) -> String {
    let form = &integration.servicenow_form;
    let pairs: Vec<(&str, String)> =
        form.fields.iter().map(|field| (field.name.as_str(), field.value.clone())).collect();
    let notes = form.notes.iter().fold(String::new(), |text, note| text + note + "\n");
    let fields = indented(&fields(&pairs));
    match integration.provider {
        Provider::Servicenow => format!(
            "In ServiceNow ({}) open\n  {}\nand enter:\n{fields}{notes}",
            integration.instance, form.menu
        ),
        Provider::Generic => format!("At the authorization server, {} says:\n{fields}{notes}", form.menu),
    }
}

const PATH: &str = "/v1/integrations";
const ADD_EXAMPLE: &str = "Examples:
  bearerd integration add hr --instance https://dev12345.service-now.com \\
      --client-id 7f3c… --client-secret-file ./client-secret
  pass show servicenow/hr | bearerd integration add hr-sync --instance https://dev12345.service-now.com \\
      --client-id 9a1b… --client-secret-file - --grant-type client_credentials

Prints the redirect URI and the other fields to enter in ServiceNow.";
