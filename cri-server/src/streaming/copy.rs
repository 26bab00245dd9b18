//! Carries bytes between a client and a process.
//!
//! Invariant: a copy has one buffer and no queue; what the receiver does not take stays with the sender.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::remote::BoxWrite;

const CHUNK: usize = 64 * 1024;
/// How long output is awaited after the process has ended: something it left behind may hold its streams open.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a client may take for one piece of output once the process has ended.
const STALLED: Duration = Duration::from_secs(60);

/// What becomes of output whose client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphaned {
    /// It is read on, so that the process does not block.
    Discard,
    /// Nobody has to read it.
    Leave,
}

/// Copies a process's output to the client, until its end or a while after `ended` was cancelled.
pub async fn output(
    mut from: impl AsyncRead + Unpin,
    to: BoxWrite,
    orphaned: Orphaned,
    ended: CancellationToken,
) {
    let mut client = Some(to);
    let mut buffer = vec![0; CHUNK];
    let mut patience = DRAIN;
    loop {
        let (late, begun) = (ended.is_cancelled(), Instant::now());
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = after(&ended, patience) => break,
        };
        if late {
            // Only the waiting counts: what lies in the FIFO comes at once, however slowly the client takes it.
            patience = patience.saturating_sub(begun.elapsed());
        }
        let Ok(count @ 1..) = read else { break };
        let Some(writer) = &mut client else { continue };
        let written = tokio::select! {
            written = writer.write_all(&buffer[..count]) => written.is_ok(),
            () = after(&ended, STALLED) => false,
        };
        if !written {
            if orphaned == Orphaned::Leave {
                return;
            }
            client = None;
        }
    }
    if let Some(mut writer) = client {
        // A client that left does not need to hear of the end.
        let _ = tokio::time::timeout(STALLED, writer.shutdown()).await;
    }
}

async fn after(ended: &CancellationToken, patience: Duration) {
    ended.cancelled().await;
    tokio::time::sleep(patience).await;
}

/// Why there is no more input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// The client has no more to say and listens on.
    HalfClosed,
    /// The client is gone.
    Vanished,
    /// The process reads no more.
    Unread,
}

/// Copies what the client says to the process.
pub async fn input(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> InputEnd {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return InputEnd::HalfClosed,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return InputEnd::Unread;
                }
            }
            Err(_) => return InputEnd::Vanished,
        }
    }
}

/// Reads on what nobody takes, so that the news of the client's end arrive.
pub async fn discard(mut from: impl AsyncRead + Unpin) -> InputEnd {
    input(&mut from, tokio::io::sink()).await
}

/// Copies one direction of a connection and closes it behind the last byte.
///
/// # Errors
/// When either side fails; the connection is of no use then.
pub async fn half(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK / 4];
    loop {
        let count = from.read(&mut buffer).await?;
        moved();
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_complete_although_the_process_has_ended() {
        let ended = CancellationToken::new();
        let (mut process, from) = tokio::io::duplex(1 << 20);
        process.write_all(&vec![7; 300_000]).await.unwrap();
        ended.cancel();
        let (to, mut client) = tokio::io::duplex(64);
        let copied = tokio::spawn(output(from, Box::new(to), Orphaned::Discard, ended));
        let mut got = Vec::new();
        let begun = Instant::now();
        // The process's end stays open, as by a grandchild: the copy gives up waiting.
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 300_000);
        assert!(begun.elapsed() < DRAIN * 2);
        copied.await.unwrap();
        drop(process);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_blocks_nobody() {
        for (orphaned, all) in [(Orphaned::Discard, true), (Orphaned::Leave, false)] {
            let (mut process, from) = tokio::io::duplex(16);
            let (to, client) = tokio::io::duplex(16);
            drop(client);
            let copied = tokio::spawn(output(from, Box::new(to), orphaned, CancellationToken::new()));
            assert_eq!(process.write_all(&[0; 1000]).await.is_ok(), all, "{orphaned:?}");
            drop(process);
            copied.await.unwrap();
        }
    }
}
