//! `cofferdam exec`: a command in a running container, by ExecSync: its output comes when it has ended.

use std::io;
use std::process::ExitCode;

use cofferdam_proto::cri;
use tonic::Code;

use super::client::Client;
use super::error::{CliError, not_runnable};
use super::{lookup, output};

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Ends the command and all it started after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..))]
    timeout: Option<i64>,
    /// Not in this version
    #[arg(short, long, hide = true)]
    interactive: bool,
    /// Not in this version
    #[arg(short, long, hide = true)]
    tty: bool,
    /// A name, an id or the beginning of an id; a pod with one container will do
    container: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(self, client: &mut Client) -> Result<ExitCode, CliError> {
        if self.interactive || self.tty {
            let text = "exec with a terminal or with input (-i, -t) comes with a later version; \
                        leave them out to run a command and see its output";
            return Err(CliError::Refused(text.to_owned()));
        }
        let container = lookup::container(client, &self.container).await?;
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
                let Some(code) = not_runnable(&status) else { return Err(status.into()) };
                eprintln!("cofferdam: {}", CliError::from(status));
                return Ok(ExitCode::from(code));
            }
        };
        output::bytes(&mut io::stdout().lock(), &answer.stdout)?;
        output::bytes(&mut io::stderr().lock(), &answer.stderr)?;
        Ok(ExitCode::from(u8::try_from(answer.exit_code).unwrap_or(u8::MAX)))
    }
}
