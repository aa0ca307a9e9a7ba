//! `/v1/keys`: caller keys.

use std::time::Duration;

use axum::{Json, extract::State, response::Response};
use bearerd_model::CallerKeyId;
use http::StatusCode;

use crate::{
    extract::{Body, Expected, Id, Paging, Params},
    refusal::{Refusal, Result},
    reply,
    router::App,
    wire::{CallerKey, IssuedCallerKey, Items, KeyRequest, RotateRequest},
};

/// List caller keys, in the order of their ids; without the keys themselves.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", params(Paging), responses((status = 200, body = Items<CallerKey>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(paging): Params<Paging>,
) -> Result<Json<Items<CallerKey>>> {
    let (cursor, limit) = paging.checked()?;
    let page = app.control.keys(cursor.as_deref(), limit).await?;
    Ok(Json(reply::items(page, CallerKey::from)))
}

/// Create a caller key. This answer alone shows it.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", request_body = KeyRequest,
    responses((status = 201, description = "Created", body = IssuedCallerKey)))]
pub(crate) async fn create(State(app): State<App>, Body(body): Body<KeyRequest>) -> Result<Response> {
    let issued = app.control.create_key(body.into()).await?;
    let (revision, path) = (issued.versioned.revision, format!("/v1/keys/{}", issued.versioned.record.id));
    Ok(reply::created_at(
        &path,
        reply::resource(StatusCode::CREATED, revision, IssuedCallerKey::from(issued)),
    ))
}

/// Show one caller key, without the key itself.
#[utoipa::path(get, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path, description = "Caller key id")),
    responses((status = 200, body = CallerKey)))]
pub(crate) async fn show(State(app): State<App>, Id(id): Id<CallerKeyId>) -> Result<Response> {
    let found = app.control.key(&id).await?;
    Ok(reply::resource(StatusCode::OK, found.revision, CallerKey::from(found.record)))
}

/// Change what a caller key says and may do; its secrets stay.
#[utoipa::path(put, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path, description = "Caller key id")),
    request_body = KeyRequest, responses((status = 200, body = CallerKey)))]
pub(crate) async fn change(
    State(app): State<App>,
    Id(id): Id<CallerKeyId>,
    expected: Expected,
    Body(body): Body<KeyRequest>,
) -> Result<Response> {
    if expected == Expected::Absent {
        return Err(Refusal::invalid(
            "If-None-Match",
            "keys are made by POST /v1/keys, which chooses their ids",
        ));
    }
    let changed = app.control.change_key(&id, body.into(), expected.revision()).await?;
    Ok(reply::resource(StatusCode::OK, changed.revision, CallerKey::from(changed.record)))
}

/// Give a caller key a second secret; the first one goes on for a while. This answer alone shows the new key.
#[utoipa::path(post, path = "/v1/keys/{id}/rotate", tag = "keys", params(("id" = String, Path, description = "Caller key id")),
    request_body = RotateRequest, responses((status = 200, body = IssuedCallerKey)))]
pub(crate) async fn rotate(
    State(app): State<App>,
    Id(id): Id<CallerKeyId>,
    Body(body): Body<RotateRequest>,
) -> Result<Response> {
    if body.overlap_secs > OVERLAP_SECS_MAX {
        return Err(Refusal::invalid("overlap_secs", format!("it is 0 to {OVERLAP_SECS_MAX}")));
    }
    let issued = app.control.rotate_key(&id, Duration::from_secs(body.overlap_secs)).await?;
    Ok(reply::resource(StatusCode::OK, issued.versioned.revision, IssuedCallerKey::from(issued)))
}

/// Delete a caller key; it is refused everywhere within a second.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path, description = "Caller key id")),
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(
    State(app): State<App>,
    Id(id): Id<CallerKeyId>,
    expected: Expected,
) -> Result<StatusCode> {
    app.control.delete_key(&id, expected.revision()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 90 days: a rotation that takes longer is two keys.
const OVERLAP_SECS_MAX: u64 = 90 * 24 * 3600;
