//! `cofferdam images`

use cofferdam_proto::cri;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::table::Table;
use super::text::{short_id, size};

const NONE: &str = "<none>";

#[derive(Debug, clap::Args)]
pub(super) struct Images {
    #[command(flatten)]
    output: FormatOption,
    /// Ids only, in full
    #[arg(short, long)]
    quiet: bool,
}

impl Images {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut images = client.all_images().await?;
        images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
        if self.quiet {
            return output::print(&images.iter().map(|image| format!("{}\n", image.id)).collect::<String>());
        }
        match self.output.format {
            Format::Table => output::print(&table(&images).to_string()),
            Format::Json => output::json(&images.iter().map(row_json).collect::<Vec<_>>()),
        }
    }
}

fn row_json(image: &cri::Image) -> serde_json::Value {
    json!({
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": image.size,
        "uid": image.uid.as_ref().map(|uid| uid.value),
        "username": image.username,
        "pinned": image.pinned,
    })
}

/// A reference's repository and tag. A colon before the last slash is a port's.
fn split(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (reference, NONE),
    }
}

fn table(images: &[cri::Image]) -> Table {
    let mut table = Table::new(&["IMAGE", "TAG", "IMAGE ID", "SIZE"]);
    for image in images {
        let mut row = |repository: &str, tag: &str| {
            table.row([repository.to_owned(), tag.to_owned(), short_id(&image.id), size(image.size)]);
        };
        for reference in &image.repo_tags {
            let (repository, tag) = split(reference);
            row(repository, tag);
        }
        if image.repo_tags.is_empty() {
            let digest = image.repo_digests.first().and_then(|digest| digest.split_once('@'));
            row(digest.map_or(NONE, |(repository, _)| repository), NONE);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split("localhost:5000/a/b"), ("localhost:5000/a/b", NONE));
        assert_eq!(split("localhost:5000/a/b:1"), ("localhost:5000/a/b", "1"));
    }

    #[test]
    fn every_tag_has_a_row_and_an_image_without_tags_one_too() {
        let tagged = cri::Image {
            id: "sha256:aa".to_owned(),
            repo_tags: vec!["r/x:1".to_owned(), "r/x:2".to_owned()],
            size: 1_500,
            ..Default::default()
        };
        let by_digest = cri::Image {
            id: "sha256:bb".to_owned(),
            repo_digests: vec!["r/y@sha256:cc".to_owned()],
            ..Default::default()
        };
        let text = table(&[tagged, by_digest]).to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("r/x    2       aa        1.5kB"), "{text}");
        assert!(text.contains("r/y    <none>  bb"), "{text}");
    }
}
