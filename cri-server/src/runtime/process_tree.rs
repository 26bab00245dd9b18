//! Ends a process with everything it started, from the host's side: for shims that signal one process only.
//!
//! Invariant: each process is stopped before its children are listed, so that none is born unseen in between. Those that
//! left the tree by a double fork are not found.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// More than any command starts; bounds the work against one that forks without end.
const MOST: usize = 4096;

/// Stops, then kills `root` and its descendants. Answers how many there were.
pub(super) fn kill(root: u32) -> usize {
    let mut found: Vec<OwnedFd> = Vec::new();
    let mut pending = vec![root];
    while let Some(pid) = pending.pop() {
        if found.len() == MOST {
            break;
        }
        let Some(handle) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(process) = pidfd_open(handle, PidfdFlags::empty()) else { continue };
        if pidfd_send_signal(&process, Signal::STOP).is_err() {
            continue;
        }
        pending.extend(children(pid));
        found.push(process);
    }
    for process in &found {
        // One that ended by itself is as good.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    found.len()
}

/// The children of every thread.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn children_of_children_are_killed() {
        let script = "sh -c 'sleep 300 & echo $!; wait' & wait";
        let mut parent = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(super::kill(parent.id()), 3);
        assert!(!parent.wait().unwrap().success());
        let state = || std::fs::read_to_string(format!("/proc/{}/status", line.trim())).unwrap_or_default();
        let begun = std::time::Instant::now();
        while !state().is_empty() && !state().contains("State:\tZ") {
            assert!(begun.elapsed().as_secs() < 5, "the grandchild lives");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(super::kill(0), 0);
    }
}
