//! The pod network: attaches sandboxes as a CNI runtime, with the operator's plugins or with the built-in bridge.
//!
//! On disk, under the daemon's state folder:
//!
//! ```text
//! netns/<sandbox id>               the pinned network namespace (netns.rs)
//! cni/results/<sandbox id>.json    what the sandbox was attached with, and the result (cache.rs)
//! cni/pod-cidr                     what the kubelet last told
//! ```
//!
//! Invariant: a record exists from before the first ADD until after the last DEL, so whatever a crash leaves can be
//! detached, with the configuration of its ADD. Specification: CNI 1.1.0, and the runtime's part of its conventions.

mod attachment;
mod builtin;
mod cache;
mod capability;
mod chain;
mod conf;
pub mod dial;
mod error;
mod exec;
pub mod netns;
mod pod_cidr;
mod provide;
mod result;
mod watch;

#[cfg(test)]
mod fake_plugins_test;
#[cfg(test)]
mod privileged_test;

use cofferdam_failpoints::failpoint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, RwLock};

pub use attachment::{AttachResult, Dns, PodAttachment, PortMapping, Protocol};
pub use error::{NetworkError, NotReady};

use crate::model::SandboxId;
use builtin::Builtin;
use cache::{Cache, Provider, Record};
use conf::NetworkList;
use exec::Executor;
use pod_cidr::PodCidr;
use watch::{ConfDir, Selection};

/// The pod's interface in its namespace, as the kubelet and network policies expect it.
const INTERFACE: &str = "eth0";
/// How long one answer of CNI STATUS holds; the kubelet asks every few seconds.
const STATUS_HOLDS: Duration = Duration::from_secs(10);
/// An answer of STATUS that took so long is kept even when it is bad: callers must not wait for it one after the other.
const SLOW: Duration = Duration::from_secs(1);
/// For STATUS and GC: neither the kubelet's Status call nor new pods may wait for a hanging plugin as long as ADD may.
const SHORT_LIMIT: Duration = Duration::from_secs(10);
/// How long GC waits for a moment without ADD and DEL before it leaves the plugins for the next round.
const GC_PATIENCE: Duration = Duration::from_secs(5);

/// `[network]` of the daemon's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where CNI configurations lie; while it holds none, the built-in bridge serves.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// The subnets of the built-in bridge, at most one per family.
    pub subnets: Vec<String>,
    /// The name of the built-in bridge.
    pub bridge: String,
    /// How long one plugin may take for one command.
    pub timeout_seconds: u64,
    /// The MTU of the built-in bridge; 0 leaves it to the kernel.
    pub mtu: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            bin_dirs: vec![PathBuf::from("/opt/cni/bin")],
            subnets: vec!["10.85.0.0/16".to_owned()],
            bridge: "cofferdam0".to_owned(),
            timeout_seconds: 60,
            mtu: 0,
        }
    }
}

/// The network is ready, and this serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The network's name.
    pub network: String,
    /// Its configuration file; `None` for the built-in bridge.
    pub source: Option<PathBuf>,
    /// What is wrong all the same, such as a broken file beside a loaded network.
    pub warning: Option<String>,
}

/// The pod network of the node.
#[derive(Debug)]
pub struct Network {
    conf_dir: ConfDir,
    executor: Executor,
    builtin: Builtin,
    cache: Cache,
    pod_cidr: PodCidr,
    /// ADD, DEL and CHECK hold it shared; the plugins' GC, which must run alone, exclusively.
    gate: RwLock<()>,
    status: Mutex<Option<KnownStatus>>,
}

/// An answer of CNI STATUS, and of which network it is.
#[derive(Debug)]
struct KnownStatus {
    of: Arc<NetworkList>,
    at: Instant,
    answer: Result<(), NotReady>,
}

impl Network {
    /// The network as configured. Nothing is required to exist yet; [`Self::status`] tells what is missing.
    #[must_use]
    pub fn open(config: &Config, state_dir: &Path) -> Self {
        let cni = state_dir.join("cni");
        let executor = Executor {
            // Plugins are run from another folder than ours.
            bin_dirs: config
                .bin_dirs
                .iter()
                .map(|dir| std::path::absolute(dir).unwrap_or(dir.clone()))
                .collect(),
            timeout: Duration::from_secs(config.timeout_seconds.max(1)),
        };
        Self {
            conf_dir: ConfDir::new(config.conf_dir.clone()),
            executor,
            builtin: Builtin::new(config, &cni),
            cache: Cache::new(cni.join("results")),
            pod_cidr: PodCidr::load(cni.join("pod-cidr")),
            gate: RwLock::new(()),
            status: Mutex::new(None),
        }
    }

    /// How long one plugin may take for one command.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.executor.timeout
    }

    /// Gives the pod its addresses. What an earlier, unfinished attempt left is taken back first.
    ///
    /// # Errors
    /// When there is no usable network or it fails; then nothing of the attempt is left, or a record is, with which
    /// [`Self::detach`] takes back the rest.
    ///
    /// Calls for one sandbox must not overlap. When the future is dropped, plugins are killed and the record stays; the
    /// built-in bridge's work, once begun, runs to its end.
    pub async fn attach(&self, pod: &PodAttachment) -> Result<AttachResult, NetworkError> {
        let _shared = self.gate.read().await;
        if let Some(left) = self.record(&pod.sandbox_id)? {
            self.release(&left).await?;
        }
        let mut record = Record {
            provider: self.provider(pod).await?,
            interface: INTERFACE.to_owned(),
            pod: pod.clone(),
            pod_cidr: self.pod_cidr.get(),
            result: None,
        };
        self.cache.store(&record)?;
        failpoint!("network.attach.recorded");
        match self.add(&mut record).await {
            Ok(attached) => Ok(attached),
            // The sandbox's teardown runs DEL in any case. After a plugin that hung, once is enough to wait for it.
            Err(failure @ NetworkError::TimedOut { .. }) => Err(failure),
            Err(failure) => {
                failpoint!("network.attach.failed", infallible);
                if let Err(left) = self.release(&record).await {
                    tracing::warn!(sandbox = %pod.sandbox_id, error = %error::chain(&left),
                        "a failed attachment could not be taken back; the next detach tries again");
                }
                Err(failure)
            }
        }
    }

    /// Takes the pod's network back, with the configuration that it was attached with. Repeating it does nothing.
    ///
    /// # Errors
    /// When a plugin fails; the record is kept, so that another call tries again.
    pub async fn detach(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let _shared = self.gate.read().await;
        match self.record(&pod.sandbox_id)? {
            Some(record) => self.release(&record).await,
            None => {
                self.release_unknown(pod).await;
                Ok(())
            }
        }
    }

    /// Asks the plugins whether the pod's network is still as they made it.
    ///
    /// # Errors
    /// When it is not, or nothing is known of the sandbox.
    pub async fn check(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        let _shared = self.gate.read().await;
        let unknown = || NetworkError::NotAttached { sandbox: pod.sandbox_id.to_string() };
        let record = self.cache.load(&pod.sandbox_id)?.ok_or_else(unknown)?;
        let result = record.result.as_ref().ok_or_else(unknown)?;
        match &record.provider {
            Provider::Cni { list } => self.chain(list, &record).check(result).await,
            Provider::Builtin { conf } => self.builtin.check(conf, &record, result).await,
        }
    }

    /// Takes back everything of sandboxes that `valid` does not name, and lets plugins do the same.
    ///
    /// `valid` is asked after the records were listed. A sandbox must be in it from before [`Self::attach`] is called.
    ///
    /// # Errors
    /// What failed; everything was tried.
    pub async fn gc(&self, valid: impl Fn() -> Vec<SandboxId> + Send) -> Result<(), NetworkError> {
        let mut failures = Vec::new();
        let recorded = self.cache.list()?;
        let keep = valid();
        for id in recorded.iter().filter(|id| !keep.contains(id)) {
            let _shared = self.gate.read().await;
            let released = match self.record(id) {
                Ok(Some(record)) => self.release(&record).await,
                Ok(None) => Ok(()),
                Err(unreadable) => Err(unreadable),
            };
            failures.extend(released.err());
        }
        if let Some(_alone) = self.alone().await {
            failures.extend(self.collect(&valid()).await.err());
        }
        NetworkError::collect(failures)
    }

    /// Whether a pod could be attached now.
    ///
    /// # Errors
    /// Why not.
    pub async fn status(&self) -> Result<Ready, NotReady> {
        match self.conf_dir.current() {
            Selection::Broken { problem } => Err(NotReady { reason: problem }),
            Selection::None => {
                self.builtin.status(&self.pod_cidr.get()).await?;
                Ok(Ready { network: self.builtin.name().to_owned(), source: None, warning: None })
            }
            Selection::Loaded { list, source, warning } => {
                self.plugins_status(&list).await?;
                Ok(Ready { network: list.name.clone(), source: Some(source), warning })
            }
        }
    }

    /// Removes the built-in bridge and its rules from the node, if no pod uses them: for a daemon that ends for good. Tells
    /// whether it did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn teardown_if_unused(&self) -> Result<bool, NetworkError> {
        if !self.cache.list()?.is_empty() {
            return Ok(false);
        }
        match self.alone().await {
            Some(_alone) => self.builtin.teardown_if_unused(&self.pod_cidr.get()).await,
            None => Ok(false),
        }
    }

    /// Takes the kubelet's pod CIDR (one, or one per family with a comma between) for networks that ask for it.
    ///
    /// # Errors
    /// When it is none, or cannot be stored.
    pub fn update_pod_cidr(&self, text: &str) -> Result<(), NetworkError> {
        self.pod_cidr.set(text)
    }
}
