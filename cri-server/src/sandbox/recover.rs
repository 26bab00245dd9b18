//! After the daemon's start: finds the pods again that the last one left, and finishes or undoes what was half done.
//!
//! Invariant: nothing here waits for a shim that hangs, a plugin or a process: when [`Sandboxes::recover`] returns, every
//! sandbox tells what it is, and what is left to do goes on in the background. After a reboot no shim is asked at all.

use cofferdam_failpoints::failpoint;
use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;

use super::record::{SandboxRecord, SandboxState};
use super::{Sandbox, SandboxError, Sandboxes};
use crate::event::Phase;
use crate::model::SandboxId;
use crate::runtime::Launcher;
use crate::store::{Table, copy};

/// How many sandboxes are settled at the same time: each may run a shim's command.
const AT_ONCE: usize = 8;

impl Sandboxes {
    /// Loads the records, and finds pods whose records are lost. Ready sandboxes are watched again, or become not ready
    /// when their shim is gone.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), SandboxError> {
        let mut records: Vec<SandboxRecord> = Vec::new();
        for (_, record) in self.ports.store.load::<SandboxRecord>(Table::Sandboxes)? {
            records.push(record);
        }
        records.extend(self.found_in_bundles(&records).await);
        let recoveries = records.into_iter().map(|record| {
            let level = self.level_of(&record);
            let sandbox = Sandbox::new(record, level);
            self.all.insert(sandbox.id().as_str(), Arc::clone(&sandbox));
            self.recall(&sandbox);
            self.recover_one(sandbox)
        });
        let unsettled: Vec<_> = join_all(recoveries).await.into_iter().flatten().collect();
        let stopping = self.ports.stopping.clone();
        let jobs = unsettled.into_iter().map(|sandbox| {
            let sandboxes = Arc::clone(self);
            async move { sandboxes.settle(sandbox).await }
        });
        let settling = futures::stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        self.ports.tracker.spawn(async move {
            // What is not settled when the daemon ends is found again by the next one.
            let _ = stopping.run_until_cancelled(settling.for_each(async |()| ())).await;
        });
        Ok(())
    }

    /// What was told of it before the restart is not told again.
    fn recall(&self, sandbox: &Sandbox) {
        let phase = match sandbox.status().state {
            SandboxState::Creating => return,
            SandboxState::Ready { .. } => Phase::Started,
            SandboxState::NotReady | SandboxState::Removing => Phase::Stopped,
        };
        self.ports.events.recovered(sandbox.id().as_str(), phase);
    }

    /// The records of pods that the store does not know, as their bundles hold them; stored again.
    async fn found_in_bundles(&self, known: &[SandboxRecord]) -> Vec<SandboxRecord> {
        let ports = &self.ports;
        // A record that only a newer daemon understands is left to it.
        let unreadable = ports.store.unreadable();
        let newer = unreadable.iter().filter(|u| u.is_newer).map(|u| u.key.as_str());
        let known: HashSet<&str> = known.iter().map(|r| r.id.as_str()).chain(newer).collect();
        let mut found = Vec::new();
        for name in ports.places.sandbox_names() {
            let Ok(id) = SandboxId::parse(&name) else { continue };
            if known.contains(name.as_str()) {
                continue;
            }
            let Some(copy) = copy::read::<SandboxRecord>(&ports.places.sandbox(&id)) else { continue };
            let mut record = copy.record;
            if record.id != id {
                continue;
            }
            if copy.boot != ports.boot {
                record.status.state = record.status.state.ended();
            }
            ports.notices.add(format!("the record of pod {id} was lost; found again in its bundle"));
            if let Err(error) = ports.store.put(Table::Sandboxes, id.as_str(), &record).await {
                tracing::warn!(sandbox = %id, error = %crate::report::chain(&error), "record");
            }
            found.push(record);
        }
        found
    }

    /// Answers the sandbox when something is left to do about it.
    async fn recover_one(self: &Arc<Self>, sandbox: Arc<Sandbox>) -> Option<Arc<Sandbox>> {
        failpoint!("sandbox.recover.loaded", infallible);
        let bundle = self.ports.places.sandbox(sandbox.id());
        if self.ports.past.rebooted {
            // Whatever it says of a shim is of before.
            if let Err(error) = Launcher::forget(&bundle) {
                tracing::warn!(sandbox = %sandbox.id(), error = %crate::report::chain(&error), "bundle");
            }
        } else if let Some(endpoint) = Launcher::recorded(&bundle) {
            match self.ports.launcher.connect(sandbox.id().as_str(), &endpoint, &bundle).await {
                Ok(shim) => sandbox.shim.store(Some(Arc::new(shim))),
                Err(error) => {
                    let error = crate::report::chain(&error);
                    tracing::warn!(sandbox = %sandbox.id(), error, "the pod's shim cannot be reached");
                }
            }
        }
        failpoint!("sandbox.recover.connected", infallible);
        let settled = match (sandbox.status().state, sandbox.shim.load_full()) {
            (SandboxState::Ready { .. }, Some(shim)) => {
                self.supervise(&sandbox, shim);
                true
            }
            // The network stays until the kubelet stops the pod.
            (SandboxState::Ready { .. }, None) => {
                tracing::warn!(sandbox = %sandbox.id(), rebooted = self.ports.past.rebooted, "the pod's shim is gone: the pod is not ready");
                // A failure is met again where the rest is settled.
                let _ = self.mark_ended(&sandbox).await;
                failpoint!("sandbox.recover.lost_recorded", infallible);
                false
            }
            (SandboxState::Creating | SandboxState::Removing, _) => false,
            (SandboxState::NotReady, _) => !Launcher::tried(&bundle),
        };
        failpoint!("sandbox.recover.done", infallible);
        (!settled).then_some(sandbox)
    }

    /// Ends what nobody watches any more, and takes away what is half made or half removed.
    async fn settle(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        while sandbox.is_ready()
            && let Err(error) = self.mark_ended(&sandbox).await
        {
            self.not_yet(&sandbox, &error).await;
        }
        let done = match sandbox.status().state {
            SandboxState::Creating | SandboxState::Removing => {
                self.remove(&sandbox).await.map_err(|error| crate::report::chain(&*error))
            }
            SandboxState::Ready { .. } | SandboxState::NotReady => {
                self.end_pause(&sandbox).await.map_err(|error| crate::report::chain(&error))
            }
        };
        if let Err(error) = done {
            tracing::warn!(sandbox = %sandbox.id(), error, "recovery; the sweep tries again");
        }
    }
}
