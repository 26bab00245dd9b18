//! A pod's machine with all that belongs to it on the node.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cofferdam_vm::agent::GuestSetup;
use cofferdam_vm::boot::Plan;
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::machine::Machine;
use cofferdam_vm::net::{self, Network};
use cofferdam_vm::probe;
use cofferdam_vm::size::{Node, Size};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};

use super::VmError;
use super::forward::Connections;
use super::guest::Guest;
use super::place::Place;
use super::{sizes, spec};
use crate::bundle::Bundle;
use crate::cgroup::{CgroupPaths, kill, limits};
use crate::error::ShimError;
use crate::options::Options;

/// The machine's folder in the pod's bundle.
const FOLDER: &str = "vm";
/// As large as pods have it on the node, where the node's own cannot be asked.
const SHM_SIZE: u64 = 64 << 20;

pub struct Pod {
    /// The task that is the pod itself.
    pub id: String,
    pub machine: Machine,
    pub guest: Guest,
    /// As the machine was made: it cannot grow.
    pub size: Size,
    /// When it was made.
    pub since: Instant,
    /// Its own /dev/shm on the node, which stands for the guest's.
    pub shm: Option<PathBuf>,
    pub connections: Connections,
    config: VmConfig,
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
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().clone());
        let path: PathBuf = path.unwrap_or_else(|| Path::new("/").join(id));
        let accelerator = probe::accelerator(&options.vm, probes).await.map_err(VmError::from)?;
        let overhead = linux.and_then(|linux| linux.resources().as_ref());
        let ask = sizes::ask(spec.annotations().as_ref(), overhead);
        let size = Size::of(&options.vm, &ask, Node::here(), accelerator);
        let bounds = sizes::limits(&ask, &size, overhead);
        let place = Place::new(&path, options.systemd_cgroup, bounds, bundle)
            .map_err(ShimError::path("make the pod's cgroup", path))?;
        failpoint!("shim.vm.cgroup_made", infallible);
        let shm = spec::shm_of(spec);
        let config = VmConfig { memory: size.memory, cpus: size.cpus, ..options.vm.clone() };
        let plan = Plan { config, accelerator, folder: bundle.join(FOLDER), nics: Vec::new() };
        let since = Instant::now();
        let connected = match boot_in(&place, plan, spec, shm.as_deref()).await {
            Ok(machine) => Guest::connect(machine.channel()).await.map(|guest| (machine, guest)),
            Err(error) => Err(error),
        };
        let cgroups = place.cgroups().clone();
        match connected {
            Ok((machine, guest)) => {
                let (id, config) = (id.to_owned(), options.vm.clone());
                let connections = Connections::default();
                Ok(Pod { id, machine, guest, size, since, shm, connections, config, cgroups })
            }
            Err(error) => {
                remove_cgroups(&cgroups, bundle).await;
                Err(error.into())
            }
        }
    }

    /// Where the machine's processes are.
    pub fn cgroups(&self) -> &CgroupPaths {
        &self.cgroups
    }

    /// Gives the pod another size, as far as a machine that runs can have it: less memory, and more again up to what it was
    /// made with, by its balloon; processor time by its cgroup.
    pub async fn resize(
        &self,
        overhead: &LinuxResources,
        annotations: &HashMap<String, String>,
    ) -> Result<(), ShimError> {
        let ask = sizes::ask(Some(annotations), Some(overhead));
        let size = Size::of(&self.config, &ask, Node::here(), self.machine.accelerator());
        let (memory, cpus) = (self.size.memory, self.size.cpus);
        if size.memory > memory || size.cpus > cpus {
            return Err(ShimError::Limit(format!(
                "the pod's machine was made with {memory} MiB and {cpus} processors and cannot grow to {} MiB and {}: \
                 make the pod anew",
                size.memory, size.cpus
            )));
        }
        let bounds =
            sizes::limits(&ask, &Size { limit: size.limit.max(self.size.limit), ..size }, Some(overhead));
        limits::apply(&self.cgroups, &bounds)?;
        Ok(self.machine.monitor().balloon(size.bytes()).await.map_err(VmError::from)?)
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

async fn boot_in(place: &Place<'_>, plan: Plan, spec: &Spec, shm: Option<&Path>) -> Result<Machine, VmError> {
    let put = |pid| place.put(pid);
    let network = match netns(spec) {
        Some(path) => net::attach(&path)?,
        None => Network::default(),
    };
    let Network { nics, interfaces, routes } = network;
    let hostname = spec.hostname().clone().unwrap_or_default();
    let shm_size = shm.and_then(size_of).unwrap_or(SHM_SIZE);
    let setup = GuestSetup { hostname, interfaces, routes, shm_size };
    failpoint!("shim.vm.network_attached");
    let prepared = Plan { nics, ..plan }.prepare(&put)?;
    failpoint!("shim.vm.share_started");
    let launched = prepared.launch(&put).await?;
    failpoint!("shim.vm.monitor_started");
    let greeted = launched.greet().await?;
    failpoint!("shim.vm.greeted");
    let machine = greeted.set_up(&setup).await?;
    failpoint!("shim.vm.set_up");
    Ok(machine)
}

/// Of a file system.
fn size_of(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    system.f_blocks.checked_mul(system.f_frsize).filter(|bytes| *bytes > 0)
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
