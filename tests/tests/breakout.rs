//! Containers that try to get out while they are made and while they run. Each test names the CVE of another runtime
//! that it stands for: what worked there must not work here. Images that attack while they are unpacked: `hostile.rs`.

#[path = "breakout/creating.rs"]
mod creating;
#[path = "breakout/running.rs"]
mod running;

use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, MountPropagation};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Config, Image};
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::{Node, Pod};

/// The base image with further layers on it.
async fn image(node: &Node, name: &str, layers: Vec<Layer>, workdir: &str) -> String {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into();
    let config = Config { env: vec![path], workdir: workdir.into(), ..Config::default() };
    let all = std::iter::once(catalog::base_layer().unwrap()).chain(layers);
    let image = all.fold(Image::new().config(config), Image::layer);
    let reference = node.registry.push(name, "1", &image.build().unwrap());
    node.cri.pull(&reference, None).await.unwrap();
    reference
}

fn volume(to: &str, from: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: to.into(),
        host_path: from.display().to_string(),
        readonly,
        propagation: MountPropagation::PropagationPrivate.into(),
        ..Default::default()
    }
}

/// A folder of the host that nothing may be made in.
fn outside(node: &Node, inside: &[&str]) -> PathBuf {
    let folder = node.dir().join("outside");
    std::fs::create_dir(&folder).unwrap();
    for name in inside {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("canary"), "sings").unwrap();
    folder
}

/// Everything below `folder`, sorted.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap().flatten() {
            found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

async fn sleeper(node: &Node, image: &str) -> (Pod, String) {
    let pod = node.run_pod(&node.pod("breakout")).await;
    let id = node.run_container(&pod, build::container("main", image, &["sleep", "100000"])).await;
    (pod, id)
}

async fn exec(node: &Node, id: &str, words: &[&str]) -> String {
    let answer = node.cri.exec_sync(id, words, 15).await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr))
}

/// Creates and starts; the error of whichever refused.
async fn attempt(node: &Node, pod: &Pod, config: cri::ContainerConfig) -> Result<String, tonic::Status> {
    let id = node.cri.create(&pod.id, &pod.config, config).await?;
    node.cri.start(&id).await.map(|()| id)
}

/// What the kubelet masks and protects unless a pod asks for an unmasked /proc.
fn masked(config: &mut cri::ContainerConfig) {
    let own = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
    let security = build::security(config);
    security.masked_paths =
        own(&["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]);
    security.readonly_paths =
        own(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
}
