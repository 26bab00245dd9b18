//! GetContainerEvents: everything in order to every reader, through deaths of the daemon, and a clear end.

use std::time::Duration;

use cofferdam_proto::cri::{self, ContainerEventType as Kind};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, eventually};
use tonic::{Code, Streaming};

type Events = Streaming<cri::ContainerEventResponse>;

async fn subscribe(node: &Node) -> Events {
    node.cri.runtime.clone().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner()
}

async fn next(events: &mut Events) -> cri::ContainerEventResponse {
    let waited = tokio::time::timeout(Duration::from_secs(10), events.message()).await;
    waited.expect("no event within 10 s").expect("the stream broke").expect("the stream ended")
}

/// Reads until the event of this kind of this container, which is the last that is given.
async fn until(events: &mut Events, id: &str, kind: Kind) -> Vec<cri::ContainerEventResponse> {
    let mut seen = Vec::new();
    loop {
        let event = next(events).await;
        let found = event.container_id == id && event.container_event_type() == kind;
        seen.push(event);
        if found {
            return seen;
        }
    }
}

fn of(events: &[cri::ContainerEventResponse], id: &str) -> Vec<Kind> {
    let own = events.iter().filter(|event| event.container_id == id);
    own.map(cri::ContainerEventResponse::container_event_type).collect()
}

const LIFE: [Kind; 4] = [
    Kind::ContainerCreatedEvent,
    Kind::ContainerStartedEvent,
    Kind::ContainerStoppedEvent,
    Kind::ContainerDeletedEvent,
];

#[tokio::test]
async fn every_reader_is_told_a_pods_whole_life_in_order() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let (mut first, mut second) = (subscribe(&node).await, subscribe(&node).await);
    let pod = node.run_pod(&node.pod("told")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "exit 7")).await;
    let before = until(&mut first, &id, Kind::ContainerStoppedEvent).await;

    let exit = before.last().unwrap();
    let sandbox = exit.pod_sandbox_status.as_ref().unwrap();
    assert_eq!(sandbox.metadata.as_ref().unwrap().name, "told");
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxReady);
    assert!(!sandbox.network.as_ref().unwrap().ip.is_empty(), "the kubelet wants the pod's address");
    let [container] = &exit.containers_statuses[..] else { panic!("{:?}", exit.containers_statuses) };
    assert_eq!((container.id.as_str(), container.exit_code), (id.as_str(), 7));
    assert_eq!(container.state(), cri::ContainerState::ContainerExited);
    assert_eq!(node.cri.status(&id).await.unwrap(), *container, "the event holds what ContainerStatus says");
    let created = before.iter().find(|event| event.container_id == id).unwrap();
    assert_eq!(created.containers_statuses[0].state(), cri::ContainerState::ContainerCreated);

    node.destroy(&pod).await;
    let after = until(&mut first, &pod.id, Kind::ContainerDeletedEvent).await;
    let last = after.last().unwrap().pod_sandbox_status.as_ref().unwrap();
    assert_eq!((last.id.as_str(), last.state()), (pod.id.as_str(), cri::PodSandboxState::SandboxNotready));
    assert!(after.last().unwrap().containers_statuses.is_empty(), "the container went before its pod");
    let all = [before, after].concat();
    assert_eq!((of(&all, &pod.id), of(&all, &id)), (LIFE.to_vec(), LIFE.to_vec()));
    assert!(all.is_sorted_by_key(|event| event.created_at), "times go back");
    let also = until(&mut second, &pod.id, Kind::ContainerDeletedEvent).await;
    assert_eq!(also, all, "both readers are told the same");
    drop((first, second));
    node.assert_clean().await;
}

#[tokio::test]
async fn what_was_removed_while_it_ran_was_stopped_and_what_never_ran_was_not_started() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("short")).await;
    let mut events = subscribe(&node).await;
    let running = node.run_container(&pod, build::container("running", &image, &["sleep", "1000"])).await;
    node.cri.remove(&running).await.unwrap();
    let unborn = build::container("unborn", &image, &["sleep", "1000"]);
    let unborn = node.cri.create(&pod.id, &pod.config, unborn).await.unwrap();
    node.cri.remove(&unborn).await.unwrap();
    let broken = build::container("broken", &image, &["/no/such/program"]);
    let broken = node.cri.create(&pod.id, &pod.config, broken).await.unwrap();
    node.cri.start(&broken).await.unwrap_err();
    node.cri.remove(&broken).await.unwrap();
    let told = until(&mut events, &broken, Kind::ContainerDeletedEvent).await;
    let [created, _, stopped, deleted] = LIFE;
    assert_eq!(of(&told, &running), LIFE);
    assert_eq!(of(&told, &unborn), [created, deleted]);
    assert_eq!(of(&told, &broken), [created, stopped, deleted], "it has exited without having run");
    drop(events);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_restart_tells_its_first_reader_what_ended_meanwhile_and_nothing_twice() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("away")).await;
    let lasting = node.run_container(&pod, build::container("lasting", &image, &["sleep", "1000"])).await;
    let script = "until [ -e /go ]; do sleep 0.02; done; exit 42";
    let ending = node.run_container(&pod, build::shell("ending", &image, script)).await;
    node.cri.exec_sync(&ending, &["sh", "-c", "(sleep 1; touch /go) >/dev/null 2>&1 &"], 10).await.unwrap();
    node.kill9();
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.restart().await;
    // The exit is found before anybody can have subscribed, or after: both are told.
    assert_eq!(node.cri.wait_exited(&ending, Duration::from_secs(5)).await.unwrap().exit_code, 42);
    let mut events = subscribe(&node).await;
    let first = next(&mut events).await;
    assert_eq!((first.container_id.as_str(), first.container_event_type()), (ending.as_str(), LIFE[2]));
    let found = first.containers_statuses.iter().find(|status| status.id == ending).unwrap();
    assert_eq!(found.exit_code, 42);
    assert!(found.finished_at < first.created_at);
    node.cri.stop(&lasting, 0).await.unwrap();
    let then = next(&mut events).await;
    assert_eq!((then.container_id.as_str(), then.container_event_type()), (lasting.as_str(), LIFE[2]));
    drop(events);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_loses_its_stream_and_no_other_reader_an_event() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let mut config = node.pod("wide");
    // Every event holds the pod: a few of them are more than the daemon keeps for a reader.
    config.annotations.insert("example.com/long".to_owned(), "x".repeat(1 << 20));
    let (mut idle, mut keen) = (subscribe(&node).await, subscribe(&node).await);
    let pod = node.run_pod(&config).await;
    let cri = node.cri.clone();
    let working = tokio::spawn(async move {
        for number in 0..16 {
            let name = format!("c{number}");
            let container = build::container(&name, &image, &["sleep", "1000"]);
            let id = cri.create(&pod.id, &pod.config, container).await.unwrap();
            cri.remove(&id).await.unwrap();
        }
        pod
    });
    let (mut created, mut deleted) = (0, 0);
    while deleted < 16 {
        match next(&mut keen).await.container_event_type() {
            Kind::ContainerCreatedEvent => created += 1,
            Kind::ContainerDeletedEvent => deleted += 1,
            Kind::ContainerStartedEvent | Kind::ContainerStoppedEvent => {}
        }
    }
    let pod = working.await.unwrap();
    assert_eq!((created, deleted), (17, 16), "the pod, and every container");
    let mut read = 0;
    let end = loop {
        match idle.message().await {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("the stream ends as if nothing were missing, after {read}"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::DataLoss, "{end:?}");
    assert!(end.message().contains("fell behind") && read < 33, "{read} {end:?}");
    drop((idle, keen));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_daemon_and_does_not_hold_it_up() {
    let Some(mut node) = Node::builder().start().await else { return };
    let mut events = subscribe(&node).await;
    let pod = node.run_pod(&node.pod("last")).await;
    let begun = std::time::Instant::now();
    node.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "the end took {:?}", begun.elapsed());
    for kind in [LIFE[0], LIFE[1]] {
        assert_eq!(next(&mut events).await.container_event_type(), kind);
    }
    assert_eq!(events.message().await.unwrap(), None, "no error, and no event more");
    node.restart().await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_reader_that_hangs_up_is_forgotten() {
    let builder = Node::builder().config("metrics", "address = \"127.0.0.1:9095\"");
    let Some(node) = builder.start().await else { return };
    let readers = async |wanted: &str| {
        let line = format!("cofferdam_event_readers {wanted}");
        eventually(Duration::from_secs(5), async || {
            let answer = node.netns.http_get("127.0.0.1:9095", "/metrics").unwrap();
            answer.lines().any(|found| found == line)
        })
        .await
    };
    let (first, second) = (subscribe(&node).await, subscribe(&node).await);
    assert!(readers("2").await);
    drop(first);
    assert!(readers("1").await, "the connection goes on, one stream of it does not");
    drop(second);
    assert!(readers("0").await);
    node.assert_clean().await;
}
