//! Clients of the streaming server, as the operator's command has them.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use cofferdam_tests::harness::netns::Netns;
use cofferdam_tests::harness::{Node, cli};
use tonic::Status;

/// The longest that a session may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What the commands need of the node; it does not change while that lives.
pub struct Sessions {
    netns: Netns,
    socket: PathBuf,
}

impl Sessions {
    pub fn of(node: &Node) -> Self {
        Self { netns: node.netns.clone(), socket: node.cri.socket().to_owned() }
    }

    fn command(&self, words: &[&str]) -> Command {
        cli::command_at(&self.netns, &self.socket, words)
    }

    /// Runs a command in the container of this name, and attaches to it until it says something.
    pub async fn hold(&self, container: &str) -> Result<(), Status> {
        let exec = self.command(&["exec", "-i", container, "echo", "here"]);
        if said(exec, usize::MAX).await? != "here\n" {
            return Err(Status::unavailable("exec said nothing"));
        }
        let attach = self.command(&["attach", container]);
        if said(attach, 1).await?.is_empty() {
            return Err(Status::unavailable("attach said nothing"));
        }
        Ok(())
    }
}

/// What a command prints: all, until it ends, or so many bytes, which end it.
async fn said(mut command: Command, most: usize) -> Result<String, Status> {
    // A thread that lasts as long as the command: it dies with the thread that started it.
    let work = move || {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut said = Vec::new();
        let read =
            child.stdout.take().map_or(Ok(0), |stdout| stdout.take(most as u64).read_to_end(&mut said));
        if said.len() >= most {
            let _ = child.kill();
        }
        child.wait()?;
        read?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&said).into_owned())
    };
    let said = tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work)).await;
    let said = said.map_err(|_| Status::deadline_exceeded("a session says nothing"))?;
    said.expect("the thread panicked").map_err(|error| Status::internal(error.to_string()))
}
