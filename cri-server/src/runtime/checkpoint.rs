//! What a checkpoint asks of a shim: to hold the container still, to write the images, to let it run on; and to
//! restore a container from such images.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use protobuf::well_known_types::empty::Empty;

use super::error::RuntimeError;
use super::shim::Shim;

/// Beyond the limit, so that the shim's own words arrive when criu was too slow. With what the connection adds it is
/// the time that our shim takes off again.
const ANSWER: Duration = Duration::from_secs(4);

impl Shim {
    /// Freezes the container.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says; then it runs on.
    pub async fn pause(&self) -> Result<(), RuntimeError> {
        let request = api::PauseRequest { id: self.id().to_owned(), ..Default::default() };
        self.call::<Empty>("Pause", request, self.deadlines().light).await.map(drop)
    }

    /// Lets a frozen container run on.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn resume(&self) -> Result<(), RuntimeError> {
        let request = api::ResumeRequest { id: self.id().to_owned(), ..Default::default() };
        self.call::<Empty>("Resume", request, self.deadlines().light).await.map(drop)
    }

    /// Restores the container that was made with a checkpoint. Answers its first process's pid.
    ///
    /// # Errors
    /// [`RuntimeError::FailedPrecondition`] with criu's words, when it cannot do it.
    pub async fn start_restored(&self, limit: Duration) -> Result<u32, RuntimeError> {
        let request = api::StartRequest { id: self.id().to_owned(), ..Default::default() };
        let answer: api::StartResponse = self.call("Start", request, limit + ANSWER).await?;
        Ok(answer.pid)
    }

    /// Writes the images of the container's processes into the folder `images`; they go on as they were.
    ///
    /// # Errors
    /// [`RuntimeError::FailedPrecondition`] with criu's words, when it cannot do it.
    pub async fn checkpoint(&self, images: &Path, limit: Duration) -> Result<(), RuntimeError> {
        let path = images.to_string_lossy().into_owned();
        let request = api::CheckpointTaskRequest { id: self.id().to_owned(), path, ..Default::default() };
        self.call::<Empty>("Checkpoint", request, limit + ANSWER).await.map(drop)
    }
}
