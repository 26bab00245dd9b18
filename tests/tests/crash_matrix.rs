//! Death and failure at every step of every operation: nothing is lost, nothing is left.
//!
//! The daemon, the network plugin, the shims and their children have a failpoint after each step (see the crate
//! `cofferdam-failpoints`). For each of them a kubelet drives a pod's whole life; at the point the process is killed, or
//! the step fails; the daemon is started again where it died, and the kubelet goes on from what it finds. At the end nothing of
//! the pod may be left, by the kernel's own account. A point that is not reached fails the test.
//!
//! `COFFERDAM_CRASH_POINT` tries the cases only whose description holds that text, `COFFERDAM_CRASH_NODES` says how
//! many are tried side by side, `COFFERDAM_CRASH_SHARE=8` tries every eighth: which ones is told, and chosen by the clock or
//! `COFFERDAM_CRASH_FIRST`.

#[path = "crash_matrix/life.rs"]
mod life;
#[path = "crash_matrix/plan.rs"]
mod plan;
#[path = "crash_matrix/prelude.rs"]
mod prelude;
#[path = "crash_matrix/sessions.rs"]
mod sessions;
#[path = "crash_matrix/trial.rs"]
mod trial;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_failpoints::POINTS;
use cofferdam_tests::harness::{attached, binaries};
use plan::{Case, Net};
use trial::Stage;

/// The longest that one trial may take, and one that boots machines.
const LIMIT: Duration = Duration::from_secs(90);
const MACHINE_LIMIT: Duration = Duration::from_secs(240);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Every so manieth of the cases, where not all of them are wanted.
fn share(cases: Vec<Case>) -> Vec<Case> {
    let share = number("COFFERDAM_CRASH_SHARE", 1).max(1);
    if share == 1 {
        return cases;
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is before 1970").as_secs();
    let first = number("COFFERDAM_CRASH_FIRST", usize::try_from(clock).expect("64 bits")) % share;
    println!("every {share}th case of {}, beginning with COFFERDAM_CRASH_FIRST={first}", cases.len());
    cases.into_iter().skip(first).step_by(share).collect()
}

type Queue = Arc<Mutex<VecDeque<Case>>>;

/// What the trials of one node came to.
#[derive(Default)]
struct Outcome {
    failed: Vec<String>,
    times: Vec<(Duration, String)>,
}

/// Takes cases until there are none. A thread with everything of its own: a daemon dies with the thread that started it.
fn work(queue: &Queue, net: Net) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("no runtime");
    let mut stage: Option<Stage> = None;
    let mut outcome = Outcome::default();
    loop {
        let Some(case) = queue.lock().expect("poisoned").pop_front() else { return outcome };
        let since = Instant::now();
        let text = case.to_string();
        let taken = stage.take();
        let trial = async move {
            let mut stage = match taken {
                Some(stage) => stage,
                None => Stage::start(net).await?,
            };
            let limit = if net == Net::Machine { MACHINE_LIMIT } else { LIMIT };
            let done = tokio::time::timeout(limit, trial::run(&mut stage, &case)).await;
            assert!(done.is_ok(), "it takes longer than {limit:?}:\n{}", stage.node.daemon_log());
            Some(stage)
        };
        // A task, so that a panic ends the trial and its node, and not the others.
        let local = tokio::task::LocalSet::new();
        match local.block_on(&runtime, async { tokio::task::spawn_local(trial).await }) {
            Ok(left) => stage = left,
            Err(error) => {
                let words = error.try_into_panic().map_or_else(|e| e.to_string(), |panic| words(&*panic));
                println!("FAILED {text}: {words}");
                outcome.failed.push(format!("{text}: {words}"));
            }
        }
        outcome.times.push((since.elapsed(), text));
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

#[test]
fn death_at_every_step_loses_nothing_and_leaves_nothing() {
    if attached().is_some() {
        return println!("skipped: this test needs a daemon of its own");
    }
    let wanted = std::env::var("COFFERDAM_CRASH_POINT").unwrap_or_default();
    let planned = plan::cases();
    let points: BTreeSet<_> = planned.iter().map(|case| case.point.name).collect();
    assert_eq!(points.len(), POINTS.len(), "the plan leaves points out");
    let asked = planned.into_iter().filter(|case| case.to_string().contains(&wanted));
    let all: Vec<Case> = share(asked.collect());
    let points: BTreeSet<_> = all.iter().map(|case| case.point.name).collect();
    let (count, since) = (all.len(), Instant::now());
    let nodes = number("COFFERDAM_CRASH_NODES", 3);
    let queues = [Net::Plugin, Net::Machine, Net::Builtin].map(|net| {
        let own: VecDeque<Case> = all.iter().filter(|case| case.net == net).cloned().collect();
        (net, Arc::new(Mutex::new(own)))
    });
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let worker = |number: usize| {
            let queues = &queues;
            // Each begins with another kind.
            scope.spawn(move || {
                let kinds = (0..queues.len()).map(|shift| &queues[(number + shift) % queues.len()]);
                kinds.map(|(net, queue)| work(queue, *net)).collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = (0..nodes).map(worker).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let mut times: Vec<_> = outcomes.iter().flat_map(|outcome| outcome.times.clone()).collect();
    times.sort();
    for (time, text) in times.iter().rev().take(8) {
        println!("{:>6} ms  {text}", time.as_millis());
    }
    println!("{count} trials at {} of {} points in {:?}", points.len(), POINTS.len(), since.elapsed());
    let failed: Vec<_> = outcomes.into_iter().flat_map(|outcome| outcome.failed).collect();
    assert!(failed.is_empty(), "{} of {count} trials failed:\n{}", failed.len(), failed.join("\n"));
}

/// The word that every build with failpoints holds.
const WORD: &[u8] = b"COFFERDAM_FAILPOINTS";

#[test]
fn what_is_shipped_holds_no_failpoint() {
    for name in ["cofferdam", "cofferdam-bridge", "containerd-shim-cofferdam-v1"] {
        let holds = |folder: std::path::PathBuf| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            bytes.windows(WORD.len()).any(|window| window == WORD)
        };
        assert!(!holds(binaries()), "{name} was built with failpoints");
        assert!(holds(binaries().join("failpoints")), "{name} of `make failpoints` has none");
    }
}
