//! The two real ServiceNow clients, unmodified, through bearerd: query, paging, insert, update, delete, each looked at
//! from the instance's side too.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bearerd_tests::{Deployment, Setup, repository};
use http::Method;
use serde_json::{Value, json};
use servicenow_sim::Behaviour;

/// ServiceNow's own Python client refuses http, and trusts a private authority through `REQUESTS_CA_BUNDLE`.
#[test]
fn pysnc_works_over_https_with_a_private_authority() {
    let deployment = Deployment::start(Setup::new("pysnc").tls(), approving());
    let key = key_for_incidents(&deployment);
    let certificates = deployment.daemon.certificates().unwrap();
    let output = Command::new(program("python3"))
        .arg(repository().join("tests/clients/crud_with_pysnc.py"))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("REQUESTS_CA_BUNDLE", &certificates.authority)
        .env("ORIGIN", deployment.daemon.proxy_origin())
        .env("KEY", &key)
        .output()
        .unwrap();
    let seen = json_of(&output);

    let all = numbers_at_the_instance(&deployment, &key);
    assert_eq!(seen["queried"], json!(["true", "true", "true"]));
    assert_eq!(seen["total"], json!(all.len()));
    assert_eq!(seen["paged"], json!(all), "every row once, over many pages");
    assert_eq!(seen["inserted"], "made by pysnc, with ünïcode");
    assert_eq!(seen["updated"], "changed by pysnc");
    assert_eq!(seen["deleted"], true);
    assert_eq!(seen["found_after_delete"], false);
    assert_eq!(seen["refused"], "RoleException", "a policy's 403 is what the client knows");
    expect_at_instance(&deployment, &[("POST", 201), ("PATCH", 200), ("DELETE", 204), ("GET", 404)]);
}

/// The command line client holds the key as a bearer token.
#[test]
fn servicenow_cli_works() {
    let deployment = Deployment::start(Setup::new("servicenow-cli"), approving());
    let key = key_for_incidents(&deployment);
    let home = tempfile::tempdir().unwrap();
    let cli = |words: &[&str]| {
        let output = Command::new(program("servicenow"))
            .args(words)
            .args(["-o", "json"])
            .env_clear()
            .env("HOME", home.path())
            .env("SERVICENOW_INSTANCE", deployment.daemon.proxy_origin())
            .env("SERVICENOW_TOKEN", &key)
            .env("SERVICENOW_AUTH_TYPE", "bearer")
            .output()
            .unwrap();
        assert!(output.status.success(), "servicenow {words:?}: {output:?}");
        if output.stdout.is_empty() { Value::Null } else { json_of(&output) }
    };

    let doctor = cli(&["doctor"]);
    assert!(!doctor.to_string().contains("\"ok\":false"), "{doctor}");
    let listed = cli(&["tables", "list", "incident", "--limit", "2"]);
    assert_eq!(records(&listed).len(), 2, "{listed}");
    let all = cli(&["tables", "list", "incident", "--all", "--fields", "number,sys_id", "--limit", "1000"]);
    let mut numbers: Vec<&str> = records(&all).iter().map(|row| row["number"].as_str().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(json!(numbers), json!(numbers_at_the_instance(&deployment, &key)));
    let mine = cli(&["incidents", "mine"]);
    let user = deployment.daemon.show("/v1/connections/hr-prod")["user"]["sys_id"].clone();
    for row in records(&mine) {
        let assigned = &row["assigned_to"];
        let assigned = assigned.get("value").unwrap_or(assigned);
        assert_eq!(*assigned, user, "gs.getUserID() is the consenting user: {row}");
    }

    let made = cli(&["tables", "create", "incident", "--field", "short_description=made by servicenow-cli"]);
    let sys_id = record(&made)["sys_id"].as_str().unwrap().to_owned();
    cli(&["tables", "update", "incident", &sys_id, "--field", "short_description=changed"]);
    let got = cli(&["tables", "get", "incident", &sys_id, "--display-value", "false"]);
    assert_eq!(record(&got)["short_description"], "changed", "{got}");
    let path = format!("/api/now/table/incident/{sys_id}");
    let direct = deployment.call(Method::GET, &path, &key);
    assert_eq!(direct.json()["result"]["short_description"], "changed");
    cli(&["tables", "delete", "incident", &sys_id, "--yes"]);
    assert_eq!(deployment.call(Method::GET, &path, &key).status, 404);
    expect_at_instance(&deployment, &[("POST", 201), ("DELETE", 204)]);
}

fn approving() -> Behaviour {
    Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() }
}

/// Everything on incidents, and the reads of other tables that the clients make to find their way.
fn key_for_incidents(deployment: &Deployment) -> String {
    deployment.connect();
    let methods = json!(["GET", "POST", "PUT", "PATCH", "DELETE"]);
    let rules = json!([
        {"connections": {"ids": ["hr-prod"]}, "tables": {"named": ["incident"]}, "methods": methods},
        {"connections": {"ids": ["hr-prod"]}, "tables": {"named": ["sys_user", "sys_dictionary"]}, "methods": ["GET"]},
    ]);
    deployment.daemon.put("/v1/policies/incidents", &json!({"rules": rules}));
    deployment.daemon.new_key("incidents")
}

/// A program of the virtual environment that `tests/run` makes.
fn program(name: &str) -> PathBuf {
    let path = repository().join("tests/.venv/bin").join(name);
    assert!(Path::new(&path).exists(), "{} is missing: tests/run installs it", path.display());
    path
}

fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}\n{errors}"))
}

/// The client wraps lists in an envelope, or does not.
fn records(answer: &Value) -> &Vec<Value> {
    let found = ["result", "records", "data", "items"].into_iter().find_map(|name| answer[name].as_array());
    found.or_else(|| answer.as_array()).unwrap_or_else(|| panic!("no list in {answer}"))
}

fn record(answer: &Value) -> &Value {
    let found =
        ["result", "record", "data"].into_iter().map(|name| &answer[name]).find(|value| value.is_object());
    found.unwrap_or(answer)
}

fn numbers_at_the_instance(deployment: &Deployment, key: &str) -> Vec<String> {
    let path = "/api/now/table/incident?sysparm_fields=number&sysparm_limit=1000";
    let answer = deployment.call(Method::GET, path, key).json();
    let rows = answer["result"].as_array().unwrap();
    let mut numbers: Vec<String> =
        rows.iter().map(|row| row["number"].as_str().unwrap().to_owned()).collect();
    numbers.sort_unstable();
    assert!(numbers.len() >= 80, "{}", numbers.len());
    numbers
}

/// Each of these arrived, and nothing that a caller's client must not send on.
fn expect_at_instance(deployment: &Deployment, expected: &[(&str, u16)]) {
    let counters = deployment.sim().counters();
    for (method, status) in expected {
        let count = counters.table.get(*method).and_then(|by_status| by_status.get(status)).copied();
        assert!(count.unwrap_or_default() > 0, "{method} {status}: {:?}", counters.table);
    }
    assert_eq!(counters.cookies_received, 0, "cookies stay with bearerd");
    assert_eq!(counters.session_overflows, 0);
    assert_eq!(counters.api_key_headers, 0);
    let by = &counters.authenticated_by;
    assert!(by.keys().all(|how| *how == "bearer"), "{by:?}");
}
