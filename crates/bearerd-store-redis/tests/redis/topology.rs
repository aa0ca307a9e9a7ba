//! Servers in company: a primary with replicas, watched by sentinels or not, and a cluster.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bearerd_store_redis::{RedisBackend, RedisSettings};
use redis::{FromRedisValue, IntoConnectionInfo};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::server::Certificates;

/// One process; killed when dropped.
pub(crate) struct Node {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    /// Of the command line; or the only one, a sentinel's settings file.
    args: Vec<String>,
    folder: TempDir,
    /// With it, all is TLS.
    authority: Option<Vec<u8>>,
    child: Option<Child>,
}

impl Node {
    /// A `redis-server` that appends every write to its file at once.
    fn server(address: Ipv4Addr, port: u16, tls: Option<&Certificates>, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = address.to_string();
        let tls_settings = port_settings(port, tls, "--");
        let of_tls = tls_settings.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let common = [
            "--bind",
            &host,
            "--protected-mode",
            "no",
            "--replica-announce-ip",
            &host,
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
            "--dir",
            folder.path().to_str().unwrap(),
        ];
        let args = common.into_iter().chain(of_tls).chain(more.iter().copied()).map(str::to_owned).collect();
        Self::begin(address, port, args, folder, tls)
    }

    fn sentinel(address: Ipv4Addr, port: u16, primary: u16, tls: Option<&Certificates>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let tls_settings = port_settings(port, tls, "");
        let tls_lines: Vec<String> =
            tls_settings.iter().map(|(name, value)| [name, " ", value, "\n"].concat()).collect();
        let tls_lines = tls_lines.concat();
        let text = format!(
            "{tls_lines}bind {address}\nprotected-mode no\ndir {}\nsentinel announce-ip {address}\n\
             sentinel monitor mymaster {address} {primary} 2\nsentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 3000\nsentinel parallel-syncs mymaster 2\n",
            folder.path().display()
        );
        fs::write(&file, text).unwrap();
        let args = vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        Self::begin(address, port, args, folder, tls)
    }

    fn begin(
        address: Ipv4Addr,
        port: u16,
        args: Vec<String>,
        folder: TempDir,
        tls: Option<&Certificates>,
    ) -> Self {
        let authority = tls.map(|tls| fs::read(&tls.authority).unwrap());
        let mut node = Self { address, port, args, folder, authority, child: None };
        node.start(&[]);
        node
    }

    fn start(&mut self, more: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new("redis-server");
        command.args(&self.args).args(more).stdout(log).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        until(&format!("{}:{} answers", self.address, self.port), || self.try_raw().map(drop));
    }

    fn log(&self) -> impl AsRef<Path> + use<> {
        self.folder.path().join("log")
    }

    fn try_raw(&self) -> Option<redis::Connection> {
        let (host, port) = (self.address.to_string(), self.port);
        let client = match &self.authority {
            None => redis::Client::open((host, port)).unwrap(),
            Some(authority) => {
                drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
                let at = redis::ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
                let trusted = redis::TlsCertificates { client_tls: None, root_cert: Some(authority.clone()) };
                redis::Client::build_with_tls(at.into_connection_info().unwrap(), trusted).unwrap()
            }
        };
        let mut raw = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        raw.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // While it loads its file it answers with an error.
        redis::cmd("PING").exec(&mut raw).ok()?;
        Some(raw)
    }

    pub(crate) fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words)
            .unwrap_or_else(|| panic!("{}:{} did not answer {words:?}", self.address, self.port))
    }

    /// `None` if it does not answer, or with an error.
    pub(crate) fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut self.try_raw()?).ok()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Whether it is a primary, or a replica that has caught up with its primary.
    fn is_in_step(&self) -> bool {
        let info: String = self.try_ask(&["INFO", "replication"]).unwrap_or_default();
        info.contains("role:master") || info.contains("master_link_status:up")
    }

    fn is_primary(&self) -> bool {
        let info: String = self.try_ask(&["INFO", "replication"]).unwrap_or_default();
        info.contains("role:master")
    }
}

/// Of a node's own port, with TLS or without.
fn port_settings(port: u16, tls: Option<&Certificates>, dashes: &str) -> Vec<(String, String)> {
    let setting = |name: &str, value: &str| (format!("{dashes}{name}"), value.to_owned());
    let Some(tls) = tls else { return vec![setting("port", &port.to_string())] };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        setting("port", "0"),
        setting("tls-port", &port.to_string()),
        setting("tls-replication", "yes"),
        setting("tls-auth-clients", "no"),
        setting("tls-cert-file", &path(&tls.certificate)),
        setting("tls-key-file", &path(&tls.key)),
        setting("tls-ca-cert-file", &path(&tls.authority)),
    ]
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            eprintln!("{}:{} logged, newest first:\n{}", self.address, self.port, tail.join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A primary, two replicas of it, and as many sentinels as asked for.
pub(crate) struct Watched {
    pub(crate) servers: Vec<Node>,
    pub(crate) sentinels: Vec<Node>,
    tls: Option<Tls>,
}

impl Watched {
    pub(crate) fn start(sentinels: u16) -> Self {
        Self::start_on(loopback(), sentinels, None)
    }

    pub(crate) fn start_with_tls(sentinels: u16) -> Self {
        let address = loopback();
        Self::start_on(address, sentinels, Some(Tls::make(address)))
    }

    fn start_on(address: Ipv4Addr, sentinels: u16, tls: Option<Tls>) -> Self {
        let certificates = tls.as_ref().map(|tls| &tls.certificates);
        let primary = Node::server(address, 6379, certificates, &[]);
        let (host, port) = (address.to_string(), primary.port.to_string());
        let of_replicas = ["--replicaof", &host, &port];
        let mut servers = vec![primary];
        servers.extend([6380, 6381].map(|port| Node::server(address, port, certificates, &of_replicas)));
        until("the replicas are in step", || servers.iter().all(Node::is_in_step).then_some(()));
        let sentinels: Vec<Node> = (0..sentinels)
            .map(|number| Node::sentinel(address, 26379 + number, 6379, certificates))
            .collect();
        let watched = Self { servers, sentinels, tls };
        watched.wait_until_known();
        watched
    }

    /// Each sentinel knows both replicas and the other sentinels.
    fn wait_until_known(&self) {
        let others = (self.sentinels.len().saturating_sub(1)).to_string();
        for sentinel in &self.sentinels {
            until("the sentinels know each other and the replicas", || {
                let details: Vec<String> = sentinel.try_ask(&["SENTINEL", "MASTER", "mymaster"])?;
                let has = |name: &str, value: &str| details.windows(2).any(|pair| pair == [name, value]);
                (has("num-slaves", "2") && has("num-other-sentinels", &others) && has("flags", "master"))
                    .then_some(())
            });
        }
    }

    pub(crate) fn settings(&self) -> RedisSettings {
        RedisSettings {
            sentinels: self.sentinels.iter().map(|node| format!("{}:{}", node.address, node.port)).collect(),
            ..patient(self.tls.as_ref())
        }
    }

    pub(crate) async fn backend(&self) -> RedisBackend {
        RedisBackend::connect(self.settings()).await.unwrap()
    }

    /// The one that the first sentinel names.
    pub(crate) fn primary(&self) -> usize {
        let (_, port): (String, u16) =
            self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
        self.servers.iter().position(|node| node.port == port).unwrap()
    }

    /// Ends the primary without warning.
    pub(crate) fn kill_primary(&mut self) -> usize {
        let primary = self.primary();
        self.servers[primary].kill();
        primary
    }

    pub(crate) fn wait_for_another_than(&self, killed: usize) -> usize {
        until("there is another primary", || {
            let primary = self.primary();
            (primary != killed && self.servers[primary].is_primary()).then_some(primary)
        })
    }

    /// Brings a killed server back under the primary of now, and waits until it has caught up.
    pub(crate) fn restart(&mut self, killed: usize) {
        let primary = &self.servers[self.primary()];
        let (host, port) = (primary.address.to_string(), primary.port.to_string());
        self.servers[killed].start(&["--replicaof", &host, &port]);
        until("all are in step again", || self.servers.iter().all(Node::is_in_step).then_some(()));
        self.wait_until_known();
    }
}

/// Three primaries with a replica each.
pub(crate) struct ClusterNodes {
    pub(crate) nodes: Vec<Node>,
    tls: Option<Tls>,
}

struct Tls {
    certificates: Certificates,
    _folder: TempDir,
}

impl Tls {
    fn make(address: Ipv4Addr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { certificates: Certificates::make(folder.path(), address), _folder: folder }
    }
}

impl ClusterNodes {
    pub(crate) fn start() -> Self {
        Self::start_on(loopback(), None)
    }

    pub(crate) fn start_with_tls() -> Self {
        let address = loopback();
        Self::start_on(address, Some(Tls::make(address)))
    }

    fn start_on(address: Ipv4Addr, tls: Option<Tls>) -> Self {
        let host = address.to_string();
        let certificates = tls.as_ref().map(|tls| &tls.certificates);
        let mut own = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        own.extend(["--cluster-announce-ip", &host]);
        if tls.is_some() {
            own.extend(["--tls-cluster", "yes"]);
        }
        let nodes: Vec<Node> =
            (7001..7007).map(|port| Node::server(address, port, certificates, &own)).collect();
        let [first, others @ ..] = &nodes[..] else { unreachable!() };
        for (number, range) in [(0, "0 5460"), (1, "5461 10922"), (2, "10923 16383")] {
            let (from, to) = range.split_once(' ').unwrap();
            nodes[number].ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            nodes[number].ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", from, to]);
        }
        for node in others {
            node.ask::<()>(&["CLUSTER", "MEET", &host, &first.port.to_string()]);
        }
        for number in 0..3 {
            let id: String = nodes[number].ask(&["CLUSTER", "MYID"]);
            until("the nodes have met", || nodes[number + 3].try_ask::<()>(&["CLUSTER", "REPLICATE", &id]));
        }
        let cluster = Self { nodes, tls };
        cluster.wait_until_well();
        cluster
    }

    pub(crate) fn wait_until_well(&self) {
        let alive: Vec<&Node> = self.nodes.iter().filter(|node| node.is_alive()).collect();
        for node in &alive {
            until("the cluster is well", || {
                let info: String = node.try_ask(&["CLUSTER", "INFO"])?;
                let is_well = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
                let nodes: String = node.try_ask(&["CLUSTER", "NODES"])?;
                let is_settled = !nodes.contains("handshake") && nodes.lines().count() == 6;
                (is_well && is_settled && node.is_in_step()).then_some(())
            });
        }
    }

    pub(crate) fn settings(&self) -> RedisSettings {
        let seeds =
            [0, 4].map(|number: usize| format!("{}:{}", self.nodes[number].address, self.nodes[number].port));
        RedisSettings { cluster: seeds.to_vec(), ..patient(self.tls.as_ref()) }
    }

    pub(crate) async fn backend(&self) -> RedisBackend {
        RedisBackend::connect(self.settings()).await.unwrap()
    }

    /// The node that takes writes for the slot of `tag`.
    pub(crate) fn owner(&self, tag: &str) -> usize {
        let key = format!("{{{tag}}}");
        let has_it = |node: &Node| node.is_alive() && node.try_ask::<()>(&["EXISTS", &key]).is_some();
        let owner = || self.nodes.iter().position(|node| has_it(node) && node.is_primary());
        until(&format!("a node has the slot of {tag}"), owner)
    }

    /// Brings a killed node back, as what it finds itself to be.
    pub(crate) fn restart(&mut self, killed: usize) {
        self.nodes[killed].start(&[]);
        self.wait_until_well();
    }
}

fn patient(tls: Option<&Tls>) -> RedisSettings {
    RedisSettings {
        ca_file: tls.map(|tls| tls.certificates.authority.clone()),
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_millis(700),
        ..RedisSettings::new(if tls.is_some() { "rediss://unused" } else { "redis://unused" })
    }
}

/// An address of the machine itself that nobody else uses: all of 127.0.0.0/8 is loopback.
fn loopback() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let number = std::process::id().wrapping_mul(64).wrapping_add(count % 64);
    // 127.0.x.x is left to others; 0 and 255 as the last part are no host's.
    let part = |number: u32| u8::try_from(number).unwrap();
    let (rest, low) = (number / 254, 1 + number % 254);
    Ipv4Addr::new(127, part(1 + rest / 256 % 254), part(rest % 256), part(low))
}

/// Waits for a condition of the servers.
#[track_caller]
pub(crate) fn until<T>(what: &str, probe: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited 30 s in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
