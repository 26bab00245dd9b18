//! While it is made: hostile images, links and races where something is mounted, folders to start in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::layer::{Kind, Layer};
use cofferdam_tests::harness::Node;

use crate::{attempt, exec, image, masked, outside, tree, volume};

/// CVE-2024-21626, second half: a working directory that is a link to such a descriptor.
#[tokio::test]
async fn cve_2024_21626_a_descriptor_is_no_working_directory() {
    let node = Node::start().await;
    let image = image(&node, "workdir", vec![Layer::new().dir("work")], "/work").await;
    let pod = node.run_pod(&node.pod("workdir")).await;
    for number in 3..12 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../..")] {
            let mut config = build::container(&format!("d{number}-{}", build::unique()), &image, &["pwd"]);
            config.working_dir.clone_from(&path);
            let refused = attempt(&node, &pod, config).await;
            assert!(refused.is_err(), "a container runs in {path}");
        }
    }
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    assert_eq!(exec(&node, &id, &["pwd"]).await, "/work\n");
    for number in 3..20 {
        // The first process sits in the root, and the host's view of it is the only way left to set the link anew.
        let work = PathBuf::from(format!("/proc/{}/root/work", container_pid(&node, &id)));
        std::fs::remove_dir(&work).or_else(|_| std::fs::remove_file(&work)).unwrap();
        std::os::unix::fs::symlink(format!("/proc/self/fd/{number}"), &work).unwrap();
        let escaped = node.cri.exec_sync(&id, &["sh", "-c", "pwd; ls -a; ls ../../../.."], 10).await;
        assert!(escaped.is_err(), "an exec runs in descriptor {number}: {escaped:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The first process of a container, as the host sees it.
fn container_pid(node: &Node, id: &str) -> u32 {
    let file = node.dir().join("state/containers").join(id).join("init.pid");
    std::fs::read_to_string(file).unwrap().parse().unwrap()
}

/// CVE-2019-19921 and CVE-2023-28642: the image's /proc, /dev or /sys is a link, so that what the runtime does there
/// happens elsewhere. The places it would happen exist in the image as well, so that nothing fails for their absence.
#[tokio::test]
async fn cve_2023_28642_linked_system_folders_reach_nothing_outside() {
    let node = Node::start().await;
    let outside = outside(&node, &["dev/pts", "proc", "sys"]);
    let before = tree(&outside);
    let target = outside.display().to_string();
    let inner = target.trim_start_matches('/');
    for (name, link) in [("dev", "dev"), ("proc", "proc"), ("sys", "sys"), ("proc", ""), ("dev", "")] {
        let twin = Layer::new()
            .dir(&format!("{inner}/dev/pts"))
            .dir(&format!("{inner}/proc"))
            .dir(&format!("{inner}/sys"));
        let links = Layer::new().symlink(name, format!("{target}/{link}").trim_end_matches('/'));
        let gone = Layer::new().whiteout(name);
        let image = image(&node, &format!("linked-{name}{link}"), vec![twin, gone, links], "").await;
        let pod = node.run_pod(&node.pod("linked")).await;
        let started = attempt(&node, &pod, build::container("main", &image, &["/bin/true"])).await;
        assert_eq!(tree(&outside), before, "the image's /{name} led out: {started:?}");
        let refused = started.expect_err("a container runs with a linked system folder");
        assert!(refused.message().contains(&format!("/{name}")), "{refused:?}");
        node.destroy(&pod).await;
    }
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "sings");
    node.assert_clean().await;
}

/// CVE-2024-45310 and CVE-2021-30465, without the race: a volume's target goes through a link of the image that leads
/// outside; the runtime made the file or folder to mount on there.
#[tokio::test]
async fn cve_2024_45310_a_volumes_target_behind_a_link_stays_inside() {
    let node = Node::start().await;
    let outside = outside(&node, &[]);
    let up = format!("{}{}", "../".repeat(20), outside.display().to_string().trim_start_matches('/'));
    let links = Layer::new().symlink("door", &outside.display().to_string()).symlink("up", &up);
    let image = image(&node, "door", vec![links], "").await;
    let pod = node.run_pod(&node.pod("door")).await;
    let (folder, file) = (node.dir().join("volume"), node.dir().join("file"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, "mounted").unwrap();
    let targets = [
        ("/door/folder", &folder),
        ("/door/file", &file),
        ("/door/canary", &file),
        ("/up/folder/deep", &folder),
        ("/up/file", &file),
        ("/door/../../../../x", &folder),
    ];
    for (number, (target, source)) in targets.into_iter().enumerate() {
        let mut config = build::container(&format!("c{number}"), &image, &["/bin/true"]);
        config.mounts = vec![volume(target, source, false)];
        // Refused or contained: both are right.
        let _ = attempt(&node, &pod, config).await;
        assert_eq!(tree(&outside), ["canary"], "the volume at {target} got out");
    }
    // The working directory is made where it is missing, but neither outside nor in a volume that is read-only.
    for (number, path) in ["/door/made", "/up/made/deep", "/readonly/made/deep"].into_iter().enumerate() {
        let mut config = build::container(&format!("w{number}"), &image, &["/bin/pwd"]);
        config.working_dir = path.into();
        config.mounts = vec![volume("/readonly", &folder, true)];
        let refused = attempt(&node, &pod, config).await.unwrap_err();
        assert!(refused.message().contains(path), "the error does not name the folder: {refused:?}");
        assert_eq!(tree(&outside), ["canary"], "the working directory {path} was made outside");
        assert_eq!(tree(&folder), [""; 0], "the working directory {path} was made on the host");
    }
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "sings");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Exchanges two names of a folder as fast as it can, until it is told to end.
struct Exchange(Arc<AtomicBool>, Option<std::thread::JoinHandle<u64>>);

impl Exchange {
    fn begin(folder: &Path, one: &str, other: &str) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (flag, one, other) = (Arc::clone(&end), folder.join(one), folder.join(other));
        let thread = std::thread::spawn(move || {
            let mut done = 0;
            while !flag.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let at = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(at, &one, at, &other, flags).unwrap();
                done += 1;
                std::thread::sleep(Duration::from_micros(20));
            }
            done
        });
        Exchange(end, Some(thread))
    }

    fn end(mut self) -> u64 {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap()
    }
}

/// CVE-2021-30465 and CVE-2024-45310: while a container is made, another one that shares a volume with it swaps a
/// folder of the volume, in which further volumes shall be mounted, for a link.
#[tokio::test]
async fn cve_2021_30465_a_link_swapped_in_during_creation_leads_nowhere() {
    let node = Node::start().await;
    let outside = outside(&node, &[]);
    let image = node.base_image().await;
    let (shared, other) = (node.dir().join("shared"), node.dir().join("other"));
    std::fs::create_dir_all(shared.join("a")).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), "mounted").unwrap();
    std::os::unix::fs::symlink(&outside, shared.join("b")).unwrap();
    let pod = node.run_pod(&node.pod("race")).await;
    let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounted();
    let exchange = Exchange::begin(&shared, "a", "b");
    let mut ran = 0;
    for number in 0..25 {
        let mut config = build::container(&format!("c{number}"), &image, &["/bin/cat", "/canary"]);
        config.mounts = vec![
            volume("/shared", &shared, false),
            volume("/shared/a/folder", &other, false),
            volume("/shared/a/file", &other.join("file"), false),
        ];
        // The host's folder as a path of the container, in case that it is what a volume ends up on.
        config.mounts.push(volume(&format!("/shared/a/{number}/deep"), &other, false));
        if let Ok(id) = attempt(&node, &pod, config).await {
            ran += 1;
            node.cri.remove(&id).await.unwrap();
        }
        assert_eq!(tree(&outside), ["canary"], "attempt {number} made something outside");
    }
    let exchanged = exchange.end();
    println!("{ran} of 25 containers were made during {exchanged} exchanges");
    assert!(exchanged > 1000, "the race was hardly tried: {exchanged} exchanges");
    assert!(mounted() <= before + 2, "mounts are left on the host");
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "sings");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// CVE-2025-52881 and CVE-2025-31133: what the runtime itself writes or mounts under /proc is led elsewhere by a mount
/// below it, or by the container's own idea of /dev/null.
#[tokio::test]
async fn cve_2025_52881_nothing_is_mounted_into_proc() {
    let node = Node::start().await;
    let image = image(&node, "proc-door", vec![Layer::new().symlink("door", "/proc")], "").await;
    let pod = node.run_pod(&node.pod("procfs")).await;
    let folder = node.dir().join("volume");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "mine").unwrap();
    let targets = [
        ("/proc", ""),
        ("/proc/self/attr", ""),
        ("/proc/sys", ""),
        ("/proc/sys/kernel/core_pattern", "file"),
        ("/proc/sysrq-trigger", "file"),
        ("/door/self/attr", ""),
        ("/door/sysrq-trigger", "file"),
        ("/bin/../proc/sys/kernel/core_pattern", "file"),
    ];
    for (number, (target, source)) in targets.into_iter().enumerate() {
        let mut config = build::container(&format!("c{number}"), &image, &["/bin/true"]);
        config.mounts = vec![volume(target, &folder.join(source), false)];
        let made = attempt(&node, &pod, config).await;
        assert!(made.is_err(), "a volume was mounted at {target}");
    }
    // What lxcfs shows in place of the kernel's own is allowed elsewhere, and so it is here.
    let mut config = build::container("lxcfs", &image, &["/bin/cat", "/proc/uptime"]);
    config.mounts = vec![volume("/proc/uptime", &folder.join("file"), true)];
    assert_eq!(node.output(&pod, config).await, "mine");
    // A /dev of the user's own, whose null is a link: masks must not become what it points to.
    for target in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/dev/zero", "/etc/passwd"] {
        let dev = node.dir().join(format!("dev-{}", build::unique()));
        std::fs::create_dir(&dev).unwrap();
        std::os::unix::fs::symlink(target, dev.join("null")).unwrap();
        let script = "head -c 16 /proc/kcore | wc -c; head -c 16 /proc/keys | wc -c";
        let mut config = build::shell(&format!("null-{}", build::unique()), &image, script);
        config.mounts = vec![volume("/dev", &dev, false)];
        masked(&mut config);
        if let Ok(id) = attempt(&node, &pod, config).await {
            let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
            let said = cofferdam_tests::harness::log::read(Path::new(&status.log_path));
            let said = cofferdam_tests::harness::log::joined(&said, "stdout");
            assert!(said.is_empty() || said == "0\n0\n", "with null -> {target}: {said}");
        }
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// CVE-2022-23648 and CVE-2023-25153: the runtime reads files of the image for itself. They are links to the host's,
/// devices, FIFOs that never answer, or endless.
#[tokio::test]
async fn cve_2022_23648_the_images_accounts_may_be_anything() {
    let node = Node::start().await;
    let outside = outside(&node, &[]);
    std::fs::write(outside.join("passwd"), "evil:x:4242:4242::/:/bin/sh\n").unwrap();
    let link = outside.join("passwd").display().to_string();
    let kinds = [
        ("fifo", Kind::Fifo),
        ("zero", Kind::Char { major: 1, minor: 5 }),
        ("folder", Kind::Dir),
        ("link", Kind::Symlink(link)),
        ("fd", Kind::Symlink("/proc/self/fd/0".into())),
        ("loop", Kind::Symlink("passwd".into())),
    ];
    let pod = node.run_pod(&node.pod("accounts")).await;
    for (name, kind) in kinds {
        let gone = Layer::new().whiteout("etc/passwd").whiteout("etc/group");
        let files = Layer::new().entry("etc/passwd", kind.clone(), 0o666).entry("etc/group", kind, 0o666);
        let image = image(&node, &format!("accounts-{name}"), vec![gone, files], "").await;
        let before = std::time::Instant::now();
        let mut config = build::shell(&format!("user-{name}"), &image, "id -u");
        build::security(&mut config).run_as_username = "evil".into();
        let refused = attempt(&node, &pod, config).await;
        assert!(refused.is_err(), "{name}: a user of the host's was found");
        let config =
            build::shell(&format!("plain-{name}"), &image, "echo $HOME; cat /proc/self/status | grep -c Uid");
        if let Ok(id) = attempt(&node, &pod, config).await {
            node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
        }
        assert!(before.elapsed() < Duration::from_secs(10), "{name} held the runtime up");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
