//! What the instance saw, counted. Every map has a bounded set of names: none is text chosen by a caller.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use serde::Serialize;

/// Counts since the start or the last reset.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Counters {
    /// All requests but those to `/__sim`.
    pub requests: u64,
    /// Requests by kind of route: `authorize`, `token`, `revoke`, `table`, `stats`, `attachment`, `import`,
    /// `batch`, `tinyurl`, `catalog`, `knowledge`, `jwks`, `other`.
    pub endpoints: BTreeMap<&'static str, EndpointCounters>,
    /// Token requests: grant type, then outcome: `issued`, `repeated` (same access token), or the refusal's reason.
    pub token: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Authorization requests by outcome.
    pub authorize: BTreeMap<&'static str, u64>,
    /// Revocation requests by outcome.
    pub revoke: BTreeMap<&'static str, u64>,
    /// Answers of the Table API, faults included: effective method, then status.
    pub table: BTreeMap<String, BTreeMap<u16, u64>>,
    /// API requests by how they authenticated: `bearer`, `query_token`, `api_key`, `basic`, `cookie`, `none`.
    pub authenticated_by: BTreeMap<&'static str, u64>,
    /// Requests with an `Authorization` header.
    pub authorization_headers: u64,
    /// Different `Authorization` values seen; counting stops at 10,000.
    pub distinct_authorizations: u64,
    /// `Set-Cookie` headers sent.
    pub set_cookie_sent: u64,
    /// Requests with a `Cookie` header.
    pub cookies_received: u64,
    /// Requests with `X-HTTP-Method-Override` or a sibling of it.
    pub override_headers: u64,
    /// Requests with `access_token` or `x-sn-apikey` in the query.
    pub query_credentials: u64,
    /// Requests with `x-sn-apikey` as a header.
    pub api_key_headers: u64,
    /// Requests with `X-UserToken` or `X-WantSessionDebugMessages`.
    pub session_headers: u64,
    /// Requests dropped with 202 because their session's queue was full.
    pub session_overflows: u64,
    /// Requests refused with 429 because the node's queue was full.
    pub node_overflows: u64,
    /// Requests refused with 429 by the rate rule.
    pub rate_limited: u64,
    /// Faults carried out, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Requests waiting at a `hold` fault now.
    pub held_now: u64,
    /// TCP connections accepted.
    pub connections: u64,
    /// TLS handshakes that succeeded, and how many of them resumed a session.
    pub tls_handshakes: u64,
    pub tls_resumptions: u64,
    /// TLS handshakes that failed.
    pub tls_failures: u64,
    /// Requests over HTTP/2, control requests included.
    pub http2_requests: u64,
    /// What arrived and was not exactly one well-formed request; `GET /__sim/malformed` shows it.
    pub malformed_requests: u64,
    /// HTTP/1.1 requests that began before the one before them was answered.
    pub pipelined_requests: u64,
    /// Requests on a connection whose last answer was not one (faults such as `two_answers`).
    pub requests_after_raw: u64,
    /// Requests whose body broke off.
    pub cut_requests: u64,
    /// Requests whose client left before its answer was sent whole.
    pub left_early: u64,
    /// Requests carried out from the bodies of batches.
    pub batched_requests: u64,
    /// Under `echo_marker`: writes carried out whose marker had been on a write before. Counting stops at 4 million.
    pub repeated_writes: u64,
    #[serde(skip)]
    authorizations: HashSet<u64>,
    #[serde(skip)]
    hasher: RandomState,
}

/// Counts of one kind of route.
#[derive(Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounters {
    pub requests: u64,
    pub in_flight: u64,
    pub in_flight_max: u64,
}

impl Counters {
    /// Sets every count to zero, except those of what is going on now.
    pub(crate) fn reset(&mut self) {
        let held_now = self.held_now;
        let mut endpoints = std::mem::take(&mut self.endpoints);
        for counters in endpoints.values_mut() {
            counters.requests = 0;
            counters.in_flight_max = counters.in_flight;
        }
        *self = Self { endpoints, held_now, ..Self::default() };
    }

    /// Token requests of this grant type with this outcome.
    pub fn token_calls(&self, grant_type: &str, outcome: &str) -> u64 {
        self.token.get(grant_type).and_then(|outcomes| outcomes.get(outcome)).copied().unwrap_or_default()
    }

    /// Requests to this kind of route.
    pub fn requests_to(&self, endpoint: &str) -> u64 {
        self.endpoints.get(endpoint).map(|counters| counters.requests).unwrap_or_default()
    }

    pub(crate) fn arrived(&mut self, endpoint: &'static str) {
        self.requests += 1;
        let counters = self.endpoints.entry(endpoint).or_default();
        counters.requests += 1;
        counters.in_flight += 1;
        counters.in_flight_max = counters.in_flight_max.max(counters.in_flight);
    }

    pub(crate) fn left(&mut self, endpoint: &'static str) {
        let counters = self.endpoints.entry(endpoint).or_default();
        counters.in_flight = counters.in_flight.saturating_sub(1);
    }

    pub(crate) fn saw_headers(&mut self, headers: &http::HeaderMap, query: &str) {
        if let Some(value) = headers.get(http::header::AUTHORIZATION) {
            self.authorization_headers += 1;
            if self.authorizations.len() < DISTINCT_MAX {
                self.authorizations.insert(self.hasher.hash_one(value.as_bytes()));
                self.distinct_authorizations = u64::try_from(self.authorizations.len()).unwrap_or(u64::MAX);
            }
        }
        let has = |names: &[&str]| u64::from(names.iter().any(|name| headers.contains_key(*name)));
        self.cookies_received += has(&["cookie"]);
        self.override_headers += has(&["x-http-method-override", "x-http-method", "x-method-override"]);
        self.api_key_headers += has(&["x-sn-apikey"]);
        self.session_headers += has(&["x-usertoken", "x-wantsessiondebugmessages"]);
        let in_query = url::form_urlencoded::parse(query.as_bytes())
            .any(|(name, _)| name == "access_token" || name.eq_ignore_ascii_case("x-sn-apikey"));
        self.query_credentials += u64::from(in_query);
    }

    pub(crate) fn token_call(&mut self, grant_type: &'static str, outcome: &'static str) {
        *self.token.entry(grant_type).or_default().entry(outcome).or_default() += 1;
    }

    pub(crate) fn authorize(&mut self, outcome: &'static str) {
        *self.authorize.entry(outcome).or_default() += 1;
    }

    pub(crate) fn revocation(&mut self, outcome: &'static str) {
        *self.revoke.entry(outcome).or_default() += 1;
    }

    pub(crate) fn table_call(&mut self, method: &http::Method, status: http::StatusCode) {
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str());
        let method = if known { method.as_str() } else { "other" };
        *self.table.entry(method.to_owned()).or_default().entry(status.as_u16()).or_default() += 1;
    }

    pub(crate) fn authenticated(&mut self, how: &'static str) {
        *self.authenticated_by.entry(how).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }
}

const DISTINCT_MAX: usize = 10_000;
