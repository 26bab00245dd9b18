//! The `cgroupsPath` of OCI specs: written for a driver, and read back into a path below the cgroup mounts.

use super::layout::Driver;

/// Where containers go that nobody gave a parent.
pub const DEFAULT_PARENT: &str = "/cofferdam";
/// The same as a systemd slice.
const DEFAULT_SLICE: &str = "cofferdam.slice";
/// Scopes are named `cri-cofferdam-<id>.scope`.
const SCOPE_PREFIX: &str = "cri-cofferdam";

fn is_plain(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| part != ".." && part != ".")
}

/// The `cgroupsPath` of container `id` below `parent`, as the kubelet names it.
///
/// # Errors
/// Says why `parent` cannot be one.
pub fn cgroups_path(driver: Driver, parent: &str, id: &str) -> Result<String, &'static str> {
    if !is_plain(parent) {
        return Err("a parent has no \"..\"");
    }
    let parent = parent.trim_end_matches('/');
    match driver {
        Driver::Cgroupfs => {
            if parent.ends_with(".slice") {
                return Err("a slice is systemd's, and this runtime makes cgroups itself: set cgroup_driver to \
                     \"systemd\", or the kubelet's cgroupDriver to cgroupfs");
            }
            let parent = if parent.is_empty() { DEFAULT_PARENT } else { parent };
            Ok(format!("/{}/{id}", parent.trim_start_matches('/')))
        }
        Driver::Systemd => {
            // The kubelet sends the whole path of slices; a slice's name holds it already.
            let slice = parent.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_SLICE);
            if !slice.ends_with(".slice") || slice.contains(':') {
                return Err(
                    "with systemd, a parent is the name of a slice: is the kubelet's cgroupDriver systemd too?",
                );
            }
            Ok(format!("{slice}:{SCOPE_PREFIX}:{id}"))
        }
    }
}

/// How the `cgroupsPath` of a container or a pod's pause container is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A folder; with systemd, one in the pod's delegated scope, of which our shim makes sure.
    Folder,
    /// With systemd, a unit of its own for each container, which the OCI runtime makes: for shims that know no pods.
    Unit,
}

/// The `cgroupsPath` of container `id` of the sandbox `pod`, below the parent that the kubelet names.
///
/// # Errors
/// Says why `parent` cannot be one.
pub fn container_path(
    driver: Driver,
    form: Form,
    parent: &str,
    pod: &str,
    id: &str,
) -> Result<String, &'static str> {
    if (driver, form) != (Driver::Systemd, Form::Folder) {
        return cgroups_path(driver, parent, id);
    }
    let scope = cgroups_path(driver, parent, pod)?;
    let scope = relative_path(&scope).ok_or("a slice's name is words between single dashes")?;
    Ok(format!("{scope}/{id}"))
}

/// The folders of a slice from the root: `a-b.slice` lies in `a.slice`.
fn expand_slice(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return None;
    }
    let mut path = String::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push('/');
        path.push_str(&name);
        path.push_str(".slice");
    }
    Some(path)
}

/// The path below a cgroup mount that a `cgroupsPath` means, with a leading slash; `None` for one that means none.
#[must_use]
pub fn relative_path(cgroups_path: &str) -> Option<String> {
    if !is_plain(cgroups_path) {
        return None;
    }
    if cgroups_path.starts_with('/') {
        let path = cgroups_path.trim_end_matches('/');
        return (!path.is_empty()).then(|| path.to_owned());
    }
    let mut parts = cgroups_path.split(':');
    let (slice, prefix, id) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || id.is_empty() || [prefix, id].iter().any(|part| part.contains('/')) {
        return None;
    }
    let parent = expand_slice(if slice.is_empty() { "system.slice" } else { slice })?;
    let unit = match (id.ends_with(".slice"), prefix) {
        (true, _) => id.to_owned(),
        (false, "") => format!("{id}.scope"),
        (false, prefix) => format!("{prefix}-{id}.scope"),
    };
    Some(format!("{parent}/{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_for_its_driver() {
        let table = [
            (Driver::Cgroupfs, "", Some("/cofferdam/c1")),
            (Driver::Cgroupfs, "/", Some("/cofferdam/c1")),
            (Driver::Cgroupfs, "/kubepods/pod7", Some("/kubepods/pod7/c1")),
            (Driver::Cgroupfs, "kubepods/pod7/", Some("/kubepods/pod7/c1")),
            (Driver::Cgroupfs, "/a/../b", None),
            (Driver::Cgroupfs, "/kubepods.slice/kubepods-pod7.slice", None),
            (Driver::Systemd, "", Some("cofferdam.slice:cri-cofferdam:c1")),
            (
                Driver::Systemd,
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice",
                Some("kubepods-burstable-pod7.slice:cri-cofferdam:c1"),
            ),
            (Driver::Systemd, "/kubepods/pod7", None),
        ];
        for (driver, parent, expected) in table {
            assert_eq!(cgroups_path(driver, parent, "c1").ok().as_deref(), expected, "{driver:?} {parent:?}");
        }
    }

    #[test]
    fn with_systemd_a_pod_has_one_scope() {
        let parent = "/kubepods.slice/kubepods-pod7.slice";
        let path = |driver, form, parent| container_path(driver, form, parent, "s1", "c1").ok();
        let scoped = "/kubepods.slice/kubepods-pod7.slice/cri-cofferdam-s1.scope/c1";
        assert_eq!(path(Driver::Systemd, Form::Folder, parent).as_deref(), Some(scoped));
        let unit = "kubepods-pod7.slice:cri-cofferdam:c1";
        assert_eq!(path(Driver::Systemd, Form::Unit, parent).as_deref(), Some(unit));
        assert_eq!(path(Driver::Cgroupfs, Form::Folder, "/pods").as_deref(), Some("/pods/c1"));
        let fallback = "/cofferdam.slice/cri-cofferdam-s1.scope/c1";
        assert_eq!(path(Driver::Systemd, Form::Folder, "").as_deref(), Some(fallback));
        assert_eq!(path(Driver::Systemd, Form::Folder, "/kubepods/pod7"), None);
        assert_eq!(path(Driver::Systemd, Form::Folder, "a--b.slice"), None);
    }

    #[test]
    fn a_path_is_read_back() {
        let table = [
            ("/cofferdam/c1", Some("/cofferdam/c1")),
            ("cofferdam.slice:cri-cofferdam:c1", Some("/cofferdam.slice/cri-cofferdam-c1.scope")),
            (
                "kubepods-burstable-pod7.slice:cri-cofferdam:c1",
                Some(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-cofferdam-c1.scope",
                ),
            ),
            (":p:c1", Some("/system.slice/p-c1.scope")),
            ("-.slice:p:c1", Some("/p-c1.scope")),
            ("a--b.slice:p:c1", None),
            ("a.slice:p:x/y", None),
            ("/", None),
            ("relative", None),
            ("/a/../b", None),
        ];
        for (text, expected) in table {
            assert_eq!(relative_path(text).as_deref(), expected, "{text:?}");
        }
    }
}
