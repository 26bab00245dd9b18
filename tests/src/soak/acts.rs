//! What may happen to a pod: one act after the other, while other pods have acts of their own and the daemon may die.
//!
//! Invariant: an act leaves the model as the node has to be, whether the daemon died in the middle or not.

use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::{Code, Status};

use super::kernel;
use super::kubelet::{unless, until_answered};
use super::model::{Container, Kind, PodModel, Wanted};
use super::random::Random;
use crate::client::{Cri, build};

/// What was done, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Run,
    Launch,
    Exec,
    ExecFails,
    ExecTimesOut,
    ExecTalks,
    Ask,
    Update,
    Rotate,
    KillProcess,
    KillShim,
    Stop,
    Remove,
    KillPause,
    Destroy,
}

/// Common ones several times.
const ACTS: [Act; 22] = [
    Act::Launch,
    Act::Launch,
    Act::Launch,
    Act::Launch,
    Act::Exec,
    Act::Exec,
    Act::Exec,
    Act::ExecFails,
    Act::ExecTimesOut,
    Act::ExecTalks,
    Act::Ask,
    Act::Ask,
    Act::Update,
    Act::Rotate,
    Act::KillProcess,
    Act::KillShim,
    Act::Stop,
    Act::Stop,
    Act::Remove,
    Act::Remove,
    Act::KillPause,
    Act::Destroy,
];
const MOST_CONTAINERS: usize = 5;

/// What an act needs beside its pod.
#[derive(Clone)]
pub struct Site {
    pub cri: Cri,
    pub image: String,
    /// The word that marks the node's cgroups.
    pub mark: String,
}

pub fn choose(random: &mut Random) -> Act {
    *random.pick(&ACTS)
}

/// Does it; false when the pod is gone with it. An act that has nothing to work on does nothing.
pub async fn perform(
    act: Act,
    site: &Site,
    model: &mut PodModel,
    random: &mut Random,
) -> Result<bool, String> {
    let before = format!("{act:?} on pod {} {}", model.pod.id, model.pod.config.hostname);
    let told = |status: Status| format!("{before}: {status:?}");
    match act {
        Act::Run => {}
        Act::Launch => launch(site, model, random).await.map_err(told)?,
        Act::Exec | Act::ExecFails | Act::ExecTimesOut | Act::ExecTalks => {
            if let Some(id) = some_that_stays(model, random) {
                exec(act, site, &id, random).await.map_err(|problem| format!("{before}: {id}: {problem}"))?;
            }
        }
        Act::Ask => ask(site, model).await.map_err(told)?,
        Act::Update => update(site, model, random).await.map_err(told)?,
        Act::Rotate => rotate(site, model, random).await.map_err(|problem| format!("{before}: {problem}"))?,
        Act::KillProcess => kill_process(site, model, random).await?,
        Act::KillShim => kill_shim(model, random),
        Act::Stop => stop(site, model, random).await.map_err(told)?,
        Act::Remove => remove(site, model, random).await.map_err(told)?,
        Act::KillPause => {
            // Rarely: such a pod can only be removed.
            if model.ready && random.once_in(4) && kernel::kill_shim(&model.pod.id) {
                model.ready = false;
            }
        }
        Act::Destroy => {
            destroy(site, model).await.map_err(told)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs a pod by a configuration, as often as it takes.
pub async fn run(site: &Site, config: &cri::PodSandboxConfig) -> Result<String, String> {
    until_answered(async || site.cri.run_pod(config, "").await)
        .await
        .map_err(|status| format!("RunPodSandbox of {}: {status:?}", config.hostname))
}

async fn launch(site: &Site, model: &mut PodModel, random: &mut Random) -> Result<(), Status> {
    if !model.ready || model.containers.len() >= MOST_CONTAINERS {
        return Ok(());
    }
    let kind = match random.below(5) {
        0 => Kind::Ends { after: random.below(1500) as u64, code: random.below(200) as i32 },
        1 => Kind::Deaf,
        _ => Kind::Counts,
    };
    model.serial += 1;
    let name = format!("c{}", model.serial);
    let config = build::shell(&name, &site.image, &kind.script());
    let log = Path::new(&model.pod.config.log_directory).join(&config.log_path);
    let (pod, sandbox) = (model.pod.id.clone(), model.pod.config.clone());
    let id = until_answered(async || site.cri.create(&pod, &sandbox, config.clone()).await).await?;
    // It may have been started by an attempt whose answer was lost.
    let started = until_answered(async || site.cri.start(&id).await).await;
    model.containers.push(Container::new(id, kind, log));
    unless(started, Code::FailedPrecondition)
}

fn some_that_stays(model: &PodModel, random: &mut Random) -> Option<String> {
    let ids: Vec<_> = model.containers.iter().filter(|one| one.stays()).map(|one| &one.id).collect();
    (!ids.is_empty()).then(|| (*random.pick(&ids)).clone())
}

fn some<'a>(model: &'a mut PodModel, random: &mut Random) -> Option<&'a mut Container> {
    let number = random.below(model.containers.len());
    model.containers.get_mut(number)
}

async fn exec(act: Act, site: &Site, id: &str, random: &mut Random) -> Result<(), String> {
    let word = format!("w{}", random.below(1_000_000));
    let script = match act {
        Act::ExecFails => format!("echo {word} >&2; exit 3"),
        Act::ExecTimesOut => "sleep 300 & sleep 300".into(),
        Act::ExecTalks => format!("i=0; while [ $i -lt 2000 ]; do echo {word}; i=$((i+1)); done"),
        _ => format!("echo {word}"),
    };
    let timeout = if act == Act::ExecTimesOut { 1 } else { 60 };
    let answer =
        until_answered(async || site.cri.exec_sync(id, &["/bin/sh", "-c", &script], timeout).await).await;
    let answer = match (act, answer) {
        (Act::ExecTimesOut, Err(status)) if status.code() == Code::DeadlineExceeded => return Ok(()),
        (Act::ExecTimesOut, other) => return Err(format!("no deadline: {other:?}")),
        (_, answer) => answer.map_err(|status| format!("{status:?}"))?,
    };
    let line = format!("{word}\n");
    let right = match act {
        Act::ExecFails => answer.exit_code == 3 && answer.stderr == line.as_bytes(),
        Act::ExecTalks => answer.exit_code == 0 && answer.stdout == line.repeat(2000).as_bytes(),
        _ => answer.exit_code == 0 && answer.stdout == line.as_bytes(),
    };
    if right { Ok(()) } else { Err(format!("`{script}` gave {answer:?}")) }
}

/// Reads that must answer whatever goes on.
async fn ask(site: &Site, model: &PodModel) -> Result<(), Status> {
    until_answered(async || site.cri.pod_status(&model.pod.id).await).await?;
    for container in &model.containers {
        until_answered(async || site.cri.status(&container.id).await).await?;
    }
    let mut runtime = site.cri.runtime.clone();
    until_answered(async || runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await)
        .await?;
    Ok(())
}

async fn update(site: &Site, model: &PodModel, random: &mut Random) -> Result<(), Status> {
    let Some(id) = some_that_stays(model, random) else { return Ok(()) };
    let linux = cri::LinuxContainerResources {
        memory_limit_in_bytes: (64 << 20) + (random.below(64) << 20) as i64,
        ..Default::default()
    };
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id, linux: Some(linux), ..Default::default() };
    let mut runtime = site.cri.runtime.clone();
    until_answered(async || runtime.update_container_resources(request.clone()).await).await.map(drop)
}

/// As the kubelet rotates: rename, then tell the runtime.
async fn rotate(site: &Site, model: &mut PodModel, random: &mut Random) -> Result<(), String> {
    let Some(container) = some(model, random).filter(|one| one.kind == Kind::Counts && one.stays()) else {
        return Ok(());
    };
    let aside = container.log.with_extension(format!("log.{}", container.rotated.len()));
    std::fs::rename(&container.log, &aside)
        .map_err(|error| format!("{}: {error}", container.log.display()))?;
    container.rotated.push(aside);
    let request = cri::ReopenContainerLogRequest { container_id: container.id.clone() };
    let mut runtime = site.cri.runtime.clone();
    until_answered(async || runtime.reopen_container_log(request.clone()).await)
        .await
        .map_err(|status| format!("ReopenContainerLog: {status:?}"))?;
    Ok(())
}

async fn kill_process(site: &Site, model: &mut PodModel, random: &mut Random) -> Result<(), String> {
    let Some(container) = some(model, random).filter(|one| one.stays()) else { return Ok(()) };
    let first = kernel::first_process(&site.mark, &container.id)
        .ok_or_else(|| format!("container {} has no process", container.id))?;
    // Nobody else ends it meanwhile.
    kill(Pid::from_raw(first), Signal::SIGKILL).map_err(|error| format!("kill {first}: {error}"))?;
    container.ending(Wanted::Code(137));
    Ok(())
}

fn kill_shim(model: &mut PodModel, random: &mut Random) {
    let Some(container) = some(model, random).filter(|one| one.stays()) else { return };
    if kernel::kill_shim(&container.id) {
        container.wanted = Wanted::Lost;
    }
}

async fn stop(site: &Site, model: &mut PodModel, random: &mut Random) -> Result<(), Status> {
    let Some(container) = some(model, random) else { return Ok(()) };
    let grace = if container.kind == Kind::Deaf { random.below(2) } else { 10 };
    let id = container.id.clone();
    until_answered(async || site.cri.stop(&id, grace as i64).await).await?;
    match container.kind {
        // Before its trap is set, a first process hears no signal at all.
        Kind::Counts => container.ending(Wanted::Either(0, 137)),
        Kind::Deaf => container.ending(Wanted::Code(137)),
        // Nor does one without a trap: it ends by itself within the grace period.
        Kind::Ends { .. } => {}
    }
    Ok(())
}

async fn remove(site: &Site, model: &mut PodModel, random: &mut Random) -> Result<(), Status> {
    if model.containers.is_empty() {
        return Ok(());
    }
    let number = random.below(model.containers.len());
    let id = model.containers[number].id.clone();
    until_answered(async || site.cri.remove(&id).await).await?;
    model.containers.remove(number);
    Ok(())
}

/// Twice at the same time, as a kubelet that restarts may.
pub async fn destroy(site: &Site, model: &PodModel) -> Result<(), Status> {
    let id = &model.pod.id;
    let again = async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        until_answered(async || site.cri.destroy_pod(id).await).await
    };
    let (first, second) = tokio::join!(until_answered(async || site.cri.destroy_pod(id).await), again);
    first.and(second)
}
