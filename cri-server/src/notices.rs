//! What the daemon found lost or damaged, and what it did about it: for `cofferdam info`, beside the log.
//!
//! Invariant: bounded; the oldest notice goes first.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// More than a person reads.
const MOST: usize = 100;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Seconds since the epoch.
    pub at: u64,
    pub text: String,
}

/// The findings since the daemon's start.
#[derive(Debug, Default)]
pub struct Notices(Mutex<VecDeque<Notice>>);

impl Notices {
    /// Logs a finding as an error of the node and keeps it.
    pub fn add(&self, text: String) {
        tracing::error!("{text}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back(Notice { at: now.map_or(0, |since| since.as_secs()), text });
    }

    /// All that are kept, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Notice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let notices = Notices::default();
        for number in 0..=MOST {
            notices.add(number.to_string());
        }
        let all = notices.all();
        assert_eq!((all.len(), all[0].text.as_str()), (MOST, "1"));
    }
}
