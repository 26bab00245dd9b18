//! A file system with one file, which writes down what is done to it: the kernel's FUSE protocol, as far as a loop device needs it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Journal;

/// The name of the file.
pub const NAME: &str = "disk";
const ROOT: u64 = 1;
const FILE: u64 = 2;
const LARGEST_WRITE: u32 = 1 << 20;
/// Header and arguments before a write's data.
const BEFORE_DATA: usize = 40 + 40;

mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

/// Mounts it at `at`, with the content of `backing`; serves until it is unmounted.
pub fn serve(backing: File, at: &Path, journal: Arc<Journal>) -> io::Result<JoinHandle<()>> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID;
    nix::mount::mount(Some("powercut"), at, Some("fuse"), flags, Some(options.as_str()))?;
    let size = backing.metadata()?.len();
    let server = Server { backing, size, journal };
    Ok(std::thread::spawn(move || server.run(&device)))
}

struct Server {
    backing: File,
    size: u64,
    journal: Arc<Journal>,
}

/// An answer's bytes, or the error; `None` where the kernel waits for none.
type Answer = Option<Result<Vec<u8>, i32>>;

impl Server {
    fn run(&self, mut device: &File) {
        let mut buffer = vec![0; LARGEST_WRITE as usize + 4096];
        loop {
            let length = match device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A request that was taken back.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                // Unmounted.
                Err(_) => return,
            };
            let request = &buffer[..length];
            let unique = number::<8>(request, 8);
            let Some(answer) = self.answer(request) else { continue };
            let (error, body) = answer.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
            let mut message = Vec::with_capacity(16 + body.len());
            message.extend(((16 + body.len()) as u32).to_ne_bytes());
            message.extend(error.to_ne_bytes());
            message.extend(unique.to_ne_bytes());
            message.extend(body);
            // Whoever asked may be gone.
            let _ = device.write(&message);
        }
    }

    fn answer(&self, request: &[u8]) -> Answer {
        let node = number::<8>(request, 16);
        let body = &request[40..];
        let failed = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let answer = match number::<4>(request, 4) as u32 {
            op::INIT => Ok(init()),
            op::LOOKUP if body.strip_suffix(&[0]) == Some(NAME.as_bytes()) => Ok(self.entry()),
            op::LOOKUP => Err(libc::ENOENT),
            op::GETATTR | op::SETATTR => {
                let valid = [u64::MAX >> 1, 0].map(u64::to_ne_bytes).concat();
                Ok([valid, self.attributes(node)].concat())
            }
            // The handle and no flags.
            op::OPEN => Ok(vec![0; 16]),
            op::READ => {
                let (offset, size) = (number::<8>(body, 8), number::<4>(body, 16));
                let mut data = vec![0; size.min(self.size.saturating_sub(offset)) as usize];
                self.backing.read_exact_at(&mut data, offset).map(|()| data).map_err(failed)
            }
            op::WRITE => {
                let (offset, size) = (number::<8>(body, 8), number::<4>(body, 16));
                let data = &request[BEFORE_DATA..];
                let written = self.backing.write_all_at(data, offset).map_err(failed);
                self.journal.write(offset, data);
                written.map(|()| [(size as u32).to_ne_bytes(), [0; 4]].concat())
            }
            op::FSYNC => {
                self.journal.flush();
                Ok(Vec::new())
            }
            op::FLUSH | op::RELEASE => Ok(Vec::new()),
            op::STATFS => Ok(vec![0; 80]),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return None,
            _ => Err(libc::ENOSYS),
        };
        Some(answer)
    }

    fn entry(&self) -> Vec<u8> {
        let mut entry = [FILE, 0, u64::MAX >> 1, u64::MAX >> 1, 0].map(u64::to_ne_bytes).concat();
        entry.extend(self.attributes(FILE));
        entry
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let (size, mode) =
            if node == ROOT { (0, libc::S_IFDIR | 0o755) } else { (self.size, libc::S_IFREG | 0o600) };
        let mut attributes = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
        // Nanoseconds of three times, mode, links, user, group, device, block size, flags.
        for field in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
            attributes.extend(field.to_ne_bytes());
        }
        attributes
    }
}

/// Version 7.31: big writes of many pages.
fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut answer: Vec<u8> = [7, 31, 1 << 17, BIG_WRITES | MAX_PAGES].map(u32::to_ne_bytes).concat();
    // Requests in the background, and when that is congestion.
    answer.extend([64_u16, 48].map(u16::to_ne_bytes).concat());
    answer.extend([LARGEST_WRITE, 1].map(u32::to_ne_bytes).concat());
    answer.extend([(LARGEST_WRITE / 4096) as u16, 0].map(u16::to_ne_bytes).concat());
    answer.resize(64, 0);
    answer
}

/// The number of `SIZE` bytes at `at`.
fn number<const SIZE: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    // The machines that this runs on have the low byte first.
    wide[..SIZE].copy_from_slice(&bytes[at..at + SIZE]);
    u64::from_le_bytes(wide)
}
