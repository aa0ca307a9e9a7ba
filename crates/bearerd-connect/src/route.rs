//! The paths of this door, and the methods each of them takes. Queries play no part: `return_url` and its kin do
//! not exist here (O-25).

use bearerd_model::{IntegrationId, SecretText};
use http::{HeaderValue, Method};

/// What a path names.
#[derive(Debug)]
pub(crate) enum Route {
    /// `/connect/{link}`. `None`: too odd to be a link that bearerd made.
    Link(Option<SecretText>),
    /// `/oauth/callback`, `/oauth/callback/{integration}`: the redirection endpoint.
    Callback {
        integration: Option<IntegrationId>,
    },
    /// `/connect/done/{outcome}`.
    Done {
        outcome: String,
    },
    Unknown,
}

impl Route {
    /// Paths are compared as sent: nothing is decoded or normalised, since no path of ours needs it.
    pub(crate) fn of(path: &str) -> Self {
        if let Some(outcome) = path.strip_prefix("/connect/done/") {
            return if is_handle(outcome) {
                Self::Done { outcome: outcome.to_owned() }
            } else {
                Self::Unknown
            };
        }
        if let Some(link) = path.strip_prefix("/connect/") {
            let segment = !link.is_empty() && !link.contains('/');
            let parsed = is_handle(link).then(|| SecretText::parse(link.to_owned()).ok()).flatten();
            return if segment { Self::Link(parsed) } else { Self::Unknown };
        }
        if path == "/oauth/callback" {
            return Self::Callback { integration: None };
        }
        let integration = path.strip_prefix("/oauth/callback/").map(IntegrationId::parse);
        match integration {
            Some(Ok(id)) => Self::Callback { integration: Some(id) },
            Some(Err(_)) | None => Self::Unknown,
        }
    }

    /// `Allow` (RFC 9110 §10.2.1). The callback takes no HEAD: it changes something. `None`: every method is
    /// answered 404.
    pub(crate) fn allow(&self) -> Option<HeaderValue> {
        let methods = match self {
            Self::Link(_) => "GET, HEAD, POST",
            Self::Callback { .. } => "GET",
            Self::Done { .. } => "GET, HEAD",
            Self::Unknown => return None,
        };
        Some(HeaderValue::from_static(methods))
    }

    pub(crate) fn takes(&self, method: &Method) -> bool {
        match self {
            Self::Link(_) => matches!(*method, Method::GET | Method::HEAD | Method::POST),
            Self::Callback { .. } => *method == Method::GET,
            Self::Done { .. } => matches!(*method, Method::GET | Method::HEAD),
            Self::Unknown => true,
        }
    }
}

/// The shape of what bearerd puts into an address: links and outcome ids.
fn is_handle(text: &str) -> bool {
    let shaped = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    shaped && (1..=HANDLE_BYTES_MAX).contains(&text.len())
}

/// Links and outcome ids are 22 to 64 characters; twice that leaves room.
const HANDLE_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &str) {
        let route = match Route::of(path) {
            Route::Link(link) => format!("link {}", link.as_ref().map_or("-", SecretText::expose)),
            Route::Callback { integration } => {
                format!("callback {}", integration.as_ref().map_or("-", IntegrationId::as_str))
            }
            Route::Done { outcome } => format!("done {outcome}"),
            Route::Unknown => "unknown".to_owned(),
        };
        assert_eq!(route, expected, "{path}");
    }

    #[test]
    fn each_path_has_one_meaning() {
        check("/connect/Ab-_9", "link Ab-_9");
        check("/connect/done", "link done");
        check("/connect/a%2fb", "link -");
        check("/connect/..", "link -");
        check(&format!("/connect/{}", "x".repeat(129)), "link -");
        check("/connect/done/o1", "done o1");
        check("/oauth/callback", "callback -");
        check("/oauth/callback/hr-prod", "callback hr-prod");
        for unknown in [
            "",
            "/",
            "*",
            "/connect",
            "/connect/",
            "/connect/a/b",
            "/connect/a/",
            "//connect/a",
            "/CONNECT/a",
            "/connect/done/",
            "/connect/done/a.b",
            "/connect/done/a/b",
            "/oauth/callback/",
            "/oauth/callback/HR",
            "/oauth/callback/a/b",
            "/oauth/callback/..%2f",
            "/oauth/callbackx",
            "/api/now/table/incident",
            "/v1/connections",
            "/metrics",
            "/favicon.ico",
        ] {
            check(unknown, "unknown");
        }
    }

    #[test]
    fn what_a_route_takes_is_what_it_allows() {
        let all = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"];
        for path in ["/connect/a", "/connect/%", "/connect/done/a", "/oauth/callback", "/oauth/callback/a"] {
            let route = Route::of(path);
            let allow = route.allow().unwrap();
            let allowed: Vec<_> = allow.to_str().unwrap().split(", ").collect();
            for method in all {
                let taken = route.takes(&Method::from_bytes(method.as_bytes()).unwrap());
                assert_eq!(taken, allowed.contains(&method), "{method} {path}");
            }
        }
    }
}
