//! Short names of long URLs: `POST /api/now/tinyurl` takes the URL in the body, and `sysparm_tiny` brings its query
//! back. What a door in front of the instance reads in the URL is then not what the instance does.

use std::collections::{HashMap, VecDeque};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{self, ApiCall};
use crate::message::{Reply, SimRequest};
use crate::secrets;
use crate::world::World;

/// The short names given so far, a bounded number of them.
#[derive(Debug, Default)]
pub(crate) struct TinyUrls {
    urls: HashMap<String, String>,
    by_age: VecDeque<String>,
}

impl TinyUrls {
    fn shorten(&mut self, url: &str) -> String {
        let tiny = secrets::random_hex32();
        self.urls.insert(tiny.clone(), url.to_owned());
        self.by_age.push_back(tiny.clone());
        if self.by_age.len() > URLS_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.urls.remove(&oldest);
        }
        tiny
    }

    /// The query that a request with `sysparm_tiny` stands for.
    pub(crate) fn query_of(&self, request: &SimRequest) -> Option<String> {
        let url = self.urls.get(&request.query_value("sysparm_tiny")?)?;
        Some(url.split_once('?').map_or("", |(_, query)| query).to_owned())
    }
}

/// `POST /api/now/tinyurl`.
pub(crate) fn answer(world: &mut World, call: &ApiCall<'_>) -> Reply {
    if call.method != Method::POST {
        return api::method_not_supported(call);
    }
    let body: Value = serde_json::from_slice(&call.request.body).unwrap_or_default();
    let Some(url) = body["url"].as_str().filter(|url| url.len() <= URL_BYTES_MAX) else {
        let message = "Invalid URL";
        return Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, None);
    };
    let path = url.split('?').next().unwrap_or_default();
    let result = format!("{path}?sysparm_tiny={}", world.tiny_urls.shorten(url));
    Reply::json(StatusCode::OK, &json!({ "result": result }))
}

const URLS_MAX: usize = 1_000;
const URL_BYTES_MAX: usize = 256 * 1024;
