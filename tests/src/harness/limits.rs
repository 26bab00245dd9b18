//! The limits of a container as the kernel has them, and what a test asks for and is told of them.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use tonic::Status;

use super::{Node, Pod};
use crate::client::build;

/// The limits of a container's configuration, to be changed.
pub fn limits(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A container that waits, and ends when it is asked to.
pub fn sleeper(name: &str, image: &str, resources: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, "trap 'exit 0' TERM; sleep 1000 & wait");
    *limits(&mut config) = resources;
    config
}

/// UpdateContainerResources.
///
/// # Errors
/// The runtime's refusal.
pub async fn update(node: &Node, id: &str, linux: cri::LinuxContainerResources) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

/// The limits that a container's status tells.
pub async fn told(node: &Node, id: &str) -> cri::LinuxContainerResources {
    node.cri.status(id).await.unwrap().resources.expect("the status has no resources").linux.unwrap()
}

/// A cgroup below the pod's, of a controller, wherever the node has it.
pub fn folder(pod: &Pod, controller: &str, id: &str) -> PathBuf {
    let parent = pod.config.linux.as_ref().unwrap().cgroup_parent.trim_start_matches('/').to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy = [root.join(controller), root.join("unified"), root.to_owned()];
    let hierarchy = hierarchy.into_iter().find(|at| {
        let listed = std::fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        at.ends_with(controller) && at.is_dir() || listed.split_whitespace().any(|name| name == controller)
    });
    let folder = hierarchy.expect("the node does not have the controller").join(parent);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let own = entries.flatten().find(|entry| entry.file_name().to_string_lossy().contains(id));
    own.unwrap_or_else(|| panic!("no cgroup of {id} in {}", folder.display())).path()
}

/// One file of a container's cgroup; its name begins with the controller's.
pub fn file(pod: &Pod, id: &str, name: &str) -> String {
    let controller = name.split('.').next().unwrap();
    let path = folder(pod, controller, id).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// The OOM score adjustments of all processes in a container.
pub fn oom_scores(pod: &Pod, id: &str) -> Vec<i32> {
    let procs = std::fs::read_to_string(folder(pod, "pids", id).join("cgroup.procs")).unwrap();
    let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
    procs.lines().filter_map(score).map(|text| text.trim().parse().unwrap()).collect()
}

/// These tests read the files of v1; a node with v2 alone has other ones.
pub fn is_v1() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
    if !v1 {
        println!("skipped: this test reads the files of cgroup v1");
    }
    v1
}

/// A limit of huge pages of 2 MiB.
pub fn huge(limit: i64) -> Vec<cri::HugepageLimit> {
    vec![cri::HugepageLimit { page_size: "2MB".into(), limit: limit.cast_unsigned() }]
}

/// Whether the node limits huge pages.
pub fn has_hugetlb() -> bool {
    let text = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    text.lines().any(|line| line.starts_with("hugetlb"))
        || std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers")
            .is_ok_and(|text| text.contains("hugetlb"))
}
