//! Ten virtual machines at once. Under emulation that takes minutes: only with `COFFERDAM_TEN_MACHINES=1`, which
//! `make microvm-ten` sets.

use std::time::{Duration, Instant};

use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, microvm};
use tokio::task::JoinSet;

const MACHINES: usize = 10;
/// For a machine's boot, on two processors that emulate ten.
const BOOT_SECONDS: u32 = 600;
/// For all of them to go away.
const GONE: Duration = Duration::from_secs(120);

/// A pod with a container, and what its kernel is.
async fn one(node: &Node, image: &str, number: usize) -> (Pod, String) {
    let since = Instant::now();
    let pod = microvm::pod_in(node, &format!("machine{number}")).await;
    let ready = since.elapsed();
    let main = node.run_container(&pod, build::container("main", image, &["sleep", "100000"])).await;
    println!("machine {number}: ready after {ready:?}, its container after {:?}", since.elapsed());
    (pod, main)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_machines_at_once_become_ready_and_go_away() {
    if std::env::var_os("COFFERDAM_TEN_MACHINES").is_none() {
        println!("skipped: it takes minutes; make microvm-ten");
        return;
    }
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder_within(image.path(), BOOT_SECONDS).start().await else { return };
    let node = std::sync::Arc::new(node);
    let base = node.base_image().await;
    let since = Instant::now();
    let mut machines = JoinSet::new();
    for number in 0..MACHINES {
        let (node, base) = (std::sync::Arc::clone(&node), base.clone());
        machines.spawn(async move { one(&node, &base, number).await });
    }
    let machines = machines.join_all().await;
    println!("{MACHINES} machines run after {:?}", since.elapsed());
    for (pod, main) in &machines {
        assert!(node.cri.pod_ready(&pod.id).await);
        let since = Instant::now();
        let answer = node.cri.exec_sync(main, &["uname", "-r"], microvm::SECONDS).await.unwrap();
        println!("exec after {:?}", since.elapsed());
        let release = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        assert!(!release.is_empty() && release != microvm::own_release(), "{answer:?}");
    }
    let since = Instant::now();
    let mut removals = JoinSet::new();
    for (pod, _) in machines {
        let node = std::sync::Arc::clone(&node);
        removals.spawn(async move { node.destroy(&pod).await });
    }
    removals.join_all().await;
    println!("gone after {:?}", since.elapsed());
    assert!(since.elapsed() < GONE, "{:?}", since.elapsed());
    node.assert_clean().await;
}
