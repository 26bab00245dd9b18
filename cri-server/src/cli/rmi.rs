//! `cofferdam rmi`

use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::{lookup, output};

#[derive(Debug, clap::Args)]
pub(super) struct Rmi {
    /// Names or ids; an id takes all its names along
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let of = self.images.len();
        let mut failures = Vec::new();
        for wanted in self.images {
            match remove(client, &wanted).await {
                Ok(()) => output::line(&wanted)?,
                Err(error) => failures.push(error),
            }
        }
        super::error::all(failures, of)
    }
}

async fn remove(client: &mut Client, wanted: &str) -> Result<(), CliError> {
    let missing = || CliError::NotFound { kind: "image", wanted: wanted.to_owned(), list: "images" };
    let image = lookup::image(client, wanted).await?.ok_or_else(missing)?;
    // The beginning of an id is ours; the daemon knows whole ids and names.
    let plain = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let by_id = image.id.strip_prefix("sha256:").unwrap_or(&image.id).starts_with(plain);
    let name = if by_id { image.id } else { wanted.to_owned() };
    let spec = cri::ImageSpec { image: name, ..Default::default() };
    client.images.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await?;
    Ok(())
}
