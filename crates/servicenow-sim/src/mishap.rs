//! Scripted failures as replies: what is answered instead, what becomes of a good reply, how its body is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use crate::api;
use crate::body::{Content, SimBody};
use crate::clock::SimTime;
use crate::faults::Fault;
use crate::message::{Format, Reply};
use crate::pages;
use crate::rate::RateState;
use crate::token_endpoint;

/// The fault's name, for counters.
pub(crate) fn name(fault: &Fault) -> &'static str {
    match fault {
        Fault::DelayMs { .. } => "delay_ms",
        Fault::Hold { .. } => "hold",
        Fault::Status { .. } => "status",
        Fault::DropBefore => "drop_before",
        Fault::DropAfter => "drop_after",
        Fault::DropConnection => "drop_connection",
        Fault::Html { .. } => "html",
        Fault::Accepted202 => "accepted_202",
        Fault::Unauthorized401 => "unauthorized_401",
        Fault::RateLimit429 { .. } => "rate_limit_429",
        Fault::QueueFull429 => "queue_full_429",
        Fault::BrokenJson => "broken_json",
        Fault::Cancelled500 => "cancelled_500",
        Fault::CutBody { .. } => "cut_body",
        Fault::SlowDrip { .. } => "slow_drip",
        Fault::Asleep => "asleep",
        Fault::AnswerEarly { .. } => "answer_early",
        Fault::ContinueLate { .. } => "continue_late",
        Fault::SlowRead { .. } => "slow_read",
        Fault::Informational { .. } => "informational",
        Fault::Trailers { .. } => "trailers",
        Fault::HugeHeader { .. } => "huge_header",
        Fault::LengthAndChunked => "length_and_chunked",
        Fault::TwoAnswers => "two_answers",
        Fault::BadChunks { .. } => "bad_chunks",
        Fault::GhostBody { .. } => "ghost_body",
        Fault::Raw { .. } => "raw",
    }
}

/// The reply of a fault that has no effect; `None` if the request takes effect first.
pub(crate) fn instead(fault: &Fault, is_token: bool, format: Format, now: SimTime) -> Option<Reply> {
    match fault {
        Fault::Status { status, body, headers, after_effect: false } => {
            Some(scripted(*status, body, headers))
        }
        Fault::Html { status } => Some(Reply::html(status_of(*status), pages::maintenance())),
        Fault::Asleep => Some(Reply::html(StatusCode::OK, pages::hibernating())),
        Fault::Accepted202 => Some(Reply::new(StatusCode::ACCEPTED)),
        Fault::Unauthorized401 if is_token => Some(token_endpoint::flattened()),
        Fault::Unauthorized401 => Some(api::unauthorized(format)),
        Fault::RateLimit429 { retry_after_s } => {
            let reset_at_s = now.as_secs().saturating_add(*retry_after_s);
            Some(RateState { limit: 100, reset_at_s, exceeded: true }.refusal(format, *retry_after_s))
        }
        Fault::QueueFull429 => Some(Reply::new(StatusCode::TOO_MANY_REQUESTS)),
        Fault::AnswerEarly { status, .. } => {
            let detail = Some("Answered before the body was read");
            Some(Reply::api_error(format, status_of(*status), "Answered early", detail))
        }
        Fault::Raw { after_effect: false, .. } => Some(Reply::new(StatusCode::OK)),
        Fault::DelayMs { .. }
        | Fault::Hold { .. }
        | Fault::Status { after_effect: true, .. }
        | Fault::DropBefore
        | Fault::DropAfter
        | Fault::DropConnection
        | Fault::BrokenJson
        | Fault::Cancelled500
        | Fault::CutBody { .. }
        | Fault::SlowDrip { .. }
        | Fault::ContinueLate { .. }
        | Fault::SlowRead { .. }
        | Fault::Informational { .. }
        | Fault::Trailers { .. }
        | Fault::HugeHeader { .. }
        | Fault::LengthAndChunked
        | Fault::TwoAnswers
        | Fault::BadChunks { .. }
        | Fault::GhostBody { .. }
        | Fault::Raw { after_effect: true, .. } => None,
    }
}

/// Whether a request's effect happened and its answer does not show the tokens. Cut connections and bodies are
/// noticed where they are cut.
pub(crate) fn hides_tokens(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Status { after_effect: true, .. }
            | Fault::BrokenJson
            | Fault::Cancelled500
            | Fault::LengthAndChunked
            | Fault::TwoAnswers
            | Fault::BadChunks { .. }
            | Fault::GhostBody { .. }
            | Fault::Raw { after_effect: true, .. }
    )
}

/// What becomes of the reply of a request that took effect.
pub(crate) fn spoil(fault: &Fault, format: Format, mut reply: Reply) -> Reply {
    match fault {
        Fault::Status { status, body, headers, after_effect: true } => scripted(*status, body, headers),
        Fault::Cancelled500 => {
            Reply::api_error(format, StatusCode::INTERNAL_SERVER_ERROR, CANCELLED, Some(CANCELLED_DETAIL))
        }
        Fault::BrokenJson => {
            let mut text = reply.body.to_vec();
            if text.pop() != Some(b'}') {
                text = b"{\"result\":[".to_vec();
            }
            let error = json!({"message": CANCELLED, "detail": CANCELLED_DETAIL});
            text.extend_from_slice(format!("\"error\":{error},\"status\":\"failure\"}}").as_bytes());
            reply.body = Bytes::from(text);
            reply.status = StatusCode::OK;
            reply
        }
        Fault::HugeHeader { bytes } => {
            reply.with(HeaderName::from_static("x-sim-huge"), &"h".repeat((*bytes).min(HEADER_BYTES_MAX)))
        }
        _ => reply,
    }
}

/// How the body is sent.
pub(crate) fn body(fault: Option<&Fault>, reply: &Reply) -> SimBody {
    let sized = reply.pattern.is_some_and(|file| file.sized);
    let whole = SimBody::whole(Content::new(reply.body.clone(), reply.pattern), sized);
    match fault {
        Some(Fault::CutBody { after_bytes }) => whole.cut_after(*after_bytes),
        Some(Fault::SlowDrip { chunk_bytes, interval_ms }) => {
            whole.dripping(*chunk_bytes, Duration::from_millis(*interval_ms))
        }
        Some(Fault::Trailers { trailers }) => whole.with_trailers(header_map(trailers)),
        Some(_) | None => whole,
    }
}

fn header_map(fields: &BTreeMap<String, String>) -> HeaderMap {
    let pairs = fields.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    });
    pairs.collect()
}

fn scripted(status: u16, body: &str, headers: &BTreeMap<String, String>) -> Reply {
    let mut reply = Reply::new(status_of(status));
    if !headers.keys().any(|name| name.eq_ignore_ascii_case("content-type")) && !body.is_empty() {
        reply = reply.typed("application/json;charset=UTF-8", Bytes::new());
    }
    reply.body = Bytes::copy_from_slice(body.as_bytes());
    for (name, value) in headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            reply = reply.with(name, value);
        }
    }
    reply
}

/// A status that is none, or one that is not final, becomes 500.
fn status_of(status: u16) -> StatusCode {
    let known = StatusCode::from_u16(status).ok().filter(|status| !status.is_informational());
    known.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

const HEADER_BYTES_MAX: usize = 16 * 1024 * 1024;
const CANCELLED: &str = "Transaction cancelled: maximum execution time exceeded";
const CANCELLED_DETAIL: &str = "Transaction cancelled: maximum execution time exceeded. Check logs for error trace or \
                                enable glide.rest.debug property to verify REST request processing";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_json_is_broken() {
        for body in ["{\"result\":[]}", ""] {
            let mut reply = Reply::new(StatusCode::OK);
            reply.body = Bytes::from(body);
            let spoilt = spoil(&Fault::BrokenJson, Format::Json, reply);
            assert_eq!(spoilt.status, StatusCode::OK);
            assert!(serde_json::from_slice::<serde_json::Value>(&spoilt.body).is_err());
            assert!(spoilt.body.ends_with(b"\"status\":\"failure\"}"));
        }
    }

    #[test]
    fn scripted_status_is_answered_as_given() {
        let headers =
            [("Retry-After".to_owned(), "7".to_owned()), ("bad name".to_owned(), "x".to_owned())].into();
        let fault = Fault::Status { status: 503, body: "{}".to_owned(), headers, after_effect: false };
        let reply = instead(&fault, false, Format::Json, SimTime::from_secs(0)).unwrap();
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.headers["retry-after"], "7");
        assert_eq!(status_of(100), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(status_of(9), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn headers_of_both_429_differ() {
        let limited =
            instead(&Fault::RateLimit429 { retry_after_s: 3 }, false, Format::Json, SimTime::from_secs(10))
                .unwrap();
        assert_eq!(limited.headers["retry-after"], "3");
        assert_eq!(limited.headers["x-ratelimit-reset"], "13");
        let full = instead(&Fault::QueueFull429, false, Format::Json, SimTime::from_secs(10)).unwrap();
        assert_eq!(full.headers, HeaderMap::new());
        assert!(full.body.is_empty());
    }
}
