//! Marked secrets through everything, at the most talkative log level: none of them comes out where it must not
//! (O-53, O-54, S-08).

use std::{collections::BTreeMap, fs, path::Path};

use bearerd_tests::{CLIENT_SECRET, Deployment, Redis, Setup, WebClient};
use http::Method;
use serde_json::json;
use servicenow_sim::{Behaviour, ErrorShape, Fault, FaultOn, FaultRule, RefreshWithinLife};

#[test]
fn nothing_leaks_with_the_embedded_store() {
    check("leaks-embedded", None);
}

#[test]
fn nothing_leaks_with_redis() {
    check("leaks-redis", Some(Redis::start()));
}

/// Named secrets, and where each was found.
#[derive(Default)]
struct Canaries(BTreeMap<&'static str, Vec<String>>);

impl Canaries {
    fn add(&mut self, name: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{name} is too short to be looked for");
        self.0.entry(name).or_default().push(secret.to_owned());
    }

    /// A key's secret part: its id is no secret.
    fn add_key(&mut self, name: &'static str, key: &str) {
        self.add(name, key.rsplit_once('_').unwrap().1);
    }

    fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        assert!(!bytes.is_empty(), "{place} is empty: nothing was searched");
        let all = self.0.iter().flat_map(|(name, secrets)| secrets.iter().map(move |secret| (name, secret)));
        let found = all.filter(|(_, secret)| memory_contains(bytes, secret.as_bytes()));
        found.map(|(name, secret)| format!("{name} ({}…) in {place}", &secret[..6])).collect()
    }
}

fn memory_contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn check(name: &str, redis: Option<Redis>) {
    let setup = Setup::new(name).set("process.log", "trace").set("tokens.wait_max_s", "1");
    let setup = if let Some(redis) = &redis { setup.redis(redis) } else { setup };
    let behaviour = Behaviour {
        auto_approve: Some("abel.tuter".to_owned()),
        refresh_within_life: RefreshWithinLife::New,
        rotation: true,
        error_shape: ErrorShape::Rfc6749,
        ..Behaviour::default()
    };
    let deployment = Deployment::start(setup, behaviour);
    let daemon = &deployment.daemon;
    let mut canaries = Canaries::default();
    canaries.add("client secret", CLIENT_SECRET);
    canaries.add_key("admin key", daemon.admin_key());

    // A consent, step by step, with its link, code and state.
    deployment.add_integration("hr");
    let link = deployment.add_connection("hr-prod", "hr", Some("abel.tuter"));
    canaries.add("connect link", link.rsplit('/').next().unwrap());
    let mut browser = WebClient::new();
    let mut pages = String::new();
    let at_instance = browser.begin(&link);
    let callback = browser.approve(&at_instance);
    for pair in callback.split_once('?').unwrap().1.split('&') {
        let (name, value) = pair.split_once('=').unwrap();
        canaries.add(if name == "code" { "authorization code" } else { "state" }, value);
    }
    pages.push_str(&browser.get(&callback).everything());
    pages.push_str(&browser.get(&callback).everything()); // replayed
    pages.push_str(&browser.get(&link).everything()); // used up
    deployment.add_open_policy("open");
    let key = daemon.new_key("open");
    canaries.add_key("caller key", &key);

    // Imported tokens.
    let imported = [
        ("imported access token", "canary-imported-access-2f6e1c"),
        ("imported refresh token", "canary-imported-refresh-9b30"),
    ];
    for (name, token) in imported {
        canaries.add(name, token);
    }
    let import = json!({"integration": "hr", "import": {"access_token": imported[0].1, "expires_in": 60, "refresh_token": imported[1].1}});
    daemon.put("/v1/connections/imported", &import);

    // Calls of every kind, with a token in the query and in a body; refreshes; refusals.
    let mut answers = String::new();
    let mut tokens = Vec::new();
    let mut note_tokens = || {
        for family in deployment.sim().tokens() {
            tokens.extend([family.access_token, family.refresh_token].into_iter().flatten());
        }
    };
    note_tokens();
    for connection in ["hr-prod", "imported"] {
        for (method, path) in [
            (Method::GET, "/api/now/table/incident?sysparm_limit=2"),
            (Method::GET, "/api/now/table/incident/ffffffffffffffffffffffffffffffff"),
            (Method::POST, "/api/now/table/incident"),
            (Method::POST, "/api/now/v1/batch"),
            (Method::GET, "/api/now/table/../../x"),
        ] {
            let call = daemon
                .call(method, path, &key)
                .header("connection-id", connection)
                .json(&json!({"short_description": "x"}));
            answers.push_str(&call.send().everything());
        }
        let refreshed = daemon.admin(Method::POST, &format!("/v1/connections/{connection}/refresh")).send();
        answers.push_str(&refreshed.everything());
        note_tokens();
    }
    for fault in [Fault::Unauthorized401, Fault::DropAfter, Fault::Html { status: 200 }, Fault::BrokenJson] {
        for on in [FaultOn::Token, FaultOn::Table] {
            deployment.sim().add_fault(FaultRule::new(on, fault.clone()).once());
        }
        answers.push_str(&daemon.admin(Method::POST, "/v1/connections/hr-prod/refresh").send().everything());
        answers.push_str(
            &daemon
                .call(Method::GET, "/api/now/table/incident", &key)
                .header("connection-id", "hr-prod")
                .send()
                .everything(),
        );
        answers.push_str(&daemon.admin(Method::POST, "/v1/connections/hr-prod/test").send().everything());
        note_tokens();
    }
    deployment.sim().clear_faults();
    deployment.sim().revoke_user("abel.tuter", false);
    for _ in 0..3 {
        answers.push_str(
            &daemon
                .call(Method::GET, "/api/now/table/incident", &key)
                .header("connection-id", "hr-prod")
                .send()
                .everything(),
        );
    }
    for (index, token) in tokens.iter().enumerate() {
        canaries.add(if index % 2 == 0 { "access token" } else { "refresh token" }, token);
    }
    assert!(tokens.len() >= 6, "several pairs of tokens were minted: {}", tokens.len());

    // Every GET of the admin door, and wrong keys on both doors.
    for path in [
        "integrations",
        "connections",
        "keys",
        "policies",
        "status",
        "integrations/hr",
        "connections/hr-prod",
        "connections/imported",
        "policies/open",
    ] {
        answers.push_str(&daemon.admin(Method::GET, &format!("/v1/{path}")).send().everything());
    }
    for path in ["/metrics", "/livez", "/readyz", "/openapi.json"] {
        answers.push_str(&daemon.admin(Method::GET, path).send().everything());
    }
    answers.push_str(
        &bearerd_tests::get(&format!("{}/v1/keys", daemon.admin_origin())).bearer(&key).send().everything(),
    );
    answers.push_str(
        &daemon.call(Method::GET, "/api/now/table/incident", daemon.admin_key()).send().everything(),
    );
    let listed = daemon.cli(&["connection", "list", "--output", "table"]);
    answers.push_str(&listed.everything());

    if let Some(redis) = &redis {
        redis.cli(&["SAVE"]); // an RDB file beside the append-only one
    }
    let mut found = canaries.found_in("the answers", answers.as_bytes());
    found.extend(canaries.found_in("the connect door's answers", pages.as_bytes()));
    let log = daemon.log();
    assert!(log.contains("TRACE"), "the log is at trace level");
    found.extend(canaries.found_in("the log", log.as_bytes()));
    let mut stored = Vec::new();
    match &redis {
        Some(redis) => collect(redis.folder(), &mut stored),
        None => stored = fs::read(daemon.folder().join("bearerd.redb")).unwrap(),
    }
    found.extend(canaries.found_in("the store", &stored));
    // Not only secrets: the store names no user and no instance either (S-08).
    for name in ["abel.tuter", "Abel Tuter", deployment.instance.as_str()] {
        assert!(!memory_contains(&stored, name.as_bytes()), "{name} in the store");
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The bytes of every file beneath.
fn collect(folder: &Path, bytes: &mut Vec<u8>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            collect(&entry.path(), bytes);
        } else {
            bytes.extend(fs::read(entry.path()).unwrap());
        }
    }
}
