//! What is measured: the life of one pod, many pods at once, idle pods, pulls.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use tokio::task::JoinSet;
use tonic::Status;

use super::Error;
use super::endpoint::Endpoint;
use super::samples::Samples;

async fn timed<T>(
    endpoint: &Endpoint,
    samples: &mut Samples,
    operation: &'static str,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Error> {
    let before = Instant::now();
    let value = call.await.map_err(endpoint.failed(operation))?;
    samples.add(operation, before.elapsed());
    Ok(value)
}

/// A pod with one container that runs.
pub struct Running {
    pod: String,
    container: String,
}

/// Makes a pod with a running container.
pub async fn make(endpoint: &Endpoint, samples: &mut Samples) -> Result<Running, Error> {
    let cri = &endpoint.cri;
    let config = endpoint.pod();
    let before = Instant::now();
    let pod = timed(endpoint, samples, "RunPodSandbox", cri.run_pod(&config, &endpoint.handler)).await?;
    let create = cri.create(&pod, &config, endpoint.container());
    let container = timed(endpoint, samples, "CreateContainer", create).await?;
    timed(endpoint, samples, "StartContainer", cri.start(&container)).await?;
    samples.add("pod ready", before.elapsed());
    Ok(Running { pod, container })
}

/// Asks about a running container.
async fn ask(endpoint: &Endpoint, running: &Running, samples: &mut Samples) -> Result<(), Error> {
    let (cri, id) = (&endpoint.cri, &running.container);
    let answer = timed(endpoint, samples, "ExecSync", cri.exec_sync(id, &["true"], 30)).await?;
    if answer.exit_code != 0 {
        let text = format!("`true` ends with {}", answer.exit_code);
        return Err(endpoint.failed("ExecSync")(Status::internal(text)));
    }
    timed(endpoint, samples, "ContainerStatus", cri.status(id)).await?;
    let request = cri::ContainerStatsRequest { container_id: id.clone() };
    let mut runtime = cri.runtime.clone();
    timed(endpoint, samples, "ContainerStats", runtime.container_stats(request)).await?;
    Ok(())
}

/// Stops and removes a pod. The stop goes straight to SIGKILL: the workload, as process 1, ignores anything milder.
pub async fn unmake(endpoint: &Endpoint, running: &Running, samples: &mut Samples) -> Result<(), Error> {
    let cri = &endpoint.cri;
    let before = Instant::now();
    timed(endpoint, samples, "StopContainer", cri.stop(&running.container, 0)).await?;
    timed(endpoint, samples, "RemoveContainer", cri.remove(&running.container)).await?;
    timed(endpoint, samples, "StopPodSandbox", cri.stop_pod(&running.pod)).await?;
    timed(endpoint, samples, "RemovePodSandbox", cri.remove_pod(&running.pod)).await?;
    samples.add("pod gone", before.elapsed());
    Ok(())
}

/// The whole life of one pod.
pub async fn life(endpoint: &Endpoint, samples: &mut Samples) -> Result<(), Error> {
    let running = make(endpoint, samples).await?;
    ask(endpoint, &running, samples).await?;
    unmake(endpoint, &running, samples).await
}

/// Pods made and removed by `workers` at once.
pub struct Crowd {
    pub pods: u32,
    pub took: Duration,
    pub samples: Samples,
}

/// Lets `workers` make and remove `pods` pods in all.
pub async fn crowd(endpoint: &Arc<Endpoint>, workers: u32, pods: u32) -> Result<Crowd, Error> {
    let left = Arc::new(AtomicU32::new(pods));
    let mut tasks = JoinSet::new();
    let before = Instant::now();
    for _ in 0..workers {
        let (endpoint, left) = (endpoint.clone(), left.clone());
        tasks.spawn(async move {
            let mut samples = Samples::default();
            let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            while take().is_ok() {
                life(&endpoint, &mut samples).await?;
            }
            Ok::<_, Error>(samples)
        });
    }
    let mut samples = Samples::default();
    while let Some(done) = tasks.join_next().await {
        samples.join(done.map_err(|_| Error::Worker)??);
    }
    Ok(Crowd { pods, took: before.elapsed(), samples })
}

/// Lists and stats, asked `times` times with whatever pods are there.
pub async fn lists(endpoint: &Endpoint, times: u32, samples: &mut Samples) -> Result<(), Error> {
    let cri = &endpoint.cri;
    for _ in 0..times {
        timed(endpoint, samples, "ListPodSandbox", cri.list_pods(None)).await?;
        timed(endpoint, samples, "ListContainers", cri.list(None)).await?;
        let mut runtime = cri.runtime.clone();
        let request = cri::ListContainerStatsRequest::default();
        timed(endpoint, samples, "ListContainerStats", runtime.list_container_stats(request)).await?;
        let request = cri::ListPodSandboxStatsRequest::default();
        timed(endpoint, samples, "ListPodSandboxStats", runtime.list_pod_sandbox_stats(request)).await?;
    }
    Ok(())
}

/// One pull of an image that was removed before.
pub async fn pull(endpoint: &Endpoint, samples: &mut Samples) -> Result<(), Error> {
    endpoint.cri.remove_image(&endpoint.image).await.map_err(endpoint.failed("RemoveImage"))?;
    timed(endpoint, samples, "PullImage", endpoint.cri.pull(&endpoint.image, None)).await?;
    Ok(())
}
