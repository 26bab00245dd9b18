//! The rules of [`super`], read from the specs that come out.

use oci_spec::runtime::{Capability, LinuxNamespaceType};

use super::super::fixture::{MadeUpHost, image};
use super::*;
use crate::cgroup::Layout;
use crate::node::CAPABILITIES;

struct Request {
    config: cri::ContainerConfig,
    sandbox: cri::PodSandboxConfig,
    features: Features,
    defaults: Defaults,
}

impl Request {
    fn new() -> Self {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
            command: vec!["/bin/app".to_owned()],
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let features = Features {
            capabilities: CAPABILITIES.into_iter().collect(),
            seccomp: true,
            min_oom_score_adj: -1000,
            ..Features::default()
        };
        Self { config, sandbox: cri::PodSandboxConfig::default(), features, defaults: Defaults::default() }
    }

    fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn privileged(mut self) -> Self {
        self.security().privileged = true;
        let linux = self.sandbox.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
        self
    }

    fn build(&self) -> Result<Spec, SpecError> {
        container_spec(&ContainerInput {
            id: &ContainerId::parse("c1").unwrap(),
            sandbox_id: &SandboxId::parse("s1").unwrap(),
            config: &self.config,
            sandbox_config: &self.sandbox,
            image: &image(&serde_json::json!({"Env": ["A=b"], "WorkingDir": "/srv"})),
            image_name: "docker.io/library/app:1",
            user: &ResolvedUser {
                uid: 33,
                gid: 34,
                additional_gids: vec![34, 50],
                home: Some("/srv".to_owned()),
            },
            rootfs: Path::new("rootfs"),
            hostname: "web-0",
            cgroups_path: "/cofferdam/c1",
            namespaces: &SandboxNamespaces::of_process(7),
            target_pid_namespace: None,
            files: &SandboxFiles { shm: Some("/s/shm".into()), ..SandboxFiles::default() },
            localhost_seccomp: None,
            selinux_level: None,
            host: &MadeUpHost::default(),
            defaults: &self.defaults,
            features: &self.features,
        })
    }
}

#[test]
fn a_plain_container_is_built_whole() {
    let mut request = Request::new();
    request.config.tty = true;
    request.security().masked_paths = vec!["/proc/kcore".to_owned()];
    request.config.linux.as_mut().unwrap().resources =
        Some(cri::LinuxContainerResources { oom_score_adj: -997, cpu_shares: 100, ..Default::default() });
    let spec = request.build().unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/bin/app"]);
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[34, 50]);
    assert_eq!(process.user().umask(), None);
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.terminal(), Some(true));
    let env = process.env().as_ref().unwrap();
    for entry in ["TERM=xterm", "HOSTNAME=web-0", "HOME=/srv", "A=b"] {
        assert!(env.contains(&entry.to_owned()), "{entry} in {env:?}");
    }
    assert_eq!((process.oom_score_adj(), process.no_new_privileges()), (Some(-997), None));
    assert_eq!(process.rlimits(), &None);
    assert_eq!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().len(), 14);
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/cofferdam/c1")));
    assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
    assert!(linux.seccomp().is_none() && linux.devices().as_ref().unwrap().is_empty());
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!(annotations["io.kubernetes.cri.container-name"], "app");
    assert_eq!(annotations["io.kubernetes.cri.image-name"], "docker.io/library/app:1");
}

#[test]
fn the_security_context_reaches_the_spec() {
    let mut request = Request::new();
    request.security().readonly_rootfs = true;
    request.security().no_new_privs = true;
    request.security().seccomp = Some(cri::SecurityProfile::default());
    request.security().capabilities =
        Some(cri::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
    let spec = request.build().unwrap();
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(true));
    let filter = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    let names: Vec<_> = filter.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect();
    assert!(!names.contains(&"chroot".to_owned()), "the filter follows the capabilities held");
}

#[test]
fn privilege_opens_everything_that_the_node_has() {
    let mut request = Request::new().privileged();
    request.features.capabilities.remove(&Capability::SysResource);
    request.security().masked_paths = vec!["/proc/kcore".to_owned()];
    request.security().seccomp = Some(cri::SecurityProfile::default());
    let spec = request.build().unwrap();
    let held = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().clone().unwrap();
    assert_eq!(held, request.features.capabilities);
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none() && linux.masked_paths().as_ref().unwrap().is_empty());
    assert_eq!(linux.devices().as_ref().unwrap().len(), 3);
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    assert_eq!(rules.iter().map(|rule| rule.allow()).collect::<Vec<_>>(), [true]);
    let mut alone = Request::new();
    alone.security().privileged = true;
    assert!(matches!(alone.build(), Err(SpecError::PrivilegedInPlainSandbox)));
}

#[test]
fn a_unified_node_gives_a_cgroup_namespace() {
    let mut request = Request::new();
    request.features.layout = Layout::Unified;
    request.features.cgroup_namespace = true;
    let spec = request.build().unwrap();
    let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    assert!(namespaces.iter().any(|ns| ns.typ() == LinuxNamespaceType::Cgroup && ns.path().is_none()));
}

#[test]
fn a_localhost_profile_is_named_for_the_caller() {
    let mut request = Request::new();
    assert_eq!(localhost_seccomp_path(&request.config).unwrap(), None);
    request.security().seccomp = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Localhost as i32,
        localhost_ref: "localhost//p/x.json".to_owned(),
    });
    assert_eq!(localhost_seccomp_path(&request.config).unwrap(), Some(PathBuf::from("/p/x.json")));
    assert!(matches!(request.build(), Err(SpecError::Unavailable { .. })));
    request = request.privileged();
    assert_eq!(localhost_seccomp_path(&request.config).unwrap(), None);
}

#[test]
fn what_is_not_served_is_refused_by_type() {
    let mut request = Request::new();
    request.config.command.clear();
    assert!(matches!(request.build(), Err(SpecError::NoCommand)));
    let mut request = Request::new();
    request.config.metadata = None;
    assert!(matches!(request.build(), Err(SpecError::Missing(_))));
    let mut request = Request::new();
    request.security().apparmor = Some(cri::SecurityProfile::default());
    assert!(matches!(request.build(), Err(SpecError::Unavailable { .. })));
}
