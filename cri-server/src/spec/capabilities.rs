//! Capabilities of a container's process: the default set, additions and removals, `ALL`, and the ambient set.

use std::collections::HashSet;

use cofferdam_proto::cri;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::error::SpecError;

/// What a container has that asks for nothing: the set that users of other runtimes know.
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// A capability by name, with or without `CAP_`, in any case.
fn parse(text: &str) -> Result<Capability, SpecError> {
    let upper = text.trim().to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse().map_err(|_| SpecError::Invalid {
        field: "capability",
        value: text.to_owned(),
        why: "no capability of Linux has this name",
    })
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

fn named(names: &[String]) -> Result<Vec<Capability>, SpecError> {
    names.iter().filter(|name| !is_all(name)).map(|name| parse(name)).collect()
}

/// The sets of a process that holds `held`, of which `ambient` survive an exec by an unprivileged user.
fn sets(held: &Capabilities, ambient: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(held.clone()));
    sets.set_effective(Some(held.clone()));
    sets.set_permitted(Some(held.clone()));
    sets.set_inheritable(Some(ambient.clone()));
    sets.set_ambient(Some(ambient.clone()));
    sets
}

/// No capability at all.
#[must_use]
pub fn none() -> LinuxCapabilities {
    sets(&HashSet::new(), &HashSet::new())
}

/// The capabilities of a container; `on_node` is what the daemon itself may hand on.
///
/// # Errors
/// When the request names an unknown capability, or one that the node cannot give.
pub fn for_container(
    request: Option<&cri::Capability>,
    privileged: bool,
    on_node: &Capabilities,
) -> Result<LinuxCapabilities, SpecError> {
    if privileged {
        return Ok(sets(on_node, &HashSet::new()));
    }
    let empty = cri::Capability::default();
    let request = request.unwrap_or(&empty);
    // `drop: ALL` empties even what `add: ALL` gave; single names are applied after both, additions first.
    let drops_all = request.drop_capabilities.iter().any(|name| is_all(name));
    let adds_all = request.add_capabilities.iter().any(|name| is_all(name));
    let mut held: Capabilities = match (drops_all, adds_all) {
        (true, _) => HashSet::new(),
        (false, true) => on_node.clone(),
        // A node that lacks one of the defaults still runs containers, with what it has.
        (false, false) => DEFAULT.into_iter().filter(|cap| on_node.contains(cap)).collect(),
    };
    let ambient = named(&request.add_ambient_capabilities)?;
    for cap in named(&request.add_capabilities)?.into_iter().chain(ambient.iter().copied()) {
        if !on_node.contains(&cap) {
            return Err(SpecError::Unavailable {
                what: "capability",
                value: cap.to_string(),
                why: "the daemon itself does not hold it",
            });
        }
        held.insert(cap);
    }
    for cap in named(&request.drop_capabilities)? {
        held.remove(&cap);
    }
    let ambient = ambient.into_iter().filter(|cap| held.contains(cap)).collect();
    Ok(sets(&held, &ambient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::CAPABILITIES;

    fn all() -> Capabilities {
        CAPABILITIES.into_iter().collect()
    }

    fn request(add: &[&str], drop: &[&str]) -> cri::Capability {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        cri::Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Default::default() }
    }

    fn held(add: &[&str], drop: &[&str]) -> Capabilities {
        for_container(Some(&request(add, drop)), false, &all()).unwrap().bounding().clone().unwrap()
    }

    #[test]
    fn adding_and_dropping_follow_kubernetes() {
        let default: Capabilities = DEFAULT.into_iter().collect();
        assert_eq!(held(&[], &[]), default);
        assert_eq!(held(&["ALL"], &[]), all());
        assert_eq!(held(&[], &["ALL"]), HashSet::new());
        assert_eq!(held(&["NET_ADMIN"], &["all"]), HashSet::from([Capability::NetAdmin]));
        let mut without_chown = all();
        without_chown.remove(&Capability::Chown);
        assert_eq!(held(&["ALL"], &["CAP_CHOWN"]), without_chown);
        assert!(held(&["cap_sys_admin"], &[]).contains(&Capability::SysAdmin));
        assert!(!held(&[], &["NET_RAW"]).contains(&Capability::NetRaw));
        assert!(!held(&["NET_RAW"], &["NET_RAW"]).contains(&Capability::NetRaw), "dropping wins");
    }

    #[test]
    fn unknown_and_unavailable_capabilities_are_told_apart() {
        let unknown = for_container(Some(&request(&["FLY"], &[])), false, &all()).unwrap_err();
        assert!(matches!(unknown, SpecError::Invalid { .. }), "{unknown}");
        let mut node = all();
        node.remove(&Capability::SysResource);
        let missing = for_container(Some(&request(&["SYS_RESOURCE"], &[])), false, &node).unwrap_err();
        assert!(matches!(missing, SpecError::Unavailable { .. }), "{missing}");
        let everything = for_container(Some(&request(&["ALL"], &[])), false, &node).unwrap();
        assert!(!everything.bounding().as_ref().unwrap().contains(&Capability::SysResource));
    }

    #[test]
    fn ambient_capabilities_are_inheritable_and_held() {
        let request =
            cri::Capability { add_ambient_capabilities: vec!["NET_ADMIN".to_owned()], ..Default::default() };
        let sets = for_container(Some(&request), false, &all()).unwrap();
        let only = HashSet::from([Capability::NetAdmin]);
        assert_eq!(sets.ambient().as_ref(), Some(&only));
        assert_eq!(sets.inheritable().as_ref(), Some(&only));
        assert!(sets.permitted().as_ref().unwrap().contains(&Capability::NetAdmin));
    }
}
