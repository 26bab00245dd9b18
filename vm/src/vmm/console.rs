//! What a guest prints on its console: the end of it, kept here so that it can still be read when the monitor is gone.
//!
//! Invariant: the guest prints as much as it likes, and what is kept does not grow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What a guest prints before that is lost, and costs nothing.
const KEPT: usize = 16 << 10;
/// How long what a dead monitor has left in the connection may take to be read.
const LEFT: std::time::Duration = std::time::Duration::from_secs(1);
const CHUNK: usize = 4 << 10;

#[derive(Debug)]
pub struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    ended: watch::Receiver<bool>,
    _reader: JoinSet<()>,
}

impl Console {
    /// Reads all that comes from `stream`, until its end or the value's.
    pub fn follow(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let tail = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT)));
        let (told, ended) = watch::channel(false);
        let mut reader = JoinSet::new();
        let kept = Arc::clone(&tail);
        reader.spawn(async move {
            read(stream, &kept).await;
            told.send_replace(true);
        });
        Console { tail, ended, _reader: reader }
    }

    pub fn text(&self) -> String {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }

    /// The same of a monitor that has ended: with all that it left unread.
    pub async fn last_text(&self) -> String {
        let mut ended = self.ended.clone();
        drop(timeout(LEFT, ended.wait_for(|ended| *ended)).await);
        self.text()
    }
}

async fn read(mut stream: impl AsyncRead + Unpin, kept: &Mutex<VecDeque<u8>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut tail = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &buffer[count.saturating_sub(KEPT)..count];
        let surplus = (tail.len() + new.len()).saturating_sub(KEPT);
        tail.drain(..surplus);
        tail.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn the_end_is_kept_and_no_more() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let console = Console::follow(ours);
        for _ in 0..100 {
            theirs.write_all(&[b'x'; 3000]).await.unwrap();
        }
        theirs.write_all(b" panic\n").await.unwrap();
        drop(theirs);
        let text = console.last_text().await;
        assert!(
            text.starts_with("xxx") && text.ends_with(" panic\n") && text.len() == KEPT,
            "{}",
            text.len()
        );
    }
}
