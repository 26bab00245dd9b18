//! Runs the measurements in turn on all endpoints and holds what came out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cycle::{self, Crowd};
use super::endpoint::Endpoint;
use super::memory::{self, Memory};
use super::samples::Samples;
use super::{Args, Error, table};

/// What was measured on one endpoint.
pub struct Measured {
    pub socket: String,
    pub runtime: String,
    pub samples: Samples,
    pub crowd: Option<Crowd>,
    pub memory: Option<Memory>,
    pullable: bool,
}

/// The whole result; the second endpoint, if any, is the one compared with.
pub struct Report {
    pub endpoints: Vec<Measured>,
    pub parallel: u32,
}

/// Measures all endpoints, sample by sample in turn.
pub async fn measure(args: &Args, endpoints: &[Arc<Endpoint>]) -> Result<Report, Error> {
    let mut all = Vec::new();
    for endpoint in endpoints {
        let (runtime, pullable) = endpoint.prepare().await?;
        // Not counted: caches fill, lazy parts start.
        cycle::life(endpoint, &mut Samples::default()).await?;
        let socket = endpoint.socket.clone();
        all.push(Measured {
            socket,
            runtime,
            pullable,
            samples: Samples::default(),
            crowd: None,
            memory: None,
        });
    }
    for round in 0..args.samples {
        for at in order(round, endpoints.len()) {
            cycle::life(&endpoints[at], &mut all[at].samples).await?;
            if all[at].pullable && !args.no_pull {
                cycle::pull(&endpoints[at], &mut all[at].samples).await?;
            }
        }
    }
    for (endpoint, measured) in endpoints.iter().zip(&mut all) {
        if args.parallel > 0 {
            let pods = args.samples.max(args.parallel * 2);
            measured.crowd = Some(cycle::crowd(endpoint, args.parallel, pods).await?);
        }
        if args.pods > 0 {
            measured.memory = Some(idle(args, endpoint, &mut measured.samples).await?);
        }
    }
    Ok(Report { endpoints: all, parallel: args.parallel })
}

/// Each endpoint goes first as often as the other.
fn order(round: u32, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| if round.is_multiple_of(2) { at } else { count - 1 - at })
}

/// Weighs the runtime with idle pods, and asks the lists while they are there.
async fn idle(args: &Args, endpoint: &Endpoint, samples: &mut Samples) -> Result<Memory, Error> {
    let pid = memory::daemon(endpoint).await;
    let weigh = || pid.and_then(memory::weigh);
    let daemon_idle = weigh();
    let mut running = Vec::new();
    for _ in 0..args.pods {
        running.push(cycle::make(endpoint, &mut Samples::default()).await?);
    }
    // What starting them left behind in caches and buffers settles.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let memory =
        Memory { pods: args.pods, daemon_idle, daemon: weigh(), helpers: memory::helpers(endpoint, pid) };
    cycle::lists(endpoint, args.samples, samples).await?;
    for pod in &running {
        cycle::unmake(endpoint, pod, &mut Samples::default()).await?;
    }
    Ok(memory)
}

impl Report {
    pub fn table(&self) -> String {
        table::render(self)
    }

    pub fn json(&self) -> Value {
        let mut value = json!({ "endpoints": self.endpoints.iter().map(Measured::json).collect::<Vec<_>>() });
        if let [first, second] = self.endpoints.as_slice() {
            let mut ratios = serde_json::Map::new();
            for (operation, figures) in first.samples.all() {
                if let Some(other) = second.samples.figures(operation) {
                    ratios.insert(operation.into(), json!(other.p50 / figures.p50));
                }
            }
            // How many times longer the second endpoint takes, by the median.
            value["ratios"] = Value::Object(ratios);
        }
        value
    }
}

fn figures(samples: &Samples) -> Value {
    let all = samples.all().into_iter();
    all.map(|(name, figures)| (name.to_owned(), json!(figures))).collect::<serde_json::Map<_, _>>().into()
}

impl Measured {
    fn json(&self) -> Value {
        let crowd = self.crowd.as_ref().map(|crowd| {
            json!({
                "pods": crowd.pods,
                "seconds": crowd.took.as_secs_f64(),
                "pods_per_second": crowd.rate(),
                "milliseconds": figures(&crowd.samples),
            })
        });
        let memory = self.memory.as_ref().map(|memory| {
            let (pss, private) = memory.per_pod();
            let mut value = json!(memory);
            value["per_pod"] = json!({ "pss": pss, "private": private });
            value
        });
        json!({
            "socket": self.socket,
            "runtime": self.runtime,
            "milliseconds": figures(&self.samples),
            "parallel": crowd,
            "memory_bytes": memory,
        })
    }
}

impl Crowd {
    /// Pods made and removed in a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.pods) / self.took.as_secs_f64()
    }
}
