//! Looks at what is under way, and says what takes too long: a stage of an operation once, a pull now and then.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::image::{ImageService, LayerStage, PullUnderWay};
use crate::metrics::Overdue;
use crate::pod::Pods;

const INTERVAL: Duration = Duration::from_secs(1);
/// How often the log tells how far a pull is.
const PULLS: Duration = Duration::from_secs(10);

/// Runs until the daemon ends; holds nothing up.
pub(super) async fn oversee(pods: Pods, overdue: Overdue) {
    let ports = pods.sandboxes.ports();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulls = PullLog::default();
    while ports.stopping.run_until_cancelled(tick.tick()).await.is_some() {
        for row in pods.newly_overdue().into_iter().chain(ports.images.newly_overdue()) {
            overdue.count(row.operation, row.stage);
            tracing::warn!(
                operation = row.operation,
                key = row.key,
                id = row.id,
                stage = row.stage,
                stage_age = ?row.stage_age,
                deadline = ?row.deadline,
                age = ?row.age,
                "takes longer than it should"
            );
        }
        pulls.tell(&ports.images);
    }
}

/// When the log last told of each pull, and how much it had received then.
#[derive(Debug, Default)]
struct PullLog(HashMap<String, (Instant, u64)>);

impl PullLog {
    fn tell(&mut self, images: &ImageService) {
        let pulls = images.pulls_under_way();
        self.0.retain(|image, _| pulls.iter().any(|pull| pull.reference == *image));
        for pull in pulls.iter().filter(|pull| pull.age >= PULLS) {
            let progress = Progress::of(pull);
            let known = self.0.get(&pull.reference);
            if known.is_some_and(|(at, _)| at.elapsed() < PULLS) {
                continue;
            }
            let Progress { layers, done, received, total } = progress;
            let stalled = known.is_some_and(|(_, before)| *before == received);
            let (image, age) = (&pull.reference, pull.age);
            // While the last layers are unpacked nothing is received either.
            if stalled && (received < total || total == 0) {
                tracing::warn!(
                    image,
                    ?age,
                    layers,
                    done,
                    received,
                    total,
                    "the pull received nothing lately"
                );
            } else {
                tracing::info!(image, ?age, layers, done, received, total, "pulling");
            }
            self.0.insert(pull.reference.clone(), (Instant::now(), received));
        }
    }
}

/// Of the layers that were not here before: how many, how many of them done, bytes.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    layers: usize,
    done: usize,
    received: u64,
    total: u64,
}

impl Progress {
    fn of(pull: &PullUnderWay) -> Self {
        let wanted = || pull.layers.iter().filter(|layer| layer.stage != LayerStage::Present);
        Self {
            layers: wanted().count(),
            done: wanted().filter(|layer| layer.stage == LayerStage::Done).count(),
            received: wanted().map(|layer| layer.received).sum(),
            total: wanted().map(|layer| layer.total).sum(),
        }
    }
}
