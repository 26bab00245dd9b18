//! The processes of a cgroup: listing, killing all of them, and counting the kernel's out-of-memory kills.
//!
//! Invariant: a kill ends after a bounded time, and what it could not end is named.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::hierarchy::CgroupPaths;

/// Rounds of killing: each takes what was forked since the last.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);
/// So many of the survivors are told of one by one.
const TOLD: usize = 3;
const MAX_DEPTH: usize = 32;

/// Why the processes of a cgroup are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    #[error("{count} of its processes do not die of SIGKILL: {}", .some.join(", "))]
    Survivors {
        count: usize,
        /// What some of them do.
        some: Vec<String>,
    },
    #[error("cannot read the processes of {folder:?}")]
    Io { folder: PathBuf, source: io::Error },
    #[error("cannot write {file:?}")]
    OomScore { file: PathBuf, source: io::Error },
}

fn is_gone(error: &io::Error) -> bool {
    // A cgroup that is removed while its file is open reads as ENODEV.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn collect(folder: &Path, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    let own = match fs::read_to_string(folder.join("cgroup.procs")) {
        Err(error) if is_gone(&error) => return Ok(()),
        // A threaded cgroup of v2 has no processes of its own: they are its ancestor's.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        own => own?,
    };
    // 0 stands for a process of another pid namespace, which cannot be named from here.
    pids.extend(own.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 0));
    if depth == 0 {
        return Ok(());
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth - 1, pids)?;
        }
    }
    Ok(())
}

/// The processes of a cgroup and of those below it, each once. A cgroup that is not there has none.
///
/// # Errors
/// When a list cannot be read.
pub fn processes(paths: &CgroupPaths) -> Result<Vec<i32>, KillError> {
    let mut pids = Vec::new();
    for folder in paths.folders() {
        collect(folder, MAX_DEPTH, &mut pids)
            .map_err(|source| KillError::Io { folder: folder.to_path_buf(), source })?;
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// A zombie is dead and only waits for its parent, unless it is the first thread of a process whose others live on.
fn is_alive_in(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let ended = matches!(fields.next(), None | Some("Z" | "X"));
    let threads: u32 = fields.nth(16).and_then(|count| count.parse().ok()).unwrap_or(1);
    !ended || threads > 1
}

fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_alive_in(&stat))
}

/// Kills every process of a cgroup and below it, until there is none.
///
/// # Errors
/// When some do not die within a second, such as those that the kernel holds in a system call.
pub fn kill_all(paths: &CgroupPaths) -> Result<(), KillError> {
    // One write reaches all, with no race against forks, where the kernel knows it (5.14) and the container is in v2.
    let by_cgroup = paths.unified.as_ref().map(|unified| fs::write(unified.join("cgroup.kill"), "1"));
    if let Some(Err(error)) = by_cgroup {
        tracing::debug!(%error, "no kill by cgroup: killing one by one");
    }
    if let Some(freezer) = paths.of("freezer") {
        thaw(freezer, MAX_DEPTH);
    }
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let mut left = Vec::new();
    for _ in 0..TRIES {
        left = processes(paths)?;
        // The daemon never kills itself, whatever somebody has put it into.
        left.retain(|pid| *pid != own && is_alive(*pid));
        if left.is_empty() {
            return Ok(());
        }
        for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // ESRCH means that it has just ended.
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(PAUSE);
    }
    let some = left.iter().take(TOLD).map(|pid| plight(*pid)).collect();
    Err(KillError::Survivors { count: left.len(), some })
}

/// On v1 a frozen process receives its death only when it thaws. What a folder above has frozen stays so.
fn thaw(folder: &Path, depth: usize) {
    let frozen =
        fs::read_to_string(folder.join("freezer.self_freezing")).is_ok_and(|word| word.trim() == "1");
    if frozen && let Err(error) = fs::write(folder.join("freezer.state"), "THAWED") {
        tracing::warn!(folder = %folder.display(), %error, "a frozen cgroup does not thaw");
    }
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw(&entry.path(), depth - 1);
        }
    }
}

/// What a process does that does not die: its number, its name and, where the kernel holds it, in which function.
fn plight(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("?", |(name, _)| name);
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
    let function = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let place = if matches!(function.as_str(), "" | "0") { String::new() } else { format!(" in {function}") };
    match state {
        'D' => format!("{pid} ({name}) sleeps uninterruptibly{place}"),
        't' | 'T' => format!("{pid} ({name}) is stopped or traced{place}"),
        state => format!("{pid} ({name}) is in state {state}{place}"),
    }
}

/// Whether the process is in the cgroup or below it, as far as the first of its folders tells.
#[must_use]
pub fn hold(paths: &CgroupPaths, pid: u32) -> bool {
    let mut pids = Vec::new();
    let found = paths.folders().find(|folder| folder.is_dir());
    let listed = found.is_some_and(|folder| collect(folder, MAX_DEPTH, &mut pids).is_ok());
    listed && i32::try_from(pid).is_ok_and(|pid| pids.contains(&pid))
}

/// Gives the processes of a cgroup that have the OOM score adjustment `from` another one. What a program chose for
/// itself stays, and so does what ends meanwhile.
///
/// # Errors
/// When the kernel does not let this process do so.
pub fn change_oom_score(paths: &CgroupPaths, from: i32, to: i32) -> Result<(), KillError> {
    // What was forked in between had the old one.
    for _ in 0..2 {
        for pid in processes(paths)? {
            let file = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
            let now = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok());
            if now != Some(from) {
                continue;
            }
            match fs::write(&file, to.to_string()) {
                Err(error) if !is_gone(&error) && error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(KillError::OomScore { file, source: error });
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// The value of one line of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

/// How many processes of the cgroup the kernel has killed for want of memory; `None` where nothing counts.
#[must_use]
pub fn oom_kill_count(paths: &CgroupPaths) -> Option<u64> {
    let file = match paths.controllers.get("memory") {
        Some(folder) => folder.join("memory.oom_control"),
        None => paths.unified.as_ref()?.join("memory.events"),
    };
    keyed(&fs::read_to_string(file).ok()?, "oom_kill")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyed_line_is_read_by_its_whole_key() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\nbroken\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), None);
        assert_eq!(keyed("oom_kill x\n", "oom_kill"), None);
    }

    #[test]
    fn a_zombie_with_living_threads_is_alive() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 {threads} 0 5 6")
        };
        assert!(is_alive_in(&stat("S", 1)) && is_alive_in(&stat("Z", 3)));
        assert!(!is_alive_in(&stat("Z", 1)) && !is_alive_in(""));
    }

    #[test]
    fn the_count_is_read_in_both_worlds() {
        let folder = tempfile::tempdir().unwrap();
        let mut v1 = CgroupPaths::default();
        v1.controllers.insert("memory".to_owned(), folder.path().to_path_buf());
        assert_eq!(oom_kill_count(&v1), None);
        fs::write(folder.path().join("memory.oom_control"), "under_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(oom_kill_count(&v1), Some(2));
        let v2 = CgroupPaths { unified: Some(folder.path().to_path_buf()), ..CgroupPaths::default() };
        fs::write(folder.path().join("memory.events"), "oom 9\noom_kill 4\noom_group_kill 1\n").unwrap();
        assert_eq!(oom_kill_count(&v2), Some(4));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_processes_and_is_dead() {
        let gone = CgroupPaths { unified: Some("/nonexistent/cgroup".into()), ..CgroupPaths::default() };
        assert!(processes(&gone).unwrap().is_empty());
        kill_all(&gone).unwrap();
    }
}
