//! Generated specs under a real OCI runtime: needs root, `runc` and `busybox`, and removes all that it makes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use cofferdam_proto::cri;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;

use super::fixture::image;
use super::host::LinuxHost;
use super::mounts::SandboxFiles;
use super::user::{AccountFiles, resolve};
use super::{ContainerInput, Defaults, SandboxInput, SandboxNamespaces, container_spec, sandbox_spec};
use crate::model::{ContainerId, SandboxId};
use crate::node::Features;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
const GROUP: &[u8] = b"logs:x:50:web\n";

/// A bundle in a temporary folder with a busybox root.
struct Bundle {
    folder: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let rootfs = folder.path().join("rootfs");
        for part in ["bin", "etc", "srv"] {
            fs::create_dir_all(rootfs.join(part)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.expect("install busybox-static"), rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "id", "mount", "sleep", "ls", "unshare", "chroot", "mknod", "touch"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        Self { folder, id: format!("cofferdam-test-{}-{name}", std::process::id()) }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn runc(&self, args: &[&str]) -> Output {
        let state = self.path().join("state");
        Command::new("runc").arg("--root").arg(state).args(args).output().expect("install runc")
    }

    /// Runs the spec to its end; answers its output.
    fn run(&self, spec: &Spec) -> String {
        spec.save(self.path().join("config.json")).unwrap();
        let bundle = self.path().to_str().unwrap();
        let output = self.runc(&["run", "--bundle", bundle, &self.id]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.id]);
        if let Ok(hierarchies) = crate::cgroup::Hierarchies::detect() {
            let parent = format!("/{}", self.id);
            let _ = hierarchies.paths(&parent).map(|paths| crate::cgroup::remove_all(&paths));
        }
    }
}

fn plain_config(script: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                oom_score_adj: 500,
                ..Default::default()
            }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                masked_paths: super::security::MASKED_PATHS.map(str::to_owned).to_vec(),
                readonly_paths: super::security::READONLY_PATHS.map(str::to_owned).to_vec(),
                seccomp: Some(cri::SecurityProfile::default()),
                // A pod of its own: the test has no pause process whose namespaces could be joined.
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn sandbox_config(bundle: &Bundle, privileged: bool) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "web".to_owned(), ..Default::default() }),
        hostname: "web-0".to_owned(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", bundle.id),
            security_context: Some(cri::LinuxSandboxSecurityContext { privileged, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn run(bundle: &Bundle, config: &cri::ContainerConfig, image: &ImageConfiguration) -> String {
    let privileged = config.linux.as_ref().unwrap().security_context.as_ref().unwrap().privileged;
    let context = config.linux.as_ref().unwrap().security_context.clone().unwrap();
    let image_user = image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = resolve(&context, &image_user, AccountFiles { passwd: PASSWD, group: GROUP }).unwrap();
    let files = ["hosts", "resolv.conf", "hostname"].map(|name| bundle.path().join(name));
    files.iter().for_each(|path| fs::write(path, "of the sandbox\n").unwrap());
    let shm = bundle.path().join("shm");
    let _ = fs::create_dir(&shm);
    let [hosts, resolv_conf, hostname] = files.map(Some);
    let spec = container_spec(&ContainerInput {
        id: &ContainerId::parse("c1").unwrap(),
        sandbox_id: &SandboxId::parse("s1").unwrap(),
        config,
        sandbox_config: &sandbox_config(bundle, privileged),
        image,
        image_name: "busybox",
        user: &user,
        rootfs: Path::new("rootfs"),
        hostname: "web-0",
        cgroups_path: &format!("/{}/c1", bundle.id),
        // Joining this process's own stands in for joining a pause process's.
        namespaces: &SandboxNamespaces::of_process(std::process::id()),
        target_pid_namespace: None,
        files: &SandboxFiles { shm: Some(shm), resolv_conf, hostname, hosts },
        localhost_seccomp: None,
        selinux_level: None,
        host: &LinuxHost,
        defaults: &Defaults { pids_limit: Some(100), ..Defaults::default() },
        features: &Features::probe(),
    });
    bundle.run(&spec.unwrap())
}

#[test]
fn privileged_a_container_runs_as_its_user_with_its_limits() {
    let bundle = Bundle::new("plain");
    let script = "id; echo $HOME:$HOSTNAME:$FROM_IMAGE:$PWD; cat /etc/hosts; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
        cat /proc/self/oom_score_adj; grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status || cat /proc/self/status; \
        cat /proc/kcore | busybox wc -c; touch /proc/sys/kernel/x 2>/dev/null || echo guarded; echo x > /dev/null && echo null";
    let image = image(&serde_json::json!({"User": "web", "Env": ["FROM_IMAGE=yes"], "WorkingDir": "/srv"}));
    let out = run(&bundle, &plain_config(script), &image);
    assert!(out.contains("uid=33 gid=34 groups=34,50"), "{out}");
    assert!(out.contains("/srv:web-0:yes:/srv\n"), "{out}");
    assert!(out.contains("of the sandbox\n"), "{out}");
    assert!(out.contains("67108864\n") && out.contains("\n500\n"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb") && out.contains("Seccomp:\t2"), "{out}");
    assert!(out.contains("\n0\nguarded\nnull\n"), "{out}");
}

#[test]
fn privileged_runtime_default_stops_what_it_should() {
    let bundle = Bundle::new("seccomp");
    let mut config = plain_config("unshare -m true 2>&1 || echo refused; chroot / echo still");
    security(&mut config).capabilities =
        Some(cri::Capability { drop_capabilities: vec!["NET_RAW".to_owned()], ..Default::default() });
    let out = run(&bundle, &config, &ImageConfiguration::default());
    assert!(out.contains("Operation not permitted") && out.contains("refused\nstill\n"), "{out}");
}

#[test]
fn privileged_mounts_and_a_readonly_root_hold() {
    let bundle = Bundle::new("mounts");
    let volume = bundle.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("f"), "from the volume\n").unwrap();
    let mut config = plain_config(
        "cat /v/f; touch /v/g 2>/dev/null || echo ro-volume; touch /x 2>/dev/null || echo ro-root; touch /dev/shm/y && echo shm",
    );
    security(&mut config).readonly_rootfs = true;
    // The mount point is made by the runtime before the root is made read-only.
    config.mounts = vec![cri::Mount {
        container_path: "/v".to_owned(),
        host_path: volume.to_str().unwrap().to_owned(),
        readonly: true,
        ..Default::default()
    }];
    let out = run(&bundle, &config, &ImageConfiguration::default());
    assert_eq!(out, "from the volume\nro-volume\nro-root\nshm\n");
}

#[test]
fn privileged_a_privileged_container_has_the_nodes_capabilities_and_devices() {
    let bundle = Bundle::new("privileged");
    let mut config = plain_config("mount -t tmpfs none /srv && echo mounted; cat /proc/self/status; ls /dev");
    security(&mut config).privileged = true;
    let out = run(&bundle, &config, &ImageConfiguration::default());
    let mine = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = mine.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    assert!(out.starts_with("mounted\n") && out.contains(bounding) && out.contains("Seccomp:\t0"), "{out}");
    assert!(out.lines().any(|line| line == "kmsg") || !Path::new("/dev/kmsg").exists(), "{out}");
}

#[test]
fn privileged_the_pause_container_runs_from_an_empty_root() {
    let bundle = Bundle::new("pause");
    fs::remove_dir_all(bundle.path().join("rootfs")).unwrap();
    fs::create_dir(bundle.path().join("rootfs")).unwrap();
    // Busybox stands in for the pause binary: it is static and can tell about itself.
    let program = bundle.path().join("pause");
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(busybox, &program).unwrap();
    let mut config = sandbox_config(&bundle, false);
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert("net.core.somaxconn".to_owned(), "777".to_owned());
    linux.security_context.as_mut().unwrap().seccomp = Some(cri::SecurityProfile::default());
    let mut spec = sandbox_spec(&SandboxInput {
        id: &SandboxId::parse("s1").unwrap(),
        config: &config,
        pause_binary: &program,
        network_namespace: None,
        cgroups_path: &format!("/{}/s1", bundle.id),
        shm: None,
        resolv_conf: None,
        localhost_seccomp: None,
        selinux_level: None,
        defaults: &Defaults::default(),
        features: &Features::probe(),
    })
    .unwrap();
    // It goes by the name it is called with, so that it is shown under its own.
    let pause =
        spec.mounts_mut().iter_mut().flatten().find(|mount| mount.destination() == Path::new("/pause"));
    pause.unwrap().set_destination("/busybox".into());
    let script = "b=/busybox; $b hostname; $b id; $b cat /proc/sys/net/core/somaxconn; \
        $b cat /proc/sys/net/ipv4/ip_unprivileged_port_start; $b cat /proc/self/status; $b touch /x || $b echo ro";
    let args = ["/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    spec.process_mut().as_mut().unwrap().set_args(Some(args));
    let out = bundle.run(&spec);
    assert!(out.starts_with("web-0\nuid=65535 gid=65535"), "{out}");
    assert!(out.contains("\n777\n0\n"), "{out}");
    assert!(out.contains("CapBnd:\t0000000000000000") && out.contains("NoNewPrivs:\t1"), "{out}");
    assert!(out.contains("Seccomp:\t2") && out.ends_with("ro\n"), "{out}");
}
