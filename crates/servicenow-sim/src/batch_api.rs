//! The Batch API: many requests in the body of one. Each is carried out in turn as the caller of the whole, with the
//! method, URL and headers that its item names (fact 7): what a door in front of the instance cannot see.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{self, ApiCall};
use crate::message::{Reply, SimRequest};
use crate::world::World;

#[derive(Deserialize)]
struct Batch {
    #[serde(default)]
    batch_request_id: Value,
    rest_requests: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    id: Value,
    url: String,
    #[serde(default = "get")]
    method: String,
    #[serde(default)]
    headers: Vec<ItemHeader>,
    /// Base64.
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    exclude_response_headers: bool,
}

#[derive(Deserialize)]
struct ItemHeader {
    name: String,
    value: String,
}

fn get() -> String {
    "GET".to_owned()
}

/// `POST /api/now/batch`.
pub(crate) fn answer(world: &mut World, call: &ApiCall<'_>) -> Reply {
    if call.method != Method::POST {
        return api::method_not_supported(call);
    }
    if let Err(reply) = api::check_write_headers(call) {
        return *reply;
    }
    let Ok(batch) = serde_json::from_slice::<Batch>(&call.request.body) else {
        let message = "Exception while reading request";
        let detail = Some("The payload is not a batch.");
        return Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, detail);
    };
    let mut serviced = Vec::new();
    let mut unserviced = Vec::new();
    for item in batch.rest_requests {
        if serviced.len() >= ITEMS_MAX {
            unserviced.push(item.id);
        } else {
            serviced.push(carry_out(world, call, item));
        }
    }
    let body = json!({
        "batch_request_id": batch.batch_request_id,
        "serviced_requests": serviced,
        "unserviced_requests": unserviced,
    });
    Reply::json(StatusCode::OK, &body)
}

fn carry_out(world: &mut World, call: &ApiCall<'_>, item: Item) -> Value {
    let Item { id, exclude_response_headers, .. } = &item;
    let (id, exclude_response_headers) = (id.clone(), *exclude_response_headers);
    let Some(request) = request_of(item) else {
        let message = "The request of the batch is malformed";
        let reply = Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, None);
        return serviced(&id, &reply, exclude_response_headers);
    };
    world.counters.batched_requests += 1;
    let reply = if api::family(&request.path) == Some("batch") {
        let message = "A batch cannot hold a batch";
        Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, None)
    } else {
        api::route(world, &request, call.caller, call.now)
    };
    serviced(&id, &reply, exclude_response_headers)
}

fn request_of(item: Item) -> Option<SimRequest> {
    let (path, query) = match item.url.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (item.url, None),
    };
    let mut headers = HeaderMap::new();
    for header in item.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_str(&header.value).ok()?);
    }
    let method = Method::from_bytes(item.method.to_ascii_uppercase().as_bytes()).ok()?;
    let body = STANDARD.decode(item.body.unwrap_or_default()).ok()?;
    Some(SimRequest { method, path, query, headers, body: Bytes::from(body), unheld_bytes: None })
}

fn serviced(id: &Value, reply: &Reply, exclude_headers: bool) -> Value {
    let header = |(name, value): (&HeaderName, &HeaderValue)| json!({"name": name.as_str(), "value": String::from_utf8_lossy(value.as_bytes())});
    let headers: Vec<Value> =
        if exclude_headers { Vec::new() } else { reply.headers.iter().map(header).collect() };
    json!({
        "id": id, "status_code": reply.status.as_u16(),
        "status_text": reply.status.canonical_reason().unwrap_or_default(),
        "headers": headers, "body": STANDARD.encode(&reply.body), "execution_time": 1,
    })
}

/// More than a real batch's 30 seconds allow.
const ITEMS_MAX: usize = 100;
