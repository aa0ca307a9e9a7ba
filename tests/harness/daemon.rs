//! The real binary: initialised in a folder of its own, served on an address of its own, ended with its test.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    certificates::Certificates,
    history::Watched,
    http::{Reply, Request, get, request},
    process::{bare, bearerd_binary, end, free_port, loopback, output_folder, signal, start_logged, tail},
    redis::Redis,
    runtime::wait_until,
};

/// What `bearerd init` made, and the settings to come: everything but the running process.
pub struct Setup {
    name: String,
    binary: PathBuf,
    folder: TempDir,
    address: IpAddr,
    ports: [u16; 3],
    admin_key: String,
    /// As environment variables over the file.
    settings: Vec<(String, String)>,
    /// Where the next process kills itself: `BEARERD_CRASH_AT`.
    crash_at: Option<String>,
    certificates: Option<Certificates>,
}

/// A daemon that serves. Dropping it kills it.
pub struct Daemon {
    setup: Setup,
    child: Child,
    /// From the start of the process until `/readyz` said yes.
    pub ready_after: Duration,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Cli {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Setup {
    /// Runs `bearerd init` in a new folder. `name` is what the log is called if the test fails.
    pub fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("bearerd-e2e-").tempdir().unwrap();
        let init = run(&["init", "--dir", folder.path().to_str().unwrap()], &[], "");
        assert_eq!(init.code, 0, "{init:?}");
        let admin_key = init.stdout.split_whitespace().find(|word| word.starts_with("bda_"));
        let admin_key = admin_key.unwrap_or_else(|| panic!("init printed no admin key: {init:?}")).to_owned();
        let address = loopback();
        let ports = [free_port(address), free_port(address), free_port(address)];
        let setup = Self {
            name: name.to_owned(),
            binary: bearerd_binary(),
            folder,
            address,
            ports,
            admin_key,
            settings: Vec::new(),
            crash_at: None,
            certificates: None,
        };
        let public_url = setup.origin(1, "http");
        setup
            .listening()
            .set("connect.public_url", &public_url)
            .set("process.log_format", "json")
            .set("process.drain_s", "2")
    }

    /// Another process of the same deployment: the same master key, admin key, settings and public address, in a
    /// folder and on ports of its own. For stores that processes share.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("bearerd-e2e-").tempdir().unwrap();
        for file in ["bearerd.toml", "master.key"] {
            fs::copy(self.folder.path().join(file), folder.path().join(file)).unwrap();
        }
        let address = loopback();
        // What lies in the first one's folder lies in this one's.
        let (theirs, ours) = (self.folder.path().to_str().unwrap(), folder.path().to_str().unwrap());
        let settings =
            self.settings.iter().map(|(name, value)| (name.clone(), value.replace(theirs, ours))).collect();
        let sibling = Self {
            name: name.to_owned(),
            binary: self.binary.clone(),
            ports: [free_port(address), free_port(address), free_port(address)],
            address,
            admin_key: self.admin_key.clone(),
            settings,
            crash_at: None,
            certificates: None,
            folder,
        };
        sibling.listening()
    }

    fn listening(self) -> Self {
        let [proxy, connect, admin] = self.ports.map(|port| SocketAddr::new(self.address, port).to_string());
        self.set("proxy.listen", &proxy).set("connect.listen", &connect).set("admin.listen", &admin)
    }

    /// Keeps on its own disk what the store has not taken.
    #[must_use]
    pub fn spilling(self) -> Self {
        let folder = self.folder.path().join("spill");
        fs::create_dir_all(&folder).unwrap();
        self.set("tokens.spill_dir", folder.to_str().unwrap())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A setting over what the file says: `set("proxy.table.first_byte_timeout_s", "1")`. The last one wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        let variable = format!("BEARERD__{}", name.to_ascii_uppercase().replace('.', "__"));
        self.settings.retain(|(known, _)| *known != variable);
        self.settings.push((variable, value.to_owned()));
        self
    }

    /// Serves with another build of the binary.
    #[must_use]
    pub fn binary(mut self, binary: PathBuf) -> Self {
        self.binary = binary;
        self
    }

    #[must_use]
    pub fn redis(self, redis: &Redis) -> Self {
        self.set("store", "redis").set("redis.url", &redis.url())
    }

    /// The proxy door speaks https, with a certificate of a private authority.
    #[must_use]
    pub fn tls(self) -> Self {
        let certificates = Certificates::make(self.folder.path(), self.address);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut setup = self
            .set("proxy.tls.certificate_file", &path(&certificates.certificate))
            .set("proxy.tls.key_file", &path(&certificates.key));
        setup.certificates = Some(certificates);
        setup
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn settings_file(&self) -> PathBuf {
        self.folder.path().join("bearerd.toml")
    }

    /// Runs `bearerd serve`, which is expected to give up by itself.
    ///
    /// # Panics
    /// It goes on.
    #[track_caller]
    pub fn serve_in_vain(&self) -> Cli {
        let (out, err) = (self.folder.path().join("vain.out"), self.folder.path().join("vain.err"));
        let mut child = self
            .serve_command()
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + START_LIMIT;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => {
                    end(&mut child);
                    panic!("bearerd did not give up within {START_LIMIT:?}:\n{}", tail(&err, 20));
                }
            }
        };
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let cli = Cli { code: code(status), stdout: read(&out), stderr: read(&err) };
        fs::remove_file(out).unwrap();
        fs::remove_file(err).unwrap();
        cli
    }

    /// Starts `bearerd serve` and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let child = self.spawn();
        let mut daemon = Daemon { setup: self, child, ready_after: Duration::ZERO };
        daemon.wait_ready();
        daemon
    }

    fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        bare(&mut command).arg("serve").arg("--config").arg(self.settings_file());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.envs(self.crash_at.iter().map(|place| (CRASH_AT, place)));
        command
    }

    fn spawn(&self) -> Child {
        start_logged(&mut self.serve_command(), &self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("bearerd.log")
    }

    fn origin(&self, door: usize, scheme: &str) -> String {
        format!("{scheme}://{}", SocketAddr::new(self.address, self.ports[door]))
    }

    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }
}

impl Daemon {
    #[track_caller]
    fn wait_ready(&mut self) {
        let started = Instant::now();
        let probe = get(&format!("{}/readyz", self.setup.origin(2, "http")));
        let log = self.setup.log_file();
        let child = &mut self.child;
        wait_until("the daemon is ready", START_LIMIT, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("bearerd ended with {status}:\n{}", tail(&log, 30));
            }
            probe.try_send().ok().filter(|reply| reply.status == 200)
        });
        self.ready_after = started.elapsed();
    }

    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    pub fn address(&self) -> IpAddr {
        self.setup.address
    }

    /// This process, for a [`Recorder`](super::history::Recorder).
    pub fn watched(&self) -> Watched {
        Watched {
            process: self.setup.name.clone(),
            admin_origin: self.admin_origin(),
            admin_key: self.admin_key().to_owned(),
        }
    }

    pub fn admin_key(&self) -> &str {
        &self.setup.admin_key
    }

    /// `https://…` with [`Setup::tls`].
    pub fn proxy_origin(&self) -> String {
        self.setup.origin(0, if self.setup.certificates.is_some() { "https" } else { "http" })
    }

    pub fn connect_origin(&self) -> String {
        self.setup.origin(1, "http")
    }

    pub fn admin_origin(&self) -> String {
        self.setup.origin(2, "http")
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.setup.certificates.as_ref()
    }

    /// A request to the proxy door with this caller key.
    pub fn call(&self, method: Method, path: &str, key: &str) -> Request {
        let request = request(method, &format!("{}{path}", self.proxy_origin()))
            .bearer(key)
            .header("accept", "application/json");
        match &self.setup.certificates {
            Some(certificates) => request.trusting(certificates),
            None => request,
        }
    }

    /// A request to the admin API with the admin key.
    pub fn admin(&self, method: Method, path: &str) -> Request {
        request(method, &format!("{}{path}", self.admin_origin())).bearer(self.admin_key())
    }

    /// PUT to the admin API; answers what it says.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Value {
        let reply = self.admin(Method::PUT, path).json(body).send();
        assert!(reply.status < 300, "PUT {path} {body}: {} {}", reply.status, reply.text());
        reply.json()
    }

    /// POST to the admin API; answers what it says.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.admin(Method::POST, path).json(body).send().expect_ok(path).json()
    }

    /// GET of the admin API.
    #[track_caller]
    pub fn show(&self, path: &str) -> Value {
        self.admin(Method::GET, path).send().expect(StatusCode::OK).json()
    }

    /// A caller key under this policy.
    #[track_caller]
    pub fn new_key(&self, policy: &str) -> String {
        self.new_key_with_id(policy).0
    }

    /// The same, with its id: what the admin API calls it.
    #[track_caller]
    pub fn new_key_with_id(&self, policy: &str) -> (String, String) {
        let body = serde_json::json!({"description": "a test", "policies": [policy]});
        let issued = self.post("/v1/keys", &body);
        let text = |name: &str| issued[name].as_str().unwrap().to_owned();
        (text("caller_key"), text("id"))
    }

    /// What `/metrics` says of this metric: its labels, as they are written there, and the value.
    #[track_caller]
    pub fn metrics(&self, name: &str) -> BTreeMap<String, u64> {
        let text = get(&format!("{}/metrics", self.admin_origin())).send().expect(StatusCode::OK).text();
        let of_it = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            // Another metric's name may begin alike.
            (labels.is_empty() || labels.starts_with('{'))
                .then(|| (labels.to_owned(), value.parse().unwrap()))
        });
        of_it.collect()
    }

    /// Runs a client command of the real binary against this daemon.
    pub fn cli(&self, words: &[&str]) -> Cli {
        self.cli_with(words, "")
    }

    /// The same, with something on standard input.
    pub fn cli_with(&self, words: &[&str], stdin: &str) -> Cli {
        let admin = self.admin_origin();
        run(words, &[("BEARERD_ADMIN_URL", &admin), ("BEARERD_ADMIN_KEY", self.admin_key())], stdin)
    }

    /// Everything that the process wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.setup.log_file()).unwrap()).into_owned()
    }

    /// Ends the process without warning and waits for its end.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Asks the process to end and answers how it did.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        signal(&self.child, Signal::TERM);
        let child = &mut self.child;
        wait_until("the daemon ends after SIGTERM", STOP_LIMIT, || child.try_wait().unwrap())
    }

    /// Starts the process again on the same folder and addresses, and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        end(&mut self.child);
        self.child = self.setup.spawn();
        self.wait_ready();
    }

    /// Ends the process without warning and starts it again, to kill itself at this crash point (`name` or `name:n`).
    /// Waits until it is ready, or has done so.
    #[track_caller]
    pub fn start_to_crash_at(&mut self, place: &str) {
        end(&mut self.child);
        self.setup.crash_at = Some(place.to_owned());
        self.child = self.setup.spawn();
        self.setup.crash_at = None;
        let probe = get(&format!("{}/readyz", self.admin_origin()));
        wait_until("the daemon is ready, or dead", START_LIMIT, || {
            let ended = self.has_ended().is_some();
            (ended || probe.try_send().is_ok_and(|reply| reply.status == 200)).then_some(())
        });
    }

    /// SIGHUP: the process reads its certificates again.
    pub fn hang_up(&self) {
        signal(&self.child, Signal::HUP);
    }

    /// How the process ended, if it did.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends the process and gives back what it was started from.
    #[track_caller]
    pub fn into_setup(mut self) -> Setup {
        self.terminate();
        let fresh = Setup {
            name: self.setup.name.clone(),
            binary: self.setup.binary.clone(),
            folder: std::mem::replace(&mut self.setup.folder, tempfile::tempdir().unwrap()),
            address: self.setup.address,
            ports: self.setup.ports,
            admin_key: self.setup.admin_key.clone(),
            settings: self.setup.settings.clone(),
            crash_at: None,
            certificates: self.setup.certificates.clone(),
        };
        drop(self);
        fresh
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, from `/proc`.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            let kept = output_folder().join(format!("{}.log", self.setup.name));
            drop(fs::copy(self.setup.log_file(), &kept));
            eprintln!("the daemon's log is kept in {}; it ends:\n{}", kept.display(), tail(&kept, 25));
        }
    }
}

impl Reply {
    #[track_caller]
    fn expect_ok(self, what: &str) -> Self {
        assert!(self.status < 300, "{what}: {} {}", self.status, self.text());
        self
    }
}

impl Cli {
    /// Standard output as JSON, of a command that did its work.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// All that was printed: for searches.
    pub fn everything(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Runs the real binary with these words and nothing in the environment.
    pub fn run(words: &[&str]) -> Self {
        run(words, &[], "")
    }

    /// The same, with these environment variables and something on standard input.
    pub fn run_with(words: &[&str], environment: &[(&str, &str)], stdin: &str) -> Self {
        run(words, environment, stdin)
    }
}

fn run(words: &[&str], environment: &[(&str, &str)], stdin: &str) -> Cli {
    let mut command = Command::new(bearerd_binary());
    bare(&mut command).args(words).envs(environment.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing closes its end; that is its right.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Cli { code: code(output.status), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// As a shell tells it; -1 for a process that a signal ended.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// What `bearerd-crash-points` reads; no setting of the daemon.
const CRASH_AT: &str = "BEARERD_CRASH_AT";
/// A debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
