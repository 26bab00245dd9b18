//! Pods in virtual machines, through the socket: real QEMU, real virtiofsd, Debian's kernel, under emulation.

use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::microvm::{PATIENCE, SECONDS, builder, image, monitor, own_release, pod_in};
use cofferdam_tests::harness::{Node, eventually, log};

async fn node(image: &Path) -> Option<Node> {
    builder(image).start().await
}

#[tokio::test]
async fn a_pod_has_a_kernel_of_its_own_and_everything_else_as_usual() {
    let Some(image) = image() else { return };
    let Some(node) = node(image.path()).await else { return };
    let base = node.base_image().await;
    let pod = pod_in(&node, "machine").await;
    let volume = node.dir().join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("key"), "one\n").unwrap();
    let mut config = build::shell("main", &base, "uname -r; cat /data/key; echo apart >&2; exec sleep 1000");
    config.mounts.push(cri::Mount {
        container_path: "/data".into(),
        host_path: volume.to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    });
    let main = node.run_container(&pod, config).await;
    let path = PathBuf::from(node.cri.status(&main).await.unwrap().log_path);
    let arrived = async || {
        let entries = log::read(&path);
        log::joined(&entries, "stdout").lines().count() == 2 && !log::joined(&entries, "stderr").is_empty()
    };
    assert!(eventually(PATIENCE, arrived).await, "{:?}", log::read(&path));
    let entries = log::read(&path);
    let output = log::joined(&entries, "stdout");
    let release = output.lines().next().unwrap();
    assert!(!release.is_empty() && release != own_release(), "{release:?} is the node's kernel");
    assert!(output.ends_with("one\n"), "{output:?}");
    assert_eq!(log::joined(&entries, "stderr"), "apart\n");

    // What is read-only is so on the node's side, what changes there is seen.
    std::fs::write(volume.join("key"), "two\n").unwrap();
    let script = "sleep 2; cat /data/key; echo x > /data/key; exit 3";
    let answer = node.cri.exec_sync(&main, &["sh", "-c", script], SECONDS).await.unwrap();
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"two\n"[..], 3), "{answer:?}");
    assert_eq!(std::fs::read_to_string(volume.join("key")).unwrap(), "two\n");

    // Its network is the pod's: the address that CNI gave, and the way to the node.
    let address = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap().ip;
    let answer = node.cri.exec_sync(&main, &["ip", "addr", "show", "eth0"], SECONDS).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains(&address), "{answer:?}");

    // A second container of the pod is in the same machine, and ends by itself.
    let (ended, entries) = node.run_to_end(&pod, build::shell("second", &base, "echo bye; exit 4")).await;
    assert_eq!((ended.exit_code, log::joined(&entries, "stdout").as_str()), (4, "bye\n"));

    node.cri.stop(&main, 0).await.unwrap();
    assert_eq!(node.cri.status(&main).await.unwrap().exit_code, 137);
    node.destroy(&pod).await;
    assert_eq!(monitor(&node, &pod), None);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_machine_outlives_the_daemon_and_its_own_death_is_the_pods() {
    let Some(image) = image() else { return };
    let Some(mut node) = node(image.path()).await else { return };
    let base = node.base_image().await;
    let pod = pod_in(&node, "crash").await;
    let main = node.run_container(&pod, build::shell("main", &base, "exec sleep 1000")).await;
    node.kill9();
    node.restart().await;
    let answer = node.cri.exec_sync(&main, &["uname", "-r"], SECONDS).await.unwrap();
    assert_ne!(String::from_utf8_lossy(&answer.stdout).trim(), own_release());

    let monitor = monitor(&node, &pod).expect("the machine has no monitor");
    let killed = Command::new("kill").args(["-9", &monitor.to_string()]).status().unwrap();
    assert!(killed.success());
    let ended = node.cri.wait_exited(&main, PATIENCE).await.unwrap();
    assert_eq!(ended.exit_code, 137);
    let not_ready = cri::PodSandboxState::SandboxNotready as i32;
    let fallen = async || node.cri.pod_status(&pod.id).await.is_ok_and(|status| status.state == not_ready);
    assert!(eventually(PATIENCE, fallen).await, "the pod is ready without its machine");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_a_machine_cannot_give_is_refused_in_words() {
    let Some(image) = image() else { return };
    let Some(node) = node(image.path()).await else { return };
    let mut config = node.pod("host-network");
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    let refused = node.cri.run_pod(&config, "vm").await.unwrap_err();
    assert!(refused.message().contains("the node's network"), "{refused:?}");
    assert!(node.cri.list_pods(None).await.unwrap().is_empty());
    node.assert_clean().await;
}

#[tokio::test]
async fn a_node_without_an_image_says_what_is_missing() {
    let lines = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";
    let nothing = "kernel = \"/no/such/kernel\"\nimage = \"/no/such/image\"\n";
    let builder = Node::builder().config("runtimes.vm", lines).config("runtimes.vm.vm", nothing);
    let Some(node) = builder.start().await else { return };
    let refused = node.cri.run_pod(&node.pod("vm"), "vm").await.unwrap_err();
    for part in ["/no/such/kernel", "/no/such/image", "build-image"] {
        assert!(refused.message().contains(part), "{part}: {refused:?}");
    }
    assert!(node.cri.list_pods(None).await.unwrap().is_empty());
    node.assert_clean().await;
}
