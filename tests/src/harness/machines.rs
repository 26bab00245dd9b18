//! What nodes need whose pods are virtual machines: QEMU, an unpacked kernel, and an image made of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::binaries;

/// Of the section `runtimes.vm`.
pub const HANDLER: &str = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";

/// What `tests/vm/kernel.sh` unpacked.
fn kernel() -> Option<PathBuf> {
    let cache = std::env::var_os("COFFERDAM_VM_CACHE").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/cofferdam-vm")))?;
    let entries = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.join("ready").exists() && path.join("boot").exists())
}

/// The image, in a folder that goes with the value; nothing, in words, where something is missing.
pub fn image() -> Option<tempfile::TempDir> {
    let agent = binaries().join("cofferdam-agent");
    for (there, what) in [
        (Path::new("/usr/bin/qemu-system-x86_64").exists(), "no QEMU: make setup-vm"),
        (agent.exists(), "no cofferdam-agent beside the shim: make build"),
        (kernel().is_some(), "no kernel is unpacked: tests/vm/kernel.sh"),
    ] {
        if !there {
            println!("skipped: {what}");
            return None;
        }
    }
    let folder = tempfile::tempdir().expect("no temp folder");
    let made = Command::new(binaries().join("cofferdam"))
        .args(["vm", "build-image", "--root"])
        .arg(kernel()?)
        .arg("--output")
        .arg(folder.path())
        .output()
        .expect("cannot run cofferdam");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(folder)
}

/// The section `runtimes.vm.vm`, for the image in this folder.
pub fn config(image: &Path) -> String {
    format!(
        "kernel = {:?}\nimage = {:?}\nmemory = 192\nemulation = true\nboot_seconds = 50\n",
        image.join("kernel"),
        image.join("initramfs")
    )
}
