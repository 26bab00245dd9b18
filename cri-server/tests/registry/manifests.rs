//! Resolving: digests, sizes, mirrors, redirects, errors that say what to do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam::registry::{Credentials, Descriptor, Digest, Reference, Registry, RegistryError, chain};

use crate::fake::{Reply, Server};
use crate::{MANIFEST, certs_d, config, manifest_body, reference, registry, sound};

async fn resolve(registry: &Registry, server: &Server) -> Result<Vec<u8>, RegistryError> {
    let resolved = registry.resolve(&reference(&server.domain()), &Credentials::anonymous()).await?;
    Ok(resolved.bytes.to_vec())
}

#[tokio::test]
async fn a_tag_resolves_over_plain_http_on_loopback() {
    let server = Server::start(|request| sound(request, b"")).await;
    let resolved = registry().resolve(&reference(&server.domain()), &Credentials::anonymous()).await.unwrap();
    assert_eq!(resolved.bytes, manifest_body());
    assert_eq!(resolved.descriptor.digest, Digest::sha256(&manifest_body()));
    assert_eq!(resolved.descriptor.media_type, MANIFEST);
    assert_eq!(resolved.host, server.domain());
    let request = &server.requests()[0];
    let version = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(version));
    assert!(request.header("accept").unwrap().contains("manifest.list.v2+json"));
    assert_eq!((request.method.as_str(), request.query.as_str()), ("GET", ""));
    assert_eq!(request.header("authorization"), None);
}

#[tokio::test]
async fn a_digest_is_checked_over_the_bytes() {
    let server = Server::start(|request| {
        let mut reply = sound(request, b"");
        if request.path.contains("sha256:") {
            reply.body.push(b' ');
        }
        reply
    })
    .await;
    let pinned = reference(&server.domain()).with_digest(Digest::sha256(&manifest_body()));
    let error = registry().resolve(&pinned, &Credentials::anonymous()).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    // By tag, the digest that the registry announces is held against the bytes.
    let lying = Server::start(|request| {
        let mut reply = sound(request, b"");
        reply.body.push(b' ');
        reply
    })
    .await;
    let error = resolve(&registry(), &lying).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_manifest_named_by_an_index_must_have_its_size() {
    let server = Server::start(|request| sound(request, b"")).await;
    let body = manifest_body();
    let mut wanted = Descriptor {
        media_type: MANIFEST.to_owned(),
        digest: Digest::sha256(&body),
        size: body.len() as u64,
    };
    let (registry, reference) = (registry(), reference(&server.domain()));
    let anonymous = Credentials::anonymous();
    assert_eq!(registry.manifest(&reference, &wanted, &anonymous).await.unwrap().bytes, body);
    wanted.size += 1;
    let error = registry.manifest(&reference, &wanted, &anonymous).await.unwrap_err();
    assert!(matches!(error, RegistryError::WrongSize { .. }), "{error:?}");
}

#[tokio::test]
async fn huge_manifests_are_refused() {
    for chunked in [false, true] {
        let server = Server::start(move |_| {
            let mut reply = Reply::new(200, vec![b' '; (4 << 20) + 1]).header("content-type", MANIFEST);
            reply.chunked = chunked;
            reply
        })
        .await;
        let error = resolve(&registry(), &server).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { limit: 4_194_304, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_unknown_image_names_the_hosts_that_were_asked() {
    let mirror = Server::start(|_| Reply::new(403, "")).await;
    let server = Server::start(|request| sound(request, b"")).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", server.address, mirror.address);
    let root = certs_d("reg.example", &text);
    let registry = Registry::new(config(Some(root.path())));
    let unknown = Reference::parse("reg.example/no/such").unwrap();
    let error = registry.resolve(&unknown, &Credentials::anonymous()).await.unwrap_err();
    assert!(error.is_not_found());
    let RegistryError::NotFound { tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        tried.0.iter().map(|attempt| attempt.host.clone()).collect::<Vec<_>>(),
        [mirror.domain(), server.domain()]
    );
    let text = error.to_string();
    for part in ["reg.example/no/such:latest", "refuses access", "manifest unknown"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(mirror.requests()[0].query, "ns=reg.example");
}

#[tokio::test]
async fn the_next_host_serves_what_a_mirror_does_not() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let empty = Server::start(|_| Reply::new(404, "")).await;
    let broken = Server::start(|_| Reply::new(500, "")).await;
    let pull_only = Server::start(|request| sound(request, b"")).await;
    let server = Server::start(|request| sound(request, b"")).await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{dead}\"]\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        server.address, empty.address, broken.address, pull_only.address
    );
    let root = certs_d("reg.example", &text);
    let registry = Registry::new(config(Some(root.path())));
    let resolved = registry.resolve(&reference("reg.example"), &Credentials::anonymous()).await.unwrap();
    assert_eq!(resolved.host, server.domain());
    assert_eq!((empty.requests().len(), broken.requests().len()), (1, 1));
    assert!(pull_only.requests().is_empty(), "a host without the capability was asked for a tag");
    // Pinned by digest nothing is to be resolved, so that host serves.
    let pinned = reference("reg.example").with_digest(Digest::sha256(&manifest_body()));
    let resolved = registry.resolve(&pinned, &Credentials::anonymous()).await.unwrap();
    assert_eq!(resolved.host, pull_only.domain());
}

#[tokio::test]
async fn a_corrupt_mirror_is_passed_over() {
    let mirror = Server::start(|_| Reply::new(200, "{}").header("content-type", MANIFEST)).await;
    let server = Server::start(|request| sound(request, b"")).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", server.address, mirror.address);
    let root = certs_d("reg.example", &text);
    let pinned = reference("reg.example").with_digest(Digest::sha256(&manifest_body()));
    let registry = Registry::new(config(Some(root.path())));
    let resolved = registry.resolve(&pinned, &Credentials::anonymous()).await.unwrap();
    assert_eq!((resolved.host, mirror.requests().len()), (server.domain(), 1));
}

#[tokio::test]
async fn retry_after_is_honoured() {
    for status in [429, 503] {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(status, "").header("retry-after", "1"),
            _ => sound(request, b""),
        })
        .await;
        let before = Instant::now();
        resolve(&registry(), &server).await.unwrap();
        assert!(before.elapsed() >= Duration::from_secs(1), "{:?}", before.elapsed());
        assert_eq!(server.requests().len(), 2);
    }
}

#[tokio::test]
async fn lasting_failures_are_typed_and_bounded() {
    for (status, requests) in [(429, 5), (503, 5), (403, 1), (401, 1), (418, 1)] {
        let server =
            Server::start(move |_| Reply::new(status, r#"{"errors":[{"code":"X","message":"why"}]}"#)).await;
        let error = resolve(&registry(), &server).await.unwrap_err();
        let as_expected = match status {
            429 => matches!(error, RegistryError::RateLimited { .. }),
            503 => matches!(error, RegistryError::Unavailable { status: 503, .. }),
            403 => matches!(error, RegistryError::Forbidden { .. }),
            401 => matches!(error, RegistryError::Unauthorized { .. }),
            _ => matches!(error, RegistryError::Status { status: 418, .. }),
        };
        assert!(as_expected, "{status}: {error:?}");
        assert!(
            error.to_string().contains("X: why") && error.to_string().contains(&server.domain()),
            "{error}"
        );
        assert_eq!(server.requests().len(), requests, "{status}");
    }
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error =
        registry().resolve(&reference(&address.to_string()), &Credentials::anonymous()).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Unreachable { host, .. } if *host == address.to_string()),
        "{error:?}"
    );
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let root = certs_d("reg.example", &format!("server = \"http://{address}\""));
    let mut config = config(Some(root.path()));
    (config.header_timeout, config.rounds) = (Duration::from_millis(100), 2);
    let error = Registry::new(config)
        .resolve(&reference("reg.example"), &Credentials::anonymous())
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn endless_redirects_end() {
    let server = Server::start(|request| Reply::redirect(format!("{}x", request.path))).await;
    let error = resolve(&registry(), &server).await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirects { limit: 10, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 11);
    for location in ["file:///etc/passwd", "http://[", ""] {
        let server = Server::start(move |_| {
            Reply::new(302, "").header(if location.is_empty() { "x" } else { "location" }, location)
        })
        .await;
        let error = resolve(&registry(), &server).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{location}: {error:?}");
    }
}
