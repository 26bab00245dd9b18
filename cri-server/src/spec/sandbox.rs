//! The spec of a pod's pause container: the process that holds the pod's namespaces.
//!
//! Invariant: the pause process can do nothing. It has an empty, read-only root with its own binary in it, no
//! capabilities, no new privileges, and is nobody, unless the request names another user.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use oci_spec::runtime::{Linux, Mount, Process, Root, Spec, User};

use super::error::SpecError;
use super::namespaces::{self, PodNamespaces};
use super::security::Profile;
use super::selinux::{self, SelinuxLabels};
use super::userns::{self, IdRange, UserNamespace};
use super::{Defaults, OCI_VERSION, annotations, capabilities, devices, mounts, resources, security, sysctl};
use crate::model::SandboxId;
use crate::node::Features;

/// Where the pause binary lies in its rootfs.
const PAUSE: &str = "/pause";
/// The user that stands for nobody in Kubernetes' own pause image.
const NOBODY: u32 = 65535;
/// The last process to be killed when memory is short, after the node's own.
const OOM_SCORE_ADJ: i64 = -998;

/// What the pause container of a pod is built from.
#[derive(Clone, Copy, Debug)]
pub struct SandboxInput<'a> {
    pub id: &'a SandboxId,
    pub config: &'a cri::PodSandboxConfig,
    /// The program on the host that is shown as /pause: a static binary, executable by everybody.
    pub pause_binary: &'a Path,
    /// Where the pod's network namespace is pinned; unused by a pod in the host's network. Without it the runtime
    /// makes one.
    pub network_namespace: Option<&'a Path>,
    /// From [`resources::cgroups_path`].
    pub cgroups_path: &'a str,
    /// The pod's shared memory; without it the pause container gets a tmpfs that nobody shares.
    pub shm: Option<&'a Path>,
    /// The pod's resolv.conf, for the pause process of a shim that looks names up.
    pub resolv_conf: Option<&'a Path>,
    /// The bytes of the file that a localhost seccomp profile names.
    pub localhost_seccomp: Option<&'a [u8]>,
    /// The pod's, where the node's policy tells containers apart.
    pub selinux_level: Option<&'a str>,
    pub defaults: &'a Defaults,
    pub features: &'a Features,
}

fn security(config: &cri::PodSandboxConfig) -> cri::LinuxSandboxSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn id(field: &'static str, value: Option<&cri::Int64Value>) -> Result<Option<u32>, SpecError> {
    let one = |value: &cri::Int64Value| {
        u32::try_from(value.value).ok().filter(|id| *id != u32::MAX).ok_or(SpecError::Invalid {
            field,
            value: value.value.to_string(),
            why: "expected 0 to 4294967294",
        })
    };
    value.map(one).transpose()
}

fn user(
    security: &cri::LinuxSandboxSecurityContext,
    users: Option<UserNamespace>,
) -> Result<User, SpecError> {
    let uid = id("run_as_user", security.run_as_user.as_ref())?;
    let gid = id("run_as_group", security.run_as_group.as_ref())?;
    if gid.is_some() && uid.is_none() {
        return Err(super::user::UserError::GroupWithoutUser.into());
    }
    let mut user = User::default();
    // A small range of users has its last one for nobody.
    let nobody =
        |range: fn(UserNamespace) -> IdRange| users.map_or(NOBODY, |u| NOBODY.min(range(u).count - 1));
    user.set_uid(uid.unwrap_or_else(|| nobody(|users| users.uids)));
    user.set_gid(gid.unwrap_or_else(|| if uid.is_some() { 0 } else { nobody(|users| users.gids) }));
    userns::check_mapped(users, user.uid(), &[user.gid()])?;
    Ok(user)
}

fn process(input: &SandboxInput<'_>, labels: &SelinuxLabels) -> Result<Process, SpecError> {
    let mut process = Process::default();
    process.set_terminal(Some(false));
    let security = security(input.config);
    let pod = PodNamespaces::of(security.namespace_options.as_ref())?;
    process.set_user(user(&security, pod.user)?);
    process.set_args(Some(vec![PAUSE.to_owned()]));
    process.set_env(Some(super::env::build("", false, None, &[], &[])?));
    process.set_cwd(PathBuf::from("/"));
    process.set_capabilities(Some(capabilities::none()));
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(true));
    process.set_oom_score_adj(Some(resources::oom_score_adj(OOM_SCORE_ADJ, input.features)?));
    process.set_selinux_label(labels.process.clone());
    Ok(process)
}

fn mount_list(input: &SandboxInput<'_>, users: Option<UserNamespace>) -> Vec<Mount> {
    let readonly = ["rbind", "rprivate", "ro", "nosuid", "nodev"];
    let mut list = mounts::proc_and_dev(users);
    list.push(mounts::sysfs(false));
    list.push(match input.shm {
        Some(shm) => mounts::mount(Path::new("/dev/shm"), "bind", shm, &["rbind", "rprivate", "rw"]),
        None => mounts::own_shm(),
    });
    if let Some(resolv_conf) = input.resolv_conf {
        list.push(mounts::mount(Path::new("/etc/resolv.conf"), "bind", resolv_conf, &readonly));
    }
    list.push(mounts::mount(Path::new(PAUSE), "bind", input.pause_binary, &readonly));
    list
}

fn overhead(config: &cri::PodSandboxConfig) -> cri::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.overhead.clone()).unwrap_or_default()
}

fn linux(input: &SandboxInput<'_>, labels: &SelinuxLabels) -> Result<Linux, SpecError> {
    let config = input.config;
    let security = security(config);
    let pod = PodNamespaces::of(security.namespace_options.as_ref())?;
    let asked = config.linux.as_ref();
    let no_sysctls = HashMap::new();
    let mut resources = resources::build(&overhead(config), None, input.features)?;
    resources.set_devices(Some(devices::base_rules()));
    // The pause process does nothing but wait: two shares, as other runtimes give it, unless overhead says more.
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_shares(cpu.shares().or(Some(2)));
    }
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces::for_sandbox(pod, input.network_namespace)));
    if let Some((uids, gids)) = pod.user.map(UserNamespace::maps) {
        linux.set_uid_mappings(Some(uids));
        linux.set_gid_mappings(Some(gids));
    }
    linux.set_sysctl(Some(sysctl::build(
        asked.map_or(&no_sysctls, |linux| &linux.sysctls),
        pod,
        input.defaults,
    )?));
    linux.set_resources(Some(resources));
    linux.set_cgroups_path(Some(input.cgroups_path.into()));
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    linux.set_masked_paths(Some(owned(&security::MASKED_PATHS)));
    linux.set_readonly_paths(Some(owned(&security::READONLY_PATHS)));
    linux.set_mount_label(labels.mount.clone());
    let held = oci_spec::runtime::Capabilities::new();
    linux.set_seccomp(security::seccomp_filter(
        &seccomp_profile(&security)?,
        &held,
        input.localhost_seccomp,
        input.defaults,
        input.features,
    )?);
    Ok(linux)
}

fn seccomp_profile(security: &cri::LinuxSandboxSecurityContext) -> Result<Profile, SpecError> {
    if security.privileged {
        return Ok(Profile::Unconfined);
    }
    #[allow(deprecated, reason = "kubelets before 1.24 set only this field")]
    let old = security.seccomp_profile_path.as_str();
    security::profile("seccomp", security.seccomp.as_ref(), old)
}

/// The file of a sandbox's localhost seccomp profile, for the caller to read.
///
/// # Errors
/// When the request's profile is no profile.
pub fn localhost_seccomp_path(config: &cri::PodSandboxConfig) -> Result<Option<PathBuf>, SpecError> {
    Ok(seccomp_profile(&security(config))?.localhost())
}

/// Builds the spec of a pod's pause container. Its `rootfs` is an empty folder with mode 0755 in the bundle.
///
/// # Errors
/// When the request contradicts itself or needs what the node cannot give.
pub fn sandbox_spec(input: &SandboxInput<'_>) -> Result<Spec, SpecError> {
    if input.config.metadata.is_none() {
        return Err(SpecError::Missing("sandbox metadata"));
    }
    let security = security(input.config);
    let pod = PodNamespaces::of(security.namespace_options.as_ref())?;
    let labels = selinux::for_pod(input.config, input.selinux_level, input.features);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(true));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_process(Some(process(input, &labels)?));
    spec.set_mounts(Some(mount_list(input, pod.user)));
    // Without a uts namespace of its own, a name would be the host's.
    let hostname = Some(input.config.hostname.clone()).filter(|name| pod.uts && !name.is_empty());
    spec.set_hostname(hostname);
    spec.set_annotations(Some(annotations::for_sandbox(input.id.as_str(), input.config)));
    spec.set_linux(Some(linux(input, &labels)?));
    Ok(spec)
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
