//! Settings of the connect door, as an operator writes them under `[connect]`.

use std::time::Duration;

use bearerd_control::ConnectRules;
use bearerd_net::{CallerAddress, ListenSettings, SocketMode, TlsSettings};
use ipnet::IpNet;
use url::Url;

/// `[connect]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSettings {
    /// `IP:PORT`, `unix:/PATH`, `inherited:NAME` or `inherited`. Default: 127.0.0.1:8081.
    pub listen: String,
    /// Mode of a unix socket that the door makes: `0660`.
    pub listen_mode: SocketMode,
    /// Default: plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Where callers' addresses come from: the peer, the PROXY protocol, or `Forwarded`.
    pub caller_address: CallerAddress,
    /// Networks of the proxies that are believed about it.
    pub trusted_proxies: Vec<IpNet>,
    /// Where browsers reach this door: `https://connect.example`, no path. Redirect URIs, cookies and links are made
    /// from it, never from a request (O-16).
    pub public_url: String,
    /// Whether an operator confirms who consented. Off only where operators consent for themselves.
    pub confirm: bool,
    /// Life of a connect link in seconds: 60 to 86400.
    pub link_lifetime_s: u64,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8081".to_owned(),
            listen_mode: SocketMode::default(),
            tls: None,
            caller_address: CallerAddress::default(),
            trusted_proxies: Vec::new(),
            public_url: "http://127.0.0.1:8081".to_owned(),
            confirm: true,
            link_lifetime_s: 600,
        }
    }
}

/// A setting that cannot be used. The text names the setting and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnectSettings {
    #[error(
        "connect.public_url: {0:?} is not an address for browsers; write scheme, host and port only, as in \
         https://connect.example"
    )]
    PublicUrl(String),
    #[error("connect.link_lifetime_s: {0} is out of range; write 60 to 86400 (seconds)")]
    LinkLifetime(u64),
}

impl ConnectSettings {
    pub fn listen_settings(&self) -> ListenSettings {
        ListenSettings {
            address: self.listen.clone(),
            mode: self.listen_mode,
            tls: self.tls.clone(),
            caller_address: self.caller_address,
            trusted_proxies: self.trusted_proxies.clone(),
        }
    }

    /// What the acts behind this door need to know.
    ///
    /// # Errors
    /// [`InvalidConnectSettings`]
    pub fn rules(&self) -> Result<ConnectRules, InvalidConnectSettings> {
        if !LINK_LIFETIME_S.contains(&self.link_lifetime_s) {
            return Err(InvalidConnectSettings::LinkLifetime(self.link_lifetime_s));
        }
        Ok(ConnectRules {
            public_url: self.origin()?.origin().ascii_serialization(),
            confirm: self.confirm,
            link_lifetime: Duration::from_secs(self.link_lifetime_s),
        })
    }

    /// The public URL, checked to be an origin.
    pub(crate) fn origin(&self) -> Result<Url, InvalidConnectSettings> {
        let refused = || InvalidConnectSettings::PublicUrl(self.public_url.clone());
        let url = Url::parse(self.public_url.trim()).map_err(|_| refused())?;
        let bare = matches!(url.scheme(), "http" | "https")
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if bare { Ok(url) } else { Err(refused()) }
    }
}

/// Shorter and nobody can follow the link; longer and it is a standing invitation.
const LINK_LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let settings: ConnectSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, ConnectSettings::default());
        assert_eq!(settings.listen_settings().address, "127.0.0.1:8081");
        let rules = settings.rules().unwrap();
        assert_eq!(rules.public_url, "http://127.0.0.1:8081");
        assert_eq!((rules.confirm, rules.link_lifetime), (true, Duration::from_mins(10)));
        let named: ConnectSettings =
            serde_json::from_str(r#"{"tls":{"certificate_file":"c","key_file":"k"}}"#).unwrap();
        let listen = named.listen_settings();
        assert_eq!(listen.address, "127.0.0.1:8081", "TLS alone keeps the default address");
        assert!(listen.tls.is_some());
        assert!(serde_json::from_str::<ConnectSettings>(r#"{"publicurl":""}"#).is_err());
    }

    #[test]
    fn a_public_url_is_an_origin() {
        let rules = |public_url: &str| {
            ConnectSettings { public_url: public_url.to_owned(), ..ConnectSettings::default() }.rules()
        };
        for (written, kept) in [
            ("https://Connect.Example/", "https://connect.example"),
            ("https://connect.example:443", "https://connect.example"),
            ("https://connect.example:8443", "https://connect.example:8443"),
            ("http://[::1]:8081", "http://[::1]:8081"),
        ] {
            assert_eq!(rules(written).unwrap().public_url, kept);
        }
        for bad in [
            "",
            "connect.example",
            "ftp://a",
            "https://a/connect",
            "https://a?x",
            "https://a#x",
            "https://u@a",
            "javascript:alert(1)",
        ] {
            assert_eq!(rules(bad).unwrap_err(), InvalidConnectSettings::PublicUrl(bad.to_owned()));
        }
    }

    #[test]
    fn a_link_lives_a_minute_to_a_day() {
        for (link_lifetime_s, fits) in [(59, false), (60, true), (86_400, true), (86_401, false)] {
            let settings = ConnectSettings { link_lifetime_s, ..ConnectSettings::default() };
            assert_eq!(settings.rules().is_ok(), fits, "{link_lifetime_s}");
        }
    }
}
