//! What goes to the instance: rebuilt from parsed parts (P-03). Of the caller's headers those go on that [`Passing`] names;
//! the bearer is added to them, so that nothing the caller sends can touch it (P-06, P-07).

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header, uri::PathAndQuery};

use crate::{error::Fault, names, passing::Passing, route::Route};

/// The path at the instance, with the query's bytes as sent (P-12), or with `query` where a record rule made one.
pub(crate) fn target(sent: &PathAndQuery, route: &Route<'_>, query: Option<&str>) -> PathAndQuery {
    if query.is_none() && route.connection.is_none() {
        return sent.clone(); // its path has one spelling
    }
    let query = query.or(sent.query());
    let parts = [route.path, if query.is_some() { "?" } else { "" }, query.unwrap_or_default()];
    let mut text = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        text.put_slice(part.as_bytes());
    }
    PathAndQuery::from_maybe_shared(text.freeze())
        .expect("a grammar's segments, and a query that was parsed before or is percent-encoded")
}

/// Refuses parameters that authenticate at the instance: they would stand beside the bearer.
pub(crate) fn check_query(query: Option<&str>) -> Result<(), Fault> {
    let names = query.unwrap_or_default().split(['&', ';']);
    for name in names.map(|pair| pair.split('=').next().unwrap_or_default()) {
        if AUTHENTICATING_PARAMETERS.iter().any(|refused| decodes_to(name.as_bytes(), refused.as_bytes())) {
            return Err(Fault::malformed("The query holds a parameter that authenticates at the instance."));
        }
    }
    Ok(())
}

/// What a request to the instance is made of, beside the caller's headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours<'a> {
    pub(crate) host: &'a HeaderValue,
    pub(crate) bearer: &'a HeaderValue,
    pub(crate) length: Length,
    pub(crate) passing: &'a Passing,
}

/// What a request says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// Nothing: there is none, and the method expects none.
    Unsaid,
    Known(u64),
    /// In chunks.
    Unknown,
}

/// The head of an HTTP/1.1 request, to its empty line. The bearer comes last, so that nothing of the caller's can touch
/// it.
pub(crate) fn encode(method: &str, target: &PathAndQuery, sent: &HeaderMap, ours: Ours<'_>) -> BytesMut {
    let mut head = BytesMut::with_capacity(HEAD_BYTES_USUAL);
    head.put_slice(method.as_bytes());
    head.put_slice(b" ");
    head.put_slice(target.as_str().as_bytes());
    head.put_slice(b" HTTP/1.1\r\nhost: ");
    head.put_slice(ours.host.as_bytes());
    for_each_passing(sent, ours.passing, |name, value| {
        head.put_slice(b"\r\n");
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
    });
    match ours.length {
        Length::Unsaid => {}
        Length::Known(length) => {
            head.put_slice(b"\r\ncontent-length: ");
            head.put_slice(HeaderValue::from(length).as_bytes());
        }
        Length::Unknown => head.put_slice(b"\r\ntransfer-encoding: chunked"),
    }
    head.put_slice(b"\r\nauthorization: ");
    head.put_slice(ours.bearer.as_bytes());
    head.put_slice(b"\r\n\r\n");
    head
}

/// The same for HTTP/2, where `host` is the authority and the body's length goes by itself.
pub(crate) fn headers(sent: &HeaderMap, bearer: &HeaderValue, passing: &Passing) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(sent.len() + 1);
    for_each_passing(sent, passing, |name, value| {
        headers.append(name, value.clone());
    });
    headers.insert(header::AUTHORIZATION, bearer.clone());
    headers
}

/// The caller's headers that pass, minus what `Connection` lists.
fn for_each_passing(sent: &HeaderMap, passing: &Passing, mut pass: impl FnMut(&HeaderName, &HeaderValue)) {
    let listed = ConnectionListed::of(sent);
    let is_traced = |name: &str| !matches!(name, "traceparent" | "tracestate") || traceparent(sent).is_some();
    for (name, value) in sent {
        if passing.request(name) && is_traced(name.as_str()) && !listed.holds(name.as_str()) {
            pass(name, value);
        }
    }
}

/// Names that `Connection` lists (RFC 9110 §7.6.1). Almost always none.
pub(crate) struct ConnectionListed(Vec<Bytes>);

impl ConnectionListed {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::CONNECTION).iter();
        let names =
            values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
        let listed = |name: &&[u8]| {
            !name.is_empty()
                && !name.eq_ignore_ascii_case(b"close")
                && !name.eq_ignore_ascii_case(b"keep-alive")
        };
        Self(names.filter(listed).map(Bytes::copy_from_slice).collect())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|name| std::str::from_utf8(name).ok())
    }

    pub(crate) fn holds(&self, name: &str) -> bool {
        self.0.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// `00-{32 hex}-{16 hex}-{2 hex}` (W3C Trace Context §3.2.2), exactly one.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(&names::TRACEPARENT).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let mut parts = value.as_bytes().split(|byte| *byte == b'-');
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut part = |len: usize| parts.next().is_some_and(|part| part.len() == len && part.iter().all(hex));
    let whole = value.as_bytes().starts_with(b"00-") && part(2) && part(32) && part(16) && part(2);
    (whole && parts.next().is_none()).then_some(value)
}

/// Compares a parameter's name as a server would read it: percent-decoded, in any case.
fn decodes_to(mut name: &[u8], expected: &[u8]) -> bool {
    for want in expected {
        let byte = match name {
            [b'%', high, low, rest @ ..] => {
                let (Some(high), Some(low)) = (hex(*high), hex(*low)) else { return false };
                name = rest;
                high << 4 | low
            }
            [byte, rest @ ..] => {
                name = rest;
                *byte
            }
            [] => return false,
        };
        if !byte.eq_ignore_ascii_case(want) {
            return false;
        }
    }
    name.is_empty()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Room for a request with its bearer.
const HEAD_BYTES_USUAL: usize = 1_024;
/// `access_token` (RFC 6750 §2.3); the query forms of the API key and of the session's CSRF token.
const AUTHENTICATING_PARAMETERS: [&str; 4] = ["access_token", "x-sn-apikey", "sysparm_ck", "x-usertoken"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rebuilt(sent: &[(&str, &str)]) -> HeaderMap {
        let sent: HeaderMap = sent
            .iter()
            .map(|(name, value)| {
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect();
        let bearer = HeaderValue::from_static("Bearer ours");
        let passing = Passing {
            requests: ["x-keep", "x-drop", "x-too"].map(HeaderName::from_static).into(),
            answers: vec![],
        };
        let headers = headers(&sent, &bearer, &passing);
        // Over HTTP/1.1 the same, with the host.
        let host = HeaderValue::from_static("dev1.service-now.com");
        let ours = Ours { host: &host, bearer: &bearer, length: Length::Unsaid, passing: &passing };
        let target = PathAndQuery::from_static("/api/now/table/incident?a=b");
        let encoded = encode("GET", &target, &sent, ours);
        let encoded = std::str::from_utf8(&encoded).unwrap();
        let lines = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let lines: Vec<String> =
            ["GET /api/now/table/incident?a=b HTTP/1.1".to_owned(), "host: dev1.service-now.com".to_owned()]
                .into_iter()
                .chain(lines)
                .collect();
        assert_eq!(encoded, format!("{}\r\n\r\n", lines.join("\r\n")));
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    /// P-06, P-07: nothing of the caller's stands beside the bearer, and the bearer cannot be removed.
    #[test]
    fn nothing_stands_beside_the_bearer() {
        let headers = rebuilt(&[
            ("authorization", "Bearer theirs"),
            ("host", "evil"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("cookie", "JSESSIONID=1"),
            ("x-unheard-of", "1"),
            ("accept", "application/json"),
        ]);
        assert_eq!(names(&headers), ["accept", "authorization"]);
        assert_eq!(headers["authorization"], "Bearer ours");
    }

    /// P-06: what `Connection` lists is dropped, before the bearer is added.
    #[test]
    fn connection_cannot_remove_what_is_ours() {
        let headers = rebuilt(&[
            ("connection", "Authorization, X-Drop ,close"),
            ("connection", "host,,x-too"),
            ("authorization", "Bearer theirs"),
            ("x-drop", "1"),
            ("x-too", "1"),
            ("x-too", "2"),
            ("x-keep", "1"),
            ("x-keep", "2"),
        ]);
        assert_eq!(names(&headers), ["authorization", "x-keep"]);
        assert_eq!(headers["authorization"], "Bearer ours");
        assert_eq!(headers.get_all("x-keep").iter().collect::<Vec<_>>(), ["1", "2"]);
    }

    /// P-23.
    #[test]
    fn a_trace_passes_only_if_it_is_one() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let headers = rebuilt(&[("traceparent", good), ("tracestate", "a=b")]);
        assert_eq!(
            (&headers["traceparent"], &headers["tracestate"]),
            (&good.parse().unwrap(), &"a=b".parse().unwrap())
        );
        for bad in ["", "00", &good[1..], &good[..54], &format!("{good}-x"), &good.to_uppercase(), "01-a-b-c"]
        {
            assert_eq!(names(&rebuilt(&[("traceparent", bad), ("tracestate", "a=b")])), ["authorization"]);
        }
        assert_eq!(names(&rebuilt(&[("traceparent", good), ("traceparent", good)])), ["authorization"]);
    }

    #[test]
    fn a_query_does_not_authenticate() {
        for query in [
            None,
            Some(""),
            Some("sysparm_query=access_token=1"),
            Some("a=access_token"),
            Some("access_token2=x"),
        ] {
            assert!(check_query(query).is_ok(), "{query:?}");
        }
        for query in [
            "access_token=x",
            "access_token",
            "a=b&access_token=",
            "Access_Token=x",
            "%61ccess_token=x",
            "access%5Ftoken=x",
            "%41%43%43%45%53%53%5f%54%4f%4b%45%4e=x",
            "x-sn-apikey=x",
            "a&sysparm_ck=1",
            "a;sysparm_ck=1",
            "X-UserToken=x",
        ] {
            assert!(check_query(Some(query)).is_err(), "{query}");
        }
    }

    proptest! {
        /// P-12: the query reaches the instance byte for byte, whatever it means.
        #[test]
        fn the_query_keeps_its_bytes(query in "[!$-;=?-_a-z|~]{0,80}", table in "[a-z_]{1,20}", id in "(/[a-f0-9]{32})?") {
            let sent = format!("/api/now/v2/table/{table}{id}?{query}");
            let sent: PathAndQuery = sent.parse().unwrap();
            let route = Route::parse(sent.path()).unwrap();
            let rebuilt = target(&sent, &route, None);
            prop_assert_eq!(rebuilt.as_str(), sent.as_str());
            let prefixed: PathAndQuery = format!("/c/hr{sent}").parse().unwrap();
            let route = Route::parse(prefixed.path()).unwrap();
            let rebuilt = target(&prefixed, &route, None);
            prop_assert_eq!(rebuilt.as_str(), sent.as_str());
            let ruled = target(&prefixed, &route, Some("sysparm_query=a"));
            prop_assert_eq!(ruled.as_str(), format!("{}?sysparm_query=a", sent.path()));
        }

        #[test]
        fn any_query_can_be_judged(query in "\\PC{0,60}") {
            let _ = check_query(Some(&query));
        }
    }
}
