//! The spec of a container of a pod, put together from the rules of the sibling modules.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup, Mount, Process, Root, Spec,
};

use super::devices::Devices;
use super::error::SpecError;
use super::host::Host;
use super::mounts::{MountPolicy, Mounts, SandboxFiles};
use super::namespaces::SandboxNamespaces;
use super::security::Profile;
use super::selinux::{self, SelinuxLabels};
use super::user::ResolvedUser;
use super::userns::{self, UserNamespace};
use super::{
    Defaults, OCI_VERSION, annotations, capabilities, devices, env, mounts, namespaces, process, resources,
    security,
};
use crate::model::{ContainerId, SandboxId};
use crate::node::Features;

/// What a container is built from.
#[derive(Clone, Copy)]
pub struct ContainerInput<'a> {
    pub id: &'a ContainerId,
    pub sandbox_id: &'a SandboxId,
    /// The request; the host paths of its mounts exist and are resolved.
    pub config: &'a cri::ContainerConfig,
    pub sandbox_config: &'a cri::PodSandboxConfig,
    pub image: &'a ImageConfiguration,
    /// The image as the user named it.
    pub image_name: &'a str,
    /// From [`super::user::resolve`].
    pub user: &'a ResolvedUser,
    /// The container's root, absolute or relative to the bundle.
    pub rootfs: &'a Path,
    /// The name that programs see: the pod's, or the node's for a pod in the host's network.
    pub hostname: &'a str,
    /// From [`resources::cgroups_path`].
    pub cgroups_path: &'a str,
    pub namespaces: &'a SandboxNamespaces,
    /// The pid namespace of the container that TARGET mode names.
    pub target_pid_namespace: Option<&'a Path>,
    pub files: &'a SandboxFiles,
    /// The bytes of the file that [`localhost_seccomp_path`] names.
    pub localhost_seccomp: Option<&'a [u8]>,
    /// The pod's, where the node's policy tells containers apart.
    pub selinux_level: Option<&'a str>,
    pub host: &'a dyn Host,
    pub defaults: &'a Defaults,
    pub features: &'a Features,
}

fn security_of(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn resources_of(config: &cri::ContainerConfig) -> cri::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// Whether the pod may hold privileged containers.
fn sandbox_is_privileged(config: &cri::PodSandboxConfig) -> bool {
    let linux = config.linux.as_ref();
    linux.and_then(|linux| linux.security_context.as_ref()).is_some_and(|security| security.privileged)
}

fn seccomp_profile(security: &cri::LinuxContainerSecurityContext) -> Result<Profile, SpecError> {
    if security.privileged {
        return Ok(Profile::Unconfined);
    }
    #[allow(deprecated, reason = "kubelets before 1.24 set only this field")]
    let old = security.seccomp_profile_path.as_str();
    security::profile("seccomp", security.seccomp.as_ref(), old)
}

fn apparmor_profile(security: &cri::LinuxContainerSecurityContext) -> Result<Profile, SpecError> {
    #[allow(deprecated, reason = "kubelets before 1.24 set only this field")]
    let old = security.apparmor_profile.as_str();
    let profile = security::profile("apparmor", security.apparmor.as_ref(), old)?;
    match (&profile, security.privileged) {
        (Profile::Unset | Profile::RuntimeDefault, true) => Ok(Profile::Unconfined),
        _ => Ok(profile),
    }
}

/// The file of a localhost seccomp profile, for the caller to read.
///
/// # Errors
/// When the request's profile is no profile.
pub fn localhost_seccomp_path(config: &cri::ContainerConfig) -> Result<Option<PathBuf>, SpecError> {
    Ok(seccomp_profile(&security_of(config))?.localhost())
}

/// Fields that are refused whole.
fn check_served(
    input: &ContainerInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    if input.config.metadata.is_none() {
        return Err(SpecError::Missing("container metadata"));
    }
    if security.privileged && !sandbox_is_privileged(input.sandbox_config) {
        return Err(SpecError::PrivilegedInPlainSandbox);
    }
    Ok(())
}

fn build_process(
    input: &ContainerInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
    held: LinuxCapabilities,
    labels: &SelinuxLabels,
) -> Result<Process, SpecError> {
    let config = input.config;
    let home = input.user.home.as_deref().unwrap_or("/");
    let image_env = process::image_env(input.image);
    let apparmor = security::apparmor(&apparmor_profile(security)?, input.defaults, input.features)?;
    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_user(process::user(input.user));
    process.set_args(Some(process::args(config, input.image)?));
    process.set_env(Some(env::build(input.hostname, config.tty, Some(home), image_env, &config.envs)?));
    process.set_cwd(process::cwd(config, input.image)?);
    process.set_capabilities(Some(held));
    process.set_rlimits(None);
    // Absent, never false: libcontainer 0.7 takes a written "false" for "load the filter after the capabilities are
    // dropped", which the kernel then refuses.
    process.set_no_new_privileges(security.no_new_privs.then_some(true));
    process.set_oom_score_adj(Some(resources::oom_score_adj(
        resources_of(config).oom_score_adj,
        input.features,
    )?));
    process.set_apparmor_profile(apparmor);
    process.set_selinux_label(labels.process.clone());
    Ok(process)
}

fn build_mounts(
    input: &ContainerInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
    users: Option<UserNamespace>,
) -> Result<Mounts, SpecError> {
    let policy = MountPolicy {
        users,
        privileged: security.privileged,
        readonly_rootfs: security.readonly_rootfs,
        recursive_readonly: input.features.recursive_readonly,
    };
    mounts::for_container(&input.config.mounts, input.files, policy, input.host)
}

/// The devices as nodes to make, or as mounts where none can be made, and the rules for them.
fn split_devices(devices: Devices, users: Option<UserNamespace>) -> (Vec<LinuxDevice>, Vec<Mount>, Rules) {
    if users.is_some() {
        let (mounts, rules) = devices.into_mounts();
        return (Vec::new(), mounts, rules);
    }
    (devices.nodes, Vec::new(), devices.rules)
}

type Rules = Vec<LinuxDeviceCgroup>;

fn build_linux(
    input: &ContainerInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
    held: &LinuxCapabilities,
    (nodes, rules): (Vec<LinuxDevice>, Rules),
    users: Option<UserNamespace>,
) -> Result<Linux, SpecError> {
    let mut resources =
        resources::build(&resources_of(input.config), input.defaults.pids_limit, input.features)?;
    resources.set_devices(Some(rules));
    let namespaces = namespaces::for_container(
        security.namespace_options.as_ref(),
        input.namespaces,
        users,
        input.target_pid_namespace,
        input.features.cgroup_namespace,
    )?;
    let no_capabilities = oci_spec::runtime::Capabilities::new();
    let seccomp = security::seccomp_filter(
        &seccomp_profile(security)?,
        held.bounding().as_ref().unwrap_or(&no_capabilities),
        input.localhost_seccomp,
        input.defaults,
        input.features,
    )?;
    let (masked, readonly) = security::guarded_paths(security, input.defaults);
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces));
    linux.set_devices(Some(nodes));
    linux.set_resources(Some(resources));
    linux.set_cgroups_path(Some(input.cgroups_path.into()));
    linux.set_seccomp(seccomp);
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(readonly));
    Ok(linux)
}

/// The pod's users, which hold the container's.
fn users_of(
    input: &ContainerInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<UserNamespace>, SpecError> {
    let pod = input.sandbox_config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let pod = pod.and_then(|security| security.namespace_options.as_ref());
    let users = namespaces::shared_users(pod, security.namespace_options.as_ref())?;
    userns::check_mapped(users, input.user.uid, &input.user.additional_gids)?;
    userns::check_mapped(users, 0, &[input.user.gid])?;
    Ok(users)
}

/// Builds the spec of a container.
///
/// # Errors
/// When the request contradicts itself, asks for what is not served, or needs what the node cannot give.
pub fn container_spec(input: &ContainerInput<'_>) -> Result<Spec, SpecError> {
    let security = security_of(input.config);
    check_served(input, &security)?;
    let held = capabilities::for_container(
        security.capabilities.as_ref(),
        security.privileged,
        &input.features.capabilities,
    )?;
    let labels = selinux::for_container(&security, input.sandbox_config, input.selinux_level, input.features);
    let users = users_of(input, &security)?;
    let Mounts { mut list, rootfs_propagation } = build_mounts(input, &security, users)?;
    let devices = devices::for_container(&input.config.devices, security.privileged, input.host)?;
    let (nodes, binds, rules) = split_devices(devices, users);
    list.extend(binds);
    let mut linux = build_linux(input, &security, &held, (nodes, rules), users)?;
    linux.set_mount_label(labels.mount.clone());
    linux.set_rootfs_propagation(rootfs_propagation);
    let mut root = Root::default();
    root.set_path(input.rootfs.to_path_buf());
    root.set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_process(Some(build_process(input, &security, held, &labels)?));
    spec.set_mounts(Some(list));
    // The name is the uts namespace's, which the pause container has set.
    spec.set_hostname(None);
    spec.set_annotations(Some(annotations::for_container(
        input.sandbox_id.as_str(),
        input.sandbox_config,
        input.config,
        input.image_name,
    )));
    spec.set_linux(Some(linux));
    Ok(spec)
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
