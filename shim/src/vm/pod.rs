//! A pod's machine with all that belongs to it on the node.

use cofferdam_failpoints::failpoint;
use std::path::{Path, PathBuf};

use cofferdam_vm::agent::GuestSetup;
use cofferdam_vm::boot::Plan;
use cofferdam_vm::machine::Machine;
use cofferdam_vm::net::{self, Network};
use cofferdam_vm::probe;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::VmError;
use super::forward::Connections;
use super::guest::Guest;
use super::place;
use crate::bundle::Bundle;
use crate::cgroup::{CgroupPaths, kill};
use crate::error::ShimError;
use crate::options::Options;

/// The machine's folder in the pod's bundle.
const FOLDER: &str = "vm";
/// As large as pods have it on the node.
const SHM_SIZE: u64 = 64 << 20;

pub struct Pod {
    /// The task that is the pod itself.
    pub id: String,
    pub machine: Machine,
    pub guest: Guest,
    pub connections: Connections,
    cgroups: CgroupPaths,
}

impl Pod {
    /// Boots the machine of the pod whose specification is `spec`. `probes` keeps what is known of KVM.
    pub async fn boot(
        id: &str,
        bundle: &Bundle,
        spec: &Spec,
        options: &Options,
        probes: &Path,
    ) -> Result<Self, ShimError> {
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
        let path: PathBuf = path.unwrap_or_else(|| Path::new("/").join(id));
        let accelerator = probe::accelerator(&options.vm, probes).await.map_err(VmError::from)?;
        let cgroups = place::make(&path).map_err(ShimError::path("make the pod's cgroup", path))?;
        failpoint!("shim.vm.cgroup_made", infallible);
        let machine = boot_in(&cgroups, bundle, spec, options, accelerator).await;
        let connected = match machine {
            Ok(machine) => Guest::connect(machine.channel()).await.map(|guest| (machine, guest)),
            Err(error) => Err(error),
        };
        match connected {
            Ok((machine, guest)) => {
                Ok(Pod { id: id.to_owned(), machine, guest, connections: Connections::default(), cgroups })
            }
            Err(error) => {
                remove_cgroups(&cgroups, bundle).await;
                Err(error.into())
            }
        }
    }

    /// The pid by which the node knows everything of the pod.
    pub fn pid(&self) -> i32 {
        self.machine.monitor().pid()
    }

    pub async fn end(&self, bundle: &Bundle) {
        self.machine.stop().await;
        failpoint!("shim.vm.stopped", infallible);
        remove_cgroups(&self.cgroups, bundle).await;
    }
}

async fn boot_in(
    cgroups: &CgroupPaths,
    bundle: &Bundle,
    spec: &Spec,
    options: &Options,
    accelerator: cofferdam_vm::vmm::Accelerator,
) -> Result<Machine, VmError> {
    let put = |pid| place::put(cgroups, pid);
    let network = match netns(spec) {
        Some(path) => net::attach(&path)?,
        None => Network::default(),
    };
    let Network { nics, interfaces, routes } = network;
    let plan = Plan { config: options.vm.clone(), accelerator, folder: bundle.join(FOLDER), nics };
    let hostname = spec.hostname().clone().unwrap_or_default();
    let setup = GuestSetup { hostname, interfaces, routes, shm_size: SHM_SIZE };
    failpoint!("shim.vm.network_attached");
    let prepared = plan.prepare(&put)?;
    failpoint!("shim.vm.share_started");
    let launched = prepared.launch(&put).await?;
    failpoint!("shim.vm.monitor_started");
    let greeted = launched.greet().await?;
    failpoint!("shim.vm.greeted");
    let machine = greeted.set_up(&setup).await?;
    failpoint!("shim.vm.set_up");
    Ok(machine)
}

/// The pod's network namespace, where it is made by others.
fn netns(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::Network)?.path().clone()
}

/// The kernel empties a cgroup a little after its last process was waited for.
async fn remove_cgroups(cgroups: &CgroupPaths, bundle: &Bundle) {
    for attempt in 1_u64..=100 {
        match kill::remove(cgroups) {
            Ok(true) => return,
            Ok(false) => drop(kill::signal_all(cgroups, libc::SIGKILL)),
            Err(error) => return bundle.warn(&format!("remove the pod's cgroup: {error}")),
        }
        tokio::time::sleep(std::time::Duration::from_millis(attempt.min(20))).await;
    }
    bundle.warn("the pod's cgroup is still occupied and stays behind");
}
