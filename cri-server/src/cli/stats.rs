//! `cofferdam stats`: what pods and their containers use now. Rates are made here, from two samples.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use cofferdam_proto::cri;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::lookup::{self, Object};
use super::output::{self, Format, FormatOption};
use super::table::Table;
use super::text::{short_id, size};

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between the two samples of a single answer: long enough for a rate, short enough to wait for.
const FIRST: Duration = Duration::from_millis(500);
const CLEAR: &str = "\x1b[H\x1b[2J";
const UNKNOWN: &str = "-";

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Shows one sample and ends
    #[arg(long)]
    no_stream: bool,
    #[command(flatten)]
    output: FormatOption,
    /// Pods and containers, by name, id or beginning of an id [default: all]
    #[arg(value_name = "POD|CONTAINER")]
    targets: Vec<String>,
}

/// What is shown of a pod or of a container.
#[derive(Clone, Debug, Default)]
struct Row {
    kind: &'static str,
    id: String,
    pod: String,
    container: String,
    cpu: Option<Cpu>,
    memory: Option<u64>,
    received: Option<u64>,
    sent: Option<u64>,
    pids: Option<u64>,
    writable: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Cpu {
    nanos: u64,
    at: i64,
}

impl Cpu {
    fn of(usage: Option<&cri::CpuUsage>) -> Option<Self> {
        let usage = usage?;
        Some(Self { nanos: usage.usage_core_nano_seconds.as_ref()?.value, at: usage.timestamp })
    }

    /// Percent of one processor since `before`.
    fn percent(self, before: Self) -> Option<f64> {
        let (time, used) = (self.at - before.at, self.nanos.checked_sub(before.nanos)?);
        (time > 0).then(|| used as f64 / time as f64 * 100.0)
    }
}

impl Stats {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut wanted = Vec::new();
        for target in &self.targets {
            match lookup::pod_or_container(client, target).await? {
                Object::Pod(pod) => wanted.push(pod.id),
                Object::Container(container) => wanted.push(container.id),
                // pod_or_container finds none.
                Object::Image(_) => {}
            }
        }
        let mut before = rates(&sample(client, &wanted).await?);
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            pause = INTERVAL;
            let rows = sample(client, &wanted).await?;
            self.show(&rows, &before)?;
            before = rates(&rows);
            if self.no_stream {
                return Ok(());
            }
        }
    }

    fn show(&self, rows: &[Row], before: &HashMap<String, Cpu>) -> Result<(), CliError> {
        let percent = |row: &Row| row.cpu.and_then(|cpu| cpu.percent(*before.get(&row.id)?));
        match self.output.format {
            Format::Table => {
                let clear = if !self.no_stream && std::io::stdout().is_terminal() { CLEAR } else { "" };
                output::print(&format!("{clear}{}", table(rows, percent)))
            }
            // One line for each sample, so that a program can read a stream of them.
            Format::Json => {
                let rows: Vec<Value> = rows.iter().map(|row| row.json(percent(row))).collect();
                output::line(&serde_json::to_string(&rows)?)
            }
        }
    }
}

fn rates(rows: &[Row]) -> HashMap<String, Cpu> {
    rows.iter().filter_map(|row| Some((row.id.clone(), row.cpu?))).collect()
}

async fn sample(client: &mut Client, wanted: &[String]) -> Result<Vec<Row>, CliError> {
    let request = cri::ListPodSandboxStatsRequest::default();
    let mut pods = client.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
    pods.sort_by_cached_key(|pod| pod.attributes.as_ref().and_then(|a| a.metadata.clone()).map(|m| m.name));
    let rows = pods.iter().flat_map(rows_of);
    Ok(rows
        .filter(|(pod, row)| wanted.is_empty() || wanted.contains(pod) || wanted.contains(&row.id))
        .map(|(_, row)| row)
        .collect())
}

/// The pod's row and those of its containers, each with the pod's id.
fn rows_of(pod: &cri::PodSandboxStats) -> Vec<(String, Row)> {
    let attributes = pod.attributes.clone().unwrap_or_default();
    let name = attributes.metadata.unwrap_or_default().name;
    let linux = pod.linux.clone().unwrap_or_default();
    let network = linux.network.and_then(|network| network.default_interface);
    let value = |value: Option<cri::UInt64Value>| value.map(|value| value.value);
    let mut rows = vec![Row {
        kind: "pod",
        id: attributes.id.clone(),
        pod: name.clone(),
        cpu: Cpu::of(linux.cpu.as_ref()),
        memory: value(linux.memory.and_then(|memory| memory.working_set_bytes)),
        received: value(network.as_ref().and_then(|network| network.rx_bytes)),
        sent: value(network.as_ref().and_then(|network| network.tx_bytes)),
        pids: value(linux.process.and_then(|process| process.process_count)),
        ..Default::default()
    }];
    rows.extend(linux.containers.into_iter().map(|container| {
        let attributes = container.attributes.unwrap_or_default();
        Row {
            kind: "container",
            id: attributes.id,
            pod: name.clone(),
            container: attributes.metadata.unwrap_or_default().name,
            cpu: Cpu::of(container.cpu.as_ref()),
            memory: value(container.memory.and_then(|memory| memory.working_set_bytes)),
            writable: value(container.writable_layer.and_then(|layer| layer.used_bytes)),
            ..Default::default()
        }
    }));
    rows.into_iter().map(|row| (attributes.id.clone(), row)).collect()
}

impl Row {
    fn json(&self, percent: Option<f64>) -> Value {
        json!({
            "kind": self.kind,
            "id": self.id,
            "pod": self.pod,
            "container": self.container,
            "cpuPercent": percent,
            "cpuNanoSeconds": self.cpu.map(|cpu| cpu.nanos),
            "memoryBytes": self.memory,
            "receivedBytes": self.received,
            "sentBytes": self.sent,
            "pids": self.pids,
            "writableLayerBytes": self.writable,
        })
    }
}

fn table(rows: &[Row], percent: impl Fn(&Row) -> Option<f64>) -> Table {
    let mut table =
        Table::new(&["POD", "CONTAINER", "ID", "CPU %", "MEMORY", "PIDS", "NET IN/OUT", "WRITABLE"]);
    let bytes = |bytes: Option<u64>| bytes.map_or(UNKNOWN.to_owned(), size);
    for row in rows {
        let network = match (row.received, row.sent) {
            (None, None) => UNKNOWN.to_owned(),
            (received, sent) => format!("{} / {}", bytes(received), bytes(sent)),
        };
        table.row([
            row.pod.clone(),
            if row.container.is_empty() { UNKNOWN.to_owned() } else { row.container.clone() },
            short_id(&row.id),
            percent(row).map_or(UNKNOWN.to_owned(), |percent| format!("{percent:.1}")),
            bytes(row.memory),
            row.pids.map_or(UNKNOWN.to_owned(), |pids| pids.to_string()),
            network,
            bytes(row.writable),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_of_one_processor() {
        let before = Cpu { nanos: 1_000, at: 10_000 };
        assert_eq!(Cpu { nanos: 3_000, at: 14_000 }.percent(before), Some(50.0));
        assert_eq!(Cpu { nanos: 3_000, at: 10_000 }.percent(before), None);
        // A container of the same id never counts back; a rate of a mistake is none.
        assert_eq!(Cpu { nanos: 0, at: 14_000 }.percent(before), None);
    }

    #[test]
    fn a_pods_row_comes_before_its_containers() {
        let container = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes { id: "c".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let pod = cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes { id: "p".to_owned(), ..Default::default() }),
            linux: Some(cri::LinuxPodSandboxStats { containers: vec![container], ..Default::default() }),
            ..Default::default()
        };
        let rows = rows_of(&pod);
        let ids: Vec<(&str, &str)> = rows.iter().map(|(pod, row)| (pod.as_str(), row.id.as_str())).collect();
        assert_eq!(ids, [("p", "p"), ("p", "c")]);
        let text = table(&[rows[0].1.clone()], |_| Some(12.34)).to_string();
        assert!(text.contains("12.3"), "{text}");
    }
}
