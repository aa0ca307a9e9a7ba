//! Answers that no HTTP library would send, as bytes: two at once, bodies that contradict their heads, chunks that are
//! none. HTTP/1.1 only.

use bytes::Bytes;
use http::StatusCode;

use crate::body::Content;
use crate::faults::{ChunkFlaw, Fault};
use crate::line::RawAnswer;
use crate::message::Reply;

/// The bytes that the fault answers with; `None` if it needs none of its own.
pub(crate) fn answer(fault: &Fault, reply: &Reply, is_head: bool) -> Option<RawAnswer> {
    let raw = match fault {
        Fault::Informational { status, count } => {
            let hint =
                format!("HTTP/1.1 {status} Early Hints\r\nLink: </a>;rel=preload\r\nX-Sim-Hint: 1\r\n\r\n");
            let count = usize::try_from(*count).unwrap_or(usize::MAX).min(INFORMATIONAL_MAX);
            let mut bytes = hint.repeat(count).into_bytes();
            bytes.extend(chunked(reply, is_head, "Connection: close\r\n", ""));
            closing(bytes)
        }
        Fault::Trailers { trailers } => {
            let names: Vec<&str> = trailers.keys().map(String::as_str).collect();
            let fields: String = trailers
                .iter()
                .flat_map(|(name, value)| [name.as_str(), ": ", value.as_str(), "\r\n"])
                .collect();
            let announced = format!("Connection: close\r\nTrailer: {}\r\n", names.join(", "));
            closing(chunked(reply, is_head, &announced, &fields))
        }
        Fault::LengthAndChunked => open(chunked(reply, is_head, "Content-Length: 5\r\n", "")),
        Fault::TwoAnswers => {
            let mut bytes = sized(reply, reply.status, &whole_body(reply));
            let second = b"{\"result\":\"nobody asked\"}";
            bytes.extend(sized(&Reply::json(StatusCode::OK, &()), StatusCode::OK, second));
            open(bytes)
        }
        Fault::BadChunks { flaw } => bad_chunks(*flaw, reply),
        Fault::GhostBody { status } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::NOT_MODIFIED);
            open(sized(reply, status, b"{\"result\":\"a ghost\"}"))
        }
        Fault::Raw { text, close, .. } => {
            RawAnswer { bytes: Bytes::copy_from_slice(text.as_bytes()), close: *close }
        }
        _ => return None,
    };
    Some(raw)
}

fn closing(bytes: Vec<u8>) -> RawAnswer {
    RawAnswer { bytes: bytes.into(), close: true }
}

fn open(bytes: Vec<u8>) -> RawAnswer {
    RawAnswer { bytes: bytes.into(), close: false }
}

fn bad_chunks(flaw: ChunkFlaw, reply: &Reply) -> RawAnswer {
    let body = match flaw {
        ChunkFlaw::NotHex => "zz\r\n{}\r\n0\r\n\r\n",
        ChunkFlaw::Signed => "+2\r\n{}\r\n0\r\n\r\n",
        ChunkFlaw::TooLarge => "10000000000000002\r\n{}\r\n0\r\n\r\n",
        ChunkFlaw::TooLong => "2\r\n{}{}\r\n0\r\n\r\n",
        ChunkFlaw::BareLf => "2\n{}\n0\n\n",
        ChunkFlaw::NoEnd => "2\r\n{}\r\n",
    };
    let mut bytes = head(reply, reply.status, "Transfer-Encoding: chunked\r\n");
    bytes.extend_from_slice(body.as_bytes());
    RawAnswer { bytes: bytes.into(), close: flaw == ChunkFlaw::NoEnd }
}

fn chunked(reply: &Reply, is_head: bool, more: &str, trailers: &str) -> Vec<u8> {
    let mut bytes = head(reply, reply.status, &format!("Transfer-Encoding: chunked\r\n{more}"));
    if is_head {
        return bytes;
    }
    let body = whole_body(reply);
    if !body.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    bytes
}

fn sized(reply: &Reply, status: StatusCode, body: &[u8]) -> Vec<u8> {
    let mut bytes = head(reply, status, &format!("Content-Length: {}\r\n", body.len()));
    bytes.extend_from_slice(body);
    bytes
}

fn head(reply: &Reply, status: StatusCode, framing: &str) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in &reply.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(framing.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Of a generated file only the start: these answers are held in memory.
fn whole_body(reply: &Reply) -> Vec<u8> {
    let mut content = Content::new(reply.body.clone(), reply.pattern);
    let mut body = Vec::new();
    while let Some(piece) = content.take(BODY_BYTES_MAX.saturating_sub(body.len())) {
        body.extend_from_slice(&piece);
    }
    body
}

const INFORMATIONAL_MAX: usize = 10_000;
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
