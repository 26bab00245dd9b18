//! A container's specification as the guest gets it. Pure.
//!
//! What names something of the node is shown to the guest through the share, or stands for something in the guest, or is
//! refused: nothing of the node's is left in it. Security settings stay as they are, but for the labels and profiles of
//! modules that only the node's kernel has.

use std::path::{Path, PathBuf};

use cofferdam_vm::agent::{NETNS, RUNTIME, SHM};
use cofferdam_vm::share::{Item, Share};
use cofferdam_vm::sys::mount::{Source, Submounts};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Spec};

use crate::error::ShimError;

/// Whose specification it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The pod's pause.
    Pause,
    /// A container of the pod whose pause has this pid in the guest.
    Container { pause: u32 },
}

#[derive(Debug)]
pub struct Translated {
    pub spec: Spec,
    /// What has to be shown of the node.
    pub items: Vec<Item>,
    /// What the container does without, in words.
    pub without: Vec<&'static str>,
}

fn refused(what: &str) -> ShimError {
    ShimError::Invalid(format!("a pod in a virtual machine cannot have {what}"))
}

/// The pod's own /dev/shm on the node, for which the guest has its own.
pub fn shm_of(pause: &Spec) -> Option<PathBuf> {
    let mount = pause.mounts().as_ref()?.iter().find(|mount| is_shm(mount))?;
    mount.source().clone()
}

fn is_shm(mount: &Mount) -> bool {
    mount.destination().as_os_str() == "/dev/shm"
        && is_bind(mount, mount.options().as_deref().unwrap_or_default())
}

/// The limits that have a meaning in the guest: the others count the node's processors, disks and huge pages.
pub fn guests(resources: &mut LinuxResources) {
    resources.set_block_io(None).set_hugepage_limits(None).set_rdma(None);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
}

/// `shm` is what [`shm_of`] found in the pause's specification.
pub fn translate(mut spec: Spec, id: &str, role: Role, shm: Option<&Path>) -> Result<Translated, ShimError> {
    if has_hooks(&spec) {
        return Err(refused("hooks, which are programs of the node"));
    }
    let mut without = Vec::new();
    leave_labels_out(&mut spec, &mut without);
    let items = translate_mounts(&mut spec, id, role, shm)?;
    translate_linux(&mut spec, id, role)?;
    Ok(Translated { spec, items, without })
}

fn has_hooks(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    let lists = [
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

fn leave_labels_out(spec: &mut Spec, without: &mut Vec<&'static str>) {
    if let Some(process) = spec.process_mut() {
        if process.apparmor_profile().as_deref().is_some_and(|name| !name.is_empty() && name != "unconfined")
        {
            without.push("its AppArmor profile");
        }
        if process.selinux_label().as_deref().is_some_and(|label| !label.is_empty()) {
            without.push("its SELinux label");
        }
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(None);
    }
}

fn translate_mounts(
    spec: &mut Spec,
    id: &str,
    role: Role,
    shm: Option<&Path>,
) -> Result<Vec<Item>, ShimError> {
    let mut items = Vec::new();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (number, mount) in mounts.iter_mut().enumerate() {
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(refused("volumes with mapped owners"));
        }
        let options = mount.options().clone().unwrap_or_default();
        if options.iter().any(|option| option == "rshared" || option == "shared") {
            return Err(refused("volumes that propagate mounts to the node"));
        }
        if !is_bind(mount, &options) {
            continue;
        }
        // A volume of the container's own may lie there as well.
        let source = if is_shm(mount) && mount.source().as_deref() == shm {
            PathBuf::from(SHM)
        } else if role == Role::Pause && mount.destination().as_os_str() == "/pause" {
            PathBuf::from(RUNTIME)
        } else {
            let Some(path) = mount.source().clone() else {
                return Err(refused("a bind mount without a source"));
            };
            let name = format!("mounts/{number}");
            let has = |word: &str| options.iter().any(|option| option == word);
            let below = Submounts { read_only: has("rro"), follow: has("rslave") };
            let read_only = has("ro") || has("rro");
            items.push(Item { name: name.clone(), source: Source::Bind(path), read_only, below });
            Share::guest_path(id, &name)
        };
        mount.set_source(Some(source));
    }
    spec.set_mounts(Some(mounts));
    Ok(items)
}

/// In the guest, what is mounted below a read-only mount would be read-only as well. Where that is not asked for, and
/// there is something (`has_mounts`), read-only is left to the node's side alone.
pub fn leave_to_the_node(spec: &mut Spec, id: &str, items: &[Item], has_mounts: impl Fn(&Path) -> bool) {
    let apart = items.iter().filter(|item| match &item.source {
        Source::Bind(path) => item.read_only && !item.below.read_only && has_mounts(path),
        Source::New { .. } => false,
    });
    let sources: Vec<PathBuf> = apart.map(|item| Share::guest_path(id, &item.name)).collect();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.source().as_ref().is_some_and(|source| sources.contains(source)) {
            let rest = mount.options().iter().flatten().filter(|option| *option != "ro").cloned();
            let options = rest.chain(["rw".to_owned()]).collect();
            mount.set_options(Some(options));
        }
    }
}

fn is_bind(mount: &Mount, options: &[String]) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind")
}

fn translate_linux(spec: &mut Spec, id: &str, role: Role) -> Result<(), ShimError> {
    let Some(linux) = spec.linux_mut() else { return Err(refused("no Linux settings")) };
    let namespaces = translate_namespaces(linux.namespaces().clone().unwrap_or_default(), role)?;
    linux.set_namespaces(Some(namespaces));
    // The node may leave its cgroups to systemd; there is none in the guest.
    linux.set_cgroups_path(Some(format!("/pod/{id}").into()));
    linux.set_rootfs_propagation(None);
    if let Some(resources) = linux.resources_mut() {
        guests(resources);
    }
    Ok(())
}

fn translate_namespaces(
    namespaces: Vec<LinuxNamespace>,
    role: Role,
) -> Result<Vec<LinuxNamespace>, ShimError> {
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    for (kind, words) in [
        (LinuxNamespaceType::Network, "the node's network"),
        (LinuxNamespaceType::Ipc, "the node's IPC"),
        (LinuxNamespaceType::Uts, "the node's host name"),
        (LinuxNamespaceType::Pid, "the node's processes"),
    ] {
        // A container shares what its pod has, and the pod was looked at.
        if role == Role::Pause && !has(kind) {
            return Err(refused(words));
        }
    }
    let mut translated = Vec::new();
    for mut namespace in namespaces {
        let name = match namespace.typ() {
            LinuxNamespaceType::Network => {
                namespace.set_path(Some(NETNS.into()));
                translated.push(namespace);
                continue;
            }
            LinuxNamespaceType::User => return Err(refused("users of its own")),
            LinuxNamespaceType::Time => return Err(refused("a clock of its own")),
            LinuxNamespaceType::Mount => "mnt",
            LinuxNamespaceType::Cgroup => "cgroup",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Pid => "pid",
        };
        if namespace.path().is_some() {
            let Role::Container { pause } = role else { return Err(refused("namespaces of others")) };
            namespace.set_path(Some(format!("/proc/{pause}/ns/{name}").into()));
        }
        translated.push(namespace);
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},
            "process":{{"cwd":"/","user":{{"uid":0,"gid":0}},"args":["a"],"apparmorProfile":"p"}},
            "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
              {{"destination":"/dev/shm","type":"bind","source":"/host/shm","options":["rbind"]}},
              {{"destination":"/pause","type":"bind","source":"/host/shim","options":["rbind","ro"]}},
              {{"destination":"/data","type":"bind","source":"/host/data","options":["rbind","ro"]}}],
            "linux":{{"cgroupsPath":"a.slice:b:c","namespaces":[{{"type":"mount"}},
              {{"type":"network","path":"/host/net"}},{{"type":"ipc"}},{{"type":"uts"}},{{"type":"pid"}}{extra}]}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn text(spec: &Spec) -> String {
        serde_json::to_string(spec).unwrap()
    }

    #[test]
    fn nothing_of_the_node_is_left_but_through_the_share() {
        let got = translate(spec(""), "c1", Role::Pause, Some(Path::new("/host/shm"))).unwrap();
        let words = text(&got.spec);
        assert!(!words.contains("/host") && !words.contains("slice"), "{words}");
        assert!(
            words.contains("/run/cofferdam/share/c1/mounts/3")
                && words.contains(RUNTIME)
                && words.contains(SHM)
        );
        assert_eq!(got.items.len(), 1);
        assert!(got.items[0].read_only && got.items[0].source == Source::Bind("/host/data".into()));
        assert_eq!(got.without, ["its AppArmor profile"]);
    }

    #[test]
    fn shared_memory_is_the_guests_and_a_volume_in_its_place_is_shown() {
        assert_eq!(shm_of(&spec("")), Some("/host/shm".into()));
        let shown = |shm: &str| {
            let role = Role::Container { pause: 1 };
            translate(spec(""), "c1", role, Some(Path::new(shm))).unwrap().items
        };
        let volume = Source::Bind("/host/shm".into());
        assert!(shown("/host/shm").iter().all(|item| item.source != volume));
        assert!(shown("/host/other").iter().any(|item| item.source == volume));
    }

    #[test]
    fn limits_that_count_what_is_the_nodes_are_left_out() {
        let text = r#"{"cpu":{"shares":5,"cpus":"0-3","mems":"0"},"memory":{"limit":7},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        let mut limits: LinuxResources = serde_json::from_str(text).unwrap();
        guests(&mut limits);
        let cpu = limits.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.cpus(), limits.hugepage_limits()), (Some(5), &None, &None));
        assert_eq!(limits.memory().unwrap().limit(), Some(7));
    }

    #[test]
    fn what_lies_in_a_read_only_volume_is_as_deep_as_asked() {
        let options = |deep: &str, mounts: bool| {
            let mut deeper = spec("");
            let mut all = deeper.mounts().clone().unwrap();
            all[3].set_options(Some(vec!["rbind".into(), deep.into()]));
            deeper.set_mounts(Some(all));
            let mut got = translate(deeper, "c1", Role::Pause, Some(Path::new("/host/shm"))).unwrap();
            assert!(got.items[0].read_only);
            assert_eq!(got.items[0].below.read_only, deep == "rro");
            leave_to_the_node(&mut got.spec, "c1", &got.items, |_| mounts);
            got.spec.mounts().as_ref().unwrap()[3].options().clone().unwrap()
        };
        assert_eq!(options("ro", false), ["rbind", "ro"]);
        assert_eq!(options("ro", true), ["rbind", "rw"]);
        assert_eq!(options("rro", true), ["rbind", "rro"]);
    }

    #[test]
    fn a_containers_namespaces_are_those_of_the_guests_pause() {
        let mut joined = spec("");
        let linux = joined.linux_mut().as_mut().unwrap();
        let mut namespaces = linux.namespaces().clone().unwrap();
        for namespace in &mut namespaces {
            if namespace.typ() == LinuxNamespaceType::Ipc {
                namespace.set_path(Some("/proc/777/ns/ipc".into()));
            }
        }
        linux.set_namespaces(Some(namespaces));
        let words = text(&translate(joined, "c1", Role::Container { pause: 42 }, None).unwrap().spec);
        assert!(
            words.contains("/proc/42/ns/ipc") && !words.contains("777") && !words.contains("/host/net"),
            "{words}"
        );
    }

    #[test]
    fn what_has_no_meaning_in_a_machine_is_refused_in_words() {
        let refusal = |spec| translate(spec, "c1", Role::Pause, None).unwrap_err().to_string();
        assert!(refusal(spec(r#",{"type":"user"}"#)).contains("users of its own"));
        let mut host = spec("");
        host.linux_mut().as_mut().unwrap().set_namespaces(Some(Vec::new()));
        assert!(refusal(host).contains("the node's network"));
        let mut shared = spec("");
        let mut mounts = shared.mounts().clone().unwrap();
        mounts[3].set_options(Some(vec!["rbind".into(), "rshared".into()]));
        shared.set_mounts(Some(mounts));
        assert!(refusal(shared).contains("propagate"));
    }
}
