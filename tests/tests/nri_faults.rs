//! NRI plugins that contradict, refuse, hang, crash or send nonsense: the node goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cofferdam_proto::nri::{self, Event};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::nri::{ALL, Answer, Behaviour, Plugin, frame, message};
use cofferdam_tests::harness::{Node, Pod, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;

const QUICK: &str =
    "socket = \"@DIR@/nri.sock\"\nregistration_timeout = 1\nrequest_timeout = 0.5\n";

fn socket(node: &Node) -> PathBuf {
    node.dir().join("nri.sock")
}

async fn quick() -> Option<(Node, String)> {
    let node = Node::builder().config("nri", QUICK).start().await?;
    let image = node.base_image().await;
    Some((node, image))
}

fn setter(index: &str, name: &str) -> Behaviour {
    Behaviour::new(index, name, &[Event::CreateContainer]).on("CreateContainer", |_| {
        let entry = nri::KeyValue { key: "ONE".into(), value: "1".into() };
        Answer::adjust(nri::ContainerAdjustment { env: vec![entry], ..Default::default() })
    })
}

async fn created(node: &Node, pod: &Pod, image: &str, name: &str) -> Result<String, tonic::Status> {
    node.cri.create(&pod.id, &pod.config, build::shell(name, image, "exec sleep 1000")).await
}

async fn assert_no_container(node: &Node) {
    assert!(node.cri.list(None).await.unwrap().is_empty(), "a failed creation left a container");
}

#[tokio::test]
async fn two_plugins_that_set_one_field_are_named_and_nothing_is_left() {
    let Some((node, image)) = quick().await else { return };
    let one = Plugin::connect(&socket(&node), setter("10", "one")).await.unwrap();
    let other = Plugin::connect(&socket(&node), setter("20", "other")).await.unwrap();
    let pod = node.run_pod(&node.pod("conflict")).await;
    let refused = created(&node, &pod, &image, "main").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["10-one", "20-other", "ONE"] {
        assert!(refused.message().contains(part), "{refused:?}");
    }
    assert_no_container(&node).await;
    drop(other);
    assert!(eventually(Duration::from_secs(5), async || node.daemon_log().contains("has left")).await);
    created(&node, &pod, &image, "main").await.unwrap();
    node.destroy(&pod).await;
    drop(one);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_refusal_fails_what_can_still_be_undone() {
    let Some((node, image)) = quick().await else { return };
    let refusing = Behaviour::new("10", "no", ALL)
        .on("CreateContainer", |payload| {
            let request = <nri::CreateContainerRequest as prost::Message>::decode(payload).unwrap();
            let bad = request.container.is_some_and(|c| c.name == "bad");
            if bad { Answer::Refuse(2, "not this one".into()) } else { Answer::Empty }
        })
        .on("StartContainer", |_| Answer::Refuse(2, "never".into()))
        .on("StopContainer", |_| Answer::Refuse(2, "too late".into()))
        .on("RemovePodSandbox", |_| Answer::Refuse(2, "too late".into()));
    let plugin = Plugin::connect(&socket(&node), refusing).await.unwrap();
    let pod = node.run_pod(&node.pod("refused")).await;
    let refused = created(&node, &pod, &image, "bad").await.unwrap_err();
    assert!(refused.message().contains("10-no") && refused.message().contains("not this one"), "{refused:?}");
    assert_no_container(&node).await;
    let id = created(&node, &pod, &image, "good").await.unwrap();
    let refused = node.cri.start(&id).await.unwrap_err();
    assert!(refused.message().contains("never"), "{refused:?}");
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    node.destroy(&pod).await;
    assert!(plugin.methods(&id).ends_with(&["StopContainer".into(), "RemoveContainer".into()]));
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_does_not_answer_is_let_go_and_the_pod_goes_on() {
    let Some((node, image)) = quick().await else { return };
    for (name, answer) in [("silent", Answer::Silence), ("crashing", Answer::HangUp)] {
        let behaviour =
            Behaviour::new("10", name, ALL).on("CreateContainer", move |_| answer.clone());
        let plugin = Plugin::connect(&socket(&node), behaviour).await.unwrap();
        let other = Plugin::connect(&socket(&node), setter("20", "other")).await.unwrap();
        let pod = node.run_pod(&node.pod(name)).await;
        let begun = Instant::now();
        let id = node.run_container(&pod, build::shell("main", &image, "exec sleep 1000")).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        assert!(eventually(Duration::from_secs(2), async || plugin.is_closed()).await, "{name}");
        let answer = node.cri.exec_sync(&id, &["sh", "-c", "echo $ONE"], 10).await.unwrap();
        assert_eq!(answer.stdout, b"1\n", "the plugin after {name}");
        node.destroy(&pod).await;
        assert!(!plugin.methods(&id).iter().any(|method| method == "StartContainer"), "{name} is still asked");
        drop(other);
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_never_comes_to_its_place_does_not_hold_up_the_node() {
    let Some((node, image)) = quick().await else { return };
    let pod = node.run_pod(&node.pod("slow")).await;
    let mute = UnixStream::connect(socket(&node)).await.unwrap();
    let unconfigured = Behaviour::new("10", "a", ALL).on("Configure", |_| Answer::Silence);
    let unconfigured =
        Plugin::begin(UnixStream::connect(socket(&node)).await.unwrap(), &unconfigured).await.unwrap();
    let mut wrong = Behaviour::new("10", "b", ALL);
    wrong.events = 1 << 20;
    let wrong = Plugin::begin(UnixStream::connect(socket(&node)).await.unwrap(), &wrong).await.unwrap();
    let unsynchronized = Behaviour::new("10", "c", ALL).on("Synchronize", |_| Answer::Silence);
    let unsynchronized =
        Plugin::begin(UnixStream::connect(socket(&node)).await.unwrap(), &unsynchronized).await.unwrap();
    let begun = Instant::now();
    node.run_container(&pod, build::shell("main", &image, "exec sleep 1000")).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let gone = || [&unconfigured, &wrong, &unsynchronized].iter().all(|plugin| plugin.is_closed());
    assert!(eventually(Duration::from_secs(5), async || gone()).await, "{}", node.daemon_log());
    let ended = async {
        let mut mute = mute;
        mute.read(&mut [0; 16]).await
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap().unwrap(), 0);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let Some((node, _)) = quick().await else { return };
    for (index, name) in [("1", "short"), ("ab", "letters"), ("10", ""), ("10", "a/b")] {
        let stream = UnixStream::connect(socket(&node)).await.unwrap();
        let refused = Plugin::begin(stream, &Behaviour::new(index, name, ALL)).await.err().unwrap();
        assert!(refused.to_string().starts_with("3: "), "{index} {name}: {refused}");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn nonsense_on_the_socket_ends_the_connection_and_nothing_else() {
    let Some((node, image)) = quick().await else { return };
    let good = Plugin::connect(&socket(&node), setter("10", "good")).await.unwrap();
    let request = |stream: u32| message(stream, 1, &[0xff; 64]);
    let nonsense: [(&str, Vec<u8>); 7] = [
        ("no frame", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a huge frame", [&1u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat()),
        ("a huge message", frame(2, &[0x7f, 0, 0, 0, 0, 0, 0, 1, 1, 0])),
        ("an unknown kind", frame(2, &message(1, 7, b"x"))),
        ("no protobuf", frame(2, &request(1))),
        ("a request where answers come", frame(1, &message(1, 1, b""))),
        ("an answer where requests come", frame(2, &message(1, 2, b""))),
    ];
    for (what, bytes) in nonsense {
        let mut stream = UnixStream::connect(socket(&node)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0; 16])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{what} is taken: {ended:?}");
    }
    // Frames of connections that nobody opened are dropped, and answers that nobody waits for.
    let mut stream = UnixStream::connect(socket(&node)).await.unwrap();
    stream.write_all(&frame(99, b"anything")).await.unwrap();
    stream.write_all(&frame(1, &message(41, 2, b""))).await.unwrap();
    let behaviour = Behaviour::new("20", "odd", ALL);
    let odd = Plugin::begin(stream, &behaviour).await.unwrap();
    let pod = node.run_pod(&node.pod("nonsense")).await;
    let id = created(&node, &pod, &image, "main").await.unwrap();
    assert!(!good.methods(&id).is_empty() && !odd.methods(&id).is_empty());
    node.destroy(&pod).await;
    drop((good, odd));
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_in_words() {
    let Some((node, image)) = quick().await else { return };
    let linux = |linux| nri::ContainerAdjustment { linux: Some(linux), ..Default::default() };
    let class = nri::LinuxResources {
        blockio_class: Some(nri::OptionalString { value: "gold".into() }),
        ..Default::default()
    };
    let sysctl = [("kernel.pid_max".to_owned(), "99".to_owned())].into();
    let wanted = [
        ("block I/O class", linux(nri::LinuxContainerAdjustment { resources: Some(class), ..Default::default() })),
        ("kernel.pid_max", linux(nri::LinuxContainerAdjustment { sysctl, ..Default::default() })),
        ("annotation", nri::ContainerAdjustment {
            annotations: [("io.kubernetes.cri.sandbox-id".to_owned(), "x".to_owned())].into(),
            ..Default::default()
        }),
    ];
    let pod = node.run_pod(&node.pod("refusals")).await;
    for (word, adjust) in wanted {
        let behaviour = Behaviour::new("10", "wants", &[Event::CreateContainer])
            .on("CreateContainer", move |_| Answer::adjust(adjust.clone()));
        let plugin = Plugin::connect(&socket(&node), behaviour).await.unwrap();
        let refused = created(&node, &pod, &image, "main").await.unwrap_err();
        assert!(refused.message().contains(word), "{word}: {refused:?}");
        assert_no_container(&node).await;
        drop(plugin);
        let left = async || created(&node, &pod, &image, "main").await.is_ok();
        assert!(eventually(Duration::from_secs(5), left).await, "{word}: {}", node.daemon_log());
        for container in node.cri.list(None).await.unwrap() {
            node.cri.remove(&container.id).await.unwrap();
        }
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_validator_sees_who_wants_what_and_can_refuse() {
    let Some((node, image)) = quick().await else { return };
    let setting = Plugin::connect(&socket(&node), setter("10", "setter")).await.unwrap();
    let pod = node.run_pod(&node.pod("validated")).await;
    let reject = nri::ValidateContainerAdjustmentResponse { reject: true, reason: "not today".into() };
    for (name, answer, why) in [
        ("strict", Answer::message(&reject), "not today"),
        ("silent", Answer::Silence, "does not answer"),
        ("failing", Answer::Refuse(2, "it is broken".into()), "it is broken"),
    ] {
        let behaviour = Behaviour::new("90", name, &[Event::ValidateContainerAdjustment])
            .on("ValidateContainerAdjustment", move |_| answer.clone());
        let validator = Plugin::connect(&socket(&node), behaviour).await.unwrap();
        let refused = created(&node, &pod, &image, "main").await.unwrap_err();
        assert!(refused.message().contains(why) && refused.message().contains(name), "{refused:?}");
        assert_no_container(&node).await;
        let heard = validator.heard();
        let heard = heard.iter().find(|heard| heard.method == "ValidateContainerAdjustment").unwrap();
        let request: nri::ValidateContainerAdjustmentRequest = heard.decode();
        let container = request.container.unwrap();
        assert!(!container.env.contains(&"ONE=1".to_owned()), "the container is shown as adjusted");
        assert_eq!(request.adjust.unwrap().env[0].key, "ONE");
        let owners = &request.owners.unwrap().owners[&container.id];
        assert_eq!(owners.compound[&(nri::Field::Env as i32)].owners["ONE"], "10-setter");
        assert_eq!(request.plugins.len(), 2);
        drop(validator);
        let free = async || created(&node, &pod, &image, "main").await.is_ok();
        assert!(eventually(Duration::from_secs(5), free).await, "{}", node.daemon_log());
        for container in node.cri.list(None).await.unwrap() {
            node.cri.remove(&container.id).await.unwrap();
        }
    }
    node.destroy(&pod).await;
    drop(setting);
    node.assert_clean().await;
}

#[tokio::test]
async fn the_built_in_validator_misses_required_plugins() {
    let lines = format!(
        "{QUICK}[nri.default_validator]\nenable = true\nrequired_plugins = [\"needed\"]\n\
         tolerate_missing_plugins_annotation = \"example.com/alone\"\n"
    );
    let Some(node) = Node::builder().config("nri", &lines).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("needy")).await;
    let refused = created(&node, &pod, &image, "main").await.unwrap_err();
    assert!(refused.message().contains("needed"), "{refused:?}");
    let mut config = node.pod("alone");
    config.annotations.insert("example.com/alone".into(), "true".into());
    let alone = node.run_pod(&config).await;
    created(&node, &alone, &image, "main").await.unwrap();
    let plugin = Plugin::connect(&socket(&node), Behaviour::new("10", "needed", ALL)).await.unwrap();
    created(&node, &pod, &image, "main").await.unwrap();
    node.destroy(&pod).await;
    node.destroy(&alone).await;
    drop(plugin);
    node.assert_clean().await;
}
