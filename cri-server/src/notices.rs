//! What the daemon found lost or damaged, and what it did about it: for `cofferdam info`, beside the log.
//!
//! Invariants: bounded, the oldest notice goes first; passed over is only what a damaged file system is to blame for, any other
//! failure is the caller's.

use std::collections::VecDeque;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
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

    /// What a step came to; none, and a notice of `what` is lost, where it failed because the file system is damaged.
    ///
    /// # Errors
    /// Any other failure.
    pub fn pass_over<T, E: Error + 'static>(
        &self,
        what: impl FnOnce() -> String,
        done: Result<T, E>,
    ) -> Result<Option<T>, E> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) if crate::report::damaged(&error) => {
                let error = crate::report::chain(&error);
                self.add(format!("the file system is damaged, check it: {}: {error}", what()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The names in a folder of ours. One of which nothing can be read is set aside, and an empty one takes its place.
    ///
    /// # Errors
    /// When it cannot be listed although the file system is sound.
    pub fn names_in(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        let listed = fs::read_dir(folder).and_then(|entries| {
            for entry in entries {
                names.push(entry?.file_name());
            }
            Ok(())
        });
        let what = || format!("what {} holds is lost, all or in part", folder.display());
        if self.pass_over(what, listed)?.is_none() && names.is_empty() {
            let aside = aside(folder);
            match fs::rename(folder, &aside).and_then(|()| fs::create_dir(folder)) {
                Ok(()) => self.add(format!("{} is kept as {}", folder.display(), aside.display())),
                Err(error) => self.add(format!("nothing can be kept in {} now: {error}", folder.display())),
            }
        }
        Ok(names)
    }

    /// All that are kept, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Notice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// A free name beside the folder's.
fn aside(folder: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    };
    (0..).map(named).find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| named(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_damage_is_passed_over() {
        let notices = Notices::default();
        let error = |code| Err::<(), _>(io::Error::from_raw_os_error(code));
        for code in [libc::EIO, libc::EBADMSG, libc::EUCLEAN] {
            assert_eq!(notices.pass_over(|| "a file".to_owned(), error(code)).unwrap(), None);
        }
        assert!(notices.pass_over(String::new, error(libc::EMFILE)).is_err());
        let all = notices.all();
        assert!(all.len() == 3 && all[1].text.contains("a file: Bad message"), "{all:?}");
        assert!(notices.names_in(Path::new("/nowhere")).is_err());
    }

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
