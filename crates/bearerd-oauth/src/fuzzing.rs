//! What holds for any answer of a token endpoint. The property tests call this with bytes that they make up, a target of
//! `tests/fuzz` with those that reach new code. A rule that does not hold panics.

use std::time::Duration;

use bearerd_model::RefreshToken;
use serde_json::{Map, Value};

use crate::{TokenEndpointError, TokenResponse, Verdict, parse_token_response};

/// O-35, O-36, O-57: only a 200 with a JSON object issues tokens, those that stand in it; only the RFC's word for it ends
/// a grant; and no answer is quoted. The first two bytes choose status and content type, the rest is the body.
pub fn token_reply(bytes: &[u8]) {
    let Some(([status, kind], body)) = bytes.split_first_chunk() else { return };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let content_type = CONTENT_TYPES[usize::from(*kind) % CONTENT_TYPES.len()];
    let pause = Some(Duration::from_secs(7));
    match parse_token_response(status, content_type, pause, body) {
        Ok(response) => check_response(status, content_type, body, &response),
        Err(error) => check_error(status, body, &error, pause),
    }
}

fn check_response(status: u16, content_type: Option<&str>, body: &[u8], response: &TokenResponse) {
    assert!(status == 200 && content_type != Some("text/html"), "{status} {content_type:?}");
    let members: Map<String, Value> = serde_json::from_slice(body).expect("tokens come in a JSON object");
    let text = |name: &str| members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let access_token = response.access_token.expose();
    assert_eq!(text("access_token"), Some(access_token));
    assert!(access_token.bytes().all(|byte| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte)));
    assert_eq!(text("refresh_token"), response.refresh_token.as_ref().map(RefreshToken::expose));
    assert!(text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")));
    let scope = response.scope.as_deref();
    assert!(scope.is_none_or(|scope| text("scope").is_some_and(|whole| whole.starts_with(scope))));
    let is_null = members.get("expires_in").is_none_or(Value::is_null);
    assert_eq!(response.expires_in.is_none(), is_null);
    let year = Duration::from_hours(24 * 365);
    assert!(response.expires_in.is_none_or(|life| life <= year && life.subsec_nanos() == 0));
    if let Some(stated) = members.get("expires_in").and_then(Value::as_u64) {
        assert_eq!(response.expires_in, Some(Duration::from_secs(stated).min(year)));
    }
    let shown = format!("{response:?}");
    assert!(access_token.len() < UNLIKELY_BYTES || !shown.contains(access_token));
}

fn check_error(status: u16, body: &[u8], error: &TokenEndpointError, pause: Option<Duration>) {
    let members: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let code = members.get("error").and_then(Value::as_str);
    let failed = status == 429 || status >= 500;
    match error.verdict() {
        Verdict::GrantDead => assert_eq!((code, failed), (Some("invalid_grant"), false)),
        Verdict::ClientRefused => assert!(code.is_some() && !failed),
        Verdict::Suspect => assert!(matches!(status, 400 | 401 | 403), "{status}"),
        Verdict::Throttled => assert_eq!(status, 429),
        Verdict::Transient => assert_ne!(status, 429),
    }
    assert!(error.retry_after().is_none_or(|told| Some(told) == pause));
    if failed {
        assert_eq!(error.retry_after(), pause);
    }
    let shown = format!("{error} {error:?}");
    for text in members.values().filter_map(Value::as_str).filter(|text| text.len() >= UNLIKELY_BYTES) {
        assert!(!shown.contains(text), "{shown}");
    }
}

const STATUSES: [u16; 16] = [200, 200, 200, 200, 200, 201, 202, 204, 302, 400, 401, 403, 404, 429, 500, 503];
const CONTENT_TYPES: [Option<&str>; 4] =
    [Some("application/json;charset=UTF-8"), None, Some("text/html"), Some("text/plain")];
/// Longer than any text of ours.
const UNLIKELY_BYTES: usize = 160;
