//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use crate::architecture::Architecture;
use crate::share::TAG;
use crate::vmm::{Accelerator, Launch};

/// The console's ring: what a guest prints beyond it is lost, and costs nothing.
pub const CONSOLE: &str = "console";
pub const CONSOLE_SIZE: u32 = 16 << 10;
/// The agent's port as the guest sees it.
pub const PORT: &str = "cofferdam.agent";

/// All of it; `qmp` is the monitor's end of the control connection.
pub fn of(launch: &Launch, qmp: BorrowedFd<'_>) -> Vec<OsString> {
    let mut line = Line::default();
    let architecture = launch.parts.architecture;
    line.add("-M", machine(architecture, launch.accelerator));
    if let Some(firmware) = &launch.parts.firmware {
        line.path("-bios", firmware);
    }
    line.add("-cpu", processor(architecture, launch.accelerator));
    line.add("-smp", launch.cpus.to_string());
    line.add("-m", format!("{}M", launch.memory));
    // Shared, so that virtiofsd reaches what the guest wants it to read and write.
    line.add("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", launch.memory));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.0.push(flag.into());
    }
    line.add("-display", "none");
    // What virtiofsd speaks.
    line.add("-global", "virtio-mmio.force-legacy=false");
    line.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.path("-kernel", &launch.parts.kernel);
    line.path("-initrd", &launch.parts.image);
    line.add("-append", kernel_line(architecture, launch.accelerator, host_khz()));
    line.add("-chardev", format!("socket,id=qmp,fd={}", qmp.as_raw_fd()));
    line.add("-mon", "chardev=qmp,mode=control");
    line.add("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_SIZE}"));
    line.add("-serial", format!("chardev:{CONSOLE}"));
    line.add("-device", "virtio-rng-device");
    line.add("-device", "virtio-balloon-device");
    line.add("-device", "virtio-serial-device");
    line.add("-chardev", format!("socket,id=agent,fd={}", launch.channel.as_raw_fd()));
    line.add("-device", format!("virtserialport,chardev=agent,name={PORT}"));
    if let Some(share) = &launch.share {
        line.add("-chardev", format!("socket,id=share,fd={}", share.as_raw_fd()));
        line.add("-device", format!("vhost-user-fs-device,chardev=share,tag={TAG}"));
    }
    for (number, nic) in launch.nics.iter().enumerate() {
        line.add("-netdev", format!("tap,id=nic{number},fd={}", nic.tap.as_raw_fd()));
        line.add("-device", format!("virtio-net-device,netdev=nic{number},mac={}", nic.mac));
    }
    line.0
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    fn path(&mut self, option: &str, value: &Path) {
        self.add(option, value.as_os_str());
    }
}

/// Both kinds find their devices on virtio-mmio.
fn machine(architecture: Architecture, accelerator: Accelerator) -> String {
    let (machine, more) = match architecture {
        Architecture::X86_64 => ("microvm", "rtc=on,isa-serial=on"),
        // The newest interrupt controller that the accelerator has: the oldest serves no more than 8 processors.
        Architecture::Aarch64 => ("virt", "gic-version=max"),
    };
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    format!("{machine},accel={accelerator},memory-backend=mem,{more}")
}

fn processor(architecture: Architecture, accelerator: Accelerator) -> &'static str {
    match (accelerator, architecture) {
        (Accelerator::Kvm, _) => "host",
        (Accelerator::Tcg, Architecture::X86_64) => "max",
        // The pointer authentication of newer ones costs an emulator much.
        (Accelerator::Tcg, Architecture::Aarch64) => "cortex-a72",
    }
}

fn kernel_line(architecture: Architecture, accelerator: Accelerator, khz: Option<u64>) -> String {
    let console = match architecture {
        Architecture::X86_64 => "ttyS0",
        Architecture::Aarch64 => "ttyAMA0",
    };
    let mut line = format!("console={console} quiet panic=-1 rdinit=/init");
    if let (Architecture::X86_64, Accelerator::Tcg, Some(khz)) = (architecture, accelerator, khz) {
        // Measuring it fails at random on a busy host.
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    line
}

fn host_khz() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let mhz =
        text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1)?.split('.').next());
    Some(mhz?.trim().parse::<u64>().ok()? * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parts;
    use crate::vmm::Nic;
    use std::os::fd::{AsFd, OwnedFd};

    fn launch() -> Launch {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let parts = Parts {
            architecture: Architecture::X86_64,
            monitor: "/q".into(),
            virtiofsd: "/v".into(),
            firmware: Some("/f".into()),
            kernel: "/k".into(),
            image: "/i".into(),
        };
        let nics = vec![Nic { tap: file(), mac: "02:00:00:00:00:01".into() }];
        Launch {
            parts,
            accelerator: Accelerator::Tcg,
            memory: 128,
            cpus: 2,
            channel: file(),
            share: Some(file()),
            nics,
        }
    }

    fn text(launch: &Launch) -> String {
        let words = of(launch, launch.channel.as_fd());
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_machine_for_arm64_is_virt() {
        let mut launch = launch();
        assert!(text(&launch).contains("-M microvm,") && text(&launch).contains("-bios /f"));
        (launch.parts.architecture, launch.parts.firmware) = (Architecture::Aarch64, None);
        let line = text(&launch);
        for part in ["-M virt,accel=tcg", "-cpu cortex-a72", "console=ttyAMA0"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-bios") && !line.contains("tsc") && !line.contains("isa"), "{line}");
        launch.accelerator = Accelerator::Kvm;
        assert!(text(&launch).contains("-cpu host"));
    }

    #[test]
    fn devices_follow_what_is_launched() {
        let mut launch = launch();
        let line = text(&launch);
        for part in ["accel=tcg", "-m 128M", "tag=pod", "mac=02:00:00:00:00:01", "spawn=deny", "-smp 2"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        (launch.share, launch.nics) = (None, Vec::new());
        let line = text(&launch);
        assert!(!line.contains("vhost-user") && !line.contains("netdev"), "{line}");
    }

    #[test]
    fn only_emulated_clocks_are_told_their_frequency() {
        let line = |accelerator| kernel_line(Architecture::X86_64, accelerator, Some(2_000_000));
        assert!(line(Accelerator::Tcg).ends_with("tsc_early_khz=2000000"));
        assert!(!line(Accelerator::Kvm).contains("tsc"));
    }
}
