//! What a container's process gets: arguments, environment, folder, user, files, devices.

use cofferdam_proto::cri::{self, MountPropagation};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::harness::{Node, Pod};

async fn opinionated(node: &Node) -> (String, Pod) {
    let image = node.registry.push("opinionated", "1", &catalog::opinionated().unwrap());
    node.cri.pull(&image, None).await.unwrap();
    (image, node.run_pod(&node.pod("process")).await)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn the_images_configuration_is_inherited_and_overridden() {
    let node = Node::start().await;
    let (image, pod) = opinionated(&node).await;
    let said = node.output(&pod, build::container("plain", &image, &[])).await;
    assert_eq!(said, "args=one two cwd=/home/web user=1000:1000 color=teal\n");

    let mut args = build::container("args", &image, &[]);
    args.args = strings(&["three"]);
    assert!(node.output(&pod, args).await.starts_with("args=three cwd"), "args replace cmd, not entrypoint");

    let mut command = build::container("command", &image, &["/bin/echo"]);
    assert_eq!(node.output(&pod, command.clone()).await, "\n", "a command drops the image's cmd");
    command.metadata = Some(cri::ContainerMetadata { name: "both".into(), attempt: 0 });
    command.log_path = "both/0.log".into();
    command.args = strings(&["a", "b c"]);
    assert_eq!(node.output(&pod, command).await, "a b c\n");

    let mut changed = build::container("changed", &image, &[]);
    changed.envs = vec![cri::KeyValue { key: "COLOR".into(), value: b"red".to_vec() }];
    changed.working_dir = "/made/for/this".into();
    build::security(&mut changed).run_as_user = Some(cri::Int64Value { value: 42 });
    let said = node.output(&pod, changed).await;
    assert_eq!(said, "args=one two cwd=/made/for/this user=42:0 color=red\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn users_come_by_name_and_bring_their_groups() {
    let node = Node::start().await;
    let (image, pod) = opinionated(&node).await;
    let script = "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '; echo $HOME";
    let mut by_name = build::shell("name", &image, script);
    build::security(&mut by_name).run_as_username = "worker".into();
    assert_eq!(node.output(&pod, by_name).await, "1001\n2000\n2000 3000 3001 /home/worker\n");

    let mut by_id = build::shell("id", &image, script);
    let security = build::security(&mut by_id);
    security.run_as_user = Some(cri::Int64Value { value: 1000 });
    security.run_as_group = Some(cri::Int64Value { value: 77 });
    security.supplemental_groups = vec![88];
    let said = node.output(&pod, by_id).await;
    assert!(said.starts_with("1000\n77\n") && said.contains("88"), "{said}");

    let mut nobody = build::shell("unknown", &image, script);
    build::security(&mut nobody).run_as_username = "no-such-user".into();
    let refused = match node.cri.create(&pod.id, &pod.config, nobody).await {
        Err(refused) => refused,
        Ok(id) => node.cri.start(&id).await.unwrap_err(),
    };
    assert!(
        refused.message().contains("no-such-user") || refused.message().contains("no users"),
        "{refused:?}"
    );
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn mounts_are_there_read_only_where_asked_and_propagate() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("mounts")).await;
    let host = node.dir().join("shared");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let mount = |to: &str, from: &std::path::Path, readonly| cri::Mount {
        container_path: to.into(),
        host_path: from.display().to_string(),
        readonly,
        propagation: MountPropagation::PropagationPrivate.into(),
        ..Default::default()
    };
    let script = "cat /mnt/ro/file /single; echo written > /mnt/rw/back; \
                  echo x > /mnt/ro/no 2>/dev/null || echo refused; cat /made/by/daemon/probe 2>/dev/null; \
                  [ -d /made/by/daemon ] && echo made";
    let mut config = build::shell("main", &image, script);
    config.mounts = vec![
        mount("/mnt/ro", &host, true),
        mount("/mnt/rw", &host, false),
        mount("/single", &host.join("file"), true),
        // The kubelet relies on it: a host path that is not there becomes a folder.
        mount("/made/by/daemon", &node.dir().join("new-folder"), false),
    ];
    let (status, entries) = node.run_to_end(&pod, config).await;
    let said = cofferdam_tests::harness::log::joined(&entries, "stdout");
    assert_eq!(said, "from the host\nfrom the host\nrefused\nmade\n");
    assert_eq!(std::fs::read_to_string(host.join("back")).unwrap(), "written\n");
    assert_eq!(status.mounts.len(), 4, "{:?}", status.mounts);
    assert!(status.mounts.iter().any(|mount| mount.container_path == "/mnt/ro" && mount.readonly));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_read_only_root_is() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("readonly")).await;
    let script = "touch /x 2>/dev/null && echo wrote || echo refused; touch /dev/shm/x && echo shm";
    let mut config = build::shell("main", &image, script);
    build::security(&mut config).readonly_rootfs = true;
    assert_eq!(node.output(&pod, config).await, "refused\nshm\n");
    let writable = build::shell("writable", &image, "touch /x && echo wrote");
    assert_eq!(node.output(&pod, writable).await, "wrote\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn devices_are_the_default_ones_and_those_asked_for() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("devices")).await;
    let script = "ls /dev | tr '\\n' ' '; head -c 4 /dev/zero | wc -c; head -c 4 /dev/extra | wc -c; \
                  mknod /tmp/mem c 1 1 && head -c1 /tmp/mem >/dev/null 2>&1 && echo leaked || echo fenced";
    let mut config = build::shell("main", &image, script);
    config.devices = vec![cri::Device {
        container_path: "/dev/extra".into(),
        host_path: "/dev/zero".into(),
        permissions: "r".into(),
    }];
    let said = node.output(&pod, config).await;
    for name in ["null ", "zero ", "full ", "random ", "urandom ", "tty ", "fd ", "ptmx ", "shm ", "extra "] {
        assert!(said.contains(name), "/dev lacks {name}: {said}");
    }
    assert!(!said.contains("kvm") && said.ends_with("4\n4\nfenced\n"), "{said}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn capabilities_and_masked_paths_follow_the_request() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("caps")).await;
    let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status | awk '{print $2}'; \
                  cat /proc/cpuinfo | wc -c; echo 1 > /proc/sys/kernel/domainname 2>/dev/null || echo fixed";
    let mut config = build::shell("main", &image, script);
    let security = build::security(&mut config);
    security.capabilities = Some(cri::Capability {
        add_capabilities: strings(&["NET_ADMIN"]),
        drop_capabilities: strings(&["ALL"]),
        ..Default::default()
    });
    security.no_new_privs = true;
    security.masked_paths = strings(&["/proc/cpuinfo"]);
    security.readonly_paths = strings(&["/proc/sys"]);
    let said = node.output(&pod, config).await;
    assert_eq!(said, "0000000000001000\n1\n0\nfixed\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_broken_pipe_ends_the_writer() {
    let node = Node::start().await;
    let (image, pod) = opinionated(&node).await;
    // 141: ended by SIGPIPE, as a shell tells it.
    let script = "(yes; echo left with $? > /tmp/code) | head -n 1; cat /tmp/code";
    let said = node.output(&pod, build::container("pipe", &image, &["/bin/sh", "-c", script])).await;
    assert_eq!(said, "y\nleft with 141\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_tty_is_a_tty() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("tty")).await;
    let mut config = build::shell("main", &image, "test -t 0 && test -t 1 && test -t 2 && echo terminal");
    config.tty = true;
    config.stdin = true;
    let said = node.output(&pod, config).await;
    assert_eq!(said.trim_end(), "terminal", "{said:?}");
    let none = node.output(&pod, build::shell("none", &image, "test -t 1 || echo none; cat")).await;
    assert_eq!(none, "none\n", "stdin that nobody asked for is at its end");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
