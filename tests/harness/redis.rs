//! A `redis-server` of the test's own.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    process::{bare, end, free_port, loopback, start_logged, tail},
    runtime::wait_until,
};

/// A running `redis-server` that appends each write to its file at once; killed when dropped.
pub struct Redis {
    address: IpAddr,
    port: u16,
    password: Option<String>,
    folder: TempDir,
    child: Child,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(None)
    }

    pub fn with_password(password: &str) -> Self {
        Self::start_with(Some(password.to_owned()))
    }

    fn start_with(password: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = loopback();
        let port = free_port(address);
        let child = spawn(address, port, password.as_deref(), folder.path());
        Self { address, port, password, folder, child }
    }

    /// `redis://…`, as the setting `redis.url` takes it.
    pub fn url(&self) -> String {
        format!("redis://{}:{}", self.address, self.port)
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// On the same port, with what the folder holds.
    pub fn restart(&mut self) {
        end(&mut self.child);
        self.child = spawn(self.address, self.port, self.password.as_deref(), self.folder.path());
    }

    /// Runs `redis-cli` with these words and answers what it printed.
    pub fn cli(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        bare(&mut command).args(["-h", &self.address.to_string(), "-p", &self.port.to_string()]);
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        let output = command.args(words).output().unwrap();
        assert!(output.status.success(), "redis-cli {words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A `redis-server` or a sentinel that is one of several; killed when dropped.
pub(crate) struct RedisNode {
    address: IpAddr,
    port: u16,
    words: Vec<String>,
    folder: TempDir,
    /// `None` while it is killed.
    child: Option<Child>,
}

impl RedisNode {
    /// A server that appends each write to its file at once.
    pub(crate) fn server(address: IpAddr, port: u16, more: &[&str]) -> Self {
        let (host, port_text) = (address.to_string(), port.to_string());
        let own = ["--bind", &host, "--port", &port_text, "--replica-announce-ip", &host];
        let same = [
            "--protected-mode",
            "no",
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ];
        let words = own.iter().chain(&same).chain(more).map(ToString::to_string).collect();
        Self::new(address, port, words, tempfile::tempdir().unwrap())
    }

    /// With `lines` as its settings file, where a sentinel also keeps what it learns.
    pub(crate) fn sentinel(address: IpAddr, port: u16, lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let own = format!("bind {address}\nport {port}\nprotected-mode no\nsentinel announce-ip {address}\n");
        std::fs::write(&file, own + lines).unwrap();
        let words = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        Self::new(address, port, words, folder)
    }

    fn new(address: IpAddr, port: u16, words: Vec<String>, folder: TempDir) -> Self {
        let mut node = Self { address, port, words, folder, child: None };
        node.start(&[]);
        node
    }

    /// On the same port, with what the folder holds.
    pub(crate) fn start(&mut self, more: &[&str]) {
        self.kill();
        let mut command = Command::new("redis-server");
        bare(&mut command).args(&self.words).arg("--dir").arg(self.folder.path()).args(more);
        self.child = Some(start_logged(&mut command, &self.log_file()));
        wait_until("redis-server answers", Duration::from_secs(20), || self.ask(&["PING"]));
    }

    /// Ends it without warning.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.child.is_some()
    }

    /// `host:port`.
    pub(crate) fn endpoint(&self) -> String {
        SocketAddr::new(self.address, self.port).to_string()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What `redis-cli` printed; `None` if there was no answer, or an error.
    pub(crate) fn ask(&self, words: &[&str]) -> Option<String> {
        if !self.is_alive() {
            return None;
        }
        let mut command = Command::new("redis-cli");
        bare(&mut command).args(["-e", "-h", &self.address.to_string(), "-p", &self.port.to_string()]);
        let output = command.args(words).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it is alive and takes writes.
    pub(crate) fn is_primary(&self) -> bool {
        self.ask(&["INFO", "replication"]).is_some_and(|info| info.contains("role:master"))
    }

    /// Whether it is a primary, or has caught up with its own.
    pub(crate) fn is_in_step(&self) -> bool {
        let info = self.ask(&["INFO", "replication"]).unwrap_or_default();
        info.contains("role:master") || info.contains("master_link_status:up")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("redis.log")
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("Redis at {} logged last:\n{}", self.endpoint(), tail(&self.log_file(), 8));
        }
    }
}

/// Until servers have sorted themselves out.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(30);

fn spawn(address: IpAddr, port: u16, password: Option<&str>, folder: &Path) -> Child {
    let mut command = Command::new("redis-server");
    bare(&mut command)
        .args(["--bind", &address.to_string(), "--port", &port.to_string(), "--dir"])
        .arg(folder)
        .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    let log = folder.join("redis.log");
    let mut child = start_logged(&mut command, &log);
    wait_until("redis-server answers", Duration::from_secs(20), || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("redis-server ended with {status}:\n{}", tail(&log, 20));
        }
        TcpStream::connect(SocketAddr::new(address, port)).ok()
    });
    child
}
