//! Adjustments of a container's mounts.

use std::path::{Path, PathBuf};

use cofferdam_proto::nri;
use oci_spec::runtime::{Mount, Spec};

use super::Node;
use crate::nri::collect::removal;
use crate::spec::SpecError;
use crate::spec::devices::plain_path;

/// An option for the runtime: the source gets the container's SELinux label.
const RELABEL: &str = "relabel";

/// Removes, replaces and adds mounts; a mount never comes before one that would hide it.
pub fn apply(spec: &mut Spec, wanted: &[nri::Mount], node: Node<'_>) -> Result<(), SpecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut open = Open::default();
    for mount in wanted {
        let (destination, removed) = removal(&mount.destination);
        let destination = plain_path("mount destination", destination)?;
        if destination == Path::new("/") {
            let why = "the root of the container cannot be mounted over";
            return Err(SpecError::Invalid { field: "mount destination", value: "/".to_owned(), why });
        }
        mounts.retain(|known| known.destination() != &destination);
        if !removed {
            open.look(mount, node)?;
            mounts.push(made(mount, destination, node)?);
        }
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    open.apply(spec);
    Ok(())
}

fn made(wanted: &nri::Mount, destination: PathBuf, node: Node<'_>) -> Result<Mount, SpecError> {
    let mut options = wanted.options.clone();
    if options.iter().any(|option| option == RELABEL) {
        if node.selinux {
            return Err(SpecError::Unsupported("relabelled mounts of NRI plugins"));
        }
        // Where containers get no labels there is none to give.
        options.retain(|option| option != RELABEL);
    }
    let binds = options.iter().any(|option| option == "bind" || option == "rbind");
    if wanted.r#type == "bind" && !binds {
        options.push("rbind".to_owned());
    }
    if binds || wanted.r#type == "bind" {
        plain_path("mount source", &wanted.source)?;
    }
    let mut mount = Mount::default();
    mount.set_destination(destination);
    mount.set_typ((!wanted.r#type.is_empty()).then(|| wanted.r#type.clone()));
    mount.set_source((!wanted.source.is_empty()).then(|| PathBuf::from(&wanted.source)));
    mount.set_options((!options.is_empty()).then_some(options));
    Ok(mount)
}

/// What the propagation of the mounts asks of the root's.
#[derive(Debug, Default)]
struct Open {
    slave: bool,
    shared: bool,
}

impl Open {
    /// Events can only travel where the source's mount lets them.
    fn look(&mut self, wanted: &nri::Mount, node: Node<'_>) -> Result<(), SpecError> {
        let asks = |words: [&str; 2]| wanted.options.iter().any(|option| words.contains(&option.as_str()));
        let (shared, slave) = (asks(["shared", "rshared"]), asks(["slave", "rslave"]));
        if !shared && !slave {
            return Ok(());
        }
        let path = Path::new(&wanted.source);
        let found = node.host.propagation(path);
        let found = found.map_err(|source| SpecError::Host { path: path.to_owned(), source })?;
        let refused = |asked, found| SpecError::Propagation { host_path: path.to_owned(), asked, found };
        if shared && !found.shared {
            return Err(refused("Bidirectional", "non-shared"));
        }
        if slave && !found.shared && !found.slave {
            return Err(refused("HostToContainer", "private"));
        }
        self.shared |= shared;
        self.slave |= slave;
        Ok(())
    }

    fn apply(&self, spec: &mut Spec) {
        let Some(linux) = spec.linux_mut() else { return };
        let known = linux.rootfs_propagation().as_deref();
        if self.shared {
            linux.set_rootfs_propagation(Some("rshared".to_owned()));
        } else if self.slave && !matches!(known, Some("rshared" | "rslave")) {
            linux.set_rootfs_propagation(Some("rslave".to_owned()));
        }
    }
}
