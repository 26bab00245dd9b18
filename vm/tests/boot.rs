//! Real guests, under emulation: they need QEMU, virtiofsd, Debian's kernel package unpacked (`tests/vm/run.sh` does that)
//! and the guest's two programs built statically (`make shim`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_vm::agent::GuestSetup;
use cofferdam_vm::boot::{BootError, Plan};
use cofferdam_vm::channel::Purpose;
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::image::{self, Ingredients};
use cofferdam_vm::machine::Machine;
use cofferdam_vm::share::Item;
use cofferdam_vm::sys::mount::{Source, Submounts};
use cofferdam_vm::vmm::{Accelerator, MonitorError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Emulation on a busy machine.
const BOOT_SECONDS: u32 = 120;
const PATIENCE: Duration = Duration::from_secs(20);

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

struct Bench {
    folder: tempfile::TempDir,
    config: VmConfig,
}

impl Bench {
    fn new() -> Option<Bench> {
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

    fn plan(&self, config: VmConfig) -> Plan {
        Plan {
            config,
            accelerator: Accelerator::Tcg,
            folder: self.folder.path().join("pod"),
            nics: Vec::new(),
        }
    }

    async fn boot(&self) -> Machine {
        let place = |_| Ok(());
        let launched = self.plan(self.config.clone()).prepare(&place).unwrap().launch(&place).unwrap();
        let setup = GuestSetup { hostname: "guest".into(), ..GuestSetup::default() };
        launched.greet().await.unwrap().set_up(&setup).await.unwrap()
    }
}

fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_guest_boots_is_given_files_and_streams_and_ends() {
    let Some(bench) = Bench::new() else { return };
    let begin = Instant::now();
    let machine = bench.boot().await;
    println!("ready after {:?}", begin.elapsed());
    let own = rustix::system::uname().release().to_string_lossy().into_owned();
    assert_ne!(machine.guest().kernel_release, own);

    // The container code answers over its stream: one byte of garbage ends that stream alone.
    let mut task = machine.channel().open(&Purpose::Task, PATIENCE).await.unwrap();
    task.write_all(&[0; 10]).await.unwrap();
    drop(task);

    let file = bench.folder.path().join("secret");
    std::fs::write(&file, "for the guest").unwrap();
    let items = [
        Item {
            name: "mounts/0".into(),
            source: Source::Bind(file.clone()),
            read_only: true,
            below: Submounts::default(),
        },
        Item {
            name: "mounts/1".into(),
            source: Source::Bind(bench.folder.path().to_owned()),
            read_only: false,
            below: Submounts::default(),
        },
    ];
    machine.share().show("c1", &items).unwrap();
    assert!(!bench.folder.path().join("pod/share/c1").exists(), "the mounts are seen on the host");
    machine.share().hide("c1").unwrap();
    machine.share().hide("c1").unwrap();
    assert!(file.exists(), "a hidden file is gone from the host");
    let absent = [Item {
        name: "x".into(),
        source: Source::Bind("/no/such/file".into()),
        read_only: true,
        below: Submounts::default(),
    }];
    assert!(machine.share().show("c1", &absent).unwrap_err().to_string().contains("/no/such/file"));

    let path = machine.agent().put_bundle("c1", b"{}".to_vec()).await.unwrap();
    assert!(path.ends_with("c1"));
    assert!(machine.agent().put_bundle("../c1", b"{}".to_vec()).await.is_err());
    machine.agent().remove_bundle("c1").await.unwrap();

    let refused = machine.monitor().add_disk("d", std::fs::File::open(&file).unwrap().into()).await;
    assert!(matches!(refused, Err(MonitorError::Unsupported { .. })));
    machine.monitor().pause().await.unwrap();
    machine.monitor().resume().await.unwrap();

    let pids = [machine.monitor().pid(), machine.share().pid()];
    machine.stop().await;
    assert_eq!(machine.ended().await, "the machine was stopped");
    assert!(!pids.iter().any(|pid| is_running(*pid)), "something lives on");
}

#[tokio::test]
async fn a_machine_whose_monitor_dies_is_ended_as_a_whole() {
    let Some(bench) = Bench::new() else { return };
    let machine = bench.boot().await;
    let mut output = machine.channel().open(&Purpose::Output("x".into()), PATIENCE).await.unwrap();
    let share = machine.share().pid();
    machine.monitor().kill();
    let reason = tokio::time::timeout(Duration::from_secs(10), machine.ended()).await.unwrap();
    assert!(reason.contains("ended"), "{reason}");
    assert!(!is_running(share), "virtiofsd lives on");
    assert!(output.read(&mut [0; 8]).await.is_ok_and(|count| count == 0), "the stream does not end");
}

#[tokio::test]
async fn a_guest_that_never_answers_is_ended_with_what_it_said() {
    let Some(bench) = Bench::new() else { return };
    let config = VmConfig { image: bench.config.kernel.clone(), boot_seconds: 8, ..bench.config.clone() };
    let place = |_| Ok(());
    let launched = bench.plan(config).prepare(&place).unwrap().launch(&place).unwrap();
    let error = launched.greet().await.expect_err("a guest without an agent is greeted");
    assert!(matches!(error, BootError::Guest { .. }), "{error}");
}
