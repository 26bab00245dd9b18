//! `cofferdam du`: what takes room, and what of it could be freed.

use cofferdam_proto::admin;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::table::Table;
use super::text::{short_id, size};

#[derive(Debug, clap::Args)]
pub(super) struct Du {
    #[command(flatten)]
    output: FormatOption,
}

impl Du {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let usage = client.admin.disk_usage(admin::DiskUsageRequest {}).await?.into_inner();
        match self.output.format {
            Format::Table => output::print(&text(usage)),
            Format::Json => output::json(&json!({
                "images": usage.images.iter().map(image_json).collect::<Vec<_>>(),
                "containers": usage.containers.iter().map(container_json).collect::<Vec<_>>(),
                "blobBytes": usage.blob_bytes,
                "layerBytes": usage.layer_bytes,
                "garbageBytes": usage.garbage_bytes,
                "recordBytes": usage.record_bytes,
            })),
        }
    }
}

fn image_json(row: &admin::ImageUsage) -> serde_json::Value {
    json!({
        "id": row.id,
        "name": row.name,
        "bytes": row.bytes,
        "ownBytes": row.own_bytes,
        "inUse": row.in_use,
        "pinned": row.pinned,
    })
}

fn container_json(row: &admin::ContainerUsage) -> serde_json::Value {
    json!({"id": row.id, "name": row.name, "running": row.running, "bytes": row.bytes})
}

fn text(mut usage: admin::DiskUsageResponse) -> String {
    usage.images.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
    usage.containers.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
    let mut images = Table::new(&["IMAGE", "IMAGE ID", "SIZE", "ITS OWN", "USED"]);
    for row in &usage.images {
        let used = match (row.in_use, row.pinned) {
            (true, _) => "yes",
            (false, true) => "pinned",
            (false, false) => "no",
        };
        let name = if row.name.is_empty() { "<none>" } else { &row.name };
        images.row([
            name.to_owned(),
            short_id(row.id.trim_start_matches("sha256:")),
            size(row.bytes),
            size(row.own_bytes),
            used.to_owned(),
        ]);
    }
    let mut containers = Table::new(&["CONTAINER", "CONTAINER ID", "WRITTEN", "RUNS"]);
    for row in &usage.containers {
        let runs = if row.running { "yes" } else { "no" };
        containers.row([row.name.clone(), short_id(&row.id), size(row.bytes), runs.to_owned()]);
    }
    let written: u64 = usage.containers.iter().map(|row| row.bytes).sum();
    let unused = usage.images.iter().filter(|row| !row.in_use && !row.pinned);
    let freeable = unused.map(|row| row.own_bytes).sum::<u64>() + usage.garbage_bytes;
    let blobs = size(usage.blob_bytes);
    let layers = size(usage.layer_bytes);
    let (written, records) = (size(written), size(usage.record_bytes));
    format!(
        "{images}\n{containers}\nBlobs {blobs}, layers {layers}, written by containers {written}, records {records}\n\
         prune --all would free {} or more\n",
        size(freeable)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_freed_is_what_nobody_uses() {
        let image = |name: &str, in_use| admin::ImageUsage {
            name: name.to_owned(),
            bytes: 3 << 20,
            own_bytes: 1 << 20,
            in_use,
            ..Default::default()
        };
        let usage = admin::DiskUsageResponse {
            images: vec![image("used", true), image("unused", false)],
            garbage_bytes: 1 << 20,
            ..Default::default()
        };
        let text = text(usage);
        assert!(text.contains(&format!("would free {}", size(2 << 20))), "{text}");
        assert!(text.contains("unused"));
    }
}
