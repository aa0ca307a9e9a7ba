//! The settings `[proxy]`, as an operator writes them and as the workers use them.

use std::time::Duration;

use bearerd_net::{CallerAddress, ListenSettings, SocketMode, TlsSettings};
use http::{HeaderName, Uri};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::{
    passing::{self, Passing},
    places::Bounds,
    route::Family,
};

/// The settings `[proxy]`. Units are in the names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// Where callers connect: `IP:PORT`, `unix:/PATH`, `inherited:NAME` or `inherited`.
    pub listen: String,
    /// Mode of a unix socket that the door makes: `0660`.
    pub listen_mode: SocketMode,
    /// Certificate and key; without them the door speaks plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Where callers' addresses come from: the peer, the PROXY protocol, or `Forwarded`.
    pub caller_address: CallerAddress,
    /// Networks of the proxies that are believed about it.
    pub trusted_proxies: Vec<IpNet>,
    /// `https://host[:port]` under which callers reach this door: `Link` and `Location` of answers point there.
    /// Default: the `Host` of each call.
    pub public_url: Option<String>,
    /// `host[:port]` that a call's `Host` must be, besides that of `public_url`. Empty: any.
    pub hosts: Vec<String>,
    /// Names of headers of requests that go on to the instance, besides those that always do.
    pub pass_request_headers: Vec<String>,
    /// Names of headers of answers that go on to the caller, besides those that always do.
    pub pass_answer_headers: Vec<String>,
    /// Threads, each with its own runtime and pools. 0: one per core. At most 256.
    pub workers: usize,
    /// Callers' connections per worker; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of all header names and values of a request. 1 to 256 KiB.
    pub headers_bytes_max: usize,
    /// Bytes of a request's path and query. 1 to 32 KiB.
    pub target_bytes_max: usize,
    /// From the first byte of a request's head to its last; also the TLS handshake.
    pub header_read_timeout_s: u64,
    /// Idle time after which a kept connection of a caller is closed.
    pub keep_alive_s: u64,
    /// Longest pause inside a body, in either direction.
    pub body_idle_timeout_s: u64,
    /// Idle time after which a connection to an instance is closed. Keep it below the instance's own.
    pub pool_idle_s: u64,
    /// Idle connections kept per worker and instance.
    pub pool_idle_max: usize,
    /// Bytes of a request body kept for the one replay after a 401, with what keeping small pieces costs. At most 1 MiB.
    pub replay_body_bytes_max: usize,
    /// How long caller keys are accepted while the store does not answer. 0: not at all.
    pub stale_keys_max_s: u64,
    /// Calls under way at one instance, over all workers; further ones wait. 1 to 65536.
    pub instance_calls_max: usize,
    /// Calls that wait for one instance; further ones are shed. 0 to 1048576.
    pub instance_queue_max: usize,
    /// How long a call waits for its instance before it is shed. 1 to 3600.
    pub instance_queue_wait_s: u64,
    /// Limits of a family's calls: `/api/now/table`.
    #[serde(deserialize_with = "FamilySettings::over_table")]
    pub table: FamilySettings,
    /// `/api/now/stats`
    #[serde(deserialize_with = "FamilySettings::over_stats")]
    pub stats: FamilySettings,
    /// `/api/now/attachment`
    #[serde(deserialize_with = "FamilySettings::over_attachment")]
    pub attachment: FamilySettings,
    /// `/api/now/import`
    #[serde(deserialize_with = "FamilySettings::over_import")]
    pub import: FamilySettings,
    /// Every further family that a policy opens by its name.
    #[serde(deserialize_with = "FamilySettings::over_other")]
    pub other: FamilySettings,
}

/// Limits of the calls of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilySettings {
    /// Bytes of a request body. 1 KiB to 1 TiB.
    pub body_bytes_max: u64,
    /// Until there is a connection to the instance, where a call needs a new one; `egress.connect_timeout_s` holds besides. 1 to 60.
    pub connect_timeout_s: u64,
    /// From the last byte of a request to the first byte of the instance's answer. 1 to 3600.
    pub first_byte_timeout_s: u64,
    /// From the first byte of a request to the last byte of the answer. 1 to 86400.
    pub total_timeout_s: u64,
}

/// As an operator writes it: what is not given is the family's own default.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenFamilySettings {
    body_bytes_max: Option<u64>,
    connect_timeout_s: Option<u64>,
    first_byte_timeout_s: Option<u64>,
    total_timeout_s: Option<u64>,
}

impl FamilySettings {
    pub const TABLE: Self = Self::new(10 << 20, 330);
    pub const STATS: Self = Self::new(1 << 20, 330);
    pub const ATTACHMENT: Self = Self::new(1 << 30, 3_600);
    pub const IMPORT: Self = Self::new(10 << 20, 330);
    pub const OTHER: Self = Self::new(10 << 20, 330);

    const fn new(body_bytes_max: u64, total_timeout_s: u64) -> Self {
        // ServiceNow cuts calls of its own accord after 60 s, its load balancers after five minutes.
        Self { body_bytes_max, connect_timeout_s: 60, first_byte_timeout_s: 60, total_timeout_s }
    }

    fn over<'de, D: Deserializer<'de>>(self, given: D) -> Result<Self, D::Error> {
        let given = GivenFamilySettings::deserialize(given)?;
        Ok(Self {
            body_bytes_max: given.body_bytes_max.unwrap_or(self.body_bytes_max),
            connect_timeout_s: given.connect_timeout_s.unwrap_or(self.connect_timeout_s),
            first_byte_timeout_s: given.first_byte_timeout_s.unwrap_or(self.first_byte_timeout_s),
            total_timeout_s: given.total_timeout_s.unwrap_or(self.total_timeout_s),
        })
    }

    fn over_table<'de, D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        Self::TABLE.over(given)
    }

    fn over_stats<'de, D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        Self::STATS.over(given)
    }

    fn over_attachment<'de, D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        Self::ATTACHMENT.over(given)
    }

    fn over_import<'de, D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        Self::IMPORT.over(given)
    }

    fn over_other<'de, D: Deserializer<'de>>(given: D) -> Result<Self, D::Error> {
        Self::OTHER.over(given)
    }

    fn limits(&self, names: [&'static str; 4]) -> Result<FamilyLimits, ProxySettingsError> {
        range(names[0], self.body_bytes_max, 1 << 10, 1 << 40)?;
        range(names[1], self.connect_timeout_s, 1, 60)?;
        range(names[2], self.first_byte_timeout_s, 1, 3_600)?;
        range(names[3], self.total_timeout_s, 1, 86_400)?;
        Ok(FamilyLimits {
            body_bytes_max: self.body_bytes_max,
            connect: Duration::from_secs(self.connect_timeout_s),
            first_byte_ms: self.first_byte_timeout_s * 1_000,
            total_ms: self.total_timeout_s * 1_000,
        })
    }
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            listen_mode: SocketMode::default(),
            tls: None,
            caller_address: CallerAddress::default(),
            trusted_proxies: Vec::new(),
            public_url: None,
            hosts: Vec::new(),
            pass_request_headers: Vec::new(),
            pass_answer_headers: Vec::new(),
            workers: 0,
            connections_max: 10_000,
            headers_bytes_max: 64 * 1024,
            target_bytes_max: 8 * 1024,
            header_read_timeout_s: 10,
            keep_alive_s: 75,
            body_idle_timeout_s: 30,
            pool_idle_s: 20,
            pool_idle_max: 256,
            replay_body_bytes_max: 64 * 1024,
            stale_keys_max_s: 3_600,
            instance_calls_max: 256,
            instance_queue_max: 1_024,
            instance_queue_wait_s: 10,
            table: FamilySettings::TABLE,
            stats: FamilySettings::STATS,
            attachment: FamilySettings::ATTACHMENT,
            import: FamilySettings::IMPORT,
            other: FamilySettings::OTHER,
        }
    }
}

/// Why the settings cannot be used; names the setting and what it may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxySettingsError {
    #[error("proxy.{name} is {given}, it must be between {min} and {max}")]
    Range { name: &'static str, given: u64, min: u64, max: u64 },
    #[error("proxy.public_url is not of the form https://host[:port], without path, user or query")]
    PublicUrl,
    #[error("proxy.hosts holds {0:?}, which is not host[:port]")]
    Host(String),
    #[error("proxy.{setting} holds {given:?}, which is no name of a header")]
    HeaderName { setting: &'static str, given: String },
    #[error("proxy.{setting} holds {given:?}, which bearerd never lets pass")]
    HeaderNeverPasses { setting: &'static str, given: String },
}

impl ProxySettings {
    /// What [`bearerd_net::Listener::bind`] takes.
    pub fn listen_settings(&self) -> ListenSettings {
        ListenSettings {
            address: self.listen.clone(),
            mode: self.listen_mode,
            tls: self.tls.clone(),
            caller_address: self.caller_address,
            trusted_proxies: self.trusted_proxies.clone(),
        }
    }

    /// Threads to start.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX),
            count => count,
        }
    }

    /// # Errors
    /// [`ProxySettingsError`]: the first setting that is out of its range.
    pub fn check(&self) -> Result<(), ProxySettingsError> {
        self.limits().map(drop)
    }

    /// The settings in the units that code uses.
    pub(crate) fn limits(&self) -> Result<Limits, ProxySettingsError> {
        range("workers", self.workers as u64, 0, WORKERS_MAX as u64)?;
        range("connections_max", self.connections_max as u64, 1, 1 << 20)?;
        range("headers_bytes_max", self.headers_bytes_max as u64, 1 << 10, 1 << 18)?;
        range("target_bytes_max", self.target_bytes_max as u64, 1 << 10, 1 << 15)?;
        for (name, secs) in [
            ("header_read_timeout_s", self.header_read_timeout_s),
            ("keep_alive_s", self.keep_alive_s),
            ("body_idle_timeout_s", self.body_idle_timeout_s),
            ("instance_queue_wait_s", self.instance_queue_wait_s),
            ("pool_idle_s", self.pool_idle_s),
        ] {
            range(name, secs, 1, 3_600)?;
        }
        range("pool_idle_max", self.pool_idle_max as u64, 0, 1 << 16)?;
        range("replay_body_bytes_max", self.replay_body_bytes_max as u64, 0, 1 << 20)?;
        range("instance_calls_max", self.instance_calls_max as u64, 1, 1 << 16)?;
        range("instance_queue_max", self.instance_queue_max as u64, 0, 1 << 20)?;
        range("stale_keys_max_s", self.stale_keys_max_s, 0, 30 * 24 * 3_600)?;
        let public_url = self.public_url.as_deref().map(origin).transpose()?;
        let mut hosts: Vec<String> = self.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        if let Some(bad) = hosts.iter().find(|host| !crate::head::is_host(host.as_bytes())) {
            return Err(ProxySettingsError::Host(bad.clone()));
        }
        if let (false, Some((_, own))) =
            (hosts.is_empty(), public_url.as_deref().and_then(|url| url.split_once("://")))
        {
            hosts.push(own.to_owned());
        }
        let https = self.tls.is_some() || public_url.as_deref().is_some_and(|url| url.starts_with("https:"));
        let default_port = if https { ":443" } else { ":80" };
        let with_port = |host: &String| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            (!has_port).then(|| format!("{host}{default_port}"))
        };
        // RFC 9110 §4.2.3: the same, said in two ways.
        let others: Vec<String> = hosts
            .iter()
            .filter_map(|host| host.strip_suffix(default_port).map(str::to_owned).or_else(|| with_port(host)))
            .collect();
        hosts.extend(others);
        let passing = Passing {
            requests: header_names("pass_request_headers", &self.pass_request_headers)?,
            answers: header_names("pass_answer_headers", &self.pass_answer_headers)?,
        };
        Ok(Limits {
            passing,
            tls: self.tls.is_some(),
            public_url,
            hosts,
            connections_max: self.connections_max,
            headers_bytes_max: self.headers_bytes_max,
            target_bytes_max: self.target_bytes_max,
            header_read_ms: self.header_read_timeout_s * 1_000,
            keep_alive_ms: self.keep_alive_s * 1_000,
            body_idle_ms: self.body_idle_timeout_s * 1_000,
            // So that whoever waits gets the place in time.
            pressed_idle_ms: (self.body_idle_timeout_s * 1_000).min(self.instance_queue_wait_s * 500),
            pool_idle_ms: self.pool_idle_s * 1_000,
            pool_idle_max: self.pool_idle_max,
            replay_body_bytes_max: self.replay_body_bytes_max,
            stale_keys_max: Duration::from_secs(self.stale_keys_max_s),
            places: Bounds {
                places: self.instance_calls_max,
                waiting: self.instance_queue_max,
                wait_max: Duration::from_secs(self.instance_queue_wait_s),
            },
            table: self.table.limits([
                "table.body_bytes_max",
                "table.connect_timeout_s",
                "table.first_byte_timeout_s",
                "table.total_timeout_s",
            ])?,
            stats: self.stats.limits([
                "stats.body_bytes_max",
                "stats.connect_timeout_s",
                "stats.first_byte_timeout_s",
                "stats.total_timeout_s",
            ])?,
            attachment: self.attachment.limits([
                "attachment.body_bytes_max",
                "attachment.connect_timeout_s",
                "attachment.first_byte_timeout_s",
                "attachment.total_timeout_s",
            ])?,
            import: self.import.limits([
                "import.body_bytes_max",
                "import.connect_timeout_s",
                "import.first_byte_timeout_s",
                "import.total_timeout_s",
            ])?,
            other: self.other.limits([
                "other.body_bytes_max",
                "other.connect_timeout_s",
                "other.first_byte_timeout_s",
                "other.total_timeout_s",
            ])?,
        })
    }
}

/// [`ProxySettings`], checked.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) passing: Passing,
    pub(crate) tls: bool,
    /// `https://host[:port]`, lower-case, without a trailing slash.
    pub(crate) public_url: Option<String>,
    /// Lower-case; empty: any.
    pub(crate) hosts: Vec<String>,
    pub(crate) connections_max: usize,
    pub(crate) headers_bytes_max: usize,
    pub(crate) target_bytes_max: usize,
    pub(crate) header_read_ms: u64,
    pub(crate) keep_alive_ms: u64,
    pub(crate) body_idle_ms: u64,
    /// The same for an answer whose place at the instance another call waits for.
    pub(crate) pressed_idle_ms: u64,
    pub(crate) pool_idle_ms: u64,
    pub(crate) pool_idle_max: usize,
    pub(crate) replay_body_bytes_max: usize,
    pub(crate) stale_keys_max: Duration,
    pub(crate) places: Bounds,
    table: FamilyLimits,
    stats: FamilyLimits,
    attachment: FamilyLimits,
    import: FamilyLimits,
    other: FamilyLimits,
}

/// [`FamilySettings`], checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FamilyLimits {
    pub(crate) body_bytes_max: u64,
    pub(crate) connect: Duration,
    pub(crate) first_byte_ms: u64,
    pub(crate) total_ms: u64,
}

impl Limits {
    pub(crate) fn of(&self, family: Family<'_>) -> &FamilyLimits {
        match family {
            Family::Table => &self.table,
            Family::Stats => &self.stats,
            Family::Attachment => &self.attachment,
            Family::Import => &self.import,
            Family::Now(_) | Family::Scope(_) => &self.other,
        }
    }
}

/// More threads than cores only cost; this bounds a slip of the keyboard.
const WORKERS_MAX: usize = 256;

fn range(name: &'static str, given: u64, min: u64, max: u64) -> Result<(), ProxySettingsError> {
    if (min..=max).contains(&given) {
        Ok(())
    } else {
        Err(ProxySettingsError::Range { name, given, min, max })
    }
}

fn header_names(setting: &'static str, given: &[String]) -> Result<Vec<HeaderName>, ProxySettingsError> {
    let parsed = |text: &String| {
        let given = || text.clone();
        // An underscore is a hyphen to some servers, so that no call may carry one; and there are no patterns.
        let name = HeaderName::try_from(text.trim()).ok().filter(|name| !name.as_str().contains(['_', '*']));
        let name = name.ok_or_else(|| ProxySettingsError::HeaderName { setting, given: given() })?;
        if passing::never_passes(name.as_str()) {
            return Err(ProxySettingsError::HeaderNeverPasses { setting, given: given() });
        }
        Ok(name)
    };
    given.iter().map(parsed).collect()
}

fn origin(text: &str) -> Result<String, ProxySettingsError> {
    let url: Uri = text.parse().map_err(|_| ProxySettingsError::PublicUrl)?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(ProxySettingsError::PublicUrl);
    };
    let bare = url.path() == "/" && url.query().is_none() && !text.contains('#');
    if bare && crate::head::is_host(authority.as_str().as_bytes()) {
        Ok(format!("{scheme}://{}", authority.as_str().to_ascii_lowercase()))
    } else {
        Err(ProxySettingsError::PublicUrl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_unknown_names_are_not() {
        let settings: ProxySettings = toml::from_str("").unwrap();
        assert_eq!(settings, ProxySettings::default());
        assert_eq!(settings.check(), Ok(()));
        assert!(settings.worker_count() >= 1);
        assert!(toml::from_str::<ProxySettings>("worker = 3").is_err());
        let settings = toml::from_str::<ProxySettings>("workers = 3\nlisten = '0.0.0.0:1'").unwrap();
        assert_eq!((settings.worker_count(), settings.listen_settings().address.as_str()), (3, "0.0.0.0:1"));
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let mut settings = ProxySettings::default();
        settings.table.first_byte_timeout_s = 0;
        let said = settings.check().unwrap_err().to_string();
        assert_eq!(said, "proxy.table.first_byte_timeout_s is 0, it must be between 1 and 3600");
        settings.table.connect_timeout_s = 61;
        let said = settings.check().unwrap_err().to_string();
        assert_eq!(said, "proxy.table.connect_timeout_s is 61, it must be between 1 and 60");
        // What is not given is the family's own default.
        let settings = toml::from_str::<ProxySettings>("[attachment]\ntotal_timeout_s = 9").unwrap();
        assert_eq!((settings.attachment.total_timeout_s, settings.attachment.body_bytes_max), (9, 1 << 30));
        let hosts = vec!["a b".to_owned()];
        assert!(ProxySettings { hosts, ..ProxySettings::default() }.check().is_err());
    }

    /// P-07, P-08: no setting lets a credential pass.
    #[test]
    fn headers_that_never_pass_cannot_be_added() {
        let adding = |name: &str| {
            let both = vec!["X-App".to_owned(), name.to_owned()];
            let requests = ProxySettings { pass_request_headers: both.clone(), ..ProxySettings::default() };
            let answers = ProxySettings { pass_answer_headers: both, ..ProxySettings::default() };
            [requests.check(), answers.check()].map(|found| found.err().map(|error| error.to_string()))
        };
        assert_eq!(adding("x-other"), [None, None]);
        for (name, why) in [
            ("Cookie", "which bearerd never lets pass"),
            ("x-forwarded-for", "which bearerd never lets pass"),
            ("a b", "which is no name of a header"),
            ("x_app", "which is no name of a header"),
            ("x-*", "which is no name of a header"),
        ] {
            let said = ["request", "answer"]
                .map(|of| Some(format!("proxy.pass_{of}_headers holds {name:?}, {why}")));
            assert_eq!(adding(name), said);
        }
    }

    #[test]
    fn the_public_url_is_an_origin() {
        for (text, expected) in [
            ("https://Bearerd.example", Some("https://bearerd.example")),
            ("http://127.0.0.1:8080/", Some("http://127.0.0.1:8080")),
            ("https://[::1]:8443", Some("https://[::1]:8443")),
            ("https://user@host", None),
            ("https://host/path", None),
            ("https://host?x", None),
            ("https://host/#x", None),
            ("ftp://host", None),
            ("host", None),
            ("", None),
        ] {
            assert_eq!(origin(text).ok().as_deref(), expected, "{text}");
        }
    }
}
