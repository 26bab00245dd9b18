//! STATUS: whether an ADD could succeed now.

use crate::error::PluginError;
use crate::ipam::{Store, StoreError};
use crate::link;
use crate::nft;
use crate::plan::Network;
use crate::sys::netlink::Socket;
use crate::types::NetConf;
use std::path::Path;

/// Looks without changing anything: nothing is made for a network that has had no pod yet.
pub fn status(conf: &NetConf) -> Result<(), PluginError> {
    let network = Network::of(conf)?;
    let sets = network.sets()?;
    if let Some(link) = link::find(&mut Socket::route()?, &conf.bridge)?.filter(|l| l.kind != "bridge") {
        return Err(PluginError::NotABridge { name: link.name, kind: link.kind });
    }
    nft::generation(&mut Socket::netfilter()?)?;
    let data_dir = &conf.ipam.data_dir;
    match Store::open_existing(data_dir, &conf.name)? {
        Some(store) => Ok(store.leases.has_room(&sets)?),
        None => writable(data_dir),
    }
}

/// The nearest folder that is there must let us make the rest.
fn writable(data_dir: &Path) -> Result<(), PluginError> {
    let nearest = data_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    nix::unistd::access(nearest, nix::unistd::AccessFlags::W_OK).map_err(|errno| {
        let source = std::io::Error::from(errno);
        StoreError::File { what: "write to", path: nearest.to_path_buf(), source }.into()
    })
}
