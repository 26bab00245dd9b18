//! CDI devices: what a vendor's file says is what the container has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam_proto::cri::{self, NamespaceMode};
use cofferdam_proto::nri::{self, Event};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::nri::{Answer, Behaviour, Plugin};
use cofferdam_tests::harness::{Node, Pod};
use tonic::Code;

/// A node that looks for CDI files below `folder`, in `low` and then in `high`.
async fn node(folder: &Path) -> Option<Node> {
    for name in ["low", "high"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let dir = folder.display();
    let folders = format!("spec_dirs = [\"{dir}/low\", \"{dir}/high\"]");
    Node::builder().config("cdi", &folders).config("nri", "socket = \"@DIR@/nri.sock\"\n").start().await
}

/// A device with everything in it that a file can name.
fn write_all(folder: &Path) {
    let hook = folder.join("hook.sh");
    fs::write(&hook, format!("#!/bin/sh\necho \"$1 $WORD\" >> {0}/ran; cat > {0}/state\n", folder.display()))
        .unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.join("library")).unwrap();
    fs::write(folder.join("library/file"), "from the vendor").unwrap();
    let dir = folder.display();
    let yaml = format!(
        "cdiVersion: \"0.7.0\"\nkind: vendor.com/thing\ncontainerEdits:\n  env: [\"ALL=things\", \"WORD=vendor\"]\n  \
         mounts:\n  - hostPath: {dir}/library\n    containerPath: /opt/library\n    options: [ro, nosuid, nodev, bind]\n\
         devices:\n- name: zero\n  containerEdits:\n    env: [\"ONE=zero\"]\n    additionalGids: [0, 4711]\n    \
         deviceNodes:\n    - path: /dev/thing\n      hostPath: /dev/zero\n    - path: /dev/other\n      hostPath: /dev/fuse\n      permissions: r\n    hooks:\n    \
         - hookName: createContainer\n      path: {dir}/hook.sh\n      args: [hook.sh, created]\n      env: [\"WORD=x\"]\n    \
         - hookName: poststop\n      path: {dir}/hook.sh\n      args: [hook.sh, stopped]\n      env: [\"WORD=y\"]\n\
         - name: nothing\n  containerEdits:\n    env: [\"TWO=nothing\"]\n\
         - name: quiet\n  containerEdits:\n    deviceNodes:\n    - path: /dev/thing\n      hostPath: /dev/zero\n"
    );
    fs::write(folder.join("low/vendor.yaml"), yaml).unwrap();
}

fn asking(name: &str, image: &str, device: &str, script: &str) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, script);
    config.cdi_devices = vec![cri::CdiDevice { name: device.into() }];
    config
}

async fn refused(node: &Node, pod: &Pod, config: cri::ContainerConfig) -> tonic::Status {
    node.cri.create(&pod.id, &pod.config, config).await.expect_err("it was created")
}

#[tokio::test]
async fn a_device_brings_all_that_its_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let Some(node) = node(folder.path()).await else { return };
    write_all(folder.path());
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("cdi")).await;
    let script = "echo $ALL $ONE $TWO $WORD; id -G; head -c 3 /dev/thing | wc -c; stat -c %t:%T /dev/thing; \
                  cat /opt/library/file; echo; (echo x > /opt/library/new) 2>/dev/null || echo read-only; \
                  (: < /dev/other) && echo opened; (: > /dev/other) 2>/dev/null || echo write refused";
    let mut config = asking("main", &image, "vendor.com/thing=zero", script);
    config
        .annotations
        .insert("cdi.k8s.io/more".into(), "vendor.com/thing=nothing,vendor.com/thing=zero".into());
    config.envs = vec![cri::KeyValue { key: "WORD".into(), value: "user".into() }];
    let id = node.run_container(&pod, config).await;
    let status = node.cri.wait_exited(&id, std::time::Duration::from_secs(15)).await.unwrap();
    let log = cofferdam_tests::harness::log::read(Path::new(&status.log_path));
    let output = cofferdam_tests::harness::log::joined(&log, "stdout");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines,
        [
            "things zero nothing vendor",
            "0 4711",
            "3",
            "1:5",
            "from the vendor",
            "read-only",
            "opened",
            "write refused"
        ]
    );
    let ran = || fs::read_to_string(folder.path().join("ran")).unwrap();
    assert!(ran().starts_with("created x\n"), "{}", ran());
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("state")).unwrap()).unwrap();
    assert_eq!(state["id"], serde_json::json!(id));
    node.cri.remove(&id).await.unwrap();
    assert_eq!(ran(), "created x\nstopped y\n");
    // Without a request nothing of it is there.
    let plain =
        node.output(&pod, build::shell("plain", &image, "ls /dev/thing /opt 2>/dev/null; echo $ALL.")).await;
    assert_eq!(plain, ".\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn files_are_read_when_they_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(node) = node(folder.path()).await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("files")).await;
    let write = |place: &str, value: &str| {
        let text = format!(
            r#"{{"cdiVersion":"0.3.0","kind":"v.com/c","devices":[{{"name":"d","containerEdits":{{"env":["V={value}"]}}}}]}}"#
        );
        fs::write(folder.path().join(place), text).unwrap();
    };
    let ask = |name: &str| asking(name, &image, "v.com/c=d", "echo $V");
    let status = refused(&node, &pod, ask("a")).await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    write("low/a.json", "low");
    assert_eq!(node.output(&pod, ask("b")).await, "low\n");
    write("high/b.json", "high");
    assert_eq!(node.output(&pod, ask("c")).await, "high\n");
    write("high/c.json", "again");
    let status = refused(&node, &pod, ask("d")).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("high/b.json") && status.message().contains("high/c.json"), "{status}");
    fs::remove_file(folder.path().join("high/c.json")).unwrap();
    fs::write(folder.path().join("high/b.json"), "{").unwrap();
    assert_eq!(node.output(&pod, ask("e")).await, "low\n", "a broken file takes nothing but its own away");
    fs::remove_file(folder.path().join("low/a.json")).unwrap();
    let status = refused(&node, &pod, ask("f")).await;
    assert!(status.message().contains("high/b.json cannot be used"), "{status}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_given_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(node) = node(folder.path()).await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let text = r#"{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[
        {"name":"rdt","containerEdits":{"intelRdt":{"closID":"a"}}},
        {"name":"net","containerEdits":{"netDevices":[{"hostInterfaceName":"eth9","name":"net0"}]}},
        {"name":"absent","containerEdits":{"deviceNodes":[{"path":"/dev/absent"}]}},
        {"name":"file","containerEdits":{"deviceNodes":[{"path":"/dev/x","hostPath":"/etc/passwd"}]}},
        {"name":"other","containerEdits":{"deviceNodes":[{"path":"/dev/null","type":"b"}]}}]}"#;
    fs::write(folder.path().join("low/a.json"), text).unwrap();
    for (device, code) in [
        ("v.com/c=rdt", Code::Unimplemented),
        ("v.com/c=net", Code::Unimplemented),
        ("v.com/c=absent", Code::FailedPrecondition),
        ("v.com/c=file", Code::FailedPrecondition),
        ("v.com/c=other", Code::FailedPrecondition),
        ("v.com/c=unknown", Code::NotFound),
        ("v.com/other=rdt", Code::NotFound),
        ("nonsense", Code::InvalidArgument),
        ("v.com/c=../x", Code::InvalidArgument),
    ] {
        let status = refused(&node, &pod, asking("main", &image, device, "true")).await;
        assert_eq!(status.code(), code, "{device}: {status}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_has_devices_too() {
    let folder = tempfile::tempdir().unwrap();
    let Some(node) = node(folder.path()).await else { return };
    write_all(folder.path());
    let image = node.base_image().await;
    let mut config = node.pod("users");
    let ids = vec![cri::IdMapping { host_id: 300_000, container_id: 0, length: 65_536 }];
    let options = build::pod_security(&mut config).namespace_options.get_or_insert_default();
    let mode = NamespaceMode::Pod.into();
    options.userns_options = Some(cri::UserNamespace { mode, uids: ids.clone(), gids: ids });
    let pod = node.run_pod(&config).await;
    let script = "head -c 3 /dev/thing | wc -c; stat -c %u:%g /opt/library/file; cat /opt/library/file; \
                  (echo x > /opt/library/file) 2>/dev/null || echo -read-only";
    let output = node.output(&pod, asking("main", &image, "vendor.com/thing=quiet", script)).await;
    assert_eq!(output, "3\n0:0\nfrom the vendor-read-only\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_gives_a_container_devices() {
    let folder = tempfile::tempdir().unwrap();
    let Some(node) = node(folder.path()).await else { return };
    write_all(folder.path());
    let image = node.base_image().await;
    let giving = |name: &'static str| {
        Behaviour::new("10", "giver", &[Event::CreateContainer]).on("CreateContainer", move |_| {
            let cdi_devices = vec![nri::CdiDevice { name: name.into() }];
            Answer::adjust(nri::ContainerAdjustment { cdi_devices, ..Default::default() })
        })
    };
    let socket = node.dir().join("nri.sock");
    let pod = node.run_pod(&node.pod("plugin")).await;
    let plugin = Plugin::connect(&socket, giving("vendor.com/thing=nothing")).await.unwrap();
    let config = build::shell("given", &image, "echo $ALL $TWO; cat /opt/library/file");
    assert_eq!(node.output(&pod, config).await, "things nothing\nfrom the vendor");
    drop(plugin);
    let _plugin = Plugin::connect(&socket, giving("vendor.com/thing=unknown")).await.unwrap();
    let status = refused(&node, &pod, build::shell("refused", &image, "true")).await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
