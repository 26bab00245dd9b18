//! TLS with an authority and client certificates of one's own, made for each test.

use std::path::Path;
use std::sync::Arc;

use cofferdam::registry::{Credentials, Registry, RegistryError, chain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::fake::{Reply, Server};
use crate::{blob_body, certs_d, config, descriptor, reference, sound};

/// A certificate and its key.
struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, purpose: ExtendedKeyUsagePurpose) -> Pair {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn server_config(&self, want_client: bool) -> ServerConfig {
        let pair = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if want_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain: Vec<CertificateDer<'static>> = vec![pair.certificate.der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.key.serialize_der()));
        builder.with_single_cert(chain, key).unwrap()
    }

    fn write(&self, folder: &Path) {
        let client = self.issue(ExtendedKeyUsagePurpose::ClientAuth);
        std::fs::write(folder.join("ca.pem"), self.issuer.pem()).unwrap();
        std::fs::write(folder.join("client.pem"), client.certificate.pem()).unwrap();
        std::fs::write(folder.join("client.key"), client.key.serialize_pem()).unwrap();
    }
}

/// The error chain of a resolve, or nothing when it worked.
async fn problem(server: &Server, authority: &Authority, keys: &str) -> Option<RegistryError> {
    let root = certs_d("reg.example", &format!("server = \"https://{}\"\n{keys}", server.address));
    authority.write(&root.path().join("reg.example"));
    let registry = Registry::new(config(Some(root.path())));
    registry.resolve(&reference("reg.example"), &Credentials::anonymous()).await.err()
}

#[tokio::test]
async fn only_a_known_authority_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start_tls(authority.server_config(false), |request| sound(request, b"")).await;
    let error = problem(&server, &authority, "").await.unwrap();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
    assert!(
        error.to_string().contains("hosts.toml") && chain(&error).contains("UnknownIssuer"),
        "{}",
        chain(&error)
    );
    let error = problem(&server, &stranger, "ca = \"ca.pem\"").await.unwrap();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
    assert!(server.requests().is_empty());
    assert!(problem(&server, &authority, "ca = [\"ca.pem\"]").await.is_none());
    assert!(problem(&server, &stranger, "skip_verify = true").await.is_none());
}

#[tokio::test]
async fn client_certificates_are_shown_to_the_registry() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server_config(true), |request| sound(request, b"")).await;
    assert!(problem(&server, &authority, "ca = \"ca.pem\"").await.is_some());
    let keys = "ca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]";
    assert!(problem(&server, &authority, keys).await.is_none());
}

#[tokio::test]
async fn client_certificates_are_not_shown_to_others() {
    let authority = Authority::new();
    let body = blob_body(100);
    let cdn = Server::start_tls(authority.server_config(true), |_| Reply::new(200, blob_body(100))).await;
    let to = format!("https://{}/x", cdn.address);
    let server = Server::start_tls(authority.server_config(true), move |_| Reply::redirect(to.clone())).await;
    let keys = "ca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]";
    let root = certs_d("reg.example", &format!("server = \"https://{}\"\n{keys}", server.address));
    authority.write(&root.path().join("reg.example"));
    let mut config = config(Some(root.path()));
    config.rounds = 1;
    let registry = Registry::new(config);
    let mut blob = registry.blob(&reference("reg.example"), &descriptor(&body), 0, &Credentials::anonymous());
    blob.chunk().await.unwrap_err();
    assert_eq!((server.requests().len(), cdn.requests().len()), (1, 0));
}

#[tokio::test]
async fn a_damaged_certificate_is_an_error_that_says_so() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server_config(false), |request| sound(request, b"")).await;
    // A hosts.toml is no certificate and no key.
    for keys in ["ca = \"ca.pem\"\nclient = \"client.pem\"", "ca = \"ca.pem\"\nclient = \"hosts.toml\""] {
        let error = problem(&server, &authority, keys).await.unwrap();
        assert!(matches!(error, RegistryError::Client { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_loopback_registry_may_have_any_certificate() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server_config(false), |request| sound(request, b"")).await;
    let registry = Registry::new(config(None));
    registry.resolve(&reference(&server.domain()), &Credentials::anonymous()).await.unwrap();
}

#[tokio::test]
async fn secrets_do_not_go_to_a_plain_token_service_of_a_tls_registry() {
    let tokens = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#)).await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.address);
    let authority = Authority::new();
    let server = Server::start_tls(authority.server_config(false), move |request| {
        match request.header("authorization") {
            Some("Bearer t") => sound(request, b""),
            _ => Reply::new(401, "").header("www-authenticate", challenge.clone()),
        }
    })
    .await;
    let registry = Registry::new(config(None));
    let reference = reference(&server.domain());
    let error = registry.resolve(&reference, &Credentials::password("user", "geheim")).await.unwrap_err();
    assert!(error.to_string().contains("does not use HTTPS"), "{error}");
    assert!(tokens.requests().is_empty());
    registry.resolve(&reference, &Credentials::anonymous()).await.unwrap();
}

#[tokio::test]
async fn tags_are_not_resolved_over_a_downgraded_connection() {
    let plain = Server::start(|request| sound(request, &blob_body(100))).await;
    let address = plain.address;
    let authority = Authority::new();
    let server = Server::start_tls(authority.server_config(false), move |request| {
        Reply::redirect(format!("http://{address}{}", request.path))
    })
    .await;
    let registry = Registry::new(config(None));
    let reference = reference(&server.domain());
    let error = registry.resolve(&reference, &Credentials::anonymous()).await.unwrap_err();
    assert!(error.to_string().contains("plain HTTP"), "{error}");
    assert!(plain.requests().is_empty());
    // A blob proves itself by its digest, from wherever it comes.
    let body = blob_body(100);
    let mut blob = registry.blob(&reference, &descriptor(&body), 0, &Credentials::anonymous());
    assert!(blob.chunk().await.unwrap().unwrap() == body);
}
