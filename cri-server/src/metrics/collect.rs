//! What there is at the moment of a scrape: pods, containers, shims, operations, pulls, readers of events.

use std::collections::BTreeMap;
use std::fmt::{self, Error};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Measured;
use crate::container::ContainerState;
use crate::image::{LayerProgress, LayerStage, PullUnderWay};
use crate::operation::UnderWay;
use crate::sandbox::SandboxState;

/// Looks everything up, in memory.
pub(super) struct Now(pub Measured);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

/// Every state is told, so that a graph falls to zero instead of ending.
const POD_STATES: [&str; 4] = ["creating", "ready", "not_ready", "removing"];
const CONTAINER_STATES: [&str; 5] = ["creating", "created", "running", "exited", "removing"];

fn pod_state(state: &SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => POD_STATES[0],
        SandboxState::Ready { .. } => POD_STATES[1],
        SandboxState::NotReady => POD_STATES[2],
        SandboxState::Removing => POD_STATES[3],
    }
}

fn container_state(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Creating => CONTAINER_STATES[0],
        ContainerState::Created => CONTAINER_STATES[1],
        ContainerState::Running { .. } => CONTAINER_STATES[2],
        ContainerState::Exited { .. } => CONTAINER_STATES[3],
        ContainerState::Removing { .. } => CONTAINER_STATES[4],
    }
}

/// How many there are of each word.
fn count<'a>(
    words: &[&'static str],
    seen: impl Iterator<Item = &'static str> + 'a,
) -> BTreeMap<&'static str, i64> {
    let mut counts: BTreeMap<&'static str, i64> = words.iter().map(|word| (*word, 0)).collect();
    for word in seen {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

/// For each kind and stage of operations how many there are, and the age of the oldest.
fn by_stage(rows: &[UnderWay]) -> BTreeMap<(&'static str, &'static str), OfStage> {
    let mut stages: BTreeMap<_, OfStage> = BTreeMap::new();
    for row in rows {
        let of_stage = stages.entry((row.operation, row.stage)).or_default();
        of_stage.number += 1;
        of_stage.overdue += i64::from(row.overdue);
        of_stage.oldest = row.age.max(of_stage.oldest);
    }
    stages
}

#[derive(Debug, Default, PartialEq, Eq)]
struct OfStage {
    number: i64,
    /// How many of them are over the stage's deadline.
    overdue: i64,
    oldest: Duration,
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes one family of gauges.
fn gauges<S: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (S, f64)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: usize) -> Result<(), Error> {
    let gauge = ConstGauge::new(whole(value));
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

#[expect(clippy::cast_precision_loss, reason = "a float is what Prometheus takes")]
fn float(value: u64) -> f64 {
    value as f64
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        self.pods(&mut encoder)?;
        self.operations(&mut encoder)?;
        self.pulls(&mut encoder)?;
        let events = &self.0.ports.events;
        let help = "Readers of GetContainerEvents";
        gauge(&mut encoder, "cofferdam_event_readers", help, events.readers())?;
        let told = ConstCounter::new(events.count());
        let help = "Container events since the daemon's start";
        told.encode(encoder.encode_descriptor("cofferdam_events", help, None, told.metric_type())?)
    }
}

impl Now {
    fn pods(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let (pods, containers) = (self.0.sandboxes.all(), self.0.containers.all());
        let label = |(state, number): (&'static str, i64)| ([("state", state)], number as f64);
        let states = count(&POD_STATES, pods.iter().map(|pod| pod_state(&pod.status().state)));
        gauges(encoder, "cofferdam_pods", "Pod sandboxes, by state", states.into_iter().map(label))?;
        let states = count(&CONTAINER_STATES, containers.iter().map(|one| container_state(&one.state())));
        gauges(encoder, "cofferdam_containers", "Containers, by state", states.into_iter().map(label))?;
        let shims = pods.iter().filter(|pod| pod.has_shim()).count()
            + containers.iter().filter(|container| container.has_shim()).count();
        gauge(encoder, "cofferdam_shims", "Shims that the daemon is connected to", shims)
    }

    fn operations(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let rows = [self.0.pods.under_way(), self.0.ports.images.under_way()].concat();
        let stages = by_stage(&rows);
        let labels = |(operation, stage)| [("operation", operation), ("stage", stage)];
        let numbers = stages.iter().map(|(key, of)| (labels(*key), of.number as f64));
        gauges(encoder, "cofferdam_operations", "Operations under way, by kind and stage", numbers)?;
        let overdue = stages.iter().map(|(key, of)| (labels(*key), of.overdue as f64));
        let help = "Operations under way whose stage takes longer than it should, by kind and stage";
        gauges(encoder, "cofferdam_operations_overdue", help, overdue)?;
        let ages = stages.iter().map(|(key, of)| (labels(*key), of.oldest.as_secs_f64()));
        let help = "Age of the oldest operation of a kind and stage: one that grows and grows is stuck";
        gauges(encoder, "cofferdam_operation_oldest_age_seconds", help, ages)
    }

    fn pulls(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let images = &self.0.ports.images;
        gauge(encoder, "cofferdam_images", "Images", images.list().len())?;
        let pulls = images.pulls_under_way();
        let row = |of: fn(&LayerProgress) -> u64| {
            let one = move |pull: &PullUnderWay| {
                // What was here before is not part of the work.
                let wanted = pull.layers.iter().filter(|layer| layer.stage != LayerStage::Present);
                let sum = wanted.map(of).sum();
                ([("image", pull.reference.clone())], float(sum))
            };
            pulls.iter().map(one).collect::<Vec<_>>()
        };
        let help = "Compressed bytes received of an image that is being pulled";
        gauges(encoder, "cofferdam_image_pull_progress_bytes", help, row(|layer| layer.received))?;
        let help = "Compressed bytes to receive of an image that is being pulled";
        gauges(encoder, "cofferdam_image_pull_expected_bytes", help, row(|layer| layer.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_counted_also_at_zero() {
        let counts = count(&POD_STATES, ["ready", "ready", "removing"].into_iter());
        assert_eq!(
            counts,
            BTreeMap::from([("creating", 0), ("not_ready", 0), ("ready", 2), ("removing", 1)])
        );
    }

    #[test]
    fn the_oldest_of_a_stage_is_told() {
        let row = |stage, seconds| UnderWay {
            operation: "StartContainer",
            key: "k".to_owned(),
            id: None,
            stage,
            age: Duration::from_secs(seconds),
            stage_age: Duration::from_secs(seconds),
            deadline: Duration::from_secs(2),
            overdue: seconds > 2,
        };
        let stages = by_stage(&[row("a", 1), row("a", 7), row("b", 3), row("a", 2)]);
        let of = |number, overdue, seconds| OfStage { number, overdue, oldest: Duration::from_secs(seconds) };
        assert_eq!(stages[&("StartContainer", "a")], of(3, 1, 7));
        assert_eq!(stages[&("StartContainer", "b")], of(1, 1, 3));
    }
}
