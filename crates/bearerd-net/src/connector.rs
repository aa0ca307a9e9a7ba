//! Dials instances: resolve, check each address, TCP (directly or through the egress proxy), TLS with chain and name
//! check. The whole under one time limit. There is no way to switch a check off.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bearerd_model::InstanceOrigin;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    client::Resumption,
    crypto::CryptoProvider,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::{
    address::{AddressKind, address_allowed},
    egress::{self, Egress, EgressError, EgressSettings, ProxyAddress},
    pem::{self, PairFault},
    socket::Socket,
    stream::Stream,
};

/// Addresses of one name that are tried; the rest of a long DNS answer is left alone.
const ADDRESSES_TRIED_MAX: usize = 8;
/// How long one address has the field to itself before the next is tried beside it (RFC 8305 §8 recommends 250 ms).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Largest head of a proxy's answer to CONNECT; real ones are a few hundred bytes.
const PROXY_REPLY_BYTES_MAX: usize = 8 * 1024;

/// Dials instances with one set of trust roots, one identity and one way out. Cheap to clone; clones are the same
/// connector.
///
/// TLS sessions are resumed within one connector only: resumption skips the chain check and shows no certificate, so a
/// session must not outlive a change of either.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    pool_key: u64,
    /// Offers what [`IntegrationTrust::http2`] says.
    tls: TlsConnector,
    /// Offers HTTP/1.1 alone, for calls that do not share a connection.
    tls_http1: TlsConnector,
    http2: bool,
    shared: Arc<Shared>,
}

/// What the connectors of one `[egress]` have in common.
struct Shared {
    egress: Egress,
    resolver: Resolver,
    /// What is trusted where an integration names no CA file.
    roots: Arc<RootCertStore>,
    /// Connectors by what is in their files, so that the same content read twice gives the same connector.
    /// Entries whose connector is gone are dropped at the next insertion.
    by_identity: Mutex<Vec<(Identity, Weak<Inner>)>>,
}

/// What an integration has of its own for the way to its instance. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IntegrationTrust {
    /// PEM: the authorities that vouch for the instance, instead of those of `[egress]`.
    pub ca_file: Option<PathBuf>,
    /// PEM: the certificate shown to an instance that asks for one, then its intermediates. With
    /// [`Self::client_key_file`] or not at all.
    pub client_certificate_file: Option<PathBuf>,
    /// PEM: its private key (PKCS#8, PKCS#1 or SEC1).
    pub client_key_file: Option<PathBuf>,
    /// HTTP/2 where the instance speaks it; over plain http, by prior knowledge.
    pub http2: bool,
}

/// [`IntegrationTrust`], by content. A certificate stands for its key: only the one that belongs to it is accepted.
#[derive(PartialEq, Eq)]
struct Identity {
    authorities: Option<Vec<CertificateDer<'static>>>,
    shown: Option<Vec<CertificateDer<'static>>>,
    http2: bool,
}

impl Connector {
    /// Reads the trust roots: `ca_file`, or the system's (where `SSL_CERT_FILE` and `SSL_CERT_DIR` count, as with
    /// OpenSSL).
    ///
    /// # Errors
    /// [`EgressError`] if the settings contradict themselves or the CA file is unusable.
    pub fn new(settings: &EgressSettings) -> Result<Self, EgressError> {
        Self::with_resolver(settings, Resolver::System)
    }

    fn with_resolver(settings: &EgressSettings, resolver: Resolver) -> Result<Self, EgressError> {
        let roots = Arc::new(match &settings.ca_file {
            None => egress::system_roots(),
            Some(path) => egress::roots_of(path, &egress::certificates_of(path)?)?,
        });
        let shared = Shared {
            egress: Egress::new(settings)?,
            resolver,
            roots: Arc::clone(&roots),
            by_identity: Mutex::default(),
        };
        Ok(Self(Arc::new(Inner::new(roots, None, false, Arc::new(shared))?)))
    }

    /// The connector for an integration with `trust` of its own, which leaves the same way. Reads the files each time; the
    /// same content gives the same connector for as long as somebody holds it. Made from any connector of the same
    /// `[egress]`, it is the same.
    ///
    /// # Errors
    /// [`EgressError`] if a file cannot be read or used, or half of the client's pair is missing.
    pub fn with_identity(&self, trust: &IntegrationTrust) -> Result<Self, EgressError> {
        let authorities = trust.ca_file.as_deref().map(egress::certificates_of).transpose()?;
        let pair = client_pair(trust)?;
        let identity =
            Identity { authorities, shown: pair.as_ref().map(|pair| pair.cert.clone()), http2: trust.http2 };
        let shared = &self.0.shared;
        let mut by_identity = shared.by_identity.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            by_identity.iter().find(|(known, _)| *known == identity).and_then(|(_, inner)| inner.upgrade());
        if let Some(inner) = known {
            return Ok(Self(inner));
        }
        let roots = match (&trust.ca_file, &identity.authorities) {
            (Some(path), Some(authorities)) => Arc::new(egress::roots_of(path, authorities)?),
            _ => Arc::clone(&shared.roots),
        };
        let inner = Arc::new(Inner::new(roots, pair, trust.http2, Arc::clone(shared))?);
        by_identity.retain(|(_, inner)| inner.strong_count() > 0);
        by_identity.push((identity, Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Whether both are the same connector, so that a connection of the one may serve the other.
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Names this connector within the process: never given to another, so that a pool keyed by origin and this never
    /// lends a connection across trust roots or ways out (P-17).
    pub fn pool_key(&self) -> u64 {
        self.0.pool_key
    }

    /// Whether connections may come to speak HTTP/2: [`Stream::negotiated_h2`] says which do.
    pub fn http2(&self) -> bool {
        self.0.http2
    }

    /// Opens a connection to `to`, ready for the first byte of a request. Must run on a tokio runtime with I/O and
    /// time. Dropping the future closes whatever was open; a name look-up under way ends by itself.
    ///
    /// Through the egress proxy the name is resolved there, so that only a literal address can be checked here; the
    /// proxy's own rules then decide what is reachable.
    ///
    /// # Errors
    /// [`ConnectError`]; the server has not seen a byte of any request.
    pub async fn connect(&self, to: &InstanceOrigin) -> Result<Stream, ConnectError> {
        self.connect_limited(to, Duration::MAX).await
    }

    /// [`Self::connect`], under the smaller of its own limit and `limit`.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub async fn connect_limited(
        &self,
        to: &InstanceOrigin,
        limit: Duration,
    ) -> Result<Stream, ConnectError> {
        let Inner { tls, http2, shared, .. } = &*self.0;
        self.connect_within(to, limit.min(shared.egress.connect_timeout), tls, *http2).await
    }

    /// [`Self::connect`], for HTTP/1.1 alone, under the smaller of its own limit and `limit`.
    pub(crate) async fn connect_http1(
        &self,
        to: &InstanceOrigin,
        limit: Duration,
    ) -> Result<Stream, ConnectError> {
        let limit = limit.min(self.0.shared.egress.connect_timeout);
        self.connect_within(to, limit, &self.0.tls_http1, false).await
    }

    async fn connect_within(
        &self,
        to: &InstanceOrigin,
        limit: Duration,
        tls: &TlsConnector,
        http2: bool,
    ) -> Result<Stream, ConnectError> {
        let mut stage = ConnectStage::Resolve;
        let dialled = timeout(limit, async {
            let tcp = match self.0.shared.egress.proxy_for(to) {
                None => self.dial_directly(to, &mut stage).await?,
                Some(proxy) => self.dial_through(proxy, to, &mut stage).await?,
            };
            let socket = Socket::Tcp(tcp);
            if !to.is_tls() {
                return Ok(if http2 { Stream::PriorKnowledge(socket) } else { Stream::Plain(socket) });
            }
            stage = ConnectStage::Tls;
            let tls_error = |source| ConnectError::Tls { fault: TlsFault::of(&source), source };
            let name = server_name(to).map_err(tls_error)?;
            let tls = tls.connect(name, socket).await.map_err(tls_error)?;
            Ok(Stream::Tls(Box::new(tls)))
        });
        dialled.await.unwrap_or(Err(ConnectError::TimedOut { stage, limit }))
    }

    async fn dial_directly(
        &self,
        to: &InstanceOrigin,
        stage: &mut ConnectStage,
    ) -> Result<TcpStream, ConnectError> {
        let resolved = match to.ip() {
            Some(address) => vec![SocketAddr::new(address, to.port())],
            None => {
                self.0.shared.resolver.resolve(to.host(), to.port()).await.map_err(ConnectError::Resolve)?
            }
        };
        let addresses = interleaved(self.admitted(to, &resolved)?);
        *stage = ConnectStage::Tcp;
        race(&addresses, dial_tcp).await.map_err(|(address, source)| ConnectError::Tcp { address, source })
    }

    /// The addresses that may be dialled. A name that has both kinds keeps its admitted ones.
    fn admitted(
        &self,
        to: &InstanceOrigin,
        resolved: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let networks = &self.0.shared.egress.allow_private_instances;
        let allowed = |address: &SocketAddr| address_allowed(address.ip(), to.ip(), networks);
        let admitted: Vec<_> = resolved.iter().copied().filter(allowed).take(ADDRESSES_TRIED_MAX).collect();
        match (admitted.is_empty(), resolved.first()) {
            (false, _) => Ok(admitted),
            (true, Some(refused)) => Err(ConnectError::refused(refused.ip())),
            (true, None) => Err(ConnectError::Resolve(io::Error::other("the name has no address"))),
        }
    }

    async fn dial_through(
        &self,
        proxy: &ProxyAddress,
        to: &InstanceOrigin,
        stage: &mut ConnectStage,
    ) -> Result<TcpStream, ConnectError> {
        let networks = &self.0.shared.egress.allow_private_instances;
        if let Some(address) = to.ip().filter(|address| !address_allowed(*address, Some(*address), networks))
        {
            return Err(ConnectError::refused(address));
        }
        *stage = ConnectStage::EgressProxy;
        let unreachable = |source| ConnectError::EgressProxy(EgressFault::Unreachable(source));
        let addresses = self.0.shared.resolver.resolve(&proxy.host, proxy.port).await.map_err(unreachable)?;
        let addresses = interleaved(addresses.into_iter().take(ADDRESSES_TRIED_MAX).collect());
        let mut tcp = race(&addresses, dial_tcp).await.map_err(|(_, source)| unreachable(source))?;
        ask_to_connect(&mut tcp, proxy, to).await.map_err(ConnectError::EgressProxy)?;
        Ok(tcp)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("pool_key", &self.0.pool_key).finish_non_exhaustive()
    }
}

impl Inner {
    fn new(
        roots: Arc<RootCertStore>,
        shown: Option<CertifiedKey>,
        http2: bool,
        shared: Arc<Shared>,
    ) -> Result<Self, EgressError> {
        /// Each connector of the process takes the next number.
        static POOL_KEY_NEXT: AtomicU64 = AtomicU64::new(1);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots);
        let mut tls = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A request must never ride in replayable early data.
        tls.enable_early_data = false;
        let tls_http1 = TlsConnector::from(Arc::new(tls.clone()));
        let tls = if http2 {
            tls.alpn_protocols.insert(0, b"h2".to_vec());
            // A session is for the protocol that it was made with.
            tls.resumption = Resumption::default();
            TlsConnector::from(Arc::new(tls))
        } else {
            tls_http1.clone()
        };
        let pool_key = POOL_KEY_NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { pool_key, tls, tls_http1, http2, shared })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What is shown to an instance that asks.
fn client_pair(trust: &IntegrationTrust) -> Result<Option<CertifiedKey>, EgressError> {
    let (certificate_file, key_file) = match (&trust.client_certificate_file, &trust.client_key_file) {
        (None, None) => return Ok(None),
        (Some(certificate_file), Some(key_file)) => (certificate_file, key_file),
        _ => return Err(EgressError::ClientPairHalf),
    };
    let pair = pem::certified_key(certificate_file, key_file, &provider());
    pair.map(Some).map_err(|fault| match fault {
        PairFault::Certificate(source) => {
            EgressError::ClientCertificate { path: certificate_file.clone(), source }
        }
        PairFault::Key(source) => EgressError::ClientKey { path: key_file.clone(), source },
        PairFault::Mismatch => {
            EgressError::ClientKeyMismatch { certificate: certificate_file.clone(), key: key_file.clone() }
        }
    })
}

/// Why there is no connection. In every case the server has seen no request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("the instance's name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// P-14. Opened, where that is wanted, by `egress.allow_private_instances`.
    #[error("the instance's address {address} is {kind} and not inside egress.allow_private_instances")]
    AddressRefused { address: IpAddr, kind: AddressKind },
    /// The last address tried.
    #[error("no TCP connection to {address}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("TLS with the instance failed: {fault}")]
    Tls { fault: TlsFault, source: io::Error },
    #[error("the egress proxy did not connect us")]
    EgressProxy(#[source] EgressFault),
    #[error("no connection within {limit:?}, waiting for {stage}")]
    TimedOut { stage: ConnectStage, limit: Duration },
    /// The connection was made, and closed by the server before the request was begun.
    #[error("the server closed the connection before the request")]
    ClosedEarly,
}

impl ConnectError {
    fn refused(address: IpAddr) -> Self {
        Self::AddressRefused { address, kind: AddressKind::of(address) }
    }

    /// The cause in a few stable words, for operators and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "name not resolved",
            Self::AddressRefused { .. } => "address not allowed",
            Self::Tcp { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused"
            }
            Self::Tcp { .. } => "no TCP connection",
            Self::Tls { fault, .. } => fault.reason(),
            Self::EgressProxy(EgressFault::Unreachable(_)) => "egress proxy unreachable",
            Self::EgressProxy(EgressFault::Refused { status: 407 }) => "egress proxy wants credentials",
            Self::EgressProxy(EgressFault::Refused { .. }) => "egress proxy refused",
            Self::EgressProxy(EgressFault::ReplyMalformed) => "egress proxy answer malformed",
            Self::TimedOut { stage: ConnectStage::Resolve, .. } => "name resolution timed out",
            Self::TimedOut { stage: ConnectStage::Tcp, .. } => "TCP connection timed out",
            Self::TimedOut { stage: ConnectStage::EgressProxy, .. } => "egress proxy timed out",
            Self::TimedOut { stage: ConnectStage::Tls, .. } => "TLS handshake timed out",
            Self::ClosedEarly => "connection closed before the request",
        }
    }
}

/// What a time-out interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectStage {
    Resolve,
    Tcp,
    EgressProxy,
    Tls,
}

impl fmt::Display for ConnectStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Tcp => "TCP",
            Self::EgressProxy => "the egress proxy",
            Self::Tls => "TLS",
        })
    }
}

/// What TLS objected to. The first four mean that a server answered and is not the one we trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// The certificate has expired, or is not valid yet.
    CertificateExpired,
    /// The certificate is for another name.
    CertificateName,
    /// No chain to a trusted CA: self-signed, or a CA (or a key of it) that we do not know.
    CertificateUntrusted,
    /// Any other objection to the certificate: revoked, malformed, wrong purpose.
    CertificateInvalid,
    /// The handshake broke: no common version or suite, an alert, a reset, no TLS at all.
    Handshake,
}

impl TlsFault {
    fn of(source: &io::Error) -> Self {
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(objection)) = tls else { return Self::Handshake };
        match objection {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::CertificateExpired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::CertificateName
            }
            // A CA that changed its key and kept its name shows as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::CertificateUntrusted,
            _ => Self::CertificateInvalid,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::CertificateExpired => "certificate expired or not yet valid",
            Self::CertificateName => "certificate is for another name",
            Self::CertificateUntrusted => "certificate is not from a trusted CA",
            Self::CertificateInvalid => "certificate is invalid",
            Self::Handshake => "TLS handshake failed",
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// What went wrong at the egress proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EgressFault {
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    /// 407: `egress.proxy` lacks the right user and password. Others: the proxy's own rules, or its view of the network.
    #[error("it answered status {status}")]
    Refused { status: u16 },
    #[error("its answer is not an HTTP/1 head of at most {PROXY_REPLY_BYTES_MAX} bytes")]
    ReplyMalformed,
}

/// Turns names into addresses.
enum Resolver {
    /// getaddrinfo on a blocking thread: hosts file, search domains and nsswitch count, as for every other program.
    System,
    #[cfg(test)]
    Scripted(Answers),
}

/// What a name leads to, in tests.
#[cfg(test)]
type Answers = Box<dyn Fn(&str) -> Vec<IpAddr> + Send + Sync>;

impl Resolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Scripted(answer) => {
                Ok(answer(host).into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
        }
    }
}

/// The name that the certificate must be for.
fn server_name(to: &InstanceOrigin) -> io::Result<ServerName<'static>> {
    match to.ip() {
        Some(address) => Ok(ServerName::IpAddress(address.into())),
        // A name may end in a dot (RFC 1034 §3.1); certificates never do.
        None => ServerName::try_from(to.host().trim_end_matches('.').to_owned()).map_err(io::Error::other),
    }
}

async fn dial_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Families alternate, beginning with that of the resolver's first choice (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().copied() else { return addresses };
    let count = addresses.len();
    let (mut preferred, mut other) = (Vec::with_capacity(count), Vec::new());
    for address in addresses {
        let side = if address.is_ipv4() == first.is_ipv4() { &mut preferred } else { &mut other };
        side.push(address);
    }
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut mixed = Vec::with_capacity(count);
    while mixed.len() < count {
        mixed.extend(preferred.next());
        mixed.extend(other.next());
    }
    mixed
}

/// Tries `addresses` in order, each [`ATTEMPT_DELAY`] after the one before or as soon as all before have failed; the
/// first connection wins and the others are dropped (RFC 8305 §5). `Err`: the last failure.
async fn race<T, F>(
    addresses: &[SocketAddr],
    dial: impl Fn(SocketAddr) -> F,
) -> Result<T, (SocketAddr, io::Error)>
where
    F: Future<Output = io::Result<T>>,
{
    let nowhere = (SocketAddr::from(([0, 0, 0, 0], 0)), io::Error::from(io::ErrorKind::AddrNotAvailable));
    let mut failure = nowhere;
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(address) = waiting.next() {
            let attempt = dial(address);
            attempts.push(async move { (address, attempt.await) });
        } else if attempts.is_empty() {
            return Err(failure);
        }
        let next_at = Instant::now() + ATTEMPT_DELAY;
        loop {
            tokio::select! {
                biased;
                Some((address, outcome)) = attempts.next() => match outcome {
                    Ok(connected) => return Ok(connected),
                    Err(error) => failure = (address, error),
                },
                () = sleep_until(next_at), if waiting.len() > 0 => break,
            }
            if attempts.is_empty() {
                break;
            }
        }
    }
}

/// CONNECT (RFC 9110 §9.3.6): afterwards `tcp` is a tunnel to `to`.
async fn ask_to_connect(
    tcp: &mut TcpStream,
    proxy: &ProxyAddress,
    to: &InstanceOrigin,
) -> Result<(), EgressFault> {
    let target = format!("{}:{}", to.host(), to.port());
    let mut head = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
    if let Some(authorization) = &proxy.authorization {
        head.push_str("Proxy-Authorization: ");
        head.push_str(authorization.expose());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    tcp.write_all(head.as_bytes()).await.map_err(EgressFault::Unreachable)?;
    let mut reply = Vec::with_capacity(512);
    loop {
        if let Some(status) = tunnel_status(&reply)? {
            return if (200..300).contains(&status) { Ok(()) } else { Err(EgressFault::Refused { status }) };
        }
        if tcp.read_buf(&mut reply).await.map_err(EgressFault::Unreachable)? == 0 {
            return Err(EgressFault::ReplyMalformed);
        }
    }
}

/// The status of a proxy's answer to CONNECT; `None` while its head is incomplete. A 2xx must end with its head: in
/// TLS the client speaks first, so that bytes after it would not be the server's.
fn tunnel_status(reply: &[u8]) -> Result<Option<u16>, EgressFault> {
    let malformed = EgressFault::ReplyMalformed;
    let Some(end) = reply.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if reply.len() > PROXY_REPLY_BYTES_MAX { Err(malformed) } else { Ok(None) };
    };
    let status = match reply {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', digits @ ..] if digits.len() > 3 => {
            let (digits, rest) = digits.split_at(3);
            let digits = str::from_utf8(digits).ok().filter(|_| matches!(rest[0], b' ' | b'\r'));
            digits.and_then(|digits| digits.parse::<u16>().ok())
        }
        _ => None,
    };
    match status {
        Some(200..300) if reply.len() > end + 4 => Err(malformed),
        Some(status @ 200..600) => Ok(Some(status)),
        _ => Err(malformed),
    }
}

#[cfg(test)]
#[path = "connector_tests.rs"]
mod tests;
