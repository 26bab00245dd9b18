//! Which namespaces a pod and its containers have: own ones, the pod's, another container's or the host's.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, NamespaceMode};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::error::SpecError;
use super::userns::UserNamespace;

/// Which namespaces a pod does not share with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNamespaces {
    pub network: bool,
    pub ipc: bool,
    /// Goes with the network, as a host's name and its addresses belong together.
    pub uts: bool,
    pub pid: bool,
    pub user: Option<UserNamespace>,
}

impl PodNamespaces {
    /// What `options` ask for.
    ///
    /// # Errors
    /// When a mode is unknown or has no meaning for a pod, or a namespace of the node cannot be had with the pod's users.
    pub fn of(options: Option<&cri::NamespaceOption>) -> Result<Self, SpecError> {
        let default = cri::NamespaceOption::default();
        let options = options.unwrap_or(&default);
        let user = UserNamespace::of(options)?;
        let network = own("network", options.network)?;
        let ipc = own("ipc", options.ipc)?;
        let pid = mode("pid", options.pid)? != NamespaceMode::Node;
        if user.is_some() && !(network && ipc && pid) {
            return Err(SpecError::Invalid {
                field: "userns_options",
                value: "POD".to_owned(),
                why: "a pod with users of its own cannot share the network, ipc or pid namespace of the node",
            });
        }
        Ok(Self { network, ipc, uts: network, pid, user })
    }
}

fn mode(field: &'static str, value: i32) -> Result<NamespaceMode, SpecError> {
    NamespaceMode::try_from(value).map_err(|_| SpecError::Invalid {
        field,
        value: value.to_string(),
        why: "no namespace mode of the CRI",
    })
}

/// Network and ipc are either the pod's or the host's.
fn own(field: &'static str, value: i32) -> Result<bool, SpecError> {
    match mode(field, value)? {
        NamespaceMode::Pod => Ok(true),
        NamespaceMode::Node => Ok(false),
        other @ (NamespaceMode::Container | NamespaceMode::Target) => Err(SpecError::Invalid {
            field,
            value: other.as_str_name().to_owned(),
            why: "this namespace is either the pod's or the node's",
        }),
    }
}

/// Where a pod's namespaces can be joined.
#[derive(Clone, Debug)]
pub struct SandboxNamespaces {
    pub network: PathBuf,
    pub ipc: PathBuf,
    pub uts: PathBuf,
    pub pid: PathBuf,
    pub user: PathBuf,
}

impl SandboxNamespaces {
    /// The namespaces of the pause process.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        let path = |name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        Self {
            network: path("net"),
            ipc: path("ipc"),
            uts: path("uts"),
            pid: path("pid"),
            user: path("user"),
        }
    }
}

fn namespace(typ: LinuxNamespaceType, path: Option<&Path>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ);
    namespace.set_path(path.map(Path::to_path_buf));
    namespace
}

/// The pause container's namespaces; `network` is where the pod's was pinned when it was made.
#[must_use]
pub fn for_sandbox(pod: PodNamespaces, network: Option<&Path>) -> Vec<LinuxNamespace> {
    let mut out = vec![namespace(LinuxNamespaceType::Mount, None)];
    if pod.user.is_some() {
        // The runtime makes both, so that the network belongs to the pod's users.
        out.push(namespace(LinuxNamespaceType::User, None));
    }
    if pod.network {
        let network = network.filter(|_| pod.user.is_none());
        out.push(namespace(LinuxNamespaceType::Network, network));
    }
    let own = [
        (pod.ipc, LinuxNamespaceType::Ipc),
        (pod.uts, LinuxNamespaceType::Uts),
        (pod.pid, LinuxNamespaceType::Pid),
    ];
    out.extend(own.into_iter().filter(|(own, _)| *own).map(|(_, typ)| namespace(typ, None)));
    out
}

/// The pod's user namespace, which a container has to share.
///
/// # Errors
/// When the container's own options say otherwise.
pub fn shared_users(
    pod: Option<&cri::NamespaceOption>,
    container: Option<&cri::NamespaceOption>,
) -> Result<Option<UserNamespace>, SpecError> {
    let of = |options: Option<&cri::NamespaceOption>| options.map_or(Ok(None), UserNamespace::of);
    let users = of(pod)?;
    let says = container.is_some_and(|options| options.userns_options.is_some());
    if says && of(container)? != users {
        return Err(SpecError::Invalid {
            field: "userns_options",
            value: "of the container".to_owned(),
            why: "they are not the pod's",
        });
    }
    Ok(users)
}

/// A container's namespaces, with the pod's `users`. `target` is the pid namespace of the container that TARGET mode names.
///
/// # Errors
/// When the options contradict themselves or name no known target.
pub fn for_container(
    options: Option<&cri::NamespaceOption>,
    sandbox: &SandboxNamespaces,
    users: Option<UserNamespace>,
    target: Option<&Path>,
    cgroup_namespace: bool,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let pod = PodNamespaces::of(options)?;
    let mut out = vec![namespace(LinuxNamespaceType::Mount, None)];
    if users.is_some() {
        out.push(namespace(LinuxNamespaceType::User, Some(&sandbox.user)));
    }
    if pod.network {
        out.push(namespace(LinuxNamespaceType::Network, Some(&sandbox.network)));
        out.push(namespace(LinuxNamespaceType::Uts, Some(&sandbox.uts)));
    }
    if pod.ipc {
        out.push(namespace(LinuxNamespaceType::Ipc, Some(&sandbox.ipc)));
    }
    match mode("pid", options.map_or(NamespaceMode::Pod as i32, |options| options.pid))? {
        NamespaceMode::Pod => out.push(namespace(LinuxNamespaceType::Pid, Some(&sandbox.pid))),
        NamespaceMode::Container => out.push(namespace(LinuxNamespaceType::Pid, None)),
        NamespaceMode::Node => {}
        NamespaceMode::Target => {
            let target = target.ok_or_else(|| SpecError::Invalid {
                field: "target_id",
                value: options.map(|options| options.target_id.clone()).unwrap_or_default(),
                why: "no running container of this pod has this id",
            })?;
            out.push(namespace(LinuxNamespaceType::Pid, Some(target)));
        }
    }
    if cgroup_namespace {
        out.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> cri::NamespaceOption {
        cri::NamespaceOption {
            network: network as i32,
            pid: pid as i32,
            ipc: ipc as i32,
            ..cri::NamespaceOption::default()
        }
    }

    fn text(namespaces: &[LinuxNamespace]) -> String {
        let one = |ns: &LinuxNamespace| match ns.path() {
            Some(path) => format!("{}={}", ns.typ(), path.display()),
            None => ns.typ().to_string(),
        };
        namespaces.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_container_joins_what_its_options_say() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let table = [
            (
                Pod,
                Pod,
                Pod,
                "mnt net=/proc/7/ns/net uts=/proc/7/ns/uts ipc=/proc/7/ns/ipc pid=/proc/7/ns/pid",
            ),
            (Pod, Container, Pod, "mnt net=/proc/7/ns/net uts=/proc/7/ns/uts ipc=/proc/7/ns/ipc pid"),
            (Node, Node, Node, "mnt"),
            (Node, Target, Pod, "mnt ipc=/proc/7/ns/ipc pid=/proc/9/ns/pid"),
        ];
        let sandbox = SandboxNamespaces::of_process(7);
        for (network, pid, ipc, expected) in table {
            let built = for_container(
                Some(&options(network, pid, ipc)),
                &sandbox,
                None,
                Some(Path::new("/proc/9/ns/pid")),
                false,
            );
            assert_eq!(text(&built.unwrap()), expected);
        }
        let on_v2 = for_container(None, &sandbox, None, None, true).unwrap();
        assert!(text(&on_v2).ends_with(" cgroup"));
    }

    #[test]
    fn a_sandbox_has_its_own_except_the_hosts() {
        use NamespaceMode::{Container, Node, Pod};
        let table = [
            (options(Pod, Pod, Pod), "mnt net=/n ipc uts pid"),
            (options(Pod, Container, Pod), "mnt net=/n ipc uts pid"),
            (options(Node, Pod, Pod), "mnt ipc pid"),
            (options(Pod, Node, Node), "mnt net=/n uts"),
        ];
        for (options, expected) in table {
            let pod = PodNamespaces::of(Some(&options)).unwrap();
            assert_eq!(text(&for_sandbox(pod, Some(Path::new("/n")))), expected);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        use NamespaceMode::{Container, Pod, Target};
        let sandbox = SandboxNamespaces::of_process(7);
        assert!(for_container(Some(&options(Container, Pod, Pod)), &sandbox, None, None, false).is_err());
        assert!(for_container(Some(&options(Pod, Target, Pod)), &sandbox, None, None, false).is_err());
        let mut unknown = options(Pod, Pod, Pod);
        unknown.ipc = 77;
        assert!(for_container(Some(&unknown), &sandbox, None, None, false).is_err());
    }

    fn mapped(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> cri::NamespaceOption {
        let ids = vec![cri::IdMapping { host_id: 70_000, container_id: 0, length: 65_536 }];
        let users = cri::UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids };
        cri::NamespaceOption { userns_options: Some(users), ..options(network, pid, ipc) }
    }

    #[test]
    fn a_pod_with_users_of_its_own_shares_them_with_its_containers() {
        use NamespaceMode::{Container, Node, Pod};
        let asked = mapped(Pod, Container, Pod);
        let pod = PodNamespaces::of(Some(&asked)).unwrap();
        assert_eq!(text(&for_sandbox(pod, Some(Path::new("/n")))), "mnt user net ipc uts pid");
        let users = shared_users(Some(&asked), None).unwrap();
        assert_eq!(shared_users(Some(&asked), Some(&asked)).unwrap(), users);
        let built = for_container(Some(&asked), &SandboxNamespaces::of_process(7), users, None, false);
        assert!(text(&built.unwrap()).starts_with("mnt user=/proc/7/ns/user net=/proc/7/ns/net"));
        for other in [mapped(Node, Container, Pod), mapped(Pod, Node, Pod), mapped(Pod, Pod, Node)] {
            assert!(PodNamespaces::of(Some(&other)).is_err(), "{other:?}");
        }
        let nodes = cri::UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() };
        let nodes = cri::NamespaceOption { userns_options: Some(nodes), ..options(Pod, Pod, Pod) };
        assert!(shared_users(Some(&asked), Some(&nodes)).is_err());
        assert!(shared_users(Some(&nodes), Some(&asked)).is_err());
        assert_eq!(shared_users(None, Some(&nodes)).unwrap(), None);
    }
}
