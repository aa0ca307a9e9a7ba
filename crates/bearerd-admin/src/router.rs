//! The door's routes and the layers around them. From outside in: answers made uniform ([`finish`]), panics caught,
//! keys checked ([`authorize`]), then the handler.

use std::{any::Any, ops::Deref, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bearerd_control::{Control, Operator};
use bearerd_crypto::random_hex;
use bearerd_model::UnixTime;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use prometheus::{Gauge, Registry};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    admin_key::{AdminKeys, KeyRefused},
    openapi,
    probes::Deliberate,
    process::ProcessMetrics,
    refusal::{Refusal, RefusalHeader},
};

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) control: Arc<Control>,
    pub(crate) keys: AdminKeys,
    pub(crate) metrics_require_key: bool,
    /// The process's metrics, given by the binary.
    pub(crate) registry: Registry,
    /// The door's own: process figures, build, store.
    pub(crate) own_registry: Registry,
    pub(crate) process: ProcessMetrics,
    pub(crate) store_up: Gauge,
    /// Fires when the process begins to drain.
    pub(crate) draining: CancellationToken,
    pub(crate) started_at: UnixTime,
    pub(crate) openapi: Bytes,
    pub(crate) tls: bool,
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Longest body: an import holds two tokens of 16 KiB, a policy some hundred names.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024;

pub(crate) fn router(app: App) -> Router {
    let (routes, _) = openapi::documented().split_for_parts();
    routes
        .route("/openapi.json", get(document))
        .layer(middleware::from_fn_with_state(app.clone(), authorize))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), finish))
        .with_state(app)
}

async fn document(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

/// Demands an admin key everywhere but on the few paths that say otherwise, so that a new route is closed until
/// somebody opens it.
async fn authorize(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let open = match request.uri().path() {
        "/livez" | "/readyz" | "/openapi.json" => true,
        "/metrics" => !app.metrics_require_key,
        _ => false,
    };
    match operator(&app.keys, request.headers()) {
        Ok(operator) => {
            request.extensions_mut().insert(operator.clone());
            let mut response = next.run(request).await;
            response.extensions_mut().insert(operator);
            response
        }
        Err(_) if open => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn operator(keys: &AdminKeys, headers: &HeaderMap) -> Result<Operator, Refusal> {
    let refusal = |code: &'static str, detail: &str, fix: &str| {
        Refusal::new(StatusCode::UNAUTHORIZED, code, detail, fix).with_header(RefusalHeader::WantsAdminKey)
    };
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let text = match (given.next(), given.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        _ => "",
    };
    let Some(key) = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        let fix = "Send Authorization: Bearer and the admin key that `bearerd init` printed (command line: \
                   BEARERD_ADMIN_KEY).";
        return Err(refusal("admin_key_missing", "this door wants an admin key", fix));
    };
    keys.check(key.1.trim()).map_err(|refused| {
        let (detail, fix) = match refused {
            KeyRefused::Shape => ("this is not an admin key", "Send the key that begins with bda_."),
            KeyRefused::Mistyped => {
                ("the admin key's checksum is wrong", "Copy the key again, to its last character.")
            }
            KeyRefused::CallerKey => (
                "this is a caller key, which is for the proxy door",
                "Send an admin key: it begins with bda_.",
            ),
            KeyRefused::Unknown => (
                "no such admin key",
                "Send the key that `bearerd init` printed, or set admin.bootstrap_key to another one's.",
            ),
        };
        refusal("admin_key_invalid", detail, fix)
    })
}

/// Gives every answer its request id and headers, and every error answer its problem body; says in the log what was
/// done.
async fn finish(State(app): State<App>, request: Request, next: Next) -> Response {
    let request_id = random_hex(REQUEST_ID_BYTES);
    let method = request.method().clone();
    // The whole path, which names the record; of a path that is none of ours nothing is kept.
    let is_known = request.extensions().get::<MatchedPath>().is_some();
    let route = if is_known { request.uri().path().to_owned() } else { "(none)".to_owned() };
    let response =
        if is_cross_site(request.headers()) { cross_site().into_response() } else { next.run(request).await };
    let operator = response.extensions().get::<Operator>().map_or("-", |operator| &operator.name).to_owned();
    let (mut response, refusal) = rendered(response, &request_id);
    record(&request_id, &method, &route, &operator, response.status(), refusal.as_ref());
    let headers = response.headers_mut();
    for (name, value) in SAFE_HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if app.tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert("x-request-id", value);
    }
    response
}

/// Puts a problem in place of an error answer that has none yet.
fn rendered(response: Response, request_id: &str) -> (Response, Option<Refusal>) {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.extensions().get::<Deliberate>().is_some() {
        return (response, None);
    }
    let refusal =
        response.extensions().get::<Refusal>().cloned().unwrap_or_else(|| Refusal::of_status(status));
    let (mut parts, _) = response.into_parts();
    let body = serde_json::to_vec(&refusal.problem(request_id)).unwrap_or_default();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    (Response::from_parts(parts, Body::from(body)), Some(refusal))
}

fn record(
    id: &str,
    method: &Method,
    route: &str,
    operator: &str,
    status: StatusCode,
    refusal: Option<&Refusal>,
) {
    let code = refusal.map_or("-", |refusal| refusal.code);
    let status = status.as_u16();
    if status >= 500 {
        let detail = refusal.map_or("-", |refusal| refusal.detail.as_str());
        tracing::warn!(request.id = id, %method, route, operator, status, code, detail, "admin: {method} {route} failed: {code}");
    } else if method.is_safe() {
        tracing::debug!(request.id = id, %method, route, operator, status, code, "admin: {method} {route} answered {status}");
    } else {
        tracing::info!(request.id = id, %method, route, operator, status, code, "admin: {method} {route} answered {status}");
    }
}

/// A browser says when another site made it ask. No page of another site has business here.
fn is_cross_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|value| value == "cross-site")
}

fn cross_site() -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "cross_site_refused",
        "a page of another site made the browser ask",
        "Use the admin API from a program, or open this address yourself.",
    )
}

/// The panic's text stays in the log of the panic hook: it may hold anything.
fn panicked(_panic: Box<dyn Any + Send + 'static>) -> Response {
    Refusal::internal().into_response()
}

const REQUEST_ID_BYTES: usize = 8;

/// On every answer of the door (O-30, O-31). Nothing here is to be kept, framed, guessed at or shared.
pub(crate) const SAFE_HEADERS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-opener-policy", "same-origin"),
];
