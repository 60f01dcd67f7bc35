//! Certificates, keys and authorities as files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate and its key: where they are, not what they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// PEM: the certificate, then those of the authorities between it and a root.
    pub chain: PathBuf,
    /// PEM: its private key (PKCS #8, PKCS #1 or SEC 1), not encrypted.
    pub key: PathBuf,
}

/// Certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it has to be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, by which rule.
        what: String,
    },
    /// The files do not fit together.
    #[error("{} and {}: {what}", chain.display(), key.display())]
    Pair {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why they do not fit.
        what: String,
    },
}

fn file_error(path: &Path, what: impl Into<String>) -> TlsError {
    TlsError::File { path: path.to_owned(), what: what.into() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_error(path, format!("cannot be read as PEM certificates: {error}")))?;
    if found.is_empty() {
        return Err(file_error(
            path,
            "holds no certificate; it must hold at least one in PEM (BEGIN CERTIFICATE)",
        ));
    }
    Ok(found)
}

/// The authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            file_error(path, format!("holds a certificate that cannot be an authority: {error}"))
        })?;
    }
    Ok(Arc::new(roots))
}

impl Certificate {
    /// Reads both files and checks that they belong together.
    pub(crate) fn read(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let chain = certificates(&self.chain)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            file_error(&self.key, format!("cannot be read as a PEM private key: {error}"))
        })?;
        CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(|error| TlsError::Pair {
            chain: self.chain.clone(),
            key: self.key.clone(),
            what: format!("do not belong together: {error}"),
        })
    }
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
