//! Whether a request's head is one that bearerd serves at all: what the parser lets through and must be refused
//! before anything else looks at it (security.md §4.1). What only the bytes on the wire show is found in
//! [`crate::wire`].

use bearerd_policy::Method;
use http::{HeaderMap, Version, header, request};

use crate::{
    error::{Code, Fault, Wanted},
    settings::Limits,
    wire,
};

/// A head that passed.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) method: Method,
    /// `host[:port]` as sent, of a harmless alphabet.
    pub(crate) host: &'a str,
    pub(crate) wanted: Wanted,
}

/// `has_body`: the request carries at least one byte of body, or may.
pub(crate) fn check<'a>(
    limits: &Limits,
    sent: &'a request::Parts,
    has_body: bool,
) -> Result<Checked<'a>, Fault> {
    let method = Method::parse(sent.method.as_str());
    let method = method.ok_or_else(|| Fault::new(Code::MethodRefused).closing())?;
    let named = check_target(limits, sent)?;
    if has_body && method.is_safe() {
        return Err(Fault::malformed("A GET or HEAD carries no body."));
    }
    if sent.version == Version::HTTP_2 {
        check_http2(&sent.headers)?;
    }
    let host = check_headers(limits, &sent.headers, named)?;
    let known = |host: &str| limits.hosts.iter().any(|known| known.eq_ignore_ascii_case(host));
    if !limits.hosts.is_empty() && !known(host) {
        return Err(Fault::new(Code::Misdirected));
    }
    Ok(Checked { method, host, wanted: Wanted::of(&sent.headers) })
}

/// `host[:port]`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn is_host(text: &[u8]) -> bool {
    let (host, port) = if let Some(inner) = text.strip_prefix(b"[") {
        let Some(end) = inner.iter().position(|byte| *byte == b']') else { return false };
        let address = std::str::from_utf8(&inner[..end]).ok();
        if address.and_then(|address| address.parse::<std::net::Ipv6Addr>().ok()).is_none() {
            return false;
        }
        (None, &inner[end + 1..])
    } else {
        let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
        (Some(&text[..end]), &text[end..])
    };
    let named = host.is_none_or(|host| {
        (1..=HOST_BYTES_MAX).contains(&host.len())
            && host.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    });
    let ported = match port {
        [] => true,
        [b':', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u16>().ok());
            digits.iter().all(u8::is_ascii_digit) && number.is_some()
        }
        _ => false,
    };
    named && ported
}

/// Only the origin form (RFC 9112 §3.2.1), and its equal of HTTP/2 (RFC 9113 §8.3.1): bearerd is nobody's forward proxy
/// (P-02, P-15). Gives the host that `:authority` names.
fn check_target<'a>(limits: &Limits, sent: &'a request::Parts) -> Result<Option<&'a str>, Fault> {
    let uri = &sent.uri;
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let own = match sent.version {
        Version::HTTP_2 => matches!(uri.scheme_str(), Some("http" | "https") | None),
        _ => uri.scheme().is_none() && authority.is_none(),
    };
    if !own || !uri.path().starts_with('/') {
        return Err(Fault::malformed("The request target is not a path."));
    }
    // Over HTTP/1 that was seen to before (`wire`).
    let visible =
        |text: &str| sent.version != Version::HTTP_2 || text.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible(uri.path()) || !uri.query().is_none_or(visible) {
        return Err(Fault::malformed("The request target holds a byte that no URI may (RFC 3986 §2)."));
    }
    if uri.path().len() + uri.query().map_or(0, |query| query.len() + 1) > limits.target_bytes_max {
        return Err(Fault::new(Code::TargetTooLong).closing());
    }
    match authority {
        Some(authority) if !is_host(authority.as_bytes()) => {
            Err(Fault::malformed("The authority of the request is not a host."))
        }
        authority => Ok(authority),
    }
}

/// What hyper forgives over HTTP/2 and would not over HTTP/1.1 (P-04).
fn check_http2(headers: &HeaderMap) -> Result<(), Fault> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // RFC 9113 §8.2.1.
    if headers.values().any(|value| blank(value.as_bytes().first()) || blank(value.as_bytes().last())) {
        return Err(Fault::malformed("A header value begins or ends with a blank."));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let number =
        |value: &http::HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    match (lengths.next(), lengths.next()) {
        (Some(length), None) if !number(length) => {
            Err(Fault::malformed("The Content-Length is not a number."))
        }
        (_, Some(_)) => Err(Fault::malformed("The request states its body's length twice.")),
        _ => Ok(()),
    }
}

/// One pass over the headers; gives the host: `named` by the target, or by `Host`, or by both alike.
fn check_headers<'a>(
    limits: &Limits,
    headers: &'a HeaderMap,
    named: Option<&'a str>,
) -> Result<&'a str, Fault> {
    let mut host = None;
    let mut bytes = 0;
    if headers.len() > wire::HEADERS_MAX {
        return Err(Fault::new(Code::HeadersTooLarge).closing());
    }
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len();
        if name.as_str().as_bytes().contains(&b'_') {
            // Servers that speak CGI read `x_api_key` as `x-api-key`.
            return Err(Fault::malformed("A header name holds an underscore."));
        }
        let value = value.as_bytes();
        if *name == header::HOST {
            let text = std::str::from_utf8(value).ok().filter(|_| is_host(value));
            match text.filter(|_| host.is_none()) {
                Some(text) => host = Some(text),
                None => {
                    return Err(Fault::malformed("There is not exactly one Host header with a host in it."));
                }
            }
        } else if *name == header::EXPECT && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Fault::new(Code::ExpectationRefused).closing());
        } else if *name == header::UPGRADE {
            return Err(Fault::malformed("No upgrade of the protocol is offered."));
        } else if name.as_str() == "sec-fetch-site" && (value == b"cross-site" || value == b"same-site") {
            let detail = "A web page of another origin made the call.";
            return Err(Fault::new(Code::PolicyDenied).detail(detail));
        }
    }
    if bytes > limits.headers_bytes_max {
        return Err(Fault::new(Code::HeadersTooLarge).closing());
    }
    match (named, host) {
        (Some(named), Some(host)) if named != host => {
            Err(Fault::malformed("The request names two different hosts."))
        }
        (named, host) => named.or(host).ok_or_else(|| Fault::malformed("There is no Host header.")),
    }
}

/// Longest DNS name.
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;
    use crate::settings::ProxySettings;

    #[track_caller]
    fn check_head(method: &str, target: &str, headers: &[(&str, &str)], expected: Option<(&str, bool)>) {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect();
        let limits =
            ProxySettings { hosts: vec!["b.example".into(), "B2.example:1".into()], ..Default::default() };
        let limits = limits.limits().unwrap();
        let has_body = map.contains_key("x-body");
        let mut sent = http::Request::builder().method(method).uri(target).body(()).unwrap().into_parts().0;
        sent.headers = map;
        let outcome = check(&limits, &sent, has_body).map_err(|fault| {
            let id = crate::request_id::RequestId::for_test("r");
            let response = fault.respond(crate::error::Format::Json, id, Version::HTTP_11);
            (fault.code.name(), response.headers().contains_key(header::CONNECTION))
        });
        assert_eq!(outcome.as_ref().err().copied(), expected, "{method} {target} {headers:?}");
        if let Ok(checked) = outcome {
            assert_eq!(checked.host, headers.iter().find(|(name, _)| *name == "host").unwrap().1);
        }
    }

    const HOST: (&str, &str) = ("host", "b.example");

    /// P-02, P-15, P-16: what hyper lets through is refused, and the connection closed where its bytes are in doubt.
    #[test]
    fn heads_that_the_parser_lets_through_are_refused() {
        const MALFORMED: Option<(&str, bool)> = Some(("request_malformed", true));
        const METHOD: Option<(&str, bool)> = Some(("method_refused", true));
        const EXPECT: Option<(&str, bool)> = Some(("expectation_refused", true));
        const ELSEWHERE: Option<(&str, bool)> = Some(("misdirected", false));
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            check_head(method, "/x?y", &[HOST], None);
        }
        for method in
            ["CONNECT", "TRACE", "TRACK", "OPTIONS", "get", "Get", "PROPFIND", "PRI", "DEBUG", "GETX"]
        {
            check_head(method, "/x", &[HOST], METHOD);
        }
        check_head("CONNECT", "b.example:443", &[HOST], METHOD);
        for target in ["http://b.example/x", "https://other/x", "b.example", "b.example:80", "*"] {
            check_head("GET", target, &[HOST], MALFORMED);
        }
        check_head("GET", "/x", &[], MALFORMED);
        check_head("GET", "/x", &[HOST, HOST], MALFORMED);
        check_head("GET", "/x", &[HOST, ("host", "other")], MALFORMED);
        for host in [
            "",
            "a b",
            "u@b.example",
            "b.example:",
            "b.example:x",
            "b.example:65536",
            "b.example,c",
            "b/x",
            "[::1",
            "[x]",
            "::1",
        ] {
            check_head("GET", "/x", &[("host", host)], MALFORMED);
        }
        for host in ["other", "b.example:443", "b.example:81", "b2.example", "[::1]:80", "127.0.0.1"] {
            check_head("GET", "/x", &[("host", host)], ELSEWHERE);
        }
        for host in ["B.Example", "b.example:80", "b2.example:1"] {
            check_head("GET", "/x", &[("host", host)], None);
        }
        for name in ["x_api_key", "content_length", "_", "x-a_"] {
            check_head("GET", "/x", &[HOST, (name, "1")], MALFORMED);
        }
        for expect in ["100-continue, x", "200-ok", ""] {
            check_head("POST", "/x", &[HOST, ("expect", expect)], EXPECT);
        }
        check_head("POST", "/x", &[HOST, ("expect", "100-Continue"), ("x-body", "")], None);
        for upgrade in ["h2c", "websocket", "TLS/1.0"] {
            check_head("GET", "/x", &[HOST, ("upgrade", upgrade), ("connection", "upgrade")], MALFORMED);
        }
        for method in ["GET", "HEAD"] {
            check_head(method, "/x", &[HOST, ("x-body", "")], MALFORMED);
        }
        check_head("DELETE", "/x", &[HOST, ("x-body", "")], None);
    }

    /// P-04, P-15.
    #[test]
    fn over_http2_the_authority_is_the_host() {
        let limits = ProxySettings::default().limits().unwrap();
        let host_of = |target: &str, host: Option<&str>| {
            let mut request = http::Request::builder().uri(target).version(Version::HTTP_2);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let sent = request.body(()).unwrap().into_parts().0;
            check(&limits, &sent, false).map(|checked| checked.host.to_owned()).map_err(|fault| fault.code)
        };
        for (target, host, expected) in [
            ("https://b.example/x", None, Some("b.example")),
            ("http://b.example:8080/x", Some("b.example:8080"), Some("b.example:8080")),
            ("/x", Some("b.example"), Some("b.example")),
            ("https://b.example/x", Some("other"), None),
            ("https://u@b.example/x", None, None),
            ("ftp://b.example/x", None, None),
            ("https://b.example/\u{e9}", None, None),
            ("https://b.example/x?q=\u{e9}", None, None),
            ("/x", None, None),
            ("https://b.example/x", Some(" b.example"), None),
        ] {
            let expected = expected.map(str::to_owned).ok_or(Code::RequestMalformed);
            assert_eq!(host_of(target, host), expected, "{target} {host:?}");
        }
    }

    /// P-20, P-25.
    #[test]
    fn limits_and_foreign_pages_have_their_own_codes() {
        let (long, longer) = ("x".repeat(8 * 1024 - 1), "x".repeat(8 * 1024));
        check_head("GET", &format!("/{long}"), &[HOST], None);
        check_head("GET", &format!("/{longer}"), &[HOST], Some(("target_too_long", true)));
        check_head("GET", &format!("/?{long}"), &[HOST], Some(("target_too_long", true)));
        let big = "x".repeat(64 * 1024);
        check_head("GET", "/x", &[HOST, ("x-a", &big[20..])], None);
        check_head("GET", "/x", &[HOST, ("x-a", &big)], Some(("headers_too_large", true)));
        for (site, expected) in [
            ("cross-site", Some(("policy_denied", false))),
            ("same-site", Some(("policy_denied", false))),
            ("same-origin", None),
            ("none", None),
        ] {
            check_head("GET", "/x", &[HOST, ("sec-fetch-site", site)], expected);
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_one_request_here_and_at_the_instance(
            line in "(GET|POST|DELETE) (/c/[a-z]{1,3})?/api/now/table/[a-z]{1,4}(\\?[ -~]{0,9})? HTTP/1[.][01]",
            headers in proptest::collection::vec(
                prop_oneof![
                    "(X-[a-z_]{1,4}|Cookie|Connection|Authorization|Content-Length|Transfer-Encoding): ?[ -~]{0,9}",
                    "Connection: (close|x-[a-z]|authorization|host)(, ?[a-z]{1,4})?",
                    Just("Content-Length: 3".to_owned()),
                ],
                0..4,
            ),
        ) {
            fuzzing::head(format!("{line}\r\nHost: a.example\r\n{}\r\n\r\n", headers.join("\r\n")).as_bytes());
            fuzzing::head(format!("{line}\r\nHost: a.example\r\n\r\n").as_bytes());
        }

        #[test]
        fn a_host_holds_nothing_that_could_end_it(text in "\\PC{0,40}") {
            if is_host(text.as_bytes()) {
                prop_assert!(!text.contains(['/', '@', ' ', '?', '#', '\\', '%', ',', '<', '>', '"']));
                prop_assert!(!text.is_empty());
            }
        }
    }
}
