//! Connections.

use std::{collections::BTreeMap, time::Duration};

use bearerd_control::{
    ActError, ConnectionSpec, Control, Field, ImportedTokens, IssuedLink, TestReport, expires_soon,
};
use bearerd_model as model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{WireSecret, WireTime};

/// What an operator says of a connection.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionRequest {
    /// Fixed once the connection is there.
    #[schema(value_type = String)]
    pub integration: model::IntegrationId,
    /// Fixed once the connection is there.
    #[serde(default)]
    #[schema(value_type = String, default = "default")]
    pub profile: model::ProfileName,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `user_name` or `sys_id` of who must consent; someone else's consent waits for an operator's confirmation. Not
    /// under a generic provider, which does not say who consented.
    #[serde(default)]
    pub expected_user: Option<String>,
    /// Tokens obtained elsewhere, instead of a consent. Counts when the connection is made; an existing one keeps
    /// its tokens, which may be newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub import: Option<ImportRequest>,
}

/// Tokens obtained elsewhere; at least one of the two.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub access_token: Option<WireSecret>,
    /// Seconds of the access token's life that are left.
    #[serde(default)]
    pub expires_in: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub refresh_token: Option<WireSecret>,
    /// Taken and not used, so that a token response can be given as it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// Taken and not used, as `token_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When the refresh token ends, where it is known.
    #[serde(default)]
    pub refresh_token_expires_at: Option<WireTime>,
}

/// Confirms who consented.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// `user_name` or `sys_id` of the user that the connection shows. Under a generic provider: who it was, as far as
    /// the operator knows.
    pub user: String,
}

/// Stops all calls through a connection.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    /// Why, for the next operator.
    #[schema(example = "CHG0030001: instance upgrade")]
    pub reason: String,
}

/// A link that invites a person to consent. Whoever has it may begin the consent, once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ConnectLink {
    /// To be opened in the browser of the person who owns the ServiceNow account. This is the only answer that ever
    /// shows it.
    pub url: WireSecret,
    pub expires_at: WireTime,
}

/// Who consented, as the instance names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub sys_id: String,
    pub user_name: String,
    pub name: String,
}

/// Where a connection stands in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionState {
    /// `pending`, `active` or `reauthorization_required`.
    pub name: String,
    pub since: WireTime,
    /// `awaiting_consent`, `awaiting_confirmation`, `grant_refused`, `refresh_token_expired`, `no_refresh_token`,
    /// `integration_changed`; null while active.
    pub cause: Option<String>,
    /// The same in a sentence, with what to do.
    pub reason: String,
}

/// An operator's stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Frozen {
    pub since: WireTime,
    pub reason: String,
}

/// How refreshes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionHealth {
    /// `ok`, `failing`, or `uncertain`: a crash left an exchange in doubt, which the next refresh resolves.
    pub name: String,
    pub since: Option<WireTime>,
    /// Consecutive failures.
    pub failures: u32,
    pub reason: Option<String>,
}

/// One grant held under one integration. Tokens are in no answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    #[schema(value_type = String)]
    pub id: model::ConnectionId,
    #[schema(value_type = String)]
    pub integration: model::IntegrationId,
    #[schema(value_type = String)]
    pub profile: model::ProfileName,
    /// The integration's instance; null where the integration cannot be read.
    pub instance: Option<String>,
    /// The integration's redirect URI, as ServiceNow must have it.
    pub redirect_uri: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub state: ConnectionState,
    pub frozen: Option<Frozen>,
    pub health: ConnectionHealth,
    pub expected_user: Option<String>,
    pub user: Option<User>,
    /// Whether there is an access token that calls may use now.
    pub access_token_usable: bool,
    pub access_token_expires_at: Option<WireTime>,
    /// Fixed at consent; an unchanged refresh token never moves it. Null: there is none, or the server did not say.
    pub refresh_token_expires_at: Option<WireTime>,
    /// Days until the refresh token ends, rounded up, once 14 are left or fewer: a person must consent again before.
    pub expires_soon_days: Option<u32>,
    /// As answered by the token endpoint.
    pub scope: Option<String>,
    /// Counts the access tokens that the connection has had.
    pub generation: Option<u64>,
    /// Tells access tokens apart without showing them.
    pub fingerprint: Option<String>,
    pub granted_at: Option<WireTime>,
    pub last_refresh_at: Option<WireTime>,
    pub last_used_at: Option<WireTime>,
    pub created_at: WireTime,
}

/// A connection as just written.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ConnectionWritten {
    #[serde(flatten)]
    pub connection: Connection,
    /// On a new connection that needs a person's consent.
    pub connect_link: Option<ConnectLink>,
}

/// What a test call found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ConnectionTest {
    /// The user that the access token acts as.
    pub user: User,
    pub took_ms: u64,
}

impl ConnectionRequest {
    /// # Errors
    /// [`ActError::Invalid`] names the member.
    pub(crate) fn into_spec(self) -> Result<ConnectionSpec, ActError> {
        Ok(ConnectionSpec {
            integration: self.integration,
            profile: self.profile,
            labels: self.labels,
            expected_user: self.expected_user,
            import: self.import.map(ImportRequest::into_tokens).transpose()?,
        })
    }
}

impl ImportRequest {
    fn into_tokens(self) -> Result<ImportedTokens, ActError> {
        let invalid = |name: &str, problem: &dyn ToString| {
            ActError::Invalid(Field { name: format!("import.{name}"), problem: problem.to_string() })
        };
        if self.access_token.is_none() && self.refresh_token.is_none() {
            return Err(invalid(
                "refresh_token",
                &"at least one of access_token and refresh_token is needed",
            ));
        }
        Ok(ImportedTokens {
            access_token: self
                .access_token
                .map(|token| model::AccessToken::parse(token.to_text()))
                .transpose()
                .map_err(|fault| invalid("access_token", &fault))?,
            expires_in: self.expires_in.map(Duration::from_secs),
            refresh_token: self
                .refresh_token
                .map(|token| model::RefreshToken::parse(token.to_text()))
                .transpose()
                .map_err(|fault| invalid("refresh_token", &fault))?,
            refresh_expires_at: self.refresh_token_expires_at.map(model::UnixTime::from),
        })
    }
}

impl Connection {
    /// What an operator sees of `connection`. `integration` is the one it is held under, where it can be read.
    pub(crate) fn of(
        connection: model::Connection,
        integration: Option<&model::Integration>,
        control: &Control,
    ) -> Self {
        let fingerprint = control.fingerprint(&connection).map(|fingerprint| fingerprint.to_string());
        let now = control.clock().now();
        let health = ConnectionHealth::of(&connection, now);
        let grant = connection.grant.as_ref();
        let refresh_expires_at = grant.and_then(|grant| grant.refresh_expires_at);
        Self {
            instance: integration.map(|integration| integration.instance.as_str().to_owned()),
            redirect_uri: integration.map(|integration| integration.redirect_uri.clone()),
            state: ConnectionState::of(&connection, now),
            frozen: connection
                .frozen
                .map(|freeze| Frozen { since: freeze.since.into(), reason: freeze.reason }),
            health,
            access_token_usable: grant.is_some_and(|grant| now < grant.usable_until()),
            access_token_expires_at: grant.map(|grant| grant.access_expires_at.into()),
            refresh_token_expires_at: refresh_expires_at.map(WireTime::from),
            expires_soon_days: refresh_expires_at.and_then(|ends_at| expires_soon(ends_at, now)),
            scope: grant.and_then(|grant| grant.scope.clone()),
            generation: grant.map(|grant| grant.generation.0),
            granted_at: grant.map(|grant| grant.granted_at.into()),
            last_refresh_at: grant.map(|grant| grant.refreshed_at.into()),
            fingerprint,
            id: connection.id,
            integration: connection.integration,
            profile: connection.profile,
            labels: connection.labels,
            expected_user: connection.expected_user,
            user: connection.user.map(User::from),
            last_used_at: connection.last_used_at.map(WireTime::from),
            created_at: connection.created_at.into(),
        }
    }
}

impl ConnectionState {
    fn of(connection: &model::Connection, now: model::UnixTime) -> Self {
        let id = &connection.id;
        let is_usable = connection.grant.as_ref().is_some_and(|grant| now < grant.usable_until());
        let (cause, reason) = match &connection.lifecycle {
            model::Lifecycle::Active { .. } if is_usable => (None, "It lends tokens.".to_owned()),
            model::Lifecycle::Active { .. } => (
                None,
                "Its access token has ended: the next call asks for another one, and waits for it."
                    .to_owned(),
            ),
            model::Lifecycle::AwaitingConsent { .. } => (
                Some("awaiting_consent"),
                format!(
                    "Nobody has consented yet: open the connect link, or make a new one: bearerd connection reauthorize {id}."
                ),
            ),
            model::Lifecycle::AwaitingConfirmation { .. } => {
                let reason = match &connection.user {
                    Some(model::InstanceUser { user_name: user, .. }) => format!(
                        "{user} consented: if that is who was meant, bearerd connection confirm {id} --user {user}."
                    ),
                    None => format!(
                        "Somebody consented, and it is not known who: bearerd connection test {id} asks the instance; \
                         under a generic provider, ask the person: bearerd connection confirm {id} --user NAME."
                    ),
                };
                (Some("awaiting_confirmation"), reason)
            }
            model::Lifecycle::ReauthorizationRequired { cause, .. } => {
                let (cause, why) = death(*cause);
                (Some(cause), format!("{why}: bearerd connection reauthorize {id}."))
            }
        };
        Self {
            name: connection.lifecycle.name().to_owned(),
            since: connection.lifecycle.since().into(),
            cause: cause.map(str::to_owned),
            reason,
        }
    }
}

fn death(cause: model::DeathCause) -> (&'static str, &'static str) {
    match cause {
        model::DeathCause::GrantRefused => {
            ("grant_refused", "The authorization server refused the newest refresh token")
        }
        model::DeathCause::RefreshTokenExpired => ("refresh_token_expired", "The refresh token's life ended"),
        model::DeathCause::NoRefreshToken => {
            ("no_refresh_token", "The access token ended and there was no refresh token")
        }
        model::DeathCause::IntegrationChanged => {
            ("integration_changed", "The integration's client or instance was changed")
        }
    }
}

impl ConnectionHealth {
    /// An exchange in doubt comes first: what failed before it is no longer the question.
    fn of(connection: &model::Connection, now: model::UnixTime) -> Self {
        let failures = match &connection.health {
            model::Health::Ok => 0,
            model::Health::Failing { failures, .. } => *failures,
        };
        let in_doubt = connection.exchanges.intent.as_ref().filter(|_| connection.is_uncertain(now));
        match (in_doubt, &connection.health) {
            (Some(intent), _) => Self {
                name: "uncertain".to_owned(),
                since: Some(intent.deadline.into()),
                failures,
                reason: Some(
                    "a process ended in the middle of a refresh: whether the refresh token is spent is found out with \
                     the next one, by the token before alone"
                        .to_owned(),
                ),
            },
            (None, model::Health::Ok) => {
                Self { name: "ok".to_owned(), since: None, failures, reason: None }
            }
            (None, model::Health::Failing { since, reason, .. }) => Self {
                name: "failing".to_owned(),
                since: Some((*since).into()),
                failures,
                reason: Some(reason.clone()),
            },
        }
    }
}

impl From<model::InstanceUser> for User {
    fn from(user: model::InstanceUser) -> Self {
        Self { sys_id: user.sys_id, user_name: user.user_name, name: user.name }
    }
}

impl From<IssuedLink> for ConnectLink {
    fn from(link: IssuedLink) -> Self {
        Self { url: WireSecret::new(link.url), expires_at: link.expires_at.into() }
    }
}

impl From<TestReport> for ConnectionTest {
    fn from(report: TestReport) -> Self {
        Self { user: report.user.into(), took_ms: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX) }
    }
}
