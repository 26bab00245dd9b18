//! What the node can do, as far as a container's spec depends on it.

use std::fs;
use std::path::Path;

use oci_spec::runtime::Capabilities;

use super::capabilities::from_mask;
use crate::cgroup::{Driver, Layout, Mounts};

/// Whether the node can map the owners of layers and volumes, as was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserNamespaces {
    Available,
    /// With the reason.
    Unavailable(String),
}

impl Default for UserNamespaces {
    fn default() -> Self {
        Self::Unavailable("it was not tried".to_owned())
    }
}

/// What the node can do. The default is a bare node: no optional feature at all.
#[derive(Clone, Debug, Default)]
pub struct Features {
    pub layout: Layout,
    pub driver: Driver,
    /// Containers get a cgroup namespace: on v2, where the whole hierarchy would be seen otherwise.
    pub cgroup_namespace: bool,
    /// The memory controller counts swap.
    pub swap_accounting: bool,
    /// There is a hugetlb controller.
    pub hugetlb: bool,
    /// It is in the v2 half of a hybrid node, where our own shim finds it and the OCI runtimes of others do not look.
    pub hugetlb_is_hidden: bool,
    pub seccomp: bool,
    pub apparmor: bool,
    pub selinux: bool,
    /// mount_setattr(2) can make a tree of mounts read-only; depends on the runtime handler as well.
    pub recursive_readonly: bool,
    /// Whether containers of our own shim can have users of their own.
    pub user_namespaces: UserNamespaces,
    /// The lowest OOM score adjustment that the daemon may give.
    pub min_oom_score_adj: i32,
    /// The capabilities that the daemon may hand on.
    pub capabilities: Capabilities,
}

/// One line's value in a file of `Key:\tvalue` lines.
pub(super) fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Linux 5.12 brought mount_setattr(2).
fn kernel_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

impl Features {
    /// Looks at the node that this process runs on. What cannot be read counts as absent.
    #[must_use]
    pub fn probe() -> Self {
        let mounts = Mounts::read().unwrap_or_default();
        let layout = mounts.layout();
        let status = text("/proc/self/status");
        let mask = |key: &str| status_field(&status, key).and_then(|mask| u64::from_str_radix(mask, 16).ok());
        // What a container gets has to be both permitted to the daemon and within its bounding set.
        let held = mask("CapPrm").unwrap_or(0) & mask("CapBnd").unwrap_or(0);
        let capabilities = from_mask(held);
        let resource = oci_spec::runtime::Capability::SysResource;
        let own_score = text("/proc/self/oom_score_adj").trim().parse().unwrap_or(0);
        Self {
            layout,
            driver: Driver::detect(),
            cgroup_namespace: layout.is_unified() && Path::new("/proc/self/ns/cgroup").exists(),
            swap_accounting: swap_accounting(&mounts),
            hugetlb_is_hidden: layout == Layout::Hybrid && !mounts.controllers.contains_key("hugetlb"),
            hugetlb: mounts.available().unwrap_or_default().iter().any(|name| name == "hugetlb"),
            seccomp: text("/proc/sys/kernel/seccomp/actions_avail").contains("errno"),
            apparmor: text("/sys/module/apparmor/parameters/enabled").trim() == "Y"
                && Path::new("/sys/kernel/security/apparmor/profiles").exists(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            recursive_readonly: kernel_at_least(&text("/proc/sys/kernel/osrelease"), (5, 12)),
            min_oom_score_adj: if capabilities.contains(&resource) { -1000 } else { own_score },
            capabilities,
            // Tried by the shim, which does it.
            user_namespaces: UserNamespaces::default(),
        }
    }
}

impl Features {
    /// What containers can have that an OCI runtime other than our own makes.
    #[must_use]
    pub fn of_other_runtimes(&self) -> Self {
        Self { hugetlb: self.hugetlb && !self.hugetlb_is_hidden, ..self.clone() }
    }
}

fn swap_accounting(mounts: &Mounts) -> bool {
    if let Some(memory) = mounts.controllers.get("memory") {
        return memory.join("memory.memsw.limit_in_bytes").exists();
    }
    // The root of v2 has no limits: look where this process is, then at any child of the root.
    let Some(unified) = &mounts.unified else { return false };
    let own = crate::cgroup::OwnCgroups::read().unwrap_or_default();
    let own = own.0.get("").map(|path| unified.join(path.trim_start_matches('/')));
    let children = fs::read_dir(unified).into_iter().flatten().flatten().map(|entry| entry.path());
    own.into_iter().chain(children).any(|path| path.join("memory.swap.max").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(kernel_at_least("6.18.44-fc", (5, 12)) && kernel_at_least("5.12", (5, 12)));
        assert!(!kernel_at_least("5.9.1", (5, 12)) && !kernel_at_least("", (5, 12)));
    }

    #[test]
    fn a_field_is_read_by_its_whole_name() {
        let status = "CapInh:\t0\nCapPrm:\t00ff\nCapBndX:\t1\n";
        assert_eq!(status_field(status, "CapPrm"), Some("00ff"));
        assert_eq!(status_field(status, "CapBnd"), None);
    }

    #[test]
    fn this_node_can_do_something() {
        let features = Features::probe();
        assert!(features.seccomp, "{features:?}");
        assert!((-1000..=1000).contains(&features.min_oom_score_adj));
    }
}
