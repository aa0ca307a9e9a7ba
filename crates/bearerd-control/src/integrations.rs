//! Integrations: our OAuth client as registered at one instance.

use std::{collections::BTreeMap, time::Duration};

use bearerd_model::{
    ClientSecret, Connection, DeathCause, Endpoints, GrantType, InstanceOrigin, Integration, IntegrationId,
    Lifecycle, Profile, ProfileName, Provider, TokenEndpointAuth, UnixTime,
};
use bearerd_net::EgressError;
use bearerd_store::{Claim, Kind};
use tracing::info;
use url::Url;

use crate::{
    ActError, Control, Page, Revision, Versioned, Written, revocation::name_of, settings::InstanceRules,
};

/// What an operator says of an integration. What is `None` is derived: see each member.
#[derive(Debug, Clone)]
pub struct IntegrationSpec {
    pub provider: Provider,
    pub instance: InstanceOrigin,
    pub client_id: String,
    /// On change, `None` keeps the stored secret; on creation it makes a public client.
    pub client_secret: Option<ClientSecret>,
    /// `None`: ServiceNow's `/oauth_auth.do` under the instance, and so on. A generic provider has no such defaults: the
    /// first two are needed, and without the third nothing is revoked.
    pub authorization_endpoint: Option<String>,
    pub token_endpoint: Option<String>,
    pub revocation_endpoint: Option<String>,
    pub token_endpoint_auth: TokenEndpointAuth,
    pub pkce: bool,
    /// `None`: the first integration gets `{connect.public_url}/oauth/callback`, each further one
    /// `…/oauth/callback/{id}`; on change, the stored one stays.
    pub redirect_uri: Option<String>,
    /// A `default` profile is added where none is named.
    pub profiles: BTreeMap<ProfileName, Profile>,
    /// `None`: 100 days.
    pub refresh_token_lifetime: Option<Duration>,
    /// Whether a refresh spends the refresh token. `None`: as the provider does.
    pub rotates_refresh_tokens: Option<bool>,
    pub ca_file: Option<String>,
    /// With [`Self::client_key_file`], or neither.
    pub client_certificate_file: Option<String>,
    pub client_key_file: Option<String>,
    pub http2: bool,
}

/// Longest client id, in bytes: ServiceNow's are 32.
const CLIENT_ID_BYTES_MAX: usize = 255;
/// A connection that is being purged may be refreshed meanwhile, once or twice.
const PURGE_TRIES: usize = 8;
/// Most profiles, and most scopes of one.
const LIST_MAX: usize = 64;

impl Control {
    /// Creates or changes an integration. Changing client id, secret or instance purges the tokens of its
    /// connections and marks them `reauthorization_required`: refused unless `purge_tokens`, with their number. They
    /// are purged before the change, so that no token of the old client meets the new instance (I-4); should the
    /// change then fail, they stay purged.
    /// The same content again changes nothing. `expected`: only if it is at that revision.
    ///
    /// # Errors
    /// `Invalid`, `Conflict` (`instance_not_allowed`, `redirect_uri_taken`, `client_taken`, `in_use`,
    /// `would_purge_connections`, `spill_dir_missing`), `Changed`, `Store`.
    pub async fn put_integration(
        &self,
        id: IntegrationId,
        spec: IntegrationSpec,
        expected: Option<Revision>,
        purge_tokens: bool,
    ) -> Result<Written<Integration>, ActError> {
        let control = self.clone();
        let written =
            self.to_the_end(async move { control.write_integration(id, spec, expected, purge_tokens).await });
        written.await.unwrap_or_else(|| Err(ActError::cut_short()))
    }

    async fn write_integration(
        &self,
        id: IntegrationId,
        spec: IntegrationSpec,
        expected: Option<Revision>,
        purge_tokens: bool,
    ) -> Result<Written<Integration>, ActError> {
        let _one_at_a_time = self.integration_acts.lock().await;
        let stored = self.store.load::<Integration>(id.as_str()).await?;
        if expected.is_some_and(|expected| stored.as_ref().map(|stored| stored.revision) != Some(expected)) {
            return Err(ActError::Changed);
        }
        let old = stored.as_ref().map(|stored| stored.record.clone());
        check_spec(&spec, &self.instances)?;
        let new_client =
            old.as_ref().is_none_or(|old| old.instance != spec.instance || old.client_id != spec.client_id);
        self.check_rotation(&spec)?;
        let next = self.assemble(&id, spec, old.as_ref()).await?;
        let by_client = |profile: &Profile| profile.grant_type == GrantType::ClientCredentials;
        if next.client_secret.is_none() && next.profiles.values().any(by_client) {
            return Err(ActError::invalid(
                "client_secret",
                "the client_credentials grant needs one (RFC 6749 §4.4)",
            ));
        }
        self.tokens
            .check_trust(&next)
            .map_err(|error| ActError::invalid(member_at_fault(&error), error.to_string()))?;
        if let Some(old) = &old {
            self.refuse_lost_profiles(old, &next).await?;
        }
        let other_client = old.as_ref().is_some_and(|old| is_other_client(old, &next));
        if other_client && !purge_tokens {
            self.refuse_purge(&id).await?;
        }
        let client = client_claim(&next);
        if new_client {
            self.claim(
                &client,
                &id,
                "client_taken",
                "another integration has the same instance and client id",
            )
            .await?;
        }
        let purged = old.as_ref().filter(|_| other_client);
        if let Some(old) = purged {
            self.purge_under(old).await?;
        }
        let written = self.put(stored, next.clone(), expected, |old| is_same(old, &next)).await?;
        self.keep_claims(&written, old.as_ref()).await?;
        if let Some(old) = &old {
            if old.redirect_uri != next.redirect_uri {
                self.release(&redirect_claim(&old.redirect_uri), &id).await?;
            }
            if new_client {
                self.release(&client_claim(old), &id).await?;
            }
        }
        if let Some(old) = purged {
            self.purge_under(old).await?; // what a refresh or a consent under way brought in between
        }
        Ok(written)
    }

    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn integration(&self, id: &IntegrationId) -> Result<Versioned<Integration>, ActError> {
        self.found("integration", id.as_str()).await
    }

    /// # Errors
    /// `Store`.
    pub async fn integrations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Integration>, ActError> {
        Ok(self.store.list(after, limit).await?)
    }

    /// # Errors
    /// `Conflict` (`in_use`) while a connection is held under it; `NotFound`, `Changed`, `Store`.
    pub async fn delete_integration(
        &self,
        id: &IntegrationId,
        expected: Option<Revision>,
    ) -> Result<(), ActError> {
        let _one_at_a_time = self.integration_acts.lock().await;
        let stored = self.integration(id).await?;
        let under_it = self.connections_under(id).await?;
        if let Some(first) = under_it.first() {
            return Err(ActError::Conflict {
                code: "in_use",
                message: format!(
                    "{} connection(s) are held under {id}, {} among them",
                    under_it.len(),
                    first.id
                ),
                fix: "Delete those connections first.".to_owned(),
            });
        }
        self.remove::<Integration>(Kind::Integration, id.as_str(), stored.revision, expected).await?;
        self.release(&redirect_claim(&stored.record.redirect_uri), id).await?;
        self.release(&client_claim(&stored.record), id).await
    }

    /// The redirection endpoint that the first integration gets.
    pub(crate) fn shared_redirect_uri(&self) -> String {
        format!("{}/oauth/callback", self.connect.public_url)
    }

    /// The redirection endpoint of an integration's own.
    pub(crate) fn own_redirect_uri(&self, id: &IntegrationId) -> String {
        format!("{}/oauth/callback/{id}", self.connect.public_url)
    }

    /// A profile that connections are held under keeps its name and grant type: they could not be refreshed.
    async fn refuse_lost_profiles(&self, old: &Integration, next: &Integration) -> Result<(), ActError> {
        let grant_type = |integration: &Integration, name: &ProfileName| {
            integration.profiles.get(name).map(|profile| profile.grant_type)
        };
        let lost: Vec<&ProfileName> =
            old.profiles.keys().filter(|name| grant_type(old, name) != grant_type(next, name)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let held = self.connections_under(&old.id).await?;
        match held.iter().find(|connection| lost.contains(&&connection.profile)) {
            None => Ok(()),
            Some(connection) => Err(ActError::Conflict {
                code: "in_use",
                message: format!(
                    "connection {} is held under profile {}, which would be gone or of another grant type",
                    connection.id, connection.profile
                ),
                fix: "Keep that profile as it is, and add another one beside it.".to_owned(),
            }),
        }
    }

    async fn assemble(
        &self,
        id: &IntegrationId,
        spec: IntegrationSpec,
        old: Option<&Integration>,
    ) -> Result<Integration, ActError> {
        let now = self.clock.now();
        let redirect_uri = self.redirect_uri(id, spec.redirect_uri, old).await?;
        let derived = match spec.provider {
            Provider::Servicenow => Endpoints::servicenow(&spec.instance),
            Provider::Generic => {
                Endpoints { authorization: String::new(), token: String::new(), revocation: String::new() }
            }
        };
        let mut profiles = spec.profiles;
        profiles.entry(ProfileName::default()).or_default();
        Ok(Integration {
            id: id.clone(),
            provider: spec.provider,
            client_id: spec.client_id,
            client_secret: spec.client_secret.or_else(|| old.and_then(|old| old.client_secret.clone())),
            endpoints: Endpoints {
                authorization: spec.authorization_endpoint.unwrap_or(derived.authorization),
                token: spec.token_endpoint.unwrap_or(derived.token),
                revocation: spec.revocation_endpoint.unwrap_or(derived.revocation),
            },
            instance: spec.instance,
            token_endpoint_auth: spec.token_endpoint_auth,
            pkce: spec.pkce,
            redirect_uri,
            profiles,
            refresh_token_lifetime: spec
                .refresh_token_lifetime
                .unwrap_or(Integration::REFRESH_TOKEN_LIFETIME_DEFAULT),
            rotates_refresh_tokens: rotates(spec.provider, spec.rotates_refresh_tokens),
            ca_file: spec.ca_file,
            client_certificate_file: spec.client_certificate_file,
            client_key_file: spec.client_key_file,
            http2: spec.http2,
            created_at: old.map_or(now, |old| old.created_at),
            updated_at: now,
        })
    }

    /// # Errors
    /// `Conflict` where a rotated refresh token could be lost.
    fn check_rotation(&self, spec: &IntegrationSpec) -> Result<(), ActError> {
        if self.admits_rotation || !rotates(spec.provider, spec.rotates_refresh_tokens) {
            return Ok(());
        }
        Err(ActError::Conflict {
            code: "spill_dir_missing",
            message: "the store is shared and tokens.spill_dir is not set: a rotated refresh token that the store does \
                      not take would be lost with the process"
                .to_owned(),
            fix: "Set tokens.spill_dir to a directory on a local disk in every process's settings and start again; or \
                  set rotates_refresh_tokens to false, if the server returns the refresh token that it was sent."
                .to_owned(),
        })
    }

    /// Two integrations never share a redirection endpoint (O-18): a shared one allows mix-up (RFC 9700 §4.4).
    async fn redirect_uri(
        &self,
        id: &IntegrationId,
        asked: Option<String>,
        old: Option<&Integration>,
    ) -> Result<String, ActError> {
        let (shared, own) = (self.shared_redirect_uri(), self.own_redirect_uri(id));
        let wanted = match (asked, old) {
            (Some(asked), _) if asked == shared || asked == own => asked,
            (Some(_), _) => {
                return Err(ActError::invalid(
                    "redirect_uri",
                    format!("it can be {shared} or {own}: where the connect door listens"),
                ));
            }
            (None, Some(old)) => old.redirect_uri.clone(),
            (None, None) => {
                let claimed = self
                    .claim(
                        &redirect_claim(&shared),
                        id,
                        "redirect_uri_taken",
                        "another integration uses this redirect URI",
                    )
                    .await;
                match claimed {
                    Ok(()) => return Ok(shared),
                    Err(ActError::Conflict { .. }) => own,
                    Err(error) => return Err(error),
                }
            }
        };
        self.claim(
            &redirect_claim(&wanted),
            id,
            "redirect_uri_taken",
            "another integration uses this redirect URI",
        )
        .await?;
        Ok(wanted)
    }

    /// Makes `what` this integration's alone. A claim whose owner never came to be is taken over.
    async fn claim(
        &self,
        what: &str,
        owner: &IntegrationId,
        code: &'static str,
        message: &str,
    ) -> Result<(), ActError> {
        let claim = Claim { id: self.hashes.claim.hex(what.as_bytes()), owner: owner.clone() };
        if self.store.create(&claim).await?.is_some() {
            return Ok(());
        }
        let taken = || ActError::Conflict {
            code,
            message: message.to_owned(),
            fix: "Use that integration, or register a second client at the instance.".to_owned(),
        };
        let Some(held) = self.store.load::<Claim>(&claim.id).await? else { return Err(ActError::Changed) };
        if held.record.owner == *owner {
            return Ok(());
        }
        if self.holds_claim(&held.record.owner, what).await? {
            return Err(taken());
        }
        let revision = self.store.replace(held.revision, &claim).await?.ok_or(ActError::Changed)?;
        // Its owner may have come to be in another process meanwhile: then it stays the owner's.
        if self.holds_claim(&held.record.owner, what).await? {
            self.store.replace(revision, &held.record).await?;
            return Err(taken());
        }
        Ok(())
    }

    async fn holds_claim(&self, owner: &IntegrationId, what: &str) -> Result<bool, ActError> {
        let owner = self.store.load::<Integration>(owner.as_str()).await?;
        Ok(owner.is_some_and(|Versioned { record, .. }| {
            redirect_claim(&record.redirect_uri) == what || client_claim(&record) == what
        }))
    }

    /// Takes the record back if another process took a claim over before the record was there to show that its owner
    /// lives.
    async fn keep_claims(
        &self,
        written: &Written<Integration>,
        old: Option<&Integration>,
    ) -> Result<(), ActError> {
        let Versioned { revision, record } = &written.versioned;
        for what in [redirect_claim(&record.redirect_uri), client_claim(record)] {
            let held = self.store.load::<Claim>(&self.hashes.claim.hex(what.as_bytes())).await?;
            if held.is_some_and(|held| held.record.owner == record.id) {
                continue;
            }
            match old {
                None => drop(self.store.delete::<Integration>(record.id.as_str(), *revision).await?),
                Some(old) => drop(self.store.replace(*revision, old).await?),
            }
            self.in_force(Kind::Integration, record.id.as_str()).await;
            return Err(ActError::Changed);
        }
        Ok(())
    }

    async fn release(&self, what: &str, owner: &IntegrationId) -> Result<(), ActError> {
        let id = self.hashes.claim.hex(what.as_bytes());
        if let Some(held) = self.store.load::<Claim>(&id).await?
            && held.record.owner == *owner
        {
            self.store.delete::<Claim>(&id, held.revision).await?;
        }
        Ok(())
    }

    async fn connections_under(&self, id: &IntegrationId) -> Result<Vec<Connection>, ActError> {
        let all = self.all::<Connection>().await?;
        Ok(all.into_iter().filter(|connection| connection.integration == *id).collect())
    }

    /// # Errors
    /// `Conflict` with the number of connections whose tokens a change of client would end, if there are any.
    async fn refuse_purge(&self, id: &IntegrationId) -> Result<(), ActError> {
        let held = self.connections_under(id).await?.iter().filter(|held| held.grant.is_some()).count();
        if held == 0 {
            return Ok(());
        }
        Err(ActError::Conflict {
            code: "would_purge_connections",
            message: format!(
                "another instance, client id or client secret ends the tokens of {held} connection(s)"
            ),
            fix: "Repeat with purge_tokens=true; each of them needs a new consent afterwards.".to_owned(),
        })
    }

    /// Purges every grant that was given to this client until now.
    async fn purge_under(&self, client: &Integration) -> Result<(), ActError> {
        let now = self.clock.now();
        for connection in self.connections_under(&client.id).await? {
            self.purge(&connection, client, now).await?;
        }
        Ok(())
    }

    /// Ends the connection's grant if it was given at `until` or earlier. `client`: whose tokens they are.
    pub(crate) async fn purge(
        &self,
        connection: &Connection,
        client: &Integration,
        until: UnixTime,
    ) -> Result<(), ActError> {
        let id = &connection.id;
        let integration = self.integration(&connection.integration).await?.record;
        let by_client = integration
            .profiles
            .get(&connection.profile)
            .is_some_and(|profile| profile.grant_type == GrantType::ClientCredentials);
        for _ in 0..PURGE_TRIES {
            let Some(Versioned { revision, mut record }) = self.store.load::<Connection>(id.as_str()).await?
            else {
                return Ok(()); // deleted meanwhile
            };
            // Client credentials need no grant to begin from: what is under way for this client is made void too (I-4).
            let is_over = match &record.grant {
                Some(grant) => grant.granted_at > until,
                None => !by_client,
            };
            if is_over {
                return Ok(());
            }
            let queued = self.queue_grant(id, Some(name_of(&record)), record.grant.as_ref(), client).await?;
            purge_grant(&mut record, by_client, self.clock.now());
            if self.store.replace(revision, &record).await?.is_some() {
                self.arm(queued).await;
                self.in_force(Kind::Connection, id.as_str()).await;
                info!(connection.id = %id, "tokens of connection {id} purged: its integration changed");
                return Ok(());
            }
        }
        Err(ActError::Changed)
    }

    /// Whether the integration still is the client that it was when it was read.
    pub(crate) async fn has_same_client(&self, read: &Integration) -> Result<bool, ActError> {
        let now = self.store.load::<Integration>(read.id.as_str()).await?;
        Ok(now.is_some_and(|now| !is_other_client(read, &now.record)))
    }
}

fn purge_grant(connection: &mut Connection, by_client: bool, now: UnixTime) {
    connection.purge_grant(now);
    connection.due_at = by_client.then_some(now);
    connection.lifecycle = match &connection.lifecycle {
        _ if by_client => Lifecycle::Active { since: now },
        // Nobody has vouched for this user: the next consent waits for a confirmation too (O-21).
        Lifecycle::AwaitingConsent { .. } | Lifecycle::AwaitingConfirmation { .. } => {
            Lifecycle::AwaitingConsent { since: now }
        }
        Lifecycle::Active { .. } | Lifecycle::ReauthorizationRequired { .. } => {
            Lifecycle::ReauthorizationRequired { since: now, cause: DeathCause::IntegrationChanged }
        }
    };
}

/// As the operator said, or as the provider does.
fn rotates(provider: Provider, asked: Option<bool>) -> bool {
    asked.unwrap_or_else(|| provider.rotates_refresh_tokens())
}

fn redirect_claim(uri: &str) -> String {
    format!("redirect_uri {uri}")
}

/// One registered client has one owner (O-20).
fn client_claim(integration: &Integration) -> String {
    format!("client {} {}", integration.instance, integration.client_id)
}

fn is_other_client(old: &Integration, next: &Integration) -> bool {
    old.instance != next.instance || old.client_id != next.client_id || !same_secret(old, next)
}

fn same_secret(one: &Integration, other: &Integration) -> bool {
    match (&one.client_secret, &other.client_secret) {
        (None, None) => true,
        (Some(one), Some(other)) => one.matches(other),
        _ => false,
    }
}

fn is_same(old: &Integration, next: &Integration) -> bool {
    !is_other_client(old, next)
        && old.provider == next.provider
        && old.endpoints == next.endpoints
        && old.token_endpoint_auth == next.token_endpoint_auth
        && old.pkce == next.pkce
        && old.redirect_uri == next.redirect_uri
        && old.profiles == next.profiles
        && old.refresh_token_lifetime == next.refresh_token_lifetime
        && old.rotates_refresh_tokens == next.rotates_refresh_tokens
        && old.ca_file == next.ca_file
        && old.client_certificate_file == next.client_certificate_file
        && old.client_key_file == next.client_key_file
        && old.http2 == next.http2
}

/// The member of an integration that names the file at fault.
fn member_at_fault(error: &EgressError) -> &'static str {
    match error {
        EgressError::ClientCertificate { .. } => "client_certificate_file",
        EgressError::ClientKey { .. }
        | EgressError::ClientKeyMismatch { .. }
        | EgressError::ClientPairHalf => "client_key_file",
        _ => "ca_file",
    }
}

fn check_spec(spec: &IntegrationSpec, rules: &InstanceRules) -> Result<(), ActError> {
    check_host(&spec.instance, rules)?;
    // A relative one would depend on the folder that each process was started in.
    for (member, file) in [
        ("ca_file", &spec.ca_file),
        ("client_certificate_file", &spec.client_certificate_file),
        ("client_key_file", &spec.client_key_file),
    ] {
        if file.as_ref().is_some_and(|file| !file.starts_with('/')) {
            return Err(ActError::invalid(
                member,
                "it must be an absolute path, on the machine of each bearerd process",
            ));
        }
    }
    let visible = spec.client_id.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    if spec.client_id.is_empty() || spec.client_id.len() > CLIENT_ID_BYTES_MAX || !visible {
        return Err(ActError::invalid(
            "client_id",
            "it is 1 to 255 visible ASCII characters without a blank",
        ));
    }
    for (name, endpoint) in [
        ("authorization_endpoint", &spec.authorization_endpoint),
        ("token_endpoint", &spec.token_endpoint),
        ("revocation_endpoint", &spec.revocation_endpoint),
    ] {
        if let Some(endpoint) = endpoint {
            check_endpoint(name, endpoint, rules)?;
        }
    }
    if spec.provider == Provider::Generic {
        for (name, endpoint) in [
            ("authorization_endpoint", &spec.authorization_endpoint),
            ("token_endpoint", &spec.token_endpoint),
        ] {
            if endpoint.is_none() {
                return Err(ActError::invalid(name, "a generic provider has no default: give it"));
            }
        }
    }
    if spec.profiles.len() > LIST_MAX {
        return Err(ActError::invalid("profiles", format!("there are more than {LIST_MAX}")));
    }
    for (name, profile) in &spec.profiles {
        let is_scope = |scope: &String| {
            !scope.is_empty()
                && scope.len() <= 255
                && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
        };
        if profile.scopes.len() > LIST_MAX || !profile.scopes.iter().all(is_scope) {
            return Err(ActError::invalid(
                format!("profiles.{name}.scopes"),
                "each scope is a word of visible ASCII (RFC 6749 §3.3)",
            ));
        }
    }
    if spec.refresh_token_lifetime.is_some_and(|life| life.is_zero()) {
        return Err(ActError::invalid("refresh_token_lifetime_s", "it is at least 1"));
    }
    Ok(())
}

fn check_host(instance: &InstanceOrigin, rules: &InstanceRules) -> Result<(), ActError> {
    if instance.ip().is_some_and(|ip| ip.is_loopback()) && rules.allow_loopback {
        return Ok(());
    }
    if rules.hosts.iter().any(|pattern| host_matches(pattern, instance.host())) {
        return Ok(());
    }
    Err(ActError::Conflict {
        code: "instance_not_allowed",
        message: format!("{} is not among the hosts that this bearerd may connect to", instance.host()),
        fix: "Add it to instances.hosts in the settings, if it is yours.".to_owned(),
    })
}

/// `*.` stands for one or more labels; anything else is a whole name.
fn host_matches(pattern: &str, host: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    match pattern.strip_prefix("*.") {
        Some(parent) => host
            .strip_suffix(parent)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.') && !rest.starts_with('.')),
        None => host == pattern,
    }
}

fn check_endpoint(name: &'static str, endpoint: &str, rules: &InstanceRules) -> Result<(), ActError> {
    let problem = "it is an absolute https URL without a fragment";
    let url = Url::parse(endpoint).map_err(|_| ActError::invalid(name, problem))?;
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(ActError::invalid(name, problem));
    }
    let origin = InstanceOrigin::parse(&url.origin().ascii_serialization())
        .map_err(|fault| ActError::invalid(name, fault.to_string()))?;
    check_host(&origin, rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-13: only hosts from the operator's list.
    #[test]
    fn host_patterns_match_whole_labels() {
        for (pattern, host, expected) in [
            ("*.service-now.com", "dev1.service-now.com", true),
            ("*.service-now.com", "a.b.service-now.com", true),
            ("*.Service-Now.com", "dev1.service-now.com", true),
            ("*.service-now.com", "service-now.com", false),
            ("*.service-now.com", ".service-now.com", false),
            ("*.service-now.com", "evilservice-now.com", false),
            ("*.service-now.com", "dev1.service-now.com.evil.example", false),
            ("sn.example", "sn.example", true),
            ("sn.example", "a.sn.example", false),
        ] {
            assert_eq!(host_matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
