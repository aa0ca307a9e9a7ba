//! The proxy door under attack: the programs of `tests/attack`, each against a daemon of its own, with an origin of
//! theirs as the instance, which records what arrives. They say what was found as JSON; a finding fails the test, and
//! its smallest stream is printed as it was sent.

use std::{
    ffi::OsStr,
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bearerd_tests::{Daemon, Setup, free_port, get, release_binary, repository, wait_until};
use serde_json::{Value, json};

/// P-01, P-02, P-03, P-15, P-16, P-20, P-23: hostile HTTP/1.1 requests, written by hand.
#[test]
fn hostile_requests_are_refused() {
    let seen = Attack::new("attack-shapes").run("h1_shapes.py", &[]);
    assert!(seen["shapes"].as_u64() >= Some(120), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-01: mutations. `BEARERD_MUTATIONS` says how many: 20,000 in CI, 1,000,000 by hand.
#[test]
fn mutated_requests_are_read_strictly_or_refused() {
    let count = asked("BEARERD_MUTATIONS", 20_000);
    let seen = Attack::new("attack-mutations").run("h1_mutations.py", &["--count", &count]);
    assert_eq!(seen["streams"].to_string(), count);
    expect_calls(&seen, "accepted");
}

/// P-10, P-11: every family is open, and nothing outside of them is reached.
#[test]
fn hostile_paths_reach_nothing_outside_the_families() {
    let seen = Attack::new("attack-paths").families(FAMILIES).run("paths.py", &["--every", "4"]);
    assert!(seen["hostile"].as_u64() >= Some(500), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-10, P-11: a `:path` may hold bytes that no request line does.
#[test]
fn hostile_paths_over_http2_reach_nothing_outside_the_families() {
    let attack = Attack::new("attack-h2-paths").families(FAMILIES);
    let seen = attack.run("paths.py", &["--every", "8", "--http2", "1"]);
    assert!(seen["hostile"].as_u64() >= Some(500), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-04: HTTP/2 messages and frames that HTTP/1.1 must not get to see.
#[test]
fn malformed_http2_messages_are_refused() {
    let seen = Attack::new("attack-h2-messages").run("h2_messages.py", &[]);
    assert!(seen["messages"].as_u64() >= Some(150) && seen["sequences"].as_u64() >= Some(30), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-01, P-02: the same door behind TLS, with HTTP/1.1 agreed on (ALPN). A sample: `h1_shapes.py` is sent whole above.
#[test]
fn hostile_requests_over_tls_are_refused() {
    let seen = Attack::tls("attack-tls-shapes").run("h1_shapes.py", &["--every", "4"]);
    assert!(seen["shapes"].as_u64() >= Some(100), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-04: with HTTP/2 agreed on.
#[test]
fn malformed_http2_messages_over_tls_are_refused() {
    let seen = Attack::tls("attack-tls-h2-messages").run("h2_messages.py", &[]);
    assert!(seen["messages"].as_u64() >= Some(150) && seen["sequences"].as_u64() >= Some(30), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-04, P-24: over TLS, HTTP/2 is agreed on or not spoken, and neither is HTTP/1.1 where it was.
#[test]
fn over_tls_the_agreed_protocol_is_spoken() {
    let seen = Attack::tls("attack-tls-alpn").run("tls_shapes.py", &[]);
    assert!(seen["refusals"].as_u64() >= Some(25), "{seen}");
    expect_calls(&seen, "accepted");
}

/// P-22.
#[test]
fn http2_floods_are_cut_off() {
    let attack = Attack::hurried("attack-h2-floods");
    let process = attack.daemon.process_id().to_string();
    let seen = attack.run("h2_floods.py", &["--pid", &process]);
    assert!(seen["floods"].as_array().is_some_and(|floods| floods.len() >= 35), "{seen}");
    assert!(seen["probes"]["good"].as_u64() > Some(100), "{seen}");
}

/// P-19: slowhttptest, 1,000 sockets.
#[test]
fn slow_callers_do_not_slow_the_others() {
    let seen = Attack::new("attack-slow").run("slow.py", &[]);
    assert!(seen["modes"].as_array().is_some_and(|modes| modes.len() >= 3), "{seen}");
}

/// P-17, P-18, P-28, I-4, I-11. `BEARERD_SOAK` says how many calls: 20,000 in CI, 1,000,000 by hand.
#[test]
fn a_thousand_callers_never_get_each_others_answers() {
    let count = asked("BEARERD_SOAK", 20_000);
    let seen = Attack::new("attack-crosstalk").soak(&count, Soak::default());
    expect_mishaps(&seen);
}

/// The same where the callers are streams of fifty HTTP/2 connections, which are reset and dropped at any moment.
#[test]
fn a_thousand_streams_never_get_each_others_answers() {
    let count = asked("BEARERD_SOAK", 20_000);
    let over = Soak { callers_http2: true, ..Soak::default() };
    let seen = Attack::new("attack-crosstalk-h2").soak(&count, over);
    expect_mishaps(&seen);
}

/// The same where the instances speak HTTP/2 too: calls of many callers share a connection, which may go away or break.
#[test]
fn a_thousand_streams_never_get_each_others_answers_over_shared_connections() {
    let count = asked("BEARERD_SOAK", 10_000);
    let over = Soak { callers_http2: true, instances_http2: true };
    let seen = Attack::new("attack-crosstalk-h2-both").soak(&count, over);
    expect_mishaps(&seen);
    expect_calls(&seen, "lost with a connection");
}

/// P-28: a connection to an instance is many callers', and one of them can leave without the others.
#[test]
fn who_leaves_a_shared_connection_breaks_no_one_elses_call() {
    let attack = Attack::new("attack-shared-connections");
    let key = attack.key("open", &json!("all"));
    let origin = attack.free_address();
    let running = attack.start("shared_connections.py", origin, &key, &[]);
    attack.connect_over(true, "hr", origin, "hr-prod", TOKEN);
    let seen = attack.seen(running, "shared_connections.py");
    assert!(seen["counts"]["left"].as_u64() >= Some(1_000), "{seen}");
    expect_calls(&seen, "answered");
}

/// A daemon under attack.
struct Attack {
    daemon: Daemon,
    families: &'static str,
}

impl Attack {
    /// The release build, where there is one: a debug build would be what the figures are of.
    fn new(name: &str) -> Self {
        Self { daemon: Self::setup(name).start(), families: "table" }
    }

    fn setup(name: &str) -> Setup {
        let setup = Setup::new(name).set("proxy.pass_answer_headers", "x-marker,x-sim-marker,x-sim-user");
        match release_binary() {
            Some(binary) => setup.binary(binary),
            None => setup,
        }
    }

    /// The proxy door speaks TLS.
    fn tls(name: &str) -> Self {
        Self { daemon: Self::setup(name).tls().start(), families: "table" }
    }

    /// Opens these families, a list parted by commas.
    fn families(self, families: &'static str) -> Self {
        Self { families, ..self }
    }

    /// Waits for nobody longer than two seconds.
    fn hurried(name: &str) -> Self {
        let hurried = ["proxy.header_read_timeout_s", "proxy.body_idle_timeout_s", "proxy.keep_alive_s"];
        let setup = hurried.iter().fold(Self::setup(name), |setup, limit| setup.set(limit, "2"));
        Self { daemon: setup.start(), families: "table" }
    }

    /// Runs a program that is an instance to `hr-prod`.
    fn run(&self, program: &str, words: &[&str]) -> Value {
        let key = self.key("open", &json!("all"));
        let origin = self.free_address();
        let running = self.start(program, origin, &key, words);
        self.connect("hr", origin, "hr-prod", TOKEN);
        self.seen(running, program)
    }

    /// Three connections of three users at two instances.
    fn soak(&self, count: &str, over: Soak) -> Value {
        let flag = |http2: bool| if http2 { "1" } else { "0" };
        let key = self.key("open", &json!("all"));
        let second_key = self.key("second", &json!({"ids": ["hr-second"]}));
        let third_key = self.key("third", &json!({"ids": ["hr-third"]}));
        let (origin, other) = (self.free_address(), self.free_address());
        let other_origin = other.to_string();
        let running = self.start(
            "crosstalk.py",
            origin,
            &key,
            &[
                ["--count", count],
                ["--http2", flag(over.callers_http2)],
                ["--instance-http2", flag(over.instances_http2)],
                ["--second-key", &second_key],
                ["--third-key", &third_key],
                ["--second-token", SECOND_TOKEN],
                ["--third-token", THIRD_TOKEN],
                ["--other-origin", &other_origin],
            ]
            .concat(),
        );
        self.connect_over(over.instances_http2, "hr", origin, "hr-prod", TOKEN);
        self.connect_over(over.instances_http2, "hr", origin, "hr-second", SECOND_TOKEN);
        self.connect_over(over.instances_http2, "other", other, "hr-third", THIRD_TOKEN);
        self.seen(running, "crosstalk.py")
    }

    /// A caller key under a policy of its own.
    fn key(&self, policy: &str, connections: &Value) -> String {
        let methods = json!(["GET", "POST", "PUT", "PATCH", "DELETE"]);
        let mut rule = json!({"connections": connections, "tables": "all", "methods": methods});
        if self.families != "table" {
            rule["families"] = self.families.split(',').collect();
        }
        self.daemon.put(&format!("/v1/policies/{policy}"), &json!({"rules": [rule]}));
        self.daemon.new_key(policy)
    }

    fn free_address(&self) -> SocketAddr {
        let address = self.daemon.address();
        SocketAddr::new(address, free_port(address))
    }

    /// Starts the program and waits until it listens at `origin`.
    fn start(&self, program: &str, origin: SocketAddr, key: &str, words: &[&str]) -> Child {
        let python = repository().join("tests/.venv/bin/python3");
        assert!(python.exists(), "{} is missing: tests/run installs it", python.display());
        let proxy = self.daemon.proxy_origin();
        let proxy = proxy.trim_start_matches("http://").trim_start_matches("https://");
        let certificates = self.daemon.certificates();
        let authority = certificates.map(|certificates| certificates.authority.as_os_str());
        #[expect(
            clippy::disallowed_methods,
            reason = "a program is started as a person's shell would start it"
        )]
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut running = Command::new(python)
            .arg("-B")
            .arg(repository().join("tests/attack").join(program))
            .args(["--proxy", proxy])
            .args(["--origin", &origin.to_string()])
            .args(["--key", key, "--token", TOKEN, "--families", self.families])
            .args(authority.iter().flat_map(|authority| [OsStr::new("--tls-authority"), *authority]))
            .args(words)
            .env_clear()
            .env("PATH", path)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        wait_until("the origin listens", Duration::from_secs(30), || {
            let ended = running.try_wait().unwrap();
            assert!(ended.is_none(), "{program} ended with {ended:?} before it listened");
            TcpStream::connect(origin).ok()
        });
        running
    }

    /// A connection that lends `token` to the instance at `origin`.
    fn connect(&self, integration: &str, origin: SocketAddr, connection: &str, token: &str) {
        self.connect_over(false, integration, origin, connection, token);
    }

    /// `http2`: the instance is called over HTTP/2.
    fn connect_over(
        &self,
        http2: bool,
        integration: &str,
        origin: SocketAddr,
        connection: &str,
        token: &str,
    ) {
        let instance = format!("http://{origin}");
        let body = json!({
            "instance": instance, "client_id": "attack", "client_secret": "attack", "http2": http2,
        });
        self.daemon.put(&format!("/v1/integrations/{integration}"), &body);
        let tokens = json!({"access_token": token, "expires_in": 86_400});
        let body = json!({"integration": integration, "import": tokens});
        self.daemon.put(&format!("/v1/connections/{connection}"), &body);
    }

    /// The program's summary, once it has ended without a finding and left nothing behind.
    #[track_caller]
    fn seen(&self, running: Child, program: &str) -> Value {
        let output = running.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{program}: {text}");
        assert!(output.status.success(), "{program} ended with {}", output.status);
        self.expect_calm();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{program} printed no JSON ({error}): {text}"))
    }

    /// P-18: no call and no connection of a caller is left. P-23: whatever was sent, an event is a line of the log.
    #[track_caller]
    fn expect_calm(&self) {
        let metrics = get(&format!("{}/metrics", self.daemon.admin_origin()));
        for gauge in ["bearerd_proxy_requests_in_flight", "bearerd_proxy_caller_connections"] {
            wait_until(&format!("{gauge} is back at 0"), Duration::from_secs(20), || {
                metrics.send().text().lines().any(|line| line == format!("{gauge} 0")).then_some(())
            });
        }
        for line in self.daemon.log().lines() {
            let event: Result<Value, _> = serde_json::from_str(line);
            assert!(event.is_ok_and(|event| event.is_object()), "no event: {line}");
        }
    }
}

/// What the cross-talk soak speaks: HTTP/1.1 where nothing is said.
#[derive(Clone, Copy, Default)]
struct Soak {
    callers_http2: bool,
    instances_http2: bool,
}

/// All that may befall a call of the soak did.
#[track_caller]
fn expect_mishaps(seen: &Value) {
    for what in ["answered", "answered 502", "broken off", "left", "writes executed"] {
        expect_calls(seen, what);
    }
}

/// It happened at all: what never came through proves nothing.
#[track_caller]
fn expect_calls(seen: &Value, what: &str) {
    assert!(seen["counts"][what].as_u64() > Some(0), "no calls {what}: {seen}");
}

fn asked(variable: &str, default: u32) -> String {
    #[expect(clippy::disallowed_methods, reason = "the size of the test, not a setting of the daemon")]
    let asked = std::env::var(variable).ok();
    asked.unwrap_or_else(|| default.to_string())
}

const FAMILIES: &str = "table,stats,attachment,import,sn_sc,sn_km_api,now/email";
const TOKEN: &str = "attack-access-token";
const SECOND_TOKEN: &str = "attack-access-token-of-the-second";
const THIRD_TOKEN: &str = "attack-access-token-of-the-third";
