//! Blobs over connections that break, stall, lie and move.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cofferdam::registry::{Blob, Credentials, Registry, RegistryError};
use futures::StreamExt as _;

use crate::fake::{Reply, Request, Server};
use crate::{blob_body, certs_d, config, descriptor, reference, registry, sound};

const SIZE: usize = 300_000;

async fn read(mut blob: Blob) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        assert!(!chunk.is_empty());
        bytes.extend_from_slice(&chunk);
        assert_eq!(blob.position(), bytes.len() as u64);
    }
    assert!(blob.chunk().await?.is_none(), "the end stays the end");
    Ok(bytes)
}

async fn pull(registry: &Registry, domain: &str, body: &[u8]) -> Result<Vec<u8>, RegistryError> {
    read(registry.blob(&reference(domain), &descriptor(body), 0, &Credentials::anonymous())).await
}

/// A server that gives the blob, with the n-th answer about it spoilt by `spoil`.
async fn spoilt(body: &[u8], spoil: impl Fn(usize, &Request, &mut Reply) + Send + Sync + 'static) -> Server {
    let (body, count) = (body.to_vec(), AtomicUsize::new(0));
    Server::start(move |request| {
        let mut reply = sound(request, &body);
        spoil(count.fetch_add(1, Ordering::SeqCst), request, &mut reply);
        reply
    })
    .await
}

#[tokio::test]
async fn a_blob_is_read_whole_and_the_connection_used_again() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, _, _| {}).await;
    let registry = registry();
    for _ in 0..3 {
        assert!(pull(&registry, &server.domain(), &body).await.unwrap() == body);
    }
    // The first one spoke TLS, which the server does not.
    assert_eq!(server.connections(), 2);
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn an_empty_blob_and_one_already_there_ask_nothing() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, _, _| {}).await;
    let (registry, reference) = (registry(), reference(&server.domain()));
    let anonymous = Credentials::anonymous();
    let mut empty = registry.blob(&reference, &descriptor(b""), 0, &anonymous);
    assert!(empty.chunk().await.unwrap().is_none());
    let mut done = registry.blob(&reference, &descriptor(&body), SIZE as u64, &anonymous);
    assert!(done.chunk().await.unwrap().is_none());
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_blob_may_start_in_its_middle() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, _, _| {}).await;
    let blob =
        registry().blob(&reference(&server.domain()), &descriptor(&body), 1234, &Credentials::anonymous());
    let parts: Vec<_> = blob.into_stream().map(Result::unwrap).collect().await;
    assert!(parts.concat() == body[1234..]);
    assert_eq!(server.requests()[0].range(), Some(1234));
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let body = blob_body(SIZE);
    for chunked in [false, true] {
        let server = spoilt(&body, move |n, _, reply| {
            reply.chunked = chunked;
            reply.cut_after = (n < 3).then_some(50_000);
        })
        .await;
        assert!(pull(&registry(), &server.domain(), &body).await.unwrap() == body);
        let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
        assert_eq!(ranges, [None, Some(50_000), Some(100_000), Some(150_000)]);
    }
}

#[tokio::test]
async fn a_server_without_ranges_sends_from_the_start_and_nothing_is_given_twice() {
    let body = blob_body(SIZE);
    let whole = body.clone();
    let server = spoilt(&body, move |n, _, reply| {
        *reply = Reply::new(200, whole.clone());
        // Each time it comes further.
        reply.cut_after = (n < 3).then_some(50_000 * (n + 1));
    })
    .await;
    assert!(pull(&registry(), &server.domain(), &body).await.unwrap() == body);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_refused_range_is_asked_without() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, move |n, request, reply| {
        if request.range().is_some() {
            *reply = Reply::new(416, "");
        }
        reply.cut_after = (n == 0).then_some(50_000);
    })
    .await;
    assert!(pull(&registry(), &server.domain(), &body).await.unwrap() == body);
    let ranges: Vec<_> = server.requests().iter().map(Request::range).collect();
    assert_eq!(ranges, [None, Some(50_000), None]);
}

#[tokio::test]
async fn another_part_than_asked_for_is_refused() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |n, _, reply| {
        reply.cut_after = (n == 0).then_some(50_000);
        for (name, value) in &mut reply.headers {
            if name == "content-range" {
                *value = "bytes 60000-299999/300000".to_owned();
            }
        }
    })
    .await;
    let error = pull(&registry(), &server.domain(), &body).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_always_breaks_is_given_up() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, _, reply| reply.cut_after = Some(10)).await;
    let error = pull(&registry(), &server.domain(), &body).await.unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn stalls_and_trickles_are_resumed() {
    let body = blob_body(SIZE);
    let stalling = spoilt(&body, |n, _, reply| reply.stall_after = (n < 2).then_some(100_000)).await;
    assert!(pull(&registry(), &stalling.domain(), &body).await.unwrap() == body);
    assert_eq!(stalling.requests().len(), 3);
    let trickling =
        spoilt(&body, |n, _, reply| reply.trickle = (n < 2).then_some(Duration::from_millis(20))).await;
    let (registry, domain) = (registry(), trickling.domain());
    let all = pull(&registry, &domain, &body);
    assert!(tokio::time::timeout(Duration::from_secs(10), all).await.unwrap().unwrap() == body);
    assert_eq!(trickling.requests().len(), 3);
}

#[tokio::test]
async fn bodies_of_another_size_are_refused() {
    let body = blob_body(SIZE);
    for chunked in [false, true] {
        let longer = spoilt(&body, move |_, _, reply| {
            reply.chunked = chunked;
            reply.body.push(0);
        })
        .await;
        let error = pull(&registry(), &longer.domain(), &body).await.unwrap_err();
        match chunked {
            false => assert!(matches!(error, RegistryError::WrongSize { .. }), "{error:?}"),
            true => assert!(matches!(error, RegistryError::TooLarge { .. }), "{error:?}"),
        }
        let shorter = spoilt(&body, move |_, request, reply| {
            reply.chunked = chunked;
            if request.range().is_none() {
                reply.body.truncate(SIZE - 1);
            } else {
                *reply = Reply::new(404, "");
            }
        })
        .await;
        let error = pull(&registry(), &shorter.domain(), &body).await.unwrap_err();
        match chunked {
            false => assert!(matches!(error, RegistryError::WrongSize { .. }), "{error:?}"),
            true => assert!(error.is_not_found(), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn the_next_host_goes_on_where_the_first_broke_down() {
    let body = blob_body(SIZE);
    let first = spoilt(&body, |n, _, reply| match n {
        0 => reply.cut_after = Some(100_000),
        _ => *reply = Reply::new(502, ""),
    })
    .await;
    let second = spoilt(&body, |_, _, _| {}).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", second.address, first.address);
    let root = certs_d("reg.example", &text);
    let registry = Registry::new(config(Some(root.path())));
    assert!(pull(&registry, "reg.example", &body).await.unwrap() == body);
    assert_eq!(second.requests()[0].range(), Some(100_000));
    assert_eq!(first.requests().len(), 2);
}

#[tokio::test]
async fn a_missing_blob_is_not_found() {
    let server = spoilt(b"other", |_, _, _| {}).await;
    let error = pull(&registry(), &server.domain(), b"this").await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("sha256:"), "{error}");
}

#[tokio::test]
async fn a_call_that_was_dropped_loses_no_byte() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, request, reply| {
        reply.stall_after = request.range().is_none().then_some(100_000);
    })
    .await;
    let mut blob =
        registry().blob(&reference(&server.domain()), &descriptor(&body), 0, &Credentials::anonymous());
    let mut bytes = blob.chunk().await.unwrap().unwrap().to_vec();
    let mut dropped = 0;
    while dropped < 3 || bytes.len() < 100_000 {
        // Shorter than the idle time-out, so that the calls end while they wait.
        match tokio::time::timeout(Duration::from_millis(20), blob.chunk()).await {
            Err(_) => dropped += 1,
            Ok(chunk) => bytes.extend_from_slice(&chunk.unwrap().unwrap()),
        }
    }
    while let Some(chunk) = blob.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert!(bytes == body);
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_read_again_elsewhere() {
    let body = blob_body(SIZE);
    let corrupt = spoilt(&body, |_, _, reply| reply.body[7] ^= 1).await;
    let sound = spoilt(&body, |_, _, _| {}).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", sound.address, corrupt.address);
    let root = certs_d("reg.example", &text);
    let registry = Registry::new(config(Some(root.path())));
    let mut blob = registry.blob(&reference("reg.example"), &descriptor(&body), 0, &Credentials::anonymous());
    assert!(!blob.restart_elsewhere(), "nothing was read yet");
    for (server, right) in [(&corrupt, false), (&sound, true)] {
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!((bytes == body, blob.host()), (right, Some(server.domain())));
        assert_eq!(blob.restart_elsewhere(), !right);
    }
}

#[tokio::test]
async fn pulls_may_run_in_tasks_of_their_own() {
    let body = blob_body(SIZE);
    let server = spoilt(&body, |_, _, _| {}).await;
    let (registry, reference) = (registry(), reference(&server.domain()));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (registry, reference, body) = (registry.clone(), reference.clone(), body.clone());
        tasks.spawn(async move {
            registry.resolve(&reference, &Credentials::anonymous()).await.unwrap();
            let blob = registry.blob(&reference, &descriptor(&body), 0, &Credentials::anonymous());
            assert!(read(blob).await.unwrap() == body);
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn after_turning_to_another_host_the_registry_still_has_the_last_word() {
    let body = blob_body(SIZE);
    // The mirror has nothing, the registry begins and then wants a login: the next round begins at the registry.
    let mirror = spoilt(&body, |_, _, reply| *reply = Reply::new(404, "")).await;
    let server = spoilt(&body, |n, _, reply| match n {
        0 => reply.cut_after = Some(10),
        _ => *reply = Reply::new(401, ""),
    })
    .await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", server.address, mirror.address);
    let root = certs_d("reg.example", &text);
    let error = pull(&Registry::new(config(Some(root.path()))), "reg.example", &body).await.unwrap_err();
    assert!(matches!(error.decisive(), RegistryError::Unauthorized { .. }), "{error:?}");
}
