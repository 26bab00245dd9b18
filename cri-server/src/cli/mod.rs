//! The command line: parses it, and runs one command. One file per command.

mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Cofferdam, the container runtime of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, about, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the CRI in the foreground; logs to stderr; SIGTERM ends it, pods run on.
    Serve(serve::Serve),
}

/// Where a daemon's configuration comes from.
#[derive(Clone, Debug, clap::Args)]
struct ConfigSource {
    /// The configuration file [default: /etc/cofferdam/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data that survives a reboot
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Data that does not
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where the CRI is served
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Runs the command; prints an error as one line.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Serve(serve) => serve.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cofferdam: {}", crate::report::chain(&*error));
            ExitCode::FAILURE
        }
    }
}
