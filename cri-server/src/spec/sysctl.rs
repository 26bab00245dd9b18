//! Sysctls of a pod: only those that the kernel keeps per namespace, and only where the pod has that namespace.

use std::collections::HashMap;

use super::Defaults;
use super::error::SpecError;
use super::namespaces::PodNamespaces;

const PORT_START: &str = "net.ipv4.ip_unprivileged_port_start";
const PING_GROUPS: &str = "net.ipv4.ping_group_range";
/// All groups that a process can be in: ids up to 2^31-1.
const ALL_GROUPS: &str = "0 2147483647";

/// The ones below kernel.* that belong to the ipc namespace.
const IPC: [&str; 11] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg_next_id",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
];

/// The name with dots between its parts; a name may also be written with slashes.
fn dotted(name: &str) -> String {
    // With slashes first, a dot belongs to a part (an interface's name), and the two change places.
    match (name.find('/'), name.find('.')) {
        (Some(slash), dot) if dot.is_none_or(|dot| slash < dot) => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn check(name: &str, namespaces: PodNamespaces) -> Result<(), &'static str> {
    if name.is_empty() || name.contains('\0') || name.split(['.', '/']).any(str::is_empty) {
        return Err("it is not a name of a sysctl");
    }
    if name.starts_with("net.") {
        return namespaces.network.then_some(()).ok_or("the pod shares the network of the host");
    }
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        return namespaces.ipc.then_some(()).ok_or("the pod shares the ipc namespace of the host");
    }
    if name == "kernel.domainname" {
        return namespaces.uts.then_some(()).ok_or("the pod shares the uts namespace of the host");
    }
    if name == "kernel.hostname" {
        return Err("the pod's own hostname field sets it");
    }
    Err("it is not kept per namespace and would change the whole host")
}

/// The sysctls of a pod: `requested`, and our defaults where the pod has its own network and sets nothing else.
///
/// # Errors
/// When a requested one would change the host.
pub fn build(
    requested: &HashMap<String, String>,
    namespaces: PodNamespaces,
    defaults: &Defaults,
) -> Result<HashMap<String, String>, SpecError> {
    let mut out = HashMap::new();
    if namespaces.network {
        if defaults.unprivileged_ports {
            out.insert(PORT_START.to_owned(), "0".to_owned());
        }
        if defaults.unprivileged_icmp {
            // In a user namespace the kernel takes only groups that it maps.
            let groups =
                namespaces.user.map(|user| format!("0 {}", (user.gids.count - 1).min(i32::MAX as u32)));
            out.insert(PING_GROUPS.to_owned(), groups.unwrap_or_else(|| ALL_GROUPS.to_owned()));
        }
    }
    for (name, value) in requested {
        out.insert(checked(name, namespaces)?, value.clone());
    }
    Ok(out)
}

/// The name with dots, of a sysctl that changes nothing but these namespaces.
///
/// # Errors
/// When it would change the host.
pub fn checked(name: &str, namespaces: PodNamespaces) -> Result<String, SpecError> {
    let dotted = dotted(name);
    check(&dotted, namespaces).map_err(|why| SpecError::Sysctl { name: name.to_owned(), why })?;
    Ok(dotted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: PodNamespaces = PodNamespaces { network: true, ipc: true, uts: true, pid: true, user: None };
    const HOST: PodNamespaces =
        PodNamespaces { network: false, ipc: false, uts: false, pid: false, user: None };

    fn one(name: &str, namespaces: PodNamespaces) -> Result<HashMap<String, String>, SpecError> {
        let requested = HashMap::from([(name.to_owned(), "1".to_owned())]);
        build(&requested, namespaces, &Defaults::default())
    }

    #[test]
    fn only_namespaced_sysctls_of_own_namespaces_pass() {
        let namespaced =
            ["net.core.somaxconn", "kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max", "kernel.domainname"];
        for name in namespaced {
            assert!(one(name, OWN).is_ok(), "{name}");
            assert!(one(name, HOST).is_err(), "{name} on the host's namespaces");
        }
        for name in
            ["kernel.panic", "vm.swappiness", "kernel.hostname", "fs.file-max", "", "net..x", "netx.a"]
        {
            assert!(one(name, OWN).is_err(), "{name:?}");
        }
    }

    #[test]
    fn slashes_are_dots() {
        let out = one("net/ipv4/conf/eth0.1/forwarding", OWN).unwrap();
        assert_eq!(out["net.ipv4.conf.eth0/1.forwarding"], "1");
        assert!(one("kernel/panic", OWN).is_err());
    }

    #[test]
    fn defaults_give_way_and_stay_off_the_host() {
        assert_eq!(one("net.core.somaxconn", OWN).unwrap()[PING_GROUPS], ALL_GROUPS);
        assert_eq!(one(PORT_START, OWN).unwrap()[PORT_START], "1");
        assert_eq!(one("net/ipv4/ip_unprivileged_port_start", OWN).unwrap()[PORT_START], "1");
        assert!(build(&HashMap::new(), HOST, &Defaults::default()).unwrap().is_empty());
        let off = Defaults { unprivileged_ports: false, unprivileged_icmp: false, ..Defaults::default() };
        assert!(build(&HashMap::new(), OWN, &off).unwrap().is_empty());
    }
}
