//! What the daemon relies on: events in order although it was away, and root filesystems that never leak.

use std::fs;
use std::sync::{Arc, Mutex};

use crate::common::{Node, soon, spec};
use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message;
use serde_json::{Value, json};
use ttrpc::r#async::{Server, TtrpcContext};

#[derive(Default)]
struct Daemon(Mutex<Vec<ForwardRequest>>);

#[async_trait]
impl Events for Daemon {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(request);
        Ok(Empty::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_events_wait_for_a_daemon_that_is_away() {
    let node = Node::new(spec(&["sh", "-c", "exit 9"])).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    assert_eq!(node.wait("").await, 9);
    let daemon = Arc::new(Daemon::default());
    let address = format!("unix://{}", node.events_socket().display());
    let mut server = Server::new().bind(&address).unwrap().register_service(create_events(daemon.clone()));
    server.start().await.unwrap();
    node.delete("").await.unwrap();
    let id = node.id.clone();
    node.finish().await;
    let events = daemon.0.lock().unwrap().clone();
    let topics: Vec<&str> = events.iter().map(|e| e.envelope.topic.as_str()).collect();
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    let any = &events[2].envelope.event;
    let exit = TaskExit::parse_from_bytes(&any.value).unwrap();
    assert_eq!(
        (any.type_url.as_str(), events[2].envelope.namespace.as_str()),
        ("containerd.events.TaskExit", "test")
    );
    assert_eq!(
        (exit.container_id.as_str(), exit.id.as_str(), exit.exit_status),
        (id.as_str(), id.as_str(), 9)
    );
}

#[tokio::test]
async fn privileged_the_root_filesystem_is_invisible_to_the_host() {
    let node = Node::new(spec(&["sh", "-c", "echo x > /made; sleep 1000"])).await;
    node.create().await.unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(node.bundle.to_str().unwrap()), "the root filesystem is mounted on the host");
    node.kill("", 9, true).await.unwrap();
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_volume_that_propagates_moves_the_mount_to_the_host_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let mut container = spec(&["sh", "-c", "echo x > /vol/made"]);
    container["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "rshared"],
    }));
    let node = Node::in_folder(container, folder).await;
    node.create().await.unwrap();
    let kept: Value =
        serde_json::from_str(&fs::read_to_string(node.bundle.join("task.json")).unwrap()).unwrap();
    assert_eq!(kept["mounted_on_host"], json!(true));
    node.start().await.unwrap();
    assert_eq!(node.wait("").await, 0);
    assert_eq!(fs::read_to_string(node.path("volume/made")).unwrap(), "x\n");
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_hundred_layers_are_no_problem() {
    let node = Node::new(spec(&["cat", "/layer0", "/layer99"])).await;
    let mut layers = vec![node.path("lower").display().to_string()];
    for n in 0..100 {
        let layer = node.path(&format!("layer-with-a-name-as-long-as-a-digest-{n:064}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("layer{n}")), format!("{n}\n")).unwrap();
        layers.push(layer.display().to_string());
    }
    let mut request = node.request();
    request.rootfs[0].options[0] = format!("lowerdir={}", layers.join(":"));
    node.task.create(soon(), &request).await.unwrap();
    node.start().await.unwrap();
    assert_eq!(node.wait("").await, 0);
    assert_eq!(node.log(), "stdout F 0\nstdout F 99\n");
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_failed_mount_is_told_and_leaves_nothing() {
    let node = Node::new(spec(&["true"])).await;
    let mut request = node.request();
    request.rootfs[0].options[0] = "lowerdir=/no/such/folder".into();
    let (_, message) = crate::common::status_of(node.task.create(soon(), &request).await.unwrap_err());
    assert!(message.contains("mount overlay") && message.contains("No such file"), "{message}");
    let mut container = spec(&["true"]);
    container["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/vol", "type": "bind", "source": "/no/such/volume", "options": ["bind"],
    }));
    fs::write(node.bundle.join("config.json"), container.to_string()).unwrap();
    let (_, message) = crate::common::status_of(node.create().await.unwrap_err());
    assert!(message.contains("/no/such/volume"), "{message}");
    node.finish().await;
}
