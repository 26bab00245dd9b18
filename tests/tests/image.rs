//! Images: pulling in every way, listing, status, removal, and registries that fail.

use std::path::PathBuf;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::archive::{self, Form};
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Family, Image, Index, host_architecture};
use cofferdam_tests::fixtures::layer::{Compression, Layer};
use cofferdam_tests::harness::registry::{PASSWORD, USER};
use cofferdam_tests::harness::{Node, cli};

fn tiny(word: &str) -> Image {
    Image::new().layer(Layer::new().file("word", word))
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let node = Node::start().await;
    let built = tiny("by tag").build().unwrap();
    let reference = node.registry.push("tiny", "v1", &built);
    let id = node.cri.pull(&reference, None).await.unwrap();
    let image = node.cri.image_status(&reference).await.unwrap().expect("it is not there");
    assert_eq!(image.id, built.config.digest);
    assert_eq!(image.repo_tags, [reference.as_str()]);
    let by_digest = format!("{}/tiny@{}", node.registry.host(), built.manifest.digest);
    assert_eq!(image.repo_digests, [by_digest.as_str()]);
    assert!(image.size > 0 && !image.pinned);
    for name in [image.id.as_str(), &by_digest, &id, &image.id["sha256:".len()..]] {
        let same = node.cri.image_status(name).await.unwrap();
        assert_eq!(same.unwrap_or_else(|| panic!("{name} is not found")).id, image.id);
    }
    node.cri.remove_image(&reference).await.unwrap();
    assert!(node.cri.image_status(&reference).await.unwrap().is_none());

    node.cri.pull(&by_digest, None).await.unwrap();
    let image = node.cri.image_status(&by_digest).await.unwrap().unwrap();
    assert!(image.repo_tags.is_empty(), "a digest is no tag: {:?}", image.repo_tags);
    node.cri.remove_image(&image.id).await.unwrap();
    node.cri.remove_image(&image.id).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_short_name_is_docker_hubs() {
    let Some(node) = Node::builder().start().await else { return };
    node.registry.push("library/short", "latest", &tiny("short").build().unwrap());
    node.cri.pull("short", None).await.unwrap();
    let image = node.cri.image_status("short").await.unwrap().unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/short:latest"]);
    for same in ["short:latest", "library/short", "docker.io/library/short:latest"] {
        assert!(node.cri.image_status(same).await.unwrap().is_some(), "{same} is not found");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn all_media_types_and_compressions_run() {
    let node = Node::start().await;
    let pod = node.run_pod(&node.pod("media")).await;
    for (tag, family, how) in [
        ("oci-gzip", Family::Oci, Compression::Gzip),
        ("oci-zstd", Family::Oci, Compression::Zstd),
        ("oci-plain", Family::Oci, Compression::Plain),
        ("docker-gzip", Family::Docker, Compression::Gzip),
    ] {
        let word = Layer::new().file("word", format!("{tag}\n"));
        let image =
            Image::new().family(family).layer_as(catalog::base_layer().unwrap(), how).layer_as(word, how);
        let reference = node.registry.push("media", tag, &image.build().unwrap());
        node.cri.pull(&reference, None).await.unwrap_or_else(|status| panic!("{tag}: {status:?}"));
        let said = node.output(&pod, build::container(tag, &reference, &["/bin/cat", "/word"])).await;
        assert_eq!(said, format!("{tag}\n"));
    }
    node.destroy(&pod).await;
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_index_gives_this_machines_platform() {
    let node = Node::start().await;
    for (tag, family) in [("oci", Family::Oci), ("docker", Family::Docker)] {
        let mut mine = tiny("mine").family(family);
        mine.architecture = host_architecture().into();
        let mut other = tiny("other").family(family);
        other.architecture = "s390x".into();
        let mine = mine.build().unwrap();
        let index = Index::new(family, vec![other.build().unwrap(), mine.clone()]);
        let reference = node.registry.push_index("multi", tag, &index);
        node.cri.pull(&reference, None).await.unwrap();
        let image = node.cri.image_status(&reference).await.unwrap().unwrap();
        assert_eq!(image.id, mine.config.digest);
        // Both families share the configuration, so it is one image with a digest of each.
        assert!(
            image.repo_digests.iter().any(|name| name.ends_with(&index.blob.digest)),
            "{:?}",
            image.repo_digests
        );
    }
    let mut foreign = tiny("foreign");
    foreign.architecture = "s390x".into();
    let index = Index::new(Family::Oci, vec![foreign.build().unwrap()]);
    let reference = node.registry.push_index("multi", "foreign", &index);
    let refused = node.cri.pull(&reference, None).await.unwrap_err();
    let said = refused.message().to_lowercase();
    assert!(said.contains("platform") || said.contains(host_architecture()), "{refused:?}");
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn layers_stack_and_whiteouts_hide() {
    let node = Node::start().await;
    let lower = Layer::new().dir("d").file("d/gone", "1").file("d/kept", "2").dir("o").file("o/old", "3");
    let upper = Layer::new().whiteout("d/gone").file("d/kept", "changed").dir("o").file("o/.wh..wh..opq", "");
    let upper = upper.file("o/new", "4").hardlink("link", "o/new").symlink("soft", "d/kept");
    let image = Image::new().layer(catalog::base_layer().unwrap()).layer(lower).layer(upper);
    let reference = node.registry.push("stack", "1", &image.build().unwrap());
    node.cri.pull(&reference, None).await.unwrap();
    let pod = node.run_pod(&node.pod("stack")).await;
    let script = "ls -A /d /o; cat /soft; echo; stat -c %h /link";
    let said = node.output(&pod, build::shell("main", &reference, script)).await;
    assert_eq!(said, "/d:\nkept\n\n/o:\nnew\nchanged\n2\n");
    node.destroy(&pod).await;
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_images_user_is_told() {
    let node = Node::start().await;
    for (user, uid, name) in [("1000", Some(1000), ""), ("1000:7", Some(1000), ""), ("web", None, "web")] {
        let mut image = tiny(user);
        image.config.user = user.into();
        let reference = node.registry.push("user", &user.replace(':', "-"), &image.build().unwrap());
        node.cri.pull(&reference, None).await.unwrap();
        let image = node.cri.image_status(&reference).await.unwrap().unwrap();
        assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, name), "{user}");
    }
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_password_is_needed_and_checked() {
    let node = Node::start().await;
    node.registry.push("tiny", "secret", &tiny("secret").build().unwrap());
    let locked = node.registry.with_password();
    node.announce(&locked);
    let reference = format!("{}/tiny:secret", locked.host());
    let auth = |password: &str| {
        Some(cri::AuthConfig { username: USER.into(), password: password.into(), ..Default::default() })
    };
    for wrong in [None, auth("wrong")] {
        let refused = node.cri.pull(&reference, wrong).await.unwrap_err();
        assert!(!refused.message().contains("wrong"), "the message holds the password");
        let said = refused.message().to_lowercase();
        assert!(
            said.contains("401") || said.contains("authoriz") || said.contains("credential"),
            "{refused:?}"
        );
    }
    node.cri.pull(&reference, auth(PASSWORD)).await.unwrap();
    node.cri.remove_image(&reference).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn tls_is_trusted_only_with_the_registrys_own_ca() {
    let node = Node::start().await;
    node.registry.push("tiny", "tls", &tiny("tls").build().unwrap());
    let tls = node.registry.with_tls();
    let url = format!("https://{}", tls.address());
    let distrusted = format!("x{}", tls.host());
    node.write_hosts(&distrusted, &format!("server = \"{url}\"\n"));
    let refused = node.cri.pull(&format!("{distrusted}/tiny:tls"), None).await.unwrap_err();
    assert!(refused.message().to_lowercase().contains("certificate"), "{refused:?}");
    node.announce(&tls);
    let reference = format!("{}/tiny:tls", tls.host());
    node.cri.pull(&reference, None).await.unwrap();
    node.cri.remove_image(&reference).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_had_is_named() {
    let node = Node::start().await;
    let host = node.registry.host();
    let missing = node.cri.pull(&format!("{host}/no-such:tag"), None).await.unwrap_err();
    assert!(missing.message().contains("no-such"), "{missing:?}");
    let digest = format!("sha256:{}", "0".repeat(64));
    let wrong = node.cri.pull(&format!("{host}/no-such@{digest}"), None).await.unwrap_err();
    assert!(wrong.message().contains("no-such"), "{wrong:?}");
    let dead = format!("dead-{host}");
    node.write_hosts(&dead, "server = \"http://127.0.0.1:1\"\n");
    let unreachable = node.cri.pull(&format!("{dead}/x:1"), None).await.unwrap_err();
    assert!(unreachable.message().contains("127.0.0.1:1"), "{unreachable:?}");
    for nonsense in ["", "UPPER/case", "a b", "x@sha256:short"] {
        assert!(node.cri.pull(nonsense, None).await.is_err(), "{nonsense:?} was taken for a name");
    }
    assert!(node.cri.image_status(&format!("{host}/no-such:tag")).await.unwrap().is_none());
    node.assert_clean().await;
}

#[tokio::test]
async fn bytes_that_do_not_match_their_digest_are_refused() {
    let node = Node::start().await;
    let built = tiny("soon corrupt").build().unwrap();
    let reference = node.registry.push("corrupt", "1", &built);
    node.registry.corrupt(&built.layers[0].digest);
    let refused = node.cri.pull(&reference, None).await.unwrap_err();
    let said = refused.message();
    assert!(said.contains("digest") || said.contains(&built.layers[0].digest[7..19]), "{refused:?}");
    let mut liar = tiny("liar");
    liar.lie_about_diff_ids = true;
    let reference = node.registry.push("liar", "1", &liar.build().unwrap());
    assert!(node.cri.pull(&reference, None).await.is_err(), "a layer with a false diff id was taken");
    assert!(node.cri.image_status(&reference).await.unwrap().is_none());
    node.assert_clean().await;
}

#[tokio::test]
async fn pulls_of_one_image_join() {
    let node = Node::start().await;
    let reference = node.registry.push("joined", "1", &catalog::base().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (cri, reference) = (node.cri.clone(), reference.clone());
        tasks.spawn(async move { cri.pull(&reference, None).await.unwrap() });
    }
    let mut ids: Vec<String> = tasks.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_moved_tag_moves() {
    let node = Node::start().await;
    let reference = node.registry.push("moving", "latest", &tiny("old").build().unwrap());
    node.cri.pull(&reference, None).await.unwrap();
    let old = node.cri.image_status(&reference).await.unwrap().unwrap();
    let new = tiny("new").build().unwrap();
    node.registry.push("moving", "latest", &new);
    node.cri.pull(&reference, None).await.unwrap();
    assert_eq!(node.cri.image_status(&reference).await.unwrap().unwrap().id, new.config.digest);
    if let Some(left) = node.cri.image_status(&old.id).await.unwrap() {
        assert!(left.repo_tags.is_empty(), "the old image keeps the tag: {:?}", left.repo_tags);
        node.cri.remove_image(&old.id).await.unwrap();
    }
    remove_all(&node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn archives_are_imported_run_and_exported() {
    let Some(node) = Node::builder().start().await else { return };
    let built = catalog::base().unwrap();
    for (form, name) in [(Form::Oci, "archive.test/oci:1"), (Form::Docker, "archive.test/docker:1")] {
        let file = node.dir().join("image.tar");
        let names = vec![name.to_owned(), format!("{}also", name.trim_end_matches('1'))];
        archive::write(&file, form, &[(names.clone(), &built)]).unwrap();
        cli::cofferdam(&node, &["import", &file.display().to_string()]).await.expect_ok();
        for name in &names {
            assert!(node.cri.image_status(name).await.unwrap().is_some(), "{name} is not there");
        }
        let pod = node.run_pod(&node.pod("imported")).await;
        let said = node.output(&pod, build::container("main", name, &["/bin/echo", "imported"])).await;
        assert_eq!(said, "imported\n");
        node.destroy(&pod).await;
        let out: PathBuf = node.dir().join("out.tar");
        cli::cofferdam(&node, &["export", &out.display().to_string(), name]).await.expect_ok();
        remove_all(&node).await;
        cli::cofferdam(&node, &["import", &out.display().to_string()]).await.expect_ok();
        assert!(node.cri.image_status(name).await.unwrap().is_some(), "the export does not hold {name}");
        remove_all(&node).await;
    }
    let junk = node.dir().join("junk.tar");
    std::fs::write(&junk, b"this is no archive").unwrap();
    let refused = cli::cofferdam(&node, &["import", &junk.display().to_string()]).await;
    assert!(!refused.ok && !refused.stderr.is_empty(), "{refused:?}");
    node.assert_clean().await;
}

/// Removes the images that came from this node's registry or its archives.
async fn remove_all(node: &Node) {
    let host = node.registry.host();
    for image in node.cri.list_images().await.unwrap() {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        if node.daemon_pid().is_some() || names.into_iter().any(|name| name.starts_with(&host)) {
            node.cri.remove_image(&image.id).await.unwrap();
        }
    }
}
