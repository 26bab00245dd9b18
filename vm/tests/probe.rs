//! Whether KVM can be used, asked of this machine: it has to be one answer or the other, soon, and kept.

mod bench;

use std::path::Path;
use std::time::{Duration, Instant};

use bench::Bench;
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::probe::{self, ProbeError};
use cofferdam_vm::vmm::Accelerator;

/// The probe's own patience, and what a busy machine needs to start and end processes.
const SOON: Duration = Duration::from_secs(25);

fn processes_with(mark: &Path) -> usize {
    let mark = mark.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|command| String::from_utf8_lossy(command).contains(&mark)).count()
}

#[tokio::test]
async fn kvm_is_tried_by_a_boot_that_is_given_up_soon_and_the_finding_is_kept() {
    let Some(bench) = Bench::new() else { return };
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: no /dev/kvm to try");
        return;
    }
    let folder = bench.folder.path().join("probes");
    let strict = VmConfig { emulation: false, boot_seconds: 120, ..bench.config.clone() };
    let begin = Instant::now();
    let found = probe::accelerator(&strict, &folder).await;
    let took = begin.elapsed();
    println!("{found:?} after {took:?}");
    assert!(took < SOON, "{took:?}");
    let finding = std::fs::read_to_string(folder.join("kvm-probe.json")).unwrap();
    let again = Instant::now();
    let lenient = probe::accelerator(&bench.config, &folder).await.unwrap();
    assert!(again.elapsed() < Duration::from_secs(1), "it is tried again: {:?}", again.elapsed());
    match found {
        Ok(accelerator) => {
            assert_eq!((accelerator, lenient), (Accelerator::Kvm, Accelerator::Kvm));
            assert!(finding.contains("null"), "{finding}");
        }
        Err(ProbeError::NotAvailable(why)) => {
            assert_eq!(lenient, Accelerator::Tcg);
            assert!(finding.contains("obstacle") && !why.is_empty(), "{finding}");
            // It says what was tried, and how long it was waited for.
            assert!(why.contains("KVM"), "{why}");
        }
        Err(other) => panic!("{other}"),
    }
    assert_eq!(processes_with(bench.folder.path()), 0, "the probe's machine lives on");
    assert!(!folder.join("kvm-probe").exists(), "the probe's folder is still there");
}
