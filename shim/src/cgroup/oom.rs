//! Out-of-memory kills of a container: a count, and a wake-up when it may have changed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{CgroupPaths, keyed};
use crate::sys;

/// How many processes the kernel killed for want of memory; `None` when the cgroup does not tell.
pub fn kills(paths: &CgroupPaths) -> Option<u64> {
    let file = if paths.is_v2() {
        paths.unified.as_ref()?.join("memory.events")
    } else {
        paths.controller("memory")?.join("memory.oom_control")
    };
    keyed(&fs::read_to_string(file).ok()?, "oom_kill")
}

/// Wakes up when the cgroup ran out of memory.
pub enum Watch {
    /// v1: the kernel counts up an eventfd. The control file must stay open for as long.
    Eventfd { fd: AsyncFd<OwnedFd>, _control: File },
    /// v2: the events file is exceptionally ready after each change.
    Events(AsyncFd<File>),
}

impl Watch {
    pub fn new(paths: &CgroupPaths) -> io::Result<Option<Self>> {
        if paths.is_v2() {
            let Some(folder) = &paths.unified else { return Ok(None) };
            let file = File::open(folder.join("memory.events"))?;
            return Ok(Some(Watch::Events(sys::watch(file, Interest::PRIORITY)?)));
        }
        let Some(folder) = paths.controller("memory") else { return Ok(None) };
        let control = File::open(folder.join("memory.oom_control"))?;
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        fs::write(folder.join("cgroup.event_control"), line)?;
        let fd = sys::watch(fd, Interest::READABLE)?;
        Ok(Some(Watch::Eventfd { fd, _control: control }))
    }

    pub async fn changed(&mut self) -> io::Result<()> {
        match self {
            Watch::Eventfd { fd, .. } => {
                let mut ready = fd.readable().await?;
                let mut count = [0; 8];
                // Empty already means that another wake-up took the count.
                let _ = rustix::io::read(fd.as_fd(), &mut count);
                ready.clear_ready();
            }
            Watch::Events(file) => {
                let mut ready = file.ready(Interest::PRIORITY).await?;
                // Reading is what arms the next wake-up.
                let _ = rustix::io::pread(file.get_ref(), &mut [0; 256], 0);
                ready.clear_ready();
            }
        }
        Ok(())
    }
}
