//! The container's log in the CRI format: `<time> <stream> <tag> <text>`, one record a line.
//!
//! A record ends a line (`F`) or is a piece of one that was too long or never ended (`P`). Invariant: records are
//! appended whole, also when the disk fills up in the middle of one, and after [`LogFile::reopen`] returned every later
//! record is in the new file.

use cofferdam_failpoints::failpoint;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamName {
    Stdout,
    Stderr,
}

impl StreamName {
    fn word(self) -> &'static str {
        match self {
            StreamName::Stdout => "stdout",
            StreamName::Stderr => "stderr",
        }
    }
}

pub struct LogFile {
    path: PathBuf,
    max_line: usize,
    file: Mutex<Whole>,
}

/// A file that ends with a whole record, or knows where the last one ended.
struct Whole {
    file: File,
    torn_at: Option<u64>,
}

impl Whole {
    /// Appends the records, or as many as there is room for.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.mend()?;
        let mut written = 0;
        while written < records.len() {
            match self.file.write(&records[written..]) {
                Ok(0) => return Err(self.torn(&records[..written], io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.torn(&records[..written], e)),
            }
        }
        Ok(())
    }

    /// Notes that only `written` got into the file, and takes the beginning of a record at its end away.
    fn torn(&mut self, written: &[u8], error: io::Error) -> io::Error {
        let whole = written.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let excess = (written.len() - whole) as u64;
        // What is no regular file (a FIFO, a terminal) has no end to go back to.
        let data = self.file.metadata().ok().filter(|data| data.is_file() && excess > 0);
        self.torn_at = data.map(|data| data.len().saturating_sub(excess));
        // Tried again before the next record, should it fail.
        drop(self.mend());
        error
    }

    fn mend(&mut self) -> io::Result<()> {
        if let Some(end) = self.torn_at {
            self.file.set_len(end)?;
            self.torn_at = None;
        }
        Ok(())
    }
}

impl LogFile {
    pub fn open(path: &Path, max_line: usize) -> io::Result<Self> {
        Ok(LogFile { path: path.to_owned(), max_line, file: Mutex::new(open(path)?) })
    }

    pub fn reopen(&self) -> io::Result<()> {
        let fresh = open(&self.path)?;
        failpoint!("shim.log.opened");
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The file that is let go ends with a whole record too, if that can be had.
        drop(file.mend());
        *file = fresh;
        failpoint!("shim.log.reopened", infallible);
        Ok(())
    }

    pub fn records(&self, stream: StreamName) -> Records {
        Records { stream, max_line: self.max_line, pending: Vec::new() }
    }

    pub fn append(&self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        failpoint!("shim.log.read", infallible);
        self.file.lock().unwrap_or_else(PoisonError::into_inner).append(records)?;
        failpoint!("shim.log.appended", infallible);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Whole> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    Ok(Whole { file, torn_at: None })
}

/// Cuts one stream into records.
pub struct Records {
    stream: StreamName,
    max_line: usize,
    pending: Vec<u8>,
}

impl Records {
    /// The records that `data` completes.
    pub fn push(&mut self, mut data: &[u8], now: Duration) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + 64);
        let time = timestamp(now);
        while !data.is_empty() {
            let room = self.max_line - self.pending.len();
            match data.iter().position(|b| *b == b'\n') {
                Some(end) if end <= room => {
                    self.record(&mut out, &time, b'F', &data[..end]);
                    data = &data[end + 1..];
                }
                _ if data.len() > room => {
                    // The line goes on beyond the limit, so this piece is not its end.
                    self.record(&mut out, &time, b'P', &data[..room]);
                    data = &data[room..];
                }
                _ => {
                    self.pending.extend_from_slice(data);
                    data = &[];
                }
            }
        }
        out
    }

    /// What is left of a line that will never end.
    pub fn finish(&mut self, now: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pending.is_empty() {
            self.record(&mut out, &timestamp(now), b'P', &[]);
        }
        out
    }

    fn record(&mut self, out: &mut Vec<u8>, time: &str, tag: u8, rest: &[u8]) {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.word().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(&self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // Gives the memory back: most containers write short whole lines.
        self.pending = Vec::new();
    }
}

pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn timestamp_now() -> String {
    timestamp(now())
}

/// RFC 3339 with nanoseconds, in UTC. The calendar arithmetic counts in eras of 400 years that begin in March, so that
/// the leap day is the last of its year.
pub fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since_epoch.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: &str = "1970-01-01T00:00:00.000000000Z";

    fn cut(max_line: usize, pieces: &[&str]) -> String {
        let mut records = Records { stream: StreamName::Stdout, max_line, pending: Vec::new() };
        let mut out: Vec<u8> =
            pieces.iter().flat_map(|p| records.push(p.as_bytes(), Duration::ZERO)).collect();
        out.extend(records.finish(Duration::ZERO));
        String::from_utf8(out).unwrap().replace(&format!("{EPOCH} stdout "), "")
    }

    #[test]
    fn lines_become_full_records_however_they_arrive() {
        assert_eq!(cut(100, &["one\ntwo\n"]), "F one\nF two\n");
        assert_eq!(cut(100, &["on", "e\n", "\n"]), "F one\nF \n");
    }

    #[test]
    fn long_and_unfinished_lines_are_partial() {
        assert_eq!(cut(4, &["abcdefghij\n"]), "P abcd\nP efgh\nF ij\n");
        assert_eq!(cut(4, &["abcd\n"]), "F abcd\n");
        assert_eq!(cut(4, &["abcd", "\n"]), "F abcd\n");
        assert_eq!(cut(4, &["abc", "de"]), "P abcd\nP e\n");
        assert_eq!(cut(100, &["no end"]), "P no end\n");
    }

    #[test]
    fn times_are_rfc3339_with_nanoseconds() {
        assert_eq!(timestamp(Duration::ZERO), EPOCH);
        assert_eq!(timestamp(Duration::new(1_709_210_096, 7)), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(timestamp(Duration::new(4_102_444_799, 0)), "2099-12-31T23:59:59.000000000Z");
    }
}
