//! A disk that fills up in the middle of something: a clear error, nothing left, and all is well once there is room.

use std::io::Write;
use std::path::Path;

use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::image::{Image, digest};
use cofferdam_tests::fixtures::layer::{Compression, Layer};
use cofferdam_tests::harness::Node;
use tonic::Status;

/// Bytes that no compression makes smaller, the same at every run.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    let mut counter = 0_u64;
    while bytes.len() < length {
        bytes.extend_from_slice(digest(&counter.to_le_bytes()).as_bytes());
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}

fn tells_of_space(status: &Status) -> bool {
    let said = status.message().to_lowercase();
    said.contains("space") || said.contains("disk") || said.contains("full")
}

#[tokio::test]
async fn a_disk_that_fills_during_a_pull() {
    let Some(node) = Node::builder().disk("size=24m").start().await else { return };
    let layer = Layer::new().file("big", noise(40 << 20));
    let big = Image::new().layer_as(layer, Compression::Plain).build().unwrap();
    let reference = node.registry.push("big", "1", &big);
    let refused = node.cri.pull(&reference, None).await.unwrap_err();
    assert!(tells_of_space(&refused), "{refused:?}");
    assert!(node.cri.image_status(&reference).await.unwrap().is_none());
    // What the attempt had written is gone: a small image finds room, and runs.
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("after")).await;
    assert_eq!(node.output(&pod, build::container("main", &image, &["echo", "fits"])).await, "fits\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Fills a file system: first its room, then its inodes.
fn fill(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let mut file = std::fs::File::create(folder.join("room")).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    let mut number = 0;
    while std::fs::File::create(folder.join(format!("inode{number}"))).is_ok() {
        number += 1;
    }
}

#[tokio::test]
async fn a_disk_that_is_full_when_a_container_is_created() {
    let Some(node) = Node::builder().disk("size=48m,nr_inodes=4000").start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("full")).await;
    let filler = node.dir().join("root/filler");
    fill(&filler);
    let config = build::container("main", &image, &["echo", "made"]);
    let refused = node.cri.create(&pod.id, &pod.config, config.clone()).await.unwrap_err();
    assert!(tells_of_space(&refused), "{refused:?}");
    assert!(node.cri.list(None).await.unwrap().is_empty(), "the container that was not made is listed");
    std::fs::remove_dir_all(&filler).unwrap();
    assert_eq!(node.output(&pod, config).await, "made\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
