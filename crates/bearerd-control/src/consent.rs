//! The consent, from connect link to result (RFC 6749 §4.1, RFC 7636, RFC 9700). The connect door parses requests
//! and shows pages; every decision is here.

use std::time::Duration;

use bearerd_crash_points::{CrashPoint, crash_point};
use bearerd_crypto::{base64url, random_base62, random_bytes, random_hex, sha256};
use bearerd_model::{
    AuthorizationCode, ConnectLink, Connection, ConnectionId, ConsentFlow, ConsentOutcome, ConsentResult,
    Grant, Health, InstanceOrigin, InstanceUser, Integration, IntegrationId, Lifecycle, PkceVerifier,
    Provider, RefreshToken, SecretText, UnixTime,
};
use bearerd_oauth::{AuthorizationRequest, CallbackError, TokenEndpointError};
use bearerd_store::{Kind, StoreError, UpdateError};
use bearerd_tokens::{TokenCall, TokenCallError, UserCallError, grant_from};
use tracing::{info, warn};
use url::Url;

use crate::{
    ActError, Control,
    connections::{is_user, user_error},
};

/// What the page behind a connect link shows.
#[derive(Debug, Clone)]
pub struct LinkPage {
    pub connection: ConnectionId,
    pub integration: IntegrationId,
    pub instance: InstanceOrigin,
    /// Where the browser goes from the page; differs from `instance` where the integration names an authorization
    /// endpoint elsewhere.
    pub authorization_origin: String,
    pub requested_by: String,
    /// Who must consent, where the operator said so.
    pub expected_user: Option<String>,
    pub scopes: Vec<String>,
    pub expires_at: UnixTime,
}

/// A consent on its way: send the browser to `authorization_url` (303) with the cookie set.
#[derive(Debug)]
pub struct BegunConsent {
    pub authorization_url: String,
    /// Each flow has a cookie of its own name, so that two flows in one browser do not meet (O-56). The name is
    /// without the `__Host-` prefix, which the door puts before it where the public URL is https.
    pub cookie_name: String,
    pub cookie_value: SecretText,
}

/// What came back to the redirection endpoint, as parsed from the query; every member is hostile.
#[derive(Debug)]
pub struct Callback {
    /// The integration named by the path `/oauth/callback/{integration}`; `None` on the shared path.
    pub path_integration: Option<String>,
    /// `state`, `code`, `error`, `error_description` and `iss` where given exactly once; the door refuses repeats as
    /// [`ConsentFault::MalformedCallback`].
    pub state: Option<SecretText>,
    pub code: Option<SecretText>,
    pub error: Option<String>,
    pub error_description: Option<String>,
    pub iss: Option<String>,
    /// All cookies of the request, name (without `__Host-`) and value.
    pub cookies: Vec<(String, SecretText)>,
}

/// Why a consent did not go on, where there is no outcome page to redirect to. The door shows a page of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsentFault {
    /// Unknown, used up or expired.
    #[error("this connect link is used up, expired or unknown")]
    LinkInvalid,
    /// `state` missing, unknown, used or expired; nothing was exchanged.
    #[error("this consent was not started here, was already finished, or took too long")]
    StateInvalid,
    /// The browser is not the one that started the flow, or the callback came on another integration's path. The
    /// flow is burnt.
    #[error("this consent was started in another browser")]
    OtherBrowser,
    #[error("this consent belongs to another integration")]
    OtherIntegration,
    #[error("the instance sent an answer that is not one")]
    MalformedCallback,
    #[error("the store cannot be reached")]
    StoreUnavailable,
}

impl ConsentFault {
    /// Stable code; `docs/errors.md` lists them.
    pub fn code(&self) -> &'static str {
        match self {
            Self::LinkInvalid => "connect_link_invalid",
            Self::StateInvalid => "state_invalid",
            Self::OtherBrowser => "other_browser",
            Self::OtherIntegration => "other_integration",
            Self::MalformedCallback => "callback_malformed",
            Self::StoreUnavailable => "store_unavailable",
        }
    }
}

/// From redirect to callback (product contract §4).
const FLOW_LIFETIME: Duration = Duration::from_mins(10);
/// How long a result page can be reloaded.
const OUTCOME_LIFETIME: Duration = Duration::from_mins(10);
/// Longest piece of a server's text that is kept for the details block (O-32).
const DETAIL_CHARS_MAX: usize = 300;
/// Pauses between tries to write a new grant: some ten seconds together.
const STORE_PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(5),
];
/// Tries of the user call after an exchange: the instance may be slow to know its own token.
const USER_CALL_TRIES: u32 = 3;

impl Control {
    /// What a connect link stands for. Does not use it up (O-24).
    ///
    /// # Errors
    /// [`ConsentFault::LinkInvalid`], [`ConsentFault::StoreUnavailable`].
    pub async fn link_page(&self, link: &SecretText) -> Result<LinkPage, ConsentFault> {
        let hash = self.hashes.link.hex(link.expose().as_bytes());
        let link = self.store.load::<ConnectLink>(&hash).await.map_err(|error| store_fault(&error))?;
        let link = link.map(|versioned| versioned.record).filter(|link| link.expires_at > self.clock.now());
        let link = link.ok_or(ConsentFault::LinkInvalid)?;
        let (connection, integration) = self.linked(&link).await?;
        let scopes = integration
            .profiles
            .get(&connection.profile)
            .map(|profile| profile.scopes.clone())
            .unwrap_or_default();
        let authorization_endpoint =
            Url::parse(&integration.endpoints.authorization).map_err(|_| ConsentFault::LinkInvalid)?;
        Ok(LinkPage {
            connection: connection.id,
            integration: integration.id,
            instance: integration.instance,
            authorization_origin: authorization_endpoint.origin().ascii_serialization(),
            requested_by: link.requested_by,
            expected_user: connection.expected_user,
            scopes,
            expires_at: link.expires_at,
        })
    }

    async fn linked(&self, link: &ConnectLink) -> Result<(Connection, Integration), ConsentFault> {
        let connection = self
            .store
            .load::<Connection>(link.connection.as_str())
            .await
            .map_err(|error| store_fault(&error))?;
        let connection = connection.ok_or(ConsentFault::LinkInvalid)?.record;
        if connection.created_at > link.created_at {
            return Err(ConsentFault::LinkInvalid); // it was for another connection of this name
        }
        let integration = self
            .store
            .load::<Integration>(connection.integration.as_str())
            .await
            .map_err(|error| store_fault(&error))?;
        let integration = integration.ok_or(ConsentFault::LinkInvalid)?.record;
        Ok((connection, integration))
    }

    /// Uses the link up and starts a flow.
    ///
    /// # Errors
    /// [`ConsentFault::LinkInvalid`], [`ConsentFault::StoreUnavailable`].
    pub async fn begin_consent(&self, link: &SecretText) -> Result<BegunConsent, ConsentFault> {
        let now = self.clock.now();
        let hash = self.hashes.link.hex(link.expose().as_bytes());
        let link = self.store.take::<ConnectLink>(&hash, now).await.map_err(|error| store_fault(&error))?;
        let link = link.ok_or(ConsentFault::LinkInvalid)?;
        let (connection, integration) = self.linked(&link).await?;
        let state = secret(random_hex(32));
        let cookie_value = secret(random_hex(32));
        let verifier = integration.pkce.then(new_verifier);
        let challenge = verifier.as_ref().map(|verifier| base64url(&sha256(verifier.expose().as_bytes())));
        let profile = integration.profiles.get(&connection.profile);
        let authorization_url = AuthorizationRequest {
            endpoint: &integration.endpoints.authorization,
            client_id: &integration.client_id,
            redirect_uri: &integration.redirect_uri,
            scopes: profile.map(|profile| profile.scopes.as_slice()).unwrap_or_default(),
            state: &state,
            code_challenge: challenge.as_deref(),
        }
        .to_url()
        .ok_or(ConsentFault::LinkInvalid)?;
        let flow = ConsentFlow {
            state_hash: self.state_hash(&state),
            cookie_hash: self.hashes.cookie.hash(cookie_value.expose().as_bytes()),
            connection: connection.id,
            integration: integration.id,
            instance: integration.instance,
            profile: connection.profile,
            redirect_uri: integration.redirect_uri,
            verifier,
            requested_by: link.requested_by,
            expires_at: now + FLOW_LIFETIME,
        };
        self.store
            .create(&flow)
            .await
            .map_err(|error| store_fault(&error))?
            .ok_or(ConsentFault::StoreUnavailable)?;
        Ok(BegunConsent { authorization_url, cookie_name: cookie_name(&flow.state_hash), cookie_value })
    }

    /// Takes the callback: burns the state, checks browser and integration, exchanges the code, reads who
    /// consented. Returns the outcome whose page the browser is redirected to. The exchange goes on if the caller
    /// drops this future.
    ///
    /// # Errors
    /// [`ConsentFault`] where the flow could not be trusted; nothing was exchanged.
    pub async fn finish_consent(&self, callback: Callback) -> Result<ConsentOutcome, ConsentFault> {
        let control = self.clone();
        let finished = self.to_the_end(async move { control.finish(callback).await });
        finished.await.unwrap_or(Err(ConsentFault::StoreUnavailable))
    }

    async fn finish(&self, callback: Callback) -> Result<ConsentOutcome, ConsentFault> {
        let now = self.clock.now();
        let state = callback.state.as_ref().ok_or(ConsentFault::StateInvalid)?;
        let state_hash = self.state_hash(state);
        // Burnt first, whatever the callback brings (O-06, O-07).
        let flow =
            self.store.take::<ConsentFlow>(&state_hash, now).await.map_err(|error| store_fault(&error))?;
        let flow = flow.ok_or(ConsentFault::StateInvalid)?;
        crash_point(CrashPoint::ConsentCodeTaken);
        self.check_path(&flow, callback.path_integration.as_deref())?;
        self.check_browser(&flow, &callback.cookies)?;
        if callback.iss.as_deref().is_some_and(|iss| iss != flow.instance.as_str()) {
            return Err(ConsentFault::OtherIntegration); // RFC 9207 §2.4
        }
        let result = match (callback.code, callback.error) {
            (Some(_), Some(_)) => return Err(ConsentFault::MalformedCallback),
            (Some(code), None) => self.exchange(&flow, code).await,
            (None, error) => {
                Err(refused_by_instance(error.as_deref(), callback.error_description.as_deref()))
            }
        };
        let result = match result {
            Ok(connected) => connected,
            Err(failure) => Self::failed(&flow, failure),
        };
        let outcome = ConsentOutcome { id: random_base62(22), result, expires_at: now + OUTCOME_LIFETIME };
        self.store.create(&outcome).await.map_err(|error| store_fault(&error))?;
        Ok(outcome)
    }

    /// The path that the callback came on is the one that was sent (O-17): a code of one instance never reaches
    /// another's token endpoint. There are no other paths: an integration's redirect URI is the shared one or its own,
    /// [`Self::put_integration`] admits nothing else.
    fn check_path(&self, flow: &ConsentFlow, path_integration: Option<&str>) -> Result<(), ConsentFault> {
        let expected = match path_integration {
            None => self.shared_redirect_uri(),
            Some(id) if id == flow.integration.as_str() => self.own_redirect_uri(&flow.integration),
            Some(_) => return Err(ConsentFault::OtherIntegration),
        };
        if flow.redirect_uri == expected { Ok(()) } else { Err(ConsentFault::OtherIntegration) }
    }

    /// The browser that finishes is the one that started (O-02, O-03, O-04).
    fn check_browser(
        &self,
        flow: &ConsentFlow,
        cookies: &[(String, SecretText)],
    ) -> Result<(), ConsentFault> {
        let name = cookie_name(&flow.state_hash);
        let ours = cookies.iter().filter(|(held, _)| *held == name);
        let matches =
            ours.map(|(_, value)| self.hashes.cookie.matches(value.expose().as_bytes(), &flow.cookie_hash));
        if matches.fold(false, |any, one| any | one) { Ok(()) } else { Err(ConsentFault::OtherBrowser) }
    }

    async fn exchange(&self, flow: &ConsentFlow, code: SecretText) -> Result<ConsentResult, Failure> {
        let code = AuthorizationCode::parse(code.expose().to_owned()).map_err(|_| {
            Failure::new(
                "callback_malformed",
                "The instance sent an authorization code that is not one.",
                RETRY,
            )
        })?;
        let integration = self
            .store
            .load::<Integration>(flow.integration.as_str())
            .await
            .map_err(|_| store_failure())?
            .ok_or_else(|| Failure::new("integration_gone", "The integration was deleted meanwhile.", RETRY))?
            .record;
        if integration.instance != flow.instance || integration.redirect_uri != flow.redirect_uri {
            return Err(integration_changed());
        }
        let obtaining =
            self.while_obtaining(&integration, Box::pin(self.obtain(flow, &integration, &code))).await;
        obtaining.unwrap_or_else(|_| Err(store_failure()))
    }

    /// Exchanges the code, tries the access token with the user call, and only then puts the grant in the place of the
    /// one before, which serves until then.
    async fn obtain(
        &self,
        flow: &ConsentFlow,
        integration: &Integration,
        code: &AuthorizationCode,
    ) -> Result<ConsentResult, Failure> {
        let ends_at = self.clock.now() + integration.refresh_token_lifetime;
        self.expect_expiry(&flow.connection, Some(ends_at)).await;
        let obtained = self
            .tokens
            .exchange_code(integration, code, &flow.redirect_uri, flow.verifier.as_ref())
            .await
            .map_err(|error| exchange_failure(&error))?;
        crash_point(CrashPoint::ConsentExchanged);
        let grant = grant_from(None, TokenCall::NewGrant, obtained, integration.refresh_token_lifetime);
        match self.who_consented(integration, &grant).await {
            Ok(user) => self.hold(flow, integration, &grant, user).await,
            Err(failure) => Err(self.hold_unread(flow, integration, &grant, failure).await),
        }
    }

    /// `None`: the provider has no call that tells.
    async fn who_consented(
        &self,
        integration: &Integration,
        grant: &Grant,
    ) -> Result<Option<InstanceUser>, Failure> {
        if integration.provider == Provider::Generic {
            return Ok(None);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.tokens.read_user(integration, &grant.access_token).await {
                Ok(user) => return Ok(Some(user)),
                Err(error @ (UserCallError::Unreachable(_) | UserCallError::Status(_)))
                    if tries < USER_CALL_TRIES =>
                {
                    warn!(integration.id = %integration.id, %error, "reading who consented failed; trying again");
                    tokio::time::sleep(Duration::from_millis(200) * tries).await;
                }
                Err(error) => return Err(user_failure(&error)),
            }
        }
    }

    /// Puts the new grant in its place: lent at once if the user is the one meant, else kept until confirmed. A
    /// working connection is never given to another user; nor, where operators confirm, to one that nobody names.
    async fn hold(
        &self,
        flow: &ConsentFlow,
        integration: &Integration,
        grant: &Grant,
        user: Option<InstanceUser>,
    ) -> Result<ConsentResult, Failure> {
        let now = self.clock.now();
        let confirm = self.connect.confirm;
        let placed = self
            .place(flow, integration, grant, |connection| {
                let held = connection.user.as_ref().map(|held| &held.sys_id);
                let same = user.as_ref().is_some_and(|user| held == Some(&user.sys_id));
                let lends = matches!(connection.lifecycle, Lifecycle::Active { .. });
                let was_trusted =
                    lends || matches!(connection.lifecycle, Lifecycle::ReauthorizationRequired { .. });
                let trusted = match (&user, &connection.expected_user) {
                    (Some(user), Some(expected)) => is_user(user, expected),
                    (Some(_), None) => {
                        (was_trusted && same) || (!confirm && (!lends || connection.user.is_none()))
                    }
                    (None, Some(_)) => false,
                    (None, None) => !confirm,
                };
                match &user {
                    Some(user) if lends && !trusted => return Err(other_user(connection, user)),
                    None if lends && !trusted => return Err(unnamed_user(&connection.id)),
                    None if trusted => {}
                    user => connection.user.clone_from(user),
                }
                connection.lifecycle = match (trusted, &connection.lifecycle) {
                    (true, Lifecycle::Active { since }) => Lifecycle::Active { since: *since },
                    (true, _) => Lifecycle::Active { since: now },
                    (false, _) => Lifecycle::AwaitingConfirmation { since: now },
                };
                Ok(())
            })
            .await;
        if let (Err(Failure { code: OTHER_USER, .. }), Some(_)) = (&placed, &user) {
            self.revoke_refused(flow, integration, grant).await; // O-23
        }
        let connection = placed?;
        let awaits_confirmation = matches!(connection.lifecycle, Lifecycle::AwaitingConfirmation { .. });
        info!(
            connection.id = %connection.id, integration.id = %flow.integration, awaits_confirmation,
            "consent given for connection {}", connection.id
        );
        // The user name is what `confirm` takes; a user without one has its sys_id.
        let (user, user_name) = match user {
            Some(user) if user.user_name.is_empty() => (user.name, user.sys_id),
            Some(user) => (user.name, user.user_name),
            None => (UNNAMED.to_owned(), String::new()),
        };
        let instance = flow.instance.clone();
        Ok(ConsentResult::Connected {
            connection: connection.id,
            instance,
            user,
            user_name,
            awaits_confirmation,
        })
    }

    /// Tokens that nobody here will use.
    async fn revoke_refused(&self, flow: &ConsentFlow, integration: &Integration, grant: &Grant) {
        match self.queue_grant(&flow.connection, None, Some(grant), integration).await {
            Ok(queued) => self.arm(queued).await,
            Err(error) => {
                warn!(connection.id = %flow.connection, %error, "tokens of a refused consent are not revoked");
            }
        }
    }

    /// Keeps a grant whose user could not be read, unless the connection works with another: the person need not
    /// consent again when the fault is mended. Gives what the page says.
    async fn hold_unread(
        &self,
        flow: &ConsentFlow,
        integration: &Integration,
        grant: &Grant,
        failure: Failure,
    ) -> Failure {
        let now = self.clock.now();
        let placed = self
            .place(flow, integration, grant, |connection| {
                if matches!(connection.lifecycle, Lifecycle::Active { .. }) {
                    return Err(Failure::new(failure.code, failure.message.clone(), failure.fix.clone()));
                }
                connection.user = None;
                connection.lifecycle = Lifecycle::AwaitingConfirmation { since: now };
                Ok(())
            })
            .await;
        match placed {
            Ok(connection) => Failure {
                fix: format!(
                    "{} The tokens are kept: then run bearerd connection test {id}, and confirm the user that it shows.",
                    failure.fix,
                    id = connection.id
                ),
                ..failure
            },
            Err(other) => Failure { detail: failure.detail, ..other },
        }
    }

    /// Puts the new grant into the flow's connection, where `decide` agrees. A store that does not answer is asked
    /// for a while: the code is spent.
    async fn place(
        &self,
        flow: &ConsentFlow,
        integration: &Integration,
        grant: &Grant,
        mut decide: impl FnMut(&mut Connection) -> Result<(), Failure> + Send,
    ) -> Result<Connection, Failure> {
        let mut pauses = STORE_PAUSES.iter();
        let (mut is_retry, mut may_be_written) = (false, false);
        let placed = loop {
            let result = self
                .store
                .update::<Connection, Failure>(flow.connection.as_str(), |connection| {
                    if !flow_is_of(flow, connection) {
                        let message = "The connection was changed meanwhile.";
                        return Err(Failure::new("connection_changed", message, RETRY));
                    }
                    // After a write of unknown outcome: a newer consent is not overwritten.
                    let held_since = connection.grant.as_ref().map(|held| held.granted_at);
                    if is_retry && held_since > Some(grant.granted_at) {
                        return Err(Failure::new(
                            "connection_changed",
                            "The connection was changed meanwhile.",
                            RETRY,
                        ));
                    }
                    decide(connection)?;
                    if is_retry && held_since == Some(grant.granted_at) {
                        return Ok(()); // the first write landed after all, and may have been refreshed since
                    }
                    connection.put_grant(grant.clone(), self.clock.now());
                    connection.health = Health::Ok;
                    Ok(())
                })
                .await;
            match (result, pauses.next()) {
                (Ok(Some(versioned)), _) => break versioned.record,
                (Ok(None), _) => {
                    let message = "The connection was deleted meanwhile.";
                    return Err(Failure::new("connection_gone", message, RETRY));
                }
                (Err(UpdateError::Declined(failure)), _) => return Err(failure),
                (Err(UpdateError::Store(error)), Some(pause)) => {
                    warn!(connection.id = %flow.connection, %error, "a new grant was not written yet; trying again");
                    is_retry = true;
                    may_be_written |= matches!(error, StoreError::OutcomeUnknown(_));
                    tokio::time::sleep(*pause).await;
                }
                (Err(error), _) => {
                    may_be_written |= matches!(error, UpdateError::Store(StoreError::OutcomeUnknown(_)));
                    let held = if may_be_written { self.placed(flow, grant).await } else { None };
                    break held.ok_or_else(store_failure)?;
                }
            }
        };
        crash_point(CrashPoint::ConsentStored);
        // A change of the client purges what it finds; what came in behind it is purged here (I-4).
        if !self.has_same_client(integration).await.map_err(|_| store_failure())? {
            let purged = self.purge(&placed, integration, grant.granted_at).await;
            return Err(purged.map_or_else(|_| store_failure(), |()| integration_changed()));
        }
        self.in_force(Kind::Connection, placed.id.as_str()).await;
        Ok(placed)
    }

    /// The connection, if a write of unknown outcome has put the grant into it.
    async fn placed(&self, flow: &ConsentFlow, grant: &Grant) -> Option<Connection> {
        let stored = self.store.load::<Connection>(flow.connection.as_str()).await.ok()??.record;
        let held = stored.grant.as_ref()?;
        // A refresh may have been there since.
        let came_from = |ours: &RefreshToken| {
            let held = [&held.refresh_token, &held.previous_refresh_token];
            held.into_iter().flatten().any(|token| token.matches(ours))
        };
        let is_ours = held.granted_at == grant.granted_at
            && (held.has_same_tokens(grant) || grant.refresh_token.as_ref().is_some_and(came_from));
        (flow_is_of(flow, &stored) && is_ours).then_some(stored)
    }

    fn failed(flow: &ConsentFlow, failure: Failure) -> ConsentResult {
        let error_id = random_base62(10);
        warn!(
            connection.id = %flow.connection, integration.id = %flow.integration, code = failure.code, error_id,
            "consent for connection {} failed: {} ({error_id})", flow.connection, failure.message
        );
        ConsentResult::Failed {
            code: failure.code.to_owned(),
            message: failure.message,
            fix: failure.fix,
            detail: failure.detail,
            error_id,
        }
    }

    /// The name of the cookie that belongs to the flow of this `state`: [`BegunConsent::cookie_name`], found again at
    /// the callback. Tells nothing about whether there is such a flow.
    pub fn consent_cookie_name(&self, state: &SecretText) -> String {
        cookie_name(&self.state_hash(state))
    }

    /// The outcome behind a result page, for a few minutes. `None`: unknown or expired.
    pub async fn consent_outcome(&self, id: &str) -> Option<ConsentOutcome> {
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let outcome = self.store.load::<ConsentOutcome>(id).await.ok()??.record;
        (outcome.expires_at > self.clock.now()).then_some(outcome)
    }

    fn state_hash(&self, state: &SecretText) -> String {
        self.hashes.state.hex(state.expose().as_bytes())
    }
}

/// Why a trusted callback did not end in a connection; becomes the failure page.
struct Failure {
    code: &'static str,
    message: String,
    fix: String,
    detail: Option<String>,
}

/// Someone else consented to a connection that works.
const OTHER_USER: &str = "other_user";
/// Stands for a user that the server does not name.
const UNNAMED: &str = "the person who consented";
/// What helps where nothing needs to be changed.
const RETRY: &str = "Ask for a new connect link: bearerd connection reauthorize.";

impl Failure {
    fn new(code: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, message: message.into(), fix: fix.into(), detail: None }
    }
}

fn integration_changed() -> Failure {
    Failure::new("integration_changed", "The integration was changed meanwhile.", RETRY)
}

fn store_failure() -> Failure {
    Failure::new(
        "store_unavailable",
        "bearerd could not write the new connection down.",
        "Bring the store back (see /readyz), then send a new connect link.",
    )
}

fn other_user(connection: &Connection, user: &InstanceUser) -> Failure {
    let expected = connection.expected_user.as_deref();
    let expected =
        expected.or(connection.user.as_ref().map(|held| held.user_name.as_str())).unwrap_or("another user");
    Failure::new(
        OTHER_USER,
        format!(
            "{} consented, but this connection belongs to {expected}. It goes on with its old tokens.",
            user.user_name
        ),
        "Log out of the instance and open a new link as the right user, or make a connection of its own for this one.",
    )
}

/// A generic provider does not say who consented.
fn unnamed_user(connection: &ConnectionId) -> Failure {
    Failure::new(
        "user_unknown",
        format!(
            "The server does not say who consented, and connection {connection} works: it goes on with its old tokens."
        ),
        "Make a connection of its own for the new grant and confirm that one; or set connect.confirm = false, where operators consent for themselves.",
    )
}

/// The instance sent an error, or nothing at all (RFC 6749 §4.1.2.1).
fn refused_by_instance(error: Option<&str>, description: Option<&str>) -> Failure {
    let mut failure = match error.map(CallbackError::from_code) {
        None | Some(CallbackError::AccessDenied) => Failure::new(
            "consent_denied",
            "Access was not allowed at the instance.",
            "If that was a mistake, ask for a new connect link and choose Allow.",
        ),
        Some(CallbackError::UnauthorizedClient) => Failure::new(
            "client_refused",
            "The instance does not admit this client.",
            "In ServiceNow, System OAuth > Application Registry: check that the client is active, its client id is the integration's, and it may use the authorization code grant.",
        ),
        Some(CallbackError::InvalidScope) => Failure::new(
            "scope_refused",
            "The instance does not grant the scopes asked for.",
            "Correct the profile's scopes, or the auth scopes of the client record in ServiceNow.",
        ),
        Some(CallbackError::InvalidRequest | CallbackError::UnsupportedResponseType) => Failure::new(
            "request_refused",
            "The instance refused the authorization request.",
            "Check the redirect URL of the client record in ServiceNow; if the server rejects PKCE, set pkce = false on the integration.",
        ),
        Some(CallbackError::ServerError) => Failure::new(
            "instance_unavailable",
            "The instance had a fault of its own.",
            "Wait a moment, then ask for a new connect link.",
        ),
        Some(CallbackError::Other) => Failure::new(
            "consent_failed",
            "The instance answered with an error.",
            "See the details, correct the client record in ServiceNow, and ask for a new connect link.",
        ),
    };
    let said: Vec<&str> = [error, description].into_iter().flatten().collect();
    failure.detail = (!said.is_empty()).then(|| clean(&said.join(": ")));
    failure
}

fn exchange_failure(error: &TokenCallError) -> Failure {
    let mut failure = match error {
        TokenCallError::Endpoint(
            TokenEndpointError::Denied
            | TokenEndpointError::ClientRefused { .. }
            | TokenEndpointError::RequestRefused { .. }
            | TokenEndpointError::GrantRefused,
        ) => Failure::new(
            "exchange_refused",
            "The instance refused to exchange the authorization code.",
            "In ServiceNow, System OAuth > Application Registry: compare client id, client secret and redirect URL with the integration, and check that the client is active.",
        ),
        TokenCallError::Endpoint(TokenEndpointError::Asleep { .. }) => Failure::new(
            "instance_asleep",
            "The instance is asleep, in maintenance, or behind a login page.",
            "Wake the instance, then ask for a new connect link.",
        ),
        TokenCallError::Endpoint(_) => Failure::new(
            "instance_unavailable",
            "The instance did not exchange the authorization code.",
            "Wait until the instance answers again, then ask for a new connect link.",
        ),
        TokenCallError::NotSent { .. } | TokenCallError::NoReply { .. } => Failure::new(
            "instance_unreachable",
            "bearerd could not reach the instance.",
            "Check the instance's address, the network, the egress proxy and the CA file; then ask for a new connect link.",
        ),
        TokenCallError::Misconfigured(_) => Failure::new(
            "misconfigured",
            "The integration cannot be used as it is.",
            "Correct the integration, then ask for a new connect link.",
        ),
    };
    failure.detail = Some(clean(&error.to_string()));
    failure
}

fn user_failure(error: &UserCallError) -> Failure {
    let ActError::Upstream { code, message, fix, .. } = user_error(error) else {
        return store_failure();
    };
    let mut failure = Failure::new(code, "bearerd could not read who consented.", fix);
    failure.detail = Some(clean(&message));
    failure
}

/// Hostile text: cut, and free of control characters (O-32). The page escapes it.
fn clean(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(DETAIL_CHARS_MAX).collect()
}

/// Whether `connection` is the one, under the profile, that the flow was started for: not another of the same name.
fn flow_is_of(flow: &ConsentFlow, connection: &Connection) -> bool {
    connection.integration == flow.integration
        && connection.profile == flow.profile
        && connection.created_at <= flow.expires_at - FLOW_LIFETIME
}

/// A cookie of each flow's own (O-56), found again by its state.
fn cookie_name(state_hash: &str) -> String {
    format!("bearerd_flow_{}", &state_hash[..16])
}

/// 43 characters of base64url: 256 bits (RFC 7636 §4.1, O-12).
fn new_verifier() -> PkceVerifier {
    PkceVerifier::parse(base64url(random_bytes::<32>().as_ref())).expect("base64url is visible ASCII")
}

fn secret(text: String) -> SecretText {
    SecretText::parse(text).expect("hex is visible ASCII")
}

fn store_fault(error: &StoreError) -> ConsentFault {
    warn!(%error, "a consent could not go on: {error}");
    ConsentFault::StoreUnavailable
}
