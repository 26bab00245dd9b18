//! The sources of bind mounts, taken before the container's user namespace is entered.
//!
//! Behind that door nobody is root on the host any more: folders that only root may enter are closed, and an owner's
//! mapping can no longer be put on a mount. So both are done first: each source is copied as a mount of its own, with its
//! owners mapped where the spec asks for it, to a place that everybody can reach. Invariant: that place lies in the
//! child's own mount namespace and ends with the container.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::idmap::{Mapping, attach, clone_tree, unreachable_part};
use super::{Failure, FailureKind};
use crate::sys::mount::map_ids;

/// How one bind mount is to be shown.
struct Wanted {
    recursive: bool,
    /// With the owners of the whole tree mapped, or of its topmost mount.
    mapped: Option<bool>,
}

fn has(mount: &Mount, names: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| names.contains(&option.as_str()))
}

fn wanted(mount: &Mount, in_user_namespace: bool) -> Option<Wanted> {
    let bind = mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"]);
    let tree = has(mount, &["ridmap"]);
    let mapped = tree
        || has(mount, &["idmap"])
        || [mount.uid_mappings(), mount.gid_mappings()]
            .iter()
            .any(|m| m.as_ref().is_some_and(|m| !m.is_empty()));
    (bind && (in_user_namespace || mapped))
        .then(|| Wanted { recursive: has(mount, &["rbind"]), mapped: mapped.then_some(tree) })
}

/// The container's user namespace, in the spec.
fn user_namespace(spec: &Spec) -> Option<Option<PathBuf>> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|one| one.typ() == LinuxNamespaceType::User).map(|one| one.path().clone())
}

/// Whether anything has to be taken before the runtime begins.
pub fn is_needed(spec: &Spec) -> bool {
    let user = user_namespace(spec).is_some();
    spec.mounts().iter().flatten().any(|mount| wanted(mount, user).is_some())
}

/// Copies the sources and names the copies in the spec. The caller has left the host's mount namespace.
pub fn take(spec: &mut Spec, bundle: &Path) -> Result<(), Failure> {
    let user = user_namespace(spec);
    let folder = bundle.join("oci").join("sources");
    fs::create_dir_all(&folder).map_err(failed("make", &folder))?;
    if user.is_some()
        && let Some(closed) = unreachable_part(bundle)
    {
        return Err(Failure::new(
            FailureKind::Rootfs,
            format!(
                "a container with a user namespace cannot reach its root filesystem: {} is closed to others; let them \
                 enter it (chmod o+x)",
                closed.display()
            ),
        ));
    }
    crate::sys::mount("tmpfs", &folder, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=711,size=1m")
        .map_err(failed("mount a place for sources at", &folder))?;
    let own = own_mapping(spec);
    let Some(mounts) = spec.mounts_mut() else { return Ok(()) };
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(wanted) = wanted(mount, user.is_some()) else { continue };
        let Some(source) = mount.source().clone() else { continue };
        let tree = clone_tree(&source, wanted.recursive).map_err(failed("copy the mount of", &source))?;
        if let Some(recursive) = wanted.mapped {
            let namespace = namespace_of(mount, &own, user.as_ref())?;
            map_ids(&tree, &namespace, recursive).map_err(failed("map the owners of", &source))?;
        }
        let place = folder.join(number.to_string());
        lay(&tree, &place).map_err(failed("place the source", &source))?;
        mount.set_source(Some(place));
        mount.set_uid_mappings(None);
        mount.set_gid_mappings(None);
        let options = mount.options().iter().flatten().filter(|o| *o != "idmap" && *o != "ridmap");
        let options = options.cloned().collect();
        mount.set_options(Some(options));
    }
    Ok(())
}

fn own_mapping(spec: &Spec) -> Mapping {
    let linux = spec.linux().as_ref();
    let list = |list: Option<&Option<Vec<_>>>| list.and_then(|l| l.clone()).unwrap_or_default();
    Mapping::of_oci(&list(linux.map(|l| l.uid_mappings())), &list(linux.map(|l| l.gid_mappings())))
}

/// The namespace whose mapping a mount is shown through: one with the mount's own, or the container's.
fn namespace_of(mount: &Mount, own: &Mapping, user: Option<&Option<PathBuf>>) -> Result<OwnedFd, Failure> {
    let lists =
        (mount.uid_mappings().clone().unwrap_or_default(), mount.gid_mappings().clone().unwrap_or_default());
    if !(lists.0.is_empty() && lists.1.is_empty()) {
        return Mapping::of_oci(&lists.0, &lists.1).namespace();
    }
    match user {
        Some(Some(path)) => Ok(File::open(path).map_err(failed("open", path))?.into()),
        _ => own.namespace(),
    }
}

fn lay(tree: &OwnedFd, place: &Path) -> std::io::Result<()> {
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode)
        == rustix::fs::FileType::Directory
    {
        fs::create_dir(place)?;
    } else {
        File::create(place)?;
    }
    Ok(attach(tree, place)?)
}

fn failed<E: std::error::Error>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Failure + use<E> {
    let path = path.to_owned();
    move |error| Failure::because(FailureKind::Rootfs, &format!("{doing} {}", path.display()))(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_typ(Some("bind".to_owned()));
        mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
        mount
    }

    #[test]
    fn binds_are_taken_behind_a_user_namespace_or_with_a_mapping() {
        assert!(wanted(&bind(&["rbind"]), false).is_none());
        assert!(wanted(&bind(&["rbind"]), true).is_some_and(|w| w.recursive && w.mapped.is_none()));
        assert_eq!(wanted(&bind(&["bind", "idmap"]), false).unwrap().mapped, Some(false));
        assert_eq!(wanted(&bind(&["rbind", "ridmap"]), false).unwrap().mapped, Some(true));
        let mut tmpfs = bind(&[]);
        tmpfs.set_typ(Some("tmpfs".to_owned()));
        assert!(wanted(&tmpfs, true).is_none());
    }
}
