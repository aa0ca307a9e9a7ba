//! A private authority and one door's certificate.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, client::Resumption};

/// PEM files: the authority, and what a door at one address shows.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Trusts the authority and nothing else.
    pub(crate) client: Arc<ClientConfig>,
}

impl Certificates {
    pub fn make(folder: &Path, address: IpAddr) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "bearerd tests");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([address.to_string()]).unwrap();
        params.use_authority_key_identifier_extension = true; // Python's ssl asks for it
        let certificate = params.signed_by(&key, &authority).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            authority: write("authority.pem", authority.pem()),
            certificate: write("door.pem", certificate.pem()),
            key: write("door.key", key.serialize_pem()),
            client: Arc::new(client),
        }
    }

    /// For a client that is a stranger each time: without a session to resume it looks at the certificate.
    #[must_use]
    pub fn for_strangers(&self) -> Self {
        let mut client = (*self.client).clone();
        client.resumption = Resumption::disabled();
        Self { client: Arc::new(client), ..self.clone() }
    }
}
