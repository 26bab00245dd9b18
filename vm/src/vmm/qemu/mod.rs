//! QEMU: its machines `microvm` and `q35` on x86_64 and `virt` on arm64, spoken to over QMP.
//!
//! The process has no network (its tap comes as a descriptor), no capability, QEMU's own seccomp filter, and dies with
//! the process that started it. All its connections are socket pairs made beforehand: nothing of it has a name.

mod arguments;
mod hotplug;
mod qmp;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use async_trait::async_trait;
use serde_json::json;

use super::console::Console;
use super::{Capabilities, Launch, Monitor, MonitorError, Nic, Place, ShareSocket, checked, excerpt};
use crate::config::MachineType;
use crate::sys::process::{Child, Program};
use arguments::Connections;
use hotplug::Ports;
use qmp::Qmp;

#[derive(Debug)]
pub struct Qemu {
    process: Child,
    qmp: Qmp,
    console: Console,
    machine: MachineType,
    /// None on a machine to which nothing can be added.
    ports: Option<Ports>,
}

impl Qemu {
    /// Starts the machine; its guest begins to boot at once.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(launch: Launch, log: Option<OwnedFd>, place: Place<'_>) -> Result<Self, MonitorError> {
        let program = launch.parts.monitor.clone();
        let qemu = start(launch, log).map_err(|source| MonitorError::Start { program, source })?;
        place(qemu.pid()).map_err(MonitorError::Place)?;
        Ok(qemu)
    }

    /// A machine whose devices sit on virtio-mmio alone has no hot-plug.
    fn ports(&self, operation: &'static str) -> Result<&Ports, MonitorError> {
        self.ports.as_ref().ok_or(MonitorError::Unsupported { monitor: self.name(), operation })
    }
}

fn start(launch: Launch, log: Option<OwnedFd>) -> io::Result<Qemu> {
    let (ours, theirs) = pair()?;
    let (console, printed) = pair()?;
    let share = launch.share.as_ref().map(ShareSocket::connect).transpose()?.map(OwnedFd::from);
    let connections =
        Connections { qmp: theirs.as_fd(), console: printed.as_fd(), share: share.as_ref().map(AsFd::as_fd) };
    let program = Program {
        path: launch.parts.monitor.clone(),
        arguments: arguments::of(&launch, connections),
        no_network: true,
        own_mounts: true,
        no_capabilities: true,
    };
    let mut passed = arguments::passed(&launch);
    passed.extend([connections.qmp, connections.console]);
    passed.extend(connections.share);
    let process = program.spawn(&passed, log, || Ok(()))?;
    let ports = arguments::has_ports(launch.machine).then(|| Ports::new(arguments::PORTS));
    let (qmp, console) = (Qmp::new(ours), Console::follow(console));
    Ok(Qemu { process, qmp, console, machine: launch.machine, ports })
}

/// A connection: our end, and the monitor's.
fn pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}

#[async_trait]
impl Monitor for Qemu {
    fn name(&self) -> &'static str {
        match self.machine {
            MachineType::Microvm => "QEMU's microvm",
            MachineType::MicrovmPci => "QEMU's microvm with PCI",
            MachineType::Q35 => "QEMU's q35",
        }
    }

    fn capabilities(&self) -> Capabilities {
        let plugs = self.ports.is_some();
        Capabilities { add_share: plugs, add_disk: plugs, add_nic: plugs, balloon: true }
    }

    fn pid(&self) -> i32 {
        self.process.pid()
    }

    async fn exited(&self) {
        self.process.exited().await;
    }

    async fn pause(&self) -> Result<(), MonitorError> {
        self.qmp.execute("pause", "stop", json!({})).await.map(drop)
    }

    async fn resume(&self) -> Result<(), MonitorError> {
        self.qmp.execute("resume", "cont", json!({})).await.map(drop)
    }

    async fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        self.qmp.execute("balloon", "balloon", json!({ "value": bytes })).await.map(drop)
    }

    async fn add_share(&self, tag: &str, socket: ShareSocket) -> Result<(), MonitorError> {
        let operation = "add a share";
        hotplug::share(&self.qmp, self.ports(operation)?, checked(operation, tag)?, socket).await
    }

    async fn add_disk(&self, name: &str, image: OwnedFd) -> Result<(), MonitorError> {
        let operation = "add a disk";
        hotplug::disk(&self.qmp, self.ports(operation)?, checked(operation, name)?, image).await
    }

    async fn add_nic(&self, nic: Nic) -> Result<(), MonitorError> {
        hotplug::nic(&self.qmp, self.ports("add a network card")?, nic).await
    }

    async fn stop(&self) -> Result<(), MonitorError> {
        self.qmp.execute("stop", "quit", json!({})).await.map(drop)
    }

    async fn console(&self) -> String {
        let text = if self.process.is_alive() { self.console.text() } else { self.console.last_text().await };
        excerpt(&text)
    }

    fn kill(&self) {
        self.process.kill();
    }
}
