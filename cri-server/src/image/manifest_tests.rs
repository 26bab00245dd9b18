//! Documents of strangers: what is read, and what is refused with which words.

use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn read(text: &str) -> Result<Document, ImageError> {
    parse(text.replace("DIGEST", DIGEST).as_bytes(), &Digest::sha256(b""), "r", 2)
}

fn config(kind: &str) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"DIGEST","size":1}}"#)
}

#[test]
fn both_formats_are_read() {
    for (kind, layer) in [
        (OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let text = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, config(kind), config(layer));
        assert!(matches!(read(&text), Ok(Document::Manifest(m)) if m.layers.len() == 1));
    }
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, config(OCI_MANIFEST));
    assert!(matches!(read(&text), Ok(Document::Index(entries)) if entries.len() == 1));
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let layer = config(OCI_LAYER);
    let table = [
        (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema 1"),
        (
            format!(r#"{{"config":{},"layers":[{}]}}"#, config(OCI_CONFIG), config("text/plain")),
            "artifact of type \"text/plain\"",
        ),
        (format!(r#"{{"manifests":[],"layers":[{layer}]}}"#), "at once"),
        (format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#), "calls itself"),
        (format!(r#"{{"config":{},"layers":[{layer},{layer},{layer}]}}"#, config(OCI_CONFIG)), "3 layers"),
        ("{}".to_owned(), "neither"),
        ("[".to_owned(), "EOF"),
        (r#"{"config":{"mediaType":"x","digest":"sha256:short","size":1}}"#.to_owned(), "sha256 digest"),
    ];
    for (text, expected) in table {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn a_manifest_without_an_images_configuration_is_an_artifact() {
    let titled = |title: &str| {
        let layer = config("text/plain");
        let annotations = format!(r#""annotations":{{"org.opencontainers.image.title":"{title}"}}"#);
        format!("{},{annotations}}}", layer.strip_suffix('}').unwrap())
    };
    let artifact = |layers: &[String]| {
        let empty = config("application/vnd.oci.empty.v1+json");
        read(&format!(r#"{{"artifactType":"a/b","config":{empty},"layers":[{}]}}"#, layers.join(",")))
    };
    let Ok(Document::Manifest(Manifest { artifact: Some(found), .. })) = artifact(&[titled("a/b.txt")])
    else {
        panic!("no artifact")
    };
    assert_eq!((found.kind.as_str(), found.files[0].name.as_str()), ("a/b", "a/b.txt"));
    for bad in ["../x", "/x", ""] {
        assert!(
            artifact(&[titled(bad)]).unwrap_err().to_string().contains("no plain relative path"),
            "{bad:?}"
        );
    }
    assert!(artifact(&[titled("a"), titled("a/b")]).unwrap_err().to_string().contains("same place"));
}

#[test]
fn configurations_may_hold_nulls_and_must_fit_the_layers() {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","created":null,"config":{{"User":"app:x","Env":null,"Cmd":["a"],
        "Volumes":{{"/v":{{}}}},"Labels":null,"Healthcheck":{{}}}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}}}}"#
    );
    let digest = Digest::sha256(b"");
    let config = parse_config(text.as_bytes(), &digest, 1).unwrap();
    assert_eq!(
        (config.run.user.as_str(), config.run.cmd.len(), config.run.volumes),
        ("app:x", 1, vec!["/v".to_owned()])
    );
    assert!(parse_config(text.as_bytes(), &digest, 2).unwrap_err().to_string().contains("names 1 layers"));
}
