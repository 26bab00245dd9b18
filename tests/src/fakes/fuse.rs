//! A file system whose server does not answer: whoever looks for the file `hang` in it sleeps in the kernel, and once the
//! server has read the question, not even SIGKILL ends that sleep. Answers come when the test releases it.
//!
//! The protocol is the kernel's, see fuse(4) and `include/uapi/linux/fuse.h`; only what a mount point needs is served.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const ACCESS: u32 = 34;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const ROOT: u64 = 1;
/// The sleep's name.
pub const HANG: &str = "hang";

/// The mount; gone when dropped, and with it everybody's sleep.
#[derive(Debug)]
pub struct Fuse {
    point: PathBuf,
    held: Arc<Mutex<Held>>,
    device: File,
}

/// The questions that have no answer yet.
#[derive(Debug, Default)]
struct Held {
    questions: Vec<u64>,
    released: bool,
}

impl Fuse {
    /// Mounts it at `point`, which is made.
    pub fn mount(point: &Path) -> Self {
        std::fs::create_dir_all(point).expect("cannot make the mount point");
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("cannot open /dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("hanging"), point, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .expect("cannot mount the file system");
        let held = Arc::<Mutex<Held>>::default();
        let server = device.try_clone().expect("cannot share the device");
        let shared = Arc::clone(&held);
        // Ends with the mount.
        std::thread::spawn(move || serve(server, &shared));
        Self { point: point.to_owned(), held, device }
    }

    /// How many sleep now.
    pub fn sleepers(&self) -> usize {
        self.held.lock().expect("poisoned").questions.len()
    }

    /// Wakes all of them: the file is not there.
    pub fn release(&self) {
        let mut held = self.held.lock().expect("poisoned");
        held.released = true;
        for question in held.questions.drain(..) {
            answer(&self.device, question, -libc::ENOENT, &[]);
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.release();
        let _ = umount2(&self.point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

fn answer(mut device: &File, question: u64, error: i32, body: &[u8]) {
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&error.to_ne_bytes());
    message.extend_from_slice(&question.to_ne_bytes());
    message.extend_from_slice(body);
    // Whoever asked may be gone.
    let _ = device.write(&message);
}

fn serve(mut device: File, held: &Mutex<Held>) {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(_) => continue,
        };
        let message = &buffer[..length];
        let word =
            |at: usize| message.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap()));
        let long =
            |at: usize| message.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap()));
        let (operation, question, node) = (word(4), long(8), long(16));
        match operation {
            INIT => answer(&device, question, 0, &init(word(44))),
            GETATTR if node == ROOT => answer(&device, question, 0, &attributes()),
            LOOKUP => {
                let name = message.get(40..).unwrap_or_default();
                let mut held = held.lock().expect("poisoned");
                if name.starts_with(HANG.as_bytes()) && !held.released {
                    held.questions.push(question);
                } else {
                    answer(&device, question, -libc::ENOENT, &[]);
                }
            }
            OPENDIR => answer(&device, question, 0, &[0; 16]),
            ACCESS | RELEASEDIR | DESTROY => answer(&device, question, 0, &[]),
            // These want no answer.
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => answer(&device, question, -libc::ENOSYS, &[]),
        }
    }
}

/// `struct fuse_init_out` of version 7.31.
fn init(minor: u32) -> [u8; 64] {
    let mut body = [0; 64];
    let mut put = |at: usize, value: u32| body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, 7);
    put(4, minor.min(31));
    put(8, 4096);
    // FUSE_PARALLEL_DIROPS: without it the second question waits for the first one's answer.
    put(12, 1 << 18);
    // max_write
    put(20, 4096);
    body
}

/// `struct fuse_attr_out` of the root: a folder that everybody may enter.
fn attributes() -> [u8; 104] {
    let mut body = [0; 104];
    body[16..24].copy_from_slice(&ROOT.to_ne_bytes());
    body[76..80].copy_from_slice(&(libc::S_IFDIR | 0o755).to_ne_bytes());
    body[80..84].copy_from_slice(&2u32.to_ne_bytes());
    body
}
