//! `/api/…`: who is calling (and by which of ServiceNow's many ways in), the method that counts, and which family of
//! the REST API answers.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use percent::decode_segment;

use crate::attachment_api;
use crate::batch_api;
use crate::catalog_api;
use crate::clock::SimTime;
use crate::evaluate::Viewer;
use crate::import_api;
use crate::knowledge_api;
use crate::message::{Format, Reply, SimRequest, negotiate};
use crate::stats_api;
use crate::table_api;
use crate::tiny_urls;
use crate::world::World;

/// The user a request acts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) user_name: String,
    pub(crate) sys_id: String,
}

impl Caller {
    pub(crate) fn viewer(&self, now: SimTime) -> Viewer<'_> {
        Viewer { sys_id: &self.sys_id, user_name: &self.user_name, now }
    }
}

/// One REST call after authentication and method override.
pub(crate) struct ApiCall<'a> {
    pub(crate) request: &'a SimRequest,
    pub(crate) caller: &'a Caller,
    pub(crate) method: Method,
    pub(crate) format: Format,
    pub(crate) now: SimTime,
}

/// An answer, and the user it was for.
pub(crate) struct ApiAnswer {
    pub(crate) reply: Reply,
    pub(crate) user_name: Option<String>,
}

/// Answers any path below `/api`.
pub(crate) fn answer(world: &mut World, request: &SimRequest, now: SimTime) -> ApiAnswer {
    if request.path == "/api/now/oauth/jwks" && request.method == Method::GET {
        let reply = Reply::json(StatusCode::OK, &world.token_key.jwks());
        return ApiAnswer { reply, user_name: None };
    }
    let Some((how, caller)) = authenticate(world, request, now) else {
        let reply = unauthorized(request.format());
        return ApiAnswer { reply, user_name: None };
    };
    let limit = world.behaviour.rate_limit_per_hour;
    let rate = world.rate.count(&caller.user_name, limit, now);
    let mut reply = match rate {
        Some(state) if state.exceeded => {
            world.counters.rate_limited += 1;
            state.refusal(request.format(), state.reset_at_s.saturating_sub(now.as_secs()).max(1))
        }
        Some(_) | None if lacks_scope(world, request, how) => missing_scope(request.format()),
        Some(_) | None => route(world, request, &caller, now),
    };
    if let Some(state) = rate {
        reply = state.mark(reply);
    }
    ApiAnswer { reply, user_name: Some(caller.user_name) }
}

/// The 401 of missing, wrong, expired and revoked credentials alike.
pub(crate) fn unauthorized(format: Format) -> Reply {
    let detail = Some("Required to provide Auth information");
    Reply::api_error(format, StatusCode::UNAUTHORIZED, "User Not Authenticated", detail)
        .with(WWW_AUTHENTICATE, "BASIC realm=\"Service-now\"")
}

/// Auth scopes belong to OAuth clients: only requests with an access token can lack one.
fn lacks_scope(world: &World, request: &SimRequest, how: &str) -> bool {
    let denials = &world.behaviour.scope_denials;
    matches!(how, "bearer" | "query_token") && denials.iter().any(|text| request.path.contains(text.as_str()))
}

fn missing_scope(format: Format) -> Reply {
    let detail = Some("Missing required api access scope");
    Reply::api_error(format, StatusCode::FORBIDDEN, "User Not Authorized", detail)
}

fn authenticate(world: &mut World, request: &SimRequest, now: SimTime) -> Option<(&'static str, Caller)> {
    let (how, user_name) = credential_user(world, request, now)?;
    let user = world.directory.get(&user_name).filter(|user| world.directory.may_sign_in(&user.user_name))?;
    let caller = Caller { user_name, sys_id: user.sys_id() };
    world.counters.authenticated(how);
    Some((how, caller))
}

/// The first credential that is good; a session's cookie comes last, and needs no other (fact 6).
fn credential_user(world: &mut World, request: &SimRequest, now: SimTime) -> Option<(&'static str, String)> {
    let by_query = world.behaviour.query_credentials;
    let query = |name: &str| if by_query { request.query_value(name) } else { None };
    let owner = |token: &str| world.tokens.check_access(token, now).ok().map(|owner| owner.user_name.clone());
    let api_key = |key: &str| world.directory.by_api_key(key).map(|user| user.user_name.clone());
    if let Some(user) = request.bearer().and_then(owner) {
        return Some(("bearer", user));
    }
    if let Some(user) = query("access_token").as_deref().and_then(owner) {
        return Some(("query_token", user));
    }
    if let Some(user) = request.header("x-sn-apikey").and_then(api_key) {
        return Some(("api_key", user));
    }
    if let Some(user) = query("x-sn-apikey").as_deref().and_then(api_key) {
        return Some(("api_key", user));
    }
    if world.behaviour.basic_auth
        && let Some((user, password)) = request.basic()
        && world.directory.password_matches(&user, &password)
    {
        return Some(("basic", user));
    }
    let idle_max = Duration::from_secs(world.behaviour.session_idle_s);
    let session = request.cookie("JSESSIONID").filter(|_| world.behaviour.cookie_auth_after_expiry);
    if let Some(user) = session.and_then(|id| world.sessions.user(id, idle_max, now)) {
        return Some(("cookie", user.to_owned()));
    }
    world.counters.authenticated("none");
    None
}

/// Answers an authenticated request; of a batch, each of its items.
pub(crate) fn route(world: &mut World, request: &SimRequest, caller: &Caller, now: SimTime) -> Reply {
    if let Some(query) = world.tiny_urls.query_of(request) {
        let request = SimRequest { query: Some(query), ..request.clone() };
        return to_family(world, &request, caller, now);
    }
    to_family(world, request, caller, now)
}

fn to_family(world: &mut World, request: &SimRequest, caller: &Caller, now: SimTime) -> Reply {
    let method = effective_method(world, request);
    let Some(format) = negotiate(request.header(http::header::ACCEPT)) else {
        let detail = "Accept must admit application/json or application/xml";
        let message = "Requested format not supported";
        return Reply::api_error(Format::Json, StatusCode::NOT_ACCEPTABLE, message, Some(detail));
    };
    let call = ApiCall { request, caller, method, format, now };
    let segments = segments(&request.path);
    let names: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (version, space, rest) = split(&names);
    match (space, rest) {
        ("now", ["table", table]) => table_api::on_table(world, &call, table, version == Some("v1")),
        ("now", ["table", table, sys_id]) => table_api::on_record(world, &call, table, sys_id),
        ("now", ["stats", table]) => stats_api::answer(world, &call, table),
        ("now", ["attachment", rest @ ..]) => attachment_api::answer(world, &call, rest),
        ("now", ["import", rest @ ..]) => import_api::answer(world, &call, rest),
        ("now", ["batch"]) => batch_api::answer(world, &call),
        ("now", ["tinyurl"]) => tiny_urls::answer(world, &call),
        ("sn_sc", ["servicecatalog", rest @ ..]) => catalog_api::answer(world, &call, rest),
        ("sn_km_api", ["knowledge", rest @ ..]) => knowledge_api::answer(world, &call, rest),
        _ => no_resource(&call),
    }
}

fn segments(path: &str) -> Vec<String> {
    let decoded: Option<_> = path.trim_start_matches('/').split('/').map(decode_segment).collect();
    decoded.unwrap_or_default()
}

/// Version, name space (`now`, `sn_sc`) and what follows them; all empty if the path is not below `/api`.
fn split<'a, 'n>(names: &'a [&'n str]) -> (Option<&'n str>, &'n str, &'a [&'n str]) {
    match names {
        ["api", space, version @ ("v1" | "v2"), rest @ ..] => (Some(version), space, rest),
        ["api", space, rest @ ..] => (None, space, rest),
        _ => (None, "", &[]),
    }
}

/// The family of the REST API that a path belongs to, read as [`route`] reads it.
pub(crate) fn family(path: &str) -> Option<&'static str> {
    let segments = segments(path);
    let names: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (_, space, rest) = split(&names);
    match (space, *rest.first()?) {
        ("now", "table") => Some("table"),
        ("now", "stats") => Some("stats"),
        ("now", "attachment") => Some("attachment"),
        ("now", "import") => Some("import"),
        ("now", "batch") => Some("batch"),
        ("now", "tinyurl") => Some("tinyurl"),
        ("sn_sc", "servicecatalog") => Some("catalog"),
        ("sn_km_api", "knowledge") => Some("knowledge"),
        _ => None,
    }
}

/// `X-HTTP-Method-Override` wins over the request line (fact 7).
pub(crate) fn effective_method(world: &World, request: &SimRequest) -> Method {
    let named = request.header("x-http-method-override").filter(|_| world.behaviour.method_override);
    named
        .and_then(|name| Method::from_bytes(name.trim().to_ascii_uppercase().as_bytes()).ok())
        .unwrap_or_else(|| request.method.clone())
}

fn no_resource(call: &ApiCall<'_>) -> Reply {
    let message = "Requested URI does not represent any resource";
    let detail = format!("{message}: {}", call.request.path);
    Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, Some(&detail))
}

/// The 405 of a route that exists.
pub(crate) fn method_not_supported(call: &ApiCall<'_>) -> Reply {
    let detail = format!("{} is not supported here", call.method);
    Reply::api_error(call.format, StatusCode::METHOD_NOT_ALLOWED, "Method not supported", Some(&detail))
}

/// A record that is not there, or that the caller may not see: the same answer.
pub(crate) fn no_record(call: &ApiCall<'_>) -> Reply {
    let detail = Some("Record doesn't exist or ACL restricts the record retrieval");
    Reply::api_error(call.format, StatusCode::NOT_FOUND, "No Record found", detail)
}

/// `X-…` headers of the REST API.
pub(crate) fn total_count() -> HeaderName {
    HeaderName::from_static("x-total-count")
}

/// Writes say what they send and what they want back, else 400; a body that is neither JSON nor XML is 415.
pub(crate) fn check_write_headers(call: &ApiCall<'_>) -> Result<(), Box<Reply>> {
    let missing = |name: &str| {
        let detail = format!("The header {name} is required");
        Reply::api_error(call.format, StatusCode::BAD_REQUEST, "Invalid request headers", Some(&detail))
    };
    if !call.request.headers.contains_key(http::header::ACCEPT) {
        return Err(Box::new(missing("Accept")));
    }
    if !call.request.headers.contains_key(CONTENT_TYPE) {
        return Err(Box::new(missing("Content-Type")));
    }
    match call.request.media_type().as_deref() {
        Some("application/json" | "text/json" | "application/xml" | "text/xml") => Ok(()),
        Some(_) | None => Err(Box::new(Reply::api_error(
            call.format,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported media type",
            Some("Content-Type must be application/json or application/xml"),
        ))),
    }
}

mod percent {
    /// One decoded path segment; `None` if it is not UTF-8.
    pub(super) fn decode_segment(segment: &str) -> Option<String> {
        let bytes = segment.as_bytes();
        let mut decoded = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let hex = if byte == b'%' { segment.get(at + 1..at + 3) } else { None };
            if let Some(value) = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                decoded.push(value);
                at += 3;
            } else {
                decoded.push(byte);
                at += 1;
            }
        }
        String::from_utf8(decoded).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_decoded_without_panic() {
        for (segment, expected) in [
            ("incident", Some("incident")),
            ("%69ncident", Some("incident")),
            ("a%2Fb", Some("a/b")),
            ("100%", Some("100%")),
            ("%é", Some("%é")),
            ("%ff", None),
        ] {
            assert_eq!(decode_segment(segment).as_deref(), expected, "{segment}");
        }
    }

    #[test]
    fn paths_have_a_family() {
        for (path, expected) in [
            ("/api/now/table/incident", Some("table")),
            ("/api/now/v1/table/incident", Some("table")),
            ("/api/now/v2/table/incident/1", Some("table")),
            ("/api/now/%74able/incident", Some("table")),
            ("/api/now/stats/incident", Some("stats")),
            ("/api/now/v1/batch", Some("batch")),
            ("/api/now/%62atch", Some("batch")),
            ("/api/now/v1/import/imp_user", Some("import")),
            ("/api/sn_sc/v1/servicecatalog/items", Some("catalog")),
            ("/api/sn_km_api/knowledge/articles", Some("knowledge")),
            ("/api/now/v3/table/incident", None),
            ("/api/now", None),
            ("/api/x_scope/own", None),
            ("/", None),
        ] {
            assert_eq!(family(path), expected, "{path}");
        }
    }
}
