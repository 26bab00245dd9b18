//! Remotecommand: sizes of the terminal, and the status that ends a session.

use super::super::remote::Outcome;
use super::super::remote::negotiate::CommandVersion::{V1, V2, V3, V4, V5};
use super::super::remote::resize::{NotASize, Parser, TerminalSize};
use super::bench::Choices;

/// What waits in a parser is an object that is not complete.
const LONGEST: usize = 1024;

pub fn check(bytes: &[u8]) {
    let (mut choices, rest) = Choices::of(bytes);
    let whole = sizes(&[rest]);
    let again = sizes(&choices.cut(rest));
    assert_eq!(whole.is_ok(), again.is_ok());
    if whole.is_ok() {
        assert_eq!(whole, again);
    }
    status(&String::from_utf8_lossy(rest), choices.below(256) as i32);
}

/// The last size of the stream.
fn sizes(pieces: &[&[u8]]) -> Result<Option<TerminalSize>, NotASize> {
    let mut parser = Parser::default();
    let mut last = None;
    for piece in pieces {
        last = parser.push(piece)?.or(last);
        assert!(parser.waiting() < LONGEST, "{} bytes wait", parser.waiting());
    }
    Ok(last)
}

fn status(words: &str, code: i32) {
    for outcome in [Outcome::Success, Outcome::ExitCode(code), Outcome::Failure(words.to_owned())] {
        for version in [V1, V2, V3] {
            assert!(outcome.encode(version).len() <= 4096);
        }
        for version in [V4, V5] {
            let document = outcome.encode(version);
            assert!(document.len() < 64 << 10, "{} bytes", document.len());
            let document: serde_json::Value = serde_json::from_slice(&document).expect("it is JSON");
            let well = matches!(outcome, Outcome::Success | Outcome::ExitCode(0));
            assert_eq!(document["status"], if well { "Success" } else { "Failure" });
            if let Outcome::Failure(words) = &outcome {
                let message = document["message"].as_str().expect("a message");
                assert!(words.starts_with(message));
            }
        }
    }
}
