//! Listening sockets of the doors, and the certificates they show. The certificate is read without waiting and can be
//! replaced while connections are open (P-24).

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::stream::ServerStream;

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn (4096 since Linux 5.4).
const BACKLOG: i32 = 4096;
/// First pause after a failed accept; it doubles up to the longest.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause after a failed accept: connections that end free descriptors meanwhile.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where a door listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// `IP:PORT`. Empty stands for the door's own default, see [`Self::or_address`].
    pub address: String,
    /// Default: plain HTTP.
    pub tls: Option<TlsSettings>,
}

impl ListenSettings {
    /// Fills in the door's default where the settings name no address.
    #[must_use]
    pub fn or_address(mut self, default: &str) -> Self {
        if self.address.is_empty() {
            default.clone_into(&mut self.address);
        }
        self
    }
}

/// The certificate of a door.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM: the door's certificate, then its intermediates.
    pub certificate_file: PathBuf,
    /// PEM: the private key (PKCS#8, PKCS#1 or SEC1).
    pub key_file: PathBuf,
}

/// Why a door cannot listen, or cannot take a new certificate. The setting's name is the caller's to add:
/// [`Self::advice`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    #[error("{address:?} is not an address")]
    AddressMalformed { address: String },
    #[error("{address} is in use")]
    AddressInUse { address: SocketAddr },
    #[error("{address} cannot be listened on")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("certificate file {} is unusable", path.display())]
    Certificate { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("key file {} is unusable", path.display())]
    Key { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("key file {} does not belong to certificate file {}", key.display(), certificate.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl ListenError {
    /// The fault and its remedy in one line, where `setting` is what the operator wrote: `proxy.listen`.
    pub fn advice(&self, setting: &str) -> String {
        let source = std::error::Error::source(self).map(|source| format!(" ({source})")).unwrap_or_default();
        let remedy = match self {
            Self::AddressMalformed { .. } => "write IP:PORT, such as 127.0.0.1:8080 or [::]:8080".to_owned(),
            Self::AddressInUse { .. } => {
                format!("stop the other process or set {setting} to another address")
            }
            Self::Bind { .. } => format!("set {setting} to an address of this host and a port above 1023"),
            Self::Certificate { .. } => {
                "it must be readable PEM: the certificate, then its intermediates".to_owned()
            }
            Self::Key { .. } => "it must be readable PEM: one private key, not encrypted".to_owned(),
            Self::KeyMismatch { .. } => "replace both files together".to_owned(),
            Self::Tls(_) => "this is a fault in bearerd".to_owned(),
        };
        format!("{setting}: {self}{source}; {remedy}")
    }
}

/// A bound socket, not yet on any runtime. Connections queue from [`Self::bind`] on.
pub struct Listener {
    socket: StdListener,
    address: SocketAddr,
    tls: Option<DoorTls>,
}

impl Listener {
    /// Binds and listens; offers the protocols `alpn` (`h2`, `http/1.1`), best first, if the door has TLS.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind(settings: &ListenSettings, alpn: &[&[u8]]) -> Result<Self, ListenError> {
        let malformed = |_| ListenError::AddressMalformed { address: settings.address.clone() };
        let wanted: SocketAddr = settings.address.trim().parse().map_err(malformed)?;
        // Before the socket, so that a bad certificate never lets connections queue.
        let tls = settings.tls.as_ref().map(|tls| DoorTls::new(tls, alpn)).transpose()?;
        let (socket, address) = bound(wanted).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::AddressInUse { address: wanted },
            _ => ListenError::Bind { address: wanted, source },
        })?;
        Ok(Self { socket, address, tls })
    }

    /// The address bound, with the port that the system chose where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The same socket and certificate again, for another runtime; each connection goes to one of them.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, address: self.address, tls: self.tls.clone() })
    }

    /// Reads certificate and key again, for every clone and acceptor of this socket. New handshakes see the new pair,
    /// open connections stay; on an error the old pair stays. Nothing to do without TLS.
    ///
    /// # Errors
    /// [`ListenError`] about the files.
    pub fn reload_certificate(&self) -> Result<(), ListenError> {
        self.certificate().map_or(Ok(()), |certificate| certificate.reload())
    }

    /// The certificate alone, for whoever reloads it: holding it does not keep the socket open. `None` without TLS.
    pub fn certificate(&self) -> Option<DoorCertificate> {
        self.tls.as_ref().map(|tls| DoorCertificate(Arc::clone(&tls.certificate)))
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Registers the socket with the current tokio runtime.
    ///
    /// # Errors
    /// The runtime's poller refuses the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn into_acceptor(self) -> io::Result<Acceptor> {
        let listener = TcpListener::from_std(self.socket)?;
        Ok(Acceptor { listener, address: self.address, tls: self.tls.map(|tls| tls.acceptor) })
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.address)
            .field("tls", &self.is_tls())
            .finish_non_exhaustive()
    }
}

/// A listener on one runtime.
pub struct Acceptor {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Acceptor {
    /// The next connection and its peer, with `TCP_NODELAY` set. Failures are logged and waited out: they are the
    /// connection's (gone already) or pass (no descriptors left). Cancel safe.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        let mut pause = ACCEPT_PAUSE;
        loop {
            let error = match self.listener.accept().await {
                Ok((tcp, peer)) => {
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%peer, %error, "TCP_NODELAY refused: the peer is gone");
                    }
                    return (tcp, peer);
                }
                Err(error) => error,
            };
            if is_of_the_connection(&error) {
                continue;
            }
            let pause_ms = pause.as_millis();
            tracing::warn!(listener = %self.address, %error, pause_ms, "no connection could be accepted on {}", self.address);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        }
    }

    /// The TLS handshake, or nothing on a plain door. Waits as long as the peer does: bound it.
    ///
    /// # Errors
    /// The handshake failed; only this connection is affected.
    pub async fn handshake(&self, tcp: TcpStream) -> io::Result<ServerStream> {
        handshake(self.tls.as_ref(), tcp).await
    }

    /// What [`handshake`] needs, without the socket.
    pub(crate) fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.clone()
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("address", &self.address)
            .field("tls", &self.is_tls())
            .finish_non_exhaustive()
    }
}

/// Shared by the clones of one listener.
#[derive(Clone)]
struct DoorTls {
    acceptor: TlsAcceptor,
    certificate: Arc<CurrentCertificate>,
}

impl DoorTls {
    fn new(settings: &TlsSettings, alpn: &[&[u8]]) -> Result<Self, ListenError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pair = ArcSwap::from_pointee(certified_key(settings, &provider)?);
        let certificate = Arc::new(CurrentCertificate {
            settings: settings.clone(),
            provider: Arc::clone(&provider),
            pair,
        });
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&certificate) as _;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // Callers that reconnect resume, without a session kept here for each of them.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
    }
}

/// The certificate that a door shows, shared by everything that came from one [`Listener::bind`].
#[derive(Debug, Clone)]
pub struct DoorCertificate(Arc<CurrentCertificate>);

impl DoorCertificate {
    /// As [`Listener::reload_certificate`].
    ///
    /// # Errors
    /// [`ListenError`] about the files; the old pair stays.
    pub fn reload(&self) -> Result<(), ListenError> {
        let CurrentCertificate { settings, provider, pair } = &*self.0;
        pair.store(Arc::new(certified_key(settings, provider)?));
        Ok(())
    }
}

/// What the next handshake shows.
struct CurrentCertificate {
    settings: TlsSettings,
    provider: Arc<CryptoProvider>,
    pair: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair.load_full())
    }
}

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentCertificate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The server's side of the TLS handshake, or nothing without TLS.
pub(crate) async fn handshake(tls: Option<&TlsAcceptor>, tcp: TcpStream) -> io::Result<ServerStream> {
    match tls {
        None => Ok(ServerStream::Plain(tcp)),
        Some(tls) => Ok(ServerStream::Tls(Box::new(tls.accept(tcp).await?))),
    }
}

fn certified_key(settings: &TlsSettings, provider: &CryptoProvider) -> Result<CertifiedKey, ListenError> {
    let (certificate_file, key_file) = (&settings.certificate_file, &settings.key_file);
    let chain = chain_of(certificate_file)
        .map_err(|source| ListenError::Certificate { path: certificate_file.clone(), source })?;
    let key_fault = |source| ListenError::Key { path: key_file.clone(), source };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| key_fault(source.into()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|fault| match fault {
        rustls::Error::InconsistentKeys(_) => {
            ListenError::KeyMismatch { certificate: certificate_file.clone(), key: key_file.clone() }
        }
        rustls::Error::InvalidCertificate(_) => {
            ListenError::Certificate { path: certificate_file.clone(), source: fault.into() }
        }
        other => key_fault(other.into()),
    })
}

fn chain_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, Box<dyn std::error::Error + Send + Sync>> {
    let pem = std::fs::read(path)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() { Err("it holds no certificate".into()) } else { Ok(chain) }
}

/// `SO_REUSEADDR` lets a restart bind while old connections linger in TIME-WAIT; it does not share a port in use.
fn bound(address: SocketAddr) -> io::Result<(StdListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = StdListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// accept(2) hands on errors of the connection it would have returned: the next one may be fine.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use rustls::ClientConfig;
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::testing::{Leaf, TestCa};

    fn anywhere(tls: Option<TlsSettings>) -> ListenSettings {
        ListenSettings { address: "127.0.0.1:0".to_owned(), tls }
    }

    #[test]
    fn a_port_in_use_is_told_with_its_remedy() {
        let first = Listener::bind(&anywhere(None), &[]).unwrap();
        let address = first.local_addr();
        let error =
            Listener::bind(&ListenSettings { address: address.to_string(), tls: None }, &[]).unwrap_err();
        assert!(matches!(error, ListenError::AddressInUse { address: told } if told == address));
        let expected = format!(
            "proxy.listen: {address} is in use; stop the other process or set proxy.listen to another address"
        );
        assert_eq!(error.advice("proxy.listen"), expected);
        drop(first);
        Listener::bind(&ListenSettings { address: address.to_string(), tls: None }, &[]).unwrap();
    }

    #[test]
    fn an_address_is_ip_and_port() {
        for bad in
            ["", "8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:1"]
        {
            let settings = ListenSettings { address: bad.to_owned(), tls: None };
            let error = Listener::bind(&settings, &[]).unwrap_err();
            assert!(matches!(error, ListenError::AddressMalformed { .. }), "{bad}: {error:?}");
        }
        // Not an address of this host.
        let error = Listener::bind(&ListenSettings { address: "192.0.2.1:0".to_owned(), tls: None }, &[])
            .unwrap_err();
        assert!(matches!(error, ListenError::Bind { .. }));
        let filled = ListenSettings::default().or_address("127.0.0.1:8080");
        assert_eq!(
            (filled.address.as_str(), filled.clone().or_address("other") == filled),
            ("127.0.0.1:8080", true)
        );
        let text = "tls = { certificate_file = 'c', key_file = 'k' }";
        assert!(toml::from_str::<ListenSettings>(text).unwrap().tls.is_some());
        assert!(toml::from_str::<ListenSettings>("adress = '127.0.0.1:1'").is_err());
    }

    #[test]
    fn a_pair_of_files_must_fit() {
        let ca = TestCa::new();
        let leaf = ca.issue("127.0.0.1");
        let bind = |leaf: &Leaf| {
            Listener::bind(&anywhere(Some(ca.install(leaf))), &[]).map(|listener| listener.is_tls())
        };
        assert!(bind(&leaf).unwrap());
        let stranger = ca.issue("127.0.0.1").key;
        let mixed = Leaf { certificate: leaf.certificate.clone(), key: stranger };
        assert!(matches!(bind(&mixed), Err(ListenError::KeyMismatch { .. })));
        let certificate = leaf.certificate.clone();
        assert!(matches!(bind(&Leaf { certificate, key: String::new() }), Err(ListenError::Key { .. })));
        let swapped = Leaf { certificate: leaf.key.clone(), key: leaf.key.clone() };
        assert!(matches!(bind(&swapped), Err(ListenError::Certificate { .. })));
        let missing =
            TlsSettings { certificate_file: "/nonexistent/c".into(), key_file: "/nonexistent/k".into() };
        let error = Listener::bind(&anywhere(Some(missing)), &[]).unwrap_err();
        assert!(matches!(error, ListenError::Certificate { .. }));
        assert!(
            error
                .advice("admin.listen")
                .starts_with("admin.listen: certificate file /nonexistent/c is unusable (No such")
        );
    }

    /// Echoes on every connection until the test ends.
    fn echo(listener: Listener) {
        let acceptor = Arc::new(listener.into_acceptor().unwrap());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = acceptor.accept().await;
                let acceptor = Arc::clone(&acceptor);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.handshake(tcp).await else { return };
                    assert_eq!(stream.alpn(), Some(&b"http/1.1"[..]));
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
    }

    async fn call(config: &Arc<ClientConfig>, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await?;
        TlsConnector::from(Arc::clone(config)).connect(ServerName::IpAddress(to.ip().into()), tcp).await
    }

    async fn check_echo(stream: &mut TlsStream<TcpStream>, shown: &Leaf) {
        stream.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], shown.der());
    }

    fn client(ca: &TestCa) -> Arc<ClientConfig> {
        let certificates = crate::egress::certificates_of(&ca.ca_file).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(crate::egress::roots_of(&ca.ca_file, &certificates).unwrap())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session shows the certificate of the first.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }

    /// P-24: a reload drops nothing, and a bad pair changes nothing.
    #[tokio::test]
    async fn a_certificate_is_reloaded_without_a_drop() {
        let ca = TestCa::new();
        let (old, new) = (ca.issue("127.0.0.1"), ca.issue("127.0.0.1"));
        let listener = Listener::bind(&anywhere(Some(ca.install(&old))), &[b"h2", b"http/1.1"]).unwrap();
        let (address, certificate, config) =
            (listener.local_addr(), listener.certificate().unwrap(), client(&ca));
        let kept = listener.try_clone().unwrap();
        echo(listener);
        let mut before = call(&config, address).await.unwrap();
        check_echo(&mut before, &old).await;

        ca.install(&new);
        certificate.reload().unwrap();
        let mut after = call(&config, address).await.unwrap();
        check_echo(&mut after, &new).await;
        check_echo(&mut before, &old).await;

        ca.install(&Leaf { certificate: old.certificate.clone(), key: new.key.clone() });
        assert!(matches!(kept.reload_certificate(), Err(ListenError::KeyMismatch { .. })));
        check_echo(&mut call(&config, address).await.unwrap(), &new).await;
        check_echo(&mut before, &old).await;
    }

    /// P-24: reloads under load fail no handshake.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reloads_under_load_fail_nothing() {
        let ca = TestCa::new();
        let leaf = ca.issue("127.0.0.1");
        let listener = Listener::bind(&anywhere(Some(ca.install(&leaf))), &[b"http/1.1"]).unwrap();
        let (address, certificate, config) =
            (listener.local_addr(), listener.certificate().unwrap(), client(&ca));
        echo(listener);
        let calls = tokio::spawn(async move {
            for _ in 0..50 {
                check_echo(&mut call(&config, address).await.unwrap(), &leaf).await;
            }
        });
        let mut reloads = 0;
        while !calls.is_finished() || reloads == 0 {
            certificate.reload().unwrap();
            reloads += 1;
            tokio::task::yield_now().await;
        }
        calls.await.unwrap();
    }

    #[tokio::test]
    async fn clones_share_one_socket() {
        let listener = Listener::bind(&anywhere(None), &[]).unwrap();
        let (address, clone) = (listener.local_addr(), listener.try_clone().unwrap());
        assert!(clone.certificate().is_none() && clone.reload_certificate().is_ok());
        let (one, two) = (listener.into_acceptor().unwrap(), clone.into_acceptor().unwrap());
        let caller = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = one.accept().await;
        assert_eq!((peer, accepted.nodelay().unwrap()), (caller.local_addr().unwrap(), true));
        drop(one);
        let caller = TcpStream::connect(address).await.unwrap();
        assert_eq!(two.accept().await.1, caller.local_addr().unwrap());
        assert_eq!(two.local_addr(), address);
    }
}
