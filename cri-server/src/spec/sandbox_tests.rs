//! The rules of [`super`], read from the specs that come out.

use oci_spec::runtime::{Capability, LinuxNamespaceType};

use super::*;

fn config() -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".to_owned(),
            uid: "u1".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: "web-0".to_owned(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/podu1".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn build(config: &cri::PodSandboxConfig, features: &Features) -> Result<Spec, SpecError> {
    sandbox_spec(&SandboxInput {
        id: &SandboxId::parse("s1").unwrap(),
        config,
        pause_binary: Path::new("/opt/shim"),
        network_namespace: Some(Path::new("/run/netns/s1")),
        cgroups_path: "/kubepods/podu1/s1",
        shm: Some(Path::new("/run/s1/shm")),
        resolv_conf: None,
        localhost_seccomp: None,
        selinux_level: None,
        defaults: &Defaults::default(),
        features,
    })
}

fn security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

#[test]
fn the_pause_process_can_do_nothing() {
    let spec = build(&config(), &Features::default()).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/pause"]);
    assert_eq!((process.user().uid(), process.user().gid()), (NOBODY, NOBODY));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().map(|set| set.len()), Some(0));
    assert_eq!(process.rlimits(), &None);
    let root = spec.root().as_ref().unwrap();
    assert_eq!((root.path().as_path(), root.readonly()), (Path::new("rootfs"), Some(true)));
    let pause =
        spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new("/pause")).unwrap();
    assert_eq!(pause.source().as_deref(), Some(Path::new("/opt/shim")));
    assert!(pause.options().as_ref().unwrap().contains(&"ro".to_owned()));
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kubepods/podu1/s1")));
    assert_eq!(linux.resources().as_ref().unwrap().cpu().as_ref().unwrap().shares(), Some(2));
    assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
    assert_eq!(spec.hostname().as_deref(), Some("web-0"));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!(annotations["io.kubernetes.cri.container-type"], "sandbox");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-uid"], "u1");
}

#[test]
fn the_oom_score_is_what_the_node_allows() {
    let score = |min_oom_score_adj| {
        let features = Features { min_oom_score_adj, ..Features::default() };
        build(&config(), &features).unwrap().process().as_ref().unwrap().oom_score_adj()
    };
    assert_eq!(score(-1000), Some(-998));
    assert_eq!(score(0), Some(0));
}

#[test]
fn a_pod_in_the_hosts_network_has_neither_name_nor_sysctls_of_its_own() {
    let own = build(&config(), &Features::default()).unwrap();
    let sysctls = own.linux().as_ref().unwrap().sysctl().clone().unwrap();
    assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
    let mut config = config();
    security(&mut config).namespace_options =
        Some(cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() });
    let spec = build(&config, &Features::default()).unwrap();
    assert_eq!(spec.hostname(), &None);
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.sysctl().as_ref().unwrap().is_empty());
    let types: Vec<_> = linux.namespaces().iter().flatten().map(|ns| ns.typ()).collect();
    assert!(!types.contains(&LinuxNamespaceType::Network) && !types.contains(&LinuxNamespaceType::Uts));
    config.linux.as_mut().unwrap().sysctls.insert("net.core.somaxconn".to_owned(), "5".to_owned());
    assert!(matches!(build(&config, &Features::default()), Err(SpecError::Sysctl { .. })));
}

#[test]
fn the_pause_container_has_the_requests_profile_and_user() {
    let features = Features { seccomp: true, ..Features::default() };
    let mut config = config();
    security(&mut config).seccomp = Some(cri::SecurityProfile::default());
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 7 });
    let spec = build(&config, &features).unwrap();
    assert_eq!(spec.process().as_ref().unwrap().user().uid(), 7);
    let filter = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    let names: Vec<_> = filter.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect();
    assert!(!names.contains(&"mount".to_owned()), "{:?} is not held", Capability::SysAdmin);
    security(&mut config).privileged = true;
    assert!(build(&config, &features).unwrap().linux().as_ref().unwrap().seccomp().is_none());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut no_metadata = config();
    no_metadata.metadata = None;
    assert!(matches!(build(&no_metadata, &Features::default()), Err(SpecError::Missing(_))));
    let mut group_only = config();
    security(&mut group_only).run_as_group = Some(cri::Int64Value { value: 7 });
    assert!(build(&group_only, &Features::default()).is_err());
}
