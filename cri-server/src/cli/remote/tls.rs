//! TLS with a server whose certificate the daemon itself told us of, over its socket.
//!
//! Invariant: one certificate is trusted, by its fingerprint, and its holder must prove that it has the key. Names, authorities
//! and dates say nothing more: the socket is root's, and the certificate is often signed by nobody.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::streaming::fingerprint;

/// Connects to who has the certificate with this fingerprint.
pub(super) fn connector(fingerprint: &str) -> Result<TlsConnector, Error> {
    let provider = Arc::new(ring::default_provider());
    let known = Known { fingerprint: fingerprint.to_owned(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(known))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What the server is asked to be; a server with several certificates would choose by it.
pub(super) fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

#[derive(Debug)]
struct Known {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if fingerprint(certificate) == self.fingerprint {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// What comes of a handshake with a server that shows `shown` and signs with `key`.
    async fn handshake(told: &str, shown: &CertificateDer<'static>, key: &[u8]) -> io::Result<()> {
        let key = PrivateKeyDer::try_from(key.to_vec()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![shown.clone()], key)
            .unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = server_name("127.0.0.1").unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let (client, _) = tokio::join!(connector(told).unwrap().connect(name, near), acceptor.accept(far));
        client.map(drop)
    }

    #[tokio::test]
    async fn the_certificate_told_of_is_trusted_and_no_other() {
        let made = rcgen::generate_simple_self_signed(vec!["elsewhere".to_owned()]).unwrap();
        let (shown, key) = (made.cert.der(), made.signing_key.serialize_der());
        handshake(&fingerprint(shown), shown, &key).await.unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        assert!(handshake(&fingerprint(other.cert.der()), shown, &key).await.is_err());
        assert!(handshake("", shown, &key).await.is_err());
    }
}
