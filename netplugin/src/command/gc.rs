//! GC: everything of the network that no valid attachment owns goes; and the end of a network without pods.

use crate::error::PluginError;
use crate::ipam::Store;
use crate::link::{self, Link};
use crate::names::{host_veth, owner};
use crate::nat;
use crate::plan::Network;
use crate::sys::netlink::Socket;
use crate::types::{Attachment, NetConf};
use cofferdam_failpoints::failpoint;
use std::collections::HashSet;

/// Removes what belongs to attachments of this network other than `valid`. Without any valid one the network's
/// bridge, rules and record go too.
pub fn gc(conf: &NetConf, valid: &[Attachment]) -> Result<(), PluginError> {
    let network = Network::of(conf)?;
    let prefix = format!("{}/", network.scope);
    let kept: HashSet<String> = valid.iter().map(|a| owner(&network.scope, a)).collect();
    let is_stale = |owner: &str| owner.starts_with(&prefix) && !kept.contains(owner);
    let steps = [unpublish(is_stale), unwire(&network, valid, is_stale)];
    let mut errors: Vec<PluginError> = steps.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        errors.extend(release(&network, valid).err());
    }
    if errors.is_empty() && valid.is_empty() {
        errors.extend(teardown_if_unused(conf).err());
    }
    PluginError::collect(errors)
}

fn unpublish(is_stale: impl Fn(&str) -> bool) -> Result<(), PluginError> {
    nat::withdraw(&mut Socket::netfilter()?, is_stale)?;
    failpoint!("plugin.gc.withdrawn");
    Ok(())
}

/// Ports are known by their alias, and by the lease: an ADD that was killed may not have come to the alias.
fn unwire(
    network: &Network<'_>,
    valid: &[Attachment],
    is_stale: impl Fn(&str) -> bool,
) -> Result<(), PluginError> {
    let mut socket = Socket::route()?;
    if let Some(bridge) = link::find(&mut socket, &network.conf.bridge)? {
        for port in link::ports(&mut socket, bridge.index)?.iter().filter(|p| is_stale(&p.alias)) {
            link::delete(&mut socket, &port.name)?;
        }
    }
    let stale = store(network)?.map(|mut store| store.leases.retain(|holder| valid.contains(holder)));
    for holder in stale.unwrap_or_default() {
        link::delete(&mut socket, &host_veth(&network.scope, &holder))?;
    }
    failpoint!("plugin.gc.unwired");
    Ok(())
}

fn release(network: &Network<'_>, valid: &[Attachment]) -> Result<(), PluginError> {
    let Some(mut store) = store(network)? else { return Ok(()) };
    if !store.leases.retain(|holder| valid.contains(holder)).is_empty() {
        store.save()?;
        failpoint!("plugin.gc.released");
    }
    Ok(())
}

fn store(network: &Network<'_>) -> Result<Option<Store>, PluginError> {
    Ok(Store::open_existing(&network.conf.ipam.data_dir, &network.conf.name)?)
}

/// Removes rules and record of a network that no pod is attached to, and its bridge unless somebody else has ports
/// there; says whether the network was unused.
///
/// The network's lock is held meanwhile: an ADD takes its lease under that lock before it does anything else, so
/// it comes either before, and is seen, or after, and makes everything anew.
pub fn teardown_if_unused(conf: &NetConf) -> Result<bool, PluginError> {
    let network = Network::of(conf)?;
    let mut socket = Socket::route()?;
    let mut nat_socket = Socket::netfilter()?;
    let folder = conf.ipam.data_dir.join(&conf.name);
    if !folder.exists() && find_bridge(&mut socket, conf)?.is_none() && !nat::exists(&mut nat_socket)? {
        return Ok(true);
    }
    let store = Store::open(&conf.ipam.data_dir, &conf.name)?;
    if !store.leases.is_empty() {
        return Ok(false);
    }
    if let Some(bridge) = find_bridge(&mut socket, conf)?
        && link::ports(&mut socket, bridge.index)?.is_empty()
    {
        link::delete(&mut socket, &conf.bridge)?;
        failpoint!("plugin.teardown.bridge_removed");
    }
    let stands = |bridge: &str| Ok(link::find(&mut socket, bridge)?.is_some());
    nat::retire(&mut nat_socket, &network.chain(), stands)?;
    failpoint!("plugin.teardown.rules_removed");
    store.remove()?;
    failpoint!("plugin.teardown.book_removed", infallible);
    Ok(true)
}

fn find_bridge(socket: &mut Socket, conf: &NetConf) -> Result<Option<Link>, PluginError> {
    Ok(link::find(socket, &conf.bridge)?.filter(|link| link.kind == "bridge"))
}
