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
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::testing::{ConnectProxy, FarSide, Leaf, Script, TestCa, dead_address, origin};

    const NAME: &str = "dev1.service-now.com";
    /// P-14: forty addresses that no name may lead to, of every kind that is not public.
    const INSIDE: [&str; 40] = [
        "127.0.0.1",
        "127.1.2.3",
        "127.255.255.254",
        "::1",
        "10.0.0.1",
        "10.4.255.255",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "169.254.169.254",
        "169.254.170.2",
        "fe80::1",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::10.0.0.1",
        "2001::1",
        "2002:7f00:1::",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "192.0.2.1",
        "198.18.0.1",
        "2001:db8::1",
        "240.0.0.1",
    ];

    fn resolver(answer: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Resolver {
        Resolver::Scripted(Box::new(answer))
    }

    fn trusting(ca_file: &std::path::Path) -> IntegrationTrust {
        IntegrationTrust { ca_file: Some(ca_file.to_owned()), ..IntegrationTrust::default() }
    }

    /// Trusts `ca`, and shows `leaf`.
    fn showing(ca: &TestCa, leaf: &Leaf) -> IntegrationTrust {
        let (certificate_file, key_file) = ca.install_as("client", leaf);
        IntegrationTrust {
            client_certificate_file: Some(certificate_file),
            client_key_file: Some(key_file),
            ..trusting(&ca.ca_file)
        }
    }

    /// What comes back for one request.
    async fn ask(stream: &mut Stream) -> io::Result<String> {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    }

    fn hello() -> Script {
        Script::Reply(b"hello".to_vec())
    }

    #[track_caller]
    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// O-52: chain, name and dates are checked, and each objection has its own words.
    #[tokio::test]
    async fn a_certificate_must_be_trusted_ours_and_current() {
        let ca = TestCa::new();
        let cases = [
            (ca.issue(NAME), TlsFault::CertificateName),
            (ca.issue("127.0.0.2"), TlsFault::CertificateName),
            (ca.issue_until("127.0.0.1", 2020), TlsFault::CertificateExpired),
            (Leaf::self_signed("127.0.0.1"), TlsFault::CertificateUntrusted),
            (TestCa::new().issue("127.0.0.1"), TlsFault::CertificateUntrusted),
        ];
        for (leaf, expected) in cases {
            let far = FarSide::tls(hello(), &leaf).await;
            let error = ca.connector().connect(&far.https()).await.unwrap_err();
            assert!(matches!(error, ConnectError::Tls { fault, .. } if fault == expected), "{error:?}");
            assert_eq!(far.seen(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_trusted_certificate_of_the_right_name_is_accepted() {
        let ca = TestCa::new();
        let far = FarSide::tls(hello(), &ca.issue("127.0.0.1")).await;
        let mut stream = ca.connector().connect(&far.https()).await.unwrap();
        assert!(matches!(stream.socket(), Socket::Tcp(tcp) if tcp.nodelay().unwrap()));
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert_eq!(reply, "hello");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_a_failed_handshake() {
        for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH\r\n", ""] {
            let far = FarSide::plain(Script::Greet(greeting.into())).await;
            let error =
                Connector::new(&EgressSettings::default()).unwrap().connect(&far.https()).await.unwrap_err();
            assert_eq!(error.reason(), "TLS handshake failed", "{greeting:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_never_ends_is_timed_out() {
        let ca = TestCa::new();
        let far = FarSide::tls(Script::Stuck, &ca.issue("127.0.0.1")).await;
        // The connector's own limit is ten seconds.
        for (given_s, expected_s) in [(60, 10), (2, 2)] {
            let given = Duration::from_secs(given_s);
            let error = ca.connector().connect_limited(&far.https(), given).await.unwrap_err();
            assert!(matches!(
                error,
                ConnectError::TimedOut { stage: ConnectStage::Tls, limit }
                    if limit == Duration::from_secs(expected_s)
            ));
        }
    }

    /// P-14: a name that leads inside is refused, whatever it said the last time; a mixed answer keeps its public part.
    #[tokio::test]
    async fn a_name_that_resolves_inside_is_refused() {
        let settings = EgressSettings {
            allow_private_instances: vec!["10.5.0.0/16".parse().unwrap()],
            ..EgressSettings::default()
        };
        // The list of what each address is, is the address module's; here it comes by way of a name.
        for text in INSIDE {
            let address: IpAddr = text.parse().unwrap();
            let connector = Connector::with_resolver(&settings, resolver(move |_| vec![address])).unwrap();
            let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
            let told = matches!(error, ConnectError::AddressRefused { address: told, .. } if told == address);
            assert!(told, "{text}: {error:?}");
        }
        let connector = Connector::new(&settings).unwrap();
        let answer = [address("127.0.0.1:443"), address("149.96.0.1:443"), address("10.5.0.1:443")];
        let admitted = connector.admitted(&origin("https://dev1.service-now.com"), &answer).unwrap();
        assert_eq!(admitted, answer[1..]);
        assert_eq!(
            connector.connect(&origin("https://10.0.0.1")).await.unwrap_err().reason(),
            "address not allowed"
        );
        assert_eq!(
            connector.connect(&origin("https://0.0.0.0")).await.unwrap_err().reason(),
            "address not allowed"
        );
    }

    /// P-14: a resolver that changes its mind. Each connection looks the name up once, and dials what it judged. What comes
    /// of the dialling is the network's, where the test runs.
    #[tokio::test(start_paused = true)]
    async fn a_name_is_judged_by_the_answer_that_is_dialled() {
        let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = origin(&format!("https://{NAME}:{}", inside.local_addr().unwrap().port()));
        let settings = EgressSettings {
            allow_private_instances: vec!["240.0.0.0/4".parse().unwrap()],
            ..EgressSettings::default()
        };
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let flip_flop = resolver(move |_| match count.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => vec![[240, 0, 0, 1].into()],
            _ => vec![[127, 0, 0, 1].into()],
        });
        let connector = Connector::with_resolver(&settings, flip_flop).unwrap();
        for turn in 0..6 {
            let error = connector.connect(&to).await.unwrap_err();
            let refused = matches!(error, ConnectError::AddressRefused { kind: AddressKind::Loopback, .. });
            assert_eq!(refused, turn % 2 == 1, "{turn}: {error:?}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 6);
        assert!(inside.accept().now_or_never().is_none());
    }

    /// The same by the system's resolver.
    #[tokio::test]
    async fn localhost_is_a_name_and_refused() {
        let connector = Connector::new(&EgressSettings::default()).unwrap();
        let error = connector.connect(&origin("https://localhost")).await.unwrap_err();
        let loopback = AddressKind::Loopback;
        assert!(matches!(error, ConnectError::AddressRefused { kind, .. } if kind == loopback), "{error:?}");
    }

    #[tokio::test]
    async fn nobody_listening_is_a_refused_connection() {
        let to = origin(&format!("http://{}", dead_address().await));
        let error = Connector::new(&EgressSettings::default()).unwrap().connect(&to).await.unwrap_err();
        assert_eq!(error.reason(), "connection refused");
    }

    /// RFC 8305 §5: a dead address does not hold up the next, nor does a silent one for longer than the delay.
    #[tokio::test(start_paused = true)]
    async fn addresses_race() {
        let addresses = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(address);
        let begun = Instant::now();
        let dial = |address: SocketAddr| async move {
            match address.ip().to_string().as_str() {
                "192.0.2.1" => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                "192.0.2.2" => std::future::pending().await,
                _ => Ok(address),
            }
        };
        assert_eq!(race(&addresses, dial).await.unwrap(), addresses[2]);
        assert_eq!(begun.elapsed(), ATTEMPT_DELAY, "one delay, for the silent address");
        let (last, error) = race(&addresses[..1], dial).await.unwrap_err();
        assert_eq!((last, error.kind()), (addresses[0], io::ErrorKind::ConnectionRefused));
        assert!(race(&[], dial).await.is_err());
    }

    /// A slow first address still wins if the second is slower.
    #[tokio::test(start_paused = true)]
    async fn an_attempt_goes_on_when_the_next_begins() {
        let addresses = ["192.0.2.1:1", "192.0.2.2:1"].map(address);
        let dial = |address: SocketAddr| async move {
            tokio::time::sleep(ATTEMPT_DELAY * 2).await;
            Ok(address)
        };
        assert_eq!(race(&addresses, dial).await.unwrap(), addresses[0]);
    }

    #[test]
    fn families_alternate() {
        let given = ["[2001::1]:1", "[2001::2]:1", "[2001::3]:1", "1.0.0.1:1"].map(address);
        let expected = ["[2001::1]:1", "1.0.0.1:1", "[2001::2]:1", "[2001::3]:1"].map(address);
        assert_eq!(interleaved(given.to_vec()), expected);
        assert_eq!(interleaved(Vec::new()), []);
    }

    fn proxied(ca: &TestCa, proxy: &str) -> Connector {
        let settings = EgressSettings {
            proxy: Some(proxy.to_owned()),
            no_proxy: vec!["direct.org".to_owned()],
            ca_file: Some(ca.ca_file.clone()),
            ..EgressSettings::default()
        };
        // Of names, only the proxy's is resolved here.
        let resolver = resolver(|name| match name {
            "proxy.test" => vec![[127, 0, 0, 1].into()],
            "direct.org" => vec![[10, 0, 0, 1].into()],
            other => panic!("{other} was resolved"),
        });
        Connector::with_resolver(&settings, resolver).unwrap()
    }

    #[tokio::test]
    async fn the_egress_proxy_is_asked_to_connect() {
        let ca = TestCa::new();
        let far = FarSide::tls(hello(), &ca.issue(NAME)).await;
        let proxy =
            ConnectProxy::start("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", Some(far.address))
                .await;
        let connector = proxied(&ca, &format!("http://user:pass@proxy.test:{}", proxy.address.port()));
        let mut stream = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert_eq!(reply, "hello");
        let expected = format!(
            "CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n"
        );
        assert_eq!(proxy.seen(), [expected]);
        assert!(!far.seen()[0].contains("Proxy-Authorization"));
        // The tunnel's end is checked like any other (O-52), and so are addresses where we see them.
        let error = connector.connect(&origin("https://dev2.service-now.com")).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls { fault: TlsFault::CertificateName, .. }), "{error:?}");
        for refused in ["https://10.0.0.1", "https://direct.org"] {
            let error = connector.connect(&origin(refused)).await.unwrap_err();
            assert_eq!(error.reason(), "address not allowed", "{refused}");
        }
        assert_eq!(proxy.seen().len(), 2);
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named() {
        let ca = TestCa::new();
        for (reply, reason) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "egress proxy wants credentials"),
            ("HTTP/1.0 403 Forbidden\r\n\r\nno", "egress proxy refused"),
            ("HTTP/1.1 302 Found\r\nLocation: http://evil\r\n\r\n", "egress proxy refused"),
            ("HTTP/1.1 200 OK\r\n\r\nbytes of nobody", "egress proxy answer malformed"),
            ("HTTP/1.1 100 Continue\r\n\r\n", "egress proxy answer malformed"),
            ("HTTP/1.1 200 OK\r\nVia:", "egress proxy answer malformed"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "egress proxy answer malformed"),
            ("", "egress proxy answer malformed"),
        ] {
            let proxy = ConnectProxy::start(reply, None).await;
            let connector = proxied(&ca, &format!("http://proxy.test:{}", proxy.address.port()));
            let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{reply:?}");
        }
        let connector = proxied(&ca, &format!("http://proxy.test:{}", dead_address().await.port()));
        let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
        assert_eq!(error.reason(), "egress proxy unreachable");
    }

    #[test]
    fn a_tunnels_head_is_bounded_and_strict() {
        let endless = vec![b'x'; PROXY_REPLY_BYTES_MAX + 1];
        assert!(tunnel_status(&endless).is_err());
        assert!(tunnel_status(&endless[1..]).unwrap().is_none());
        for bad in [
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 2000\r\n\r\n",
            "HTTP/1.1 +20 \r\n\r\n",
            "HTTP/1.1 99\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(tunnel_status(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(tunnel_status(b"HTTP/1.1 200\r\n\r\n").unwrap(), Some(200));
    }

    /// P-17: a pool keyed by origin and `pool_key` separates trust roots, and nothing more.
    #[test]
    fn a_connector_is_known_by_what_it_trusts() {
        let (one, other) = (TestCa::new(), TestCa::new());
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let with_one = system.with_identity(&trusting(&one.ca_file)).unwrap();
        assert!(with_one.same_as(&system.with_identity(&trusting(&one.ca_file)).unwrap()));
        assert!(with_one.same_as(&with_one.with_identity(&trusting(&one.ca_file)).unwrap()));
        let with_other = system.with_identity(&trusting(&other.ca_file)).unwrap();
        for (a, b) in [(&system, &with_one), (&with_one, &with_other), (&system, &with_other)] {
            assert!(!a.same_as(b) && a.pool_key() != b.pool_key());
        }
        assert!(system.same_as(&system.clone()) && system.pool_key() == system.clone().pool_key());
        let gone = with_one.pool_key();
        drop(with_one);
        assert_ne!(
            system.with_identity(&trusting(&one.ca_file)).unwrap().pool_key(),
            gone,
            "a key is never given again"
        );
    }

    /// P-17: what is shown and what is spoken separate as well; what the files are called does not.
    #[test]
    fn a_connector_is_known_by_what_it_shows_and_speaks() {
        let ca = TestCa::new();
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let (one, other) = (ca.issue("one"), ca.issue("other"));
        let shows_one = system.with_identity(&showing(&ca, &one)).unwrap();
        let shows_other = system.with_identity(&showing(&ca, &other)).unwrap();
        let trusts = system.with_identity(&trusting(&ca.ca_file)).unwrap();
        let http2 = IntegrationTrust { http2: true, ..IntegrationTrust::default() };
        let speaks = system.with_identity(&http2).unwrap();
        assert!(speaks.http2() && !trusts.http2() && !shows_one.http2());
        let all = [&system, &shows_one, &shows_other, &trusts, &speaks];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert!(!one.same_as(other) && one.pool_key() != other.pool_key());
            }
        }
        let (certificate_file, key_file) = ca.install_as("renamed", &one);
        let renamed = IntegrationTrust {
            client_certificate_file: Some(certificate_file),
            client_key_file: Some(key_file),
            ..trusting(&ca.ca_file)
        };
        assert!(system.with_identity(&renamed).unwrap().same_as(&shows_one));
        assert!(trusts.with_identity(&http2).unwrap().same_as(&speaks));
    }

    #[test]
    fn a_client_certificate_and_its_key_come_together() {
        let ca = TestCa::new();
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let whole = showing(&ca, &ca.issue("one"));
        let fault = |trust: IntegrationTrust| system.with_identity(&trust).map(drop).unwrap_err();
        for half in [
            IntegrationTrust { client_key_file: None, ..whole.clone() },
            IntegrationTrust { client_certificate_file: None, ..whole.clone() },
        ] {
            assert!(matches!(fault(half), EgressError::ClientPairHalf));
        }
        let (_, strangers) = ca.install_as("stranger", &ca.issue("two"));
        let mixed = IntegrationTrust { client_key_file: Some(strangers), ..whole.clone() };
        assert!(matches!(fault(mixed), EgressError::ClientKeyMismatch { .. }));
        let gone = IntegrationTrust { client_certificate_file: Some("/nonexistent".into()), ..whole.clone() };
        assert!(matches!(fault(gone), EgressError::ClientCertificate { .. }));
        let no_key = IntegrationTrust { client_key_file: Some(ca.ca_file.clone()), ..whole };
        assert!(matches!(fault(no_key), EgressError::ClientKey { .. }));
    }

    #[tokio::test]
    async fn an_instance_that_asks_is_shown_the_client_certificate() {
        let (ca, clients) = (TestCa::new(), TestCa::new());
        let far = FarSide::tls_with(hello(), ca.issue("127.0.0.1").server(Some(&clients), &[])).await;
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let ours = system.with_identity(&showing(&ca, &clients.issue("bearerd"))).unwrap();
        let mut stream = ours.connect(&far.https()).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), "hello");
        let strangers = system.with_identity(&showing(&ca, &ca.issue("bearerd"))).unwrap();
        for refused in [strangers, system.with_identity(&trusting(&ca.ca_file)).unwrap()] {
            // In TLS 1.3 the client is done before the server has looked.
            let mut stream = refused.connect(&far.https()).await.unwrap();
            assert!(ask(&mut stream).await.is_err());
        }
        assert_eq!(far.seen().len(), 1);
    }

    #[tokio::test]
    async fn a_session_is_resumed_within_a_connector_alone() {
        let ca = TestCa::new();
        let far = FarSide::tls(hello(), &ca.issue("127.0.0.1")).await;
        let one = ca.connector();
        for (connector, resumed) in [(&one, false), (&one, true), (&ca.connector(), false), (&one, true)] {
            let mut stream = connector.connect(&far.https()).await.unwrap();
            // The tickets come with the answer.
            assert_eq!(ask(&mut stream).await.unwrap(), "hello");
            assert_eq!(stream.resumed(), Some(resumed));
        }
    }

    #[tokio::test]
    async fn http2_is_spoken_where_both_want_it() {
        let ca = TestCa::new();
        let leaf = ca.issue("127.0.0.1");
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let with =
            |http2| system.with_identity(&IntegrationTrust { http2, ..trusting(&ca.ca_file) }).unwrap();
        for (alpn, wanted, spoken) in [
            (&[&b"h2"[..], b"http/1.1"][..], true, true),
            (&[b"h2", b"http/1.1"], false, false),
            (&[b"http/1.1"], true, false),
            (&[], true, false),
        ] {
            let far = FarSide::tls_with(hello(), leaf.server(None, alpn)).await;
            let stream = with(wanted).connect(&far.https()).await.unwrap();
            assert_eq!(stream.negotiated_h2(), spoken, "{alpn:?} {wanted}");
        }
        // A server that speaks nothing else refuses whoever does not.
        let far = FarSide::tls_with(hello(), leaf.server(None, &[b"h2"])).await;
        assert!(with(false).connect(&far.https()).await.is_err());
        // Over plain http there is nothing to negotiate.
        let far = FarSide::plain(hello()).await;
        for http2 in [true, false] {
            let stream = with(http2).connect(&far.http()).await.unwrap();
            assert_eq!((stream.negotiated_h2(), stream.resumed()), (http2, None));
        }
    }

    /// One request needs no HTTP/2, and a token endpoint may stand beside an instance that speaks it.
    #[tokio::test]
    async fn one_request_goes_over_http1() {
        let ca = TestCa::new();
        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
        let leaf = ca.issue("127.0.0.1");
        let trust = IntegrationTrust { http2: true, ..trusting(&ca.ca_file) };
        let connector = Connector::new(&EgressSettings::default()).unwrap().with_identity(&trust).unwrap();
        let tls = FarSide::tls_with(Script::Reply(reply.clone()), leaf.server(None, &[b"h2", b"http/1.1"]));
        let (tls, plain) = (tls.await, FarSide::plain(Script::Reply(reply)).await);
        for to in [tls.https(), plain.http()] {
            let request = http::Request::get("/").body(http_body_util::Full::default()).unwrap();
            let limits = crate::FetchLimits::default();
            assert_eq!(crate::fetch(&connector, &to, request, limits).await.unwrap().body, "ok");
        }
    }

    #[test]
    fn a_ca_file_must_hold_certificates() {
        let system = Connector::new(&EgressSettings::default()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaUnreadable { .. })));
        std::fs::write(&file, "no PEM here").unwrap();
        assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaEmpty { .. })));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaMalformed { .. })));
    }
}
