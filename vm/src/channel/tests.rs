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
