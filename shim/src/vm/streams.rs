//! Joins the standard streams of a process in the guest to the host's ends, which are those of any other process: logs,
//! taps and FIFOs stay the host's.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_vm::agent::STREAMS;
use cofferdam_vm::channel::{Channel, Purpose, Stream as GuestStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::VmError;
use crate::launch::ContainerEnds;
use crate::task::stream::Stream;

/// What is read at once.
const CHUNK: usize = 16 * 1024;
/// How long the guest may take to take a stream.
const OPENING: Duration = Duration::from_secs(10);
/// How long output may still come after the guest said that the process ended.
const DRAIN: Duration = Duration::from_secs(3);

/// The paths of a process's streams in the guest; empty ones are /dev/null.
#[derive(Debug, Default)]
pub struct GuestPaths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// The loops that carry the bytes. They end with their streams, or with the value.
#[derive(Default)]
pub struct Carriers {
    outputs: JoinSet<()>,
    input: JoinSet<()>,
}

/// Opens a stream to the guest for each of `ends`, under names that begin with `prefix`.
pub async fn join(
    channel: &Channel,
    prefix: &str,
    ends: ContainerEnds,
) -> Result<(GuestPaths, Carriers), VmError> {
    let mut paths = GuestPaths::default();
    let mut carriers = Carriers::default();
    let path = |name: &str| format!("{STREAMS}/{name}");
    if let Some(end) = ends.stdin {
        let name = format!("{prefix}-in");
        let stream = channel.open(&Purpose::Input(name.clone()), OPENING).await?;
        paths.stdin = path(&name);
        carriers.input.spawn(carry_in(host_end(end)?, stream));
    }
    for (end, suffix, target) in
        [(ends.stdout, "out", &mut paths.stdout), (ends.stderr, "err", &mut paths.stderr)]
    {
        let Some(end) = end else { continue };
        let name = format!("{prefix}-{suffix}");
        let stream = channel.open(&Purpose::Output(name.clone()), OPENING).await?;
        *target = path(&name);
        carriers.outputs.spawn(carry_out(stream, host_end(end)?));
    }
    Ok((paths, carriers))
}

fn host_end(end: OwnedFd) -> Result<Arc<Stream>, VmError> {
    let failed = |error: io::Error| VmError::Lost { call: "open a stream", words: error.to_string() };
    Stream::new(end).map(Arc::new).map_err(failed)
}

impl Carriers {
    /// Waits until all output of an ended process has come, within a bound: something that it left in the background
    /// may hold it open.
    pub async fn drain(&mut self) {
        drop(timeout(DRAIN, async { while self.outputs.join_next().await.is_some() {} }).await);
        self.outputs.abort_all();
        self.input.abort_all();
    }
}

async fn carry_in(from: Arc<Stream>, mut to: GuestStream) {
    let mut buffer = Vec::new();
    while let Ok(1..) = from.read_into(&mut buffer).await {
        let written = async {
            to.write_all(&buffer).await?;
            to.flush().await
        };
        if written.await.is_err() {
            return;
        }
        buffer.clear();
    }
    drop(to.shutdown().await);
}

async fn carry_out(mut from: GuestStream, to: Arc<Stream>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
