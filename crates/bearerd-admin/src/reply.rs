//! Answers of the resources.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use bearerd_control::{Page, Revision};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::wire::Items;

/// One resource with its `ETag`: the quoted revision.
pub(crate) fn resource(status: StatusCode, revision: Revision, body: impl Serialize) -> Response {
    let etag =
        HeaderValue::from_str(&format!("\"{}\"", revision.0)).expect("digits and quotes are visible ASCII");
    (status, [(header::ETAG, etag)], Json(body)).into_response()
}

pub(crate) fn created_at(path: &str, mut response: Response) -> Response {
    let location = HeaderValue::from_str(path).expect("ids are visible ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

pub(crate) fn written(created: bool) -> StatusCode {
    if created { StatusCode::CREATED } else { StatusCode::OK }
}

pub(crate) fn items<R, T>(page: Page<R>, mut show: impl FnMut(R) -> T) -> Items<T> {
    Items {
        items: page.records.into_iter().map(|versioned| show(versioned.record)).collect(),
        next: page.next,
        damaged: page.damaged.into_iter().map(|key| key.id).collect(),
    }
}
