//! The events that some reader has not seen yet: one queue that all readers share, each at a place of its own.
//!
//! Invariant: the queue is bounded, in bytes while it is read and more tightly while nobody reads. What a reader missed
//! because it fell behind that bound is told to it, never passed over in silence. Pure: no clock, no lock, no waiting.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For readers that are behind.
    pub bytes: usize,
    /// For the next reader, while there is none.
    pub unread_bytes: usize,
    pub unread_age: Duration,
}

struct Entry<T> {
    value: Arc<T>,
    bytes: usize,
    at: Instant,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    Value(Arc<T>),
    /// Nothing yet.
    Nothing,
    /// It fell behind: what it had not read is gone.
    Lost,
}

/// The queue.
pub struct Log<T> {
    bounds: Bounds,
    entries: VecDeque<Entry<T>>,
    bytes: usize,
    /// The number of the first entry.
    first: u64,
    /// What each reader reads next.
    readers: BTreeMap<u64, u64>,
    last_reader: u64,
}

impl<T> Log<T> {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            bytes: 0,
            first: 0,
            readers: BTreeMap::new(),
            last_reader: 0,
        }
    }

    fn end(&self) -> u64 {
        self.first + u64::try_from(self.entries.len()).unwrap_or(u64::MAX)
    }

    /// Adds an entry of so many bytes.
    pub fn push(&mut self, value: T, bytes: usize, now: Instant) {
        self.entries.push_back(Entry { value: Arc::new(value), bytes, at: now });
        self.bytes += bytes;
        self.trim(now);
    }

    /// A new reader. The first after a time without any gets what was kept for it; others what comes from now on.
    pub fn join(&mut self, now: Instant) -> u64 {
        self.trim(now);
        let from = if self.readers.is_empty() { self.first } else { self.end() };
        self.last_reader += 1;
        self.readers.insert(self.last_reader, from);
        self.last_reader
    }

    /// A reader goes away.
    pub fn leave(&mut self, reader: u64, now: Instant) {
        self.readers.remove(&reader);
        // What the last one left unread is kept for the next.
        self.trim(now);
    }

    /// The next entry for a reader.
    pub fn next(&mut self, reader: u64, now: Instant) -> Next<T> {
        let Some(place) = self.readers.get_mut(&reader) else { return Next::Lost };
        let at = place.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some(entry) = at.and_then(|at| self.entries.get(at)) else { return Next::Nothing };
        let value = Arc::clone(&entry.value);
        *place += 1;
        self.trim(now);
        Next::Value(value)
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes;
            self.first += 1;
        }
    }

    fn trim(&mut self, now: Instant) {
        if self.readers.is_empty() {
            let Bounds { unread_bytes, unread_age, .. } = self.bounds;
            let old = |entry: &Entry<T>| now.saturating_duration_since(entry.at) > unread_age;
            while self.bytes > unread_bytes || self.entries.front().is_some_and(old) {
                self.drop_first();
            }
            return;
        }
        while self.bytes > self.bounds.bytes {
            self.drop_first();
        }
        // A reader whose next entry is gone is forgotten; it learns so when it asks.
        let first = self.first;
        self.readers.retain(|_, place| *place >= first);
        let Some(behind) = self.readers.values().min().copied() else { return };
        while self.first < behind {
            self.drop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 30, unread_bytes: 20, unread_age: Duration::from_secs(5) };

    fn read(log: &mut Log<u32>, reader: u64, now: Instant) -> Vec<u32> {
        let mut seen = Vec::new();
        while let Next::Value(value) = log.next(reader, now) {
            seen.push(*value);
        }
        seen
    }

    #[test]
    fn readers_see_all_that_comes_while_they_read_and_then_nothing_is_kept() {
        let (mut log, now) = (Log::new(BOUNDS), Instant::now());
        let (a, b) = (log.join(now), log.join(now));
        for value in 0..3 {
            log.push(value, 10, now);
        }
        assert_eq!(read(&mut log, a, now), [0, 1, 2]);
        log.push(3, 10, now);
        assert_eq!(log.next(b, now), Next::Lost, "four entries do not fit, and it had read none");
        assert_eq!(read(&mut log, a, now), [3], "the other one goes on");
        assert_eq!((log.bytes, log.entries.len(), log.readers()), (0, 0, 1));
    }

    #[test]
    fn the_first_reader_gets_what_was_kept_for_it() {
        let (mut log, now) = (Log::new(BOUNDS), Instant::now());
        for value in 0..4 {
            log.push(value, 10, now + Duration::from_secs(u64::from(value)));
        }
        let late = now + Duration::from_secs(3);
        let first = log.join(late);
        assert_eq!(read(&mut log, first, late), [2, 3], "the newest that fit");
        log.leave(first, late);
        log.push(4, 10, late);
        log.push(5, 10, late + Duration::from_secs(4));
        let later = late + Duration::from_secs(6);
        let second = log.join(later);
        assert_eq!(read(&mut log, second, later), [5], "older ones tell nobody anything");
    }

    #[test]
    fn a_second_reader_begins_with_what_comes_next() {
        let (mut log, now) = (Log::new(BOUNDS), Instant::now());
        log.push(0, 10, now);
        let first = log.join(now);
        let second = log.join(now);
        log.push(1, 10, now);
        assert_eq!(read(&mut log, second, now), [1]);
        assert_eq!(read(&mut log, first, now), [0, 1]);
        log.leave(second, now);
        log.leave(second, now);
        assert_eq!(log.next(second, now), Next::Lost);
    }

    #[test]
    fn an_entry_beyond_the_bound_loses_every_reader_and_is_not_kept() {
        let (mut log, now) = (Log::new(BOUNDS), Instant::now());
        let reader = log.join(now);
        log.push(0, 31, now);
        assert_eq!(log.next(reader, now), Next::Lost);
        assert_eq!((log.bytes, log.readers()), (0, 0));
    }
}
