//! `cofferdam du` and `cofferdam prune`.

use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::Image;
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::{Node, cli};

async fn usage(node: &Node) -> serde_json::Value {
    serde_json::from_str(&cli::cofferdam(node, &["du", "-o", "json"]).await.expect_ok()).unwrap()
}

fn row<'a>(usage: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    usage["images"].as_array().unwrap().iter().find(|row| row["name"] == name)
}

#[tokio::test]
async fn unused_images_are_shown_and_go_when_asked() {
    let Some(node) = Node::builder().start().await else { return };
    let base = node.base_image().await;
    let extra = Layer::new().file("extra", "x".repeat(300_000));
    let image = Image::new().layer(catalog::base_layer().unwrap()).layer(extra).build().unwrap();
    let unused = node.registry.push("unused", "1", &image);
    node.cri.pull(&unused, None).await.unwrap();
    let pod = node.run_pod(&node.pod("uses")).await;
    let script = "head -c 200000 /dev/urandom > /written; sleep 100000";
    let id = node.run_container(&pod, build::shell("main", &base, script)).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = usage(&node).await;
    let (used_row, unused_row) = (row(&before, &base).unwrap(), row(&before, &unused).unwrap());
    assert_eq!((&used_row["inUse"], &unused_row["inUse"]), (&true.into(), &false.into()));
    // The layer that both have is nobody's own.
    let own = unused_row["ownBytes"].as_u64().unwrap();
    assert!((300_000..unused_row["bytes"].as_u64().unwrap()).contains(&own), "{unused_row}");
    let container = &before["containers"].as_array().unwrap()[0];
    assert_eq!(container["id"], id.as_str());
    assert!(container["bytes"].as_u64().unwrap() >= 200_000, "{container}");
    let table = cli::cofferdam(&node, &["du"]).await.expect_ok();
    assert!(table.contains(&unused) && table.contains("prune --all would free"), "{table}");

    let prune = async |args: &[&str]| cli::cofferdam(&node, args).await.expect_ok();
    assert!(!prune(&["prune"]).await.contains(&unused), "it has a tag");
    assert!(prune(&["prune", "--all", "--dry-run"]).await.contains(&unused));
    assert!(node.cri.image_status(&unused).await.unwrap().is_some(), "a trial removed it");
    let said = prune(&["prune", "--all"]).await;
    assert!(said.contains(&unused) && !said.contains(&base), "{said}");
    assert!(node.cri.image_status(&unused).await.unwrap().is_none());
    let after = usage(&node).await;
    let bytes = |usage: &serde_json::Value| {
        usage["blobBytes"].as_u64().unwrap() + usage["layerBytes"].as_u64().unwrap()
    };
    assert_eq!(bytes(&before) - bytes(&after), own);
    assert_eq!(node.cri.exec_sync(&id, &["echo", "here"], 10).await.unwrap().stdout, b"here\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
