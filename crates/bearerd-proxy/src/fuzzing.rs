//! What holds for any bytes, parser by parser. The property tests call these with bytes that they make up, the targets of
//! `tests/fuzz` with those that reach new code. A rule that does not hold panics.

use std::sync::LazyLock;

use bearerd_model::FamilyName;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version, request};

use crate::{
    frames::FrameGuard,
    head,
    route::Route,
    settings::{Limits, ProxySettings},
    upstream::{Chunked, Framing, Parsed, parse},
    upstream_head::{self, Length, Ours},
    wire::Scanner,
};

/// P-10, P-11: a path that passes has one spelling, its segments say what was understood, and no rule can open what lies
/// beyond rules.
pub fn path(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Ok(route) = Route::parse(path) else { return };
    let prefix = route.connection.map(|connection| format!("/c/{connection}")).unwrap_or_default();
    assert_eq!(format!("{prefix}{}", route.path), path);
    assert_eq!(tolerantly_read(path), path);
    assert!(path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte)), "{path}");
    let is_page = |segment: &str| segment.to_ascii_lowercase().ends_with(".do");
    let is_dotted =
        |segment: &str| segment.starts_with('.') || segment.ends_with('.') || segment.contains("..");
    assert!(!path.split('/').any(|segment| is_page(segment) || is_dotted(segment)), "{path}");
    assert_eq!(Route::parse(route.path), Ok(Route { connection: None, ..route }));
    let segments: Vec<&str> = route.path.split('/').collect();
    let ["", "api", scope, below @ ..] = segments.as_slice() else { panic!("{path}") };
    let below = if *scope == "now" && matches!(below, ["v1" | "v2", ..]) { &below[1..] } else { below };
    let understood = match (*scope, below) {
        ("now", ["table" | "import", table, rest @ ..]) if rest.len() < 2 => {
            (below[0].to_owned(), Some(*table), !rest.is_empty())
        }
        ("now", ["stats", table]) => ("stats".to_owned(), Some(*table), false),
        ("now", ["attachment", rest @ ..]) if rest.len() < 3 => {
            ("attachment".to_owned(), None, !rest.is_empty())
        }
        ("now", ["table" | "import" | "stats" | "attachment", ..] | []) => panic!("{path}"),
        ("now", [name, rest @ ..]) => (format!("now/{name}"), None, !rest.is_empty()),
        (scope, rest) => (scope.to_owned(), None, !rest.is_empty()),
    };
    assert_eq!((route.family.name().into_owned(), route.table, route.item), understood, "{path}");
    if FamilyName::parse(&route.family.name()).is_ok() {
        let is_version = |segment: &&str| {
            let digits = segment.strip_prefix(['v', 'V']);
            digits.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
        };
        // As one reads it that knows more versions than we do.
        let mut unversioned = segments[2..].iter().filter(|segment| !is_version(segment));
        let named = unversioned.next().filter(|name| **name != "now").or_else(|| unversioned.next());
        let carries_paths = |name: &str| ["batch", "tinyurl"].iter().any(|it| it.eq_ignore_ascii_case(name));
        assert!(
            named.is_some_and(|name| !carries_paths(name) && route.family.name().ends_with(name)),
            "{path}"
        );
    }
}

/// As a server reads a path that decodes it, takes `\` for `/`, drops parameters, merges slashes and resolves dots.
fn tolerantly_read(path: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        let escaped = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &rest[3..] } else { tail };
    }
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let decoded = decoded.split(['?', '#', '\0']).next().unwrap_or_default();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default().trim()) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// P-02, P-15, P-16: a head that passes names one target, one host and one body; and what goes to the instance for it is
/// one request, whatever its headers are.
pub fn head(bytes: &[u8]) {
    let mut room = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut room);
    let Ok(httparse::Status::Complete(len)) = parsed.parse(bytes) else { return };
    let mut scanner = scanner();
    scanner.feed(&bytes[..len]);
    let Some(sent) = as_hyper_gives(&parsed) else { return };
    let count = |name: &str| sent.headers.get_all(name).iter().count();
    let sized = sent.headers.get("content-length").is_some_and(|length| length != "0");
    let has_body = sized || count("transfer-encoding") > 0;
    let Ok(checked) = head::check(&LIMITS, &sent, has_body) else { return };
    assert!(head::is_host(checked.host.as_bytes()), "{}", checked.host);
    if scanner.fault().is_some() {
        return;
    }
    assert!(!scanner.is_in_head());
    assert!(!has_body || !checked.method.is_safe());
    assert!(sent.headers.keys().all(|name| !name.as_str().contains('_')));
    assert_eq!(count("host"), 1);
    assert!(count("content-length") + count("transfer-encoding") < 2);
    // Read anew, without any leniency.
    let text = String::from_utf8_lossy(&bytes[..len]);
    let line = text.split("\r\n").find(|line| !line.is_empty()).unwrap_or_default();
    let target = sent.uri.path_and_query().map_or("", |target| target.as_str());
    let minor = parsed.version.unwrap_or_default();
    assert_eq!(line, format!("{} {target} HTTP/1.{minor}", checked.method.name()));
    assert!(target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
    goes_out_as_one_request(&sent, checked.method.name());
}

/// The parts of a request that hyper makes of a parsed head. `None`: it refuses the head itself.
fn as_hyper_gives(parsed: &httparse::Request<'_, '_>) -> Option<request::Parts> {
    let mut sent = http::Request::new(()).into_parts().0;
    sent.method = parsed.method?.parse().ok()?;
    sent.uri = Uri::try_from(parsed.path?).ok()?;
    sent.version = if parsed.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        sent.headers.append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(sent)
}

/// P-06, P-07, P-12.
fn goes_out_as_one_request(sent: &request::Parts, method: &str) {
    let Some(target) = sent.uri.path_and_query() else { return };
    let Ok(route) = Route::parse(target.path()) else { return };
    if upstream_head::check_query(target.query()).is_err() {
        return;
    }
    let target = upstream_head::target(target, &route, None);
    assert_eq!((target.path(), target.query()), (route.path, sent.uri.query()));
    let (host, bearer) =
        (HeaderValue::from_static("instance.example"), HeaderValue::from_static("Bearer ours"));
    let ours = Ours { host: &host, bearer: &bearer, length: Length::Unsaid, passing: &LIMITS.passing };
    let encoded = upstream_head::encode(method, &target, &sent.headers, ours);
    let mut room = [httparse::EMPTY_HEADER; 72];
    let mut again = httparse::Request::new(&mut room);
    assert_eq!(again.parse(&encoded), Ok(httparse::Status::Complete(encoded.len())));
    assert_eq!((again.method, again.path), (Some(method), Some(target.as_str())));
    let mut scanner = scanner();
    scanner.feed(&encoded);
    assert_eq!((scanner.fault(), scanner.is_in_head()), (None, false));
    let values = |name: &str| -> Vec<&[u8]> {
        let named = again.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    assert_eq!(values("host"), [host.as_bytes()]);
    assert_eq!(values("authorization"), [bearer.as_bytes()]);
    for name in ["cookie", "content-length", "transfer-encoding", "connection", "x-api-key", "x-sn-apikey"] {
        assert!(values(name).is_empty(), "{name}");
    }
}

/// P-02: the scanner finds the same in whatever pieces a stream comes, and where it has nothing to say, the parser sees
/// the head end where it does. The first byte says how long the pieces are.
pub fn wire(bytes: &[u8]) {
    let (size, stream) = piece_size(bytes);
    let (mut whole, mut pieces) = (scanner(), scanner());
    let at_once = whole.feed(stream);
    // What goes on is the same in the end: a head at once when it is whole.
    let (mut fed, mut went_on) = (0, 0);
    for piece in stream.chunks(size) {
        let reading = pieces.feed(piece);
        if reading.passed > 0 {
            went_on = fed + reading.passed;
        }
        fed += piece.len();
    }
    assert_eq!((&whole, at_once.passed), (&pieces, went_on));
    assert_eq!(at_once.refused, whole.fault().is_some_and(|(_, fault)| !fault.is_of_body()));
    let mut room = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut room);
    let outcome = parsed.parse(stream);
    let mut scanner = scanner();
    let Ok(httparse::Status::Complete(head_len)) = outcome else {
        // Nothing of what the parser refuses, or has not seen the end of, goes on to it.
        let empty_lines = stream.chunks(2).take_while(|pair| pair == b"\r\n").count() * 2;
        return assert!(at_once.passed <= empty_lines, "{outcome:?}");
    };
    let before_end = scanner.feed(&stream[..head_len - 1]);
    let was_in_head = scanner.is_in_head();
    let end = scanner.feed(&stream[head_len - 1..head_len]);
    if scanner.fault().is_none() {
        assert!(was_in_head && !scanner.is_in_head() && before_end.passed < head_len - 1 && end.passed == 1);
        assert!(as_hyper_gives(&parsed).is_some(), "hyper refuses what the scanner passes");
    }
}

/// P-05, P-06, P-08: an answer's head that passes is whole at its last byte and not before, has at most one body length,
/// and holds nothing that must not pass. The first byte says, by its lowest bit, whether the request was a HEAD.
pub fn answer(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let to_head = first & 1 == 1;
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(parsed)) = parse(&mut buffer, to_head, &mut 0, &LIMITS.passing) else { return };
    let len = bytes.len() - buffer.len();
    let (cut, exact) = (parse_prefix(bytes, len - 1, to_head), parse_prefix(bytes, len, to_head));
    assert!(cut.is_none());
    let exact = exact.map(|again| (again.framing, again.keeps_alive, again.head.headers));
    assert_eq!(exact.as_ref(), Some(&(parsed.framing, parsed.keeps_alive, parsed.head.headers.clone())));
    // The head that counts: the last one of those that were taken. Read anew, without any leniency.
    let taken = String::from_utf8_lossy(&bytes[..len]).to_ascii_lowercase();
    let taken = taken.strip_suffix("\r\n\r\n").unwrap_or_else(|| panic!("{taken:?} does not end"));
    let last = taken.rsplit("\r\n\r\n").next().unwrap_or_default();
    let values = |name: &str| -> Vec<String> {
        let lines = last.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|line| line.0 == name).map(|line| line.1.trim_matches([' ', '\t']).to_owned()).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() < 2, "{last:?}");
    let bodiless = to_head || matches!(parsed.head.status.as_u16(), 204 | 304);
    let stated = lengths.first().map(|length| length.parse::<u64>());
    match parsed.framing {
        Framing::Empty => assert!(bodiless || stated == Some(Ok(0)), "{last:?}"),
        Framing::Length(length) => assert_eq!(stated, Some(Ok(length))),
        Framing::Chunked => assert_eq!(codings, ["chunked"]),
        Framing::UntilClose => assert!(lengths.is_empty() && codings.is_empty() && !parsed.keeps_alive),
    }
    assert!(!parsed.head.status.is_informational());
    must_not_hold(&parsed.head.headers, &values("connection"));
}

fn parse_prefix(bytes: &[u8], len: usize, to_head: bool) -> Option<Parsed> {
    let parsed = parse(&mut BytesMut::from(&bytes[..len]), to_head, &mut 0, &LIMITS.passing);
    parsed.unwrap_or_else(|fault| panic!("the beginning of a good head: {fault}"))
}

fn must_not_hold(headers: &HeaderMap, connection: &[String]) {
    let listed =
        connection.iter().flat_map(|value| value.split(',')).map(|name| name.trim_matches([' ', '\t']));
    let listed: Vec<&str> = listed.filter(|name| !matches!(*name, "" | "close" | "keep-alive")).collect();
    for name in headers.keys().map(HeaderName::as_str) {
        assert!(!name.starts_with("proxy-") && !listed.contains(&name), "{name}");
        assert!(
            !["set-cookie", "connection", "transfer-encoding", "www-authenticate"].contains(&name),
            "{name}"
        );
    }
}

/// P-05: chunks decode to the same in whatever pieces they come, to what a plain reading gives, and end where the
/// callers' scanner sees them end. The first byte says how long the pieces are.
pub fn chunked(bytes: &[u8]) {
    let (size, coded) = piece_size(bytes);
    let (whole, pieces) = (decoded(coded, coded.len().max(1)), decoded(coded, size));
    assert_eq!(whole, pieces);
    let Some(Decoded { data, ended: true, rest }) = whole else { return };
    assert_eq!(plainly_decoded(coded), Some(data));
    let mut scanner = scanner();
    scanner.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    scanner.feed(&coded[..coded.len() - rest]);
    // It is stricter; but where it lets a body pass, the next request begins behind it.
    let was_in_head = scanner.is_in_head();
    scanner.feed(b"G");
    assert!(scanner.fault().is_some() || (!was_in_head && scanner.is_in_head()));
}

#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    data: Vec<u8>,
    ended: bool,
    /// Bytes that were left.
    rest: usize,
}

/// `None`: a fault.
fn decoded(coded: &[u8], size: usize) -> Option<Decoded> {
    let (mut chunked, mut buffer, mut data) = (Chunked::default(), BytesMut::new(), Vec::new());
    for piece in coded.chunks(size) {
        buffer.extend_from_slice(piece);
        while let Some(found) = chunked.next(&mut buffer).ok()? {
            assert!(!found.is_empty());
            data.extend_from_slice(&found);
            chunked.settle(&mut buffer);
        }
    }
    Some(Decoded { data, ended: chunked.is_ended(), rest: buffer.len() })
}

/// The data of well-formed chunks, up to the last one.
fn plainly_decoded(mut coded: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = coded.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&coded[..end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        let rest = &coded[end + 2..];
        if size == 0 {
            return Some(data);
        }
        data.extend_from_slice(rest.get(..size)?);
        coded = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// P-22: frames weigh the same in whatever pieces they come, and who has sent too much for nothing stays exhausted. The
/// first byte says how long the pieces are.
pub fn frames(bytes: &[u8]) {
    let (size, stream) = piece_size(bytes);
    let (mut whole, mut pieces) = (FrameGuard::default(), FrameGuard::default());
    whole.feed(stream);
    stream.chunks(size).for_each(|piece| pieces.feed(piece));
    assert_eq!(whole, pieces);
    assert_eq!(whole.credit(), weighed(stream.get(24..).unwrap_or_default()));
    if whole.is_exhausted() {
        whole.feed(stream);
        assert!(whole.is_exhausted());
    }
}

/// What frames leave of a new connection's credit, frame by frame.
fn weighed(mut frames: &[u8]) -> u32 {
    let mut credit = FrameGuard::default().credit();
    while let Some(([high, middle, low, kind, flags, ..], payload)) = frames.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, *high, *middle, *low]);
        let paid = if *kind == 0 && flags & 8 == 0 { len / 256 } else { 0 };
        credit = (credit + paid).min(FrameGuard::default().credit()) - 1;
        if credit == 0 {
            break;
        }
        frames = payload.get(len as usize..).unwrap_or_default();
    }
    credit
}

#[cfg(test)]
pub(crate) fn limits() -> &'static Limits {
    &LIMITS
}

/// Reads a connection from its beginning.
pub(crate) fn scanner() -> Scanner {
    Scanner::new(&LIMITS)
}

/// How long the pieces are in which the rest comes.
fn piece_size(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((1, bytes), |(first, rest)| (usize::from(*first).max(1), rest))
}

static LIMITS: LazyLock<Limits> =
    LazyLock::new(|| ProxySettings::default().limits().expect("the defaults are valid settings"));
