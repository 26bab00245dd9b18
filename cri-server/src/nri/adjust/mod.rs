//! What plugins want of a new container, carried out on its spec. Pure functions, but for the host's mount propagation.
//!
//! Invariant: every field of an adjustment is honoured or refused in words; an adjustment that is refused fails the
//! container's creation.

mod devices;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;

use std::collections::HashMap;
use std::path::PathBuf;

use cofferdam_proto::nri::{self, ContainerAdjustment};
use oci_spec::runtime::{Hook, Hooks, Linux, LinuxIntelRdt, LinuxMemoryPolicy, Process, Spec};
use serde::de::DeserializeOwned;

use super::collect::removal;
use crate::cgroup::relative_path;
use crate::node::Features;
use crate::spec::SpecError;
use crate::spec::host::Host;

pub use resources::{checked_update, to_cri};

/// What an adjustment depends on besides the spec.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub features: &'a Features,
    /// Containers get SELinux labels.
    pub selinux: bool,
    pub host: &'a dyn Host,
}

/// Changes the spec as the plugins want it.
///
/// # Errors
/// When something asked for is wrong or cannot be had here.
pub fn apply(spec: &mut Spec, wanted: &ContainerAdjustment, node: Node<'_>) -> Result<(), SpecError> {
    if !wanted.cdi_devices.is_empty() {
        return Err(SpecError::Unsupported("CDI devices"));
    }
    annotations(spec, &wanted.annotations)?;
    let mut of_process = spec.process().clone().unwrap_or_default();
    process::env(&mut of_process, &wanted.env)?;
    process::args(&mut of_process, &wanted.args);
    process::rlimits(&mut of_process, &wanted.rlimits)?;
    if let Some(linux) = &wanted.linux {
        of_linux(spec, &mut of_process, linux, node)?;
    }
    spec.set_process(Some(of_process));
    if let Some(wanted) = &wanted.hooks {
        hooks(spec, wanted)?;
    }
    mounts::apply(spec, &wanted.mounts, node)
}

fn of_linux(
    spec: &mut Spec,
    of_process: &mut Process,
    wanted: &nri::LinuxContainerAdjustment,
    node: Node<'_>,
) -> Result<(), SpecError> {
    process::oom_score_adj(of_process, wanted.oom_score_adj.as_ref(), node.features)?;
    process::io_priority(of_process, wanted.io_priority.as_ref())?;
    process::scheduler(of_process, wanted.scheduler.as_ref())?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    devices::apply(&mut linux, &wanted.devices)?;
    if let Some(wanted) = &wanted.resources {
        resources::apply(&mut linux, wanted, node.features)?;
    }
    cgroups_path(&mut linux, &wanted.cgroups_path, node.features)?;
    seccomp::apply(&mut linux, wanted.seccomp_policy.as_ref(), node.features)?;
    namespaces::apply(&mut linux, &wanted.namespaces)?;
    namespaces::sysctl(&mut linux, &wanted.sysctl, node.host)?;
    namespaces::net_devices(&mut linux, &wanted.net_devices)?;
    rdt(&mut linux, wanted.rdt.as_ref());
    memory_policy(&mut linux, wanted.memory_policy.as_ref())?;
    spec.set_linux(Some(linux));
    Ok(())
}

/// Keys by which shims and `cofferdam` tell pods and containers apart.
const OWN_KEYS: &str = "io.kubernetes.cri.";

fn annotations(spec: &mut Spec, wanted: &HashMap<String, String>) -> Result<(), SpecError> {
    if let Some(key) = wanted.keys().find(|key| removal(key).0.starts_with(OWN_KEYS)) {
        let why = "the runtime's own annotations cannot be adjusted";
        return Err(SpecError::Invalid { field: "annotation", value: key.clone(), why });
    }
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.retain(|key, _| !wanted.contains_key(&format!("-{key}")));
    let set = wanted.iter().filter(|(key, _)| !removal(key).1);
    annotations.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    spec.set_annotations(Some(annotations));
    Ok(())
}

fn hooks(spec: &mut Spec, wanted: &nri::Hooks) -> Result<(), SpecError> {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let more = |known: &Option<Vec<Hook>>, wanted: &[nri::Hook]| {
        let mut all = known.clone().unwrap_or_default();
        all.extend(wanted.iter().map(hook).collect::<Result<Vec<_>, _>>()?);
        Ok::<_, SpecError>((!all.is_empty()).then_some(all))
    };
    #[allow(deprecated, reason = "the interface still has prestart hooks")]
    let prestart = more(hooks.prestart(), &wanted.prestart)?;
    #[allow(deprecated, reason = "the interface still has prestart hooks")]
    hooks.set_prestart(prestart);
    hooks.set_create_runtime(more(hooks.create_runtime(), &wanted.create_runtime)?);
    hooks.set_create_container(more(hooks.create_container(), &wanted.create_container)?);
    hooks.set_start_container(more(hooks.start_container(), &wanted.start_container)?);
    hooks.set_poststart(more(hooks.poststart(), &wanted.poststart)?);
    hooks.set_poststop(more(hooks.poststop(), &wanted.poststop)?);
    spec.set_hooks((hooks != Hooks::default()).then_some(hooks));
    Ok(())
}

fn hook(wanted: &nri::Hook) -> Result<Hook, SpecError> {
    let invalid = |value: String, why| SpecError::Invalid { field: "hook", value, why };
    if !wanted.path.starts_with('/') {
        return Err(invalid(wanted.path.clone(), "the path is not absolute"));
    }
    let timeout = wanted.timeout.as_ref().map(|timeout| timeout.value);
    if let Some(timeout) = timeout.filter(|timeout| *timeout <= 0) {
        return Err(invalid(format!("timeout {timeout}"), "it is not above zero"));
    }
    let mut hook = Hook::default();
    hook.set_path(PathBuf::from(&wanted.path));
    hook.set_args((!wanted.args.is_empty()).then(|| wanted.args.clone()));
    hook.set_env((!wanted.env.is_empty()).then(|| wanted.env.clone()));
    hook.set_timeout(timeout);
    Ok(hook)
}

fn cgroups_path(linux: &mut Linux, wanted: &str, features: &Features) -> Result<(), SpecError> {
    use crate::cgroup::Driver;
    if wanted.is_empty() {
        return Ok(());
    }
    let absolute = wanted.starts_with('/');
    let fits = match features.driver {
        Driver::Cgroupfs => absolute,
        Driver::Systemd => !absolute,
    };
    if !fits || relative_path(wanted).is_none() {
        let why = "expected an absolute path (cgroupfs) or slice:prefix:name (systemd), without \"..\"";
        return Err(SpecError::Invalid { field: "cgroups path", value: wanted.to_owned(), why });
    }
    linux.set_cgroups_path(Some(PathBuf::from(wanted)));
    Ok(())
}

fn rdt(linux: &mut Linux, wanted: Option<&nri::LinuxRdt>) {
    let Some(wanted) = wanted else { return };
    let mut rdt = linux.intel_rdt().clone().filter(|_| !wanted.remove);
    if let Some(class) = &wanted.clos_id {
        rdt.get_or_insert_with(LinuxIntelRdt::default).set_clos_id(Some(class.value.clone()));
    }
    if let Some(schemata) = &wanted.schemata {
        rdt.get_or_insert_with(LinuxIntelRdt::default).set_schemata(Some(schemata.value.clone()));
    }
    if let Some(enable) = &wanted.enable_monitoring {
        rdt.get_or_insert_with(LinuxIntelRdt::default).set_enable_monitoring(Some(enable.value));
    }
    linux.set_intel_rdt(rdt);
}

fn memory_policy(linux: &mut Linux, wanted: Option<&nri::LinuxMemoryPolicy>) -> Result<(), SpecError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let unknown = |value: i32| SpecError::Invalid {
        field: "memory policy",
        value: value.to_string(),
        why: "no mode or flag of the interface",
    };
    let mode = nri::MpolMode::try_from(wanted.mode).map_err(|_| unknown(wanted.mode))?.as_str_name();
    let flag = |flag: &i32| Ok(nri::MpolFlag::try_from(*flag).map_err(|_| unknown(*flag))?.as_str_name());
    let flags = wanted.flags.iter().map(flag).collect::<Result<Vec<_>, SpecError>>()?;
    let mut policy = LinuxMemoryPolicy::default();
    policy.set_mode(named("memory policy", mode)?);
    policy.set_nodes((!wanted.nodes.is_empty()).then(|| wanted.nodes.clone()));
    let flags = flags.into_iter().map(|flag| named("memory policy", flag)).collect::<Result<Vec<_>, _>>()?;
    policy.set_flags((!flags.is_empty()).then_some(flags));
    linux.set_memory_policy(Some(policy));
    Ok(())
}

/// A value of the runtime specification by its name.
fn named<T: DeserializeOwned>(field: &'static str, name: &str) -> Result<T, SpecError> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).map_err(|_| SpecError::Invalid {
        field,
        value: name.to_owned(),
        why: "the runtime specification does not know it",
    })
}

#[cfg(test)]
mod tests;
