//! Nodes whose pods run in virtual machines: real QEMU, real virtiofsd, Debian's kernel, under emulation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as ProcessId;

use super::{Node, NodeBuilder, Pod, binaries};

/// Under emulation, on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for commands in a guest.
pub const SECONDS: i64 = 60;
const MONITOR: &str = "/usr/bin/qemu-system-x86_64";

/// What `tests/vm/kernel.sh` unpacked.
fn kernel() -> Option<PathBuf> {
    let cache = std::env::var_os("COFFERDAM_VM_CACHE").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/cofferdam-vm")))?;
    let entries = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.join("ready").exists() && path.join("boot").exists())
}

/// The guest's kernel and image, in a folder that goes with the value; nothing, in words, where something is missing.
///
/// # Panics
/// When the image cannot be made.
pub fn image() -> Option<tempfile::TempDir> {
    let agent = binaries().join("cofferdam-agent");
    for (there, what) in [
        (Path::new(MONITOR).exists(), "no QEMU: make setup-vm"),
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

/// A node with the handler `vm`, whose machines boot from `image`. A test adds what it needs besides.
pub fn builder(image: &Path) -> NodeBuilder {
    builder_within(image, 150)
}

/// The same with another time for a machine's boot. Where the processors are free it takes a few seconds.
pub fn builder_within(image: &Path, boot_seconds: u32) -> NodeBuilder {
    let machines = format!(
        "kernel = {:?}\nimage = {:?}\nmemory = 192\nemulation = true\nboot_seconds = {boot_seconds}\n",
        image.join("kernel"),
        image.join("initramfs")
    );
    let handler = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";
    let builder = Node::builder().config("runtimes.vm", handler).config("runtimes.vm.vm", &machines);
    builder.config("shim", &format!("task_seconds = {}", boot_seconds + 60))
}

/// Runs a pod in a machine of its own.
///
/// # Panics
/// When it cannot be run.
pub async fn pod_in(node: &Node, name: &str) -> Pod {
    let config = node.pod(name);
    let id = node.cri.run_pod(&config, "vm").await.expect("RunPodSandbox failed");
    node.remember(&id);
    Pod { id, config }
}

/// The processes that a pod's machine consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Monitor,
    /// There is one more of it, its child, which does the work.
    Virtiofsd,
}

/// A part of the pod's machine: the first process whose log lies in the pod's bundle.
pub fn part(node: &Node, pod: &Pod, part: Part) -> Option<i32> {
    let (program, log) = match part {
        Part::Monitor => ("qemu-system", "monitor.log"),
        Part::Virtiofsd => ("virtiofsd", "virtiofsd.log"),
    };
    let mark = node.dir().to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<i32> = all
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let errors = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
            let errors = errors.to_string_lossy();
            let own = errors.contains(&mark) && errors.contains(&pod.id) && errors.ends_with(log);
            own && command.split('\0').next().is_some_and(|path| path.contains(program))
        })
        .collect();
    found.sort_unstable();
    found.first().copied()
}

/// The monitor of the pod's machine.
pub fn monitor(node: &Node, pod: &Pod) -> Option<i32> {
    part(node, pod, Part::Monitor)
}

/// Sends a signal to a part of the pod's machine.
///
/// # Panics
/// When there is no such process.
pub fn signal(node: &Node, pod: &Pod, which: Part, signal: Signal) {
    let pid = part(node, pod, which).unwrap_or_else(|| panic!("the machine has no {which:?}"));
    kill(ProcessId::from_raw(pid), signal).expect("cannot signal the process");
}

/// The warnings of the pod's shim.
pub fn shim_log(node: &Node, pod: &Pod) -> String {
    let bundle = node.dir().join("state/sandboxes").join(&pod.id);
    std::fs::read_to_string(bundle.join("shim.log")).unwrap_or_default()
}

/// The node's kernel.
pub fn own_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
