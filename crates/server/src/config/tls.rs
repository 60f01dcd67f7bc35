//! The flags of TLS, checked against each other.

use std::path::PathBuf;

use clap::Args;
use pontoon_tls::Certificate;

use crate::error::UsageError;

/// The flags of `pontoon serve` about TLS; without any, everything is plaintext.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// Serve clients over TLS with this certificate (PEM, with the chain); also shown to other stores' client listeners
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Authorities that stores' and clients' certificates are checked with (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Serve only clients that have a certificate of --tls-ca
    #[arg(long)]
    pub(crate) tls_client_auth: bool,

    /// Talk to other stores over mutual TLS with this certificate (PEM, with the chain)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_peer_cert: Option<PathBuf>,

    /// Private key of --tls-peer-cert (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_peer_key: Option<PathBuf>,

    /// Authorities that other stores' peer certificates are checked with (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_peer_ca: Option<PathBuf>,
}

/// What to use for TLS, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    /// For the client listeners, and as a client of other stores.
    pub(crate) clients: Option<Side>,
    /// Whether clients must show a certificate.
    pub(crate) client_auth: bool,
    /// For the links between stores, where both sides show certificates.
    pub(crate) peers: Option<Side>,
}

/// Who this store is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) certificate: Certificate,
    pub(crate) authority: PathBuf,
}

impl TlsConfig {
    /// # Errors
    /// Flags that belong together are not all there; they are named.
    pub(crate) fn from_args(args: TlsArgs) -> Result<Self, UsageError> {
        let clients =
            side(["--tls-cert", "--tls-key", "--tls-ca"], [args.tls_cert, args.tls_key, args.tls_ca])?;
        let peers = side(
            ["--tls-peer-cert", "--tls-peer-key", "--tls-peer-ca"],
            [args.tls_peer_cert, args.tls_peer_key, args.tls_peer_ca],
        )?;
        if args.tls_client_auth && clients.is_none() {
            return Err(UsageError::new(
                "--tls-client-auth is given without --tls-cert; certificates are shown over TLS only; give --tls-cert, \
                 --tls-key and --tls-ca too",
            ));
        }
        Ok(Self { clients, client_auth: args.tls_client_auth, peers })
    }
}

fn side(flags: [&str; 3], files: [Option<PathBuf>; 3]) -> Result<Option<Side>, UsageError> {
    let [chain, key, authority] = files;
    match (chain, key, authority) {
        (None, None, None) => Ok(None),
        (Some(chain), Some(key), Some(authority)) => {
            Ok(Some(Side { certificate: Certificate { chain, key }, authority }))
        }
        (chain, key, authority) => {
            let given = [chain.is_some(), key.is_some(), authority.is_some()];
            let of = |there: bool| {
                let named =
                    flags.iter().zip(given).filter(|(_, given)| *given == there).map(|(flag, _)| *flag);
                named.collect::<Vec<_>>().join(" and ")
            };
            Err(UsageError::new(format!(
                "{} without {}; TLS needs a certificate, its key and the authority of the others' certificates; give all three",
                of(true),
                of(false)
            )))
        }
    }
}
