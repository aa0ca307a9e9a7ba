//! How each record is written: JSON with a version member `v`, sealed as a whole. A version once written opens for
//! ever (`tests/fixtures/records` holds one of each): a field may be added with a default; any other change is a
//! new version with its own reading branch.

use std::{borrow::Cow, collections::BTreeMap, io, time::Duration};

use bearerd_crypto::RootSecret;
use bearerd_model::{
    AccessToken, CallerKey, CallerKeyUse, ClientSecret, ConnectLink, Connection, ConnectionId, ConsentFlow,
    ConsentOutcome, DeathCause, Endpoints, Epoch, Exchanges, Freeze, Generation, Grant, GrantType, Health,
    InstanceOrigin, InstanceUser, Integration, IntegrationId, Lifecycle, PkceVerifier, Policy, Profile,
    ProfileName, Provider, RefreshToken, TokenEndpointAuth, UnixTime,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Kind;

/// Something the store keeps.
pub trait Record: Sized + Send + Sync {
    const KIND: Kind;

    fn id(&self) -> &str;

    /// When a single-use record ends; `None` for the others.
    fn expires_at(&self) -> Option<UnixTime> {
        None
    }

    /// When a process should look after the record next; `None`: when somebody asks for it.
    fn due_at(&self) -> Option<UnixTime> {
        None
    }

    /// The newest version's bytes.
    fn encode(&self) -> Zeroizing<Vec<u8>>;

    /// Reads any version.
    ///
    /// # Errors
    /// [`RecordFault`] if the version is unknown or the content is not of that version.
    fn decode(bytes: &[u8]) -> Result<Self, RecordFault>;
}

/// Why a record's content was not read. Never quotes the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    #[error("its record version {0} is unknown: it was written by a newer bearerd")]
    UnknownVersion(u32),
    #[error("its content is not what its version says")]
    Malformed,
}

/// The store's own secret (see [`RootSecret`]).
#[derive(Debug, Clone)]
pub struct Root {
    pub secret: RootSecret,
}

impl Root {
    pub const ID: &'static str = "root";
}

/// Makes a value unique: whoever creates the claim owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Keyed hash, in hex, of what is claimed.
    pub id: String,
    pub owner: IntegrationId,
}

/// A token that is wiped here and still to be revoked at its instance (RFC 7009).
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Keyed hash of the token, in hex: a token is in the queue once.
    pub id: String,
    pub token: RevokedToken,
    /// Of an access token: keyed hash of the refresh token that it came with. Whoever holds that one may be given this
    /// access token again.
    pub came_with: Option<String>,
    /// Who held the token last.
    pub connection: ConnectionId,
    /// What of that connection the token is. While that is stored, the token is not revoked: a server may end the whole
    /// grant with it. `None`: of nothing that was stored, or queued before there was this member.
    pub grant: Option<RevokedGrant>,
    /// As it was then: when the call is made, it may be another client's, or gone.
    pub integration: Integration,
    pub queued_at: UnixTime,
    /// When the token ends by itself, where that is known.
    pub ends_at: Option<UnixTime>,
    /// Calls that brought nothing.
    pub attempts: u32,
    pub due_at: UnixTime,
}

/// A grant that a connection held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedGrant {
    /// When the connection was made: another one may have its id by now.
    pub connection_created_at: UnixTime,
    /// Stays over refreshes.
    pub lineage: Epoch,
}

#[derive(Debug, Clone)]
pub enum RevokedToken {
    Access(AccessToken),
    Refresh(RefreshToken),
}

/// Keeps the tokens of one client that come and those that are revoked apart: ServiceNow gives one client and user the
/// same tokens, so a token that is being revoked must not be taken for a new one. There is one for each client that has
/// had a revocation or a new grant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RevocationGate {
    /// Keyed hash of the client id, in hex.
    pub id: String,
    /// Grows whenever somebody begins to obtain tokens.
    pub entered: u64,
    /// Who obtains tokens now, each until then at the latest.
    pub obtaining: BTreeMap<String, UnixTime>,
    /// A revocation call under way.
    pub calling: Option<RevocationCall>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationCall {
    /// Random.
    pub id: String,
    /// Then at the latest the call is over.
    pub until: UnixTime,
}

/// When a connection's refresh token is to be looked at, because its end comes near.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryNotice {
    pub connection: ConnectionId,
    /// The end that the next member is about.
    pub ends_at: Option<UnixTime>,
    /// The last threshold that was announced, in days.
    pub told_days: Option<u32>,
    pub due_at: UnixTime,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

/// `{"v":1, …}`.
#[derive(Serialize)]
struct Tagged<T> {
    v: u32,
    #[serde(flatten)]
    body: T,
}

/// Counts what is written to it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes into a buffer of the right size at once: one that grew would leave unwiped copies of its secrets behind
/// (S-09).
fn write<T: Serialize>(v: u32, body: T) -> Zeroizing<Vec<u8>> {
    let tagged = Tagged { v, body };
    let mut length = Length(0);
    serde_json::to_writer(&mut length, &tagged).expect("records have text keys and no failing members");
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, &tagged).expect("it was written to its end a moment ago");
    bytes
}

/// Reads a record of the only version that there is. Straight into its type, which skips `v`: reading through
/// `flatten` would copy every member into a buffer that nobody wipes.
fn read_v1<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, RecordFault> {
    read_up_to(1, bytes)
}

/// The same, of a type that reads every version up to `newest`.
fn read_up_to<'de, T: Deserialize<'de>>(newest: u32, bytes: &'de [u8]) -> Result<T, RecordFault> {
    let VersionOnly { v } = serde_json::from_slice(bytes).map_err(|_| RecordFault::Malformed)?;
    if !(1..=newest).contains(&v) {
        return Err(RecordFault::UnknownVersion(v));
    }
    serde_json::from_slice(bytes).map_err(|_| RecordFault::Malformed)
}

/// Records whose model type is also their stored form.
macro_rules! plain_record {
    ($type:ty, $kind:ident, $id:expr, $expires_at:expr) => {
        impl Record for $type {
            const KIND: Kind = Kind::$kind;

            fn id(&self) -> &str {
                let id: fn(&Self) -> &str = $id;
                id(self)
            }

            fn expires_at(&self) -> Option<UnixTime> {
                let expires_at: fn(&Self) -> Option<UnixTime> = $expires_at;
                expires_at(self)
            }

            fn encode(&self) -> Zeroizing<Vec<u8>> {
                write(1, self)
            }

            fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
                read_v1(bytes)
            }
        }
    };
}

impl Record for ExpiryNotice {
    const KIND: Kind = Kind::ExpiryNotice;

    fn id(&self) -> &str {
        self.connection.as_str()
    }

    fn due_at(&self) -> Option<UnixTime> {
        Some(self.due_at)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(1, self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        read_v1(bytes)
    }
}

plain_record!(CallerKey, CallerKey, |key| key.id.as_str(), |_| None);
plain_record!(CallerKeyUse, CallerKeyUse, |last_use| last_use.id.as_str(), |_| None);
plain_record!(Claim, Claim, |claim| &claim.id, |_| None);
plain_record!(RevocationGate, RevocationGate, |gate| &gate.id, |_| None);
plain_record!(ConsentOutcome, ConsentOutcome, |outcome| &outcome.id, |outcome| Some(outcome.expires_at));

impl Record for Policy {
    const KIND: Kind = Kind::Policy;

    fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Version 2 where it says more than version 1 could: a bearerd that does not know the rest would open more than the
    /// policy does, so it must not read it at all.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(if self.is_plain() { 1 } else { 2 }, self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        read_up_to(2, bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct RootV1 {
    secret: [u8; 32],
}

impl Record for Root {
    const KIND: Kind = Kind::Root;

    fn id(&self) -> &str {
        Self::ID
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(1, RootV1 { secret: *self.secret.expose() })
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let stored: RootV1 = read_v1(bytes)?;
        Ok(Self { secret: RootSecret::from_bytes(stored.secret) })
    }
}

#[derive(Serialize, Deserialize)]
struct IntegrationV1<'a> {
    id: Cow<'a, IntegrationId>,
    provider: Provider,
    instance: Cow<'a, InstanceOrigin>,
    client_id: Cow<'a, str>,
    client_secret: Option<Cow<'a, str>>,
    authorization_endpoint: Cow<'a, str>,
    token_endpoint: Cow<'a, str>,
    revocation_endpoint: Cow<'a, str>,
    token_endpoint_auth: TokenEndpointAuth,
    pkce: bool,
    redirect_uri: Cow<'a, str>,
    profiles: BTreeMap<ProfileName, ProfileV1>,
    refresh_token_lifetime_s: u64,
    /// Absent in the records of before there was a choice.
    #[serde(default)]
    rotates_refresh_tokens: bool,
    ca_file: Option<Cow<'a, str>>,
    /// This and the next two: absent in the records of before there was such a choice.
    #[serde(default)]
    client_certificate_file: Option<Cow<'a, str>>,
    #[serde(default)]
    client_key_file: Option<Cow<'a, str>>,
    #[serde(default)]
    http2: bool,
    created_at: UnixTime,
    updated_at: UnixTime,
}

#[derive(Serialize, Deserialize)]
struct ProfileV1 {
    grant_type: GrantType,
    scopes: Vec<String>,
}

impl Record for Integration {
    const KIND: Kind = Kind::Integration;

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(1, IntegrationV1::of(self))
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        read_v1::<IntegrationV1<'_>>(bytes)?.into_integration()
    }
}

impl<'a> IntegrationV1<'a> {
    fn of(integration: &'a Integration) -> Self {
        let profile =
            |profile: &Profile| ProfileV1 { grant_type: profile.grant_type, scopes: profile.scopes.clone() };
        Self {
            id: Cow::Borrowed(&integration.id),
            provider: integration.provider,
            instance: Cow::Borrowed(&integration.instance),
            client_id: Cow::Borrowed(&integration.client_id),
            client_secret: integration.client_secret.as_ref().map(|secret| Cow::Borrowed(secret.expose())),
            authorization_endpoint: Cow::Borrowed(&integration.endpoints.authorization),
            token_endpoint: Cow::Borrowed(&integration.endpoints.token),
            revocation_endpoint: Cow::Borrowed(&integration.endpoints.revocation),
            token_endpoint_auth: integration.token_endpoint_auth,
            pkce: integration.pkce,
            redirect_uri: Cow::Borrowed(&integration.redirect_uri),
            profiles: integration
                .profiles
                .iter()
                .map(|(name, value)| (name.clone(), profile(value)))
                .collect(),
            refresh_token_lifetime_s: integration.refresh_token_lifetime.as_secs(),
            rotates_refresh_tokens: integration.rotates_refresh_tokens,
            ca_file: integration.ca_file.as_deref().map(Cow::Borrowed),
            client_certificate_file: integration.client_certificate_file.as_deref().map(Cow::Borrowed),
            client_key_file: integration.client_key_file.as_deref().map(Cow::Borrowed),
            http2: integration.http2,
            created_at: integration.created_at,
            updated_at: integration.updated_at,
        }
    }

    fn into_integration(self) -> Result<Integration, RecordFault> {
        let profile = |profile: ProfileV1| Profile { grant_type: profile.grant_type, scopes: profile.scopes };
        Ok(Integration {
            id: self.id.into_owned(),
            provider: self.provider,
            instance: self.instance.into_owned(),
            client_id: self.client_id.into_owned(),
            client_secret: secret(self.client_secret, ClientSecret::parse)?,
            endpoints: Endpoints {
                authorization: self.authorization_endpoint.into_owned(),
                token: self.token_endpoint.into_owned(),
                revocation: self.revocation_endpoint.into_owned(),
            },
            token_endpoint_auth: self.token_endpoint_auth,
            pkce: self.pkce,
            redirect_uri: self.redirect_uri.into_owned(),
            profiles: self.profiles.into_iter().map(|(name, value)| (name, profile(value))).collect(),
            refresh_token_lifetime: Duration::from_secs(self.refresh_token_lifetime_s),
            rotates_refresh_tokens: self.rotates_refresh_tokens,
            ca_file: self.ca_file.map(Cow::into_owned),
            client_certificate_file: self.client_certificate_file.map(Cow::into_owned),
            client_key_file: self.client_key_file.map(Cow::into_owned),
            http2: self.http2,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct ConnectionV1<'a> {
    id: Cow<'a, ConnectionId>,
    integration: Cow<'a, IntegrationId>,
    profile: Cow<'a, ProfileName>,
    labels: Cow<'a, BTreeMap<String, String>>,
    expected_user: Option<Cow<'a, str>>,
    user: Option<Cow<'a, InstanceUser>>,
    lifecycle: LifecycleV1,
    frozen: Option<Cow<'a, Freeze>>,
    health: HealthV1,
    grant: Option<GrantV1<'a>>,
    /// Absent, with the next, in the records of before processes shared a store.
    #[serde(default)]
    exchanges: Cow<'a, Exchanges>,
    #[serde(default)]
    due_at: Option<UnixTime>,
    created_at: UnixTime,
    last_used_at: Option<UnixTime>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum LifecycleV1 {
    AwaitingConsent { since: UnixTime },
    AwaitingConfirmation { since: UnixTime },
    Active { since: UnixTime },
    ReauthorizationRequired { since: UnixTime, cause: DeathCause },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum HealthV1 {
    Ok,
    Failing { since: UnixTime, failures: u32, strikes: u32, reason: String },
}

#[derive(Serialize, Deserialize)]
struct GrantV1<'a> {
    generation: Generation,
    access_token: Cow<'a, str>,
    access_lifetime_ms: u64,
    access_expires_at: UnixTime,
    refresh_token: Option<Cow<'a, str>>,
    previous_refresh_token: Option<Cow<'a, str>>,
    refresh_expires_at: Option<UnixTime>,
    granted_at: UnixTime,
    refreshed_at: UnixTime,
    scope: Option<Cow<'a, str>>,
}

impl Record for Connection {
    const KIND: Kind = Kind::Connection;

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn due_at(&self) -> Option<UnixTime> {
        self.due_at
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(
            1,
            ConnectionV1 {
                id: Cow::Borrowed(&self.id),
                integration: Cow::Borrowed(&self.integration),
                profile: Cow::Borrowed(&self.profile),
                labels: Cow::Borrowed(&self.labels),
                expected_user: self.expected_user.as_deref().map(Cow::Borrowed),
                user: self.user.as_ref().map(Cow::Borrowed),
                lifecycle: match self.lifecycle {
                    Lifecycle::AwaitingConsent { since } => LifecycleV1::AwaitingConsent { since },
                    Lifecycle::AwaitingConfirmation { since } => LifecycleV1::AwaitingConfirmation { since },
                    Lifecycle::Active { since } => LifecycleV1::Active { since },
                    Lifecycle::ReauthorizationRequired { since, cause } => {
                        LifecycleV1::ReauthorizationRequired { since, cause }
                    }
                },
                frozen: self.frozen.as_ref().map(Cow::Borrowed),
                health: match &self.health {
                    Health::Ok => HealthV1::Ok,
                    Health::Failing { since, failures, strikes, reason } => HealthV1::Failing {
                        since: *since,
                        failures: *failures,
                        strikes: *strikes,
                        reason: reason.clone(),
                    },
                },
                grant: self.grant.as_ref().map(|grant| GrantV1 {
                    generation: grant.generation,
                    access_token: Cow::Borrowed(grant.access_token.expose()),
                    access_lifetime_ms: u64::try_from(grant.access_lifetime.as_millis()).unwrap_or(u64::MAX),
                    access_expires_at: grant.access_expires_at,
                    refresh_token: grant.refresh_token.as_ref().map(|token| Cow::Borrowed(token.expose())),
                    previous_refresh_token: grant
                        .previous_refresh_token
                        .as_ref()
                        .map(|token| Cow::Borrowed(token.expose())),
                    refresh_expires_at: grant.refresh_expires_at,
                    granted_at: grant.granted_at,
                    refreshed_at: grant.refreshed_at,
                    scope: grant.scope.as_deref().map(Cow::Borrowed),
                }),
                exchanges: Cow::Borrowed(&self.exchanges),
                due_at: self.due_at,
                created_at: self.created_at,
                last_used_at: self.last_used_at,
            },
        )
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let stored: ConnectionV1<'_> = read_v1(bytes)?;
        Ok(Self {
            id: stored.id.into_owned(),
            integration: stored.integration.into_owned(),
            profile: stored.profile.into_owned(),
            labels: stored.labels.into_owned(),
            expected_user: stored.expected_user.map(Cow::into_owned),
            user: stored.user.map(Cow::into_owned),
            lifecycle: match stored.lifecycle {
                LifecycleV1::AwaitingConsent { since } => Lifecycle::AwaitingConsent { since },
                LifecycleV1::AwaitingConfirmation { since } => Lifecycle::AwaitingConfirmation { since },
                LifecycleV1::Active { since } => Lifecycle::Active { since },
                LifecycleV1::ReauthorizationRequired { since, cause } => {
                    Lifecycle::ReauthorizationRequired { since, cause }
                }
            },
            frozen: stored.frozen.map(Cow::into_owned),
            health: match stored.health {
                HealthV1::Ok => Health::Ok,
                HealthV1::Failing { since, failures, strikes, reason } => {
                    Health::Failing { since, failures, strikes, reason }
                }
            },
            grant: stored.grant.map(read_grant).transpose()?,
            exchanges: stored.exchanges.into_owned(),
            due_at: stored.due_at,
            created_at: stored.created_at,
            last_used_at: stored.last_used_at,
        })
    }
}

fn read_grant(stored: GrantV1<'_>) -> Result<Grant, RecordFault> {
    Ok(Grant {
        generation: stored.generation,
        access_token: AccessToken::parse(stored.access_token.into_owned())
            .map_err(|_| RecordFault::Malformed)?,
        access_lifetime: Duration::from_millis(stored.access_lifetime_ms),
        access_expires_at: stored.access_expires_at,
        refresh_token: secret(stored.refresh_token, RefreshToken::parse)?,
        previous_refresh_token: secret(stored.previous_refresh_token, RefreshToken::parse)?,
        refresh_expires_at: stored.refresh_expires_at,
        granted_at: stored.granted_at,
        refreshed_at: stored.refreshed_at,
        scope: stored.scope.map(Cow::into_owned),
    })
}

#[derive(Serialize, Deserialize)]
struct ConnectLinkV1<'a> {
    hash: Cow<'a, str>,
    connection: Cow<'a, ConnectionId>,
    requested_by: Cow<'a, str>,
    created_at: UnixTime,
    expires_at: UnixTime,
}

impl Record for ConnectLink {
    const KIND: Kind = Kind::ConnectLink;

    fn id(&self) -> &str {
        &self.hash
    }

    fn expires_at(&self) -> Option<UnixTime> {
        Some(self.expires_at)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(
            1,
            ConnectLinkV1 {
                hash: Cow::Borrowed(&self.hash),
                connection: Cow::Borrowed(&self.connection),
                requested_by: Cow::Borrowed(&self.requested_by),
                created_at: self.created_at,
                expires_at: self.expires_at,
            },
        )
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let stored: ConnectLinkV1<'_> = read_v1(bytes)?;
        Ok(Self {
            hash: stored.hash.into_owned(),
            connection: stored.connection.into_owned(),
            requested_by: stored.requested_by.into_owned(),
            created_at: stored.created_at,
            expires_at: stored.expires_at,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct ConsentFlowV1<'a> {
    state_hash: Cow<'a, str>,
    cookie_hash: [u8; 32],
    connection: Cow<'a, ConnectionId>,
    integration: Cow<'a, IntegrationId>,
    instance: Cow<'a, InstanceOrigin>,
    profile: Cow<'a, ProfileName>,
    redirect_uri: Cow<'a, str>,
    verifier: Option<Cow<'a, str>>,
    requested_by: Cow<'a, str>,
    expires_at: UnixTime,
}

impl Record for ConsentFlow {
    const KIND: Kind = Kind::ConsentFlow;

    fn id(&self) -> &str {
        &self.state_hash
    }

    fn expires_at(&self) -> Option<UnixTime> {
        Some(self.expires_at)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        write(
            1,
            ConsentFlowV1 {
                state_hash: Cow::Borrowed(&self.state_hash),
                cookie_hash: self.cookie_hash,
                connection: Cow::Borrowed(&self.connection),
                integration: Cow::Borrowed(&self.integration),
                instance: Cow::Borrowed(&self.instance),
                profile: Cow::Borrowed(&self.profile),
                redirect_uri: Cow::Borrowed(&self.redirect_uri),
                verifier: self.verifier.as_ref().map(|verifier| Cow::Borrowed(verifier.expose())),
                requested_by: Cow::Borrowed(&self.requested_by),
                expires_at: self.expires_at,
            },
        )
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let stored: ConsentFlowV1<'_> = read_v1(bytes)?;
        Ok(Self {
            state_hash: stored.state_hash.into_owned(),
            cookie_hash: stored.cookie_hash,
            connection: stored.connection.into_owned(),
            integration: stored.integration.into_owned(),
            instance: stored.instance.into_owned(),
            profile: stored.profile.into_owned(),
            redirect_uri: stored.redirect_uri.into_owned(),
            verifier: secret(stored.verifier, PkceVerifier::parse)?,
            requested_by: stored.requested_by.into_owned(),
            expires_at: stored.expires_at,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct RevocationV1<'a> {
    id: Cow<'a, str>,
    kind: RevokedKindV1,
    token: Cow<'a, str>,
    came_with: Option<Cow<'a, str>>,
    connection: Cow<'a, ConnectionId>,
    /// Absent in the records of before refreshed grants were told from ended ones.
    #[serde(default)]
    grant: Option<RevokedGrant>,
    integration: IntegrationV1<'a>,
    queued_at: UnixTime,
    ends_at: Option<UnixTime>,
    attempts: u32,
    due_at: UnixTime,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RevokedKindV1 {
    Access,
    Refresh,
}

impl Record for Revocation {
    const KIND: Kind = Kind::Revocation;

    fn id(&self) -> &str {
        &self.id
    }

    fn due_at(&self) -> Option<UnixTime> {
        Some(self.due_at)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (kind, token) = match &self.token {
            RevokedToken::Access(token) => (RevokedKindV1::Access, token.expose()),
            RevokedToken::Refresh(token) => (RevokedKindV1::Refresh, token.expose()),
        };
        write(
            1,
            RevocationV1 {
                id: Cow::Borrowed(&self.id),
                kind,
                token: Cow::Borrowed(token),
                came_with: self.came_with.as_deref().map(Cow::Borrowed),
                connection: Cow::Borrowed(&self.connection),
                grant: self.grant,
                integration: IntegrationV1::of(&self.integration),
                queued_at: self.queued_at,
                ends_at: self.ends_at,
                attempts: self.attempts,
                due_at: self.due_at,
            },
        )
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let stored: RevocationV1<'_> = read_v1(bytes)?;
        let malformed = |_| RecordFault::Malformed;
        let token = stored.token.into_owned();
        Ok(Self {
            id: stored.id.into_owned(),
            token: match stored.kind {
                RevokedKindV1::Access => RevokedToken::Access(AccessToken::parse(token).map_err(malformed)?),
                RevokedKindV1::Refresh => {
                    RevokedToken::Refresh(RefreshToken::parse(token).map_err(malformed)?)
                }
            },
            came_with: stored.came_with.map(Cow::into_owned),
            connection: stored.connection.into_owned(),
            grant: stored.grant,
            integration: stored.integration.into_integration()?,
            queued_at: stored.queued_at,
            ends_at: stored.ends_at,
            attempts: stored.attempts,
            due_at: stored.due_at,
        })
    }
}

fn secret<S, E>(
    stored: Option<Cow<'_, str>>,
    parse: impl FnOnce(String) -> Result<S, E>,
) -> Result<Option<S>, RecordFault> {
    stored.map(|text| parse(text.into_owned())).transpose().map_err(|_| RecordFault::Malformed)
}
