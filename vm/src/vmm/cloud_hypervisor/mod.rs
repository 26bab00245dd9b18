//! Cloud Hypervisor, spoken to over its HTTP API.
//!
//! Like QEMU the process has no network, no capability, its own seccomp filter and Landlock where the kernel has it, and
//! dies with the process that started it. Its API is one connection, made before it runs, whose name is gone; taps are
//! passed over it. What it wants by name lies in the machine's folder, which it reaches by a descriptor, as sockets may
//! not have long names; disks are mounted, read-only, where it alone sees them.
//!
//! ```text
//! spawn ──▶ vmm.ping ──▶ vm.create ──▶ vm.add-net for each card ──▶ vm.boot ──▶ vm.info says Running
//!   └────────────┴─────────────┴──────────────────┴────────────────────┴── a refusal: the process is ended
//! ```

mod console;
mod http;
mod request;

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};

use super::{Capabilities, Launch, Monitor, MonitorError, Nic, Place, ShareSocket, checked, excerpt};
use crate::sys::mount::{self, Shown, Source, Submounts};
use crate::sys::process::{Child, Program};
use crate::sys::{landlock, socket};
use crate::wire::HYBRID_SOCKET;
use console::Fifo;
use http::Api;
use request::Places;

const NAME: &str = "Cloud Hypervisor";
const API_SOCKET: &str = "api.socket";
const CONSOLE: &str = "console";
const DISKS: &str = "disks";

#[derive(Debug)]
pub struct CloudHypervisor {
    process: Child,
    api: Api,
    console: Fifo,
    /// In bytes.
    memory: u64,
    folder: PathBuf,
    /// The same as the monitor names it.
    named: PathBuf,
    /// Where disks are mounted, writable here alone.
    disks: OwnedFd,
    /// The monitor's, and open as long as it may use its name for it.
    _folder: OwnedFd,
}

impl Drop for CloudHypervisor {
    fn drop(&mut self) {
        drop(fs::remove_file(self.folder.join(HYBRID_SOCKET)));
    }
}

impl CloudHypervisor {
    /// Starts the machine; its guest begins to boot at once.
    ///
    /// # Errors
    /// When the program cannot be started, or refuses the machine; it is ended then.
    pub async fn start(launch: Launch, log: Option<OwnedFd>, place: Place<'_>) -> Result<Self, MonitorError> {
        let program = launch.parts.monitor.clone();
        let monitor = spawn(&launch, log).map_err(|source| MonitorError::Start { program, source })?;
        place(monitor.pid()).map_err(MonitorError::Place)?;
        monitor.boot(launch).await?;
        Ok(monitor)
    }

    async fn boot(&self, launch: Launch) -> Result<(), MonitorError> {
        self.api.get("greet the monitor", "vmm.ping").await?;
        let share = launch.share.as_ref().map(|share| self.name_of(share)).transpose();
        let share = share.map_err(|source| MonitorError::Io { operation: "make the machine", source })?;
        let places = Places {
            console: &self.named.join(CONSOLE),
            vsock: &self.named.join(HYBRID_SOCKET),
            share: share.as_deref(),
            folder: &self.folder,
            disks: &self.folder.join(DISKS),
        };
        let create = request::create(&launch, places, landlock::is_available());
        self.put("make the machine", "vm.create", Some(&create)).await?;
        for nic in launch.nics {
            self.add_nic(nic).await?;
        }
        self.put("boot the machine", "vm.boot", None).await?;
        self.console.unlink();
        let info = self.api.get("look at the machine", "vm.info").await?;
        match info["state"].as_str() {
            Some("Running") => Ok(()),
            state => {
                let words = format!("it is {} after its start", state.unwrap_or("in no known state"));
                Err(MonitorError::Refused { operation: "boot the machine", words })
            }
        }
    }

    async fn put(
        &self,
        operation: &'static str,
        endpoint: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<(), MonitorError> {
        self.api.put(operation, endpoint, body, &[]).await.map(drop)
    }

    /// The socket as the monitor names it.
    fn name_of(&self, socket: &ShareSocket) -> io::Result<PathBuf> {
        match (socket.path().parent(), socket.path().file_name()) {
            (Some(folder), Some(name)) if folder == self.folder => Ok(self.named.join(name)),
            _ => Err(io::Error::other(format!("{} is not in the machine's folder", socket.path().display()))),
        }
    }

    /// Mounts the image where the monitor alone sees it.
    fn show(&self, name: &str, image: &OwnedFd) -> io::Result<PathBuf> {
        let folder = self.folder.join(DISKS);
        let shown = Shown {
            source: Source::Bind(format!("/proc/self/fd/{}", image.as_raw_fd()).into()),
            read_only: true,
            below: Submounts::default(),
            target: name.into(),
        };
        mount::show(self.process.pidfd(), &folder, self.disks.as_fd(), &[shown])?;
        Ok(folder.join(name))
    }
}

fn spawn(launch: &Launch, log: Option<OwnedFd>) -> io::Result<CloudHypervisor> {
    let path = |name: &str| launch.folder.join(name);
    fs::create_dir_all(path(DISKS))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&launch.folder, flags, Mode::empty())?;
    let console = Fifo::make(&path(CONSOLE))?;
    let (disks, shown) = mount::tmpfs_pair()?;
    let target = CString::new(path(DISKS).as_os_str().as_bytes())?;
    // The connection waits in the queue; whoever comes later finds no name.
    let listener = socket::listen(&path(API_SOCKET))?;
    let connection = socket::connect(&path(API_SOCKET));
    fs::remove_file(path(API_SOCKET))?;
    let connection = connection?;
    let program = Program {
        path: launch.parts.monitor.clone(),
        arguments: ["--api-socket", &format!("fd={}", listener.as_raw_fd()), "--seccomp", "true"]
            .map(OsString::from)
            .to_vec(),
        no_network: true,
        own_mounts: true,
        no_capabilities: true,
    };
    let passed = [listener.as_fd(), folder.as_fd()];
    let process = program.spawn(&passed, log, move || mount::hang(shown.as_fd(), &target))?;
    connection.set_nonblocking(true)?;
    let api = Api::new(tokio::net::UnixStream::from_std(connection)?);
    Ok(CloudHypervisor {
        process,
        api,
        console,
        memory: request::memory(launch),
        folder: launch.folder.clone(),
        named: Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()),
        disks,
        _folder: folder,
    })
}

#[async_trait]
impl Monitor for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { add_share: true, add_disk: true, add_nic: true, balloon: true }
    }

    fn pid(&self) -> i32 {
        self.process.pid()
    }

    async fn exited(&self) {
        self.process.exited().await;
    }

    async fn pause(&self) -> Result<(), MonitorError> {
        self.put("pause", "vm.pause", None).await
    }

    async fn resume(&self) -> Result<(), MonitorError> {
        self.put("resume", "vm.resume", None).await
    }

    async fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        self.put("balloon", "vm.resize", Some(&request::balloon(self.memory, bytes))).await
    }

    async fn add_share(&self, tag: &str, socket: ShareSocket) -> Result<(), MonitorError> {
        let operation = "add a share";
        let path = self.name_of(&socket).map_err(|source| MonitorError::Io { operation, source })?;
        let body = request::share(checked(operation, tag)?, &path);
        self.put(operation, "vm.add-fs", Some(&body)).await
    }

    async fn add_disk(&self, name: &str, image: OwnedFd) -> Result<(), MonitorError> {
        let operation = "add a disk";
        let path = self.show(checked(operation, name)?, &image);
        let path = path.map_err(|source| MonitorError::Io { operation, source })?;
        let added = self.put(operation, "vm.add-disk", Some(&request::disk(name, &path))).await;
        if added.is_err() {
            // Ends with the monitor at the latest.
            drop(mount::hide(self.process.pidfd(), &path));
        }
        added
    }

    async fn add_nic(&self, nic: Nic) -> Result<(), MonitorError> {
        let body = request::nic(&nic.mac);
        self.api.put("add a network card", "vm.add-net", Some(&body), &[nic.tap.as_fd()]).await.map(drop)
    }

    async fn stop(&self) -> Result<(), MonitorError> {
        // One that is not running has nothing to shut down; the monitor ends in any case.
        drop(self.put("stop", "vm.shutdown", None).await);
        self.put("stop", "vmm.shutdown", None).await
    }

    async fn console(&self) -> String {
        excerpt(&self.console.text())
    }

    fn kill(&self) {
        self.process.kill();
    }
}
