//! The lines of a CRI log: `TIME STREAM TAGS TEXT`, where the tag P says that the line goes on in the next record.
//!
//! Invariant: any bytes may be in the text, and what is no record is none; nothing is guessed.

use super::time::rfc3339;

/// Where a container wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// One record, without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// As it is written.
    pub(super) time: String,
    /// Nanoseconds since the epoch.
    pub(super) at: i64,
    pub(super) stream: Stream,
    /// Whether the line goes on.
    pub(super) partial: bool,
    pub(super) text: Vec<u8>,
}

/// The record in a line.
pub(super) fn parse(line: &[u8]) -> Option<Record> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let at = rfc3339(time)?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; later versions may add some behind the first.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let text = parts.next()?.to_vec();
    Some(Record { time: time.to_owned(), at, stream, partial, text })
}

/// Cuts bytes, as they are read, into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Gives each line that `bytes` completes to `each`.
    pub(super) fn push<E>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.begun.is_empty() {
                each(line)?;
            } else {
                self.begun.extend_from_slice(line);
                let line = std::mem::take(&mut self.begun);
                each(&line)?;
            }
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    /// Forgets a line that never ended.
    pub(super) fn clear(&mut self) {
        self.begun.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_streams() {
        let record = parse(b"2026-11-21T12:00:00.5Z stdout F hello  world ").unwrap();
        assert_eq!((record.stream, record.partial), (Stream::Stdout, false));
        assert_eq!(record.text, b"hello  world ");
        assert_eq!(record.at, 1_795_262_400_500_000_000);
        let record = parse(b"2026-11-21T12:00:00.123456789+01:00 stderr P:x \xff").unwrap();
        assert_eq!((record.stream, record.partial, record.text), (Stream::Stderr, true, vec![0xff]));
        assert_eq!(parse(b"2026-11-21T12:00:00Z stdout F ").unwrap().text, b"");
    }

    #[test]
    fn what_is_no_record_is_none() {
        let lines: [&[u8]; 6] = [
            b"",
            b"hello",
            b"2026-11-21T12:00:00Z stdout F",
            b"2026-11-21T12:00:00Z stdin F x",
            b"2026-11-21T12:00:00Z stdout X x",
            b"yesterday stdout F x",
        ];
        for line in lines {
            assert_eq!(parse(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn lines_are_found_however_they_are_read() {
        let whole = b"one\n\ntwo\nthree";
        for size in 1..whole.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in whole.chunks(size) {
                let each = |line: &[u8]| {
                    found.push(line.to_vec());
                    Ok::<_, ()>(())
                };
                lines.push(chunk, each).unwrap();
            }
            assert_eq!(found, [b"one".to_vec(), b"".to_vec(), b"two".to_vec()], "chunks of {size}");
        }
    }
}
