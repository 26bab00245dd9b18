//! Mounts of the host in containers: sources, read-only trees, propagation and shared memory, read from the kernel's table.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, MountPropagation as Propagation};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod};
use nix::mount::{MntFlags, MsFlags};
use tonic::Code;

/// A mount of the test's own; gone with it.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, propagation: MsFlags) -> Self {
        fs::create_dir_all(at).unwrap();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        nix::mount::mount(None::<&str>, at, None::<&str>, propagation, None::<&str>).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(host: &Path, inside: &str) -> cri::Mount {
    cri::Mount { host_path: host.display().to_string(), container_path: inside.into(), ..Default::default() }
}

fn spreading(host: &Path, inside: &str, how: Propagation) -> cri::Mount {
    cri::Mount { propagation: how.into(), ..bind(host, inside) }
}

fn with(name: &str, image: &str, script: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, script);
    config.mounts = mounts;
    config
}

async fn refused(node: &Node, pod: &Pod, config: cri::ContainerConfig) -> tonic::Status {
    node.cri.create(&pod.id, &pod.config, config).await.expect_err("it was created")
}

async fn exec(node: &Node, id: &str, script: &str) -> String {
    let output = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The optional fields of a mount point: how events travel there.
async fn fields(node: &Node, id: &str, point: &str) -> String {
    let table = exec(node, id, "cat /proc/self/mountinfo").await;
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(point));
    let line = line.unwrap_or_else(|| panic!("{point} is not in\n{table}"));
    let optional = line.split(' ').skip(6).take_while(|word| *word != "-");
    optional.map(|word| word.split(':').next().unwrap()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn sources_are_made_where_they_are_missing_and_links_are_followed() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let folder = node.dir().join("logs/sources");
    fs::create_dir_all(folder.join("real")).unwrap();
    fs::write(folder.join("real/file"), "real").unwrap();
    symlink(folder.join("real"), folder.join("link")).unwrap();
    let pod = node.run_pod(&node.pod("sources")).await;
    let mounts = vec![
        bind(&folder.join("new/deep"), "/new"),
        bind(&folder.join("link"), "/link"),
        bind(&folder.join("link/file"), "/file"),
    ];
    let config = with("main", &image, "touch /new/made; cat /link/file /file; ls -d /new", mounts);
    assert_eq!(node.output(&pod, config).await, "realreal/new\n");
    assert!(folder.join("new/deep/made").exists());
    for bad in [bind(Path::new("relative"), "/x"), bind(&folder, "/"), bind(&folder, "/a/../b")] {
        let status = refused(&node, &pod, with("bad", &image, "true", vec![bad])).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let below_a_file = with("bad", &image, "true", vec![bind(&folder.join("real/file/below"), "/x")]);
    let status = refused(&node, &pod, below_a_file).await;
    assert!(status.message().contains("real/file/below"), "{status}");
    fs::remove_dir_all(&folder).unwrap();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_tree_is_read_only_all_the_way_down_where_that_is_asked() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let folder = node.dir().join("logs/tree");
    fs::create_dir_all(&folder).unwrap();
    let below = Mounted::tmpfs(&folder.join("below"), MsFlags::MS_PRIVATE);
    let pod = node.run_pod(&node.pod("tree")).await;
    let readonly = |inside: &str, recursive_read_only| cri::Mount {
        readonly: true,
        recursive_read_only,
        ..bind(&folder, inside)
    };
    let script = "for f in /flat/x /flat/below/x /deep/x /deep/below/x; do \
                  (: > $f) 2>/dev/null && echo $f written || echo $f refused; done";
    let mounts = vec![readonly("/flat", false), readonly("/deep", true)];
    let output = node.output(&pod, with("main", &image, script, mounts)).await;
    let expected = "/flat/x refused\n/flat/below/x written\n/deep/x refused\n/deep/below/x refused\n";
    assert_eq!(output, expected);
    let writable = cri::Mount { readonly: false, ..readonly("/deep", true) };
    let open =
        cri::Mount { propagation: Propagation::PropagationHostToContainer.into(), ..readonly("/deep", true) };
    for bad in [writable, open] {
        let status = refused(&node, &pod, with("bad", &image, "true", vec![bad])).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    drop(below);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn each_volume_propagates_as_it_asks_whatever_its_neighbours_do() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let folder = node.dir().join("logs/shared");
    let shared = Mounted::tmpfs(&folder, MsFlags::MS_SHARED);
    for name in ["host", "container"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let mut config = node.pod("propagation");
    build::pod_security(&mut config).privileged = true;
    let pod = node.run_pod(&config).await;
    use Propagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let modes = [
        ("/private", PropagationPrivate, "", "no"),
        ("/slave", PropagationHostToContainer, "master", "yes"),
        ("/open", PropagationBidirectional, "shared", "yes"),
    ];
    // Each alone, and all of them together: the most open one must not open the others.
    for (name, count) in [("one", 1), ("two", 2), ("three", 3)] {
        let used = &modes[..count];
        let mounts = used.iter().map(|(inside, how, ..)| spreading(&folder, inside, *how)).collect();
        let mut config = with(name, &image, "sleep 1000", mounts);
        build::security(&mut config).privileged = true;
        let id = node.run_container(&pod, config).await;
        for (inside, _, expected, _) in used {
            assert_eq!(fields(&node, &id, inside).await, *expected, "{name} {inside}");
        }
        let host = Mounted::tmpfs(&folder.join("host"), MsFlags::MS_PRIVATE);
        fs::write(folder.join("host/seen"), "").unwrap();
        for (inside, _, _, expected) in used {
            let seen =
                exec(&node, &id, &format!("ls {inside}/host/seen >/dev/null 2>&1 && echo yes || echo no"))
                    .await;
            assert_eq!(seen.trim(), *expected, "{name} {inside}: a mount of the host");
        }
        drop(host);
        for (inside, how, ..) in used {
            exec(
                &node,
                &id,
                &format!("mount -t tmpfs tmpfs {inside}/container && touch {inside}/container/x"),
            )
            .await;
            let arrived = folder.join("container/x").exists();
            assert_eq!(
                arrived,
                *how == PropagationBidirectional,
                "{name} {inside}: a mount of the container"
            );
            exec(&node, &id, &format!("umount {inside}/container")).await;
        }
        node.cri.remove(&id).await.unwrap();
    }
    drop(shared);
    // A private mount of the host cannot give what is asked.
    let lonely = Mounted::tmpfs(&folder, MsFlags::MS_PRIVATE);
    for how in [PropagationHostToContainer, PropagationBidirectional] {
        let config = with("lonely", &image, "true", vec![spreading(&folder, "/x", how)]);
        let status = refused(&node, &pod, config).await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }
    drop(lonely);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_volume_in_a_private_volume_stays_in_the_container_whatever_its_neighbours_do() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let folder = node.dir().join("logs/nested");
    let shared = Mounted::tmpfs(&folder, MsFlags::MS_SHARED);
    for name in ["open", "closed/sub", "inner"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("inner/file"), "inner").unwrap();
    let mut config = node.pod("nested");
    build::pod_security(&mut config).privileged = true;
    let pod = node.run_pod(&config).await;
    let mounts = vec![
        spreading(&folder.join("open"), "/open", Propagation::PropagationBidirectional),
        bind(&folder.join("closed"), "/closed"),
        bind(&folder.join("inner"), "/closed/sub"),
    ];
    let mut config = with("main", &image, "sleep 1000", mounts);
    build::security(&mut config).privileged = true;
    let id = node.run_container(&pod, config).await;
    assert_eq!(exec(&node, &id, "cat /closed/sub/file").await, "inner");
    assert_eq!(fields(&node, &id, "/open").await, "shared");
    for point in ["/closed", "/closed/sub"] {
        assert_eq!(fields(&node, &id, point).await, "", "{point}");
    }
    assert!(!folder.join("closed/sub/file").exists(), "the host has a mount of the container's");
    node.destroy(&pod).await;
    drop(shared);
    node.assert_clean().await;
}

#[tokio::test]
async fn shared_memory_is_the_pods_and_has_its_size() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("shm")).await;
    let id =
        node.run_container(&pod, with("writer", &image, "echo x > /dev/shm/left; sleep 1000", vec![])).await;
    let line =
        exec(&node, &id, "grep ' /dev/shm ' /proc/self/mountinfo; while ! [ -s /dev/shm/left ]; do :; done")
            .await;
    for word in ["nosuid", "nodev", "noexec", "size=65536k"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let reader = with(
        "reader",
        &image,
        "cat /dev/shm/left; stat -c %a /dev/shm; df -k /dev/shm | awk 'END{print $2}'",
        vec![],
    );
    assert_eq!(node.output(&pod, reader).await, "x\n1777\n65536\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
