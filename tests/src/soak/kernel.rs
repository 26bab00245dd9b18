//! What the kernel knows of a node's processes and cgroups.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Kills the shim that serves `id`; false when there is none.
pub fn kill_shim(id: &str) -> bool {
    // It may have ended by itself just now.
    shim_of(id).is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
}

/// The shim process that serves `id`.
pub fn shim_of(id: &str) -> Option<i32> {
    pids().find(|pid| {
        let command = command(*pid);
        let program = command.split(' ').next().unwrap_or_default();
        program.contains("containerd-shim") && command.contains(id)
    })
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The process that is 1 in the container.
pub fn first_process(mark: &str, id: &str) -> Option<i32> {
    pids().find(|pid| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let inside = status.lines().find(|line| line.starts_with("NSpid:"));
        let is_first =
            inside.is_some_and(|line| line.split_whitespace().count() == 3 && line.ends_with("\t1"));
        is_first && cgroup.contains(mark) && cgroup.contains(id) && !cgroup.contains("exec-")
    })
}

/// Kilobytes of anonymous memory that a process holds.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).map_or(0, Iterator::count)
}

/// Children of `pid` that ended and that nobody has waited for.
pub fn zombies(of: u32) -> Vec<String> {
    let zombie = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (state == "Z" && parent == of.to_string()).then(|| name.to_owned())
    };
    pids().filter_map(zombie).collect()
}
