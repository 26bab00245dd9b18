//! While it runs: the runtime's own file and processes, descriptors, devices, what steers the host, its own files.

use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::layer::{Kind, Layer};
use cofferdam_tests::harness::Node;

use crate::{exec, image, masked, outside, sleeper, tree};

/// As whom the pause program runs.
const PAUSE_USER: i64 = 65535;

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
