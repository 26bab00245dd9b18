//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use crate::agent::TAG;
use crate::architecture::Architecture;
use crate::config::MachineType;
use crate::vmm::{Accelerator, Launch, guest_words};
use crate::wire::MonitorEnd;

/// The agent's port as the guest sees it.
pub const PORT: &str = "cofferdam.agent";

/// Slots that devices can be added to, each a port of its own.
pub const PORTS: usize = 8;

/// What QEMU gets open, besides what the launch has.
#[derive(Debug, Clone, Copy)]
pub struct Connections<'a> {
    /// Its end of the control connection.
    pub qmp: BorrowedFd<'a>,
    /// Where the guest's console goes.
    pub console: BorrowedFd<'a>,
    /// To virtiofsd.
    pub share: Option<BorrowedFd<'a>>,
}

/// The name of a port for what is added later.
pub fn port(number: usize) -> String {
    format!("port{number}")
}

/// Whether devices can be added to a running machine of the kind.
pub fn has_ports(machine: MachineType) -> bool {
    match machine {
        MachineType::Microvm => false,
        MachineType::MicrovmPci | MachineType::Q35 => true,
    }
}

/// All of it.
pub fn of(launch: &Launch, connections: Connections<'_>) -> Vec<OsString> {
    let mut line = Line::of(launch.machine);
    machine(&mut line, launch);
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.words.push(flag.into());
    }
    line.add("-display", "none");
    line.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.path("-kernel", &launch.parts.kernel);
    line.path("-initrd", &launch.parts.image);
    line.add("-append", kernel_line(launch, host_khz()));
    line.add("-chardev", format!("socket,id=qmp,fd={}", connections.qmp.as_raw_fd()));
    line.add("-mon", "chardev=qmp,mode=control");
    line.add("-chardev", format!("socket,id=console,fd={}", connections.console.as_raw_fd()));
    line.add("-serial", "chardev:console");
    line.device("virtio-rng", "");
    line.device("virtio-balloon", "");
    channel(&mut line, &launch.channel);
    if let Some(share) = connections.share {
        line.add("-chardev", format!("socket,id=share,fd={}", share.as_raw_fd()));
        line.device("vhost-user-fs", &format!(",chardev=share,tag={TAG}"));
    }
    for (number, nic) in launch.nics.iter().enumerate() {
        line.add("-netdev", format!("tap,id=nic{number},fd={}", nic.tap.as_raw_fd()));
        line.device("virtio-net", &format!(",netdev=nic{number},mac={}{}", nic.mac, line.no_rom()));
    }
    line.words
}

fn machine(line: &mut Line, launch: &Launch) {
    let accelerator = match launch.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let kind = match (launch.parts.architecture, launch.machine) {
        // Its devices sit on virtio-mmio as microvm's do. The newest interrupt controller that the accelerator has, as the
        // oldest serves no more than 8 processors.
        (Architecture::Aarch64, _) => "virt,gic-version=max",
        (Architecture::X86_64, MachineType::Microvm) => "microvm,rtc=on,isa-serial=on",
        (Architecture::X86_64, MachineType::MicrovmPci) => "microvm,rtc=on,isa-serial=on,pcie=on",
        (Architecture::X86_64, MachineType::Q35) => "q35,usb=off,smbus=off,sata=off,vmport=off",
    };
    line.add("-M", format!("{kind},accel={accelerator},memory-backend=mem"));
    if let Some(firmware) = &launch.parts.firmware {
        line.path("-bios", firmware);
    }
    line.add(
        "-cpu",
        match (launch.accelerator, launch.parts.architecture) {
            (Accelerator::Kvm, _) => "host",
            (Accelerator::Tcg, Architecture::X86_64) => "max",
            // The pointer authentication of newer ones costs an emulator much.
            (Accelerator::Tcg, Architecture::Aarch64) => "cortex-a72",
        },
    );
    line.add("-smp", launch.cpus.to_string());
    line.add("-m", format!("{}M", launch.memory));
    // Shared, so that virtiofsd reaches what the guest wants it to read and write.
    line.add("-object", format!("memory-backend-memfd,id=mem,size={}M,share=on", launch.memory));
    if line.bus == "device" {
        // What virtiofsd speaks.
        line.add("-global", "virtio-mmio.force-legacy=false");
    }
    if has_ports(launch.machine) {
        for number in 0..PORTS {
            line.add("-device", format!("pcie-root-port,id={},chassis={}", port(number), number + 1));
        }
    }
}

fn channel(line: &mut Line, end: &MonitorEnd) {
    match end {
        MonitorEnd::Serial(socket) => {
            line.device("virtio-serial", "");
            line.add("-chardev", format!("socket,id=agent,fd={}", socket.as_raw_fd()));
            line.add("-device", format!("virtserialport,chardev=agent,name={PORT}"));
        }
        MonitorEnd::Vsock { device, cid, .. } => {
            line.device("vhost-vsock", &format!(",guest-cid={cid},vhostfd={}", device.as_raw_fd()));
        }
        // Another monitor's; `wire` makes none for this one.
        MonitorEnd::Hybrid { .. } => {}
    }
}

/// What of the launch QEMU has to have open.
pub fn passed(launch: &Launch) -> Vec<BorrowedFd<'_>> {
    let channel = match &launch.channel {
        MonitorEnd::Serial(socket) => Some(socket.as_fd()),
        MonitorEnd::Vsock { device, .. } => Some(device.as_fd()),
        MonitorEnd::Hybrid { .. } => None,
    };
    channel.into_iter().chain(launch.nics.iter().map(|nic| nic.tap.as_fd())).collect()
}

struct Line {
    words: Vec<OsString>,
    /// How the names of devices end that sit on the machine's own bus.
    bus: &'static str,
}

impl Line {
    fn of(machine: MachineType) -> Self {
        let bus = match machine {
            MachineType::Microvm | MachineType::MicrovmPci => "device",
            MachineType::Q35 => "pci",
        };
        Line { words: Vec::new(), bus }
    }

    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.words.extend([option.into(), value.into()]);
    }

    fn path(&mut self, option: &str, value: &Path) {
        self.add(option, value.as_os_str());
    }

    fn device(&mut self, kind: &str, properties: &str) {
        self.add("-device", format!("{kind}-{}{properties}", self.bus));
    }

    /// Nobody boots from a card.
    fn no_rom(&self) -> &'static str {
        if self.bus == "pci" { ",romfile=" } else { "" }
    }
}

fn kernel_line(launch: &Launch, khz: Option<u64>) -> String {
    let console = launch.parts.architecture.console();
    let mut line = format!("console={console} quiet panic=-1 rdinit=/init");
    let clock = (launch.parts.architecture, launch.accelerator, khz);
    if let (Architecture::X86_64, Accelerator::Tcg, Some(khz)) = clock {
        // Measuring it fails at random on a busy host.
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    if launch.machine == MachineType::MicrovmPci {
        // Nothing in this machine's tables gives the kernel leave to handle the ports itself.
        line.push_str(" pcie_ports=native");
    }
    line.push_str(&guest_words(has_ports(launch.machine), &launch.channel));
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
    use std::os::fd::OwnedFd;

    fn file() -> OwnedFd {
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap())
    }

    fn launch(machine: MachineType) -> Launch {
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
            machine,
            channel: MonitorEnd::Serial(file()),
            share: None,
            nics,
            folder: "/p".into(),
        }
    }

    fn text(launch: &Launch, share: bool) -> String {
        let open = file();
        let connections =
            Connections { qmp: open.as_fd(), console: open.as_fd(), share: share.then(|| open.as_fd()) };
        let words = of(launch, connections);
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_machine_for_arm64_is_virt() {
        let mut launch = launch(MachineType::Microvm);
        let line = text(&launch, true);
        assert!(
            line.contains("-M microvm,") && line.contains("-bios /f") && line.contains("ttyS0"),
            "{line}"
        );
        (launch.parts.architecture, launch.parts.firmware) = (Architecture::Aarch64, None);
        let line = text(&launch, true);
        for part in ["-M virt,", "accel=tcg", "-cpu cortex-a72", "console=ttyAMA0", "vhost-user-fs-device"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-bios") && !line.contains("tsc") && !line.contains("isa"), "{line}");
        launch.accelerator = Accelerator::Kvm;
        assert!(text(&launch, true).contains("-cpu host"));
    }

    #[test]
    fn devices_follow_what_is_launched() {
        let mut launch = launch(MachineType::Microvm);
        let line = text(&launch, true);
        for part in ["accel=tcg", "-m 128M", "tag=pod", "mac=02:00:00:00:00:01", "spawn=deny", "-smp 2", PORT]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("pci"), "{line}");
        launch.nics = Vec::new();
        let line = text(&launch, false);
        assert!(!line.contains("vhost-user") && !line.contains("netdev"), "{line}");
    }

    #[test]
    fn machines_with_ports_are_told_how_to_use_them() {
        let line = text(&launch(MachineType::MicrovmPci), true);
        for part in ["pcie=on", "port7", "pcie_ports=native", "virtio-rng-device", "COFFERDAM_MODULES=pci"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let line = text(&launch(MachineType::Q35), true);
        for part in ["q35", "port7", "virtio-rng-pci", "virtio-net-pci", "vhost-user-fs-pci"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("virtio-mmio") && !line.contains("pcie_ports"), "{line}");
    }

    #[test]
    fn over_vsock_the_guest_is_told_where_the_node_listens() {
        let mut launch = launch(MachineType::Microvm);
        launch.channel = MonitorEnd::Vsock { device: file(), cid: 77, port: 4242 };
        let line = text(&launch, true);
        for part in
            ["vhost-vsock-device,guest-cid=77,vhostfd=", "COFFERDAM_CHANNEL=vsock:4242", "MODULES=vsock"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("virtserialport"), "{line}");
    }

    #[test]
    fn only_emulated_clocks_are_told_their_frequency() {
        let mut launch = launch(MachineType::Microvm);
        assert!(kernel_line(&launch, Some(2_000_000)).contains("tsc_early_khz=2000000"));
        launch.accelerator = Accelerator::Kvm;
        assert!(!kernel_line(&launch, Some(2_000_000)).contains("tsc"));
    }
}
