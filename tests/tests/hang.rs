//! Shims that hang, die or cannot be reached, at every phase: the pod goes away all the same, soon, and nobody else waits.

use std::time::{Duration, Instant};

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::shim::{FakeShim, Mode};
use cofferdam_tests::harness::{Node, Pod, eventually, shim};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

/// What a pod may take beyond its grace period, on a busy machine and in a debug build.
const SOON: Duration = Duration::from_secs(15);
const SLEEPER: &[&str] = &["sleep", "31337"];

/// The container's first process, in the host's numbering.
async fn pid_of(node: &Node, container: &str) -> u32 {
    let request = cri::ContainerStatusRequest { container_id: container.into(), verbose: true };
    let answer = node.cri.runtime.clone().container_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    u32::try_from(info["pid"].as_u64().unwrap()).unwrap()
}

/// A pod that must not notice anything.
struct Bystander {
    pod: Pod,
    container: String,
}

impl Bystander {
    async fn start(node: &Node, image: &str) -> Self {
        let pod = node.run_pod(&node.pod("bystander")).await;
        let container = node.run_container(&pod, build::container("main", image, SLEEPER)).await;
        Self { pod, container }
    }

    async fn is_well(&self, node: &Node) {
        let since = Instant::now();
        let answer = node.cri.exec_sync(&self.container, &["echo", "well"], 10).await.unwrap();
        assert_eq!(answer.stdout, b"well\n");
        assert!(node.cri.pod_ready(&self.pod.id).await);
        assert!(since.elapsed() < Duration::from_secs(8), "another pod waits: {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_container_whose_shim_hangs_is_asked_to_stop_and_its_true_exit_is_told() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let other = Bystander::start(&node, &image).await;
    let pod = node.run_pod(&node.pod("hung")).await;
    let script = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    let hung = shim::hang(&id);

    let since = Instant::now();
    let refused = node.cri.exec_sync(&id, &["true"], 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert!(since.elapsed() < Duration::from_secs(8), "exec in it: {:?}", since.elapsed());
    let stats = cri::ContainerStatsRequest { container_id: id.clone() };
    node.cri.runtime.clone().container_stats(stats).await.unwrap();
    other.is_well(&node).await;

    let since = Instant::now();
    node.cri.stop(&id, 30).await.unwrap();
    assert!(since.elapsed() < SOON, "the stop signal did not arrive: {:?}", since.elapsed());
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert!(status.message.contains("shim did not answer"), "{:?}", status.message);
    assert!(
        shim::ends(hung.as_raw().unsigned_abs(), Duration::from_secs(5)).await,
        "the shim is still there"
    );
    other.is_well(&node).await;
    node.destroy(&pod).await;
    node.destroy(&other.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_exit_is_seen_although_the_shim_hangs() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("unseen")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "sleep 2; exit 5")).await;
    shim::hang(&id);
    let status = node.cri.wait_exited(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5));
    assert_eq!(status.reason, "Error");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_all_of_whose_shims_hang_is_gone_soon() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("allhung")).await;
    let mut shims = vec![];
    for name in ["one", "two", "three"] {
        let id = node.run_container(&pod, build::container(name, &image, SLEEPER)).await;
        shims.push(shim::hang(&id));
    }
    shims.push(shim::hang(&pod.id));
    let since = Instant::now();
    node.destroy(&pod).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    for pid in shims {
        assert!(!shim::is_alive(pid.as_raw().unsigned_abs()), "a shim that hung is still there");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_starts_among_shims_that_hang_serves_at_once() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let other = Bystander::start(&node, &image).await;
    let pod = node.run_pod(&node.pod("meanwhile")).await;
    let running = node.run_container(&pod, build::container("running", &image, SLEEPER)).await;
    let created =
        node.cri.create(&pod.id, &pod.config, build::container("created", &image, SLEEPER)).await.unwrap();
    let prepared = eventually(Duration::from_secs(15), async || !shim::all_of(&created).is_empty()).await;
    assert!(prepared, "the created container is not prepared");
    for id in [&pod.id, &running, &created] {
        shim::hang(id);
    }
    node.kill9();
    let since = Instant::now();
    node.restart().await;
    assert!(since.elapsed() < Duration::from_secs(8), "the start waits for shims: {:?}", since.elapsed());
    other.is_well(&node).await;
    assert_eq!(node.cri.status(&running).await.unwrap().state(), ContainerState::ContainerRunning);
    let since = Instant::now();
    node.destroy(&pod).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    node.destroy(&other.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_killed_shims_container_does_not_live_on() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("killed")).await;
    let id = node.run_container(&pod, build::container("main", &image, SLEEPER)).await;
    let first = pid_of(&node, &id).await;
    kill(shim::of(&id), Signal::SIGKILL).unwrap();
    assert!(shim::ends(first, Duration::from_secs(3)).await, "the container of a killed shim lives on");
    let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.message.as_str()), (137, "the container's shim died"));

    let pause = node.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(pause.state(), cri::PodSandboxState::SandboxReady);
    kill(shim::of(&pod.id), Signal::SIGKILL).unwrap();
    let noticed = eventually(Duration::from_secs(5), async || !node.cri.pod_ready(&pod.id).await).await;
    assert!(noticed, "the pod is still ready");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shim_whose_socket_is_gone_serves_on_and_is_ended_by_the_next_daemon() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("vanished")).await;
    let id = node.run_container(&pod, build::container("main", &image, SLEEPER)).await;
    let (first, server) = (pid_of(&node, &id).await, shim::of(&id));
    let bundle = node.dir().join("state/containers").join(&id);
    let address = std::fs::read_to_string(bundle.join("address")).unwrap();
    std::fs::remove_file(address.trim_start_matches("unix://")).unwrap();
    assert_eq!(node.cri.exec_sync(&id, &["echo", "on"], 10).await.unwrap().stdout, b"on\n");
    node.restart().await;
    let status = node.cri.wait_exited(&id, Duration::from_secs(15)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited, "nobody can reach its shim");
    assert_ne!(status.exit_code, 0);
    let said = &status.message;
    assert!(said.contains("could not be reached") && said.contains("No such file"), "{said:?}");
    for pid in [first, server.as_raw().unsigned_abs()] {
        assert!(shim::ends(pid, Duration::from_secs(5)).await, "process {pid} lives on");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn lists_and_statuses_ask_no_shim() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let pod = node.run_pod(&node.pod(name)).await;
        let id = node.run_container(&pod, build::container("main", &image, SLEEPER)).await;
        ids.push((pod, id));
    }
    for (pod, id) in &ids {
        shim::hang(&pod.id);
        shim::hang(id);
    }
    let since = Instant::now();
    for _ in 0..50 {
        assert_eq!(node.cri.list_pods(None).await.unwrap().len(), 2);
        assert_eq!(node.cri.list(None).await.unwrap().len(), 2);
        for (pod, id) in &ids {
            assert!(node.cri.pod_ready(&pod.id).await);
            assert_eq!(node.cri.status(id).await.unwrap().state(), ContainerState::ContainerRunning);
        }
    }
    // Half a second and more would be lost with each question to one of these shims.
    assert!(since.elapsed() < SOON, "300 answers took {:?}", since.elapsed());
    for (pod, _) in &ids {
        node.destroy(pod).await;
    }
    node.assert_clean().await;
}

/// Runs a pod whose shim does not do what it should: refused in time and with the reason, and nothing stays.
async fn refused_pod(node: &Node, fake: &FakeShim, mode: Mode, code: Code, limit: Duration) {
    fake.set(mode);
    let since = Instant::now();
    let refused = node.cri.run_pod(&node.pod("refused"), "").await.unwrap_err();
    assert_eq!(refused.code(), code, "{mode:?}: {refused:?}");
    assert!(since.elapsed() < limit, "{mode:?}: {:?}", since.elapsed());
    let left = node
        .cri
        .list_pods(None)
        .await
        .unwrap()
        .into_iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == "refused"));
    assert_eq!(left.count(), 0, "{mode:?}: the half-made pod stays");
    fake.set(Mode::Well);
}

#[tokio::test]
async fn a_shim_that_goes_wrong_while_a_pod_is_made_costs_that_pod_alone() {
    let fake = FakeShim::new();
    let builder = Node::builder().config("runtimes.cofferdam", &fake.config());
    let Some(node) = builder.config("shim", "start_seconds = 2\ntask_seconds = 4").start().await else {
        return;
    };
    let image = node.base_image().await;
    let other = Bystander::start(&node, &image).await;
    for (mode, code) in [
        (Mode::StartHangs, Code::DeadlineExceeded),
        (Mode::Stopped, Code::DeadlineExceeded),
        (Mode::Silent, Code::DeadlineExceeded),
        (Mode::Closes, Code::Unavailable),
        (Mode::Newer, Code::Internal),
    ] {
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            other.is_well(&node).await;
        };
        tokio::join!(refused_pod(&node, &fake, mode, code, SOON), meanwhile);
    }
    // What a shim says that is no message may be taken for different things, but it ends in time.
    fake.set(Mode::Garbage);
    let since = Instant::now();
    node.cri.run_pod(&node.pod("garbage"), "").await.unwrap_err();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    fake.set(Mode::Well);
    let again = node.run_pod(&node.pod("again")).await;
    node.destroy(&again).await;
    node.destroy(&other.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shim_that_hangs_while_a_container_is_made_does_not_keep_its_pod() {
    let fake = FakeShim::new();
    let builder = Node::builder().config("runtimes.cofferdam", &fake.config());
    // Long deadlines: what is not wanted any more is not waited for.
    let Some(node) = builder.config("shim", "task_seconds = 300").start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("making")).await;
    fake.set(Mode::Stopped);
    let id = node.cri.create(&pod.id, &pod.config, build::container("main", &image, SLEEPER)).await.unwrap();
    let starting = {
        let (cri, id) = (node.cri.clone(), id.clone());
        tokio::spawn(async move { cri.start(&id).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.set(Mode::Well);
    let since = Instant::now();
    node.cri.stop(&id, 2).await.unwrap();
    assert!(since.elapsed() < SOON, "stop: {:?}", since.elapsed());
    let refused = starting.await.unwrap().unwrap_err();
    assert!(!refused.message().is_empty());
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerExited);
    node.cri.remove(&id).await.unwrap();
    let again = node.run_container(&pod, build::container("main", &image, SLEEPER)).await;
    assert_eq!(node.cri.status(&again).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shim_that_hangs_while_a_container_starts_is_given_up_in_time() {
    let Some(node) = Node::builder().config("shim", "task_seconds = 3").start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("starting")).await;
    let id = node.cri.create(&pod.id, &pod.config, build::container("main", &image, SLEEPER)).await.unwrap();
    let task = node.dir().join("state/containers").join(&id).join("task.json");
    assert!(eventually(Duration::from_secs(15), async || task.exists()).await, "it is not prepared");
    // Its answer to Create is on its way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    shim::hang(&id);
    let since = Instant::now();
    let refused = node.cri.start(&id).await.unwrap_err();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert!(refused.message().contains("no answer from the shim"), "{refused:?}");
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}
