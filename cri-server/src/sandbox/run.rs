//! RunPodSandbox: from the kubelet's request to a pause process with a network.
//!
//! The record is stored before the first effect. Every effect is taken back by the same idempotent teardown that
//! StopPodSandbox uses, so a failure at any step leaves nothing; if even the teardown fails, the sandbox stays as
//! NotReady, for the kubelet to stop and remove.

use cofferdam_failpoints::failpoint;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_proto::cri;

use super::record::{SandboxRecord, SandboxState, SandboxStatus};
use super::{Sandbox, SandboxError, Sandboxes, Shared, files, selinux};
use crate::model::SandboxId;
use crate::network::netns::Pins;
use crate::network::{AttachResult, Dns, PodAttachment, PortMapping};
use crate::node::UserNamespaces;
use crate::operation::Stage;
use crate::ports::{Ports, now};
use crate::runtime::{CreateTask, Handler};
use crate::spec::{self, SandboxInput, SpecError, UserNamespace, namespaces::PodNamespaces, sandbox_spec};
use crate::store::Table;
use crate::task;

impl Sandboxes {
    /// Runs a sandbox, or joins the run of the same pod and attempt that is under way.
    ///
    /// # Errors
    /// When the request is wrong or a step fails; then nothing of the sandbox is left.
    pub async fn run(self: &Arc<Self>, config: cri::PodSandboxConfig, handler: String) -> Shared<SandboxId> {
        let key = validate(&config).map_err(Arc::new)?;
        let sandboxes = Arc::clone(self);
        let begin = |stage| async move { sandboxes.make(config, handler, &stage).await.map_err(Arc::new) };
        self.runs.join(&key, begin).await.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn make(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        requested_handler: String,
        stage: &Stage,
    ) -> Result<SandboxId, SandboxError> {
        let handler = self.ports.handlers.handler(&requested_handler)?;
        if let Some(existing) = self.same_pod(&config) {
            match existing.status().state {
                SandboxState::Ready { .. } if *existing.config() == config => {
                    return Ok(existing.id().clone());
                }
                // Its run ended with an earlier daemon, or it is on its way out: it goes first.
                SandboxState::Creating | SandboxState::Removing => {
                    stage.set("taking an earlier attempt away");
                    let removed = self.remove(&existing).await;
                    removed.map_err(|error| SandboxError::Shared(crate::report::chain(&*error)))?;
                }
                state => {
                    return Err(SandboxError::Exists { id: existing.id().clone(), state: state.name() });
                }
            }
        }
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.as_ref());
        let namespaces = PodNamespaces::of(options)?;
        if let Some(users) = namespaces.user {
            self.check_users(users, handler)?;
        }
        let level = self.level_for(&config)?;
        let mut record = SandboxRecord {
            id: self.ports.owner.sandbox_id()?,
            config,
            handler: handler.name.clone(),
            requested_handler,
            created_at: now(),
            own_network: namespaces.network,
            cgroups_path: None,
            selinux_level: level.as_ref().map(|level| level.level().to_owned()),
            status: SandboxStatus {
                state: SandboxState::Creating,
                ips: Vec::new(),
                attached: namespaces.network,
                stopped: false,
                resized: None,
            },
        };
        let path = Sandbox::new(record.clone(), None).cgroups_path(&self.ports)?;
        record.cgroups_path = Some(path);
        stage.set("recording");
        self.ports.store.put(Table::Sandboxes, record.id.as_str(), &record).await?;
        failpoint!("sandbox.run.recorded", infallible);
        stage.about(record.id.as_str());
        let sandbox = Sandbox::new(record, level);
        self.all.insert(sandbox.id().as_str(), Arc::clone(&sandbox));
        match self.build(&sandbox, handler, namespaces, stage).await {
            Ok(()) => Ok(sandbox.id().clone()),
            Err(error) => {
                failpoint!("sandbox.run.undoing", infallible);
                self.undo(&sandbox, stage).await;
                Err(error)
            }
        }
    }

    /// Whether the node and the handler can give a pod these users.
    fn check_users(&self, users: UserNamespace, handler: &Handler) -> Result<(), SpecError> {
        let refused = |why: String| SpecError::UserNamespace { handler: handler.name.clone(), why };
        if !handler.maps_owners() {
            return Err(refused("its shim is not known to map the owners of files".to_owned()));
        }
        if let UserNamespaces::Unavailable(why) = &self.ports.features.user_namespaces {
            return Err(refused(why.clone()));
        }
        let others = self.all().into_iter().filter(|other| other.is_ready());
        for other in others.filter(|o| o.users().is_ok_and(|u| u.is_some_and(|u| u.overlaps(users)))) {
            // The kubelet hands ranges out and may have its reasons; pods that share one are not kept apart.
            tracing::warn!(other = %other.id(), "the pod gets users that another pod has, too");
        }
        Ok(())
    }

    /// The sandbox of the same pod and attempt, if there is one.
    fn same_pod(&self, config: &cri::PodSandboxConfig) -> Option<Arc<Sandbox>> {
        let metadata = config.metadata.as_ref()?;
        self.all().into_iter().find(|s| s.config().metadata.as_ref() == Some(metadata))
    }

    /// A sandbox that failed half-way goes away; when that fails too it stays, not ready.
    async fn undo(&self, sandbox: &Arc<Sandbox>, stage: &Stage) {
        if let Err(error) = self.take_away(sandbox, stage).await {
            tracing::warn!(sandbox = %sandbox.id(), error = %crate::report::chain(&error),
                "the sandbox could not be undone; it stays, not ready, until it is removed");
            if let Err(error) = self.mark_ended(sandbox).await {
                tracing::error!(sandbox = %sandbox.id(), error = %crate::report::chain(&error), "record");
            }
        }
    }

    async fn build(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        handler: &Handler,
        namespaces: PodNamespaces,
        stage: &Stage,
    ) -> Result<(), SandboxError> {
        stage.set("making files");
        let ports = &self.ports;
        let labels = selinux::labels(ports, sandbox)?;
        let shared = files::create(ports, sandbox, namespaces, labels.mount).await?;
        failpoint!("sandbox.run.files_made");
        self.write_spec(sandbox, &shared)?;
        failpoint!("sandbox.run.spec_written");
        let deadlines = ports.launcher.deadlines();
        stage.within(
            "attaching the network and starting the shim",
            ports.network.limit().max(deadlines.launch),
        );
        // Neither waits for the other; both are waited for, so that an undo finds them finished.
        let (network, shim) = tokio::join!(
            self.connect(sandbox, namespaces, None),
            ports.launcher.start(handler, sandbox.id().as_str(), task::NAMESPACE, &shared.bundle)
        );
        let shim = Arc::new(shim?);
        sandbox.shim.store(Some(Arc::clone(&shim)));
        failpoint!("sandbox.run.shim_started");
        let mut network = network?;
        failpoint!("sandbox.run.network_attached");
        stage.within("making the pause process", deadlines.heavy);
        let bundle = shared.bundle.clone();
        let task = CreateTask { bundle, options: handler.options.clone(), ..CreateTask::default() };
        let waiting = shim.create(task).await?;
        failpoint!("sandbox.run.task_created");
        if namespaces.user.is_some() {
            stage.within("attaching the network of the pod's own users", ports.network.limit());
            network = self.connect(sandbox, namespaces, Some(waiting)).await?;
        }
        let ips = network.map(|n| n.ips).unwrap_or_default();
        files::write_hosts(&shared, sandbox.config(), &ips)?;
        failpoint!("sandbox.run.hosts_written");
        stage.within("starting the pause process", deadlines.heavy);
        let pid = shim.start("").await?;
        failpoint!("sandbox.run.task_started");
        stage.set("asking NRI plugins");
        let _gate = ports.nri.gate().await;
        self.plugins_run(sandbox, pid, &ips).await?;
        failpoint!("sandbox.run.plugins_asked");
        stage.set("recording");
        let built = |s: &SandboxStatus| {
            Ok::<_, SandboxError>(SandboxStatus { state: s.state.built(pid)?, ips, ..s.clone() })
        };
        sandbox.change(ports, built).await?;
        failpoint!("sandbox.run.ready_recorded", infallible);
        self.supervise(sandbox, shim);
        Ok(())
    }

    /// Makes the pod's network namespace, or pins that of its `pause` process: a pod with users of its own has to make
    /// it by itself, and gets no network before.
    async fn connect(
        &self,
        sandbox: &Sandbox,
        namespaces: PodNamespaces,
        pause: Option<u32>,
    ) -> Result<Option<AttachResult>, SandboxError> {
        if !namespaces.network || namespaces.user.is_some() != pause.is_some() {
            return Ok(None);
        }
        let attachment = full_attachment(&self.ports, sandbox)?;
        let (pins, id) = (Pins::new(self.ports.places.state()), sandbox.id().clone());
        let pin = move || match pause {
            Some(pid) => pins.adopt(&id, pid),
            None => pins.create(&id, &[]),
        };
        tokio::task::spawn_blocking(pin).await??;
        failpoint!("sandbox.run.netns_pinned");
        Ok(Some(self.ports.network.attach(&attachment).await?))
    }

    fn write_spec(&self, sandbox: &Sandbox, shared: &files::SandboxFiles) -> Result<(), SandboxError> {
        let ports = &self.ports;
        let netns = sandbox.made.own_network.then(|| netns_path(ports, sandbox.id()));
        let seccomp = spec::sandbox::localhost_seccomp_path(sandbox.config())?
            .map(|path| spec::host::read_profile(&path))
            .transpose()?;
        let spec = sandbox_spec(&SandboxInput {
            id: sandbox.id(),
            cgroups_path: &sandbox.cgroups_path(ports)?,
            config: sandbox.config(),
            pause_binary: &ports.pause.check()?,
            network_namespace: netns.as_deref(),
            shm: shared.shm.as_deref(),
            resolv_conf: Some(&shared.resolv_conf),
            localhost_seccomp: seccomp.as_deref(),
            selinux_level: sandbox.selinux_level(),
            defaults: &ports.spec_defaults,
            features: &ports.features,
        })?;
        spec.save(shared.bundle.join("config.json")).map_err(SandboxError::SpecFile)
    }
}

/// The pinned network namespace of a sandbox.
pub(super) fn netns_path(ports: &Ports, id: &SandboxId) -> PathBuf {
    Pins::new(ports.places.state()).path(id)
}

fn full_attachment(ports: &Ports, sandbox: &Sandbox) -> Result<PodAttachment, SandboxError> {
    let config = sandbox.config();
    let mut pod = sandbox.attachment(ports);
    pod.port_mappings = PortMapping::from_cri(&config.port_mappings)?;
    pod.annotations = config.annotations.clone().into_iter().collect();
    if let Some(dns) = &config.dns_config {
        pod.dns = Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        };
    }
    pod.cgroup_parent = config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
    Ok(pod)
}

/// Checks what every step relies on; answers the key that retries of the same request share.
fn validate(config: &cri::PodSandboxConfig) -> Result<String, SandboxError> {
    let invalid = |text: &str| Err(SandboxError::Invalid(text.to_owned()));
    let Some(metadata) = &config.metadata else { return invalid("metadata is missing") };
    if metadata.name.is_empty() {
        return invalid("metadata.name is empty");
    }
    if metadata.namespace.is_empty() {
        return invalid("metadata.namespace is empty");
    }
    if config.hostname.len() > 64 {
        return invalid("hostname is longer than 64 bytes, the kernel's limit (sethostname(2))");
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return invalid("log_directory is not an absolute path");
    }
    Ok(format!("{}/{}/{}/{}", metadata.namespace, metadata.name, metadata.uid, metadata.attempt))
}
