//! What can go wrong between a pod and its network. Owns the words: every variant names the plugin, the command or the
//! path, so that the message alone tells an operator where to look.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why pods cannot be given a network now, in words that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    /// The condition's message.
    pub reason: String,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for NotReady {}

/// What a plugin left behind besides its answer, for messages. Bounded by [`super::exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(pub String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; it wrote: {}", self.0) }
    }
}

/// Failures of the pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no usable network at all.
    #[error("the pod network is not ready: {0}")]
    NotReady(NotReady),
    /// A configuration names a plugin that is not installed.
    #[error("CNI plugin {plugin:?} is not in {}", list(dirs))]
    PluginMissing {
        /// The plugin's `type`.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The kernel did not start the plugin, or its pipes failed.
    #[error("CNI plugin {} cannot be run for {command}", path.display())]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// The CNI command.
        command: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The plugin hung and was killed.
    #[error("CNI plugin {plugin} did not finish {command} within {seconds} s and was killed{said}")]
    TimedOut {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The time it was given.
        seconds: u64,
        /// Its standard error output.
        said: Said,
    },
    /// The plugin wrote without end and was killed.
    #[error("CNI plugin {plugin} answered {command} with more than {limit} bytes and was killed")]
    TooMuchOutput {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The plugin succeeded, but its answer is no CNI result.
    #[error(
        "CNI plugin {plugin} answered {command} with something that is no result ({problem}): {head:?}{said}"
    )]
    BadOutput {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// What is wrong with it.
        problem: String,
        /// How the answer begins.
        head: String,
        /// Its standard error output.
        said: Said,
    },
    /// The plugin failed with a CNI error.
    #[error("CNI plugin {plugin} failed {command} with code {code}: {msg}{said}")]
    Refused {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// CNI's error code.
        code: u64,
        /// Its message and details.
        msg: String,
        /// Its standard error output.
        said: Said,
    },
    /// The plugin failed without a CNI error.
    #[error("CNI plugin {plugin} failed {command} ({status}) without a CNI error{said}")]
    Died {
        /// The plugin's `type`.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The exit status.
        status: std::process::ExitStatus,
        /// What it wrote.
        said: Said,
    },
    /// The chain succeeded, but no address came of it.
    #[error("network {network:?} gave the pod no IP address")]
    NoAddress {
        /// The network's name.
        network: String,
    },
    /// A pod annotation that is for the network cannot be understood.
    #[error("annotation {key} has the value {value:?}: {problem}")]
    Annotation {
        /// The annotation.
        key: &'static str,
        /// What the pod says.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A host port mapping is out of range.
    #[error("port mapping {host_port}:{container_port} is out of range")]
    Port {
        /// The port of the node.
        host_port: i32,
        /// The port of the pod.
        container_port: i32,
    },
    /// The kubelet's pod CIDR is none.
    #[error(
        "{text:?} is not a pod CIDR: expected one or two of the form 10.244.1.0/24, with a comma between"
    )]
    PodCidr {
        /// What was given.
        text: String,
    },
    /// CHECK of a sandbox of which nothing is known.
    #[error("sandbox {sandbox} has no recorded network attachment")]
    NotAttached {
        /// The sandbox.
        sandbox: String,
    },
    /// A file or folder of ours failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be made ready.
    #[error("cannot {what} for the network namespace {}", path.display())]
    Netns {
        /// The operation.
        what: String,
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The built-in bridge failed.
    #[error("the built-in bridge failed {command} with code {code}: {msg}")]
    Builtin {
        /// The CNI command.
        command: &'static str,
        /// CNI's error code.
        code: u64,
        /// Its message.
        msg: String,
    },
    /// The built-in bridge's thread panicked or the runtime is shutting down.
    #[error("the built-in bridge did not finish {command}")]
    BuiltinLost {
        /// The CNI command.
        command: &'static str,
        /// What tokio said.
        #[source]
        source: tokio::task::JoinError,
    },
    /// Several steps of a teardown failed; all were tried.
    #[error("{}", join(.0))]
    Several(Vec<NetworkError>),
}

impl NetworkError {
    pub(super) fn file(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File { what, path: path.to_owned(), source: source.into() }
    }

    /// Nothing for no failure, the failure for one, all of them for more.
    pub(super) fn collect(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }
}

fn list(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "any folder: bin_dirs is empty".to_owned();
    }
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn join(failures: &[NetworkError]) -> String {
    failures.iter().map(chain).collect::<Vec<_>>().join("; ")
}

/// An error and its sources in one line, for places that carry text only.
pub(super) fn chain(error: &NetworkError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
