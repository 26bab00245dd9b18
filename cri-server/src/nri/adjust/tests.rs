//! Adjustments on a spec, field by field: what is honoured and what is refused.

use std::io;
use std::path::Path;

use cofferdam_proto::nri;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType};

use super::*;
use crate::spec::SpecErrorKind;
use crate::spec::host::{HostDevice, HostEntry, HostPropagation};

/// A host whose mounts are all private.
struct Private;

impl Host for Private {
    fn entry(&self, _path: &Path) -> io::Result<HostEntry> {
        Ok(HostEntry::Other)
    }

    fn devices_below(&self, _folder: &Path) -> io::Result<Vec<(PathBuf, HostDevice)>> {
        Ok(Vec::new())
    }

    fn propagation(&self, _path: &Path) -> io::Result<HostPropagation> {
        Ok(HostPropagation { shared: false, slave: false })
    }
}

fn features() -> Features {
    Features { seccomp: true, swap_accounting: true, min_oom_score_adj: -1000, ..Features::default() }
}

fn changed(wanted: &ContainerAdjustment) -> Result<Spec, SpecError> {
    let mut spec = Spec::default();
    apply(&mut spec, wanted, Node { features: &features(), selinux: false, host: &Private })?;
    Ok(spec)
}

fn of_linux(linux: nri::LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..Default::default() }
}

fn kind(wanted: &ContainerAdjustment) -> SpecErrorKind {
    changed(wanted).expect_err("it was honoured").kind()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn nothing_wanted_changes_nothing_but_empty_lists() {
    let spec = changed(&ContainerAdjustment::default()).unwrap();
    assert_eq!(spec.mounts(), Spec::default().mounts());
    assert_eq!(spec.linux(), Spec::default().linux());
    assert_eq!(spec.hooks(), &None);
}

#[test]
fn variables_arguments_and_annotations() {
    let entry = |key: &str, value: &str| nri::KeyValue { key: key.to_owned(), value: value.to_owned() };
    let mut spec = Spec::default();
    let mut process = Process::default();
    process.set_env(Some(strings(&["PATH=/bin", "GONE=1", "TERM=dumb"])));
    spec.set_process(Some(process));
    spec.set_annotations(Some([("old".to_owned(), "1".to_owned())].into()));
    let wanted = ContainerAdjustment {
        env: vec![entry("TERM", "xterm"), entry("-GONE", ""), entry("NEW", "a=b")],
        args: strings(&["sh", "-c", "true"]),
        annotations: [("-old".to_owned(), String::new()), ("new".to_owned(), "2".to_owned())].into(),
        ..Default::default()
    };
    apply(&mut spec, &wanted, Node { features: &features(), selinux: false, host: &Private }).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.env(), &Some(strings(&["PATH=/bin", "TERM=xterm", "NEW=a=b"])));
    assert_eq!(process.args(), &Some(strings(&["sh", "-c", "true"])));
    assert_eq!(spec.annotations(), &Some([("new".to_owned(), "2".to_owned())].into()));
    let forged = [("io.kubernetes.cri.container-type".to_owned(), "sandbox".to_owned())].into();
    let wanted = ContainerAdjustment { annotations: forged, ..Default::default() };
    assert_eq!(kind(&wanted), SpecErrorKind::Invalid);
}

#[test]
fn mounts_are_replaced_sorted_and_checked() {
    let mount = |destination: &str, options: &[&str]| nri::Mount {
        destination: destination.to_owned(),
        r#type: "bind".to_owned(),
        source: "/src".to_owned(),
        options: strings(options),
    };
    let wanted = |mounts| ContainerAdjustment { mounts, ..Default::default() };
    let mounts = vec![mount("/a/b/c", &["ro"]), mount("/proc", &["bind"]), mount("-/dev/mqueue", &[])];
    let spec = changed(&wanted(mounts)).unwrap();
    let list = spec.mounts().as_ref().unwrap();
    let at = |path: &str| list.iter().position(|m| m.destination() == Path::new(path));
    assert!(at("/dev/mqueue").is_none());
    let of_proc = list.iter().filter(|m| m.destination() == Path::new("/proc")).collect::<Vec<_>>();
    assert_eq!((of_proc.len(), of_proc[0].typ().as_deref()), (1, Some("bind")));
    assert_eq!(at("/a/b/c"), Some(list.len() - 1), "a deep mount comes last");
    assert_eq!(list.last().unwrap().options(), &Some(strings(&["ro", "rbind"])));
    assert_eq!(kind(&wanted(vec![mount("/", &[])])), SpecErrorKind::Invalid);
    assert_eq!(kind(&wanted(vec![mount("/a/../b", &[])])), SpecErrorKind::Invalid);
    assert_eq!(kind(&wanted(vec![mount("/a", &["rshared"])])), SpecErrorKind::Unavailable);
    let relabelled = wanted(vec![mount("/a", &["rprivate", "relabel"])]);
    // The kernel may have SELinux: what counts is whether containers get labels.
    for (selinux, fine) in [(false, true), (true, false)] {
        let features = Features { selinux: true, ..features() };
        let node = Node { features: &features, selinux, host: &Private };
        assert_eq!(apply(&mut Spec::default(), &relabelled, node).is_ok(), fine, "{selinux}");
    }
}

#[test]
fn a_device_brings_its_permission_and_takes_it_along() {
    let device = |path: &str| nri::LinuxDevice {
        path: path.to_owned(),
        r#type: "c".to_owned(),
        major: 10,
        minor: 229,
        ..Default::default()
    };
    let wanted = |devices| of_linux(nri::LinuxContainerAdjustment { devices, ..Default::default() });
    let mut spec = changed(&wanted(vec![device("/dev/fuse")])).unwrap();
    let rules = |spec: &Spec| {
        let linux = spec.linux().as_ref().unwrap();
        let rules = linux.resources().as_ref().and_then(|r| r.devices().clone()).unwrap_or_default();
        rules.iter().filter(|rule| rule.allow() && rule.major() == Some(10)).count()
    };
    let linux = spec.linux().as_ref().unwrap();
    let node = linux.devices().as_ref().unwrap().iter().find(|d| d.path() == Path::new("/dev/fuse")).unwrap();
    assert_eq!((node.typ(), node.major(), node.minor()), (LinuxDeviceType::C, 10, 229));
    assert_eq!(rules(&spec), 1);
    let node = Node { features: &features(), selinux: false, host: &Private };
    apply(&mut spec, &wanted(vec![device("-/dev/fuse")]), node).unwrap();
    assert_eq!(rules(&spec), 0);
    let nonsense = nri::LinuxDevice { r#type: "x".to_owned(), ..device("/dev/x") };
    assert_eq!(kind(&wanted(vec![nonsense])), SpecErrorKind::Invalid);
    assert_eq!(kind(&wanted(vec![device("dev/x")])), SpecErrorKind::Invalid);
}

#[test]
fn resources_are_set_and_what_the_node_lacks_is_refused() {
    let wanted = |resources| {
        of_linux(nri::LinuxContainerAdjustment { resources: Some(resources), ..Default::default() })
    };
    let number = |value| Some(nri::OptionalInt64 { value });
    let spec = changed(&wanted(nri::LinuxResources {
        memory: Some(nri::LinuxMemory { limit: number(1 << 20), ..Default::default() }),
        cpu: Some(nri::LinuxCpu {
            shares: Some(nri::OptionalUInt64 { value: 512 }),
            quota: number(-1),
            cpus: "0".to_owned(),
            ..Default::default()
        }),
        pids: Some(nri::LinuxPids { limit: 0 }),
        ..Default::default()
    }))
    .unwrap();
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    let memory = resources.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(1 << 20), Some(1 << 20)));
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.quota(), cpu.cpus().as_deref()), (Some(512), Some(-1), Some("0")));
    assert_eq!(resources.pids().unwrap().limit(), -1);
    let class = Some(nri::OptionalString { value: "gold".to_owned() });
    let refused = [
        nri::LinuxResources { blockio_class: class, ..Default::default() },
        nri::LinuxResources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        },
        nri::LinuxResources {
            hugepage_limits: vec![nri::HugepageLimit { page_size: "2MB".to_owned(), limit: 1 }],
            ..Default::default()
        },
    ];
    for resources in refused {
        assert_eq!(kind(&wanted(resources.clone())), SpecErrorKind::Unavailable, "{resources:?}");
    }
    let hierarchy =
        nri::LinuxMemory { use_hierarchy: Some(nri::OptionalBool { value: true }), ..Default::default() };
    let resources = nri::LinuxResources { memory: Some(hierarchy), ..Default::default() };
    assert_eq!(kind(&wanted(resources)), SpecErrorKind::Unsupported);
}

#[test]
fn limits_priorities_and_scheduling_of_the_process() {
    let limit = |typ: &str, soft, hard| nri::PosixRlimit { r#type: typ.to_owned(), soft, hard };
    let mut wanted = of_linux(nri::LinuxContainerAdjustment {
        oom_score_adj: Some(nri::OptionalInt { value: 77 }),
        io_priority: Some(nri::LinuxIoPriority {
            class: nri::IoPrioClass::IoprioClassBe.into(),
            priority: 3,
        }),
        scheduler: Some(nri::LinuxScheduler {
            policy: nri::LinuxSchedulerPolicy::SchedBatch.into(),
            nice: 5,
            flags: vec![nri::LinuxSchedulerFlag::SchedFlagDlOverrun.into()],
            ..Default::default()
        }),
        ..Default::default()
    });
    wanted.rlimits = vec![limit("RLIMIT_NOFILE", 10, 20), limit("RLIMIT_CORE", 0, 0)];
    let spec = changed(&wanted).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.oom_score_adj(), Some(77));
    assert_eq!(process.io_priority().unwrap().priority(), 3);
    let scheduler = process.scheduler().clone().unwrap();
    assert_eq!((scheduler.nice(), scheduler.flags().as_ref().map(Vec::len)), (&Some(5), Some(1)));
    let limits: Vec<_> = process.rlimits().iter().flatten().map(|l| (l.soft(), l.hard())).collect();
    assert!(limits.contains(&(10, 20)) && limits.contains(&(0, 0)), "{limits:?}");
    for bad in [limit("RLIMIT_NOFILE", 2, 1), limit("RLIMIT_NONSENSE", 1, 1)] {
        let wanted = ContainerAdjustment { rlimits: vec![bad], ..Default::default() };
        assert_eq!(kind(&wanted), SpecErrorKind::Invalid);
    }
    let score = Some(nri::OptionalInt { value: 1001 });
    let linux = nri::LinuxContainerAdjustment { oom_score_adj: score, ..Default::default() };
    assert_eq!(kind(&of_linux(linux)), SpecErrorKind::Invalid);
}

#[test]
fn namespaces_and_sysctls_stay_the_containers_own() {
    let namespace =
        |typ: &str, path: &str| nri::LinuxNamespace { r#type: typ.to_owned(), path: path.to_owned() };
    let wanted = |namespaces: Vec<_>, sysctl: &[(&str, &str)]| {
        let sysctl = sysctl.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        of_linux(nri::LinuxContainerAdjustment { namespaces, sysctl, ..Default::default() })
    };
    let spec = changed(&wanted(
        vec![namespace("network", "/run/netns/x"), namespace("-ipc", "")],
        &[("net.core.somaxconn", "64")],
    ))
    .unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let types: Vec<_> = linux.namespaces().iter().flatten().map(|n| n.typ()).collect();
    assert!(types.contains(&LinuxNamespaceType::Network) && !types.contains(&LinuxNamespaceType::Ipc));
    assert_eq!(linux.sysctl().as_ref().unwrap()["net.core.somaxconn"], "64");
    let refused = wanted(vec![namespace("-network", "")], &[("net.core.somaxconn", "64")]);
    assert_eq!(kind(&refused), SpecErrorKind::Invalid, "the host's sysctl");
    let refused = wanted(vec![namespace("network", "/proc/self/ns/net")], &[("net.core.somaxconn", "64")]);
    assert_eq!(kind(&refused), SpecErrorKind::Invalid, "the host's sysctl, by the path of its namespace");
    assert_eq!(kind(&wanted(Vec::new(), &[("vm.swappiness", "1")])), SpecErrorKind::Invalid);
    assert_eq!(kind(&wanted(vec![namespace("-mount", "")], &[])), SpecErrorKind::Unsupported);
    assert_eq!(kind(&wanted(vec![namespace("user", "")], &[])), SpecErrorKind::Unsupported);
    assert_eq!(kind(&wanted(vec![namespace("nonsense", "")], &[])), SpecErrorKind::Invalid);
}

#[test]
fn seccomp_hooks_cgroup_and_memory_policy() {
    let policy = nri::LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        architectures: strings(&["SCMP_ARCH_X86_64"]),
        syscalls: vec![nri::LinuxSyscall {
            names: strings(&["mkdir"]),
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(nri::OptionalUInt32 { value: 1 }),
            args: Vec::new(),
        }],
        ..Default::default()
    };
    let linux = nri::LinuxContainerAdjustment {
        seccomp_policy: Some(policy.clone()),
        cgroups_path: "/elsewhere/c1".to_owned(),
        memory_policy: Some(nri::LinuxMemoryPolicy {
            mode: nri::MpolMode::MpolInterleave.into(),
            nodes: "0".to_owned(),
            flags: Vec::new(),
        }),
        ..Default::default()
    };
    let mut wanted = of_linux(linux);
    let hook =
        nri::Hook { path: "/bin/hook".to_owned(), args: strings(&["hook", "x"]), ..Default::default() };
    wanted.hooks = Some(nri::Hooks { create_runtime: vec![hook.clone()], ..Default::default() });
    let spec = changed(&wanted).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let syscalls = linux.seccomp().as_ref().unwrap().syscalls().clone().unwrap();
    assert_eq!((syscalls[0].names()[0].as_str(), syscalls[0].errno_ret()), ("mkdir", Some(1)));
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/elsewhere/c1")));
    assert_eq!(linux.memory_policy().as_ref().unwrap().nodes().as_deref(), Some("0"));
    let hooks = spec.hooks().as_ref().unwrap();
    assert_eq!(hooks.create_runtime().as_ref().unwrap()[0].path(), Path::new("/bin/hook"));
    let relative = nri::Hook { path: "hook".to_owned(), ..hook };
    let hooks = Some(nri::Hooks { poststop: vec![relative], ..Default::default() });
    assert_eq!(kind(&ContainerAdjustment { hooks, ..Default::default() }), SpecErrorKind::Invalid);
    let nonsense = nri::LinuxSeccomp { default_action: "SCMP_ACT_NONSENSE".to_owned(), ..policy };
    let linux = nri::LinuxContainerAdjustment { seccomp_policy: Some(nonsense), ..Default::default() };
    assert_eq!(kind(&of_linux(linux)), SpecErrorKind::Invalid);
    let climbing = nri::LinuxContainerAdjustment { cgroups_path: "/a/../b".to_owned(), ..Default::default() };
    assert_eq!(kind(&of_linux(climbing)), SpecErrorKind::Invalid);
}

#[test]
fn cdi_devices_are_refused_in_words() {
    let device = nri::CdiDevice { name: "vendor.com/class=dev0".to_owned() };
    let wanted = ContainerAdjustment { cdi_devices: vec![device], ..Default::default() };
    assert_eq!(kind(&wanted), SpecErrorKind::Unsupported);
}
