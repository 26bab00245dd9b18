//! The images of the tests in here and the registry that holds them.
//!
//! Every test has a docker-registry of its own on a free loopback port, with the images that it names and no others; both
//! are gone with the test.

use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::fixtures::image::{Blob, Built, Config, Family, Image, Index, host_architecture};
use cofferdam_tests::fixtures::layer::{Compression, Kind, Layer};
use cofferdam_tests::harness::Registry;
use cofferdam_tests::harness::netns::Netns;
use serde_json::{Value, json};

/// Every image that a node pulls and runs from.
pub const SOUND: [&str; 9] = [
    "whiteouts",
    "attributes",
    "config",
    "uncompressed",
    "schema2",
    "zstd",
    "multiarch",
    "schema2-list",
    "many-layers",
];

enum Fixture {
    Image(Built),
    Index(Index),
}

/// A registry that holds `fixtures/NAME:1` for each of `names`.
pub fn registry_with(names: &[&str]) -> Registry {
    let registry = Registry::start(&Netns::machine());
    for name in names {
        let repository = format!("fixtures/{name}");
        if *name == "borrowed" {
            let (honest, borrowed) = borrowed();
            registry.push("fixtures/honest", "1", &honest);
            registry.push(&repository, "1", &borrowed);
            continue;
        }
        match fixture(name) {
            Fixture::Image(image) => registry.push(&repository, "1", &image),
            Fixture::Index(index) => registry.push_index(&repository, "1", &index),
        };
    }
    registry
}

fn fixture(name: &str) -> Fixture {
    let index = match name {
        "multiarch" => attested(&platforms(Family::Oci)),
        "schema2-list" => platforms(Family::Docker),
        "other-arch-only" => Index::new(Family::Oci, vec![other_architecture(Family::Oci)]),
        _ => return Fixture::Image(single(name)),
    };
    Fixture::Index(index)
}

fn single(name: &str) -> Built {
    let family = if name == "schema2" { Family::Docker } else { Family::Oci };
    let how = match name {
        "zstd" => Compression::Zstd,
        "uncompressed" => Compression::Plain,
        _ => Compression::Gzip,
    };
    // A layer that names the image, so that no two images are one.
    let mark = Layer::new().file("name", name);
    let mut image = Image::new().family(family).layer_as(base(), how).layer_as(mark, how);
    match name {
        "whiteouts" => image = whiteouts().into_iter().fold(image, Image::layer),
        "attributes" => image = image.layer(attributes()),
        "config" => return configured(image),
        "escape" => image = image.layer(escape()),
        "many-layers" => {
            let layer = |n: i32| Layer::new().file(&format!("many-{n}"), n.to_string()).file("last", name);
            image = (0..40).map(layer).fold(image, Image::layer);
        }
        "bad-diffid" => image.lie_about_diff_ids = true,
        "artifact" => return artifact(),
        "uncompressed" | "schema2" | "zstd" => {}
        _ => panic!("no image is called {name}"),
    }
    built(&image)
}

fn built(image: &Image) -> Built {
    image.build().unwrap_or_else(|error| panic!("{error}"))
}

fn base() -> Layer {
    catalog::base_layer().unwrap_or_else(|error| panic!("{error}"))
}

/// What the layers of an image do to those below them.
fn whiteouts() -> [Layer; 3] {
    let mut one = Layer::new();
    for folder in ["data", "dir", "tree", "tree/deep", "opaque", "again"] {
        one = one.dir(folder);
    }
    for file in
        ["data/keep", "data/gone", "dir/a", "dir/b", "tree/deep/leaf", "opaque/old", "again/old", "was-file"]
    {
        one = one.file(file, file);
    }
    one = one.dir("was-dir").file("was-dir/inside", "x").symlink("was-link", "data");
    let two = Layer::new()
        .whiteout("data/gone")
        .whiteout("dir/b")
        .whiteout("tree")
        .whiteout("again")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new")
        .dir("was-file")
        .file("was-file/inside", "x")
        .file("was-dir", "a file now")
        .dir("was-link")
        .file("was-link/own", "x");
    let three = Layer::new().dir("again").file("again/fresh", "x").file("data/keep", "changed");
    [one, two, three]
}

/// Owners, modes, links and special files.
fn attributes() -> Layer {
    Layer::new()
        .dir("attr")
        .entry("attr/sticky", Kind::Dir, 0o1777)
        .entry("attr/owned", Kind::Dir, 0o750)
        .owned(1234, 5678)
        .file("attr/big-id", "x")
        .owned(3_000_000_000, 3_000_000_001)
        .entry("attr/suid", Kind::File(b"x".to_vec()), 0o4755)
        .entry("attr/none", Kind::File(b"x".to_vec()), 0)
        .file("attr/first", "one")
        .hardlink("attr/second", "attr/first")
        .symlink("attr/link", "first")
        .symlink("attr/dangling", "/no/such/file")
        .entry("attr/null", Kind::Char { major: 1, minor: 3 }, 0o666)
        .entry("attr/fifo", Kind::Fifo, 0o644)
        .file("attr/empty", "")
        .file("attr/name with spaces", "s")
        .file("attr/n\u{e4}me", "u")
        .file("implicit/parent/file", "p")
        .file("attr/zeros", vec![0; 3 << 20])
}

/// Paths that would leave the layer if they were followed.
fn escape() -> Layer {
    Layer::new()
        .symlink("exit", "/tmp")
        .file("exit/fixtures-escaped-symlink", "x")
        .file("../../../../tmp/fixtures-escaped-dotdot", "x")
        .symlink("up", "../../../../../../tmp")
        .file("up/fixtures-escaped-up", "x")
}

fn configured(image: Image) -> Built {
    let config = Config { user: "app".into(), stop_signal: "SIGUSR1".into(), ..Config::default() };
    let mut built = built(&image.config(config));
    let mut text: Value = serde_json::from_slice(&built.config.data).unwrap();
    text["config"]["Volumes"] = json!({ "/vol": {} });
    text["config"]["Labels"] = json!({ "org.example.label": "value" });
    text["config"]["ExposedPorts"] = json!({ "8080/tcp": {} });
    built.config = blob(&built.config.media_type, &text);
    let mut manifest: Value = serde_json::from_slice(&built.manifest.data).unwrap();
    manifest["config"] = built.config.descriptor();
    built.manifest = blob(&built.manifest.media_type, &manifest);
    built
}

/// An image, and one of the same blobs that says that its last layer is one of the image "zstd".
fn borrowed() -> (Built, Built) {
    let diff_ids = |image: &Built| -> Value {
        let text: Value = serde_json::from_slice(&image.config.data).unwrap();
        text["rootfs"]["diff_ids"].clone()
    };
    let honest = built(&Image::new().layer(base()).layer(Layer::new().file("name", "honest")));
    let wanted = diff_ids(&single("zstd"))[1].clone();
    let mut liar = honest.clone();
    let mut text: Value = serde_json::from_slice(&liar.config.data).unwrap();
    text["rootfs"]["diff_ids"][1] = wanted;
    liar.config = blob(&liar.config.media_type, &text);
    let mut manifest: Value = serde_json::from_slice(&liar.manifest.data).unwrap();
    manifest["config"] = liar.config.descriptor();
    liar.manifest = blob(&liar.manifest.media_type, &manifest);
    (honest, liar)
}

/// A file in a registry that is no image: its configuration is empty.
fn artifact() -> Built {
    let mut built = built(&Image::new());
    built.config = blob("application/vnd.oci.empty.v1+json", &json!({}));
    built.layers = vec![Blob::new("text/plain", b"hello artifact\n".to_vec())];
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": built.manifest.media_type,
        "artifactType": "application/vnd.example.data",
        "config": built.config.descriptor(),
        "layers": [built.layers[0].descriptor()],
    });
    built.manifest = blob(&built.manifest.media_type, &manifest);
    built
}

fn blob(media_type: &str, value: &Value) -> Blob {
    Blob::new(media_type, value.to_string().into_bytes())
}

fn other_architecture(family: Family) -> Built {
    let other = if host_architecture() == "amd64" { "arm64" } else { "amd64" };
    let mut image = Image::new().family(family).layer(Layer::new().file("arch", other));
    image.architecture = other.into();
    built(&image)
}

/// A foreign platform, this one in a variant that no processor has yet, and this one.
fn platforms(family: Family) -> Index {
    let mark = Layer::new().file("name", format!("{family:?}"));
    let ours = |arch: &str| {
        let layer = mark.clone().file("arch", arch);
        Image::new().family(family).layer(base()).layer(layer)
    };
    let mut future = ours("v99");
    future.variant = "v99".into();
    Index::new(family, vec![other_architecture(family), built(&future), built(&ours(host_architecture()))])
}

/// `index` with the attestation that builders put beside an image: an entry for no platform.
fn attested(index: &Index) -> Index {
    let mut proof = Image::new().layer(Layer::new().file("statement", "none that a node reads"));
    proof.architecture = "unknown".into();
    let mut images = index.images.clone();
    let subject = images.last().map(|image| image.manifest.digest.clone());
    images.insert(0, built(&proof));
    let mut joined = Index::new(Family::Oci, images);
    let mut text: Value = serde_json::from_slice(&joined.blob.data).unwrap();
    text["manifests"][0]["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    text["manifests"][0]["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject,
    });
    joined.blob = blob(&joined.blob.media_type, &text);
    joined
}
