//! `/__sim/…`.

use serde_json::{Value, json};

use crate::client::*;

#[tokio::test]
async fn behaviour_is_read_and_patched() {
    let sim = sim().await;
    let changed = control(&sim, "PUT", "behaviour", &json!({"access_token_lifetime_s": 5})).await;
    assert_eq!(changed.json()["access_token_lifetime_s"], 5);
    assert_eq!(changed.json()["refresh_token_lifetime_s"], 8_640_000);
    let wrong = control(&sim, "PUT", "behaviour", &json!({"no_such_switch": 5})).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.member("error").contains("no_such_switch"));
    assert_eq!(control(&sim, "GET", "behaviour", &Value::Null).await.json()["access_token_lifetime_s"], 5);
    let body = format!("grant_type=client_credentials&{CLIENT}");
    assert_eq!(token(&sim, &body).await.json()["expires_in"], 5);
}

#[tokio::test]
async fn the_log_shows_requests_byte_for_byte() {
    let sim = sim().await;
    let target = "/api/now/table/incident?sysparm_query=a%5Eb^c+d,e&x=%20";
    get(&sim, target, &[("X-Odd", "1"), ("X-Odd", "2")]).await;
    let requests = control(&sim, "GET", "last-requests?n=1", &Value::Null).await.json();
    let request = &requests[0];
    assert_eq!(request["target"], target);
    assert_eq!(request["status"], 401);
    let headers = request["headers"].as_array().unwrap();
    assert_eq!(headers.iter().filter(|header| header[0] == "x-odd").count(), 2);
    control(&sim, "PUT", "behaviour", &json!({"request_log_max": 3})).await;
    for _ in 0..5 {
        get(&sim, "/x", &[]).await;
    }
    assert_eq!(sim.state().last_requests().len(), 3);
}

#[tokio::test]
async fn counters_count_and_reset() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    get(&sim, "/api/now/table/incident?sysparm_limit=1", &[("Authorization", &header), ("Cookie", "a=b")])
        .await;
    let counters = control(&sim, "GET", "counters", &Value::Null).await.json();
    assert_eq!(counters["requests"], 2);
    assert_eq!(counters["endpoints"]["token"]["requests"], 1);
    assert_eq!(counters["token"]["client_credentials"]["issued"], 1);
    assert_eq!(counters["table"]["GET"]["200"], 1);
    assert_eq!(counters["set_cookie_sent"], 12);
    assert_eq!(counters["cookies_received"], 1);
    assert_eq!(counters["distinct_authorizations"], 1);
    control(&sim, "POST", "counters/reset", &Value::Null).await;
    assert_eq!(control(&sim, "GET", "counters", &Value::Null).await.json()["requests"], 0);
}

#[tokio::test]
async fn tokens_end_by_command() {
    let sim = sim().await;
    let (access, refresh_token) = consented(&sim).await;
    let header = format!("Bearer {access}");
    let auth = [("Authorization", header.as_str())];
    assert_eq!(control(&sim, "POST", "expire-tokens", &json!({})).await.json()["families"], 1);
    assert_eq!(get(&sim, "/api/now/table/incident?sysparm_limit=1", &auth).await.status, 401);
    assert_eq!(refresh(&sim, &refresh_token).await.status, 200);
    control(&sim, "POST", "revoke-user", &json!({"user": "abel.tuter"})).await;
    assert_eq!(refresh(&sim, &refresh_token).await.status, 401);
    let (_, refresh_token) = consented(&sim).await;
    control(&sim, "POST", "revoke-client", &json!({"client_id": "bearerd-demo"})).await;
    assert_eq!(refresh(&sim, &refresh_token).await.status, 401);
    assert_eq!(control(&sim, "GET", "tokens", &Value::Null).await.json()[0]["user_name"], "abel.tuter");
}

#[tokio::test]
async fn clients_users_and_clock() {
    let sim = sim().await;
    let client = json!({"client_id": "new", "client_secret": "s", "application_user": "new.user"});
    assert_eq!(control(&sim, "POST", "clients", &client).await.status, 200);
    let user = json!({"user_name": "new.user", "password": "p", "first_name": "New", "last_name": "User"});
    assert_eq!(control(&sim, "POST", "users", &user).await.status, 200);
    let answer = token(&sim, "grant_type=client_credentials&client_id=new&client_secret=s").await;
    let header = format!("Bearer {}", answer.member("access_token"));
    let me = "/api/now/table/sys_user?sysparm_query=sys_id=javascript:gs.getUserID()&sysparm_fields=name";
    let auth = [("Authorization", header.as_str())];
    assert_eq!(get(&sim, me, &auth).await.json(), json!({"result": [{"name": "New User"}]}));
    let before = control(&sim, "GET", "clock", &Value::Null).await.json()["now_ms"].as_u64().unwrap();
    control(&sim, "POST", "clock", &json!({"advance_s": 1_800})).await;
    let after = control(&sim, "GET", "clock", &Value::Null).await.json()["now_ms"].as_u64().unwrap();
    assert!(after >= before + 1_800_000);
    assert_eq!(get(&sim, me, &auth).await.status, 401);
    assert_eq!(control(&sim, "POST", "clients", &json!({})).await.status, 400);
    assert_eq!(control(&sim, "POST", "clients", &json!({"client_idd": 1})).await.status, 400);
    assert_eq!(control(&sim, "GET", "nonsense", &Value::Null).await.status, 404);
    assert_eq!(control(&sim, "GET", "", &Value::Null).await.json()["routes"].as_array().unwrap().len(), 23);
}

#[tokio::test]
async fn a_stopped_simulator_is_gone() {
    let sim = sim().await;
    let address = sim.local_addr();
    let idle = tokio::net::TcpStream::connect(address).await.unwrap();
    sim.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    drop(idle);
}
