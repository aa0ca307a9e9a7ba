//! Connections: one grant each, from creation to deletion.

use std::{collections::BTreeMap, time::Duration};

use bearerd_crash_points::{CrashPoint, crash_point};
use bearerd_crypto::{Fingerprint, random_base62};
use bearerd_model::{
    AccessToken, ConnectLink, Connection, ConnectionId, Exchanges, Freeze, Generation, Grant, GrantType,
    Health, InstanceUser, Integration, IntegrationId, Lifecycle, Profile, ProfileName, Provider,
    RefreshToken, UnixTime,
};
use bearerd_oauth::{TokenEndpointError, TokenResponse};
use bearerd_store::Kind;
use bearerd_tokens::{AccessTokens, Obtained, TokenCall, TokenCallError, UserCallError, grant_from};
use tracing::warn;

use crate::{ActError, Control, Operator, Page, Revision, Versioned};

/// What an operator says of a new connection.
#[derive(Debug, Clone)]
pub struct ConnectionSpec {
    pub integration: IntegrationId,
    pub profile: ProfileName,
    pub labels: BTreeMap<String, String>,
    /// `user_name` or `sys_id` of who must consent.
    pub expected_user: Option<String>,
    /// Tokens obtained elsewhere, instead of a consent.
    pub import: Option<ImportedTokens>,
}

/// Tokens obtained elsewhere.
#[derive(Debug, Clone)]
pub struct ImportedTokens {
    pub access_token: Option<AccessToken>,
    /// Seconds of the access token's life that are left.
    pub expires_in: Option<Duration>,
    /// At least one of the two tokens is there.
    pub refresh_token: Option<RefreshToken>,
    /// When the refresh token ends, where the operator knows; else unknown.
    pub refresh_expires_at: Option<UnixTime>,
}

/// What may be changed about a connection; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct ConnectionChange {
    pub labels: Option<BTreeMap<String, String>>,
    pub expected_user: Option<Option<String>>,
}

/// A connect link, as handed to a person. `url` is a secret until used; it is shown once and stored nowhere.
#[derive(Debug, Clone)]
pub struct IssuedLink {
    pub url: String,
    pub expires_at: UnixTime,
}

#[derive(Debug)]
pub struct CreatedConnection {
    pub versioned: Versioned<Connection>,
    /// For grants that need a person's consent.
    pub connect_link: Option<IssuedLink>,
}

/// What a test call found: the user that the connection's access token acts as.
#[derive(Debug, Clone)]
pub struct TestReport {
    pub user: InstanceUser,
    pub took: Duration,
}

/// Labels of one connection at most, and bytes of a name or value at most.
const LABELS_MAX: usize = 32;
const TEXT_BYTES_MAX: usize = 200;

impl Control {
    /// Creates a connection: with a connect link (`authorization_code`), by asking the token endpoint at once
    /// (`client_credentials`), or from tokens obtained elsewhere (`import`; checked by a test call).
    ///
    /// # Errors
    /// `Exists`, `NotFound` (integration), `Invalid`, `Conflict` (`other_user`), `Upstream` (`client_refused`,
    /// `grant_refused`, `instance_unreachable`, `instance_asleep`, `user_unreadable`), `Store`.
    pub async fn create_connection(
        &self,
        id: ConnectionId,
        spec: ConnectionSpec,
        by: &Operator,
    ) -> Result<CreatedConnection, ActError> {
        let (control, by) = (self.clone(), by.clone());
        let created = self.to_the_end(async move { control.create(id, spec, &by).await });
        created.await.unwrap_or_else(|| Err(ActError::cut_short()))
    }

    async fn create(
        &self,
        id: ConnectionId,
        spec: ConnectionSpec,
        by: &Operator,
    ) -> Result<CreatedConnection, ActError> {
        check_labels(&spec.labels)?;
        check_expected_user(spec.expected_user.as_deref())?;
        if self.store.load::<Connection>(id.as_str()).await?.is_some() {
            return Err(ActError::Exists);
        }
        let integration = self.integration(&spec.integration).await?.record;
        let profile = integration.profiles.get(&spec.profile).ok_or_else(|| {
            ActError::invalid("profile", format!("{} has no profile {}", spec.integration, spec.profile))
        })?;
        check_expectation(spec.expected_user.as_deref(), &integration)?;
        let now = self.clock.now();
        let connection = Connection {
            id,
            integration: spec.integration,
            profile: spec.profile,
            labels: spec.labels,
            expected_user: spec.expected_user,
            user: None,
            lifecycle: Lifecycle::AwaitingConsent { since: now },
            frozen: None,
            health: Health::Ok,
            grant: None,
            exchanges: Exchanges::default(),
            due_at: None,
            created_at: now,
            last_used_at: None,
        };
        match (spec.import, profile.grant_type) {
            (Some(_), GrantType::ClientCredentials) => {
                Err(ActError::invalid("import", "a client_credentials profile obtains its own tokens"))
            }
            (Some(tokens), GrantType::AuthorizationCode) => {
                let import = self.import(connection, &integration, tokens);
                self.while_obtaining(&integration, Box::pin(import)).await?
            }
            (None, GrantType::ClientCredentials) => {
                let create = self.create_by_client(connection, &integration, profile);
                self.while_obtaining(&integration, Box::pin(create)).await?
            }
            (None, GrantType::AuthorizationCode) => {
                let versioned = self.add(connection, &integration).await?;
                let connect_link = Some(self.issue_link(&versioned.record.id, by).await?);
                Ok(CreatedConnection { versioned, connect_link })
            }
        }
    }

    async fn create_by_client(
        &self,
        mut connection: Connection,
        integration: &Integration,
        profile: &Profile,
    ) -> Result<CreatedConnection, ActError> {
        let obtained = self.tokens.client_credentials(integration, profile).await;
        let obtained = obtained.map_err(|error| token_error(&error))?;
        let lifetime = integration.refresh_token_lifetime;
        let grant = grant_from(None, TokenCall::NewGrant, obtained, lifetime);
        connection.put_grant(grant, self.clock.now());
        self.activate_after_test(&mut connection, integration).await?;
        let versioned = self.add(connection, integration).await?;
        Ok(CreatedConnection { versioned, connect_link: None })
    }

    /// Writes a new connection, with tokens or without.
    async fn add(
        &self,
        connection: Connection,
        integration: &Integration,
    ) -> Result<Versioned<Connection>, ActError> {
        let revision = self.store.create(&connection).await?.ok_or(ActError::Exists)?;
        // A change of the integration's client purges what it finds; what was on its way goes here (I-4).
        if !self.has_same_client(integration).await? {
            self.store.delete::<Connection>(connection.id.as_str(), revision).await?;
            return Err(ActError::Changed);
        }
        self.in_force(Kind::Connection, connection.id.as_str()).await;
        Ok(Versioned { revision, record: connection })
    }

    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn connection(&self, id: &ConnectionId) -> Result<Versioned<Connection>, ActError> {
        let mut found = self.found::<Connection>("connection", id.as_str()).await?;
        self.add_memory(&mut found.record);
        Ok(found)
    }

    /// # Errors
    /// `Store`.
    pub async fn connections(&self, after: Option<&str>, limit: usize) -> Result<Page<Connection>, ActError> {
        let mut page = self.store.list::<Connection>(after, limit).await?;
        for versioned in &mut page.records {
            self.add_memory(&mut versioned.record);
        }
        Ok(page)
    }

    /// What this process knows beyond the record: the last use, and failures since.
    fn add_memory(&self, connection: &mut Connection) {
        connection.last_used_at = connection.last_used_at.max(self.tokens.last_used(&connection.id));
        if connection.health != Health::Ok {
            connection.health = self.tokens.health(&connection.id).unwrap_or(connection.health.clone());
        }
    }

    /// The access token's keyed fingerprint, for people who compare; never the token.
    pub fn fingerprint(&self, connection: &Connection) -> Option<Fingerprint> {
        let token = &connection.grant.as_ref()?.access_token;
        Some(self.hashes.fingerprint.fingerprint(token.expose()))
    }

    /// # Errors
    /// `Invalid`, `NotFound`, `Changed`, `Store`.
    pub async fn change_connection(
        &self,
        id: &ConnectionId,
        change: ConnectionChange,
        expected: Option<Revision>,
    ) -> Result<Versioned<Connection>, ActError> {
        if let Some(labels) = &change.labels {
            check_labels(labels)?;
        }
        let expected_user = change.expected_user.as_ref().and_then(Option::as_deref);
        check_expected_user(expected_user)?;
        if expected_user.is_some() {
            let connection = self.found::<Connection>("connection", id.as_str()).await?.record;
            check_expectation(expected_user, &self.integration(&connection.integration).await?.record)?;
        }
        self.alter::<Connection>("connection", id.as_str(), expected, |connection| {
            if let Some(labels) = &change.labels {
                connection.labels.clone_from(labels);
            }
            if let Some(expected_user) = &change.expected_user {
                connection.expected_user.clone_from(expected_user);
            }
            Ok(())
        })
        .await
    }

    /// A new connect link for an existing connection; its tokens stay in use until the new consent succeeds.
    ///
    /// # Errors
    /// `Conflict` (`no_consent_needed`) for grants without a resource owner's consent; `NotFound`, `Store`.
    pub async fn reauthorize(&self, id: &ConnectionId, by: &Operator) -> Result<IssuedLink, ActError> {
        let connection = self.connection(id).await?.record;
        if self.grant_type(&connection).await? == GrantType::ClientCredentials {
            return Err(ActError::Conflict {
                code: "no_consent_needed",
                message: format!("connection {id} uses client credentials; nobody consents to it"),
                fix: format!("Run bearerd connection refresh {id}."),
            });
        }
        self.issue_link(id, by).await
    }

    /// Confirms that `user` (a `user_name` or `sys_id`) is who was meant to consent; lends the tokens from now on. Under
    /// a generic provider nobody but the operator can say who it was, and `user` is what the connection shows then.
    ///
    /// # Errors
    /// `Conflict` (`nothing_to_confirm`, `other_user`); `Invalid`, `NotFound`, `Store`.
    pub async fn confirm(&self, id: &ConnectionId, user: &str) -> Result<Versioned<Connection>, ActError> {
        check_expected_user(Some(user))
            .map_err(|_| ActError::invalid("user", "it is a user_name or a sys_id"))?;
        let now = self.clock.now();
        let read = self.found::<Connection>("connection", id.as_str()).await?.record;
        let vouched = self.integration(&read.integration).await?.record.provider == Provider::Generic;
        self.alter::<Connection>("connection", id.as_str(), None, |connection| {
            let waits = matches!(connection.lifecycle, Lifecycle::AwaitingConfirmation { .. });
            if waits && vouched && connection.user.is_none() && is_same_grant(connection, &read) {
                let (sys_id, name) = (String::new(), user.to_owned());
                connection.user = Some(InstanceUser { sys_id, user_name: name.clone(), name });
            }
            let Some(held) = connection.user.as_ref().filter(|_| waits) else {
                return Err(ActError::Conflict {
                    code: "nothing_to_confirm",
                    message: format!("connection {id} does not wait for a confirmation"),
                    fix: format!("See bearerd connection show {id}."),
                });
            };
            if !is_user(held, user) {
                return Err(ActError::Conflict {
                    code: "other_user",
                    message: format!("{} consented, not {user:?}", held.user_name),
                    fix: format!(
                        "Confirm {:?}, or send a new connect link to the right person.",
                        held.user_name
                    ),
                });
            }
            connection.lifecycle = Lifecycle::Active { since: now };
            Ok(())
        })
        .await
    }

    /// Stops all calls through the connection; its tokens are kept and kept fresh.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Store`.
    pub async fn freeze(&self, id: &ConnectionId, reason: String) -> Result<Versioned<Connection>, ActError> {
        if reason.len() > TEXT_BYTES_MAX || reason.chars().any(char::is_control) {
            return Err(ActError::invalid(
                "reason",
                format!("it is one line of at most {TEXT_BYTES_MAX} bytes"),
            ));
        }
        let now = self.clock.now();
        self.alter::<Connection>("connection", id.as_str(), None, |connection| {
            let since = connection.frozen.as_ref().map_or(now, |frozen| frozen.since);
            connection.frozen = Some(Freeze { since, reason: reason.clone() });
            Ok(())
        })
        .await
    }

    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn unfreeze(&self, id: &ConnectionId) -> Result<Versioned<Connection>, ActError> {
        self.alter::<Connection>("connection", id.as_str(), None, |connection| {
            connection.frozen = None;
            Ok(())
        })
        .await
    }

    /// Refreshes now, whatever the token's age.
    ///
    /// # Errors
    /// `Conflict` (`not_usable`) where there is nothing to refresh with; `Upstream` (`refresh_failed`) says what the
    /// token endpoint did; a token that is still valid stays in use.
    pub async fn refresh(&self, id: &ConnectionId) -> Result<Versioned<Connection>, ActError> {
        let before = self.connection(id).await?.record;
        let by_client = self.grant_type(&before).await? == GrantType::ClientCredentials;
        if !by_client && before.grant.as_ref().is_none_or(|grant| grant.refresh_token.is_none()) {
            return Err(ActError::Conflict {
                code: "not_usable",
                message: format!("connection {id} holds no refresh token: it is {}", before.lifecycle.name()),
                fix: format!("Run bearerd connection reauthorize {id} and open the link."),
            });
        }
        let refreshed = self.tokens.refresh_now(id).await?;
        let refreshed =
            refreshed.ok_or_else(|| ActError::NotFound { what: "connection", id: id.to_string() })?;
        match refreshed.health {
            Health::Ok => self.connection(id).await,
            Health::Failing { reason, .. } => Err(ActError::Upstream {
                code: "refresh_failed",
                message: format!("the refresh brought no token: {reason}"),
                fix: "Check the integration's client at the instance; a token that is still valid stays in use."
                    .to_owned(),
                retry_after: None,
            }),
        }
    }

    /// Reads the connection's own user at the instance.
    ///
    /// # Errors
    /// `Conflict` (`not_usable`) without a usable token, (`no_user_call`) under a generic provider; `Upstream`.
    pub async fn test(&self, id: &ConnectionId) -> Result<TestReport, ActError> {
        let before = self.connection(id).await?.record;
        if self.integration(&before.integration).await?.record.provider == Provider::Generic {
            return Err(ActError::Conflict {
                code: "no_user_call",
                message: format!(
                    "connection {id} is under a generic provider: no call is known that tells its user"
                ),
                fix: format!("Run bearerd connection refresh {id}, or make a call through the connection."),
            });
        }
        if matches!(before.lifecycle, Lifecycle::Active { .. }) {
            // Whatever this says, the call below tells it better.
            let _ = self.tokens.acquire(id).await;
        }
        let connection = self.connection(id).await?.record;
        let Some(grant) = &connection.grant else {
            return Err(ActError::Conflict {
                code: "not_usable",
                message: format!("connection {id} holds no tokens: it is {}", connection.lifecycle.name()),
                fix: format!("Run bearerd connection reauthorize {id} and open the link."),
            });
        };
        let integration = self.integration(&connection.integration).await?.record;
        let started = self.clock.now();
        let user = self
            .tokens
            .read_user(&integration, &grant.access_token)
            .await
            .map_err(|error| user_error(&error))?;
        let took = self.clock.now().since(started);
        if connection.user.is_none() {
            self.note_user(&connection, &user).await?;
        }
        Ok(TestReport { user, took })
    }

    /// A consent whose user could not be read at the time: now it could.
    async fn note_user(&self, read: &Connection, user: &InstanceUser) -> Result<(), ActError> {
        let now = self.clock.now();
        self.alter::<Connection>("connection", read.id.as_str(), None, |connection| {
            let generation =
                |connection: &Connection| connection.grant.as_ref().map(|grant| grant.generation);
            let waits = matches!(connection.lifecycle, Lifecycle::AwaitingConfirmation { .. });
            if connection.user.is_some() || generation(connection) != generation(read) {
                return Ok(());
            }
            connection.user = Some(user.clone());
            let trusted = match &connection.expected_user {
                Some(expected) => is_user(user, expected),
                None => !self.connect.confirm,
            };
            if waits && trusted {
                connection.lifecycle = Lifecycle::Active { since: now };
            } else if connection.expected_user.is_some() && !trusted {
                connection.lifecycle = Lifecycle::AwaitingConfirmation { since: now }; // O-23
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    async fn grant_type(&self, connection: &Connection) -> Result<GrantType, ActError> {
        let integration = self.integration(&connection.integration).await?.record;
        Ok(integration
            .profiles
            .get(&connection.profile)
            .map(|profile| profile.grant_type)
            .unwrap_or_default())
    }

    /// Forgets the connection and its tokens at once; calls through it end within a second everywhere. The tokens are
    /// revoked at the instance afterwards, unless another connection holds them too.
    ///
    /// # Errors
    /// `NotFound`, `Changed`, `Store`.
    pub async fn delete_connection(
        &self,
        id: &ConnectionId,
        expected: Option<Revision>,
    ) -> Result<(), ActError> {
        for _ in 0..DELETE_TRIES {
            let stored = self.found::<Connection>("connection", id.as_str()).await?;
            if expected.is_some_and(|expected| expected != stored.revision) {
                return Err(ActError::Changed);
            }
            let queued = self.queue_revocations(&stored.record).await?;
            match self.remove::<Connection>(Kind::Connection, id.as_str(), stored.revision, expected).await {
                Err(ActError::Changed) if expected.is_none() => {} // a refresh was committed in between
                Ok(()) => {
                    self.arm(queued).await;
                    self.forget_expiry(id).await;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(ActError::Changed)
    }

    async fn issue_link(&self, connection: &ConnectionId, by: &Operator) -> Result<IssuedLink, ActError> {
        let link = random_base62(LINK_LENGTH);
        let now = self.clock.now();
        let record = ConnectLink {
            hash: self.hashes.link.hex(link.as_bytes()),
            connection: connection.clone(),
            requested_by: by.name.clone(),
            created_at: now,
            expires_at: now + self.connect.link_lifetime,
        };
        self.store.create(&record).await?.ok_or(ActError::Exists)?;
        Ok(IssuedLink {
            url: format!("{}/connect/{link}", self.connect.public_url),
            expires_at: record.expires_at,
        })
    }

    /// Takes over tokens obtained elsewhere: as they are, if the access token works, else by spending the refresh
    /// token. That one is written down first and spent by the token engine, so that what it brings is never lost.
    async fn import(
        &self,
        mut connection: Connection,
        integration: &Integration,
        tokens: ImportedTokens,
    ) -> Result<CreatedConnection, ActError> {
        if let Some(access_token) = tokens.access_token {
            let refresh_token = tokens.refresh_token.clone();
            let response =
                TokenResponse { access_token, expires_in: tokens.expires_in, refresh_token, scope: None };
            let obtained = Obtained { response, sent_at: self.clock.now() };
            let lifetime = integration.refresh_token_lifetime;
            let mut grant = grant_from(None, TokenCall::NewGrant, obtained, lifetime);
            grant.refresh_expires_at = grant.refresh_token.as_ref().and(tokens.refresh_expires_at);
            connection.put_grant(grant, self.clock.now());
            match self.activate_after_test(&mut connection, integration).await {
                Ok(()) => {
                    if tokens.refresh_token.is_some() {
                        self.expect_expiry(&connection.id, tokens.refresh_expires_at).await;
                    }
                    let versioned = self.add(connection, integration).await?;
                    return Ok(CreatedConnection { versioned, connect_link: None });
                }
                // It has ended; the refresh token may still work.
                Err(ActError::Upstream { code: "token_refused", .. }) if tokens.refresh_token.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(refresh_token) = tokens.refresh_token else {
            let problem = "it holds neither a working access token nor a refresh token";
            return Err(ActError::invalid("import", problem));
        };
        let now = self.clock.now();
        self.expect_expiry(&connection.id, tokens.refresh_expires_at).await;
        connection.put_grant(not_yet_refreshed(refresh_token, tokens.refresh_expires_at, now), now);
        connection.lifecycle = Lifecycle::AwaitingConfirmation { since: now };
        let id = self.add(connection, integration).await?.record.id;
        crash_point(CrashPoint::ImportStored);
        let versioned = self.spend_imported(&id, integration).await?;
        Ok(CreatedConnection { versioned, connect_link: None })
    }

    /// Has the engine spend a refresh token just written down, and activates the connection with what it brought. A
    /// refused one is forgotten again; one whose fate is unknown stays, and is tried again.
    async fn spend_imported(
        &self,
        id: &ConnectionId,
        integration: &Integration,
    ) -> Result<Versioned<Connection>, ActError> {
        let refreshed = self.tokens.refresh_now(id).await?;
        let mut refreshed = refreshed.ok_or(ActError::Changed)?;
        crash_point(CrashPoint::ImportSpent);
        if !refreshed.grant.as_ref().is_some_and(Grant::has_access_token) {
            let (reason, strikes) = match &refreshed.health {
                Health::Failing { reason, strikes, .. } => (reason.clone(), *strikes),
                Health::Ok => ("there is no outcome yet".to_owned(), 0),
            };
            let refused =
                strikes > 0 || !matches!(refreshed.lifecycle, Lifecycle::AwaitingConfirmation { .. });
            if refused {
                self.forget_imported(&refreshed).await?;
            }
            return Err(ActError::Upstream {
                code: if refused { "grant_refused" } else { "refresh_failed" },
                message: format!("the imported refresh token brought no access token: {reason}"),
                fix: if refused {
                    "Nothing was kept. Check the integration's client, or obtain new tokens.".to_owned()
                } else {
                    format!(
                        "The token is kept: run bearerd connection refresh {id}, then connection test {id}, and confirm \
                         the user that it shows."
                    )
                },
                retry_after: None,
            });
        }
        let rotated = refreshed.grant.as_ref().is_some_and(|grant| grant.previous_refresh_token.is_some());
        match self.activate_after_test(&mut refreshed, integration).await {
            // Not the one who was meant, and nothing is lost by refusing.
            Err(error @ ActError::Conflict { .. }) if !rotated => {
                self.forget_imported(&refreshed).await?;
                return Err(error);
            }
            // Not the one who was meant, but the operator's own refresh token is spent: kept, and not lent without a
            // confirmation (O-23).
            Ok(()) | Err(ActError::Conflict { .. }) => {}
            Err(error) => {
                warn!(connection.id = %id, %error, "imported connection {id} was not tested");
                if refreshed.expected_user.is_none() {
                    refreshed.lifecycle = Lifecycle::Active { since: self.clock.now() };
                }
            }
        }
        self.alter::<Connection>("connection", id.as_str(), None, |connection| {
            let waits = matches!(connection.lifecycle, Lifecycle::AwaitingConfirmation { .. });
            if !waits || !is_same_grant(connection, &refreshed) {
                return Err(ActError::Changed); // purged, died or made anew meanwhile: that stands
            }
            connection.user.clone_from(&refreshed.user);
            connection.lifecycle.clone_from(&refreshed.lifecycle);
            Ok(())
        })
        .await
    }

    /// Removes an import that came to nothing, unless something else has its name by now.
    async fn forget_imported(&self, imported: &Connection) -> Result<(), ActError> {
        let id = imported.id.as_str();
        let Some(stored) = self.store.load::<Connection>(id).await? else { return Ok(()) };
        if stored.record.created_at != imported.created_at {
            return Ok(());
        }
        self.remove::<Connection>(Kind::Connection, id, stored.revision, None).await?;
        self.forget_expiry(&imported.id).await;
        Ok(())
    }

    /// Reads who the tokens act as, checks it against `expected_user`, and activates. Under a generic provider there is
    /// nobody to ask: whoever brought the tokens, or registered the client, vouches for them.
    async fn activate_after_test(
        &self,
        connection: &mut Connection,
        integration: &Integration,
    ) -> Result<(), ActError> {
        let Some(grant) = &connection.grant else { return Ok(()) };
        if integration.provider == Provider::Generic {
            connection.lifecycle = Lifecycle::Active { since: self.clock.now() };
            return Ok(());
        }
        let user = self
            .tokens
            .read_user(integration, &grant.access_token)
            .await
            .map_err(|error| user_error(&error))?;
        let other = connection.expected_user.as_deref().filter(|expected| !is_user(&user, expected)).map(
            |expected| ActError::Conflict {
                code: "other_user",
                message: format!("the tokens act as {}, not as {expected:?}", user.user_name),
                fix: "Correct expected_user, or the application user at the instance.".to_owned(),
            },
        );
        connection.user = Some(user);
        if let Some(other) = other {
            return Err(other);
        }
        connection.lifecycle = Lifecycle::Active { since: self.clock.now() };
        Ok(())
    }
}

/// Whether both are the same connection under the same grant, whatever was refreshed in between.
fn is_same_grant(one: &Connection, other: &Connection) -> bool {
    let granted_at = |connection: &Connection| connection.grant.as_ref().map(|grant| grant.granted_at);
    one.created_at == other.created_at && granted_at(one) == granted_at(other)
}

/// A grant of which only the refresh token is known: its access token has ended before it began, and is never lent.
fn not_yet_refreshed(refresh_token: RefreshToken, ends: Option<UnixTime>, now: UnixTime) -> Grant {
    let access_token = AccessToken::parse("none-yet".to_owned()).expect("visible ASCII");
    Grant {
        generation: Generation::default(),
        access_token,
        access_lifetime: Duration::ZERO,
        access_expires_at: UnixTime::default(),
        refresh_token: Some(refresh_token),
        previous_refresh_token: None,
        refresh_expires_at: ends,
        granted_at: now,
        refreshed_at: now,
        scope: None,
    }
}

/// Characters of a connect link: 190 bits.
const LINK_LENGTH: usize = 32;
/// A connection that is being deleted may be refreshed meanwhile, once or twice.
const DELETE_TRIES: usize = 8;

/// Whether an operator's text names this user.
pub(crate) fn is_user(user: &InstanceUser, text: &str) -> bool {
    !text.is_empty() && (user.user_name == text || user.sys_id == text)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ActError> {
    let fits = |(name, value): (&String, &String)| {
        let plain = |text: &str| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        !name.is_empty() && plain(name) && plain(value)
    };
    if labels.len() > LABELS_MAX || !labels.iter().all(fits) {
        let problem = format!(
            "at most {LABELS_MAX}, each name and value at most {TEXT_BYTES_MAX} bytes without control characters"
        );
        return Err(ActError::invalid("labels", problem));
    }
    Ok(())
}

fn check_expected_user(user: Option<&str>) -> Result<(), ActError> {
    let fits =
        |user: &str| !user.is_empty() && user.len() <= TEXT_BYTES_MAX && !user.chars().any(char::is_control);
    if user.is_none_or(fits) {
        Ok(())
    } else {
        Err(ActError::invalid("expected_user", "it is a user_name or a sys_id"))
    }
}

/// Nobody can be expected where the server does not say who consented: the grant would wait for ever, or be lent to
/// anybody.
fn check_expectation(user: Option<&str>, integration: &Integration) -> Result<(), ActError> {
    if user.is_none() || integration.provider != Provider::Generic {
        return Ok(());
    }
    let problem =
        "a generic provider does not say who consented: leave it out; an operator confirms the consent";
    Err(ActError::invalid("expected_user", problem))
}

/// A failed token call, as the operator who asked for it sees it.
pub(crate) fn token_error(error: &TokenCallError) -> ActError {
    let (code, fix) = match error {
        TokenCallError::Endpoint(failure) => match failure {
            TokenEndpointError::Denied | TokenEndpointError::ClientRefused { .. } => (
                "client_refused",
                "Check client id, client secret and, for client credentials, the OAuth application user and the \
                 property glide.oauth.inbound.client.credential.grant_type.enabled at the instance.",
            ),
            TokenEndpointError::GrantRefused => ("grant_refused", "The tokens are dead: obtain new ones."),
            TokenEndpointError::RequestRefused { .. } => {
                ("client_refused", "Check the client's grant types and scopes at the instance.")
            }
            TokenEndpointError::Asleep { .. } => {
                ("instance_asleep", "Wake the instance (log in to it) and repeat.")
            }
            TokenEndpointError::Throttled { .. } | TokenEndpointError::Unavailable { .. } => {
                ("instance_unavailable", "Wait until the instance answers again and repeat.")
            }
            TokenEndpointError::Malformed { .. } => {
                ("token_reply_invalid", "Check that the token endpoint is the instance's own.")
            }
        },
        TokenCallError::NotSent { .. } | TokenCallError::NoReply { .. } => (
            "instance_unreachable",
            "Check the instance's address, the network, the egress proxy and the CA file.",
        ),
        TokenCallError::Misconfigured(_) => ("misconfigured", "Correct the integration."),
    };
    let retry_after = match error {
        TokenCallError::Endpoint(failure) => failure.retry_after(),
        _ => None,
    };
    ActError::Upstream { code, message: error.to_string(), fix: fix.to_owned(), retry_after }
}

/// A failed user call, as the operator who asked for it sees it.
pub(crate) fn user_error(error: &UserCallError) -> ActError {
    let (code, fix) = match error {
        UserCallError::TokenRefused => {
            ("token_refused", "The access token is dead: refresh or obtain a new one.")
        }
        UserCallError::Forbidden | UserCallError::NoUser => (
            "user_unreadable",
            "Let the user read its own sys_user record (an ACL at the instance), and, where auth scopes are used, \
             add one that opens the Table API.",
        ),
        UserCallError::Asleep => ("instance_asleep", "Wake the instance (log in to it) and repeat."),
        UserCallError::Status(_) => {
            ("instance_unavailable", "Wait until the instance answers again and repeat.")
        }
        UserCallError::Unreachable(_) => (
            "instance_unreachable",
            "Check the instance's address, the network, the egress proxy and the CA file.",
        ),
    };
    ActError::Upstream { code, message: error.to_string(), fix: fix.to_owned(), retry_after: None }
}
