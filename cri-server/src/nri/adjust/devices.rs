//! Adjustments of a container's device nodes, and of the rules that go with them.

use cofferdam_proto::nri;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::named;
use crate::nri::collect::removal;
use crate::spec::SpecError;
use crate::spec::devices::plain_path;

/// Removes, replaces and adds device nodes. A node that goes takes its permission along, a new one brings its own.
pub fn apply(linux: &mut Linux, wanted: &[nri::LinuxDevice]) -> Result<(), SpecError> {
    for device in wanted {
        let (path, removed) = removal(&device.path);
        let path = plain_path("device path", path)?;
        let mut nodes = linux.devices().clone().unwrap_or_default();
        let mut rules = rules(linux);
        for known in nodes.iter().filter(|known| known.path() == &path) {
            rules.retain(|rule| !is_of(rule, known));
        }
        nodes.retain(|known| known.path() != &path);
        if !removed {
            let mut node = LinuxDevice::default();
            node.set_path(path);
            node.set_typ(typ(&device.r#type)?);
            node.set_major(device.major);
            node.set_minor(device.minor);
            node.set_file_mode(device.file_mode.as_ref().map(|mode| mode.value & 0o7777));
            node.set_uid(device.uid.as_ref().map(|uid| uid.value));
            node.set_gid(device.gid.as_ref().map(|gid| gid.value));
            if node.typ() != LinuxDeviceType::P {
                rules.push(rule(true, node.typ(), Some(device.major), Some(device.minor), "rwm".to_owned()));
            }
            nodes.push(node);
        }
        linux.set_devices(Some(nodes));
        linux.resources_mut().get_or_insert_default().set_devices(Some(rules));
    }
    Ok(())
}

/// Adds rules, after those that are there.
pub fn permit(linux: &mut Linux, wanted: &[nri::LinuxDeviceCgroup]) -> Result<(), SpecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut rules = rules(linux);
    for wanted in wanted {
        if wanted.access.is_empty() || wanted.access.chars().any(|letter| !"rwm".contains(letter)) {
            let why = "expected some of r, w and m";
            let value = wanted.access.clone();
            return Err(SpecError::Invalid { field: "access to a device", value, why });
        }
        let major = wanted.major.as_ref().map(|number| number.value);
        let minor = wanted.minor.as_ref().map(|number| number.value);
        rules.push(rule(wanted.allow, typ(&wanted.r#type)?, major, minor, wanted.access.clone()));
    }
    linux.resources_mut().get_or_insert_default().set_devices(Some(rules));
    Ok(())
}

fn rules(linux: &Linux) -> Vec<LinuxDeviceCgroup> {
    linux.resources().as_ref().and_then(|r| r.devices().clone()).unwrap_or_default()
}

fn typ(name: &str) -> Result<LinuxDeviceType, SpecError> {
    named("type of a device", if name.is_empty() { "a" } else { name })
}

fn rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: String,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(typ));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access));
    rule
}

fn is_of(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    rule.allow()
        && rule.typ() == Some(device.typ())
        && rule.major() == Some(device.major())
        && rule.minor() == Some(device.minor())
}
