//! NRI plugins that behave: what they hear, what they may change, and in which order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri::ContainerState;
use cofferdam_proto::nri::{self, Event};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::nri::{ALL, Answer, Behaviour, Plugin};
use cofferdam_tests::harness::{Node, eventually};
use prost::Message;

const SOCKET: &str = "socket = \"@DIR@/nri.sock\"\n";

fn socket(node: &Node) -> PathBuf {
    node.dir().join("nri.sock")
}

fn variable(key: &str, value: &str) -> nri::ContainerAdjustment {
    let entry = nri::KeyValue { key: key.into(), value: value.into() };
    nri::ContainerAdjustment { env: vec![entry], ..Default::default() }
}

fn shares(id: &str, value: u64) -> nri::ContainerUpdate {
    let cpu = nri::LinuxCpu { shares: Some(nri::OptionalUInt64 { value }), ..Default::default() };
    let resources = nri::LinuxResources { cpu: Some(cpu), ..Default::default() };
    let linux = Some(nri::LinuxContainerUpdate { resources: Some(resources) });
    nri::ContainerUpdate { container_id: id.into(), linux, ignore_failure: false }
}

/// The CPU shares in the cgroup of a container's first process.
async fn shares_of(node: &Node, id: &str) -> String {
    let script = "cat /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/cpu.weight";
    let answer = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_plugin_hears_the_whole_life_in_order_and_each_stop_once() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let plugin = Plugin::connect(&socket(&node), Behaviour::new("10", "listener", ALL)).await.unwrap();
    let pod = node.run_pod(&node.pod("life")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "exit 3")).await;
    node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
    let stopped = || plugin.methods(&id).iter().any(|method| method == "StopContainer");
    assert!(eventually(Duration::from_secs(5), async || stopped()).await, "nobody told of the exit");
    node.cri.stop(&id, 0).await.unwrap();
    node.cri.remove(&id).await.unwrap();
    for _ in 0..2 {
        node.cri.stop_pod(&pod.id).await.unwrap();
    }
    node.cri.remove_pod(&pod.id).await.unwrap();
    let life = ["CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"];
    assert_eq!(plugin.methods(&id), [&life[..], &["StopContainer", "RemoveContainer"]].concat());
    assert_eq!(plugin.methods(&pod.id), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    let heard = plugin.heard();
    let subject = |method: &str| heard.iter().find(|heard| heard.method == method).unwrap().subject();
    let run = subject("RunPodSandbox").pod.unwrap();
    let metadata = pod.config.metadata.clone().unwrap();
    assert_eq!((run.name, run.namespace, run.uid), (metadata.name, metadata.namespace, metadata.uid));
    assert!(run.pid > 0 && run.ips.len() == 1 && run.labels["app"] == "life", "{:?}", run.ips);
    let created = subject("CreateContainer").container.unwrap();
    assert_eq!((created.name.as_str(), created.args[2].as_str()), ("main", "exit 3"));
    assert!(created.mounts.iter().any(|mount| mount.destination == "/proc"), "{:?}", created.mounts);
    let stop = subject("StopContainer").container.unwrap();
    assert_eq!((stop.exit_code, stop.state()), (3, nri::ContainerState::ContainerStopped));
    assert!(subject("PostStartContainer").container.unwrap().pid > 0);
    drop(plugin);
    node.assert_clean().await;
}

fn everything(dir: &Path) -> nri::ContainerAdjustment {
    let hook = nri::Hook {
        path: "/bin/sh".into(),
        args: vec!["sh".into(), "-c".into(), format!("cat > {}/hook", dir.display())],
        ..Default::default()
    };
    nri::ContainerAdjustment {
        mounts: vec![nri::Mount {
            destination: "/given".into(),
            r#type: "bind".into(),
            source: dir.display().to_string(),
            options: vec!["bind".into(), "ro".into()],
        }],
        hooks: Some(nri::Hooks { create_runtime: vec![hook], ..Default::default() }),
        rlimits: vec![nri::PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 777, soft: 555 }],
        annotations: [("added".to_owned(), "by a plugin".to_owned())].into(),
        linux: Some(nri::LinuxContainerAdjustment {
            devices: vec![nri::LinuxDevice {
                path: "/dev/given".into(),
                r#type: "c".into(),
                major: 1,
                minor: 5,
                file_mode: Some(nri::OptionalFileMode { value: 0o666 }),
                ..Default::default()
            }],
            resources: shares("", 333).linux.unwrap().resources,
            oom_score_adj: Some(nri::OptionalInt { value: 321 }),
            cgroups_path: format!("/{}/moved", dir.file_name().unwrap().display()),
            sysctl: [("net.core.somaxconn".to_owned(), "99".to_owned())].into(),
            ..Default::default()
        }),
        ..variable("GIVEN", "yes")
    }
}

#[tokio::test]
async fn adjustments_are_there_in_the_container() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let adjust = everything(node.dir());
    let giving = Behaviour::new("10", "giver", &[Event::CreateContainer])
        .on("CreateContainer", move |_| Answer::adjust(adjust.clone()));
    let _plugin = Plugin::connect(&socket(&node), giving).await.unwrap();
    let pod = node.run_pod(&node.pod("adjusted")).await;
    let script = "echo $GIVEN; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; head -c 3 /dev/given | wc -c; \
                  cat /proc/sys/net/core/somaxconn; grep -o '/moved$' /proc/self/cgroup | sort -u; \
                  touch /given/x 2>&1 | grep -o 'Read-only'; exec sleep 1000";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    let status = node.cri.status(&id).await.unwrap();
    let log = || cofferdam_tests::harness::log::read(Path::new(&status.log_path));
    assert!(eventually(Duration::from_secs(5), async || log().len() >= 8).await, "{:?}", log());
    let text = cofferdam_tests::harness::log::joined(&log(), "stdout");
    assert_eq!(text, "yes\n555\n777\n321\n3\n99\n/moved\nRead-only\n");
    let shares = shares_of(&node, &id).await;
    // Of v2, the weight that stands for these shares.
    assert!(["333", "12", "13"].contains(&shares.as_str()), "{shares}");
    let state = std::fs::read_to_string(node.dir().join("hook")).unwrap();
    assert!(state.contains(&id), "the hook was not given the container's state: {state}");
    node.destroy(&pod).await;
    std::fs::remove_file(node.dir().join("hook")).unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_indices_and_see_what_is_set() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let setting = |index: &str, key: &'static str| {
        Behaviour::new(index, "setter", &[Event::CreateContainer])
            .on("CreateContainer", move |_| Answer::adjust(variable(key, "1")))
    };
    let late = Plugin::connect(&socket(&node), setting("90", "LATE")).await.unwrap();
    let early = Plugin::connect(&socket(&node), setting("05", "EARLY")).await.unwrap();
    let pod = node.run_pod(&node.pod("order")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "exec sleep 1000")).await;
    let seen = |plugin: &Plugin| {
        let heard = plugin.heard().into_iter().find(|heard| heard.method == "CreateContainer").unwrap();
        heard.subject().container.unwrap().env
    };
    assert!(seen(&late).contains(&"EARLY=1".to_owned()) && !seen(&early).contains(&"LATE=1".to_owned()));
    let answer = node.cri.exec_sync(&id, &["sh", "-c", "echo $EARLY$LATE"], 10).await.unwrap();
    assert_eq!(answer.stdout, b"11\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn other_containers_are_updated_and_evicted() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("updates")).await;
    let first = node.run_container(&pod, build::shell("first", &image, "exec sleep 1000")).await;
    let victim = node.run_container(&pod, build::shell("victim", &image, "exec sleep 1000")).await;
    let (other, evicted) = (first.clone(), victim.clone());
    let busy = Behaviour::new("10", "busy", &[Event::CreateContainer, Event::StopContainer]).on(
        "CreateContainer",
        move |_| {
            let eviction = nri::ContainerEviction { container_id: evicted.clone(), reason: "room".into() };
            Answer::message(&nri::CreateContainerResponse {
                update: vec![shares(&other, 444)],
                evict: vec![eviction],
                ..Default::default()
            })
        },
    );
    let plugin = Plugin::connect(&socket(&node), busy).await.unwrap();
    node.run_container(&pod, build::shell("second", &image, "exec sleep 1000")).await;
    let weights = |shares: &str, v2: &[&str]| [&[shares][..], v2].concat().iter().map(|w| (*w).to_owned()).collect();
    let expected: Vec<String> = weights("444", &["17", "16"]);
    assert!(expected.contains(&shares_of(&node, &first).await));
    assert_eq!(node.cri.status(&victim).await.unwrap().state(), ContainerState::ContainerExited);
    assert_eq!(plugin.methods(&victim), ["StopContainer"]);
    let unknown = shares("no-such-container", 5);
    let request =
        nri::UpdateContainersRequest { update: vec![shares(&first, 555), unknown.clone()], ..Default::default() };
    let answer = plugin.call("UpdateContainers", &request).await.unwrap();
    let answer = nri::UpdateContainersResponse::decode(answer.as_slice()).unwrap();
    assert_eq!(answer.failed, [unknown]);
    let expected: Vec<String> = weights("555", &["21", "20"]);
    assert!(expected.contains(&shares_of(&node, &first).await));
    let evict = vec![nri::ContainerEviction { container_id: first.clone(), reason: "room".into() }];
    let request = nri::UpdateContainersRequest { evict, ..Default::default() };
    plugin.call("UpdateContainers", &request).await.unwrap();
    assert_eq!(node.cri.status(&first).await.unwrap().state(), ContainerState::ContainerExited);
    node.destroy(&pod).await;
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_is_synchronized_with_what_there_is_also_after_the_daemons_death() {
    let Some(mut node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("synchronized")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "exec sleep 1000")).await;
    let over = node.run_container(&pod, build::shell("over", &image, "exit 0")).await;
    node.cri.wait_exited(&over, Duration::from_secs(10)).await.unwrap();
    for round in 0..2 {
        let update = Answer::message(&nri::SynchronizeResponse { update: vec![shares(&id, 222)], more: false });
        let behaviour = Behaviour::new("10", "late", ALL).on("Synchronize", move |_| update.clone());
        let plugin = Plugin::connect(&socket(&node), behaviour).await.unwrap();
        let heard = plugin.heard().into_iter().find(|heard| heard.method == "Synchronize").unwrap();
        let request: nri::SynchronizeRequest = heard.decode();
        assert_eq!(request.pods.iter().map(|p| &p.id).collect::<Vec<_>>(), [&pod.id]);
        let containers: Vec<_> = request.containers.iter().map(|c| (&c.id, c.state())).collect();
        assert_eq!(containers, [(&id, nri::ContainerState::ContainerRunning)]);
        assert!(["222", "9", "8"].contains(&shares_of(&node, &id).await.as_str()));
        if round == 0 {
            node.kill9();
            assert!(eventually(Duration::from_secs(5), async || plugin.is_closed()).await);
            node.restart().await;
        } else {
            node.destroy(&pod).await;
            assert_eq!(plugin.methods(&id), ["StopContainer", "RemoveContainer"]);
            assert_eq!(plugin.methods(&pod.id), ["StopPodSandbox", "RemovePodSandbox"]);
        }
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_made_while_a_plugin_is_synchronized_is_not_lost() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("gap")).await;
    let slow = nri::SynchronizeResponse::default().encode_to_vec();
    let behaviour = Behaviour::new("10", "slow", ALL)
        .on("Synchronize", move |_| Answer::Late(Duration::from_secs(1), slow.clone()));
    let (path, config) = (socket(&node), build::shell("during", &image, "exec sleep 1000"));
    let connecting = tokio::spawn(async move { Plugin::connect(&path, behaviour).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let id = node.run_container(&pod, config).await;
    let plugin = connecting.await.unwrap().unwrap();
    let heard = plugin.heard().into_iter().find(|heard| heard.method == "Synchronize").unwrap();
    let synchronized = heard.decode::<nri::SynchronizeRequest>().containers.iter().any(|c| c.id == id);
    let told = plugin.methods(&id).iter().any(|method| method == "CreateContainer");
    assert!(synchronized != told, "synchronized: {synchronized}, told: {told}");
    node.destroy(&pod).await;
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn more_than_a_message_holds_is_synchronized_in_parts() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let mut pods = Vec::new();
    for number in 0..4 {
        let mut config = node.pod(&format!("heavy{number}"));
        config.annotations.insert("example.com/weight".into(), "x".repeat(1_600_000));
        pods.push(node.run_pod(&config).await);
    }
    let plugin = Plugin::connect(&socket(&node), Behaviour::new("10", "patient", ALL)).await.unwrap();
    let complete = || plugin.heard().iter().any(|h| {
        h.method == "Synchronize" && !h.decode::<nri::SynchronizeRequest>().more
    });
    assert!(eventually(Duration::from_secs(10), async || complete()).await, "the last part never comes");
    let heard = plugin.heard();
    let parts: Vec<nri::SynchronizeRequest> =
        heard.iter().filter(|h| h.method == "Synchronize").map(|h| h.decode()).collect();
    assert!(parts.len() > 1, "all in one message");
    let mut seen: Vec<String> = parts.into_iter().flat_map(|part| part.pods).map(|pod| pod.id).collect();
    let mut expected: Vec<String> = pods.iter().map(|pod| pod.id.clone()).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    for pod in &pods {
        node.destroy(pod).await;
        let last = || plugin.methods(&pod.id).last().cloned();
        assert_eq!(last().as_deref(), Some("RemovePodSandbox"), "it was not taken in");
    }
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_of_an_older_version_hears_by_state_change() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let unimplemented = |_: &[u8]| Answer::Refuse(12, "no such method".into());
    let old = Behaviour::new("10", "old", ALL)
        .on("RunPodSandbox", unimplemented)
        .on("StopPodSandbox", unimplemented)
        .on("RemovePodSandbox", unimplemented);
    let plugin = Plugin::connect(&socket(&node), old).await.unwrap();
    let pod = node.run_pod(&node.pod("old")).await;
    node.destroy(&pod).await;
    assert_eq!(plugin.methods(&pod.id), ["RunPodSandbox", "StateChange", "StateChange", "StateChange"]);
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn plugins_of_the_folder_are_started_configured_and_ended_with_the_daemon() {
    let lines = "plugin_path = \"@DIR@/plugins\"\nplugin_config_path = \"@DIR@/conf.d\"\n";
    let Some(mut node) = Node::builder().config("nri", lines).start().await else { return };
    let image = node.base_image().await;
    let (plugins, conf) = (node.dir().join("plugins"), node.dir().join("conf.d"));
    std::fs::create_dir_all(&plugins).unwrap();
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_nri-plugin"), plugins.join("07-folder")).unwrap();
    let told = node.dir().join("told");
    std::fs::write(conf.join("folder.conf"), told.display().to_string()).unwrap();
    // The ones that a daemon left, if it left any.
    let pid = || -> Option<u32> {
        let text = std::fs::read_to_string(&told).ok()?;
        text.lines().last()?.rsplit(' ').next()?.parse().ok()
    };
    let alive = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    node.restart().await;
    let first = pid().expect("the plugin was not configured");
    let text = std::fs::read_to_string(&told).unwrap();
    assert_eq!(text, format!("configured 07 folder 3 cofferdam {first}\n"));
    let pod = node.run_pod(&node.pod("folder")).await;
    let container = build::shell("main", &image, "echo $FOLDER");
    assert_eq!(node.output(&pod, container).await, "yes\n");
    node.kill9();
    assert!(eventually(Duration::from_secs(5), async || !alive(first)).await, "it outlives a killed daemon");
    node.restart().await;
    let second = pid().unwrap();
    assert!(second != first && alive(second));
    node.stop().await;
    assert!(eventually(Duration::from_secs(5), async || !alive(second)).await, "it outlives the daemon");
    std::fs::remove_dir_all(&plugins).unwrap();
    node.restart().await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}
