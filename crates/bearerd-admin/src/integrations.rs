//! `/v1/integrations`

use axum::{Json, extract::State, response::Response};
use bearerd_control::ActError;
use bearerd_model::IntegrationId;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    extract::{Body, Expected, Id, Paging, Params},
    refusal::{Refusal, Result},
    reply,
    router::App,
    wire::{Integration, IntegrationRequest, Items},
};

/// List integrations, in the order of their ids.
#[utoipa::path(get, path = "/v1/integrations", tag = "integrations", params(Paging),
    responses((status = 200, body = Items<Integration>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(paging): Params<Paging>,
) -> Result<Json<Items<Integration>>> {
    let (cursor, limit) = paging.checked()?;
    let page = app.control.integrations(cursor.as_deref(), limit).await?;
    Ok(Json(reply::items(page, Integration::from)))
}

/// Show one integration, with what to enter in ServiceNow.
#[utoipa::path(get, path = "/v1/integrations/{id}", tag = "integrations",
    params(("id" = String, Path, description = "Integration id")), responses((status = 200, body = Integration)))]
pub(crate) async fn show(State(app): State<App>, Id(id): Id<IntegrationId>) -> Result<Response> {
    let found = app.control.integration(&id).await?;
    Ok(reply::resource(StatusCode::OK, found.revision, Integration::from(found.record)))
}

/// How a change treats what hangs on the integration.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PutParams {
    /// Go on where the change ends the tokens of the integration's connections (other client id, client secret or
    /// instance): each then needs a new consent. Default: false, and the refusal says how many there are.
    #[serde(default)]
    purge_tokens: bool,
}

/// Create or change an integration. The same body twice gives the same result.
#[utoipa::path(put, path = "/v1/integrations/{id}", tag = "integrations",
    params(("id" = String, Path, description = "Integration id"), PutParams), request_body = IntegrationRequest,
    responses((status = 200, description = "Changed", body = Integration), (status = 201, description = "Created", body = Integration)))]
pub(crate) async fn put(
    State(app): State<App>,
    Id(id): Id<IntegrationId>,
    Params(params): Params<PutParams>,
    expected: Expected,
    Body(body): Body<IntegrationRequest>,
) -> Result<Response> {
    let found = match app.control.integration(&id).await {
        Ok(found) => Some(found),
        Err(ActError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    expected.check(found.as_ref().map(|found| found.revision))?;
    let secret_stored = found.is_some_and(|found| found.record.client_secret.is_some());
    check_client_kind(&body, secret_stored)?;
    let written =
        app.control.put_integration(id, body.into_spec()?, expected.revision(), params.purge_tokens).await?;
    let status = reply::written(written.created);
    Ok(reply::resource(status, written.versioned.revision, Integration::from(written.versioned.record)))
}

/// Delete an integration that no connection is held under.
#[utoipa::path(delete, path = "/v1/integrations/{id}", tag = "integrations",
    params(("id" = String, Path, description = "Integration id")), responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(
    State(app): State<App>,
    Id(id): Id<IntegrationId>,
    expected: Expected,
) -> Result<StatusCode> {
    app.control.delete_integration(&id, expected.revision()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A forgotten client secret must not quietly make a public client, whose refreshes ServiceNow then refuses without
/// saying why.
fn check_client_kind(body: &IntegrationRequest, secret_stored: bool) -> Result<()> {
    if body.public_client && secret_stored && body.client_secret.is_none() {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "client_is_confidential",
            "the integration has a client secret, which cannot be taken away",
            "Delete the integration and add it again as a public client.",
        )
        .about("public_client"));
    }
    if !body.public_client && !secret_stored && body.client_secret.is_none() {
        return Err(Refusal::invalid(
            "client_secret",
            "it is missing; for a client without a secret say \"public_client\": true",
        ));
    }
    Ok(())
}
