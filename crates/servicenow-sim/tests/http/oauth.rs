//! Consent, the grants, revocation.

use std::time::Duration;

use serde_json::json;
use servicenow_sim::ClientSettings;

use crate::client::*;

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGED: &str =
    "&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256";
const FLATTENED: &str = r#"{"error_description":"access_denied","error":"server_error"}"#;

#[tokio::test]
async fn a_person_allows_or_denies() {
    let sim = sim().await;
    let request = format!("response_type=code&client_id=bearerd-demo&redirect_uri={REDIRECT_URI}&state=a-b");
    let page = get(&sim, &format!("/oauth_auth.do?{request}"), &[]).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("name=\"user_password\"") && !page.text().contains("<script"));
    assert!(!page.header("content-security-policy").unwrap().contains("form-action"));
    for (decision, expected) in [
        ("decision=deny", "?error=access_denied&state=a-b"),
        ("decision=allow&user_name=abel.tuter&user_password=demo", "?code="),
    ] {
        let answer = form(&sim, "/oauth_auth.do", &format!("{request}&{decision}")).await;
        assert_eq!(answer.status, 302);
        let location = answer.header("location").unwrap();
        assert!(location.starts_with(&format!("{REDIRECT_URI}{expected}")), "{location}");
        assert!(location.ends_with("state=a-b"));
    }
    let wrong = format!("{request}&decision=allow&user_name=abel.tuter&user_password=no");
    let again = form(&sim, "/oauth_auth.do", &wrong).await;
    assert_eq!(again.status, 200);
    assert!(again.text().contains("User name or password invalid"));
    sim.state().patch_behaviour(&json!({"deny_returns": "bare"})).unwrap();
    let bare = form(&sim, "/oauth_auth.do", &format!("{request}&decision=deny")).await;
    assert_eq!(bare.header("location"), Some(REDIRECT_URI));
}

#[tokio::test]
async fn wrong_authorization_requests_are_answered_as_servicenow_does() {
    let sim = sim_with(json!({"auto_approve": "abel.tuter"})).await;
    let missing = get(&sim, "/oauth_auth.do?response_type=code&client_id=bearerd-demo", &[]).await;
    assert!(missing.text().contains("Missing State parameter in request"));
    let unknown = get(&sim, "/oauth_auth.do?response_type=code&client_id=nobody&state=a", &[]).await;
    assert_eq!((unknown.status, unknown.header("location")), (400, None));
    let unmatched =
        "/oauth_auth.do?response_type=code&client_id=bearerd-demo&state=a&redirect_uri=http://evil/";
    let answer = get(&sim, unmatched, &[]).await;
    assert!(answer.header("location").unwrap().starts_with(&format!("{REDIRECT_URI}?code=")), "fact 12");
}

#[tokio::test]
async fn a_code_becomes_tokens_once() {
    let sim = sim().await;
    let code = code(&sim, CHALLENGED).await;
    let exchange = format!(
        "grant_type=authorization_code&code={code}&redirect_uri={REDIRECT_URI}&code_verifier={VERIFIER}&{CLIENT}"
    );
    let answer = token(&sim, &exchange).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.member("access_token").len(), 86);
    assert_eq!(answer.member("scope"), "useraccount");
    assert_eq!(answer.json()["expires_in"], 1_800);
    let again = token(&sim, &exchange).await;
    assert_eq!((again.status, again.text()), (401, FLATTENED));
    assert_eq!(sim.state().counters().token_calls("authorization_code", "issued"), 1);
    assert_eq!(sim.state().counters().token_calls("authorization_code", "code_unknown"), 1);
}

#[tokio::test]
async fn codes_live_a_minute() {
    let sim = sim().await;
    let code = code(&sim, "").await;
    sim.state().advance_clock(Duration::from_mins(1));
    let body = format!("grant_type=authorization_code&code={code}&redirect_uri={REDIRECT_URI}&{CLIENT}");
    assert_eq!(token(&sim, &body).await.status, 401);
    assert_eq!(sim.state().counters().token_calls("authorization_code", "code_expired"), 1);
}

#[tokio::test]
async fn refusals_look_alike_unless_told() {
    let sim = sim().await;
    let wrong = [
        ("grant_type=client_credentials&client_id=bearerd-demo&client_secret=no", "invalid_client"),
        ("grant_type=client_credentials&client_id=nobody&client_secret=x", "invalid_client"),
        (&format!("grant_type=refresh_token&refresh_token=x&{CLIENT}"), "invalid_grant"),
        (&format!("grant_type=refresh_token+&refresh_token=x&{CLIENT}"), "unsupported_grant_type"),
        (&format!("grant_type=password&username=admin&password=no&{CLIENT}"), "invalid_grant"),
        (&format!("grant_type=password&grant_type=password&{CLIENT}"), "invalid_request"),
        (CLIENT, "invalid_request"),
        ("", "invalid_request"),
    ];
    for (body, _) in wrong {
        let answer = token(&sim, body).await;
        assert_eq!((answer.status, answer.text()), (401, FLATTENED), "{body}");
    }
    sim.state().patch_behaviour(&json!({"error_shape": "rfc6749"})).unwrap();
    for (body, error) in wrong {
        let answer = token(&sim, body).await;
        let status = if error == "invalid_client" { 401 } else { 400 };
        assert_eq!((answer.status, answer.member("error").as_str()), (status, error), "{body}");
    }
}

#[tokio::test]
async fn client_authentication_in_body_or_basic() {
    let sim = sim().await;
    let basic = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Authorization", "Basic YmVhcmVyZC1kZW1vOmRlbW8tc2VjcmV0"),
    ];
    let grant = "grant_type=client_credentials";
    let answer = send(sim.local_addr(), "POST", "/oauth_token.do", &basic, grant).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.json().get("refresh_token").is_none());
    sim.state().patch_behaviour(&json!({"refuse_basic_client_auth": true})).unwrap();
    let answer = send(sim.local_addr(), "POST", "/oauth_token.do", &basic, grant).await.unwrap();
    assert_eq!(answer.status, 401);
    let target = format!("/oauth_token.do?{grant}&{CLIENT}");
    assert_eq!(form(&sim, &target, "").await.status, 401, "query parameters are ignored");
    let json_body = [("Content-Type", "application/json")];
    let answer = send(sim.local_addr(), "POST", "/oauth_token.do", &json_body, "{}").await.unwrap();
    assert_eq!(answer.member("error_description"), "an unspecified error");
    assert_eq!(get(&sim, &target, &[]).await.status, 405);
}

#[tokio::test]
async fn client_credentials_need_an_application_user() {
    let sim = sim().await;
    let client = ClientSettings { application_user: None, ..ClientSettings::demo() };
    assert!(sim.state().put_client(client));
    let body = format!("grant_type=client_credentials&{CLIENT}");
    assert_eq!(token(&sim, &body).await.status, 401);
    assert!(sim.state().put_client(ClientSettings::demo()));
    assert_eq!(token(&sim, &body).await.status, 200);
    sim.state().revoke_user("svc.integration", true);
    assert_eq!(token(&sim, &body).await.status, 401, "the user is inactive");
}

#[tokio::test]
async fn a_public_client_must_use_pkce() {
    let sim = sim_with(json!({"auto_approve": "abel.tuter"})).await;
    let public = ClientSettings {
        client_id: "public".to_owned(),
        redirect_uris: vec![REDIRECT_URI.to_owned()],
        ..ClientSettings::default()
    };
    assert!(sim.state().put_client(public));
    let request =
        format!("/oauth_auth.do?response_type=code&client_id=public&state=a&redirect_uri={REDIRECT_URI}");
    let refused = get(&sim, &request, &[]).await;
    assert!(refused.header("location").unwrap().contains("error=invalid_request"));
    let allowed = get(&sim, &format!("{request}{CHALLENGED}"), &[]).await;
    let location = allowed.header("location").unwrap();
    let code = location.split(['?', '&']).find_map(|part| part.strip_prefix("code=")).unwrap();
    let body = format!(
        "grant_type=authorization_code&client_id=public&code={code}&redirect_uri={REDIRECT_URI}&code_verifier={VERIFIER}"
    );
    assert_eq!(token(&sim, &body).await.status, 200);
}

#[tokio::test]
async fn the_hundred_days_run_from_consent() {
    let sim = sim().await;
    let (access, refresh_token) = consented(&sim).await;
    sim.state().advance_clock(Duration::from_secs(1_700));
    let same = refresh(&sim, &refresh_token).await;
    assert_eq!(same.member("access_token"), access);
    assert_eq!(same.member("refresh_token"), refresh_token);
    assert!(same.json()["expires_in"].as_u64().unwrap() <= 100);
    sim.state().advance_clock(Duration::from_hours(24 * 99));
    assert_eq!(refresh(&sim, &refresh_token).await.status, 200);
    sim.state().advance_clock(Duration::from_hours(24));
    assert_eq!(refresh(&sim, &refresh_token).await.status, 401);
    assert_eq!(sim.state().counters().token_calls("refresh_token", "expired"), 1);
    assert_eq!(sim.state().counters().token_calls("refresh_token", "repeated"), 1);
}

#[tokio::test]
async fn rotation_over_http() {
    let sim = sim_with(json!({"rotation": true, "rotation_previous_ok": true})).await;
    let (_, first) = consented(&sim).await;
    let second = refresh(&sim, &first).await.member("refresh_token");
    assert_ne!(first, second);
    assert_eq!(refresh(&sim, &first).await.member("refresh_token"), second, "a lost answer is told again");
    sim.state().patch_behaviour(&json!({"rotation_previous_ok": false})).unwrap();
    assert_eq!(refresh(&sim, &first).await.status, 401);
    assert_eq!(refresh(&sim, &second).await.status, 401, "reuse revoked the family");
}

#[tokio::test]
async fn anyone_may_revoke() {
    let sim = sim().await;
    let (access, refresh_token) = consented(&sim).await;
    let header = format!("Bearer {access}");
    let call = [("Authorization", header.as_str())];
    assert_eq!(get(&sim, "/api/now/table/incident?sysparm_limit=1", &call).await.status, 200);
    assert_eq!(get(&sim, &format!("/oauth_revoke_token.do?token={access}"), &[]).await.status, 200);
    assert_eq!(get(&sim, "/api/now/table/incident?sysparm_limit=1", &call).await.status, 401);
    assert_eq!(refresh(&sim, &refresh_token).await.status, 200);
    assert_eq!(
        form(&sim, "/oauth_revoke_token.do", &format!("token={refresh_token}&{CLIENT}")).await.status,
        200
    );
    assert_eq!(refresh(&sim, &refresh_token).await.status, 401);
}

#[tokio::test]
async fn tokens_can_look_like_jwts() {
    let sim = sim_with(json!({"token_format": "jwt"})).await;
    let header = bearer(&sim).await;
    assert!(header.len() > 1_000 && header.matches('.').count() == 2);
    let answer = get(&sim, "/api/now/table/incident?sysparm_limit=1", &[("Authorization", &header)]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(get(&sim, "/api/now/oauth/jwks", &[]).await.json()["keys"][0]["kty"], "EC");
}

#[tokio::test]
async fn an_assertion_is_good_once() {
    use aws_lc_rs::hmac;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use servicenow_sim::JwtVerifier;

    let sim = sim().await;
    let key = "0123456789abcdef0123456789abcdef";
    let verifier = JwtVerifier { kid: None, algorithm: "HS256".to_owned(), key: key.to_owned() };
    assert!(
        sim.state().put_client(ClientSettings { jwt_verifiers: vec![verifier], ..ClientSettings::demo() })
    );
    let now_s = sim.state().now().as_secs();
    let assertion = |exp: u64, key: &str| {
        let claims = json!({"iss": "i", "aud": "bearerd-demo", "sub": "abel.tuter", "exp": exp, "jti": "1"});
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({"alg": "HS256"})), encode(&claims));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
    for (assertion, status, outcome) in [
        (assertion(now_s + 60, "another key"), 401, "assertion_signature_wrong"),
        (assertion(now_s - 301, key), 401, "assertion_expired"),
        ("a.b.c".to_owned(), 401, "assertion_malformed"),
        (assertion(now_s + 60, key), 200, "issued"),
        (assertion(now_s + 60, key), 401, "assertion_replayed"),
    ] {
        let answer = token(&sim, &format!("{grant}&assertion={assertion}&{CLIENT}")).await;
        assert_eq!(answer.status, status, "{outcome}");
        assert_eq!(sim.state().counters().token_calls("jwt_bearer", outcome), 1, "{outcome}");
    }
}
