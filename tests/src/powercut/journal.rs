//! What was written to a disk in which order, and the disks that a power cut may leave.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::soak::Random;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Entry {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// All before is safe.
    Flush,
}

/// The record of a disk. A moment is the number of entries before it.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Mutex<Vec<Entry>>,
}

impl Journal {
    fn add(&self, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.add(Entry::Write { offset, data: data.to_owned() });
    }

    pub(super) fn flush(&self) {
        self.add(Entry::Flush);
    }

    /// The moment that is now.
    pub fn now(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The recording up to `end`: `base` is the disk as it was before the first entry.
    pub(super) fn tape(&self, base: &Path, end: usize) -> Tape {
        let mut entries = std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner));
        entries.truncate(end);
        Tape { safe: base.to_owned(), entries, done: 0 }
    }
}

/// A recording that is played back, forward only.
#[derive(Debug)]
pub struct Tape {
    /// Has the first `done` entries.
    safe: std::path::PathBuf,
    entries: Vec<Entry>,
    done: usize,
}

impl Tape {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry, Entry::Flush)).count()
    }

    pub fn bytes(&self) -> usize {
        let length = |entry: &Entry| match entry {
            Entry::Write { data, .. } => data.len(),
            Entry::Flush => 0,
        };
        self.entries.iter().map(length).sum()
    }

    /// Moments at which the power may go: half of them anywhere, half just before or after a flush. In order.
    pub fn moments(&self, count: usize, random: &mut Random) -> Vec<usize> {
        let flushes: Vec<usize> =
            (0..self.len()).filter(|at| matches!(self.entries[*at], Entry::Flush)).collect();
        let mut moments: Vec<usize> = (0..count)
            .map(|number| match (number % 2, flushes.is_empty()) {
                (0, _) | (_, true) => random.below(self.len()),
                _ => *random.pick(&flushes) + random.below(2),
            })
            .collect();
        moments.sort_unstable();
        moments
    }

    /// Writes to `target` a disk as a cut at `moment` may leave it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn cut(&mut self, moment: usize, target: &Path, random: &mut Random) -> io::Result<()> {
        let last = self.entries[..moment].iter().rposition(|entry| matches!(entry, Entry::Flush));
        let last = last.map_or(0, |at| at + 1);
        let safe = File::options().write(true).open(&self.safe)?;
        for entry in &self.entries[self.done..last.max(self.done)] {
            if let Entry::Write { offset, data } = entry {
                safe.write_all_at(data, *offset)?;
            }
        }
        self.done = last.max(self.done);
        let copied = Command::new("cp").args(["--sparse=always"]).arg(&self.safe).arg(target).status()?;
        if !copied.success() {
            return Err(io::Error::other(format!("cp: {copied}")));
        }
        let file = File::options().write(true).open(target)?;
        for entry in &self.entries[self.done..moment.max(self.done)] {
            if let Entry::Write { offset, data } = entry {
                some_of(&file, *offset, data, random)?;
            }
        }
        Ok(())
    }
}

/// A write that nothing made safe: all of it, nothing, or some sectors.
fn some_of(file: &File, offset: u64, data: &[u8], random: &mut Random) -> io::Result<()> {
    match random.below(8) {
        0..=3 => file.write_all_at(data, offset),
        4..=6 => Ok(()),
        _ => {
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if random.once_in(2) {
                    file.write_all_at(sector, offset + (number * SECTOR) as u64)?;
                }
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays_and_what_was_not_yet_written_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let journal = Journal::default();
        std::fs::write(&base, vec![0; 4 * SECTOR]).unwrap();
        journal.write(0, &[1; SECTOR]);
        journal.flush();
        journal.write(SECTOR as u64, &[2; SECTOR]);
        journal.write(2 * SECTOR as u64, &[3; SECTOR]);
        let mut tape = journal.tape(&base, 4);
        let mut random = Random::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let target = folder.path().join("cut");
            tape.cut(3, &target, &mut random).unwrap();
            let left = std::fs::read(&target).unwrap();
            assert!(left[..SECTOR].iter().all(|byte| *byte == 1), "a safe write is lost");
            assert!(left[2 * SECTOR..].iter().all(|byte| *byte == 0), "a write came before its time");
            seen.insert(left[SECTOR]);
        }
        assert_eq!(seen, [0, 2].into(), "an unsafe write is to be lost at times, and kept at times");
    }
}
