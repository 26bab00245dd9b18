//! Lost and damaged data: the store, records, layers, blobs, bundles. The daemon starts, says what it lost, and never
//! runs a wrong byte.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri::ContainerState;
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Built, Image};
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::faults::Records;
use cofferdam_tests::harness::{Node, Pod, cli, eventually, leak};

use crate::sweep::metric;

/// What `cofferdam info` says beyond the ordinary.
async fn info(node: &Node) -> serde_json::Value {
    let text = cli::cofferdam(node, &["info", "-o", "json"]).await.expect_ok();
    let mut all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all["info"].take()
}

pub async fn notices(node: &Node) -> String {
    let notices = info(node).await["notices"].take();
    let texts = notices.as_array().into_iter().flatten();
    texts.map(|notice| format!("{}\n", notice["text"].as_str().unwrap_or_default())).collect()
}

struct Running {
    pod: Pod,
    id: String,
    pid: String,
}

async fn running(node: &Node, image: &str) -> Running {
    let pod = node.run_pod(&node.pod("running")).await;
    let script = "echo $$ > /pid; while :; do sleep 0.1; done";
    let id = node.run_container(&pod, build::shell("main", image, script)).await;
    let pid = pid_of(node, &id).await;
    Running { pod, id, pid }
}

/// The process of a container, as its own cgroup names it.
async fn pid_of(node: &Node, id: &str) -> String {
    let file = node.dir().join("state/containers").join(id).join("init.pid");
    assert!(eventually(Duration::from_secs(5), async || file.exists()).await, "no {}", file.display());
    std::fs::read_to_string(file).unwrap()
}

async fn assert_runs_on(node: &Node, running: &Running) {
    let status = node.cri.status(&running.id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(pid_of(node, &running.id).await, running.pid);
    assert!(node.cri.pod_ready(&running.pod.id).await);
    let answer = node.cri.exec_sync(&running.id, &["echo", "here"], 10).await.unwrap();
    assert_eq!(answer.stdout, b"here\n");
}

#[tokio::test]
async fn pods_are_found_again_whatever_became_of_the_store() {
    type Harm = fn(&Path);
    let damage: [(&str, Harm); 4] = [
        ("deleted", |store| std::fs::remove_file(store).unwrap()),
        ("emptied", |store| std::fs::write(store, b"").unwrap()),
        ("cut", |store| {
            let bytes = std::fs::read(store).unwrap();
            std::fs::write(store, &bytes[..bytes.len() / 3]).unwrap();
        }),
        ("garbage", |store| std::fs::write(store, vec![0xa5; 100_000]).unwrap()),
    ];
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let running = running(&node, &image).await;
    let (ended, _) = node.run_to_end(&running.pod, build::shell("old", &image, "exit 9")).await;
    for (name, damage) in damage {
        node.kill9();
        damage(&node.dir().join("root/metadata.redb"));
        node.restart().await;
        assert_runs_on(&node, &running).await;
        assert_eq!(node.cri.status(&ended.id).await.unwrap().exit_code, 9, "{name}");
        let told = notices(&node).await;
        assert!(told.contains("the store") && told.contains(&running.id), "{name}: {told}");
        node.cri.pull(&image, None).await.unwrap();
        let (again, _) = node.run_to_end(&running.pod, build::shell(name, &image, "exit 3")).await;
        assert_eq!(again.exit_code, 3, "{name}");
    }
    for entry in std::fs::read_dir(node.dir().join("root")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains(".damaged-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    node.destroy(&running.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_record_that_is_no_record_is_replaced_by_the_bundles_copy() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let running = running(&node, &image).await;
    node.kill9();
    let records = Records::open(&node);
    records.put("sandboxes", &running.pod.id, b"{\"version\":1,\"record\":{}}");
    records.put("containers", &running.id, b"\xff\xfe half a reco");
    drop(records);
    node.restart().await;
    assert_runs_on(&node, &running).await;
    let told = notices(&node).await;
    assert!(told.contains(&running.pod.id) && told.contains(&running.id), "{told}");
    node.restart().await;
    assert_eq!(notices(&node).await, "", "they were stored again");
    assert_runs_on(&node, &running).await;
    node.destroy(&running.pod).await;
    node.assert_clean().await;
}

/// An image with one layer of its own, beside busybox.
fn greeting() -> Built {
    let layer = Layer::new().file("greeting", "hello".repeat(1000)).dir("etc/more");
    Image::new().layer(catalog::base_layer().unwrap()).layer(layer).build().unwrap()
}

/// The file in the unpacked layers of a node.
fn unpacked(node: &Node, name: &str) -> PathBuf {
    let layers = std::fs::read_dir(node.dir().join("root/layers")).unwrap().flatten();
    let mut found = layers.map(|layer| layer.path().join("fs").join(name)).filter(|path| path.exists());
    found.next().unwrap_or_else(|| panic!("no layer has {name}"))
}

fn blobs(node: &Node) -> Vec<PathBuf> {
    let blobs = std::fs::read_dir(node.dir().join("root/content/blobs/sha256")).unwrap().flatten();
    blobs.map(|blob| blob.path()).collect()
}

fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // In place: with the same inode, as a disk does it.
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
}

async fn verified(node: &Node) -> serde_json::Value {
    let mut found = serde_json::Value::Null;
    let looked = eventually(Duration::from_secs(20), async || {
        found = info(node).await["verification"]["found"].take();
        found.is_object()
    });
    assert!(looked.await, "nobody looked: {}", node.daemon_log());
    found
}

const GREET: &str = "n=$(grep -o hello /greeting | wc -l); [ $n = 1000 ] && echo right || echo wrong";

#[tokio::test]
async fn a_damaged_layer_is_set_aside_and_unpacked_anew_from_its_blob() {
    let builder = Node::builder().config("metrics", "address = \"127.0.0.1:9095\"");
    let Some(mut node) = builder.start().await else { return };
    let image = node.registry.push("greeting", "1", &greeting());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&node.pod("layered")).await;
    let waits = build::shell("waits", &image, GREET);
    let created = node.cri.create(&pod.id, &pod.config, waits).await.unwrap();
    node.kill9();
    spoil(&unpacked(&node, "greeting"));
    node.restart().await;
    let found = verified(&node).await;
    assert_eq!(found["damaged"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["repaired"].as_array().unwrap().len(), 1, "{found}");
    let metrics = node.netns.http_get("127.0.0.1:9095", "/metrics").unwrap();
    let damaged = "cofferdam_verification_damaged_total{kind=\"layer\"}";
    assert_eq!((metric(&metrics, "cofferdam_verifications_total"), metric(&metrics, damaged)), (1.0, 1.0));
    assert_eq!(metric(&metrics, "cofferdam_verification_repaired_total"), 1.0);
    assert!(metric(&metrics, "cofferdam_verified_total{kind=\"layer\"}") >= 1.0);
    let told = notices(&node).await;
    assert!(told.contains("greeting") && told.contains(&created), "{told}");
    let refused = node.cri.start(&created).await.unwrap_err();
    assert!(refused.message().contains("damaged"), "{refused:?}");
    assert_eq!(node.output(&pod, build::shell("greets", &image, GREET)).await, "right\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_image_whose_layer_and_blob_are_damaged_is_pulled_again_before_anything_runs() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.registry.push("greeting", "1", &greeting());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&node.pod("both")).await;
    node.kill9();
    std::fs::write(unpacked(&node, "greeting"), "bad").unwrap();
    blobs(&node).iter().for_each(|blob| spoil(blob));
    node.restart().await;
    let found = verified(&node).await;
    assert_eq!(found["repaired"].as_array().unwrap().len(), 0, "{found}");
    assert!(node.cri.image_status(&image).await.unwrap().is_none(), "a broken image is shown");
    let greets = build::shell("greets", &image, GREET);
    node.cri.create(&pod.id, &pod.config, greets.clone()).await.unwrap_err();
    node.cri.pull(&image, None).await.unwrap();
    assert_eq!(node.output(&pod, greets).await, "right\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_image_that_is_removed_while_it_is_not_whole_does_not_come_back() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.registry.push("greeting", "1", &greeting());
    node.cri.pull(&image, None).await.unwrap();
    node.kill9();
    std::fs::write(unpacked(&node, "greeting"), "bad").unwrap();
    blobs(&node).iter().for_each(|blob| spoil(blob));
    node.restart().await;
    verified(&node).await;
    assert!(node.cri.image_status(&image).await.unwrap().is_none(), "a broken image is shown");
    node.cri.remove_image(&image).await.unwrap();
    node.cri.prune().await.unwrap();
    assert!(blobs(&node).is_empty(), "its blobs are left");
    node.kill9();
    node.restart().await;
    assert_eq!(node.cri.list_images().await.unwrap(), []);
    node.assert_clean().await;
}

#[tokio::test]
async fn missing_parts_come_back_without_a_registry_or_with_it() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.registry.push("greeting", "1", &greeting());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&node.pod("missing")).await;
    let layer = |node: &Node| unpacked(node, "greeting").parent().unwrap().parent().unwrap().to_owned();
    let losses: [fn(PathBuf); 3] = [
        |layer| std::fs::remove_dir_all(layer).unwrap(),
        |layer| std::fs::write(layer.join("layer.json"), "{\"bytes\":12,\"inod").unwrap(),
        |layer| {
            let path = layer.join("layer.json");
            let text = std::fs::read_to_string(&path)
                .unwrap()
                .replace("\"opaque_root\":false", "\"opaque_root\":true");
            std::fs::write(path, text).unwrap();
        },
    ];
    for (number, lose) in losses.into_iter().enumerate() {
        node.stop().await;
        lose(layer(&node));
        node.restart().await;
        let whole = eventually(Duration::from_secs(10), async || {
            node.cri.image_status(&image).await.unwrap().is_some()
        });
        assert!(whole.await, "loss {number}: {}", node.daemon_log());
        assert!(notices(&node).await.contains("is not whole"), "loss {number}");
        let greets = build::shell(&format!("greets{number}"), &image, GREET);
        assert_eq!(node.output(&pod, greets).await, "right\n", "loss {number}");
    }
    node.stop().await;
    blobs(&node).iter().for_each(|blob| std::fs::remove_file(blob).unwrap());
    node.restart().await;
    assert!(node.cri.image_status(&image).await.unwrap().is_none());
    node.cri.pull(&image, None).await.unwrap();
    assert_eq!(node.output(&pod, build::shell("last", &image, GREET)).await, "right\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn half_a_bundle_keeps_nobody_from_starting_and_leaves_nothing() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let one = running(&node, &image).await;
    let pod = node.run_pod(&node.pod("other")).await;
    let two = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    node.kill9();
    let state = node.dir().join("state");
    for bundle in [state.join("containers").join(&one.id), state.join("sandboxes").join(&one.pod.id)] {
        std::fs::write(bundle.join("config.json"), "{\"ociVersion\":\"1.0").unwrap();
        std::fs::write(bundle.join("record.json"), "{").unwrap();
    }
    // Without its address nobody finds the shim: it is ended with its container.
    std::fs::write(state.join("containers").join(&two).join("shim.json"), "unix:").unwrap();
    node.restart().await;
    let status = node.cri.status(&one.id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(node.cri.pod_ready(&one.pod.id).await);
    // What cannot be known of it is an error that says so.
    let refused = node.cri.exec_sync(&one.id, &["true"], 10).await.unwrap_err();
    assert!(refused.message().contains("spec file"), "{refused:?}");
    let status = node.cri.wait_exited(&two, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_ne!(status.exit_code, 0);
    let gone = eventually(Duration::from_secs(20), async || {
        !leak::processes(node.dir(), &node.mark()).iter().any(|(_, command)| command.contains(&two))
    });
    assert!(gone.await, "the lost shim lives");
    for pod in [&one.pod, &pod] {
        node.destroy(pod).await;
    }
    node.assert_clean().await;
}
