//! A recorded disk: made, mounted by a loop device, and taken apart.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::mount::{MntFlags, umount2};

use super::{Journal, Tape, fuse};

/// A disk whose writes are recorded.
#[derive(Debug)]
pub struct Disk {
    folder: tempfile::TempDir,
    journal: Arc<Journal>,
    mounted: Option<PathBuf>,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Makes a disk of so many megabytes with ext4 on it.
    pub fn ext4(megabytes: u64) -> Self {
        crate::harness::require("/usr/sbin/mkfs.ext4", "e2fsprogs");
        crate::harness::require("/dev/fuse", "a kernel with FUSE");
        let folder = tempfile::Builder::new().prefix("cft-disk-").tempdir_in("/tmp").expect("no temp folder");
        let image = folder.path().join("image");
        let file = File::create(&image).expect("cannot make the disk's image");
        file.set_len(megabytes << 20).expect("cannot size the disk's image");
        // Nothing is left to the kernel to write later.
        run(Command::new("/usr/sbin/mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image));
        copy(&image, &folder.path().join("base"));
        Self { folder, journal: Arc::default(), mounted: None, server: None }
    }

    /// Mounts it at `at`; from here on all is recorded.
    pub fn mount(&mut self, at: &Path) {
        let fuse = self.folder.path().join("fuse");
        std::fs::create_dir(&fuse).expect("cannot make the folder for the recorder");
        let image = File::options().read(true).write(true).open(self.image());
        let image = image.expect("cannot open the disk's image");
        let server = fuse::serve(image, &fuse, Arc::clone(&self.journal)).expect("cannot mount the recorder");
        self.server = Some(server);
        mount(&fuse.join(fuse::NAME), at);
        self.mounted = Some(at.to_owned());
    }

    /// The file, to be mounted without a record.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    /// What was recorded up to the moment `end`; it can be had once.
    pub fn tape(&self, end: usize) -> Tape {
        self.journal.tape(&self.folder.path().join("base"), end)
    }

    /// Where an image may be put.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn unmount(&mut self) {
        if let Some(at) = self.mounted.take() {
            unmount(&at);
        }
        if let Some(server) = self.server.take() {
            // The loop device lets go of the file in its own time.
            let fuse = self.folder.path().join("fuse");
            for _ in 0..200 {
                if umount2(&fuse, MntFlags::empty()).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            // It may be gone.
            let _ = umount2(&fuse, MntFlags::MNT_DETACH);
            if !std::thread::panicking() {
                server.join().expect("the recorder panicked");
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Mounts the file system in a file, by a loop device that ends with it.
pub fn mount(image: &Path, at: &Path) {
    run(Command::new("mount").args(["-t", "ext4", "-o", "loop,noatime"]).arg(image).arg(at));
}

/// Unmounts, however busy it is.
pub fn unmount(at: &Path) {
    if umount2(at, MntFlags::empty()).is_err() {
        let _ = umount2(at, MntFlags::MNT_DETACH);
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
