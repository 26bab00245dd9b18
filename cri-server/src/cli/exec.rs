//! `cofferdam exec`: a command in a running container. Alone, by ExecSync: its output comes when it has ended. With input or a
//! terminal, by a session of the streaming server.

use std::io;
use std::process::ExitCode;

use cofferdam_proto::cri;
use tonic::Code;

use super::client::Client;
use super::error::{CliError, not_runnable};
use super::remote::{self, Ended, Outcome, Size, Target};
use super::{lookup, output};
use crate::streaming::Streams;

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Ends the command and all it started after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..),
          conflicts_with_all = ["interactive", "tty"])]
    timeout: Option<i64>,
    /// Passes input on, and shows output as it comes
    #[arg(short, long)]
    interactive: bool,
    /// Gives the command a terminal; with -i, this one
    #[arg(short, long)]
    tty: bool,
    /// A name, an id or the beginning of an id; a pod with one container will do
    container: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(self, client: &mut Client) -> Result<ExitCode, CliError> {
        if self.interactive && self.tty && !remote::has_terminal() {
            let text = "-t needs a terminal to type at, and the input is none; leave -t out to pass input on";
            return Err(CliError::Refused(text.to_owned()));
        }
        let container = lookup::container(client, &self.container).await?;
        if self.interactive || self.tty {
            return self.stream(client, container.id).await;
        }
        let request = cri::ExecSyncRequest {
            container_id: container.id,
            cmd: self.command,
            timeout: self.timeout.unwrap_or(0),
        };
        let answer = match client.runtime.exec_sync(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::DeadlineExceeded => {
                let text = match self.timeout {
                    Some(seconds) => format!(
                        "the command did not end within {seconds} s; it and all it started were killed"
                    ),
                    None => status.message().to_owned(),
                };
                return Err(CliError::Refused(text));
            }
            Err(status) => {
                let Some(code) = not_runnable(status.message()) else { return Err(status.into()) };
                eprintln!("cofferdam: {}", CliError::from(status));
                return Ok(ExitCode::from(code));
            }
        };
        output::bytes(&mut io::stdout().lock(), &answer.stdout)?;
        output::bytes(&mut io::stderr().lock(), &answer.stderr)?;
        Ok(ExitCode::from(u8::try_from(answer.exit_code).unwrap_or(u8::MAX)))
    }

    async fn stream(self, client: &mut Client, container_id: String) -> Result<ExitCode, CliError> {
        let (stdin, tty) = (self.interactive, self.tty);
        let streams = Streams { stdin, stdout: true, stderr: !tty, tty };
        let Streams { stdout, stderr, .. } = streams;
        let request = cri::ExecRequest { container_id, cmd: self.command, tty, stdin, stdout, stderr };
        let target = Target::of(client.runtime.exec(request).await?, |answer| answer.url);
        match remote::run(&target, streams, Size::Ours).await? {
            Ended::Outcome(Outcome::Exited(code)) | Ended::Signal(code) => Ok(ExitCode::from(code)),
            Ended::Outcome(Outcome::Failed(words)) => match not_runnable(&words) {
                Some(code) => {
                    eprintln!("cofferdam: {words}");
                    Ok(ExitCode::from(code))
                }
                None => Err(CliError::Refused(words)),
            },
        }
    }
}
