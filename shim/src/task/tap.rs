//! Taps: further readers of a stream, who come and go while it is carried to its log.
//!
//! Invariant: a tap never holds up the stream. The FIFO's own buffer in the kernel is all that a reader may lag
//! behind; when it is full the tap is closed, and its reader sees the end early.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};

/// How many may listen to one stream.
const MOST: usize = 64;

/// The taps of one stream.
pub struct Taps(Mutex<Option<Vec<File>>>);

impl Default for Taps {
    fn default() -> Self {
        Taps(Mutex::new(Some(Vec::new())))
    }
}

impl Taps {
    /// Adds the FIFO at `path`, which must have a reader. On a stream that has ended the reader sees the end at once.
    pub fn add(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a FIFO"));
        }
        if let Some(taps) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            if taps.len() >= MOST {
                return Err(io::Error::new(ErrorKind::QuotaExceeded, "too many are attached already"));
            }
            taps.push(File::from(fd));
        }
        Ok(())
    }

    /// Gives `data` to everyone who can take it.
    pub fn write(&self, data: &[u8]) {
        if let Some(taps) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            taps.retain_mut(|tap| tap.write_all(data).is_ok());
            if taps.is_empty() {
                taps.shrink_to_fit();
            }
        }
    }

    /// The stream has ended: so does every tap, and every later one.
    pub fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Fifo(PathBuf);

    impl Drop for Fifo {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }

    fn fifo(name: &str) -> (Fifo, File) {
        let path = std::env::temp_dir().join(format!("cofferdam-tap-{}-{name}", std::process::id()));
        drop(std::fs::remove_file(&path));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = libc::O_NONBLOCK;
        let reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
        (Fifo(path), reader)
    }

    #[test]
    fn every_tap_gets_what_comes_after_it() {
        let taps = Taps::default();
        let ((first, mut one), (second, mut two)) = (fifo("a1"), fifo("a2"));
        taps.add(&first.0).unwrap();
        taps.write(b"early ");
        taps.add(&second.0).unwrap();
        taps.write(b"late");
        taps.end();
        let mut text = String::new();
        one.read_to_string(&mut text).unwrap();
        two.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early latelate");
    }

    #[test]
    fn a_reader_that_lags_loses_its_tap_and_nobody_else_does() {
        let taps = Taps::default();
        let ((slow, mut asleep), (fast, mut awake)) = (fifo("b1"), fifo("b2"));
        taps.add(&slow.0).unwrap();
        taps.add(&fast.0).unwrap();
        let mut got = 0;
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..64 {
            taps.write(&[b'x'; 16 * 1024]);
            got += awake.read(&mut buffer).unwrap();
        }
        assert_eq!(got, 64 * 16 * 1024);
        // Its end comes behind what it could hold, although the stream goes on.
        let mut held = Vec::new();
        asleep.read_to_end(&mut held).unwrap();
        assert!(held.len() < got, "{}", held.len());
    }

    #[test]
    fn what_has_no_reader_is_refused_and_an_ended_stream_ends_at_once() {
        let taps = Taps::default();
        let (fifo, mut reader) = fifo("c1");
        taps.end();
        taps.add(&fifo.0).unwrap();
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        drop(reader);
        assert!(Taps::default().add(&fifo.0).is_err());
        assert!(Taps::default().add(Path::new("/dev/null")).is_err());
    }
}
