//! Devices of a container: the nodes that are made in it and the rules of the devices cgroup.
//!
//! Invariant: the rules start with "deny all"; each later one allows what the container's own nodes need, and only a
//! privileged container is allowed everything.

use std::path::{Component, Path, PathBuf};

use cofferdam_proto::cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount};

use super::error::SpecError;
use super::host::{Host, HostDevice, HostEntry};

/// Runtimes make these in every container by themselves.
const MADE_BY_RUNTIME: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

/// Usable in every container: those above, and the terminals of its own devpts.
const ALWAYS_ALLOWED: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The two lists of a spec.
#[derive(Debug, Default)]
pub struct Devices {
    pub nodes: Vec<LinuxDevice>,
    /// Where each of them is on the host.
    sources: Vec<PathBuf>,
    pub rules: Vec<LinuxDeviceCgroup>,
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    number: (Option<i64>, Option<i64>),
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(typ);
    rule.set_major(number.0);
    rule.set_minor(number.1);
    rule.set_access(Some(access.to_owned()));
    rule
}

fn node(path: PathBuf, device: &HostDevice) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(path);
    node.set_typ(device.typ);
    node.set_major(i64::from(device.major));
    node.set_minor(i64::from(device.minor));
    node.set_file_mode(Some(device.mode));
    node.set_uid(Some(device.uid));
    node.set_gid(Some(device.gid));
    node
}

/// The rules of every container, before its own devices.
#[must_use]
pub fn base_rules() -> Vec<LinuxDeviceCgroup> {
    let mut rules = vec![rule(false, None, (None, None), "rwm")];
    // Making a node is harmless while using it is not allowed.
    for typ in [LinuxDeviceType::C, LinuxDeviceType::B] {
        rules.push(rule(true, Some(typ), (None, None), "m"));
    }
    let always = ALWAYS_ALLOWED
        .iter()
        .map(|(major, minor)| rule(true, Some(LinuxDeviceType::C), (Some(*major), *minor), "rwm"));
    rules.extend(always);
    rules
}

/// The permissions as the kernel takes them; nothing asked means everything.
fn access(text: &str) -> Result<&str, SpecError> {
    match text {
        "" => Ok("rwm"),
        _ if text.len() <= 3 && text.chars().all(|c| "rwm".contains(c)) => Ok(text),
        _ => Err(SpecError::Invalid {
            field: "device permissions",
            value: text.to_owned(),
            why: "expected letters of \"rwm\"",
        }),
    }
}

/// A path that is absolute and climbs nowhere.
pub(crate) fn plain_path(field: &'static str, text: &str) -> Result<PathBuf, SpecError> {
    let invalid = |why| SpecError::Invalid { field, value: text.to_owned(), why };
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(invalid("the path is not absolute"));
    }
    if text.contains('\0') {
        return Err(invalid("the path holds a zero byte"));
    }
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("the path holds \"..\"")),
        }
    }
    Ok(clean)
}

impl Devices {
    fn add(&mut self, path: PathBuf, on_host: &Path, device: &HostDevice, access: Option<&str>) {
        if let Some(access) = access {
            let number = (Some(i64::from(device.major)), Some(i64::from(device.minor)));
            self.rules.push(rule(true, Some(device.typ), number, access));
        }
        // Two devices at one path: the later one, as with mounts.
        if let Some(known) = self.nodes.iter().position(|known| *known.path() == path) {
            self.nodes.remove(known);
            self.sources.remove(known);
        }
        if !MADE_BY_RUNTIME.iter().any(|made| path == Path::new(made)) {
            self.nodes.push(node(path, device));
            self.sources.push(on_host.to_owned());
        }
    }

    fn add_requested(
        &mut self,
        request: &cri::Device,
        privileged: bool,
        host: &dyn Host,
    ) -> Result<(), SpecError> {
        let on_host = PathBuf::from(&request.host_path);
        let inside =
            if request.container_path.is_empty() { &request.host_path } else { &request.container_path };
        let inside = plain_path("device path", inside)?;
        let access = (!privileged).then_some(access(&request.permissions)?);
        let failed = |source| SpecError::Host { path: on_host.clone(), source };
        match host.entry(&on_host).map_err(failed)? {
            HostEntry::Device(device) => self.add(inside, &on_host, &device, access),
            HostEntry::Folder => {
                for (path, device) in host.devices_below(&on_host).map_err(failed)? {
                    let below = path.strip_prefix(&on_host).unwrap_or(&path);
                    self.add(inside.join(below), &path, &device, access);
                }
            }
            HostEntry::Other => return Err(SpecError::NotADevice { path: on_host }),
        }
        Ok(())
    }
}

impl Devices {
    /// The nodes as mounts of the host's own, for a container that may make none: one in a user namespace.
    pub fn into_mounts(self) -> (Vec<Mount>, Vec<LinuxDeviceCgroup>) {
        let bind = |(inside, on_host): (PathBuf, PathBuf)| {
            super::mounts::mount(&inside, "bind", &on_host, &["bind", "rprivate", "nosuid", "noexec"])
        };
        let inside = self.nodes.iter().map(|node| node.path().clone());
        (inside.zip(self.sources).map(bind).collect(), self.rules)
    }
}

/// The devices of a container.
///
/// # Errors
/// When a requested device does not exist, is none, or is asked for with permissions that do not exist.
pub fn for_container(
    requests: &[cri::Device],
    privileged: bool,
    host: &dyn Host,
) -> Result<Devices, SpecError> {
    let mut devices = Devices::default();
    if privileged {
        devices.rules.push(rule(true, None, (None, None), "rwm"));
        let dev = Path::new("/dev");
        let all = host.devices_below(dev);
        for (path, device) in all.map_err(|source| SpecError::Host { path: dev.to_owned(), source })? {
            devices.add(path.clone(), &path, &device, None);
        }
    } else {
        devices.rules = base_rules();
    }
    for request in requests {
        devices.add_requested(request, privileged, host)?;
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::MadeUpHost;
    use super::*;

    fn request(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: permissions.to_owned(),
        }
    }

    fn paths(devices: &Devices) -> Vec<String> {
        devices.nodes.iter().map(|node| node.path().display().to_string()).collect()
    }

    fn text(rules: &[LinuxDeviceCgroup]) -> Vec<String> {
        let sign = |rule: &LinuxDeviceCgroup| if rule.allow() { "+" } else { "-" };
        rules.iter().map(|rule| format!("{}{rule}", sign(rule))).collect()
    }

    #[test]
    fn a_plain_container_is_denied_everything_but_the_usual() {
        let devices = for_container(&[], false, &MadeUpHost::default()).unwrap();
        assert!(devices.nodes.is_empty());
        let rules = text(&devices.rules);
        assert_eq!(rules[0], "-a *:* rwm");
        assert!(rules.contains(&"+c *:* m".to_owned()) && rules.contains(&"+b *:* m".to_owned()));
        assert!(rules.contains(&"+c 1:3 rwm".to_owned()) && rules.contains(&"+c 136:* rwm".to_owned()));
        assert_eq!(rules.len(), 12);
    }

    #[test]
    fn requested_devices_are_made_and_allowed() {
        let host = MadeUpHost::default();
        let requests = [request("/dev/fuse", "/dev/my-fuse", "rw"), request("/dev/snd", "", "")];
        let devices = for_container(&requests, false, &host).unwrap();
        assert_eq!(paths(&devices), ["/dev/my-fuse", "/dev/snd/pcm/one", "/dev/snd/timer"]);
        let rules = text(&devices.rules);
        let own: Vec<&str> = rules[12..].iter().map(String::as_str).collect();
        assert_eq!(own, ["+c 10:229 rw", "+c 116:1 rwm", "+c 116:33 rwm"]);
        assert_eq!(devices.nodes[0].file_mode(), Some(0o666));
    }

    #[test]
    fn a_privileged_container_gets_the_hosts() {
        let devices = for_container(&[], true, &MadeUpHost::default()).unwrap();
        assert_eq!(text(&devices.rules), ["+a *:* rwm"]);
        assert_eq!(
            paths(&devices),
            ["/dev/fuse", "/dev/snd/pcm/one", "/dev/snd/timer"],
            "not what runtimes make"
        );
        let extra = [request("/dev/fuse", "/dev/other", "")];
        assert_eq!(for_container(&extra, true, &MadeUpHost::default()).unwrap().nodes.len(), 4);
    }

    #[test]
    fn bad_devices_are_refused() {
        let host = MadeUpHost::default();
        for bad in [
            request("/dev/none", "", ""),
            request("/etc/passwd", "/dev/x", ""),
            request("/dev/fuse", "", "rwx"),
            request("/dev/fuse", "", "rrww"),
            request("/dev/fuse", "/dev/../etc/x", ""),
            request("/dev/fuse", "dev/x", ""),
        ] {
            assert!(for_container(std::slice::from_ref(&bad), false, &host).is_err(), "{bad:?}");
        }
    }
}
