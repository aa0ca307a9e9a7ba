//! A `redis-server` of the test's own.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
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
