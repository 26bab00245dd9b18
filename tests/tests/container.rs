//! Containers: lifecycle, how they end, and what stopping means.

use std::time::{Duration, Instant};

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::harness::Node;
use tonic::Code;

#[tokio::test]
async fn a_container_is_created_runs_stops_and_goes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("life")).await;
    let config = build::container("main", &image, &["sleep", "1000"]);
    let id = node.cri.create(&pod.id, &pod.config, config.clone()).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.log_path, format!("{}/main/0.log", pod.config.log_directory));
    assert!(!status.image_ref.is_empty() && !status.image_id.is_empty(), "{status:?}");

    node.cri.start(&id).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at);
    assert!(node.cri.start(&id).await.is_err(), "a running container started again");

    node.cri.stop(&id, 0).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert!(status.finished_at >= status.started_at);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    for _ in 0..2 {
        node.cri.remove(&id).await.unwrap();
    }
    assert_eq!(node.cri.status(&id).await.unwrap_err().code(), Code::NotFound);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The kubelet asks by id and tells beside it what the user wrote.
#[tokio::test]
async fn status_calls_the_image_by_its_users_name() {
    // Only ours: containerd answers with the first tag whatever the user wrote.
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("named")).await;
    let known = node.cri.image_status(&image).await.unwrap().unwrap();
    let user = "the-users-own.words/for:it";
    for (asked, words, told) in [
        (known.id.as_str(), user, user),
        (known.id.as_str(), "", known.repo_tags[0].as_str()),
        (image.as_str(), "", image.as_str()),
    ] {
        let mut config = build::container(&format!("c{}{}", asked.len(), words.len()), asked, &["true"]);
        config.image.as_mut().unwrap().user_specified_image = words.into();
        let id = node.cri.create(&pod.id, &pod.config, config).await.unwrap();
        let status = node.cri.status(&id).await.unwrap();
        assert_eq!((status.image.unwrap().image, status.image_id), (told.to_owned(), known.id.clone()));
        assert_eq!(status.image_ref, known.repo_digests[0]);
        let listed = node.cri.list(None).await.unwrap().into_iter().find(|c| c.id == id).unwrap();
        assert_eq!((listed.image.unwrap().image, listed.image_id), (told.to_owned(), known.id.clone()));
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn exit_codes_and_reasons_are_what_users_know() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("codes")).await;
    for (name, script, code, reason) in [
        ("done", "exit 0", 0, "Completed"),
        ("error", "exit 3", 3, "Error"),
        ("not-found", "no-such-command", 127, "Error"),
        ("signal", "kill -SEGV $$", 139, "Error"),
    ] {
        // A shell that is process 1 would ignore its own signal: a child of it dies instead.
        let script = if name == "signal" { format!("sh -c '{script}'; exit $?") } else { script.to_owned() };
        let (status, _) = node.run_to_end(&pod, build::shell(name, &image, &script)).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("oom")).await;
    let mut config = build::container("main", &image, &["dd", "if=/dev/zero", "of=/dev/null", "bs=256M"]);
    let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
    resources.memory_limit_in_bytes = 32 << 20;
    resources.memory_swap_limit_in_bytes = 32 << 20;
    let (status, _) = node.run_to_end(&pod, config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn stop_sends_the_signal_and_waits_for_the_end() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("grace")).await;
    let script = "trap 'echo asked; sleep 0.3; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    wait_for_log(&node, &id, "up").await;
    node.cri.stop(&id, 20).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    node.cri.stop(&id, 20).await.unwrap();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_images_stop_signal_is_used() {
    let node = Node::start().await;
    let image = node.registry.push("opinionated", "1", &catalog::opinionated().unwrap());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(&node.pod("signal")).await;
    let script = "trap 'exit 11' TERM; trap 'exit 12' USR1; echo up; while :; do sleep 0.05; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    wait_for_log(&node, &id, "up").await;
    node.cri.stop(&id, 20).await.unwrap();
    assert_eq!(node.cri.status(&id).await.unwrap().exit_code, 12);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn stop_kills_the_whole_container_after_the_time_out() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stubborn")).await;
    let script = "trap '' TERM; (trap '' TERM; sleep 987654) & (setsid sh -c \"trap '' TERM; sleep 987654\") & \
                  echo up; while :; do sleep 0.05; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    wait_for_log(&node, &id, "up").await;
    let before = Instant::now();
    node.cri.stop(&id, 1).await.unwrap();
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(5), "it took {took:?}");
    assert_eq!(node.cri.status(&id).await.unwrap().exit_code, 137);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_missing_executable_fails_the_start() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("missing")).await;
    for (name, command) in
        [("absent", "/no/such/program"), ("in-path", "no-such-program"), ("no-program", "/etc/passwd")]
    {
        let id =
            node.cri.create(&pod.id, &pod.config, build::container(name, &image, &[command])).await.unwrap();
        let refused = node.cri.start(&id).await.unwrap_err();
        let base = command.rsplit('/').next().unwrap();
        assert!(refused.message().contains(base), "the error does not name {command}: {refused:?}");
        let status = node.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        // What the kubelet's users know from containerd, whatever the cause.
        assert_eq!((status.reason.as_str(), status.exit_code), ("StartError", 128), "{name}");
        node.cri.remove(&id).await.unwrap();
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn list_filters_by_id_pod_state_and_labels() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("listed")).await;
    let other = node.run_pod(&node.pod("other")).await;
    let one = node.run_container(&pod, build::container("one", &image, &["sleep", "1000"])).await;
    let two =
        node.cri.create(&pod.id, &pod.config, build::container("two", &image, &["true"])).await.unwrap();
    let ids = async |filter: cri::ContainerFilter| {
        let mut ids: Vec<_> =
            node.cri.list(Some(filter)).await.unwrap().into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    };
    let in_pod = |pod: &str| cri::ContainerFilter { pod_sandbox_id: pod.into(), ..Default::default() };
    let mut both = [one.clone(), two.clone()];
    both.sort();
    assert_eq!(ids(in_pod(&pod.id)).await, both);
    assert!(ids(in_pod(&other.id)).await.is_empty());
    let state = cri::ContainerStateValue { state: ContainerState::ContainerCreated.into() };
    assert_eq!(ids(cri::ContainerFilter { state: Some(state), ..in_pod(&pod.id) }).await, [two.as_str()]);
    let label_selector = [("container".to_owned(), "one".to_owned())].into();
    assert_eq!(ids(cri::ContainerFilter { label_selector, ..in_pod(&pod.id) }).await, [one.as_str()]);
    assert_eq!(
        ids(cri::ContainerFilter { id: two[..13].into(), ..Default::default() }).await,
        [two.as_str()]
    );
    node.destroy(&pod).await;
    node.destroy(&other).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_running_container_is_removed_by_force() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("forced")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    node.cri.remove(&id).await.unwrap();
    assert_eq!(node.cri.status(&id).await.unwrap_err().code(), Code::NotFound);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_unknown_image_or_pod_is_refused() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let unknown = build::container("main", "no-such-image.test/x:1", &["true"]);
    let refused = node.cri.create(&pod.id, &pod.config, unknown).await.unwrap_err();
    assert!(refused.message().contains("no-such-image.test/x:1"), "{refused:?}");
    let main = build::container("main", &image, &["true"]);
    let refused = node.cri.create("0123456789abcdef", &pod.config, main).await.unwrap_err();
    assert!(refused.message().contains("0123456789abcdef"), "{refused:?}");
    assert!(node.cri.list(None).await.unwrap().iter().all(|one| one.pod_sandbox_id != pod.id));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

async fn wait_for_log(node: &Node, id: &str, word: &str) {
    let path = node.cri.status(id).await.unwrap().log_path;
    let there = cofferdam_tests::harness::eventually(Duration::from_secs(10), async || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains(word))
    });
    assert!(there.await, "the container does not say {word:?}");
}

#[tokio::test]
async fn a_container_that_cannot_be_prepared_tells_why_at_its_start() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("unprepared")).await;
    // Step by step over the time that a preparation takes, so that some start comes while its shim is ending.
    for attempt in 0..8 {
        let name = format!("wrong-{attempt}");
        let config = build::container(&name, &image, &["/no/such/program"]);
        let id = node.cri.create(&pod.id, &pod.config, config).await.unwrap();
        tokio::time::sleep(Duration::from_millis(40 * attempt)).await;
        let refused = node.cri.start(&id).await.unwrap_err();
        assert!(refused.message().contains("/no/such/program"), "{attempt}: {refused:?}");
        let status = node.cri.status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{attempt}");
        assert!(status.message.contains("/no/such/program"), "{attempt}: {}", status.message);
        node.cri.remove(&id).await.unwrap();
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
