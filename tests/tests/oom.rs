//! Ends for want of memory are told as such, every time: the kernel's count is read before the exit is told.

use std::time::Duration;

use cofferdam_tests::client::build;
use cofferdam_tests::harness::Node;

const ROUNDS: usize = 10;
const AT_ONCE: usize = 5;

#[tokio::test]
async fn fifty_ends_for_want_of_memory_are_all_told() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("oom")).await;
    for round in 0..ROUNDS {
        let mut set = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let name = format!("hungry-{round}-{number}");
            let mut config =
                build::container(&name, &image, &["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]);
            let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
            resources.memory_limit_in_bytes = 16 << 20;
            resources.memory_swap_limit_in_bytes = 16 << 20;
            let (cri, pod) = (node.cri.clone(), pod.clone());
            set.spawn(async move {
                let id = cri.create(&pod.id, &pod.config, config).await.unwrap();
                cri.start(&id).await.unwrap();
                let status = cri.wait_exited(&id, Duration::from_secs(30)).await.unwrap();
                cri.remove(&id).await.unwrap();
                (status.exit_code, status.reason)
            });
        }
        while let Some(ended) = set.join_next().await {
            assert_eq!(ended.unwrap(), (137, "OOMKilled".to_owned()), "round {round}");
        }
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
