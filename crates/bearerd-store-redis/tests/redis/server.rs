//! Real servers for tests, and what goes wrong with them.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bearerd_store_redis::{RedisBackend, RedisSettings};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A `redis-server` on a free port of 127.0.0.1 with a folder of its own; killed when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    args: Vec<String>,
    folder: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        // A port that was free a moment ago may be taken by the time the server binds it.
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = spawn(port, &args, folder.path()) {
                return Self { child, port, args, folder };
            }
        }
        panic!("redis-server did not start on 20 ports in turn: {args:?}");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// For tests of what happens when nothing answers, so with short patience.
    pub(crate) fn settings(&self) -> RedisSettings {
        settings_for(self.port)
    }

    pub(crate) async fn backend(&self) -> RedisBackend {
        RedisBackend::connect(self.settings()).await.unwrap()
    }

    /// A connection around the backend.
    pub(crate) fn raw(&self) -> redis::Connection {
        redis::Client::open(("127.0.0.1", self.port)).unwrap().get_connection().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On the same port, with what the folder holds.
    pub(crate) fn restart(&mut self) {
        let child = spawn(self.port, &self.args, self.folder.path());
        self.child = child.expect("the port is still this server's");
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn settings_for(port: u16) -> RedisSettings {
    RedisSettings {
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_millis(700),
        ..RedisSettings::new(format!("redis://127.0.0.1:{port}"))
    }
}

/// A port on which nothing listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// `None` if the server ended before it was ready.
fn spawn(port: u16, args: &[String], folder: &Path) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("these tests need redis-server in the PATH ({error}): apt-get install redis-server")
        });
    let mut log = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    if log.any(|line| line.contains("Ready to accept connections")) {
        std::thread::spawn(move || log.for_each(drop)); // or its pipe fills up
        return Some(child);
    }
    child.wait().unwrap();
    None
}

/// Stands between a backend and its server, and cuts the link where told.
pub(crate) struct Proxy {
    port: u16,
    cut_next_reply: Arc<AtomicBool>,
    links: Arc<AtomicU32>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        Self::start_to(Ipv4Addr::LOCALHOST, to).await
    }

    pub(crate) async fn start_to(address: Ipv4Addr, to: u16) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut_next_reply, links) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (cut, count) = (Arc::clone(&cut_next_reply), Arc::clone(&links));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect((address, to)).await else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(carry(near, far, Arc::clone(&cut)));
            }
        });
        Self { port, cut_next_reply, links }
    }

    pub(crate) async fn backend(&self) -> RedisBackend {
        RedisBackend::connect(settings_for(self.port)).await.unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next request reaches the server, and its reply does not come back: the link ends instead.
    pub(crate) fn cut_next_reply(&self) {
        self.cut_next_reply.store(true, Ordering::SeqCst);
    }

    /// Links made so far.
    pub(crate) fn links(&self) -> u32 {
        self.links.load(Ordering::SeqCst)
    }
}

async fn carry(near: TcpStream, far: TcpStream, cut: Arc<AtomicBool>) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let requests = async { tokio::io::copy(&mut near_read, &mut far_write).await.map(drop) };
    let replies = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = far_read.read(&mut buffer).await?;
            if length == 0 || cut.swap(false, Ordering::SeqCst) {
                return Ok::<(), std::io::Error>(());
            }
            near_write.write_all(&buffer[..length]).await?;
        }
    };
    tokio::select! { _ = requests => {}, _ = replies => {} }
}

/// A certificate authority and a server certificate for an address, as PEM files in `folder`.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    pub(crate) fn make(folder: &Path, address: Ipv4Addr) -> Self {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority =
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([address.to_string()]).unwrap();
        // Or OpenSSL, which the servers use among themselves, takes it for signed by itself.
        params.distinguished_name.push(rcgen::DnType::CommonName, "redis");
        let certificate = params.signed_by(&key, &authority).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Self {
            authority: write("ca.pem", authority.pem()),
            certificate: write("server.pem", certificate.pem()),
            key: write("server.key", key.serialize_pem()),
        }
    }
}
