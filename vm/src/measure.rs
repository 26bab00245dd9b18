//! What a machine costs the node beyond what its pod uses: measured on one that has booted and does nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::boot::{BootError, Plan};
use crate::config::VmConfig;
use crate::machine::Machine;
use crate::probe::{self, ProbeError};
use crate::vmm::Accelerator;

/// How long the guest gets to come to rest.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("read what the machine takes from {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// In KiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    pub accelerator: Accelerator,
    /// Of its memory, what the guest's own system has touched.
    pub guest: u64,
    /// What the monitor and virtiofsd take beside it.
    pub monitor: u64,
    /// What the calling process takes, which is as the shim of a pod.
    pub caller: u64,
}

/// Boots a machine of this configuration, looks at it, and ends it. `folder` is for it alone; `probes` keeps what is known
/// of KVM.
///
/// # Errors
/// When no machine boots.
pub async fn cost(config: &VmConfig, folder: &Path, probes: &Path) -> Result<Cost, MeasureError> {
    let accelerator = probe::accelerator(config, probes).await?;
    let plan = Plan { config: config.clone(), accelerator, folder: folder.to_owned(), nics: Vec::new() };
    let place = |_| Ok(());
    let machine = plan.prepare(&place)?.launch(&place).await?.greet().await?.into_machine();
    tokio::time::sleep(REST).await;
    let read = look(&machine, accelerator);
    machine.stop().await;
    read
}

fn look(machine: &Machine, accelerator: Accelerator) -> Result<Cost, MeasureError> {
    let (monitor, share) = (of(machine.monitor().pid())?, of(machine.share().pid())?);
    let own = of(i32::try_from(std::process::id()).unwrap_or_default())?;
    Ok(Cost {
        accelerator,
        guest: monitor.shared + share.shared,
        monitor: monitor.rest + share.rest,
        caller: own.shared + own.rest,
    })
}

/// One process's part of what it maps, in KiB.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// The guest's memory, which is a file in memory that both processes map.
    shared: u64,
    rest: u64,
}

fn of(pid: i32) -> Result<Part, MeasureError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = fs::read_to_string(&path).map_err(|source| MeasureError::Read { path, source })?;
    Ok(part(&text))
}

/// Of `/proc/PID/smaps_rollup`, lines of `Pss_Shmem:   1234 kB`.
fn part(text: &str) -> Part {
    let get = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let shared: u64 = get("Pss_Shmem");
    Part { shared, rest: u64::saturating_sub(get("Pss"), shared) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_lines_are_told_apart() {
        let text = "5581 [rollup]\nRss:   500 kB\nPss:      300 kB\nPss_Anon:  80 kB\nPss_File:  20 kB\nPss_Shmem:   200 kB\n";
        assert_eq!(part(text), Part { shared: 200, rest: 100 });
        assert_eq!(part(""), Part { shared: 0, rest: 0 });
    }
}
