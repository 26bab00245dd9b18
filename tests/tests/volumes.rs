//! Image volumes: an image's files in a container of another, as the container and the kernel see them.

use cofferdam_proto::cri::{self, NamespaceMode};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::artifact;
use cofferdam_tests::fixtures::image::{Built, Image};
use cofferdam_tests::fixtures::layer::{Kind, Layer};
use cofferdam_tests::harness::{Node, Pod};
use tonic::Code;

const INSIDE: &str = "/mnt/volume";

/// Two layers: the upper one changes and removes what the lower one brings; links lead out, up and around.
async fn data_image(node: &Node) -> String {
    let lower = Layer::new()
        .dir("etc")
        .file("etc/kept", "kept")
        .file("etc/gone", "gone")
        .file("etc/changed", "old")
        .dir("owned")
        .file("owned/by-web", "w")
        .owned(1000, 1000);
    let upper = Layer::new()
        .whiteout("etc/gone")
        .file("etc/changed", "new")
        .script("tool", "#!/bin/sh\necho tool runs\n")
        .symlink("inside", "/etc")
        .symlink("outside", "../../../../../../etc")
        .symlink("loop", "loop");
    let image = Image::new().layer(lower).layer(upper).build().unwrap();
    let reference = node.registry.push("data", "1", &image);
    node.cri.pull(&reference, None).await.unwrap();
    reference
}

fn volume(image: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: INSIDE.into(),
        readonly: true,
        image: Some(build::image(image)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

fn with(mount: cri::Mount, image: &str, script: &str) -> cri::ContainerConfig {
    let mut config = build::shell("main", image, script);
    config.mounts = vec![mount];
    config
}

async fn refused(node: &Node, pod: &Pod, config: cri::ContainerConfig) -> tonic::Status {
    node.cri.create(&pod.id, &pod.config, config).await.expect_err("it was created")
}

#[tokio::test]
async fn an_images_files_are_there_read_only_and_run() {
    let node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let pod = node.run_pod(&node.pod("volume")).await;
    let script = format!(
        "cd {INSIDE}; ls etc; cat etc/changed; echo; ./tool; touch etc/x 2>&1; touch x 2>&1; \
         grep ' {INSIDE} ' /proc/self/mountinfo | cut -d' ' -f6"
    );
    let output = node.output(&pod, with(volume(&data, ""), &base, &script)).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..4], ["changed", "kept", "new", "tool runs"]);
    assert!(lines[4].ends_with("Read-only file system") && lines[5].ends_with("Read-only file system"));
    let options: Vec<&str> = lines[6].split(',').collect();
    assert!(
        options.contains(&"ro") && options.contains(&"nodev") && !options.contains(&"noexec"),
        "{options:?}"
    );
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_sub_path_is_found_inside_the_image() {
    let node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let pod = node.run_pod(&node.pod("sub")).await;
    // The links lead to /etc of the image, never to the node's or the container's.
    for (name, sub_path) in [("a", "etc"), ("b", "inside"), ("c", "outside"), ("d", "./etc/")] {
        let mut config = build::shell(name, &base, &format!("ls {INSIDE}"));
        config.mounts = vec![volume(&data, sub_path)];
        assert_eq!(node.output(&pod, config).await, "changed\nkept\n", "{sub_path}");
    }
    for (sub_path, code) in [
        ("absent", Code::NotFound),
        ("etc/kept", Code::NotFound),
        ("loop", Code::NotFound),
        ("/etc", Code::InvalidArgument),
        ("../etc", Code::InvalidArgument),
    ] {
        let status = refused(&node, &pod, with(volume(&data, sub_path), &base, "true")).await;
        assert_eq!(status.code(), code, "{sub_path}: {status}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_status_says_which_image_it_is() {
    let mut node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let id_of = node.cri.image_status(&data).await.unwrap().unwrap().id;
    let pod = node.run_pod(&node.pod("status")).await;
    let id = node.run_container(&pod, with(volume(&data, "etc"), &base, "sleep 1000")).await;
    let told = async |node: &Node| node.cri.status(&id).await.unwrap().mounts;
    let mounts = told(&node).await;
    assert_eq!(mounts[0].image.as_ref().unwrap().image_ref, id_of);
    assert_eq!(mounts[0].image.as_ref().unwrap().image, data);
    assert_eq!((mounts[0].host_path.as_str(), mounts[0].image_sub_path.as_str()), ("", "etc"));
    node.restart().await;
    assert_eq!(told(&node).await, mounts);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_image_may_go_while_it_is_mounted() {
    let mut node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let pod = node.run_pod(&node.pod("gone")).await;
    let id = node.run_container(&pod, with(volume(&data, ""), &base, "sleep 1000")).await;
    node.cri.remove_image(&data).await.unwrap();
    assert!(node.cri.image_status(&data).await.unwrap().is_none());
    let read = async |node: &Node| {
        let output = node.cri.exec_sync(&id, &["cat", &format!("{INSIDE}/etc/kept")], 10).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(read(&node).await, "kept");
    // The sweep at the next start leaves its layers alone, too.
    node.restart().await;
    assert_eq!(read(&node).await, "kept");
    let status = refused(&node, &pod, with(volume(&data, ""), &base, "true")).await;
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let mut other = with(volume(&data, ""), &base, "true");
    other.metadata.as_mut().unwrap().attempt = 1;
    let status = refused(&node, &pod, other).await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    node.cri.remove(&id).await.unwrap();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn contradictions_are_refused_and_leave_nothing() {
    let node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let pod = node.run_pod(&node.pod("refused")).await;
    let good = || volume(&data, "");
    let propagation = cri::MountPropagation::PropagationHostToContainer.into();
    for (mount, code) in [
        (cri::Mount { readonly: false, ..good() }, Code::InvalidArgument),
        (cri::Mount { host_path: "/tmp".into(), ..good() }, Code::InvalidArgument),
        (cri::Mount { propagation, ..good() }, Code::InvalidArgument),
        (cri::Mount { image: Some(build::image("")), ..good() }, Code::InvalidArgument),
        (volume("docker.io/library/absent:1", ""), Code::NotFound),
    ] {
        let status = refused(&node, &pod, with(mount.clone(), &base, "true")).await;
        assert_eq!(status.code(), code, "{mount:?}: {status}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_sees_its_own_owners() {
    let node = Node::start().await;
    let (base, data) = (node.base_image().await, data_image(&node).await);
    let single = Image::new().layer(Layer::new().dir("d").file("d/f", "f")).build().unwrap();
    let single = node.registry.push("single", "1", &single);
    node.cri.pull(&single, None).await.unwrap();
    let ids = vec![cri::IdMapping { host_id: 300_000, container_id: 0, length: 65_536 }];
    let mut config = node.pod("users");
    let options = build::pod_security(&mut config).namespace_options.get_or_insert_default();
    let mode = NamespaceMode::Pod.into();
    options.userns_options = Some(cri::UserNamespace { mode, uids: ids.clone(), gids: ids.clone() });
    let pod = node.run_pod(&config).await;
    let mapped = |image: &str, sub_path: &str, place: &str| cri::Mount {
        container_path: place.into(),
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..volume(image, sub_path)
    };
    let script = "stat -c '%u:%g' /a/owned/by-web /a/etc/changed /b/f; touch /a/x /b/x; ls /a/etc";
    let mut config = build::shell("main", &base, script);
    config.mounts = vec![mapped(&data, "", "/a"), mapped(&single, "d", "/b")];
    assert_eq!(node.output(&pod, config).await, "1000:1000\n0:0\n0:0\nchanged\nkept\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_directory_that_a_layer_only_implies_keeps_its_rights() {
    let node = Node::start().await;
    let base = node.base_image().await;
    let lower = Layer::new().entry("private", Kind::Dir, 0o711).file("private/old", "old");
    let upper = Layer::new().file("private/new", "new");
    let image = Image::new().layer(lower).layer(upper).build().unwrap();
    let reference = node.registry.push("implied", "1", &image);
    node.cri.pull(&reference, None).await.unwrap();
    let pod = node.run_pod(&node.pod("implied")).await;
    let script = format!("cd {INSIDE}; stat -c %a private; cat private/old private/new");
    let output = node.output(&pod, with(volume(&reference, ""), &base, &script)).await;
    assert_eq!(output, "711\noldnew");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

fn artifact(files: &[(Option<&str>, &str)]) -> Built {
    artifact::artifact(files).unwrap()
}

#[tokio::test]
async fn an_artifacts_files_are_pulled_listed_mounted_and_removed() {
    let mut node = Node::start().await;
    let base = node.base_image().await;
    let long = format!("deep/{}/file", "n".repeat(200));
    let large = "x".repeat(600_000);
    let files = [
        (Some("model.bin"), "weights"),
        (Some(&*long), "deep"),
        (None, "untitled"),
        (Some("big"), &large),
        // A compressed file is its own bytes: nobody unpacks it.
        (Some("docs.tar.bz2"), "BZh91AY&SY"),
    ];
    let built = artifact(&files);
    let untitled = built.layers[2].digest.trim_start_matches("sha256:").to_owned();
    let reference = node.registry.push("model", "1", &built);
    let id = node.cri.pull(&reference, None).await.unwrap();
    assert_eq!(id, built.manifest.digest);
    let listed = node.cri.image_status(&reference).await.unwrap().unwrap();
    let size: usize = files.iter().map(|(_, text)| text.len()).sum::<usize>() + built.manifest.data.len() + 2;
    assert_eq!((listed.id, listed.size), (id.clone(), size as u64));
    // A second one with the same, empty configuration is another image.
    let other = node.registry.push("model", "2", &artifact(&[(Some("model.bin"), "others")]));
    assert_ne!(node.cri.pull(&other, None).await.unwrap(), id);
    assert_eq!(node.cri.list_images().await.unwrap().len(), 3);
    node.restart().await;

    let pod = node.run_pod(&node.pod("artifact")).await;
    let script = format!(
        "cd {INSIDE}; cat model.bin {long} {untitled} docs.tar.bz2; echo; wc -c < big; stat -c '%u:%g %a' model.bin; \
         (echo x > model.bin) 2>/dev/null || echo read-only"
    );
    let output = node.output(&pod, with(volume(&reference, ""), &base, &script)).await;
    assert_eq!(output, "weightsdeepuntitledBZh91AY&SY\n600000\n0:0 644\nread-only\n");
    let mut config = build::shell("sub", &base, &format!("ls {INSIDE}"));
    config.mounts = vec![volume(&reference, "deep")];
    assert_eq!(node.output(&pod, config).await, format!("{}\n", "n".repeat(200)));
    // There is nothing to run in it.
    let status = refused(&node, &pod, build::container("run", &reference, &["true"])).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("artifact"), "{status}");
    node.cri.remove_image(&reference).await.unwrap();
    assert!(node.cri.image_status(&reference).await.unwrap().is_none());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_artifact_whose_names_lead_out_is_refused_and_leaves_nothing() {
    let node = Node::start().await;
    for (tag, name) in [("1", "../escape"), ("2", "/absolute"), ("3", "a/../../b"), ("4", ".wh.x")] {
        let reference = node.registry.push("hostile", tag, &artifact(&[(Some(name), "x")]));
        let status = node.cri.pull(&reference, None).await.unwrap_err();
        assert!(status.message().contains("no plain relative path"), "{status}");
    }
    let twice = artifact(&[(Some("a"), "1"), (Some("a"), "2")]);
    let status = node.cri.pull(&node.registry.push("hostile", "5", &twice), None).await.unwrap_err();
    assert!(status.message().contains("same place"), "{status}");
    assert!(node.cri.list_images().await.unwrap().is_empty());
    node.assert_clean().await;
}
