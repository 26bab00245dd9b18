//! Kernel settings of the calling thread's network namespace, under `/proc/sys/net`.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {}", .path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
}

fn place(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// Sets `name` (such as `ipv4/ip_forward`) unless it has that value already, so that a read-only `/proc/sys` is
/// no obstacle where the node is prepared.
pub fn ensure(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = place(name);
    let now =
        std::fs::read_to_string(&path).map_err(|source| SysctlError::Read { path: path.clone(), source })?;
    if now.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| SysctlError::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

/// Whether the kernel has this setting.
pub fn exists(name: &str) -> bool {
    place(name).exists()
}
