//! One runtime under measurement: its clients, what its pods are called, and removing them.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::{Cri, build};
use tonic::Status;

use super::Error;

/// The label that marks the pods of this process.
const LABEL: &str = "cri-bench";

/// What a container runs. The number tells it apart from other sleepers.
pub const WORKLOAD: [&str; 2] = ["sleep", "86399"];

/// A runtime and what this run makes on it.
pub struct Endpoint {
    pub cri: Cri,
    pub socket: String,
    pub handler: String,
    pub image: String,
    /// Part of the cgroup path of every process of our pods.
    pub mark: String,
    logs: tempfile::TempDir,
    driver: Mutex<cri::CgroupDriver>,
    /// Whether the image is ours to remove.
    pulled: Mutex<bool>,
    /// Whether it ever answered: only then is there something to clean up.
    answered: AtomicBool,
}

impl Endpoint {
    pub fn new(number: usize, socket: &str, handler: &str, image: &str) -> Result<Self, Error> {
        let logs = tempfile::Builder::new().prefix("cri-bench-").tempdir();
        Ok(Self {
            cri: Cri::new(socket),
            socket: socket.into(),
            handler: handler.into(),
            image: image.into(),
            mark: format!("cribench{}x{number}", std::process::id()),
            logs: logs.map_err(|source| Error::Folder { source })?,
            driver: Mutex::new(cri::CgroupDriver::Cgroupfs),
            pulled: Mutex::new(false),
            answered: AtomicBool::new(false),
        })
    }

    /// Turns a call's status into our error.
    pub fn failed(&self, operation: &'static str) -> impl FnOnce(Status) -> Error {
        let socket = self.socket.clone();
        move |status| Error::Call { operation, socket, status: Box::new(status) }
    }

    /// Asks who it is and sees to the image. Gives the runtime's name and version, and whether the image can be pulled.
    pub async fn prepare(&self) -> Result<(String, bool), Error> {
        let version = self.cri.version().await.map_err(self.failed("Version"))?;
        self.answered.store(true, Ordering::Relaxed);
        let config = self.cri.runtime.clone().runtime_config(cri::RuntimeConfigRequest {}).await;
        if let Some(linux) = config.ok().and_then(|answer| answer.into_inner().linux) {
            *self.driver.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = linux.cgroup_driver();
        }
        let there = self.cri.image_status(&self.image).await.map_err(self.failed("ImageStatus"))?.is_some();
        let pull = self.cri.pull(&self.image, None).await;
        let pullable = pull.is_ok();
        match pull {
            Ok(_) => *self.pulled.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = !there,
            Err(status) if there => eprintln!(
                "cri-bench: {} cannot pull {}, which is there: PullImage is left out ({})",
                self.socket,
                self.image,
                status.message()
            ),
            Err(status) => return Err(self.failed("PullImage")(status)),
        }
        Ok((format!("{} {}", version.runtime_name, version.runtime_version), pullable))
    }

    pub fn pod(&self) -> cri::PodSandboxConfig {
        let mut config =
            build::pod("bench", &format!("/{}", self.mark), &self.logs.path().display().to_string());
        config.labels.insert(LABEL.into(), self.mark.clone());
        let driver = *self.driver.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if driver == cri::CgroupDriver::Systemd {
            config.linux.get_or_insert_default().cgroup_parent = format!("{}.slice", self.mark);
        }
        config
    }

    /// The container of a pod; logs of different pods lie in files of their own.
    pub fn container(&self) -> cri::ContainerConfig {
        let mut config = build::container("bench", &self.image, &WORKLOAD);
        config.log_path = format!("{}.log", build::unique());
        config
    }

    /// The pods of this run.
    pub async fn pods(&self) -> Result<Vec<String>, Error> {
        let filter = cri::PodSandboxFilter {
            label_selector: [(LABEL.to_owned(), self.mark.clone())].into(),
            ..Default::default()
        };
        let pods = self.cri.list_pods(Some(filter)).await.map_err(self.failed("ListPodSandbox"))?;
        Ok(pods.into_iter().map(|pod| pod.id).collect())
    }

    /// Removes every pod of this run, and the image if this run brought it.
    pub async fn clean(&self) -> Result<(), Error> {
        // Without an answer to the first question nothing was made.
        let mut quiet = if self.answered.load(Ordering::Relaxed) { 0 } else { 2 };
        // A call that was cut off may still make its pod: look until there was none twice.
        while quiet < 2 {
            let pods = self.pods().await?;
            quiet = if pods.is_empty() { quiet + 1 } else { 0 };
            for pod in &pods {
                self.cri.destroy_pod(pod).await.map_err(self.failed("RemovePodSandbox"))?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let pulled = *self.pulled.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if pulled {
            self.cri.remove_image(&self.image).await.map_err(self.failed("RemoveImage"))?;
        }
        remove_cgroups(&self.mark);
        Ok(())
    }
}

/// Removes the pods' cgroups, which are the caller's with a real kubelet. Those in use stay.
fn remove_cgroups(mark: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let folder = hierarchy.join(mark);
        for pod in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if pod.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = std::fs::remove_dir(pod.path());
            }
        }
        let _ = std::fs::remove_dir(&folder);
    }
}
