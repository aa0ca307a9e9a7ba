//! `POST /oauth_token.do`: clients that can only speak OAuth.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::support::{Answer, Door, Instance, ok};

async fn ask(door: &Door, more: &str, form: &str) -> Answer {
    let mut caller = door.call().await;
    let length = form.len();
    caller
        .send(format!(
            "POST /oauth_token.do HTTP/1.1\r\nhost: b.example\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {length}\r\n{more}\r\n{form}"
        ))
        .await;
    caller.answer(false).await
}

#[tokio::test]
async fn a_caller_key_comes_back_as_an_access_token_that_works() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    instance.serve(|request| ok(request.header("authorization").unwrap(), ""));
    let key = door.key.expose().to_owned();
    let basic = format!("authorization: Basic {}\r\n", STANDARD.encode(format!("client:{key}")));
    for (more, form) in [
        ("", format!("grant_type=client_credentials&client_id=x&client_secret={key}")),
        (basic.as_str(), "grant_type=client_credentials".to_owned()),
        ("", format!("grant_type=password&client_id=x&client_secret=y&username=u&password={key}")),
        ("", format!("grant_type=refresh_token&refresh_token={key}")),
    ] {
        let answer = ask(&door, more, &form).await;
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (200, Some("no-store")),
            "{}",
            answer.text()
        );
        let response: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        assert_eq!(
            (&response["token_type"], &response["access_token"]),
            (&"Bearer".into(), &key.as_str().into())
        );
        assert!(response["expires_in"].as_u64().unwrap() > 0);
    }
    let mut caller = door.call().await;
    caller
        .send(format!(
            "GET /api/now/table/incident HTTP/1.1\r\nhost: b.example\r\nauthorization: Bearer {key}\r\n\r\n"
        ))
        .await;
    assert_eq!(caller.answer(false).await.text(), "Bearer token-of-hr");
}

#[tokio::test]
async fn a_wrong_key_is_refused_as_clients_expect() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    for (form, status, error, code) in [
        ("grant_type=client_credentials&client_secret=wrong", 401, "invalid_client", "caller_key_invalid"),
        ("grant_type=password&password=wrong", 400, "invalid_grant", "caller_key_invalid"),
        ("grant_type=password", 400, "invalid_request", "request_malformed"),
        ("grant_type=implicit", 400, "unsupported_grant_type", "request_malformed"),
    ] {
        let answer = ask(&door, "", form).await;
        let response: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        assert_eq!((answer.status, answer.code()), (status, code), "{form}");
        assert_eq!(response["error"], error);
    }
    let long = format!("grant_type=password&password={}", "x".repeat(9_000));
    assert_eq!(ask(&door, "", &long).await.code(), "body_too_large");
    assert_eq!(door.once("GET /oauth_token.do", "").await.header("allow"), Some("POST"));
    assert_eq!(instance.accepted(), 0);
}
