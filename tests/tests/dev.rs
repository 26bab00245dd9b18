//! Volumes at /dev and at places of devices, as storage drivers and privileged daemons mount them: they are what the
//! container sees there, and nothing is made in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, MountPropagation, NamespaceMode};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, log};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// What is known of every file below a folder, but for what comes and goes by itself.
fn listing(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![folder.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, Ok(data)) = (entry.path(), entry.metadata()) else { continue };
            let target = fs::read_link(&path).unwrap_or_default();
            let words = format!(
                "{:o} {}:{} {:x} {}",
                data.mode(),
                data.uid(),
                data.gid(),
                data.rdev(),
                target.display()
            );
            if data.is_dir() && !["pts", "shm", "mqueue"].iter().any(|name| path.ends_with(name)) {
                ahead.push(path.clone());
            }
            found.insert(path, words);
        }
    }
    found
}

/// The mounts of this process at and below a folder.
fn mounts(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(folder));
    table.lines().filter(at).map(str::to_owned).collect()
}

/// A file system of the test's own that looks like a /dev; gone with it.
struct Devices(PathBuf);

impl Devices {
    fn new(at: PathBuf, propagation: MsFlags) -> Self {
        fs::create_dir_all(&at).unwrap();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        nix::mount::mount(None::<&str>, &at, None::<&str>, propagation, None::<&str>).unwrap();
        let mode = Mode::from_bits_truncate(0o666);
        fs::create_dir(at.join("sub")).unwrap();
        fs::create_dir(at.join("shm")).unwrap();
        for (name, major, minor) in [("null", 1, 3), ("tty", 5, 0), ("own", 1, 5), ("sub/one", 1, 7)] {
            mknod(&at.join(name), SFlag::S_IFCHR, mode, makedev(major, minor)).unwrap();
        }
        symlink("/proc/self/fd/9", at.join("fd")).unwrap();
        fs::write(at.join("file"), "of the volume").unwrap();
        Self(at)
    }

    fn mount(&self, inside: &str) -> cri::Mount {
        bind(&self.0, inside)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(host: &Path, inside: &str) -> cri::Mount {
    cri::Mount { host_path: host.display().to_string(), container_path: inside.into(), ..Default::default() }
}

fn with(name: &str, image: &str, script: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, script);
    config.mounts = mounts;
    config
}

async fn privileged(node: &Node, name: &str) -> Pod {
    let mut config = node.pod(name);
    build::pod_security(&mut config).privileged = true;
    node.run_pod(&config).await
}

async fn exec(node: &Node, id: &str, script: &str) -> String {
    let output = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert_eq!(output.exit_code, 0, "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test]
async fn the_hosts_dev_is_shown_as_it_is_and_stays_so() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let (before, mounted) = (listing(Path::new("/dev")), mounts(Path::new("/dev")));
    let pod = privileged(&node, "dev").await;
    let mut config = with("main", &image, "sleep 1000", vec![bind(Path::new("/dev"), "/dev")]);
    build::security(&mut config).privileged = true;
    let id = node.run_container(&pod, config.clone()).await;
    let seen = exec(&node, &id, "ls -A /dev").await;
    let names = before.keys().filter(|path| path.parent() == Some(Path::new("/dev")));
    let names: Vec<_> = names.map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let mut seen: Vec<_> = seen.lines().collect();
    seen.sort_unstable();
    assert_eq!(seen, names);
    // The pod's own shared memory over the host's, and streams that lead to what is there.
    let table = exec(&node, &id, "cat /proc/self/mountinfo").await;
    let last = |point: &str| table.lines().rfind(|line| line.split(' ').nth(4) == Some(point)).unwrap();
    assert!(last("/dev").contains(" - devtmpfs "), "{table}");
    assert!(last("/dev/shm").contains("size=65536k"), "{table}");
    assert!(!table.contains("/dev/.volumes"), "{table}");
    assert_eq!(exec(&node, &id, "readlink /proc/1/fd/0; ls /proc/1/cwd/dev >/dev/null").await, "/dev/null");
    // What it makes there is the host's: the volume can be written.
    let made = Path::new("/dev").join(node.mark());
    exec(&node, &id, &format!("touch {} && dd if=/dev/zero of=/dev/null count=1", made.display())).await;
    assert!(made.exists());
    fs::remove_file(&made).unwrap();
    // Its terminal is one of the host's, as the container sees them.
    config.metadata.as_mut().unwrap().name = "terminal".into();
    config.log_path = "terminal/0.log".into();
    config.command[2] = "tty; stat -c %t /dev/console; test -c $(tty) && echo there".into();
    (config.tty, config.stdin) = (true, true);
    let (_, entries) = node.run_to_end(&pod, config).await;
    let said = log::joined(&entries, "stdout").replace('\r', "");
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{said}");
    assert_eq!(lines[1..], ["88", "there"], "{said}");
    node.destroy(&pod).await;
    assert_eq!(listing(Path::new("/dev")), before);
    assert_eq!(mounts(Path::new("/dev")), mounted);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_volume_at_dev_takes_mounts_and_is_read_only_when_they_are_there() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let volume = Devices::new(node.dir().join("logs/dev"), MsFlags::MS_PRIVATE);
    let note = node.dir().join("logs/note");
    fs::write(&note, "noted").unwrap();
    let below = node.dir().join("logs/below");
    fs::create_dir_all(below.join("deep")).unwrap();
    let mut expected = listing(&volume.0);
    let pod = node.run_pod(&node.pod("volume")).await;
    let script = "cat /dev/termination-log; echo; echo new > /dev/termination-log; ls /dev/sub; \
                  cat /dev/sub/deep/file; echo; (: > /dev/x) 2>/dev/null || echo refused; : > /dev/sub/made; \
                  cat /dev/file; echo; pwd; readlink /proc/1/fd/0";
    let mounts = vec![
        cri::Mount { readonly: true, ..volume.mount("/dev") },
        bind(&note, "/dev/termination-log"),
        bind(&below, "/dev/sub"),
        bind(&volume.0.join("file"), "/dev/sub/deep/file"),
    ];
    let mut config = with("main", &image, script, mounts);
    config.working_dir = "/dev/sub/deep".into();
    let output = node.output(&pod, config).await;
    let lines: Vec<_> = output.lines().collect();
    let of_volume = "of the volume";
    let told = ["noted", "deep", of_volume, "refused", of_volume, "/dev/sub/deep", "/dev/null"];
    assert_eq!(lines, told);
    assert_eq!(fs::read_to_string(&note).unwrap(), "new\n");
    assert!(below.join("made").exists());
    // Of all that runtimes make in /dev, only the mount point that it lacked.
    let point = volume.0.join("termination-log");
    expected.insert(point, "100644 0:0 0 ".into());
    assert_eq!(listing(&volume.0), expected);
    assert_eq!(fs::read_to_string(volume.0.join("termination-log")).unwrap(), "");
    fs::remove_dir_all(&below).unwrap();
    fs::remove_file(&note).unwrap();
    drop(volume);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn devices_at_places_in_a_volume_are_the_volumes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let volume = Devices::new(node.dir().join("logs/dev"), MsFlags::MS_PRIVATE);
    let expected = listing(&volume.0);
    let pod = privileged(&node, "devices").await;
    let device = |inside: &str| cri::Device {
        host_path: "/dev/full".into(),
        container_path: inside.into(),
        permissions: "rwm".into(),
    };
    // One of them the volume has.
    let mut config = with("main", &image, "ls /dev/sub; stat -c %t:%T /dev/sub/one", vec![]);
    config.mounts = vec![bind(&volume.0.join("sub"), "/dev/sub")];
    config.devices = vec![device("/dev/sub/one"), device("/dev/sub/two"), device("/dev/three")];
    assert_eq!(node.output(&pod, config).await, "one\n1:7\n");
    // Each of these is also a device that a privileged container has by itself.
    let mut config = with("files", &image, "stat -c %t:%T /dev/kmsg; cat /dev/zero; ls /dev/fuse", vec![]);
    build::security(&mut config).privileged = true;
    config.mounts =
        vec![bind(Path::new("/dev/null"), "/dev/kmsg"), bind(&volume.0.join("file"), "/dev/zero")];
    config.mounts.push(volume.mount("/dev/fuse.d"));
    assert_eq!(node.output(&pod, config).await, "1:3\nof the volume/dev/fuse\n");
    assert_eq!(listing(&volume.0), expected);
    drop(volume);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn mounts_in_a_volume_at_dev_never_reach_the_host() {
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let node = Node::start().await;
    let image = node.base_image().await;
    let volume = Devices::new(node.dir().join("logs/dev"), MsFlags::MS_SHARED);
    let below = volume.0.join("shm");
    nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let before = mounts(&volume.0);
    assert!(before.iter().all(|line| line.contains(" shared:")), "{before:?}");
    let pod = privileged(&node, "spread").await;
    let modes =
        [(PropagationPrivate, false), (PropagationHostToContainer, true), (PropagationBidirectional, true)];
    for (number, (how, hears)) in modes.into_iter().enumerate() {
        let spread = cri::Mount { propagation: how.into(), ..volume.mount("/dev") };
        let mounts_asked = vec![spread, bind(&volume.0.join("file"), "/dev/own")];
        let mut config = with(&format!("c{number}"), &image, "sleep 1000", mounts_asked);
        build::security(&mut config).privileged = true;
        let id = node.run_container(&pod, config).await;
        assert_eq!(mounts(&volume.0), before, "{how:?}");
        assert_eq!(
            exec(&node, &id, "cat /dev/own; df -k /dev/shm | awk 'END{print $2}'").await,
            "of the volume65536"
        );
        let sub = volume.0.join("sub");
        nix::mount::mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(sub.join("heard"), "").unwrap();
        let heard = exec(&node, &id, "test -e /dev/sub/heard && echo yes || echo no").await;
        assert_eq!(heard == "yes", hears, "{how:?}");
        nix::mount::umount2(&sub, MntFlags::MNT_DETACH).unwrap();
        node.cri.remove(&id).await.unwrap();
        assert_eq!(mounts(&volume.0), before, "{how:?} after its end");
    }
    drop(volume);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pods_own_users_get_a_volume_at_dev_as_well() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let volume = Devices::new(node.dir().join("logs/dev"), MsFlags::MS_PRIVATE);
    let mut expected = listing(&volume.0);
    let ids = |host_id| vec![cri::IdMapping { host_id, container_id: 0, length: 65_536 }];
    let mut config = node.pod("users");
    let options = build::pod_security(&mut config).namespace_options.get_or_insert_default();
    let mode = NamespaceMode::Pod.into();
    options.userns_options = Some(cri::UserNamespace { mode, uids: ids(300_000), gids: ids(300_000) });
    let pod = node.run_pod(&config).await;
    let mapped =
        cri::Mount { uid_mappings: ids(300_000), gid_mappings: ids(300_000), ..volume.mount("/dev") };
    let note = node.dir().join("logs/note");
    fs::write(&note, "noted\n").unwrap();
    let script =
        "ls -A /dev | tr '\\n' ' '; stat -c %u /dev/file; cat /dev/note; echo x > /dev/null && echo y";
    let mut main = with("main", &image, script, vec![mapped, bind(&note, "/dev/note")]);
    assert_eq!(node.output(&pod, main.clone()).await, "fd file note null own shm sub tty 0\nnoted\ny\n");
    // What root of the pod made is root's.
    expected.insert(volume.0.join("note"), "100644 0:0 0 ".into());
    assert_eq!(listing(&volume.0), expected);
    main.metadata.as_mut().unwrap().name = "terminal".into();
    main.log_path = "terminal/0.log".into();
    main.command[2] = "test -t 0 && echo at a terminal".into();
    (main.tty, main.stdin) = (true, true);
    let (_, entries) = node.run_to_end(&pod, main).await;
    assert_eq!(log::joined(&entries, "stdout"), "at a terminal\n");
    fs::remove_file(&note).unwrap();
    drop(volume);
    node.destroy(&pod).await;
    node.assert_clean().await;
}
