//! Network namespaces: opening one, and working inside one without ever moving the caller's thread.

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open network namespace {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not a namespace", .path.display())]
    NotANamespace { path: PathBuf },
    #[error("cannot enter network namespace {}", .path.display())]
    Enter { path: PathBuf, source: Errno },
    #[error("cannot start a thread for network namespace {}", .path.display())]
    Thread { path: PathBuf, source: io::Error },
    #[error("the thread inside network namespace {} panicked", .path.display())]
    Panicked { path: PathBuf },
}

/// An open network namespace: it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let path = path.to_path_buf();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(NetnsError::Open { path, source }),
        };
        let kind = fstatfs(&file).map(|s| s.filesystem_type());
        if !matches!(kind, Ok(NSFS_MAGIC | PROC_SUPER_MAGIC)) {
            return Err(NetnsError::NotANamespace { path });
        }
        Ok(Self { file, path })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the calling thread is in it.
    pub fn is_current(&self) -> bool {
        let here = std::fs::metadata("/proc/thread-self/ns/net");
        matches!((self.file.metadata(), here), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// Runs `work` on a thread that is inside the namespace and ends afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let path = || self.path.clone();
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|source| NetnsError::Enter { path: path(), source })?;
                Ok(work())
            };
            let thread = std::thread::Builder::new().name("netns".to_owned()).stack_size(256 * 1024);
            let handle = thread
                .spawn_scoped(scope, inside)
                .map_err(|source| NetnsError::Thread { path: path(), source })?;
            handle.join().unwrap_or_else(|_| Err(NetnsError::Panicked { path: path() }))
        })
    }
}
