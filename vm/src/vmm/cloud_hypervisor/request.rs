//! What Cloud Hypervisor is asked for, as JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::agent::TAG;
use crate::vmm::{Launch, guest_words};

/// The guest's address. The Unix socket says which machine is meant, so all of them may have the same.
const GUEST_CID: u32 = 3;
/// As virtiofsd offers them.
const SHARE_QUEUES: (u32, u32) = (1, 1024);
/// One pair, for one tap.
const NIC_QUEUES: u32 = 2;
const MEBIBYTE: u64 = 1 << 20;

/// Where the monitor finds things.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    pub console: &'a Path,
    pub vsock: &'a Path,
    pub share: Option<&'a Path>,
    /// The machine's folder, and the folder of its disks.
    pub folder: &'a Path,
    pub disks: &'a Path,
}

/// In bytes.
pub fn memory(launch: &Launch) -> u64 {
    u64::from(launch.memory) * MEBIBYTE
}

/// The machine, but for its network cards: those come with descriptors, which this request cannot have.
pub fn create(launch: &Launch, places: Places<'_>, landlock: bool) -> Value {
    let console = launch.parts.architecture.console();
    let words = guest_words(true, &launch.channel);
    let line = format!("console={console} quiet panic=-1 rdinit=/init{words}");
    let mut body = json!({
        "cpus": { "boot_vcpus": launch.cpus, "max_vcpus": launch.cpus },
        // Shared, so that virtiofsd reaches what the guest wants it to read and write.
        "memory": { "size": memory(launch), "shared": true },
        "payload": { "kernel": launch.parts.kernel, "initramfs": launch.parts.image, "cmdline": line },
        "rng": { "src": "/dev/urandom" },
        "balloon": { "size": 0 },
        "serial": { "mode": "File", "file": places.console },
        "console": { "mode": "Off" },
        "vsock": { "cid": GUEST_CID, "socket": places.vsock },
    });
    if let Some(socket) = places.share {
        body["fs"] = json!([share(TAG, socket)]);
    }
    if landlock {
        body["landlock_enable"] = true.into();
        // For what comes later; of what is named above it knows itself.
        body["landlock_rules"] = json!([
            { "path": places.folder, "access": "rw" },
            { "path": places.disks, "access": "r" },
        ]);
    }
    body
}

pub fn share(tag: &str, socket: &Path) -> Value {
    let (queues, size) = SHARE_QUEUES;
    json!({ "tag": tag, "socket": socket, "num_queues": queues, "queue_size": size })
}

pub fn disk(name: &str, path: &Path) -> Value {
    json!({ "path": path, "readonly": true, "serial": name, "id": format!("disk-{name}"), "image_type": "Raw" })
}

pub fn nic(mac: &str) -> Value {
    json!({ "mac": mac, "num_queues": NIC_QUEUES })
}

/// Takes so much from the guest that `bytes` of `memory` are left.
pub fn balloon(memory: u64, bytes: u64) -> Value {
    json!({ "desired_balloon": memory.saturating_sub(bytes) })
}
