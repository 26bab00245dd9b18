//! The network namespace in which a node lives.
//!
//! A node's daemon, its registries and whoever plays its host run inside, so that links, addresses, ports and nftables
//! of two nodes never meet. The namespace is gone when the last process and this handle are.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

use super::sys;

/// A network namespace, or that of the machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Option<Arc<File>>,
}

impl Netns {
    /// The machine's own, for nodes that attach to another runtime.
    pub fn machine() -> Self {
        Self { file: None }
    }

    /// A new one with loopback up.
    pub fn create() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("cannot make a network namespace: these tests need root");
            sys::loopback_up().expect("cannot set loopback up");
            File::open("/proc/thread-self/ns/net").expect("cannot open the network namespace")
        };
        let file = std::thread::spawn(make).join().expect("the thread of the namespace panicked");
        Self { file: Some(Arc::new(file)) }
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.file.clone();
        let inside = move || {
            if let Some(file) = file {
                setns(&*file, CloneFlags::CLONE_NEWNET).expect("cannot enter the network namespace");
            }
            work()
        };
        match std::thread::spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command whose process runs inside and dies with the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::bind_to_us(&mut command, self.file.as_ref().map(|file| file.as_raw_fd()));
        command
    }

    /// The names of the links inside.
    pub fn links(&self) -> Vec<String> {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let table = table.expect("cannot read the links");
        table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.trim().to_owned())
            .collect()
    }

    /// The nftables ruleset inside as JSON without handles; `None` when the machine has no nft.
    pub fn ruleset(&self) -> Option<Vec<String>> {
        let output = self.command("nft").args(["-j", "list", "ruleset"]).output().ok()?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let entries = value["nftables"].as_array()?;
        Some(
            entries.iter().filter(|entry| entry.get("metainfo").is_none()).map(ToString::to_string).collect(),
        )
    }

    /// What an HTTP server at `address` answers to `GET path`, asked from inside.
    pub fn http_get(&self, address: &str, path: &str) -> std::io::Result<String> {
        use std::io::{Read, Write};
        let address: std::net::SocketAddr =
            address.parse().map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n");
        self.run(move || {
            let limit = std::time::Duration::from_secs(3);
            let mut stream = std::net::TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }
}
