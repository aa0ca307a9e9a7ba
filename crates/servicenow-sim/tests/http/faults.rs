//! Scripted failures, seen from outside.

use serde_json::{Value, json};
use servicenow_sim::Sim;

use crate::client::*;

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2";

async fn add(sim: &Sim, rule: Value) {
    let answer = control(sim, "POST", "faults", &rule).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn dropped_before_has_no_effect_and_after_has() {
    for (kind, effect) in [("drop_before", 0), ("drop_after", 1)] {
        let sim = sim_with(json!({"rotation": true})).await;
        let (_, first) = consented(&sim).await;
        add(&sim, json!({"on": "token", "grant_type": "refresh_token", "times": 1, "fault": {"kind": kind}}))
            .await;
        let body = format!("grant_type=refresh_token&refresh_token={first}&{CLIENT}");
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let answer = send(sim.local_addr(), "POST", "/oauth_token.do", &headers, &body).await;
        assert!(answer.is_none(), "the connection is cut");
        assert_eq!(
            sim.state().counters().token_calls("refresh_token", "issued")
                + sim.state().counters().token_calls("refresh_token", "repeated"),
            effect,
            "{kind}"
        );
        let expected = if effect == 0 { 200 } else { 401 };
        assert_eq!(refresh(&sim, &first).await.status, expected, "{kind}");
    }
}

#[tokio::test]
async fn each_fault_shows_as_documented() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let auth = [("Authorization", header.as_str()), ("Accept", "application/json")];
    for (fault, status, sign) in [
        (json!({"kind": "status", "status": 503, "body": "{\"a\":1}"}), 503, "{\"a\":1}"),
        (json!({"kind": "html"}), 200, "<!DOCTYPE html>"),
        (json!({"kind": "asleep"}), 200, "Instance Hibernating page"),
        (json!({"kind": "accepted_202"}), 202, ""),
        (json!({"kind": "unauthorized_401"}), 401, "User Not Authenticated"),
        (json!({"kind": "rate_limit_429", "retry_after_s": 7}), 429, "Rate limit exceeded"),
        (json!({"kind": "queue_full_429"}), 429, ""),
        (json!({"kind": "cancelled_500"}), 500, "maximum execution time exceeded"),
        (json!({"kind": "broken_json"}), 200, "\"status\":\"failure\"}"),
        (json!({"kind": "slow_drip", "chunk_bytes": 400, "interval_ms": 1}), 200, "\"result\""),
        (json!({"kind": "delay_ms", "ms": 1}), 200, "\"result\""),
    ] {
        add(&sim, json!({"on": "table", "times": 1, "fault": fault})).await;
        let answer = get(&sim, INCIDENTS, &auth).await;
        assert_eq!(answer.status, status, "{fault}");
        assert!(answer.text().contains(sign), "{fault}: {}", answer.text());
        assert!(answer.complete, "{fault}");
        assert_eq!(answer.all("set-cookie").len(), 6, "{fault}");
        assert_eq!(get(&sim, INCIDENTS, &auth).await.status, 200, "after {fault}");
    }
    let counters = sim.state().counters();
    assert_eq!(counters.faults.len(), 11);
    assert_eq!(counters.table["GET"][&429], 2);
}

#[tokio::test]
async fn a_cut_body_is_not_complete() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    add(&sim, json!({"on": "table", "fault": {"kind": "cut_body", "after_bytes": 10}})).await;
    let answer = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 10, false));
}

#[tokio::test]
async fn a_cancelled_insert_has_happened() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    add(&sim, json!({"method": "POST", "on": "table", "times": 1, "fault": {"kind": "cancelled_500"}})).await;
    let headers = [
        ("Authorization", header.as_str()),
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
    ];
    let body = r#"{"short_description":"only once"}"#;
    let answer = send(sim.local_addr(), "POST", "/api/now/table/incident", &headers, body).await.unwrap();
    assert_eq!(answer.status, 500);
    let found = get(&sim, "/api/now/table/incident?short_description=only%20once", &headers).await;
    assert_eq!(found.header("x-total-count"), Some("1"), "fact 9");
}

#[tokio::test]
async fn a_held_refresh_takes_effect_though_its_client_left() {
    let sim = sim_with(json!({"rotation": true})).await;
    let (_, first) = consented(&sim).await;
    add(&sim, json!({"on": "token", "times": 1, "fault": {"kind": "hold", "gate": "g"}})).await;
    let call = tokio::spawn({
        let address = sim.local_addr();
        let body = format!("grant_type=refresh_token&refresh_token={first}&{CLIENT}");
        async move {
            let headers = [("Content-Type", "application/x-www-form-urlencoded")];
            send(address, "POST", "/oauth_token.do", &headers, &body).await
        }
    });
    sim.state().wait_for(|counters| counters.held_now == 1).await;
    call.abort();
    assert!(call.await.is_err());
    assert_eq!(control(&sim, "POST", "release", &json!({"gate": "other"})).await.json()["released"], 0);
    assert_eq!(control(&sim, "POST", "release", &json!({"gate": "g"})).await.json()["released"], 1);
    sim.state().wait_for(|counters| counters.token_calls("refresh_token", "repeated") == 1).await;
    assert_eq!(refresh(&sim, &first).await.status, 401, "rotated");
}

#[tokio::test]
async fn asleep_is_every_route() {
    let sim = sim_with(json!({"asleep": true})).await;
    for target in [INCIDENTS, "/oauth_auth.do", "/oauth_revoke_token.do?token=x", "/anything"] {
        let answer = get(&sim, target, &[]).await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("Instance Hibernating page"), "{target}");
    }
    assert!(token(&sim, "grant_type=refresh_token").await.text().contains("Hibernating"));
    control(&sim, "PUT", "behaviour", &json!({"asleep": false})).await;
    assert_eq!(get(&sim, INCIDENTS, &[]).await.status, 401);
}
