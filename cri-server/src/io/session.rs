//! The daemon's ends of a process's streams while a client watches it: FIFOs in a folder of their own.
//!
//! Invariant: an output has no end before the shim, however late, opened its own side; an input has none before the
//! daemon closes it.

use std::path::{Path, PathBuf};

use tokio::net::unix::pipe;

use super::IoError;
use super::fifo::FifoFolder;

/// As much as the kernel lets a FIFO hold without special rights; a smaller one does as well, only slower.
const BUFFER: usize = 1 << 20;

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The FIFOs of one session; they go with this value.
pub struct SessionFifos {
    pub stdin: Option<SessionInput>,
    pub stdout: Option<SessionOutput>,
    pub stderr: Option<SessionOutput>,
    _folder: FifoFolder,
}

/// What the client says.
pub struct SessionInput {
    path: PathBuf,
    /// Holds both directions open until the shim reads.
    hold: pipe::Sender,
}

/// What the process says.
pub struct SessionOutput {
    path: PathBuf,
    receiver: pipe::Receiver,
    /// Held until the shim writes.
    hold: pipe::Sender,
}

impl SessionFifos {
    /// Makes the FIFOs in `<bundle>/io/<name>` and opens the daemon's side of each.
    ///
    /// # Errors
    /// When they cannot be made or opened; nothing is left then.
    pub fn make(bundle: &Path, name: &str, wanted: Wanted) -> Result<Self, IoError> {
        let folder = FifoFolder::make(bundle, name)?;
        let output = |name: &str, wanted: bool| match wanted {
            true => SessionOutput::make(&folder, name).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            stdin: if wanted.stdin { Some(SessionInput::make(&folder)?) } else { None },
            stdout: output("stdout", wanted.stdout)?,
            stderr: output("stderr", wanted.stderr)?,
            _folder: folder,
        })
    }
}

impl SessionInput {
    fn make(folder: &FifoFolder) -> Result<Self, IoError> {
        let path = folder.fifo("stdin")?;
        let opened = pipe::OpenOptions::new().read_write(true).open_sender(&path);
        let hold = opened.map_err(|source| IoError::at("open FIFO", &path, source))?;
        Ok(Self { path, hold })
    }

    /// The FIFO's path.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Once the shim has its side: the end to write to. A reader that is gone is an error from then on, and dropping
    /// the end is the end of the input.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn connected(self) -> Result<pipe::Sender, IoError> {
        let sender = open_input(&self.path);
        drop(self.hold);
        sender
    }
}

/// Opens an input that somebody reads: that of [`SessionInput`], or a container's own.
///
/// # Errors
/// When it does not exist or nobody reads.
pub fn open_input(path: &Path) -> Result<pipe::Sender, IoError> {
    pipe::OpenOptions::new().open_sender(path).map_err(|source| IoError::at("open FIFO", path, source))
}

impl SessionOutput {
    fn make(folder: &FifoFolder, name: &str) -> Result<Self, IoError> {
        let path = folder.fifo(name)?;
        let failed = |source| IoError::at("open FIFO", &path, source);
        let receiver = pipe::OpenOptions::new().open_receiver(&path).map_err(failed)?;
        let hold = pipe::OpenOptions::new().open_sender(&path).map_err(failed)?;
        // Refused where the user's share of such memory is used up; the usual size serves too.
        let _ = rustix::pipe::fcntl_setpipe_size(&receiver, BUFFER);
        Ok(Self { path, receiver, hold })
    }

    /// The FIFO's path.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Once the shim has its side: the end to read from, which ends when the shim closes its own.
    #[must_use]
    pub fn connected(self) -> pipe::Receiver {
        drop(self.hold);
        self.receiver
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn streams_end_with_their_writers_and_the_fifos_with_the_session() {
        let bundle = tempfile::tempdir().unwrap();
        let wanted = Wanted { stdin: true, stdout: true, stderr: false };
        let mut fifos = SessionFifos::make(bundle.path(), "e", wanted).unwrap();
        assert!(fifos.stderr.is_none());
        let (stdin, stdout) = (fifos.stdin.take().unwrap(), fifos.stdout.take().unwrap());
        let mut process_in = pipe::OpenOptions::new().open_receiver(stdin.path()).unwrap();
        let mut process_out = pipe::OpenOptions::new().open_sender(stdout.path()).unwrap();
        let (mut input, mut output) = (stdin.connected().unwrap(), stdout.connected());
        input.write_all(b"in").await.unwrap();
        process_out.write_all(b"out").await.unwrap();
        drop((input, process_out));
        let mut text = String::new();
        process_in.read_to_string(&mut text).await.unwrap();
        output.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "inout");
        drop(fifos);
        assert_eq!(std::fs::read_dir(bundle.path().join("io")).unwrap().count(), 0, "FIFOs are left");
    }

    #[tokio::test]
    async fn an_input_that_nobody_reads_is_refused() {
        let bundle = tempfile::tempdir().unwrap();
        let wanted = Wanted { stdin: true, ..Wanted::default() };
        let mut fifos = SessionFifos::make(bundle.path(), "e", wanted).unwrap();
        let path = bundle.path().join("io/e/stdin");
        drop(fifos.stdin.take());
        assert!(open_input(&path).is_err());
    }
}
