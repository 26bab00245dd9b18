//! One pod's life as a kubelet drives it: look first, then do what is missing, and begin again after every failure.
//!
//! It runs a pod with containers that count into their logs and end with codes that are known, uses everything that
//! has steps, and takes all of it away again. What it sees on the way it checks: no pod and no exit is lost, no pod is there
//! twice, no line of a log is missing or doubled.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri::{self, ContainerState, PodSandboxState};
use cofferdam_tests::client::{Cri, build};
use cofferdam_tests::harness::{Node, log};
use tonic::Status;

use crate::sessions::Sessions;

/// What `main` prints and ends with.
const LINES: u32 = 20;
const MAIN: &str = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; usleep 2000; done; exit 7";
const MAIN_CODE: i32 = 7;
const SERVER: &str = "trap 'exit 3' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 30000; done";
const SERVER_CODE: i32 = 3;
/// A container that could not be started, or was stopped before.
const START_ERROR: i32 = 128;
const PATIENCE: Duration = Duration::from_secs(20);
const SHARES: i64 = 512;

/// What may happen besides the daemon's death.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// A shim is killed: its container ends with a code nobody chose, and its pod is not ready when it was the pause's.
    pub shims_die: bool,
    /// A shim is killed that has not read all output yet.
    pub output_ends: bool,
    /// A start may fail: the container has exited then, and the kubelet makes another.
    pub starts_fail: bool,
}

/// How far a life goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// The image is pulled.
    Pulled,
    /// Everything runs that is to run, and nothing was stopped.
    Running,
    /// Nothing is left.
    Gone,
}

/// What a life does besides, where a point is in it: each costs more than the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    Nothing,
    /// A container is made from a checkpoint.
    Restores,
    /// Clients execute a command and attach themselves.
    Streams,
    /// An artifact is pulled.
    Artifact,
    /// All of it in a virtual machine, and less of it.
    Machine,
}

/// What lives on a node are made of.
#[derive(Clone, Debug)]
pub struct Material {
    pub image: String,
    /// Of an image that is imported, and what it is called.
    pub archive: PathBuf,
    pub imported: String,
    /// Of a container of the image.
    pub checkpoint: PathBuf,
    pub artifact: String,
}

pub struct Life {
    cri: Cri,
    tolerance: Tolerance,
    besides: Besides,
    material: Material,
    sessions: Sessions,
    config: cri::PodSandboxConfig,
    dir: PathBuf,
    mark: String,
    /// A container that was created and not started is started, and not made anew as a kubelet does.
    start_created: bool,
    /// Pods that were seen, for the search for what is left of them.
    pub pods: BTreeSet<String>,
    /// Of the pod that is ready now.
    pod: String,
    /// Steps that are done, of this pod.
    done: BTreeSet<&'static str>,
    /// Everything is to go.
    going: bool,
}

impl Life {
    pub fn new(
        node: &Node,
        material: &Material,
        tolerance: Tolerance,
        besides: Besides,
        start_created: bool,
    ) -> Self {
        let mut config = node.pod("life");
        if besides == Besides::Restores {
            build::pod_security(&mut config).privileged = true;
        }
        Self {
            cri: node.cri.clone(),
            tolerance,
            besides,
            material: material.clone(),
            sessions: Sessions::of(node),
            config,
            dir: node.dir().to_owned(),
            mark: node.mark(),
            start_created,
            pods: BTreeSet::new(),
            pod: String::new(),
            done: BTreeSet::new(),
            going: false,
        }
    }

    /// Goes on from wherever things are.
    pub async fn go(&mut self, until: Until) -> Result<(), Status> {
        if !self.going {
            self.pull().await?;
            if until == Until::Pulled {
                return Ok(());
            }
            self.live(until).await?;
            if until == Until::Running {
                return Ok(());
            }
            self.going = true;
        }
        self.take_away().await
    }

    async fn pull(&mut self) -> Result<(), Status> {
        if self.cri.image_status(&self.material.image).await?.is_none() {
            self.cri.pull(&self.material.image, None).await?;
        }
        let artifact = &self.material.artifact;
        if self.besides == Besides::Artifact && self.cri.image_status(artifact).await?.is_none() {
            self.cri.pull(artifact, None).await?;
        }
        Ok(())
    }

    async fn live(&mut self, until: Until) -> Result<(), Status> {
        self.run_pod().await?;
        if self.besides == Besides::Machine {
            let server = self.container("server", SERVER, Some(SERVER_CODE)).await?;
            return self.stop_server(&server).await;
        }
        let server = self.container("server", SERVER, Some(SERVER_CODE)).await?;
        let running = server.state() == ContainerState::ContainerRunning;
        self.main_ends().await?;
        self.container("sleeper", "exec sleep 100000", None).await?;
        self.create_only("late").await?;
        if running && !self.done.contains("used") {
            self.use_server(&server).await?;
            self.done.insert("used");
        }
        match self.besides {
            Besides::Nothing => {}
            Besides::Restores => self.restore().await?,
            Besides::Streams if running => self.sessions.hold("server").await?,
            Besides::Streams | Besides::Artifact | Besides::Machine => {}
        }
        self.resize_pod().await?;
        if until == Until::Running {
            return Ok(());
        }
        self.import().await?;
        if running {
            self.stop_server(&server).await?;
        }
        Ok(())
    }

    /// The pod's sandboxes, the newest last.
    async fn sandboxes(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        let mut all = self.cri.list_pods(None).await?;
        all.sort_by_key(|pod| pod.metadata.as_ref().map(|m| m.attempt));
        let attempts: BTreeSet<_> = all.iter().map(|pod| pod.metadata.as_ref().map(|m| m.attempt)).collect();
        assert_eq!(attempts.len(), all.len(), "a pod is there twice: {all:#?}");
        Ok(all)
    }

    async fn run_pod(&mut self) -> Result<(), Status> {
        let all = self.sandboxes().await?;
        self.pods.extend(all.iter().map(|pod| pod.id.clone()));
        let ready: Vec<_> = all.iter().filter(|p| p.state() == PodSandboxState::SandboxReady).collect();
        assert!(ready.len() <= 1, "several sandboxes of the pod are ready: {ready:#?}");
        if let Some(ready) = ready.first() {
            self.take_pod(ready.id.clone());
            return Ok(());
        }
        let known = !self.pod.is_empty();
        assert!(!known || self.tolerance.shims_die, "the pod {} is lost: {all:#?}", self.pod);
        for pod in &all {
            self.cri.stop_pod(&pod.id).await?;
        }
        if let Some(last) = all.last() {
            let attempt = last.metadata.as_ref().map_or(0, |m| m.attempt + 1);
            self.config.metadata.get_or_insert_default().attempt = attempt;
        }
        let handler = if self.besides == Besides::Machine { "vm" } else { "" };
        let id = self.cri.run_pod(&self.config, handler).await?;
        self.pods.insert(id.clone());
        self.take_pod(id);
        Ok(())
    }

    fn take_pod(&mut self, id: String) {
        if self.pod != id {
            self.done.clear();
            self.pod = id;
        }
    }

    /// The containers of this name in the pod, the newest last.
    async fn attempts(&self, name: &str) -> Result<Vec<cri::Container>, Status> {
        let mut all = self.cri.list(None).await?;
        all.retain(|one| {
            one.pod_sandbox_id == self.pod && one.metadata.as_ref().is_some_and(|m| m.name == name)
        });
        all.sort_by_key(|one| one.metadata.as_ref().map(|m| m.attempt));
        let numbers: BTreeSet<_> = all.iter().map(|one| one.metadata.as_ref().map(|m| m.attempt)).collect();
        assert_eq!(numbers.len(), all.len(), "a container is there twice: {all:#?}");
        Ok(all)
    }

    /// Creates the next attempt: they are counted over all sandboxes of the pod.
    async fn create(&self, name: &str, script: &str) -> Result<String, Status> {
        let all = self.cri.list(None).await?;
        let same = all.iter().filter_map(|one| one.metadata.as_ref()).filter(|m| m.name == name);
        let attempt = same.map(|m| m.attempt + 1).max().unwrap_or(0);
        let image = &self.material.image;
        let mut config = match name {
            "restored" => restored(&self.material.checkpoint),
            _ => build::shell(name, image, script),
        };
        config.metadata.get_or_insert_default().attempt = attempt;
        config.log_path = format!("{name}/{attempt}.log");
        if name == "sleeper" {
            config.mounts.push(cri::Mount {
                container_path: "/volume".into(),
                image: Some(build::image(image)),
                readonly: true,
                ..Default::default()
            });
        }
        self.cri.create(&self.pod, &self.config, config).await
    }

    /// A container from a checkpoint. The criu that it meets does what the steps need, whether or not this kernel can do its
    /// own; where a step fails, the container has exited.
    async fn restore(&mut self) -> Result<(), Status> {
        let all = self.attempts("restored").await?;
        assert!(!all.is_empty() || !self.done.contains("restored"), "the restored container is lost");
        let id = match all.last() {
            Some(last) if last.state() == ContainerState::ContainerCreated => last.id.clone(),
            Some(_) => return Ok(()),
            None => self.create("restored", "").await?,
        };
        self.done.insert("restored");
        let started = self.cri.start(&id).await;
        let status = self.cri.status(&id).await?;
        let runs = status.state() == ContainerState::ContainerRunning;
        self.check_code(&status, runs.then_some(status.exit_code));
        if runs { Ok(()) } else { started }
    }

    /// A container that runs, or has ended with `code`.
    async fn container(
        &mut self,
        name: &'static str,
        script: &str,
        code: Option<i32>,
    ) -> Result<cri::ContainerStatus, Status> {
        let all = self.attempts(name).await?;
        if let Some(last) = all.last() {
            let status = self.cri.status(&last.id).await?;
            match status.state() {
                ContainerState::ContainerRunning => return Ok(status),
                ContainerState::ContainerExited if code == Some(status.exit_code) => return Ok(status),
                ContainerState::ContainerExited => self.check_code(&status, code),
                ContainerState::ContainerCreated if self.start_created => {
                    self.cri.start(&last.id).await?;
                    return self.cri.status(&last.id).await;
                }
                _ => {}
            }
        } else {
            assert!(!self.done.contains(name), "the container {name} is lost");
        }
        let id = self.create(name, script).await?;
        self.cri.start(&id).await?;
        self.done.insert(name);
        self.cri.status(&id).await
    }

    /// An exit that nobody asked for.
    fn check_code(&self, status: &cri::ContainerStatus, code: Option<i32>) {
        let start_failed = self.tolerance.starts_fail && status.exit_code == START_ERROR;
        assert!(
            code == Some(status.exit_code) || self.tolerance.shims_die || start_failed,
            "the exit code is lost: {status:#?}"
        );
    }

    async fn main_ends(&mut self) -> Result<(), Status> {
        loop {
            let status = self.container("main", MAIN, Some(MAIN_CODE)).await?;
            let status = self.cri.wait_exited(&status.id, PATIENCE).await?;
            assert_eq!(status.state(), ContainerState::ContainerExited, "main does not end");
            self.check_code(&status, Some(MAIN_CODE));
            if status.exit_code == MAIN_CODE {
                let numbers = numbers(&[Path::new(&status.log_path)]);
                let whole = numbers.len() == LINES as usize || self.tolerance.output_ends;
                assert!(whole && counts(&numbers), "the log of main: {numbers:?}");
                return Ok(());
            }
        }
    }

    async fn create_only(&mut self, name: &'static str) -> Result<(), Status> {
        if self.attempts(name).await?.is_empty() {
            assert!(!self.done.contains(name), "the container {name} is lost");
            self.create(name, "exit 99").await?;
            self.done.insert(name);
        }
        Ok(())
    }

    async fn use_server(&mut self, server: &cri::ContainerStatus) -> Result<(), Status> {
        let id = &server.id;
        let answer = self.cri.exec_sync(id, &["echo", "here"], 10).await?;
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"here\n"[..], 0), "exec");
        let resources = cri::LinuxContainerResources { cpu_shares: SHARES, ..Default::default() };
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.cri.runtime.clone().update_container_resources(request).await?;
        let told = self.cri.status(id).await?.resources.and_then(|r| r.linux).map(|linux| linux.cpu_shares);
        assert_eq!(told, Some(SHARES), "the resources after their update");
        self.checkpoint(id).await?;
        self.rotate(server).await
    }

    async fn checkpoint(&self, id: &str) -> Result<(), Status> {
        let location = self.dir.join("checkpoint.tar");
        let request = cri::CheckpointContainerRequest {
            container_id: id.into(),
            location: location.display().to_string(),
            timeout: 20,
        };
        self.cri.runtime.clone().checkpoint_container(request).await?;
        std::fs::remove_file(&location).expect("there is no checkpoint");
        let beside = std::fs::read_dir(&self.dir).expect("cannot list the node's folder").flatten();
        let left: Vec<_> = beside
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().starts_with(".checkpoint"))
            .collect();
        assert!(left.is_empty(), "parts of checkpoints are left: {left:?}");
        Ok(())
    }

    /// As the kubelet rotates: the log is renamed, then the runtime told.
    async fn rotate(&mut self, server: &cri::ContainerStatus) -> Result<(), Status> {
        let log = Path::new(&server.log_path);
        let old = log.with_extension("old");
        if !old.exists() {
            std::fs::rename(log, &old).expect("cannot rename the log");
        }
        let request = cri::ReopenContainerLogRequest { container_id: server.id.clone() };
        self.cri.runtime.clone().reopen_container_log(request).await?;
        assert!(log.exists(), "there is no new log after ReopenContainerLog");
        Ok(())
    }

    async fn resize_pod(&self) -> Result<(), Status> {
        let resources = cri::LinuxContainerResources { cpu_shares: SHARES, ..Default::default() };
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: self.pod.clone(),
            overhead: Some(resources.clone()),
            resources: Some(resources),
        };
        self.cri.runtime.clone().update_pod_sandbox_resources(request).await.map(drop)
    }

    async fn stop_server(&self, server: &cri::ContainerStatus) -> Result<(), Status> {
        self.cri.stop(&server.id, 10).await?;
        let status = self.cri.wait_exited(&server.id, PATIENCE).await?;
        assert_eq!(status.state(), ContainerState::ContainerExited, "server still runs after its stop");
        self.check_code(&status, Some(SERVER_CODE));
        let log = PathBuf::from(&server.log_path);
        let numbers = numbers(&[&log.with_extension("old"), &log]);
        assert!(counts(&numbers), "the log of server: {numbers:?}");
        Ok(())
    }

    async fn take_away(&mut self) -> Result<(), Status> {
        for pod in self.sandboxes().await? {
            self.cri.stop_pod(&pod.id).await?;
            let exits = self.exits(&pod.id).await?;
            self.check_exits(&exits);
            for id in exits.keys() {
                self.cri.remove(id).await?;
            }
            self.cri.remove_pod(&pod.id).await?;
        }
        let left = self.cri.list(None).await?;
        assert!(left.is_empty(), "containers without a pod: {left:#?}");
        self.cri.remove_image(&self.material.imported).await?;
        let failures = self.cri.prune().await?.failures;
        if !failures.is_empty() {
            return Err(Status::internal(failures.join("; ")));
        }
        let left = self.cri.list_images().await?;
        assert!(left.is_empty(), "images that nobody uses are not pruned: {left:#?}");
        self.remove_cgroups();
        Ok(())
    }

    async fn exits(&self, pod: &str) -> Result<HashMap<String, cri::ContainerStatus>, Status> {
        let mut found = HashMap::new();
        for one in self.cri.list(None).await?.into_iter().filter(|one| one.pod_sandbox_id == pod) {
            found.insert(one.id.clone(), self.cri.status(&one.id).await?);
        }
        Ok(found)
    }

    /// Everything has ended, each as it was told to.
    fn check_exits(&self, exits: &HashMap<String, cri::ContainerStatus>) {
        for status in exits.values() {
            let name = status.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
            assert_eq!(status.state(), ContainerState::ContainerExited, "{name} runs in a stopped pod");
            let log = Path::new(&status.log_path);
            let printed =
                if name == "server" { numbers(&[&log.with_extension("old"), log]) } else { numbers(&[log]) };
            assert!(counts(&printed), "the log of {name}: {printed:?}");
            let never_started = status.exit_code == START_ERROR && status.started_at == 0;
            let codes: &[i32] = match name {
                "main" => &[MAIN_CODE],
                "server" => &[SERVER_CODE],
                "sleeper" | "restored" => &[137],
                _ => &[],
            };
            assert!(
                codes.contains(&status.exit_code) || never_started || self.tolerance.shims_die,
                "the exit code is lost: {status:#?}"
            );
        }
    }

    /// The kubelet removes the pod's own cgroup.
    fn remove_cgroups(&self) {
        let Some(parent) = self.config.linux.as_ref().map(|l| l.cgroup_parent.trim_start_matches('/')) else {
            return;
        };
        assert!(parent.starts_with(&self.mark), "{parent}");
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // One that is occupied is found by the search for what is left.
            let _ = std::fs::remove_dir(hierarchy.path().join(parent));
        }
    }

    /// Imports an image from an archive, as the operator does.
    async fn import(&mut self) -> Result<(), Status> {
        if self.cri.image_status(&self.material.imported).await?.is_some() {
            return Ok(());
        }
        self.cri.import(&self.material.archive).await
    }
}

/// What asks for a container from a checkpoint. In the node's pid namespace, so that the process which takes the restored one's
/// place needs none of its own; privileged, so that it has no right that the container has not.
fn restored(checkpoint: &Path) -> cri::ContainerConfig {
    let mut config = build::container("restored", &checkpoint.display().to_string(), &[]);
    let security = build::security(&mut config);
    security.privileged = true;
    security.namespace_options.get_or_insert_default().set_pid(cri::NamespaceMode::Node);
    config
}

/// Whether nothing is missing in between and nothing doubled.
fn counts(numbers: &[u32]) -> bool {
    std::iter::zip(1.., numbers).all(|(expected, number)| expected == *number)
}

/// The numbers that containers counted into these logs.
fn numbers(logs: &[&Path]) -> Vec<u32> {
    let entries = logs.iter().filter(|path| path.exists()).flat_map(|path| log::read(path));
    entries.map(|entry| entry.text.parse().unwrap_or_else(|_| panic!("a line of a log: {entry:?}"))).collect()
}
