//! Killing everything in a cgroup, and removing it.
//!
//! On v2 the kernel kills a whole subtree at a word. On v1 the listed processes are killed, and only when one forked
//! away in between the rest is frozen before it is listed again: freezing costs milliseconds.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CgroupPaths, children, freeze, processes};

/// How often what forked away is looked for at one go. Whoever removes the cgroup kills again as long as it takes.
const ROUNDS: u32 = 16;

/// Sends `signal` to every process of the container.
pub fn signal_all(paths: &CgroupPaths, signal: i32) -> io::Result<()> {
    match paths.primary() {
        Some(folder) => signal_folder(folder, paths.is_v2(), signal),
        None => Ok(()),
    }
}

/// Sends `signal` to every process of one folder and those below it.
pub fn signal_folder(folder: &Path, v2: bool, signal: i32) -> io::Result<()> {
    if signal == libc::SIGKILL {
        return kill_folder(folder, v2);
    }
    let signal = Signal::try_from(signal)?;
    for pid in processes(folder) {
        deliver(pid, signal);
    }
    Ok(())
}

fn deliver(pid: i32, signal: Signal) {
    if pid > 1 && pid.unsigned_abs() != std::process::id() {
        // A process that ended in the meantime has got what was asked for.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills what the list holds. True when that was all: a process with its death pending forks no more, so when the
/// second list shows nobody new, nobody got away.
fn kill_listed(folder: &Path) -> bool {
    let first = processes(folder);
    for pid in &first {
        deliver(*pid, Signal::SIGKILL);
    }
    first.is_empty() || processes(folder).iter().all(|pid| first.contains(pid))
}

/// A frozen process receives its death only when it thaws.
fn thaw_what_was_paused(folder: &Path, v2: bool) {
    // Only what was asked of this very folder: one that is frozen by its parent cannot be thawed by itself.
    let frozen =
        fs::read_to_string(folder.join("freezer.self_freezing")).is_ok_and(|word| word.trim() == "1");
    if frozen || v2 {
        drop(freeze::ask(folder, v2, false));
    }
}

fn kill_folder(folder: &Path, v2: bool) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if v2 && fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    if kill_listed(folder) {
        thaw_what_was_paused(folder, v2);
        return Ok(());
    }
    let freezer = folder.join("freezer.state").exists() || v2;
    if freezer {
        // Not waited for: what is being frozen forks no more once it has been reached, and each round takes what
        // came before.
        drop(freeze::ask(folder, v2, true));
    }
    for _ in 0..ROUNDS {
        if kill_listed(folder) {
            break;
        }
    }
    if freezer {
        // Also when the container had been paused: a frozen process does not die.
        drop(freeze::ask(folder, v2, false));
    }
    Ok(())
}

/// Removes the container's cgroups. `Ok(false)` means that some are still occupied.
pub fn remove(paths: &CgroupPaths) -> io::Result<bool> {
    let mut gone = true;
    for folder in paths.folders() {
        gone &= remove_folder(folder)?;
    }
    Ok(gone)
}

pub fn remove_folder(folder: &Path) -> io::Result<bool> {
    let mut gone = true;
    for child in children(folder) {
        gone &= remove_folder(&child)?;
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(gone),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(gone),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(e) => Err(e),
    }
}
