//! The guest's serial console: a FIFO that the monitor writes to, always read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::net::unix::pipe;

use crate::vmm::console::Console;

/// Its name goes with the value at the latest.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    console: Console,
}

impl Fifo {
    pub fn make(path: &Path) -> io::Result<Self> {
        drop(fs::remove_file(path));
        mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
        // Open for both directions, so that it has no end while the monitor is not there yet.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
        Ok(Fifo { path: path.to_owned(), console: Console::follow(receiver) })
    }

    /// Once the monitor has it open, nobody needs its name.
    pub fn unlink(&self) {
        drop(fs::remove_file(&self.path));
    }

    pub fn text(&self) -> String {
        self.console.text()
    }
}

impl Drop for Fifo {
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
    async fn what_comes_after_the_name_is_gone_is_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let fifo = Fifo::make(&path).unwrap();
        let mut printed = fs::File::options().write(true).open(&path).unwrap();
        fifo.unlink();
        printed.write_all(b"the end").unwrap();
        for _ in 0..100 {
            if fifo.text() == "the end" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(fifo.text(), "the end");
        assert!(!path.exists());
    }
}
