//! The server's certificate, read anew when its files change: whoever renews it does not restart the daemon.
//!
//! Invariant: a certificate that cannot be read or does not fit its key never replaces one that works.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::report::chain;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no certificate or key that is understood: {reason}")]
    Pem { path: PathBuf, reason: String },
    #[error("certificate {cert} with key {key}")]
    Identity { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The certificate in two files.
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    changed: [Option<SystemTime>; 2],
    identity: Identity,
}

/// What the files hold.
struct Identity {
    config: Arc<ServerConfig>,
    fingerprint: String,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = changed(cert, key);
        let identity = identity(cert, key)?;
        let loaded = Mutex::new(Loaded { changed, identity });
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), loaded })
    }

    /// For the next connection, with the files as they are now.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current(|identity| Arc::clone(&identity.config)))
    }

    /// The certificate that the next connection sees: its SHA-256 in hexadecimal. Who learned it from the daemon itself
    /// needs no authority and no name to know the daemon by.
    pub fn fingerprint(&self) -> String {
        self.current(|identity| identity.fingerprint.clone())
    }

    fn current<T>(&self, take: impl FnOnce(&Identity) -> T) -> T {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.cert, &self.key);
        if now != loaded.changed {
            // Not tried again before the next change: the two files rarely change in the same instant.
            loaded.changed = now;
            match identity(&self.cert, &self.key) {
                Ok(identity) => loaded.identity = identity,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the streaming server keeps its old certificate");
                }
            }
        }
        take(&loaded.identity)
    }
}

fn changed(cert: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
}

/// How a certificate is told from others: the SHA-256 of its DER form in hexadecimal.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn identity(cert: &Path, key: &Path) -> Result<Identity, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
    let unclear = |path: &Path, reason: String| TlsError::Pem { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unclear(cert, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| unclear(key, e.to_string()))?;
    let fingerprint = certificates.first().map(fingerprint).unwrap_or_default();
    let failed = |source| TlsError::Identity { cert: cert.to_owned(), key: key.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(certificates, secret)
        .map_err(failed)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity { config: Arc::new(config), fingerprint })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn write(folder: &Path) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("cert"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("key"), made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
        assert!(Certificate::load(&cert, &key).is_err());
        write(folder.path());
        let certificate = Certificate::load(&cert, &key).unwrap();
        let in_use = || Arc::clone(certificate.acceptor().config());
        let (first, known) = (in_use(), certificate.fingerprint());
        assert_eq!(known.len(), 64);
        assert!(Arc::ptr_eq(&first, &in_use()));
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&cert, "broken").unwrap();
        assert!(Arc::ptr_eq(&first, &in_use()));
        std::thread::sleep(Duration::from_millis(20));
        write(folder.path());
        assert!(!Arc::ptr_eq(&first, &in_use()));
        assert_ne!(certificate.fingerprint(), known);
    }
}
