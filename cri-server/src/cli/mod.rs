//! The command line: parses it, and runs one command. One file per command.
//!
//! Invariant: a command that talks to the daemon does so through its socket alone, and every failure ends as one
//! sentence on stderr and an exit code: 1, 2 for a wrong command line, 125 where `run`, `exec` and
//! `attach` fail themselves.

mod attach;
mod client;
mod config;
mod cri_log;
mod du;
mod error;
mod exec;
mod export;
mod follow;
mod image;
mod images;
mod import;
mod info;
mod inspect;
mod logs;
mod lookup;
mod nri_launch;
mod output;
mod pods;
mod port_forward;
mod prune;
mod ps;
mod pull;
mod remote;
mod rm;
mod rmi;
mod run;
mod serve;
mod signals;
mod stats;
mod stop;
mod table;
mod text;
mod time;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::Client;
use error::CliError;

/// What users of docker and podman know for a failure that is not the command's own.
const OWN_FAILURE: u8 = 125;
const USAGE: u8 = 2;

/// Cofferdam, the container runtime of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, about, propagate_version = true)]
pub struct Arguments {
    /// The daemon's socket [env: COFFERDAM_SOCKET] [default: the configuration's]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the CRI in the foreground; logs to stderr; SIGTERM ends it, pods run on
    Serve(serve::Serve),
    /// Shows or checks the daemon's configuration
    Config(config::ConfigCommand),
    /// Shows whether the node is ready, what it lacks and what is under way
    Info(info::Info),
    /// Lists pods
    Pods(pods::Pods),
    /// Lists containers
    Ps(ps::Ps),
    /// Lists images
    Images(images::Images),
    /// Pulls an image
    Pull(pull::Pull),
    /// Imports the images of an archive: an OCI layout or what `docker save` writes
    Import(import::Import),
    /// Writes images into an archive for OCI tools and `docker load`
    Export(export::Export),
    /// Removes images
    Rmi(rmi::Rmi),
    /// Shows what takes room, and what of it could be freed
    Du(du::Du),
    /// Removes images that no container is made of, and what belongs to nobody
    Prune(prune::Prune),
    /// The commands about images: import, export, ls, rm, pull
    Image(image::Image),
    /// Runs a command in a new pod, shows its output and removes it
    Run(run::Run),
    /// Shows the output of a container
    Logs(logs::Logs),
    /// Runs a command in a container; its output comes when it has ended, with -i or -t at once
    Exec(exec::Exec),
    /// Attaches to a container's first process: its output from now on, with -i its input
    Attach(attach::Attach),
    /// Forwards local ports into a pod until ^C
    PortForward(port_forward::PortForward),
    /// Stops containers and pods
    Stop(stop::Stop),
    /// Removes containers and pods
    Rm(rm::Rm),
    /// Shows what pods and containers use
    Stats(stats::Stats),
    /// Shows all that is known of a pod, a container or an image, as JSON
    Inspect(inspect::Inspect),
    /// Prepares virtual machines
    Vm(vm::VmCommand),
    /// Becomes an NRI plugin; for the daemon's own use
    #[command(name = crate::nri::launch::COMMAND, hide = true)]
    NriLaunch(nri_launch::NriLaunch),
}

/// Runs the command; prints an error as one line.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { socket, command } = arguments;
    let failure = match command {
        Command::Run(_) | Command::Exec(_) | Command::Attach(_) => OWN_FAILURE,
        _ => 1,
    };
    let done = match command {
        Command::Serve(serve) => serve.run(socket).map_err(CliError::Daemon),
        Command::Config(config) => config.run(),
        Command::NriLaunch(launch) => launch.run(),
        Command::Vm(vm) => vm.run(),
        command => ask_daemon(socket, command),
    };
    match done {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if error.is_broken_pipe() && failure == 1 => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam: {}", crate::report::chain(&error));
            ExitCode::from(if matches!(error, CliError::Usage(_)) { USAGE } else { failure })
        }
    }
}

fn ask_daemon(socket: Option<PathBuf>, command: Command) -> Result<ExitCode, CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Setup)?;
    let runtime = Runtime(Some(runtime));
    runtime.block_on(async {
        let mut client = Client::connect(&client::socket_path(socket)).await?;
        dispatch(&mut client, command).await
    })
}

/// Not waited for at its end: a read of the terminal may be under way on a thread of its own, and nobody may ever type again.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn block_on<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        match &self.0 {
            Some(runtime) => runtime.block_on(work),
            None => Err(CliError::Setup(std::io::ErrorKind::Other.into())),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn dispatch(client: &mut Client, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Info(info) => info.run(client).await?,
        Command::Pods(pods) => pods.run(client).await?,
        Command::Ps(ps) => ps.run(client).await?,
        Command::Images(images) => images.run(client).await?,
        Command::Pull(pull) => pull.run(client).await?,
        Command::Import(import) => import.run(client).await?,
        Command::Export(export) => export.run(client).await?,
        Command::Rmi(rmi) => rmi.run(client).await?,
        Command::Du(du) => du.run(client).await?,
        Command::Prune(prune) => prune.run(client).await?,
        Command::Image(image) => image.run(client).await?,
        Command::Run(run) => return run.run(client).await,
        Command::Logs(logs) => logs.run(client).await?,
        Command::Exec(exec) => return exec.run(client).await,
        Command::Attach(attach) => return attach.run(client).await,
        Command::PortForward(forward) => return forward.run(client).await,
        Command::Stop(stop) => stop.run(client).await?,
        Command::Rm(rm) => rm.run(client).await?,
        Command::Stats(stats) => stats.run(client).await?,
        Command::Inspect(inspect) => inspect.run(client).await?,
        // They ask no daemon.
        Command::Serve(_) | Command::Config(_) | Command::NriLaunch(_) | Command::Vm(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_socket_may_stand_before_and_after_the_command() {
        for words in [["cofferdam", "--socket", "/s", "ps"], ["cofferdam", "ps", "--socket", "/s"]] {
            let arguments = Arguments::try_parse_from(words).unwrap();
            assert_eq!(arguments.socket, Some(PathBuf::from("/s")));
        }
    }

    #[test]
    fn a_commands_own_options_are_not_ours() {
        let words = ["cofferdam", "run", "-e", "A=1", "busybox", "--", "ls", "-l", "--socket"];
        let Command::Run(run) = Arguments::try_parse_from(words).unwrap().command else { panic!("run") };
        assert_eq!(run.command, ["ls", "-l", "--socket"]);
        let words = ["cofferdam", "exec", "web", "ls", "-a"];
        let Command::Exec(exec) = Arguments::try_parse_from(words).unwrap().command else { panic!("exec") };
        assert_eq!(exec.command, ["ls", "-a"]);
    }
}
