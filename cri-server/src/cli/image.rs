//! `cofferdam image`: the commands about images under one word.

use clap::Subcommand;

use super::client::Client;
use super::error::CliError;
use super::{export, images, import, pull, rmi};

#[derive(Debug, clap::Args)]
pub(super) struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Imports the images of an archive: an OCI layout or what `docker save` writes
    Import(import::Import),
    /// Writes images into an archive for OCI tools and `docker load`
    Export(export::Export),
    /// Lists images
    Ls(images::Images),
    /// Removes images
    Rm(rmi::Rmi),
    /// Pulls an image
    Pull(pull::Pull),
}

impl Image {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        match self.command {
            ImageCommand::Import(import) => import.run(client).await,
            ImageCommand::Export(export) => export.run(client).await,
            ImageCommand::Ls(images) => images.run(client).await,
            ImageCommand::Rm(rmi) => rmi.run(client).await,
            ImageCommand::Pull(pull) => pull.run(client).await,
        }
    }
}
