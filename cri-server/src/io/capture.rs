//! Collects what a process writes into its FIFOs, up to a bound; what is beyond it is read and discarded, so that the
//! process is never blocked by a full pipe.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::IoError;
use super::fifo::FifoFolder;

/// The bound of both streams together: the kubelet refuses answers over 16 MiB, fields and framing included.
pub const LIMIT: usize = 16 * 1024 * 1024 - 4096;

/// What one stream carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// The beginning, as much as the bound left room for.
    pub data: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

/// The daemon's end of a process's stdout and stderr.
pub struct ExecCapture {
    stdout: Stream,
    stderr: Stream,
    readers: JoinSet<()>,
    _folder: FifoFolder,
}

struct Stream {
    path: PathBuf,
    kept: Arc<Mutex<Captured>>,
    /// Held until the process has ended: no end of file before a shim, however late, opened its own.
    hold: Option<pipe::Sender>,
}

/// What may still be kept, of both streams together.
#[derive(Clone)]
struct Room(Arc<AtomicUsize>);

impl Room {
    /// Takes up to `count` bytes of the room and tells how many those are.
    fn take(&self, count: usize) -> usize {
        let taken = |left: usize| Some(left - left.min(count));
        // Never an error: `taken` always gives a value.
        let (Ok(left) | Err(left)) = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        left.min(count)
    }
}

impl ExecCapture {
    /// Makes the FIFOs in `<bundle>/io/<name>` and starts reading them. `limit` is for both streams together.
    ///
    /// # Errors
    /// When the FIFOs cannot be made or opened.
    pub fn make(bundle: &Path, name: &str, limit: usize) -> Result<Self, IoError> {
        let folder = FifoFolder::make(bundle, name)?;
        let mut readers = JoinSet::new();
        let room = Room(Arc::new(AtomicUsize::new(limit)));
        let stdout = Stream::make(&folder, "stdout", room.clone(), &mut readers)?;
        let stderr = Stream::make(&folder, "stderr", room, &mut readers)?;
        Ok(Self { stdout, stderr, readers, _folder: folder })
    }

    /// The FIFO for the process's stdout.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.path.to_string_lossy().into_owned()
    }

    /// The FIFO for the process's stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.path.to_string_lossy().into_owned()
    }

    /// After the process has ended: what came, and what still comes within `patience`. A grandchild that holds the
    /// pipe does not hold this.
    pub async fn finish(mut self, patience: Duration) -> (Captured, Captured) {
        self.stdout.hold = None;
        self.stderr.hold = None;
        let ended = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, ended).await;
        self.readers.shutdown().await;
        (self.stdout.take(), self.stderr.take())
    }
}

impl Stream {
    fn make(folder: &FifoFolder, name: &str, room: Room, readers: &mut JoinSet<()>) -> Result<Self, IoError> {
        let path = folder.fifo(name)?;
        let failed = |source| IoError::at("open FIFO", &path, source);
        let receiver = pipe::OpenOptions::new().open_receiver(&path).map_err(failed)?;
        let hold = pipe::OpenOptions::new().open_sender(&path).map_err(failed)?;
        let kept = Arc::new(Mutex::new(Captured::default()));
        readers.spawn(drain(receiver, Arc::clone(&kept), room));
        Ok(Self { path, kept, hold: Some(hold) })
    }

    fn take(&self) -> Captured {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn drain(mut receiver: pipe::Receiver, kept: Arc<Mutex<Captured>>, room: Room) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match receiver.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) => return tracing::warn!(%error, "output of an exec is cut off"),
        };
        let granted = room.take(count);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.data.extend_from_slice(&buffer[..granted]);
        kept.truncated |= granted < count;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_beyond_the_bound_is_drained_and_marked() {
        let bundle = tempfile::tempdir().unwrap();
        let capture = ExecCapture::make(bundle.path(), "e", 10).unwrap();
        let path = capture.stdout();
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(&[b'x'; 1_000_000]).unwrap();
        });
        writer.await.unwrap();
        let (stdout, stderr) = capture.finish(Duration::from_secs(5)).await;
        assert_eq!(stdout, Captured { data: vec![b'x'; 10], truncated: true });
        assert_eq!(stderr, Captured::default());
        assert_eq!(std::fs::read_dir(bundle.path().join("io")).unwrap().count(), 0, "FIFOs are left");
    }

    #[tokio::test]
    async fn both_streams_share_the_bound() {
        let bundle = tempfile::tempdir().unwrap();
        let capture = ExecCapture::make(bundle.path(), "e", 100).unwrap();
        for path in [capture.stdout(), capture.stderr()] {
            let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(&[b'x'; 80]).unwrap();
        }
        let (stdout, stderr) = capture.finish(Duration::from_secs(5)).await;
        assert_eq!(stdout.data.len() + stderr.data.len(), 100);
        assert!(stdout.truncated != stderr.truncated);
    }

    #[tokio::test]
    async fn a_held_pipe_is_given_up_with_its_output() {
        let bundle = tempfile::tempdir().unwrap();
        let capture = ExecCapture::make(bundle.path(), "e", LIMIT).unwrap();
        let mut grandchild = std::fs::OpenOptions::new().write(true).open(capture.stdout()).unwrap();
        grandchild.write_all(b"said").unwrap();
        let begun = std::time::Instant::now();
        let (stdout, _) = capture.finish(Duration::from_millis(200)).await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(stdout.data, b"said");
    }
}
