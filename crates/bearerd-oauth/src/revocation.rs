//! The revocation request (RFC 7009 §2.1) and what its answers mean (§2.2).

use std::time::Duration;

use bearerd_model::{AccessToken, RefreshToken};
use serde_json::{Map, Value};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::{Client, EncodedTokenRequest, token_request::authenticate, token_response::looks_like_html};

/// A token that is to end.
#[derive(Debug, Clone, Copy)]
pub enum RevocableToken<'a> {
    Access(&'a AccessToken),
    Refresh(&'a RefreshToken),
}

impl RevocableToken<'_> {
    /// The request, with the client's authentication: always a POST of a form, never a query (O-40). ServiceNow asks
    /// for no authentication and takes the one of RFC 7009.
    pub fn encode(&self, client: Client<'_>) -> EncodedTokenRequest {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("token", self.expose());
        form.append_pair("token_type_hint", self.hint());
        let authorization = authenticate(&mut form, client);
        EncodedTokenRequest { body: Zeroizing::new(form.finish()), authorization }
    }

    /// `token_type_hint` (RFC 7009 §2.1); also for logs.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Access(_) => "access_token",
            Self::Refresh(_) => "refresh_token",
        }
    }

    fn expose(&self) -> &str {
        match self {
            Self::Access(token) => token.expose(),
            Self::Refresh(token) => token.expose(),
        }
    }
}

/// Why the authorization server did not say that the token has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// `unsupported_token_type` (RFC 7009 §2.2.1): it never revokes tokens of this kind.
    #[error("the authorization server does not revoke tokens of this kind (unsupported_token_type)")]
    Unsupported,
    /// HTML where nothing was due: a hibernating instance, a maintenance page, a single-sign-on gateway (O-57).
    #[error(
        "the instance answered a web page (status {status}): it is asleep, in maintenance, or behind a login"
    )]
    Asleep { status: u16 },
    /// Everything else, a refusal of our client included: it may be mended, and the token lives.
    #[error("the revocation endpoint answered status {status}")]
    NotDone { status: u16, retry_after: Option<Duration> },
}

impl RevocationError {
    /// How long the server asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotDone { retry_after, .. } => *retry_after,
            Self::Unsupported | Self::Asleep { .. } => None,
        }
    }
}

/// Judges a revocation endpoint's answer: 200 means that the token has ended, also where it was never known (RFC 7009
/// §2.2, O-41). `retry_after` is the header's value in seconds, where given.
///
/// # Errors
/// [`RevocationError`] for everything else.
pub fn parse_revocation_response(
    status: u16,
    content_type: Option<&str>,
    retry_after: Option<Duration>,
    body: &[u8],
) -> Result<(), RevocationError> {
    if status < 400 && looks_like_html(content_type, body) {
        return Err(RevocationError::Asleep { status });
    }
    match status {
        200 => Ok(()),
        400 if error_code(body).as_deref() == Some("unsupported_token_type") => {
            Err(RevocationError::Unsupported)
        }
        _ => Err(RevocationError::NotDone { status, retry_after }),
    }
}

fn error_code(body: &[u8]) -> Option<String> {
    let members = serde_json::from_slice::<Map<String, Value>>(body).ok()?;
    members.get("error")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use bearerd_model::{ClientSecret, TokenEndpointAuth};
    use proptest::prelude::*;

    use super::*;

    /// O-34, O-40: one method of client authentication; the token is in the body.
    #[test]
    fn each_token_has_its_form() {
        let access = AccessToken::parse("a+/=".to_owned()).unwrap();
        let refresh = RefreshToken::parse("r".to_owned()).unwrap();
        let secret = ClientSecret::parse("s".to_owned()).unwrap();
        let body = |token: RevocableToken<'_>, secret, auth| {
            let encoded = token.encode(Client { id: "our id", secret, auth });
            (encoded.body.to_string(), encoded.authorization.is_some())
        };
        let (in_body, basic) = (TokenEndpointAuth::Body, TokenEndpointAuth::Basic);
        for (token, secret, auth, expected, in_header) in [
            (
                RevocableToken::Refresh(&refresh),
                Some(&secret),
                in_body,
                "token=r&token_type_hint=refresh_token&client_id=our+id&client_secret=s",
                false,
            ),
            (
                RevocableToken::Access(&access),
                Some(&secret),
                basic,
                "token=a%2B%2F%3D&token_type_hint=access_token",
                true,
            ),
            (
                RevocableToken::Access(&access),
                None,
                basic,
                "token=a%2B%2F%3D&token_type_hint=access_token&client_id=our+id",
                false,
            ),
        ] {
            assert_eq!(body(token, secret, auth), (expected.to_owned(), in_header));
        }
    }

    /// O-41, O-42, O-57
    #[test]
    fn each_answer_has_one_meaning() {
        let pause = Some(Duration::from_secs(7));
        let html = "<html>Instance Hibernating page</html>";
        let not_done = |status| Err(RevocationError::NotDone { status, retry_after: pause });
        for (status, kind, body, expected) in [
            (200, None, "", Ok(())),
            (200, Some("application/json"), "{}", Ok(())),
            (200, Some("text/html;charset=UTF-8"), html, Err(RevocationError::Asleep { status: 200 })),
            (200, None, html, Err(RevocationError::Asleep { status: 200 })),
            (302, Some("text/html"), html, Err(RevocationError::Asleep { status: 302 })),
            (302, None, "", not_done(302)),
            (400, None, r#"{"error":"unsupported_token_type"}"#, Err(RevocationError::Unsupported)),
            (400, None, r#"{"error":"invalid_request"}"#, not_done(400)),
            (401, None, r#"{"error":"invalid_client"}"#, not_done(401)),
            (404, Some("text/html"), html, not_done(404)),
            (429, None, "", not_done(429)),
            (503, Some("text/html"), html, not_done(503)),
        ] {
            assert_eq!(
                parse_revocation_response(status, kind, pause, body.as_bytes()),
                expected,
                "{status} {body}"
            );
        }
        assert_eq!(RevocationError::NotDone { status: 503, retry_after: pause }.retry_after(), pause);
    }

    proptest! {
        /// Only a 200 ends a token.
        #[test]
        fn any_answer_is_judged_without_panic(status in 100_u16..700, kind in ".*", body in any::<Vec<u8>>()) {
            let done = parse_revocation_response(status, Some(&kind), None, &body).is_ok();
            prop_assert!(!done || status == 200);
        }
    }
}
