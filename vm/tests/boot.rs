//! Real guests, under emulation; `bench` says what they need.

mod bench;

use std::time::{Duration, Instant};

use bench::{Bench, PATIENCE, is_running};
use cofferdam_vm::boot::BootError;
use cofferdam_vm::channel::Purpose;
use cofferdam_vm::config::VmConfig;
use cofferdam_vm::share::Item;
use cofferdam_vm::sys::mount::{Source, Submounts};
use cofferdam_vm::vmm::MonitorError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    assert!(!machine.monitor().capabilities().add_disk);

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
    let launched = bench.plan(config).prepare(&place).unwrap().launch(&place).await.unwrap();
    let error = launched.greet().await.expect_err("a guest without an agent is greeted");
    assert!(matches!(error, BootError::Guest { .. }), "{error}");
}
