//! `/v1/connections`

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::Response};
use bearerd_control::{ActError, ConnectionChange, Revision, Versioned};
use bearerd_model::{self as model, ConnectionId};
use http::StatusCode;

use crate::{
    extract::{Body, By, Expected, Id, Paging, Params},
    refusal::{Refusal, Result},
    reply,
    router::App,
    wire::{
        ConfirmRequest, ConnectLink, Connection, ConnectionRequest, ConnectionTest, ConnectionWritten,
        FreezeRequest, Items,
    },
};

/// List connections, in the order of their ids.
#[utoipa::path(get, path = "/v1/connections", tag = "connections", params(Paging),
    responses((status = 200, body = Items<Connection>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(paging): Params<Paging>,
) -> Result<Json<Items<Connection>>> {
    let (cursor, limit) = paging.checked()?;
    let page = app.control.connections(cursor.as_deref(), limit).await?;
    let mut integrations = BTreeMap::new();
    for connection in &page.records {
        let id = &connection.record.integration;
        if !integrations.contains_key(id) {
            integrations.insert(id.clone(), integration_of(&app, &connection.record).await?);
        }
    }
    Ok(Json(reply::items(page, |connection| {
        let integration = integrations.get(&connection.integration).and_then(Option::as_ref);
        Connection::of(connection, integration, &app.control)
    })))
}

/// Show one connection: its state with reason and time, user, expiries, last refresh and use. Never a token.
#[utoipa::path(get, path = "/v1/connections/{id}", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 200, body = Connection)))]
pub(crate) async fn show(State(app): State<App>, Id(id): Id<ConnectionId>) -> Result<Response> {
    let found = app.control.connection(&id).await?;
    shown(&app, found).await
}

/// Create a connection, or change the labels and the expected user of one that exists.
///
/// A new one under a profile with `authorization_code` comes with a connect link for the person who is to consent.
/// The same body twice gives the same result; only the first answer has the link.
#[utoipa::path(put, path = "/v1/connections/{id}", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), request_body = ConnectionRequest,
    responses((status = 200, description = "Changed", body = ConnectionWritten),
        (status = 201, description = "Created", body = ConnectionWritten)))]
pub(crate) async fn put(
    State(app): State<App>,
    Id(id): Id<ConnectionId>,
    By(operator): By,
    expected: Expected,
    Body(body): Body<ConnectionRequest>,
) -> Result<Response> {
    let found = match app.control.connection(&id).await {
        Ok(found) => Some(found),
        Err(ActError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    expected.check(found.as_ref().map(|found| found.revision))?;
    let (status, versioned, connect_link) = if let Some(found) = found {
        (StatusCode::OK, change(&app, found, body, expected.revision()).await?, None)
    } else {
        let created = app.control.create_connection(id, body.into_spec()?, &operator).await?;
        (StatusCode::CREATED, created.versioned, created.connect_link.map(ConnectLink::from))
    };
    let integration = integration_of(&app, &versioned.record).await?;
    let connection = Connection::of(versioned.record, integration.as_ref(), &app.control);
    Ok(reply::resource(status, versioned.revision, ConnectionWritten { connection, connect_link }))
}

/// Delete a connection and forget its tokens at once; calls through it end within a second everywhere. The tokens are
/// revoked at the instance afterwards, unless another connection holds them too.
#[utoipa::path(delete, path = "/v1/connections/{id}", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(
    State(app): State<App>,
    Id(id): Id<ConnectionId>,
    expected: Expected,
) -> Result<StatusCode> {
    app.control.delete_connection(&id, expected.revision()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a new connect link; the tokens stay in use until the new consent succeeds.
#[utoipa::path(post, path = "/v1/connections/{id}/reauthorize", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 200, body = ConnectLink)))]
pub(crate) async fn reauthorize(
    State(app): State<App>,
    Id(id): Id<ConnectionId>,
    By(operator): By,
) -> Result<Json<ConnectLink>> {
    Ok(Json(app.control.reauthorize(&id, &operator).await?.into()))
}

/// Confirm that the user shown is who was meant to consent; the tokens are lent from now on.
#[utoipa::path(post, path = "/v1/connections/{id}/confirm", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), request_body = ConfirmRequest,
    responses((status = 200, body = Connection)))]
pub(crate) async fn confirm(
    State(app): State<App>,
    Id(id): Id<ConnectionId>,
    Body(body): Body<ConfirmRequest>,
) -> Result<Response> {
    let confirmed = app.control.confirm(&id, &body.user).await?;
    shown(&app, confirmed).await
}

/// Refresh the access token now, whatever its age.
#[utoipa::path(post, path = "/v1/connections/{id}/refresh", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 200, body = Connection)))]
pub(crate) async fn refresh(State(app): State<App>, Id(id): Id<ConnectionId>) -> Result<Response> {
    let refreshed = app.control.refresh(&id).await?;
    shown(&app, refreshed).await
}

/// Read the connection's own user at the instance: proves instance, grant and table access in one call.
#[utoipa::path(post, path = "/v1/connections/{id}/test", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 200, body = ConnectionTest)))]
pub(crate) async fn test(State(app): State<App>, Id(id): Id<ConnectionId>) -> Result<Json<ConnectionTest>> {
    Ok(Json(app.control.test(&id).await?.into()))
}

/// Stop all calls through the connection; its tokens are kept and kept fresh.
#[utoipa::path(post, path = "/v1/connections/{id}/freeze", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), request_body = FreezeRequest,
    responses((status = 200, body = Connection)))]
pub(crate) async fn freeze(
    State(app): State<App>,
    Id(id): Id<ConnectionId>,
    Body(body): Body<FreezeRequest>,
) -> Result<Response> {
    let reason = body.reason.trim();
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX {
        return Err(Refusal::invalid("reason", format!("it is 1 to {REASON_CHARS_MAX} characters")));
    }
    let frozen = app.control.freeze(&id, reason.to_owned()).await?;
    shown(&app, frozen).await
}

/// Let calls through again.
#[utoipa::path(post, path = "/v1/connections/{id}/unfreeze", tag = "connections",
    params(("id" = String, Path, description = "Connection id")), responses((status = 200, body = Connection)))]
pub(crate) async fn unfreeze(State(app): State<App>, Id(id): Id<ConnectionId>) -> Result<Response> {
    let thawed = app.control.unfreeze(&id).await?;
    shown(&app, thawed).await
}

/// Writes only what differs, so that the same body twice leaves the `ETag` alone.
async fn change(
    app: &App,
    found: Versioned<model::Connection>,
    body: ConnectionRequest,
    expected: Option<Revision>,
) -> Result<Versioned<model::Connection>> {
    let fixed = [
        ("integration", found.record.integration.as_str(), body.integration.as_str()),
        ("profile", found.record.profile.as_str(), body.profile.as_str()),
    ];
    if let Some((member, is, _)) = fixed.into_iter().find(|(_, is, asked)| is != asked) {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "connection_fixed",
            format!("the connection's {member} is {is:?} and cannot be changed"),
            "Add another connection, or delete this one first.",
        )
        .about(member));
    }
    if found.record.labels == body.labels && found.record.expected_user == body.expected_user {
        return Ok(found);
    }
    let change = ConnectionChange { labels: Some(body.labels), expected_user: Some(body.expected_user) };
    Ok(app.control.change_connection(&found.record.id, change, expected).await?)
}

async fn shown(app: &App, found: Versioned<model::Connection>) -> Result<Response> {
    let integration = integration_of(app, &found.record).await?;
    let connection = Connection::of(found.record, integration.as_ref(), &app.control);
    Ok(reply::resource(StatusCode::OK, found.revision, connection))
}

/// `None` where the integration is gone or damaged: the connection can still be shown.
async fn integration_of(app: &App, connection: &model::Connection) -> Result<Option<model::Integration>> {
    match app.control.integration(&connection.integration).await {
        Ok(found) => Ok(Some(found.record)),
        Err(ActError::NotFound { .. } | ActError::Store(bearerd_control::StoreError::Damaged { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A sentence or two.
const REASON_CHARS_MAX: usize = 500;
