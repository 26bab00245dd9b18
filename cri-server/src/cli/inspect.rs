//! `cofferdam inspect`: all the daemon tells of a pod, a container or an image.

use std::collections::HashMap;

use cofferdam_proto::cri;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::lookup::{self, Object};
use super::{output, pods, ps};

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// Pods, containers and images, by name, id or beginning of an id
    #[arg(required = true, value_name = "ID")]
    targets: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut found = Vec::new();
        let mut failures = Vec::new();
        let of = self.targets.len();
        for wanted in self.targets {
            match inspect(client, &wanted).await {
                Ok(value) => found.push(value),
                Err(error) => failures.push(error),
            }
        }
        match found.as_slice() {
            [] => {}
            [one] if of == 1 => output::json(one)?,
            all => output::json(&all)?,
        }
        super::error::all(failures, of)
    }
}

async fn inspect(client: &mut Client, wanted: &str) -> Result<Value, CliError> {
    match lookup::anything(client, wanted).await? {
        Object::Pod(pod) => {
            let word = pods::state(&pod);
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: true };
            let answer = client.runtime.pod_sandbox_status(request).await?.into_inner();
            let containers =
                answer.containers_statuses.iter().map(container).collect::<Result<Vec<_>, _>>()?;
            let mut status = serde_json::to_value(answer.status)?;
            status["state"] = json!(word);
            let info = info(&answer.info);
            Ok(json!({"kind": "pod", "status": status, "containers": containers, "info": info}))
        }
        Object::Container(found) => {
            let request = cri::ContainerStatusRequest { container_id: found.id, verbose: true };
            let answer = client.runtime.container_status(request).await?.into_inner();
            let status = container(&answer.status.unwrap_or_default())?;
            Ok(json!({"kind": "container", "status": status, "info": info(&answer.info)}))
        }
        Object::Image(image) => {
            let spec = cri::ImageSpec { image: image.id, ..Default::default() };
            let request = cri::ImageStatusRequest { image: Some(spec), verbose: true };
            let answer = client.images.image_status(request).await?.into_inner();
            Ok(json!({"kind": "image", "status": answer.image, "info": info(&answer.info)}))
        }
    }
}

fn container(status: &cri::ContainerStatus) -> Result<Value, CliError> {
    let mut value = serde_json::to_value(status)?;
    value["state"] = json!(ps::state(status.state()));
    Ok(value)
}

/// What is beyond the CRI comes as JSON in strings, under names of the daemon's choice.
fn info(map: &HashMap<String, String>) -> Value {
    let parsed = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    match map.get("info") {
        Some(text) if map.len() == 1 => parsed(text),
        _ => map
            .iter()
            .map(|(key, text)| (key.clone(), parsed(text)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
