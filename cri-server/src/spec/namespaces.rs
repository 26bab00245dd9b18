//! Which namespaces a pod and its containers have: own ones, the pod's, another container's or the host's.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, NamespaceMode};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::error::SpecError;

/// Which namespaces a pod does not share with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNamespaces {
    pub network: bool,
    pub ipc: bool,
    /// Goes with the network, as a host's name and its addresses belong together.
    pub uts: bool,
    pub pid: bool,
}

impl PodNamespaces {
    /// What `options` ask for.
    ///
    /// # Errors
    /// When a mode is unknown or has no meaning for a pod, or user namespaces are asked for.
    pub fn of(options: Option<&cri::NamespaceOption>) -> Result<Self, SpecError> {
        let default = cri::NamespaceOption::default();
        let options = options.unwrap_or(&default);
        refuse_user_namespaces(options)?;
        let network = own("network", options.network)?;
        let ipc = own("ipc", options.ipc)?;
        let pid = mode("pid", options.pid)? != NamespaceMode::Node;
        Ok(Self { network, ipc, uts: network, pid })
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

fn refuse_user_namespaces(options: &cri::NamespaceOption) -> Result<(), SpecError> {
    match &options.userns_options {
        Some(user) if mode("user namespace", user.mode)? != NamespaceMode::Node => {
            Err(SpecError::Unsupported("user namespaces"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Where a pod's namespaces can be joined.
#[derive(Clone, Debug)]
pub struct SandboxNamespaces {
    pub network: PathBuf,
    pub ipc: PathBuf,
    pub uts: PathBuf,
    pub pid: PathBuf,
}

impl SandboxNamespaces {
    /// The namespaces of the pause process.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        let path = |name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        Self { network: path("net"), ipc: path("ipc"), uts: path("uts"), pid: path("pid") }
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
    if pod.network {
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

/// A container's namespaces. `target` is the pid namespace of the container that TARGET mode names.
///
/// # Errors
/// When the options contradict themselves, name no known target, or ask for user namespaces.
pub fn for_container(
    options: Option<&cri::NamespaceOption>,
    sandbox: &SandboxNamespaces,
    target: Option<&Path>,
    cgroup_namespace: bool,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let pod = PodNamespaces::of(options)?;
    let mut out = vec![namespace(LinuxNamespaceType::Mount, None)];
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
                Some(Path::new("/proc/9/ns/pid")),
                false,
            );
            assert_eq!(text(&built.unwrap()), expected);
        }
        let on_v2 = for_container(None, &sandbox, None, true).unwrap();
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
        assert!(for_container(Some(&options(Container, Pod, Pod)), &sandbox, None, false).is_err());
        assert!(for_container(Some(&options(Pod, Target, Pod)), &sandbox, None, false).is_err());
        let mut unknown = options(Pod, Pod, Pod);
        unknown.ipc = 77;
        assert!(for_container(Some(&unknown), &sandbox, None, false).is_err());
        let mut user = options(Pod, Pod, Pod);
        user.userns_options = Some(cri::UserNamespace { mode: Pod as i32, ..Default::default() });
        let refused = for_container(Some(&user), &sandbox, None, false).unwrap_err();
        assert_eq!(refused.kind(), super::super::SpecErrorKind::Unsupported);
        user.userns_options =
            Some(cri::UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() });
        assert!(for_container(Some(&user), &sandbox, None, false).is_ok());
    }
}
