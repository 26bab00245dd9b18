//! A kubelet beside a node's daemon: without an API server, fed with files of static pods, asked at its own HTTPS port.
//!
//! Invariant: whatever it makes lies in the node's folder, in the node's network namespace or in cgroups that carry the
//! node's mark; the kernel's settings that a kubelet changes are put back when it is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Node, eventually};
use crate::client::stream::upgrade::{self, BoxIo, Url};
use crate::client::stream::{Flags, Protocol, Session};

/// What the kubelet calls the node; every static pod's name ends with it.
pub const NODE: &str = "pier";

/// What a kubelet sets at its start for the whole machine.
const TUNABLES: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Links to logs that every kubelet makes, wherever its logs are.
const LINKS: &str = "/var/log/containers";

/// A kubelet, running or not.
#[derive(Debug)]
pub struct Kubelet {
    node: Places,
    process: Option<Child>,
    port: u16,
}

/// What a kubelet needs of its node; the node itself may be restarted meanwhile.
#[derive(Debug)]
struct Places {
    dir: PathBuf,
    netns: super::netns::Netns,
    mark: String,
}

/// An answer of the kubelet's port.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub body: String,
}

impl Kubelet {
    /// Starts a kubelet with these feature gates; `None`, and a word about it, where PATH has none.
    pub async fn start(node: &Node, gates: &[(&str, bool)]) -> Option<Self> {
        if binary().is_none() {
            println!("skipped: no kubelet in PATH");
            return None;
        }
        tunables();
        let dir = node.dir().to_owned();
        for folder in ["manifests", "pod-logs"] {
            std::fs::create_dir(dir.join(folder)).expect("cannot make the kubelet's folders");
        }
        let places = Places { dir, netns: node.netns.clone(), mark: node.mark() };
        places.ip("link add pier0 type bridge");
        places.ip("addr add 192.0.2.10/24 dev pier0");
        places.ip("link set pier0 up");
        let port = places.netns.run(|| {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("no free port");
            socket.local_addr().expect("no local address").port()
        });
        places.make_cgroups();
        places.configure(port, gates);
        let mut kubelet = Self { node: places, process: None, port };
        kubelet.spawn();
        kubelet.wait_up().await;
        Some(kubelet)
    }

    fn spawn(&mut self) {
        let dir = &self.node.dir;
        let log = std::fs::File::options().create(true).append(true).open(dir.join("kubelet.log"));
        let log = log.expect("cannot open the kubelet's log");
        let mut command = self.node.netns.command(binary().expect("the kubelet was there"));
        command.arg("--config").arg(dir.join("kubelet.json"));
        command.arg("--root-dir").arg(dir.join("kubelet")).arg("--cert-dir").arg(dir.join("kubelet/pki"));
        command.args(["--hostname-override", NODE, "--node-ip", "192.0.2.10", "--v=2"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("cannot start the kubelet"));
    }

    async fn wait_up(&mut self) {
        let end = Instant::now() + Duration::from_secs(40);
        while Instant::now() < end {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            assert!(ended.is_none(), "the kubelet ended ({ended:?}):\n{}", self.tail());
            if self.get("/healthz").await.is_ok_and(|answer| answer.code == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the kubelet does not serve:\n{}", self.tail());
    }

    /// Ends the kubelet as a crash would. Pods run on.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("cannot kill the kubelet");
            process.wait().expect("cannot reap the kubelet");
        }
    }

    /// Kills the kubelet and starts it again on the same folders.
    pub async fn restart(&mut self) {
        self.kill9();
        self.spawn();
        self.wait_up().await;
    }

    /// Writes a static pod's file. The kubelet reads its folder every second.
    pub fn place(&self, name: &str, spec: &Value) {
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": spec,
        });
        let folder = self.node.dir.join("manifests");
        // Written aside and renamed, so that half a file is never read.
        let draft = self.node.dir.join(format!("{name}.draft"));
        std::fs::write(&draft, manifest.to_string()).expect("cannot write the manifest");
        std::fs::rename(draft, folder.join(format!("{name}.json"))).expect("cannot place the manifest");
    }

    /// Takes a static pod's file away: the pod ends.
    pub fn withdraw(&self, name: &str) {
        let path = self.node.dir.join("manifests").join(format!("{name}.json"));
        std::fs::remove_file(path).expect("the manifest is not there");
    }

    /// All the pods that the kubelet knows, by the names of their manifests.
    pub async fn pod(&self, name: &str) -> Option<Value> {
        let answer = self.get("/pods").await.ok()?;
        let list: Value = serde_json::from_str(&answer.body).ok()?;
        let full = format!("{name}-{NODE}");
        list["items"].as_array()?.iter().find(|pod| pod["metadata"]["name"] == *full).cloned()
    }

    /// Waits for a state of a pod and gives it; panics with the last one seen when it does not come in time.
    pub async fn until(&self, name: &str, seconds: u64, what: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let came = eventually(Duration::from_secs(seconds), async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            last = self.pod(name).await;
            last.as_ref().is_some_and(&what)
        })
        .await;
        let last = last.unwrap_or_default();
        assert!(came, "{name} did not come so far in {seconds} s: {}\n{}", last["status"], self.tail());
        last
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, name: &str) -> Value {
        self.until(name, 40, is_ready).await
    }

    /// Waits until the kubelet no longer knows a pod.
    pub async fn gone(&self, name: &str, seconds: u64) {
        let gone = eventually(Duration::from_secs(seconds), async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let answer = self.get("/pods").await;
            answer.is_ok_and(|answer| answer.code == 200 && !answer.body.contains(&format!("{name}-{NODE}")))
        });
        assert!(gone.await, "the kubelet still knows {name}");
    }

    fn url(&self, path: &str) -> Url {
        Url::parse(&format!("https://127.0.0.1:{}{path}", self.port))
    }

    fn authority(&self) -> PathBuf {
        self.node.dir.join("kubelet-cert.pem")
    }

    /// The connection on which the answer to `GET path` comes until its end.
    pub async fn open(&self, path: &str) -> std::io::Result<BoxIo> {
        let url = self.url(path);
        let mut io = upgrade::connect(&self.node.netns, &url, Some(&self.authority())).await?;
        // Of HTTP 1.0 is wanted that the body is neither in chunks nor compressed.
        io.write_all(format!("GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").as_bytes()).await?;
        Ok(io)
    }

    /// What the kubelet's port answers to `GET path`.
    pub async fn get(&self, path: &str) -> std::io::Result<Answer> {
        let mut io = self.open(path).await?;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), io.read_to_end(&mut bytes)).await;
        read.expect("the kubelet does not answer for half a minute")?;
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        Ok(Answer { code, body: body.to_owned() })
    }

    /// What the kubelet's port answers to `GET path`, which must go well.
    pub async fn ask(&self, path: &str) -> String {
        let answer = self.get(path).await.expect("the kubelet hung up");
        assert_eq!(answer.code, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// A command in a container of a static pod, as the API server would ask for it.
    pub async fn exec(&self, at: &str, command: &[&str], protocol: Protocol, flags: Flags) -> Session {
        let words: String = command.iter().map(|word| format!("&command={}", escape(word))).collect();
        self.session(&format!("/exec/default/{at}?{}{words}", streams(flags)), protocol, flags).await
    }

    /// A session with a container's own process.
    pub async fn attach(&self, at: &str, protocol: Protocol, flags: Flags) -> Session {
        self.session(&format!("/attach/default/{at}?{}", streams(flags)), protocol, flags).await
    }

    async fn session(&self, path: &str, protocol: Protocol, flags: Flags) -> Session {
        let url = format!("https://127.0.0.1:{}{path}", self.port);
        let authority = self.authority();
        Session::command_trusting(&self.node.netns, &url, protocol, flags, Some(&authority)).await
    }

    /// Ports of a static pod.
    pub async fn forward(&self, name: &str, protocol: Protocol) -> Session {
        let url = format!("https://127.0.0.1:{}/portForward/default/{name}-{NODE}", self.port);
        Session::forward_trusting(&self.node.netns, &url, protocol, Some(&self.authority())).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.node.dir.join("kubelet.log")).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Ends the kubelet, when its pods are gone, and takes its own cgroups away. What is not empty stays to be found.
    pub fn finish(&mut self) {
        self.kill9();
        self.node.remove_cgroups();
        self.node.ip("link del pier0");
        // The kubelet mounts its folder on itself; a mount of a pod below would still be found.
        let root = self.node.dir.join("kubelet");
        nix::mount::umount(&root).expect("cannot unmount the kubelet's folder");
        std::fs::remove_dir_all(root).expect("cannot remove the kubelet's folder");
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.kill9();
        for (name, value) in tunables() {
            // Where it was refused, the kubelet could not change it either.
            let _ = std::fs::write(Path::new("/proc/sys").join(name), value);
        }
        for entry in std::fs::read_dir(LINKS).into_iter().flatten().flatten() {
            if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&self.node.dir)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Places {
    fn configure(&self, port: u16, gates: &[(&str, bool)]) {
        let dir = self.dir.display();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]);
        let made = made.expect("cannot make a certificate");
        let (cert, key) = (self.dir.join("kubelet-cert.pem"), self.dir.join("kubelet-key.pem"));
        std::fs::write(&cert, made.cert.pem()).expect("cannot write the certificate");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("cannot write the key");
        std::fs::write(self.dir.join("resolv.conf"), "nameserver 192.0.2.1\n")
            .expect("cannot write resolv.conf");
        let gates: serde_json::Map<_, _> =
            gates.iter().map(|(name, on)| ((*name).to_owned(), Value::Bool(*on))).collect();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{dir}/run.sock"),
            "address": "127.0.0.1", "port": port, "readOnlyPort": 0, "healthzPort": 0,
            "tlsCertFile": cert, "tlsPrivateKeyFile": key,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "staticPodPath": format!("{dir}/manifests"), "fileCheckFrequency": "1s", "syncFrequency": "1s",
            "podLogsDir": format!("{dir}/pod-logs"), "volumePluginDir": format!("{dir}/kubelet/plugins-exec"),
            "resolvConf": format!("{dir}/resolv.conf"),
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.mark), "cgroupsPerQOS": true,
            "failCgroupV1": false, "failSwapOn": false, "enforceNodeAllocatable": ["none"],
            "makeIPTablesUtilChains": false,
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi",
                "nodefs.inodesFree": "1", "imagefs.inodesFree": "1"},
            "featureGates": gates,
        });
        std::fs::write(self.dir.join("kubelet.json"), config.to_string())
            .expect("cannot configure the kubelet");
    }

    fn ip(&self, arguments: &str) {
        let status = self.netns.command("ip").args(arguments.split(' ')).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "ip {arguments} failed: apt-get install iproute2"
        );
    }

    /// The node's folder in every hierarchy: the kubelet wants its root to be there.
    fn cgroups(&self) -> impl Iterator<Item = PathBuf> {
        let single = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let roots: Vec<PathBuf> = if single {
            vec!["/sys/fs/cgroup".into()]
        } else {
            let entries = std::fs::read_dir("/sys/fs/cgroup").expect("no cgroups");
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        let mark = self.mark.clone();
        roots.into_iter().map(move |root| root.join(&mark))
    }

    fn make_cgroups(&self) {
        for folder in self.cgroups() {
            std::fs::create_dir_all(folder).expect("cannot make the kubelet's cgroup");
        }
    }

    fn remove_cgroups(&self) {
        for folder in self.cgroups() {
            for below in ["kubepods/besteffort", "kubepods/burstable", "kubepods", "."] {
                // One that holds something stays, for the check of what is left.
                let _ = std::fs::remove_dir(folder.join(below));
            }
        }
    }
}

/// Where PATH has a kubelet.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("kubelet")).find(|file| file.is_file())
}

/// The machine's settings from before the first kubelet of this process.
fn tunables() -> &'static [(&'static str, String)] {
    static BEFORE: OnceLock<Vec<(&str, String)>> = OnceLock::new();
    let read = |name| Some((name, std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?));
    BEFORE.get_or_init(|| TUNABLES.into_iter().filter_map(read).collect())
}

/// Whether a pod's condition Ready is true.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The status of a container, init containers included.
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let status = &pod["status"];
    let all = ["containerStatuses", "initContainerStatuses"].into_iter();
    let mut all = all.filter_map(|kind| status[kind].as_array()).flatten();
    all.find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

/// The path of a container at the kubelet's port.
pub fn at(pod: &str, container: &str) -> String {
    format!("{pod}-{NODE}/{container}")
}

fn streams(flags: Flags) -> String {
    let Flags { stdin, tty } = flags;
    format!("input={}&output=1&error={}&tty={}", u8::from(stdin), u8::from(!tty), u8::from(tty))
}

fn escape(word: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    word.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
