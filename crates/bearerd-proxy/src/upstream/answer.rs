//! The head of an instance's answer, read strictly (RFC 9112 §4, §6.3): an answer whose framing is in doubt could hide a
//! second one (P-05). What must not reach the caller is not even kept. No I/O.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{passing::Passing, upstream_head::ConnectionListed};

/// Status and headers, as far as they may pass.
#[derive(Debug)]
pub(crate) struct AnswerHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// How the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A head, and what it says of the connection.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) head: AnswerHead,
    pub(crate) framing: Framing,
    /// Another request may follow.
    pub(crate) keeps_alive: bool,
}

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadFault {
    #[error("The answer's head is malformed.")]
    Malformed,
    #[error("The answer's head is too large.")]
    TooLarge,
    #[error("The answer has two body lengths.")]
    TwoLengths,
    #[error("The answer's transfer encoding is not just chunked.")]
    TransferEncoding,
    #[error("The instance switched protocols unasked.")]
    Switched,
}

/// Takes a final head out of `buffer`, and the interim ones (RFC 9110 §15.2) before it. `None`: more bytes are needed.
/// `to_head`: the request was a HEAD. `interim`: how many interim ones have come.
pub(crate) fn parse(
    buffer: &mut BytesMut,
    to_head: bool,
    interim: &mut u8,
    passing: &Passing,
) -> Result<Option<Parsed>, HeadFault> {
    loop {
        let Some(parsed) = parse_one(buffer, to_head, passing)? else { return Ok(None) };
        match parsed.head.status {
            StatusCode::SWITCHING_PROTOCOLS => return Err(HeadFault::Switched),
            status if status.is_informational() => {
                *interim += 1;
                if *interim > INTERIM_MAX {
                    return Err(HeadFault::Malformed);
                }
            }
            _ => return Ok(Some(parsed)),
        }
    }
}

fn parse_one(buffer: &mut BytesMut, to_head: bool, passing: &Passing) -> Result<Option<Parsed>, HeadFault> {
    let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut room,
    );
    let len = match outcome {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(httparse::Status::Partial) if buffer.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadFault::TooLarge),
        Err(_) => return Err(HeadFault::Malformed),
    };
    if !lines_end_in_crlf(&buffer[..len]) {
        return Err(HeadFault::Malformed);
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(HeadFault::Malformed)?;
    check_status(status)?;
    let is_http11 = response.version == Some(1);
    // Where each name and value is, so that the bytes can be split off and shared.
    let base = buffer.as_ptr() as usize;
    let at = |bytes: &[u8]| (bytes.as_ptr() as usize - base, bytes.len());
    let at_each = |header: &httparse::Header<'_>| (at(header.name.as_bytes()), at(header.value));
    let places: Vec<(Span, Span)> = response.headers.iter().map(at_each).collect();
    let bytes = buffer.split_to(len).freeze();
    headers_of(&bytes, &places, (status, is_http11), to_head, passing).map(Some)
}

type Span = (usize, usize);

fn headers_of(
    bytes: &Bytes,
    places: &[(Span, Span)],
    (status, is_http11): (StatusCode, bool),
    to_head: bool,
    passing: &Passing,
) -> Result<Parsed, HeadFault> {
    let mut headers = HeaderMap::with_capacity(places.len() + 1);
    let mut connection = HeaderMap::new();
    let (mut length, mut chunked) = (None, false);
    for ((name_at, name_len), (value_at, value_len)) in places {
        let name = HeaderName::from_bytes(&bytes[*name_at..name_at + name_len]);
        let name = name.map_err(|_| HeadFault::Malformed)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(*value_at..value_at + value_len));
        let value = value.map_err(|_| HeadFault::Malformed)?;
        match name {
            http::header::CONTENT_LENGTH if length.is_some() => return Err(HeadFault::TwoLengths),
            http::header::CONTENT_LENGTH => {
                length = Some(number(value.as_bytes()).ok_or(HeadFault::Malformed)?);
            }
            http::header::TRANSFER_ENCODING => {
                if chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadFault::TransferEncoding);
                }
                chunked = true;
            }
            http::header::CONNECTION => {
                connection.append(&name, value.clone());
            }
            _ => {}
        }
        if passing.answer(&name) {
            headers.append(name, value);
        }
    }
    if chunked && length.is_some() {
        return Err(HeadFault::TwoLengths);
    }
    let closes = !connection.is_empty() && leave_out(&mut headers, &connection);
    let bodiless = to_head
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (bodiless, chunked, length) {
        (true, ..) | (false, false, Some(0)) => Framing::Empty,
        (false, true, _) if !is_http11 => return Err(HeadFault::TransferEncoding),
        (false, true, _) => Framing::Chunked,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::UntilClose,
    };
    // Whatever such an answer calls a body could be read as the next answer.
    let ghost = status == StatusCode::NO_CONTENT && (chunked || length.is_some_and(|length| length > 0));
    let keeps_alive = is_http11 && !closes && !ghost && framing != Framing::UntilClose;
    Ok(Parsed { head: AnswerHead { status, headers }, framing, keeps_alive })
}

/// There are five classes of status codes (RFC 9110 §15); what another one means nobody can know.
pub(super) fn check_status(status: StatusCode) -> Result<(), HeadFault> {
    if status.as_u16() < 600 { Ok(()) } else { Err(HeadFault::Malformed) }
}

/// Takes out what `Connection` lists; `true` if it says `close`.
fn leave_out(headers: &mut HeaderMap, connection: &HeaderMap) -> bool {
    let listed = ConnectionListed::of(connection);
    for name in listed.names() {
        headers.remove(name);
    }
    connection.values().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Digits and nothing else (RFC 9110 §8.6).
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// The parser forgives a bare LF.
fn lines_end_in_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|end| head[..end].ends_with(b"\r"))
}

/// Real answers carry some thirty.
const HEADERS_MAX: usize = 128;
/// Real heads are a few KiB.
pub(crate) const HEAD_BYTES_MAX: usize = 128 * 1024;
/// Interim answers before the one that counts; more are a flood.
const INTERIM_MAX: u8 = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    fn read(text: &str, to_head: bool) -> Result<Option<(Parsed, String)>, HeadFault> {
        let mut buffer = BytesMut::from(text);
        let passing = Passing { answers: vec![HeaderName::from_static("x-stays")], ..Passing::default() };
        let parsed = parse(&mut buffer, to_head, &mut 0, &passing)?;
        Ok(parsed.map(|parsed| (parsed, String::from_utf8(buffer.to_vec()).unwrap())))
    }

    #[track_caller]
    fn check(head: &str, framing: Framing, keeps_alive: bool) {
        let (parsed, rest) = read(&format!("{head}\r\n\r\nrest"), false).unwrap().unwrap();
        assert_eq!(
            (parsed.framing, parsed.keeps_alive, rest.as_str()),
            (framing, keeps_alive, "rest"),
            "{head}"
        );
    }

    #[test]
    fn the_framing_follows_from_the_head() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5", Framing::Length(5), true);
        check("HTTP/1.1 200 OK\r\nContent-Length: 0", Framing::Empty, true);
        check("HTTP/1.1 200 \r\nTransfer-Encoding: Chunked", Framing::Chunked, true);
        check("HTTP/1.1 200 OK", Framing::UntilClose, false);
        check("HTTP/1.1 204 No Content\r\nContent-Length: 5", Framing::Empty, false);
        check("HTTP/1.1 204 No Content\r\nContent-Length: 0", Framing::Empty, true);
        check("HTTP/1.1 304 Not Modified", Framing::Empty, true);
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close", Framing::Length(5), false);
        check("HTTP/1.0 200 OK\r\nContent-Length: 5", Framing::Length(5), false);
        check(
            "HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1",
            Framing::Length(1),
            true,
        );
        let (parsed, _) = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).unwrap().unwrap();
        assert_eq!(
            (parsed.framing, &parsed.head.headers["content-length"]),
            (Framing::Empty, &"5".parse().unwrap())
        );
    }

    /// P-05.
    #[test]
    fn an_answer_whose_framing_is_in_doubt_is_refused() {
        for (head, fault) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", HeadFault::TwoLengths),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", HeadFault::TwoLengths),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: -5", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length:", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", HeadFault::TransferEncoding),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                HeadFault::TransferEncoding,
            ),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", HeadFault::TransferEncoding),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x", HeadFault::Switched),
            ("HTTP/1.1 200 OK\nContent-Length: 5", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nX: a\r\n b", HeadFault::Malformed),
            ("HTTP/1.1 200 OK\r\nX : a", HeadFault::Malformed),
            ("HTTP/2 200 OK", HeadFault::Malformed),
            ("HTTP/1.1 600 x", HeadFault::Malformed),
            ("HTTP/1.1 999 x", HeadFault::Malformed),
            ("HTTP/1.1 099 x", HeadFault::Malformed),
            ("nonsense", HeadFault::Malformed),
        ] {
            let found = read(&format!("{head}\r\n\r\n"), false);
            assert_eq!(found.err(), Some(fault), "{head}");
        }
        let interim = "HTTP/1.1 103 x\r\n\r\n".repeat(65);
        assert_eq!(read(&interim, false).err(), Some(HeadFault::Malformed));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(read(&long, false).err(), Some(HeadFault::TooLarge));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(read(&many, false).err(), Some(HeadFault::TooLarge));
    }

    /// P-06, P-08.
    #[test]
    fn what_must_not_pass_is_not_kept() {
        let head = "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nServer: x\r\nConnection: X-Hop, keep-alive\r\n\
                    X-Hop: 1\r\nX-Stays: 1\r\nX-Stays: 2\r\nContent-Length: 1\r\n\r\n";
        let (parsed, _) = read(head, false).unwrap().unwrap();
        let mut names: Vec<_> = parsed.head.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-stays", "x-stays"]);
        assert!(parsed.keeps_alive);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_a_fault_or_too_few(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "HTTP/1.1 [0-9]{3} \\PC{0,9}\r\n([A-Za-z-]{1,9}: ?\\PC{0,12}\r?\n){0,5}\r\n".prop_map(String::into_bytes),
            ],
            to_head: bool,
        ) {
            fuzzing::answer(&[&[u8::from(to_head)], &bytes[..]].concat());
        }
    }
}
