//! Against Debian's docker-registry, on a port and a folder of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cofferdam::registry::{Credentials, Descriptor, Digest, Registry, RegistryConfig};
use reqwest::Client;

use crate::{MANIFEST, blob_body, descriptor, reference};

/// A docker-registry that ends with the test.
struct RealRegistry {
    process: Child,
    address: String,
    _data: tempfile::TempDir,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl RealRegistry {
    async fn start() -> Self {
        let binary = Path::new("/usr/bin/docker-registry");
        assert!(binary.exists(), "{} is not there: apt-get install docker-registry", binary.display());
        let data = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = data.path().join("config.yml");
        std::fs::write(&config, config_text(data.path(), &address)).unwrap();
        let process = Command::new(binary)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, address, _data: data };
        registry.wait_until_ready().await;
        registry
    }

    async fn wait_until_ready(&self) {
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&self.address).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry does not listen on {}", self.address);
    }

    async fn push_blob(&self, body: &[u8]) -> Descriptor {
        let client = Client::new();
        let start = format!("http://{}/v2/team/app/blobs/uploads/", self.address);
        let answer = client.post(start).send().await.unwrap().error_for_status().unwrap();
        let mut location = answer.url().join(answer.headers()["location"].to_str().unwrap()).unwrap();
        let descriptor = descriptor(body);
        location.query_pairs_mut().append_pair("digest", descriptor.digest.as_str());
        client.put(location).body(body.to_vec()).send().await.unwrap().error_for_status().unwrap();
        descriptor
    }

    async fn push_manifest(&self, body: &str) {
        let url = format!("http://{}/v2/team/app/manifests/v1", self.address);
        let request = Client::new().put(url).header("content-type", MANIFEST).body(body.to_owned());
        request.send().await.unwrap().error_for_status().unwrap();
    }
}

fn config_text(data: &Path, address: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        data.join("data").display()
    )
}

#[tokio::test]
async fn an_image_of_docker_registry_is_read() {
    let server = RealRegistry::start().await;
    let layer = blob_body(3_000_000);
    let (config, layer_descriptor) = (server.push_blob(b"{}").await, server.push_blob(&layer).await);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        config.digest,
        config.size,
        layer_descriptor.media_type,
        layer_descriptor.digest,
        layer_descriptor.size
    );
    server.push_manifest(&manifest).await;

    let registry = Registry::new(RegistryConfig::default());
    let (reference, anonymous) = (reference(&server.address), Credentials::anonymous());
    let resolved = registry.resolve(&reference, &anonymous).await.unwrap();
    assert_eq!(resolved.bytes, manifest.as_bytes());
    assert_eq!(resolved.descriptor.media_type, MANIFEST);
    let pinned = reference.with_digest(resolved.descriptor.digest.clone());
    assert_eq!(registry.resolve(&pinned, &anonymous).await.unwrap().descriptor, resolved.descriptor);

    for offset in [0, 1_000_001] {
        let mut blob = registry.blob(&reference, &layer_descriptor, offset, &anonymous);
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert!(bytes == layer[offset as usize..]);
    }
    let missing = reference.with_digest(Digest::sha256(b"missing"));
    let error = registry.resolve(&missing, &anonymous).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}
