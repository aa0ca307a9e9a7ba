//! `/v1/policies`

use axum::{Json, extract::State, response::Response};
use bearerd_control::{ActError, CallSpec};
use bearerd_model::PolicyId;
use http::StatusCode;

use crate::{
    extract::{Body, Expected, Id, Paging, Params},
    refusal::{Refusal, Result},
    reply,
    router::App,
    wire::{ExplainRequest, Explanation, Items, Policy, PolicyRequest, Unchecked},
};

/// List policies, in the order of their ids.
#[utoipa::path(get, path = "/v1/policies", tag = "policies", params(Paging), responses((status = 200, body = Items<Policy>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(paging): Params<Paging>,
) -> Result<Json<Items<Policy>>> {
    let (cursor, limit) = paging.checked()?;
    let page = app.control.policies(cursor.as_deref(), limit).await?;
    Ok(Json(reply::items(page, Policy::from)))
}

/// Show one policy.
#[utoipa::path(get, path = "/v1/policies/{id}", tag = "policies", params(("id" = String, Path, description = "Policy id")),
    responses((status = 200, body = Policy)))]
pub(crate) async fn show(State(app): State<App>, Id(id): Id<PolicyId>) -> Result<Response> {
    let found = app.control.policy(&id).await?;
    Ok(reply::resource(StatusCode::OK, found.revision, Policy::from(found.record)))
}

/// Create or change a policy. The same body twice gives the same result. The fields that record rules name are looked up
/// at the instances that the rules' connections are at.
#[utoipa::path(put, path = "/v1/policies/{id}", tag = "policies", params(("id" = String, Path, description = "Policy id")),
    request_body = PolicyRequest,
    responses((status = 200, description = "Changed", body = Policy), (status = 201, description = "Created", body = Policy)))]
pub(crate) async fn put(
    State(app): State<App>,
    Id(id): Id<PolicyId>,
    expected: Expected,
    Body(body): Body<PolicyRequest>,
) -> Result<Response> {
    if matches!(expected, Expected::Absent | Expected::Present) {
        let found = match app.control.policy(&id).await {
            Ok(found) => Some(found.revision),
            Err(ActError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        expected.check(found)?;
    }
    let put = app.control.put_policy(id, body.into(), expected.revision()).await?;
    let status = reply::written(put.written.created);
    let revision = put.written.versioned.revision;
    let unchecked = put.unchecked.into_iter().map(Unchecked::from).collect();
    let policy = Policy { unchecked, ..Policy::from(put.written.versioned.record) };
    Ok(reply::resource(status, revision, policy))
}

/// Explain what would become of a call, and which rule decides. Makes no call and counts nothing.
#[utoipa::path(post, path = "/v1/policies/explain", tag = "policies", request_body = ExplainRequest,
    responses((status = 200, body = Explanation)))]
pub(crate) async fn explain(
    State(app): State<App>,
    Body(body): Body<ExplainRequest>,
) -> Result<Json<Explanation>> {
    let spec = CallSpec::try_from(body).map_err(|(field, problem)| Refusal::invalid(field, problem))?;
    Ok(Json(app.control.explain(spec).await?.into()))
}

/// Delete a policy that no caller key names.
#[utoipa::path(delete, path = "/v1/policies/{id}", tag = "policies", params(("id" = String, Path, description = "Policy id")),
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(
    State(app): State<App>,
    Id(id): Id<PolicyId>,
    expected: Expected,
) -> Result<StatusCode> {
    app.control.delete_policy(&id, expected.revision()).await?;
    Ok(StatusCode::NO_CONTENT)
}
