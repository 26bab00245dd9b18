//! Freezing and thawing a cgroup.
//!
//! The word is written at once; that every process has stopped takes a while, and one in uninterruptible sleep can take
//! its time. Invariant: nothing here blocks the thread; who has to know that it happened waits for it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::CgroupPaths;

/// How long freezing may take. The state is looked at ever more rarely.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

fn folder(paths: &CgroupPaths) -> io::Result<&Path> {
    let folder = if paths.is_v2() { paths.unified.as_deref() } else { paths.controller("freezer") };
    folder.ok_or_else(|| io::Error::other("the container has no cgroup that can be frozen"))
}

/// Freezes or thaws the container and waits until it is. One that cannot be frozen in time is thawed again: the caller
/// is told that nothing happened.
pub async fn reach(paths: &CgroupPaths, frozen: bool) -> io::Result<()> {
    let (folder, v2) = (folder(paths)?, paths.is_v2());
    ask(folder, v2, frozen)?;
    let (deadline, mut pause) = (Instant::now() + PATIENCE, FIRST_LOOK);
    while frozen != is_frozen(folder, v2)? {
        if Instant::now() > deadline {
            if frozen {
                ask(folder, v2, false)?;
            }
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Lets the container run on, as soon as its processes get to it.
pub fn thaw(paths: &CgroupPaths) -> io::Result<()> {
    ask(folder(paths)?, paths.is_v2(), false)
}

/// Says what shall be; from here on no process that gets to its next system call goes on, or all do.
pub(super) fn ask(folder: &Path, v2: bool, frozen: bool) -> io::Result<()> {
    let (file, word) = match (v2, frozen) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    };
    fs::write(folder.join(file), word)
}

fn is_frozen(folder: &Path, v2: bool) -> io::Result<bool> {
    if v2 {
        let events = fs::read_to_string(folder.join("cgroup.events"))?;
        return Ok(super::keyed(&events, "frozen") == Some(1));
    }
    Ok(fs::read_to_string(folder.join("freezer.state"))?.trim() == "FROZEN")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a v2 cgroup whose processes stop only when told so by the test.
    fn stubborn() -> (tempfile::TempDir, CgroupPaths) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let paths = CgroupPaths { unified: Some(folder.path().to_owned()), ..CgroupPaths::default() };
        (folder, paths)
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_does_not_freeze_is_thawed_and_nobody_is_held_up() {
        let (folder, paths) = stubborn();
        let others = tokio::spawn(async {
            for _ in 0..100 {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let error = reach(&paths, true).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(others.is_finished(), "the thread was blocked meanwhile");
        assert_eq!(fs::read_to_string(folder.path().join("cgroup.freeze")).unwrap(), "0");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_freezes_late_is_waited_for() {
        let (folder, paths) = stubborn();
        let events = folder.path().join("cgroup.events");
        tokio::spawn(async move {
            sleep(Duration::from_millis(700)).await;
            fs::write(events, "frozen 1\n").unwrap();
        });
        reach(&paths, true).await.unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("cgroup.freeze")).unwrap(), "1");
    }
}
