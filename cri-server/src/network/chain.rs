//! The plugins of one network, executed one after another for one pod (CNI specification, section 3).
//!
//! Invariant: each plugin sees its own configuration, the network's name and version, the capabilities that it declares,
//! and the result so far; ADD and CHECK go forward, DEL goes backward and goes on after a failure.

use cofferdam_failpoints::failpoint;
use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::attachment::PodAttachment;
use super::conf::{NetworkList, Plugin, Version};
use super::error::{NetworkError, Said};
use super::exec::{Executor, Subject, Verb, excerpt};
use super::{capability, result};
use crate::model::SandboxId;

/// CNI's error code for a version that a plugin does not speak.
const INCOMPATIBLE: u64 = 1;

/// A network for a pod.
pub(super) struct Chain<'a> {
    pub(super) list: &'a NetworkList,
    pub(super) executor: &'a Executor,
    pub(super) interface: &'a str,
    pub(super) pod: &'a PodAttachment,
    pub(super) pod_cidr: &'a [String],
}

impl Chain<'_> {
    /// Executes ADD; the last plugin's result is the network's. After a failure DEL is the caller's duty.
    pub(super) async fn add(&self) -> Result<Value, NetworkError> {
        let subject = self.subject(Some(self.pod.netns.display().to_string()));
        let mut previous = None;
        for plugin in &self.list.plugins {
            let stdin = self.stdin(plugin, previous.as_ref())?;
            let answer = self.executor.run(&plugin.kind, Verb::Add, Some(&subject), &stdin).await?;
            failpoint!("cni.add.executed");
            let read =
                result::parse(&answer, self.list.version).map_err(|problem| NetworkError::BadOutput {
                    plugin: plugin.kind.clone(),
                    command: Verb::Add.as_str(),
                    problem,
                    head: excerpt(&answer[..answer.len().min(200)]),
                    said: Said::default(),
                })?;
            previous = Some(read);
        }
        previous.ok_or_else(|| NetworkError::NoAddress { network: self.list.name.clone() })
    }

    /// Executes DEL in reverse order. `result` is that of ADD, where there was one.
    pub(super) async fn del(&self, result: Option<&Value>) -> Result<(), NetworkError> {
        let subject = self.subject(super::netns::living(&self.pod.netns));
        // Plugins learned to read it on DEL with 0.4.0.
        let result = result.filter(|_| self.list.version >= Version::V0_4_0);
        let mut failures = Vec::new();
        for plugin in self.list.plugins.iter().rev() {
            let done = match self.stdin(plugin, result) {
                Ok(stdin) => {
                    self.executor.run(&plugin.kind, Verb::Del, Some(&subject), &stdin).await.map(drop)
                }
                Err(error) => Err(error),
            };
            failures.extend(done.err());
            failpoint!("cni.del.executed");
        }
        NetworkError::collect(failures)
    }

    /// Executes CHECK where the network's version has it and its configuration allows it.
    pub(super) async fn check(&self, result: &Value) -> Result<(), NetworkError> {
        if self.list.version < Version::V0_4_0 || self.list.disable_check {
            return Ok(());
        }
        let subject = self.subject(Some(self.pod.netns.display().to_string()));
        for plugin in &self.list.plugins {
            let stdin = self.stdin(plugin, Some(result))?;
            self.executor.run(&plugin.kind, Verb::Check, Some(&subject), &stdin).await?;
        }
        Ok(())
    }

    fn subject(&self, netns: Option<String>) -> Subject {
        Subject {
            container: self.pod.sandbox_id.to_string(),
            netns: netns.unwrap_or_default(),
            interface: self.interface.to_owned(),
            args: capability::args(self.pod),
        }
    }

    fn stdin(&self, plugin: &Plugin, previous: Option<&Value>) -> Result<Vec<u8>, NetworkError> {
        let runtime = capability::runtime_config(&plugin.capabilities, self.pod, self.pod_cidr)?;
        let mut conf = configuration(self.list, plugin);
        if !runtime.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        Ok(Value::Object(conf).to_string().into_bytes())
    }
}

/// What every command's configuration has.
fn configuration(list: &NetworkList, plugin: &Plugin) -> Map<String, Value> {
    let mut conf = plugin.conf.clone();
    conf.insert("name".to_owned(), json!(list.name));
    conf.insert("cniVersion".to_owned(), json!(list.version.as_str()));
    conf
}

/// Executes GC, where the network's version has it: plugins release what belongs to no valid attachment.
pub(super) async fn gc(
    list: &NetworkList,
    executor: &Executor,
    interface: &str,
    valid: &[SandboxId],
) -> Result<(), NetworkError> {
    if list.version < Version::V1_1_0 || list.disable_gc {
        return Ok(());
    }
    let attachments: Vec<Value> =
        valid.iter().map(|id| json!({"containerID": id.as_str(), "ifname": interface})).collect();
    let mut failures = Vec::new();
    for plugin in &list.plugins {
        let mut conf = configuration(list, plugin);
        conf.insert("cni.dev/valid-attachments".to_owned(), json!(attachments));
        let stdin = Value::Object(conf).to_string();
        failures.extend(executor.run(&plugin.kind, Verb::Gc, None, stdin.as_bytes()).await.err());
    }
    NetworkError::collect(failures)
}

/// Whether every plugin is there and, where the network's version has STATUS, ready.
pub(super) async fn status(list: &NetworkList, executor: &Executor) -> Result<(), NetworkError> {
    for plugin in &list.plugins {
        executor.find(&plugin.kind)?;
    }
    if list.version < Version::V1_1_0 {
        return Ok(());
    }
    for plugin in &list.plugins {
        let stdin = Value::Object(configuration(list, plugin)).to_string();
        executor.run(&plugin.kind, Verb::Status, None, stdin.as_bytes()).await?;
    }
    Ok(())
}

/// The newest version that the configuration allows and all plugins speak. Plugins are asked only when there is a choice.
pub(super) async fn negotiate(list: &NetworkList, executor: &Executor) -> Result<Version, NetworkError> {
    if list.candidates.len() < 2 {
        return Ok(list.version);
    }
    let mut common: BTreeSet<Version> = list.candidates.iter().copied().collect();
    for plugin in &list.plugins {
        let stdin = json!({"cniVersion": list.version.as_str()}).to_string();
        let answer = executor.run(&plugin.kind, Verb::Version, None, stdin.as_bytes()).await?;
        let spoken = supported(&answer).ok_or_else(|| NetworkError::BadOutput {
            plugin: plugin.kind.clone(),
            command: Verb::Version.as_str(),
            problem: "it has no supportedVersions".to_owned(),
            head: excerpt(&answer[..answer.len().min(200)]),
            said: Said::default(),
        })?;
        common.retain(|version| spoken.contains(version));
        if common.is_empty() {
            let allowed: Vec<&str> = list.candidates.iter().map(|version| version.as_str()).collect();
            return Err(NetworkError::Refused {
                plugin: plugin.kind.clone(),
                command: Verb::Version.as_str(),
                code: INCOMPATIBLE,
                msg: format!(
                    "it speaks no CNI version that network {:?} allows ({})",
                    list.name,
                    allowed.join(", ")
                ),
                said: Said::default(),
            });
        }
    }
    Ok(common.last().copied().unwrap_or(list.version))
}

fn supported(answer: &[u8]) -> Option<BTreeSet<Version>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let versions = answer.get("supportedVersions")?.as_array()?;
    Some(versions.iter().filter_map(|version| Version::parse(version.as_str()?)).collect())
}
