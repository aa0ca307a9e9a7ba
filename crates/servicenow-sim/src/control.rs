//! `/__sim/…`: the control endpoint, a JSON shell over [`SimState`].

use std::time::Duration;

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::faults::FaultRule;
use crate::message::{Reply, SimRequest};
use crate::settings::{ClientSettings, UserSettings};
use crate::state::SimState;
use crate::tokens::TokenSelection;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeUser {
    user: String,
    #[serde(default)]
    deactivate: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeClient {
    client_id: String,
    #[serde(default)]
    deactivate: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_s: u64,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Release {
    gate: Option<String>,
}

/// A refusal, told as `{"error": …}`.
struct Refused(StatusCode, String);

/// Answers a control request.
pub(crate) fn answer(state: &SimState, request: &SimRequest) -> Reply {
    let rest = request.path.strip_prefix(PREFIX).unwrap_or_default().trim_matches('/');
    match act(state, request, rest) {
        Ok(body) => Reply::json(StatusCode::OK, &body),
        Err(Refused(status, error)) => Reply::json(status, &json!({ "error": error })),
    }
}

fn act(state: &SimState, request: &SimRequest, rest: &str) -> Result<Value, Refused> {
    match (request.method.as_str(), rest) {
        ("GET", "") => Ok(json!({ "routes": ROUTES })),
        ("GET", "counters") => shown(&state.counters()),
        ("POST", "counters/reset") => {
            state.reset_counters();
            Ok(json!({}))
        }
        ("GET", "behaviour") => shown(&state.behaviour()),
        ("PUT" | "PATCH", "behaviour") => {
            let changed = state.patch_behaviour(&read(request)?);
            shown(&changed.map_err(|error| Refused(StatusCode::BAD_REQUEST, error))?)
        }
        ("GET", "faults") => shown(&state.faults()),
        ("POST", "faults") => add_fault(state, read(request)?),
        ("DELETE", "faults") => {
            state.clear_faults();
            Ok(json!({}))
        }
        ("DELETE", _) if rest.starts_with("faults/") => remove_fault(state, &rest["faults/".len()..]),
        ("POST", "release") => {
            let release: Release = read_or_default(request)?;
            Ok(json!({"released": state.release(release.gate.as_deref())}))
        }
        ("GET", "last-requests") => last_requests(state, request),
        ("GET", "malformed") => shown(&state.malformed_requests()),
        ("DELETE", "last-requests") => {
            state.clear_last_requests();
            Ok(json!({}))
        }
        _ => act_on_records(state, request, rest),
    }
}

fn act_on_records(state: &SimState, request: &SimRequest, rest: &str) -> Result<Value, Refused> {
    match (request.method.as_str(), rest) {
        ("GET", "tokens") => shown(&state.tokens()),
        ("GET", "ledger") => shown(&state.ledger()),
        ("DELETE", "ledger") => {
            state.reset_ledger();
            Ok(json!({}))
        }
        ("POST", "expire-tokens") => {
            let selection: TokenSelection = read_or_default(request)?;
            Ok(json!({"families": state.expire_tokens(&selection)}))
        }
        ("POST", "revoke-user") => {
            let named: RevokeUser = read(request)?;
            Ok(json!({"families": state.revoke_user(&named.user, named.deactivate)}))
        }
        ("POST", "revoke-client") => {
            let named: RevokeClient = read(request)?;
            Ok(json!({"families": state.revoke_client(&named.client_id, named.deactivate)}))
        }
        ("GET", "clients") => shown(&state.clients()),
        ("POST", "clients") => {
            let client: ClientSettings = read(request)?;
            accepted(state.put_client(client), "client_id is empty, or there are too many clients")
        }
        ("POST", "users") => {
            let user: UserSettings = read(request)?;
            accepted(state.put_user(user), "user_name is empty, or there are too many users")
        }
        ("GET", "clock") => Ok(json!({"now_ms": state.now()})),
        ("POST", "clock") => {
            let advance: Advance = read(request)?;
            Ok(json!({"now_ms": state.advance_clock(Duration::from_secs(advance.advance_s))}))
        }
        _ => {
            let error =
                format!("no control route {} {PREFIX}/{rest}; GET {PREFIX} lists them", request.method);
            Err(Refused(StatusCode::NOT_FOUND, error))
        }
    }
}

fn add_fault(state: &SimState, rule: FaultRule) -> Result<Value, Refused> {
    if rule.probability.is_some_and(|probability| !(0.0..=1.0).contains(&probability)) {
        return Err(Refused(StatusCode::BAD_REQUEST, "probability is between 0 and 1".to_owned()));
    }
    let id = state.add_fault(rule);
    let id = id.ok_or_else(|| Refused(StatusCode::CONFLICT, "too many rules are in force".to_owned()))?;
    Ok(json!({ "id": id }))
}

fn remove_fault(state: &SimState, id: &str) -> Result<Value, Refused> {
    if id.parse().is_ok_and(|id| state.remove_fault(id)) {
        return Ok(json!({}));
    }
    Err(Refused(StatusCode::NOT_FOUND, format!("no fault {id}")))
}

/// `?n=` limits to the latest ones.
fn last_requests(state: &SimState, request: &SimRequest) -> Result<Value, Refused> {
    let records = state.last_requests();
    let wanted = request.query_value("n").and_then(|n| n.parse().ok()).unwrap_or(records.len());
    shown(&records.get(records.len().saturating_sub(wanted)..).unwrap_or_default())
}

fn accepted(good: bool, problem: &str) -> Result<Value, Refused> {
    if good { Ok(json!({})) } else { Err(Refused(StatusCode::BAD_REQUEST, problem.to_owned())) }
}

fn shown(value: &impl Serialize) -> Result<Value, Refused> {
    serde_json::to_value(value).map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn read<T: DeserializeOwned>(request: &SimRequest) -> Result<T, Refused> {
    serde_json::from_slice(&request.body).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))
}

fn read_or_default<T: DeserializeOwned + Default>(request: &SimRequest) -> Result<T, Refused> {
    if request.body.is_empty() { Ok(T::default()) } else { read(request) }
}

/// Whether a path belongs to the control endpoint.
pub(crate) fn owns(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

const PREFIX: &str = "/__sim";
const ROUTES: [&str; 23] = [
    "GET /__sim/counters",
    "POST /__sim/counters/reset",
    "GET /__sim/behaviour",
    "PUT /__sim/behaviour",
    "GET /__sim/faults",
    "POST /__sim/faults",
    "DELETE /__sim/faults",
    "DELETE /__sim/faults/{id}",
    "POST /__sim/release",
    "GET /__sim/last-requests?n=",
    "DELETE /__sim/last-requests",
    "GET /__sim/malformed",
    "GET /__sim/tokens",
    "GET /__sim/ledger",
    "DELETE /__sim/ledger",
    "POST /__sim/expire-tokens",
    "POST /__sim/revoke-user",
    "POST /__sim/revoke-client",
    "GET /__sim/clients",
    "POST /__sim/clients",
    "POST /__sim/users",
    "GET /__sim/clock",
    "POST /__sim/clock",
];
