//! What SELinux asks for besides the labels in a container's spec: that the policy knows them, that the volumes which the
//! kubelet says so are the container's, and that its root filesystem is mounted with its label.

use std::path::Path;

use cofferdam_proto::cri;
use oci_spec::runtime::Spec;

use super::{Container, ContainerError, Containers};
use crate::lsm::relabel::relabel;
use crate::ports::Ports;
use crate::runtime::Mount;
use crate::sandbox::selinux::check;
use crate::spec::selinux::SelinuxLabels;

fn mount_label(spec: &Spec) -> Option<&str> {
    spec.linux().as_ref()?.mount_label().as_deref()
}

/// Checks the labels of a container's spec and gives its volumes theirs. A request that is repeated meanwhile joins this
/// one, and what was interrupted is begun again by the next.
pub(super) fn prepare(ports: &Ports, spec: &Spec, mounts: &[cri::Mount]) -> Result<(), ContainerError> {
    if !ports.spec_defaults.selinux {
        return Ok(());
    }
    let process = spec.process().as_ref().and_then(|process| process.selinux_label().clone());
    let mount = mount_label(spec).map(str::to_owned);
    check::<ContainerError>(&SelinuxLabels { process, mount })?;
    let Some(label) = mount_label(spec) else { return Ok(()) };
    for mount in mounts.iter().filter(|mount| mount.selinux_relabel && !mount.host_path.is_empty()) {
        let files = relabel(Path::new(&mount.host_path), label, || ports.stopping.is_cancelled())?;
        tracing::debug!(path = mount.host_path, label, files, "relabelled");
    }
    Ok(())
}

impl Containers {
    /// The root filesystem's mounts with the container's label, which all of its files then have.
    pub(super) async fn labelled(
        &self,
        container: &Container,
        mut rootfs: Vec<Mount>,
    ) -> Result<Vec<Mount>, ContainerError> {
        if !self.ports.spec_defaults.selinux {
            return Ok(rootfs);
        }
        let path = self.ports.places.container(container.id()).join("config.json");
        let spec =
            tokio::task::spawn_blocking(move || Spec::load(path)).await?.map_err(ContainerError::SpecFile)?;
        if let Some(label) = mount_label(&spec) {
            for mount in rootfs.iter_mut().filter(|mount| mount.type_ == "overlay") {
                mount.options.push(format!("context=\"{label}\""));
            }
        }
        Ok(rootfs)
    }
}
