//! Reads a log file while it grows, over rotations: the writer may rename it away and go on in a new one.
//!
//! Invariant: a file is left only when another one stands at its path and it gave nothing more twice, so no record
//! is lost when a write was under way during the rotation.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cri_log::{Lines, Record, parse};
use super::error::CliError;

const CHUNK: usize = 64 << 10;

/// A log that is being read.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    lines: Lines,
    /// The file was replaced, and gave nothing more since.
    replaced: bool,
}

impl Follower {
    /// Reads from the beginning of the file that is, or will be, at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, lines: Lines::default(), replaced: false }
    }

    /// Whether there is or was a file.
    pub(super) fn found(&self) -> bool {
        self.file.is_some()
    }

    /// Gives `each` all records that have come since the last time. Lines that are no records are passed over.
    pub(super) fn read(
        &mut self,
        mut each: impl FnMut(Record) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let path = self.path.clone();
        let failed = |source| CliError::File { operation: "read the log", path: path.clone(), source };
        loop {
            if self.file.is_none() {
                self.file = open(&self.path).map_err(failed)?;
            }
            let Some(file) = &mut self.file else { return Ok(()) };
            let mut buffer = vec![0; CHUNK];
            let mut any = false;
            loop {
                let n = file.read(&mut buffer).map_err(failed)?;
                if n == 0 {
                    break;
                }
                any = true;
                self.lines.push(&buffer[..n], |line| parse(line).map_or(Ok(()), &mut each))?;
            }
            if !replaced(file, &self.path).map_err(failed)? {
                self.replaced = false;
                return Ok(());
            }
            if any || !self.replaced {
                // Once more, for what was being written meanwhile.
                self.replaced = true;
                return Ok(());
            }
            self.replaced = false;
            self.file = None;
            self.lines.clear();
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether another file stands at `path`. While none does, a new one may come.
fn replaced(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) != (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn texts(follower: &mut Follower) -> Vec<String> {
        let mut texts = Vec::new();
        let each = |record: Record| {
            texts.push(String::from_utf8(record.text).unwrap());
            Ok(())
        };
        follower.read(each).unwrap();
        texts
    }

    fn record(text: &str) -> String {
        format!("2026-11-21T12:00:00Z stdout F {text}\n")
    }

    #[test]
    fn records_are_read_as_they_come_and_half_a_line_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut follower = Follower::new(&path);
        assert!(texts(&mut follower).is_empty() && !follower.found());
        let mut log = File::create(&path).unwrap();
        log.write_all(record("one").as_bytes()).unwrap();
        log.write_all(b"2026-11-21T12:00:00Z std").unwrap();
        assert_eq!(texts(&mut follower), ["one"]);
        log.write_all(b"out F two\nno record\n").unwrap();
        assert_eq!(texts(&mut follower), ["two"]);
    }

    #[test]
    fn nothing_is_lost_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut old = File::create(&path).unwrap();
        old.write_all(record("one").as_bytes()).unwrap();
        let mut follower = Follower::new(&path);
        assert_eq!(texts(&mut follower), ["one"]);
        std::fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        old.write_all(record("two").as_bytes()).unwrap();
        assert_eq!(texts(&mut follower), ["two"]);
        std::fs::write(&path, record("four")).unwrap();
        assert!(texts(&mut follower).is_empty());
        old.write_all(record("three").as_bytes()).unwrap();
        assert_eq!(texts(&mut follower), ["three"]);
        assert_eq!(texts(&mut follower), ["four"]);
    }
}
