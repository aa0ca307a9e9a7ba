//! The rest of the REST surface: the dangerous ways in, sessions, limits, attachments.

use std::time::Duration;

use serde_json::json;
use servicenow_sim::{Fault, FaultOn, FaultRule, Sim, UserSettings};
use tokio::task::JoinHandle;

use crate::client::*;

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=1";

fn session_cookie(answer: &Answer) -> String {
    let cookie =
        answer.all("set-cookie").into_iter().find(|cookie| cookie.starts_with("JSESSIONID=")).unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_cookie_outlives_its_token() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let cookie = session_cookie(&get(&sim, INCIDENTS, &[("Authorization", &header)]).await);
    sim.state().revoke_user("svc.integration", false);
    let stale = [("Authorization", header.as_str()), ("Cookie", cookie.as_str())];
    assert_eq!(get(&sim, INCIDENTS, &stale[..1]).await.status, 401);
    assert_eq!(get(&sim, INCIDENTS, &stale).await.status, 200, "fact 6");
    assert_eq!(get(&sim, INCIDENTS, &stale[1..]).await.status, 200, "fact 6");
    assert_eq!(sim.state().counters().cookies_received, 2);
    sim.state().patch_behaviour(&json!({"cookie_auth_after_expiry": false})).unwrap();
    assert_eq!(get(&sim, INCIDENTS, &stale).await.status, 401);
}

#[tokio::test]
async fn the_query_and_a_native_key_authenticate() {
    let sim = sim().await;
    let admin = UserSettings { api_key: Some("now_key".to_owned()), ..UserSettings::demo().remove(0) };
    assert!(sim.state().put_user(admin));
    let access = bearer(&sim).await.replace("Bearer ", "");
    let by_token = format!("{INCIDENTS}&access_token={access}");
    let by_key = format!("{INCIDENTS}&x-sn-apikey=now_key");
    assert_eq!(get(&sim, &by_token, &[]).await.status, 200);
    assert_eq!(get(&sim, &by_key, &[]).await.status, 200);
    assert_eq!(get(&sim, INCIDENTS, &[("x-sn-apikey", "now_key")]).await.status, 200);
    assert_eq!(get(&sim, INCIDENTS, &[("Authorization", "Basic YWRtaW46YWRtaW4=")]).await.status, 200);
    sim.state().patch_behaviour(&json!({"query_credentials": false})).unwrap();
    assert_eq!(get(&sim, &by_token, &[]).await.status, 401);
    assert_eq!(sim.state().counters().query_credentials, 3);
}

#[tokio::test]
async fn the_override_header_changes_the_verb() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let found = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    let id = found.json()["result"][0]["sys_id"].as_str().unwrap().to_owned();
    let target = format!("/api/now/table/incident/{id}");
    let headers = [("Authorization", header.as_str()), ("X-HTTP-Method-Override", "DELETE")];
    assert_eq!(get(&sim, &target, &headers).await.status, 204, "a GET that deletes: fact 7");
    assert_eq!(get(&sim, &target, &headers[..1]).await.status, 404);
    assert_eq!(sim.state().counters().override_headers, 1);
    sim.state().patch_behaviour(&json!({"method_override": false})).unwrap();
    assert_eq!(get(&sim, INCIDENTS, &headers).await.status, 200);
}

/// Starts this many calls that share their headers.
fn calls(sim: &Sim, count: usize, headers: &[(&'static str, String)]) -> Vec<JoinHandle<u16>> {
    let (address, headers) = (sim.local_addr(), headers.to_vec());
    let call = move |_| {
        let headers = headers.clone();
        tokio::spawn(async move {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            send(address, "GET", INCIDENTS, &headers, "").await.unwrap().status
        })
    };
    (0..count).map(call).collect()
}

async fn statuses(calls: Vec<JoinHandle<u16>>) -> Vec<u16> {
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap());
    }
    statuses.sort_unstable();
    statuses
}

fn hold_first(sim: &Sim, times: u64) {
    let hold = Fault::Hold { gate: String::new(), after_effect: false };
    sim.state().add_fault(FaultRule { times: Some(times), ..FaultRule::new(FaultOn::Table, hold) });
}

#[tokio::test]
async fn one_session_runs_two_queues_ten_and_drops_the_rest() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let cookie = session_cookie(&get(&sim, INCIDENTS, &[("Authorization", &header)]).await);
    hold_first(&sim, 2);
    let first = calls(&sim, 2, &[("Cookie", cookie.clone())]);
    sim.state().wait_for(|counters| counters.held_now == 2).await;
    let more = calls(&sim, 11, &[("Cookie", cookie)]);
    sim.state().wait_for(|counters| counters.session_overflows == 1).await;
    let free = calls(&sim, 1, &[("Authorization", header)]);
    assert_eq!(statuses(free).await, [200], "without the cookie nothing waits");
    assert_eq!(sim.state().release(None), 2);
    assert_eq!(statuses(first).await, [200; 2]);
    assert_eq!(statuses(more).await, [vec![200; 10], vec![202]].concat(), "fact 5");
}

#[tokio::test]
async fn a_full_node_answers_429_without_a_header() {
    let sim = sim_with(json!({"node_concurrency": 1, "node_queue": 0})).await;
    let header = bearer(&sim).await;
    hold_first(&sim, 1);
    let first = calls(&sim, 1, &[("Authorization", header.clone())]);
    sim.state().wait_for(|counters| counters.held_now == 1).await;
    let refused = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, None), "fact 10");
    sim.state().release(None);
    assert_eq!(statuses(first).await, [200]);
}

#[tokio::test]
async fn the_rate_rule_counts_by_user() {
    let sim = sim_with(json!({"rate_limit_per_hour": 2})).await;
    let header = bearer(&sim).await;
    let auth = [("Authorization", header.as_str())];
    for status in [200, 200, 429] {
        let answer = get(&sim, INCIDENTS, &auth).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("2"));
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
    sim.state().advance_clock(Duration::from_hours(1));
    assert_eq!(get(&sim, INCIDENTS, &auth).await.status, 401, "the access token is over, too");
}

#[tokio::test]
async fn stats_count_and_group() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let auth = [("Authorization", header.as_str())];
    let all = get(&sim, "/api/now/stats/incident?sysparm_count=true", &auth).await;
    assert_eq!(all.json()["result"]["stats"]["count"], "80");
    let grouped = get(&sim, "/api/now/stats/incident?sysparm_count=true&sysparm_group_by=state", &auth).await;
    assert!(grouped.json()["result"].as_array().unwrap().len() > 3);
}

#[tokio::test]
async fn attachments_go_up_and_come_down() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let found = get(&sim, INCIDENTS, &[("Authorization", &header)]).await;
    let id = found.json()["result"][0]["sys_id"].as_str().unwrap().to_owned();
    let target = format!("/api/now/attachment/file?table_name=incident&table_sys_id={id}&file_name=a.txt");
    let headers = [("Authorization", header.as_str()), ("Content-Type", "text/plain"), ("Accept", "*/*")];
    let stored = send(sim.local_addr(), "POST", &target, &headers, "hello").await.unwrap();
    assert_eq!(stored.status, 201);
    let attachment = stored.json()["result"]["sys_id"].as_str().unwrap().to_owned();
    let query = format!("/api/now/v1/attachment?sysparm_query=table_sys_id={id}");
    let listed = get(&sim, &query, &headers).await;
    assert_eq!(listed.json()["result"].as_array().unwrap().len(), 1);
    let file = get(&sim, &format!("/api/now/attachment/{attachment}/file"), &headers).await;
    assert_eq!((file.text(), file.header("content-type")), ("hello", Some("text/plain")));
    let path = format!("/api/now/attachment/{attachment}");
    assert_eq!(send(sim.local_addr(), "DELETE", &path, &headers, "").await.unwrap().status, 204);
    assert_eq!(get(&sim, &path, &headers).await.status, 404);
}

#[tokio::test]
async fn hostile_input_is_answered_or_cut_never_a_panic() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let auth = [("Authorization", header.as_str()), ("Accept", "*/*"), ("Content-Type", "application/json")];
    let deep = format!("/api/now/table/incident?sysparm_query={}", "a.".repeat(5_000));
    for target in [
        deep.as_str(),
        "/api/now/table/%ff/%00",
        "/api/now/table//",
        "/api/now/table/incident?sysparm_limit=-1&sysparm_offset=99999999999999999999",
        "/api/now/table/incident?sysparm_limit=18446744073709551615&sysparm_offset=18446744073709551615",
        "/api/now/table/incident?sysparm_limit=0",
        "/api/now/table/incident?sysparm_fields=,,.,a.b.c.d.e,%00",
        "/api/now/batch",
        "/api/now/tinyurl",
        "/api/now/import/imp_user/insertMultiple",
        "/api/now/import",
        "/api/sn_sc/servicecatalog/items/x/order_now",
        "/api/sn_km_api/knowledge/articles?limit=-1&offset=99999999999999999999&filter=^^OR",
        "/api/now/stats/incident?sysparm_group_by=,,&sysparm_having=^^^,a^b^c^d&sysparm_sum_fields=a.b.c.d.e",
        "/api",
        "/",
        "//",
    ] {
        for method in ["GET", "POST", "BREW"] {
            assert!(
                send(sim.local_addr(), method, target, &auth, "[[[").await.is_some(),
                "{method} {target}"
            );
        }
    }
    let huge = "x".repeat(10 * 1024 * 1024 + 1);
    let answer = send(sim.local_addr(), "POST", "/api/now/table/incident", &auth, &huge).await;
    assert!(answer.is_none_or(|answer| answer.status == 413));
    assert_eq!(get(&sim, INCIDENTS, &auth).await.status, 200, "still there");
}
