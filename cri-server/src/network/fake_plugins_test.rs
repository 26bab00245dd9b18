//! The daemon as a CNI runtime against plugins that are real processes: small scripts which note what they are given.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Config, Network, NetworkError, PodAttachment, PortMapping, Protocol};
use crate::model::SandboxId;

const ANSWER: &str = r#"case $CNI_COMMAND in ADD)
echo '{"interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}';; esac"#;

/// A node whose plugins are scripts.
struct Node {
    temp: tempfile::TempDir,
    network: Network,
}

impl Node {
    fn new(conflist: &Value, plugins: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        for folder in ["net.d", "bin", "seen"] {
            fs::create_dir(temp.path().join(folder)).unwrap();
        }
        let network = open(&temp);
        let node = Self { temp, network };
        fs::write(node.path("net.d/10-test.conflist"), conflist.to_string()).unwrap();
        for (name, body) in plugins {
            node.plugin(name, body);
        }
        node
    }

    /// One plugin `a` with this body, CNI 1.0.0.
    fn single(body: &str) -> Self {
        Self::new(&conflist("1.0.0", &["a"]), &[("a", body)])
    }

    fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    fn plugin(&self, name: &str, body: &str) {
        let seen = self.path("seen").display().to_string();
        let text = format!(
            "#!/bin/sh\nD={seen}\nif [ $CNI_COMMAND != VERSION ]; then echo \"$CNI_COMMAND {name}\" >> $D/log; fi\n\
             cat > $D/{name}.$CNI_COMMAND.stdin\nenv > $D/{name}.$CNI_COMMAND.env\n{body}\n"
        );
        // Renamed into place, so that a fork elsewhere in this process does not hold it open for writing.
        fs::write(self.path("bin/new"), text).unwrap();
        fs::set_permissions(self.path("bin/new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(self.path("bin/new"), self.path("bin").join(name)).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("seen/log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stdin(&self, of: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("seen/{of}.stdin"))).unwrap()).unwrap()
    }

    fn env(&self, of: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("seen/{of}.env"))).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn records(&self) -> usize {
        fs::read_dir(self.path("state/cni/results")).map_or(0, Iterator::count)
    }

    async fn attach_error(&self) -> String {
        self.network.attach(&pod("s1")).await.unwrap_err().to_string()
    }
}

fn open(temp: &tempfile::TempDir) -> Network {
    let config = Config {
        conf_dir: temp.path().join("net.d"),
        bin_dirs: vec![temp.path().join("none"), temp.path().join("bin")],
        timeout_seconds: 2,
        ..Config::default()
    };
    Network::open(&config, &temp.path().join("state"))
}

fn conflist(version: &str, kinds: &[&str]) -> Value {
    let plugins: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind, "own": 1})).collect();
    json!({"cniVersion": version, "name": "test", "plugins": plugins})
}

fn pod(id: &str) -> PodAttachment {
    let mut pod = PodAttachment::new(SandboxId::parse(id).unwrap(), PathBuf::from("/proc/self/ns/net"));
    pod.name = "web".to_owned();
    pod.namespace = "shop".to_owned();
    pod
}

fn ids(ids: &[&str]) -> Vec<SandboxId> {
    ids.iter().map(|id| SandboxId::parse(id).unwrap()).collect()
}

#[tokio::test]
async fn a_chain_runs_forward_and_back() {
    let list = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [
        {"type": "a", "own": 1}, {"type": "b", "capabilities": {"portMappings": true}}]});
    let node = Node::new(&list, &[("a", ANSWER), ("b", ANSWER)]);
    let mut pod = pod("s1");
    let protocol = Protocol::Udp;
    pod.port_mappings =
        vec![PortMapping { host_port: 53, container_port: 5353, protocol, host_ip: String::new() }];

    let attached = node.network.attach(&pod).await.unwrap();
    assert_eq!(attached.ips, ["10.1.2.3".parse::<std::net::IpAddr>().unwrap()]);
    let first = node.stdin("a.ADD");
    assert_eq!(first, json!({"cniVersion": "1.0.0", "name": "test", "type": "a", "own": 1}));
    let second = node.stdin("b.ADD");
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    assert_eq!(
        second["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "udp"}]})
    );
    let env = node.env("a.ADD");
    for expected in [
        "CNI_COMMAND=ADD".to_owned(),
        "CNI_CONTAINERID=s1".to_owned(),
        "CNI_IFNAME=eth0".to_owned(),
        "CNI_NETNS=/proc/self/ns/net".to_owned(),
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID="
            .to_owned(),
        format!("CNI_PATH={}:{}", node.path("none").display(), node.path("bin").display()),
    ] {
        assert!(env.contains(&expected), "{expected} not in {env:?}");
    }
    assert!(!env.iter().any(|line| line.starts_with("CARGO")), "the daemon's environment is its own");

    node.network.detach(&pod).await.unwrap();
    assert_eq!(node.log(), ["ADD a", "ADD b", "DEL b", "DEL a"]);
    assert_eq!(node.stdin("a.DEL")["prevResult"], attached.result);
    assert_eq!(node.stdin("b.DEL")["runtimeConfig"], second["runtimeConfig"]);
    assert_eq!(node.records(), 0);
    node.network.detach(&pod).await.unwrap();
}

#[tokio::test]
async fn old_versions_get_what_they_know() {
    let node = Node::new(&conflist("0.3.1", &["a", "b"]), &[("a", ANSWER), ("b", ANSWER)]);
    node.network.attach(&pod("s1")).await.unwrap();
    assert_eq!(node.stdin("b.ADD")["prevResult"]["ips"][0]["version"], "4");
    node.network.check(&pod("s1")).await.unwrap();
    node.network.detach(&pod("s1")).await.unwrap();
    assert!(node.stdin("a.DEL").get("prevResult").is_none());
    assert_eq!(node.log(), ["ADD a", "ADD b", "DEL b", "DEL a"], "no CHECK before 0.4.0");
}

#[tokio::test]
async fn detach_needs_neither_conflist_nor_namespace_nor_the_same_daemon() {
    let node = Node::single(ANSWER);
    let gone = node.path("netns");
    let attached = PodAttachment { netns: gone, ..pod("s1") };
    node.network.attach(&attached).await.unwrap();
    fs::write(node.path("net.d/10-test.conflist"), conflist("1.0.0", &["other"]).to_string()).unwrap();
    open(&node.temp).detach(&pod("s1")).await.unwrap();
    assert_eq!(node.log(), ["ADD a", "DEL a"]);
    assert!(node.env("a.DEL").contains(&"CNI_NETNS=".to_owned()));
    assert_eq!(node.stdin("a.DEL")["own"], 1);
}

#[tokio::test]
async fn a_failure_in_the_middle_takes_the_whole_chain_back() {
    let failing = r#"if [ $CNI_COMMAND = ADD ]; then echo 'went wrong' >&2
        echo '{"cniVersion":"1.0.0","code":101,"msg":"no addresses left","details":"10.1.2.0/24"}'; exit 1; fi"#;
    let plugins = [("a", ANSWER), ("b", failing), ("c", ANSWER)];
    let node = Node::new(&conflist("1.0.0", &["a", "b", "c"]), &plugins);
    let error = node.attach_error().await;
    for part in ["plugin b", "ADD", "101", "no addresses left: 10.1.2.0/24", "went wrong"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(node.log(), ["ADD a", "ADD b", "DEL c", "DEL b", "DEL a"]);
    assert_eq!(node.records(), 0);
}

#[tokio::test]
async fn a_failed_del_is_tried_again() {
    let body =
        format!("if [ $CNI_COMMAND = DEL ] && [ ! -e $D/cured ]; then echo sick >&2; exit 3; fi\n{ANSWER}");
    let node = Node::new(&conflist("1.0.0", &["a", "b"]), &[("a", ANSWER), ("b", &body)]);
    node.network.attach(&pod("s1")).await.unwrap();
    let error = node.network.detach(&pod("s1")).await.unwrap_err().to_string();
    assert!(
        error.contains("plugin b") && error.contains("sick") && error.contains("exit status: 3"),
        "{error}"
    );
    assert_eq!(node.records(), 1);
    assert_eq!(node.log().last().unwrap(), "DEL a", "the others were deleted all the same");
    fs::write(node.path("seen/cured"), "").unwrap();
    node.network.detach(&pod("s1")).await.unwrap();
    assert_eq!(node.records(), 0);
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_everything_it_started() {
    let body =
        "if [ $CNI_COMMAND = ADD ]; then echo waiting >&2; sleep 1000 & echo $! > $D/pid; sleep 1000; fi";
    let node = Node::single(body);
    let began = Instant::now();
    let error = node.attach_error().await;
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(error.contains("plugin a did not finish ADD within 2 s") && error.contains("waiting"), "{error}");
    // Not asked to delete at once: the pod's teardown does that.
    assert_eq!(node.log(), ["ADD a"]);
    assert!(ended(&node.path("seen/pid")).await, "the grandchild lives on");
}

#[tokio::test]
async fn a_dropped_attachment_kills_its_plugin_and_is_collected_later() {
    let body = format!("if [ $CNI_COMMAND = ADD ]; then sleep 1000 & echo $! > $D/pid; wait; fi\n{ANSWER}");
    let node = Node::single(&body);
    let wanted = pod("s1");
    tokio::select! {
        _ = node.network.attach(&wanted) => panic!("it hangs"),
        () = appears(node.path("seen/pid")) => {}
    }
    assert!(ended(&node.path("seen/pid")).await, "the grandchild lives on");
    assert_eq!(node.records(), 1, "what may have happened is recorded");
    let restarted = open(&node.temp);
    restarted.gc(|| ids(&["s1"])).await.unwrap();
    assert_eq!(node.records(), 1);
    restarted.gc(Vec::new).await.unwrap();
    assert_eq!((node.records(), node.log()), (0, vec!["ADD a".to_owned(), "DEL a".to_owned()]));
}

async fn appears(path: PathBuf) {
    while !fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n')) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the process noted in a file ends within seconds; a zombie has ended.
async fn ended(pid: &std::path::Path) -> bool {
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    for _ in 0..300 {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => return true,
        }
    }
    false
}

#[tokio::test]
async fn answers_that_are_none_fail_clearly() {
    for (body, part) in [
        ("", "it is empty"),
        ("echo hello", "hello"),
        ("echo oops; echo because >&2; exit 7", "because"),
        ("echo oops; exit 7", "oops"),
        ("kill -9 $$", "signal: 9"),
        ("head -c 3000000 /dev/zero", "more than 1048576 bytes"),
        ("trap '' PIPE; while :; do head -c 100000 /dev/zero; done 2>/dev/null", "more than 1048576 bytes"),
        (r#"echo '{"cniVersion":"0.2.0","ip4":{}}'"#, "0.2.0"),
        (r#"echo '{"ips":[]}'"#, "no IP address"),
    ] {
        let node = Node::single(&format!("if [ $CNI_COMMAND = DEL ]; then exit 0; fi\n{body}"));
        let error = node.attach_error().await;
        assert!(error.contains(part), "{body}: {error}");
        assert_eq!((node.log(), node.records()), (vec!["ADD a".to_owned(), "DEL a".to_owned()], 0), "{body}");
    }
}

#[tokio::test]
async fn what_a_plugin_leaves_in_the_background_does_not_block() {
    let node = Node::single(&format!("[ $CNI_COMMAND = DEL ] && exit 0\nsleep 6 &\n{ANSWER}"));
    let began = Instant::now();
    node.network.attach(&pod("s1")).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_missing_plugin_is_named_with_the_folders() {
    let node = Node::new(&conflist("1.0.0", &["a", "absent"]), &[("a", ANSWER)]);
    let not_ready = node.network.status().await.unwrap_err().reason;
    let error = node.attach_error().await;
    for text in [not_ready, error] {
        for part in
            ["\"absent\"", &node.path("none").display().to_string(), &node.path("bin").display().to_string()]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert_eq!((node.log().len(), node.records()), (0, 0), "nothing was begun");
    node.plugin("absent", ANSWER);
    assert_eq!(node.network.status().await.unwrap().network, "test");
    node.network.attach(&pod("s1")).await.unwrap();

    fs::remove_file(node.path("bin/absent")).unwrap();
    let error = node.network.detach(&pod("s1")).await.unwrap_err().to_string();
    assert!(error.contains("\"absent\""), "{error}");
    assert_eq!(node.records(), 1, "it waits for the plugin");
    node.plugin("absent", ANSWER);
    node.network.detach(&pod("s1")).await.unwrap();
    assert_eq!(node.records(), 0);
}

#[tokio::test]
async fn an_annotation_that_cannot_be_understood_begins_nothing() {
    let list =
        json!({"cniVersion": "1.0.0", "name": "test", "type": "a", "capabilities": {"bandwidth": true}});
    let node = Node::new(&list, &[("a", ANSWER)]);
    let mut pod = pod("s1");
    pod.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "fast".to_owned());
    let error = node.network.attach(&pod).await.unwrap_err().to_string();
    assert!(error.contains("kubernetes.io/egress-bandwidth"), "{error}");
    assert_eq!((node.log().len(), node.records()), (0, 0));
    node.network.detach(&pod).await.unwrap();
}

#[tokio::test]
async fn check_asks_each_plugin_unless_told_not_to() {
    let mut list = conflist("0.4.0", &["a", "b"]);
    let failing = format!(
        "if [ $CNI_COMMAND = CHECK ]; then echo '{{\"code\":9,\"msg\":\"changed\"}}'; exit 1; fi\n{ANSWER}"
    );
    let node = Node::new(&list, &[("a", ANSWER), ("b", &failing)]);
    assert!(matches!(node.network.check(&pod("s1")).await, Err(NetworkError::NotAttached { .. })));
    node.network.attach(&pod("s1")).await.unwrap();
    let error = node.network.check(&pod("s1")).await.unwrap_err().to_string();
    assert!(error.contains("plugin b failed CHECK with code 9: changed"), "{error}");
    assert_eq!(node.stdin("a.CHECK")["prevResult"]["ips"][0]["version"], "4");

    list["disableCheck"] = json!(true);
    fs::write(node.path("net.d/10-test.conflist"), list.to_string()).unwrap();
    node.network.attach(&pod("s2")).await.unwrap();
    node.network.check(&pod("s2")).await.unwrap();
}

#[tokio::test]
async fn status_and_gc_come_with_version_1_1() {
    let body = format!(
        "if [ $CNI_COMMAND = STATUS ] && [ -e $D/down ]; then echo '{{\"code\":50,\"msg\":\"no uplink\"}}'; exit 1; fi\n{ANSWER}"
    );
    let node = Node::new(&conflist("1.1.0", &["a"]), &[("a", &body)]);
    fs::write(node.path("seen/down"), "").unwrap();
    let reason = node.network.status().await.unwrap_err().reason;
    assert!(reason.contains("no uplink") && reason.contains("test"), "{reason}");
    fs::remove_file(node.path("seen/down")).unwrap();
    let ready = node.network.status().await.unwrap();
    assert_eq!(ready.source, Some(node.path("net.d/10-test.conflist")));
    node.network.status().await.unwrap();
    assert_eq!(node.log(), ["STATUS a", "STATUS a"], "good news hold for a while");

    node.network.attach(&pod("s1")).await.unwrap();
    node.network.attach(&pod("s2")).await.unwrap();
    node.network.gc(|| ids(&["s2"])).await.unwrap();
    assert_eq!(
        node.stdin("a.GC")["cni.dev/valid-attachments"],
        json!([{"containerID": "s2", "ifname": "eth0"}])
    );
    assert_eq!(node.log()[2..], ["ADD a", "ADD a", "DEL a", "GC a"]);
    assert!(node.env("a.DEL").contains(&"CNI_CONTAINERID=s1".to_owned()));
    assert_eq!(node.records(), 1);
}

#[tokio::test]
async fn the_newest_version_of_all_plugins_is_spoken() {
    let mut list = conflist("1.1.0", &["a", "b"]);
    list["cniVersions"] = json!(["0.4.0", "1.0.0"]);
    let speaking = |versions: &str| {
        format!(
            "[ $CNI_COMMAND = VERSION ] && echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":{versions}}}'\n{ANSWER}"
        )
    };
    let new = speaking(r#"["0.4.0","1.0.0","1.1.0"]"#);
    let old = speaking(r#"["0.3.1","0.4.0","1.0.0"]"#);
    let node = Node::new(&list, &[("a", &new), ("b", &old)]);
    node.network.attach(&pod("s1")).await.unwrap();
    assert_eq!(node.stdin("a.ADD")["cniVersion"], "1.0.0");
    node.plugin("b", &speaking(r#"["0.2.0"]"#));
    let error = node.network.attach(&pod("s2")).await.unwrap_err().to_string();
    assert!(error.contains("plugin b") && error.contains("1.1.0, 1.0.0, 0.4.0"), "{error}");
}

#[tokio::test]
async fn a_broken_configuration_is_told_and_not_replaced_by_the_bridge() {
    let node = Node::single(ANSWER);
    fs::write(node.path("net.d/10-test.conflist"), r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#)
        .unwrap();
    let reason = node.network.status().await.unwrap_err().reason;
    let error = node.attach_error().await;
    for text in [reason, error] {
        assert!(text.contains("10-test.conflist") && text.contains("too old"), "{text}");
    }
    assert_eq!(node.records(), 0);
}

#[tokio::test]
async fn a_damaged_record_does_not_make_a_pod_undeletable() {
    let node = Node::single(ANSWER);
    node.network.attach(&pod("s1")).await.unwrap();
    fs::write(node.path("state/cni/results/s1.json"), "{").unwrap();
    node.network.detach(&pod("s1")).await.unwrap();
    assert_eq!(node.log(), ["ADD a", "DEL a"]);
    assert!(node.path("state/cni/results/s1.damaged").exists());
}

#[tokio::test]
async fn a_subnet_that_is_none_is_a_reason_of_the_bridge() {
    let temp = tempfile::tempdir().unwrap();
    let subnets = vec!["10.0.0.0/99".to_owned()];
    let config = Config { conf_dir: temp.path().join("absent"), subnets, ..Config::default() };
    let network = Network::open(&config, temp.path());
    let reason = network.status().await.unwrap_err().reason;
    assert!(reason.contains("built-in bridge") && reason.contains("10.0.0.0/99"), "{reason}");
    let error = network.attach(&pod("s1")).await.unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/99"), "{error}");
}

#[test]
fn the_configuration_has_defaults_and_refuses_unknown_keys() {
    let config: Config = toml::from_str("bridge = \"b1\"").unwrap();
    assert_eq!(config, Config { bridge: "b1".to_owned(), ..Config::default() });
    assert!(toml::from_str::<Config>("brigde = \"b1\"").unwrap_err().to_string().contains("brigde"));
}
