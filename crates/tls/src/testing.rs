//! Authorities and certificates for tests, made when they are needed. With the feature `testing`.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use crate::Certificate;

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one with a key of its own.
    ///
    /// # Panics
    /// There is no randomness.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signs"))
    }

    /// Writes its certificate to `ca.pem` in the directory.
    ///
    /// # Panics
    /// The file cannot be written.
    #[must_use]
    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("ca.pem");
        std::fs::write(&path, self.0.pem()).expect("writes");
        path
    }

    /// Writes a certificate for this machine, with a common name and further alternative names (URIs), to `NAME.pem` and
    /// `NAME.key` in the directory.
    ///
    /// # Panics
    /// A name is not ASCII, or a file cannot be written.
    #[must_use]
    pub fn issue(&self, directory: &Path, name: &str, uris: &[&str]) -> Certificate {
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signs");
        let file = |extension| directory.join(format!("{name}.{extension}"));
        let files = Certificate { chain: file("pem"), key: file("key") };
        std::fs::write(&files.chain, certificate.pem()).expect("writes");
        std::fs::write(&files.key, key.serialize_pem()).expect("writes");
        files
    }
}
