//! CreateContainer: from the kubelet's request to a record, a root filesystem and a spec.
//!
//! The record is stored before the first effect; a failure at any step takes back what was made.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_proto::cri;

use super::record::{ContainerRecord, ContainerState};
use super::restore::{Origin, Restore};
use super::{Container, ContainerError, Containers, Shared, selinux};
use crate::cdi;
use crate::image::{ImageError, ImageRecord};
use crate::lsm::apparmor;
use crate::model::ContainerId;
use crate::operation::Stage;
use crate::ports::{Ports, now};
use crate::sandbox::{Sandbox, SandboxFiles};
use crate::snapshot::read_in_root;
use crate::spec::host::LinuxHost;
use crate::spec::user::AccountFiles;
use crate::spec::{self, ContainerInput, ResolvedUser, SpecError, container_spec};
use crate::store::Table;
use crate::volume::{self, ImageVolume};

/// The most that is read of an image's passwd or group.
const MAX_FILE: u64 = 1 << 20;

impl Containers {
    /// Creates a container in a ready sandbox, or joins the creation of the same name and attempt.
    ///
    /// # Errors
    /// When the request is wrong or a step fails; then nothing of the container is left.
    pub async fn create(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        config: cri::ContainerConfig,
    ) -> Shared<ContainerId> {
        let key = validate(&config).map_err(Arc::new)?;
        let (containers, pod) = (Arc::clone(self), Arc::clone(sandbox));
        let begin = |stage| async move { containers.make(&pod, config, &stage).await.map_err(Arc::new) };
        let joined = self.creates.join(&format!("{}/{key}", sandbox.id()), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn make(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        config: cri::ContainerConfig,
        stage: &Stage,
    ) -> Result<ContainerId, ContainerError> {
        if !sandbox.is_ready() {
            let state = sandbox.status().state.name();
            return Err(ContainerError::SandboxNotReady { id: sandbox.id().to_string(), state });
        }
        if let Some(existing) = self.same_container(sandbox, &config) {
            match existing.state() {
                ContainerState::Created if *existing.config() == config => return Ok(existing.id().clone()),
                // No creation of this name is under way but this one: it is what an undo could not take away.
                ContainerState::Creating => {
                    let undone = self.unmake(&existing).await;
                    undone.map_err(|error| ContainerError::Shared(crate::report::chain(&*error)))?;
                }
                // Nor is it told to anybody, so nobody else would take it away.
                state if *state.told() == ContainerState::Creating => {
                    let removed = self.remove(&existing).await;
                    removed.map_err(|error| ContainerError::Shared(crate::report::chain(&*error)))?;
                }
                state => {
                    return Err(ContainerError::Exists { id: existing.id().clone(), state: state.name() });
                }
            }
        }
        stage.set("looking at the image");
        let id = self.ports.owner.container_id()?;
        stage.about(id.as_str());
        let (image, restore) = match self.origin(sandbox, &config, &id, stage).await? {
            Origin::Image(image) => (image, None),
            Origin::Checkpoint(image, restore) => (image, Some(restore)),
        };
        let draft = self.draft(sandbox, config, id, (&image, restore)).await?;
        stage.set("recording");
        self.ports.store.put(Table::Containers, draft.record.id.as_str(), &draft.record).await?;
        failpoint!("container.create.recorded", infallible);
        let container = Container::new(draft.record.clone());
        self.all.insert(container.id().as_str(), Arc::clone(&container));
        stage.set("making the root filesystem and the spec");
        match self.build(sandbox, &container, &image, draft.asked).await {
            Ok(()) => {
                self.prepare_in_background(&container);
                stage.set("telling NRI plugins");
                self.plugins_created(&container).await;
                Ok(container.id().clone())
            }
            Err(error) => {
                stage.set("undoing");
                failpoint!("container.create.undoing", infallible);
                if let Err(left) = self.dismantle(&container, stage).await {
                    tracing::warn!(container = %container.id(), error = %crate::report::chain(&left), "undo");
                }
                Err(error)
            }
        }
    }

    fn same_container(&self, sandbox: &Sandbox, config: &cri::ContainerConfig) -> Option<Arc<Container>> {
        let same = |c: &Arc<Container>| c.config().metadata == config.metadata;
        self.of_sandbox(sandbox.id()).into_iter().find(same)
    }

    pub(super) fn image_of(&self, config: &cri::ContainerConfig) -> Result<Arc<ImageRecord>, ContainerError> {
        let named = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
        match self.ports.images.find(named) {
            Err(ImageError::NotFound(image)) => Err(ContainerError::NoImage { image }),
            Ok(image) if image.artifact.is_some() => Err(ContainerError::Invalid(format!(
                "image {named:?} is an OCI artifact: it can be mounted as a volume, but there is nothing to run in it"
            ))),
            found => Ok(found?),
        }
    }

    /// Settles all that the record holds; changes nothing on the node.
    async fn draft(
        &self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
        id: ContainerId,
        (image, restore): (&Arc<ImageRecord>, Option<Restore>),
    ) -> Result<Draft, ContainerError> {
        let ports = &self.ports;
        let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let user = resolve_user(ports, &security, image).await?;
        let devices = cdi::requested(&config.cdi_devices, &config.annotations)?;
        let volumes = volume::requested(&ports.images, &config.mounts)?;
        let record = ContainerRecord {
            volumes: volumes.iter().map(|one| (one.index, one.image.id.to_string())).collect(),
            cgroups_path: sandbox.path_below(ports, id.as_str())?,
            stop_signal: spec::stop_signal(&config, &image.configuration())?,
            sandbox: sandbox.id().clone(),
            image_id: image.id.to_string(),
            image_name: called(&config, image, restore.is_some()),
            restored: restore.is_some(),
            image_ref: image.reference(),
            layers: image.diff_ids(),
            created_at: now(),
            log_path: log_path(sandbox.config(), &config),
            user: Some(cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.additional_gids.iter().map(|g| i64::from(*g)).collect(),
            }),
            resources: None,
            state: ContainerState::Creating,
            id,
            config,
        };
        Ok(Draft { record, asked: Asked { user, volumes, devices, restore } })
    }

    async fn build(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        container: &Arc<Container>,
        image: &Arc<ImageRecord>,
        asked: Asked,
    ) -> Result<(), ContainerError> {
        let target = self.target_pid_namespace(sandbox, container.config())?;
        let work = Build {
            ports: Arc::clone(&self.ports),
            sandbox: Arc::clone(sandbox),
            container: Arc::clone(container),
            image: Arc::clone(image),
            asked,
            target,
        };
        tokio::task::spawn_blocking(move || work.run()).await??;
        let gate = self.ports.nri.gate().await;
        let of_others = self.plugins_create(sandbox, container).await?;
        failpoint!("container.create.plugins_asked");
        container.change(&self.ports, |s| Ok::<_, ContainerError>(s.prepared()?)).await?;
        failpoint!("container.create.created_recorded", infallible);
        drop(gate);
        self.ports.nri.carry_out(of_others).await;
        Ok(())
    }

    /// The pid namespace of the container that TARGET mode names.
    fn target_pid_namespace(
        &self,
        sandbox: &Sandbox,
        config: &cri::ContainerConfig,
    ) -> Result<Option<PathBuf>, ContainerError> {
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let Some(options) = security.and_then(|s| s.namespace_options.as_ref()) else { return Ok(None) };
        if options.pid() != cri::NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.find(&options.target_id)?;
        if target.sandbox() != sandbox.id() {
            let text = format!("target_id {} is a container of another pod", options.target_id);
            return Err(ContainerError::Invalid(text));
        }
        let pid = target.pid().ok_or_else(|| ContainerError::NotRunning { state: target.state().name() })?;
        Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))))
    }
}

struct Draft {
    record: ContainerRecord,
    asked: Asked,
}

/// What a request asks for, as it was understood.
struct Asked {
    user: ResolvedUser,
    volumes: Vec<ImageVolume>,
    devices: Vec<cdi::DeviceName>,
    restore: Option<Restore>,
}

/// What is made on the node for a container, in a thread that may block.
struct Build {
    ports: Arc<Ports>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    image: Arc<ImageRecord>,
    asked: Asked,
    target: Option<PathBuf>,
}

impl Build {
    fn run(mut self) -> Result<(), ContainerError> {
        let id = self.container.id();
        let owners = self.sandbox.users()?.map(super::prepare::owners);
        self.ports.snapshots.mounts(&self.image.diff_ids(), id, owners)?;
        failpoint!("container.create.layer_made");
        let bundle = self.ports.places.container(id);
        let rootfs = bundle.join("rootfs");
        fs::create_dir_all(&rootfs).map_err(failed("make", &rootfs))?;
        failpoint!("container.create.bundle_made");
        if let Some(folder) = self.container.made().log_path.as_deref().and_then(Path::parent) {
            fs::create_dir_all(folder).map_err(failed("make the log's folder", folder))?;
        }
        let mut config = self.with_host_paths()?;
        failpoint!("container.create.host_paths_made");
        if let Some(restore) = &mut self.asked.restore {
            restore.complete(&mut config);
            restore.bring_back(&self.ports.snapshots, &self.container)?;
            restore.keep();
        }
        self.mount_volumes(&mut config, &bundle)?;
        failpoint!("container.create.volumes_mounted");
        let localhost_seccomp = spec::container::localhost_seccomp_path(&config)?
            .map(|path| spec::host::read_profile(&path))
            .transpose()?;
        let files = SandboxFiles::of(self.ports.places.sandbox(self.sandbox.id()), self.sandbox.own_ipc());
        let namespaces = self.sandbox.namespaces().ok_or_else(|| ContainerError::SandboxNotReady {
            id: self.sandbox.id().to_string(),
            state: self.sandbox.status().state.name(),
        })?;
        let edits = cdi::resolve(&self.ports.cdi.spec_dirs, &self.asked.devices)?;
        let handler = self.ports.handlers.handler(&self.sandbox.made().handler)?;
        let mut spec = container_spec(&ContainerInput {
            id,
            sandbox_id: self.sandbox.id(),
            config: &config,
            sandbox_config: self.sandbox.config(),
            image: &self.image.configuration(),
            image_name: config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default(),
            user: &self.asked.user,
            rootfs: Path::new("rootfs"),
            hostname: &crate::sandbox::files::host_name(self.sandbox.config()),
            cgroups_path: &self.container.made().cgroups_path,
            namespaces: &namespaces,
            target_pid_namespace: self.target.as_deref(),
            files: &files.for_spec(),
            localhost_seccomp: localhost_seccomp.as_deref(),
            selinux_level: self.sandbox.selinux_level(),
            host: &LinuxHost,
            defaults: &self.ports.spec_defaults,
            features: &self.ports.features_of(handler),
        })?;
        cdi::apply(&mut spec, &edits, &LinuxHost, self.sandbox.users()?)?;
        check_apparmor(spec.process().as_ref().and_then(|process| process.apparmor_profile().as_deref()))?;
        selinux::prepare(&self.ports, &spec, &config.mounts)?;
        // Stored with the state that follows.
        self.container.resources.store(Some(Arc::new(spec::resources::in_effect(&spec))));
        spec.save(bundle.join("config.json")).map_err(ContainerError::SpecFile)?;
        failpoint!("container.create.spec_written");
        Ok(())
    }

    /// Mounts the image volumes; in the request, each becomes a path of the host.
    fn mount_volumes(&self, config: &mut cri::ContainerConfig, bundle: &Path) -> Result<(), ContainerError> {
        let label = self.mount_label(config);
        for volume in &self.asked.volumes {
            let Some(request) = config.mounts.get_mut(volume.index) else { continue };
            // Half of a mapping is refused with the other mounts.
            let mapped = !request.uid_mappings.is_empty() && !request.gid_mappings.is_empty();
            let shim = if mapped { Some(self.ports.pause.check()?) } else { None };
            let mapping = shim.as_deref().map(|shim| volume::Mapping {
                uids: &request.uid_mappings,
                gids: &request.gid_mappings,
                shim,
            });
            let (snapshots, id) = (&self.ports.snapshots, self.container.id());
            let place = volume::mount(snapshots, id, bundle, volume, mapping, label.as_deref())?;
            request.host_path = place.display().to_string();
            request.image = None;
            if mapped {
                request.uid_mappings.clear();
                request.gid_mappings.clear();
            }
        }
        Ok(())
    }

    /// The SELinux label of what is mounted for the container alone, where containers get labels.
    fn mount_label(&self, config: &cri::ContainerConfig) -> Option<String> {
        if !self.ports.spec_defaults.selinux {
            return None;
        }
        let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
        let (pod, level) = (self.sandbox.config(), self.sandbox.selinux_level());
        spec::selinux::for_container(&security, pod, level, &self.ports.features).mount
    }

    /// The request with its host paths made where they are missing, as the kubelet expects, and with symlinks resolved.
    fn with_host_paths(&self) -> Result<cri::ContainerConfig, ContainerError> {
        let mut config = self.container.config().clone();
        for mount in &mut config.mounts {
            if mount.host_path.is_empty() {
                continue;
            }
            let path = Path::new(&mount.host_path);
            if !path.is_absolute() {
                let text = format!("the host path {:?} of a mount is not absolute", mount.host_path);
                return Err(ContainerError::Invalid(text));
            }
            let real = match fs::canonicalize(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    fs::create_dir_all(path).map_err(failed("make the mount's source", path))?;
                    path.to_owned()
                }
                other => other.map_err(failed("resolve the mount's source", path))?,
            };
            mount.host_path = real.to_str().map(str::to_owned).ok_or_else(|| {
                ContainerError::Invalid(format!("the mount's source {} is not UTF-8", real.display()))
            })?;
        }
        Ok(config)
    }
}

/// The kernel has the profile, or the container is refused now and not at its start.
fn check_apparmor(profile: Option<&str>) -> Result<(), ContainerError> {
    let Some(name) = profile else { return Ok(()) };
    if apparmor::ensure_loaded(name)? {
        return Ok(());
    }
    let why = "it is not loaded";
    Err(SpecError::Unavailable { what: "AppArmor profile", value: name.to_owned(), why }.into())
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> ContainerError + 'a {
    move |source| ContainerError::File { operation, path: path.to_owned(), source }
}

/// Settles names and groups with the image's own account files, read without following anything out of it.
async fn resolve_user(
    ports: &Arc<Ports>,
    security: &cri::LinuxContainerSecurityContext,
    image: &Arc<ImageRecord>,
) -> Result<ResolvedUser, ContainerError> {
    let (ports, security, image) = (Arc::clone(ports), security.clone(), Arc::clone(image));
    tokio::task::spawn_blocking(move || {
        let view = ports.snapshots.view(&image.diff_ids())?;
        let read = |path: &str| read_in_root(view.as_fd(), path, MAX_FILE);
        let passwd = read("etc/passwd")?.unwrap_or_default();
        let group = read("etc/group")?.unwrap_or_default();
        let files = AccountFiles { passwd: &passwd, group: &group };
        Ok(spec::user::resolve(&security, &image.config.user, files)?)
    })
    .await?
}

/// What people call the image. That of a checkpoint is not the one that the request names.
fn called(config: &cri::ContainerConfig, image: &ImageRecord, restored: bool) -> String {
    let asked = match (&config.image, restored) {
        (Some(asked), false) => asked.clone(),
        _ => cri::ImageSpec { image: image.id.to_string(), ..Default::default() },
    };
    image.called(&asked)
}

fn log_path(sandbox: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> Option<PathBuf> {
    let given = !sandbox.log_directory.is_empty() && !container.log_path.is_empty();
    given.then(|| Path::new(&sandbox.log_directory).join(&container.log_path))
}

/// Checks what every step relies on; answers the part of the key that the container adds.
fn validate(config: &cri::ContainerConfig) -> Result<String, ContainerError> {
    let invalid = |text: &str| Err(ContainerError::Invalid(text.to_owned()));
    let Some(metadata) = &config.metadata else { return invalid("metadata is missing") };
    if metadata.name.is_empty() {
        return invalid("metadata.name is empty");
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return invalid("image is missing");
    }
    let escapes = Path::new(&config.log_path).components().any(|c| c == std::path::Component::ParentDir);
    if escapes || config.log_path.starts_with('/') {
        return invalid("log_path must be a path below the pod's log_directory");
    }
    Ok(format!("{}/{}", metadata.name, metadata.attempt))
}
