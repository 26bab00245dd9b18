//! The container code in the guest, called over the machine's channel. Every call but Wait has a deadline.

use std::time::Duration;

use cofferdam_vm::channel::{Channel, Purpose};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

use super::VmError;

/// Making a container, under emulation as well.
const HEAVY: Duration = Duration::from_secs(50);
const LIGHT: Duration = Duration::from_secs(8);
/// A guest that is too busy for a signal for so long hangs.
const SIGNAL: Duration = Duration::from_secs(5);

/// So much later the client's own deadline is.
const SLACK: Duration = Duration::from_secs(1);

pub struct Guest {
    client: TaskClient,
}

/// The process that a call is about; an empty exec is the first one.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    pub id: &'a str,
    pub exec: &'a str,
}

macro_rules! call {
    ($self:ident, $method:ident, $request:expr, $after:expr) => {{
        let after: Duration = $after;
        // The client's own deadline is not relied on: the other end of its connection is the guest. Ours is first.
        let calling = $self.client.$method(context::with_duration(after + SLACK), $request);
        match tokio::time::timeout(after, calling).await {
            Ok(answer) => answer.map_err(|error| VmError::of_call(stringify!($method), error)),
            Err(_) => Err(VmError::Silent { call: stringify!($method), after }),
        }
    }};
}

impl Guest {
    pub async fn connect(channel: &Channel) -> Result<Self, VmError> {
        let stream = channel.open(&Purpose::Task, LIGHT).await?;
        Ok(Guest { client: TaskClient::new(Client::new(Socket::new(stream))) })
    }

    /// The pid in the guest.
    pub async fn create(&self, request: &api::CreateTaskRequest) -> Result<u32, VmError> {
        call!(self, create, request, HEAVY).map(|answer| answer.pid)
    }

    pub async fn start(&self, name: Name<'_>) -> Result<(), VmError> {
        let mut request = api::StartRequest::new();
        (request.id, request.exec_id) = name.owned();
        call!(self, start, &request, HEAVY).map(drop)
    }

    pub async fn exec(&self, request: &api::ExecProcessRequest) -> Result<(), VmError> {
        call!(self, exec, request, LIGHT).map(drop)
    }

    pub async fn kill(&self, name: Name<'_>, signal: u32, all: bool) -> Result<(), VmError> {
        let mut request = api::KillRequest::new();
        (request.id, request.exec_id) = name.owned();
        (request.signal, request.all) = (signal, all);
        call!(self, kill, &request, SIGNAL).map(drop)
    }

    pub async fn delete(&self, name: Name<'_>) -> Result<(), VmError> {
        let mut request = api::DeleteRequest::new();
        (request.id, request.exec_id) = name.owned();
        call!(self, delete, &request, HEAVY).map(drop)
    }

    pub async fn resize(&self, name: Name<'_>, width: u32, height: u32) -> Result<(), VmError> {
        let mut request = api::ResizePtyRequest::new();
        (request.id, request.exec_id) = name.owned();
        (request.width, request.height) = (width, height);
        call!(self, resize_pty, &request, LIGHT).map(drop)
    }

    pub async fn pause(&self, id: &str) -> Result<(), VmError> {
        let request = api::PauseRequest { id: id.to_owned(), ..Default::default() };
        call!(self, pause, &request, LIGHT).map(drop)
    }

    pub async fn resume(&self, id: &str) -> Result<(), VmError> {
        let request = api::ResumeRequest { id: id.to_owned(), ..Default::default() };
        call!(self, resume, &request, LIGHT).map(drop)
    }

    pub async fn update(&self, id: &str, resources: Any) -> Result<(), VmError> {
        let resources = MessageField::some(resources);
        let request = api::UpdateTaskRequest { id: id.to_owned(), resources, ..Default::default() };
        call!(self, update, &request, LIGHT).map(drop)
    }

    pub async fn stats(&self, id: &str) -> Result<Any, VmError> {
        let request = api::StatsRequest { id: id.to_owned(), ..Default::default() };
        call!(self, stats, &request, LIGHT).map(|answer| answer.stats.unwrap_or_default())
    }

    /// Waits for the process's end however long it takes; its exit status.
    pub async fn wait(&self, name: Name<'_>) -> Result<u32, VmError> {
        let mut request = api::WaitRequest::new();
        (request.id, request.exec_id) = name.owned();
        let answer = self.client.wait(Context::default(), &request).await;
        answer.map(|answer| answer.exit_status).map_err(|error| VmError::of_call("wait", error))
    }
}

impl Name<'_> {
    fn owned(self) -> (String, String) {
        (self.id.to_owned(), self.exec.to_owned())
    }
}
