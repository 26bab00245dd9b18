//! Typed CRI clients over a unix socket.
//!
//! Invariant: a [`Cri`] outlives the daemon it talks to; after a restart on the same socket the next call connects
//! again.

pub mod build;
mod raw;
pub mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::admin::{self, admin_client::AdminClient};
use cofferdam_proto::cri::image_service_client::ImageServiceClient;
use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use cofferdam_proto::cri::{self, ContainerState, PodSandboxState};
use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

/// The kubelet's own bound for one answer.
const MAX_MESSAGE: usize = 16 << 20;

/// Both CRI services of one socket. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
    channel: Channel,
    socket: PathBuf,
}

impl Cri {
    /// Makes clients for `socket` (a path, or `unix://` and a path). Connects at the first call.
    pub fn new(socket: &str) -> Self {
        let path = PathBuf::from(socket.strip_prefix("unix://").unwrap_or(socket));
        let target = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { tokio::net::UnixStream::connect(target).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            channel,
            socket: path,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection, for clients of other services on the socket.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Sends bytes, whatever they are, as the message of a call.
    pub async fn raw(&self, path: &'static str, body: &[u8]) -> Status {
        raw::call(self.channel.clone(), path, body).await
    }

    pub async fn version(&self) -> Result<cri::VersionResponse, Status> {
        Ok(self.runtime.clone().version(cri::VersionRequest { version: "v1".into() }).await?.into_inner())
    }

    pub async fn run_pod(&self, config: &cri::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer holds no status"))
    }

    pub async fn list_pods(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(cri::ListPodSandboxRequest { filter })
            .await?
            .into_inner()
            .items)
    }

    pub async fn create(
        &self,
        pod: &str,
        sandbox: &cri::PodSandboxConfig,
        config: cri::ContainerConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer holds no status"))
    }

    pub async fn list(&self, filter: Option<cri::ContainerFilter>) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter };
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|part| (*part).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    pub async fn pull(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
        let request = cri::PullImageRequest { image: Some(build::image(image)), auth, sandbox_config: None };
        Ok(self.image.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn image_status(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(build::image(image)), verbose: false };
        Ok(self.image.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn list_images(&self) -> Result<Vec<cri::Image>, Status> {
        let request = cri::ListImagesRequest { filter: None };
        Ok(self.image.clone().list_images(request).await?.into_inner().images)
    }

    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: Some(build::image(image)) };
        self.image.clone().remove_image(request).await.map(drop)
    }

    /// Imports the images of an archive, through the service of the operator's commands.
    pub async fn import(&self, archive: &Path) -> Result<(), Status> {
        let request = admin::ImportImagesRequest { path: archive.display().to_string() };
        AdminClient::new(self.channel.clone()).import_images(request).await.map(drop)
    }

    /// Removes the images that no container is made of, with and without tags, as the operator does.
    pub async fn prune(&self) -> Result<admin::PruneResponse, Status> {
        let request = admin::PruneRequest { all: true, dry_run: false };
        Ok(AdminClient::new(self.channel.clone()).prune(request).await?.into_inner())
    }

    /// Asks until the container has exited. Gives the last status, whether it exited or the time ran out.
    pub async fn wait_exited(&self, id: &str, limit: Duration) -> Result<cri::ContainerStatus, Status> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let status = self.status(id).await?;
            let over = tokio::time::Instant::now() >= deadline;
            if status.state() == ContainerState::ContainerExited || over {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops and removes a pod; one that is not there counts as done.
    pub async fn destroy_pod(&self, id: &str) -> Result<(), Status> {
        for result in [self.stop_pod(id).await, self.remove_pod(id).await] {
            match result {
                Err(status) if status.code() != tonic::Code::NotFound => return Err(status),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the pod is there and ready.
    pub async fn pod_ready(&self, id: &str) -> bool {
        self.pod_status(id).await.is_ok_and(|status| status.state() == PodSandboxState::SandboxReady)
    }
}
