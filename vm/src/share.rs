//! The folder that a pod's guest sees of the host, over virtio-fs.
//!
//! ```text
//! ROOT/                       a tmpfs in a mount namespace of virtiofsd's own; read-only there
//!   CONTAINER/rootfs/         the container's root filesystem, mounted
//!   CONTAINER/mounts/N        its volumes and files, mounted
//! ```
//! Invariant: nothing is in it but what containers of the pod were told to have, and what is read-only for them is so on
//! the host's side. The folders that hold the mounts can be changed by the host alone, through a mount that is hung up
//! nowhere. The others exist in virtiofsd's namespace alone, so they end with it, whatever else dies.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::mount::{self, Shown, Source, Submounts};
use crate::sys::process::{Child, Program};
use crate::sys::socket;
use crate::vmm::ShareSocket;

/// Where the guest mounts it.
pub const GUEST_ROOT: &str = "/run/cofferdam/share";

#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("show the guest the files of {container}: {source}")]
    Show { container: String, source: io::Error },
    #[error("take the files of {container} away: {source}")]
    Hide { container: String, source: io::Error },
}

/// What is shown of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Relative to the container's folder.
    pub name: String,
    pub source: Source,
    pub read_only: bool,
    pub below: Submounts,
}

#[derive(Debug)]
pub struct Share {
    virtiofsd: Child,
    root: PathBuf,
    folders: OwnedFd,
}

impl Share {
    /// Starts virtiofsd on `root`, a folder whose own content stays unseen. The other value is where it waits for the
    /// monitor: a socket beside the folder.
    ///
    /// # Errors
    /// When virtiofsd cannot be started.
    pub fn start(
        program: &Path,
        root: &Path,
        log: Option<OwnedFd>,
    ) -> Result<(Self, ShareSocket), ShareError> {
        let failed = |source| ShareError::Start { program: program.to_owned(), source };
        let (folders, shown) = mount::tmpfs_pair().map_err(failed)?;
        let (virtiofsd, socket) = start(program, root, shown, log).map_err(failed)?;
        Ok((Share { virtiofsd, root: root.to_owned(), folders }, socket))
    }

    /// Where the guest finds an item.
    pub fn guest_path(container: &str, item: &str) -> PathBuf {
        Path::new(GUEST_ROOT).join(container).join(item)
    }

    /// Shows a container's files. Both names must be plain, as ids are.
    ///
    /// # Errors
    /// When one of them cannot be mounted; none is shown then.
    pub fn show(&self, container: &str, items: &[Item]) -> Result<(), ShareError> {
        let shown: Vec<Shown> = items
            .iter()
            .map(|item| Shown {
                source: item.source.clone(),
                read_only: item.read_only,
                below: item.below,
                target: Path::new(container).join(&item.name),
            })
            .collect();
        mount::show(self.virtiofsd.pidfd(), &self.root, self.folders.as_fd(), &shown)
            .map_err(|source| ShareError::Show { container: container.to_owned(), source })
    }

    /// Takes a container's files away. Absent is done, and so is all when virtiofsd has ended.
    ///
    /// # Errors
    /// When something stays mounted.
    pub fn hide(&self, container: &str) -> Result<(), ShareError> {
        if !self.virtiofsd.is_alive() {
            return Ok(());
        }
        let failed = |source| ShareError::Hide { container: container.to_owned(), source };
        mount::hide(self.virtiofsd.pidfd(), &self.root.join(container)).map_err(failed)?;
        // Nothing is mounted on this side, so no file of a container's is within reach.
        match std::fs::remove_dir_all(format!("/proc/self/fd/{}/{container}", self.folders.as_raw_fd())) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
            _ => Ok(()),
        }
    }

    pub fn pid(&self) -> i32 {
        self.virtiofsd.pid()
    }

    pub async fn exited(&self) {
        self.virtiofsd.exited().await;
    }

    pub fn kill(&self) {
        self.virtiofsd.kill();
    }
}

/// The mount that hides what else lies in the folder is made by the child itself, in its own namespace.
fn start(
    program: &Path,
    root: &Path,
    shown: OwnedFd,
    log: Option<OwnedFd>,
) -> io::Result<(Child, ShareSocket)> {
    std::fs::create_dir_all(root)?;
    let path = root.with_extension("socket");
    let listener = socket::listen(&path)?;
    let named = ShareSocket::new(path);
    let target = CString::new(root.as_os_str().as_bytes())?;
    let option = |text: String| ["-o".to_owned(), text];
    let mut arguments = vec!["-f".to_owned(), format!("--fd={}", listener.as_raw_fd())];
    arguments.extend(option(format!("source={}", root.display())));
    // It stays in this mount namespace, so that what is mounted later appears; chroot keeps it below the folder.
    for text in ["sandbox=chroot", "cache=auto", "announce_submounts", "xattr"] {
        arguments.extend(option(text.to_owned()));
    }
    let program = Program {
        path: program.to_owned(),
        arguments: arguments.into_iter().map(Into::into).collect(),
        no_network: true,
        own_mounts: true,
        // It needs some to act as the container's users, and drops the others itself.
        no_capabilities: false,
    };
    let child = program.spawn(&[listener.as_fd()], log, move || mount::hang(shown.as_fd(), &target))?;
    Ok((child, named))
}
