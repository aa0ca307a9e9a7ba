//! The address of a ServiceNow instance: scheme, host and port, nothing else.

use std::{fmt, net::IpAddr, sync::Arc};

use url::{Host, Url};

/// `https://dev12345.service-now.com`: where an integration's endpoints and Table API live. Plain http is admitted
/// at a literal loopback address only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceOrigin {
    text: Arc<str>,
    host: Arc<str>,
    port: u16,
    tls: bool,
}

/// Why a text is not an instance origin; says what to write instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedOrigin {
    #[error("not a URL; write it as https://NAME.service-now.com")]
    NotAUrl,
    #[error("only https is admitted (plain http at a literal loopback address such as 127.0.0.1 only)")]
    NotHttps,
    #[error("only scheme, host and port are admitted: no user, path, query or fragment")]
    MoreThanOrigin,
}

impl InstanceOrigin {
    /// # Errors
    /// [`MalformedOrigin`] if `text` has a path, user, query or fragment, or is not https (P-13).
    pub fn parse(text: &str) -> Result<Self, MalformedOrigin> {
        let url = Url::parse(text.trim()).map_err(|_| MalformedOrigin::NotAUrl)?;
        let bare = matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !bare {
            return Err(MalformedOrigin::MoreThanOrigin);
        }
        let host = url.host().ok_or(MalformedOrigin::NotAUrl)?;
        let loopback = match host {
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
            Host::Domain(_) => false,
        };
        let tls = match url.scheme() {
            "https" => true,
            "http" if loopback => false,
            _ => return Err(MalformedOrigin::NotHttps),
        };
        let port = url.port_or_known_default().ok_or(MalformedOrigin::NotAUrl)?;
        let origin = url.origin().ascii_serialization();
        Ok(Self { text: origin.into(), host: host.to_string().into(), port, tls })
    }

    /// `https://host[:port]`, without a trailing slash; the port is left out where it is the scheme's own.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host as it stands in a URL; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host as an address, where it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host[:port]`, as the `Host` header has it.
    pub fn authority(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, authority)| authority)
    }

    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for InstanceOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for InstanceOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceOrigin({})", self.text)
    }
}

impl serde::Serialize for InstanceOrigin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for InstanceOrigin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-13: an instance is an origin, over https, and nothing more.
    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = InstanceOrigin::parse("https://Dev1.service-now.com:443/").unwrap();
        assert_eq!(origin.as_str(), "https://dev1.service-now.com");
        assert_eq!((origin.authority(), origin.port(), origin.is_tls()), ("dev1.service-now.com", 443, true));
        let local = InstanceOrigin::parse("http://127.0.0.1:9000").unwrap();
        assert_eq!((local.authority(), local.port(), local.is_tls()), ("127.0.0.1:9000", 9000, false));
        assert!(InstanceOrigin::parse("http://[::1]:9000").unwrap().ip().unwrap().is_loopback());
        for (bad, why) in [
            ("http://dev1.service-now.com", MalformedOrigin::NotHttps),
            ("http://localhost:80", MalformedOrigin::NotHttps),
            ("ftp://127.0.0.1", MalformedOrigin::NotHttps),
            ("https://a@b", MalformedOrigin::MoreThanOrigin),
            ("https://b/x", MalformedOrigin::MoreThanOrigin),
            ("https://b?x", MalformedOrigin::MoreThanOrigin),
            ("https://b#x", MalformedOrigin::MoreThanOrigin),
            ("dev1", MalformedOrigin::NotAUrl),
            ("", MalformedOrigin::NotAUrl),
        ] {
            assert_eq!(InstanceOrigin::parse(bad).unwrap_err(), why, "{bad}");
        }
    }
}
