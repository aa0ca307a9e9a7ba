//! Records as bytes: what was written comes back, and whatever else stands in the store is refused without a panic.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bearerd_crypto::RootSecret;
use bearerd_model::{
    AccessToken, CallerKey, CallerKeyId, CallerKeyUse, ClientSecret, ConnectLink, Connection, ConnectionId,
    ConnectionSelector, ConsentFlow, ConsentOutcome, ConsentResult, DeathCause, Endpoints, Epoch, Exchanges,
    FamilyName, Freeze, Generation, Grant, GrantType, GrantVersion, Health, InstanceOrigin, InstanceUser,
    Integration, IntegrationId, Intent, KeySecret, Lifecycle, MethodSet, Owner, PkceVerifier, Policy,
    PolicyId, Profile, ProfileName, Provider, RateLimit, RecordRule, RefreshToken, Rule, TableSet,
    TokenEndpointAuth, UnixTime,
};
use bearerd_store::{
    Claim, ExpiryNotice, Record, RecordFault, Revocation, RevocationCall, RevocationGate, RevokedGrant,
    RevokedToken, Root,
};
use ipnet::IpNet;
use proptest::{collection, option, prelude::*};

proptest! {
    #[test]
    fn any_root_comes_back(secret: [u8; 32]) {
        round_trip(&Root { secret: RootSecret::from_bytes(secret) })?;
    }

    #[test]
    fn any_claim_comes_back(id in text(), owner in integration_id()) {
        round_trip(&Claim { id, owner })?;
    }

    #[test]
    fn any_integration_comes_back(record in integration()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_connection_comes_back(record in connection()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_revocation_comes_back(record in revocation()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_revocation_gate_comes_back(record in revocation_gate()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_expiry_notice_comes_back(record in expiry_notice()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_caller_key_comes_back(record in caller_key()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_last_use_of_a_caller_key_comes_back(id in id(), last_used_at in time()) {
        round_trip(&CallerKeyUse { id: CallerKeyId::parse(&id).unwrap(), last_used_at })?;
    }

    #[test]
    fn any_policy_comes_back(record in policy()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_connect_link_comes_back(record in connect_link()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_consent_flow_comes_back(record in consent_flow()) {
        round_trip(&record)?;
    }

    #[test]
    fn any_consent_outcome_comes_back(id in text(), result in consent_result(), expires_at in time()) {
        round_trip(&ConsentOutcome { id, result, expires_at })?;
    }

    /// S-04: bytes that no bearerd wrote.
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        decode_as_every_kind(&bytes);
    }

    /// S-04: bytes that one wrote and that were altered since.
    #[test]
    fn altered_records_are_read_or_refused(
        record in connection(),
        other in integration(),
        at: prop::sample::Index,
        byte: u8,
        cut: prop::sample::Index,
    ) {
        for mut bytes in [record.encode().to_vec(), other.encode().to_vec()] {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            decode_as_every_kind(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            decode_as_every_kind(&bytes);
        }
    }

    /// A rolled-back bearerd says so instead of guessing.
    #[test]
    fn an_unknown_version_is_named(v in 2..=u32::MAX, record in connection()) {
        let bytes = String::from_utf8(record.encode().to_vec()).unwrap();
        let newer = bytes.replacen(r#""v":1"#, &format!(r#""v":{v}"#), 1);
        prop_assert_ne!(&newer, &bytes);
        prop_assert_eq!(Connection::decode(newer.as_bytes()).unwrap_err(), RecordFault::UnknownVersion(v));
        let bare = format!(r#"{{"v":{v},"something":"new"}}"#);
        prop_assert_eq!(CallerKey::decode(bare.as_bytes()).unwrap_err(), RecordFault::UnknownVersion(v));
    }

    /// A bearerd that knows only plain rules must not read any other: it would open more than the policy does.
    #[test]
    fn only_a_plain_policy_is_version_1(record in policy()) {
        let version: serde_json::Value = serde_json::from_slice(&record.encode()).unwrap();
        prop_assert_eq!(&version["v"], if record.is_plain() { 1 } else { 2 });
        let plain = |rule: &Rule| Rule::new(rule.connections.clone(), rule.tables.clone(), rule.methods.clone());
        let rules = record.rules.iter().map(plain).collect();
        let plain = Policy { rules, rate: None, concurrency_max: None, ..record };
        let version: serde_json::Value = serde_json::from_slice(&plain.encode()).unwrap();
        prop_assert_eq!(&version["v"], 1);
    }

    /// A newer bearerd may have added a member to a version that this one knows.
    #[test]
    fn an_unknown_member_is_skipped(record in integration()) {
        let bytes = String::from_utf8(record.encode().to_vec()).unwrap();
        let newer = bytes.replacen('{', r#"{"added_later":{"v":7},"#, 1);
        prop_assert_eq!(Integration::decode(newer.as_bytes()).unwrap().encode(), record.encode());
    }
}

/// Never quotes what it read.
#[test]
fn faults_are_told_without_content() {
    for bytes in [&b"canary"[..], br#"{"v":1,"id":"canary canary"}"#, br#"{"v":"canary"}"#, b"{}", b""] {
        let fault = Connection::decode(bytes).unwrap_err();
        assert_eq!(fault, RecordFault::Malformed);
        assert!(!format!("{fault} {fault:?}").contains("canary"));
    }
}

/// Compares by bytes, since most records hold secrets, which do not compare.
fn round_trip<R: Record>(record: &R) -> Result<(), TestCaseError> {
    let bytes = record.encode();
    prop_assert_eq!(bytes.len(), bytes.capacity(), "a buffer that grew left copies behind (S-09)");
    let read = R::decode(&bytes).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
    prop_assert_eq!(read.id(), record.id());
    prop_assert_eq!(read.expires_at(), record.expires_at());
    prop_assert_eq!(read.encode(), bytes);
    Ok(())
}

fn decode_as_every_kind(bytes: &[u8]) {
    drop(Root::decode(bytes));
    drop(Integration::decode(bytes));
    drop(Connection::decode(bytes));
    drop(CallerKey::decode(bytes));
    drop(CallerKeyUse::decode(bytes));
    drop(Policy::decode(bytes));
    drop(Claim::decode(bytes));
    drop(ConnectLink::decode(bytes));
    drop(ConsentFlow::decode(bytes));
    drop(ConsentOutcome::decode(bytes));
}

fn text() -> impl Strategy<Value = String> {
    any::<String>()
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    collection::btree_map(text(), text(), 0..3)
}

fn id() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9_-]{0,62}"
}

fn time() -> impl Strategy<Value = UnixTime> {
    any::<u64>().prop_map(UnixTime::from_millis)
}

/// Any text that a secret may be: quotes and backslashes too.
fn secret() -> impl Strategy<Value = String> {
    "[ -~]{1,80}"
}

fn connection_id() -> impl Strategy<Value = ConnectionId> {
    id().prop_map(|id| ConnectionId::parse(&id).unwrap())
}

fn integration_id() -> impl Strategy<Value = IntegrationId> {
    id().prop_map(|id| IntegrationId::parse(&id).unwrap())
}

fn policy_id() -> impl Strategy<Value = PolicyId> {
    id().prop_map(|id| PolicyId::parse(&id).unwrap())
}

fn profile_name() -> impl Strategy<Value = ProfileName> {
    id().prop_map(|id| ProfileName::parse(&id).unwrap())
}

fn instance() -> impl Strategy<Value = InstanceOrigin> {
    "https://[a-z][a-z0-9]{0,20}\\.service-now\\.com(:[1-9][0-9]{3})?"
        .prop_map(|text| InstanceOrigin::parse(&text).unwrap())
}

prop_compose! {
    fn integration()(
        id in integration_id(),
        instance in instance(),
        (client_id, client_secret) in (text(), option::of(secret())),
        [authorization, token, revocation] in [text(), text(), text()],
        [basic, pkce, rotates_refresh_tokens, http2]: [bool; 4],
        redirect_uri in text(),
        profiles in collection::btree_map(profile_name(), (any::<bool>(), collection::vec(text(), 0..3)), 0..3),
        lifetime_s: u64,
        [ca_file, client_certificate_file, client_key_file] in
            [option::of(text()), option::of(text()), option::of(text())],
        [created_at, updated_at] in [time(), time()],
    ) -> Integration {
        let profile = |(machine, scopes)| Profile {
            grant_type: if machine { GrantType::ClientCredentials } else { GrantType::AuthorizationCode },
            scopes,
        };
        Integration {
            id,
            provider: Provider::Servicenow,
            instance,
            client_id,
            client_secret: client_secret.map(|text| ClientSecret::parse(text).unwrap()),
            endpoints: Endpoints { authorization, token, revocation },
            token_endpoint_auth: if basic { TokenEndpointAuth::Basic } else { TokenEndpointAuth::Body },
            pkce,
            redirect_uri,
            profiles: profiles.into_iter().map(|(name, value)| (name, profile(value))).collect(),
            refresh_token_lifetime: Duration::from_secs(lifetime_s),
            rotates_refresh_tokens,
            ca_file,
            client_certificate_file,
            client_key_file,
            http2,
            created_at,
            updated_at,
        }
    }
}

prop_compose! {
    fn grant()(
        generation: u64,
        access_token in secret(),
        lifetime_ms: u64,
        [refresh_token, previous] in [option::of(secret()), option::of(secret())],
        [access_expires_at, granted_at, refreshed_at] in [time(), time(), time()],
        refresh_expires_at in option::of(time()),
        scope in option::of(text()),
    ) -> Grant {
        Grant {
            generation: Generation(generation),
            access_token: AccessToken::parse(access_token).unwrap(),
            access_lifetime: Duration::from_millis(lifetime_ms),
            access_expires_at,
            refresh_token: refresh_token.map(|text| RefreshToken::parse(text).unwrap()),
            previous_refresh_token: previous.map(|text| RefreshToken::parse(text).unwrap()),
            refresh_expires_at,
            granted_at,
            refreshed_at,
            scope,
        }
    }
}

prop_compose! {
    fn revocation()(
        (id, token, is_access) in (text(), secret(), any::<bool>()),
        came_with in option::of(text()),
        connection in connection_id(),
        grant in option::of((time(), any::<u64>())),
        integration in integration(),
        [queued_at, due_at] in [time(), time()],
        ends_at in option::of(time()),
        attempts: u32,
    ) -> Revocation {
        let token = if is_access {
            RevokedToken::Access(AccessToken::parse(token).unwrap())
        } else {
            RevokedToken::Refresh(RefreshToken::parse(token).unwrap())
        };
        let grant = grant.map(|(connection_created_at, lineage)| RevokedGrant {
            connection_created_at,
            lineage: Epoch(lineage),
        });
        Revocation { id, token, came_with, connection, grant, integration, queued_at, ends_at, attempts, due_at }
    }
}

prop_compose! {
    fn revocation_gate()(
        id in text(),
        entered: u64,
        obtaining in collection::btree_map(text(), time(), 0..3),
        calling in option::of((text(), time())),
    ) -> RevocationGate {
        let calling = calling.map(|(id, until)| RevocationCall { id, until });
        RevocationGate { id, entered, obtaining, calling }
    }
}

prop_compose! {
    fn expiry_notice()(
        connection in connection_id(),
        ends_at in option::of(time()),
        told_days in option::of(any::<u32>()),
        due_at in time(),
    ) -> ExpiryNotice {
        ExpiryNotice { connection, ends_at, told_days, due_at }
    }
}

fn lifecycle() -> impl Strategy<Value = Lifecycle> {
    let cause = prop_oneof![
        Just(DeathCause::GrantRefused),
        Just(DeathCause::RefreshTokenExpired),
        Just(DeathCause::NoRefreshToken),
        Just(DeathCause::IntegrationChanged),
    ];
    prop_oneof![
        time().prop_map(|since| Lifecycle::AwaitingConsent { since }),
        time().prop_map(|since| Lifecycle::AwaitingConfirmation { since }),
        time().prop_map(|since| Lifecycle::Active { since }),
        (time(), cause).prop_map(|(since, cause)| Lifecycle::ReauthorizationRequired { since, cause }),
    ]
}

fn health() -> impl Strategy<Value = Health> {
    let failing = (time(), any::<u32>(), any::<u32>(), text())
        .prop_map(|(since, failures, strikes, reason)| Health::Failing { since, failures, strikes, reason });
    prop_oneof![Just(Health::Ok), failing]
}

prop_compose! {
    fn exchanges()(
        [claimed, lineage, epoch, intent_epoch]: [u64; 4],
        [generation, began_from]: [u64; 2],
        [node, run]: [u64; 2],
        [began_at, deadline] in [time(), time()],
        [has_intent, in_doubt, rotated]: [bool; 3],
    ) -> Exchanges {
        let intent = Intent {
            epoch: Epoch(intent_epoch),
            owner: Owner { node, run },
            generation: Generation(began_from),
            began_at,
            deadline,
            in_doubt,
        };
        Exchanges {
            claimed: Epoch(claimed),
            version: GrantVersion { lineage: Epoch(lineage), epoch: Epoch(epoch) },
            generation: Generation(generation),
            intent: has_intent.then_some(intent),
            rotated,
        }
    }
}

prop_compose! {
    fn connection()(
        id in connection_id(),
        integration in integration_id(),
        profile in profile_name(),
        labels in texts(),
        expected_user in option::of(text()),
        user in option::of([text(), text(), text()]),
        lifecycle in lifecycle(),
        frozen in option::of((time(), text())),
        health in health(),
        grant in option::of(grant()),
        exchanges in exchanges(),
        (created_at, [due_at, last_used_at]) in (time(), [option::of(time()), option::of(time())]),
    ) -> Connection {
        Connection {
            id,
            integration,
            profile,
            labels,
            expected_user,
            user: user.map(|[sys_id, user_name, name]| InstanceUser { sys_id, user_name, name }),
            lifecycle,
            frozen: frozen.map(|(since, reason)| Freeze { since, reason }),
            health,
            grant,
            exchanges,
            due_at,
            created_at,
            last_used_at,
        }
    }
}

prop_compose! {
    fn caller_key()(
        id in id(),
        description in text(),
        secrets in collection::vec((any::<[u8; 32]>(), time(), option::of(time())), 0..3),
        policies in collection::vec(policy_id(), 0..3),
        default_connection in option::of(connection_id()),
        created_at in time(),
        [expires_at, last_used_at] in [option::of(time()), option::of(time())],
    ) -> CallerKey {
        let secret = |(hmac, created_at, expires_at)| KeySecret { hmac, created_at, expires_at };
        CallerKey {
            id: CallerKeyId::parse(&id).unwrap(),
            description,
            secrets: secrets.into_iter().map(secret).collect(),
            policies,
            default_connection,
            expires_at,
            created_at,
            last_used_at,
        }
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let connections = prop_oneof![
        Just(ConnectionSelector::All),
        collection::btree_set(connection_id(), 0..3).prop_map(ConnectionSelector::Ids),
        texts().prop_map(ConnectionSelector::Labels),
    ];
    let tables =
        prop_oneof![Just(TableSet::All), collection::btree_set(text(), 0..3).prop_map(TableSet::Named)];
    let methods = collection::btree_set(text(), 0..3).prop_map(MethodSet);
    let families = collection::btree_set("now/[a-z0-9_]{1,9}x|[a-z]{2,4}_[a-z]{1,9}|table", 1..3).prop_map(
        |names| -> BTreeSet<FamilyName> {
            names.iter().map(|name| FamilyName::parse(name).unwrap()).collect()
        },
    );
    let networks = collection::vec(
        (any::<std::net::IpAddr>(), 0..=32_u8).prop_map(|(address, len)| IpNet::new(address, len).unwrap()),
        0..3,
    );
    (connections, families, tables, methods, networks, option::of(time()), option::of(record_rule()))
        .prop_map(|(connections, families, tables, methods, networks, expires_at, records)| Rule {
            connections,
            families,
            tables,
            methods,
            networks,
            expires_at,
            records,
        })
}

prop_compose! {
    fn record_rule()(
        condition in text(),
        fields in option::of(collection::btree_set(text(), 0..3)),
        limit_max: u32,
        checked_at in collection::btree_set(instance(), 0..3),
    ) -> RecordRule {
        RecordRule { condition, fields, limit_max, checked_at }
    }
}

prop_compose! {
    fn rate()(calls: u32, per_s: u32, burst in option::of(any::<u32>())) -> RateLimit {
        RateLimit { calls, per_s, burst }
    }
}

prop_compose! {
    fn policy()(
        id in policy_id(),
        description in text(),
        rules in collection::vec(rule(), 0..3),
        rate in option::of(rate()),
        concurrency_max in option::of(any::<u32>()),
        [created_at, updated_at] in [time(), time()],
    ) -> Policy {
        Policy { id, description, rules, rate, concurrency_max, created_at, updated_at }
    }
}

prop_compose! {
    fn connect_link()(
        [hash, requested_by] in [text(), text()],
        connection in connection_id(),
        [created_at, expires_at] in [time(), time()],
    ) -> ConnectLink {
        ConnectLink { hash, connection, requested_by, created_at, expires_at }
    }
}

prop_compose! {
    fn consent_flow()(
        [state_hash, redirect_uri, requested_by] in [text(), text(), text()],
        cookie_hash: [u8; 32],
        connection in connection_id(),
        integration in integration_id(),
        instance in instance(),
        profile in profile_name(),
        verifier in option::of(secret()),
        expires_at in time(),
    ) -> ConsentFlow {
        ConsentFlow {
            state_hash,
            cookie_hash,
            connection,
            integration,
            instance,
            profile,
            redirect_uri,
            verifier: verifier.map(|text| PkceVerifier::parse(text).unwrap()),
            requested_by,
            expires_at,
        }
    }
}

fn consent_result() -> impl Strategy<Value = ConsentResult> {
    let connected = (connection_id(), instance(), text(), text(), any::<bool>()).prop_map(
        |(connection, instance, user, user_name, awaits_confirmation)| ConsentResult::Connected {
            connection,
            instance,
            user,
            user_name,
            awaits_confirmation,
        },
    );
    let failed = (text(), text(), text(), option::of(text()), text()).prop_map(
        |(code, message, fix, detail, error_id)| ConsentResult::Failed {
            code,
            message,
            fix,
            detail,
            error_id,
        },
    );
    prop_oneof![connected, failed]
}
