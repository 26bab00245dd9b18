//! How a command ended, told to the client on its error stream in the form of the negotiated protocol.
//!
//! Invariant: the status leaves after all output, and the connection closes after the status.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::super::link::{Link, LinkError, PipeReader, PipeWriter};
use super::negotiate::CommandVersion;

/// A failure's words are cut here: with escapes, twice in the document, they still fit into the pipe of the error
/// stream, which is not read before the end.
const LONGEST: usize = 4096;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    ExitCode(i32),
    /// There was no command, or it was lost; in words for the user.
    Failure(String),
}

impl Outcome {
    /// What the error stream carries. Before version 4 success is said by saying nothing.
    pub fn encode(&self, version: CommandVersion) -> Vec<u8> {
        if version >= CommandVersion::V4 {
            self.document().to_string().into_bytes()
        } else {
            self.text().into_bytes()
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(0) => String::new(),
            Self::ExitCode(code) => format!("command terminated with exit code {code}"),
            Self::Failure(words) => cut(words).to_owned(),
        }
    }

    /// A `metav1.Status`.
    fn document(&self) -> Value {
        match self {
            Self::Success | Self::ExitCode(0) => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": self.text(),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(_) => json!({
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "message": self.text(),
                "details": {"causes": [{"message": self.text()}]},
                "code": 500,
            }),
        }
    }
}

fn cut(words: &str) -> &str {
    let mut end = words.len().min(LONGEST);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    &words[..end]
}

/// The error stream and the session itself: dropped without [`StatusSink::finish`], the connection is cut.
#[derive(Debug)]
pub struct StatusSink {
    pub(super) version: CommandVersion,
    pub(super) link: Link,
    pub(super) error: PipeWriter,
    /// Directions that the protocol has and nobody uses; open until the end, so that no client takes them for the end.
    pub(super) unused: Unused,
    /// The task that follows the resize stream.
    pub(super) resizing: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
pub(super) struct Unused {
    pub readers: Vec<PipeReader>,
    pub writers: Vec<PipeWriter>,
}

impl StatusSink {
    /// Fires when the client is gone (or the session over).
    pub fn gone(&self) -> CancellationToken {
        self.link.gone()
    }

    /// Tells the client how the command ended, after all that was written to stdout and stderr, and closes the
    /// connection. Both should be shut down or dropped before; whatever is written to them from now on is lost.
    pub async fn finish(self, outcome: Outcome) -> Result<(), LinkError> {
        let Self { version, link, mut error, unused, resizing } = self;
        drop(resizing);
        // A failure to write means the connection ended; finish says why.
        let _ = error.write_all(&outcome.encode(version)).await;
        error.end();
        let result = link.finish().await;
        drop(unused);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(outcome: &Outcome, version: CommandVersion) -> String {
        String::from_utf8(outcome.encode(version)).unwrap()
    }

    #[test]
    fn old_versions_hear_words_and_nothing_on_success() {
        for version in [CommandVersion::V1, CommandVersion::V2, CommandVersion::V3] {
            assert_eq!(encoded(&Outcome::Success, version), "");
            assert_eq!(encoded(&Outcome::ExitCode(0), version), "");
            assert_eq!(encoded(&Outcome::ExitCode(3), version), "command terminated with exit code 3");
            assert_eq!(encoded(&Outcome::Failure("no such container".into()), version), "no such container");
        }
    }

    #[test]
    fn long_words_are_cut_to_what_fits() {
        let words = "\u{1}€".repeat(100_000);
        let encoded = encoded(&Outcome::Failure(words), CommandVersion::V5);
        assert!((LONGEST..64 * 1024).contains(&encoded.len()), "{}", encoded.len());
    }

    #[test]
    fn new_versions_hear_a_status_document() {
        for version in [CommandVersion::V4, CommandVersion::V5] {
            let document: Value = serde_json::from_str(&encoded(&Outcome::ExitCode(137), version)).unwrap();
            assert_eq!(document["status"], "Failure");
            assert_eq!(document["reason"], "NonZeroExitCode");
            assert_eq!(document["details"]["causes"][0], json!({"reason": "ExitCode", "message": "137"}));
            let document: Value = serde_json::from_str(&encoded(&Outcome::Success, version)).unwrap();
            assert_eq!(document["status"], "Success");
            let failure = Outcome::Failure("gone".into());
            let document: Value = serde_json::from_str(&encoded(&failure, version)).unwrap();
            assert_eq!((&document["status"], &document["message"]), (&json!("Failure"), &json!("gone")));
        }
    }
}
