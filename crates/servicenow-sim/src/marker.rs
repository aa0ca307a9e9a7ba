//! Answers that say whose they are: what a test of a proxy needs to see that no two callers were mixed up.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use http::header::HeaderName;

use crate::message::{Reply, SimRequest};

/// The marker of a request: its `X-Sim-Marker`, or its `sysparm_sim_marker`.
pub(crate) fn of(request: &SimRequest) -> Option<String> {
    let in_query = || request.query_value("sysparm_sim_marker");
    request.header("x-sim-marker").map(str::to_owned).or_else(in_query)
}

/// The markers of the writes that were carried out.
#[derive(Debug, Default)]
pub(crate) struct WrittenMarkers {
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl WrittenMarkers {
    /// `false` if a write with this marker was carried out before.
    pub(crate) fn add(&mut self, marker: &str) -> bool {
        self.hashes.len() >= MARKERS_MAX || self.hashes.insert(self.hasher.hash_one(marker))
    }
}

/// Marks an answer with the request's marker and the user that its credentials belong to. With `body_bytes` the body
/// of a good answer is exactly so long and made of the two, but not shorter than they are.
pub(crate) fn mark(request: &SimRequest, user: Option<&str>, body_bytes: usize, mut reply: Reply) -> Reply {
    let marker = of(request).unwrap_or_default();
    let user = user.unwrap_or_default();
    if body_bytes > 0 && reply.status.is_success() && !reply.body.is_empty() {
        reply.body = body(&marker, user, body_bytes.min(BODY_BYTES_MAX));
    }
    reply
        .with(HeaderName::from_static("x-sim-marker"), &marker)
        .with(HeaderName::from_static("x-sim-user"), user)
}

/// A JSON object of this length: `{"result":{"marker":…,"user":…,"filler":"…"}}`; the filler repeats the marker.
fn body(marker: &str, user: &str, bytes: usize) -> Bytes {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let start =
        format!("{{\"result\":{{\"marker\":{},\"user\":{},\"filler\":\"", quoted(marker), quoted(user));
    let end = "\"}}";
    let plain: Vec<u8> = marker.bytes().filter(u8::is_ascii_alphanumeric).chain([b'.']).collect();
    let filler_bytes = bytes.saturating_sub(start.len() + end.len());
    let mut body = start.into_bytes();
    body.extend(plain.iter().cycle().take(filler_bytes));
    body.extend_from_slice(end.as_bytes());
    body.into()
}

const MARKERS_MAX: usize = 4_000_000;
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_length_and_stay_json() {
        for (marker, bytes) in [("a-1", 200), ("\"quoted\" é", 200), ("", 100), ("x", 4_096)] {
            let body = body(marker, "abel", bytes);
            assert_eq!(body.len(), bytes, "{marker}");
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(value["result"]["marker"], marker);
            assert_eq!(value["result"]["user"], "abel");
        }
        assert!(serde_json::from_slice::<serde_json::Value>(&body("m", "u", 1)).is_ok());
    }
}
