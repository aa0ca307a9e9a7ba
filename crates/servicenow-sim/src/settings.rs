//! What a simulator is started with: where it listens, who exists on the instance, and which OAuth clients.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::behaviour::Behaviour;
use crate::seed::SeedData;

/// Settings of one simulator. The default is the demo instance on a free port.
#[derive(Clone, Debug)]
pub struct SimSettings {
    /// Port 0 means any free port.
    pub listen: SocketAddr,
    /// Default: clear text.
    pub tls: Option<SimTls>,
    pub behaviour: Behaviour,
    pub seed: SeedData,
    pub clients: Vec<ClientSettings>,
    pub users: Vec<UserSettings>,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            behaviour: Behaviour::default(),
            seed: SeedData::demo(),
            clients: vec![ClientSettings::demo()],
            users: UserSettings::demo(),
        }
    }
}

/// The instance's certificate. Everything is PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimTls {
    /// The instance's certificate, then its intermediates.
    pub certificate: String,
    pub private_key: String,
    /// Clients must show a certificate that one of these signed.
    pub client_ca: Option<String>,
    /// Offered in this order.
    pub alpn: Vec<String>,
}

impl SimTls {
    /// HTTP/2 and HTTP/1.1, no client certificates.
    pub fn new(certificate: String, private_key: String) -> Self {
        let alpn = ["h2", "http/1.1"].map(str::to_owned).into();
        Self { certificate, private_key, client_ca: None, alpn }
    }
}

/// One OAuth client record (`oauth_entity`) of the instance.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    pub client_id: String,
    /// `None` makes a public client, which must use PKCE.
    pub client_secret: Option<String>,
    /// A further secret that is accepted too, as while a secret is being changed.
    pub next_client_secret: Option<String>,
    /// An authorization request that names none of these is answered at the first.
    pub redirect_uris: Vec<String>,
    /// User name that `client_credentials` acts as; without one that grant is refused.
    pub application_user: Option<String>,
    /// Seconds; default: the behaviour's.
    pub access_token_lifetime_s: Option<u64>,
    /// Seconds; default: the behaviour's.
    pub refresh_token_lifetime_s: Option<u64>,
    /// Auth scopes of the client record; empty = `useraccount`, and any requested scope passes.
    pub scopes: Vec<String>,
    /// An inactive client is refused everywhere.
    pub active: bool,
    /// Keys that verify assertions of the JWT bearer grant.
    pub jwt_verifiers: Vec<JwtVerifier>,
    /// `sys_user` field that an assertion's `sub` names.
    pub jwt_user_field: String,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            client_id: String::new(),
            client_secret: None,
            next_client_secret: None,
            redirect_uris: Vec::new(),
            application_user: None,
            access_token_lifetime_s: None,
            refresh_token_lifetime_s: None,
            scopes: Vec::new(),
            active: true,
            jwt_verifiers: Vec::new(),
            jwt_user_field: "user_name".to_owned(),
        }
    }
}

impl ClientSettings {
    /// `bearerd-demo` with secret `demo-secret`, as `bearerd demo` uses it.
    pub fn demo() -> Self {
        Self {
            client_id: "bearerd-demo".to_owned(),
            client_secret: Some("demo-secret".to_owned()),
            redirect_uris: vec!["http://127.0.0.1:8081/oauth/callback".to_owned()],
            application_user: Some("svc.integration".to_owned()),
            ..Self::default()
        }
    }

    pub(crate) fn scope(&self) -> String {
        if self.scopes.is_empty() { "useraccount".to_owned() } else { self.scopes.join(" ") }
    }

    /// Whether every scope of a space-separated request is one of this client's.
    pub(crate) fn allows_scope(&self, requested: &str) -> bool {
        self.scopes.is_empty()
            || requested.split_ascii_whitespace().all(|scope| self.scopes.iter().any(|own| own == scope))
    }
}

/// A key that verifies assertions of the JWT bearer grant (RFC 7523).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct JwtVerifier {
    /// Picks this verifier when the assertion's header has the same `kid`.
    #[serde(default)]
    pub kid: Option<String>,
    /// `HS256` … `HS512`, `RS256` … `RS512`, `ES256`, `ES384`.
    pub algorithm: String,
    /// Shared key as text for HS, public key in PEM (`PUBLIC KEY`) for RS and ES.
    pub key: String,
}

/// One user of the instance, with what it signs in with.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct UserSettings {
    pub user_name: String,
    /// `None`: cannot sign in with a password.
    pub password: Option<String>,
    /// Native API key (`x-sn-apikey`).
    pub api_key: Option<String>,
    /// 32 hexadecimal digits; default: derived from the user name.
    pub sys_id: Option<String>,
    pub first_name: String,
    pub last_name: String,
    /// Default: `{user_name}@example.com`.
    pub email: Option<String>,
    pub active: bool,
    pub locked_out: bool,
    pub roles: Vec<String>,
}

impl Default for UserSettings {
    fn default() -> Self {
        Self {
            user_name: String::new(),
            password: None,
            api_key: None,
            sys_id: None,
            first_name: String::new(),
            last_name: String::new(),
            email: None,
            active: true,
            locked_out: false,
            roles: Vec::new(),
        }
    }
}

impl UserSettings {
    /// The users of the demo instance. Passwords: `admin` for `admin`, `svc` for `svc.integration`, else `demo`.
    pub fn demo() -> Vec<Self> {
        let users: [DemoUser; 8] = [
            (
                "admin",
                "admin",
                "System",
                "Administrator",
                Some("6816f79cc0a8016401c5a33be04be441"),
                &["admin"],
            ),
            ("svc.integration", "svc", "Service", "Integration", None, &["itil", "rest_service"]),
            ("abel.tuter", "demo", "Abel", "Tuter", Some("62826bf03710200044e0bfc8bcbe5df1"), &[]),
            ("beth.anglin", "demo", "Beth", "Anglin", Some("46d44a23a9fe19810012d100cca80666"), &["itil"]),
            ("david.loo", "demo", "David", "Loo", None, &["itil"]),
            ("fred.luddy", "demo", "Fred", "Luddy", None, &["itil", "itil_admin"]),
            ("bow.ruggeri", "demo", "Bow", "Ruggeri", None, &["itil"]),
            ("joe.employee", "demo", "Joe", "Employee", None, &[]),
        ];
        users
            .into_iter()
            .map(|(user_name, password, first_name, last_name, sys_id, roles)| Self {
                user_name: user_name.to_owned(),
                password: Some(password.to_owned()),
                sys_id: sys_id.map(str::to_owned),
                first_name: first_name.to_owned(),
                last_name: last_name.to_owned(),
                roles: roles.iter().map(|role| (*role).to_owned()).collect(),
                ..Self::default()
            })
            .collect()
    }

    /// The `sys_id` this user has on the instance.
    pub fn sys_id(&self) -> String {
        self.sys_id
            .clone()
            .unwrap_or_else(|| crate::secrets::sys_id_for(&format!("sys_user:{}", self.user_name)))
    }

    pub(crate) fn display_name(&self) -> String {
        let name = format!("{} {}", self.first_name, self.last_name);
        let name = name.trim();
        if name.is_empty() { self.user_name.clone() } else { name.to_owned() }
    }
}

/// User name, password, first and last name, well-known `sys_id`, roles.
type DemoUser =
    (&'static str, &'static str, &'static str, &'static str, Option<&'static str>, &'static [&'static str]);
