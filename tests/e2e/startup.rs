//! What an operator did wrong before the start: one clear line with the remedy, a non-zero exit, and nothing written.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hasher},
    net::TcpListener,
    path::Path,
};

use bearerd_tests::{Cli, Deployment, Redis, Setup, free_port, loopback};
use servicenow_sim::Behaviour;

#[test]
fn master_key_missing_or_unusable() {
    let setup = Setup::new("startup-key");
    let key = setup.folder().join("master.key");
    let text = fs::read_to_string(&key).unwrap();

    fs::remove_file(&key).unwrap();
    refuses(&setup, &["no master key", "bearerd init", "master.key"]);
    // Root reads every file, so what cannot be read here is no file, and what can be read is no key.
    fs::create_dir(&key).unwrap();
    refuses(&setup, &["master key", "bearerd init", "cannot be read"]);
    fs::remove_dir(&key).unwrap();
    for garbage in ["", "correct horse battery staple\n", &text[..text.len() / 2]] {
        fs::write(&key, garbage).unwrap();
        refuses(&setup, &["master_key", "is not a key file", "bearerd init"]);
    }
    fs::write(&key, [0xff, 0xfe, 0x00]).unwrap();
    refuses(&setup, &["master"]);
    let by_environment = setup.set("master_key", "env:NO_SUCH_VARIABLE");
    refuses(&by_environment, &["no master key", "NO_SUCH_VARIABLE", "bearerd init"]);
    // A key itself is not where a name belongs, and is not repeated.
    let pasted = by_environment.set("master_key", text.trim());
    let said = refuses(&pasted, &["master key", "file:"]);
    assert!(!said.contains(text.trim()), "{said}");
}

/// A store that was made with another key is left as it is (S-07).
#[test]
fn wrong_master_key() {
    let behaviour = Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() };
    let deployment = Deployment::start(Setup::new("startup-wrong-key"), behaviour);
    let caller_key = deployment.connect();
    let Deployment { daemon, .. } = deployment;
    let setup = daemon.into_setup();
    let key = setup.folder().join("master.key");
    let right = fs::read(&key).unwrap();
    fs::copy(Setup::new("startup-other").folder().join("master.key"), &key).unwrap();
    refuses(&setup, &["master_key", "nothing was changed"]);
    fs::write(&key, right).unwrap();
    let daemon = setup.start();
    let shown = daemon.show("/v1/connections/hr-prod");
    assert_eq!(shown["state"]["name"], "active", "the right key opens it again: {shown}");
    drop(caller_key);
}

#[test]
fn settings_that_are_none() {
    let setup = Setup::new("startup-settings");
    let file = setup.settings_file();
    let text = fs::read_to_string(&file).unwrap();
    let cases: [(&str, &[&str]); 6] = [
        ("[proxy]\nlissten = \"127.0.0.1:1\"\n", &["proxy.lissten", "proxy.listen", "bearerd.toml"]),
        ("[tokens]\nwait_max = 3\n", &["tokens.wait_max", "tokens.wait_max_s"]),
        ("[token]\nwait_max_s = 3\n", &["token.wait_max_s", "tokens.wait_max_s"]),
        ("[tokens]\nwait_max_s = 0\n", &["tokens.wait_max_s", "1"]),
        ("[tokens]\nwait_max_s = \"soon\"\n", &["wait_max_s"]),
        ("this is not TOML\n", &["bearerd.toml", "TOML"]),
    ];
    for (added, expected) in cases {
        // In front of the sections that `init` wrote: a section of its own must not swallow them.
        let section = added.starts_with('[');
        let whole = if section { format!("{text}\n{added}") } else { format!("{added}{text}") };
        fs::write(&file, whole).unwrap();
        refuses(&setup, expected);
    }
    fs::write(&file, &text).unwrap();
    let setup = setup.set("process.log_format", "xml");
    refuses(&setup, &["log_format", "json"]);
    let setup = setup.set("process.log_format", "json").set("proxy.lisen", "127.0.0.1:1");
    refuses(&setup, &["proxy.lisen", "proxy.listen"]);
    let missing = Cli::run(&["serve", "--config", "/no/such/file.toml"]);
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("bearerd init"), "{missing:?}");
}

#[test]
fn port_in_use() {
    let holder = TcpListener::bind((loopback(), 0)).unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for door in ["proxy", "connect", "admin"] {
        let setting = format!("{door}.listen");
        let setup = Setup::new("startup-port").set(&setting, &taken);
        refuses(&setup, &[&setting, &taken, "in use", "another address"]);
    }
    let setup = Setup::new("startup-port").set("proxy.listen", "8080");
    refuses(&setup, &["proxy.listen", "IP:PORT"]);
}

#[test]
fn redis_out_of_reach_or_locked() {
    let nowhere = loopback();
    let url = format!("redis://{nowhere}:{}", free_port(nowhere));
    let setup = Setup::new("startup-redis").set("store", "redis").set("redis.url", &url);
    refuses(&setup, &["Redis", &url["redis://".len()..], "start Redis"]);

    let redis = Redis::with_password("the-right-one-5b1c");
    let setup = setup.redis(&redis);
    let before = redis.cli(&["DBSIZE"]);
    refuses(&setup, &["Redis", "password"]);
    fs::write(setup.folder().join("redis.password"), "the-wrong-one-7e2d").unwrap();
    let setup = setup.set("redis.password", "file:redis.password");
    let said = refuses(&setup, &["Redis", "password"]);
    assert!(!said.contains("the-wrong-one"), "{said}");
    assert_eq!(redis.cli(&["DBSIZE"]), before);
    fs::write(setup.folder().join("redis.password"), "the-right-one-5b1c\n").unwrap();
    let daemon = setup.start();
    assert!(!daemon.log().contains("the-right-one"));
}

#[test]
fn store_of_another_process_or_none() {
    let first = Setup::new("startup-lock").start();
    let path = first.folder().join("bearerd.redb");
    let second = Setup::new("startup-locked").set("embedded.path", path.to_str().unwrap());
    refuses(&second, &["bearerd.redb", "in use", "stop the other process"]);
    let other = second.set("embedded.path", "no/such/folder/bearerd.redb");
    refuses(&other, &["folder", "does not exist"]);
    let garbage = other.folder().join("garbage.redb");
    fs::write(&garbage, "this is a letter, not a store").unwrap();
    refuses(&other.set("embedded.path", "garbage.redb"), &["garbage.redb", "not a bearerd store"]);
}

/// `bearerd init` overwrites nothing.
#[test]
fn init_leaves_what_is_there() {
    let setup = Setup::new("startup-init");
    let before = contents(setup.folder());
    let again = Cli::run(&["init", "--dir", setup.folder().to_str().unwrap()]);
    assert_ne!(again.code, 0);
    assert!(again.stderr.contains("exists already") && again.stderr.contains("--dir"), "{again:?}");
    assert_eq!(contents(setup.folder()), before);
}

/// Sees `bearerd serve` refuse: with one line that holds each of these, and a folder that is as it was.
#[track_caller]
fn refuses(setup: &Setup, expected: &[&str]) -> String {
    let before = contents(setup.folder());
    let said = setup.serve_in_vain();
    assert_ne!(said.code, 0, "{said:?}");
    assert_eq!(said.code, 1, "a refusal, not a crash: {said:?}");
    assert_eq!(said.stdout, "", "{said:?}");
    let lines: Vec<&str> = said.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line: {}", said.stderr);
    for piece in expected {
        assert!(lines[0].contains(piece), "{piece:?} is missing in: {}", lines[0]);
    }
    assert!(!lines[0].contains("panicked"), "{}", lines[0]);
    assert_eq!(contents(setup.folder()), before, "nothing is written: {}", lines[0]);
    said.stderr
}

/// Every file of a folder, with its length and a hash of its bytes.
fn contents(folder: &Path) -> BTreeMap<String, (usize, u64)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let bytes = if entry.path().is_dir() { Vec::new() } else { fs::read(entry.path()).unwrap() };
            let mut hash = DefaultHasher::new();
            hash.write(&bytes);
            (entry.file_name().into_string().unwrap(), (bytes.len(), hash.finish()))
        })
        .collect()
}
