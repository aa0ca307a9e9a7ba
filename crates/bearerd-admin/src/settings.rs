//! The settings `[admin]`.

use bearerd_net::{CallerAddress, ListenSettings, ServeLimits, SocketMode, TlsSettings};
use ipnet::IpNet;
use serde::Deserialize;

/// The settings `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// `IP:PORT`, `unix:/PATH`, `inherited:NAME` or `inherited`. Default: 127.0.0.1:8082.
    pub listen: String,
    /// Mode of a unix socket that the door makes: `0660`.
    pub listen_mode: SocketMode,
    /// Default: plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Where callers' addresses come from: the peer, the PROXY protocol, or `Forwarded`.
    pub caller_address: CallerAddress,
    /// Networks of the proxies that are believed about it.
    pub trusted_proxies: Vec<IpNet>,
    /// Where operators reach this door, for the document `/openapi.json`. Default: none.
    pub public_url: Option<String>,
    /// `KEY-ID:SHA-256` of the admin key that `bearerd init` printed. Default: none, and then no one may ask.
    pub bootstrap_key: Option<String>,
    /// Whether `/metrics` wants an admin key. Default: false.
    pub metrics_require_key: bool,
    /// Connections at once: 1 to 10000. Default: 200.
    pub connections_max: usize,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8082".to_owned(),
            listen_mode: SocketMode::default(),
            tls: None,
            caller_address: CallerAddress::default(),
            trusted_proxies: Vec::new(),
            public_url: None,
            bootstrap_key: None,
            metrics_require_key: false,
            connections_max: 200,
        }
    }
}

impl AdminSettings {
    pub fn listen_settings(&self) -> ListenSettings {
        ListenSettings {
            address: self.listen.clone(),
            mode: self.listen_mode,
            tls: self.tls.clone(),
            caller_address: self.caller_address,
            trusted_proxies: self.trusted_proxies.clone(),
        }
    }

    pub(crate) fn limits(&self) -> ServeLimits {
        ServeLimits { connections_max: self.connections_max.clamp(1, 10_000), ..ServeLimits::default() }
    }
}
