//! Where the server is, how to log in, and whether it may hold connections.

use std::{fmt, path::PathBuf, time::Duration};

use bearerd_model::SecretText;
use bearerd_store::StoreError;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo,
    TlsCertificates, cmd,
};
use url::Url;

use crate::link::{self, Failure, Link, Request};

/// How to reach Redis. `Debug` shows no secret, not even one that was put into the URL by mistake.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://host[:port][/database]`, or `rediss://…` for TLS. Without user and password.
    pub url: String,
    /// ACL user; `None` is Redis's `default`.
    pub username: Option<String>,
    pub password: Option<SecretText>,
    /// PEM file with the authorities that vouch for the server, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// For a connection with TLS and login.
    pub connect_timeout: Duration,
    /// For one answer.
    pub response_timeout: Duration,
    /// Begins every key: lets several bearerds, or others, share a database.
    pub key_prefix: String,
}

/// Why a store in Redis was not opened: one line with the server, what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectRedisError {
    #[error("the Redis settings are wrong: {0}")]
    Settings(&'static str),
    #[error("the CA file {} of Redis cannot be read", path.display())]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("the CA file {} of Redis holds no certificate in PEM", path.display())]
    MalformedCaFile { path: PathBuf },
    #[error("{why}; start Redis there, or correct the URL, the TLS settings or the network in between")]
    Unreachable { why: String },
    #[error("{why}")]
    Refused { why: String },
    #[error(
        "Redis at {address} may throw connections away when it is full (maxmemory-policy {policy}): \
         set `maxmemory-policy noeviction`"
    )]
    Evicts { address: String, policy: String },
    #[error("Redis at {address} is a replica: name its primary in the settings")]
    Replica { address: String },
}

impl RedisSettings {
    /// With the timeouts and the prefix that fit most.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            username: None,
            password: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(1),
            key_prefix: "bearerd".to_owned(),
        }
    }

    /// The link, not yet connected.
    pub(crate) async fn link(&self) -> Result<Link, ConnectRedisError> {
        if !is_prefix(&self.key_prefix) {
            return Err(ConnectRedisError::Settings(
                "a key prefix is 1 to 64 of A-Z, a-z, 0-9, '.', '_', ':', '-'",
            ));
        }
        let Address { host, port, database, tls } = Address::parse(&self.url)?;
        let address = format!("{host}:{port}");
        let client = if tls {
            let root_cert = self.read_ca_file().await?;
            // Whoever makes a TLS client must have chosen one; `main` has, and then this does nothing.
            drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
            let at = ConnectionAddr::TcpTls { host: bare(&host), port, insecure: false, tls_params: None };
            Client::build_with_tls(self.info(at, database)?, TlsCertificates { client_tls: None, root_cert })
                .map_err(|_| match &self.ca_file {
                    Some(path) => ConnectRedisError::MalformedCaFile { path: path.clone() },
                    None => ConnectRedisError::Settings(NOT_A_URL),
                })?
        } else if self.ca_file.is_some() {
            return Err(ConnectRedisError::Settings("a CA file goes with a rediss:// URL"));
        } else {
            Client::open(self.info(ConnectionAddr::Tcp(bare(&host), port), database)?)
                .map_err(|_| ConnectRedisError::Settings(NOT_A_URL))?
        };
        Ok(Link::new(client, address, self.connect_timeout, self.response_timeout))
    }

    fn info(&self, at: ConnectionAddr, database: i64) -> Result<ConnectionInfo, ConnectRedisError> {
        let mut login = RedisConnectionInfo::default().set_db(database);
        match (&self.username, &self.password) {
            (Some(_), None) => return Err(ConnectRedisError::Settings("a user name without a password")),
            (username, password) => {
                if let Some(username) = username {
                    login = login.set_username(username);
                }
                if let Some(password) = password {
                    login = login.set_password(password.expose());
                }
            }
        }
        let info = at.into_connection_info().map_err(|_| ConnectRedisError::Settings(NOT_A_URL))?;
        Ok(info.set_redis_settings(login))
    }

    async fn read_ca_file(&self) -> Result<Option<Vec<u8>>, ConnectRedisError> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let pem = tokio::fs::read(path)
            .await
            .map_err(|source| ConnectRedisError::CaFile { path: path.clone(), source })?;
        // Without one, every server would be refused, with a text that does not say why.
        if !pem.windows(CERTIFICATE.len()).any(|window| window == CERTIFICATE) {
            return Err(ConnectRedisError::MalformedCaFile { path: path.clone() });
        }
        Ok(Some(pem))
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, username, password, ca_file, connect_timeout, response_timeout, key_prefix } = self;
        f.debug_struct("RedisSettings")
            .field("url", &if url.contains('@') { "redacted" } else { url })
            .field("username", username)
            .field("password", password)
            .field("ca_file", ca_file)
            .field("connect_timeout", connect_timeout)
            .field("response_timeout", response_timeout)
            .field("key_prefix", key_prefix)
            .finish()
    }
}

struct Address {
    /// As in the URL; an IPv6 address is in brackets.
    host: String,
    port: u16,
    database: i64,
    tls: bool,
}

impl Address {
    fn parse(text: &str) -> Result<Self, ConnectRedisError> {
        let wrong = ConnectRedisError::Settings;
        let url = Url::parse(text).map_err(|_| wrong(NOT_A_URL))?;
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(wrong(NOT_A_URL)),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("the URL must not hold a user or a password: they have settings of their own"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(NOT_A_URL));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(wrong(NOT_A_URL))?.to_owned();
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            number => number.parse::<u16>().map(i64::from).map_err(|_| wrong(NOT_A_URL))?,
        };
        Ok(Self { host, port: url.port().unwrap_or(PORT_DEFAULT), database, tls })
    }
}

/// Asks the server whether it may hold connections; gives what an operator should know. Reads only.
pub(crate) async fn check_server(link: &Link) -> Result<Vec<String>, ConnectRedisError> {
    ask(link, &cmd("PING")).await?;
    let Some(info) = ask_if_permitted::<String>(link, &cmd("INFO")).await? else {
        return Ok(vec![link.text(
            "does not let this user run INFO, so its eviction policy and persistence are not checked: \
             it must have `maxmemory-policy noeviction` and `appendonly yes`",
        )]);
    };
    let address = link.address().to_owned();
    if info_field(&info, "role") == Some("slave") {
        return Err(ConnectRedisError::Replica { address });
    }
    match info_field(&info, "maxmemory_policy") {
        None | Some("noeviction") => {}
        Some(policy) => return Err(ConnectRedisError::Evicts { address, policy: policy.to_owned() }),
    }
    if info_field(&info, "aof_enabled") == Some("0") {
        return Ok(vec![link.text(
            "keeps no append-only file: a restart of it may lose grants, and people must consent again; \
             set `appendonly yes` and `appendfsync always`",
        )]);
    }
    let mut get_fsync = cmd("CONFIG");
    get_fsync.arg("GET").arg("appendfsync");
    let fsync = ask_if_permitted::<Vec<String>>(link, &get_fsync).await?.unwrap_or_default();
    Ok(match fsync.get(1).map(String::as_str) {
        None | Some("always") => vec![],
        Some(found) => vec![link.text(&format!(
            "may lose the last seconds of writes when its machine loses power (appendfsync {found}); \
             set `appendfsync always`"
        ))],
    })
}

async fn ask(link: &Link, command: &redis::Cmd) -> Result<redis::Value, ConnectRedisError> {
    link.ask(Request::One(command)).await.map_err(|failure| start_error(link, failure))
}

/// `None` where the server's ACL, or its provider, does not let this user ask.
async fn ask_if_permitted<T: FromRedisValue>(
    link: &Link,
    command: &redis::Cmd,
) -> Result<Option<T>, ConnectRedisError> {
    match link.ask(Request::One(command)).await {
        Ok(value) => Ok(T::from_redis_value(value).ok()),
        Err(Failure::Answered(error)) if matches!(link::code(&error), "NOPERM" | "ERR") => Ok(None),
        Err(failure) => Err(start_error(link, failure)),
    }
}

fn start_error(link: &Link, failure: Failure) -> ConnectRedisError {
    let error = match failure {
        Failure::NotSent(error) => error,
        Failure::Lost { why, .. } => StoreError::Unreachable(why),
        Failure::Answered(error) => link.refusal(&error),
    };
    match error {
        StoreError::Refused(why) => ConnectRedisError::Refused { why },
        StoreError::Unreachable(why) | StoreError::OutcomeUnknown(why) => {
            ConnectRedisError::Unreachable { why }
        }
        error @ StoreError::Damaged { .. } => ConnectRedisError::Refused { why: error.to_string() },
    }
}

fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The host without the brackets that a URL puts around an IPv6 address.
fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn is_prefix(text: &str) -> bool {
    let admitted = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(admitted)
}

const NOT_A_URL: &str = "the URL is not redis://HOST[:PORT][/DATABASE] or rediss://…";
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const PORT_DEFAULT: u16 = 6379;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, expected) in [
            ("redis://127.0.0.1", ("127.0.0.1", 6379, 0, false)),
            ("redis://redis.example:7000/3", ("redis.example", 7000, 3, false)),
            ("rediss://[::1]:6380/", ("[::1]", 6380, 0, true)),
            ("valkeys://v", ("v", 6379, 0, true)),
        ] {
            let Address { host, port, database, tls } = Address::parse(text).unwrap();
            assert_eq!((host.as_str(), port, database, tls), expected, "{text}");
        }
        for text in
            ["", "127.0.0.1:6379", "http://h", "redis://", "redis://h/x", "redis://h?db=1", "redis://h#x"]
        {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    /// S-09, O-53: neither a wrong URL nor the settings show a password.
    #[tokio::test]
    async fn secrets_do_not_show() {
        let mut settings = RedisSettings::new("redis://user:canary@127.0.0.1");
        let error = settings.link().await.err().unwrap();
        assert!(!format!("{error} {error:?} {settings:?}").contains("canary"), "{error}");
        settings = RedisSettings::new("redis://127.0.0.1");
        settings.password = Some(SecretText::parse("canary".to_owned()).unwrap());
        assert!(!format!("{settings:?}").contains("canary"));
    }

    #[tokio::test]
    async fn settings_that_contradict_are_refused() {
        let check = async |change: fn(&mut RedisSettings), part: &str| {
            let mut settings = RedisSettings::new("redis://127.0.0.1");
            change(&mut settings);
            let error = settings.link().await.err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(|settings| settings.key_prefix = "a{b}".to_owned(), "key prefix").await;
        check(|settings| settings.key_prefix = String::new(), "key prefix").await;
        check(|settings| settings.username = Some("u".to_owned()), "without a password").await;
        check(|settings| settings.ca_file = Some("ca.pem".into()), "rediss://").await;
        let with_ca_file = |settings: &mut RedisSettings| {
            settings.url = "rediss://127.0.0.1".to_owned();
            settings.ca_file = Some("/missing/ca.pem".into());
        };
        check(with_ca_file, "/missing/ca.pem").await;
    }
}
