//! The authorization request (RFC 6749 §4.1.1, RFC 7636 §4.3) and the errors that come back (RFC 6749 §4.1.2.1).

use bearerd_model::SecretText;
use url::Url;

/// Where the browser is sent to consent.
#[derive(Debug)]
pub struct AuthorizationRequest<'a> {
    /// Absolute; a query that it already has is kept, but for the parameters that the request brings itself: none
    /// may be there twice (RFC 6749 §3.1).
    pub endpoint: &'a str,
    pub client_id: &'a str,
    pub redirect_uri: &'a str,
    pub scopes: &'a [String],
    pub state: &'a SecretText,
    /// base64url of the SHA-256 of the `code_verifier`; `None` only where the integration switches PKCE off.
    pub code_challenge: Option<&'a str>,
}

impl AuthorizationRequest<'_> {
    /// The URL to redirect to. `None` if the endpoint is not an absolute URL.
    pub fn to_url(&self) -> Option<String> {
        let mut url = Url::parse(self.endpoint).ok()?;
        if url.query_pairs().any(|(name, _)| is_ours(&name)) {
            let mut kept: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            kept.retain(|(name, _)| !is_ours(name));
            url.query_pairs_mut().clear().extend_pairs(kept);
        }
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("response_type", "code");
            query.append_pair("client_id", self.client_id);
            query.append_pair("redirect_uri", self.redirect_uri);
            if !self.scopes.is_empty() {
                query.append_pair("scope", &self.scopes.join(" "));
            }
            query.append_pair("state", self.state.expose());
            if let Some(challenge) = self.code_challenge {
                query.append_pair("code_challenge", challenge);
                query.append_pair("code_challenge_method", "S256");
            }
        }
        Some(url.into())
    }
}

/// Whether a parameter is the request's own.
fn is_ours(name: &str) -> bool {
    matches!(
        name,
        "response_type"
            | "client_id"
            | "redirect_uri"
            | "scope"
            | "state"
            | "code_challenge"
            | "code_challenge_method"
    )
}

/// Whether `text` has the shape of an S256 challenge: 43 characters of base64url (RFC 7636 §4.2).
pub fn pkce_challenge_is_valid(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// What an `error` parameter at the redirection endpoint means (RFC 6749 §4.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackError {
    /// The resource owner said no: not a fault of the integration (O-33).
    AccessDenied,
    /// Our registration at the instance does not admit this request.
    UnauthorizedClient,
    UnsupportedResponseType,
    InvalidScope,
    InvalidRequest,
    /// `server_error`, `temporarily_unavailable`.
    ServerError,
    Other,
}

impl CallbackError {
    pub fn from_code(code: &str) -> Self {
        match code {
            "access_denied" => Self::AccessDenied,
            "unauthorized_client" => Self::UnauthorizedClient,
            "unsupported_response_type" => Self::UnsupportedResponseType,
            "invalid_scope" => Self::InvalidScope,
            "invalid_request" => Self::InvalidRequest,
            "server_error" | "temporarily_unavailable" => Self::ServerError,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-11, O-15: S256 only, and every value arrives as it was given.
    #[test]
    fn the_request_carries_what_the_callback_is_checked_against() {
        let state = SecretText::parse("00ff".to_owned()).unwrap();
        let url = AuthorizationRequest {
            endpoint: "https://dev1.service-now.com/oauth_auth.do?sysparm=1",
            client_id: "a b&c",
            redirect_uri: "https://b.example/oauth/callback?x=1&y",
            scopes: &["useraccount".to_owned(), "read".to_owned()],
            state: &state,
            code_challenge: Some("c"),
        }
        .to_url()
        .unwrap();
        let url = Url::parse(&url).unwrap();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        for (name, value) in [
            ("sysparm", "1"),
            ("response_type", "code"),
            ("client_id", "a b&c"),
            ("redirect_uri", "https://b.example/oauth/callback?x=1&y"),
            ("scope", "useraccount read"),
            ("state", "00ff"),
            ("code_challenge", "c"),
            ("code_challenge_method", "S256"),
        ] {
            assert_eq!(pairs.iter().filter(|(key, _)| key == name).count(), 1, "{name}");
            assert!(pairs.contains(&(name.to_owned(), value.to_owned())), "{name}={value}");
        }
    }

    fn pairs(endpoint: &str, scopes: &[String], code_challenge: Option<&str>) -> Vec<(String, String)> {
        let state = SecretText::parse("00ff".to_owned()).unwrap();
        let (client_id, redirect_uri) = ("c", "https://b.example/cb");
        let request =
            AuthorizationRequest { endpoint, client_id, redirect_uri, scopes, state: &state, code_challenge };
        let url = Url::parse(&request.to_url().unwrap()).unwrap();
        url.query_pairs().into_owned().collect()
    }

    /// RFC 6749 §3.1: no parameter is there twice, and what the configured endpoint says does not stand in for ours.
    #[test]
    fn an_endpoint_s_own_query_never_repeats_ours() {
        let endpoint = "https://a.example/auth?state=theirs&tenant=x&redirect_uri=https%3A%2F%2Fevil.example&scope=admin&code_challenge_method=plain";
        let found = pairs(endpoint, &["read".to_owned()], Some("c"));
        let mut names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), found.len(), "{found:?}");
        let value =
            |wanted: &str| found.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        assert_eq!(
            (value("tenant"), value("state"), value("scope")),
            (Some("x"), Some("00ff"), Some("read"))
        );
        assert_eq!(value("redirect_uri"), Some("https://b.example/cb"));
        assert_eq!(value("code_challenge_method"), Some("S256"));
        let found = pairs("https://a.example/auth?scope=admin&code_challenge=x", &[], None);
        assert_eq!(found.len(), 4, "{found:?}");
    }

    /// O-11: without a challenge there is no method either; without scopes no `scope`.
    #[test]
    fn what_is_not_asked_for_is_not_sent() {
        let found = pairs("https://a.example/auth", &[], None);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["response_type", "client_id", "redirect_uri", "state"]);
        let state = SecretText::parse("00ff".to_owned()).unwrap();
        let relative = AuthorizationRequest {
            endpoint: "/oauth_auth.do",
            client_id: "c",
            redirect_uri: "",
            scopes: &[],
            state: &state,
            code_challenge: None,
        };
        assert!(relative.to_url().is_none());
    }

    /// O-33
    #[test]
    fn each_callback_error_is_told_apart() {
        for (code, expected) in [
            ("access_denied", CallbackError::AccessDenied),
            ("unauthorized_client", CallbackError::UnauthorizedClient),
            ("unsupported_response_type", CallbackError::UnsupportedResponseType),
            ("invalid_scope", CallbackError::InvalidScope),
            ("invalid_request", CallbackError::InvalidRequest),
            ("server_error", CallbackError::ServerError),
            ("temporarily_unavailable", CallbackError::ServerError),
            ("ACCESS_DENIED", CallbackError::Other),
            ("", CallbackError::Other),
        ] {
            assert_eq!(CallbackError::from_code(code), expected, "{code}");
        }
    }

    /// O-12
    #[test]
    fn a_challenge_is_43_characters_of_base64url() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"; // RFC 7636 appendix B
        assert!(pkce_challenge_is_valid(challenge));
        for bad in [
            "",
            &challenge[1..],
            &format!("{challenge}A"),
            &challenge.replace('-', "+"),
            &challenge.replace('-', "="),
        ] {
            assert!(!pkce_challenge_is_valid(bad), "{bad}");
        }
    }
}
