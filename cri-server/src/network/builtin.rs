//! The built-in bridge: the library of `cofferdam-bridge`, called in process while no CNI configuration exists.
//!
//! The plugin's configuration is built once per attachment and kept in its record, so that DEL works with that of ADD.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_netplugin as library;
use cofferdam_netplugin::types::{Attachment, CniArgs, CniError, NetConf, Request};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::cache::Record;
use super::error::{NetworkError, NotReady, chain};
use super::{Config, INTERFACE, PodAttachment, capability};
use crate::model::SandboxId;

const NAME: &str = "cofferdam";
const CNI_VERSION: &str = "1.1.0";
/// CNI's error code for a configuration that is not valid.
const INVALID_CONFIG: u64 = 7;
const CAPABILITIES: [&str; 4] = ["portMappings", "ips", "mac", "dns"];

/// The bridge as configured.
#[derive(Debug)]
pub(super) struct Builtin {
    bridge: String,
    subnets: Vec<String>,
    mtu: u32,
    data_dir: PathBuf,
    /// ADD, DEL and CHECK hold it shared until they really end, which may be after their caller went away; GC and
    /// teardown hold it alone.
    running: Arc<RwLock<()>>,
}

impl Builtin {
    pub(super) fn new(config: &Config, cni_dir: &Path) -> Self {
        Self {
            bridge: config.bridge.clone(),
            subnets: config.subnets.clone(),
            mtu: config.mtu,
            data_dir: cni_dir.join("networks"),
            running: Arc::default(),
        }
    }

    /// Whether it ever served, so that there may be something to collect.
    pub(super) fn was_used(&self) -> bool {
        self.data_dir.exists()
    }

    pub(super) fn name(&self) -> &'static str {
        NAME
    }

    /// The plugin configuration for a pod. The kubelet's pod CIDR, where it tells one, goes before the configured subnets.
    pub(super) fn configuration(
        &self,
        pod: &PodAttachment,
        pod_cidr: &[String],
    ) -> Result<Map<String, Value>, NetworkError> {
        if capability::limits_bandwidth(pod) {
            tracing::warn!(sandbox = %pod.sandbox_id, "the built-in bridge does not limit bandwidth");
        }
        let declared = CAPABILITIES.into_iter().map(str::to_owned).collect();
        let runtime = capability::runtime_config(&declared, pod, pod_cidr)?;
        let mut conf = self.base(pod_cidr);
        conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        Ok(conf)
    }

    fn base(&self, pod_cidr: &[String]) -> Map<String, Value> {
        let subnets = if pod_cidr.is_empty() { &self.subnets } else { pod_cidr };
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let conf = json!({
            "cniVersion": CNI_VERSION,
            "name": NAME,
            "type": "cofferdam-bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "mtu": self.mtu,
            "ipam": {"type": "host-local", "ranges": ranges, "dataDir": self.data_dir},
        });
        match conf {
            Value::Object(conf) => conf,
            _ => Map::new(),
        }
    }

    async fn shared(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.running).read_owned().await
    }

    async fn alone(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.running).write_owned().await
    }

    /// ADD, with the configuration of the record.
    pub(super) async fn add(
        &self,
        conf: &Map<String, Value>,
        record: &Record,
    ) -> Result<Value, NetworkError> {
        let request = request("ADD", conf, record, record.pod.netns.clone(), None)?;
        let result = call("ADD", self.shared().await, move || library::add(&request)).await?;
        serde_json::to_value(result).map_err(|error| refused("ADD", &error))
    }

    /// DEL, with the configuration of the record; the namespace may be gone.
    pub(super) async fn del(&self, conf: &Map<String, Value>, record: &Record) -> Result<(), NetworkError> {
        let netns = super::netns::living(&record.pod.netns).map(PathBuf::from).unwrap_or_default();
        let request = request("DEL", conf, record, netns, record.result.as_ref())?;
        call("DEL", self.shared().await, move || library::del(&request)).await
    }

    /// CHECK against the result of ADD.
    pub(super) async fn check(
        &self,
        conf: &Map<String, Value>,
        record: &Record,
        result: &Value,
    ) -> Result<(), NetworkError> {
        let request = request("CHECK", conf, record, record.pod.netns.clone(), Some(result))?;
        call("CHECK", self.shared().await, move || library::check(&request)).await
    }

    /// Releases what belongs to no valid attachment.
    pub(super) async fn gc(&self, pod_cidr: &[String], valid: &[SandboxId]) -> Result<(), NetworkError> {
        let valid: Vec<Attachment> = valid
            .iter()
            .map(|id| Attachment { container_id: id.to_string(), ifname: INTERFACE.to_owned() })
            .collect();
        let conf = decode("GC", self.base(pod_cidr))?;
        call("GC", self.alone().await, move || library::gc(&conf, &valid)).await
    }

    /// Whether the bridge could serve.
    pub(super) async fn status(&self, pod_cidr: &[String]) -> Result<(), NotReady> {
        let base = self.base(pod_cidr);
        let asked = async {
            let conf = decode("STATUS", base)?;
            call("STATUS", (), move || library::status(&conf)).await
        };
        asked.await.map_err(|error| NotReady { reason: chain(&error) })
    }

    /// Removes the bridge and its rules, if nothing is attached to it. Tells whether it did.
    pub(super) async fn teardown_if_unused(&self, pod_cidr: &[String]) -> Result<bool, NetworkError> {
        let conf = decode("teardown", self.base(pod_cidr))?;
        call("teardown", self.alone().await, move || library::teardown_if_unused(&conf)).await
    }
}

fn request(
    command: &'static str,
    conf: &Map<String, Value>,
    record: &Record,
    netns: PathBuf,
    previous: Option<&Value>,
) -> Result<Request, NetworkError> {
    let mut conf = conf.clone();
    if let Some(previous) = previous {
        conf.insert("prevResult".to_owned(), previous.clone());
    }
    Ok(Request {
        container_id: record.pod.sandbox_id.to_string(),
        netns,
        ifname: record.interface.clone(),
        config: decode(command, conf)?,
        args: CniArgs::parse(&capability::args(&record.pod)).unwrap_or_default(),
    })
}

fn decode(command: &'static str, conf: Map<String, Value>) -> Result<NetConf, NetworkError> {
    serde_json::from_value(Value::Object(conf)).map_err(|error| refused(command, &error))
}

/// The bridge's words for a configuration that it cannot read, such as a subnet that is none.
fn refused(command: &'static str, error: &serde_json::Error) -> NetworkError {
    NetworkError::Builtin { command, code: INVALID_CONFIG, msg: error.to_string() }
}

/// Calls the library, which blocks, on a thread for that. Once begun it runs to its end, also when nobody waits.
async fn call<T: Send + 'static>(
    command: &'static str,
    guard: impl Send + 'static,
    work: impl FnOnce() -> Result<T, CniError> + Send + 'static,
) -> Result<T, NetworkError> {
    let guarded = move || {
        let done = work();
        drop(guard);
        done
    };
    let done = tokio::task::spawn_blocking(guarded).await;
    done.map_err(|source| NetworkError::BuiltinLost { command, source })?.map_err(|error| {
        let msg =
            if error.details.is_empty() { error.msg } else { format!("{}: {}", error.msg, error.details) };
        NetworkError::Builtin { command, code: error.code.into(), msg }
    })
}
