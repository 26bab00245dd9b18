//! Network namespaces of sandboxes. Owns `<state>/netns`: each file there is a mount that keeps one namespace alive.
//!
//! Invariant: only short-lived threads of this file and of `dial` leave the node's network namespace, and they end there.

use cofferdam_failpoints::failpoint;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, netlink,
};

use super::error::NetworkError;
use crate::model::SandboxId;

/// Of statfs(2), for a pinned namespace.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The folder of pinned namespaces.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The pins below the daemon's state folder.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("netns") }
    }

    /// Where the namespace of a sandbox is or would be.
    #[must_use]
    pub fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// Makes a new namespace with loopback up and these sysctls (`net.…`) set, and pins it. What an unfinished attempt
    /// left is replaced. Takes half a millisecond and blocks for it.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing is left.
    pub fn create(&self, id: &SandboxId, sysctls: &[(String, String)]) -> Result<PathBuf, NetworkError> {
        let path = self.path(id);
        let files = sysctls.iter().map(|(key, value)| Ok((sysctl_file(key, &path)?, value.as_str())));
        let files = files.collect::<Result<Vec<_>, NetworkError>>()?;
        self.pin(id, || furnish(&path, None, &files))
    }

    /// Pins the namespace of a process, with loopback up. So it is with a pod that has users of its own: the namespace
    /// belongs to them, and only one of them can make it.
    ///
    /// # Errors
    /// When the process is gone or the kernel refuses; then nothing is left.
    pub fn adopt(&self, id: &SandboxId, pid: u32) -> Result<PathBuf, NetworkError> {
        let (path, theirs) = (self.path(id), PathBuf::from(format!("/proc/{pid}/ns/net")));
        let theirs = fs::File::open(&theirs).map_err(|error| NetworkError::file("open", &theirs, error))?;
        self.pin(id, || furnish(&path, Some(&theirs), &[]))
    }

    /// Has a thread of its own enter the namespace and leave its mount at the sandbox's pin.
    fn pin(
        &self,
        id: &SandboxId,
        enter: impl FnOnce() -> Result<(), NetworkError> + Send,
    ) -> Result<PathBuf, NetworkError> {
        let path = self.path(id);
        self.remove(id)?;
        fs::create_dir_all(&self.dir).map_err(|error| NetworkError::file("create", &self.dir, error))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|error| NetworkError::file("create", &path, error))?;
        failpoint!("netns.file_made", infallible);
        let made = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".to_owned());
            let thread =
                thread.spawn_scoped(scope, enter).map_err(|error| failure("start a thread", &path, error))?;
            thread
                .join()
                .unwrap_or_else(|_| Err(failure("finish", &path, io::Error::other("the thread panicked"))))
        });
        if let Err(error) = made {
            if let Err(left) = self.remove(id) {
                tracing::warn!(sandbox = %id, error = %super::error::chain(&left), "a namespace's pin is left");
            }
            return Err(error);
        }
        Ok(path)
    }

    /// Unpins the namespace of a sandbox. It ends when nobody else is in it. Repeating it does nothing.
    ///
    /// # Errors
    /// When the pin can be neither unmounted nor removed.
    pub fn remove(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let path = self.path(id);
        // Every mount that lies there, until the file is none.
        while let Err(error) = fs::remove_file(&path) {
            match error.kind() {
                io::ErrorKind::NotFound => return Ok(()),
                io::ErrorKind::ResourceBusy => {
                    umount2(&path, MntFlags::MNT_DETACH)
                        .map_err(|error| NetworkError::file("unmount", &path, error))?;
                    failpoint!("netns.unmounted");
                }
                _ => return Err(NetworkError::file("remove", &path, error)),
            }
        }
        Ok(())
    }

    /// The sandboxes that have a pin, whether a namespace lives behind it or not.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<SandboxId>, NetworkError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(NetworkError::file("list", &self.dir, error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| NetworkError::file("list", &self.dir, error))?;
            ids.extend(entry.file_name().to_str().and_then(|name| SandboxId::parse(name).ok()));
        }
        Ok(ids)
    }
}

/// The path, when a network namespace is really there: plugins must not be sent into a leftover file.
pub(super) fn living(path: &Path) -> Option<String> {
    let there = rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC);
    there.then(|| path.display().to_string())
}

fn failure(what: impl Into<String>, path: &Path, source: impl Into<io::Error>) -> NetworkError {
    NetworkError::Netns { what: what.into(), path: path.to_owned(), source: source.into() }
}

/// Runs in a thread of its own, which ends in the new namespace, or in that of another process.
fn furnish(pin: &Path, theirs: Option<&fs::File>, sysctls: &[(PathBuf, &str)]) -> Result<(), NetworkError> {
    match theirs {
        None => unshare(CloneFlags::CLONE_NEWNET).map_err(|error| failure("unshare", pin, error))?,
        Some(theirs) => {
            setns(theirs, CloneFlags::CLONE_NEWNET).map_err(|error| failure("enter", pin, error))?;
        }
    }
    raise_loopback().map_err(|error| failure("raise loopback", pin, error))?;
    failpoint!("netns.made");
    for (file, value) in sysctls {
        OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|error| failure(format!("set {} to {value:?}", file.display()), pin, error))?;
    }
    let own = Path::new("/proc/thread-self/ns/net");
    mount(Some(own), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| failure("pin", pin, error))?;
    failpoint!("netns.mounted");
    Ok(())
}

/// The file of a sysctl of the network. The kernel shows each thread those of its own namespace.
fn sysctl_file(key: &str, pin: &Path) -> Result<PathBuf, NetworkError> {
    // As sysctl(8): in a key with dots a slash stands for a dot within a name, and the other way round.
    let (separator, dot) = if key.find('/').is_some_and(|slash| key.find('.').is_none_or(|dot| slash < dot)) {
        ('/', '.')
    } else {
        ('.', '/')
    };
    let parts: Vec<String> = key.split(separator).map(|part| part.replace(dot, ".")).collect();
    let sound =
        |part: &String| !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']);
    if parts.len() < 2 || parts[0] != "net" || !parts.iter().all(sound) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no sysctl of the network");
        return Err(failure(format!("set {key:?}"), pin, error));
    }
    Ok(Path::new("/proc/sys").join(parts.join("/")))
}

/// Sets the loopback interface up, by one rtnetlink request.
pub(super) fn raise_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
    const NLMSG_ERROR: u16 = 2;
    const UP: u32 = 1;
    /// In every namespace loopback is the first interface.
    const LOOPBACK: i32 = 1;

    let mut request = Vec::with_capacity(32);
    request.extend_from_slice(&32u32.to_ne_bytes());
    request.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    request.extend_from_slice(&1u32.to_ne_bytes()); // sequence
    request.extend_from_slice(&0u32.to_ne_bytes()); // to the kernel
    request.extend_from_slice(&[0; 4]); // any family, any type
    request.extend_from_slice(&LOOPBACK.to_ne_bytes());
    request.extend_from_slice(&UP.to_ne_bytes()); // flags
    request.extend_from_slice(&UP.to_ne_bytes()); // which of them change

    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    let message = [IoSlice::new(&request)];
    let mut none = SendAncillaryBuffer::default();
    rustix::net::sendmsg_addr(&socket, &kernel, &message, &mut none, SendFlags::empty())?;
    let mut answer = [0u8; 256];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match (length, kind) {
        (20.., Some(NLMSG_ERROR)) => {
            match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            }
        }
        _ => Err(io::Error::other("rtnetlink gave no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_network_only() {
        let pin = Path::new("/pin");
        for (key, file) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
        ] {
            assert_eq!(sysctl_file(key, pin).unwrap(), Path::new(file), "{key}");
        }
        for key in ["", "net", "kernel.shmmax", "net..x", "net/../kernel/shmmax", "net.ipv4.//.x", "/net/x"] {
            assert!(sysctl_file(key, pin).is_err(), "{key}");
        }
    }
}
