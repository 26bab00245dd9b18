//! Connections to ports of a pod in a machine: the daemon's FIFOs on one side, a stream to the guest on the other.
//!
//! Invariant: each connection lives and fails alone, and none outlives the pod or the daemon's ends of it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_vm::agent::{MOST_CONNECTIONS, plain};
use cofferdam_vm::channel::{Channel, ChannelError, Purpose, relay};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use ttrpc::Code;

use super::VmError;
use crate::error::ShimError;

/// What listens in the guest has to answer sooner.
const OPENING: Duration = Duration::from_secs(8);

pub struct Connections {
    room: Arc<Semaphore>,
    running: Mutex<JoinSet<()>>,
}

impl Default for Connections {
    fn default() -> Self {
        Connections { room: Arc::new(Semaphore::new(MOST_CONNECTIONS)), running: Mutex::default() }
    }
}

impl Connections {
    /// Connects to `port` in the guest, and joins that to the FIFO with what goes there and the one for what comes back.
    pub async fn dial(
        &self,
        channel: &Channel,
        port: u16,
        input: &Path,
        output: &Path,
    ) -> Result<(), ShimError> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let words = format!("{MOST_CONNECTIONS} connections to the pod are open already");
            VmError::Refused { code: Code::RESOURCE_EXHAUSTED, words }
        })?;
        let opened = pipe::OpenOptions::new().open_receiver(input);
        let from = opened.map_err(ShimError::path("open the FIFO", input))?;
        let opened = pipe::OpenOptions::new().open_sender(output);
        let to = opened.map_err(ShimError::path("open the FIFO", output))?;
        let opened = channel.open(&Purpose::Port(port), OPENING).await;
        let stream = opened.map_err(|error| match error {
            ChannelError::Refused { words, .. } => {
                VmError::Refused { code: Code::UNAVAILABLE, words: plain(&words) }
            }
            other => other.into(),
        })?;
        let carried = async move {
            let _room: OwnedSemaphorePermit = room;
            // One that was broken off is closed at both ends, which is all there is to say.
            drop(relay(stream, from, to, reader_gone).await);
        };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(carried);
        Ok(())
    }
}

/// Returns when nobody reads the FIFO any more.
async fn reader_gone(fifo: &pipe::Sender) {
    // An error of the wait itself says the same: the FIFO is of no use.
    drop(fifo.ready(Interest::ERROR).await);
}
