//! SELinux: the levels that tell pods apart, and whether the loaded policy knows a label.
//!
//! Invariant: no two sandboxes that this daemon knows of share a level that it chose. A level is two categories of the
//! 1024 that the usual policies have, as container runtimes give them since MCS (multi-category security) exists.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

/// What a container runs under that names no label, in a policy for containers.
const USUAL: &str = "system_u:system_r:container_t:s0:c0,c1";
/// Answers whether what is written to it is a context of the policy. selinuxfs
const CONTEXT: &str = "/sys/fs/selinux/context";
const CATEGORIES: u64 = 1024;
const PAIRS: u64 = CATEGORIES * (CATEGORIES - 1) / 2;

/// Why a label cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum SelinuxError {
    #[error("the SELinux policy of this node does not know the label {0:?}")]
    Unknown(String),
    #[error("ask the SELinux policy for {label:?}")]
    Ask { label: String, source: io::Error },
    #[error("all of the node's SELinux levels are taken")]
    Exhausted,
}

/// # Errors
/// When the policy does not know the label, or cannot be asked.
pub fn check(label: &str) -> Result<(), SelinuxError> {
    let file = std::fs::OpenOptions::new().write(true).open(CONTEXT);
    match file.and_then(|mut file| file.write_all(label.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            Err(SelinuxError::Unknown(label.to_owned()))
        }
        Err(source) => Err(SelinuxError::Ask { label: label.to_owned(), source }),
    }
}

/// Whether the policy is one for containers, so that they can be told apart unasked.
///
/// # Errors
/// When it cannot be asked.
pub fn separates_containers() -> Result<bool, SelinuxError> {
    match check(USUAL) {
        Ok(()) => Ok(true),
        Err(SelinuxError::Unknown(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

type Taken = Arc<Mutex<BTreeMap<String, usize>>>;

/// The levels that are taken.
#[derive(Debug, Default)]
pub struct Levels(Taken);

/// A level that is taken as long as this lives.
#[derive(Debug)]
pub struct Held {
    level: String,
    taken: Taken,
}

impl Levels {
    /// Takes a level that the request or a record names; several may hold the same.
    #[must_use]
    pub fn hold(&self, level: &str) -> Held {
        *lock(&self.0).entry(level.to_owned()).or_default() += 1;
        Held { level: level.to_owned(), taken: Arc::clone(&self.0) }
    }

    /// Takes a level that nobody holds.
    ///
    /// # Errors
    /// When all are held.
    pub fn choose(&self) -> Result<Held, SelinuxError> {
        // Not guessable, and not the same after a restart.
        let start = RandomState::new().hash_one(0) % PAIRS;
        let mut taken = lock(&self.0);
        let free =
            (0..PAIRS).map(|step| pair((start + step) % PAIRS)).find(|level| !taken.contains_key(level));
        let level = free.ok_or(SelinuxError::Exhausted)?;
        taken.insert(level.clone(), 1);
        Ok(Held { level, taken: Arc::clone(&self.0) })
    }
}

impl Held {
    #[must_use]
    pub fn level(&self) -> &str {
        &self.level
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(holders) = taken.get_mut(&self.level) {
            *holders -= 1;
            if *holders == 0 {
                taken.remove(&self.level);
            }
        }
    }
}

fn lock(taken: &Taken) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
    // The map is whole after every step, so a panic elsewhere left nothing half done.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The level with this number: each pair of different categories has one.
fn pair(mut number: u64) -> String {
    let mut high = 1;
    while number >= high {
        number -= high;
        high += 1;
    }
    format!("s0:c{number},c{high}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_is_another_pair() {
        assert_eq!(
            [0, 1, 2, 3].map(pair),
            ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2", "s0:c0,c3"].map(str::to_owned)
        );
        assert_eq!(pair(PAIRS - 1), "s0:c1022,c1023");
        let all: HashSet<String> = (0..5000).map(pair).collect();
        assert_eq!(all.len(), 5000);
    }

    #[test]
    fn a_level_is_chosen_once_and_given_back() {
        let levels = Levels::default();
        let held: Vec<Held> = (0..300).map(|_| levels.choose().unwrap()).collect();
        let names: HashSet<&str> = held.iter().map(Held::level).collect();
        assert_eq!(names.len(), 300);
        drop(held);
        assert!(lock(&levels.0).is_empty());
    }

    #[test]
    fn a_named_level_is_taken_until_its_last_holder_ends() {
        let levels = Levels::default();
        let all: Vec<Held> = (1..PAIRS).map(|number| levels.hold(&pair(number))).collect();
        let again = levels.hold(&pair(1));
        assert_eq!(levels.choose().unwrap().level(), "s0:c0,c1");
        let last = levels.choose().unwrap();
        assert!(matches!(levels.choose(), Err(SelinuxError::Exhausted)));
        drop(all);
        assert!(lock(&levels.0).contains_key(again.level()) && lock(&levels.0).contains_key(last.level()));
        drop((again, last));
        assert!(lock(&levels.0).is_empty());
    }
}
