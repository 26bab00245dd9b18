//! The server's certificate, read anew when its files change: whoever renews it does not restart the daemon.
//!
//! Invariant: a certificate that cannot be read or does not fit its key never replaces one that works.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = changed(cert, key);
        let config = config(cert, key)?;
        let loaded = Mutex::new(Loaded { changed, config });
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), loaded })
    }

    /// For the next connection, with the files as they are now.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.cert, &self.key);
        if now != loaded.changed {
            // Not tried again before the next change: the two files rarely change in the same instant.
            loaded.changed = now;
            match config(&self.cert, &self.key) {
                Ok(config) => loaded.config = config,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the streaming server keeps its old certificate");
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.config))
    }
}

fn changed(cert: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
}

fn config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
    let unclear = |path: &Path, reason: String| TlsError::Pem { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unclear(cert, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| unclear(key, e.to_string()))?;
    let identity = |source| TlsError::Identity { cert: cert.to_owned(), key: key.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(identity)?
        .with_no_client_auth()
        .with_single_cert(certificates, secret)
        .map_err(identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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
        let first = in_use();
        assert!(Arc::ptr_eq(&first, &in_use()));
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&cert, "broken").unwrap();
        assert!(Arc::ptr_eq(&first, &in_use()));
        std::thread::sleep(Duration::from_millis(20));
        write(folder.path());
        assert!(!Arc::ptr_eq(&first, &in_use()));
    }
}
