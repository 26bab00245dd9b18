//! The guest's serial console: a FIFO that the monitor writes to, always read, whose end is kept.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

/// What a guest prints before that is lost, and costs nothing.
const KEPT: usize = 16 << 10;

#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    end: Arc<Mutex<VecDeque<u8>>>,
    _reader: JoinSet<()>,
}

impl Console {
    pub fn make(path: &Path) -> io::Result<Self> {
        drop(fs::remove_file(path));
        mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
        // Open for both directions, so that it has no end while the monitor is not there yet.
        let mut receiver = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
        let end = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT)));
        let kept = Arc::clone(&end);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let over = kept.len().saturating_sub(KEPT);
                drop(kept.drain(..over));
            }
        });
        Ok(Console { path: path.to_owned(), end, _reader: reader })
    }

    /// Once the monitor has it open, nobody needs its name.
    pub fn unlink(&self) {
        drop(fs::remove_file(&self.path));
    }

    pub fn text(&self) -> String {
        let mut kept = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.unlink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[tokio::test]
    async fn the_end_of_what_is_printed_is_kept_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = Console::make(&path).unwrap();
        let mut printed = fs::File::options().write(true).open(&path).unwrap();
        console.unlink();
        let written = tokio::task::spawn_blocking(move || {
            for _ in 0..100 {
                printed.write_all(&[b'x'; 1000]).unwrap();
            }
            printed.write_all(b"the end").unwrap();
        });
        written.await.unwrap();
        for _ in 0..100 {
            if console.text().ends_with("the end") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(console.text().ends_with("xthe end"));
        assert_eq!(console.text().len(), KEPT);
        assert!(!path.exists());
    }
}
