//! The folder of a sandbox: its bundle, and the files and the shared memory that its containers see.
//!
//! ```text
//! <state>/sandboxes/<id>/config.json  rootfs/      the pause container's bundle
//!                        resolv.conf  hostname  hosts
//!                        shm/                      a tmpfs, unless the pod uses the node's ipc namespace
//! ```
//!
//! All of it is derived from the record: it is made again when the node has rebooted and never read back.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use nix::mount::{MntFlags, MsFlags};

use super::{Sandbox, SandboxError};
use crate::lsm::relabel::label_file;
use crate::model::SandboxId;
use crate::ports::Ports;
use crate::spec::{self, namespaces::PodNamespaces};

/// What the kubelet's own default is: 64 MiB, as Docker had it.
const SHM_OPTIONS: &str = "mode=1777,size=67108864";

/// Where a sandbox's files are.
#[derive(Clone, Debug)]
pub struct SandboxFiles {
    pub bundle: PathBuf,
    pub resolv_conf: PathBuf,
    pub hostname: PathBuf,
    pub hosts: PathBuf,
    /// None: the pod uses the node's shared memory.
    pub shm: Option<PathBuf>,
}

impl SandboxFiles {
    /// The places, whether or not they exist.
    #[must_use]
    pub fn of(bundle: PathBuf, own_ipc: bool) -> Self {
        Self {
            resolv_conf: bundle.join("resolv.conf"),
            hostname: bundle.join("hostname"),
            hosts: bundle.join("hosts"),
            shm: own_ipc.then(|| bundle.join("shm")),
            bundle,
        }
    }

    /// What a container's spec takes of them.
    #[must_use]
    pub fn for_spec(&self) -> spec::mounts::SandboxFiles {
        spec::mounts::SandboxFiles {
            shm: Some(self.shm.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"))),
            resolv_conf: Some(self.resolv_conf.clone()),
            hostname: Some(self.hostname.clone()),
            hosts: Some(self.hosts.clone()),
        }
    }
}

/// The pod's host name: the kubelet's, or the node's.
pub(crate) fn host_name(config: &cri::PodSandboxConfig) -> String {
    if config.hostname.is_empty() {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        return node;
    }
    config.hostname.clone()
}

pub(super) async fn create(
    ports: &Ports,
    sandbox: &Sandbox,
    namespaces: PodNamespaces,
    label: Option<String>,
) -> Result<SandboxFiles, SandboxError> {
    let files = SandboxFiles::of(ports.places.sandbox(sandbox.id()), namespaces.ipc);
    let config = sandbox.config().clone();
    let root = namespaces.user.map_or((0, 0), |users| (users.uids.outside, users.gids.outside));
    tokio::task::spawn_blocking(move || {
        write_all(&files, &config, root, label.as_deref())?;
        Ok(files)
    })
    .await?
}

/// `root` is who the pod's root is on the node, `label` the pod's SELinux label of files.
fn write_all(
    files: &SandboxFiles,
    config: &cri::PodSandboxConfig,
    root: (u32, u32),
    label: Option<&str>,
) -> Result<(), SandboxError> {
    let rootfs = files.bundle.join("rootfs");
    fs::create_dir_all(&rootfs).map_err(failed("make", &rootfs))?;
    failpoint!("sandbox.files.folder_made");
    // The mount points in it are made by the pod's root.
    chown(&rootfs, Some(root.0), Some(root.1)).map_err(failed("give away", &rootfs))?;
    let resolv_conf = resolv_conf(config.dns_config.as_ref());
    fs::write(&files.resolv_conf, resolv_conf).map_err(failed("write", &files.resolv_conf))?;
    let name = format!("{}\n", host_name(config));
    fs::write(&files.hostname, name).map_err(failed("write", &files.hostname))?;
    fs::write(&files.hosts, hosts(config, &[])).map_err(failed("write", &files.hosts))?;
    for file in [&files.resolv_conf, &files.hostname, &files.hosts] {
        label.map_or(Ok(()), |label| label_file(file, label))?;
    }
    failpoint!("sandbox.files.written");
    if let Some(shm) = &files.shm {
        fs::create_dir_all(shm).map_err(failed("make", shm))?;
        let context = label.map_or_else(String::new, |label| format!(",context=\"{label}\""));
        let options = format!("{SHM_OPTIONS},uid={},gid={}{context}", root.0, root.1);
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        nix::mount::mount(Some("shm"), shm, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|errno| failed("mount shared memory on", shm)(errno.into()))?;
        failpoint!("sandbox.files.shm_mounted");
    }
    Ok(())
}

/// Writes the pod's addresses into its hosts file, once they are known.
pub(super) fn write_hosts(
    files: &SandboxFiles,
    config: &cri::PodSandboxConfig,
    ips: &[IpAddr],
) -> Result<(), SandboxError> {
    fs::write(&files.hosts, hosts(config, ips)).map_err(failed("write", &files.hosts))
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> SandboxError + 'a {
    move |source| SandboxError::File { operation, path: path.to_owned(), source }
}

/// resolv.conf(5) from the pod's settings; the node's own file where it has none.
fn resolv_conf(dns: Option<&cri::DnsConfig>) -> String {
    let Some(dns) = dns.filter(|d| !(d.servers.is_empty() && d.searches.is_empty() && d.options.is_empty()))
    else {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// hosts(5). The kubelet mounts its own over it; this one serves pods made by hand.
fn hosts(config: &cri::PodSandboxConfig, ips: &[IpAddr]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in ips {
        text.push_str(&format!("{ip}\t{}\n", host_name(config)));
    }
    text
}

/// Unmounts the shared memory; absent is done.
pub(super) fn unmount(ports: &Ports, id: &SandboxId) -> Result<(), SandboxError> {
    let shm = ports.places.sandbox(id).join("shm");
    match nix::mount::umount2(&shm, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed("unmount", &shm)(errno.into())),
    }
}

/// How often, and after which time, a folder is removed again that somebody still writes to.
const WRITERS: u32 = 20;
const WRITING: std::time::Duration = std::time::Duration::from_millis(10);

/// Removes the folder; absent is done.
pub(super) fn remove(ports: &Ports, sandbox: &Sandbox) -> Result<(), SandboxError> {
    let folder = ports.places.sandbox(sandbox.id());
    for _ in 0..WRITERS {
        match fs::remove_dir_all(&folder) {
            // A shim that an earlier daemon started may be noting its number in it just now.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(WRITING);
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", &folder)(error));
            }
            Ok(()) | Err(_) => return Ok(()),
        }
    }
    Err(failed("remove", &folder)(std::io::ErrorKind::DirectoryNotEmpty.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_holds_what_the_pod_asks_for() {
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.local".into(), "local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)),
            "search a.local local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn hosts_names_the_pod() {
        let config = cri::PodSandboxConfig { hostname: "web".into(), ..Default::default() };
        let text = hosts(&config, &["10.0.0.7".parse().unwrap()]);
        assert!(text.ends_with("10.0.0.7\tweb\n"), "{text}");
    }
}
