//! How the ports of a pod are reached: by its shim, where that is in the way, or else from the pod's network namespace.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::remote::{BoxRead, BoxWrite};
use super::session;
use crate::container::ContainerError;
use crate::io::{IoError, SessionFifos, SessionInput, SessionOutput, Wanted};
use crate::network::dial::dial;
use crate::runtime::{RuntimeError, Shim};
use crate::sandbox::Sandbox;

/// A port could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Shim(#[from] RuntimeError),
    #[error(transparent)]
    Fifo(#[from] IoError),
    #[error(transparent)]
    Name(#[from] ContainerError),
}

/// Both directions of a connection to a pod. Each ends when its value is dropped.
pub(super) struct Connection {
    pub from: BoxRead,
    pub to: BoxWrite,
}

/// The way to one pod.
pub(super) struct Way {
    sandbox: Arc<Sandbox>,
    /// The pod's folder.
    bundle: PathBuf,
    /// None for a pod in the node's own namespace.
    netns: Option<PathBuf>,
    /// What the shim said when it was asked last.
    direct: AtomicBool,
}

impl Way {
    pub fn to(sandbox: Arc<Sandbox>, bundle: PathBuf, netns: Option<PathBuf>) -> Self {
        Way { sandbox, bundle, netns, direct: AtomicBool::new(false) }
    }

    /// Connects to `port` on the pod's loopback: by IPv4, or else by IPv6.
    pub async fn dial(&self, port: u16) -> Result<Connection, DialError> {
        if !self.direct.load(Ordering::Relaxed)
            && let Some(shim) = self.sandbox.shim()
        {
            match self.through(&shim, port).await {
                Err(DialError::Shim(RuntimeError::Unimplemented { .. })) => {
                    self.direct.store(true, Ordering::Relaxed);
                }
                answered => return answered,
            }
        }
        let (from, to) = dial(self.netns.as_deref(), port).await?.into_split();
        Ok(Connection { from: Box::new(from), to: Box::new(to) })
    }

    async fn through(&self, shim: &Shim, port: u16) -> Result<Connection, DialError> {
        let wanted = Wanted { stdin: true, stdout: true, stderr: false };
        let name = format!("dial-{}", session::name()?);
        // Their folder is needed only until the shim has opened them.
        let mut fifos = SessionFifos::make(&self.bundle, &name, wanted)?;
        let (input, output) = (fifos.stdin.take(), fifos.stdout.take());
        let paths = (input.as_ref().map(SessionInput::path), output.as_ref().map(SessionOutput::path));
        shim.dial(port, paths.0.unwrap_or_default(), paths.1.unwrap_or_default()).await?;
        let gone = || DialError::Socket(io::ErrorKind::BrokenPipe.into());
        let to = input.ok_or_else(gone)?.connected()?;
        let from = output.ok_or_else(gone)?.connected();
        Ok(Connection { from: Box::new(from), to: Box::new(to) })
    }
}
