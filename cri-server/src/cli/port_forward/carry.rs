//! Carries one connection into the pod.

use cofferdam_proto::cri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::Code;

use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::remote::{Event, FORWARD_PROTOCOL, Opened, Receiver, Sender, Target, dial, open};
use crate::report::chain;
use crate::streaming::spdy::Headers;

const CHUNK: usize = 32 * 1024;
/// The ids of the streams, in the order in which they are opened.
const ERROR: u32 = 1;
const DATA: u32 = 3;
/// What is shown of the words on the error stream.
const WORDS: usize = 1024;

/// Why a connection was not carried to its end.
#[derive(Debug)]
pub(super) enum Failure {
    /// There will be no other, either.
    Pod(CliError),
    Connection(String),
}

/// Asks the daemon where the pod's ports are reached.
pub(super) async fn target(client: &mut Client, pod: &str, port: u16) -> Result<Target, CliError> {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port.into()] };
    Ok(Target::of(client.runtime.port_forward(request).await?, |answer| answer.url))
}

/// Sees a connection to its end.
pub(super) async fn carry(
    mut client: Client,
    pod: String,
    port: u16,
    local: TcpStream,
) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::error::Error| Failure::Connection(format!("port {port}: {}", chain(error)));
    let target = match target(&mut client, &pod, port).await {
        Ok(target) => target,
        Err(CliError::Call(status)) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
            return Err(Failure::Pod(CliError::Call(status)));
        }
        Err(error) => return Err(failed(&error)),
    };
    let io = dial(&target, FORWARD_PROTOCOL).await.map_err(|error| failed(&error))?;
    let Opened { sender, mut receiver, writer } = open(io, &headers(port));
    let nodelay = local.set_nodelay(true);
    nodelay.map_err(|error| failed(&error))?;
    let (from, to) = local.into_split();
    let words = tokio::select! {
        words = into_local(&mut receiver, to) => match words {
            // Clients break off what they are done with; dropped, the session tells the pod.
            Err(CliError::Local(_)) => return Ok(()),
            words => words.map_err(|error| failed(&error))?,
        },
        () = into_pod(&sender, from) => return Ok(()),
        never = writer.run() => match never {},
    };
    match words.is_empty() {
        true => Ok(()),
        // They name the port.
        false => Err(Failure::Connection(String::from_utf8_lossy(&words).into_owned())),
    }
}

fn headers(port: u16) -> [Headers; 2] {
    let port = port.to_string();
    ["error", "data"]
        .map(|kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")].into_iter().collect())
}

/// From the pod to the local client, until the pod's end says that both directions are done. Gives what the error stream said.
async fn into_local(receiver: &mut Receiver, mut to: OwnedWriteHalf) -> Result<Vec<u8>, CliError> {
    let (mut words, mut open) = (Vec::new(), [ERROR, DATA].to_vec());
    while !open.is_empty() {
        let Some(event) = receiver.next().await? else { break };
        match event {
            Event::Data { id, data, fin } => {
                if id == DATA {
                    to.write_all(&data).await.map_err(CliError::Local)?;
                } else if id == ERROR {
                    let room = WORDS.saturating_sub(words.len());
                    words.extend_from_slice(&data[..data.len().min(room)]);
                }
                if fin {
                    open.retain(|other| *other != id);
                    if id == DATA {
                        // A client that has closed already needs no end.
                        let _ = to.shutdown().await;
                    }
                }
            }
            Event::Reset { id } => open.retain(|other| *other != id),
        }
    }
    Ok(words)
}

/// From the local client to the pod; the end of what it says is passed on. Returns only when the client breaks off.
async fn into_pod(sender: &Sender, mut from: OwnedReadHalf) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) if sender.send(DATA, &buffer[..count]).await.is_err() => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    let _ = sender.end(DATA).await;
    std::future::pending().await
}
