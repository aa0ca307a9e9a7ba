//! The door as its users see it: requests through the router, the real acts, the in-memory store. No instance is
//! there (port 9 is closed), so what needs one fails, and says so.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body};
use bearerd_control::{ConnectRules, InstanceRules};
use bearerd_crypto::KeyRing;
use bearerd_model::{
    AccessToken, Clock, Connection, ConnectionId, Epoch, Exchanges, FakeClock, Generation, Grant, Health,
    InstanceUser, IntegrationId, Intent, Lifecycle, Owner, ProfileName, RefreshToken, UnixTime,
};
use bearerd_net::{Connector, EgressSettings};
use bearerd_policy::{ApiKey, KeyKind};
use bearerd_store::{MemoryBackend, Store};
use bearerd_tokens::{ProcessPlace, TokenEngine, TokenSettings};
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::router::SAFE_HEADERS;

const NOW: UnixTime = UnixTime::from_secs(1_795_291_200); // 2026-11-21T20:00:00Z
const INSTANCE: &str = "http://127.0.0.1:9";
const CANARIES: [&str; 3] = ["canary-client-secret", "canary-access-token", "canary-refresh-token"];

/// A door and everything that it ever answered.
struct Door {
    router: Router,
    key: ApiKey,
    store: Store,
    draining: CancellationToken,
    said: Mutex<String>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// The answer is a problem of this status and code, complete, and the same in header and body.
    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Self {
        let this = self.expect(status);
        let body = &this.body;
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["type"], format!("urn:bearerd:error:{code}"));
        assert_eq!(
            (&body["status"], &body["request_id"]),
            (&json!(status), &json!(this.header("x-request-id")))
        );
        assert_eq!(this.header("content-type"), "application/problem+json");
        for member in ["title", "detail", "fix"] {
            assert!(body[member].as_str().is_some_and(|text| text.len() > 3), "{member}: {body}");
        }
        this
    }

    #[track_caller]
    fn header(&self, name: &str) -> String {
        self.headers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    }
}

async fn door() -> Door {
    door_with(AdminSettings::default()).await
}

async fn door_with(settings: AdminSettings) -> Door {
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let store = Store::open(Arc::new(MemoryBackend::default()), ring).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::at(NOW));
    let registry = Registry::new();
    let connector = Connector::new(&EgressSettings::default()).unwrap();
    let tokens = TokenEngine::start(
        store.clone(),
        connector,
        Arc::clone(&clock),
        TokenSettings::default(),
        ProcessPlace::alone(),
        &registry,
    )
    .unwrap();
    let connect = ConnectRules {
        public_url: "https://connect.example".to_owned(),
        confirm: true,
        link_lifetime: Duration::from_hours(1),
    };
    let control = Control::new(store.clone(), Arc::new(tokens), clock, connect, InstanceRules::default());
    control.load().await.unwrap();
    let key = ApiKey::generate(KeyKind::Admin);
    let keys = AdminKeys::parse(&AdminKeys::setting_for(&key)).unwrap();
    let draining = CancellationToken::new();
    let parts = AdminParts { control: Arc::new(control), keys, registry, draining: draining.clone() };
    let router = AdminDoor::new(&settings, parts).into_router();
    Door { router, key, store, draining, said: Mutex::default() }
}

impl Door {
    async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        self.said.lock().unwrap().push_str(&text);
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, body };
        for (name, value) in SAFE_HEADERS {
            assert_eq!(answer.header(name), value, "{name}"); // O-30, O-31: on every answer of every test
        }
        assert_eq!(answer.header("x-request-id").len(), 16);
        answer
    }

    async fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.expose()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() {
            Body::empty()
        } else {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.call_with(method, path, &[], body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    async fn anonymous(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn add_integration(&self, id: &str) -> Answer {
        self.call("PUT", &format!("/v1/integrations/{id}"), integration(id)).await
    }

    /// A connection as a consent leaves it, put straight into the store.
    async fn add_active_connection(&self, id: &str, integration: &str) {
        self.store.create(&Self::active_connection(id, integration)).await.unwrap().unwrap();
    }

    fn active_connection(id: &str, integration: &str) -> Connection {
        let lifetime = Duration::from_mins(30);
        Connection {
            id: ConnectionId::parse(id).unwrap(),
            integration: IntegrationId::parse(integration).unwrap(),
            profile: ProfileName::default(),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            expected_user: None,
            user: Some(InstanceUser {
                sys_id: "1".into(),
                user_name: "abel".into(),
                name: "Abel Tuter".into(),
            }),
            lifecycle: Lifecycle::Active { since: NOW },
            frozen: None,
            health: Health::Ok,
            grant: Some(Grant {
                generation: Generation(3),
                access_token: AccessToken::parse("canary-access-token".to_owned()).unwrap(),
                access_lifetime: lifetime,
                access_expires_at: NOW + lifetime,
                refresh_token: Some(RefreshToken::parse("canary-refresh-token".to_owned()).unwrap()),
                previous_refresh_token: None,
                refresh_expires_at: Some(NOW + Duration::from_hours(2400)),
                granted_at: NOW,
                refreshed_at: NOW,
                scope: Some("useraccount".to_owned()),
            }),
            exchanges: Exchanges::default(),
            due_at: None,
            created_at: NOW,
            last_used_at: None,
        }
    }

    /// No answer so far held a secret that is not meant to be shown.
    #[track_caller]
    fn check_no_secret_was_said(&self) {
        let said = self.said.lock().unwrap();
        for canary in CANARIES.iter().chain(&[self.key.expose()]) {
            assert!(!said.contains(canary), "{canary}");
        }
    }
}

/// Each at an instance of its own would need ports; each has a client of its own.
fn integration(id: &str) -> Value {
    json!({"instance": INSTANCE, "client_id": format!("client-{id}"), "client_secret": "canary-client-secret"})
}

fn rule() -> Value {
    json!({"connections": "all", "tables": {"named": ["incident"]}, "methods": ["GET"]})
}

/// Every operation of the document, with ids filled in.
fn operations() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            operations.push((method.to_uppercase(), path.replace("{id}", "some-id")));
        }
    }
    operations
}

#[tokio::test]
async fn every_v1_route_wants_an_admin_key() {
    let door = door().await;
    let (wrong, caller) = (ApiKey::generate(KeyKind::Admin), ApiKey::generate(KeyKind::Caller));
    let bearer = |key: &str| format!("Bearer {key}");
    let routes = operations();
    assert!(routes.len() > 25, "{routes:?}");
    let unknown = ("GET".to_owned(), "/v1/nothing".to_owned());
    for (method, path) in routes.iter().filter(|(_, path)| path.starts_with("/v1/")).chain([&unknown]) {
        for (authorization, code, words) in [
            (None, "admin_key_missing", "wants an admin key"),
            (Some(format!("Basic {}", door.key.expose())), "admin_key_missing", "wants an admin key"),
            (Some(bearer("nonsense")), "admin_key_invalid", "not an admin key"),
            (Some(bearer(wrong.expose())), "admin_key_invalid", "no such"),
            (Some(bearer(caller.expose())), "admin_key_invalid", "caller key"),
            (Some(bearer(&door.key.expose()[..50])), "admin_key_invalid", ""),
        ] {
            let mut request = Request::builder().method(method.as_str()).uri(path);
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let answer = door.send(request.body(Body::empty()).unwrap()).await.problem(401, code);
            assert!(
                answer.body["detail"].as_str().unwrap().to_lowercase().contains(words),
                "{}",
                answer.body
            );
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"bearerd admin\"");
        }
    }
}

/// What the router knows and what the document says are the same paths.
#[tokio::test]
async fn every_route_is_in_the_document() {
    let door = door().await;
    let text = format!("{:?}", door.router);
    let is_ours = |part: &&str| part.len() > 1 && part.starts_with('/') && !part.contains("__private__");
    let routed: BTreeSet<&str> = text.split('"').filter(is_ours).collect();
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut documented: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    documented.insert("/openapi.json"); // describes the others
    assert!(routed.len() > 15, "axum shows its routes: {text}");
    assert_eq!(routed, documented);
    assert_eq!(door.anonymous("/openapi.json").await.expect(200).body["paths"], document["paths"]);
}

#[tokio::test]
async fn the_document_says_what_it_is() {
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["info"]["title"], "bearerd admin API");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(document["info"].get("contact").is_none() && document.get("servers").is_none());
    let put = &document["paths"]["/v1/integrations/{id}"]["put"];
    let names: Vec<&str> =
        put["parameters"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["id", "purge_tokens", "If-Match", "If-None-Match"]);
    assert!(put["responses"]["201"]["headers"]["ETag"].is_object(), "{put}");
    assert!(put["responses"]["default"]["content"]["application/problem+json"].is_object(), "{put}");
    let mut ids = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 10), "{operation}");
            ids.insert(operation["operationId"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(ids.len(), operations().len(), "operation ids are unique: {ids:?}");
    // Every $ref leads somewhere.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

/// O-51: no schema has a token or a secret but these.
#[test]
fn only_the_expected_schemas_hold_secrets() {
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut holders = Vec::new();
    let mut words = Vec::new();
    for (name, schema) in schemas {
        let parts = std::iter::once(schema).chain(schema["allOf"].as_array().into_iter().flatten());
        for (member, shape) in parts.filter_map(|part| part["properties"].as_object()).flatten() {
            let is_secret = shape.to_string().contains("schemas/WireSecret");
            if is_secret {
                holders.push(format!("{name}.{member}"));
            }
            if !is_secret
                && ["token", "secret", "password", "assertion"].iter().any(|word| member.contains(word))
            {
                words.push(format!("{name}.{member}"));
            }
        }
    }
    holders.sort();
    words.sort();
    assert_eq!(
        holders,
        [
            "ConnectLink.url",
            "ImportRequest.access_token",
            "ImportRequest.refresh_token",
            "IntegrationRequest.client_secret",
            "IssuedCallerKey.caller_key",
        ]
    );
    // These say something about a secret, and are not one.
    assert_eq!(
        words,
        [
            "CallerKey.live_secrets",
            "Connection.access_token_expires_at",
            "Connection.access_token_usable",
            "Connection.refresh_token_expires_at",
            "ImportRequest.refresh_token_expires_at",
            "ImportRequest.token_type",
            "Integration.client_secret_set",
            "Integration.refresh_token_lifetime_secs",
            "Integration.rotates_refresh_tokens",
            "Integration.token_endpoint",
            "Integration.token_endpoint_auth",
            "IntegrationRequest.refresh_token_lifetime_secs",
            "IntegrationRequest.rotates_refresh_tokens",
            "IntegrationRequest.token_endpoint",
            "IntegrationRequest.token_endpoint_auth",
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_a_problem_that_names_it() {
    let door = door().await;
    door.get("/nothing").await.problem(404, "route_unknown");
    door.get("/v1/nothing").await.problem(404, "route_unknown");
    let answer = door.call("PATCH", "/v1/integrations/a", json!({})).await.problem(405, "method_refused");
    assert!(answer.header("allow").contains("PUT"), "{:?}", answer.headers);
    let put = |body: &str, media_type: &str| {
        let request = Request::put("/v1/integrations/a")
            .header(header::AUTHORIZATION, format!("bearer {}", door.key.expose()))
            .header(header::CONTENT_TYPE, media_type)
            .body(Body::from(body.to_owned()));
        door.send(request.unwrap())
    };
    put("{", "application/json").await.problem(400, "request_malformed");
    put("instance=x", "application/x-www-form-urlencoded").await.problem(415, "media_type_refused");
    put(&" ".repeat(65 * 1024), "application/json").await.problem(413, "body_too_large");
    let body = r#"{"instance":"http://127.0.0.1:9","client_id":"c","client_secert":"canary-client-secret"}"#;
    let answer = put(body, "application/json; charset=utf-8").await.problem(422, "invalid_request");
    assert_eq!(answer.body["field"], "client_secert");
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("cursor=a/b", "cursor"),
        ("page=2", "page"),
    ] {
        let answer = door.get(&format!("/v1/policies?{query}")).await.problem(400, "invalid_request");
        assert_eq!(answer.body["field"], field);
    }
    let answer = door.get("/v1/policies/UPPER").await.problem(422, "invalid_request");
    assert_eq!(answer.body["field"], "id");
    let answer = door.call_with("DELETE", "/v1/policies/a", &[("if-match", "17")], Value::Null).await;
    assert_eq!(answer.problem(400, "invalid_request").body["field"], "If-Match");
    door.check_no_secret_was_said();
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_before_the_key() {
    let door = door().await;
    door.call_with("GET", "/livez", &[("sec-fetch-site", "cross-site")], Value::Null)
        .await
        .problem(403, "cross_site_refused");
    let answer = door
        .call_with(
            "GET",
            "/livez",
            &[("sec-fetch-site", "none"), ("origin", "https://evil.example")],
            Value::Null,
        )
        .await;
    assert!(answer.expect(200).headers.keys().all(|name| !name.as_str().starts_with("access-control")));
}

#[tokio::test]
async fn probes_are_bare_for_strangers_and_full_for_operators() {
    let door = door().await;
    assert_eq!(door.anonymous("/livez").await.expect(200).body, "");
    assert_eq!(door.get("/livez").await.expect(200).body["ok"], true);
    let before = door.anonymous("/readyz").await;
    assert_eq!(before.body, "");
    door.draining.cancel();
    assert_eq!(door.anonymous("/readyz").await.expect(503).body, "");
    let full = door.get("/readyz").await.expect(503).body;
    assert_eq!(full["ok"], false);
    let draining = json!({"name": "not_draining", "ok": false});
    assert!(full["checks"].as_array().unwrap().contains(&draining), "{full}");
    assert_eq!(door.get("/v1/status").await.expect(200).body["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn metrics_are_open_unless_the_settings_say_otherwise() {
    let door = door().await;
    let answer = door.anonymous("/metrics").await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.body.as_str().unwrap();
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "bearerd_store_up",
        "bearerd_build_info{version=",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} in {text}");
    }
    assert!(text.contains("# TYPE process_cpu_seconds_total counter"));
    let door = door_with(AdminSettings { metrics_require_key: true, ..AdminSettings::default() }).await;
    door.anonymous("/metrics").await.problem(401, "admin_key_missing");
    door.get("/metrics").await.expect(200);
}

#[tokio::test]
async fn an_integration_lives_and_dies() {
    let door = door().await;
    door.get("/v1/integrations/hr").await.problem(404, "not_found");
    let made = door.add_integration("hr").await.expect(201);
    let body = &made.body;
    assert_eq!((&body["client_secret_set"], &body["pkce"]), (&json!(true), &json!(true)));
    assert_eq!(body["redirect_uri"], "https://connect.example/oauth/callback");
    assert_eq!(body["token_endpoint"], format!("{INSTANCE}/oauth_token.do"));
    assert_eq!(body["profiles"]["default"]["grant_type"], "authorization_code");
    assert_eq!(body["created_at"], "2026-11-21T20:00:00Z");
    let form = body["servicenow_form"]["fields"].as_array().unwrap();
    let redirect = json!({"name": "Redirect URL", "value": body["redirect_uri"]});
    assert!(form.contains(&redirect), "{form:?}");
    let shown = door.get("/v1/integrations/hr").await.expect(200);
    assert_eq!(shown.header("etag"), made.header("etag"));
    // The same body again: the same result. Without the secret: it stays.
    let again = door.add_integration("hr").await.expect(200);
    assert_eq!(again.body["redirect_uri"], body["redirect_uri"]);
    let mut kept = integration("hr");
    kept.as_object_mut().unwrap().remove("client_secret");
    assert_eq!(
        door.call("PUT", "/v1/integrations/hr", kept.clone()).await.expect(200).body["client_secret_set"],
        true
    );
    // A second one gets a redirect URI of its own; a forgotten secret is asked for.
    let answer = door.call("PUT", "/v1/integrations/it", kept.clone()).await.problem(422, "invalid_request");
    assert_eq!(answer.body["field"], "client_secret");
    let other = door.add_integration("it").await.expect(201);
    assert_eq!(other.body["redirect_uri"], "https://connect.example/oauth/callback/it");
    kept["public_client"] = json!(true);
    door.call("PUT", "/v1/integrations/hr", kept).await.problem(409, "client_is_confidential");
    let bad = json!({"instance": "http://evil.example", "client_id": "c", "public_client": true});
    assert_eq!(
        door.call("PUT", "/v1/integrations/x", bad).await.problem(422, "invalid_request").body["field"],
        "instance"
    );
    door.call("DELETE", "/v1/integrations/it", Value::Null).await.expect(204);
    door.call("DELETE", "/v1/integrations/it", Value::Null).await.problem(404, "not_found");
    door.check_no_secret_was_said();
}

#[tokio::test]
async fn a_change_demands_what_was_seen() {
    let door = door().await;
    let path = "/v1/policies/readers";
    let body = |description: &str| json!({"description": description, "rules": [rule()]});
    let put = |condition: (&'static str, String), description: &'static str| {
        let door = &door;
        async move { door.call_with("PUT", path, &[(condition.0, &condition.1)], body(description)).await }
    };
    put(("if-match", "*".into()), "none yet").await.problem(412, "changed_meanwhile");
    let first = put(("if-none-match", "*".into()), "one").await.expect(201).header("etag");
    assert!(first.starts_with('"') && first.ends_with('"'), "{first}");
    put(("if-none-match", "*".into()), "one").await.problem(412, "exists");
    let second = put(("if-match", first.clone()), "two").await.expect(200).header("etag");
    assert_ne!(first, second);
    put(("if-match", first.clone()), "three").await.problem(412, "changed_meanwhile");
    put(("if-match", "\"elsewhere\"".into()), "three").await.problem(412, "changed_meanwhile");
    let shown = door.get(path).await.expect(200);
    assert_eq!((shown.header("etag"), &shown.body["description"]), (second.clone(), &json!("two")));
    let delete = async |etag: &str| door.call_with("DELETE", path, &[("if-match", etag)], Value::Null).await;
    delete(&first).await.problem(412, "changed_meanwhile");
    delete(&second).await.expect(204);
}

#[tokio::test]
async fn a_connection_awaits_consent_with_a_link_shown_once() {
    let door = door().await;
    let body = json!({"integration": "hr", "labels": {"env": "prod"}, "expected_user": "abel"});
    door.call("PUT", "/v1/connections/hr-prod", body.clone()).await.problem(404, "not_found");
    door.add_integration("hr").await.expect(201);
    let made = door.call("PUT", "/v1/connections/hr-prod", body.clone()).await.expect(201);
    let link = made.body["connect_link"]["url"].as_str().unwrap().to_owned();
    assert!(link.starts_with("https://connect.example/connect/"), "{link}");
    assert_eq!(made.body["connect_link"]["expires_at"], "2026-11-21T21:00:00Z");
    let shown = door.get("/v1/connections/hr-prod").await.expect(200);
    assert_eq!(shown.body["state"]["name"], "pending");
    assert_eq!(shown.body["state"]["cause"], "awaiting_consent");
    assert_eq!(shown.body["instance"], INSTANCE);
    assert!(!shown.body.to_string().contains(link.rsplit('/').next().unwrap()));
    let again = door.call("PUT", "/v1/connections/hr-prod", body).await.expect(200);
    assert_eq!((again.header("etag"), &again.body["connect_link"]), (made.header("etag"), &Value::Null));
    let changed = json!({"integration": "hr", "labels": {"env": "test"}});
    let changed = door.call("PUT", "/v1/connections/hr-prod", changed).await.expect(200);
    assert_eq!(
        (&changed.body["labels"]["env"], &changed.body["expected_user"]),
        (&json!("test"), &Value::Null)
    );
    let moved = json!({"integration": "hr", "profile": "other"});
    door.call("PUT", "/v1/connections/hr-prod", moved).await.problem(409, "connection_fixed");
    let second = door.call("POST", "/v1/connections/hr-prod/reauthorize", Value::Null).await.expect(200);
    assert_ne!(second.body["url"], link.as_str());
    door.call("POST", "/v1/connections/hr-prod/confirm", json!({"user": "abel"}))
        .await
        .problem(409, "nothing_to_confirm");
    door.call("DELETE", "/v1/integrations/hr", Value::Null).await.problem(409, "in_use");
    door.call("DELETE", "/v1/connections/hr-prod", Value::Null).await.expect(204);
    door.call("DELETE", "/v1/integrations/hr", Value::Null).await.expect(204);
    door.check_no_secret_was_said();
}

#[tokio::test]
async fn an_active_connection_shows_everything_but_its_tokens() {
    let door = door().await;
    door.add_integration("hr").await.expect(201);
    door.add_active_connection("hr-prod", "hr").await;
    let shown = door.get("/v1/connections/hr-prod").await.expect(200).body;
    assert_eq!(shown["state"]["name"], "active");
    assert_eq!(shown["access_token_usable"], true);
    assert_eq!(shown["access_token_expires_at"], "2026-11-21T20:30:00Z");
    assert_eq!(shown["refresh_token_expires_at"], "2027-03-01T20:00:00Z");
    assert_eq!((&shown["generation"], &shown["user"]["user_name"]), (&json!(3), &json!("abel")));
    assert_eq!(shown["fingerprint"].as_str().unwrap().len(), 16);
    assert_eq!(shown["redirect_uri"], "https://connect.example/oauth/callback");
    let frozen =
        door.call("POST", "/v1/connections/hr-prod/freeze", json!({"reason": " upgrade "})).await.expect(200);
    assert_eq!(frozen.body["frozen"]["reason"], "upgrade");
    let answer = door.call("POST", "/v1/connections/hr-prod/freeze", json!({"reason": " "})).await;
    assert_eq!(answer.problem(422, "invalid_request").body["field"], "reason");
    let thawed = door.call("POST", "/v1/connections/hr-prod/unfreeze", Value::Null).await.expect(200);
    assert_eq!(thawed.body["frozen"], Value::Null);
    for act in ["refresh", "test"] {
        let answer = door.call("POST", &format!("/v1/connections/hr-prod/{act}"), Value::Null).await;
        assert!(matches!(answer.status, 502..=504), "{act}: {} {}", answer.status, answer.body);
    }
    let import = json!({"integration": "hr", "import": {"access_token": "canary-access-token", "expires_in": 1800, "refresh_token": "canary-refresh-token"}});
    let answer = door.call("PUT", "/v1/connections/imported", import).await;
    assert!(answer.status >= 400, "no instance is there: {}", answer.body);
    let listed = door.get("/v1/connections").await.expect(200).body;
    assert_eq!(listed["items"][0]["instance"], INSTANCE);
    door.check_no_secret_was_said();
}

#[tokio::test]
async fn an_integration_says_what_it_shows_and_speaks() {
    let door = door().await;
    let made = door.add_integration("it").await.expect(201).body;
    assert_eq!((&made["http2"], &made["client_certificate_file"]), (&json!(false), &Value::Null));
    let mut body = integration("it");
    body["http2"] = json!(true);
    let put = async |body: &Value| door.call("PUT", "/v1/integrations/it", body.clone()).await;
    assert_eq!(put(&body).await.expect(200).body["http2"], true);
    body["client_certificate_file"] = json!("/nonexistent/client.pem");
    assert_eq!(put(&body).await.problem(422, "invalid_request").body["field"], "client_key_file");
    body["client_key_file"] = json!("/nonexistent/client.key");
    assert_eq!(put(&body).await.problem(422, "invalid_request").body["field"], "client_certificate_file");
}

/// A generic provider: nothing is derived for it, and its refresh tokens rotate unless the operator says otherwise.
#[tokio::test]
async fn a_generic_integration_says_what_its_server_is_like() {
    let door = door().await;
    let hr = door.add_integration("hr").await.expect(201).body;
    assert_eq!((&hr["provider"], &hr["rotates_refresh_tokens"]), (&json!("servicenow"), &json!(false)));
    assert_eq!(hr["revocation_endpoint"], format!("{INSTANCE}/oauth_revoke_token.do"));
    let mut body = integration("it");
    body["provider"] = json!("generic");
    let put = async |body: &Value| door.call("PUT", "/v1/integrations/it", body.clone()).await;
    for endpoint in ["authorization_endpoint", "token_endpoint"] {
        assert_eq!(put(&body).await.problem(422, "invalid_request").body["field"], endpoint);
        body[endpoint] = json!(format!("{INSTANCE}/{endpoint}"));
    }
    let made = put(&body).await.expect(201).body;
    assert_eq!((&made["rotates_refresh_tokens"], &made["revocation_endpoint"]), (&json!(true), &Value::Null));
    let said = made["servicenow_form"].to_string();
    assert!(said.contains("/oauth/callback/it") && !said.contains("System OAuth"), "{said}");
    body["rotates_refresh_tokens"] = json!(false);
    body["revocation_endpoint"] = json!(format!("{INSTANCE}/revoke"));
    let changed = put(&body).await.expect(200).body;
    assert_eq!(changed["rotates_refresh_tokens"], false);
    assert_eq!(changed["revocation_endpoint"], format!("{INSTANCE}/revoke"));
    let body = json!({"integration": "it", "expected_user": "abel"});
    let refused = door.call("PUT", "/v1/connections/c", body).await.problem(422, "invalid_request");
    assert_eq!(refused.body["field"], "expected_user");
    door.check_no_secret_was_said();
}

/// What an operator must see before it hurts: a refresh token near its end, an exchange in doubt.
#[tokio::test]
async fn a_connection_shows_what_needs_a_person_soon() {
    let door = door().await;
    door.add_integration("hr").await.expect(201);
    let day = Duration::from_hours(24);
    for (id, left, expected) in [
        ("far", Some(day * 100), Value::Null),
        ("near", Some(day * 14), json!(14)),
        ("hours", Some(day / 4), json!(1)),
        ("over", Some(Duration::ZERO), Value::Null),
        ("unknown", None, Value::Null),
    ] {
        let mut connection = Door::active_connection(id, "hr");
        connection.grant.as_mut().unwrap().refresh_expires_at = left.map(|left| NOW + left);
        door.store.create(&connection).await.unwrap().unwrap();
        let shown = door.get(&format!("/v1/connections/{id}")).await.expect(200).body;
        assert_eq!(shown["expires_soon_days"], expected, "{id}");
        assert_eq!(shown["health"]["name"], "ok");
    }
    for (id, deadline, name) in [("open", NOW + day, "ok"), ("left", NOW, "uncertain")] {
        let mut connection = Door::active_connection(id, "hr");
        connection.exchanges.intent = Some(Intent {
            epoch: Epoch(1),
            owner: Owner { node: 1, run: 1 },
            generation: Generation(3),
            began_at: NOW,
            deadline,
            in_doubt: false,
        });
        door.store.create(&connection).await.unwrap().unwrap();
        let health = door.get(&format!("/v1/connections/{id}")).await.expect(200).body["health"].clone();
        assert_eq!(health["name"], name, "{id}: {health}");
        let since = if name == "ok" { Value::Null } else { json!("2026-11-21T20:00:00Z") };
        assert_eq!(health["since"], since, "{id}: {health}");
    }
}

#[tokio::test]
async fn a_key_is_shown_once_and_dies() {
    let door = door().await;
    let body = json!({"description": "sync", "policies": ["readers"], "expires_at": "2027-01-01T00:00:00Z"});
    door.call("POST", "/v1/keys", body.clone()).await.problem(422, "invalid_request");
    door.call("PUT", "/v1/policies/readers", json!({"rules": [rule()]})).await.expect(201);
    let made = door.call("POST", "/v1/keys", body.clone()).await.expect(201);
    let (id, text) = (made.body["id"].as_str().unwrap(), made.body["caller_key"].as_str().unwrap());
    assert!(text.starts_with(&format!("bd_{id}_")));
    let path = format!("/v1/keys/{id}");
    assert_eq!(made.header("location"), path);
    let shown = door.get(&path).await.expect(200);
    assert_eq!(shown.header("etag"), made.header("etag"));
    assert_eq!(shown.body["live_secrets"].as_array().unwrap().len(), 1);
    let secret = text.rsplit('_').next().unwrap();
    let listed = door.get("/v1/keys").await.expect(200);
    assert!(![shown.body.to_string(), listed.body.to_string()].iter().any(|said| said.contains(secret)));
    let rotated = door.call("POST", &format!("{path}/rotate"), json!({"overlap_secs": 60})).await.expect(200);
    assert_ne!(rotated.body["caller_key"], text);
    let ends: Vec<&Value> =
        rotated.body["live_secrets"].as_array().unwrap().iter().map(|one| &one["expires_at"]).collect();
    assert!(ends.len() == 2 && ends.contains(&&json!("2026-11-21T20:01:00Z")), "{ends:?}");
    let answer = door.call("POST", &format!("{path}/rotate"), json!({"overlap_secs": 7_776_001})).await;
    assert_eq!(answer.problem(422, "invalid_request").body["field"], "overlap_secs");
    let mut renamed = body;
    renamed["description"] = json!("sync 2");
    assert_eq!(door.call("PUT", &path, renamed.clone()).await.expect(200).body["description"], "sync 2");
    door.call_with("PUT", &path, &[("if-match", &made.header("etag"))], renamed)
        .await
        .problem(412, "changed_meanwhile");
    door.call("DELETE", "/v1/policies/readers", Value::Null).await.problem(409, "in_use");
    door.call("DELETE", &path, Value::Null).await.expect(204);
    door.get(&path).await.problem(404, "not_found");
    door.call("DELETE", "/v1/policies/readers", Value::Null).await.expect(204);
}

#[tokio::test]
async fn lists_come_in_parts() {
    let door = door().await;
    for id in ["a", "b", "c", "d", "e"] {
        door.call("PUT", &format!("/v1/policies/{id}"), json!({"rules": [rule()]})).await.expect(201);
    }
    let (mut seen, mut path, mut parts) = (Vec::new(), "/v1/policies?limit=2".to_owned(), 0);
    loop {
        let body = door.get(&path).await.expect(200).body;
        seen.extend(
            body["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()),
        );
        parts += 1;
        let Some(next) = body["next"].as_str() else { break };
        path = format!("/v1/policies?limit=2&cursor={next}");
    }
    assert_eq!((seen.join(""), parts), ("abcde".to_owned(), 3));
    let bad =
        json!({"rules": [{"connections": "all", "tables": {"named": ["in/cident"]}, "methods": ["GET"]}]});
    door.call("PUT", "/v1/policies/f", bad).await.problem(422, "invalid_request");
}

/// Everything that a rule says comes back, and what it leaves out is its default.
#[tokio::test]
async fn a_policy_is_shown_as_it_was_put() {
    let door = door().await;
    let rule = json!({
        "connections": {"labels": {"env": "prod"}}, "families": ["attachment", "now/ui", "sn_sc", "table"],
        "tables": "all", "methods": ["GET"], "networks": ["10.0.0.0/8", "2001:db8::/32"],
        "expires_at": "2027-01-01T00:00:00Z",
    });
    let body = json!({
        "description": "files", "rules": [rule, self::rule()],
        "rate": {"calls": 100, "per_s": 60, "burst": 20}, "concurrency_max": 8,
    });
    door.call("PUT", "/v1/policies/files", body.clone()).await.expect(201);
    let shown = door.get("/v1/policies/files").await.expect(200).body;
    for member in ["description", "rate", "concurrency_max"] {
        assert_eq!(shown[member], body[member], "{member}");
    }
    assert_eq!(shown["rules"][0], rule);
    let mut plain = self::rule();
    plain["families"] = json!(["table"]);
    assert_eq!(shown["rules"][1], plain);
    let again = door.call("PUT", "/v1/policies/files", body).await.expect(200);
    assert_eq!(again.header("etag"), door.get("/v1/policies/files").await.header("etag"));

    let with = |member: &str, value: Value| {
        let mut rule = self::rule();
        rule[member] = value;
        json!({"rules": [rule]})
    };
    let records = |records: Value| with("records", records);
    for (body, field, words) in [
        (with("families", json!(["batch"])), "rules[0].families[0]", "past every rule"),
        (with("families", json!(["attachment"])), "rules", "rule 1"),
        (with("families", json!([])), "rules", "rule 1"),
        (with("networks", json!(["10.1.0.0/8"])), "rules", "write 10.0.0.0/8"),
        (with("networks", json!(["here"])), "rules[0].networks[0]", "address"),
        (with("expires_at", json!("soon")), "rules[0].expires_at", "RFC 3339"),
        (records(json!({"condition": "active=true", "limit_max": 0})), "rules", "rule 1"),
        (records(json!({"condition": "active=true^NQstate=1"})), "rules", "^NQ"),
        (records(json!({"condition": "active=true", "field": []})), "rules[0].records.field", "no such"),
        (json!({"rules": [self::rule()], "rate": {"calls": 0}}), "rate.calls", "1 to 1000000"),
        (json!({"rules": [self::rule()], "concurrency_max": 0}), "concurrency_max", "1 to 100000"),
    ] {
        let answer = door.call("PUT", "/v1/policies/bad", body).await.problem(422, "invalid_request");
        assert_eq!(answer.body["field"], field, "{}", answer.body);
        assert!(answer.body["detail"].as_str().unwrap().contains(words), "{}", answer.body);
    }
    // No connection is there that could be asked for the fields.
    let unchecked = records(json!({"condition": "active=true"}));
    door.call("PUT", "/v1/policies/own", unchecked).await.problem(409, "unchecked");
}

#[tokio::test]
async fn a_call_is_explained() {
    let door = door().await;
    door.add_integration("hr").await.expect(201);
    door.add_active_connection("hr-prod", "hr").await;
    let mut inside = rule();
    inside["networks"] = json!(["10.0.0.0/8"]);
    let rules = json!({"rules": [inside], "rate": {"calls": 10}, "concurrency_max": 2});
    door.call("PUT", "/v1/policies/readers", rules).await.expect(201);
    let explain = async |more: Value| {
        let mut body = json!({"policies": ["readers"], "connection": "hr-prod", "table": "incident"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        door.call("POST", "/v1/policies/explain", body).await
    };
    let inside = explain(json!({"source": "::ffff:10.1.2.3"})).await.expect(200).body;
    let expected = json!({
        "allowed": true, "policy": "readers", "rule": 1, "reason": null, "nearest": null, "connection_known": true,
        "records": null,
        "limits": {"rate": {"calls": 10, "per_s": 1}, "concurrency_max": 2, "in_flight": 0},
    });
    assert_eq!(inside, expected);
    let outside = explain(json!({"source": "192.0.2.1"})).await.expect(200).body;
    assert_eq!((&outside["allowed"], &outside["nearest"]), (&json!(false), &json!("network")));
    assert!(!outside["reason"].as_str().unwrap().contains("10."), "{outside}");
    let absent = explain(json!({"connection": "nothing"})).await.expect(200).body;
    assert_eq!((&absent["allowed"], &absent["connection_known"]), (&json!(false), &json!(false)));
    for (more, field) in [
        (json!({"caller_key_id": "k1"}), "caller_key_id"),
        (json!({"policies": null}), "caller_key_id"),
        (json!({"method": "get"}), "method"),
        (json!({"table": null}), "table"),
        (json!({"family": "sn_sc"}), "table"),
        (json!({"family": "v2"}), "family"),
        (json!({"source": "here"}), "source"),
        (json!({"wanted": 1}), "wanted"),
    ] {
        let answer = explain(more).await.problem(422, "invalid_request");
        assert_eq!(answer.body["field"], field, "{}", answer.body);
    }
    explain(json!({"policies": ["none"]})).await.problem(404, "not_found");
    door.check_no_secret_was_said();
}
