//! What shims report: a ttrpc server of containerd's event service, decoded into [`Event`]s on a bounded channel.
//!
//! Invariant: an event is acknowledged only once it is in the channel. A slow consumer makes shims wait (and, after
//! their own time-outs, send again): an event may come twice, but none is lost while the daemon lives. What happened
//! while it was down is learnt from each shim's state.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::events::task as wire;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::error::RuntimeError;
use super::shim::system_time;

/// How many events wait at most.
const QUEUE: usize = 1024;

/// Something happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The container was made.
    Create {
        /// The task.
        id: String,
        /// Its first process.
        pid: u32,
    },
    /// The container runs.
    Start {
        /// The task.
        id: String,
        /// Its first process.
        pid: u32,
    },
    /// A process ended.
    Exit {
        /// The task.
        id: String,
        /// The process added by Exec, or empty for the container's first.
        exec_id: String,
        /// In the host's numbering.
        pid: u32,
        /// The exit code.
        status: u32,
        /// When.
        exited_at: Option<SystemTime>,
    },
    /// The kernel killed for lack of memory.
    Oom {
        /// The task.
        id: String,
    },
    /// The container or a process was deleted.
    Delete {
        /// The task.
        id: String,
        /// The process added by Exec, or empty for the container's first.
        exec_id: String,
    },
    /// A process was added, not yet started.
    ExecAdded {
        /// The task.
        id: String,
        /// The process.
        exec_id: String,
    },
    /// An added process runs.
    ExecStarted {
        /// The task.
        id: String,
        /// The process.
        exec_id: String,
        /// In the host's numbering.
        pid: u32,
    },
    /// The container was frozen.
    Paused {
        /// The task.
        id: String,
    },
    /// The container was thawed.
    Resumed {
        /// The task.
        id: String,
    },
    /// One that the daemon has no use for.
    Other {
        /// Its name.
        type_url: String,
    },
}

/// Receives the events of all shims.
pub struct Sink {
    server: Server,
    path: PathBuf,
}

impl Sink {
    /// Serves at `<state>/events.sock`, for the daemon's user only; takes the place of an earlier daemon's socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn bind(state: &Path) -> Result<(Self, mpsc::Receiver<Event>), RuntimeError> {
        let path = state.join("events.sock");
        let failed = |source| RuntimeError::File { operation: "bind", path: path.clone(), source };
        let listener = listen(state, &path).map_err(failed)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_events(Arc::new(Forwarder { sender })));
        server.start().await.map_err(|error| failed(std::io::Error::other(error)))?;
        Ok((Self { server, path }, receiver))
    }

    /// Where shims send to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the service. The socket's file stays: shims try it again until the next daemon serves it.
    pub async fn shutdown(mut self) {
        if let Err(error) = self.server.shutdown().await {
            tracing::warn!(%error, "event sink did not end cleanly");
        }
    }
}

/// Bound under another name and moved into place: nobody ever sees the socket with open permissions, nor a gap.
fn listen(state: &Path, path: &Path) -> std::io::Result<UnixListener> {
    let folder = tempfile::Builder::new().prefix(".e").tempdir_in(state)?;
    let fresh = folder.path().join("s");
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

struct Forwarder {
    sender: mpsc::Sender<Event>,
}

#[async_trait::async_trait]
impl Events for Forwarder {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let event = request.envelope.event.as_ref().ok_or_else(|| refusal("the envelope is empty"))?;
        let event = decode(event).map_err(|error| refusal(&format!("{}: {error}", event.type_url)))?;
        self.sender.send(event).await.map_err(|_| {
            ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "the daemon is going down"))
        })?;
        Ok(Empty::new())
    }
}

fn refusal(reason: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, reason))
}

/// Reads one event. The first process's exit carries the task's id as its own: it becomes the empty one.
fn decode(any: &Any) -> Result<Event, protobuf::Error> {
    fn of<M: Message>(any: &Any) -> Result<M, protobuf::Error> {
        M::parse_from_bytes(&any.value)
    }
    let process = |task: &str, exec: String| if exec == task { String::new() } else { exec };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    Ok(match name.strip_prefix("containerd.events.").unwrap_or_default() {
        "TaskCreate" => {
            let event: wire::TaskCreate = of(any)?;
            Event::Create { id: event.container_id, pid: event.pid }
        }
        "TaskStart" => {
            let event: wire::TaskStart = of(any)?;
            Event::Start { id: event.container_id, pid: event.pid }
        }
        "TaskExit" => {
            let event: wire::TaskExit = of(any)?;
            Event::Exit {
                exec_id: process(&event.container_id, event.id),
                id: event.container_id,
                pid: event.pid,
                status: event.exit_status,
                exited_at: system_time(event.exited_at.as_ref()),
            }
        }
        "TaskOOM" => Event::Oom { id: of::<wire::TaskOOM>(any)?.container_id },
        "TaskDelete" => {
            let event: wire::TaskDelete = of(any)?;
            Event::Delete { exec_id: process(&event.container_id, event.id), id: event.container_id }
        }
        "TaskExecAdded" => {
            let event: wire::TaskExecAdded = of(any)?;
            Event::ExecAdded { id: event.container_id, exec_id: event.exec_id }
        }
        "TaskExecStarted" => {
            let event: wire::TaskExecStarted = of(any)?;
            Event::ExecStarted { id: event.container_id, exec_id: event.exec_id, pid: event.pid }
        }
        "TaskPaused" => Event::Paused { id: of::<wire::TaskPaused>(any)?.container_id },
        "TaskResumed" => Event::Resumed { id: of::<wire::TaskResumed>(any)?.container_id },
        _ => Event::Other { type_url: any.type_url.clone() },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use containerd_shim_protos::shim_async::EventsClient;
    use protobuf::MessageField;
    use ttrpc::context::with_duration;

    use super::*;

    fn any(name: &str, message: &impl Message) -> Any {
        Any { type_url: name.to_owned(), value: message.write_to_bytes().unwrap(), ..Default::default() }
    }

    #[test]
    fn exits_tell_the_first_process_from_added_ones() {
        let mut exit =
            wire::TaskExit { container_id: "c".into(), id: "c".into(), exit_status: 3, ..Default::default() };
        let decoded = decode(&any("containerd.events.TaskExit", &exit)).unwrap();
        assert!(matches!(decoded, Event::Exit { exec_id, status: 3, .. } if exec_id.is_empty()));
        exit.id = "e".into();
        let decoded = decode(&any("types.containerd.io/containerd.events.TaskExit", &exit)).unwrap();
        assert!(matches!(decoded, Event::Exit { exec_id, .. } if exec_id == "e"));
        assert!(matches!(decode(&any("containerd.events.ImageCreate", &exit)), Ok(Event::Other { .. })));
        let broken =
            Any { type_url: "containerd.events.TaskOOM".into(), value: vec![0xff], ..Default::default() };
        assert!(decode(&broken).is_err());
    }

    #[tokio::test]
    async fn a_full_queue_delays_the_sender_and_loses_nothing() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("events.sock"), "left by an earlier daemon").unwrap();
        let (sink, mut events) = Sink::bind(state.path()).await.unwrap();
        let mode = std::fs::metadata(sink.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let address = format!("unix://{}", sink.path().display());
        let client = EventsClient::new(ttrpc::asynchronous::Client::connect(&address).await.unwrap());
        let send = async |number: usize, patience: Duration| {
            let event = any(
                "containerd.events.TaskOOM",
                &wire::TaskOOM { container_id: number.to_string(), ..Default::default() },
            );
            let envelope = containerd_shim_protos::shim::event::Envelope {
                event: MessageField::some(event),
                ..Default::default()
            };
            let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
            client.forward(with_duration(patience), &request).await
        };
        for number in 0..QUEUE {
            send(number, Duration::from_secs(5)).await.unwrap();
        }
        send(QUEUE, Duration::from_millis(100)).await.unwrap_err();
        for number in 0..QUEUE {
            assert_eq!(events.recv().await, Some(Event::Oom { id: number.to_string() }));
        }
        send(QUEUE + 1, Duration::from_secs(5)).await.unwrap();
        let mut rest = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(200), events.recv()).await {
            rest.push(event);
        }
        assert!(rest.contains(&Event::Oom { id: (QUEUE + 1).to_string() }), "{rest:?}");
        sink.shutdown().await;
    }
}
