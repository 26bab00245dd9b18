//! The connection to the daemon, and the lists that several commands need.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cofferdam_proto::admin::admin_client::AdminClient;
use cofferdam_proto::cri;
use cofferdam_proto::cri::image_service_client::ImageServiceClient;
use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::error::CliError;
use crate::config::{Config, Overrides};

/// Lists of thousands of containers with their annotations.
const MAX_ANSWER: usize = 128 << 20;
const SOCKET_VARIABLE: &str = "COFFERDAM_SOCKET";

/// The daemon's three services.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    pub(super) admin: AdminClient<Channel>,
}

/// Where the daemon is: as told, or by the environment, or by the configuration.
pub(super) fn socket_path(told: Option<PathBuf>) -> PathBuf {
    let environment = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    // A broken configuration is the daemon's trouble, not that of a command which only asks.
    let configured = || Config::load(None, &Overrides::default()).unwrap_or_default().socket;
    told.or_else(environment).unwrap_or_else(configured)
}

impl Client {
    /// Connects to the daemon at `socket`.
    pub(super) async fn connect(socket: &Path) -> Result<Self, CliError> {
        // The first connection tells, in the kernel's words, what tonic would hide.
        if let Err(error) = UnixStream::connect(socket).await {
            let socket = socket.to_owned();
            return Err(match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => CliError::NotRunning { socket },
                ErrorKind::PermissionDenied => CliError::Denied { socket },
                _ => CliError::Connect { socket, source: error },
            });
        }
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            admin: AdminClient::new(channel),
        })
    }

    /// All pods.
    pub(super) async fn pods(&mut self) -> Result<Vec<cri::PodSandbox>, CliError> {
        let answer = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        Ok(answer.into_inner().items)
    }

    /// All containers, those that have exited too.
    pub(super) async fn containers(&mut self) -> Result<Vec<cri::Container>, CliError> {
        let answer = self.runtime.list_containers(cri::ListContainersRequest::default()).await?;
        Ok(answer.into_inner().containers)
    }

    /// All images.
    pub(super) async fn all_images(&mut self) -> Result<Vec<cri::Image>, CliError> {
        let answer = self.images.list_images(cri::ListImagesRequest::default()).await?;
        Ok(answer.into_inner().images)
    }

    /// A container's status, from the daemon's memory.
    pub(super) async fn container_status(&mut self, id: &str) -> Result<cri::ContainerStatus, CliError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await?.into_inner();
        Ok(answer.status.unwrap_or_default())
    }

    /// What the daemon tells of itself beyond the CRI.
    pub(super) async fn daemon_info(&mut self) -> Result<serde_json::Value, CliError> {
        let answer = self.runtime.status(cri::StatusRequest { verbose: true }).await?.into_inner();
        Ok(serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))?)
    }
}
