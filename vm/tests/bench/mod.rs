//! What tests with real guests share: they need QEMU, virtiofsd, Debian's kernel package unpacked (`tests/vm/kernel.sh` does
//! that) and the guest's two programs built statically (`make shim`).
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_vm::agent::GuestSetup;
use cofferdam_vm::boot::Plan;
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::image::{self, Ingredients};
use cofferdam_vm::machine::Machine;
use cofferdam_vm::vmm::Accelerator;

/// Emulation on a busy machine.
const BOOT_SECONDS: u32 = 120;
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The folder of the programs, and that of the unpacked kernel package; nothing when something is not there.
fn ingredients() -> Result<Ingredients, String> {
    let programs = std::env::var_os("COFFERDAM_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/x86_64-unknown-linux-gnu/debug"),
        PathBuf::from,
    );
    let cache = std::env::var_os("COFFERDAM_VM_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/cofferdam-vm")));
    let kernels = cache.iter().flat_map(|cache| std::fs::read_dir(cache).into_iter().flatten().flatten());
    let kernel = kernels
        .map(|entry| entry.path())
        .find(|path| path.join("ready").exists() && path.join("boot").exists());
    let kernel = kernel.ok_or("no kernel is unpacked: tests/vm/run.sh unpacks one")?;
    let release = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let from = Ingredients {
        kernel: kernel.join("boot").join(format!("vmlinuz-{release}")),
        modules: kernel.join("lib/modules").join(release),
        agent: programs.join("cofferdam-agent"),
        runtime: programs.join("containerd-shim-cofferdam-v1"),
    };
    for program in [&from.agent, &from.runtime] {
        if !program.exists() {
            return Err(format!("{} is not there: make shim", program.display()));
        }
    }
    Ok(from)
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub config: VmConfig,
}

impl Bench {
    pub fn new() -> Option<Bench> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mount namespaces need root");
            return None;
        }
        let from = match ingredients() {
            Ok(from) => from,
            Err(what) => {
                println!("skipped: {what}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let image = image::build(&from, folder.path()).unwrap();
        let config = VmConfig {
            kernel: image.kernel,
            image: image.initramfs,
            emulation: true,
            boot_seconds: BOOT_SECONDS,
            memory: 192,
            ..VmConfig::default()
        };
        Some(Bench { folder, config })
    }

    pub fn plan(&self, config: VmConfig) -> Plan {
        Plan {
            config,
            accelerator: Accelerator::Tcg,
            folder: self.folder.path().join("pod"),
            nics: Vec::new(),
        }
    }

    pub async fn boot(&self) -> Machine {
        let place = |_| Ok(());
        let launched = self.plan(self.config.clone()).prepare(&place).unwrap().launch(&place).await.unwrap();
        let setup = GuestSetup { hostname: "guest".into(), ..GuestSetup::default() };
        launched.greet().await.unwrap().set_up(&setup).await.unwrap()
    }
}

pub fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
