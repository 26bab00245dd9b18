//! `cofferdam port-forward`: local ports whose connections go to ports inside a pod.
//!
//! Invariant: each connection has a session of its own, made when the connection comes: it fails alone, one that nobody reads
//! holds no other up, and a daemon that was restarted meanwhile does not matter. The command ends when the pod is gone.

mod carry;
mod listen;
mod mapping;

use std::process::ExitCode;

use tokio::task::JoinSet;

use super::client::Client;
use super::error::CliError;
use super::signals::Signals;
use super::{lookup, output};
use carry::Failure;
use listen::Listeners;
use mapping::Mapping;

/// The most connections at a time; more wait to be accepted.
const MOST: usize = 512;

#[derive(Debug, clap::Args)]
pub(super) struct PortForward {
    /// A pod's name, its id or the beginning of its id
    pod: String,
    /// What to forward: [[ADDRESS:]LOCAL:]REMOTE; an empty LOCAL is any free port, no ADDRESS both loopbacks
    #[arg(required = true, value_name = "PORTS", value_parser = mapping::parse)]
    ports: Vec<Mapping>,
}

impl PortForward {
    pub(super) async fn run(self, client: &mut Client) -> Result<ExitCode, CliError> {
        let mut signals = Signals::watch()?;
        let pod = lookup::pod(client, &self.pod).await?;
        // Before anything is promised: is there such a pod, and is it ready?
        carry::target(client, &pod, self.ports.first().map_or(1, |mapping| mapping.remote)).await?;
        let mut listeners = Listeners::default();
        for mapping in &self.ports {
            for (local, remote) in listeners.add(mapping).await? {
                output::line(&format!("Forwarding from {local} -> {remote}"))?;
            }
        }
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listeners.accept(), if connections.len() < MOST => {
                    let (stream, remote) = accepted?;
                    connections.spawn(carry::carry(client.clone(), pod.clone(), remote, stream));
                }
                Some(ended) = connections.join_next() => match ended {
                    Ok(Err(Failure::Pod(error))) => return Err(error),
                    Ok(Err(Failure::Connection(words))) => eprintln!("cofferdam: {words}"),
                    // A panic has said its own word.
                    Ok(Ok(())) | Err(_) => {}
                },
                // The usual end of this command.
                _ = signals.next() => return Ok(ExitCode::SUCCESS),
            }
        }
    }
}
