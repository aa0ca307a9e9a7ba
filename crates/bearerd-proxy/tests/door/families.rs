//! What else than tables can be opened, and how many calls at once.

use std::collections::BTreeSet;

use bearerd_model::{FamilyName, RateLimit, RecordRule, Rule, TableSet};
use bearerd_proxy::{FamilySettings, ProxySettings};

use crate::support::{Door, Instance, ids, ok, rule, soon};

fn opening(families: &[&str], tables: TableSet, methods: &[&str]) -> Rule {
    let families = families.iter().map(|name| FamilyName::parse(name).unwrap()).collect();
    Rule { families, tables, ..rule(ids(&["hr"]), &[], methods) }
}

/// Each family that a policy opens by name is reached with its path as it is, and no other.
#[tokio::test]
async fn families_are_opened_by_name() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let rules = vec![
        opening(&["stats", "import"], TableSet::Named(BTreeSet::from(["incident".into()])), &["GET", "POST"]),
        opening(&["attachment", "now/cmdb", "sn_sc"], TableSet::All, &["GET", "POST"]),
    ];
    door.change_policy(|policy| policy.rules = rules);
    let origin = instance.serve(|request| ok(&request.first_line, ""));
    drop(origin);
    for (path, status) in [
        ("/api/now/stats/incident?sysparm_count=true", 200),
        ("/api/now/v1/import/incident", 200),
        ("/api/now/attachment/0123456789abcdef/file", 200),
        ("/api/now/cmdb/instance/x", 200),
        ("/api/sn_sc/v1/servicecatalog/items", 200),
        ("/c/hr/api/sn_sc/servicecatalog/items", 200),
        ("/api/now/stats/problem", 403),
        ("/api/now/table/incident", 403),
        ("/api/now/v1/batch", 403),
        ("/api/now/tinyurl", 403),
        ("/api/sn_km_api/knowledge/articles", 403),
        ("/api/now/pa/scorecards", 403),
        ("/api/now/attachment/x/other", 400),
    ] {
        let answer = door.once(&format!("GET {path}"), "").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if status == 200 {
            let sent = path.strip_prefix("/c/hr").unwrap_or(path);
            assert_eq!(answer.text(), format!("GET {sent} HTTP/1.1"));
        } else {
            assert_ne!(answer.code(), "", "{path}");
        }
    }
}

/// P-20: a family's own limit, and 202 and HTML are answers outside of the table family.
#[tokio::test]
async fn a_family_has_limits_and_sense_of_its_own() {
    let instance = Instance::listen().await;
    let settings = ProxySettings {
        attachment: FamilySettings { body_bytes_max: 2_000, ..FamilySettings::ATTACHMENT },
        ..ProxySettings::default()
    };
    let door = Door::open_with(&instance, settings);
    door.change_policy(|policy| policy.rules.push(opening(&["attachment"], TableSet::All, &["GET", "POST"])));
    instance.serve(|_| {
        "HTTP/1.1 202 Accepted\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nok".to_owned()
    });
    let refused = door.once("POST /api/now/attachment/file", "content-length: 2001\r\n").await;
    assert_eq!((refused.status, refused.code()), (413, "body_too_large"));
    let passed = door.once("GET /api/now/attachment/x/file", "").await;
    assert_eq!((passed.status, passed.text()), (202, "ok"));
    let judged = door.once("GET /api/now/table/incident", "").await;
    assert_eq!((judged.status, judged.code()), (503, "instance_dropped_request"));
}

/// The rule goes into the query, whatever the caller asked; what it does not leave open is refused before the instance.
#[tokio::test]
async fn a_record_rule_goes_into_every_query() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    let origin = instance.origin.clone();
    door.change_policy(|policy| {
        let records = RecordRule {
            condition: "active=true".to_owned(),
            fields: Some(BTreeSet::from(["number".to_owned(), "state".to_owned()])),
            limit_max: 50,
            checked_at: BTreeSet::from([origin]),
        };
        policy.rules =
            vec![Rule { records: Some(records), ..rule(ids(&["hr"]), &["incident"], &["GET", "PATCH"]) }];
    });
    instance.serve(|request| ok(&request.first_line, ""));
    let answer = door.once("GET /api/now/table/incident?sysparm_query=state%3D1%5ENQstate%3D2", "").await;
    let query =
        answer.text().split(' ').nth(1).unwrap().replace("%3D", "=").replace("%5E", "^").replace("%2C", ",");
    assert!(query.contains("sysparm_query=active=true^state=1^NQactive=true^state=2"), "{query}");
    assert!(query.contains("sysparm_fields=number,state") && query.contains("sysparm_limit=50"), "{query}");
    for (line, code) in [
        ("GET /api/now/table/incident?sysparm_query=caller_id%3Dx", "policy_denied"),
        ("GET /api/now/table/incident?sysparm_tiny=x", "policy_denied"),
        ("GET /api/now/table/incident?active=false", "policy_denied"),
        ("GET /api/now/table/incident/0123456789abcdef0123456789abcdef", "policy_denied"),
        ("PATCH /api/now/table/incident", "policy_denied"),
    ] {
        assert_eq!(door.once(line, "").await.code(), code, "{line}");
    }
}

#[tokio::test]
async fn a_key_has_its_rate_and_no_more() {
    let instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.change_policy(|policy| policy.rate = Some(RateLimit { calls: 2, per_s: 10, burst: None }));
    instance.serve(|_| ok("{}", ""));
    let mut caller = door.call().await;
    for expected in [200, 200, 429, 429] {
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let answer = caller.answer(false).await;
        assert_eq!(answer.status, expected);
        if expected == 429 {
            assert_eq!((answer.code(), answer.header("retry-after")), ("caller_rate_limited", Some("5")));
        }
    }
    door.clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(door.once("GET /api/now/table/incident", "").await.status, 200);
}

#[tokio::test]
async fn a_key_has_so_many_calls_at_once() {
    let mut instance = Instance::listen().await;
    let door = Door::open(&instance);
    door.change_policy(|policy| policy.concurrency_max = Some(1));
    let mut first = door.call().await;
    first.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let refused = door.once("GET /api/now/table/incident", "").await;
    assert_eq!((refused.status, refused.code()), (429, "caller_concurrency"));
    peer.send(ok("{}", "")).await;
    assert_eq!(first.answer(false).await.status, 200);
    // A call that is given up gives its share back too.
    first.send(door.head("GET /api/now/table/incident", "")).await;
    peer.request().await;
    drop(first);
    peer.closed().await;
    door.until("bearerd_proxy_requests_in_flight", 0).await;
    let mut next = door.call().await;
    next.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    peer.send(ok("{}", "")).await;
    assert_eq!(next.answer(false).await.status, 200);
}

/// Who finds no place at the instance waits for one, and is shed where too many do.
#[tokio::test]
async fn places_at_an_instance_are_waited_for() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings { instance_calls_max: 1, instance_queue_max: 1, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut first = door.call().await;
    first.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let mut second = door.call().await;
    second.send(door.head("GET /api/now/table/incident", "")).await;
    door.until("bearerd_proxy_calls_queued_total", 1).await;
    let shed = door.once("GET /api/now/table/incident", "").await;
    assert_eq!((shed.status, shed.code(), shed.header("retry-after")), (503, "overloaded", Some("1")));
    // While it waits, the connection is frozen: it is judged again.
    peer.send(ok("{}", "")).await;
    assert_eq!(first.answer(false).await.status, 200);
    soon(peer.request()).await;
    peer.send(ok("second", "")).await;
    assert_eq!(second.answer(false).await.text(), "second");
    assert_eq!(instance.accepted(), 1);
}

#[tokio::test]
async fn who_waited_for_a_place_is_judged_again() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings { instance_calls_max: 1, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut first = door.call().await;
    first.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    peer.request().await;
    let mut second = door.call().await;
    second.send(door.head("GET /api/now/table/incident", "")).await;
    door.until("bearerd_proxy_calls_queued_total", 1).await;
    door.tokens.set_standing("hr", bearerd_tokens::Standing::Closed(bearerd_tokens::LendError::Frozen));
    peer.send(ok("{}", "")).await;
    assert_eq!(first.answer(false).await.status, 200);
    assert_eq!(second.answer(false).await.code(), "connection_frozen");
}

/// P-19: where places are few, a caller that sends slowly holds none.
#[tokio::test]
async fn a_slow_body_holds_no_place_where_these_are_few() {
    let mut instance = Instance::listen().await;
    let settings = ProxySettings { instance_calls_max: 3, ..ProxySettings::default() };
    let door = Door::open_with(&instance, settings);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut caller = door.call().await;
        caller.send(door.head("GET /api/now/table/incident", "")).await;
        let mut peer = instance.accept().await;
        peer.request().await;
        held.push((caller, peer));
    }
    let mut slow = door.call().await;
    slow.send(door.head("POST /api/now/table/incident", "content-length: 5\r\n") + "ab").await;
    door.until("bearerd_proxy_requests_in_flight", 3).await;
    let mut quick = door.call().await;
    quick.send(door.head("GET /api/now/table/incident", "")).await;
    let mut peer = instance.accept().await;
    assert_eq!(peer.request().await.first_line, "GET /api/now/table/incident HTTP/1.1");
    peer.send(ok("quick", "")).await;
    assert_eq!(quick.answer(false).await.text(), "quick");
    slow.send("cde").await;
    assert_eq!(peer.request().await.text(), "abcde");
    peer.send(ok("slow", "")).await;
    assert_eq!(slow.answer(false).await.text(), "slow");
}
