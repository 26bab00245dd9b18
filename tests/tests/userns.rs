//! Pods with users of their own: who is who in them, on disk and on the node, read from the kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, NamespaceMode};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::{catalog, image::Image, layer::Layer};
use cofferdam_tests::harness::{Node, Pod};
use tonic::Code;

const UIDS: u32 = 300_000;
const GIDS: u32 = 400_000;
const COUNT: u32 = 65_536;

fn ids(host_id: u32, length: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { host_id, container_id: 0, length }]
}

fn users() -> cri::UserNamespace {
    cri::UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(UIDS, COUNT), gids: ids(GIDS, COUNT) }
}

/// A pod whose root is `UIDS` on the node.
fn mapped(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = node.pod(name);
    let options = build::pod_security(&mut config).namespace_options.get_or_insert_default();
    options.userns_options = Some(users());
    config
}

async fn running(node: &Node, pod: &Pod, image: &str) -> (String, u32) {
    let id = node.run_container(pod, build::container("main", image, &["sleep", "1000"])).await;
    let pid = pid_of(node, &id).await;
    (id, pid)
}

async fn pid_of(node: &Node, id: &str) -> u32 {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = node.cri.runtime.clone().container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    u32::try_from(info["pid"].as_u64().unwrap()).unwrap()
}

async fn exec(node: &Node, id: &str, script: &str) -> String {
    let output = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.exit_code, 0, "{script}: {out}{err}");
    out.trim().to_owned()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[tokio::test]
async fn root_of_the_pod_is_nobody_on_the_node() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&mapped(&node, "users")).await;
    let (id, pid) = running(&node, &pod, &image).await;
    let map = |kind: &str| fs::read_to_string(format!("/proc/{pid}/{kind}_map")).unwrap();
    let numbers = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(numbers(map("uid")), ["0", "300000", "65536"]);
    assert_eq!(numbers(map("gid")), ["0", "400000", "65536"]);
    let process = fs::metadata(format!("/proc/{pid}")).unwrap();
    assert_eq!((process.uid(), process.gid()), (UIDS, GIDS));
    assert_ne!(namespace(pid, "user"), namespace(std::process::id(), "user"));
    // A second container of the pod, and a command in the first, are in the same namespace.
    let other = node.run_container(&pod, build::container("other", &image, &["sleep", "1000"])).await;
    assert_eq!(namespace(pid, "user"), namespace(pid_of(&node, &other).await, "user"));
    let seen = exec(&node, &id, "id -u; readlink /proc/self/ns/user").await;
    assert_eq!(seen, format!("0\n{}", namespace(pid, "user").display()));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_images_files_belong_to_the_pods_users_and_stay_as_they_are_on_disk() {
    let node = Node::start().await;
    let layers = Image::new()
        .layer(catalog::base_layer().unwrap())
        .layer(Layer::new().dir("srv").file("srv/web", "w").owned(1000, 1000))
        .layer(Layer::new().file("srv/root", "r"))
        .build()
        .unwrap();
    let image = node.registry.push("owned", "1", &layers);
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&mapped(&node, "files")).await;
    let (id, _) = running(&node, &pod, &image).await;
    let stat = "stat -c '%u:%g' /srv/web /srv/root / /etc /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm";
    let owners = exec(&node, &id, stat).await;
    assert_eq!(
        owners.lines().collect::<Vec<_>>(),
        ["1000:1000", "0:0", "0:0", "0:0", "0:0", "0:0", "0:0", "0:0"]
    );
    // Copied up with its owner: nothing of the lower layers changes.
    exec(&node, &id, "echo more >> /srv/web; touch /new; chown 5:6 /new").await;
    assert_eq!(exec(&node, &id, "stat -c '%u:%g' /srv/web /new").await, "1000:1000\n5:6");
    let upper = node.dir().join("root/containers").join(&id).join("upper");
    let owner = |name: &str| fs::metadata(upper.join(name)).map(|data| (data.uid(), data.gid())).unwrap();
    assert_eq!(owner("srv/web"), (UIDS + 1000, GIDS + 1000));
    assert_eq!(owner("new"), (UIDS + 5, GIDS + 6));
    let lower = find(&node.dir().join("root/layers"), "srv/web");
    let lower = fs::metadata(&lower).unwrap();
    assert_eq!((lower.uid(), lower.gid(), lower.size()), (1000, 1000, 1));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The one file below `folder` whose path ends so.
fn find(folder: &Path, end: &str) -> PathBuf {
    let below = |path: PathBuf| if path.is_dir() && !path.is_symlink() { walk(&path, end) } else { None };
    fn walk(folder: &Path, end: &str) -> Option<PathBuf> {
        let wanted = folder.join(end);
        if wanted.exists() {
            return Some(wanted);
        }
        let folders = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        folders.filter(|path| path.is_dir() && !path.is_symlink()).find_map(|path| walk(&path, end))
    }
    below(folder.to_owned()).unwrap_or_else(|| panic!("no {end} below {}", folder.display()))
}

#[tokio::test]
async fn the_pod_owns_its_network_and_nothing_of_the_nodes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = mapped(&node, "net");
    let sysctls = [("net.ipv4.ip_default_ttl", "63"), ("kernel.shm_rmid_forced", "1")];
    config.linux.get_or_insert_default().sysctls =
        sysctls.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let pod = node.run_pod(&config).await;
    let mut admin = build::container("main", &image, &["sleep", "1000"]);
    let caps = cri::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() };
    build::security(&mut admin).capabilities = Some(caps);
    let id = node.run_container(&pod, admin).await;
    exec(&node, &id, "ip link set lo down && ip link set lo up && ip addr show eth0 | grep -q 10.88.7.")
        .await;
    let read =
        "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shm_rmid_forced; ls -d /sys/class/net/eth0";
    assert_eq!(exec(&node, &id, read).await, "63\n1\n/sys/class/net/eth0");
    let ping = exec(&node, &id, "cat /proc/sys/net/ipv4/ping_group_range").await;
    assert_eq!(ping.split_whitespace().collect::<Vec<_>>(), ["0", "65535"]);
    // What belongs to the node's root stays closed.
    let closed = "! mknod /tmp/disk b 254 0 2>/dev/null; \
                  ! echo 1 > /proc/sys/vm/drop_caches; echo done";
    assert_eq!(exec(&node, &id, &format!("({closed}) 2>/dev/null")).await, "done");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

fn volume(host: &Path, inside: &str, mapped: bool) -> cri::Mount {
    let (uid_mappings, gid_mappings) =
        if mapped { (ids(UIDS, COUNT), ids(GIDS, COUNT)) } else { Default::default() };
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.into(),
        uid_mappings,
        gid_mappings,
        ..Default::default()
    }
}

#[tokio::test]
async fn volumes_show_their_owners_through_the_mapping_that_comes_with_them() {
    let node = Node::start().await;
    let image = node.base_image().await;
    // As the kubelet's: nobody but root may enter.
    let closed = node.dir().join("logs/kubelet");
    fs::create_dir_all(closed.join("volume")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(closed.join("volume/file"), "text").unwrap();
    chown(closed.join("volume/file"), Some(1000), Some(1000)).unwrap();
    fs::write(closed.join("single"), "one").unwrap();
    let pod = node.run_pod(&mapped(&node, "volumes")).await;
    let mut config = build::container("main", &image, &["sleep", "1000"]);
    config.mounts = vec![
        volume(&closed.join("volume"), "/mapped", true),
        volume(&closed.join("volume"), "/plain", false),
        volume(&closed.join("single"), "/etc/single", true),
    ];
    let id = node.run_container(&pod, config).await;
    let seen = exec(&node, &id, "stat -c '%u:%g' /mapped /mapped/file /plain/file; cat /etc/single").await;
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["0:0", "1000:1000", "65534:65534", "one"]);
    exec(&node, &id, "echo x > /mapped/made && chown 7:8 /mapped/made").await;
    let made = fs::metadata(closed.join("volume/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (7, 8), "as on disk, not as on the node");
    assert_eq!(exec(&node, &id, "touch /plain/no 2>&1 || true").await, "touch: /plain/no: Permission denied");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_mapped_volume_needs_no_pod_with_users_of_its_own() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let folder = node.dir().join("logs/volume");
    fs::create_dir_all(&folder).unwrap();
    let pod = node.run_pod(&node.pod("plain")).await;
    let mut config = build::container("main", &image, &["stat", "-c", "%u:%g", "/v"]);
    config.mounts = vec![volume(&folder, "/v", true)];
    assert_eq!(node.output(&pod, config).await.trim(), format!("{UIDS}:{GIDS}"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn terminals_users_and_devices_work_behind_the_namespace() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&mapped(&node, "more")).await;
    let mut config = build::shell("tty", &image, "id -u; stat -c '%u' $(tty); pwd; stat -c '%u' .");
    config.tty = true;
    config.working_dir = "/made/for/me".into();
    build::security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    let output = node.output(&pod, config).await.replace('\r', "");
    assert_eq!(output.lines().collect::<Vec<_>>(), ["1000", "1000", "/made/for/me", "0"]);
    let mut config = build::shell("dev", &image, "head -c 4 /dev/other | wc -c; echo gone > /dev/null");
    config.devices = vec![cri::Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/other".into(),
        permissions: "r".into(),
    }];
    assert_eq!(node.output(&pod, config).await.trim(), "4");
    let mut config = build::shell("readonly", &image, "touch /x || echo refused");
    build::security(&mut config).readonly_rootfs = true;
    assert_eq!(node.output(&pod, config).await.trim(), "refused");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_had_together_is_refused() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let refused = async |change: &dyn Fn(&mut cri::NamespaceOption)| {
        let mut config = mapped(&node, "refused");
        change(build::pod_security(&mut config).namespace_options.get_or_insert_default());
        node.cri.run_pod(&config, "").await.unwrap_err()
    };
    for change in [
        (&|o: &mut cri::NamespaceOption| o.network = NamespaceMode::Node.into())
            as &dyn Fn(&mut cri::NamespaceOption),
        &|o| o.pid = NamespaceMode::Node.into(),
        &|o| o.ipc = NamespaceMode::Node.into(),
        &|o| o.userns_options.as_mut().unwrap().uids = ids(0, COUNT),
        &|o| o.userns_options.as_mut().unwrap().gids.clear(),
        &|o| o.userns_options.as_mut().unwrap().uids = ids(u32::MAX - 10, COUNT),
        &|o| o.userns_options.as_mut().unwrap().mode = NamespaceMode::Target.into(),
    ] {
        let status = refused(change).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let pod = node.run_pod(&mapped(&node, "users")).await;
    let create = async |change: &dyn Fn(&mut cri::ContainerConfig)| {
        let mut config = build::container("main", &image, &["true"]);
        change(&mut config);
        node.cri.create(&pod.id, &pod.config, config).await.unwrap_err()
    };
    let nodes = cri::UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    for change in [
        (&|c: &mut cri::ContainerConfig| {
            let options = build::security(c).namespace_options.get_or_insert_default();
            options.userns_options = Some(nodes.clone());
        }) as &dyn Fn(&mut cri::ContainerConfig),
        &|c| build::security(c).run_as_user = Some(cri::Int64Value { value: 65_536 }),
        &|c| build::security(c).supplemental_groups = vec![70_000],
        &|c| {
            let mut volume = volume(Path::new("/tmp"), "/v", true);
            volume.gid_mappings.clear();
            c.mounts = vec![volume];
        },
        &|c| {
            let propagation = cri::MountPropagation::PropagationBidirectional.into();
            c.mounts = vec![cri::Mount { propagation, ..volume(Path::new("/tmp"), "/v", false) }];
        },
    ] {
        let status = create(change).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn pods_with_users_outlive_the_daemon() {
    let mut node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&mapped(&node, "restart")).await;
    let (id, pid) = running(&node, &pod, &image).await;
    node.restart().await;
    assert_eq!(pid_of(&node, &id).await, pid);
    assert_eq!(exec(&node, &id, "id -u").await, "0");
    let other = build::shell("later", &image, "cat /proc/self/uid_map");
    assert_eq!(node.output(&pod, other).await.split_whitespace().nth(1), Some("300000"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_feature_is_told_as_it_was_tried() {
    let Some(mut node) = Node::builder().start().await else { return };
    assert!(told(&node).await, "{}", node.daemon_log());
    // Bundles in a folder that is closed to others cannot be reached by a pod's own root.
    fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    node.restart().await;
    assert!(!told(&node).await);
    assert!(node.daemon_log().contains("is closed to others"), "{}", node.daemon_log());
    let refused = node.cri.run_pod(&mapped(&node, "closed"), "").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o711)).unwrap();
    node.assert_clean().await;
}

async fn told(node: &Node) -> bool {
    let status = node.cri.runtime.clone().status(cri::StatusRequest { verbose: false }).await;
    let handlers = status.unwrap().into_inner().runtime_handlers;
    let default = handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    default.features.unwrap().user_namespaces
}
