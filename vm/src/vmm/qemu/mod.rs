//! QEMU: its machine `microvm` on x86_64 and `virt` on arm64, spoken to over QMP.
//!
//! The process has no network (its tap comes as a descriptor), no capability, QEMU's own seccomp filter, and dies with
//! the process that started it. All its connections are socket pairs made beforehand: nothing of it has a name.

mod arguments;
mod qmp;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Capabilities, Launch, Monitor, MonitorError, Nic};
use crate::sys::process::{Child, Program};
use qmp::Qmp;

const NAME: &str = "QEMU";
/// Much of the console's end, and little enough for an error's text.
const CONSOLE_EXCERPT: usize = 2000;
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Qemu {
    process: Child,
    qmp: Qmp,
}

impl Qemu {
    /// Starts the machine; its guest begins to boot at once.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(launch: Launch, log: Option<OwnedFd>) -> Result<Self, MonitorError> {
        let program = launch.parts.monitor.clone();
        start(launch, log).map_err(|source| MonitorError::Start { program, source })
    }

    async fn hot_plug(&self, operation: &'static str) -> Result<(), MonitorError> {
        // Its devices sit on virtio-mmio, which has no hot-plug.
        Err(MonitorError::Unsupported { monitor: NAME, operation })
    }
}

fn start(launch: Launch, log: Option<OwnedFd>) -> io::Result<Qemu> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let program = Program {
        path: launch.parts.monitor.clone(),
        arguments: arguments::of(&launch, theirs.as_fd()),
        no_network: true,
        own_mounts: true,
        no_capabilities: true,
    };
    let mut passed = vec![theirs.as_fd(), launch.channel.as_fd()];
    passed.extend(launch.share.as_ref().map(AsFd::as_fd));
    passed.extend(launch.nics.iter().map(|nic| nic.tap.as_fd()));
    let process = program.spawn(&passed, log, || Ok(()))?;
    ours.set_nonblocking(true)?;
    let qmp = Qmp::new(tokio::net::UnixStream::from_std(ours)?);
    Ok(Qemu { process, qmp })
}

#[async_trait]
impl Monitor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { add_share: false, add_disk: false, add_nic: false, balloon: true }
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

    async fn add_share(&self, _: &str, _: OwnedFd) -> Result<(), MonitorError> {
        self.hot_plug("add a share").await
    }

    async fn add_disk(&self, _: &str, _: OwnedFd) -> Result<(), MonitorError> {
        self.hot_plug("add a disk").await
    }

    async fn add_nic(&self, _: Nic) -> Result<(), MonitorError> {
        self.hot_plug("add a network card").await
    }

    async fn console(&self) -> String {
        let read = self.qmp.execute(
            "read the console",
            "ringbuf-read",
            json!({ "device": arguments::CONSOLE, "size": arguments::CONSOLE_SIZE }),
        );
        let text = match tokio::time::timeout(CONSOLE_PATIENCE, read).await {
            Ok(Ok(value)) => value.as_str().unwrap_or_default().to_owned(),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        excerpt(&text)
    }

    fn kill(&self) {
        self.process.kill();
    }
}

/// The end of it, without what a terminal would obey.
fn excerpt(text: &str) -> String {
    let plain: Vec<char> =
        text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    plain[plain.len().saturating_sub(CONSOLE_EXCERPT)..].iter().collect()
}
