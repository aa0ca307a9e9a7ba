//! Where the servers are, how to log in, and whether they may hold connections.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use bearerd_model::SecretText;
use bearerd_store::StoreError;
use redis::{FromRedisValue, RedisConnectionInfo, cmd};
use url::Url;

use crate::{
    cluster::Cluster,
    dialer::{Address, Dialer, Tls},
    link::{self, Failure, Link, Request, info_field},
    sentinel::Sentinels,
    servers::Servers,
    write::{Replicas, read_error},
};

/// How to reach Redis. `Debug` shows no secret, not even one that was put into the URL by mistake.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://host[:port][/database]`, or `rediss://…` for TLS. Without user and password. With sentinels or a
    /// cluster, only scheme and database count.
    pub url: String,
    /// `host:port` of the sentinels that know the primary, which then is where they say; empty: none are asked.
    pub sentinels: Vec<String>,
    /// Name under which the sentinels know the primary.
    pub sentinel_service: String,
    /// ACL user at the sentinels.
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<SecretText>,
    /// `host:port` of some nodes of a cluster, which know the others; empty: it is no cluster.
    pub cluster: Vec<String>,
    /// Replicas that must have a write of a watched kind, or of what is to be revoked, before it is done; 0: none need
    /// to.
    pub replicas_min: u32,
    /// How long a write waits for them.
    pub replicas_timeout: Duration,
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
        "{address} may throw connections away when it is full (maxmemory-policy {policy}): \
         set `maxmemory-policy noeviction`"
    )]
    Evicts { address: String, policy: String },
    #[error("{address} is a replica: name its primary in the settings")]
    Replica { address: String },
}

impl RedisSettings {
    /// With the timeouts and the prefix that fit most.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            sentinels: vec![],
            sentinel_service: "mymaster".to_owned(),
            sentinel_username: None,
            sentinel_password: None,
            cluster: vec![],
            replicas_min: 0,
            replicas_timeout: Duration::from_secs(1),
            username: None,
            password: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(1),
            key_prefix: "bearerd".to_owned(),
        }
    }

    /// The servers; of a cluster, as its nodes tell them, else not yet connected to.
    pub(crate) async fn servers(&self) -> Result<Servers, ConnectRedisError> {
        let wrong = ConnectRedisError::Settings;
        if !is_prefix(&self.key_prefix) {
            return Err(wrong("a key prefix is 1 to 64 of A-Z, a-z, 0-9, '.', '_', ':', '-'"));
        }
        let Place { address, database, tls } = Place::parse(&self.url)?;
        let tls = match (tls, &self.ca_file) {
            (true, _) => Some(Tls { authorities: self.read_ca_file().await? }),
            (false, Some(_)) => return Err(wrong("a CA file goes with a rediss:// URL")),
            (false, None) => None,
        };
        let dialer = Dialer {
            login: login(self.username.as_ref(), self.password.as_ref())?.set_db(database),
            tls,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
        };
        self.check(&dialer, &address)?;
        match (&self.sentinels[..], &self.cluster[..]) {
            ([], []) => Ok(Servers::One(Arc::new(Link::fixed(dialer, address)))),
            (sentinels, []) => {
                let of_sentinels = Dialer {
                    login: login(self.sentinel_username.as_ref(), self.sentinel_password.as_ref())?,
                    ..dialer.clone()
                };
                let addresses = addresses(sentinels)?;
                let sentinels = Sentinels::new(self.sentinel_service.clone(), addresses, &of_sentinels);
                Ok(Servers::One(Arc::new(Link::through(dialer, sentinels))))
            }
            ([], _) if database != 0 => {
                Err(wrong("a cluster has no database but 0: leave it out of the URL"))
            }
            ([], nodes) => {
                let cluster = Cluster::connect(dialer, addresses(nodes)?).await;
                cluster.map(Servers::Cluster).map_err(start_error)
            }
            _ => Err(wrong("sentinels and a cluster: name one of them")),
        }
    }

    /// Whoever makes a TLS client learns only that it is wrong; here is still known what.
    fn check(&self, dialer: &Dialer, address: &Address) -> Result<(), ConnectRedisError> {
        if dialer.tls.is_some() {
            // A TLS client must have chosen a provider; `main` has, and then this does nothing.
            drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        }
        dialer.client(address).map(drop).map_err(|_| match &self.ca_file {
            Some(path) => ConnectRedisError::MalformedCaFile { path: path.clone() },
            None => ConnectRedisError::Settings(NOT_A_URL),
        })
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
        let Self {
            url,
            sentinels,
            sentinel_service,
            sentinel_username,
            sentinel_password,
            cluster,
            replicas_min,
            replicas_timeout,
            username,
            password,
            ca_file,
            connect_timeout,
            response_timeout,
            key_prefix,
        } = self;
        let shown = |url: &String| if url.contains('@') { "redacted".to_owned() } else { url.clone() };
        f.debug_struct("RedisSettings")
            .field("url", &shown(url))
            .field("sentinels", &sentinels.iter().map(shown).collect::<Vec<_>>())
            .field("sentinel_service", sentinel_service)
            .field("sentinel_username", sentinel_username)
            .field("sentinel_password", sentinel_password)
            .field("cluster", &cluster.iter().map(shown).collect::<Vec<_>>())
            .field("replicas_min", replicas_min)
            .field("replicas_timeout", replicas_timeout)
            .field("username", username)
            .field("password", password)
            .field("ca_file", ca_file)
            .field("connect_timeout", connect_timeout)
            .field("response_timeout", response_timeout)
            .field("key_prefix", key_prefix)
            .finish()
    }
}

fn login(
    username: Option<&String>,
    password: Option<&SecretText>,
) -> Result<RedisConnectionInfo, ConnectRedisError> {
    let mut login = RedisConnectionInfo::default();
    match (username, password) {
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
    Ok(login)
}

/// Of `host:port` each.
fn addresses(texts: &[String]) -> Result<Vec<Address>, ConnectRedisError> {
    let wrong = || ConnectRedisError::Settings("a sentinel or a cluster's node is written HOST:PORT");
    let address = |text: &String| {
        let url = Url::parse(&format!("redis://{text}")).map_err(|_| wrong())?;
        let rest = [url.username(), url.password().unwrap_or_default(), url.path()].concat();
        match (url.host_str(), url.port(), rest.is_empty(), url.query(), url.fragment()) {
            (Some(host), Some(port), true, None, None) if !host.is_empty() => {
                Ok(Address { host: bare(host), port })
            }
            _ => Err(wrong()),
        }
    };
    texts.iter().map(address).collect()
}

#[derive(Debug)]
struct Place {
    address: Address,
    database: i64,
    tls: bool,
}

impl Place {
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
        let address = Address { host: bare(&host), port: url.port().unwrap_or(PORT_DEFAULT) };
        Ok(Self { address, database, tls })
    }
}

/// Asks every server that takes writes whether it may hold connections; gives what an operator should know. Reads
/// only.
pub(crate) async fn check_servers(
    servers: &Servers,
    replicas: Option<Replicas>,
) -> Result<Vec<String>, ConnectRedisError> {
    let mut warnings = Vec::new();
    for link in servers.primaries() {
        warnings.extend(check_server(&link, replicas).await?);
    }
    Ok(warnings)
}

async fn check_server(link: &Link, replicas: Option<Replicas>) -> Result<Vec<String>, ConnectRedisError> {
    ask(link, &cmd("PING")).await?;
    let Some(info) = ask_if_permitted::<String>(link, &cmd("INFO")).await? else {
        return Ok(vec![link.text(
            "does not let this user run INFO, so its eviction policy and persistence are not checked: \
             it must have `maxmemory-policy noeviction` and `appendonly yes`",
        )]);
    };
    let address = link.name();
    if info_field(&info, "role") == Some("slave") {
        return Err(ConnectRedisError::Replica { address });
    }
    if let Some(policy) = link::evicting_policy(&info) {
        return Err(ConnectRedisError::Evicts { address, policy: policy.to_owned() });
    }
    let mut warnings = Vec::new();
    if let Some(Replicas { min, .. }) = replicas {
        // Confirms nothing, and shows whether this user may ask.
        ask(link, cmd("WAIT").arg(0).arg(1)).await?;
        let found = info_field(&info, "connected_slaves").and_then(|count| count.parse().ok()).unwrap_or(0);
        if found < min {
            warnings.push(link.text(&format!(
                "has {found} replicas, and redis.replicas_min wants {min}: no change of a connection, key, policy \
                 or integration will be confirmed; bring them up"
            )));
        }
    }
    if info_field(&info, "aof_enabled") == Some("0") {
        warnings.push(link.text(
            "keeps no append-only file: a restart of it may lose grants, and people must consent again; \
             set `appendonly yes` and `appendfsync always`",
        ));
        return Ok(warnings);
    }
    let mut get_fsync = cmd("CONFIG");
    get_fsync.arg("GET").arg("appendfsync");
    let fsync = ask_if_permitted::<Vec<String>>(link, &get_fsync).await?.unwrap_or_default();
    match fsync.get(1).map(String::as_str) {
        None | Some("always") => {}
        Some(found) => warnings.push(link.text(&format!(
            "may lose the last seconds of writes when its machine loses power (appendfsync {found}); \
             set `appendfsync always`"
        ))),
    }
    Ok(warnings)
}

async fn ask(link: &Link, command: &redis::Cmd) -> Result<redis::Value, ConnectRedisError> {
    link.ask(Request::One(command)).await.map_err(|failure| start_error(read_error(failure)))
}

/// `None` where the server's ACL, or its provider, does not let this user ask.
async fn ask_if_permitted<T: FromRedisValue>(
    link: &Link,
    command: &redis::Cmd,
) -> Result<Option<T>, ConnectRedisError> {
    match link.ask(Request::One(command)).await {
        Ok(value) => Ok(T::from_redis_value(value).ok()),
        Err(Failure::Answered { error, .. }) if matches!(link::code(&error), "NOPERM" | "ERR") => Ok(None),
        Err(failure) => Err(start_error(read_error(failure))),
    }
}

fn start_error(error: StoreError) -> ConnectRedisError {
    match error {
        StoreError::Refused(why) => ConnectRedisError::Refused { why },
        StoreError::Unreachable(why) | StoreError::OutcomeUnknown(why) => {
            ConnectRedisError::Unreachable { why }
        }
        error @ StoreError::Damaged { .. } => ConnectRedisError::Refused { why: error.to_string() },
    }
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
            ("rediss://[::1]:6380/", ("::1", 6380, 0, true)),
            ("valkeys://v", ("v", 6379, 0, true)),
        ] {
            let Place { address: Address { host, port }, database, tls } = Place::parse(text).unwrap();
            assert_eq!((host.as_str(), port, database, tls), expected, "{text}");
        }
        for text in
            ["", "127.0.0.1:6379", "http://h", "redis://", "redis://h/x", "redis://h?db=1", "redis://h#x"]
        {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_host_and_port() {
        let parse = |text: &str| addresses(&[text.to_owned()]);
        for (text, host) in
            [("10.0.0.1:26379", "10.0.0.1"), ("[::1]:26379", "::1"), ("a.example:26379", "a.example")]
        {
            let expected = Address { host: host.to_owned(), port: 26379 };
            assert_eq!(expected.to_string(), text);
            assert_eq!(parse(text).unwrap(), [expected], "{text}");
        }
        for text in ["", "h", ":1", "h:", "h:x", "redis://h:1", "u@h:1", "u:p@h:1", "h:1/2", "h:1?x", "h:1#x"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// S-09, O-53: neither a wrong URL nor the settings show a password.
    #[tokio::test]
    async fn secrets_do_not_show() {
        let mut settings = RedisSettings::new("redis://user:canary@127.0.0.1");
        let error = settings.servers().await.err().unwrap();
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
            let error = settings.servers().await.err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(|settings| settings.key_prefix = "a{b}".to_owned(), "key prefix").await;
        check(|settings| settings.key_prefix = String::new(), "key prefix").await;
        check(|settings| settings.username = Some("u".to_owned()), "without a password").await;
        check(|settings| settings.ca_file = Some("ca.pem".into()), "rediss://").await;
        check(|settings| settings.sentinels = vec!["h".to_owned()], "HOST:PORT").await;
        let with_both = |settings: &mut RedisSettings| {
            settings.sentinels = vec!["h:1".to_owned()];
            settings.cluster = vec!["h:1".to_owned()];
        };
        check(with_both, "name one of them").await;
        let with_database = |settings: &mut RedisSettings| {
            settings.url = "redis://127.0.0.1/1".to_owned();
            settings.cluster = vec!["h:1".to_owned()];
        };
        check(with_database, "no database but 0").await;
        let with_ca_file = |settings: &mut RedisSettings| {
            settings.url = "rediss://127.0.0.1".to_owned();
            settings.ca_file = Some("/missing/ca.pem".into());
        };
        check(with_ca_file, "/missing/ca.pem").await;
    }
}
