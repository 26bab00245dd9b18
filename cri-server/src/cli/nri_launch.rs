//! `cofferdam nri-launch PATH`: what the daemon starts to have a plugin that ends with it.

use std::path::PathBuf;
use std::process::ExitCode;

use super::error::CliError;
use crate::nri::launch;

#[derive(Debug, clap::Args)]
pub(super) struct NriLaunch {
    /// The plugin's executable; its socket is the standard input
    path: PathBuf,
}

impl NriLaunch {
    /// Returns only if the plugin cannot be executed.
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let error = launch::become_plugin(&self.path);
        Err(CliError::Daemon(format!("{}: {error}", self.path.display()).into()))
    }
}
