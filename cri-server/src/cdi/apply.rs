//! Makes the edits of devices in a container's spec.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Process, Spec,
};

use super::error::CdiError;
use super::file::{self, DeviceNode, Edits};
use crate::spec::UserNamespace;
use crate::spec::host::{Host, HostDevice, HostEntry};
use crate::spec::userns;

/// Makes `edits`, in order; `users` are the pod's own.
///
/// # Errors
/// When one cannot be made as it is written.
pub fn apply(
    spec: &mut Spec,
    edits: &[Edits],
    host: &dyn Host,
    users: Option<UserNamespace>,
) -> Result<(), CdiError> {
    edits.iter().try_for_each(|edits| Editor { spec: &mut *spec, host, users }.make(edits))
}

struct Editor<'a> {
    spec: &'a mut Spec,
    host: &'a dyn Host,
    users: Option<UserNamespace>,
}

impl Editor<'_> {
    fn make(&mut self, edits: &Edits) -> Result<(), CdiError> {
        if edits.intel_rdt.is_some() {
            return Err(CdiError::Unsupported("intelRdt"));
        }
        if !edits.net_devices.is_empty() {
            return Err(CdiError::Unsupported("netDevices"));
        }
        self.process(|process| set_variables(process, &edits.env));
        edits.device_nodes.iter().try_for_each(|node| self.add_node(node))?;
        edits.mounts.iter().for_each(|mount| self.add_bind_or_other(mount));
        edits.hooks.iter().try_for_each(|hook| self.add_hook(hook))?;
        let gids: Vec<u32> = edits.additional_gids.iter().copied().filter(|gid| *gid != 0).collect();
        userns::check_mapped(self.users, 0, &gids)?;
        self.process(|process| add_groups(process, &gids));
        Ok(())
    }

    fn process(&mut self, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.spec.process_mut() {
            change(process);
        }
    }

    fn linux(&mut self) -> &mut Linux {
        if self.spec.linux().is_none() {
            self.spec.set_linux(Some(Linux::default()));
        }
        self.spec.linux_mut().get_or_insert_default()
    }

    fn add_node(&mut self, node: &DeviceNode) -> Result<(), CdiError> {
        let on_host = PathBuf::from(if node.host_path.is_empty() { &node.path } else { &node.host_path });
        let found = self.found(node, &on_host)?;
        if self.users.is_some() {
            // Nobody makes a node in a user namespace: the host's own is shown.
            let options = ["bind", "rprivate", "nosuid", "noexec"];
            self.add_mount(bind(Path::new(&node.path), "bind", &on_host, &options));
        } else {
            let user = self.spec.process().as_ref().map(|p| (p.user().uid(), p.user().gid()));
            let device = device(node, &found, user.unwrap_or_default());
            let mut all = self.linux().devices().clone().unwrap_or_default();
            all.retain(|known| known.path() != device.path());
            all.push(device);
            self.linux().set_devices(Some(all));
        }
        if found.typ != LinuxDeviceType::P && node.permissions != "none" {
            let access = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
            self.allow(&found, access);
        }
        Ok(())
    }

    /// The node's type and numbers: as written, or as the host has them.
    fn found(&self, node: &DeviceNode, on_host: &Path) -> Result<HostDevice, CdiError> {
        let written = match node.kind.as_str() {
            "b" => Some(LinuxDeviceType::B),
            "c" | "u" => Some(LinuxDeviceType::C),
            "p" => Some(LinuxDeviceType::P),
            _ => None,
        };
        let refused = |why| CdiError::Edit { what: "device node", path: node.path.clone(), why };
        let mode = node.file_mode.unwrap_or(0o666);
        let number = |value: i64| u32::try_from(value).map_err(|_| refused("has a number that is none"));
        if let Some(typ) = written
            && (typ == LinuxDeviceType::P || node.major != 0)
            && self.users.is_none()
        {
            let (major, minor) = (number(node.major)?, number(node.minor)?);
            return Ok(HostDevice { typ, major, minor, mode, uid: 0, gid: 0 });
        }
        let entry = self.host.entry(on_host);
        let entry = entry.map_err(|source| CdiError::Host { path: on_host.to_owned(), source })?;
        let HostEntry::Device(device) = entry else { return Err(refused("is no device on the host")) };
        if written.is_some_and(|typ| typ != device.typ) {
            return Err(refused("has another type on the host"));
        }
        Ok(HostDevice { mode: node.file_mode.unwrap_or(device.mode), ..device })
    }

    fn allow(&mut self, device: &HostDevice, access: &str) {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(device.typ));
        rule.set_major(Some(i64::from(device.major)));
        rule.set_minor(Some(i64::from(device.minor)));
        rule.set_access(Some(access.to_owned()));
        let mut resources = self.linux().resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        self.linux().set_resources(Some(resources));
    }

    fn add_bind_or_other(&mut self, mount: &file::Mount) {
        let mut options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
        if mount.is_bind() && !options.iter().any(|option| matches!(*option, "bind" | "rbind")) {
            options.insert(0, "rbind");
        }
        let kind = if mount.is_bind() { "bind" } else { &mount.kind };
        let mut made = bind(Path::new(&mount.container_path), kind, Path::new(&mount.host_path), &options);
        if let Some((uids, gids)) = self.users.filter(|_| mount.is_bind()).map(UserNamespace::maps) {
            made.set_uid_mappings(Some(uids));
            made.set_gid_mappings(Some(gids));
        }
        self.add_mount(made);
    }

    /// In the place of what was there; no mount comes before one that would hide it.
    fn add_mount(&mut self, mount: Mount) {
        let mut all = self.spec.mounts().clone().unwrap_or_default();
        all.retain(|known| known.destination() != mount.destination());
        all.push(mount);
        all.sort_by_key(|mount| mount.destination().components().count());
        self.spec.set_mounts(Some(all));
    }

    fn add_hook(&mut self, hook: &file::Hook) -> Result<(), CdiError> {
        let refused = |why| CdiError::Edit { what: "hook", path: hook.path.clone(), why };
        let mut builder = HookBuilder::default().path(PathBuf::from(&hook.path));
        if !hook.args.is_empty() {
            builder = builder.args(hook.args.clone());
        }
        if !hook.env.is_empty() {
            builder = builder.env(hook.env.clone());
        }
        if let Some(timeout) = hook.timeout {
            builder = builder.timeout(timeout);
        }
        let made = builder.build().map_err(|_| refused("is not well formed"))?;
        let mut hooks = self.spec.hooks().clone().unwrap_or_default();
        insert_hook(&mut hooks, &hook.hook_name, made).ok_or_else(|| refused("is for no known moment"))?;
        self.spec.set_hooks(Some(hooks));
        Ok(())
    }
}

fn bind(inside: &Path, kind: &str, on_host: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(inside.to_owned());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(on_host.to_owned()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// Owned as written, or by the container's user.
fn device(node: &DeviceNode, found: &HostDevice, (uid, gid): (u32, u32)) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device.set_path(PathBuf::from(&node.path));
    device.set_typ(found.typ);
    device.set_major(i64::from(found.major));
    device.set_minor(i64::from(found.minor));
    device.set_file_mode(Some(found.mode));
    device.set_uid(Some(node.uid.unwrap_or(uid)));
    device.set_gid(Some(node.gid.unwrap_or(gid)));
    device
}

fn set_variables(process: &mut Process, pairs: &[String]) {
    let mut env = process.env().clone().unwrap_or_default();
    for pair in pairs {
        let name = pair.split_inclusive('=').next().unwrap_or_default();
        match env.iter_mut().find(|known| known.starts_with(name)) {
            Some(known) => known.clone_from(pair),
            None => env.push(pair.clone()),
        }
    }
    process.set_env(Some(env));
}

fn add_groups(process: &mut Process, gids: &[u32]) {
    let mut user = process.user().clone();
    let mut all = user.additional_gids().clone().unwrap_or_default();
    for gid in gids {
        if !all.contains(gid) {
            all.push(*gid);
        }
    }
    user.set_additional_gids(Some(all));
    process.set_user(user);
}

fn insert_hook(hooks: &mut Hooks, moment: &str, hook: Hook) -> Option<()> {
    let added = |list: &Option<Vec<Hook>>, hook| list.iter().flatten().cloned().chain([hook]).collect();
    match moment {
        #[allow(deprecated, reason = "vendors' files still name it")]
        "prestart" => {
            let list = added(hooks.prestart(), hook);
            hooks.set_prestart(Some(list))
        }
        "createRuntime" => {
            let list = added(hooks.create_runtime(), hook);
            hooks.set_create_runtime(Some(list))
        }
        "createContainer" => {
            let list = added(hooks.create_container(), hook);
            hooks.set_create_container(Some(list))
        }
        "startContainer" => {
            let list = added(hooks.start_container(), hook);
            hooks.set_start_container(Some(list))
        }
        "poststart" => {
            let list = added(hooks.poststart(), hook);
            hooks.set_poststart(Some(list))
        }
        "poststop" => {
            let list = added(hooks.poststop(), hook);
            hooks.set_poststop(Some(list))
        }
        _ => return None,
    };
    Some(())
}
