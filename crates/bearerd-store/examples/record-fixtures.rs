//! Writes one sealed record of every kind, and of every shape that a kind has, into `tests/fixtures/records`,
//! under the version that it has:
//!
//! ```text
//! cargo run -p bearerd-store --example record-fixtures
//! ```
//!
//! A file that exists is kept as it is: what a released bearerd wrote must open for ever, so a fixture is never
//! written again. Add a record here with its check in `tests/record_fixtures.rs`; a new record version gets a folder
//! of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
    time::Duration,
};

use bearerd_crypto::{KeyRing, RootSecret, SealContext};
use bearerd_model::{
    AccessToken, CallerKey, CallerKeyId, CallerKeyUse, ClientSecret, ConnectLink, Connection, ConnectionId,
    ConnectionSelector, ConsentFlow, ConsentOutcome, ConsentResult, DeathCause, Endpoints, Exchanges,
    FamilyName, Freeze, Generation, Grant, GrantType, Health, InstanceOrigin, InstanceUser, Integration,
    IntegrationId, KeySecret, Lifecycle, MethodSet, PkceVerifier, Policy, PolicyId, Profile, ProfileName,
    Provider, RateLimit, RecordRule, RefreshToken, Rule, TableSet, TokenEndpointAuth, UnixTime,
};
use bearerd_store::{
    Claim, ExpiryNotice, Record, Revocation, RevocationCall, RevocationGate, RevokedToken, Root,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/records"));
    let fixtures = Fixtures { folder, ring: key_ring(&folder.join("master.key"))? };
    fs::create_dir_all(folder.join("v1"))?;
    fs::create_dir_all(folder.join("v2"))?;

    fixtures.write("", &Root { secret: RootSecret::from_bytes([0x52; 32]) })?;
    fixtures.write("", &integration()?)?;
    fixtures.write("public_client", &public_integration()?)?;
    // The others were written before an integration had a certificate and a protocol of its own.
    fixtures.write("complete", &complete_integration()?)?;
    fixtures.write("", &connection()?)?;
    for (shape, lifecycle) in [
        ("awaiting_consent", Lifecycle::AwaitingConsent { since: at(10) }),
        ("awaiting_confirmation", Lifecycle::AwaitingConfirmation { since: at(11) }),
        ("grant_refused", dead(DeathCause::GrantRefused)),
        ("refresh_token_expired", dead(DeathCause::RefreshTokenExpired)),
        ("no_refresh_token", dead(DeathCause::NoRefreshToken)),
        ("integration_changed", dead(DeathCause::IntegrationChanged)),
    ] {
        fixtures.write(shape, &bare_connection(&shape.replace('_', "-"), lifecycle)?)?;
    }
    // `caller_key.sealed` was written when the last use was still part of it.
    fixtures.write("", &caller_key()?)?;
    fixtures.write("", &CallerKeyUse { id: CallerKeyId::parse("k1")?, last_used_at: at(17) })?;
    fixtures.write("", &policy()?)?;
    fixtures.write("complete", &complete_policy()?)?;
    fixtures.write("", &Claim { id: "c1".repeat(32), owner: IntegrationId::parse("dev1")? })?;
    fixtures.write("", &connect_link()?)?;
    fixtures.write("", &consent_flow()?)?;
    fixtures.write(
        "without_pkce",
        &ConsentFlow { state_hash: "e2".repeat(32), verifier: None, ..consent_flow()? },
    )?;
    fixtures.write("", &failed_outcome())?;
    // `consent_outcome.connected.sealed` was written before there was `user_name`.
    fixtures.write("connected_user_name", &connected_outcome()?)?;
    fixtures.write("", &revocation()?)?;
    let access = Revocation {
        id: "a2".repeat(32),
        token: RevokedToken::Access(AccessToken::parse("access-7".to_owned())?),
        came_with: Some("a1".repeat(32)),
        ..revocation()?
    };
    fixtures.write("access_token", &access)?;
    fixtures.write("", &revocation_gate())?;
    let notice = ExpiryNotice {
        connection: ConnectionId::parse("hr")?,
        ends_at: Some(at(8_640_000)),
        told_days: Some(14),
        due_at: at(8_035_200),
    };
    fixtures.write("", &notice)
}

struct Fixtures<'a> {
    folder: &'a Path,
    ring: KeyRing,
}

impl Fixtures<'_> {
    /// As `v<version>/<kind>[.<shape>].sealed`.
    fn write<R: Record>(&self, shape: &str, record: &R) -> Outcome {
        let kind = R::KIND.name();
        let name = if shape.is_empty() { format!("{kind}.sealed") } else { format!("{kind}.{shape}.sealed") };
        let context = SealContext { kind, id: record.id(), field: "record" };
        let bytes = record.encode();
        let version = if bytes.starts_with(br#"{"v":2,"#) { "v2" } else { "v1" };
        write_new(&self.folder.join(version).join(name), self.ring.seal(context, &bytes).as_bytes())
    }
}

fn key_ring(path: &Path) -> Outcome<KeyRing> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let key = KeyRing::new_key_file();
    let text = format!(
        "# Seals the fixtures beside it. Public, so it protects nothing; never use it elsewhere.\n{}",
        *key
    );
    write_new(path, text.as_bytes())?;
    Ok(KeyRing::parse(&fs::read_to_string(path)?)?)
}

fn write_new(path: &Path, bytes: &[u8]) -> Outcome {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            file.write_all(bytes)?;
            println!("wrote {}", path.display());
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => println!("kept {}", path.display()),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_millis(1_800_000_000_123 + secs * 1_000)
}

fn dead(cause: DeathCause) -> Lifecycle {
    Lifecycle::ReauthorizationRequired { since: at(12), cause }
}

fn integration() -> Outcome<Integration> {
    let instance = InstanceOrigin::parse("https://dev1.service-now.com")?;
    let machine =
        Profile { grant_type: GrantType::ClientCredentials, scopes: vec!["useraccount".to_owned()] };
    Ok(Integration {
        id: IntegrationId::parse("dev1")?,
        provider: Provider::Servicenow,
        client_id: "client-1".to_owned(),
        client_secret: Some(ClientSecret::parse(r#"client "secret" \ 1"#.to_owned())?),
        endpoints: Endpoints::servicenow(&instance),
        instance,
        token_endpoint_auth: TokenEndpointAuth::Body,
        pkce: true,
        redirect_uri: "https://connect.example.com/oauth/callback".to_owned(),
        profiles: BTreeMap::from([
            (ProfileName::default(), Profile::default()),
            (ProfileName::parse("machine")?, machine),
        ]),
        refresh_token_lifetime: Integration::REFRESH_TOKEN_LIFETIME_DEFAULT,
        rotates_refresh_tokens: false,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        http2: false,
        created_at: at(1),
        updated_at: at(2),
    })
}

fn public_integration() -> Outcome<Integration> {
    let instance = InstanceOrigin::parse("http://127.0.0.1:9000")?;
    Ok(Integration {
        id: IntegrationId::parse("local")?,
        client_id: "client-2".to_owned(),
        client_secret: None,
        endpoints: Endpoints {
            authorization: "http://127.0.0.1:9001/authorize".to_owned(),
            token: "http://127.0.0.1:9001/token".to_owned(),
            revocation: "http://127.0.0.1:9001/revoke".to_owned(),
        },
        instance,
        token_endpoint_auth: TokenEndpointAuth::Basic,
        pkce: false,
        refresh_token_lifetime: Duration::from_hours(1),
        rotates_refresh_tokens: false,
        ca_file: Some("/etc/bearerd/local-ca.pem".to_owned()),
        ..integration()?
    })
}

fn complete_integration() -> Outcome<Integration> {
    Ok(Integration {
        id: IntegrationId::parse("complete")?,
        provider: Provider::Generic,
        rotates_refresh_tokens: true,
        ca_file: Some("/etc/bearerd/ca.pem".to_owned()),
        client_certificate_file: Some("/etc/bearerd/client.pem".to_owned()),
        client_key_file: Some("/etc/bearerd/client.key".to_owned()),
        http2: true,
        ..integration()?
    })
}

fn connection() -> Outcome<Connection> {
    Ok(Connection {
        labels: BTreeMap::from([
            ("stage".to_owned(), "prod".to_owned()),
            ("team".to_owned(), "Löhne".to_owned()),
        ]),
        expected_user: Some("hr.bot".to_owned()),
        user: Some(InstanceUser {
            sys_id: "6816f79cc0a8016401c5a33be04be441".to_owned(),
            user_name: "hr.bot".to_owned(),
            name: "HR Bot".to_owned(),
        }),
        frozen: Some(Freeze { since: at(13), reason: "audit".to_owned() }),
        health: Health::Failing {
            since: at(14),
            failures: 3,
            strikes: 2,
            reason: "token endpoint answered status 503".to_owned(),
        },
        grant: Some(Grant {
            generation: Generation(7),
            access_token: AccessToken::parse("access-7".to_owned())?,
            access_lifetime: Duration::from_millis(1_799_500),
            access_expires_at: at(1_800),
            refresh_token: Some(RefreshToken::parse("refresh-2".to_owned())?),
            previous_refresh_token: Some(RefreshToken::parse("refresh-1".to_owned())?),
            refresh_expires_at: Some(at(8_640_000)),
            granted_at: at(3),
            refreshed_at: at(4),
            scope: Some("useraccount".to_owned()),
        }),
        last_used_at: Some(at(15)),
        ..bare_connection("hr", Lifecycle::Active { since: at(5) })?
    })
}

fn bare_connection(id: &str, lifecycle: Lifecycle) -> Outcome<Connection> {
    Ok(Connection {
        id: ConnectionId::parse(id)?,
        integration: IntegrationId::parse("dev1")?,
        profile: ProfileName::default(),
        labels: BTreeMap::new(),
        expected_user: None,
        user: None,
        lifecycle,
        frozen: None,
        health: Health::Ok,
        grant: None,
        exchanges: Exchanges::default(),
        due_at: None,
        created_at: at(1),
        last_used_at: None,
    })
}

fn caller_key() -> Outcome<CallerKey> {
    Ok(CallerKey {
        id: CallerKeyId::parse("k1")?,
        description: "payroll".to_owned(),
        secrets: vec![
            KeySecret { hmac: [0xa1; 32], created_at: at(1), expires_at: Some(at(3_600)) },
            KeySecret { hmac: [0xa2; 32], created_at: at(2), expires_at: None },
        ],
        policies: vec![PolicyId::parse("read-hr")?, PolicyId::parse("write-hr")?],
        default_connection: Some(ConnectionId::parse("hr")?),
        expires_at: Some(at(86_400)),
        created_at: at(1),
        last_used_at: None,
    })
}

fn policy() -> Outcome<Policy> {
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(ToString::to_string).collect() };
    Ok(Policy {
        id: PolicyId::parse("read-hr")?,
        description: "reads cases".to_owned(),
        rules: vec![
            Rule::new(ConnectionSelector::All, TableSet::All, MethodSet(set(&["GET"]))),
            Rule::new(
                ConnectionSelector::Ids(BTreeSet::from([ConnectionId::parse("hr")?])),
                TableSet::Named(set(&["incident", "sn_hr_core_case"])),
                MethodSet(set(&["PATCH", "POST"])),
            ),
            Rule::new(
                ConnectionSelector::Labels(BTreeMap::from([("team".to_owned(), "hr".to_owned())])),
                TableSet::Named(BTreeSet::new()),
                MethodSet(BTreeSet::new()),
            ),
        ],
        rate: None,
        concurrency_max: None,
        created_at: at(1),
        updated_at: at(2),
    })
}

fn complete_policy() -> Outcome<Policy> {
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(ToString::to_string).collect() };
    let hr = ConnectionSelector::Ids(BTreeSet::from([ConnectionId::parse("hr")?]));
    let own = TableSet::Named(set(&["sn_hr_core_case"]));
    let families = ["attachment", "now/ui", "sn_sc"];
    Ok(Policy {
        id: PolicyId::parse("read-own-hr")?,
        description: "reads its own cases".to_owned(),
        rules: vec![
            Rule {
                records: Some(RecordRule {
                    condition: "active=true".to_owned(),
                    fields: Some(set(&["number", "state"])),
                    limit_max: 500,
                    checked_at: BTreeSet::from([InstanceOrigin::parse("https://dev1.service-now.com")?]),
                }),
                ..Rule::new(hr.clone(), own, MethodSet(set(&["GET"])))
            },
            Rule {
                families: families.into_iter().map(FamilyName::parse).collect::<Result<_, _>>()?,
                networks: vec!["10.0.0.0/8".parse()?, "2001:db8::/32".parse()?],
                expires_at: Some(at(86_400)),
                ..Rule::new(hr, TableSet::All, MethodSet(set(&["GET"])))
            },
        ],
        rate: Some(RateLimit { calls: 100, per_s: 60, burst: Some(20) }),
        concurrency_max: Some(8),
        created_at: at(1),
        updated_at: at(2),
    })
}

fn connect_link() -> Outcome<ConnectLink> {
    Ok(ConnectLink {
        hash: "d1".repeat(32),
        connection: ConnectionId::parse("hr")?,
        requested_by: "ops@example.com".to_owned(),
        created_at: at(1),
        expires_at: at(601),
    })
}

fn consent_flow() -> Outcome<ConsentFlow> {
    Ok(ConsentFlow {
        state_hash: "e1".repeat(32),
        cookie_hash: [0xc0; 32],
        connection: ConnectionId::parse("hr")?,
        integration: IntegrationId::parse("dev1")?,
        instance: InstanceOrigin::parse("https://dev1.service-now.com")?,
        profile: ProfileName::default(),
        redirect_uri: "https://connect.example.com/oauth/callback".to_owned(),
        verifier: Some(PkceVerifier::parse("v".repeat(43))?),
        requested_by: "ops@example.com".to_owned(),
        expires_at: at(601),
    })
}

fn failed_outcome() -> ConsentOutcome {
    ConsentOutcome {
        id: "f1".repeat(16),
        result: ConsentResult::Failed {
            code: "redirect_uri_refused".to_owned(),
            message: "ServiceNow refused the redirect URL.".to_owned(),
            fix: "Add the redirect URL to the application registry.".to_owned(),
            detail: Some("invalid_request".to_owned()),
            error_id: "01890a5d".to_owned(),
        },
        expires_at: at(601),
    }
}

fn revocation() -> Outcome<Revocation> {
    Ok(Revocation {
        id: "a1".repeat(32),
        token: RevokedToken::Refresh(RefreshToken::parse("refresh-2".to_owned())?),
        came_with: None,
        connection: ConnectionId::parse("hr")?,
        grant: None,
        integration: integration()?,
        queued_at: at(20),
        ends_at: Some(at(8_640_000)),
        attempts: 3,
        due_at: at(21),
    })
}

fn revocation_gate() -> RevocationGate {
    RevocationGate {
        id: "b1".repeat(32),
        entered: 1_800_000_000_123,
        obtaining: BTreeMap::from([("one".to_owned(), at(600))]),
        calling: Some(RevocationCall { id: "two".to_owned(), until: at(15) }),
    }
}

fn connected_outcome() -> Outcome<ConsentOutcome> {
    Ok(ConsentOutcome {
        id: "f3".repeat(16),
        result: ConsentResult::Connected {
            connection: ConnectionId::parse("hr")?,
            instance: InstanceOrigin::parse("https://dev1.service-now.com")?,
            user: "HR Bot".to_owned(),
            user_name: "hr.bot".to_owned(),
            awaits_confirmation: true,
        },
        expires_at: at(602),
    })
}
