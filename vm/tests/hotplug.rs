//! What can be done to a machine that runs, with real guests under emulation; `bench` says what they need.

mod bench;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bench::{Bench, PATIENCE};
use cofferdam_vm::agent::Hardware;
use cofferdam_vm::config::{MachineType, VmConfig};
use cofferdam_vm::machine::Machine;
use cofferdam_vm::share::Share;
use cofferdam_vm::sys::tap;
use cofferdam_vm::vmm::{MonitorError, Nic};

const MIB: u64 = 1 << 20;
const MAC: &str = "02:00:00:00:77:01";

/// Waits until the guest's kernel has what is looked for.
async fn found(machine: &Machine, what: impl Fn(&Hardware) -> bool) -> Hardware {
    let begin = Instant::now();
    loop {
        let hardware = machine.agent().hardware().await.unwrap();
        if what(&hardware) {
            return hardware;
        }
        assert!(begin.elapsed() < PATIENCE, "{hardware:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A file of some size, open for reading, whose name is gone.
fn image(bench: &Bench, mebibytes: u64) -> OwnedFd {
    let path = bench.folder.path().join("image");
    File::create(&path).unwrap().set_len(mebibytes * MIB).unwrap();
    let image = File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    image.into()
}

async fn everything_can_be_added(machine: MachineType) {
    let Some(mut bench) = Bench::new() else { return };
    bench.config = VmConfig { machine, ..bench.config };
    let machine = bench.boot().await;
    let before = machine.agent().hardware().await.unwrap();
    assert_eq!((before.disks.len(), before.shares, before.cards.len()), (0, 1, 0), "{before:?}");

    let begin = Instant::now();
    let device = machine.add_disk("layer-1", image(&bench, 3)).await.unwrap();
    println!("{}: a disk after {:?}", machine.monitor().name(), begin.elapsed());
    machine.add_disk("layer-2", image(&bench, 5)).await.unwrap();
    let hardware = machine.agent().hardware().await.unwrap();
    let first = hardware.disks.iter().find(|disk| disk.serial == "layer-1").unwrap();
    assert_eq!((&first.device, first.size), (&device, 3 * MIB), "{hardware:?}");
    assert_eq!(hardware.disks.iter().map(|disk| disk.size).sum::<u64>(), 8 * MIB);

    // A refusal costs no slot and breaks nothing.
    for name in ["", "a,b", "../x", "longer-than-twenty-one"] {
        let refused = machine.monitor().add_disk(name, image(&bench, 1)).await;
        assert!(matches!(refused, Err(MonitorError::Name { .. })), "{refused:?}");
    }
    let folder: OwnedFd = File::open(bench.folder.path()).unwrap().into();
    let refused = machine.monitor().add_disk("folder", folder).await;
    assert!(matches!(refused, Err(MonitorError::Refused { .. })), "{refused:?}");

    if let Some(tap) = test_tap() {
        let begin = Instant::now();
        machine.monitor().add_nic(Nic { tap, mac: MAC.into() }).await.unwrap();
        let hardware = found(&machine, |hardware| !hardware.cards.is_empty()).await;
        println!("a network card after {:?}", begin.elapsed());
        assert_eq!(hardware.cards, [MAC]);
    }

    let parts = bench.config.parts().unwrap();
    let (share, socket) = Share::start(&parts.virtiofsd, &bench.folder.path().join("second"), None).unwrap();
    machine.monitor().add_share("second", socket).await.unwrap();
    found(&machine, |hardware| hardware.shares == 2).await;

    let mut added = 0;
    let full = loop {
        match machine.monitor().add_disk(&format!("more-{added}"), image(&bench, 1)).await {
            Ok(()) => added += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(full, MonitorError::NoSlot { .. }), "{full}");
    // Two disks, a card, a share.
    assert!((4..=5).contains(&added), "{added}");
    machine.stop().await;
    drop(share);
}

/// A tap of this process's network; none where it may not make one.
fn test_tap() -> Option<OwnedFd> {
    match tap::make(&format!("cfvt{}", std::process::id() % 100_000)) {
        Ok(tap) => Some(tap),
        Err(error) => {
            println!("no network card is added: {error}");
            None
        }
    }
}

#[tokio::test]
async fn a_microvm_with_pci_takes_disks_cards_and_shares() {
    everything_can_be_added(MachineType::MicrovmPci).await;
}

#[tokio::test]
async fn a_q35_takes_disks_cards_and_shares() {
    everything_can_be_added(MachineType::Q35).await;
}

#[tokio::test]
async fn a_paused_guest_stands_still_and_a_balloon_takes_its_memory() {
    let Some(bench) = Bench::new() else { return };
    let machine = bench.boot().await;
    let monitor = machine.monitor();
    for operation in [monitor.add_disk("d", image(&bench, 1)).await, monitor.add_nic(no_card()).await] {
        assert!(matches!(operation, Err(MonitorError::Unsupported { .. })), "{operation:?}");
    }
    let parts = bench.config.parts().unwrap();
    let (_share, socket) = Share::start(&parts.virtiofsd, &bench.folder.path().join("second"), None).unwrap();
    let refused = monitor.add_share("second", socket).await;
    assert!(matches!(refused, Err(MonitorError::Unsupported { .. })), "{refused:?}");

    monitor.pause().await.unwrap();
    let asked = machine.agent().hardware();
    tokio::pin!(asked);
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut asked).await;
    assert!(waited.is_err(), "a paused guest answers: {waited:?}");
    monitor.resume().await.unwrap();
    let before = asked.await.unwrap().memory;

    let less = u64::from(bench.config.memory) * MIB - 64 * MIB;
    monitor.balloon(less).await.unwrap();
    let hardware = found(&machine, |hardware| hardware.memory + 60 * MIB <= before).await;
    println!("{} MiB became {}", before / MIB, hardware.memory / MIB);
    monitor.balloon(less + 64 * MIB).await.unwrap();
    found(&machine, |hardware| hardware.memory == before).await;

    monitor.stop().await.unwrap();
    let reason = tokio::time::timeout(PATIENCE, machine.ended()).await.unwrap();
    assert!(reason.contains("ended"), "{reason}");
}

fn no_card() -> Nic {
    Nic { tap: File::open("/dev/null").unwrap().into(), mac: MAC.into() }
}
