//! Why a request was not done, on its way to becoming a [`Problem`]. The rest of the door returns a [`Refusal`]; the
//! outermost layer alone renders it, so that an error of ours, of axum and of a panic look the same.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bearerd_control::{ActError, StoreError};
use http::{HeaderValue, StatusCode, header};

use crate::wire::Problem;

/// Why a request was not done, and what the operator does about it.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// Stable; `docs/errors.md` lists them.
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) fix: String,
    pub(crate) field: Option<String>,
    pub(crate) header: Option<RefusalHeader>,
}

/// What an error answer says in a header of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RefusalHeader {
    /// `WWW-Authenticate`: which credentials are wanted (RFC 9110 §11.6.1).
    WantsAdminKey,
    RetryAfter(Duration),
}

pub(crate) type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { status, code, detail: detail.into(), fix: fix.into(), field: None, header: None }
    }

    /// A member, parameter or header that is not acceptable.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let field = field.into();
        let detail = format!("{field}: {problem}");
        let fix = format!("Correct {field} and send the request again.");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", detail, fix).about(field)
    }

    #[must_use]
    pub(crate) fn about(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    #[must_use]
    pub(crate) fn with_header(self, header: RefusalHeader) -> Self {
        Self { header: Some(header), ..self }
    }

    /// `If-Match` or `If-None-Match` did not hold.
    pub(crate) fn exists() -> Self {
        let error = ActError::Exists;
        Self::new(StatusCode::PRECONDITION_FAILED, error.code(), error.to_string(), error.fix())
    }

    pub(crate) fn changed() -> Self {
        ActError::Changed.into()
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "this is a fault in bearerd",
            "Report it with the request id; the log line of that id says more.",
        )
    }

    /// For an error answer that does not say what it is: axum's own, or a layer's.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let see = "See /openapi.json for what there is.";
        match status {
            StatusCode::NOT_FOUND => Self::new(status, "route_unknown", "there is nothing at this path", see),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, "method_refused", "this path does not take this method", see)
            }
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(
                status,
                "body_too_large",
                format!("the body is longer than {} KiB", crate::router::BODY_BYTES_MAX / 1024),
                "Send a shorter body.",
            ),
            _ if status.is_server_error() => Self { status, ..Self::internal() },
            _ => Self::new(status, "request_malformed", "the request cannot be read", see),
        }
    }

    pub(crate) fn problem(&self, request_id: &str) -> Problem {
        Problem {
            kind: format!("urn:bearerd:error:{}", self.code),
            title: title(self.code),
            status: self.status.as_u16(),
            detail: sentence(&self.detail),
            code: self.code.to_owned(),
            fix: self.fix.clone(),
            field: self.field.clone(),
            request_id: request_id.to_owned(),
        }
    }
}

impl From<ActError> for Refusal {
    fn from(error: ActError) -> Self {
        let refusal = Self::new(status_of(&error), error.code(), error.to_string(), error.fix());
        match error {
            ActError::Invalid(field) => refusal.about(field.name),
            ActError::Upstream { retry_after: Some(pause), .. } => {
                refusal.with_header(RefusalHeader::RetryAfter(pause))
            }
            _ => refusal,
        }
    }
}

fn status_of(error: &ActError) -> StatusCode {
    match error {
        ActError::NotFound { .. } => StatusCode::NOT_FOUND,
        ActError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ActError::Conflict { .. } | ActError::Exists => StatusCode::CONFLICT,
        ActError::Changed => StatusCode::PRECONDITION_FAILED,
        ActError::Upstream { retry_after: Some(_), .. } => StatusCode::SERVICE_UNAVAILABLE,
        ActError::Upstream { .. } => StatusCode::BAD_GATEWAY,
        ActError::Store(StoreError::Damaged { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
        ActError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `changed_meanwhile` → `Changed meanwhile`.
fn title(code: &str) -> String {
    capitalised(&code.replace('_', " "))
}

fn sentence(text: &str) -> String {
    let mut text = capitalised(text);
    if !text.ends_with(['.', '!', '?']) {
        text.push('.');
    }
    text
}

/// Leaves a first word that is a name (`client_id: …`, `import.access_token: …`) as it is.
fn capitalised(text: &str) -> String {
    let is_name =
        text.split(' ').next().is_some_and(|word| word.ends_with(':') || word.contains(['_', '.', '/']));
    let mut rest = text.chars();
    match rest.next() {
        Some(first) if !is_name => first.to_uppercase().chain(rest).collect(),
        _ => text.to_owned(),
    }
}

/// Carried to the outermost layer in the answer's extensions.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let header = self.header.map(|header| match header {
            RefusalHeader::WantsAdminKey => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"bearerd admin\""))
            }
            RefusalHeader::RetryAfter(pause) => (header::RETRY_AFTER, pause.as_secs().max(1).into()),
        });
        response.headers_mut().extend(header);
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: ActError, status: u16, code: &str) {
        let problem = Refusal::from(error).problem("r1");
        assert_eq!((problem.status, problem.code.as_str()), (status, code));
        assert_eq!(problem.kind, format!("urn:bearerd:error:{code}"));
        assert!(problem.detail.ends_with('.') && problem.fix.ends_with('.'), "{problem:?}");
    }

    #[test]
    fn each_act_error_has_one_status() {
        let conflict =
            |code| ActError::Conflict { code, message: "it is in use".into(), fix: "Do so.".into() };
        let upstream = |retry_after| ActError::Upstream {
            code: "instance_asleep",
            message: "the instance sleeps".into(),
            fix: "Wake it.".into(),
            retry_after,
        };
        check(ActError::NotFound { what: "connection", id: "hr".into() }, 404, "not_found");
        check(conflict("in_use"), 409, "in_use");
        check(ActError::Exists, 409, "exists");
        check(ActError::Changed, 412, "changed_meanwhile");
        check(upstream(None), 502, "instance_asleep");
        check(upstream(Some(Duration::from_secs(7))), 503, "instance_asleep");
        check(ActError::Store(StoreError::Unreachable("gone".into())), 503, "store_unavailable");
        check(ActError::Store(StoreError::OutcomeUnknown("gone".into())), 503, "outcome_unknown");
    }

    #[test]
    fn details_are_sentences_and_names_stay_names() {
        assert_eq!(sentence("it exists already"), "It exists already.");
        assert_eq!(sentence("client_id: it is empty"), "client_id: it is empty.");
        assert_eq!(sentence("instance: not a URL"), "instance: not a URL.");
        assert_eq!(title("changed_meanwhile"), "Changed meanwhile");
    }
}
