//! What a listener presents and demands, and the watching of files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsAcceptor;

use crate::files::{Certificate, TlsError, authorities, provider};

/// A listener's side: its certificate and, if clients must show one too, the authority that they need. Cheap to clone; all
/// clones change together.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Server>);

#[derive(Debug)]
struct Server {
    certificate: Certificate,
    client_authority: Option<PathBuf>,
    now: ArcSwap<ServerConfig>,
}

impl ServerTls {
    /// Reads the files. With `client_authority` only clients with a certificate of it are taken.
    ///
    /// # Errors
    /// A file cannot be read or used; it is named.
    pub fn load(certificate: Certificate, client_authority: Option<PathBuf>) -> Result<Self, TlsError> {
        let now = server_config(&certificate, client_authority.as_ref())?;
        Ok(Self(Arc::new(Server { certificate, client_authority, now: ArcSwap::from(now) })))
    }

    /// With the certificates of now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.now.load_full())
    }

    /// For [`watch`].
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        let server = Arc::clone(&self.0);
        let files = [&server.certificate.chain, &server.certificate.key]
            .into_iter()
            .chain(&server.client_authority)
            .cloned()
            .collect();
        Reloader::new(files, move || {
            server.now.store(server_config(&server.certificate, server.client_authority.as_ref())?);
            Ok(())
        })
    }
}

fn server_config(
    certificate: &Certificate,
    client_authority: Option<&PathBuf>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let own = certificate.read()?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider serves the default versions");
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(path)?, provider())
                .build()
                .map_err(|error| TlsError::File {
                    path: path.clone(),
                    what: format!("cannot verify clients: {error}"),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    // HTTP/1.1 last: for what is no gRPC, where the listener has it.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes over what has changed in some files.
pub struct Reloader {
    files: Vec<PathBuf>,
    /// As of when they were read last.
    seen: Vec<Option<(SystemTime, u64)>>,
    reload: Box<dyn Fn() -> Result<(), TlsError> + Send>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Reloader {
    pub(crate) fn new(
        files: Vec<PathBuf>,
        reload: impl Fn() -> Result<(), TlsError> + Send + 'static,
    ) -> Self {
        let seen = stamps(&files);
        Self { files, seen, reload: Box::new(reload) }
    }

    /// Reads the files again if one of them is another than before; says whether they were taken over.
    ///
    /// # Errors
    /// They cannot be used, and what was read before stays in use. The same files are not tried a second time.
    pub fn check(&mut self) -> Result<bool, TlsError> {
        let now = stamps(&self.files);
        if now == self.seen {
            return Ok(false);
        }
        self.seen = now;
        (self.reload)().map(|()| true)
    }
}

/// A mounted secret is changed by turning a symbolic link: what it leads to is what counts.
fn stamps(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(stamp).collect()
}

/// Looks for new files each `interval`, until it is dropped.
pub async fn watch(mut reloaders: Vec<Reloader>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        for reloader in &mut reloaders {
            match reloader.check() {
                Ok(false) => {}
                Ok(true) => tracing::info!(files = ?reloader.files, "took over new certificates"),
                Err(error) => tracing::error!(
                    %error,
                    "new certificates cannot be used; those that were read before stay in use; mend the file"
                ),
            }
        }
    }
}
