//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use crate::share::TAG;
use crate::vmm::{Accelerator, Launch};

/// The agent's port as the guest sees it.
pub const PORT: &str = "cofferdam.agent";

/// All of it; `qmp` is the monitor's end of the control connection, `console` where the guest's console goes.
pub fn of(launch: &Launch, qmp: BorrowedFd<'_>, console: BorrowedFd<'_>) -> Vec<OsString> {
    let mut line = Line::default();
    let accelerator = match launch.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    line.add("-M", format!("microvm,accel={accelerator},memory-backend=mem,rtc=on,isa-serial=on"));
    line.path("-bios", &launch.parts.firmware);
    line.add("-cpu", if launch.accelerator == Accelerator::Kvm { "host" } else { "max" });
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
    line.add("-append", kernel_line(launch.accelerator, host_khz()));
    line.add("-chardev", format!("socket,id=qmp,fd={}", qmp.as_raw_fd()));
    line.add("-mon", "chardev=qmp,mode=control");
    line.add("-chardev", format!("socket,id=console,fd={}", console.as_raw_fd()));
    line.add("-serial", "chardev:console");
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

fn kernel_line(accelerator: Accelerator, khz: Option<u64>) -> String {
    let mut line = "console=ttyS0 quiet panic=-1 rdinit=/init".to_owned();
    if let (Accelerator::Tcg, Some(khz)) = (accelerator, khz) {
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
            monitor: "/q".into(),
            virtiofsd: "/v".into(),
            firmware: "/f".into(),
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

    #[test]
    fn devices_follow_what_is_launched() {
        let mut launch = launch();
        let text = |launch: &Launch| {
            let words = of(launch, launch.channel.as_fd(), launch.channel.as_fd());
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
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
        assert!(kernel_line(Accelerator::Tcg, Some(2_000_000)).ends_with("tsc_early_khz=2000000"));
        assert!(!kernel_line(Accelerator::Kvm, Some(2_000_000)).contains("tsc"));
    }
}
