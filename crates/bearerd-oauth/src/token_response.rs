//! What a token endpoint's answer means (RFC 6749 §5). ServiceNow flattens nearly every failure to
//! `401 {"error":"server_error","error_description":"access_denied"}` and answers HTML when it sleeps, so the verdict
//! comes from status, content type and shape together, and one refusal is never fatal by itself.

use std::time::Duration;

use bearerd_model::{AccessToken, RefreshToken};
use serde_json::{Map, Value};
use zeroize::Zeroize;

/// A successful answer (RFC 6749 §5.1). Members that we do not know are ignored.
#[derive(Debug)]
pub struct TokenResponse {
    pub access_token: AccessToken,
    /// From now; `None` if the server left it out (O-36).
    pub expires_in: Option<Duration>,
    pub refresh_token: Option<RefreshToken>,
    pub scope: Option<String>,
}

/// Why the authorization server did not issue a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenEndpointError {
    /// `invalid_grant`: the code or refresh token is expired, revoked or already used (RFC 6749 §5.2).
    #[error("the authorization server refused the grant (invalid_grant)")]
    GrantRefused,
    /// ServiceNow's flattened refusal: wrong secret, dead grant, inactive user or a passing fault look alike.
    #[error("the authorization server refused without saying why (401 server_error/access_denied)")]
    Denied,
    /// `invalid_client`, `unauthorized_client`: our own client credentials were rejected (RFC 6749 §5.2).
    #[error("the authorization server refused our client credentials ({code})")]
    ClientRefused { code: &'static str },
    /// `invalid_request`, `invalid_scope`, `unsupported_grant_type`: the request cannot succeed as configured.
    #[error("the authorization server refused the request ({code})")]
    RequestRefused { code: &'static str },
    /// 429.
    #[error("the authorization server asks for a pause")]
    Throttled { retry_after: Option<Duration> },
    /// HTML where JSON was due: a hibernating instance, a maintenance page, a single-sign-on gateway (O-57).
    #[error(
        "the instance answered a web page (status {status}): it is asleep, in maintenance, or behind a login"
    )]
    Asleep { status: u16 },
    #[error("the token endpoint answered status {status}")]
    Unavailable { status: u16, retry_after: Option<Duration> },
    /// 200, but not a token response.
    #[error("the token endpoint's answer is not a token response: {fault}")]
    Malformed { fault: &'static str },
}

/// What a failure says about the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The server refused this refresh token and said so in RFC words.
    GrantDead,
    /// May be the grant's end, may pass: several strikes decide.
    Suspect,
    /// Our client or request is refused; the grant is not in question.
    ClientRefused,
    /// Nothing is known about the grant; ask again later.
    Transient,
    Throttled,
}

impl TokenEndpointError {
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::GrantRefused => Verdict::GrantDead,
            Self::Denied => Verdict::Suspect,
            Self::ClientRefused { .. } | Self::RequestRefused { .. } => Verdict::ClientRefused,
            Self::Throttled { .. } => Verdict::Throttled,
            Self::Asleep { .. } | Self::Unavailable { .. } | Self::Malformed { .. } => Verdict::Transient,
        }
    }

    /// How long the server asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Longest access token life that is believed: what is longer is cut (O-36).
const EXPIRES_IN_MAX: Duration = Duration::from_hours(24 * 365);
/// Longest `scope` kept.
const SCOPE_BYTES_MAX: usize = 4 * 1024;

/// Judges a token endpoint's answer. `retry_after` is the header's value in seconds, where given.
///
/// # Errors
/// [`TokenEndpointError`] for everything that is not a usable token response.
pub fn parse_token_response(
    status: u16,
    content_type: Option<&str>,
    retry_after: Option<Duration>,
    body: &[u8],
) -> Result<TokenResponse, TokenEndpointError> {
    match status {
        429 => return Err(TokenEndpointError::Throttled { retry_after }),
        500.. => return Err(TokenEndpointError::Unavailable { status, retry_after }),
        _ => {}
    }
    if looks_like_html(content_type, body) {
        return Err(TokenEndpointError::Asleep { status });
    }
    let parsed = serde_json::from_slice::<Map<String, Value>>(body);
    let result = match (status, &parsed) {
        (200, Ok(members)) if members.contains_key("access_token") => token_response(members),
        (_, Ok(members)) if members.get("error").is_some_and(Value::is_string) => {
            Err(refusal(status, members))
        }
        (200, _) => Err(TokenEndpointError::Malformed { fault: "no JSON object with an access_token" }),
        (401, _) => Err(TokenEndpointError::Denied),
        _ => Err(TokenEndpointError::Unavailable { status, retry_after }),
    };
    if let Ok(members) = parsed {
        wipe(members);
    }
    result
}

pub(crate) fn looks_like_html(content_type: Option<&str>, body: &[u8]) -> bool {
    let named = content_type.is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("text/html") || essence.eq_ignore_ascii_case("application/xhtml+xml")
    });
    named || body.trim_ascii_start().first() == Some(&b'<')
}

fn token_response(members: &Map<String, Value>) -> Result<TokenResponse, TokenEndpointError> {
    let malformed = |fault| TokenEndpointError::Malformed { fault };
    let text = |name: &str| members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token_type) = members.get("token_type") {
        let bearer = token_type.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
        if !bearer {
            return Err(malformed("token_type is not Bearer"));
        }
    }
    let access_token = text("access_token").filter(|token| is_b64token(token));
    let access_token = access_token.ok_or(malformed("access_token is not a bearer token"))?;
    let access_token = AccessToken::parse(access_token.to_owned())
        .map_err(|_| malformed("access_token is not a bearer token"))?;
    let refresh_token = text("refresh_token")
        .map(|token| RefreshToken::parse(token.to_owned()))
        .transpose()
        .map_err(|_| malformed("refresh_token holds characters that no token has"))?;
    let expires_in = match members.get("expires_in") {
        None | Some(Value::Null) => None,
        Some(value) => Some(seconds(value).ok_or(malformed("expires_in is not a number"))?),
    };
    let scope = text("scope").map(|scope| scope.chars().take(SCOPE_BYTES_MAX).collect());
    Ok(TokenResponse { access_token, expires_in, refresh_token, scope })
}

/// `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="` (RFC 6750 §2.1).
fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty()
        && body.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/')
        })
}

/// A number or a numeric string (O-35); negative is zero, and huge is [`EXPIRES_IN_MAX`] (O-36).
fn seconds(value: &Value) -> Option<Duration> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        _ => None,
    }?;
    if !number.is_finite() {
        return None;
    }
    let clamped = number.clamp(0.0, EXPIRES_IN_MAX.as_secs_f64());
    Some(Duration::from_secs_f64(clamped.floor()))
}

/// RFC 6749 §5.2, with ServiceNow's flattening.
fn refusal(status: u16, members: &Map<String, Value>) -> TokenEndpointError {
    match members.get("error").and_then(Value::as_str).unwrap_or_default() {
        "invalid_grant" => TokenEndpointError::GrantRefused,
        "invalid_client" => TokenEndpointError::ClientRefused { code: "invalid_client" },
        "unauthorized_client" => TokenEndpointError::ClientRefused { code: "unauthorized_client" },
        "invalid_request" => TokenEndpointError::RequestRefused { code: "invalid_request" },
        "invalid_scope" => TokenEndpointError::RequestRefused { code: "invalid_scope" },
        "unsupported_grant_type" => TokenEndpointError::RequestRefused { code: "unsupported_grant_type" },
        "temporarily_unavailable" => TokenEndpointError::Unavailable { status, retry_after: None },
        _ if status == 401 || status == 400 || status == 403 => TokenEndpointError::Denied,
        _ => TokenEndpointError::Unavailable { status, retry_after: None },
    }
}

/// The parsed copy held the tokens too.
fn wipe(members: Map<String, Value>) {
    for (_, value) in members {
        if let Value::String(mut text) = value {
            text.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    const JSON: Option<&str> = Some("application/json;charset=UTF-8");

    #[track_caller]
    fn check_error(status: u16, content_type: Option<&str>, body: &str, expected: Verdict) {
        let error = parse_token_response(status, content_type, None, body.as_bytes()).unwrap_err();
        assert_eq!(error.verdict(), expected, "{status} {body}: {error}");
    }

    #[test]
    fn each_error_response_has_one_verdict() {
        let flattened = r#"{"error_description":"access_denied","error":"server_error"}"#;
        let html = "<html><title>Instance Hibernating page</title></html>";
        for (status, content_type, body, expected) in [
            (401, JSON, flattened, Verdict::Suspect),
            (400, JSON, r#"{"error":"invalid_grant"}"#, Verdict::GrantDead),
            (401, JSON, r#"{"error":"invalid_client"}"#, Verdict::ClientRefused),
            (400, JSON, r#"{"error":"unauthorized_client"}"#, Verdict::ClientRefused),
            (400, JSON, r#"{"error":"invalid_scope"}"#, Verdict::ClientRefused),
            (401, JSON, "", Verdict::Suspect),
            (401, JSON, r#"{"error":{"message":"User Not Authenticated"}}"#, Verdict::Suspect),
            (200, Some("text/html"), html, Verdict::Transient), // O-57
            (200, None, html, Verdict::Transient),
            (401, Some("text/html"), html, Verdict::Transient),
            (302, None, "", Verdict::Transient),
            (202, JSON, "", Verdict::Transient),
            (404, JSON, "{}", Verdict::Transient),
            (429, JSON, "{}", Verdict::Throttled),
            (500, JSON, flattened, Verdict::Transient),
            (503, Some("text/html"), "<html>maintenance</html>", Verdict::Transient),
            (200, JSON, "{}", Verdict::Transient),
            (200, JSON, r#"{"access_token":""}"#, Verdict::Transient),
            (200, JSON, r#"{"access_token":"a b"}"#, Verdict::Transient),
            (200, JSON, r#"{"access_token":"a","token_type":"mac"}"#, Verdict::Transient),
            (200, JSON, r#"{"access_token":"a","expires_in":"soon"}"#, Verdict::Transient),
            (200, JSON, r#"{"access_token":"a""#, Verdict::Transient),
            (200, JSON, r#"{"error":"invalid_grant"}"#, Verdict::GrantDead),
        ] {
            check_error(status, content_type, body, expected);
        }
    }

    #[track_caller]
    fn accept(body: &str) -> TokenResponse {
        parse_token_response(200, JSON, None, body.as_bytes()).unwrap()
    }

    /// O-35, O-36: what servers are known to send, and what they might.
    #[test]
    fn tolerates_what_a_token_response_may_be() {
        let answer = accept(
            r#"{"scope":"useraccount","token_type":"Bearer","expires_in":1799,"refresh_token":"r","access_token":"a"}"#,
        );
        assert_eq!(answer.expires_in, Some(Duration::from_secs(1799)));
        assert_eq!((answer.access_token.expose(), answer.scope.as_deref()), ("a", Some("useraccount")));
        assert_eq!(answer.refresh_token.unwrap().expose(), "r");
        for (expires_in, expected) in [
            ("\"1799\"", Some(1799)),
            ("1799.9", Some(1799)),
            ("0", Some(0)),
            ("-5", Some(0)),
            ("1e300", Some(EXPIRES_IN_MAX.as_secs())),
            ("null", None),
        ] {
            let answer =
                accept(&format!(r#"{{"access_token":"a","token_type":"bearer","expires_in":{expires_in}}}"#));
            assert_eq!(answer.expires_in.map(|life| life.as_secs()), expected, "{expires_in}");
        }
        let bare = accept(r#"{"access_token":"eyJh.x-_~+/=="}"#);
        assert!(bare.expires_in.is_none() && bare.refresh_token.is_none() && bare.scope.is_none());
    }

    /// O-35: hostile sizes and depths are refused, not survived by luck, and no answer is quoted.
    #[test]
    fn what_no_server_sends_is_refused() {
        let deep =
            format!(r#"{{"access_token":"canary","x":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        let long = format!(r#"{{"access_token":"{}"}}"#, "canary".repeat(4_000));
        for body in [
            deep.as_str(),
            &long,
            r#"["canary"]"#,
            r#"{"access_token":["canary"]}"#,
            r#"{"access_token":"canary\u0000"}"#,
            r#"{"access_token":"canary","refresh_token":"ca\u0007nary"}"#,
            r#"{"access_token":"canary","token_type":1}"#,
            r#"{"access_token":"canary","expires_in":"inf"}"#,
            r#"{"access_token":"canary","expires_in":"NaN"}"#,
            r#"{"access_token":"canary","expires_in":[]}"#,
            r#"{"access_token":"="}"#,
        ] {
            let error = parse_token_response(200, JSON, None, body.as_bytes()).unwrap_err();
            assert_eq!(error.verdict(), Verdict::Transient, "{body:.80}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
        let weird = accept(r#"{"access_token":"a","refresh_token":"","scope":7,"expires_in":" 60 "}"#);
        assert!(weird.refresh_token.is_none() && weird.scope.is_none());
        assert_eq!(weird.expires_in, Some(Duration::from_mins(1)));
        assert!(accept(r#"{"access_token":"a","refresh_token":null}"#).refresh_token.is_none());
    }

    /// What a server asks us to wait reaches whoever waits, and nothing else carries it.
    #[test]
    fn a_server_s_pause_is_kept() {
        let pause = Some(Duration::from_secs(7));
        for (status, body, expected) in
            [(429, "{}", pause), (503, "", pause), (404, "{}", pause), (401, "{}", None), (200, "<p>", None)]
        {
            let error = parse_token_response(status, JSON, pause, body.as_bytes()).unwrap_err();
            assert_eq!(error.retry_after(), expected, "{status}");
        }
    }

    proptest! {
        /// Only a 200 issues tokens.
        #[test]
        fn no_other_status_issues_tokens(status in 100_u16..700) {
            let body = br#"{"access_token":"a","expires_in":1800}"#;
            let issued = parse_token_response(status, JSON, None, body).is_ok();
            prop_assert_eq!(issued, status == 200);
        }

        #[test]
        fn any_answer_is_judged_without_panic(status in 100u16..700, kind in ".*", body in any::<Vec<u8>>()) {
            let _ = parse_token_response(status, Some(&kind), None, &body);
            fuzzing::token_reply(&body);
        }

        #[test]
        fn what_is_like_an_answer_is_judged_soundly(
            choice: [u8; 2],
            members in proptest::collection::vec(
                prop_oneof![
                    "\"(access|refresh)_token\":\"[a-z=. ]{0,9}\"",
                    "\"error\":\"(invalid_(grant|client|scope)|server_error|[a-z]{0,4})\"",
                    "\"expires_in\":(-?[0-9]{1,12}([.]5)?|\"[0-9]{1,4}\"|null|[\\[]])",
                    "\"(token_type|scope)\":\"(bearer|Bearer|mac|[a-z ]{0,9})\"",
                ],
                0..5,
            ),
        ) {
            fuzzing::token_reply(&[&choice, format!("{{{}}}", members.join(",")).as_bytes()].concat());
        }
    }
}
