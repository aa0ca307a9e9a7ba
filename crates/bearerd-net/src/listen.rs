//! The doors' listeners: a bound socket, the certificates it shows, and how it knows its callers. What may wait (the PROXY
//! protocol's header, the TLS handshake) is apart from accepting, so that no peer holds up the next.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;

use crate::{
    caller::{CallerAddress, CallerRule, Peer},
    door_tls::{DoorCertificate, TlsSettings},
    proxy_protocol::ProxyHeaderFault,
    socket::{
        Accepting, BoundAddress, InheritedSockets, ListenAddress, Listening, PeerAddress, Socket, SocketMode,
    },
    stream::ServerStream,
};

/// First pause after a failed accept; it doubles up to the longest.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause after a failed accept: connections that end free descriptors meanwhile.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where a door listens, and whom it believes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// `IP:PORT`, `unix:/PATH`, `inherited:NAME` or `inherited`. Empty stands for the door's own default, see
    /// [`Self::or_address`].
    pub address: String,
    /// Of a unix socket that is made here. Default: 0660.
    pub mode: SocketMode,
    /// Default: plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Default: the peer.
    pub caller_address: CallerAddress,
    /// Networks of the proxies whose word counts for [`Self::caller_address`]; to be given with any but `peer`. Unix
    /// sockets need no network: whoever may open the file is trusted.
    pub trusted_proxies: Vec<IpNet>,
}

impl ListenSettings {
    /// Plain HTTP at `address`, for peers that speak for themselves.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// Fills in the door's default where the settings name no address.
    #[must_use]
    pub fn or_address(mut self, default: &str) -> Self {
        if self.address.is_empty() {
            default.clone_into(&mut self.address);
        }
        self
    }
}

/// Why a door cannot listen, or cannot take a new certificate. The setting's name is the caller's to add:
/// [`Self::advice`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    #[error("{address:?} is not an address")]
    AddressMalformed { address: String },
    #[error("{address} is in use")]
    AddressInUse { address: String },
    #[error("{address} cannot be listened on")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("{} is there and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("the socket file {} cannot be made", path.display())]
    SocketFile { path: PathBuf, source: io::Error },
    #[error("the inherited socket{} {fault}", name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default())]
    Inherited { name: Option<String>, fault: &'static str },
    #[error("certificate file {} is unusable", path.display())]
    Certificate { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("key file {} is unusable", path.display())]
    Key { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("key file {} does not belong to certificate file {}", key.display(), certificate.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("client CA file {} is unusable", path.display())]
    ClientCa { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("client_certificate is set and client_ca_file is not")]
    ClientCaMissing,
    #[error("caller_address names a proxy's word and trusted_proxies is empty")]
    TrustedProxiesMissing,
    #[error("trusted_proxies is set and caller_address is \"peer\"")]
    TrustedProxiesUnused,
    #[error("trusted_proxies holds {network}, which is an address within {}", network.trunc())]
    TrustedProxiesHostBits { network: IpNet },
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl ListenError {
    /// The fault and its remedy in one line, where `setting` is what the operator wrote: `proxy.listen`.
    pub fn advice(&self, setting: &str) -> String {
        let source = std::error::Error::source(self).map(|source| format!(" ({source})")).unwrap_or_default();
        let remedy = match self {
            Self::AddressMalformed { .. } => {
                "write IP:PORT, such as 127.0.0.1:8080 or [::]:8080, unix:/PATH, inherited:NAME or inherited"
                    .to_owned()
            }
            Self::AddressInUse { .. } => {
                format!("stop the other process or set {setting} to another address")
            }
            Self::Bind { .. } => format!("set {setting} to an address of this host and a port above 1023"),
            Self::NotASocket { .. } => "move it away or name another path".to_owned(),
            Self::SocketFile { .. } => {
                "its folder must be there and writable, and the path shorter than 108 bytes".to_owned()
            }
            Self::Inherited { .. } => {
                "name it as FileDescriptorName= of the .socket unit does; it listens on TCP or a unix socket, with \
                 Accept=no"
                    .to_owned()
            }
            Self::Certificate { .. } => {
                "it must be readable PEM: the certificate, then its intermediates".to_owned()
            }
            Self::Key { .. } => "it must be readable PEM: one private key, not encrypted".to_owned(),
            Self::KeyMismatch { .. } => "replace both files together".to_owned(),
            Self::ClientCa { .. } => "it must be readable PEM: certificates of authorities".to_owned(),
            Self::ClientCaMissing => "name the authorities' file, or leave both out".to_owned(),
            Self::TrustedProxiesMissing => {
                "list the proxies' networks, or set caller_address to \"peer\"".to_owned()
            }
            Self::TrustedProxiesUnused => {
                "set caller_address to \"proxy_protocol\" or \"forwarded\", or list no proxies".to_owned()
            }
            Self::TrustedProxiesHostBits { network } => {
                format!("write {} for the network, or {}/{} for the address", network.trunc(), network.addr(), network.max_prefix_len())
            }
            Self::Tls(_) => "this is a fault in bearerd".to_owned(),
        };
        format!("{setting}: {self}{source}; {remedy}")
    }
}

/// Why an accepted connection did not come to its first request. Only this connection is affected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The door wants the PROXY protocol, and the peer is not inside `trusted_proxies`. Nothing was read.
    #[error("the peer is not a trusted proxy")]
    PeerUntrusted,
    #[error(transparent)]
    ProxyHeader(ProxyHeaderFault),
    /// The peer left, or the socket failed, before or in the handshake; or TLS objected.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A bound socket, not yet on any runtime. Connections queue from [`Self::bind`] on.
pub struct Listener {
    socket: Listening,
    handshaker: Handshaker,
}

impl Listener {
    /// Binds and listens; offers the protocols `alpn` (`h2`, `http/1.1`), best first, if the door has TLS.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind(settings: &ListenSettings, alpn: &[&[u8]]) -> Result<Self, ListenError> {
        Self::bind_or_inherit(settings, alpn, &mut InheritedSockets::none())
    }

    /// As [`Self::bind`]; an address that names an inherited socket takes it out of `inherited`.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind_or_inherit(
        settings: &ListenSettings,
        alpn: &[&[u8]],
        inherited: &mut InheritedSockets,
    ) -> Result<Self, ListenError> {
        let at: ListenAddress = settings.address.parse()?;
        // Before the socket, so that a bad certificate never lets connections queue.
        let tls = settings.tls.as_ref().map(|tls| DoorCertificate::new(tls, alpn)).transpose()?;
        let socket = Listening::open(&at, settings.mode, inherited)?;
        let callers = Arc::new(caller_rule(settings, &socket.address)?);
        Ok(Self { socket, handshaker: Handshaker { callers, tls } })
    }

    pub fn address(&self) -> &BoundAddress {
        &self.socket.address
    }

    /// The same socket and certificate again, for another runtime; each connection goes to one of them.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, handshaker: self.handshaker.clone() })
    }

    /// Reads the certificates again, for every clone and acceptor of this socket: [`DoorCertificate::reload`]. Nothing to
    /// do without TLS.
    ///
    /// # Errors
    /// [`ListenError`] about the files.
    pub fn reload_certificate(&self) -> Result<(), ListenError> {
        self.handshaker.tls.as_ref().map_or(Ok(()), DoorCertificate::reload)
    }

    /// The certificates alone, for whoever reloads them: holding them does not keep the socket open. `None` without TLS.
    pub fn certificate(&self) -> Option<DoorCertificate> {
        self.handshaker.tls.clone()
    }

    pub fn is_tls(&self) -> bool {
        self.handshaker.tls.is_some()
    }

    /// Registers the socket with the current tokio runtime.
    ///
    /// # Errors
    /// The runtime's poller refuses the socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn into_acceptor(self) -> io::Result<Acceptor> {
        Ok(Acceptor { socket: self.socket.register()?, handshaker: self.handshaker })
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", self.address())
            .field("tls", &self.is_tls())
            .finish_non_exhaustive()
    }
}

/// A listener on one runtime.
pub struct Acceptor {
    socket: Accepting,
    handshaker: Handshaker,
}

impl Acceptor {
    /// The next connection and its peer, with `TCP_NODELAY` set. Failures are logged and waited out: they are the
    /// connection's (gone already) or pass (no descriptors left). Cancel safe.
    pub async fn accept(&self) -> (Socket, PeerAddress) {
        let mut pause = ACCEPT_PAUSE;
        loop {
            let error = match self.socket.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if is_of_the_connection(&error) {
                continue;
            }
            let (address, pause_ms) = (self.address(), pause.as_millis());
            tracing::warn!(listener = %address, %error, pause_ms, "no connection could be accepted on {address}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        }
    }

    /// [`Handshaker::handshake`]
    ///
    /// # Errors
    /// [`HandshakeError`]
    pub async fn handshake(
        &self,
        socket: Socket,
        address: PeerAddress,
    ) -> Result<(ServerStream, Peer), HandshakeError> {
        self.handshaker.handshake(socket, address).await
    }

    /// What a connection needs, without the socket: holding it does not keep the socket open.
    pub fn handshaker(&self) -> &Handshaker {
        &self.handshaker
    }

    pub fn address(&self) -> &BoundAddress {
        &self.socket.address
    }

    pub fn is_tls(&self) -> bool {
        self.handshaker.tls.is_some()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("address", self.address())
            .field("tls", &self.is_tls())
            .finish_non_exhaustive()
    }
}

/// What comes between accepting a connection and its first request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handshaker {
    callers: Arc<CallerRule>,
    tls: Option<DoorCertificate>,
}

impl Handshaker {
    /// The PROXY protocol's header, where the door wants it, then the TLS handshake, where it has TLS. Waits as long as
    /// the peer does: bound it.
    ///
    /// # Errors
    /// [`HandshakeError`]; only this connection is affected.
    pub async fn handshake(
        &self,
        mut socket: Socket,
        address: PeerAddress,
    ) -> Result<(ServerStream, Peer), HandshakeError> {
        let peer = self.callers.identify(&mut socket, address).await?;
        let stream = match &self.tls {
            None => ServerStream::Plain(socket),
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.config());
                ServerStream::Tls(Box::new(acceptor.accept(socket).await?))
            }
        };
        Ok((stream, peer))
    }

    /// How the door knows the caller of a request.
    pub fn callers(&self) -> &Arc<CallerRule> {
        &self.callers
    }
}

/// A word that nobody is trusted to give, or trust that nothing asks for, is a slip: it would open or close the wrong
/// networks without a sign.
fn caller_rule(settings: &ListenSettings, at: &BoundAddress) -> Result<CallerRule, ListenError> {
    let (from, trusted) = (settings.caller_address, &settings.trusted_proxies);
    if let Some(slip) = trusted.iter().find(|network| **network != network.trunc()) {
        return Err(ListenError::TrustedProxiesHostBits { network: *slip });
    }
    match (from, trusted.is_empty(), at) {
        (CallerAddress::Peer, false, _) => Err(ListenError::TrustedProxiesUnused),
        (CallerAddress::ProxyProtocol | CallerAddress::Forwarded, true, BoundAddress::Tcp(_)) => {
            Err(ListenError::TrustedProxiesMissing)
        }
        _ => Ok(CallerRule::new(from, trusted)),
    }
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::{
        door_tls::ClientCertificate,
        testing::{Leaf, TestCa},
    };

    fn anywhere(tls: Option<TlsSettings>) -> ListenSettings {
        ListenSettings { tls, ..ListenSettings::at("127.0.0.1:0") }
    }

    fn address_of(listener: &Listener) -> SocketAddr {
        listener.address().tcp().unwrap()
    }

    #[test]
    fn a_port_in_use_is_told_with_its_remedy() {
        let first = Listener::bind(&anywhere(None), &[]).unwrap();
        let address = first.address().to_string();
        let error = Listener::bind(&ListenSettings::at(&address), &[]).unwrap_err();
        assert!(matches!(&error, ListenError::AddressInUse { address: told } if *told == address));
        let expected = format!(
            "proxy.listen: {address} is in use; stop the other process or set proxy.listen to another address"
        );
        assert_eq!(error.advice("proxy.listen"), expected);
        drop(first);
        Listener::bind(&ListenSettings::at(&address), &[]).unwrap();
    }

    #[test]
    fn an_address_is_ip_and_port() {
        for bad in
            ["", "8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:1"]
        {
            let error = Listener::bind(&ListenSettings::at(bad), &[]).unwrap_err();
            assert!(matches!(error, ListenError::AddressMalformed { .. }), "{bad}: {error:?}");
        }
        // Not an address of this host.
        let error = Listener::bind(&ListenSettings::at("192.0.2.1:0"), &[]).unwrap_err();
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
        let missing = TlsSettings::new("/nonexistent/c", "/nonexistent/k");
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
                let (socket, peer) = acceptor.accept().await;
                let acceptor = Arc::clone(&acceptor);
                tokio::spawn(async move {
                    let Ok((stream, _)) = acceptor.handshake(socket, peer).await else { return };
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
        client_showing(ca, None)
    }

    fn client_showing(ca: &TestCa, leaf: Option<&Leaf>) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(ca.roots());
        let mut config = match leaf {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder.with_client_auth_cert(vec![leaf.der()], leaf.private_key()).unwrap(),
        };
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
            (address_of(&listener), listener.certificate().unwrap(), client(&ca));
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

    /// Whether the door serves who shows `leaf`. In TLS 1.3 a client is done before the door has looked at what it shows.
    async fn is_let_in(ca: &TestCa, leaf: Option<&Leaf>, address: SocketAddr) -> bool {
        let talk = async {
            let mut stream = call(&client_showing(ca, leaf), address).await?;
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut [0; 4]).await
        };
        talk.await.is_ok()
    }

    /// P-24: a door with authorities admits whom they vouch for.
    #[tokio::test]
    async fn a_client_certificate_is_checked() {
        let (ca, clients) = (TestCa::new(), TestCa::new());
        let (good, stranger) = (clients.issue("caller"), ca.issue("caller"));
        let expired = clients.issue_until("caller", 2020);
        for (client_certificate, without) in [
            (None, false),
            (Some(ClientCertificate::Required), false),
            (Some(ClientCertificate::Optional), true),
        ] {
            let tls = TlsSettings {
                client_ca_file: Some(clients.ca_file.clone()),
                client_certificate,
                ..ca.install(&ca.issue("127.0.0.1"))
            };
            let listener = Listener::bind(&anywhere(Some(tls)), &[b"http/1.1"]).unwrap();
            let address = address_of(&listener);
            echo(listener);
            for (leaf, expected) in
                [(Some(&good), true), (Some(&stranger), false), (Some(&expired), false), (None, without)]
            {
                let found = is_let_in(&ca, leaf, address).await;
                assert_eq!(
                    found,
                    expected,
                    "{client_certificate:?}, {:?}",
                    leaf.map(|leaf| &leaf.certificate)
                );
            }
        }
    }

    /// P-24: an authority that was taken away lets nobody in any more, not by a session of before either.
    #[tokio::test]
    async fn authorities_are_reloaded_with_the_certificate() {
        let (ca, old, new) = (TestCa::new(), TestCa::new(), TestCa::new());
        let (olds, news) = (old.issue("caller"), new.issue("caller"));
        let files = tempfile::tempdir().unwrap();
        let client_ca_file = files.path().join("clients.pem");
        std::fs::copy(&old.ca_file, &client_ca_file).unwrap();
        let shown = ca.issue("127.0.0.1");
        let tls = TlsSettings { client_ca_file: Some(client_ca_file.clone()), ..ca.install(&shown) };
        let listener = Listener::bind(&anywhere(Some(tls)), &[b"http/1.1"]).unwrap();
        let (address, certificate) = (address_of(&listener), listener.certificate().unwrap());
        echo(listener);
        let mut resuming = ClientConfig::clone(&client_showing(&ca, Some(&olds)));
        resuming.resumption = rustls::client::Resumption::default();
        let resuming = Arc::new(resuming);
        let mut before = call(&resuming, address).await.unwrap();
        check_echo(&mut before, &shown).await;
        let mut again = call(&resuming, address).await.unwrap();
        check_echo(&mut again, &shown).await;
        assert_eq!(again.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));

        std::fs::copy(&new.ca_file, &client_ca_file).unwrap();
        certificate.reload().unwrap();
        for (leaf, expected) in [(&olds, false), (&news, true)] {
            assert_eq!(is_let_in(&ca, Some(leaf), address).await, expected);
        }
        let mut refused = call(&resuming, address).await.unwrap();
        refused.write_all(b"ping").await.unwrap();
        assert!(refused.read_exact(&mut [0; 4]).await.is_err());
        check_echo(&mut before, &shown).await;

        std::fs::write(&client_ca_file, "").unwrap();
        assert!(matches!(certificate.reload(), Err(ListenError::ClientCa { .. })));
        assert!(is_let_in(&ca, Some(&news), address).await);
    }

    #[test]
    fn a_slip_in_the_settings_opens_no_door() {
        let ca = TestCa::new();
        let tls = TlsSettings {
            client_certificate: Some(ClientCertificate::Required),
            ..ca.install(&ca.issue("127.0.0.1"))
        };
        let bind = |settings: &ListenSettings| Listener::bind(settings, &[]).map(drop);
        let network: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(matches!(bind(&anywhere(Some(tls))), Err(ListenError::ClientCaMissing)));
        for caller_address in [CallerAddress::ProxyProtocol, CallerAddress::Forwarded] {
            let nobody = ListenSettings { caller_address, ..anywhere(None) };
            assert!(matches!(bind(&nobody), Err(ListenError::TrustedProxiesMissing)));
            bind(&ListenSettings { trusted_proxies: network.clone(), ..nobody }).unwrap();
        }
        let slip = ListenSettings {
            caller_address: CallerAddress::Forwarded,
            trusted_proxies: vec!["10.1.2.3/8".parse().unwrap()],
            ..anywhere(None)
        };
        let said = bind(&slip).unwrap_err();
        assert_eq!(
            said.to_string(),
            "trusted_proxies holds 10.1.2.3/8, which is an address within 10.0.0.0/8"
        );
        let unused = ListenSettings { trusted_proxies: network, ..anywhere(None) };
        assert!(matches!(bind(&unused), Err(ListenError::TrustedProxiesUnused)));
    }

    /// TLS and the PROXY protocol, over a unix socket as over TCP.
    #[tokio::test]
    async fn a_unix_socket_speaks_tls_behind_a_header() {
        let ca = TestCa::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door.sock");
        let settings = ListenSettings {
            address: format!("unix:{}", path.display()),
            caller_address: CallerAddress::ProxyProtocol,
            ..anywhere(Some(ca.install(&ca.issue("127.0.0.1"))))
        };
        let acceptor = Listener::bind(&settings, &[b"http/1.1"]).unwrap().into_acceptor().unwrap();
        let caller = async {
            let mut unix = tokio::net::UnixStream::connect(&path).await.unwrap();
            let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\0\x50\x01\xbb";
            unix.write_all(header).await.unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut stream = TlsConnector::from(client(&ca)).connect(name, unix).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let door = async {
            let (socket, address) = acceptor.accept().await;
            let (mut stream, peer) = acceptor.handshake(socket, address).await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            (said, peer, stream)
        };
        let (_kept_open, (said, peer, stream)) = tokio::join!(caller, door);
        assert_eq!(said, "ping");
        assert!(matches!(stream.socket(), Socket::Unix(_)));
        assert_eq!(peer, Peer { socket: PeerAddress::Unix, caller: Some([192, 0, 2, 7].into()) });
        assert_eq!(peer.to_string(), "192.0.2.7 through a unix socket");
    }

    /// P-24: reloads under load fail no handshake.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reloads_under_load_fail_nothing() {
        let ca = TestCa::new();
        let leaf = ca.issue("127.0.0.1");
        let tls = TlsSettings { client_ca_file: Some(ca.ca_file.clone()), ..ca.install(&leaf) };
        let listener = Listener::bind(&anywhere(Some(tls)), &[b"http/1.1"]).unwrap();
        let (address, certificate) = (address_of(&listener), listener.certificate().unwrap());
        let config = client_showing(&ca, Some(&ca.issue("caller")));
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
        let (address, clone) = (address_of(&listener), listener.try_clone().unwrap());
        assert!(clone.certificate().is_none() && clone.reload_certificate().is_ok());
        let (one, two) = (listener.into_acceptor().unwrap(), clone.into_acceptor().unwrap());
        let caller = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = one.accept().await;
        let Socket::Tcp(accepted) = accepted else { panic!("{accepted:?}") };
        assert_eq!((peer, accepted.nodelay().unwrap()), (caller.local_addr().unwrap().into(), true));
        drop(one);
        let caller = TcpStream::connect(address).await.unwrap();
        assert_eq!(two.accept().await.1, caller.local_addr().unwrap().into());
        assert_eq!(two.address().tcp(), Some(address));
    }
}
