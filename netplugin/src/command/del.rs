//! DEL: whatever is left of an attachment goes. What is not there is done; a failing step does not stop the others.

use crate::error::PluginError;
use crate::ipam::Store;
use crate::link;
use crate::names::{host_veth, owner};
use crate::nat;
use crate::plan::{Network, attachment};
use crate::sys::netlink::Socket;
use crate::types::{Attachment, Request};
use cofferdam_failpoints::failpoint;

pub fn del(request: &Request) -> Result<(), PluginError> {
    let network = Network::of(&request.config)?;
    let attachment = attachment(request)?;
    let steps = [unpublish(&network, &attachment), unwire(&network, &attachment)];
    let mut errors: Vec<PluginError> = steps.into_iter().filter_map(Result::err).collect();
    // The address may go to another pod only when nothing leads to this one any more.
    if errors.is_empty() {
        errors.extend(release(&network, &attachment).err());
    }
    PluginError::collect(errors)
}

fn unpublish(network: &Network<'_>, attachment: &Attachment) -> Result<(), PluginError> {
    let ours = owner(&network.scope, attachment);
    nat::withdraw(&mut Socket::netfilter()?, |owner| owner == ours)?;
    failpoint!("plugin.del.withdrawn");
    Ok(())
}

fn unwire(network: &Network<'_>, attachment: &Attachment) -> Result<(), PluginError> {
    link::delete(&mut Socket::route()?, &host_veth(&network.scope, attachment))?;
    failpoint!("plugin.del.unwired");
    Ok(())
}

fn release(network: &Network<'_>, attachment: &Attachment) -> Result<(), PluginError> {
    let Some(mut store) = Store::open_existing(&network.conf.ipam.data_dir, &network.conf.name)? else {
        return Ok(());
    };
    if store.leases.of(attachment).next().is_some() {
        store.leases.release(attachment);
        store.save()?;
        failpoint!("plugin.del.released");
    }
    Ok(())
}
