//! Whether KVM can be used: found out by booting a guest of ours, never by the existence of /dev/kvm. There are nodes on
//! which it opens and no ordinary kernel comes up.
//!
//! The answer is kept in a file for as long as the node runs and the same files are booted. Invariant: emulation is
//! chosen only where the configuration allows it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::boot::{BootError, Plan};
use crate::config::{ConfigError, MonitorKind, Parts, VmConfig};
use crate::vmm::Accelerator;

/// With KVM a guest is up in well under a second.
const PATIENCE_SECONDS: u32 = 5;
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "microVMs need KVM, which this node does not give: {0} (emulation = true allows them without, slowly)"
    )]
    NotAvailable(String),
    #[error(
        "Cloud Hypervisor needs KVM, which this node does not give: {0} (QEMU can do without, with emulation = true)"
    )]
    NoEmulation(String),
    #[error("keep what the probe found in {}: {source}", path.display())]
    Keep { path: PathBuf, source: io::Error },
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    /// What it is true for.
    of: String,
    /// Why KVM cannot be used, or nothing when it can.
    obstacle: Option<String>,
}

/// How machines run on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    pub accelerator: Accelerator,
    /// Why it is not KVM.
    pub obstacle: Option<String>,
}

/// How machines of this configuration are to run on this node. `folder` keeps the finding.
///
/// # Errors
/// When they cannot run.
pub async fn accelerator(config: &VmConfig, folder: &Path) -> Result<Accelerator, ProbeError> {
    look(config, folder).await.map(|means| means.accelerator)
}

/// The same, with what stands in KVM's way.
///
/// # Errors
/// When they cannot run.
pub async fn look(config: &VmConfig, folder: &Path) -> Result<Means, ProbeError> {
    let parts = config.parts()?;
    let obstacle = match foreign(&parts) {
        Some(words) => Some(words),
        None => obstacle(config, &parts, folder).await?,
    };
    let accelerator = choose(obstacle.clone(), config.emulation, config.monitor_kind())?;
    Ok(Means { accelerator, obstacle })
}

/// No processor executes what is made for another.
fn foreign(parts: &Parts) -> Option<String> {
    let (native, guest) = (Architecture::NATIVE, parts.architecture);
    (guest != native).then(|| format!("the guest's kernel is made for {guest}, this node is {native}"))
}

async fn obstacle(config: &VmConfig, parts: &Parts, folder: &Path) -> Result<Option<String>, ProbeError> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Err(error) => Ok(Some(format!("/dev/kvm: {error}"))),
        Ok(_) => Ok(finding(config, parts, folder).await?.obstacle),
    }
}

fn choose(
    obstacle: Option<String>,
    emulation: bool,
    monitor: MonitorKind,
) -> Result<Accelerator, ProbeError> {
    match (obstacle, monitor) {
        (None, _) => Ok(Accelerator::Kvm),
        (Some(_), MonitorKind::Qemu) if emulation => Ok(Accelerator::Tcg),
        (Some(why), MonitorKind::Qemu) => Err(ProbeError::NotAvailable(why)),
        (Some(why), MonitorKind::CloudHypervisor) => Err(ProbeError::NoEmulation(why)),
    }
}

/// The finding that is kept, or that of a probe now. Others wait for it instead of probing as well.
async fn finding(config: &VmConfig, parts: &Parts, folder: &Path) -> Result<Finding, ProbeError> {
    let path = folder.join("kvm-probe.json");
    let keep = |source| ProbeError::Keep { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(keep)?;
    let of = subject(config, parts);
    let lock = File::options().create(true).append(true).open(folder.join("kvm-probe.lock")).map_err(keep)?;
    while let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(keep(errno.into()));
        }
        tokio::time::sleep(POLL).await;
    }
    if let Some(kept) = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Finding>(&text).ok())
        && kept.of == of
    {
        return Ok(kept);
    }
    let obstacle = boot(config, folder).await.err().map(|error| error.to_string());
    let found = Finding { of, obstacle };
    let text = serde_json::to_vec(&found).map_err(|error| keep(error.into()))?;
    let beside = folder.join(".kvm-probe.new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path)).map_err(keep)?;
    Ok(found)
}

/// Boots a guest with KVM and ends it.
async fn boot(config: &VmConfig, folder: &Path) -> Result<(), BootError> {
    let config = VmConfig { boot_seconds: PATIENCE_SECONDS.min(config.boot_seconds), ..config.clone() };
    let folder = folder.join("kvm-probe");
    let plan = Plan { config, accelerator: Accelerator::Kvm, folder: folder.clone(), nics: Vec::new() };
    let place = |_| Ok(());
    let outcome = async {
        let machine = plan.prepare(&place)?.launch(&place).await?.greet().await?.into_machine();
        machine.stop().await;
        Ok(())
    };
    let outcome = outcome.await;
    // Nothing mounted is in it: the share's mounts are in a namespace that has ended.
    drop(fs::remove_dir_all(folder));
    outcome
}

/// What a finding is true for: this boot of the node, this kind of machine, and these files.
fn subject(config: &VmConfig, parts: &Parts) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = |path: &Path| {
        let about =
            fs::metadata(path).map(|m| format!("{}:{}:{}", m.ino(), m.size(), m.mtime())).unwrap_or_default();
        format!("{}:{about}", path.display())
    };
    let files = [Some(&parts.monitor), parts.firmware.as_ref(), Some(&parts.kernel), Some(&parts.image)];
    let files: Vec<String> = files.into_iter().flatten().map(|path| file(path)).collect();
    format!("{} {:?} {:?} {}", boot.trim(), config.machine, config.channel, files.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_has_to_be_allowed() {
        let qemu = MonitorKind::Qemu;
        assert!(matches!(choose(None, false, qemu), Ok(Accelerator::Kvm)));
        assert!(matches!(choose(Some("no".into()), true, qemu), Ok(Accelerator::Tcg)));
        let other = choose(Some("no".into()), true, MonitorKind::CloudHypervisor);
        assert!(matches!(other, Err(ProbeError::NoEmulation(_))), "{other:?}");
        let refused = choose(Some("it hangs".into()), false, qemu).unwrap_err().to_string();
        assert!(refused.contains("it hangs") && refused.contains("emulation = true"), "{refused}");
    }
}
