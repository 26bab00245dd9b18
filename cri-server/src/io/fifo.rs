//! FIFOs between containers and the daemon, in folders of their own, readable by the daemon's user only.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use super::IoError;

/// A folder of FIFOs, gone with this value.
#[derive(Debug)]
pub struct FifoFolder {
    path: PathBuf,
}

impl FifoFolder {
    /// Makes the folder `<bundle>/io/<name>` with nothing in it.
    ///
    /// # Errors
    /// When it exists already or cannot be made.
    pub fn make(bundle: &Path, name: &str) -> Result<Self, IoError> {
        let parent = bundle.join("io");
        for (folder, may_exist) in [(parent.clone(), true), (parent.join(name), false)] {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            match builder.create(&folder) {
                Err(source) if !(may_exist && source.kind() == io::ErrorKind::AlreadyExists) => {
                    return Err(IoError::at("make folder", &folder, source));
                }
                _ => {}
            }
        }
        Ok(Self { path: parent.join(name) })
    }

    /// Makes a FIFO in the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn fifo(&self, name: &str) -> Result<PathBuf, IoError> {
        let path = self.path.join(name);
        make_fifo(&path)?;
        Ok(path)
    }
}

impl Drop for FifoFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "FIFO folder stays");
        }
    }
}

/// Makes a FIFO of mode 0600.
pub(super) fn make_fifo(path: &Path) -> Result<(), IoError> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|e| IoError::at("make FIFO", path, e.into()))
}
