//! `cofferdam prune`: makes room.

use cofferdam_proto::admin;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::text::size;

#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    #[command(flatten)]
    output: FormatOption,
    /// Also images that have a tag; without this only those that have none left
    #[arg(short, long)]
    all: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Prune {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let request = admin::PruneRequest { all: self.all, dry_run: self.dry_run };
        let pruned = client.admin.prune(request).await?.into_inner();
        for failure in &pruned.failures {
            eprintln!("cofferdam: {failure}");
        }
        match self.output.format {
            Format::Table => output::print(&text(&pruned, self.dry_run)),
            Format::Json => output::json(&json!({
                "images": pruned.images,
                "freedBytes": pruned.freed_bytes,
                "swept": pruned.swept,
                "failures": pruned.failures,
            })),
        }
    }
}

fn text(pruned: &admin::PruneResponse, dry_run: bool) -> String {
    let mut text: String = pruned.images.iter().map(|image| format!("{image}\n")).collect();
    for swept in &pruned.swept {
        text.push_str(&format!("belonged to nobody: {swept}\n"));
    }
    let word = if dry_run { "would free" } else { "freed" };
    text + &format!("{word} {}\n", size(pruned.freed_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_says_so() {
        let pruned = admin::PruneResponse {
            images: vec!["a:1".to_owned()],
            freed_bytes: 1 << 20,
            swept: vec!["2 cgroup".to_owned()],
            failures: Vec::new(),
        };
        assert!(text(&pruned, true).starts_with("a:1\nbelonged to nobody: 2 cgroup\nwould free "));
        assert!(text(&pruned, false).contains("\nfreed "));
    }
}
