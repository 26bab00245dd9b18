//! Many pods at once: no error, nothing left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cofferdam_tests::client::build;
use cofferdam_tests::harness::Node;

const PODS: u32 = 100;
const WORKERS: u32 = 10;

#[tokio::test]
async fn a_hundred_pods_ten_at_a_time() {
    let node = Arc::new(Node::start().await);
    let image = node.base_image().await;
    let next = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (node, next, image) = (node.clone(), next.clone(), image.clone());
        tasks.spawn(async move {
            let mut pods = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= PODS {
                    return pods;
                }
                let pod = node.run_pod(&node.pod(&format!("many{number}"))).await;
                let script = format!("echo {number}; exec sleep 100000");
                let id = node.run_container(&pod, build::shell("main", &image, &script)).await;
                pods.push((number, pod, id));
            }
        });
    }
    let pods: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(pods.len(), PODS as usize);
    let mut addresses = std::collections::HashSet::new();
    for (number, pod, id) in &pods {
        let ip = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap().ip;
        assert!(addresses.insert(ip.clone()), "two pods have {ip}");
        let said = node.cri.exec_sync(id, &["hostname"], 30).await.unwrap().stdout;
        assert_eq!(said, format!("many{number}\n").as_bytes());
    }
    let mut tasks = tokio::task::JoinSet::new();
    for chunk in pods.chunks(PODS.div_ceil(WORKERS) as usize) {
        let (node, chunk) = (node.clone(), chunk.to_vec());
        tasks.spawn(async move {
            for (_, pod, _) in &chunk {
                node.destroy(pod).await;
            }
        });
    }
    tasks.join_all().await;
    node.assert_clean().await;
}
