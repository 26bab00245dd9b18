//! A real kubelet drives the daemon: static pods from their files to their end, and what the kubelet's own port serves.
//!
//! Skipped where PATH has no kubelet. Without an API server there are no configMaps, secrets or RuntimeClasses.

use std::time::{Duration, Instant};

use cofferdam_tests::client::stream::{ERROR, Flags, STDERR, STDIN, STDOUT, exit_code};
use cofferdam_tests::harness::kubelet::{Kubelet, at, container};
use cofferdam_tests::harness::{Node, eventually};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

const OUTPUT: Flags = Flags { stdin: false, tty: false };
const INPUT: Flags = Flags { stdin: true, tty: false };
const TERMINAL: Flags = Flags { stdin: true, tty: true };
const SPDY: Option<&str> = None;
const WEBSOCKET: Option<&str> = Some("v5.channel.k8s.io");

/// A node with a kubelet and the base image, and a folder that pods may share with the test.
struct Berth {
    node: Node,
    kubelet: Kubelet,
    image: String,
}

impl Berth {
    async fn open(gates: &[(&str, bool)]) -> Option<Self> {
        let node = Node::builder().start().await?;
        let kubelet = Kubelet::start(&node, gates).await?;
        let image = node.base_image().await;
        std::fs::create_dir(node.dir().join("shared")).expect("cannot make the shared folder");
        Some(Self { node, kubelet, image })
    }

    fn shell(&self, name: &str, script: &str) -> Value {
        json!({"name": name, "image": self.image, "command": ["sh", "-c", script]})
    }

    /// The same with more fields.
    fn shell_with(&self, name: &str, script: &str, more: Value) -> Value {
        let mut container = self.shell(name, script);
        let (Value::Object(fields), Value::Object(more)) = (&mut container, more) else {
            panic!("no object")
        };
        fields.extend(more);
        container
    }

    fn shared(&self, file: &str) -> String {
        std::fs::read_to_string(self.node.dir().join("shared").join(file)).unwrap_or_default()
    }

    fn shared_volume(&self) -> Value {
        json!({"name": "shared", "hostPath": {"path": self.node.dir().join("shared"), "type": "Directory"}})
    }

    /// All pods are withdrawn: waits until nothing is left of them, as the kubelet tells it and as the kernel does.
    async fn close(mut self, names: &[&str], met: &[&str]) {
        for name in names {
            self.kubelet.gone(name, 40).await;
        }
        // The kubelet looks for dead sandboxes once a minute.
        let mut left = Vec::new();
        let empty = eventually(Duration::from_secs(80), async || {
            left = self.node.cri.list_pods(None).await.expect("ListPodSandbox failed");
            left.is_empty()
        });
        assert!(empty.await, "the kubelet did not remove: {left:?}");
        self.assert_quiet(met);
        self.kubelet.finish();
        self.node.assert_clean().await;
    }

    /// The kubelet complains of nothing but what it lacks here whatever the runtime, and of what the test made it meet.
    fn assert_quiet(&self, met: &[&str]) {
        let log = self.kubelet.log();
        let known = |line: &str| USUAL.iter().chain(met).any(|words| line.contains(words));
        let errors: Vec<&str> = log.lines().filter(|line| line.starts_with('E') && !known(line)).collect();
        assert!(errors.is_empty(), "the kubelet complains:\n{}", errors.join("\n"));
    }
}

/// Errors in the log of every kubelet that runs like this one.
const USUAL: [&str; 11] = [
    // It has no API server.
    "failed to check if node is newer",
    // It lacks CAP_SYS_RESOURCE, or is not in the machine's first pid namespace.
    "Failed to set rlimit on max file handles",
    "failed to find pid namespace of init process",
    // The kernel's log went on faster than it was read, or may not be read.
    "OOM events will not be reported",
    // It has just started.
    "container runtime status check may not have completed yet",
    "pleg has yet to be successful",
    "checkpoint is not found",
    // cAdvisor knows where two other runtimes have their images; those of all others come from the CRI.
    "no imagefs label for configured runtime",
    // A client of its port went away: of a followed log, of a WebSocket.
    "from runtime service failed\" err=\"rpc error: code = Canceled",
    "use of closed network connection",
    // It asks once more for a container that it has removed.
    "rpc error: code = NotFound desc = no container",
];

fn restarts(pod: &Value, name: &str) -> u64 {
    container(pod, name)["restartCount"].as_u64().unwrap_or_default()
}

/// The pod with everything.
fn everything(berth: &Berth) -> Value {
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let note =
        |text: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {text} >> /shared/order")]}});
    let setup = berth.shell_with(
        "setup",
        "echo prepared > /data/index.html; echo setup >> /shared/order",
        json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}, shared[0]]}),
    );
    let side = berth.shell_with(
        "side",
        "echo side >> /shared/order; trap 'echo side-term >> /shared/order; exit 0' TERM; \
         httpd -p 8081 -h /www; while :; do sleep 0.1; done",
        json!({
            "restartPolicy": "Always", "volumeMounts": shared,
            "startupProbe": {"tcpSocket": {"port": 8081}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/index.html", "port": 8081}, "periodSeconds": 1},
        }),
    );
    let web = berth.shell_with(
        "web",
        "echo web >> /shared/order; trap 'echo web-term >> /shared/order; exit 0' TERM; httpd -p 8080 -h /data; \
         grep -q ' /mem tmpfs ' /proc/mounts && echo memory; \
         test -x /picture/bin/busybox && echo picture; while :; do sleep 0.1; done",
        json!({
            "ports": [{"containerPort": 8080, "hostPort": 18080}],
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"memory": "32Mi", "cpu": "100m"}},
            "startupProbe": {"exec": {"command": ["test", "-e", "/data/index.html"]}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            "lifecycle": {"postStart": note("web-started"), "preStop": note("web-stops")},
            "volumeMounts": [
                {"name": "data", "mountPath": "/data"}, {"name": "memory", "mountPath": "/mem"}, shared[0],
                {"name": "data", "mountPath": "/sub", "subPath": "inner"},
                {"name": "picture", "mountPath": "/picture"},
            ],
        }),
    );
    let strict = berth.shell_with(
        "strict",
        "id -u; touch /nowhere 2>&1; grep NoNewPrivs /proc/self/status; exec sleep 1000",
        json!({"securityContext": {
            "runAsUser": 1000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        }}),
    );
    json!({
        "terminationGracePeriodSeconds": 5,
        "initContainers": [setup, side], "containers": [web, strict],
        "volumes": [
            {"name": "data", "emptyDir": {}}, berth.shared_volume(),
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
            {"name": "picture", "image": {"reference": berth.image}},
        ],
    })
}

#[tokio::test]
async fn a_pod_with_everything_starts_in_order_is_probed_and_ends_in_order() {
    let Some(berth) = Berth::open(&[]).await else { return };
    berth.kubelet.place("full", &everything(&berth));
    let pod = berth.kubelet.ready("full").await;
    assert_eq!(container(&pod, "setup")["state"]["terminated"]["reason"], "Completed", "{pod}");
    for name in ["side", "web", "strict"] {
        assert_eq!((restarts(&pod, name), &container(&pod, name)["ready"]), (0, &json!(true)), "{pod}");
    }
    let log = berth.kubelet.ask(&format!("/containerLogs/default/{}", at("full", "web"))).await;
    assert_eq!(log, "memory\npicture\n");
    let log = berth.kubelet.ask(&format!("/containerLogs/default/{}", at("full", "strict"))).await;
    assert!(
        log.starts_with("1000\n") && log.contains("Read-only") && log.contains("NoNewPrivs:\t1"),
        "{log}"
    );
    // The bridge's own address is the node's.
    let page = berth.node.netns.http_get("10.88.7.1:18080", "/index.html").expect("the host port is closed");
    assert!(page.contains("prepared"), "{page}");
    usage_is_told(&berth, false).await;
    berth.kubelet.withdraw("full");
    let ended = eventually(Duration::from_secs(20), async || berth.shared("order").contains("side-term"));
    assert!(ended.await, "the pod does not end: {}", berth.shared("order"));
    let order = berth.shared("order");
    let order: Vec<&str> = order.lines().collect();
    assert_eq!(order[..3], ["setup", "side", "web"], "{order:?}");
    let place =
        |word| order.iter().position(|other| *other == word).unwrap_or_else(|| panic!("{word}: {order:?}"));
    assert!(place("web-started") < place("web-stops") && place("web-stops") < place("web-term"), "{order:?}");
    assert!(place("web-term") < place("side-term"), "the sidecar outlives the others: {order:?}");
    berth.close(&["full"], &[]).await;
}

/// What the kubelet says of the pod `full` in its summary and to Prometheus.
async fn usage_is_told(berth: &Berth, from_us: bool) {
    let mut seen = String::new();
    let told = eventually(Duration::from_secs(30), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        seen = berth.kubelet.ask("/stats/summary").await;
        let summary: Value = serde_json::from_str(&seen).expect("the summary is JSON");
        summary_is_whole(&summary["pods"][0], from_us)
    });
    assert!(told.await, "the summary lacks something: {seen}");
    let resource = berth.kubelet.ask("/metrics/resource").await;
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "pod_memory_working_set_bytes",
    ] {
        let labels = if name.starts_with("pod") { "{" } else { "{container=\"web\"," };
        assert!(resource.contains(&format!("{name}{labels}")), "{name} is missing: {resource}");
    }
    assert!(resource.contains("resource_scrape_error 0"), "{resource}");
    let cadvisor = berth.kubelet.ask("/metrics/cadvisor").await;
    let label = if from_us { "container=\"web\"" } else { "/kubepods/burstable/pod" };
    let named =
        cadvisor.lines().any(|line| line.starts_with("container_memory_rss{") && line.contains(label));
    assert!(named, "{cadvisor}");
}

/// Whether the summary of a pod has its parts and theirs. Its network is not known to cAdvisor.
fn summary_is_whole(pod: &Value, from_us: bool) -> bool {
    let whole = |one: &Value| {
        one["cpu"]["usageCoreNanoSeconds"].is_u64() && one["memory"]["workingSetBytes"].is_u64()
    };
    let containers = pod["containers"].as_array();
    whole(pod)
        && (pod["network"]["rxBytes"].is_u64() || !from_us)
        && containers.is_some_and(|all| {
            let disks =
                |one: &Value| one["rootfs"]["usedBytes"].is_u64() && one["logs"]["usedBytes"].is_u64();
            all.len() == 3 && all.iter().all(|one| whole(one) && disks(one))
        })
}

#[tokio::test]
async fn containers_that_end_fall_ill_or_eat_too_much_get_their_due() {
    let Some(berth) = Berth::open(&[]).await else { return };
    let crash = berth.shell("main", "echo gone > /dev/termination-log; exit 3");
    berth.kubelet.place("crash", &json!({"containers": [crash]}));
    let greedy = berth.shell_with(
        "main",
        "sleep 1; tail /dev/zero",
        json!({"resources": {"limits": {"memory": "24Mi"}}}),
    );
    berth.kubelet.place("greedy", &json!({"restartPolicy": "Never", "containers": [greedy]}));
    let probe = |command: Value, seconds: u64| {
        json!({"livenessProbe": {"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 2,
            "timeoutSeconds": seconds}})
    };
    let ill =
        berth.shell_with("ill", "exec sleep 1000", probe(json!(["sh", "-c", "echo unwell; exit 7"]), 5));
    let slow = berth.shell_with("slow", "exec sleep 1000", probe(json!(["sleep", "100"]), 1));
    let sick = json!({"terminationGracePeriodSeconds": 1, "containers": [ill, slow]});
    berth.kubelet.place("sick", &sick);
    let once = [berth.shell("well", "exit 0"), berth.shell("badly", "exit 9")];
    berth.kubelet.place("once", &json!({"restartPolicy": "Never", "containers": once}));
    let host = berth.shell_with(
        "main",
        "exec httpd -f -p 127.0.0.1:18999 -h /www",
        json!({"readinessProbe": {"httpGet": {"host": "127.0.0.1", "path": "/index.html", "port": 18999}}}),
    );
    berth.kubelet.place("host", &json!({"hostNetwork": true, "hostPID": true, "containers": [host]}));
    let absent = berth.shell_with("main", "true", json!({"command": ["/no/such/program"]}));
    berth.kubelet.place("absent", &json!({"containers": [absent]}));

    let pod = berth.kubelet.until("once", 40, |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(container(&pod, "well")["state"]["terminated"]["exitCode"], 0, "{pod}");
    let end = &container(&pod, "badly")["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(9), &json!("Error")), "{pod}");
    let pod = berth.kubelet.until("greedy", 40, |pod| pod["status"]["phase"] == "Failed").await;
    let end = &container(&pod, "main")["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("OOMKilled")), "{pod}");
    let pod = berth.kubelet.until("crash", 60, |pod| restarts(pod, "main") >= 2).await;
    let end = &container(&pod, "main")["lastState"]["terminated"];
    assert_eq!((&end["exitCode"], &end["message"]), (&json!(3), &json!("gone\n")), "{pod}");
    let waits = |pod: &Value| container(pod, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    berth.kubelet.until("crash", 20, waits).await;
    let both = |pod: &Value| restarts(pod, "ill") >= 1 && restarts(pod, "slow") >= 1;
    let pod = berth.kubelet.until("sick", 60, both).await;
    assert_eq!(container(&pod, "ill")["lastState"]["terminated"]["exitCode"], 137, "{pod}");
    let refused = |pod: &Value| container(pod, "main")["lastState"]["terminated"]["exitCode"] == 128;
    let pod = berth.kubelet.until("absent", 60, refused).await;
    let end = &container(&pod, "main")["lastState"]["terminated"];
    assert_eq!(end["reason"], "StartError", "{pod}");
    assert!(end["message"].as_str().is_some_and(|text| text.contains("/no/such/program")), "{pod}");
    berth.kubelet.ready("host").await;
    let page =
        berth.node.netns.http_get("127.0.0.1:18999", "/index.html").expect("it is not on the node's network");
    assert!(page.contains("Hello from a pod"), "{page}");
    let names = ["crash", "greedy", "sick", "once", "host", "absent"];
    names.iter().for_each(|name| berth.kubelet.withdraw(name));
    let met = [
        "CrashLoopBackOff",
        "/no/such/program",
        "ExecSync cmd from runtime service failed\" err=\"rpc error: code = DeadlineExceeded",
    ];
    berth.close(&names, &met).await;
}

/// A pod that echoes its input, has a shell and serves pages.
async fn talker(berth: &Berth) {
    let cat = berth.shell_with("cat", "echo ready; exec cat", json!({"stdin": true}));
    let web = berth
        .shell("web", "httpd -p 8080 -h /www; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.2; done");
    berth.kubelet.place("talker", &json!({"terminationGracePeriodSeconds": 1, "containers": [cat, web]}));
    berth.kubelet.ready("talker").await;
}

#[tokio::test]
async fn streams_pass_through_the_kubelets_port() {
    let Some(berth) = Berth::open(&[]).await else { return };
    talker(&berth).await;
    for protocol in [SPDY, WEBSOCKET] {
        commands_run(&berth, protocol).await;
        attach_echoes(&berth, protocol).await;
    }
    pages_are_forwarded(&berth).await;
    logs_are_followed(&berth).await;
    files_are_copied(&berth, SPDY).await;
    files_are_copied(&berth, WEBSOCKET).await;
    berth.kubelet.withdraw("talker");
    berth.close(&["talker"], &[]).await;
}

async fn commands_run(berth: &Berth, protocol: Option<&'static str>) {
    let web = at("talker", "web");
    let script = ["sh", "-c", "echo out; echo err >&2; exit 5"];
    let said = berth.kubelet.exec(&web, &script, protocol, OUTPUT).await.rest().await;
    assert_eq!((&said[&STDOUT][..], &said[&STDERR][..]), (&b"out\n"[..], &b"err\n"[..]), "{said:?}");
    assert_eq!(exit_code(&said[&ERROR]), Ok(5), "{said:?}");
    let mut terminal = berth.kubelet.exec(&web, &["sh"], protocol, TERMINAL).await;
    terminal.resize(101, 37).await;
    terminal.send(STDIN, b"until stty size | grep '37 101'; do sleep 0.1; done; echo la''st; exit 4\n").await;
    terminal.until(STDOUT, "last").await;
    assert_eq!(exit_code(&terminal.rest().await[&ERROR]), Ok(4));
}

async fn attach_echoes(berth: &Berth, protocol: Option<&'static str>) {
    let mut session = berth.kubelet.attach(&at("talker", "cat"), protocol, INPUT).await;
    session.send(STDIN, b"ahoy\n").await;
    assert_eq!(session.until(STDOUT, "ahoy\n").await, "ahoy\n");
}

async fn pages_are_forwarded(berth: &Berth) {
    let mut session = berth.kubelet.forward("talker", SPDY).await;
    session.connection(0, 8080).await;
    session.send(1, b"GET /index.html HTTP/1.0\r\n\r\n").await;
    session.end(1).await;
    session.until(1, "Hello from a pod").await;
}

async fn logs_are_followed(berth: &Berth) {
    let path = format!("/containerLogs/default/{}?follow=true&tailLines=1", at("talker", "web"));
    let mut io = berth.kubelet.open(&path).await.expect("the kubelet hung up");
    let mut text = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while String::from_utf8_lossy(&text).matches("tick").count() < 5 {
        assert!(Instant::now() < end, "the log is not followed: {}", String::from_utf8_lossy(&text));
        let read = tokio::time::timeout(Duration::from_secs(5), io.read_buf(&mut text)).await;
        assert!(read.expect("the log stands still").expect("the kubelet hung up") > 0, "the log ended");
    }
}

/// 64 MiB into a container and out of it, as `kubectl cp` does it.
async fn files_are_copied(berth: &Berth, protocol: Option<&'static str>) {
    const SIZE: usize = 64 << 20;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let sent: Vec<u8> = (0..SIZE / 8).flat_map(|_| draw()).collect();
    let web = at("talker", "web");
    let take = format!("head -c {SIZE} > /tmp/file; wc -c < /tmp/file");
    let mut session = berth.kubelet.exec(&web, &["sh", "-c", &take], protocol, INPUT).await;
    for piece in sent.chunks(32 << 10) {
        session.send(STDIN, piece).await;
    }
    let said = session.rest().await;
    assert_eq!(
        said.get(&STDOUT).map(|text| String::from_utf8_lossy(text).trim().to_owned()),
        Some(SIZE.to_string())
    );
    let mut session = berth.kubelet.exec(&web, &["cat", "/tmp/file"], protocol, OUTPUT).await;
    let got = session.rest().await.remove(&STDOUT).unwrap_or_default();
    assert!(got == sent, "{} of {SIZE} bytes came back, or others", got.len());
}

#[tokio::test]
async fn pods_run_on_whatever_is_restarted() {
    let Some(mut berth) = Berth::open(&[]).await else { return };
    talker(&berth).await;
    let ids = |pod: &Value| ["cat", "web"].map(|name| container(pod, name)["containerID"].to_string());
    let first = ids(&berth.kubelet.ready("talker").await);
    for (daemon, kubelet) in [(false, true), (true, false), (true, true)] {
        if daemon {
            berth.node.restart().await;
        }
        if kubelet {
            berth.kubelet.restart().await;
        }
        // Long enough for the kubelet to change its mind about the pod.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let pod = berth.kubelet.ready("talker").await;
        assert_eq!(ids(&pod), first, "other containers run: {pod}");
        assert_eq!((restarts(&pod, "cat"), restarts(&pod, "web")), (0, 0), "{pod}");
        commands_run(&berth, SPDY).await;
    }
    // What ends while nobody looks is found, and started again.
    berth.kubelet.kill9();
    berth.node.kill9();
    let web = first[1].trim_matches('"').rsplit('/').next().unwrap_or_default().to_owned();
    kill_processes_of(&web);
    berth.node.restart().await;
    berth.kubelet.restart().await;
    let again = |pod: &Value| restarts(pod, "web") == 1 && container(pod, "web")["ready"] == true;
    let pod = berth.kubelet.until("talker", 40, again).await;
    assert_eq!(container(&pod, "web")["lastState"]["terminated"]["exitCode"], 137, "{pod}");
    assert_eq!(restarts(&pod, "cat"), 0, "{pod}");
    berth.kubelet.withdraw("talker");
    // What it says of a daemon that is away.
    let met = ["code = Unavailable", "container runtime is down"];
    berth.close(&["talker"], &met).await;
}

/// Kills whatever runs in the cgroups that a container's id names.
fn kill_processes_of(id: &str) {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").expect("no /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroup.lines().any(|line| line.ends_with(id)) {
            let pid = nix::unistd::Pid::from_raw(pid);
            killed += usize::from(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok());
        }
    }
    assert!(killed > 0, "no process is in a cgroup named {id}");
}

#[tokio::test]
async fn events_and_stats_of_ours_serve_a_kubelet_that_wants_them() {
    let gates = [("EventedPLEG", true), ("PodAndContainerStatsFromCRI", true)];
    let Some(berth) = Berth::open(&gates).await else { return };
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let containers = ["web", "second", "third"].map(|name| berth.shell(name, script));
    berth.kubelet.place("full", &json!({"containers": containers}));
    berth.kubelet.ready("full").await;
    usage_is_told(&berth, true).await;
    let crash = berth.shell("main", "sleep 1; exit 3");
    berth.kubelet.place("crash", &json!({"containers": [crash]}));
    berth.kubelet.until("crash", 40, |pod| restarts(pod, "main") >= 1).await;
    let log = berth.kubelet.log();
    assert!(!log.contains("Evented PLEG: Failed"), "{log}");
    berth.kubelet.withdraw("full");
    berth.kubelet.withdraw("crash");
    berth.close(&["full", "crash"], &["CrashLoopBackOff"]).await;
}
