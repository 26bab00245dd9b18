//! A daemon on a throwaway root, state and socket, with a registry beside it.
//!
//! Invariant: whatever way a test ends, dropping the [`Node`] ends its processes, undoes its mounts and cgroups and
//! deletes its folder.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use cofferdam_proto::cri;

use super::leak::{self, Baseline};
use super::netns::Netns;
use super::{Registry, attached, binaries, eventually};
use crate::client::{Cri, build};
use crate::fixtures::catalog;

/// The folder that the machine's cgroups of all tests lie in is named after the node.
#[derive(Debug)]
pub struct Node {
    pub cri: Cri,
    pub netns: Netns,
    pub registry: Registry,
    folder: tempfile::TempDir,
    pub(super) daemon: Option<Child>,
    pub(super) env: Vec<(String, String)>,
    binaries: PathBuf,
    certs_d: PathBuf,
    announced: Mutex<Vec<String>>,
    pods: Mutex<Vec<String>>,
    pub(super) baseline: Option<Baseline>,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    pub config: cri::PodSandboxConfig,
}

type Prepare = Box<dyn FnOnce(&Path) + Send>;

/// What differs from the usual configuration.
#[derive(Default)]
pub struct NodeBuilder {
    sections: HashMap<&'static str, String>,
    cni: Vec<(String, String)>,
    disk: Option<String>,
    places: Vec<(&'static str, Prepare)>,
    env: Vec<(String, String)>,
    binaries: Option<PathBuf>,
}

impl NodeBuilder {
    /// Adds lines to a section of config.toml ("" is the top). `@DIR@` in them stands for the node's folder.
    pub fn config(mut self, section: &'static str, lines: &str) -> Self {
        let text = self.sections.entry(section).or_default();
        text.push_str(lines);
        text.push('\n');
        self
    }

    /// Puts a file into the CNI configuration folder. `@DIR@` in it stands for the node's folder.
    pub fn cni(mut self, name: &str, text: &str) -> Self {
        self.cni.push((name.into(), text.into()));
        self
    }

    /// Sets a variable of the daemon's environment, which its shims inherit.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon of this folder, which finds its shim beside itself.
    pub fn binaries(mut self, folder: PathBuf) -> Self {
        self.binaries = Some(folder);
        self
    }

    /// Puts the daemon's root on a disk of its own: a tmpfs with these mount options.
    pub fn disk(mut self, options: &str) -> Self {
        self.disk = Some(options.into());
        self
    }

    /// Lets `prepare` have a folder of the node's (`root`, `state`) while it is empty and the daemon does not run yet: to
    /// mount something there.
    pub fn place(mut self, name: &'static str, prepare: impl FnOnce(&Path) + Send + 'static) -> Self {
        self.places.push((name, Box::new(prepare)));
        self
    }

    /// A node with a daemon of its own. `None`, and a word about it, when the tests attach to another runtime.
    pub async fn start(self) -> Option<Node> {
        if attached().is_some() {
            println!("skipped: this test needs a daemon of its own");
            return None;
        }
        Some(Node::launch(self).await)
    }
}

impl Node {
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// A node as any test needs it: with a daemon of its own, or attached where the environment says so.
    pub async fn start() -> Self {
        match attached() {
            Some(endpoint) => Self::attach(&endpoint).await,
            None => Self::launch(NodeBuilder::default()).await,
        }
    }

    async fn attach(endpoint: &str) -> Self {
        let certs_d = std::env::var("COFFERDAM_TEST_CERTS_D").expect("set COFFERDAM_TEST_CERTS_D too");
        let node = Self::assemble(Netns::machine(), Cri::new(endpoint), folder(), PathBuf::from(certs_d));
        node.cri.version().await.expect("the endpoint does not answer");
        node
    }

    async fn launch(builder: NodeBuilder) -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "these tests make pods: run them as root");
        let folder = folder();
        let dir = folder.path().to_owned();
        for name in ["certs.d", "net.d", "logs"] {
            std::fs::create_dir(dir.join(name)).expect("cannot make the node's folders");
        }
        if let Some(options) = &builder.disk {
            let root = dir.join("root");
            std::fs::create_dir(&root).expect("cannot make the root");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &root, Some("tmpfs"), flags, Some(options.as_str()))
                .expect("cannot mount the root's disk");
        }
        for (name, prepare) in builder.places {
            let place = dir.join(name);
            std::fs::create_dir_all(&place).expect("cannot make the node's folders");
            prepare(&place);
        }
        for (name, text) in &builder.cni {
            let text = text.replace("@DIR@", &dir.display().to_string());
            std::fs::write(dir.join("net.d").join(name), text).expect("cannot write the CNI configuration");
        }
        let text = config(&dir, &builder.sections).replace("@DIR@", &dir.display().to_string());
        std::fs::write(dir.join("config.toml"), text).expect("cannot write config.toml");
        let cri = Cri::new(&dir.join("run.sock").display().to_string());
        let mut node = Self::assemble(Netns::create(), cri, folder, dir.join("certs.d"));
        node.registry.announce(&node.certs_d, "docker.io");
        node.env = builder.env;
        node.binaries = builder.binaries.unwrap_or_else(binaries);
        node.spawn();
        node.wait_up().await;
        node.baseline = Some(Baseline::of(&node));
        node
    }

    fn assemble(netns: Netns, cri: Cri, folder: tempfile::TempDir, certs_d: PathBuf) -> Self {
        let registry = Registry::start(&netns);
        let node = Self {
            cri,
            netns,
            registry,
            folder,
            daemon: None,
            env: Vec::new(),
            binaries: binaries(),
            certs_d,
            announced: Mutex::default(),
            pods: Mutex::default(),
            baseline: None,
        };
        node.announce(&node.registry);
        node
    }

    pub(super) fn spawn(&mut self) {
        let binary = self.binaries.join("cofferdam");
        assert!(binary.exists(), "{} is not there: make build", binary.display());
        let log = std::fs::File::options().create(true).append(true).open(self.dir().join("daemon.log"));
        let mut command = self.netns.command(binary);
        command.arg("serve").arg("--config").arg(self.dir().join("config.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("cannot open the daemon's log"));
        command.env("RUST_BACKTRACE", "1").envs(self.env.iter().cloned());
        self.daemon = Some(command.spawn().expect("cannot start the daemon"));
    }

    async fn wait_up(&mut self) {
        let cri = self.cri.clone();
        let up = eventually(Duration::from_secs(20), async || cri.version().await.is_ok()).await;
        let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten());
        assert!(up && ended.is_none(), "the daemon does not serve ({ended:?}):\n{}", self.daemon_log());
    }

    /// The node's folder: root, state, logs and configuration lie in it.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The word that marks whatever belongs to this node.
    pub fn mark(&self) -> String {
        self.dir().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The daemon's process, where the node has one of its own.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.dir().join("daemon.log")).unwrap_or_default()
    }

    /// Makes the daemon know another registry by its own name.
    pub fn announce(&self, registry: &Registry) {
        let host = registry.host();
        registry.announce(&self.certs_d, &host);
        self.announced.lock().expect("poisoned").push(host);
    }

    /// Makes the daemon know `host` by what `text` says.
    pub fn write_hosts(&self, host: &str, text: &str) {
        let folder = self.certs_d.join(host);
        std::fs::create_dir_all(&folder).expect("cannot make the folder of hosts.toml");
        std::fs::write(folder.join("hosts.toml"), text).expect("cannot write hosts.toml");
        self.announced.lock().expect("poisoned").push(host.into());
    }

    /// Kills the daemon with SIGKILL and reaps it. Containers run on.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("cannot kill the daemon");
            daemon.wait().expect("cannot reap the daemon");
        }
    }

    /// Ends the daemon with SIGTERM; panics when it takes more than 15 s or fails.
    pub async fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("cannot signal the daemon");
        let mut status = None;
        let ended = eventually(Duration::from_secs(15), async || {
            status = daemon.try_wait().expect("cannot wait for the daemon");
            status.is_some()
        })
        .await;
        if !ended {
            // It is killed so that the test's clean-up can go on.
            let _ = daemon.kill();
        }
        assert!(ended && status.is_some_and(|status| status.success()), "SIGTERM: {status:?}");
    }

    /// Starts the daemon again on the same folders.
    pub async fn restart(&mut self) {
        self.kill9();
        self.spawn();
        self.wait_up().await;
    }

    /// Pushes the base image to the node's registry and pulls it. Gives its reference.
    pub async fn base_image(&self) -> String {
        let image = catalog::base().unwrap_or_else(|error| panic!("{error}"));
        let reference = self.registry.push("base", "1", &image);
        self.cri.pull(&reference, None).await.expect("cannot pull the base image");
        reference
    }

    /// A pod's configuration with this node's places.
    pub fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let logs = self.dir().join("logs").join(format!("{name}-{}", build::unique()));
        std::fs::create_dir_all(&logs).expect("cannot make the pod's log folder");
        build::pod(name, &format!("/{}", self.mark()), &logs.display().to_string())
    }

    /// Counts a pod that somebody else ran as this node's, for [`Node::assert_clean`].
    pub fn remember(&self, pod: &str) {
        self.pods.lock().expect("poisoned").push(pod.to_owned());
    }

    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Pod {
        let id = self.cri.run_pod(config, "").await.expect("RunPodSandbox failed");
        self.pods.lock().expect("poisoned").push(id.clone());
        Pod { id, config: config.clone() }
    }

    /// Creates and starts a container.
    pub async fn run_container(&self, pod: &Pod, config: cri::ContainerConfig) -> String {
        let id = self.cri.create(&pod.id, &pod.config, config).await.expect("CreateContainer failed");
        self.cri.start(&id).await.expect("StartContainer failed");
        id
    }

    /// Runs a container to its end and gives its last status and its log.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        config: cri::ContainerConfig,
    ) -> (cri::ContainerStatus, Vec<super::log::Entry>) {
        let id = self.run_container(pod, config).await;
        let status =
            self.cri.wait_exited(&id, Duration::from_secs(15)).await.expect("ContainerStatus failed");
        assert_eq!(status.state(), cri::ContainerState::ContainerExited, "it still runs after 15 s");
        let entries = super::log::read(Path::new(&status.log_path));
        (status, entries)
    }

    /// Runs a shell script to its end in a container and gives what it wrote to stdout.
    pub async fn output(&self, pod: &Pod, config: cri::ContainerConfig) -> String {
        super::log::joined(&self.run_to_end(pod, config).await.1, "stdout")
    }

    pub async fn destroy(&self, pod: &Pod) {
        self.cri.destroy_pod(&pod.id).await.expect("the pod cannot be removed");
    }

    /// Checks that nothing of this node is left: no pod, container, mount, namespace, link, nft rule, cgroup, process,
    /// descriptor or file. Removes the images first. Tries for five seconds; then panics with all that is left.
    pub async fn assert_clean(&self) {
        let pods = self.pods.lock().expect("poisoned").clone();
        leak::assert_clean(self, &pods).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && self.baseline.is_some() {
            let log = self.daemon_log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.len().saturating_sub(60);
            eprintln!("the daemon's log ends with:\n{}", lines[tail..].join("\n"));
        }
        let pods = std::mem::take(&mut *self.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if self.daemon.is_none() && self.baseline.is_none() {
            leak::destroy_pods(self.cri.socket(), pods);
        }
        self.kill9();
        leak::sweep(self.dir(), &self.mark());
        for host in self.announced.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
            // The folder may be the other runtime's: only what this node wrote goes.
            let _ = std::fs::remove_dir_all(self.certs_d.join(host));
        }
    }
}

fn folder() -> tempfile::TempDir {
    // Short on purpose: names of unix sockets hold 107 bytes.
    let folder = tempfile::Builder::new().prefix("cft-").rand_bytes(5).tempdir_in("/tmp");
    let folder = folder.expect("no temp folder");
    // Others may pass, as on a real node: a pod with users of its own has to reach its files.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))
        .expect("cannot open the folder");
    folder
}

fn config(dir: &Path, extra: &HashMap<&'static str, String>) -> String {
    let dir = dir.display();
    let mut sections = vec![
        ("", format!("root = \"{dir}/root\"\nstate = \"{dir}/state\"\nsocket = \"{dir}/run.sock\"\n")),
        ("image", format!("registry_config = \"{dir}/certs.d\"\n")),
        ("network", String::new()),
        ("streaming", "address = \"127.0.0.1:0\"\n".into()),
        // Off, unless the test is about them.
        ("nri", String::new()),
        ("metrics", if extra.contains_key("metrics") { String::new() } else { "address = \"\"\n".into() }),
    ];
    // Another shim in place of ours, with the OCI runtime it should use.
    if let Some(path) = std::env::var_os("COFFERDAM_TEST_SHIM") {
        sections[0].1 += "default_runtime = \"tested\"\n";
        let mut lines = format!("path = {path:?}\n");
        if let Some(binary) = std::env::var_os("COFFERDAM_TEST_OCI_RUNTIME") {
            let _ = writeln!(lines, "binary = {binary:?}");
        }
        sections.push(("runtimes.tested", lines));
    }
    let network = extra.get("network").map_or("", String::as_str);
    let defaults = [
        ("conf_dir", format!("\"{dir}/net.d\"")),
        ("bin_dirs", "[\"/usr/lib/cni\"]".into()),
        ("subnets", "[\"10.88.7.0/24\"]".into()),
        ("bridge", "\"cft0\"".into()),
    ];
    for (key, value) in defaults.iter().filter(|(key, _)| !network.contains(key)) {
        // Writing into a String cannot fail.
        let _ = writeln!(sections[2].1, "{key} = {value}");
    }
    let nri = extra.get("nri").map_or("", String::as_str);
    for (key, value) in [("socket", "\"\""), ("plugin_path", "\"\"")] {
        if !nri.lines().any(|line| line.starts_with(key)) {
            let _ = writeln!(sections[4].1, "{key} = {value}");
        }
    }
    for (name, lines) in extra {
        match sections.iter_mut().find(|(section, _)| section == name) {
            Some((_, text)) => text.push_str(lines),
            None => sections.push((name, lines.clone())),
        }
    }
    let mut text = String::new();
    for (name, lines) in sections {
        if !name.is_empty() {
            let _ = writeln!(text, "[{name}]");
        }
        text.push_str(&lines);
    }
    text
}
