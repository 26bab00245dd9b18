//! `cofferdam export`

use std::path::PathBuf;

use cofferdam_proto::admin::ExportImagesRequest;

use super::client::Client;
use super::error::CliError;
use super::import::absolute;
use super::text::size;
use super::{lookup, output};

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The archive to write
    file: PathBuf,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Export {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        for wanted in &self.images {
            // A missing one is told in our words before anything is written.
            let missing = || CliError::NotFound { kind: "image", wanted: wanted.clone(), list: "images" };
            lookup::image(client, wanted).await?.ok_or_else(missing)?;
        }
        let request = ExportImagesRequest { path: absolute(&self.file)?, images: self.images };
        let bytes = client.admin.export_images(request).await?.into_inner().size_bytes;
        output::line(&format!("{}: {}", self.file.display(), size(bytes)))
    }
}
