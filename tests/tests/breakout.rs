//! Containers that try to get out while they are made and while they run. Each test names the CVE of another runtime
//! that it stands for: what worked there must not work here. Images that attack while they are unpacked: `hostile.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_proto::cri::{self, MountPropagation};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Config, Image};
use cofferdam_tests::fixtures::layer::{Kind, Layer};
use cofferdam_tests::harness::{Node, Pod};

/// As whom the pause program runs.
const PAUSE_USER: i64 = 65535;

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

/// CVE-2019-5736: a program that names /proc/self/exe as its interpreter runs the runtime's own file inside the
/// container; once that process has ended, its file was opened for writing and overwritten on the host.
#[tokio::test]
async fn cve_2019_5736_the_runtimes_file_cannot_be_written_from_inside() {
    // The shell of the image is the runtime itself, started as its server so that it stays.
    let hostile = Layer::new().whiteout("bin/sh").whiteout("bin/start");
    let script = Layer::new().entry("bin/sh", Kind::File(b"#!/proc/self/exe\n".to_vec()), 0o755);
    let Some(node) = Node::builder().start().await else { return };
    let image = image(&node, "interpreter", vec![hostile, script], "").await;
    let (pod, id) = sleeper(&node, &image).await;
    let said = exec(&node, &id, &["/bin/sh", "-namespace", "x", "-id", "x", "start"]).await;
    assert!(said.contains("shim.sock"), "the runtime's file did not run as the interpreter: {said}");
    // While any shim of the node runs, the kernel calls its file busy; nothing keeps its mode and its times from being
    // changed but the mount that it is seen through. Both are set to what they are, should it be possible.
    let script = "pid=$(cat /shim.pid); mode=$(stat -Lc %a /proc/$pid/exe); exec 3</proc/$pid/exe || exit 1; \
                  chmod $mode /proc/$pid/exe; chown 0:0 /proc/$pid/exe; kill -9 $pid; sleep 0.3; \
                  chmod $mode /proc/self/fd/3; if true 2>/dev/null >>/proc/self/fd/3; then echo open; fi";
    let said = exec(&node, &id, &["/bin/busybox", "ash", "-c", script]).await;
    let refused = said.lines().filter(|line| line.ends_with("Read-only file system")).count();
    assert_eq!((refused, said.lines().count()), (3, 3), "{said}");
    // The pause program is the same file, and a container that shares the pod's processes sees it.
    let mut config = node.pod("shared");
    let options = build::pod_security(&mut config).namespace_options.get_or_insert_default();
    options.pid = cri::NamespaceMode::Pod.into();
    let shared = node.run_pod(&config).await;
    let script = "mode=$(stat -Lc %a /proc/1/exe) || exit 1; chmod $mode /proc/1/exe 2>&1; \
                  if true >>/proc/1/exe; then echo open; fi";
    let mut main = build::container("main", &image, &["/bin/busybox", "ash", "-c", script]);
    let security = build::security(&mut main);
    security.run_as_user = Some(cri::Int64Value { value: PAUSE_USER });
    security.run_as_group = Some(cri::Int64Value { value: PAUSE_USER });
    security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    assert_eq!(node.output(&shared, main).await, "chmod: /proc/1/exe: Read-only file system\n");
    node.destroy(&shared).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// CVE-2016-9962: a process that was joining the container's namespaces could be traced, and its descriptors of the
/// host used, before it gave its privileges up and ran the program.
#[tokio::test]
async fn cve_2016_9962_a_joining_process_shows_nothing_of_itself() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("joining")).await;
    // Whatever process may be looked into says which program it runs: nobody but the image's own may. A long search for
    // the program, after privileges went and before it runs, gives time to look.
    let script = "while [ ! -e /tmp/end ]; do ls -l /proc/[0-9]*/exe 2>/dev/null; done | grep -v -e '-> /bin/busybox$' | cut -c 1,57- | sort -u >/tmp/seen; \
                  touch /tmp/done; sleep 100000";
    let mut config = build::shell("main", &image, &format!("PATH=/bin; {script}"));
    let path = format!("{}/bin", "/n:".repeat(30_000));
    config.envs = vec![cri::KeyValue { key: "PATH".into(), value: path.into_bytes() }];
    let id = node.run_container(&pod, config).await;
    for _ in 0..20 {
        exec(&node, &id, &["true"]).await;
    }
    exec(&node, &id, &["touch", "/tmp/end"]).await;
    let script = "PATH=/bin; while [ ! -e /tmp/done ]; do sleep 0.1; done; \
                  grep -c -v -e '->' /tmp/seen; grep -m 3 -e '->' /tmp/seen; true";
    let said = exec(&node, &id, &["/bin/sh", "-c", script]).await;
    let (hidden, open) = said.split_once('\n').unwrap();
    assert!(hidden.parse::<u32>().unwrap() > 0, "no process was met while it joined: {said}");
    assert_eq!(open, "", "the runtime's process could be looked into");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// CVE-2024-21626, first half: a descriptor of the host's file system leaked into the container.
#[tokio::test]
async fn cve_2024_21626_programs_get_their_three_streams_and_no_more() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("descriptors")).await;
    let list = "ls /proc/$$/fd; true";
    assert_eq!(node.output(&pod, build::shell("plain", &image, list)).await, "0\n1\n2\n");
    let mut terminal = build::shell("terminal", &image, list);
    terminal.tty = true;
    let said = node.output(&pod, terminal).await.replace('\r', "");
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
    let id = node.run_container(&pod, build::container("sleeper", &image, &["sleep", "100000"])).await;
    assert_eq!(exec(&node, &id, &["sh", "-c", list]).await, "0\n1\n2\n");
    assert_eq!(exec(&node, &id, &["ls", "/proc/1/fd"]).await, "0\n1\n2\n");
    let links =
        exec(&node, &id, &["sh", "-c", "for l in $$/cwd $$/root 1/cwd 1/root; do readlink /proc/$l; done"])
            .await;
    assert_eq!(links, "/\n/\n/\n/\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

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

/// What the kubelet masks and protects unless a pod asks for an unmasked /proc.
fn masked(config: &mut cri::ContainerConfig) {
    let own = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
    let security = build::security(config);
    security.masked_paths =
        own(&["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]);
    security.readonly_paths =
        own(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
}

/// CVE-2022-0492 (release_agent), CVE-2016-8867 and the plain ways: what steers the host cannot be written, whether
/// it is looked for in /proc, in /sys or in a mount of one's own.
#[tokio::test]
async fn cve_2022_0492_what_steers_the_host_cannot_be_written() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("steer")).await;
    // Opened for writing but never written: should it be possible, the machine that tests this lives on.
    let script = "for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe \
                    /proc/sys/kernel/hotplug /proc/sys/vm/panic_on_oom /proc/irq/default_smp_affinity \
                    /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled \
                    $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release -o -name devices.allow \
                      -o -name memory.limit_in_bytes -o -name cgroup.procs 2>/dev/null); do \
                    if true 2>/dev/null >>$file; then echo $file can be written; fi; done; \
                  mkdir /tmp/c; for how in 'cgroup -o memory' 'cgroup -o rdma' 'cgroup2 -o rw' 'proc -o rw' 'sysfs -o rw'; do \
                    mount -t $how none /tmp/c 2>/dev/null && echo $how mounted; done; \
                  mount -o remount,rw,bind /proc/sys 2>/dev/null && echo remounted; \
                  umount /proc/kcore 2>/dev/null && echo unmasked; umount -l /proc 2>/dev/null && echo bared; \
                  unshare -m true 2>/dev/null && echo unshared; \
                  head -c 16 /proc/kcore | wc -c; cat /proc/keys | wc -c; ls /sys/firmware /proc/scsi 2>/dev/null | wc -w; \
                  head -c 4 /dev/kmsg 2>/dev/null | wc -c";
    let mut config = build::shell("main", &image, script);
    masked(&mut config);
    let said = node.output(&pod, config).await;
    assert!(!said.contains("can be") && !said.contains("ed\n"), "{said}");
    assert!(said.starts_with("0\n0\n"), "{said}");
    // The same for an exec, whose privileges are put together by other code.
    let mut config = build::container("sleeper", &image, &["sleep", "100000"]);
    masked(&mut config);
    let id = node.run_container(&pod, config).await;
    let said = exec(&node, &id, &["sh", "-c", script]).await;
    assert!(!said.contains("can be") && !said.contains("ed\n"), "{said}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// GHSA-g54h-m393-cpwq of runc: the device rules did not deny what they do not name. A node of the host's disk, of its
/// memory and of its loop control can be made, but not opened.
#[tokio::test]
async fn ghsa_g54h_m393_cpwq_the_hosts_devices_cannot_be_opened() {
    use std::os::unix::fs::MetadataExt;
    let node = Node::start().await;
    let image = node.base_image().await;
    let (pod, id) = sleeper(&node, &image).await;
    let disk = std::fs::metadata("/").unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(disk), nix::sys::stat::minor(disk));
    let devices =
        [format!("b {major} {minor}"), "c 1 1".into(), "c 1 4".into(), "c 10 237".into(), "c 10 229".into()];
    for device in devices {
        let script = format!(
            "rm -f /tmp/d; mknod /tmp/d {device} || exit 1; head -c 1 /tmp/d >/dev/null 2>/tmp/why && echo read; \
             true 2>/dev/null >>/tmp/d && echo written; grep -o 'not permitted' /tmp/why"
        );
        let said = exec(&node, &id, &["sh", "-c", &script]).await;
        assert_eq!(said, "not permitted\n", "{device} in an exec");
        let config = build::shell(&format!("m-{}", build::unique()), &image, &script);
        assert_eq!(node.output(&pod, config).await, "not permitted\n", "{device} in a container");
    }
    // The rules themselves are the container's to see at most.
    let script = "for f in /sys/fs/cgroup/devices/devices.allow /sys/fs/cgroup/devices.allow; do \
                  [ -e $f ] && true 2>/dev/null >>$f && echo $f; done; true";
    assert_eq!(exec(&node, &id, &["sh", "-c", script]).await, "");
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

/// CVE-2018-15664 and CVE-2019-14271: a running container replaces its own files, and the runtime comes back to them.
#[tokio::test]
async fn cve_2019_14271_a_container_that_replaces_its_own_files_harms_itself_only() {
    let node = Node::start().await;
    let outside = outside(&node, &[]);
    let image = node.base_image().await;
    let (pod, id) = sleeper(&node, &image).await;
    let target = outside.display();
    let script = format!(
        "mv /etc/passwd /etc/p; mkfifo /etc/passwd; mv /etc/group /etc/g; ln -s {target}/canary /etc/group; \
         rm -f /etc/resolv.conf /etc/hosts /etc/hostname 2>/dev/null; mv /etc /etc.old 2>/dev/null; \
         ln -s {target} /etc 2>/dev/null; rm -rf /dev/ptmx /dev/null /dev/tty; mkfifo /dev/null; \
         ln -s /dev/zero /dev/ptmx; mkdir /dev/tty; ln -s {target} /tmp/out; echo done"
    );
    assert_eq!(exec(&node, &id, &["sh", "-c", &script]).await, "done\n");
    let before = std::time::Instant::now();
    assert_eq!(exec(&node, &id, &["echo", "alive"]).await, "alive\n");
    assert_eq!(tree(&outside), ["canary"]);
    assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "sings");
    // A second container of the pod gets the pod's files as they were.
    let script = "grep -c . /etc/hosts; head -c 4 /etc/hostname";
    let said = node.output(&pod, build::shell("second", &image, script)).await;
    assert!(said.ends_with("brea"), "{said}");
    node.cri.stop(&id, 0).await.unwrap();
    node.cri.remove(&id).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(10), "the runtime was held up");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
