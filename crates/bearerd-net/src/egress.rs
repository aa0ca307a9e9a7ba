//! How outbound connections leave: settings, trust roots, and whether a call goes through the egress proxy. Nothing
//! here waits; only the CA file is read, at start and reload.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::Engine;
use bearerd_model::{InstanceOrigin, SecretText};
use ipnet::IpNet;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use url::Url;

/// The settings `[egress]`.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressSettings {
    /// `http://[user:pass@]host:port` of a proxy that is asked to CONNECT. Default: none; the binary fills in
    /// `HTTPS_PROXY`.
    pub proxy: Option<String>,
    /// Hosts that are dialled directly: `example.com` (it and all beneath), `.example.com`, `host:port`, an address, a
    /// network, or `*`. Default: none; the binary fills in `NO_PROXY`.
    pub no_proxy: Vec<String>,
    /// PEM file of the CAs that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Networks outside the public Internet where instances may live (P-14). Default: none.
    pub allow_private_instances: Vec<IpNet>,
    /// Seconds for name resolution, TCP, proxy and TLS together. Default 10, at least 1.
    pub connect_timeout_s: u64,
}

impl Default for EgressSettings {
    fn default() -> Self {
        Self {
            proxy: None,
            no_proxy: Vec::new(),
            ca_file: None,
            allow_private_instances: Vec::new(),
            connect_timeout_s: 10,
        }
    }
}

impl fmt::Debug for EgressSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressSettings")
            .field("proxy", &self.proxy.as_deref().map(without_user))
            .field("no_proxy", &self.no_proxy)
            .field("ca_file", &self.ca_file)
            .field("allow_private_instances", &self.allow_private_instances)
            .field("connect_timeout_s", &self.connect_timeout_s)
            .finish()
    }
}

/// Why no connector could be made. Each is a fault in the settings.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("egress.proxy: {0}; write it as http://HOST:PORT")]
    ProxyMalformed(&'static str),
    #[error("egress.connect_timeout_s: at least 1")]
    TimeoutZero,
    #[error("egress.allow_private_instances holds {network}, which is an address within {}", network.trunc())]
    NetworkHostBits { network: IpNet },
    #[error("CA file {} cannot be read", path.display())]
    CaUnreadable { path: PathBuf, source: std::io::Error },
    #[error("CA file {} holds no certificate in PEM form", path.display())]
    CaEmpty { path: PathBuf },
    #[error("CA file {} holds a certificate that is malformed", path.display())]
    CaMalformed { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("client certificate file {} is unusable", path.display())]
    ClientCertificate { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("client key file {} is unusable", path.display())]
    ClientKey { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("client key file {} does not belong to client certificate file {}", key.display(), certificate.display())]
    ClientKeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("a client certificate and its key are given together or not at all")]
    ClientPairHalf,
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// The settings, checked.
#[derive(Debug)]
pub(crate) struct Egress {
    pub(crate) proxy: Option<ProxyAddress>,
    pub(crate) no_proxy: Vec<NoProxy>,
    pub(crate) allow_private_instances: Vec<IpNet>,
    pub(crate) connect_timeout: Duration,
}

impl Egress {
    pub(crate) fn new(settings: &EgressSettings) -> Result<Self, EgressError> {
        if settings.connect_timeout_s == 0 {
            return Err(EgressError::TimeoutZero);
        }
        // A slip here opens addresses that nobody meant.
        if let Some(slip) = settings.allow_private_instances.iter().find(|net| **net != net.trunc()) {
            return Err(EgressError::NetworkHostBits { network: *slip });
        }
        let proxy = settings.proxy.as_deref().map(str::trim).filter(|text| !text.is_empty());
        Ok(Self {
            proxy: proxy.map(ProxyAddress::parse).transpose()?,
            no_proxy: settings.no_proxy.iter().filter_map(|entry| NoProxy::parse(entry)).collect(),
            allow_private_instances: settings.allow_private_instances.clone(),
            connect_timeout: Duration::from_secs(settings.connect_timeout_s),
        })
    }

    /// The proxy that a connection to `origin` goes through; loopback never does.
    pub(crate) fn proxy_for(&self, origin: &InstanceOrigin) -> Option<&ProxyAddress> {
        let proxy = self.proxy.as_ref()?;
        let address = origin.ip();
        let direct = address.is_some_and(|address| address.is_loopback())
            || self.no_proxy.iter().any(|entry| entry.matches(origin.host(), address, origin.port()));
        (!direct).then_some(proxy)
    }
}

/// Where the egress proxy is, and what we show it.
#[derive(Debug)]
pub(crate) struct ProxyAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The value of `Proxy-Authorization` (RFC 9110 §11.7.2).
    pub(crate) authorization: Option<SecretText>,
}

impl ProxyAddress {
    fn parse(text: &str) -> Result<Self, EgressError> {
        let malformed = EgressError::ProxyMalformed;
        // Many environments hold HTTPS_PROXY=host:port.
        let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
        let url = url.map_err(|_| malformed("it is not a URL"))?;
        if url.scheme() != "http" {
            return Err(malformed("only http proxies are supported"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(malformed("it has a path, query or fragment"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(malformed("it has no host"))?;
        let port = url.port_or_known_default().ok_or(malformed("it has no port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, authorization: basic_authorization(&url)? })
    }
}

/// One entry of `no_proxy`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoProxy {
    Everything,
    /// The domain, without a leading dot, and all beneath it.
    Domain {
        name: String,
        port: Option<u16>,
    },
    /// Matches literal addresses only: names are not resolved for this.
    Network(IpNet),
}

impl NoProxy {
    /// `None` for an empty entry.
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::Everything);
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Network(address.into()));
        }
        if let Ok(network) = entry.parse::<IpNet>() {
            return Some(Self::Network(network));
        }
        let (name, port) = match entry.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
            Some((name, Ok(port))) => (name, Some(port)),
            _ => (entry.as_str(), None),
        };
        let name = name.trim_start_matches("*.").trim_matches('.');
        (!name.is_empty()).then(|| Self::Domain { name: name.to_owned(), port })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Self::Domain { name, port: only_port } => {
                let host = host.trim_end_matches('.');
                let beneath = host.strip_suffix(name.as_str());
                only_port.is_none_or(|only_port| only_port == port)
                    && beneath.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

/// The CAs in a PEM file, as they stand in it.
pub(crate) fn certificates_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, EgressError> {
    let pem =
        std::fs::read(path).map_err(|source| EgressError::CaUnreadable { path: path.to_owned(), source })?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| EgressError::CaMalformed { path: path.to_owned(), source: source.into() })?;
    if certificates.is_empty() {
        return Err(EgressError::CaEmpty { path: path.to_owned() });
    }
    Ok(certificates)
}

/// A trust store of the CAs in a PEM file, and nothing else.
pub(crate) fn roots_of(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, EgressError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|source| EgressError::CaMalformed { path: path.to_owned(), source: source.into() })?;
    }
    Ok(roots)
}

/// The system's trust store. May be empty (a container without CA certificates): then every TLS connection fails as
/// untrusted, but plain loopback and integrations with a CA file of their own work.
pub(crate) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            errors = ?found.errors,
            "the system has no CA certificates: install ca-certificates or set egress.ca_file"
        );
    } else {
        tracing::debug!(added, ignored, "system CA certificates loaded");
    }
    roots
}

/// `Basic …` from the user part of the proxy URL (RFC 7617).
fn basic_authorization(url: &Url) -> Result<Option<SecretText>, EgressError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let mut pair = percent_decoded(url.username());
    pair.push(b':');
    pair.extend(percent_decoded(url.password().unwrap_or_default()));
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    SecretText::parse(text).map(Some).map_err(|_| EgressError::ProxyMalformed("its user part is too long"))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    loop {
        rest = match *rest {
            [] => return decoded,
            [b'%', high, low, ref tail @ ..] if hex(high).is_some() && hex(low).is_some() => {
                decoded.push(hex(high).unwrap_or_default() << 4 | hex(low).unwrap_or_default());
                tail
            }
            [byte, ref tail @ ..] => {
                decoded.push(byte);
                tail
            }
        };
    }
}

/// The proxy URL without what stands before its `@`.
fn without_user(url: &str) -> String {
    match url.rsplit_once('@') {
        None => url.to_owned(),
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}(redacted)@{host}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(proxy: &str, no_proxy: &[&str]) -> Result<Egress, EgressError> {
        Egress::new(&EgressSettings {
            proxy: Some(proxy.to_owned()),
            no_proxy: no_proxy.iter().map(|&entry| entry.to_owned()).collect(),
            ..EgressSettings::default()
        })
    }

    #[test]
    fn settings_come_from_text() {
        let settings: EgressSettings = toml::from_str(
            "proxy = 'http://p:3128'\nno_proxy = ['.corp']\nallow_private_instances = ['10.0.0.0/8']",
        )
        .unwrap();
        assert_eq!(settings.proxy.as_deref(), Some("http://p:3128"));
        assert_eq!((settings.connect_timeout_s, settings.allow_private_instances.len()), (10, 1));
        assert!(toml::from_str::<EgressSettings>("verify = false").is_err());
        let zero = EgressSettings { connect_timeout_s: 0, ..EgressSettings::default() };
        assert!(matches!(Egress::new(&zero), Err(EgressError::TimeoutZero)));
        let allow_private_instances = vec!["10.1.1.1/8".parse().unwrap()];
        let slip = EgressSettings { allow_private_instances, ..EgressSettings::default() };
        assert!(matches!(Egress::new(&slip), Err(EgressError::NetworkHostBits { .. })));
    }

    #[test]
    fn a_proxy_is_http_with_a_host() {
        for (text, host, port, user) in [
            ("http://proxy.corp:3128", "proxy.corp", 3128, None),
            ("proxy.corp:3128", "proxy.corp", 3128, None),
            ("http://proxy.corp/", "proxy.corp", 80, None),
            ("http://[::1]:8080", "::1", 8080, None),
            ("http://Aladdin:open%20sesame@p:1", "p", 1, Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("http://u@p:1", "p", 1, Some("Basic dTo=")),
        ] {
            let proxy = egress(text, &[]).unwrap().proxy.unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port), (host, port), "{text}");
            assert_eq!(proxy.authorization.as_ref().map(SecretText::expose), user, "{text}");
        }
        for bad in
            ["https://p:1", "socks5://p:1", "http://", "http://p:1/path", "http://p:1/?q", "http://p:99999"]
        {
            assert!(matches!(egress(bad, &[]), Err(EgressError::ProxyMalformed(_))), "{bad}");
        }
        assert!(egress("  ", &[]).unwrap().proxy.is_none());
    }

    #[test]
    fn the_proxys_password_is_not_shown() {
        for url in
            ["http://user:canary@p:1", "user:canary@p:1", "http://user:can@canary@p:1", "https://u:canary@p"]
        {
            let settings = EgressSettings { proxy: Some(url.to_owned()), ..EgressSettings::default() };
            let shown = format!("{settings:?} {:?}", Egress::new(&settings));
            assert!(!shown.contains("canary") && !shown.contains("Y2FuYXJ5"), "{shown}");
        }
    }

    #[test]
    fn no_proxy_lists_what_is_dialled_directly() {
        for (entry, origin, direct) in [
            ("example.com", "https://example.com", true),
            ("example.com", "https://a.b.example.com", true),
            ("example.com", "https://notexample.com", false),
            ("example.com", "https://example.com.evil.org", false),
            (".example.com", "https://a.example.com", true),
            ("*.example.com", "https://a.example.com", true),
            (" EXAMPLE.com ", "https://a.example.com", true),
            ("example.com:8443", "https://a.example.com:8443", true),
            ("example.com:8443", "https://a.example.com", false),
            ("*", "https://anything.org", true),
            ("", "https://anything.org", false),
            (".", "https://anything.org", false),
            ("10.0.0.0/8", "https://10.1.1.1", true),
            ("10.0.0.0/8", "https://11.1.1.1", false),
            ("10.1.1.1", "https://10.1.1.1:8443", true),
            ("[fd00::1]", "https://[fd00::1]", true),
            ("fd00::/8", "https://[fd00::2]", true),
            ("other.org", "http://127.0.0.1:9", true), // loopback never goes through a proxy
            ("other.org", "https://[::1]:9", true),
        ] {
            let egress = egress("http://p:1", &["unrelated.net", entry]).unwrap();
            let origin = InstanceOrigin::parse(origin).unwrap();
            assert_eq!(egress.proxy_for(&origin).is_none(), direct, "{entry:?} {origin}");
        }
    }
}
