//! The calls that answer a URL: Exec, Attach, PortForward. Where the streaming server has a certificate, its fingerprint goes
//! with the URL, in the answer's metadata: who may use the socket knows the server by it.

use std::sync::Arc;

use cofferdam_proto::cri;
use tonic::{Response, Status};

use super::Daemon;
use super::code::status;
use crate::container::{Container, ContainerError};
use crate::streaming::{AttachRequest, ExecRequest, ForwardRequest, Streams, Ticket};

/// The answer's metadata with the fingerprint.
pub const FINGERPRINT: &str = "cofferdam-streaming-certificate";

pub(super) fn exec(
    daemon: &Daemon,
    request: cri::ExecRequest,
) -> Result<Response<cri::ExecResponse>, Status> {
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is empty"));
    }
    let cri::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let streams = checked(Streams { stdin, stdout, stderr, tty })?;
    let container = running(daemon, &container_id)?;
    let url = url(daemon, Ticket::Exec(ExecRequest { container, command: cmd, streams }))?;
    Ok(answer(daemon, cri::ExecResponse { url }))
}

pub(super) fn attach(
    daemon: &Daemon,
    request: cri::AttachRequest,
) -> Result<Response<cri::AttachResponse>, Status> {
    let cri::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let streams = checked(Streams { stdin, stdout, stderr, tty })?;
    let container = running(daemon, &container_id)?;
    // Refused here, where the caller sees the words, rather than on the stream.
    daemon.containers.attach_target(&container).map_err(|e| status(&e))?;
    let url = url(daemon, Ticket::Attach(AttachRequest { container, streams }))?;
    Ok(answer(daemon, cri::AttachResponse { url }))
}

pub(super) fn port_forward(
    daemon: &Daemon,
    request: cri::PortForwardRequest,
) -> Result<Response<cri::PortForwardResponse>, Status> {
    let sandbox = daemon.sandboxes.find(&request.pod_sandbox_id).map_err(|e| status(&e))?;
    if !sandbox.is_ready() {
        let state = sandbox.status().state.name();
        return Err(Status::failed_precondition(format!("pod sandbox {} is {state}", sandbox.id())));
    }
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(1..) => Ok(port.unsigned_abs() as u16),
        _ => Err(Status::invalid_argument(format!("port {port} is no port"))),
    };
    let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
    let netns = daemon.sandboxes.network_namespace(&sandbox);
    let bundle = daemon.sandboxes.folder(&sandbox);
    let url = url(daemon, Ticket::Forward(ForwardRequest { sandbox, bundle, netns, ports }))?;
    Ok(answer(daemon, cri::PortForwardResponse { url }))
}

/// What the CRI says of the four flags.
fn checked(streams: Streams) -> Result<Streams, Status> {
    if streams.tty && streams.stderr {
        return Err(Status::invalid_argument("tty and stderr exclude each other"));
    }
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be set"));
    }
    Ok(streams)
}

fn running(daemon: &Daemon, id: &str) -> Result<Arc<Container>, Status> {
    let container = daemon.containers.find(id).map_err(|e| status(&e))?;
    if !container.is_running() {
        return Err(status(&ContainerError::NotRunning { state: container.state().name() }));
    }
    Ok(container)
}

fn answer<T>(daemon: &Daemon, message: T) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(value) = daemon.streaming.fingerprint().and_then(|text| text.parse().ok()) {
        response.metadata_mut().insert(FINGERPRINT, value);
    }
    response
}

fn url(daemon: &Daemon, ticket: Ticket) -> Result<String, Status> {
    daemon.streaming.url(ticket).map_err(|e| status(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_stderr_and_something_is_asked_for() {
        let flags = |stdin, stdout, stderr, tty| checked(Streams { stdin, stdout, stderr, tty }).is_ok();
        assert!(flags(false, true, true, false));
        assert!(flags(true, true, false, true));
        assert!(flags(true, false, false, false));
        assert!(!flags(true, true, true, true));
        assert!(!flags(false, false, false, false));
        assert!(!flags(false, false, false, true));
    }
}
