//! The settings `[proxy]`, as an operator writes them and as the workers use them.

use std::time::Duration;

use bearerd_net::{CallerAddress, ListenSettings, SocketMode, TlsSettings};
use http::Uri;
use ipnet::IpNet;

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
    /// Threads, each with its own runtime and pools. 0: one per core. At most 256.
    pub workers: usize,
    /// Callers' connections per worker; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of all header names and values of a request. 1 to 256 KiB.
    pub headers_bytes_max: usize,
    /// Bytes of a request's path and query. 1 to 32 KiB.
    pub target_bytes_max: usize,
    /// Bytes of a request body of the table family.
    pub table_body_bytes_max: u64,
    /// From the first byte of a request's head to its last; also the TLS handshake.
    pub header_read_timeout_s: u64,
    /// Idle time after which a kept connection of a caller is closed.
    pub keep_alive_s: u64,
    /// Longest pause inside a body, in either direction.
    pub body_idle_timeout_s: u64,
    /// From the last byte of a request to the first byte of the instance's answer.
    pub first_byte_timeout_s: u64,
    /// Idle time after which a connection to an instance is closed. Keep it below the instance's own.
    pub pool_idle_s: u64,
    /// Idle connections kept per worker and instance.
    pub pool_idle_max: usize,
    /// Bytes of a request body kept for the one replay after a 401. At most 1 MiB.
    pub replay_body_bytes_max: usize,
    /// How long caller keys are accepted while the store does not answer. 0: not at all.
    pub stale_keys_max_s: u64,
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
            workers: 0,
            connections_max: 10_000,
            headers_bytes_max: 64 * 1024,
            target_bytes_max: 8 * 1024,
            table_body_bytes_max: 10 * 1024 * 1024,
            header_read_timeout_s: 10,
            keep_alive_s: 75,
            body_idle_timeout_s: 30,
            first_byte_timeout_s: 60,
            pool_idle_s: 20,
            pool_idle_max: 256,
            replay_body_bytes_max: 64 * 1024,
            stale_keys_max_s: 3_600,
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
        range("table_body_bytes_max", self.table_body_bytes_max, 1 << 10, 1 << 40)?;
        for (name, secs) in [
            ("header_read_timeout_s", self.header_read_timeout_s),
            ("keep_alive_s", self.keep_alive_s),
            ("body_idle_timeout_s", self.body_idle_timeout_s),
            ("first_byte_timeout_s", self.first_byte_timeout_s),
            ("pool_idle_s", self.pool_idle_s),
        ] {
            range(name, secs, 1, 3_600)?;
        }
        range("pool_idle_max", self.pool_idle_max as u64, 0, 1 << 16)?;
        range("replay_body_bytes_max", self.replay_body_bytes_max as u64, 0, 1 << 20)?;
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
        Ok(Limits {
            tls: self.tls.is_some(),
            public_url,
            hosts,
            connections_max: self.connections_max,
            headers_bytes_max: self.headers_bytes_max,
            target_bytes_max: self.target_bytes_max,
            table_body_bytes_max: self.table_body_bytes_max,
            header_read_ms: self.header_read_timeout_s * 1_000,
            keep_alive_ms: self.keep_alive_s * 1_000,
            body_idle_ms: self.body_idle_timeout_s * 1_000,
            first_byte_ms: self.first_byte_timeout_s * 1_000,
            pool_idle_ms: self.pool_idle_s * 1_000,
            pool_idle_max: self.pool_idle_max,
            replay_body_bytes_max: self.replay_body_bytes_max,
            stale_keys_max: Duration::from_secs(self.stale_keys_max_s),
        })
    }
}

/// [`ProxySettings`], checked.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) tls: bool,
    /// `https://host[:port]`, lower-case, without a trailing slash.
    pub(crate) public_url: Option<String>,
    /// Lower-case; empty: any.
    pub(crate) hosts: Vec<String>,
    pub(crate) connections_max: usize,
    pub(crate) headers_bytes_max: usize,
    pub(crate) target_bytes_max: usize,
    pub(crate) table_body_bytes_max: u64,
    pub(crate) header_read_ms: u64,
    pub(crate) keep_alive_ms: u64,
    pub(crate) body_idle_ms: u64,
    pub(crate) first_byte_ms: u64,
    pub(crate) pool_idle_ms: u64,
    pub(crate) pool_idle_max: usize,
    pub(crate) replay_body_bytes_max: usize,
    pub(crate) stale_keys_max: Duration,
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
        let settings = ProxySettings { first_byte_timeout_s: 0, ..ProxySettings::default() };
        let said = settings.check().unwrap_err().to_string();
        assert_eq!(said, "proxy.first_byte_timeout_s is 0, it must be between 1 and 3600");
        let hosts = vec!["a b".to_owned()];
        assert!(ProxySettings { hosts, ..ProxySettings::default() }.check().is_err());
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
