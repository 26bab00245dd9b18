//! Images made to break out: whatever the answer is, nothing outside the image's own tree is written, linked or removed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::Image;
use cofferdam_tests::fixtures::layer::{Kind, Layer};
use cofferdam_tests::harness::Node;

/// The layers of the attacks. `outside` is a folder of the host with a file `canary`.
fn attacks(outside: &str) -> Vec<(&'static str, Vec<Layer>)> {
    let up = "../".repeat(12);
    let relative = outside.trim_start_matches('/');
    let door = || Layer::new().symlink("door", outside);
    vec![
        ("dotdot", vec![Layer::new().file(&format!("{up}{relative}/written"), "x")]),
        ("absolute", vec![Layer::new().file(&format!("{outside}/written"), "x")]),
        ("through-link", vec![door().file("door/written", "x")]),
        ("through-lower-link", vec![door(), Layer::new().file("door/written", "x")]),
        (
            "relative-link",
            vec![Layer::new().symlink("door", &format!("{up}{relative}")).file("door/written", "x")],
        ),
        ("whiteout", vec![door(), Layer::new().whiteout("door/canary")]),
        ("opaque", vec![door(), Layer::new().file("door/.wh..wh..opq", "")]),
        ("whiteout-up", vec![Layer::new().file(".wh...", "")]),
        ("hardlink", vec![Layer::new().hardlink("stolen", &format!("{outside}/canary"))]),
        ("hardlink-up", vec![Layer::new().hardlink("stolen", &format!("{up}{relative}/canary"))]),
        ("hardlink-through-link", vec![door().hardlink("stolen", "door/canary")]),
        ("overwrite", vec![Layer::new().symlink("canary", &format!("{outside}/canary")).file("canary", "x")]),
        ("directory", vec![door().entry("door", Kind::Dir, 0o777).entry("door/written", Kind::Dir, 0o777)]),
        ("device-through-link", vec![door().entry("door/written", Kind::Char { major: 1, minor: 1 }, 0o666)]),
    ]
}

#[tokio::test]
async fn nothing_leaves_the_images_own_tree() {
    let node = Node::start().await;
    let outside = node.dir().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let canary = outside.join("canary");
    std::fs::write(&canary, "sings").unwrap();
    for (name, layers) in attacks(&outside.display().to_string()) {
        let mut image = Image::new();
        for layer in layers {
            image = image.layer(layer);
        }
        let reference = node.registry.push("hostile", name, &image.build().unwrap());
        // Refused or contained: both are right.
        let pulled = node.cri.pull(&reference, None).await;
        check(&outside, &canary, name);
        if pulled.is_ok() {
            node.cri.remove_image(&reference).await.unwrap();
            check(&outside, &canary, name);
        }
    }
    // The runtime is well afterwards.
    let reference = node.registry.push("honest", "1", &catalog::base().unwrap());
    node.cri.pull(&reference, None).await.unwrap();
    node.cri.remove_image(&reference).await.unwrap();
    node.assert_clean().await;
}

fn check(outside: &Path, canary: &Path, attack: &str) {
    let names: Vec<_> =
        std::fs::read_dir(outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["canary"], "{attack} got out");
    assert_eq!(std::fs::read_to_string(canary).unwrap(), "sings", "{attack} wrote to the host's file");
    assert_eq!(std::fs::metadata(canary).unwrap().nlink(), 1, "{attack} linked the host's file");
}

#[tokio::test]
async fn a_container_of_an_image_with_linked_system_folders_stays_inside() {
    let node = Node::start().await;
    let outside = node.dir().join("outside");
    for folder in ["etc", "dev", "proc"] {
        std::fs::create_dir_all(outside.join(folder)).unwrap();
    }
    let link = outside.display().to_string();
    // The runtime writes /etc/hosts and the like and mounts below /dev: through these links they would be the host's.
    let layer = Layer::new().entry("bin", Kind::Dir, 0o755).whiteout("etc").whiteout("dev");
    let links = Layer::new().symlink("etc", &format!("{link}/etc")).symlink("dev", &format!("{link}/dev"));
    let image = Image::new().layer(catalog::base_layer().unwrap()).layer(layer).layer(links);
    let reference = node.registry.push("linked", "1", &image.build().unwrap());
    node.cri.pull(&reference, None).await.unwrap();
    let pod = node.run_pod(&node.pod("linked")).await;
    let config = cofferdam_tests::client::build::container("main", &reference, &["/bin/true"]);
    if let Ok(id) = node.cri.create(&pod.id, &pod.config, config).await {
        // Whether it starts is the runtime's choice.
        let _ = node.cri.start(&id).await;
    }
    for folder in ["etc", "dev", "proc"] {
        let found = std::fs::read_dir(outside.join(folder)).unwrap().count();
        assert_eq!(found, 0, "something was made in the host's {folder}");
    }
    node.destroy(&pod).await;
    node.cri.remove_image(&reference).await.unwrap();
    node.assert_clean().await;
}
