//! The families of the REST API beside the Table API, and what the dictionary says of the tables.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use servicenow_sim::Sim;

use crate::client::*;

async fn read(sim: &Sim, target: &str) -> Answer {
    let header = bearer(sim).await;
    get(sim, target, &[("Authorization", &header), ("Accept", "application/json")]).await
}

async fn post(sim: &Sim, target: &str, body: &Value) -> Answer {
    let header = bearer(sim).await;
    let headers = [
        ("Authorization", header.as_str()),
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
    ];
    send(sim.local_addr(), "POST", target, &headers, &body.to_string()).await.unwrap()
}

fn rows(answer: &Answer) -> Vec<Value> {
    answer.json()["result"].as_array().unwrap_or_else(|| panic!("{}", answer.text())).clone()
}

/// The tables whose dictionary rows define the fields of `table`: itself and everything that it extends.
async fn parents(sim: &Sim, table: &str) -> Vec<String> {
    let mut chain = vec![table.to_owned()];
    while let Some(name) = chain.last() {
        let target = format!(
            "/api/now/table/sys_db_object?sysparm_query=name={name}&sysparm_fields=name,super_class.name"
        );
        let found = rows(&read(sim, &target).await);
        assert_eq!(found.len(), 1, "{name}");
        match found[0]["super_class.name"].as_str().unwrap() {
            "" => break,
            parent => chain.push(parent.to_owned()),
        }
    }
    chain
}

#[tokio::test]
async fn the_dictionary_knows_own_and_inherited_fields() {
    let sim = sim().await;
    assert_eq!(parents(&sim, "incident").await, ["incident", "task"]);
    assert_eq!(parents(&sim, "imp_user").await, ["imp_user", "sys_import_set_row"]);
    assert_eq!(parents(&sim, "sys_user").await, ["sys_user"]);
    for (tables, element, expected) in [
        ("incident,task", "caller_id", vec!["incident"]),
        ("incident,task", "short_description", vec!["task"]),
        ("incident,task", "state", vec!["task"]),
        ("incident,task", "sys_id", vec!["task"]),
        ("incident", "short_description", vec![]),
        ("incident,task", "no_such_field", vec![]),
        ("sys_user", "department", vec!["sys_user"]),
    ] {
        let target = format!(
            "/api/now/table/sys_dictionary?sysparm_query=nameIN{tables}%5Eelement={element}&sysparm_fields=name,element"
        );
        let names: Vec<_> = rows(&read(&sim, &target).await)
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, expected, "{tables} {element}");
    }
}

#[tokio::test]
async fn every_field_of_every_record_is_in_the_dictionary() {
    let sim = sim().await;
    let tables = rows(&read(&sim, "/api/now/table/sys_db_object?sysparm_fields=name").await);
    assert!(tables.len() > 20, "{}", tables.len());
    for table in tables {
        let table = table["name"].as_str().unwrap();
        let record = rows(&read(&sim, &format!("/api/now/table/{table}?sysparm_limit=1")).await);
        let Some(Value::Object(record)) = record.first().cloned() else { continue };
        let chain = parents(&sim, record["sys_class_name"].as_str().unwrap()).await.join(",");
        let target = format!(
            "/api/now/table/sys_dictionary?sysparm_query=nameIN{chain}%5EelementISNOTEMPTY&sysparm_fields=element"
        );
        let mut known: Vec<_> = rows(&read(&sim, &target).await)
            .iter()
            .map(|row| row["element"].as_str().unwrap().to_owned())
            .collect();
        known.sort_unstable();
        let before = known.len();
        known.dedup();
        assert_eq!(known.len(), before, "{table}: a field has one row");
        let shown: Vec<_> = record.keys().cloned().collect();
        assert_eq!(known, shown, "{table}");
    }
}

#[tokio::test]
async fn the_dictionary_refers_by_name() {
    let sim = sim().await;
    let query = "/api/now/table/sys_dictionary?sysparm_query=name=incident%5Eelement=caller_id";
    let found = rows(&read(&sim, query).await);
    let link = format!("{}/api/now/table/sys_glide_object?name=reference", sim.origin());
    assert_eq!(found[0]["internal_type"], json!({"link": link, "value": "reference"}));
    assert_eq!(found[0]["reference"]["value"], "sys_user");
    let bare = rows(&read(&sim, &format!("{query}&sysparm_exclude_reference_link=true")).await);
    assert_eq!((&bare[0]["internal_type"], &bare[0]["reference"]), (&json!("reference"), &json!("sys_user")));
    let own = "/api/now/table/sys_dictionary?sysparm_query=name=incident%5EelementISEMPTY";
    let table = rows(&read(&sim, &format!("{own}&sysparm_exclude_reference_link=true")).await);
    assert_eq!(table[0]["internal_type"], "collection");
}

#[tokio::test]
async fn import_sets_insert_update_and_ignore() {
    let sim = sim().await;
    let row = json!({"user_name": "new.one", "first_name": "New", "email": "new@example.com"});
    let first = post(&sim, "/api/now/import/imp_user", &row).await;
    assert_eq!(first.status, 201, "{}", first.text());
    let body = first.json();
    assert!(body["import_set"].as_str().unwrap().starts_with("ISET"));
    assert_eq!(body["staging_table"], "imp_user");
    let outcome = &body["result"][0];
    assert_eq!((&outcome["status"], &outcome["table"]), (&json!("inserted"), &json!("sys_user")));
    assert_eq!(outcome["transform_map"], "User");
    let sys_id = outcome["sys_id"].as_str().unwrap();
    assert_eq!(outcome["record_link"], format!("{}/api/now/table/sys_user/{sys_id}", sim.origin()));
    let stored = read(&sim, &format!("/api/now/table/sys_user/{sys_id}")).await;
    assert_eq!(stored.json()["result"]["email"], "new@example.com");

    let again =
        post(&sim, "/api/now/v1/import/imp_user", &json!({"user_name": "new.one", "title": "x"})).await;
    assert_eq!(again.json()["result"][0]["status"], "updated");
    assert_eq!(again.json()["result"][0]["sys_id"], sys_id);
    let ignored = post(&sim, "/api/now/import/imp_user", &json!({"nothing": "mapped"})).await;
    assert_eq!(ignored.json()["result"][0]["status"], "ignored");

    let location = first.header("location").unwrap().strip_prefix(&sim.origin()).unwrap().to_owned();
    assert_eq!(read(&sim, &location).await.json(), body);
    assert_eq!(read(&sim, "/api/now/import/imp_user/none").await.status, 404);
    assert_eq!(post(&sim, "/api/now/import/incident", &row).await.status, 400, "no staging table");
    assert_eq!(sim.state().counters().requests_to("import"), 6);
}

#[tokio::test]
async fn many_rows_are_imported_at_once() {
    let sim = sim().await;
    let records = json!({"records": [{"u_short_description": "one"}, {"u_short_description": "two"}]});
    let answer = post(&sim, "/api/now/import/u_incident_import/insertMultiple", &records).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let set = answer.member("import_set_id");
    assert_eq!(answer.member("multi_import_set_id").len(), 32);
    let staged = read(&sim, &format!("/api/now/table/u_incident_import?sys_import_set={set}")).await;
    assert_eq!(staged.header("x-total-count"), Some("2"));
    let made = read(&sim, "/api/now/table/incident?sysparm_query=short_descriptionINone,two").await;
    assert_eq!(made.header("x-total-count"), Some("2"));
    let wrong = post(&sim, "/api/now/import/u_incident_import/insertMultiple", &json!([])).await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn catalog_items_are_ordered() {
    let sim = sim().await;
    let items = rows(&read(&sim, "/api/sn_sc/servicecatalog/items?sysparm_text=laptop").await);
    assert_eq!(items.len(), 2);
    let item = items[0]["sys_id"].as_str().unwrap();
    let one = read(&sim, &format!("/api/sn_sc/v1/servicecatalog/items/{item}")).await;
    assert_eq!(one.json()["result"]["name"], items[0]["name"]);
    let category = items[0]["category"].as_str().unwrap();
    let category = read(&sim, &format!("/api/sn_sc/servicecatalog/categories/{category}")).await;
    assert_eq!(category.json()["result"]["title"], "Hardware");
    let target = format!("/api/sn_sc/servicecatalog/items/{item}/order_now");
    assert_eq!(post(&sim, &target, &json!({"sysparm_quantity": "0"})).await.status, 400);
    let ordered = post(&sim, &target, &json!({"sysparm_quantity": "2"})).await;
    let result = &ordered.json()["result"];
    assert_eq!((ordered.status, &result["table"]), (200, &json!("sc_request")));
    let request = result["request_id"].as_str().unwrap();
    let lines = rows(&read(&sim, &format!("/api/now/table/sc_req_item?request={request}")).await);
    assert_eq!((lines.len(), &lines[0]["quantity"]), (1, &json!("2")));
}

#[tokio::test]
async fn a_cart_is_its_user_s() {
    let sim = sim().await;
    let items = rows(&read(&sim, "/api/sn_sc/servicecatalog/items").await);
    for item in &items[..2] {
        let target =
            format!("/api/sn_sc/servicecatalog/items/{}/add_to_cart", item["sys_id"].as_str().unwrap());
        assert_eq!(post(&sim, &target, &json!({"sysparm_quantity": 1})).await.status, 200);
    }
    let cart = read(&sim, "/api/sn_sc/servicecatalog/cart").await.json();
    assert_eq!(cart["result"]["items"].as_array().unwrap().len(), 2);
    let basic = [("Authorization", "Basic YWRtaW46YWRtaW4=")];
    let other = get(&sim, "/api/sn_sc/servicecatalog/cart", &basic).await.json();
    assert_eq!(other["result"]["items"], json!([]), "admin's own");
    let order = "/api/sn_sc/servicecatalog/cart/submit_order";
    assert!(post(&sim, order, &json!({})).await.json()["result"]["request_number"].is_string());
    assert_eq!(post(&sim, order, &json!({})).await.status, 400, "empty by now");
}

#[tokio::test]
async fn knowledge_shows_what_is_published() {
    let sim = sim().await;
    let all = read(&sim, "/api/sn_km_api/knowledge/articles").await.json();
    let articles = all["result"]["articles"].as_array().unwrap();
    assert_eq!((articles.len(), &all["result"]["meta"]["count"]), (6, &json!(6)));
    let some = read(&sim, "/api/sn_km_api/v1/knowledge/articles?query=wi-fi&fields=number").await.json();
    assert_eq!(some["result"]["articles"].as_array().unwrap().len(), 1);
    let number = some["result"]["articles"][0]["number"].as_str().unwrap();
    let one = read(&sim, &format!("/api/sn_km_api/knowledge/articles/{number}")).await;
    assert!(one.json()["result"]["content"].as_str().unwrap().contains("Wi-Fi"));
    let filtered = read(&sim, "/api/sn_km_api/knowledge/articles?filter=workflow_state=draft").await.json();
    assert_eq!(filtered["result"]["articles"], json!([]));
    assert_eq!(read(&sim, "/api/sn_km_api/knowledge/articles/KB0000001").await.status, 404, "a draft");
}

#[tokio::test]
async fn stats_aggregate_group_and_filter() {
    let sim = sim().await;
    let target = "/api/now/stats/incident?sysparm_count=true&sysparm_min_fields=priority&sysparm_max_fields=priority\
                  &sysparm_avg_fields=priority&sysparm_sum_fields=priority,nonsense";
    let stats = read(&sim, target).await.json()["result"]["stats"].clone();
    assert_eq!(stats["count"], "80");
    assert_eq!((&stats["min"]["priority"], &stats["max"]["priority"]), (&json!("1"), &json!("5")));
    let sum: f64 = stats["sum"]["priority"].as_str().unwrap().parse().unwrap();
    let average: f64 = stats["avg"]["priority"].as_str().unwrap().parse().unwrap();
    assert!((sum / 80.0 - average).abs() < 0.001);
    assert!(stats["sum"].get("nonsense").is_none());
    let grouped = "/api/now/stats/incident?sysparm_count=true&sysparm_group_by=category,active\
                   &sysparm_query=active=true&sysparm_display_value=all";
    let groups = rows(&read(&sim, grouped).await);
    let total: u64 =
        groups.iter().map(|group| group["stats"]["count"].as_str().unwrap().parse::<u64>().unwrap()).sum();
    let counted = read(&sim, "/api/now/table/incident?sysparm_query=active=true&sysparm_limit=1").await;
    assert_eq!(Some(total.to_string().as_str()), counted.header("x-total-count"));
    assert!(groups.iter().all(|group| group["groupby_fields"][1]["value"] == "true"));
    let having = format!("{grouped}&sysparm_having=count%5Ecategory%5E%3E%5E12");
    let kept = rows(&read(&sim, &having).await);
    let is_many = |group: &&Value| group["stats"]["count"].as_str().unwrap().parse::<u64>().unwrap() > 12;
    assert_eq!(kept.len(), groups.iter().filter(is_many).count());
    assert!(!kept.is_empty() && kept.len() < groups.len(), "{} of {}", kept.len(), groups.len());
}

/// Fact 7: what a broker that lets a batch through would let through.
#[tokio::test]
async fn a_batch_does_what_its_items_say() {
    let sim = sim().await;
    let found = read(&sim, "/api/now/table/incident?sysparm_limit=1").await;
    let id = found.json()["result"][0]["sys_id"].as_str().unwrap().to_owned();
    let headers = json!([
        {"name": "Accept", "value": "application/json"}, {"name": "Content-Type", "value": "application/json"}
    ]);
    let created = STANDARD.encode(r#"{"short_description":"from a batch"}"#);
    let batch = json!({"batch_request_id": "b", "rest_requests": [
        {"id": "1", "method": "POST", "url": "/api/now/table/incident", "headers": headers, "body": created},
        {"id": "2", "method": "GET", "url": format!("/api/now/table/incident/{id}"),
         "headers": [{"name": "X-HTTP-Method-Override", "value": "DELETE"}], "exclude_response_headers": true},
        {"id": "3", "url": "/api/now/v1/batch", "headers": headers},
        {"id": "4", "url": "/api/now/table/nonsense"},
    ]});
    let answer = post(&sim, "/api/now/v1/batch", &batch).await.json();
    assert_eq!(answer["unserviced_requests"], json!([]));
    let serviced = answer["serviced_requests"].as_array().unwrap();
    let statuses: Vec<_> = serviced.iter().map(|item| item["status_code"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 204, 400, 400]);
    let body = STANDARD.decode(serviced[0]["body"].as_str().unwrap()).unwrap();
    assert!(String::from_utf8(body).unwrap().contains("from a batch"));
    assert_eq!(serviced[1]["headers"], json!([]));
    assert_eq!(read(&sim, &format!("/api/now/table/incident/{id}")).await.status, 404);
    let counters = sim.state().counters();
    assert_eq!((counters.requests_to("batch"), counters.batched_requests), (1, 4));
}

#[tokio::test]
async fn a_tiny_url_stands_for_its_query() {
    let sim = sim().await;
    let url = "/api/now/table/incident?sysparm_query=category=network&sysparm_fields=category";
    let tiny = post(&sim, "/api/now/tinyurl", &json!({"url": url})).await.member("result");
    let found = read(&sim, &tiny).await;
    assert!(rows(&found).iter().all(|row| *row == json!({"category": "network"})));
    let elsewhere = tiny.replace("/incident", "/incident/").replace("/incident/", "/sys_user");
    assert_eq!(read(&sim, &elsewhere).await.status, 200, "the query goes with any path");
    assert_eq!(sim.state().counters().requests_to("tinyurl"), 1);
}

#[tokio::test]
async fn a_missing_scope_is_a_403_of_access_tokens_alone() {
    let sim = sim_with(json!({"scope_denials": ["/table/problem"]})).await;
    let denied = read(&sim, "/api/now/table/problem").await;
    assert_eq!(denied.status, 403);
    assert_eq!(denied.json()["error"]["detail"], "Missing required api access scope");
    assert_eq!(read(&sim, "/api/now/table/incident?sysparm_limit=1").await.status, 200);
    let basic = [("Authorization", "Basic YWRtaW46YWRtaW4=")];
    assert_eq!(get(&sim, "/api/now/table/problem", &basic).await.status, 200);
}

#[tokio::test]
async fn every_answer_has_a_transaction_id() {
    let sim = sim().await;
    for target in ["/api/now/table/incident", "/oauth_auth.do", "/nothing", "/api/now/v1/batch"] {
        let id = get(&sim, target, &[]).await.header("x-transaction-id").unwrap_or_default().to_owned();
        assert_eq!(id.len(), 12, "{target}");
    }
}
