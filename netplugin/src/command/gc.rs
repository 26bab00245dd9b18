//! GC: everything of the network that no valid attachment owns goes; and the end of a network without pods.

use crate::error::PluginError;
use crate::ipam::Store;
use crate::link;
use crate::names::owner;
use crate::nat;
use crate::plan::Network;
use crate::sys::netlink::Socket;
use crate::types::{Attachment, NetConf};
use std::collections::HashSet;

/// Removes what belongs to attachments of this network other than `valid`. Without any valid one the network's
/// bridge, rules and record go too.
pub fn gc(conf: &NetConf, valid: &[Attachment]) -> Result<(), PluginError> {
    let network = Network::of(conf)?;
    let prefix = format!("{}/", network.scope);
    let kept: HashSet<String> = valid.iter().map(|a| owner(&network.scope, a)).collect();
    let is_stale = |owner: &str| owner.starts_with(&prefix) && !kept.contains(owner);
    let steps = [unpublish(is_stale), unwire(&network, is_stale)];
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
    Ok(nat::withdraw(&mut Socket::netfilter()?, is_stale)?)
}

fn unwire(network: &Network<'_>, is_stale: impl Fn(&str) -> bool) -> Result<(), PluginError> {
    let mut socket = Socket::route()?;
    let Some(bridge) = link::find(&mut socket, &network.conf.bridge)? else { return Ok(()) };
    for port in link::ports(&mut socket, bridge.index)? {
        if is_stale(&port.alias) {
            link::delete(&mut socket, &port.name)?;
        }
    }
    Ok(())
}

fn release(network: &Network<'_>, valid: &[Attachment]) -> Result<(), PluginError> {
    let Some(mut store) = Store::open_existing(&network.conf.ipam.data_dir, &network.conf.name)? else {
        return Ok(());
    };
    if !store.leases.retain(|holder| valid.contains(holder)).is_empty() {
        store.save()?;
    }
    Ok(())
}

/// Removes bridge, rules and record of a network that no pod is attached to; says whether it was unused.
///
/// The network's lock is held meanwhile: an ADD takes its lease under that lock before it does anything else, so
/// it comes either before, and is seen, or after, and makes everything anew.
pub fn teardown_if_unused(conf: &NetConf) -> Result<bool, PluginError> {
    let network = Network::of(conf)?;
    let store = Store::open(&conf.ipam.data_dir, &conf.name)?;
    if !store.leases.is_empty() {
        return Ok(false);
    }
    let mut socket = Socket::route()?;
    if let Some(bridge) = link::find(&mut socket, &conf.bridge)?.filter(|b| b.kind == "bridge") {
        if !link::ports(&mut socket, bridge.index)?.is_empty() {
            return Ok(false);
        }
        link::delete(&mut socket, &conf.bridge)?;
    }
    nat::retire(&mut Socket::netfilter()?, &network.chain())?;
    store.remove()?;
    Ok(true)
}
