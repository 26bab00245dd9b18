//! The shim processes of a node: found by the id that they serve, stopped, killed, looked for.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// The shim process that serves `id`.
///
/// # Panics
/// When there is none.
pub fn of(id: &str) -> Pid {
    all_of(id).first().copied().unwrap_or_else(|| panic!("no shim names {id}"))
}

/// Every process of a shim that names `id`.
pub fn all_of(id: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let serves = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.contains(&format!("\0-id\0{id}\0"))
    };
    pids.filter(serves).map(Pid::from_raw).collect()
}

/// Makes the shim of `id` hang: it is there, its socket takes connections, and nothing answers.
pub fn hang(id: &str) -> Pid {
    let pid = of(id);
    kill(pid, Signal::SIGSTOP).expect("cannot stop the shim");
    pid
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Whether the process ends in time.
pub async fn ends(pid: u32, limit: Duration) -> bool {
    eventually(limit, async || !is_alive(pid)).await
}
