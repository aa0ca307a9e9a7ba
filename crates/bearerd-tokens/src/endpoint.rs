//! The calls the engine makes at an instance: the token endpoint, the revocation endpoint, the consenting user's own
//! record, and what an instance says of its tables.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bearerd_model::{AccessToken, Clock, InstanceOrigin, InstanceUser, Integration};
use bearerd_net::{Connector, EgressError, FetchError, FetchLimits, Fetched, IntegrationTrust, fetch};
use bearerd_oauth::{
    Client, EncodedTokenRequest, RevocableToken, RevocationError, TokenRequest, parse_revocation_response,
    parse_token_response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Full;

use bearerd_refresh::{Obtained, TokenCallError};
use serde::de::DeserializeOwned;

use crate::{LendError, LentToken, Upstream};

/// Why a revocation call did not revoke.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RevocationCallError {
    #[error(transparent)]
    Endpoint(#[from] RevocationError),
    /// The server saw nothing.
    #[error("the instance cannot be reached: {reason}")]
    NotSent { reason: String },
    /// The server may have done what was asked.
    #[error("the revocation endpoint gave no usable reply: {reason}")]
    NoReply { reason: String },
    #[error("{0}")]
    Misconfigured(String),
}

/// Why the user's record was not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UserCallError {
    #[error("the instance refused the access token (401)")]
    TokenRefused,
    #[error("the user may not read its own sys_user record (403)")]
    Forbidden,
    #[error("the instance answered a web page: it is asleep, in maintenance, or behind a login")]
    Asleep,
    #[error("the instance answered status {0}")]
    Status(u16),
    #[error("the answer holds no user")]
    NoUser,
    #[error("the instance cannot be reached: {0}")]
    Unreachable(String),
}

/// Why records were not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordsCallError {
    #[error(transparent)]
    NotLent(#[from] LendError),
    #[error("the instance refused the access token (401)")]
    TokenRefused,
    #[error("the connection's user may not read that table (403)")]
    Forbidden,
    #[error("the instance answered a web page: it is asleep, in maintenance, or behind a login")]
    Asleep,
    #[error("the instance answered status {0}")]
    Status(u16),
    #[error("the answer holds no records of that shape")]
    Malformed,
    #[error("the instance cannot be reached: {0}")]
    Unreachable(String),
}

/// Largest token response (O-35).
const TOKEN_BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest answer to a revocation: an error object, or a page that is not looked at.
const REVOCATION_BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest answer to the user call: four fields of one record.
const USER_BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest answer to a look at an instance's tables: a few hundred rows of short names.
const RECORDS_BODY_BYTES_MAX: usize = 1024 * 1024;

/// The way to an instance, with what the integration has of its own for it. The files are read each time, so that a
/// replaced one counts; equal content gives the same connector and so the same pool.
///
/// # Errors
/// A file cannot be used.
pub(crate) fn connector_for(base: &Connector, integration: &Integration) -> Result<Connector, EgressError> {
    let path = |file: &Option<String>| file.as_ref().map(PathBuf::from);
    let trust = IntegrationTrust {
        ca_file: path(&integration.ca_file),
        client_certificate_file: path(&integration.client_certificate_file),
        client_key_file: path(&integration.client_key_file),
        http2: integration.http2,
    };
    if trust == IntegrationTrust::default() { Ok(base.clone()) } else { base.with_identity(&trust) }
}

/// Posts a token request and judges the answer.
pub(crate) async fn call_token_endpoint(
    base: &Connector,
    clock: &Arc<dyn Clock>,
    integration: &Integration,
    request: TokenRequest<'_>,
    timeout: Duration,
) -> Result<Obtained, TokenCallError> {
    let misconfigured = |text: String| TokenCallError::Misconfigured(text);
    let connector = connector_for(base, integration).map_err(|error| misconfigured(chain(&error)))?;
    let (origin, path) = split_endpoint(&integration.endpoints.token)
        .ok_or_else(|| misconfigured("the token endpoint is not an absolute https URL".to_owned()))?;
    let encoded = request.encode(client_of(integration));
    let request = form_request(&path, &encoded).map_err(misconfigured)?;
    let sent_at = clock.now();
    let limits =
        FetchLimits { total: timeout, body_bytes_max: TOKEN_BODY_BYTES_MAX, ..FetchLimits::default() };
    let fetched = fetch(&connector, &origin, request, limits).await.map_err(|error| call_error(&error))?;
    let response = parse_token_response(
        fetched.status.as_u16(),
        text_header(&fetched.headers, &header::CONTENT_TYPE),
        retry_after(&fetched.headers),
        &fetched.body,
    )?;
    Ok(Obtained { response, sent_at })
}

/// Posts a revocation (RFC 7009) and judges the answer.
pub(crate) async fn revoke_token(
    base: &Connector,
    integration: &Integration,
    token: RevocableToken<'_>,
    timeout: Duration,
) -> Result<(), RevocationCallError> {
    let misconfigured = |text: String| RevocationCallError::Misconfigured(text);
    let connector = connector_for(base, integration).map_err(|error| misconfigured(chain(&error)))?;
    let (origin, path) = split_endpoint(&integration.endpoints.revocation)
        .ok_or_else(|| misconfigured("the revocation endpoint is not an absolute https URL".to_owned()))?;
    let encoded = token.encode(client_of(integration));
    let request = form_request(&path, &encoded).map_err(misconfigured)?;
    let limits =
        FetchLimits { total: timeout, body_bytes_max: REVOCATION_BODY_BYTES_MAX, ..FetchLimits::default() };
    let fetched = fetch(&connector, &origin, request, limits).await.map_err(|error| {
        let reason = chain(&error);
        if error.was_sent() {
            RevocationCallError::NoReply { reason }
        } else {
            RevocationCallError::NotSent { reason }
        }
    })?;
    let judged = parse_revocation_response(
        fetched.status.as_u16(),
        text_header(&fetched.headers, &header::CONTENT_TYPE),
        retry_after(&fetched.headers),
        &fetched.body,
    );
    Ok(judged?)
}

fn client_of(integration: &Integration) -> Client<'_> {
    Client {
        id: &integration.client_id,
        secret: integration.client_secret.as_ref(),
        auth: integration.token_endpoint_auth,
    }
}

/// A POST of a form to `path`.
///
/// # Errors
/// What about the integration does not fit a request.
fn form_request(path: &str, encoded: &EncodedTokenRequest) -> Result<Request<Full<Bytes>>, String> {
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::ACCEPT, "application/json");
    if let Some(authorization) = &encoded.authorization {
        let mut value = HeaderValue::from_str(authorization)
            .map_err(|_| "client id or secret does not fit a header".to_owned())?;
        value.set_sensitive(true);
        builder = builder.header(header::AUTHORIZATION, value);
    }
    builder
        .body(Full::new(Bytes::copy_from_slice(encoded.body.as_bytes())))
        .map_err(|_| "the endpoint's path is not a request target".to_owned())
}

/// An error with its causes, outermost first: whether it was DNS, TLS or the proxy is in the causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn call_error(error: &FetchError) -> TokenCallError {
    let reason = chain(error);
    if error.was_sent() { TokenCallError::NoReply { reason } } else { TokenCallError::NotSent { reason } }
}

/// Reads the record of the user that `token` acts as.
pub(crate) async fn read_user(
    base: &Connector,
    integration: &Integration,
    token: &AccessToken,
    timeout: Duration,
) -> Result<InstanceUser, UserCallError> {
    let connector =
        connector_for(base, integration).map_err(|error| UserCallError::Unreachable(chain(&error)))?;
    let limits =
        FetchLimits { total: timeout, body_bytes_max: USER_BODY_BYTES_MAX, ..FetchLimits::default() };
    let read = get_records(&connector, &integration.instance, token.to_bearer_header(), USER_PATH, limits);
    the_user(&read.await?)
}

/// Reads records with a lent access token, at the only instance that it may be sent to (I-4).
pub(crate) async fn read_records<T: DeserializeOwned>(
    token: &LentToken,
    path_and_query: &str,
    timeout: Duration,
) -> Result<Vec<T>, RecordsCallError> {
    let limits =
        FetchLimits { total: timeout, body_bytes_max: RECORDS_BODY_BYTES_MAX, ..FetchLimits::default() };
    let Upstream { connector, instance, .. } = &*token.upstream;
    get_records(connector, instance, token.bearer.clone(), path_and_query, limits).await
}

async fn get_records<T: DeserializeOwned>(
    connector: &Connector,
    instance: &InstanceOrigin,
    bearer: HeaderValue,
    path_and_query: &str,
    limits: FetchLimits,
) -> Result<Vec<T>, RecordsCallError> {
    let request = Request::builder()
        .uri(path_and_query)
        .header(header::ACCEPT, "application/json")
        .header(header::AUTHORIZATION, bearer)
        .body(Full::default())
        .map_err(|error| RecordsCallError::Unreachable(error.to_string()))?;
    let fetched = fetch(connector, instance, request, limits)
        .await
        .map_err(|error| RecordsCallError::Unreachable(chain(&error)))?;
    parse_records(&fetched)
}

/// `sys_user` where `sys_id=javascript:gs.getUserID()`: whoever asks. An instance that does not evaluate that may
/// ignore the condition and answer every user; asked for two, it cannot pass any of them off as the one.
const USER_PATH: &str = "/api/now/table/sys_user?sysparm_query=sys_id%3Djavascript%3Ags.getUserID()\
                         &sysparm_fields=sys_id,user_name,name&sysparm_limit=2&sysparm_exclude_reference_link=true";

fn parse_records<T: DeserializeOwned>(fetched: &Fetched) -> Result<Vec<T>, RecordsCallError> {
    #[derive(serde::Deserialize)]
    struct Answer<T> {
        result: Vec<T>,
    }
    match fetched.status.as_u16() {
        200 => {}
        401 => return Err(RecordsCallError::TokenRefused),
        403 => return Err(RecordsCallError::Forbidden),
        status => return Err(RecordsCallError::Status(status)),
    }
    let html = text_header(&fetched.headers, &header::CONTENT_TYPE)
        .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"));
    if html || fetched.body.trim_ascii_start().first() == Some(&b'<') {
        return Err(RecordsCallError::Asleep);
    }
    let answer: Answer<T> = serde_json::from_slice(&fetched.body).map_err(|_| RecordsCallError::Malformed)?;
    Ok(answer.result)
}

fn the_user(users: &[InstanceUser]) -> Result<InstanceUser, UserCallError> {
    match users {
        [user] if !user.sys_id.is_empty() => Ok(InstanceUser {
            sys_id: cut(&user.sys_id),
            user_name: cut(&user.user_name),
            name: cut(&user.name),
        }),
        _ => Err(UserCallError::NoUser),
    }
}

impl From<RecordsCallError> for UserCallError {
    fn from(error: RecordsCallError) -> Self {
        match error {
            RecordsCallError::TokenRefused => Self::TokenRefused,
            RecordsCallError::Forbidden => Self::Forbidden,
            RecordsCallError::Asleep => Self::Asleep,
            RecordsCallError::Status(status) => Self::Status(status),
            RecordsCallError::Malformed => Self::NoUser,
            RecordsCallError::Unreachable(reason) => Self::Unreachable(reason),
            RecordsCallError::NotLent(error) => Self::Unreachable(error.to_string()),
        }
    }
}

/// Names come from the instance: bounded, and free of control characters.
fn cut(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(100).collect()
}

/// An absolute endpoint as the origin to dial and the target to ask for.
fn split_endpoint(endpoint: &str) -> Option<(InstanceOrigin, String)> {
    let scheme_end = endpoint.find("://")? + 3;
    let path_at = endpoint[scheme_end..].find('/').map_or(endpoint.len(), |at| scheme_end + at);
    let origin = InstanceOrigin::parse(&endpoint[..path_at]).ok()?;
    let path = if path_at == endpoint.len() { "/" } else { &endpoint[path_at..] };
    Some((origin, path.to_owned()))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `Retry-After` in seconds; a date is not obeyed, since the clocks need not agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text_header(headers, &header::RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_splits_into_origin_and_target() {
        let split = |text| split_endpoint(text).map(|(origin, path)| (origin.to_string(), path));
        assert_eq!(
            split("https://a.example/oauth_token.do?x=1"),
            Some(("https://a.example".into(), "/oauth_token.do?x=1".into()))
        );
        assert_eq!(split("https://a.example"), Some(("https://a.example".into(), "/".into())));
        for bad in ["http://a.example/t", "a.example/t", "https:///t", "https://u@a.example/t"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
