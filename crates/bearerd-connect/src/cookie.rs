//! The cookie that binds a flow to the browser which started it (O-02, O-03, O-05). Where the public URL is https
//! the name has the `__Host-` prefix: a browser then accepts it only with `Secure`, `Path=/` and no `Domain`, so that
//! no neighbour under the same domain can plant one.
//!
//! Each flow has a cookie of its own name, so that several can run in one browser (O-56). The control makes the name,
//! and finds it again by the callback's `state`.

use bearerd_model::SecretText;
use http::{HeaderMap, HeaderValue, header::COOKIE};

/// How this door writes its cookies: depends on the public URL alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowCookies {
    pub(crate) https: bool,
}

impl FlowCookies {
    /// `Set-Cookie` for a flow that begins. `None`: `name` or `value` do not fit into a cookie.
    pub(crate) fn set(self, name: &str, value: &SecretText) -> Option<HeaderValue> {
        let fits = value.expose().bytes().all(is_cookie_octet);
        if fits { self.written(name, value.expose(), FLOW_LIFETIME_S) } else { None }
    }

    /// `Set-Cookie` that makes the browser forget a flow's cookie.
    pub(crate) fn clear(self, name: &str) -> Option<HeaderValue> {
        self.written(name, "", 0)
    }

    /// The request's cookies that may be ours, each with its name without `__Host-`. Over https, those that have no
    /// `__Host-` are left out: they may come from a neighbour. What does not fit into a cookie is left out, too.
    pub(crate) fn read(self, headers: &HeaderMap) -> Vec<(String, SecretText)> {
        let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(';')).take(COOKIES_MAX).filter_map(|pair| self.own(pair)).collect()
    }

    fn own(self, pair: &str) -> Option<(String, SecretText)> {
        let (name, value) = pair.trim_matches([' ', '\t']).split_once('=')?;
        let name = match (self.https, name.strip_prefix(HOST_PREFIX)) {
            (true, own) => own?,
            (false, None) => name,
            (false, Some(_)) => return None,
        };
        let fits = !name.is_empty() && name.bytes().all(is_token) && value.bytes().all(is_cookie_octet);
        if !fits {
            return None;
        }
        let value = SecretText::parse(value.to_owned()).ok()?;
        Some((name.to_owned(), value))
    }

    fn written(self, name: &str, value: &str, lifetime_s: u32) -> Option<HeaderValue> {
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        let (prefix, secure) = if self.https { (HOST_PREFIX, "; Secure") } else { ("", "") };
        let text =
            format!("{prefix}{name}={value}; Path=/; Max-Age={lifetime_s}; HttpOnly; SameSite=Lax{secure}");
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// A character of a cookie's name (RFC 6265 §4.1.1, RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A character of a cookie's value (RFC 6265 §4.1.1).
fn is_cookie_octet(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

const HOST_PREFIX: &str = "__Host-";

/// As long as the flow itself lives (product contract §4).
const FLOW_LIFETIME_S: u32 = 600;

/// Browsers keep about 180 cookies a site; a request with more than these is not one of our flows.
const COOKIES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HTTPS: FlowCookies = FlowCookies { https: true };
    const HTTP: FlowCookies = FlowCookies { https: false };

    fn value(text: &str) -> SecretText {
        SecretText::parse(text.to_owned()).unwrap()
    }

    #[track_caller]
    fn check_read(cookies: FlowCookies, lines: &[&[u8]], expected: &[(&str, &str)]) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        let read = cookies.read(&headers);
        let read: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(read, expected);
    }

    /// O-05: the attributes that a browser must see; `Domain` never.
    #[test]
    fn a_flow_cookie_is_bound_to_this_host() {
        let set = HTTPS.set("bearerd-1", &value("v4lue")).unwrap();
        assert_eq!(
            set.to_str().unwrap(),
            "__Host-bearerd-1=v4lue; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(!format!("{set:?}").contains("v4lue"), "not in logs");
        let set = HTTP.set("bearerd-1", &value("v4lue")).unwrap();
        assert_eq!(set.to_str().unwrap(), "bearerd-1=v4lue; Path=/; Max-Age=600; HttpOnly; SameSite=Lax");
        let clear = HTTPS.clear("bearerd-1").unwrap();
        assert_eq!(
            clear.to_str().unwrap(),
            "__Host-bearerd-1=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure"
        );
        for (name, text) in [("", "v"), ("a b", "v"), ("a;", "v"), ("a", "v;Domain=evil"), ("a", "v w")] {
            assert!(HTTPS.set(name, &value(text)).is_none(), "{name:?} {text:?}");
        }
    }

    /// O-02, O-03: all cookies are seen, in any arrangement; over https, only those no neighbour can plant.
    #[test]
    fn cookies_are_read_as_the_browser_sends_them() {
        check_read(HTTP, &[b"a=1; b=2;c=3; a=4"], &[("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")]);
        check_read(HTTP, &[b"a=1", b"b=x=y.z"], &[("a", "1"), ("b", "x=y.z")]);
        check_read(HTTP, &[b"__Host-a=1; b=2"], &[("b", "2")]);
        check_read(HTTPS, &[b"a=0; __Host-a=1; __Secure-a=2; __host-a=3"], &[("a", "1")]);
        check_read(HTTP, &[b"a=1; \xff=1"], &[]);
        check_read(HTTP, &[b"=1; a; ; a=; a=\"q\"; b c=1; b=2"], &[("b", "2")]);
        check_read(HTTPS, &[], &[]);
    }

    proptest! {
        #[test]
        fn any_cookie_header_is_read(line in proptest::collection::vec(any::<u8>(), 0..400), https in any::<bool>()) {
            let mut headers = HeaderMap::new();
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                headers.append(COOKIE, line);
            }
            let _ = FlowCookies { https }.read(&headers);
        }

        /// What was set comes back, among others.
        #[test]
        fn a_cookie_that_was_set_is_read(text in "[!#-+\\--:<-\\[\\]-~]{1,40}", https in any::<bool>()) {
            let cookies = FlowCookies { https };
            let set = cookies.set("flow", &value(&text)).unwrap();
            let pair = set.to_str().unwrap().split(';').next().unwrap().to_owned();
            let mut headers = HeaderMap::new();
            headers.append(COOKIE, HeaderValue::try_from(format!("other=1; {pair}; __Host-x=2")).unwrap());
            let read = cookies.read(&headers);
            prop_assert!(read.iter().any(|(name, value)| name == "flow" && value.expose() == text));
        }
    }
}
