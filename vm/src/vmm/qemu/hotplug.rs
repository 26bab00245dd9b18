//! Devices for a machine that runs: each gets one of the ports that the machine was made with, for good.
//!
//! What a device stands on is made first. When the device itself is refused, that is taken away again and the port is free.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::arguments;
use super::qmp::Qmp;
use crate::vmm::{MonitorError, Nic, ShareSocket};

/// The ports that are left.
#[derive(Debug)]
pub struct Ports(Mutex<Vec<usize>>);

impl Ports {
    pub fn new(count: usize) -> Self {
        Ports(Mutex::new((0..count).rev().collect()))
    }

    fn take(&self, operation: &'static str) -> Result<Port<'_>, MonitorError> {
        let number = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        number.map(|number| Port { of: self, number, used: false }).ok_or(MonitorError::NoSlot { operation })
    }
}

/// Given back unless used.
struct Port<'a> {
    of: &'a Ports,
    number: usize,
    used: bool,
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.of.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
        }
    }
}

/// How what a device stands on is taken away.
struct Undo {
    command: &'static str,
    arguments: Value,
}

/// Adds the device that `arguments` describes.
async fn plug(
    qmp: &Qmp,
    operation: &'static str,
    mut port: Port<'_>,
    mut arguments: Value,
    undo: &[Undo],
) -> Result<(), MonitorError> {
    arguments["bus"] = arguments::port(port.number).into();
    let added = qmp.execute(operation, "device_add", arguments).await;
    if let Err(refused) = added {
        take_back(qmp, operation, undo).await;
        return Err(refused);
    }
    port.used = true;
    Ok(())
}

/// What cannot be taken away costs the monitor a little memory, until it ends.
async fn take_back(qmp: &Qmp, operation: &'static str, undo: &[Undo]) {
    for Undo { command, arguments } in undo {
        drop(qmp.execute(operation, command, arguments.clone()).await);
    }
}

pub async fn disk(qmp: &Qmp, ports: &Ports, name: &str, image: OwnedFd) -> Result<(), MonitorError> {
    let operation = "add a disk";
    let port = ports.take(operation)?;
    let image = read_only(operation, &image)?;
    let node = format!("disk{}", port.number);
    let set = port.number;
    qmp.execute_with(operation, "add-fd", json!({ "fdset-id": set }), &[image.as_fd()]).await?;
    let close = Undo { command: "remove-fd", arguments: json!({ "fdset-id": set }) };
    let arguments = json!({
        "node-name": node,
        "driver": "raw",
        "read-only": true,
        "file": { "driver": "file", "filename": format!("/dev/fdset/{set}") },
    });
    if let Err(refused) = qmp.execute(operation, "blockdev-add", arguments).await {
        take_back(qmp, operation, &[close]).await;
        return Err(refused);
    }
    let undo = [Undo { command: "blockdev-del", arguments: json!({ "node-name": node }) }, close];
    let device =
        json!({ "driver": "virtio-blk-pci", "id": format!("dev-{node}"), "drive": node, "serial": name });
    plug(qmp, operation, port, device, &undo).await
}

/// QEMU wants a descriptor that cannot do more than is asked of it.
fn read_only(operation: &'static str, image: &OwnedFd) -> Result<OwnedFd, MonitorError> {
    let again = std::fs::File::open(format!("/proc/self/fd/{}", image.as_raw_fd()));
    again.map(OwnedFd::from).map_err(|source| MonitorError::Io { operation, source })
}

pub async fn nic(qmp: &Qmp, ports: &Ports, nic: Nic) -> Result<(), MonitorError> {
    let operation = "add a network card";
    let port = ports.take(operation)?;
    let id = format!("net{}", port.number);
    qmp.execute_with(operation, "getfd", json!({ "fdname": id }), &[nic.tap.as_fd()]).await?;
    let netdev = json!({ "type": "tap", "id": id, "fd": id });
    if let Err(refused) = qmp.execute(operation, "netdev_add", netdev).await {
        let close = Undo { command: "closefd", arguments: json!({ "fdname": id }) };
        take_back(qmp, operation, &[close]).await;
        return Err(refused);
    }
    let undo = [Undo { command: "netdev_del", arguments: json!({ "id": id }) }];
    let device = json!({
        "driver": "virtio-net-pci", "id": format!("dev-{id}"), "netdev": id, "mac": nic.mac, "romfile": "",
    });
    plug(qmp, operation, port, device, &undo).await
}

pub async fn share(qmp: &Qmp, ports: &Ports, tag: &str, socket: ShareSocket) -> Result<(), MonitorError> {
    let operation = "add a share";
    let port = ports.take(operation)?;
    let connection = socket.connect().map_err(|source| MonitorError::Io { operation, source })?;
    let id = format!("share{}", port.number);
    qmp.execute_with(operation, "getfd", json!({ "fdname": id }), &[connection.as_fd()]).await?;
    let address = json!({ "type": "fd", "data": { "str": id } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    let chardev = json!({ "id": id, "backend": backend });
    if let Err(refused) = qmp.execute(operation, "chardev-add", chardev).await {
        let close = Undo { command: "closefd", arguments: json!({ "fdname": id }) };
        take_back(qmp, operation, &[close]).await;
        return Err(refused);
    }
    let undo = [Undo { command: "chardev-remove", arguments: json!({ "id": id }) }];
    let device =
        json!({ "driver": "vhost-user-fs-pci", "id": format!("dev-{id}"), "chardev": id, "tag": tag });
    plug(qmp, operation, port, device, &undo).await
}
