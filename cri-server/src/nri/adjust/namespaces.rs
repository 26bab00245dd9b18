//! Adjustments of a container's namespaces, and of what is kept in them.

use std::collections::HashMap;
use std::path::PathBuf;

use cofferdam_proto::nri;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Type, LinuxNetDevice};

use super::named;
use crate::nri::collect::removal;
use crate::spec::SpecError;
use crate::spec::host::Host;
use crate::spec::namespaces::PodNamespaces;
use crate::spec::sysctl::checked;

/// The longest name of a network device, without its closing zero. IFNAMSIZ
const LONGEST_NAME: usize = 15;

/// Removes namespaces, which leaves the host's, and sets others. A container always has its own mounts, and its users
/// are the pod's.
pub fn apply(linux: &mut Linux, wanted: &[nri::LinuxNamespace]) -> Result<(), SpecError> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for wanted in wanted {
        let (name, removed) = removal(&wanted.r#type);
        let typ: Type = named("namespace", name)?;
        match typ {
            Type::Mount => return Err(SpecError::Unsupported("adjustments of the mount namespace")),
            Type::User => return Err(SpecError::Unsupported("adjustments of the user namespace")),
            Type::Cgroup | Type::Uts | Type::Ipc | Type::Pid | Type::Network | Type::Time => {}
        }
        namespaces.retain(|known| known.typ() != typ);
        if removed {
            continue;
        }
        if !wanted.path.is_empty() && !wanted.path.starts_with('/') {
            let why = "the path is not absolute";
            return Err(SpecError::Invalid { field: "namespace", value: wanted.path.clone(), why });
        }
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace.set_path((!wanted.path.is_empty()).then(|| PathBuf::from(&wanted.path)));
        namespaces.push(namespace);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

fn has(linux: &Linux, typ: Type) -> bool {
    linux.namespaces().iter().flatten().any(|known| known.typ() == typ)
}

/// Removes and sets sysctls, of the container's own namespaces only: a path may lead to the host's.
pub fn sysctl(linux: &mut Linux, wanted: &HashMap<String, String>, host: &dyn Host) -> Result<(), SpecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let not_hosts = |typ: Type, kind: &str| {
        let mut known = linux.namespaces().iter().flatten();
        known.any(|n| n.typ() == typ && !n.path().as_ref().is_some_and(|path| host.is_in(path, kind)))
    };
    let own = PodNamespaces {
        network: not_hosts(Type::Network, "net"),
        ipc: not_hosts(Type::Ipc, "ipc"),
        uts: not_hosts(Type::Uts, "uts"),
        pid: not_hosts(Type::Pid, "pid"),
        // Only the pod's defaults depend on it.
        user: None,
    };
    let mut sysctl = linux.sysctl().clone().unwrap_or_default();
    for key in wanted.keys().filter_map(|key| key.strip_prefix('-')) {
        sysctl.remove(&checked(key, own)?);
    }
    for (key, value) in wanted.iter().filter(|(key, _)| !removal(key).1) {
        sysctl.insert(checked(key, own)?, value.clone());
    }
    linux.set_sysctl(Some(sysctl));
    Ok(())
}

/// Moves network devices of the host into the container's network namespace.
pub fn net_devices(
    linux: &mut Linux,
    wanted: &HashMap<String, nri::LinuxNetDevice>,
) -> Result<(), SpecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let invalid =
        |value: &str, why| SpecError::Invalid { field: "network device", value: value.to_owned(), why };
    let mut devices = linux.net_devices().clone().unwrap_or_default();
    devices.retain(|key, _| !wanted.contains_key(&format!("-{key}")));
    for (key, device) in wanted.iter().filter(|(key, _)| !removal(key).1) {
        if !has(linux, Type::Network) {
            return Err(invalid(key, "the container shares the network of the host"));
        }
        for name in [key, &device.name] {
            if name.len() > LONGEST_NAME || name.contains(['/', '\0']) || name.contains(char::is_whitespace) {
                return Err(invalid(name, "it is not a name of a network device"));
            }
        }
        let mut made = LinuxNetDevice::default();
        made.set_name((!device.name.is_empty()).then(|| device.name.clone()));
        devices.insert(key.clone(), made);
    }
    linux.set_net_devices((!devices.is_empty()).then_some(devices));
    Ok(())
}
