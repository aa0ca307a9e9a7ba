//! The Table API.

use serde_json::{Value, json};
use servicenow_sim::Sim;

use crate::client::*;

async fn list(sim: &Sim, target: &str) -> Answer {
    let header = bearer(sim).await;
    get(sim, target, &[("Authorization", &header), ("Accept", "application/json")]).await
}

async fn write(sim: &Sim, method: &str, target: &str, body: &str) -> Answer {
    let header = bearer(sim).await;
    let headers = [
        ("Authorization", header.as_str()),
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
    ];
    send(sim.local_addr(), method, target, &headers, body).await.unwrap()
}

fn rows(answer: &Answer) -> Vec<Value> {
    answer.json()["result"].as_array().unwrap().clone()
}

#[tokio::test]
async fn pages_carry_count_and_absolute_links() {
    let sim = sim().await;
    let answer =
        list(&sim, "/api/now/table/incident?sysparm_limit=10&sysparm_offset=20&sysparm_fields=number").await;
    assert_eq!(answer.status, 200);
    assert_eq!(rows(&answer).len(), 10);
    assert_eq!(answer.header("x-total-count"), Some("80"));
    let links = answer.header("link").unwrap();
    let base = format!("<{}/api/now/table/incident?sysparm_limit=10&sysparm_fields=number", sim.origin());
    for (offset, rel) in [(0, "first"), (10, "prev"), (30, "next"), (70, "last")] {
        assert!(links.contains(&format!("{base}&sysparm_offset={offset}>;rel=\"{rel}\"")), "{rel}: {links}");
    }
    let quiet = list(
        &sim,
        "/api/now/table/incident?sysparm_limit=1&sysparm_no_count=true&sysparm_suppress_pagination_header=true",
    )
    .await;
    assert_eq!((quiet.header("x-total-count"), quiet.header("link")), (None, None));
}

#[tokio::test]
async fn paging_through_finds_every_row_once() {
    let sim = sim().await;
    let mut seen = std::collections::BTreeSet::new();
    for offset in (0..100).step_by(30) {
        let target = format!(
            "/api/now/table/incident?sysparm_query=ORDERBYsys_id&sysparm_limit=30&sysparm_offset={offset}"
        );
        for row in rows(&list(&sim, &target).await) {
            assert!(seen.insert(row["sys_id"].as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(seen.len(), 80);
}

#[tokio::test]
async fn answers_look_like_an_instance() {
    let sim = sim().await;
    let answer = list(&sim, "/api/now/table/incident?sysparm_limit=1").await;
    assert_eq!(answer.header("server"), Some("ServiceNow"));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.header("x-is-logged-in"), Some("true"));
    assert!(answer.header("cache-control").unwrap().starts_with("no-store"));
    assert_eq!(answer.all("set-cookie").len(), 6);
    let caller = &rows(&answer)[0]["caller_id"];
    let link = format!("{}/api/now/table/sys_user/{}", sim.origin(), caller["value"].as_str().unwrap());
    assert_eq!(caller["link"], link);
}

#[tokio::test]
async fn queries_filter_by_user_reference_and_parameter() {
    let sim = sim().await;
    for (query, path, expected) in [
        (
            "sysparm_query=assigned_to%3Djavascript%3Ags.getUserID()",
            "assigned_to.user_name",
            "svc.integration",
        ),
        ("sysparm_query=caller_id.user_name=abel.tuter", "caller_id.user_name", "abel.tuter"),
        ("category=network", "category", "network"),
        ("sysparm_query=category=network^ORcategory=nonsense&active=true", "category", "network"),
    ] {
        let target = format!("/api/now/table/incident?{query}&sysparm_fields={path}");
        let found = rows(&list(&sim, &target).await);
        assert!(!found.is_empty() && found.len() < 80, "{query}: {}", found.len());
        assert!(found.iter().all(|row| row[path] == expected), "{query}");
    }
}

#[tokio::test]
async fn records_are_created_changed_and_deleted() {
    let sim = sim().await;
    let created =
        write(&sim, "POST", "/api/now/table/incident", r#"{"short_description":"printer <on> fire"}"#).await;
    assert_eq!(created.status, 201);
    let record = &created.json()["result"];
    assert!(record["number"].as_str().unwrap().starts_with("INC"));
    assert_eq!(record["sys_created_by"], "svc.integration");
    let url = created.header("location").unwrap().to_owned();
    let path = url.strip_prefix(&sim.origin()).unwrap();
    for (method, text) in [("PATCH", "out"), ("PUT", "out again")] {
        let changed = write(&sim, method, path, &json!({"short_description": text}).to_string()).await;
        assert_eq!((changed.status, &changed.json()["result"]["short_description"]), (200, &json!(text)));
    }
    let deleted = write(&sim, "DELETE", path, "").await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    for method in ["GET", "PATCH", "DELETE"] {
        let gone = write(&sim, method, path, "{}").await;
        assert_eq!(gone.status, 404, "{method}");
        assert_eq!(gone.json()["error"]["message"], "No Record found");
    }
}

#[tokio::test]
async fn errors_wear_the_envelope() {
    let sim = sim_with(json!({"acl_denials": [{"user": "svc.integration", "table": "problem"}]})).await;
    let header = bearer(&sim).await;
    let auth = ("Authorization", header.as_str());
    let accept = ("Accept", "application/json");
    let json_type = ("Content-Type", "application/json");
    let no_record = "No Record found";
    for (method, target, headers, body, status, message) in [
        ("GET", "/api/now/table/incident", vec![], "", 401, "User Not Authenticated"),
        (
            "GET",
            "/api/now/table/incident",
            vec![("Authorization", "Bearer x")],
            "",
            401,
            "User Not Authenticated",
        ),
        ("GET", "/api/now/table/nonsense", vec![auth], "", 400, "Invalid table nonsense"),
        ("GET", "/api/now/table/problem", vec![auth], "", 403, "Insufficient rights to query records"),
        ("GET", "/api/now/table/incident/x", vec![auth], "", 404, no_record),
        ("GET", "/api/now/v1/table/incident?number=x", vec![auth], "", 404, no_record),
        ("GET", "/api/now/v1/nonsense", vec![auth], "", 400, "Requested URI does not represent any resource"),
        (
            "GET",
            "/api/now/table/incident",
            vec![auth, ("Accept", "image/png")],
            "",
            406,
            "Requested format not supported",
        ),
        ("POST", "/api/now/table/incident", vec![auth, json_type], "{}", 400, "Invalid request headers"),
        ("POST", "/api/now/table/incident", vec![auth, accept], "{}", 400, "Invalid request headers"),
        (
            "POST",
            "/api/now/table/incident",
            vec![auth, accept, ("Content-Type", "text/plain")],
            "{}",
            415,
            "Unsupported media type",
        ),
        (
            "POST",
            "/api/now/table/incident",
            vec![auth, accept, json_type],
            "{",
            400,
            "Exception while reading request",
        ),
        ("POST", "/api/now/table/problem", vec![auth, accept, json_type], "{}", 403, "Operation Failed"),
        ("DELETE", "/api/now/table/incident", vec![auth], "", 405, "Method not supported"),
    ] {
        let answer = send(sim.local_addr(), method, target, &headers, body).await.unwrap();
        assert_eq!(answer.status, status, "{method} {target} {headers:?}");
        assert_eq!(answer.json()["error"]["message"], message, "{method} {target}");
        assert_eq!(answer.json()["status"], "failure");
    }
    let unauthorized = get(&sim, "/api/now/table/incident", &[]).await;
    assert!(unauthorized.header("www-authenticate").is_some());
    let version_2 = get(&sim, "/api/now/v2/table/incident?number=x", &[auth]).await;
    assert_eq!((version_2.status, version_2.json()), (200, json!({"result": []})));
}

#[tokio::test]
async fn xml_when_asked() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let accept = [("Authorization", header.as_str()), ("Accept", "application/xml")];
    let found = get(&sim, "/api/now/table/incident?sysparm_limit=2&sysparm_fields=number", &accept).await;
    assert!(found.header("content-type").unwrap().starts_with("application/xml"));
    assert_eq!(found.text().matches("<result><number>INC").count(), 2);
    let wrong = get(&sim, "/api/now/table/nonsense", &accept).await;
    assert!(wrong.text().contains("<message>Invalid table nonsense</message>"));
    let xml = [accept[0], accept[1], ("Content-Type", "application/xml")];
    let body = "<request><entry><short_description>from xml</short_description></entry></request>";
    let created = send(sim.local_addr(), "POST", "/api/now/table/incident", &xml, body).await.unwrap();
    assert_eq!(created.status, 201);
    assert!(created.text().contains("<short_description>from xml</short_description>"));
}

#[tokio::test]
async fn head_has_the_headers_of_get() {
    let sim = sim().await;
    let header = bearer(&sim).await;
    let auth = [("Authorization", header.as_str())];
    let answer =
        send(sim.local_addr(), "HEAD", "/api/now/table/incident?sysparm_limit=1", &auth, "").await.unwrap();
    assert_eq!((answer.status, answer.header("x-total-count")), (200, Some("80")));
    assert!(answer.body.is_empty());
}
