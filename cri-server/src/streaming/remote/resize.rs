//! Sizes of the client's terminal, from the JSON objects of the resize stream.
//!
//! Invariant: only the latest size waits, so a session that does not look holds nothing up.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// An object is about 25 bytes; what is longer than this and not complete is no size.
const LONGEST: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

/// The sizes as they change. A size that was overtaken by a later one is not seen.
#[derive(Debug)]
pub struct Resizes {
    sizes: watch::Receiver<Option<TerminalSize>>,
}

impl Resizes {
    /// The next size; `None` when the client is gone.
    pub async fn recv(&mut self) -> Option<TerminalSize> {
        loop {
            self.sizes.changed().await.ok()?;
            let size = *self.sizes.borrow_and_update();
            if size.is_some() {
                return size;
            }
        }
    }
}

pub(super) fn channel() -> (watch::Sender<Option<TerminalSize>>, Resizes) {
    let (sender, sizes) = watch::channel(None);
    (sender, Resizes { sizes })
}

/// Reads sizes until the stream ends. What is not a size ends the stream too: there is no way back into step.
pub(super) async fn follow(mut stream: impl AsyncRead + Unpin, sizes: &watch::Sender<Option<TerminalSize>>) {
    let mut buffer = Vec::with_capacity(64);
    while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
        match parse(&buffer) {
            Ok((size, used)) => {
                buffer.drain(..used);
                if let Some(size) = size {
                    sizes.send_replace(Some(size));
                }
            }
            Err(_) => return,
        }
    }
}

/// The last complete size in `bytes`, and how many bytes are done with.
fn parse(bytes: &[u8]) -> Result<(Option<TerminalSize>, usize), serde_json::Error> {
    let mut objects = serde_json::Deserializer::from_slice(bytes).into_iter::<TerminalSize>();
    let (mut last, mut used) = (None, 0);
    while let Some(next) = objects.next() {
        match next {
            Ok(size) => (last, used) = (Some(size), objects.byte_offset()),
            Err(error) if error.is_eof() && bytes.len() - used < LONGEST => break,
            Err(error) => return Err(error),
        }
    }
    Ok((last, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: TerminalSize = TerminalSize { width: 120, height: 40 };

    #[test]
    fn sizes_are_found_in_any_cut() {
        let text = br#"{"Width":80,"Height":24}{"Width":120,"Height":40}"#;
        assert_eq!(parse(text).unwrap(), (Some(WIDE), text.len()));
        let (size, used) = parse(&text[..30]).unwrap();
        assert_eq!((size, used), (Some(TerminalSize { width: 80, height: 24 }), 24));
        assert_eq!(parse(b"{\"Wid").unwrap(), (None, 0));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        assert!(parse(b"hello").is_err());
        assert!(parse(br#"{"Width":70000,"Height":1}"#).is_err());
        assert!(parse(b"{").unwrap().0.is_none());
        let endless = format!("{{\"Width\":1,\"x\":\"{}", "y".repeat(2 * LONGEST));
        assert!(parse(endless.as_bytes()).is_err());
    }

    #[tokio::test]
    async fn the_latest_size_wins_and_the_end_is_seen() {
        let (sender, mut sizes) = channel();
        follow(&br#"{"Width":80,"Height":24}  {"Width":120,"Height":40}"#[..], &sender).await;
        assert_eq!(sizes.recv().await, Some(WIDE));
        drop(sender);
        assert_eq!(sizes.recv().await, None);
    }
}
