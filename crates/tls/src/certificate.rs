//! What a client's certificate says of its owner.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The scheme of subject alternative names (URIs) that bind a certificate to a keyspace.
const KEYSPACE_URI: &str = "pontoon://keyspace/";

/// Of a verified certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The subject's common name: in etcd, the user's name.
    pub common_name: Option<Arc<str>>,
    /// The keyspaces that its owner may use, from alternative names `pontoon://keyspace/NAME`; empty: all.
    pub keyspaces: BTreeSet<String>,
}

impl PeerCertificate {
    /// Reads a certificate that the handshake has verified. One that cannot be read names nobody and, because it may have
    /// meant to, is bound to no keyspace that exists.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self { common_name: None, keyspaces: BTreeSet::from([String::new()]) };
        };
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let names = match certificate.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.as_slice(),
            Ok(None) => &[],
            Err(_) => return Self { common_name: None, keyspaces: BTreeSet::from([String::new()]) },
        };
        let keyspaces = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix(KEYSPACE_URI).map(str::to_owned),
                _ => None,
            })
            .collect();
        Self { common_name: common_name.map(Arc::from), keyspaces }
    }

    /// Whether its owner may use the keyspace.
    #[must_use]
    pub fn may_use(&self, keyspace: &str) -> bool {
        self.keyspaces.is_empty() || self.keyspaces.contains(keyspace)
    }
}
