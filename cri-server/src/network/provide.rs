//! Which network serves an attachment, and the steps on it that attach, detach, GC and Status are made of.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::RwLockWriteGuard;

use super::cache::{Provider, Record};
use super::chain::{self, Chain};
use super::conf::NetworkList;
use super::error::{self, NetworkError, NotReady};
use super::watch::Selection;
use super::{
    AttachResult, GC_PATIENCE, INTERFACE, KnownStatus, Network, PodAttachment, SHORT_LIMIT, SLOW,
    STATUS_HOLDS,
};
use super::{capability, exec::Executor, result};
use crate::model::SandboxId;

impl Network {
    /// The network for a new attachment of this pod. Whatever can be refused before a plugin runs is refused here, where
    /// nothing is to be taken back.
    pub(super) async fn provider(&self, pod: &PodAttachment) -> Result<Provider, NetworkError> {
        match self.conf_dir.current() {
            Selection::Broken { problem } => Err(NetworkError::NotReady(NotReady { reason: problem })),
            Selection::None => {
                Ok(Provider::Builtin { conf: self.builtin.configuration(pod, &self.pod_cidr.get())? })
            }
            Selection::Loaded { list, .. } => {
                let mut list = NetworkList::clone(&list);
                for plugin in &list.plugins {
                    self.executor.find(&plugin.kind)?;
                    capability::runtime_config(&plugin.capabilities, pod, &self.pod_cidr.get())?;
                }
                list.version = chain::negotiate(&list, &self.executor).await?;
                Ok(Provider::Cni { list })
            }
        }
    }

    pub(super) fn chain<'a>(&'a self, list: &'a NetworkList, record: &'a Record) -> Chain<'a> {
        Chain {
            list,
            executor: &self.executor,
            interface: &record.interface,
            pod: &record.pod,
            pod_cidr: &record.pod_cidr,
        }
    }

    /// Executes ADD and completes the record.
    pub(super) async fn add(&self, record: &mut Record) -> Result<AttachResult, NetworkError> {
        let (result, network) = match &record.provider {
            Provider::Cni { list } => (self.chain(list, record).add().await?, list.name.clone()),
            Provider::Builtin { conf } => {
                (self.builtin.add(conf, record).await?, self.builtin.name().to_owned())
            }
        };
        let ips = result::addresses(&result, &record.interface);
        failpoint!("network.attach.added");
        record.result = Some(result.clone());
        self.cache.store(record)?;
        failpoint!("network.attach.result_recorded");
        if ips.is_empty() {
            return Err(NetworkError::NoAddress { network });
        }
        Ok(AttachResult { ips, result })
    }

    /// Executes DEL and forgets the record.
    pub(super) async fn release(&self, record: &Record) -> Result<(), NetworkError> {
        match &record.provider {
            Provider::Cni { list } => self.chain(list, record).del(record.result.as_ref()).await?,
            Provider::Builtin { conf } => self.builtin.del(conf, record).await?,
        }
        failpoint!("network.detach.deleted");
        self.cache.remove(&record.pod.sandbox_id)?;
        failpoint!("network.detach.forgotten");
        Ok(())
    }

    /// Without a record nothing is attached as far as we know. After a reboot, though, plugins may still keep addresses
    /// of the pod on disk: DEL by the network of today frees them where it can, and its failure stops nobody.
    pub(super) async fn release_unknown(&self, pod: &PodAttachment) {
        let record = match self.provider(pod).await {
            Ok(provider) => Record {
                provider,
                interface: INTERFACE.to_owned(),
                pod: pod.clone(),
                pod_cidr: self.pod_cidr.get(),
                result: None,
            },
            Err(_) => return,
        };
        if let Err(error) = self.release(&record).await {
            tracing::warn!(sandbox = %pod.sandbox_id, error = %error::chain(&error),
                "DEL of a sandbox without a record failed");
        }
    }

    /// The record of a sandbox. One that cannot be understood is put aside: it must not make a pod undeletable.
    pub(super) fn record(&self, id: &SandboxId) -> Result<Option<Record>, NetworkError> {
        match self.cache.load(id) {
            Err(damaged @ NetworkError::File { what: "understand", .. }) => {
                tracing::warn!(sandbox = %id, error = %error::chain(&damaged), "network record put aside");
                self.cache.put_aside(id)?;
                Ok(None)
            }
            known => known,
        }
    }

    /// STATUS of the plugins, asked at most every few seconds.
    pub(super) async fn plugins_status(&self, list: &Arc<NetworkList>) -> Result<(), NotReady> {
        let mut known = self.status.lock().await;
        if let Some(last) =
            known.as_ref().filter(|last| Arc::ptr_eq(&last.of, list) && last.at.elapsed() < STATUS_HOLDS)
        {
            return last.answer.clone();
        }
        let asked = Instant::now();
        let answer = chain::status(list, &self.short_executor()).await.map_err(|error| NotReady {
            reason: format!("network {:?}: {}", list.name, error::chain(&error)),
        });
        // Of quick answers only good news is kept: what is wrong may be cured at any moment.
        *known = (answer.is_ok() || asked.elapsed() > SLOW).then(|| KnownStatus {
            of: Arc::clone(list),
            at: Instant::now(),
            answer: answer.clone(),
        });
        answer
    }

    /// The plugins' own GC. The gate is held alone meanwhile.
    pub(super) async fn collect(&self, valid: &[SandboxId]) -> Result<(), NetworkError> {
        let bridge = match self.builtin.was_used() {
            true => self.builtin.gc(&self.pod_cidr.get(), valid).await,
            false => Ok(()),
        };
        let plugins = match self.conf_dir.current() {
            Selection::Loaded { list, .. } => {
                chain::gc(&list, &self.short_executor(), INTERFACE, valid).await
            }
            Selection::None | Selection::Broken { .. } => Ok(()),
        };
        NetworkError::collect(bridge.err().into_iter().chain(plugins.err()).collect())
    }

    fn short_executor(&self) -> Executor {
        Executor { timeout: self.executor.timeout.min(SHORT_LIMIT), ..self.executor.clone() }
    }

    /// Waits for a moment without ADD and DEL, without keeping new ones waiting behind a hanging one.
    pub(super) async fn alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let since = Instant::now();
        loop {
            if let Ok(guard) = self.gate.try_write() {
                return Some(guard);
            }
            if since.elapsed() > GC_PATIENCE {
                tracing::info!("CNI GC left for the next round: attachments are under way");
                return None;
            }
            tokio::time::sleep(GC_PATIENCE / 100).await;
        }
    }
}
