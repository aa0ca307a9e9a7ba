//! Whether a POST comes from our own page. The pages carry `Referrer-Policy: no-referrer` (O-29), and with it a
//! browser sends `Origin: null` even to ourselves (Fetch §3.1; seen in Chromium 156). `Sec-Fetch-Site` is not
//! affected and cannot be forged by a page, so it decides wherever it is sent: at https and at loopback addresses
//! (Chromium 76, Firefox 90, Safari 16.4).
//!
//! What is at stake is small: the link itself is the secret, and whoever knows it can simply send it to somebody. The
//! check stops a foreign page from starting a flow in the background of a browser that it does not hold.

use http::{HeaderMap, HeaderName, header::ORIGIN};
use url::Url;

/// The public URL as a browser sees it.
#[derive(Debug, Clone)]
pub(crate) struct OwnOrigin {
    /// `https://connect.example`, as in an `Origin` header.
    text: String,
    /// Browsers send `Sec-Fetch-Site` there.
    fetch_metadata: bool,
}

impl OwnOrigin {
    pub(crate) fn new(public_url: &Url) -> Self {
        let loopback = match public_url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => false,
        };
        let text = public_url.origin().ascii_serialization();
        Self { text, fetch_metadata: loopback || public_url.scheme() == "https" }
    }

    /// Whether a POST with these headers may start a flow: from our page, typed by the person, or from a client that
    /// is no browser (it sends neither header, and has no user behind it that another page could misuse).
    pub(crate) fn sent(&self, headers: &HeaderMap) -> bool {
        let (Ok(site), Ok(origin)) = (single(headers, &SEC_FETCH_SITE), single(headers, &ORIGIN)) else {
            return false;
        };
        match (site, origin) {
            (Some(b"same-origin" | b"none"), Some(b"null") | None) | (None, None) => true,
            (Some(b"same-origin" | b"none") | None, Some(origin)) if origin == self.text.as_bytes() => true,
            // No fetch metadata: a browser at a plain-http name. Refusing `null` would close the door to it.
            (None, Some(b"null")) => !self.fetch_metadata,
            _ => false,
        }
    }
}

/// The header's value, if given once. `Err`: given more than once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, ()> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(http::HeaderValue::as_bytes)),
        (_, Some(_)) => Err(()),
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(public_url: &str, site: Option<&str>, origin: Option<&str>, expected: bool) {
        let mut headers = HeaderMap::new();
        for (name, value) in [(SEC_FETCH_SITE, site), (ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let own = OwnOrigin::new(&Url::parse(public_url).unwrap());
        assert_eq!(own.sent(&headers), expected, "{public_url} {site:?} {origin:?}");
    }

    #[test]
    fn a_post_from_another_site_is_refused() {
        for own in ["https://connect.example", "http://127.0.0.1:8081", "http://localhost:8081"] {
            check(own, Some("same-origin"), Some("null"), true);
            check(own, Some("same-origin"), Some(own), true);
            check(own, Some("same-origin"), Some("https://evil.example"), false);
            check(own, Some("none"), Some("null"), true);
            check(own, Some("none"), None, true);
            check(own, None, None, true);
            check(own, None, Some(own), true);
            check(own, None, Some("null"), false);
            check(own, None, Some("https://evil.example"), false);
            check(own, None, Some(&format!("{own}.evil.example")), false);
            for site in ["cross-site", "same-site", "", "Same-Origin", "same-origin, cross-site"] {
                check(own, Some(site), Some("null"), false);
                check(own, Some(site), Some(own), false);
                check(own, Some(site), None, false);
            }
        }
        check("https://connect.example:443", None, Some("https://connect.example"), true);
        check("http://bearerd.internal:8081", None, Some("null"), true);
        check("http://bearerd.internal:8081", None, Some("http://evil.example"), false);
        check("http://bearerd.internal:8081", Some("cross-site"), Some("null"), false);
    }

    #[test]
    fn a_header_given_twice_is_refused() {
        let own = OwnOrigin::new(&Url::parse("https://connect.example").unwrap());
        let mut headers = HeaderMap::new();
        headers.append(SEC_FETCH_SITE, "same-origin".parse().unwrap());
        headers.append(SEC_FETCH_SITE, "same-origin".parse().unwrap());
        assert!(!own.sent(&headers));
    }
}
