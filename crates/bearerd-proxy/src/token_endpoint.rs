//! `POST /oauth_token.do`: lets clients that can only speak OAuth use a caller key. The key is client secret, password or
//! refresh token, and comes back as the access token that it is here (RFC 6749 §4.3, §4.4, §5, §6). No token of an
//! instance passes here.

use base64::{Engine, engine::general_purpose::STANDARD};
use bearerd_model::UnixTime;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::{body::AnswerBody, error::Code, names, request_id::RequestId};

/// The path of the endpoint: ServiceNow's own.
pub(crate) const PATH: &str = "/oauth_token.do";
/// A token request is a few hundred bytes; a form that is longer is none.
pub(crate) const BODY_BYTES_MAX: usize = 8 * 1024;

/// Why no token is given (RFC 6749 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not a form, or a member is missing, empty or there twice.
    InvalidRequest,
    UnsupportedGrantType,
    /// The key was sent as client secret.
    InvalidClient(Code),
    /// The key was sent as password or refresh token.
    InvalidGrant(Code),
    /// No request came, or none that this endpoint takes.
    Unread(Code),
}

/// The caller key of a token request, and how it was sent.
pub(crate) struct Request {
    pub(crate) key: Zeroizing<Vec<u8>>,
    grant: Grant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    ClientCredentials,
    Password,
    RefreshToken,
}

impl Request {
    /// Reads the form; a client secret may be the password of HTTP Basic instead (RFC 6749 §2.3.1).
    pub(crate) fn parse(headers: &HeaderMap, form: &[u8]) -> Result<Self, Refusal> {
        let media = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let media = media.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if !media.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            return Err(Refusal::InvalidRequest);
        }
        let mut members = Members::default();
        for (name, value) in form_urlencoded::parse(form) {
            members.take(&name, value.into_owned().into_bytes())?;
        }
        let grant = match members.grant_type.as_deref().map(Vec::as_slice) {
            Some(b"client_credentials") => Grant::ClientCredentials,
            Some(b"password") => Grant::Password,
            Some(b"refresh_token") => Grant::RefreshToken,
            Some(_) => return Err(Refusal::UnsupportedGrantType),
            None => return Err(Refusal::InvalidRequest),
        };
        let key = match grant {
            Grant::ClientCredentials => match (members.client_secret, basic_password(headers)?) {
                (Some(_), Some(_)) => return Err(Refusal::InvalidRequest),
                (one, other) => one.or(other),
            },
            Grant::Password => members.password,
            Grant::RefreshToken => members.refresh_token,
        };
        let key = key.filter(|key| !key.is_empty()).ok_or(Refusal::InvalidRequest)?;
        // A caller key is one wherever it stands. (`Authorization` is the client's own beside a password.)
        let others =
            [&names::X_API_KEY, &names::X_SN_APIKEY].into_iter().flat_map(|name| headers.get_all(name));
        if others.into_iter().any(|other| other.as_bytes() != key.as_slice()) {
            return Err(Refusal::InvalidRequest);
        }
        Ok(Self { key, grant })
    }

    /// The key does not open the door.
    pub(crate) fn refused(&self, code: Code) -> Refusal {
        match self.grant {
            Grant::ClientCredentials => Refusal::InvalidClient(code),
            Grant::Password | Grant::RefreshToken => Refusal::InvalidGrant(code),
        }
    }

    /// `ends_at`: the end of the key, if it has one.
    pub(crate) fn granted(
        &self,
        ends_at: Option<UnixTime>,
        now: UnixTime,
        id: RequestId,
    ) -> Response<AnswerBody> {
        let left = ends_at.map_or(EXPIRES_IN_S, |ends_at| ends_at.since(now).as_secs().min(EXPIRES_IN_S));
        let key = std::str::from_utf8(&self.key).unwrap_or_default();
        let refresh = match self.grant {
            Grant::ClientCredentials => String::new(), // RFC 6749 §4.4.3
            Grant::Password | Grant::RefreshToken => format!("\"refresh_token\":\"{key}\","),
        };
        // A key that was accepted is of letters, digits and '_'.
        let body = format!(
            "{{\"scope\":\"useraccount\",\"token_type\":\"Bearer\",\"expires_in\":{left},{refresh}\"access_token\":\"{key}\"}}"
        );
        respond(StatusCode::OK, body, id)
    }
}

impl Refusal {
    /// Whose fault it is, for records; the code of the same refusal at the other paths.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::InvalidRequest | Self::UnsupportedGrantType => Code::RequestMalformed,
            Self::InvalidClient(code) | Self::InvalidGrant(code) | Self::Unread(code) => code,
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            // A store that does not answer is nobody's wrong key.
            Self::InvalidClient(Code::TokenUnavailable) | Self::InvalidGrant(Code::TokenUnavailable) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::InvalidClient(_) => StatusCode::UNAUTHORIZED,
            Self::Unread(code) => code.status(),
            _ => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) fn respond(self, id: RequestId) -> Response<AnswerBody> {
        let (error, description) = match self {
            Self::InvalidRequest => (
                "invalid_request",
                "Send a form with grant_type and the caller key as client_secret, password or refresh_token.",
            ),
            Self::UnsupportedGrantType => {
                ("unsupported_grant_type", "Known are client_credentials, password and refresh_token.")
            }
            Self::InvalidClient(Code::TokenUnavailable) | Self::InvalidGrant(Code::TokenUnavailable) => {
                ("temporarily_unavailable", "Caller keys cannot be confirmed at the moment.")
            }
            Self::Unread(code) => ("invalid_request", code.message()),
            Self::InvalidClient(_) => ("invalid_client", "The client secret is not a valid caller key."),
            Self::InvalidGrant(_) => ("invalid_grant", "This is not a valid caller key."),
        };
        let body = format!("{{\"error\":\"{error}\",\"error_description\":\"{description}\"}}");
        let mut response = respond(self.status(), body, id);
        let headers = response.headers_mut();
        headers.insert("bearerd-error", HeaderValue::from_static(self.code().name()));
        if self.status() == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        } else if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"bearerd\""));
        } else if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

/// The members of a form that count; all others are passed over (RFC 6749 §3.2).
#[derive(Default)]
struct Members {
    grant_type: Option<Zeroizing<Vec<u8>>>,
    client_secret: Option<Zeroizing<Vec<u8>>>,
    password: Option<Zeroizing<Vec<u8>>>,
    refresh_token: Option<Zeroizing<Vec<u8>>>,
}

impl Members {
    fn take(&mut self, name: &str, value: Vec<u8>) -> Result<(), Refusal> {
        let value = Zeroizing::new(value);
        let member = match name {
            "grant_type" => &mut self.grant_type,
            "client_secret" => &mut self.client_secret,
            "password" => &mut self.password,
            "refresh_token" => &mut self.refresh_token,
            _ => return Ok(()),
        };
        // RFC 6749 §3.2: not more than once.
        if member.replace(value).is_some() { Err(Refusal::InvalidRequest) } else { Ok(()) }
    }
}

/// Each part of `user:password` is form-encoded before base64 (RFC 6749 §2.3.1); a key has nothing to encode.
fn basic_password(headers: &HeaderMap) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.as_bytes().trim_ascii(),
        _ => return Err(Refusal::InvalidRequest),
    };
    let Some((scheme, rest)) = value.split_at_checked(6) else { return Err(Refusal::InvalidRequest) };
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return Err(Refusal::InvalidRequest);
    }
    let decoded = STANDARD.decode(rest.trim_ascii()).map_err(|_| Refusal::InvalidRequest)?;
    let decoded = Zeroizing::new(decoded);
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or(Refusal::InvalidRequest)?;
    Ok(Some(Zeroizing::new(decoded[colon + 1..].to_vec())))
}

fn respond(status: StatusCode, body: String, id: RequestId) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::own(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(&names::X_REQUEST_ID, id.into_value());
    response
}

/// ServiceNow's own default: clients ask again after half an hour, and a deleted key is found out then.
const EXPIRES_IN_S: u64 = 1_800;

#[cfg(test)]
mod tests {
    use http_body::Body;
    use proptest::{collection, prelude::*};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        let pairs = std::iter::once(&form).chain(pairs);
        pairs
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn key(more: &[(&'static str, &str)], form: &str) -> Result<String, Refusal> {
        let request = Request::parse(&headers(more), form.as_bytes())?;
        Ok(String::from_utf8(request.key.to_vec()).unwrap())
    }

    #[test]
    fn the_key_is_secret_password_or_refresh_token() {
        let basic = format!("Basic {}", STANDARD.encode("client:bd_key"));
        for (more, form, expected) in [
            (vec![], "grant_type=client_credentials&client_id=x&client_secret=bd_key", Ok("bd_key")),
            (vec![("authorization", &*basic)], "grant_type=client_credentials", Ok("bd_key")),
            (vec![], "grant_type=password&username=u&password=bd_key&client_secret=other", Ok("bd_key")),
            (vec![], "grant_type=refresh_token&refresh_token=bd%5Fkey", Ok("bd_key")),
            (vec![("x-api-key", "bd_key")], "grant_type=password&password=bd_key", Ok("bd_key")),
            (
                vec![("x-api-key", "other")],
                "grant_type=password&password=bd_key",
                Err(Refusal::InvalidRequest),
            ),
            (
                vec![("x-sn-apikey", "other")],
                "grant_type=password&password=bd_key",
                Err(Refusal::InvalidRequest),
            ),
            (vec![], "grant_type=authorization_code&code=x", Err(Refusal::UnsupportedGrantType)),
            (vec![], "client_secret=bd_key", Err(Refusal::InvalidRequest)),
            (vec![], "grant_type=password&username=u", Err(Refusal::InvalidRequest)),
            (vec![], "grant_type=password&password=", Err(Refusal::InvalidRequest)),
            (vec![], "grant_type=password&password=a&password=b", Err(Refusal::InvalidRequest)),
            (
                vec![("authorization", &*basic)],
                "grant_type=client_credentials&client_secret=x",
                Err(Refusal::InvalidRequest),
            ),
            (
                vec![("authorization", "Bearer x")],
                "grant_type=client_credentials",
                Err(Refusal::InvalidRequest),
            ),
            (
                vec![("authorization", "Basic !")],
                "grant_type=client_credentials",
                Err(Refusal::InvalidRequest),
            ),
        ] {
            assert_eq!(key(&more, form).as_deref(), expected.as_deref(), "{form}");
        }
        let json =
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        assert_eq!(
            Request::parse(&json, b"grant_type=password&password=x").err(),
            Some(Refusal::InvalidRequest)
        );
    }

    fn text(response: Response<AnswerBody>) -> (u16, String) {
        let (parts, mut body) = response.into_parts();
        assert_eq!(parts.headers[header::CACHE_CONTROL], "no-store");
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Some(Ok(frame))) = std::pin::Pin::new(&mut body).poll_frame(&mut cx)
        else {
            panic!("a body of our own is at hand")
        };
        (parts.status.as_u16(), String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    }

    /// RFC 6749 §5.1.
    #[test]
    fn a_token_is_the_key_until_it_ends() {
        let now = UnixTime::from_secs(1_000);
        for (form, ends_at, expected) in [
            (
                "grant_type=client_credentials&client_secret=K",
                None,
                r#"{"scope":"useraccount","token_type":"Bearer","expires_in":1800,"access_token":"K"}"#,
            ),
            (
                "grant_type=password&password=K",
                Some(1_060),
                r#"{"scope":"useraccount","token_type":"Bearer","expires_in":60,"refresh_token":"K","access_token":"K"}"#,
            ),
        ] {
            let request = Request::parse(&headers(&[]), form.as_bytes()).unwrap();
            let answer = request.granted(ends_at.map(UnixTime::from_secs), now, RequestId::for_test("r"));
            assert_eq!(text(answer), (200, expected.to_owned()));
        }
    }

    /// RFC 6749 §5.2.
    #[test]
    fn a_refusal_has_the_code_that_clients_know() {
        for (refusal, status, error) in [
            (Refusal::InvalidRequest, 400, "invalid_request"),
            (Refusal::UnsupportedGrantType, 400, "unsupported_grant_type"),
            (Refusal::InvalidClient(Code::CallerKeyInvalid), 401, "invalid_client"),
            (Refusal::InvalidGrant(Code::CallerKeyExpired), 400, "invalid_grant"),
            (Refusal::InvalidClient(Code::TokenUnavailable), 503, "temporarily_unavailable"),
            (Refusal::Unread(Code::BodyTooLarge), 413, "invalid_request"),
            (Refusal::Unread(Code::MethodRefused), 405, "invalid_request"),
            (Refusal::Unread(Code::RequestTooSlow), 408, "invalid_request"),
        ] {
            let (found, body) = text(refusal.respond(RequestId::for_test("r")));
            assert_eq!(found, status);
            assert!(body.starts_with(&format!("{{\"error\":\"{error}\",")), "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_form_is_a_request_or_a_refusal(form in collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&headers(&[]), &form);
        }
    }
}
