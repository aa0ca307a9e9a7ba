//! Records that an earlier bearerd wrote open for ever, with the content they had. The files under
//! `tests/fixtures/records` were written once, by the example `record-fixtures`, and are never written again; the
//! expectations here are written out by hand, and each record is taken apart member by member, so that a new member
//! asks what it is in an old record.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bearerd_crypto::{KeyRing, Sealed};
use bearerd_model::{
    CallerKey, CallerKeyUse, ConnectLink, Connection, ConnectionId, ConnectionSelector, ConsentFlow,
    ConsentOutcome, ConsentResult, DeathCause, Endpoints, Exchanges, FamilyName, Freeze, Generation, Grant,
    GrantType, Health, InstanceOrigin, InstanceUser, Integration, KeySecret, Lifecycle, MethodSet, Policy,
    Profile, Provider, RateLimit, RecordRule, Rule, TableSet, TokenEndpointAuth, UnixTime,
};
use bearerd_store::{
    Backend, Claim, ExpiryNotice, Kind, MemoryBackend, Record, RecordKey, Revocation, RevocationCall,
    RevocationGate, RevokedToken, Store, StoreError, Times,
};

/// Every fixture, with the id that it is sealed for.
fn fixtures() -> Vec<(String, RecordKey)> {
    let of_v1 = |(name, key)| (format!("v1/{name}.sealed"), key);
    let policy_v2 = RecordKey::new(Kind::Policy, "read-own-hr");
    v1().into_iter().map(of_v1).chain([("v2/policy.complete.sealed".to_owned(), policy_v2)]).collect()
}

fn v1() -> Vec<(&'static str, RecordKey)> {
    let connection = |id: &str| RecordKey::new(Kind::Connection, id);
    vec![
        ("root", RecordKey::new(Kind::Root, "root")),
        ("integration", RecordKey::new(Kind::Integration, "dev1")),
        ("integration.public_client", RecordKey::new(Kind::Integration, "local")),
        ("integration.complete", RecordKey::new(Kind::Integration, "complete")),
        ("connection", connection("hr")),
        ("connection.awaiting_consent", connection("awaiting-consent")),
        ("connection.awaiting_confirmation", connection("awaiting-confirmation")),
        ("connection.grant_refused", connection("grant-refused")),
        ("connection.refresh_token_expired", connection("refresh-token-expired")),
        ("connection.no_refresh_token", connection("no-refresh-token")),
        ("connection.integration_changed", connection("integration-changed")),
        ("caller_key", RecordKey::new(Kind::CallerKey, "k1")),
        ("caller_key_use", RecordKey::new(Kind::CallerKeyUse, "k1")),
        ("policy", RecordKey::new(Kind::Policy, "read-hr")),
        ("claim", RecordKey::new(Kind::Claim, "c1".repeat(32))),
        ("connect_link", RecordKey::new(Kind::ConnectLink, "d1".repeat(32))),
        ("consent_flow", RecordKey::new(Kind::ConsentFlow, "e1".repeat(32))),
        ("consent_flow.without_pkce", RecordKey::new(Kind::ConsentFlow, "e2".repeat(32))),
        ("consent_outcome", RecordKey::new(Kind::ConsentOutcome, "f1".repeat(16))),
        ("consent_outcome.connected", RecordKey::new(Kind::ConsentOutcome, "f2".repeat(16))),
        ("consent_outcome.connected_user_name", RecordKey::new(Kind::ConsentOutcome, "f3".repeat(16))),
        ("revocation", RecordKey::new(Kind::Revocation, "a1".repeat(32))),
        ("revocation.access_token", RecordKey::new(Kind::Revocation, "a2".repeat(32))),
        ("revocation_gate", RecordKey::new(Kind::RevocationGate, "b1".repeat(32))),
        ("expiry_notice", RecordKey::new(Kind::ExpiryNotice, "hr")),
    ]
}

#[test]
fn every_kind_has_a_fixture_and_every_fixture_its_check() {
    let found: BTreeSet<String> = ["v1", "v2"]
        .into_iter()
        .flat_map(|version| {
            let files = fs::read_dir(folder().join(version)).unwrap();
            files.map(move |file| format!("{version}/{}", file.unwrap().file_name().into_string().unwrap()))
        })
        .collect();
    let known: BTreeSet<String> = fixtures().into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, known);
    for kind in Kind::ALL {
        assert!(known.contains(&format!("v1/{}.sealed", kind.name())), "{kind:?}");
    }
}

/// S-03: every fixture in every other's place.
#[tokio::test]
async fn a_moved_record_does_not_open() {
    for (_, from) in fixtures() {
        for (_, to) in fixtures() {
            let (backend, store) = open().await;
            let (_, moved) = backend.load(&from).await.unwrap().unwrap();
            let (revision, _) = backend.load(&to).await.unwrap().unwrap();
            backend.replace(&to, revision, moved, None).await.unwrap().unwrap();
            assert_eq!(opens(&store, &to).await, from == to, "{from} in the place of {to}");
        }
    }
}

/// S-04: every byte of every fixture, flipped; and every fixture cut short.
#[tokio::test]
async fn an_altered_record_does_not_open() {
    let (backend, store) = open().await;
    for (_, key) in fixtures() {
        let (_, whole) = backend.load(&key).await.unwrap().unwrap();
        for at in 0..whole.as_bytes().len() {
            let mut flipped = whole.as_bytes().to_vec();
            flipped[at] ^= 0x10;
            for altered in [flipped, whole.as_bytes()[..at].to_vec()] {
                let (revision, _) = backend.load(&key).await.unwrap().unwrap();
                backend.replace(&key, revision, Sealed::from_bytes(altered), None).await.unwrap().unwrap();
                assert!(!opens(&store, &key).await, "{key}, byte {at}");
            }
        }
        let (revision, _) = backend.load(&key).await.unwrap().unwrap();
        backend.replace(&key, revision, whole, None).await.unwrap().unwrap();
        assert!(opens(&store, &key).await, "{key}");
    }
}

#[tokio::test]
async fn the_root_opens() {
    let (_, store) = open().await;
    assert_eq!(store.root().expose(), &[0x52; 32]);
}

#[tokio::test]
async fn integrations_open() {
    let Integration {
        id,
        provider,
        instance,
        client_id,
        client_secret,
        endpoints,
        token_endpoint_auth,
        pkce,
        redirect_uri,
        profiles,
        refresh_token_lifetime,
        rotates_refresh_tokens,
        ca_file,
        client_certificate_file,
        client_key_file,
        http2,
        created_at,
        updated_at,
    } = load("dev1").await;
    assert_eq!(id.as_str(), "dev1");
    assert_eq!(provider, Provider::Servicenow);
    assert_eq!(instance.as_str(), "https://dev1.service-now.com");
    assert_eq!(client_id, "client-1");
    assert_eq!(client_secret.unwrap().expose(), r#"client "secret" \ 1"#);
    let Endpoints { authorization, token, revocation } = endpoints;
    assert_eq!(authorization, "https://dev1.service-now.com/oauth_auth.do");
    assert_eq!(token, "https://dev1.service-now.com/oauth_token.do");
    assert_eq!(revocation, "https://dev1.service-now.com/oauth_revoke_token.do");
    assert_eq!(token_endpoint_auth, TokenEndpointAuth::Body);
    assert!(pkce);
    assert_eq!(redirect_uri, "https://connect.example.com/oauth/callback");
    let profiles: Vec<_> =
        profiles.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)).collect();
    let consented = Profile { grant_type: GrantType::AuthorizationCode, scopes: vec![] };
    let machine =
        Profile { grant_type: GrantType::ClientCredentials, scopes: vec!["useraccount".to_owned()] };
    assert_eq!(profiles, [("default".to_owned(), consented), ("machine".to_owned(), machine)]);
    assert_eq!(refresh_token_lifetime, Duration::from_hours(2_400));
    assert!(!rotates_refresh_tokens, "from before there was a choice");
    assert_eq!((ca_file, client_certificate_file, client_key_file, http2), (None, None, None, false));
    assert_eq!((created_at, updated_at), (at(1), at(2)));

    let public: Integration = load("local").await;
    assert_eq!(public.instance.as_str(), "http://127.0.0.1:9000");
    assert!(public.client_secret.is_none());
    assert_eq!(public.endpoints.authorization, "http://127.0.0.1:9001/authorize");
    assert_eq!(public.endpoints.token, "http://127.0.0.1:9001/token");
    assert_eq!(public.endpoints.revocation, "http://127.0.0.1:9001/revoke");
    assert_eq!(public.token_endpoint_auth, TokenEndpointAuth::Basic);
    assert!(!public.pkce);
    assert_eq!(public.refresh_token_lifetime, Duration::from_hours(1));
    assert_eq!(public.ca_file.as_deref(), Some("/etc/bearerd/local-ca.pem"));

    let complete: Integration = load("complete").await;
    assert_eq!(complete.provider, Provider::Generic);
    assert!(complete.rotates_refresh_tokens && complete.http2);
    assert_eq!(complete.ca_file.as_deref(), Some("/etc/bearerd/ca.pem"));
    assert_eq!(complete.client_certificate_file.as_deref(), Some("/etc/bearerd/client.pem"));
    assert_eq!(complete.client_key_file.as_deref(), Some("/etc/bearerd/client.key"));
}

#[tokio::test]
async fn connections_open() {
    let Connection {
        id,
        integration,
        profile,
        labels,
        expected_user,
        user,
        lifecycle,
        frozen,
        health,
        grant,
        exchanges,
        due_at,
        created_at,
        last_used_at,
    } = load("hr").await;
    assert_eq!((id.as_str(), integration.as_str(), profile.as_str()), ("hr", "dev1", "default"));
    assert_eq!(labels, texts(&[("stage", "prod"), ("team", "Löhne")]));
    assert_eq!(expected_user.as_deref(), Some("hr.bot"));
    let InstanceUser { sys_id, user_name, name } = user.unwrap();
    assert_eq!((sys_id.as_str(), user_name.as_str()), ("6816f79cc0a8016401c5a33be04be441", "hr.bot"));
    assert_eq!(name, "HR Bot");
    assert_eq!(lifecycle, Lifecycle::Active { since: at(5) });
    assert_eq!(frozen, Some(Freeze { since: at(13), reason: "audit".to_owned() }));
    let reason = "token endpoint answered status 503".to_owned();
    assert_eq!(health, Health::Failing { since: at(14), failures: 3, strikes: 2, reason });
    assert_eq!((created_at, last_used_at), (at(1), Some(at(15))));
    assert_eq!((exchanges, due_at), (Exchanges::default(), None), "from before processes shared a store");
    let Grant {
        generation,
        access_token,
        access_lifetime,
        access_expires_at,
        refresh_token,
        previous_refresh_token,
        refresh_expires_at,
        granted_at,
        refreshed_at,
        scope,
    } = grant.unwrap();
    assert_eq!(generation, Generation(7));
    assert_eq!(access_token.expose(), "access-7");
    assert_eq!(access_lifetime, Duration::from_millis(1_799_500));
    assert_eq!((access_expires_at, refresh_expires_at), (at(1_800), Some(at(8_640_000))));
    assert_eq!(refresh_token.unwrap().expose(), "refresh-2");
    assert_eq!(previous_refresh_token.unwrap().expose(), "refresh-1");
    assert_eq!((granted_at, refreshed_at), (at(3), at(4)));
    assert_eq!(scope.as_deref(), Some("useraccount"));
}

#[tokio::test]
async fn every_state_of_a_connection_opens() {
    let dead = |cause| Lifecycle::ReauthorizationRequired { since: at(12), cause };
    for (id, lifecycle) in [
        ("awaiting-consent", Lifecycle::AwaitingConsent { since: at(10) }),
        ("awaiting-confirmation", Lifecycle::AwaitingConfirmation { since: at(11) }),
        ("grant-refused", dead(DeathCause::GrantRefused)),
        ("refresh-token-expired", dead(DeathCause::RefreshTokenExpired)),
        ("no-refresh-token", dead(DeathCause::NoRefreshToken)),
        ("integration-changed", dead(DeathCause::IntegrationChanged)),
    ] {
        let connection: Connection = load(id).await;
        assert_eq!(connection.lifecycle, lifecycle);
        assert_eq!(connection.labels, BTreeMap::new());
        assert_eq!((connection.expected_user, connection.user, connection.frozen), (None, None, None));
        assert_eq!(connection.health, Health::Ok);
        assert!(connection.grant.is_none());
        assert_eq!(connection.last_used_at, None);
    }
}

#[tokio::test]
async fn caller_keys_open() {
    let CallerKey {
        id,
        description,
        secrets,
        policies,
        default_connection,
        expires_at,
        created_at,
        last_used_at,
    } = load("k1").await;
    assert_eq!((id.as_str(), description.as_str()), ("k1", "payroll"));
    let older = KeySecret { hmac: [0xa1; 32], created_at: at(1), expires_at: Some(at(3_600)) };
    let newer = KeySecret { hmac: [0xa2; 32], created_at: at(2), expires_at: None };
    assert_eq!(secrets, [older, newer]);
    let policies: Vec<&str> = policies.iter().map(bearerd_model::PolicyId::as_str).collect();
    assert_eq!(policies, ["read-hr", "write-hr"]);
    assert_eq!(default_connection, Some(ConnectionId::parse("hr").unwrap()));
    assert_eq!((expires_at, created_at), (Some(at(86_400)), at(1)));
    assert_eq!(last_used_at, None, "it was written as part of the key once, and is passed over");
}

#[tokio::test]
async fn last_uses_of_caller_keys_open() {
    let CallerKeyUse { id, last_used_at } = load("k1").await;
    assert_eq!((id.as_str(), last_used_at), ("k1", at(17)));
}

#[tokio::test]
async fn policies_open() {
    let Policy { id, description, rules, rate, concurrency_max, created_at, updated_at } =
        load("read-hr").await;
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(ToString::to_string).collect() };
    assert_eq!((id.as_str(), description.as_str()), ("read-hr", "reads cases"));
    let [all, ids, labels] = <[Rule; 3]>::try_from(rules).unwrap();
    // From before there was more than connections, tables and methods.
    let plain = |connections, tables, methods: &[&str]| Rule {
        connections,
        families: [FamilyName::parse("table").unwrap()].into(),
        tables,
        methods: MethodSet(set(methods)),
        networks: vec![],
        expires_at: None,
        records: None,
    };
    assert_eq!(all, plain(ConnectionSelector::All, TableSet::All, &["GET"]));
    let hr = ConnectionSelector::Ids([ConnectionId::parse("hr").unwrap()].into());
    let tables = TableSet::Named(set(&["incident", "sn_hr_core_case"]));
    assert_eq!(ids, plain(hr, tables, &["PATCH", "POST"]));
    let team = ConnectionSelector::Labels(texts(&[("team", "hr")]));
    assert_eq!(labels, plain(team, TableSet::Named(set(&[])), &[]));
    assert_eq!((rate, concurrency_max), (None, None));
    assert_eq!((created_at, updated_at), (at(1), at(2)));
}

#[tokio::test]
async fn complete_policies_open() {
    let Policy { id, description, rules, rate, concurrency_max, created_at, updated_at } =
        load("read-own-hr").await;
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(ToString::to_string).collect() };
    assert_eq!((id.as_str(), description.as_str()), ("read-own-hr", "reads its own cases"));
    let [own, files] = <[Rule; 2]>::try_from(rules).unwrap();
    let Rule { connections, families, tables, methods, networks, expires_at, records } = own;
    assert_eq!(connections, ConnectionSelector::Ids([ConnectionId::parse("hr").unwrap()].into()));
    assert_eq!(families.iter().map(FamilyName::as_str).collect::<Vec<_>>(), ["table"]);
    assert_eq!((tables, methods), (TableSet::Named(set(&["sn_hr_core_case"])), MethodSet(set(&["GET"]))));
    assert_eq!((networks, expires_at), (vec![], None));
    let RecordRule { condition, fields, limit_max, checked_at } = records.unwrap();
    assert_eq!((condition.as_str(), fields), ("active=true", Some(set(&["number", "state"]))));
    let checked_at: Vec<&str> = checked_at.iter().map(InstanceOrigin::as_str).collect();
    assert_eq!((limit_max, checked_at), (500, vec!["https://dev1.service-now.com"]));
    let families: Vec<&str> = files.families.iter().map(FamilyName::as_str).collect();
    assert_eq!(families, ["attachment", "now/ui", "sn_sc"]);
    assert_eq!(files.networks, ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    assert_eq!((files.expires_at, files.records), (Some(at(86_400)), None));
    assert_eq!(rate, Some(RateLimit { calls: 100, per_s: 60, burst: Some(20) }));
    assert_eq!(concurrency_max, Some(8));
    assert_eq!((created_at, updated_at), (at(1), at(2)));
}

#[tokio::test]
async fn claims_open() {
    let Claim { id, owner } = load(&"c1".repeat(32)).await;
    assert_eq!((id, owner.as_str()), ("c1".repeat(32), "dev1"));
}

#[tokio::test]
async fn connect_links_open() {
    let ConnectLink { hash, connection, requested_by, created_at, expires_at } = load(&"d1".repeat(32)).await;
    assert_eq!((hash, connection.as_str()), ("d1".repeat(32), "hr"));
    assert_eq!(requested_by, "ops@example.com");
    assert_eq!((created_at, expires_at), (at(1), at(601)));
}

#[tokio::test]
async fn consent_flows_open() {
    let ConsentFlow {
        state_hash,
        cookie_hash,
        connection,
        integration,
        instance,
        profile,
        redirect_uri,
        verifier,
        requested_by,
        expires_at,
    } = load(&"e1".repeat(32)).await;
    assert_eq!((state_hash, cookie_hash), ("e1".repeat(32), [0xc0; 32]));
    assert_eq!((connection.as_str(), integration.as_str(), profile.as_str()), ("hr", "dev1", "default"));
    assert_eq!(instance.as_str(), "https://dev1.service-now.com");
    assert_eq!(redirect_uri, "https://connect.example.com/oauth/callback");
    assert_eq!(verifier.unwrap().expose(), "v".repeat(43));
    assert_eq!((requested_by.as_str(), expires_at), ("ops@example.com", at(601)));
    assert!(load::<ConsentFlow>(&"e2".repeat(32)).await.verifier.is_none());
}

#[tokio::test]
async fn consent_outcomes_open() {
    let ConsentOutcome { id, result, expires_at } = load(&"f1".repeat(16)).await;
    assert_eq!((id, expires_at), ("f1".repeat(16), at(601)));
    let ConsentResult::Failed { code, message, fix, detail, error_id } = result else { panic!("{result:?}") };
    assert_eq!((code.as_str(), error_id.as_str()), ("redirect_uri_refused", "01890a5d"));
    assert_eq!(message, "ServiceNow refused the redirect URL.");
    assert_eq!(fix, "Add the redirect URL to the application registry.");
    assert_eq!(detail.as_deref(), Some("invalid_request"));

    // The older one was written before there was `user_name`.
    for (id, expected) in [("f2", ""), ("f3", "hr.bot")] {
        let ConsentOutcome { result, .. } = load(&id.repeat(16)).await;
        let ConsentResult::Connected { connection, instance, user, user_name, awaits_confirmation } = result
        else {
            panic!("{result:?}")
        };
        assert_eq!((connection.as_str(), user.as_str(), user_name.as_str()), ("hr", "HR Bot", expected));
        assert_eq!(instance.as_str(), "https://dev1.service-now.com");
        assert!(awaits_confirmation);
    }
}

#[tokio::test]
async fn revocations_open() {
    let Revocation {
        id,
        token,
        came_with,
        connection,
        grant,
        integration,
        queued_at,
        ends_at,
        attempts,
        due_at,
    } = load(&"a1".repeat(32)).await;
    assert_eq!((id, connection.as_str(), grant), ("a1".repeat(32), "hr", None)); // written before there was `grant`
    let RevokedToken::Refresh(token) = token else { panic!("{token:?}") };
    assert_eq!((token.expose(), came_with), ("refresh-2", None));
    assert_eq!(integration.endpoints.revocation, "https://dev1.service-now.com/oauth_revoke_token.do");
    assert_eq!(integration.client_secret.unwrap().expose(), r#"client "secret" \ 1"#);
    assert_eq!((queued_at, ends_at), (at(20), Some(at(8_640_000))));
    assert_eq!((attempts, due_at), (3, at(21)));
    let access: Revocation = load(&"a2".repeat(32)).await;
    let RevokedToken::Access(token) = access.token else { panic!("{:?}", access.token) };
    assert_eq!((token.expose(), access.came_with), ("access-7", Some("a1".repeat(32))));
}

#[tokio::test]
async fn revocation_gates_open() {
    let RevocationGate { id, entered, obtaining, calling } = load(&"b1".repeat(32)).await;
    assert_eq!((id, entered), ("b1".repeat(32), 1_800_000_000_123));
    assert_eq!(obtaining, BTreeMap::from([("one".to_owned(), at(600))]));
    assert_eq!(calling, Some(RevocationCall { id: "two".to_owned(), until: at(15) }));
}

#[tokio::test]
async fn expiry_notices_open() {
    let ExpiryNotice { connection, ends_at, told_days, due_at } = load("hr").await;
    assert_eq!((connection.as_str(), ends_at), ("hr", Some(at(8_640_000))));
    assert_eq!((told_days, due_at), (Some(14), at(8_035_200)));
}

/// A store that holds the fixtures, as a bearerd that starts today finds it.
async fn open() -> (Arc<MemoryBackend>, Store) {
    let backend = Arc::new(MemoryBackend::default());
    for (name, key) in fixtures() {
        let sealed = fs::read(folder().join(name)).unwrap();
        backend.create(&key, Sealed::from_bytes(sealed), Times::default()).await.unwrap().unwrap();
    }
    let ring = KeyRing::parse(&fs::read_to_string(folder().join("master.key")).unwrap()).unwrap();
    let store = Store::open(Arc::clone(&backend) as Arc<dyn Backend>, Arc::new(ring)).await.unwrap();
    (backend, store)
}

async fn load<R: Record>(id: &str) -> R {
    let (_, store) = open().await;
    store.load(id).await.unwrap().unwrap().record
}

/// Whether the record opens as its kind; any fault but damage of this record fails the test.
async fn opens(store: &Store, key: &RecordKey) -> bool {
    async fn load<R: Record>(store: &Store, id: &str) -> Result<bool, StoreError> {
        store.load::<R>(id).await.map(|found| found.is_some())
    }
    let opened = match key.kind {
        Kind::Root => load::<bearerd_store::Root>(store, &key.id).await,
        Kind::Integration => load::<Integration>(store, &key.id).await,
        Kind::Connection => load::<Connection>(store, &key.id).await,
        Kind::CallerKey => load::<CallerKey>(store, &key.id).await,
        Kind::CallerKeyUse => load::<CallerKeyUse>(store, &key.id).await,
        Kind::Policy => load::<Policy>(store, &key.id).await,
        Kind::Claim => load::<Claim>(store, &key.id).await,
        Kind::ConnectLink => load::<ConnectLink>(store, &key.id).await,
        Kind::ConsentFlow => load::<ConsentFlow>(store, &key.id).await,
        Kind::ConsentOutcome => load::<ConsentOutcome>(store, &key.id).await,
        Kind::Revocation => load::<Revocation>(store, &key.id).await,
        Kind::RevocationGate => load::<RevocationGate>(store, &key.id).await,
        Kind::ExpiryNotice => load::<ExpiryNotice>(store, &key.id).await,
    };
    match opened {
        Ok(found) => found,
        Err(StoreError::Damaged { key: damaged, .. }) if damaged == *key => false,
        Err(error) => panic!("{error}"),
    }
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/records"))
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_millis(1_800_000_000_123 + secs * 1_000)
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
