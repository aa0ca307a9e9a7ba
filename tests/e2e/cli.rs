//! The command line as an operator uses it: the life of each resource over the real binary and the real admin API.

use std::fs;

use bearerd_tests::{CLIENT_ID, CLIENT_SECRET, Cli, Daemon, Deployment, WebClient};
use serde_json::Value;

const DONE: i32 = 0;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const REFUSED: i32 = 5;
const UNREACHABLE: i32 = 6;

/// From an empty daemon to a call, and back to an empty daemon.
#[test]
fn the_life_of_every_resource() {
    let deployment = Deployment::start_default("cli");
    let daemon = &deployment.daemon;
    let secret_file = daemon.folder().join("client-secret");
    fs::write(&secret_file, format!("{CLIENT_SECRET}\n")).unwrap();
    let mut printed = String::new();
    let mut cli = |words: &[&str]| {
        let said = daemon.cli(words);
        printed.push_str(&said.everything());
        said
    };

    for resource in ["integration", "connection", "key", "policy"] {
        assert_eq!(cli(&[resource, "list"]).json(), serde_json::json!([]), "{resource}");
    }
    let secret_file = secret_file.to_str().unwrap();
    let add = ["integration", "add", "hr", "--instance", &deployment.instance, "--client-id", CLIENT_ID];
    let made = cli(&[&add[..], &["--client-secret-file", secret_file]].concat()).json();
    assert_eq!(made["id"], "hr");
    let redirect = format!("{}/oauth/callback", daemon.connect_origin());
    assert_eq!(made["redirect_uri"], Value::String(redirect.clone()));
    let form = made["servicenow_form"]["fields"].as_array().unwrap();
    assert!(
        form.iter().any(|field| field["name"] == "Redirect URL" && field["value"] == *redirect),
        "{made}"
    );
    // By standard input, and onto what is there: a conflict.
    let again = daemon.cli_with(&[&add[..], &["--client-secret-file", "-"]].concat(), CLIENT_SECRET);
    expect(&again, CONFLICT);

    expect(&cli(&["connection", "add", "hr-prod", "--integration", "nope"]), USAGE_OR_NOT_FOUND);
    let words = [
        "connection",
        "add",
        "hr-prod",
        "--integration",
        "hr",
        "--expected-user",
        "abel.tuter",
        "--label",
        "env=prod",
    ];
    let made = cli(&words).json();
    assert_eq!(made["state"]["name"], "pending");
    let link = made["connect_link"]["url"].as_str().unwrap().to_owned();
    assert!(WebClient::new().consent(&link).text().contains("Connected"));
    let shown = cli(&["connection", "show", "hr-prod"]).json();
    assert_eq!(
        (&shown["state"]["name"], &shown["user"]["user_name"]),
        (&"active".into(), &"abel.tuter".into())
    );
    assert_eq!(cli(&["connection", "test", "hr-prod"]).json()["user"]["user_name"], "abel.tuter");
    cli(&["connection", "refresh", "hr-prod"]).json();

    let words =
        ["policy", "add", "read", "--connection", "hr-prod", "--table", "incident", "--method", "get"];
    assert_eq!(cli(&words).json()["rules"][0]["methods"], serde_json::json!(["GET"]));
    let words = ["key", "add", "--description", "ticket-sync", "--policy", "read", "--expires-in", "90d"];
    let said = daemon.cli(&words); // shows the key, once, so it is kept out of what is searched below
    let issued = said.json();
    let key = issued["caller_key"].as_str().unwrap().to_owned();
    let id = issued["id"].as_str().unwrap().to_owned();
    assert_eq!(deployment.incidents(&key).send().status, 200);
    for words in [
        vec!["key", "list"],
        vec!["key", "show", &id],
        vec!["policy", "show", "read"],
        vec!["integration", "show", "hr"],
    ] {
        cli(&words).json();
    }

    // For people: words, and the next step.
    let table = daemon.cli(&["connection", "list", "--output", "table"]);
    assert!(table.stdout.contains("hr-prod") && table.stdout.contains("active"), "{table:?}");
    assert!(serde_json::from_str::<Value>(&table.stdout).is_err(), "{table:?}");

    // What is in use is not deleted; what is not, is, and is gone.
    expect(&cli(&["integration", "delete", "hr", "--yes"]), CONFLICT);
    expect(&cli(&["policy", "delete", "read", "--yes"]), CONFLICT);
    let deletes = [["key", &id], ["policy", "read"], ["connection", "hr-prod"], ["integration", "hr"]];
    for [resource, id] in deletes {
        expect(&cli(&[resource, "delete", id, "--yes"]), DONE);
        expect(&cli(&[resource, "show", id]), NOT_FOUND);
        assert_eq!(cli(&[resource, "list"]).json(), serde_json::json!([]), "{resource}");
    }
    bearerd_tests::wait_until("the key is refused", std::time::Duration::from_secs(2), || {
        (deployment.incidents(&key).send().status == 401).then_some(())
    });

    // No secret in anything printed but the one answer that shows it.
    let tokens = deployment.sim().tokens();
    let tokens = tokens.iter().flat_map(|family| [family.access_token.clone(), family.refresh_token.clone()]);
    for secret in tokens.flatten().chain([CLIENT_SECRET.to_owned(), daemon.admin_key().to_owned(), key]) {
        assert!(!printed.contains(&secret), "a secret was printed");
    }
}

const USAGE_OR_NOT_FOUND: i32 = -2;

/// Exit codes are stable, and each error says what and how to mend it.
#[test]
fn errors_have_codes_and_remedies() {
    let daemon = bearerd_tests::Setup::new("cli-errors").start();
    expect(&daemon.cli(&["connection", "show", "nobody"]), NOT_FOUND);
    expect(&daemon.cli(&["connection", "show", "Not An Id"]), USAGE);
    expect(&daemon.cli(&["key", "add"]), USAGE);
    expect(
        &daemon.cli(&["policy", "add", "p", "--all-connections", "--table", "incident", "--method", "BREW"]),
        USAGE,
    );
    expect(&daemon.cli_with(&["policy", "add", "p", "--file", "-"], "not JSON"), USAGE);

    let admin = daemon.admin_origin();
    let with = |key: &str| {
        Cli::run_with(&["key", "list"], &[("BEARERD_ADMIN_URL", &admin), ("BEARERD_ADMIN_KEY", key)], "")
    };
    let stranger = bearerd_tests::Setup::new("cli-stranger");
    let said = with(stranger.admin_key());
    expect(&said, REFUSED);
    assert!(!said.everything().contains(stranger.admin_key()), "{said:?}");
    expect(&Cli::run_with(&["key", "list"], &[("BEARERD_ADMIN_URL", &admin)], ""), REFUSED);
    let said = Cli::run_with(
        &["key", "list"],
        &[("BEARERD_ADMIN_URL", "http://127.0.0.1:1"), ("BEARERD_ADMIN_KEY", daemon.admin_key())],
        "",
    );
    expect(&said, UNREACHABLE);

    // The command line can be read by everyone on the machine, so a secret has no way in by it.
    let said = Cli::run(&["key", "list", "--admin-key", daemon.admin_key()]);
    expect(&said, USAGE);
    assert!(!said.everything().contains(daemon.admin_key()), "{said:?}");
    let said = daemon.cli(&[
        "integration",
        "add",
        "x",
        "--instance",
        "http://127.0.0.1:1",
        "--client-id",
        "c",
        "--client-secret",
        "s3cr3t",
    ]);
    expect(&said, USAGE);
    key_from_a_file(&daemon);
}

fn key_from_a_file(daemon: &Daemon) {
    let file = daemon.folder().join("admin.key");
    fs::write(&file, format!("{}\n", daemon.admin_key())).unwrap();
    let words = ["key", "list", "--admin-key-file", file.to_str().unwrap()];
    let said = Cli::run_with(&words, &[("BEARERD_ADMIN_URL", &daemon.admin_origin())], "");
    assert_eq!(said.json(), serde_json::json!([]));
}

/// Every command, found by following the help: each says what it does and shows how it is used.
#[test]
fn every_help_has_an_example() {
    let mut open = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = open.pop() {
        let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
        words.push("--help");
        let help = Cli::run(&words);
        assert_eq!(help.code, DONE, "{help:?}");
        let subcommands = subcommands(&help.stdout);
        if subcommands.is_empty() {
            let shows = help.stdout.contains("Example") || help.stdout.contains("bearerd serve");
            assert!(
                shows || command == ["demo"],
                "bearerd {} shows no example:\n{}",
                command.join(" "),
                help.stdout
            );
            seen += 1;
        }
        for name in subcommands.into_iter().filter(|name| name != "help") {
            open.push([&command[..], &[name]].concat());
        }
    }
    println!("{seen} commands have a help with an example");
    assert!(seen >= 20, "{seen}");
    for alone in [Vec::new(), vec!["connection"]] {
        let said = Cli::run(&alone);
        assert!(said.everything().contains("Usage:"), "{said:?}");
    }
    let openapi = Cli::run(&["openapi"]).json();
    assert_eq!(openapi["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
}

/// The names under `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, rest)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let listed = rest.lines().take_while(|line| !line.is_empty());
    // Two spaces, then the name; what is set in deeper goes on with a description.
    let names = listed.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[track_caller]
fn expect(said: &Cli, code: i32) {
    if code == USAGE_OR_NOT_FOUND {
        assert!([USAGE, NOT_FOUND].contains(&said.code), "{said:?}");
    } else {
        assert_eq!(said.code, code, "{said:?}");
    }
    if said.code != DONE {
        assert_eq!(said.stdout, "", "errors go to standard error: {said:?}");
        let remedy =
            said.stderr.contains("fix:") || said.stderr.contains("--help") || said.stderr.contains("Usage:");
        assert!(remedy, "{said:?}");
    }
}
