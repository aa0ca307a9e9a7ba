//! What load balancers and Prometheus ask: `/livez`, `/readyz`, `/metrics`, and the operators' `/v1/status`.

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use bearerd_control::Operator;
use http::{StatusCode, header};
use prometheus::TextEncoder;

use crate::{
    extract::By,
    refusal::{Refusal, Result},
    router::App,
    wire::{Check, ProbeReport, Status},
};

/// Whether the process runs. 200 as long as it answers at all.
#[utoipa::path(get, path = "/livez", tag = "process", security(()),
    responses((status = 200, description = "It runs. With an admin key: in JSON.", body = ProbeReport)))]
pub(crate) async fn livez(operator: Option<Extension<Operator>>) -> Response {
    answer(operator.is_some(), Vec::new())
}

/// Whether the process can do its work: store reachable, keys and policies read, not draining.
#[utoipa::path(get, path = "/readyz", tag = "process", security(()), responses(
    (status = 200, description = "It can. With an admin key: in JSON.", body = ProbeReport),
    (status = 503, description = "It cannot. With an admin key: in JSON, which check fails.", body = ProbeReport)))]
pub(crate) async fn readyz(State(app): State<App>, operator: Option<Extension<Operator>>) -> Response {
    answer(operator.is_some(), checks(&app))
}

/// Metrics in Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "process", security((), ("admin_key" = [])),
    responses((status = 200, description = "Prometheus text format 0.0.4", body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(app): State<App>) -> Result<Response> {
    app.process.update();
    app.store_up.set(if app.control.readiness().store_reachable { 1.0 } else { 0.0 });
    let mut families = app.registry.gather();
    families.extend(app.own_registry.gather());
    let text = TextEncoder::new().encode_to_string(&families).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "metrics cannot be written as text");
        Refusal::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// How this process stands.
#[utoipa::path(get, path = "/v1/status", tag = "process", responses((status = 200, body = Status)))]
pub(crate) async fn status(State(app): State<App>, _: By) -> Json<Status> {
    let checks = checks(&app);
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: app.started_at.into(),
        uptime_secs: app.control.clock().now().since(app.started_at).as_secs(),
        ready: checks.iter().all(|check| check.ok),
        checks,
    })
}

fn checks(app: &App) -> Vec<Check> {
    let readiness = app.control.readiness();
    let check = |name: &str, ok: bool| Check { name: name.to_owned(), ok };
    vec![
        check("store_reachable", readiness.store_reachable),
        check("keys_and_policies_read", readiness.snapshot_loaded),
        check("not_draining", !app.draining.is_cancelled()),
    ]
}

/// The status alone, or with what it rests on for whoever showed an admin key.
fn answer(in_full: bool, checks: Vec<Check>) -> Response {
    let ok = checks.iter().all(|check| check.ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // A failing probe is an answer, not a refusal: the outermost layer leaves it as it is.
    let mut response = if in_full {
        (status, Json(ProbeReport { ok, checks })).into_response()
    } else {
        status.into_response()
    };
    response.extensions_mut().insert(Deliberate);
    response
}

/// Marks an answer whose error status is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deliberate;
