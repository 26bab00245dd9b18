//! The Stream* lists: the same things as the List* calls give, with the same filters.

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod};
use tonic::{Response, Status, Streaming};

/// All pieces of a stream, each as a list.
async fn pieces<M>(stream: Result<Response<Streaming<M>>, Status>) -> Vec<M> {
    let mut stream = stream.unwrap().into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        pieces.push(piece);
    }
    pieces
}

async fn node_with_two_pods() -> Option<(Node, String, [Pod; 2], Vec<String>)> {
    let node = Node::builder().start().await?;
    let image = node.base_image().await;
    let pods = [node.run_pod(&node.pod("one")).await, node.run_pod(&node.pod("two")).await];
    let mut containers = Vec::new();
    for pod in &pods {
        containers.push(node.run_container(pod, build::container("a", &image, &["sleep", "1000"])).await);
    }
    Some((node, image, pods, containers))
}

#[tokio::test]
async fn pods_containers_and_images_come_as_their_lists_have_them() {
    let Some((node, image, pods, ids)) = node_with_two_pods().await else { return };
    let (mut runtime, mut images) = (node.cri.runtime.clone(), node.cri.image.clone());
    node.cri.stop(&ids[1], 0).await.unwrap();

    let label_selector = [("app".to_owned(), "two".to_owned())].into();
    for filter in [None, Some(cri::PodSandboxFilter { label_selector, ..Default::default() })] {
        let listed = node.cri.list_pods(filter.clone()).await.unwrap();
        let streamed =
            pieces(runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter }).await).await;
        let streamed: Vec<_> = streamed.into_iter().flat_map(|piece| piece.pod_sandboxes).collect();
        assert!(!listed.is_empty() && streamed == listed, "{streamed:#?}");
    }
    let state = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let running = cri::ContainerFilter { state: Some(state), ..Default::default() };
    for filter in [None, Some(running)] {
        let listed = node.cri.list(filter.clone()).await.unwrap();
        let streamed = pieces(runtime.stream_containers(cri::StreamContainersRequest { filter }).await).await;
        let streamed: Vec<_> = streamed.into_iter().flat_map(|piece| piece.containers).collect();
        assert!(!listed.is_empty() && streamed == listed, "{streamed:#?}");
    }
    let filter = cri::ImageFilter { image: Some(build::image(&image)) };
    for filter in [None, Some(filter)] {
        let listed = node.cri.list_images().await.unwrap();
        let streamed = pieces(images.stream_images(cri::StreamImagesRequest { filter }).await).await;
        let streamed: Vec<_> = streamed.into_iter().flat_map(|piece| piece.images).collect();
        assert!(streamed.len() == 1 && streamed == listed, "{streamed:#?}");
    }
    let nobody = cri::ContainerFilter { id: "no-such-id".to_owned(), ..Default::default() };
    let request = cri::StreamContainersRequest { filter: Some(nobody) };
    assert!(pieces(runtime.stream_containers(request).await).await.is_empty());
    for pod in &pods {
        node.destroy(pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn usage_and_metrics_come_for_whatever_runs() {
    let Some((node, _, pods, ids)) = node_with_two_pods().await else { return };
    let mut runtime = node.cri.runtime.clone();
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let in_pod = cri::ContainerStatsFilter { pod_sandbox_id: pods[1].id.clone(), ..Default::default() };
    for (filter, wanted) in [(None, sorted(ids.clone())), (Some(in_pod), vec![ids[1].clone()])] {
        let request = cri::StreamContainerStatsRequest { filter };
        let stats = pieces(runtime.stream_container_stats(request).await).await;
        let stats = stats.into_iter().flat_map(|piece| piece.container_stats);
        let found = stats.map(|one| {
            assert!(one.memory.unwrap().usage_bytes.unwrap().value > 0);
            one.attributes.unwrap().id
        });
        assert_eq!(found.collect::<Vec<_>>(), wanted);
    }
    let one = cri::PodSandboxStatsFilter { id: pods[0].id.clone(), ..Default::default() };
    let both = sorted(pods.iter().map(|pod| pod.id.clone()).collect());
    for (filter, wanted) in [(None, both.clone()), (Some(one), vec![pods[0].id.clone()])] {
        let request = cri::StreamPodSandboxStatsRequest { filter };
        let stats = pieces(runtime.stream_pod_sandbox_stats(request).await).await;
        let stats = stats.into_iter().flat_map(|piece| piece.pod_sandbox_stats);
        let found = stats.map(|one| {
            assert_eq!(one.linux.unwrap().containers.len(), 1);
            one.attributes.unwrap().id
        });
        assert_eq!(found.collect::<Vec<_>>(), wanted);
    }
    let request = cri::StreamPodSandboxMetricsRequest {};
    let metrics = pieces(runtime.stream_pod_sandbox_metrics(request).await).await;
    let metrics: Vec<_> = metrics.into_iter().flat_map(|piece| piece.pod_sandbox_metrics).collect();
    assert_eq!(metrics.iter().map(|pod| pod.pod_sandbox_id.clone()).collect::<Vec<_>>(), both);
    assert!(metrics.iter().all(|pod| pod.container_metrics.len() == 1));
    for pod in &pods {
        node.destroy(pod).await;
    }
    let request = cri::StreamPodSandboxMetricsRequest {};
    assert!(pieces(runtime.stream_pod_sandbox_metrics(request).await).await.is_empty());
    node.assert_clean().await;
}
