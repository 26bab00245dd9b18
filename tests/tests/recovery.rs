//! Death of the daemon or of a shim at any moment: nothing is lost, nothing is left.

use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri::{ContainerState, PodSandboxState};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, eventually, log};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

fn lines(path: &str) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn a_container_runs_and_logs_on_while_the_daemon_is_dead() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("survivor")).await;
    let id = node.run_container(&pod, build::shell("main", &image, COUNT)).await;
    let before = node.cri.status(&id).await.unwrap();
    let ip = node.cri.pod_status(&pod.id).await.unwrap().network;
    node.kill9();
    let at_death = lines(&before.log_path);
    let grew = eventually(Duration::from_secs(5), async || lines(&before.log_path) > at_death + 20);
    assert!(grew.await, "the log stands still while the daemon is dead");
    node.restart().await;

    let after = node.cri.status(&id).await.unwrap();
    assert_eq!(after.state(), ContainerState::ContainerRunning);
    assert_eq!((after.started_at, after.created_at), (before.started_at, before.created_at));
    let pod_after = node.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(pod_after.state(), PodSandboxState::SandboxReady);
    assert_eq!(pod_after.network, ip);
    let answer = node.cri.exec_sync(&id, &["echo", "back"], 10).await.unwrap();
    assert_eq!(answer.stdout, b"back\n");
    node.cri.stop(&id, 0).await.unwrap();
    let numbers: Vec<u32> =
        log::read(Path::new(&before.log_path)).iter().map(|entry| entry.text.parse().unwrap()).collect();
    let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(numbers, expected, "the log has gaps");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_exit_while_the_daemon_is_dead_is_noticed_with_its_code_and_time() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("exits")).await;
    let script = "until [ -e /go ]; do sleep 0.02; done; exit 42";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    node.cri.exec_sync(&id, &["sh", "-c", "(sleep 1; touch /go) >/dev/null 2>&1 &"], 10).await.unwrap();
    node.kill9();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let restarted = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    node.restart().await;
    let status = node.cri.wait_exited(&id, Duration::from_secs(5)).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 42));
    assert!(
        u128::try_from(status.finished_at).unwrap() < restarted.as_nanos(),
        "finished_at is not the exit's time"
    );
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_restart_knows_every_state_and_can_go_on() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("states")).await;
    let created = node
        .cri
        .create(&pod.id, &pod.config, build::container("new", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let (exited, _) = node.run_to_end(&pod, build::shell("old", &image, "exit 9")).await;
    let stopped = node.run_pod(&node.pod("stopped")).await;
    node.cri.stop_pod(&stopped.id).await.unwrap();
    node.restart().await;
    assert_eq!(node.cri.status(&created).await.unwrap().state(), ContainerState::ContainerCreated);
    assert_eq!(node.cri.status(&exited.id).await.unwrap().exit_code, 9);
    assert_eq!(node.cri.pod_status(&stopped.id).await.unwrap().state(), PodSandboxState::SandboxNotready);
    assert!(node.cri.image_status(&image).await.unwrap().is_some());
    node.cri.start(&created).await.unwrap();
    assert_eq!(node.cri.status(&created).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.destroy(&stopped).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_anything_leaves_nothing_half_done() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    for delay in [1, 3, 8, 15, 30, 60, 120] {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..3 {
            let (cri, config, image) =
                (node.cri.clone(), node.pod(&format!("half{delay}-{number}")), image.clone());
            tasks.spawn(async move {
                let pod = cri.run_pod(&config, "").await?;
                let id =
                    cri.create(&pod, &config, build::container("main", &image, &["sleep", "1000"])).await?;
                cri.start(&id).await?;
                cri.destroy_pod(&pod).await
            });
        }
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.kill9();
        tasks.shutdown().await;
        node.restart().await;
        for pod in node.cri.list_pods(None).await.unwrap() {
            node.cri.destroy_pod(&pod.id).await.unwrap();
        }
        assert!(node.cri.list(None).await.unwrap().is_empty(), "containers without a pod after {delay} ms");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_removal_that_is_stuck_hides_no_exit() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stuck")).await;
    let (exited, _) = node.run_to_end(&pod, build::shell("old", &image, "exit 9")).await;
    // What is mounted there keeps its folder from going away.
    let held = node.dir().join("state/containers").join(&exited.id).join("held");
    std::fs::create_dir(&held).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &held, Some("tmpfs"), flags, None::<&str>).unwrap();
    let refused = node.cri.remove(&exited.id).await;
    let mut told = vec![node.cri.status(&exited.id).await.unwrap()];
    let listed = node.cri.list(None).await.unwrap();
    node.restart().await;
    told.push(node.cri.status(&exited.id).await.unwrap());
    nix::mount::umount2(&held, nix::mount::MntFlags::MNT_DETACH).unwrap();
    refused.unwrap_err();
    assert_eq!(listed.iter().map(|c| c.state()).collect::<Vec<_>>(), [ContainerState::ContainerExited]);
    for status in told {
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 9));
        assert_eq!(status.finished_at, exited.finished_at);
    }
    node.cri.remove(&exited.id).await.unwrap();
    node.cri.status(&exited.id).await.unwrap_err();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Stands between the daemon and the shims of all tasks in `bundles`; what goes through it can be cut.
struct Between {
    cut: tokio::sync::watch::Sender<()>,
}

impl Between {
    /// Puts itself into the bundles' records, where a daemon that starts later finds the shims.
    fn stand(folder: &Path, bundles: &[std::path::PathBuf]) -> Self {
        let (cut, _) = tokio::sync::watch::channel(());
        for (number, bundle) in bundles.iter().enumerate() {
            let record = bundle.join("shim.json");
            let mut endpoint: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
            let shim = endpoint["address"].as_str().unwrap().trim_start_matches("unix://").to_owned();
            let path = folder.join(format!("between{number}.sock"));
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            endpoint["address"] = format!("unix://{}", path.display()).into();
            std::fs::write(record, endpoint.to_string()).unwrap();
            let cut = cut.clone();
            tokio::spawn(async move {
                while let Ok((mut daemon, _)) = listener.accept().await {
                    let mut shim = tokio::net::UnixStream::connect(&shim).await.unwrap();
                    let mut cut = cut.subscribe();
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut daemon, &mut shim) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            });
        }
        Self { cut }
    }
}

#[tokio::test]
async fn a_connection_made_anew_serves_everybody() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("cut")).await;
    let id = node
        .run_container(&pod, build::shell("main", &image, "trap 'exit 7' TERM; while :; do sleep 0.1; done"))
        .await;
    node.stop().await;
    let state = node.dir().join("state");
    let bundles = [state.join("containers").join(&id), state.join("sandboxes").join(&pod.id)];
    let between = Between::stand(node.dir(), &bundles);
    node.restart().await;
    for round in 0..3 {
        assert_eq!(node.cri.exec_sync(&id, &["echo", "here"], 5).await.unwrap().stdout, b"here\n");
        between.cut.send_replace(());
        let again = eventually(Duration::from_secs(5), async || {
            node.cri
                .exec_sync(&id, &["echo", "again"], 5)
                .await
                .is_ok_and(|answer| answer.stdout == b"again\n")
        });
        assert!(again.await, "round {round}: exec still uses the connection that broke");
    }
    let before = std::time::Instant::now();
    node.cri.stop(&id, 20).await.unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "the stop signal did not arrive: {:?}",
        before.elapsed()
    );
    assert_eq!(node.cri.status(&id).await.unwrap().exit_code, 7);
    assert!(node.cri.pod_ready(&pod.id).await);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_dead_shim_is_an_exited_container() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("orphan")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "31337"])).await;
    let shim = shim_of(&id).expect("no shim names the container");
    kill(shim, Signal::SIGKILL).unwrap();
    let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited, "nobody noticed");
    assert_ne!(status.exit_code, 0);
    assert!(node.cri.pod_ready(&pod.id).await, "the pod goes on");
    let again = node.run_container(&pod, build::container("again", &image, &["sleep", "1000"])).await;
    assert_eq!(node.cri.status(&again).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_whose_shim_and_daemon_died_is_ended_by_the_next_daemon() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("left")).await;
    let id = node.run_container(&pod, build::shell("main", &image, COUNT)).await;
    let other = node.run_container(&pod, build::shell("other", &image, COUNT)).await;
    let log = node.cri.status(&id).await.unwrap().log_path;
    let grew = eventually(Duration::from_secs(5), async || lines(&log) > 5);
    assert!(grew.await, "it does not run");
    let shim = shim_of(&id).expect("no shim names the container");
    node.kill9();
    kill(shim, Signal::SIGKILL).unwrap();
    node.restart().await;
    let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited, "its end is not recorded");
    assert_ne!(status.exit_code, 0);
    assert!(cgroup_processes(&id).is_empty(), "it lives on");
    // Neither its pod nor its neighbour is touched.
    assert_eq!(node.cri.status(&other).await.unwrap().state(), ContainerState::ContainerRunning);
    assert!(node.cri.pod_ready(&pod.id).await);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The new daemon does not hear from the shim at once, and a start must not meet the clean-up of what is not known.
#[tokio::test]
async fn a_start_that_comes_before_a_slow_shim_told_its_state_succeeds() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("slow")).await;
    let config = build::container("main", &image, &["sleep", "1000"]);
    let id = node.cri.create(&pod.id, &pod.config, config).await.unwrap();
    let prepared = eventually(Duration::from_secs(10), async || !cgroup_processes(&id).is_empty());
    assert!(prepared.await, "the created container has no process");
    let shim = shim_of(&id).unwrap();
    node.kill9();
    kill(shim, Signal::SIGSTOP).unwrap();
    node.restart().await;
    let wake = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        kill(shim, Signal::SIGCONT).unwrap();
    };
    let (started, ()) = tokio::join!(node.cri.start(&id), wake);
    started.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.exec_sync(&id, &["echo", "here"], 10).await.unwrap().stdout, b"here\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Processes in cgroups that bear the container's name.
fn cgroup_processes(id: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id))
    };
    pids.filter(inside).collect()
}

#[tokio::test]
async fn a_pod_whose_shim_died_is_not_ready_and_can_be_removed() {
    let Some(node) = Node::builder().start().await else { return };
    let pod = node.run_pod(&node.pod("headless")).await;
    kill(shim_of(&pod.id).expect("no shim names the pod"), Signal::SIGKILL).unwrap();
    let noticed = eventually(Duration::from_secs(10), async || !node.cri.pod_ready(&pod.id).await);
    assert!(noticed.await, "the pod is still ready");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The shim process that serves `id`.
fn shim_of(id: &str) -> Option<Pid> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.find(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let program = command.split('\0').next().unwrap_or_default();
        program.contains("containerd-shim") && command.contains(id)
    });
    found.map(Pid::from_raw)
}
