//! The channel over a socket pair, with a guest that behaves and guests that do not.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A host's end whose guest is told by `serve` what to do with each stream.
fn pair(serve: fn(Stream) -> futures::future::BoxFuture<'static, ()>) -> (Channel, JoinSet<()>) {
    let (ours, theirs) = duplex(4096);
    let mut tasks = JoinSet::new();
    let (channel, driver) = Channel::host(ours.compat());
    tasks.spawn(driver);
    tasks.spawn(async move {
        let mut streams = JoinSet::new();
        guest(theirs.compat(), |stream| drop(streams.spawn(serve(stream)))).await;
    });
    (channel, tasks)
}

fn echo(mut stream: Stream) -> futures::future::BoxFuture<'static, ()> {
    Box::pin(async move {
        let purpose = read_purpose(&mut stream).await;
        let outcome = match purpose {
            Ok(Purpose::Output(_)) => Err("no\nsuch stream".to_owned()),
            _ => Ok(()),
        };
        answer(&mut stream, outcome).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        drop(tokio::io::copy(&mut read, &mut write).await);
        drop(write.shutdown().await);
    })
}

#[tokio::test]
async fn streams_are_independent_and_end_in_one_direction() {
    let (channel, _tasks) = pair(echo);
    let mut silent = channel.open(&Purpose::Task, PATIENCE).await.unwrap();
    let mut stream = channel.open(&Purpose::Input("x".into()), PATIENCE).await.unwrap();
    let text = vec![b'a'; 300_000];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async {
        write.write_all(&text).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    tokio::join!(writing, async { read.read_to_end(&mut got).await.unwrap() });
    assert_eq!(got.len(), text.len());
    silent.write_all(b"still").await.unwrap();
    let mut word = [0; 5];
    silent.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"still");
}

#[tokio::test]
async fn a_refusal_has_the_guests_words() {
    let (channel, _tasks) = pair(echo);
    let refused = channel.open(&Purpose::Output("x".into()), PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("no such stream"), "{refused}");
}

#[tokio::test]
async fn a_guest_that_answers_without_end_is_not_listened_to() {
    let (channel, _tasks) =
        pair(|mut stream| Box::pin(async move { while stream.write_all(&[b'x'; 1000]).await.is_ok() {} }));
    let refused = channel.open(&Purpose::Agent, PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("too long"), "{refused}");
}

async fn garbage(mut theirs: DuplexStream) {
    while theirs.write_all(&[0xff; 64]).await.is_ok() {}
}

#[tokio::test]
async fn garbage_ends_the_channel() {
    let (ours, theirs) = duplex(4096);
    let (channel, driver) = Channel::host(ours.compat());
    let mut tasks = JoinSet::new();
    tasks.spawn(garbage(theirs));
    timeout(Duration::from_secs(5), driver).await.expect("the driver goes on with garbage");
    assert!(matches!(channel.open(&Purpose::Agent, PATIENCE).await, Err(ChannelError::Ended)));
}

#[tokio::test]
async fn a_guest_that_takes_no_stream_is_given_up() {
    let (channel, _tasks) = pair(|stream| {
        Box::pin(async move {
            let _held = stream;
            std::future::pending::<()>().await;
        })
    });
    let silent = channel.open(&Purpose::Agent, Duration::from_millis(100)).await;
    assert!(matches!(silent, Err(ChannelError::Silent { .. })));
}

/// A guest that connects every stream to a peer that `serve` gives.
async fn relayed(
    serve: fn(DuplexStream) -> futures::future::BoxFuture<'static, ()>,
) -> (Stream, JoinSet<()>) {
    let (ours, theirs) = duplex(4096);
    let mut tasks = JoinSet::new();
    let (channel, driver) = Channel::host(ours.compat());
    tasks.spawn(driver);
    tasks.spawn(async move {
        let mut streams = JoinSet::new();
        guest(theirs.compat(), |mut stream| {
            drop(streams.spawn(async move {
                assert_eq!(read_purpose(&mut stream).await.unwrap(), Purpose::Port(80));
                answer(&mut stream, Ok(())).await.unwrap();
                let (ours, peer) = duplex(4096);
                let (from, to) = tokio::io::split(ours);
                let carried = relay(stream, from, to, async |_: &_| std::future::pending().await);
                drop(tokio::join!(carried, serve(peer)));
            }));
        })
        .await;
    });
    (channel.open(&Purpose::Port(80), PATIENCE).await.unwrap(), tasks)
}

/// A host's side of a connection, as its client has it.
fn client(stream: Stream, tasks: &mut JoinSet<()>) -> DuplexStream {
    let (ours, peer) = duplex(4096);
    let (from, to) = tokio::io::split(ours);
    tasks.spawn(async { drop(relay(stream, from, to, async |_: &_| std::future::pending().await).await) });
    peer
}

#[tokio::test]
async fn the_end_of_one_half_of_a_connection_leaves_the_other_open() {
    let count = |mut peer: DuplexStream| -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            peer.write_all(&vec![b'y'; all.len()]).await.unwrap();
            peer.shutdown().await.unwrap();
        })
    };
    let (stream, mut tasks) = relayed(count).await;
    let mut client = client(stream, &mut tasks);
    client.write_all(&vec![b'x'; 300_000]).await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all, vec![b'y'; 300_000]);
}

#[tokio::test]
async fn a_host_that_is_gone_takes_a_silent_connection_with_it() {
    static GONE: tokio::sync::Notify = tokio::sync::Notify::const_new();
    // It says nothing, and does not end when its client has: only when nobody is there any more.
    let silent = |peer: DuplexStream| -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let (mut from, _to) = tokio::io::split(peer);
            drop(from.read_to_end(&mut Vec::new()).await);
            GONE.notified().await;
        })
    };
    for says_its_end in [false, true] {
        let (ours, theirs) = duplex(4096);
        let mut tasks = JoinSet::new();
        let (channel, driver) = Channel::host(ours.compat());
        tasks.spawn(driver);
        let (over, mut told) = tokio::sync::mpsc::channel(1);
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            guest(theirs.compat(), |mut stream| {
                let over = over.clone();
                drop(streams.spawn(async move {
                    read_purpose(&mut stream).await.unwrap();
                    answer(&mut stream, Ok(())).await.unwrap();
                    let (ours, peer) = duplex(4096);
                    let (from, to) = tokio::io::split(ours);
                    let never = async |_: &_| std::future::pending().await;
                    let carried = tokio::select! {
                        carried = relay(stream, from, to, never) => carried,
                        () = silent(peer) => unreachable!("it is silent"),
                    };
                    over.send(carried.is_err()).await.unwrap();
                }));
            })
            .await;
        });
        let mut stream = channel.open(&Purpose::Port(80), PATIENCE).await.unwrap();
        stream.write_all(b"\x00\x01x").await.unwrap();
        if says_its_end {
            stream.write_all(b"\x00\x00").await.unwrap();
        }
        stream.flush().await.unwrap();
        drop(stream);
        let broken = timeout(PATIENCE, told.recv()).await.expect("the connection is kept");
        assert_eq!(broken, Some(true));
    }
}
