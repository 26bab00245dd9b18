//! Volumes of pods in virtual machines, where mounts of the node lie in them: who sees which, and who can change them.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, MountPropagation as Propagation};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::eventually;
use cofferdam_tests::harness::microvm::{self, PATIENCE, SECONDS};
use nix::mount::{MntFlags, MsFlags};

/// A shared mount of the test's own; gone with it.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        nix::mount::mount(None::<&str>, at, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        fs::write(at.join("mark"), "here\n").unwrap();
        Self(at.to_owned())
    }

    fn is_there(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(&self.0))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn mounts_in_a_volume_are_shown_as_asked_and_stay_on_the_node() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let tree = node.dir().join("tree");
    let outer = Mounted::tmpfs(&tree);
    let inner = Mounted::tmpfs(&tree.join("inner"));
    fs::create_dir(tree.join("later")).unwrap();
    let pod = microvm::pod_in(&node, "volumes").await;
    let volume = |inside: &str| cri::Mount {
        host_path: tree.display().to_string(),
        container_path: inside.into(),
        ..Default::default()
    };
    let mut config = build::shell("main", &base, "exec sleep 1000");
    config.mounts = vec![
        volume("/private"),
        cri::Mount { propagation: Propagation::PropagationHostToContainer.into(), ..volume("/slave") },
        cri::Mount { readonly: true, ..volume("/ro") },
        cri::Mount { readonly: true, recursive_read_only: true, ..volume("/rro") },
    ];
    let main = node.run_container(&pod, config).await;
    let exec = async |script: &str| {
        let answer = node.cri.exec_sync(&main, &["sh", "-c", script], SECONDS).await.unwrap();
        String::from_utf8(answer.stdout).unwrap()
    };

    // Read-only is read-only here and below it, or here alone.
    let script = "for place in /private /private/inner /ro /ro/inner /rro /rro/inner; do \
                  echo $place $(cat $place/mark) $(touch $place/new 2>/dev/null && rm $place/new && echo writable); done";
    let expected = "/private here writable\n/private/inner here writable\n/ro here\n/ro/inner here writable\n\
                    /rro here\n/rro/inner here\n";
    assert_eq!(exec(script).await, expected);

    // What the node mounts later comes where that was asked for, and nowhere else.
    let later = Mounted::tmpfs(&tree.join("later"));
    let arrives = eventually(PATIENCE, async || exec("cat /slave/later/mark").await == "here\n");
    assert!(arrives.await, "{}", exec("ls -la /slave /slave/later").await);
    assert_eq!(exec("cat /private/later/mark").await, "");

    // A volume that gives mounts to the node has no meaning: it is refused, and the pod stands.
    let mut config = build::shell("spreading", &base, "true");
    config.mounts =
        vec![cri::Mount { propagation: Propagation::PropagationBidirectional.into(), ..volume("/open") }];
    let refused = match node.cri.create(&pod.id, &pod.config, config).await {
        Ok(id) => node.cri.start(&id).await.expect_err("it was started"),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("propagate mounts to the node"), "{refused:?}");

    node.cri.stop(&main, 0).await.unwrap();
    node.cri.remove(&main).await.unwrap();
    for mounted in [&outer, &inner, &later] {
        assert!(mounted.is_there(), "{} is gone from the node", mounted.0.display());
    }
    node.destroy(&pod).await;
    for mounted in [later, inner, outer] {
        assert!(mounted.is_there(), "{} is gone from the node", mounted.0.display());
    }
    node.assert_clean().await;
}
