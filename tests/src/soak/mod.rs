//! Random work on a node for a given time: pods, containers, execs, kills, images and the daemon's death, and between the
//! rounds a look at whether the daemon's lists, the model and the kernel agree.
//!
//! Rounds come in epochs. In a calm one the daemon lives on; in the others it may die in each round. At an epoch's end everything is
//! removed, and nothing may be left. What is drawn depends on the seed alone: the same seed does the same work, as far as
//! the machine lets it.

mod acts;
mod check;
mod images;
mod kernel;
mod kubelet;
mod model;
mod random;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::build;
use crate::harness::{Node, Pod, workspace};
use acts::{Act, Site};
use images::Images;
pub use kernel::shim_of;
use model::PodModel;
pub use random::Random;

const ROUNDS: usize = 6;
const MOST_PODS: usize = 8;
/// Kilobytes by which the daemon's memory may grow over its life: what an allocator keeps, not what is lost.
const GROWTH: u64 = 48 << 10;

/// One soak.
pub struct Soak {
    node: Node,
    random: Random,
    images: Images,
    image: String,
    pods: Vec<PodModel>,
    made: usize,
    done: BTreeMap<Act, usize>,
    rounds: usize,
    deaths: usize,
    /// Memory after the first epoch that this daemon lived through.
    memory: Option<u64>,
    began: Instant,
    seed: u64,
}

impl Drop for Soak {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = workspace().join("target/soak");
            let path = folder.join(format!("{}.log", self.seed));
            let kept =
                std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, self.node.daemon_log()));
            eprintln!(
                "seed {}, round {}; the daemon's log: {} {kept:?}",
                self.seed,
                self.rounds,
                path.display()
            );
        }
    }
}

impl Soak {
    /// Works for so long, and ends with a node that is clean. Panics with all that is wrong.
    pub async fn run(seed: u64, time: Duration) {
        // Acts wait, they do not compute: one thread will do.
        tokio::task::LocalSet::new().run_until(Self::work(seed, time)).await;
    }

    async fn work(seed: u64, time: Duration) {
        println!("soak: seed {seed}, {} s", time.as_secs());
        let Some(node) = Node::builder().start().await else { return };
        let image = node.base_image().await;
        let images = Images::push(&node);
        let began = Instant::now();
        let mut soak = Self {
            node,
            random: Random::new(seed),
            images,
            image,
            pods: Vec::new(),
            made: 0,
            done: BTreeMap::new(),
            rounds: 0,
            deaths: 0,
            memory: None,
            began,
            seed,
        };
        while began.elapsed() < time {
            let calm = soak.random.once_in(2);
            for _ in 0..ROUNDS {
                soak.round(calm).await;
                if began.elapsed() >= time {
                    break;
                }
            }
            soak.end_epoch().await;
        }
        println!("soak: {}", soak.report());
    }

    /// Acts on several pods at the same time, images beside them, and perhaps the daemon's death in the middle.
    async fn round(&mut self, calm: bool) {
        self.rounds += 1;
        let site = Site { cri: self.node.cri.clone(), image: self.image.clone(), mark: self.node.mark() };
        let mut lanes = JoinSet::new();
        for (model, config) in self.lanes() {
            let (site, random) = (site.clone(), self.random.fork());
            lanes.spawn_local(lane(site, model, config, random));
        }
        let pulls = tokio::task::spawn_local(self.images.round(self.node.cri.clone(), self.random.fork()));
        if !calm && self.random.once_in(2) {
            let moment = self.random.millis(1500);
            let gently = self.random.once_in(3);
            tokio::time::sleep(moment).await;
            self.deaths += 1;
            self.memory = None;
            if gently {
                self.node.stop().await;
            }
            self.node.restart().await;
        }
        let mut wrong = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            let lane = lane.expect("a lane panicked");
            for act in lane.done {
                *self.done.entry(act).or_default() += 1;
            }
            self.pods.extend(lane.model);
            wrong.extend(lane.problem);
        }
        wrong.extend(pulls.await.expect("the images' lane panicked").err());
        // Which of them ended first is the machine's to say, not the seed's.
        self.pods.sort_by_key(|model| model.pod.config.metadata.clone().unwrap_or_default().name);
        if wrong.is_empty() {
            wrong = check::violations(&self.node, &self.pods).await;
        }
        assert!(wrong.is_empty(), "seed {}, round {}:\n{}", self.seed, self.rounds, wrong.join("\n"));
    }

    /// What this round works on: pods that there are, taken from the model, and new ones.
    fn lanes(&mut self) -> Vec<(Option<PodModel>, cofferdam_proto::cri::PodSandboxConfig)> {
        let mut lanes = Vec::new();
        for _ in 0..=self.random.below(4) {
            let new =
                self.pods.is_empty() || (self.pods.len() + lanes.len() < MOST_PODS && self.random.once_in(2));
            if new {
                self.made += 1;
                let mut config = self.node.pod(&format!("soak{:05}", self.made));
                if self.random.once_in(6) {
                    build::host_network(&mut config);
                }
                lanes.push((None, config));
            } else {
                let number = self.random.below(self.pods.len());
                let model = self.pods.remove(number);
                let config = model.pod.config.clone();
                lanes.push((Some(model), config));
            }
        }
        lanes
    }

    /// Removes everything; nothing may be left, and the daemon may not have grown.
    async fn end_epoch(&mut self) {
        let site = Site { cri: self.node.cri.clone(), image: self.image.clone(), mark: self.node.mark() };
        for model in std::mem::take(&mut self.pods) {
            acts::destroy(&site, &model)
                .await
                .unwrap_or_else(|status| panic!("{}: {status:?}", model.pod.id));
        }
        let wrong = check::violations(&self.node, &[]).await;
        assert!(wrong.is_empty(), "seed {}, round {}:\n{}", self.seed, self.rounds, wrong.join("\n"));
        self.node.assert_clean().await;
        let memory = self.node.daemon_pid().map(kernel::memory).unwrap_or_default();
        let first = *self.memory.get_or_insert(memory);
        assert!(memory < first + GROWTH, "the daemon's memory grew from {first} to {memory} KiB");
        println!("soak: {}", self.report());
        self.image = self.node.base_image().await;
    }

    fn report(&self) -> String {
        let daemon = self.node.daemon_pid().unwrap_or_default();
        let log = self.node.daemon_log();
        let count = |word: &str| log.lines().filter(|line| line.contains(word)).count();
        format!(
            "{} s, {} rounds, {} pods, {} deaths of the daemon, {:?}, {:?}; the daemon has {} KiB (first {}), {} descriptors, \
             {} warnings and {} errors in its log",
            self.began.elapsed().as_secs(),
            self.rounds,
            self.made,
            self.deaths,
            self.done,
            self.images.counts(),
            kernel::memory(daemon),
            self.memory.unwrap_or_default(),
            kernel::descriptors(daemon),
            count(" WARN "),
            count(" ERROR "),
        )
    }
}

struct Lane {
    /// The pod, unless it was destroyed.
    model: Option<PodModel>,
    done: Vec<Act>,
    problem: Option<String>,
}

/// Makes the pod where there is none yet, and does a few acts on it.
async fn lane(
    site: Site,
    model: Option<PodModel>,
    config: cofferdam_proto::cri::PodSandboxConfig,
    mut random: Random,
) -> Lane {
    let mut lane = Lane { model: None, done: Vec::new(), problem: None };
    let mut model = match model {
        Some(model) => model,
        None => match acts::run(&site, &config).await {
            Ok(id) => {
                lane.done.push(Act::Run);
                let host_network = config.hostname.is_empty();
                let pod = Pod { id, config };
                PodModel { pod, containers: Vec::new(), ready: true, host_network, serial: 0 }
            }
            Err(problem) => return Lane { problem: Some(problem), ..lane },
        },
    };
    for _ in 0..=random.below(5) {
        let act = acts::choose(&mut random);
        lane.done.push(act);
        match acts::perform(act, &site, &mut model, &mut random).await {
            Ok(true) => {}
            Ok(false) => return lane,
            Err(problem) => {
                lane.problem = Some(problem);
                break;
            }
        }
    }
    lane.model = Some(model);
    lane
}
