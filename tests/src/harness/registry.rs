//! Debian's docker-registry on a free loopback port with a folder of its own.
//!
//! A registry that asks for a password or speaks TLS is a second process on the same folder: images are pushed through
//! the plain one. Every process dies with its handle, and with the thread that started it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::netns::Netns;
use crate::fixtures::image::{Built, Index};
use crate::fixtures::push::Target;

const BINARY: &str = "/usr/bin/docker-registry";

/// The user that a registry with a password knows, and the password (stored as bcrypt, which is all it reads).
pub const USER: &str = "shipwright";
pub const PASSWORD: &str = "drydock";
const HTPASSWD: &str = "shipwright:$2y$05$abcdefghijklmnopqrstuutXjyqh94A1vN8ejczLg7cCkjkynZ5ei\n";

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    folder: Arc<tempfile::TempDir>,
    netns: Netns,
    process: Child,
    port: u16,
    scheme: &'static str,
    ca: Option<PathBuf>,
}

impl Registry {
    /// Starts a registry that everybody may read and write.
    pub fn start(netns: &Netns) -> Self {
        super::require(BINARY, "docker-registry");
        let folder =
            tempfile::Builder::new().prefix("cft-registry-").tempdir_in("/tmp").expect("no temp folder");
        Self::spawn(Arc::new(folder), netns, "", None)
    }

    /// Starts a second registry with the same images that asks for [`USER`] and [`PASSWORD`].
    pub fn with_password(&self) -> Self {
        let file = self.folder.path().join("htpasswd");
        std::fs::write(&file, HTPASSWD).expect("cannot write the password file");
        let auth = format!("auth:\n  htpasswd:\n    realm: dock\n    path: {}\n", file.display());
        Self::spawn(self.folder.clone(), &self.netns, &auth, None)
    }

    /// Starts a second registry with the same images that speaks TLS; [`Registry::ca`] signed its certificate.
    pub fn with_tls(&self) -> Self {
        let (ca, certificate, key) = certificate(self.folder.path());
        let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        Self::spawn(self.folder.clone(), &self.netns, &tls, Some(ca))
    }

    fn spawn(folder: Arc<tempfile::TempDir>, netns: &Netns, extra: &str, ca: Option<PathBuf>) -> Self {
        let port = netns.run(|| {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("no free port");
            socket.local_addr().expect("no local address").port()
        });
        let config = folder.path().join(format!("config-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{extra}",
            folder.path().join("data").display(),
        );
        std::fs::write(&config, text).expect("cannot write the registry's configuration");
        let process = netns
            .command(BINARY)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start docker-registry");
        let scheme = if ca.is_some() { "https" } else { "http" };
        let registry = Self { folder, netns: netns.clone(), process, port, scheme, ca };
        registry.wait();
        registry
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let address = self.address();
        loop {
            let target = Target::new(&address);
            let address = address.clone();
            let tls = self.ca.is_some();
            let up = self.netns.run(move || {
                if tls { std::net::TcpStream::connect(&address).is_ok() } else { target.answers() }
            });
            if up {
                return;
            }
            assert!(Instant::now() < deadline, "docker-registry does not answer on {}", self.address());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The name under which nodes know this registry through their hosts.toml.
    pub fn host(&self) -> String {
        format!("r{}-{}.test", std::process::id(), self.port)
    }

    /// The certificate to trust, for one with TLS.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Pushes an image and gives its full reference.
    pub fn push(&self, name: &str, tag: &str, image: &Built) -> String {
        let (target, image) = (Target::new(&self.address()), image.clone());
        let (to_name, to_tag) = (name.to_owned(), tag.to_owned());
        let pushed = self.netns.run(move || target.image(&to_name, &to_tag, &image));
        pushed.unwrap_or_else(|error| panic!("cannot push {name}:{tag}: {error}: {error:?}"));
        format!("{}/{name}:{tag}", self.host())
    }

    /// Pushes an image of several platforms and gives its full reference.
    pub fn push_index(&self, name: &str, tag: &str, index: &Index) -> String {
        let (target, index) = (Target::new(&self.address()), index.clone());
        let (to_name, to_tag) = (name.to_owned(), tag.to_owned());
        let pushed = self.netns.run(move || target.index(&to_name, &to_tag, &index));
        pushed.unwrap_or_else(|error| panic!("cannot push {name}:{tag}: {error}: {error:?}"));
        format!("{}/{name}:{tag}", self.host())
    }

    /// Changes one byte of a blob that the registry holds: it goes on to serve it under its old digest.
    pub fn corrupt(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut data = std::fs::read(&path).expect("the registry does not hold the blob");
        let middle = data.len() / 2;
        data[middle] ^= 0x55;
        std::fs::write(&path, data).expect("cannot change the blob");
    }

    /// Makes `certs_d` know this registry as `host`.
    pub fn announce(&self, certs_d: &Path, host: &str) {
        let url = format!("{}://{}", self.scheme, self.address());
        let ca = self.ca.as_ref().map(|path| format!("ca = \"{}\"\n", path.display())).unwrap_or_default();
        let text = format!(
            "server = \"{url}\"\n{ca}\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{ca}",
        );
        let folder = certs_d.join(host);
        std::fs::create_dir_all(&folder).expect("cannot make the folder of hosts.toml");
        std::fs::write(folder.join("hosts.toml"), text).expect("cannot write hosts.toml");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The paths of a registry's own CA, of its certificate for 127.0.0.1 and of the certificate's key.
fn certificate(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    super::require("/usr/bin/openssl", "openssl");
    let [ca, ca_key, certificate, key] =
        ["ca.pem", "ca.key", "cert.pem", "key.pem"].map(|name| folder.join(name));
    let make = |subject: &str, out: &Path, key: &Path, extra: &[&std::ffi::OsStr]| {
        let output = Command::new("/usr/bin/openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", subject, "-keyout"])
            .arg(key)
            .arg("-out")
            .arg(out)
            .args(extra)
            .output()
            .expect("cannot run openssl");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    };
    make("/CN=cofferdam-test-ca", &ca, &ca_key, &[]);
    let signed = ["-CA".as_ref(), ca.as_os_str(), "-CAkey".as_ref(), ca_key.as_os_str()];
    let names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
    let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let words = names.iter().chain(&leaf).map(std::ffi::OsStr::new);
    let extra: Vec<&std::ffi::OsStr> = signed.into_iter().chain(words).collect();
    make("/CN=cofferdam-test", &certificate, &key, &extra);
    (ca, certificate, key)
}
