//! Certificates and keys out of PEM files, for doors and connectors alike.

use std::path::Path;

use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Which of a pair of files cannot be used, and why.
pub(crate) enum PairFault {
    Certificate(Fault),
    Key(Fault),
    /// The key is another certificate's.
    Mismatch,
}

/// The certificates in a file, as they stand in it: at least one.
pub(crate) fn certificates_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = std::fs::read(path)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() { Err("it holds no certificate".into()) } else { Ok(chain) }
}

/// A certificate with its intermediates, and its private key (PKCS#8, PKCS#1 or SEC1).
pub(crate) fn certified_key(
    certificate_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, PairFault> {
    let chain = certificates_of(certificate_file).map_err(PairFault::Certificate)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|fault| PairFault::Key(fault.into()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|fault| match fault {
        rustls::Error::InconsistentKeys(_) => PairFault::Mismatch,
        other => PairFault::Key(other.into()),
    })
}
