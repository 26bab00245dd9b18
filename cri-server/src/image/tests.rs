//! Pulls from a registry of the test's own, imports and exports. They unpack, so they need root.

mod fixtures;

use std::os::fd::AsFd;

use cofferdam_tests::harness::Registry as TestRegistry;

use super::*;
use crate::registry::{Credentials, RegistryError};
use crate::snapshot::read_in_root;

struct Node {
    root: tempfile::TempDir,
    service: Arc<ImageService>,
    store: Arc<Store>,
}

impl Node {
    /// A node for which docker.io is `registry`.
    fn new(registry: &TestRegistry, config: Config) -> Self {
        let root = tempfile::tempdir().unwrap();
        registry.announce(&root.path().join("certs.d"), "docker.io");
        Self::at(root, config)
    }

    /// A node that pulls nothing.
    fn without_registry() -> Self {
        Self::at(tempfile::tempdir().unwrap(), Config::default())
    }

    fn at(root: tempfile::TempDir, config: Config) -> Self {
        let store = Store::open(&root.path().join("metadata.redb"), false).unwrap();
        let config = Config { registry_config: root.path().join("certs.d"), ..config };
        let service = ImageService::open(root.path(), config, store.clone(), Arc::default()).unwrap();
        Self { root, service, store }
    }

    async fn reopen(&mut self) {
        let config = self.service.config.clone();
        let opened = ImageService::open(self.root.path(), config, self.store.clone(), Arc::default());
        self.service = opened.unwrap();
        assert_eq!(self.service.sweep().await, Vec::<String>::new());
    }

    async fn pull(&self, name: &str) -> PullResult {
        self.service.pull(name, Credentials::anonymous()).await
    }

    fn read(&self, image: &ImageRecord, path: &str) -> Option<Vec<u8>> {
        let view = self.service.snapshots().view(&image.diff_ids()).unwrap();
        read_in_root(view.as_fd(), path, 8 << 20).unwrap()
    }

    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.root.path().join(folder)).unwrap().count()
    }

    fn has_scratch(&self) -> bool {
        let layers = std::fs::read_dir(self.root.path().join("layers")).unwrap();
        let mut names = layers.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with("tmp-")) || self.count("content/ingest") > 0
    }
}

#[tokio::test]
async fn privileged_fixture_images_are_pulled_whole() {
    let registry = fixtures::registry_with(&fixtures::SOUND);
    let mut node = Node::new(&registry, Config::default());
    for name in fixtures::SOUND {
        let reference = format!("docker.io/fixtures/{name}:1");
        let image =
            node.pull(&reference).await.unwrap_or_else(|e| panic!("{name}: {}", crate::registry::chain(&*e)));
        assert_eq!(image.repo_tags.join(" "), reference);
        assert_eq!(node.service.find(&reference).unwrap().id, image.id);
        assert_eq!(node.service.find(image.id.as_str()).unwrap().id, image.id);
        assert_eq!(node.service.find(&image.id.hex()[..12]).unwrap().id, image.id);
        assert_eq!(node.service.find(&image.repo_digests[0]).unwrap().id, image.id);
        let shell = node.read(&image, "/bin/sh");
        assert!(shell.is_some() || node.read(&image, "/bin/busybox").is_some(), "{name}");
    }
    let whiteouts = node.service.find("fixtures/whiteouts:1").unwrap();
    assert_eq!(node.read(&whiteouts, "/data/keep").unwrap(), b"changed");
    for gone in ["/data/gone", "/dir/b", "/tree", "/opaque/old", "/again/old", "/data/own"] {
        assert_eq!(node.read(&whiteouts, gone), None, "{gone}");
    }
    for there in ["/dir/a", "/opaque/new", "/was-file/inside", "/was-dir", "/was-link/own", "/again/fresh"] {
        assert!(node.read(&whiteouts, there).is_some(), "{there}");
    }
    for name in ["multiarch", "schema2-list"] {
        let chosen = node.service.find(&format!("fixtures/{name}:1")).unwrap();
        assert_eq!(node.read(&chosen, "/arch").unwrap(), platform::host().architecture.as_bytes(), "{name}");
    }
    let attributes = node.service.find("fixtures/attributes:1").unwrap();
    assert_eq!(node.read(&attributes, "/attr/link").unwrap(), b"one");
    assert_eq!(node.read(&attributes, "/attr/second").unwrap(), b"one");
    let config = node.service.find("fixtures/config:1").unwrap();
    assert_eq!(config.user(), ImageUser::Name("app".to_owned()));
    assert_eq!((config.config.stop_signal.as_str(), config.config.volumes.len()), ("SIGUSR1", 1));
    assert!(node.service.oci_config(&config).unwrap()["config"]["Labels"]["org.example.label"] == "value");

    let before = node.service.list();
    node.reopen().await;
    assert_eq!(before, node.service.list());
    let usage = node.service.disk_usage().await.unwrap();
    assert!(usage.images.bytes > 1 << 20 && usage.images.inodes > 100);
    for image in before {
        node.service.remove(image.id.as_str()).await.unwrap();
        node.service.remove(image.id.as_str()).await.unwrap();
    }
    assert_eq!((node.count("layers"), node.count("l"), node.count("content/blobs/sha256")), (0, 0, 0));
    assert!(!node.has_scratch());
}

#[tokio::test]
async fn privileged_what_is_no_image_for_us_is_refused_and_leaves_nothing() {
    let registry = fixtures::registry_with(&["bad-diffid", "other-arch-only", "whiteouts"]);
    let node = Node::new(&registry, Config::default());
    for (name, expected) in [
        ("fixtures/bad-diffid:1", "diff id"),
        ("fixtures/other-arch-only:1", "has no image for linux/"),
        ("fixtures/no-such-image:1", "not found"),
        (
            "fixtures/whiteouts@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "not found",
        ),
        ("Not A Name", "invalid image reference"),
    ] {
        let error = node.pull(name).await.unwrap_err();
        let text = crate::registry::chain(&*error);
        assert!(text.contains(expected), "{name}: {text}");
    }
    assert!(node.service.list().is_empty() && !node.has_scratch());
    assert_eq!((node.count("layers"), node.count("content/blobs/sha256")), (0, 0));
    let unreachable = node.pull("127.0.0.1:1/x:1").await.unwrap_err();
    assert!(
        matches!(&*unreachable, ImageError::Registry { source, .. } if matches!(source.decisive(), RegistryError::Unreachable { .. }))
    );
}

#[tokio::test]
async fn privileged_hostile_paths_end_inside_the_layer() {
    let registry = fixtures::registry_with(&["escape"]);
    let node = Node::new(&registry, Config::default());
    let image = node.pull("fixtures/escape:1").await.unwrap();
    for name in ["symlink", "dotdot", "up"] {
        let name = format!("/tmp/fixtures-escaped-{name}");
        assert!(!Path::new(&name).exists());
        assert_eq!(node.read(&image, &name).unwrap(), b"x");
    }
}

#[tokio::test]
async fn privileged_pulls_are_joined_and_outlive_their_callers() {
    let registry = fixtures::registry_with(&["many-layers", "zstd", "config"]);
    let node = Node::new(&registry, Config::default());
    let start = || node.service.start_pull("fixtures/many-layers:1", Credentials::anonymous()).unwrap();
    let other = node.service.start_pull("fixtures/many-layers:1", Credentials::password("a", "b")).unwrap();
    let (first, second) = (start(), start());
    assert_eq!(node.service.flights.lock().unwrap().len(), 2, "same image and login: one pull");
    let mut progress = first.progress.clone();
    drop(first);
    let image = second.finish().await.unwrap();
    assert_eq!(other.finish().await.unwrap().id, image.id);
    let layers = progress.borrow_and_update().clone();
    assert_eq!(layers.len(), image.layers.len());
    assert!(
        layers
            .iter()
            .all(|l| matches!(l.stage, LayerStage::Done | LayerStage::Present) && l.received == l.total)
    );
    let abandoned = node.service.start_pull("fixtures/zstd:1", Credentials::anonymous()).unwrap();
    drop(abandoned);
    node.service.close().await;
    assert!(node.service.find("fixtures/zstd:1").is_ok());
    assert!(node.service.start_pull("fixtures/config:1", Credentials::anonymous()).is_err(), "closed");
}

#[tokio::test]
async fn privileged_an_image_that_lost_a_layer_is_pulled_again() {
    let registry = fixtures::registry_with(&["whiteouts"]);
    let mut node = Node::new(&registry, Config::default());
    let image = node.pull("fixtures/whiteouts:1").await.unwrap();
    std::fs::remove_dir_all(node.root.path().join("layers").join(image.layers[1].diff_id.hex())).unwrap();
    std::fs::create_dir_all(node.root.path().join("layers/tmp-3/fs/half")).unwrap();
    std::fs::write(node.root.path().join("content/ingest/9"), "half").unwrap();
    node.reopen().await;
    assert!(!node.has_scratch());
    assert!(matches!(node.service.find("fixtures/whiteouts:1"), Err(ImageError::NotFound(_))));
    let again = node.pull("fixtures/whiteouts:1").await.unwrap();
    assert_eq!((again.id.clone(), &again.repo_tags), (image.id.clone(), &image.repo_tags));
    // A blob that rotted on disk is fetched again when its layer is needed.
    std::fs::remove_dir_all(node.root.path().join("layers").join(image.layers[1].diff_id.hex())).unwrap();
    let blob = node.root.path().join("content/blobs/sha256").join(image.layers[1].blob.hex());
    std::fs::write(&blob, "rotten").unwrap();
    node.reopen().await;
    node.pull("fixtures/whiteouts:1").await.unwrap();
    assert_eq!(std::fs::metadata(&blob).unwrap().len(), image.layers[1].size);
}

#[tokio::test]
async fn privileged_no_record_on_disk_names_a_part_that_is_still_to_come() {
    let registry = fixtures::registry_with(&["whiteouts", "zstd"]);
    let mut node = Node::new(&registry, Config::default());
    let image = node.pull("fixtures/whiteouts:1").await.unwrap();
    let other = node.pull("fixtures/zstd:1").await.unwrap();
    let stored = |node: &Node| -> Vec<String> {
        node.store.load::<ImageRecord>(Table::Images).unwrap().into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(stored(&node).len(), 2);
    let lost = image.layers.iter().find(|l| !other.diff_ids().contains(&l.diff_id)).unwrap();
    std::fs::remove_dir_all(node.root.path().join("layers").join(lost.diff_id.hex())).unwrap();
    node.reopen().await;
    node.service.disown_missing(&image.layers).await.unwrap();
    assert_eq!(
        stored(&node),
        [other.id.to_string()],
        "a power cut now would leave a record of half an image"
    );
    let again = node.pull("fixtures/whiteouts:1").await.unwrap();
    assert_eq!((&again.id, &again.repo_tags), (&image.id, &image.repo_tags));
    assert_eq!(stored(&node).len(), 2);
}

#[tokio::test]
async fn privileged_pinned_images_stay_and_tags_move() {
    let registry = fixtures::registry_with(&["config", "zstd"]);
    let pinned = vec!["docker.io/fixtures/config:1".to_owned()];
    let node = Node::new(&registry, Config { pinned, ..Config::default() });
    let config = node.pull("fixtures/config:1").await.unwrap();
    assert!(config.pinned);
    let refused = node.service.remove("fixtures/config:1").await.unwrap_err();
    assert!(matches!(*refused, ImageError::Pinned(_)));
    let zstd = node.pull("fixtures/zstd:1").await.unwrap();
    let stolen = ImageRecord {
        repo_tags: config.repo_tags.clone(),
        repo_digests: Vec::new(),
        ..ImageRecord::clone(&zstd)
    };
    node.service.record(stolen).await.unwrap();
    assert_eq!(node.service.find("fixtures/config:1").unwrap().id, zstd.id);
    let old = node.service.find(config.id.as_str()).unwrap();
    assert!(old.repo_tags.is_empty() && !old.pinned);
    node.service.remove(&config.repo_digests[0]).await.unwrap();
    assert_eq!(node.service.list().len(), 1);
}

#[tokio::test]
async fn privileged_bounds_of_the_configuration_hold() {
    let registry = fixtures::registry_with(&["config", "many-layers"]);
    let node = Node::new(&registry, Config { max_layer_bytes: 1000, ..Config::default() });
    let text = crate::registry::chain(&*node.pull("fixtures/config:1").await.unwrap_err());
    assert!(text.contains("limit of 1000 unpacked bytes"), "{text}");
    let node = Node::new(&registry, Config { max_layers: 3, ..Config::default() });
    let text = crate::registry::chain(&*node.pull("fixtures/many-layers:1").await.unwrap_err());
    assert!(text.contains("more than the 3 allowed"), "{text}");
    assert!(!node.has_scratch());
}

fn digests(folder: &Path) -> std::collections::BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn privileged_exports_come_back_byte_for_byte() {
    let registry = fixtures::registry_with(&["whiteouts", "schema2", "zstd"]);
    let node = Node::new(&registry, Config::default());
    let names =
        ["docker.io/fixtures/whiteouts:1", "docker.io/fixtures/schema2:1", "docker.io/fixtures/zstd:1"];
    for name in names {
        node.pull(name).await.unwrap();
    }
    // A second tag on one of them.
    let twin = node.service.find(names[0]).unwrap();
    let twin = ImageRecord { repo_tags: vec!["example.com/twin:2".to_owned()], ..ImageRecord::clone(&twin) };
    let twin = node.service.record(twin).await.unwrap();
    assert_eq!(twin.repo_tags.len(), 2);
    let archive = node.root.path().join("images.tar");
    let wanted = [twin.id.to_string(), names[1].to_owned(), names[2].to_owned()];
    let size = node.service.export(&archive, &wanted).await.unwrap();
    assert_eq!(size, std::fs::metadata(&archive).unwrap().len());

    let zipped = node.root.path().join("images.tar.zst");
    std::fs::write(&zipped, zstd::encode_all(std::fs::File::open(&archive).unwrap(), 1).unwrap()).unwrap();
    for file in [&archive, &zipped] {
        let other = Node::new(&registry, Config::default());
        let images = other.service.import(file).await.unwrap();
        assert_eq!(images.len(), 3);
        assert_eq!(other.service.find("example.com/twin:2").unwrap().id, twin.id);
        for name in names {
            let (here, there) = (node.service.find(name).unwrap(), other.service.find(name).unwrap());
            assert_eq!((&here.id, &here.manifest, &here.layers), (&there.id, &there.manifest, &there.layers));
        }
        let blobs = |node: &Node| digests(&node.root.path().join("content/blobs/sha256"));
        assert_eq!(blobs(&node), blobs(&other));
        assert!(!other.has_scratch());
    }
    let missing = node.service.export(&node.root.path().join("x.tar"), &["nothing:1".to_owned()]).await;
    assert!(matches!(missing, Err(ImageError::NotFound(_))) && !node.root.path().join("x.tar").exists());
}

#[tokio::test]
async fn privileged_old_docker_archives_are_imported() {
    let node = Node::without_registry();
    let mut inner = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    for set in
        [tar::Header::set_uid as fn(&mut tar::Header, u64), tar::Header::set_gid, tar::Header::set_mtime]
    {
        set(&mut header, 0);
    }
    inner.append_data(&mut header, "hello", b"world".as_slice()).unwrap();
    let layer = inner.into_inner().unwrap();
    let platform = platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": "linux", "config": { "User": "7", "Cmd": null },
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&layer), Digest::sha256(&layer)] },
    })
    .to_string();
    let manifest = serde_json::json!([{
        "Config": "abc.json", "RepoTags": ["old:1", "localhost:5000/old:2"], "Layers": ["one/layer.tar", "two/layer.tar"],
    }])
    .to_string();
    let mut outer = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        header.set_size(bytes.len() as u64);
        outer.append_data(&mut header.clone(), name, bytes).unwrap();
    };
    add("one/layer.tar", &layer);
    add("abc.json", config.as_bytes());
    add("manifest.json", manifest.as_bytes());
    let mut link = header.clone();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    outer.append_link(&mut link, "two/layer.tar", "../one/layer.tar").unwrap();
    let archive = node.root.path().join("old.tar");
    std::fs::write(&archive, outer.into_inner().unwrap()).unwrap();

    let images = node.service.import(&archive).await.unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/old:1", "localhost:5000/old:2"]);
    assert_eq!(
        (images[0].id.clone(), images[0].user()),
        (Digest::sha256(config.as_bytes()), ImageUser::Uid(7))
    );
    assert_eq!(node.read(&images[0], "hello").unwrap(), b"world");

    for (bytes, expected) in [
        (b"not an archive, but long enough to look at".repeat(30), "checksum"),
        (vec![0u8; 1024], "neither index.json nor manifest.json"),
    ] {
        std::fs::write(&archive, bytes).unwrap();
        let text = node.service.import(&archive).await.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(node.service.list().len(), 1);
    assert!(!node.has_scratch());
}

#[tokio::test]
async fn privileged_a_full_disk_is_told_and_leaves_nothing() {
    let registry = fixtures::registry_with(&["whiteouts"]);
    let root = tempfile::tempdir().unwrap();
    let small = root.path().join("small");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount("tmpfs", &small, "tmpfs", rustix::mount::MountFlags::empty(), c"size=2m").unwrap();
    let outcome = async {
        registry.announce(root.path(), "docker.io");
        let store = Store::open(&root.path().join("metadata.redb"), false).unwrap();
        let config = Config { registry_config: root.path().to_owned(), ..Config::default() };
        let service = ImageService::open(&small, config, store, Arc::default()).unwrap();
        let error = service.pull("fixtures/whiteouts:1", Credentials::anonymous()).await.unwrap_err();
        let count = |folder: &str| std::fs::read_dir(small.join(folder)).unwrap().count();
        (
            error,
            [count("layers"), count("content/ingest"), count("content/blobs/sha256")],
            service.list().len(),
        )
    }
    .await;
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    let (error, left, images) = outcome;
    assert!(error.is_disk_full(), "{}", crate::registry::chain(&*error));
    assert_eq!((left, images), ([0, 0, 0], 0));
}

#[tokio::test]
async fn privileged_an_image_cannot_pass_off_another_ones_layer_as_its_own() {
    let registry = fixtures::registry_with(&["config", "zstd", "borrowed"]);
    for honest_first in [true, false] {
        let mut node = Node::new(&registry, Config::default());
        let victim = node.pull("fixtures/zstd:1").await.unwrap();
        if honest_first {
            // Its blobs are the borrower's as well, so all parts are here, but not as pairs.
            node.pull("fixtures/honest:1").await.unwrap();
        }
        let error = node.pull("fixtures/borrowed:1").await.unwrap_err();
        let text = crate::registry::chain(&*error);
        assert!(text.contains("diff id"), "{text}");
        assert_eq!(node.service.list().len(), if honest_first { 2 } else { 1 });
        assert!(node.read(&victim, "name").is_some() && !node.has_scratch());
        // What was seen once is known after a restart as well.
        node.reopen().await;
        let pull = node.service.start_pull("fixtures/zstd:1", Credentials::anonymous()).unwrap();
        let progress = pull.progress.clone();
        pull.finish().await.unwrap();
        assert!(progress.borrow().iter().all(|layer| layer.stage == LayerStage::Present));
    }
}

#[tokio::test]
async fn privileged_the_bytes_of_a_removed_image_go_while_nobody_waits() {
    let registry = fixtures::registry_with(&["many-layers"]);
    let node = Node::new(&registry, Config::default());
    let image = node.pull("fixtures/many-layers:1").await.unwrap();
    assert!(node.service.forget(image.id.as_str()).await.unwrap());
    node.service.sweep_waiting(std::time::Duration::ZERO).await;
    let names = std::fs::read_dir(node.root.path().join("layers")).unwrap();
    assert!(names.flatten().all(|e| e.file_name().to_string_lossy().starts_with("tmp-")));
    assert_eq!((node.count("l"), node.count("content/blobs/sha256")), (0, 0));
    assert_eq!(node.service.disk_usage().await.unwrap().images, crate::snapshot::Usage::default());
    node.service.close().await;
    assert_eq!(node.count("layers"), 0);
    assert!(!node.has_scratch());
}
