//! The CRI log: its form, long lines, reopening, and what a container writes at its end.

use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, eventually, log};

#[tokio::test]
async fn entries_are_well_formed_and_streams_apart() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("form")).await;
    let script = "echo one; echo two >&2; echo; printf 'no newline'";
    let (_, entries) = node.run_to_end(&pod, build::shell("main", &image, script)).await;
    assert_eq!(log::joined(&entries, "stderr"), "two\n");
    let out: Vec<_> =
        entries.iter().filter(|entry| entry.stream == "stdout").map(|entry| entry.text.as_str()).collect();
    assert_eq!(out, ["one", "", "no newline"]);
    // What arrived in one read may share a time; within a stream it never goes back.
    let times = entries.iter().filter(|entry| entry.stream == "stdout").map(|entry| &entry.time);
    assert!(times.is_sorted(), "the times go back: {entries:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_long_line_comes_in_parts() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("long")).await;
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo short";
    let (_, entries) = node.run_to_end(&pod, build::shell("main", &image, script)).await;
    assert_eq!(log::joined(&entries, "stdout"), format!("{}\nshort\n", "x".repeat(100_000)));
    let parts = entries.iter().filter(|entry| entry.partial).count();
    assert!(parts >= 5, "only {parts} parts");
    assert!(entries.iter().all(|entry| entry.text.len() <= 16 << 10), "a part is longer than 16 KiB");
    assert!(!entries.last().unwrap().partial);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("much")).await;
    let (_, entries) = node.run_to_end(&pod, build::shell("main", &image, "seq 1 50000")).await;
    let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    assert!(log::joined(&entries, "stdout") == expected, "lines are missing or out of order");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn reopening_goes_on_in_a_new_file() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("reopen")).await;
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    let path = node.cri.status(&id).await.unwrap().log_path;
    let grows = async |path: &str| {
        eventually(Duration::from_secs(5), async || {
            std::fs::read_to_string(path).is_ok_and(|text| text.lines().count() > 5)
        })
        .await
    };
    assert!(grows(&path).await, "nothing is logged");
    let rotated = format!("{path}.1");
    std::fs::rename(&path, &rotated).unwrap();
    let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
    node.cri.runtime.clone().reopen_container_log(request.clone()).await.unwrap();
    assert!(grows(&path).await, "the new file does not grow");
    node.cri.stop(&id, 0).await.unwrap();
    let mut entries = log::read(Path::new(&rotated));
    entries.extend(log::read(Path::new(&path)));
    let numbers: Vec<u32> = entries.iter().map(|entry| entry.text.parse().unwrap()).collect();
    let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(numbers, expected, "lines are lost or doubled over the rotation");
    assert!(node.cri.runtime.clone().reopen_container_log(request).await.is_err(), "it has exited");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_without_a_log_runs() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("silent")).await;
    let mut config = build::shell("main", &image, "echo nobody reads this");
    config.log_path = String::new();
    let id = node.run_container(&pod, config).await;
    let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_log_stays_when_the_container_goes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stays")).await;
    let (status, _) = node.run_to_end(&pod, build::shell("main", &image, "echo kept")).await;
    node.destroy(&pod).await;
    assert_eq!(log::joined(&log::read(Path::new(&status.log_path)), "stdout"), "kept\n");
    node.assert_clean().await;
}
