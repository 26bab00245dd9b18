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
    let mut parser = Parser::default();
    let mut buffer = [0; LONGEST];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        match parser.push(&buffer[..count]) {
            Ok(Some(size)) => drop(sizes.send_replace(Some(size))),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// What was sent is no size, and cannot become one.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("not the size of a terminal")]
pub struct NotASize;

/// Finds sizes in the bytes of a resize stream, however they are cut.
#[derive(Debug, Default)]
pub struct Parser {
    /// The beginning of an object, less than [`LONGEST`] bytes.
    rest: Vec<u8>,
}

impl Parser {
    /// The last complete size so far, if `bytes` complete one.
    ///
    /// # Errors
    /// When what arrived is not, and cannot become, a size.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<TerminalSize>, NotASize> {
        self.rest.extend_from_slice(bytes);
        let mut last = None;
        loop {
            // Blanks between objects mean nothing; kept, they would be a way to fill the memory.
            let blank =
                self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
            self.rest.drain(..blank);
            // Said at once: a number, say, is only complete when something else follows it.
            if self.rest.first().is_some_and(|byte| *byte != b'{') {
                return Err(NotASize);
            }
            let mut objects = serde_json::Deserializer::from_slice(&self.rest).into_iter::<TerminalSize>();
            let Some(next) = objects.next() else { return Ok(last) };
            match next {
                Ok(size) if objects.byte_offset() <= LONGEST => {
                    last = Some(size);
                    let used = objects.byte_offset();
                    self.rest.drain(..used);
                }
                Err(error) if error.is_eof() && self.rest.len() < LONGEST => return Ok(last),
                Ok(_) | Err(_) => return Err(NotASize),
            }
        }
    }

    /// How many bytes wait for the rest of their object.
    pub fn waiting(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: TerminalSize = TerminalSize { width: 120, height: 40 };

    fn parse(bytes: &[u8]) -> Result<Option<TerminalSize>, NotASize> {
        Parser::default().push(bytes)
    }

    #[test]
    fn sizes_are_found_in_any_cut() {
        let text = br#"{"Width":80,"Height":24}{"Width":120,"Height":40}"#;
        assert_eq!(parse(text).unwrap(), Some(WIDE));
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let first = parser.push(&text[..cut]).unwrap();
            assert_eq!(first.is_some(), cut >= 24, "{cut}");
            assert_eq!(parser.push(&text[cut..]).unwrap(), Some(WIDE), "{cut}");
            assert_eq!(parser.waiting(), 0);
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for no_object in ["hello", "0100.", "1", "[80,24]", "}", " \"a\""] {
            assert!(parse(no_object.as_bytes()).is_err(), "{no_object}");
        }
        assert!(parse(br#"{"Width":70000,"Height":1}"#).is_err());
        assert_eq!(parse(b"{").unwrap(), None);
        let endless = format!("{{\"Width\":1,\"x\":\"{}", "y".repeat(2 * LONGEST));
        assert!(parse(endless.as_bytes()).is_err());
    }

    #[test]
    fn blanks_are_not_kept() {
        let mut parser = Parser::default();
        for _ in 0..1000 {
            assert_eq!(parser.push(&[b' '; 1000]).unwrap(), None);
            assert_eq!(parser.waiting(), 0);
        }
        assert_eq!(parser.push(br#"{"Width":120,"Height":40}"#).unwrap(), Some(WIDE));
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
