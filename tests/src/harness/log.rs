//! Reads CRI logs: `TIME STREAM TAG TEXT`, one entry a line, the tag P for a part and F for the end of a line.

use std::path::Path;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub time: String,
    pub stream: String,
    /// Whether the line goes on in the next entry.
    pub partial: bool,
    pub text: String,
}

/// Parses a log; the first line that is no entry is the error.
pub fn parse(text: &str) -> Result<Vec<Entry>, String> {
    text.lines().map(|line| entry(line).ok_or_else(|| line.to_owned())).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.splitn(4, ' ');
    let time = fields.next()?;
    let stream = fields.next()?;
    let tag = fields.next()?;
    let text = fields.next()?;
    // RFC 3339 with nanoseconds: 2026-01-02T03:04:05.123456789Z or an offset.
    let bytes = time.as_bytes();
    let shaped = bytes.len() >= 25 && bytes[4] == b'-' && bytes[10] == b'T' && bytes[19] == b'.';
    let known = matches!(stream, "stdout" | "stderr") && matches!(tag, "P" | "F");
    (shaped && known).then(|| Entry {
        time: time.into(),
        stream: stream.into(),
        partial: tag == "P",
        text: text.into(),
    })
}

/// The entries of a log file; panics when it is not well formed.
pub fn read(path: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    parse(&String::from_utf8_lossy(&bytes))
        .unwrap_or_else(|line| panic!("{} holds a line that is no entry: {line:?}", path.display()))
}

/// What `stream` carried, parts joined.
pub fn joined(entries: &[Entry], stream: &str) -> String {
    let mut text = String::new();
    for entry in entries.iter().filter(|entry| entry.stream == stream) {
        text += &entry.text;
        if !entry.partial {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_entries_and_names_the_line_that_is_none() {
        let good =
            "2026-01-02T03:04:05.123456789Z stdout P ab\n2026-01-02T03:04:05.123456789+02:00 stdout F c d\n";
        let entries = parse(good).unwrap();
        assert_eq!(joined(&entries, "stdout"), "abc d\n");
        assert_eq!(parse("what"), Err("what".into()));
        assert!(parse("2026-01-02T03:04:05.123456789Z stdin F x").is_err());
        assert!(parse("2026-01-02T03:04:05.123456789Z stdout X x").is_err());
    }
}
