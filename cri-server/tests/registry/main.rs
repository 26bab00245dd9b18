//! The registry client against real HTTP servers on loopback: a fake with fail points, and Debian's docker-registry
//! where it is installed.

mod fake;
mod login;
mod manifests;
mod proxy;
mod real;
mod tls;
mod transfer;

use std::path::Path;
use std::time::Duration;

use cofferdam::registry::{Descriptor, Digest, Reference, Registry, RegistryConfig};

use fake::{Reply, Request};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Short times, so that failures are quick.
pub fn config(config_path: Option<&Path>) -> RegistryConfig {
    RegistryConfig {
        config_path: config_path.map(Path::to_owned),
        connect_timeout: Duration::from_secs(5),
        header_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_millis(300),
        back_off: Duration::from_millis(2),
        ..RegistryConfig::default()
    }
}

pub fn registry() -> Registry {
    Registry::new(config(None))
}

pub fn reference(domain: &str) -> Reference {
    Reference::parse(&format!("{domain}/team/app:v1")).unwrap()
}

pub fn manifest_body() -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","layers":[]}}"#).into_bytes()
}

/// Bytes of which no two parts are equal.
pub fn blob_body(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

pub fn descriptor(body: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest: Digest::sha256(body),
        size: body.len() as u64,
    }
}

/// What a sound registry answers about one manifest and one blob.
pub fn sound(request: &Request, blob: &[u8]) -> Reply {
    let manifest = manifest_body();
    let digest = Digest::sha256(&manifest);
    if request.path == "/v2/team/app/manifests/v1"
        || request.path == format!("/v2/team/app/manifests/{digest}")
    {
        return Reply::new(200, manifest)
            .header("content-type", MANIFEST)
            .header("docker-content-digest", digest.to_string());
    }
    if request.path == format!("/v2/team/app/blobs/{}", Digest::sha256(blob)) {
        return match request.range() {
            Some(start) if start >= blob.len() => Reply::new(416, ""),
            Some(start) => Reply::new(206, &blob[start..])
                .header("content-range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
            None => Reply::new(200, blob),
        };
    }
    Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
}

/// A certs.d folder with one hosts.toml for `domain`.
pub fn certs_d(domain: &str, hosts_toml: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(domain);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), hosts_toml).unwrap();
    root
}
