//! Errors as one line for a person: each error's text and those of its sources.

use std::error::Error;
use std::fmt::Write as _;

/// `error` and its sources, with colons between.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Some libraries repeat their source's text in their own.
        if !text.ends_with(&part) {
            let _ = write!(text, ": {part}");
        }
        source = cause.source();
    }
    text
}
