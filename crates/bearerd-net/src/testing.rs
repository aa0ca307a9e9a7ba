//! Far sides for this crate's tests: a private CA, instances that misbehave by script, a CONNECT proxy.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bearerd_model::InstanceOrigin;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{Connector, EgressSettings, TlsSettings};

/// A CA that exists for one test, and a directory for its files.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca_file: PathBuf,
    directory: TempDir,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bearerd test CA");
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca_file, directory }
    }

    /// A certificate for `name`, a domain or an address.
    pub(crate) fn issue(&self, name: &str) -> Leaf {
        self.issue_until(name, 2099)
    }

    /// A certificate that is valid up to the beginning of `year`.
    pub(crate) fn issue_until(&self, name: &str, year: i32) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        Leaf { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Writes `leaf` to the one pair of files that this returns.
    pub(crate) fn install(&self, leaf: &Leaf) -> TlsSettings {
        let (certificate_file, key_file) = self.install_as("door", leaf);
        TlsSettings::new(certificate_file, key_file)
    }

    /// Writes `leaf` to the pair of files that `name` names.
    pub(crate) fn install_as(&self, name: &str, leaf: &Leaf) -> (PathBuf, PathBuf) {
        let certificate_file = self.directory.path().join(format!("{name}.pem"));
        let key_file = self.directory.path().join(format!("{name}.key"));
        std::fs::write(&certificate_file, &leaf.certificate).unwrap();
        std::fs::write(&key_file, &leaf.key).unwrap();
        (certificate_file, key_file)
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let certificates = crate::egress::certificates_of(&self.ca_file).unwrap();
        crate::egress::roots_of(&self.ca_file, &certificates).unwrap()
    }

    /// A connector that trusts this CA alone.
    pub(crate) fn connector(&self) -> Connector {
        let settings = EgressSettings { ca_file: Some(self.ca_file.clone()), ..EgressSettings::default() };
        Connector::new(&settings).unwrap()
    }
}

/// A certificate and its key, both PEM.
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Leaf {
    /// Signed by nobody but itself.
    pub(crate) fn self_signed(name: &str) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        Self { certificate: cert.pem(), key: signing_key.serialize_pem() }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// A server that shows this, wants a certificate of `clients`, and speaks `alpn`.
    pub(crate) fn server(&self, clients: Option<&TestCa>, alpn: &[&[u8]]) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = clients.map_or_else(WebPkiClientVerifier::no_client_auth, |ca| {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()), Arc::clone(&provider));
            builder.build().unwrap()
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.der()], self.private_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// What a far side does with a connection.
#[derive(Clone)]
pub(crate) enum Script {
    /// Reads one request, writes these bytes, closes.
    Reply(Vec<u8>),
    /// Writes these bytes unasked, closes.
    Greet(Vec<u8>),
    /// Reads one request, then writes nothing and keeps the connection.
    Silence,
    /// Neither reads nor writes, not even a TLS handshake.
    Stuck,
}

/// An instance on loopback. Ends when dropped.
pub(crate) struct FarSide {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FarSide {
    pub(crate) async fn plain(script: Script) -> Self {
        Self::start(script, None).await
    }

    pub(crate) async fn tls(script: Script, leaf: &Leaf) -> Self {
        Self::tls_with(script, leaf.server(None, &[])).await
    }

    pub(crate) async fn tls_with(script: Script, config: ServerConfig) -> Self {
        Self::start(script, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(script: Script, tls: Option<TlsAcceptor>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let (address, task) = accept_loop(move |tcp| {
            let (script, tls, log) = (script.clone(), tls.clone(), Arc::clone(&log));
            async move {
                match tls {
                    _ if matches!(script, Script::Stuck) => std::future::pending().await,
                    None => play(tcp, script, &log).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(tcp).await {
                            play(stream, script, &log).await;
                        }
                    }
                }
            }
        })
        .await;
        Self { address, seen, task }
    }

    /// The requests that came, each with head and body.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn http(&self) -> InstanceOrigin {
        origin(&format!("http://{}", self.address))
    }

    pub(crate) fn https(&self) -> InstanceOrigin {
        origin(&format!("https://{}", self.address))
    }
}

impl Drop for FarSide {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn play(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: Script, log: &Mutex<Vec<String>>) {
    if let Script::Greet(bytes) = script {
        let _ = stream.write_all(&bytes).await;
        return;
    }
    let Some(request) = read_request(&mut stream).await else { return };
    log.lock().unwrap().push(request);
    match script {
        Script::Reply(bytes) => {
            // The client may have given up on us already: that is some scripts' point.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            // Reading to the end lets the client close first, so that no reset overtakes our bytes.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        Script::Greet(_) | Script::Silence | Script::Stuck => std::future::pending().await,
    }
}

/// Reads a head, and as many bytes of body as its `content-length` says. `None`: the peer closed.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// A proxy that answers CONNECT with `reply`, and after a 200 tunnels to `target` whatever was asked for.
pub(crate) struct ConnectProxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl ConnectProxy {
    pub(crate) async fn start(reply: &'static str, target: Option<SocketAddr>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let (address, task) = accept_loop(move |mut tcp| {
            let log = Arc::clone(&log);
            async move {
                let Some(request) = read_request(&mut tcp).await else { return };
                log.lock().unwrap().push(request);
                let _ = tcp.write_all(reply.as_bytes()).await;
                if let Some(target) = target {
                    let mut upstream = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut tcp, &mut upstream).await;
                }
            }
        })
        .await;
        Self { address, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection in a task of its own.
async fn accept_loop<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(tcp));
        }
    });
    (address, task)
}

/// A port of loopback on which nobody listens.
pub(crate) async fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) fn origin(text: &str) -> InstanceOrigin {
    InstanceOrigin::parse(text).unwrap()
}
