//! `cofferdam attach`: our terminal at the streams of a container's own first process.

use std::process::ExitCode;

use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::lookup;
use super::remote::{self, Ended, Outcome, Size, Target};
use crate::streaming::Streams;

#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    /// Passes input on, where the container was made with stdin
    #[arg(short, long)]
    interactive: bool,
    /// Insists on a terminal; a container that was made with one has it anyway
    #[arg(short, long)]
    tty: bool,
    /// A name, an id or the beginning of an id; a pod with one container will do
    container: String,
}

impl Attach {
    pub(super) async fn run(self, client: &mut Client) -> Result<ExitCode, CliError> {
        let container = lookup::container(client, &self.container).await?;
        let (has_stdin, tty) = made_with(client, &container.id).await?;
        let refused = |text: &str| Err(CliError::Refused(format!("{}: {text}", self.container)));
        if self.interactive && !has_stdin {
            return refused("it was made without stdin; leave -i out to see its output");
        }
        if self.tty && !tty {
            return refused("it was made without a terminal; leave -t out");
        }
        if self.interactive && tty && !remote::has_terminal() {
            return refused("its input is a terminal, and ours is none");
        }
        let streams = Streams { stdin: self.interactive, stdout: true, stderr: !tty, tty };
        let Streams { stdin, stdout, stderr, .. } = streams;
        let request = cri::AttachRequest { container_id: container.id.clone(), stdin, tty, stdout, stderr };
        let target = Target::of(client.runtime.attach(request).await?, |answer| answer.url);
        let size = if self.interactive { Size::Ours } else { Size::Others };
        match remote::run(&target, streams, size).await? {
            Ended::Outcome(Outcome::Exited(_)) => exit_code(client, &container.id).await,
            Ended::Outcome(Outcome::Failed(words)) => Err(CliError::Refused(words)),
            Ended::Signal(code) => Ok(ExitCode::from(code)),
        }
    }
}

/// Whether the container was made with stdin, and with a terminal.
async fn made_with(client: &mut Client, id: &str) -> Result<(bool, bool), CliError> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = client.runtime.container_status(request).await?.into_inner();
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))?;
    let flag = |name: &str| info["config"][name].as_bool().unwrap_or_default();
    Ok((flag("stdin"), flag("tty")))
}

/// The container's own, if it has exited: the session's status does not have it.
async fn exit_code(client: &mut Client, id: &str) -> Result<ExitCode, CliError> {
    let status = client.container_status(id).await?;
    match status.state() {
        cri::ContainerState::ContainerExited => {
            Ok(ExitCode::from(u8::try_from(status.exit_code).unwrap_or(u8::MAX)))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
