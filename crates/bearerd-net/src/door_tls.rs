//! The certificate that a door shows and the authorities of the certificates it asks for. Read without waiting, and
//! replaced together while connections are open (P-24).

use std::{fmt, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde::Deserialize;

use crate::{
    listen::ListenError,
    pem::{self, Fault, PairFault},
};

/// The certificates of a door. Files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The door's certificate, then its intermediates.
    pub certificate_file: PathBuf,
    /// The private key (PKCS#8, PKCS#1 or SEC1).
    pub key_file: PathBuf,
    /// The authorities whose client certificates are admitted. Default: none are asked for.
    pub client_ca_file: Option<PathBuf>,
    /// Default, with [`Self::client_ca_file`]: required. Without it: not to be given.
    pub client_certificate: Option<ClientCertificate>,
}

impl TlsSettings {
    /// A certificate to show, and none to ask for.
    pub fn new(certificate_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Self {
            certificate_file: certificate_file.into(),
            key_file: key_file.into(),
            client_ca_file: None,
            client_certificate: None,
        }
    }

    /// Every file that is named, for whoever knows where relative paths start.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.certificate_file, &mut self.key_file].into_iter().chain(&mut self.client_ca_file)
    }
}

/// Whether a peer must show a certificate. One that is shown must be good in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    #[default]
    Required,
    Optional,
}

/// The certificates of a door, shared by everything that came from one [`crate::Listener::bind`]. Holding it does not
/// keep the socket open.
#[derive(Debug, Clone)]
pub struct DoorCertificate(Arc<CurrentTls>);

impl DoorCertificate {
    pub(crate) fn new(settings: &TlsSettings, alpn: &[&[u8]]) -> Result<Self, ListenError> {
        let source = Source {
            settings: settings.clone(),
            alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(),
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new()?,
        };
        let config = ArcSwap::from_pointee(source.read()?);
        Ok(Self(Arc::new(CurrentTls { source, config })))
    }

    /// Reads all files again. New handshakes see what is in them, open connections stay; on an error everything stays as
    /// it was.
    ///
    /// # Errors
    /// [`ListenError`] about the files.
    pub fn reload(&self) -> Result<(), ListenError> {
        self.0.config.store(Arc::new(self.0.source.read()?));
        Ok(())
    }

    /// What the next handshake goes by.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.0.config.load_full()
    }
}

struct CurrentTls {
    source: Source,
    config: ArcSwap<ServerConfig>,
}

/// What a configuration is made from, again and again.
struct Source {
    settings: TlsSettings,
    alpn: Vec<Vec<u8>>,
    provider: Arc<CryptoProvider>,
    /// Outlives reloads, so that callers resume across them.
    ticketer: Arc<dyn ProducesTickets>,
}

impl Source {
    fn read(&self) -> Result<ServerConfig, ListenError> {
        let pair = certified_key(&self.settings, &self.provider)?;
        let verifier = client_verifier(&self.settings, &self.provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let checks_clients = verifier.is_some();
        let builder = match verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols.clone_from(&self.alpn);
        if checks_clients {
            // Resumption skips the check of the client's certificate: an authority taken away would live on in tickets.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // Callers that reconnect resume, without a session kept here for each of them.
            config.ticketer = Arc::clone(&self.ticketer);
        }
        Ok(config)
    }
}

impl fmt::Debug for CurrentTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentTls").field("settings", &self.source.settings).finish_non_exhaustive()
    }
}

fn certified_key(settings: &TlsSettings, provider: &CryptoProvider) -> Result<CertifiedKey, ListenError> {
    let (certificate_file, key_file) = (&settings.certificate_file, &settings.key_file);
    pem::certified_key(certificate_file, key_file, provider).map_err(|fault| match fault {
        PairFault::Certificate(source) => ListenError::Certificate { path: certificate_file.clone(), source },
        PairFault::Key(source) => ListenError::Key { path: key_file.clone(), source },
        PairFault::Mismatch => {
            ListenError::KeyMismatch { certificate: certificate_file.clone(), key: key_file.clone() }
        }
    })
}

/// `None`: no certificate is asked for.
fn client_verifier(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ListenError> {
    let Some(path) = &settings.client_ca_file else {
        return match settings.client_certificate {
            None => Ok(None),
            Some(_) => Err(ListenError::ClientCaMissing),
        };
    };
    let verifier = || -> Result<_, Fault> {
        let mut roots = RootCertStore::empty();
        for certificate in pem::certificates_of(path)? {
            roots.add(certificate)?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = match settings.client_certificate.unwrap_or_default() {
            ClientCertificate::Required => builder,
            ClientCertificate::Optional => builder.allow_unauthenticated(),
        };
        Ok(builder.build()?)
    };
    verifier().map(Some).map_err(|source| ListenError::ClientCa { path: path.clone(), source })
}
