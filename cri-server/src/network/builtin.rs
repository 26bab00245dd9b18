//! The built-in bridge: the library of `cofferdam-bridge`, called in process while no CNI configuration exists.
//!
//! The plugin's configuration is built once per attachment and kept in its record, so that DEL works with that of ADD.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::cache::Record;
use super::error::{NetworkError, NotReady};
use super::{Config, PodAttachment, capability};
use crate::model::SandboxId;

const NAME: &str = "cofferdam";
const CNI_VERSION: &str = "1.1.0";
const CAPABILITIES: [&str; 4] = ["portMappings", "ips", "mac", "dns"];

/// The bridge as configured.
#[derive(Debug)]
pub(super) struct Builtin {
    bridge: String,
    subnets: Vec<String>,
    mtu: u32,
    data_dir: PathBuf,
}

impl Builtin {
    pub(super) fn new(config: &Config, cni_dir: &Path) -> Self {
        Self {
            bridge: config.bridge.clone(),
            subnets: config.subnets.clone(),
            mtu: config.mtu,
            data_dir: cni_dir.join("networks"),
        }
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
        let declared = CAPABILITIES.into_iter().map(str::to_owned).collect();
        let runtime = capability::runtime_config(&declared, pod, pod_cidr)?;
        let mut conf = self.base(pod_cidr);
        conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        Ok(conf)
    }

    fn base(&self, pod_cidr: &[String]) -> Map<String, Value> {
        let subnets = if pod_cidr.is_empty() { &self.subnets } else { pod_cidr };
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let routes: Vec<Value> = subnets
            .iter()
            .map(|subnet| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
            .collect();
        let conf = json!({
            "cniVersion": CNI_VERSION,
            "name": NAME,
            "type": "cofferdam-bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "mtu": self.mtu,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": self.data_dir},
        });
        match conf {
            Value::Object(conf) => conf,
            _ => Map::new(),
        }
    }

    pub(super) async fn add(
        &self,
        _conf: &Map<String, Value>,
        _record: &Record,
    ) -> Result<Value, NetworkError> {
        Err(unlinked("ADD"))
    }

    pub(super) async fn del(&self, _conf: &Map<String, Value>, _record: &Record) -> Result<(), NetworkError> {
        Err(unlinked("DEL"))
    }

    pub(super) async fn check(
        &self,
        _conf: &Map<String, Value>,
        _record: &Record,
        _result: &Value,
    ) -> Result<(), NetworkError> {
        Err(unlinked("CHECK"))
    }

    pub(super) async fn gc(&self, _pod_cidr: &[String], _valid: &[SandboxId]) -> Result<(), NetworkError> {
        Ok(())
    }

    pub(super) async fn status(&self, _pod_cidr: &[String]) -> Result<(), NotReady> {
        Err(NotReady { reason: unlinked("STATUS").to_string() })
    }
}

fn unlinked(command: &'static str) -> NetworkError {
    NetworkError::Builtin {
        command,
        code: 50,
        msg: "the bridge's library is not linked into this build".to_owned(),
    }
}
