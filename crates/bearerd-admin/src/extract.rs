//! What handlers take from a request, each with its own refusal. No refusal quotes a value that was sent: a secret put
//! into the wrong member must not come back, and must not reach a log.

use std::{str::FromStr, time::Duration};

use axum::{
    Json, RequestExt,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
};
use bearerd_control::{Operator, Revision};
use http::{HeaderMap, StatusCode, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use crate::{
    refusal::{Refusal, Result},
    router::App,
};

/// Who asks; the door's authorization layer put it there.
pub(crate) struct By(pub(crate) Operator);

impl FromRequestParts<App> for By {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        parts.extensions.get::<Operator>().cloned().map(Self).ok_or_else(Refusal::internal)
    }
}

/// The path's `{id}`.
pub(crate) struct Id<I>(pub(crate) I);

impl<I: FromStr<Err: std::fmt::Display>> FromRequestParts<App> for Id<I> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let Path(text) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|_| Refusal::of_status(StatusCode::BAD_REQUEST).about("id"))?;
        text.parse().map(Self).map_err(|fault| Refusal::invalid("id", fault))
    }
}

/// A JSON body. Members that the API does not know are refused by name.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &App) -> Result<Self> {
        if !is_json(request.headers()) {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media_type_refused",
                "the body is not declared as JSON",
                "Send the header Content-Type: application/json.",
            )
            .about("Content-Type"));
        }
        let bytes = tokio::time::timeout(BODY_TIMEOUT, request.extract::<Bytes, _>())
            .await
            .map_err(|_| {
                let status = StatusCode::REQUEST_TIMEOUT;
                Refusal::new(status, "request_too_slow", "the body did not arrive in time", "Send it faster.")
            })?
            .map_err(|rejection| Refusal::of_status(rejection.status()))?;
        Json::from_bytes(&bytes).map(|Json(body)| Self(body)).map_err(|rejection| json_refusal(&rejection))
    }
}

/// The parameters after `?`. Parameters that the API does not know are refused by name.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let fault = match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(params)) => return Ok(Self(params)),
            Err(rejection) => rejection.body_text(),
        };
        let fault = fault.strip_prefix("Failed to deserialize query string: ").unwrap_or(&fault);
        let (field, problem) = located(fault);
        Err(Refusal { status: StatusCode::BAD_REQUEST, ..Refusal::invalid(field, problem) })
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// Entries at most: 1 to 200. Default: 50.
    #[serde(default = "limit_default")]
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: usize,
    /// `next` of the part before.
    cursor: Option<String>,
}

impl Paging {
    /// # Errors
    /// `limit` outside 1..=200, or a cursor that no answer gave.
    pub(crate) fn checked(self) -> Result<(Option<String>, usize)> {
        let refuse = |field: &str, problem: &str| Refusal {
            status: StatusCode::BAD_REQUEST,
            ..Refusal::invalid(field, problem)
        };
        if !(1..=LIMIT_MAX).contains(&self.limit) {
            return Err(refuse("limit", "it is 1 to 200"));
        }
        let ours = |cursor: &str| {
            cursor.len() <= CURSOR_BYTES_MAX
                && cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        match self.cursor {
            Some(cursor) if !ours(&cursor) => Err(refuse("cursor", "no answer gave this cursor")),
            cursor => Ok((cursor, self.limit)),
        }
    }
}

/// What `If-Match` and `If-None-Match` demand (RFC 9110 §13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Anything,
    /// `If-Match: *`
    Present,
    /// `If-None-Match: *`
    Absent,
    At(Revision),
}

impl FromRequestParts<App> for Expected {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        Self::of(&parts.headers)
    }
}

impl Expected {
    fn of(headers: &HeaderMap) -> Result<Self> {
        let malformed = |name: &'static str, problem: &str| Refusal {
            status: StatusCode::BAD_REQUEST,
            ..Refusal::invalid(name, problem)
        };
        match (headers.get(header::IF_MATCH), headers.get(header::IF_NONE_MATCH)) {
            (None, None) => Ok(Self::Anything),
            (None, Some(value)) if value == "*" => Ok(Self::Absent),
            (None, Some(_)) => {
                Err(malformed("If-None-Match", "only * is understood: create, but change nothing"))
            }
            (Some(_), Some(_)) => Err(malformed("If-None-Match", "it cannot stand beside If-Match")),
            (Some(value), None) if value == "*" => Ok(Self::Present),
            (Some(value), None) => {
                let text = value.to_str().unwrap_or_default();
                let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                let Some(quoted) = quoted.filter(|inner| !inner.contains('"')) else {
                    return Err(malformed(
                        "If-Match",
                        "it is one ETag, with its quotes, as an answer gave it",
                    ));
                };
                // An ETag of ours is a number; any other matches nothing that we have.
                quoted.parse().map(|revision| Self::At(Revision(revision))).map_err(|_| Refusal::changed())
            }
        }
    }

    /// The revision to hand to an act, once [`Self::Present`] and [`Self::Absent`] are settled.
    pub(crate) fn revision(self) -> Option<Revision> {
        match self {
            Self::At(revision) => Some(revision),
            Self::Anything | Self::Present | Self::Absent => None,
        }
    }

    /// Whether a record found at `found` (`None`: there is none) is what is demanded.
    pub(crate) fn check(self, found: Option<Revision>) -> Result<()> {
        match (self, found) {
            (Self::Absent, Some(_)) => Err(Refusal::exists()),
            (Self::Present | Self::At(_), None) => Err(Refusal::changed()),
            (Self::At(expected), Some(found)) if found != expected => Err(Refusal::changed()),
            _ => Ok(()),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn json_refusal(rejection: &JsonRejection) -> Refusal {
    let text = rejection.body_text();
    let malformed = |place: &str| {
        let detail = format!("the body is not JSON{place}");
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "request_malformed",
            detail,
            "Send one JSON object as the body.",
        )
    };
    if let JsonRejection::JsonDataError(_) = rejection {
        let fault = text.split_once("target type: ").map_or(text.as_str(), |(_, fault)| fault);
        let (field, problem) = located(fault);
        return Refusal::invalid(field, problem);
    }
    match text.rsplit_once(" at line ") {
        Some((_, place)) => malformed(&format!(" (line {place})")),
        None => malformed(""),
    }
}

/// Takes serde's text (`profiles.default: unknown field ...`) apart into the member and a problem without values.
fn located(fault: &str) -> (String, String) {
    let fault = fault.rsplit_once(" at line ").map_or(fault, |(fault, _)| fault);
    let (path, message) = match fault.split_once(": ") {
        Some((path, message)) if !path.contains(' ') => (path, message),
        _ => ("", fault),
    };
    let member = |name: &str| {
        let name: String = name.chars().filter(|char| !char.is_control()).take(NAME_CHARS_MAX).collect();
        match path {
            "" | "." | "?" => name,
            path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
            path => format!("{path}.{name}"),
        }
    };
    let here = || if matches!(path, "" | "." | "?") { "body".to_owned() } else { path.to_owned() };
    let named = |prefix: &str| message.strip_prefix(prefix).and_then(|rest| rest.split_once('`'));
    if let Some((name, rest)) = named("unknown field `") {
        let known = rest.strip_prefix(", expected ").unwrap_or("nothing").replace('`', "");
        return (
            member(name),
            format!("there is no such member; known here: {}", known.trim_start_matches("one of ")),
        );
    }
    if let Some((name, _)) = named("missing field `") {
        return (member(name), "it is missing".to_owned());
    }
    if let Some((name, _)) = named("duplicate field `") {
        return (member(name), "it is there twice".to_owned());
    }
    let quotes_value = ["invalid type", "invalid value", "invalid length", "unknown variant"];
    if quotes_value.iter().any(|kind| message.starts_with(kind)) {
        let wanted = message.rsplit_once(", expected ").map_or("something else", |(_, wanted)| wanted);
        return (here(), format!("expected {}", wanted.replace('`', "")));
    }
    (here(), message.to_owned())
}

fn limit_default() -> usize {
    50
}

/// Entries of one part of a list: keeps an answer below a megabyte.
const LIMIT_MAX: usize = 200;
/// A cursor is an id.
const CURSOR_BYTES_MAX: usize = 63;
/// Of an unknown member's name, in an answer.
const NAME_CHARS_MAX: usize = 64;
/// A body of 64 KiB over the slowest link that an operator would bear.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::wire::{ConnectionRequest, IntegrationRequest, PolicyRequest};

    #[track_caller]
    fn check<T: DeserializeOwned + std::fmt::Debug>(body: &str, status: u16, field: &str, words: &str) {
        let rejection = Json::<T>::from_bytes(body.as_bytes()).map(|Json(body)| body).unwrap_err();
        let problem = json_refusal(&rejection).problem("r1");
        assert_eq!((problem.status, problem.field.as_deref().unwrap_or("-")), (status, field), "{problem:?}");
        assert!(problem.detail.contains(words), "{problem:?}");
        assert!(!format!("{problem:?}").contains("canary"), "{problem:?}");
    }

    /// A member is named with its path; a value never is.
    #[test]
    fn json_faults_name_the_member_and_quote_no_value() {
        type I = IntegrationRequest;
        check::<I>(r#"{"instance":"x","client_id":"y","pkse":true}"#, 422, "pkse", "no such member");
        check::<I>(r#"{"instance":"x"}"#, 422, "client_id", "missing");
        check::<I>(r#"{"instance":"x","client_id":{"a":"canary"}}"#, 422, "client_id", "expected a string");
        check::<I>(
            r#"{"instance":"x","client_id":"y","client_secret":["canary"]}"#,
            422,
            "client_secret",
            "string",
        );
        check::<I>(r#"{"instance":"x","client_id":"y","client_id":"canary"}"#, 422, "client_id", "twice");
        check::<I>(r#"{"instance":"x","client_id":"y","pkce":"canary"}"#, 422, "pkce", "expected a boolean");
        check::<I>(
            r#"{"instance":"x","client_id":"y","token_endpoint_auth":"canary"}"#,
            422,
            "token_endpoint_auth",
            "basic",
        );
        check::<I>(
            r#"{"instance":"x","client_id":"y","profiles":{"default":{"scope":"z"}}}"#,
            422,
            "profiles.default.scope",
            "grant_type",
        );
        check::<I>(
            r#"{"instance":"x","client_id":"y","profiles":{"CANARY":{}}}"#,
            422,
            "profiles.CANARY",
            "profile name",
        );
        check::<I>(r#""canary""#, 422, "body", "IntegrationRequest");
        check::<I>(r#"{"instance":"canary"#, 400, "-", "line 1 column");
        check::<I>("", 400, "-", "not JSON");
        check::<ConnectionRequest>(
            r#"{"integration":"i","import":{"refresh_token":17}}"#,
            422,
            "import.refresh_token",
            "string",
        );
        check::<ConnectionRequest>(
            r#"{"integration":"i","import":{"refresh_token_expires_at":"canary"}}"#,
            422,
            "import.refresh_token_expires_at",
            "RFC 3339",
        );
        check::<PolicyRequest>(
            r#"{"rules":[{"connections":"all","tables":"canary","methods":[]}]}"#,
            422,
            "rules[0].tables",
            "named",
        );
    }

    #[test]
    fn conditions_are_one_etag_or_a_star() {
        let of = |name: http::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            Expected::of(&headers)
        };
        assert_eq!(Expected::of(&HeaderMap::new()).unwrap(), Expected::Anything);
        assert_eq!(of(header::IF_MATCH, "\"17\"").unwrap(), Expected::At(Revision(17)));
        assert_eq!(of(header::IF_MATCH, "*").unwrap(), Expected::Present);
        assert_eq!(of(header::IF_NONE_MATCH, "*").unwrap(), Expected::Absent);
        for foreign in ["\"abc\"", "\"\"", "\"-1\""] {
            assert_eq!(of(header::IF_MATCH, foreign).unwrap_err().code, "changed_meanwhile", "{foreign}");
        }
        for malformed in ["17", "W/\"17\"", "\"1\", \"2\"", "\"1"] {
            assert_eq!(of(header::IF_MATCH, malformed).unwrap_err().status, 400, "{malformed}");
        }
        assert_eq!(of(header::IF_NONE_MATCH, "\"17\"").unwrap_err().status, 400);
        assert!(Expected::Absent.check(None).is_ok() && Expected::Absent.check(Some(Revision(1))).is_err());
        assert!(Expected::Present.check(None).is_err() && Expected::Present.check(Some(Revision(1))).is_ok());
    }
}
