//! Freezing and thawing a cgroup.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::CgroupPaths;

/// Freezing waits for every task to reach a stop; one in uninterruptible sleep can take its time.
const PATIENCE: Duration = Duration::from_secs(2);

pub fn set_frozen(paths: &CgroupPaths, frozen: bool) -> io::Result<()> {
    let folder = if paths.is_v2() { paths.unified.as_deref() } else { paths.controller("freezer") };
    let folder = folder.ok_or_else(|| io::Error::other("the container has no cgroup that can be frozen"))?;
    set_folder(folder, paths.is_v2(), frozen)
}

pub(super) fn set_folder(folder: &Path, v2: bool, frozen: bool) -> io::Result<()> {
    let (file, word) = match (v2, frozen) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    };
    fs::write(folder.join(file), word)?;
    let deadline = Instant::now() + PATIENCE;
    while frozen != is_frozen(folder, v2)? {
        if Instant::now() > deadline {
            if frozen {
                // A half-frozen container must not stay so: the caller is told that nothing happened.
                drop(set_folder(folder, v2, false));
            }
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn is_frozen(folder: &Path, v2: bool) -> io::Result<bool> {
    if v2 {
        let events = fs::read_to_string(folder.join("cgroup.events"))?;
        return Ok(super::keyed(&events, "frozen") == Some(1));
    }
    Ok(fs::read_to_string(folder.join("freezer.state"))?.trim() == "FROZEN")
}
