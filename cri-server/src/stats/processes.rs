//! What the processes of a container hold, as /proc tells it.
//!
//! Invariant: bounded, because the container decides how many descriptors there are; a process that ends meanwhile
//! counts for nothing.

use std::fs;

use crate::cgroup::{CgroupPaths, processes};

/// More are not counted: the numbers are then a lower bound.
const MOST_PROCESSES: usize = 4096;
const MOST_DESCRIPTORS: u64 = 65_536;

/// The processes of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub processes: u64,
    pub descriptors: u64,
    pub sockets: u64,
    /// How many files the container's first process may open; `u64::MAX` for as many as it likes.
    pub open_files_limit: Option<u64>,
}

/// Counts what the processes of the cgroup hold; `first` is the container's first one.
#[must_use]
pub fn processes_of(paths: &CgroupPaths, first: Option<u32>) -> Processes {
    let pids = processes(paths).unwrap_or_default();
    let mut seen = Processes {
        processes: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        open_files_limit: first.and_then(open_files_limit),
        ..Processes::default()
    };
    for pid in pids.into_iter().take(MOST_PROCESSES) {
        for link in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if seen.descriptors >= MOST_DESCRIPTORS {
                return seen;
            }
            let Ok(target) = fs::read_link(link.path()) else { continue };
            seen.descriptors += 1;
            seen.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        }
    }
    seen
}

fn open_files_limit(pid: u32) -> Option<u64> {
    soft_limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// The soft limit of `/proc/PID/limits`: `Max open files   1024   4096   files`.
fn soft_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\nMax open files            {soft}                 20000                files\n"
            )
        };
        assert_eq!(soft_limit(&text("1024")), Some(1024));
        assert_eq!(soft_limit(&text("unlimited")), Some(u64::MAX));
        assert_eq!(soft_limit("Max processes 1 2\n"), None);
        assert!(open_files_limit(std::process::id()).is_some());
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_processes() {
        assert_eq!(processes_of(&CgroupPaths::default(), None), Processes::default());
    }
}
