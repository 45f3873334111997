//! TLS for the API: a certificate that was given, or one of Hearth's own authority.
//!
//! The authority is made once, in the data folder; `hearth ca` prints its
//! certificate, which clients are told to trust (`AWS_CA_BUNDLE`). The server's own
//! certificate never touches a disk: each process issues itself one, and another
//! long before it ends. A certificate that was given is read again when its file is
//! another one.

mod authority;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

pub use authority::Authority;

/// How often certificates are looked after.
const LOOK: Duration = Duration::from_secs(60);

/// Where the server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Files in PEM: the certificate with those between it and its root, and its key.
    Given {
        /// The certificates.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// The authority in this folder.
    Own {
        /// Made when it isn't there.
        folder: PathBuf,
        /// The host names and addresses that the certificate is for.
        names: Vec<String>,
    },
}

/// What the API serves TLS with.
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    source: Source,
    provider: Arc<CryptoProvider>,
}

/// The certificate as of now.
#[derive(Debug)]
struct Current(RwLock<Held>);

#[derive(Debug, Clone)]
struct Held {
    certified: Arc<CertifiedKey>,
    /// When another is to be made.
    renew: Option<SystemTime>,
    /// What the files were when they were read.
    read: Option<[SystemTime; 2]>,
}

impl Tls {
    /// Reads or makes what is needed.
    ///
    /// # Errors
    /// When a file can't be read or written, or a key doesn't fit its certificate.
    pub fn open(source: Source) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let held = hold(&source, &provider, SystemTime::now())?;
        let current = Arc::new(Current(RwLock::new(held)));
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Sessions to resume would be memory that strangers fill.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            source,
            provider,
        })
    }

    /// Does the handshakes.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Renews the certificate when it is time, for as long as it is polled.
    pub async fn look_after(&self) {
        let mut said = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let (held, source) = (self.current.held(), self.source.clone());
            let provider = self.provider.clone();
            let renewed = tokio::task::spawn_blocking(move || {
                let now = SystemTime::now();
                held.is_due(&source, now)
                    .then(|| hold(&source, &provider, now))
                    .transpose()
            });
            match renewed
                .await
                .map_err(anyhow::Error::from)
                .and_then(|made| made)
            {
                Ok(None) => {}
                Ok(Some(held)) => {
                    tracing::info!("the API's certificate is renewed");
                    self.current.replace(held);
                    said = None;
                }
                Err(error) => {
                    // The old one serves on; this is said once.
                    let error = format!("{error:#}");
                    if said.as_ref() != Some(&error) {
                        tracing::error!(error, "the API's certificate can't be renewed");
                    }
                    said = Some(error);
                }
            }
        }
    }
}

impl Held {
    fn is_due(&self, source: &Source, now: SystemTime) -> bool {
        match source {
            Source::Own { .. } => self.renew.is_some_and(|at| now >= at),
            Source::Given { certificate, key } => {
                // Files that are just being replaced are looked at again later.
                modified(certificate, key).is_ok_and(|read| Some(read) != self.read)
            }
        }
    }
}

impl Current {
    fn held(&self) -> Held {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn replace(&self, held: Held) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.held().certified)
    }
}

fn modified(certificate: &Path, key: &Path) -> io::Result<[SystemTime; 2]> {
    let of = |path| fs::metadata(path)?.modified();
    Ok([of(certificate)?, of(key)?])
}

fn hold(source: &Source, provider: &CryptoProvider, now: SystemTime) -> anyhow::Result<Held> {
    match source {
        Source::Given { certificate, key } => {
            let read = modified(certificate, key)
                .with_context(|| format!("{}, {}", certificate.display(), key.display()))?;
            let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .with_context(|| format!("--tls-cert {}", certificate.display()))?;
            anyhow::ensure!(
                !chain.is_empty(),
                "--tls-cert {}: there is no certificate in it",
                certificate.display()
            );
            let der = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("--tls-key {}", key.display()))?;
            let certified = CertifiedKey::from_der(chain, der, provider)
                .with_context(|| format!("--tls-key {}", key.display()))?;
            Ok(Held {
                certified: Arc::new(certified),
                renew: None,
                read: Some(read),
            })
        }
        Source::Own { folder, names } => {
            let issued = Authority::load_or_create(folder, now)?.issue(names, now)?;
            let chain = vec![issued.certificate];
            let certified = CertifiedKey::from_der(chain, issued.key, provider)?;
            Ok(Held {
                certified: Arc::new(certified),
                renew: Some(issued.renew),
                read: None,
            })
        }
    }
}

#[cfg(test)]
mod tests;
