//! `cofferdam import`

use std::path::{Path, PathBuf};

use cofferdam_proto::admin::ImportImagesRequest;

use super::client::Client;
use super::error::CliError;
use super::output;

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The archive; it may be compressed with gzip or zstd
    file: PathBuf,
}

/// The path as the daemon, which works elsewhere, finds it.
pub(super) fn absolute(path: &Path) -> Result<String, CliError> {
    let failed = |source| CliError::File { operation: "find", path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(failed)?;
    absolute.into_os_string().into_string().map_err(|_| {
        CliError::Usage(format!("{} is not UTF-8; give the archive another name", path.display()))
    })
}

impl Import {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        std::fs::metadata(&self.file).map_err(|source| CliError::File {
            operation: "read",
            path: self.file.clone(),
            source,
        })?;
        let request = ImportImagesRequest { path: absolute(&self.file)? };
        let images = client.admin.import_images(request).await?.into_inner().images;
        let mut text = String::new();
        for image in images {
            let tags =
                if image.repo_tags.is_empty() { "<none>".to_owned() } else { image.repo_tags.join(" ") };
            text.push_str(&format!("{} {tags}\n", image.image_id));
        }
        output::print(&text)
    }
}
