//! Marked secrets through everything, at the most talkative log level: none of them comes out where it must not
//! (O-53, O-54, S-08).

use std::{collections::BTreeMap, fs, path::Path};

use bearerd_tests::{CLIENT_ID, CLIENT_SECRET, Deployment, Redis, Request, Setup, WebClient, get, request};
use http::Method;
use serde_json::json;
use servicenow_sim::{Behaviour, ErrorShape, Fault, FaultOn, FaultRule, RefreshWithinLife};

#[test]
fn nothing_leaks_with_the_embedded_store() {
    let traffic = Traffic::start(Setup::new("leaks-embedded"));
    let file = traffic.deployment.daemon.folder().join("bearerd.redb");
    traffic.check(|| fs::read(&file).unwrap());
}

#[test]
fn nothing_leaks_with_redis() {
    let redis = Redis::start();
    Traffic::start(Setup::new("leaks-redis").redis(&redis)).check(|| {
        redis.cli(&["SAVE"]); // an RDB file beside the append-only one
        let mut bytes = Vec::new();
        collect(redis.folder(), &mut bytes);
        bytes
    });
}

/// A daemon at trace level, the secrets that went through it, and all that it answered.
struct Traffic {
    deployment: Deployment,
    secrets: BTreeMap<String, &'static str>,
    answers: String,
}

impl Traffic {
    fn start(setup: Setup) -> Self {
        let setup = setup.set("process.log", "trace").set("tokens.wait_max_s", "1");
        let behaviour = Behaviour {
            auto_approve: Some("abel.tuter".to_owned()),
            refresh_within_life: RefreshWithinLife::New,
            rotation: true,
            error_shape: ErrorShape::Rfc6749,
            ..Behaviour::default()
        };
        let deployment = Deployment::start(setup, behaviour);
        Self { deployment, secrets: BTreeMap::new(), answers: String::new() }
    }

    /// Everything once, then the search.
    fn check(mut self, stored: impl FnOnce() -> Vec<u8>) {
        self.mark("client secret", CLIENT_SECRET);
        let admin_key = self.deployment.daemon.admin_key().to_owned();
        self.mark_key("admin key", &admin_key);
        self.deployment.add_integration("hr");
        self.consent();
        self.import();
        self.deployment.add_open_policy("open");
        let key = self.deployment.daemon.new_key("open");
        self.mark_key("caller key", &key);
        for connection in ["hr-prod", "imported"] {
            self.call_and_refresh(connection, &key);
        }
        self.call_in_trouble(&key);
        self.look_at_everything(&key);

        let tokens = self.secrets.values().filter(|name| name.ends_with("token")).count();
        assert!(tokens >= 6, "several pairs of tokens were minted: {tokens}");
        let log = self.deployment.daemon.log();
        assert!(log.contains("DEBUG"), "the log says more than it usually does");
        let stored = stored();
        let places =
            [("the answers", self.answers.as_bytes()), ("the log", log.as_bytes()), ("the store", &stored)];
        let found: Vec<String> =
            places.iter().flat_map(|(place, bytes)| self.found_in(place, bytes)).collect();
        assert!(found.is_empty(), "{found:#?}");
        // Not only secrets: whoever reads the store learns no user and no instance either (S-08).
        for name in ["abel.tuter", "Abel Tuter", self.deployment.instance.as_str()] {
            assert!(!contains(&stored, name), "{name} in the store");
        }
    }

    fn mark(&mut self, name: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{name} is too short to be looked for");
        self.secrets.insert(secret.to_owned(), name);
    }

    /// A key's secret part: its id is no secret.
    fn mark_key(&mut self, name: &'static str, key: &str) {
        self.mark(name, key.rsplit_once('_').unwrap().1);
    }

    fn mark_tokens(&mut self) {
        for family in self.deployment.sim().tokens() {
            for (name, token) in
                [("access token", family.access_token), ("refresh token", family.refresh_token)]
            {
                if let Some(token) = token {
                    self.mark(name, &token);
                }
            }
        }
    }

    #[track_caller]
    fn note(&mut self, request: &Request) {
        self.answers.push_str(&request.send().everything());
    }

    /// Step by step, with the link, the code and the state; then all of it again.
    fn consent(&mut self) {
        let link = self.deployment.add_connection("hr-prod", "hr", Some("abel.tuter"));
        self.mark("connect link", link.rsplit('/').next().unwrap());
        let mut browser = WebClient::new();
        let at_instance = browser.begin(&link);
        let callback = browser.approve(&at_instance);
        for pair in callback.split_once('?').unwrap().1.split('&') {
            match pair.split_once('=').unwrap() {
                ("code", code) => self.mark("authorization code", code),
                ("state", state) => self.mark("state", state),
                other => panic!("{other:?} in a callback"),
            }
        }
        for url in [&callback, &callback, &link] {
            self.answers.push_str(&browser.get(url).everything());
        }
        self.mark_tokens();
        assert_eq!(self.deployment.connection_state("hr-prod"), "active");
    }

    /// Tokens that another program obtained.
    fn import(&mut self) {
        let form = format!(
            "grant_type=password&client_id={CLIENT_ID}&client_secret={CLIENT_SECRET}&username=beth.anglin&password=demo"
        );
        let obtained = request(Method::POST, &format!("{}/oauth_token.do", self.deployment.instance))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .json();
        self.mark_tokens();
        let import = json!({
            "access_token": obtained["access_token"],
            "expires_in": obtained["expires_in"],
            "refresh_token": obtained["refresh_token"],
        });
        let body = json!({"integration": "hr", "import": import});
        self.note(&self.deployment.daemon.admin(Method::PUT, "/v1/connections/imported").json(&body));
        assert_eq!(self.deployment.connection_state("imported"), "active");
    }

    fn call_and_refresh(&mut self, connection: &str, key: &str) {
        for (method, path) in [
            (Method::GET, "/api/now/table/incident?sysparm_limit=2"),
            (Method::GET, "/api/now/table/incident/ffffffffffffffffffffffffffffffff"),
            (Method::POST, "/api/now/table/incident"),
            (Method::POST, "/api/now/v1/batch"),
            (Method::GET, "/api/now/table/incident%2e"),
        ] {
            let call = self.deployment.daemon.call(method, path, key).header("connection-id", connection);
            self.note(&call.json(&json!({"short_description": "x"})));
        }
        for act in ["refresh", "test"] {
            let path = format!("/v1/connections/{connection}/{act}");
            self.note(&self.deployment.daemon.admin(Method::POST, &path));
        }
        self.mark_tokens();
    }

    /// Faults at the token endpoint and behind it, then a grant that dies.
    fn call_in_trouble(&mut self, key: &str) {
        let call = self.deployment.incidents(key).header("connection-id", "hr-prod");
        for fault in
            [Fault::Unauthorized401, Fault::DropAfter, Fault::Html { status: 200 }, Fault::BrokenJson]
        {
            for on in [FaultOn::Token, FaultOn::Table] {
                self.deployment.sim().add_fault(FaultRule::new(on, fault.clone()).once());
            }
            for act in ["refresh", "test"] {
                let path = format!("/v1/connections/hr-prod/{act}");
                self.note(&self.deployment.daemon.admin(Method::POST, &path));
            }
            self.note(&call);
            self.mark_tokens();
        }
        self.deployment.sim().clear_faults();
        self.deployment.sim().revoke_user("abel.tuter", false);
        for _ in 0..3 {
            self.note(&call);
        }
    }

    /// Every GET of the admin door, the wrong key at each door, and a table of the command line.
    fn look_at_everything(&mut self, key: &str) {
        for path in [
            "/v1/integrations",
            "/v1/integrations/hr",
            "/v1/connections",
            "/v1/connections/hr-prod",
            "/v1/connections/imported",
            "/v1/keys",
            "/v1/policies",
            "/v1/policies/open",
            "/v1/status",
            "/metrics",
            "/livez",
            "/readyz",
            "/openapi.json",
        ] {
            self.note(&self.deployment.daemon.admin(Method::GET, path));
        }
        self.note(&get(&format!("{}/v1/keys", self.deployment.daemon.admin_origin())).bearer(key));
        self.note(&self.deployment.incidents(self.deployment.daemon.admin_key()));
        let listed = self.deployment.daemon.cli(&["connection", "list", "--output", "table"]);
        self.answers.push_str(&listed.everything());
    }

    fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        assert!(!bytes.is_empty(), "{place} is empty: nothing was searched");
        let found = self.secrets.iter().filter(|(secret, _)| contains(bytes, secret));
        found.map(|(secret, name)| format!("{name} ({}…) in {place}", &secret[..6])).collect()
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
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
