//! The commands against a real admin door on loopback, with the in-memory store.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bearerd_admin::{
    AdminDoor, AdminKeys, AdminParts, AdminSettings,
    wire::{ExplainRequest, Explanation, WireTime},
};
use bearerd_control::{ConnectRules, Control, InstanceRules};
use bearerd_crypto::KeyRing;
use bearerd_model::{Clock, FakeClock, UnixTime};
use bearerd_net::{Connector, EgressSettings, ListenSettings, Listener};
use bearerd_policy::{ApiKey, KeyKind};
use bearerd_store::{MemoryBackend, Store};
use bearerd_tokens::{ProcessPlace, TokenEngine, TokenSettings};
use clap::{CommandFactory, Parser};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    error::Exit,
    input, output,
    policy::{Asked, explained},
    *,
};

/// As the binary mounts the commands.
#[derive(Debug, Parser)]
#[command(name = "bearerd")]
struct Cli {
    #[command(subcommand)]
    command: ClientCommand,
}

struct Daemon {
    address: SocketAddr,
    key: ApiKey,
    files: TempDir,
    stop: CancellationToken,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn daemon() -> Daemon {
    let ring = Arc::new(KeyRing::parse(&KeyRing::new_key_file()).unwrap());
    let store = Store::open(Arc::new(MemoryBackend::default()), ring).await.unwrap();
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::at(UnixTime::from_millis(now)));
    let registry = prometheus::Registry::new();
    let connector = Connector::new(&EgressSettings::default()).unwrap();
    let settings = TokenSettings::default();
    let tokens = TokenEngine::start(
        store.clone(),
        connector,
        Arc::clone(&clock),
        settings,
        ProcessPlace::alone(),
        &registry,
    )
    .unwrap();
    let connect = ConnectRules {
        public_url: "https://connect.example".to_owned(),
        confirm: true,
        link_lifetime: Duration::from_hours(1),
    };
    let control = Control::new(store, Arc::new(tokens), clock, connect, InstanceRules::default());
    control.load().await.unwrap();
    let key = ApiKey::generate(KeyKind::Admin);
    let keys = AdminKeys::parse(&AdminKeys::setting_for(&key)).unwrap();
    let draining = CancellationToken::new();
    let parts = AdminParts { control: Arc::new(control), keys, registry, draining };
    let listen = ListenSettings::at("127.0.0.1:0");
    let listener = Listener::bind(&listen, &[]).unwrap();
    let (address, stop) = (listener.address().tcp().unwrap(), CancellationToken::new());
    tokio::spawn(AdminDoor::new(&AdminSettings::default(), parts).serve(listener, stop.clone()));
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("client-secret"), "canary-client-secret\n").unwrap();
    std::fs::write(files.path().join("admin-key"), format!("{}\n", key.expose())).unwrap();
    Daemon { address, key, files, stop }
}

impl Daemon {
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Parses and performs a command line; `@NAME` stands for a file of the daemon's folder.
    async fn run(&self, line: &str) -> Result<Report, CliError> {
        let folder = self.files.path().to_str().unwrap();
        let mut words = vec!["bearerd".to_owned()];
        words.extend(line.split_whitespace().map(|word| word.replace('@', &format!("{folder}/"))));
        let url = format!("http://{}", self.address);
        let key_file = format!("{folder}/admin-key");
        words.extend(["--admin-url", &url, "--admin-key-file", &key_file].map(str::to_owned));
        let Cli { command } = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        let report = perform(command).await;
        let said = format!("{report:?}");
        assert!(!said.contains("canary") && !said.contains(self.key.expose()), "{said}");
        report
    }

    async fn ok(&self, line: &str, words: &[&str]) -> Report {
        let report = self.run(line).await.unwrap_or_else(|error| panic!("{line}: {error}"));
        for word in words {
            assert!(report.text.contains(word), "{word} in the answer to {line}:\n{}", report.text);
        }
        report
    }

    async fn fails(&self, line: &str, code: &str, exit: Exit) {
        let error = self.run(line).await.unwrap_err();
        assert_eq!(error.code_and_exit(), (code, exit), "{error}");
        assert!(error.to_string().contains("\n  fix: "), "{error}");
    }
}

const ADD_HR: &str =
    "integration add hr --instance http://127.0.0.1:9 --client-id hr --client-secret-file @client-secret";

#[test]
fn the_command_line_is_sound_and_every_command_has_an_example() {
    Cli::command().debug_assert();
    for group in Cli::command().get_subcommands() {
        for command in group.get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("bearerd "), "{} {}", group.get_name(), command.get_name());
        }
    }
}

#[test]
fn the_admin_key_is_refused_on_the_command_line() {
    let error = Cli::try_parse_from(["bearerd", "key", "list", "--admin-key", "bda_canary"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("BEARERD_ADMIN_KEY") && !text.contains("canary"), "{text}");
    assert_eq!(error.exit_code(), 2);
}

#[tokio::test]
async fn from_integration_to_key() {
    let daemon = daemon().await;
    daemon.ok("integration list", &["no integration yet", "integration add --help"]).await;
    let redirect = "https://connect.example/oauth/callback";
    daemon
        .ok(
            ADD_HR,
            &["added", redirect, "Application Registry", "Client ID", "connection add NAME --integration hr"],
        )
        .await;
    daemon.fails(ADD_HR, "exists", Exit::Conflict).await;
    daemon.ok(&format!("{ADD_HR} --replace"), &["changed"]).await;
    daemon.ok("integration list", &["REDIRECT URI", "hr", "default: authorization_code", redirect]).await;
    daemon.ok("integration show hr", &["set (not shown)", "100 days", "S256"]).await;

    let line = "connection add hr-prod --integration hr --label env=prod --expected-user svc";
    daemon.ok(line, &["added", "https://connect.example/connect/", "connection show hr-prod"]).await;
    daemon.ok("connection list", &["hr-prod", "awaiting consent", "http://127.0.0.1:9"]).await;
    daemon
        .ok("connection show hr-prod", &["awaiting consent", "env=prod", "svc", "reauthorize hr-prod"])
        .await;
    daemon.ok("connection reauthorize hr-prod", &["https://connect.example/connect/", "in "]).await;
    let frozen =
        daemon.ok("connection freeze hr-prod --reason upgrade", &["Frozen", "FROZEN", "upgrade"]).await;
    assert_eq!(frozen.json["frozen"]["reason"], "upgrade");
    daemon.ok("connection unfreeze hr-prod", &["Unfrozen"]).await;
    daemon.fails("connection confirm hr-prod --user svc", "nothing_to_confirm", Exit::Conflict).await;

    let line = "policy add readers --connection hr-prod --table incident --table problem --method get";
    daemon.ok(line, &["GET on incident, problem through hr-prod", "key add"]).await;
    daemon.file("rules.json", r#"[{"connections": "all", "tables": "all", "methods": ["GET"]}]"#);
    daemon.ok("policy add all --file @rules.json", &["GET on every table through every connection"]).await;
    daemon
        .ok(
            "policy add by-label --label env=prod --all-tables --method PATCH",
            &["connections with env=prod"],
        )
        .await;
    let listed = daemon.ok("policy list", &["readers", "by-label"]).await;
    assert_eq!(listed.json.as_array().unwrap().len(), 3);
    let line = "policy add files --connection hr-prod --family attachment --family now/ui --all-tables --method GET \
                --network 10.0.0.0/8 --expires 2027-01-01T00:00:00Z --rate 100/1m --burst 20 --concurrency 4";
    let rule = "GET on every table through hr-prod, in attachment, now/ui, from 10.0.0.0/8, until 2027-01-01T00:00:00Z";
    let made =
        daemon.ok(line, &[rule, "100 calls in 60 s of each key, 20 at once", "4 calls of each key"]).await;
    assert_eq!(made.json["rate"], serde_json::json!({"calls": 100, "per_s": 60, "burst": 20}));
    let line = "policy add own --connection hr-prod --table incident --method GET --records active=true --field number";
    daemon.fails(line, "unchecked", Exit::Conflict).await; // hr-prod awaits its consent
    let line = "policy explain --policy readers --connection hr-prod --table incident";
    daemon.ok(line, &["allowed", "yes", "1 of policy readers"]).await;
    let line = format!("{line} --method patch --item");
    let next = "(bearerd policy add readers --replace) with --method PATCH in rule 1";
    daemon.ok(&line, &["no", "1 of policy readers", "not for PATCH", next]).await;
    let line = "policy explain --policy files --connection other --family now/ui --source 10.1.2.3";
    daemon.ok(line, &["there is no connection other", "404"]).await;

    let line = "key add --description sync --policy readers --default-connection hr-prod --expires-in 90d";
    let made = daemon.ok(line, &["only time", "curl -H 'Authorization: Bearer bd_", "ends in 90 days"]).await;
    let id = made.json["id"].as_str().unwrap().to_owned();
    daemon.ok("key list", &[&id, "sync", "readers", "hr-prod"]).await;
    daemon.ok(&format!("key rotate {id} --overlap 2h"), &["rotated", "older one ends in", "only time"]).await;
    daemon.ok(&format!("key show {id}"), &["live secret"]).await;
    daemon.fails("policy delete readers --yes", "in_use", Exit::Conflict).await;
    daemon.ok(&format!("key delete {id} --yes"), &["deleted"]).await;
    daemon.fails(&format!("key show {id}"), "not_found", Exit::NotFound).await;
    daemon.ok("policy delete readers --yes", &["deleted"]).await;
    daemon.fails("integration delete hr --yes", "in_use", Exit::Conflict).await;
    daemon.ok("connection delete hr-prod --yes", &["deleted"]).await;
    daemon.ok("integration delete hr --yes", &["deleted"]).await;
}

/// Allowed: the connection may come later. Mistyped, somebody must hear of it.
#[tokio::test]
async fn a_policy_for_a_connection_that_is_not_there_is_noted() {
    let daemon = daemon().await;
    daemon.ok(ADD_HR, &["added"]).await;
    daemon.ok("connection add here --integration hr --label env=prod", &["added"]).await;
    daemon.file(
        "rules.json",
        r#"[{"connections": {"ids": ["here", "absent"]}, "tables": "all", "methods": ["GET"]},
            {"connections": {"ids": ["gone", "absent"]}, "tables": "all", "methods": ["GET"]}]"#,
    );
    for (words, absent) in [
        ("--connection here --all-tables --method GET", vec![]),
        ("--all-connections --all-tables --method GET", vec![]),
        ("--label env=test --all-tables --method GET", vec![]),
        ("--connection here --connection nope --all-tables --method GET", vec!["nope"]),
        ("--file @rules.json", vec!["absent", "gone"]),
    ] {
        let made = daemon.ok(&format!("policy add p --replace {words}"), &["Policy p"]).await;
        let expected: Vec<String> = absent
            .iter()
            .map(|id| {
                format!(
                    "there is no connection {id} yet; to add it: bearerd connection add {id} --integration ID"
                )
            })
            .collect();
        assert_eq!(made.notes, expected, "{words}");
        assert_eq!(made.json, daemon.ok("policy show p", &[]).await.json, "{words}");
    }
}

/// A denied call is answered with what would open it.
#[tokio::test]
async fn a_denied_call_is_told_what_would_open_it() {
    let daemon = daemon().await;
    daemon.ok(ADD_HR, &["added"]).await;
    daemon.ok("connection add here --integration hr", &["added"]).await;
    daemon.ok("connection add there --integration hr", &["added"]).await;
    let rule = "policy add p --connection here --table incident --method GET";
    daemon.ok(&format!("{rule} --network 10.0.0.0/8"), &["added"]).await;
    daemon
        .ok(
            "policy add q --connection here --table task --method GET --expires 2020-01-01T00:00:00Z",
            &["added"],
        )
        .await;
    let anew =
        |policy: &str| format!("write policy {policy} anew (bearerd policy add {policy} --replace) with ");
    let p = anew("p");
    for (words, expected) in [
        ("--policy p --connection nope --table incident", "add the connection: bearerd connection add nope --integration ID".to_owned()),
        (
            "--policy p --connection there --table incident",
            format!("{p}one more rule: --connection there --table incident --method GET"),
        ),
        (
            "--policy p --connection here --family attachment --method post",
            format!("{p}one more rule: --connection here --family attachment --all-tables --method POST"),
        ),
        (
            "--policy p --policy q --connection here --table problem",
            "write one of the policies anew (bearerd policy add ID --replace) with one more rule: --connection here \
             --table problem --method GET"
                .to_owned(),
        ),
        ("--policy p --connection here --table incident --method put", format!("{p}--method PUT in rule 1")),
        (
            "--policy p --connection here --table incident --source 192.0.2.1",
            format!("{p}a --network that 192.0.2.1 is in, or none, in rule 1"),
        ),
        (
            "--policy p --connection here --table incident",
            format!("say with --source where the call comes from, or {p}no --network in rule 1"),
        ),
        ("--policy q --connection here --table task", format!("{}a later --expires in rule 1", anew("q"))),
    ] {
        let said = daemon.ok(&format!("policy explain {words}"), &["allowed"]).await;
        let lines: Vec<&str> = said.text.lines().filter_map(|line| line.strip_prefix("next ")).collect();
        assert_eq!(lines.iter().map(|line| line.trim()).collect::<Vec<_>>(), [expected], "{words}: {}", said.text);
    }
    let line = "policy explain --policy p --connection here --table incident --source 10.1.2.3";
    let said = daemon.ok(line, &["yes"]).await;
    assert!(!said.text.contains("next"), "{}", said.text);
}

/// Also where it takes a record rule or a key that has ended to get there; a word of a newer daemon says nothing.
#[test]
fn every_word_for_what_lacks_has_a_next_step() {
    let request: ExplainRequest = serde_json::from_value(serde_json::json!({
        "caller_key_id": "k3v9x0a1b2c3", "connection": "here", "family": "table", "table": "incident", "method": "GET"
    }))
    .unwrap();
    let asked = Asked { request, connection_absent: false };
    for (nearest, step) in [
        ("no_policy", "bearerd key add --policy ID"),
        ("record_rule_key", "use a key without a record rule"),
        (
            "records_unchecked",
            "here is connected, then write policy own anew (bearerd policy add own --replace)",
        ),
        ("query", "change the query as the reason says, or write policy own anew"),
        ("key_expired", "bearerd key add"),
    ] {
        let explanation: Explanation = serde_json::from_value(serde_json::json!({
            "allowed": false, "policy": "own", "rule": 2, "nearest": nearest, "connection_known": true
        }))
        .unwrap();
        let text = explained(&explanation, &asked);
        let next = text.lines().find(|line| line.starts_with("next ")).unwrap_or_default();
        assert!(next.contains(step), "{nearest}: {text}");
        let newer = Explanation { nearest: Some("moon".to_owned()), ..explanation };
        assert!(!explained(&newer, &asked).contains("next "), "{nearest}");
    }
}

#[tokio::test]
async fn an_integration_shows_and_speaks_what_it_is_told() {
    let daemon = daemon().await;
    daemon.ok(&format!("{ADD_HR} --http2"), &["added"]).await;
    daemon.ok("integration show hr", &["HTTP/2", "where the instance speaks it", "client certificate"]).await;
    daemon.ok(&format!("{ADD_HR} --replace"), &["changed"]).await;
    daemon.ok("integration show hr", &["off"]).await;
    let line =
        format!("{ADD_HR} --replace --client-certificate-file /nonexistent --client-key-file /nonexistent");
    daemon.fails(&line, "invalid_request", Exit::Usage).await;
}

#[tokio::test]
async fn a_generic_provider_is_told_apart() {
    let daemon = daemon().await;
    daemon.ok(ADD_HR, &["In ServiceNow"]).await;
    daemon
        .ok("integration show hr", &["servicenow", "the same with each refresh", "oauth_revoke_token.do"])
        .await;
    let line =
        "integration add it --provider generic --instance http://127.0.0.1:9 --client-id it --public-client";
    daemon.fails(line, "invalid_request", Exit::Usage).await;
    let line = format!(
        "{line} --authorization-endpoint http://127.0.0.1:9/authorize --token-endpoint http://127.0.0.1:9/token"
    );
    let made = daemon.ok(&line, &["authorization server", "/oauth/callback/it"]).await;
    assert!(!made.text.contains("ServiceNow"), "{}", made.text);
    daemon.ok("integration show it", &["generic", "another one with each refresh"]).await;
    let line = format!("{line} --rotates-refresh-tokens false --replace");
    daemon.ok(&line, &["changed"]).await;
    daemon.ok("integration show it", &["the same with each refresh"]).await;
    daemon
        .fails("connection add c --integration it --expected-user svc", "invalid_request", Exit::Usage)
        .await;
}

#[tokio::test]
async fn what_goes_wrong_has_a_code_a_fix_and_an_exit_code() {
    let daemon = daemon().await;
    daemon.fails("connection show nothing", "not_found", Exit::NotFound).await;
    daemon
        .fails(
            "integration add x --instance ftp://x --client-id x --public-client",
            "invalid_request",
            Exit::Usage,
        )
        .await;
    daemon.file("tokens.json", r#"{"access_token": ["canary"]}"#);
    daemon.fails("connection add a --integration hr --import-file @tokens.json", "usage", Exit::Usage).await;
    daemon.fails("connection add a --integration hr --import-file @absent.json", "usage", Exit::Usage).await;
    daemon.file("client-secret", "\n");
    daemon.fails(ADD_HR, "usage", Exit::Usage).await;
    daemon.file("admin-key", ApiKey::generate(KeyKind::Admin).expose());
    daemon.fails("key list", "admin_key_invalid", Exit::Refused).await;
    let key = SecretText::parse(daemon.key.expose().to_owned()).unwrap();
    let nobody = AdminApi::new("http://127.0.0.1:9", &key, None).unwrap();
    let error = nobody.get("/v1/status").await.unwrap_err();
    assert_eq!(error.code_and_exit(), ("admin_api_unreachable", Exit::Unreachable));
    assert!(error.to_string().contains("bearerd serve"), "{error}");
    for url in ["http://admin.example", "https://admin.example/path", "nonsense"] {
        let error = AdminApi::new(url, &key, None).unwrap_err();
        assert_eq!(error.code_and_exit(), ("usage", Exit::Usage), "{url}");
    }
    assert!(
        !format!("{:?}", AdminApi::new("http://localhost:8082", &key, None).unwrap()).contains(key.expose())
    );
}

#[tokio::test]
async fn without_a_key_nothing_is_asked() {
    let Cli { command } = Cli::try_parse_from(["bearerd", "key", "list"]).unwrap();
    let ClientCommand::Key(OverAdminApi { mut options, .. }) = command else { panic!("{command:?}") };
    (options.admin_key, options.admin_key_file) = (AdminKey(None), None);
    let error = AdminApi::from_options(&options).unwrap_err();
    assert_eq!(error.code_and_exit(), ("admin_key_missing", Exit::Refused));
}

#[test]
fn tables_are_plain_columns() {
    let pairs = [("state", "active".to_owned()), ("", "It lends tokens.".to_owned())];
    assert_eq!(output::fields(&pairs), "state  active\n       It lends tokens.");
    let rows = vec![["hr".to_owned(), "a\nb".to_owned()]];
    assert_eq!(output::table(["ID", "OPENS"], rows, "none"), "ID  OPENS\nhr  a\n    b");
    assert_eq!(output::table(["ID"], Vec::new(), "none"), "none");
}

#[test]
fn durations_labels_and_times_read_as_people_write_them() {
    for (text, secs) in [("90d", 7_776_000), ("24h", 86_400), ("30m", 1_800), ("45s", 45), ("0s", 0)] {
        assert_eq!(input::duration(text), Ok(Duration::from_secs(secs)));
    }
    for bad in ["", "d", "90", "-1d", "1.5h", "90 d", "5ä"] {
        assert!(input::duration(bad).is_err(), "{bad}");
    }
    assert_eq!(input::label("env=prod=1"), Ok(("env".to_owned(), "prod=1".to_owned())));
    assert!(input::label("env").is_err() && input::label("=prod").is_err());
    let now = Timestamp::from_second(1_000_000).unwrap();
    let at = |secs: i64| Some(WireTime(Timestamp::from_second(1_000_000 + secs).unwrap()));
    for (time, text) in [
        (None, "-"),
        (at(0), "now"),
        (at(24 * 60), "in 24 min"),
        (at(-90), "90 s ago"),
        (at(3 * 3_600), "in 3 h"),
        (at(-3 * 86_400), "3 days ago"),
    ] {
        assert_eq!(output::when(time, now), text);
    }
}
