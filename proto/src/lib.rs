//! The wire contracts of Cofferdam and their generated types. No logic lives here.
//!
//! - [`cri`] (feature `cri`): the Kubernetes Container Runtime Interface v1, over gRPC. Source: `proto/cri.proto`.
//! - [`admin`] (feature `cri`): what the operator's commands ask of the daemon beyond the CRI. Source:
//!   `proto/admin.proto`.
//! - [`nri`], [`ttrpc`] (feature `nri`): the Node Resource Interface of plugins and the two messages of its transport.
//!   Sources: `proto/nri.proto`, `proto/ttrpc.proto`.
//! - [`shim`] (feature `shim`): what our own shim serves beside containerd's Task service, over ttrpc. Source:
//!   `proto/shim.proto`.
//! - [`agent`] (feature `agent`): what the agent in a microVM serves, over ttrpc. Source: `proto/agent.proto`.

#![forbid(unsafe_code)]

/// The Kubernetes Container Runtime Interface, version v1.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// What the operator's commands ask of the daemon beyond the CRI.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod admin {
    tonic::include_proto!("cofferdam.admin.v1");
}

/// The Node Resource Interface, version v1alpha1.
#[cfg(feature = "nri")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod nri {
    tonic::include_proto!("nri.pkg.api.v1alpha1");
}

/// The messages of ttrpc.
#[cfg(feature = "nri")]
#[allow(clippy::all, reason = "generated")]
pub mod ttrpc {
    tonic::include_proto!("ttrpc");
}

/// The extension of our shim.
#[cfg(feature = "shim")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod shim {
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/shim/mod.rs"));
    }
    pub use generated::shim::*;
    pub use generated::shim_ttrpc::*;

    /// The newest version of what is between the daemon and our own shim beside containerd's Task service: this
    /// service, and the files in the bundle that one writes and the other reads (`shim.pid`, `task.json`, `exit.json`).
    ///
    /// 1: shims that announce nothing. 2: the daemon tells which versions it speaks, the shim answers which it is.
    pub const NEWEST_PROTOCOL: u32 = 2;
    /// The oldest version that is still spoken: a daemon takes over the pods of the version before it.
    pub const OLDEST_PROTOCOL: u32 = 1;
    /// The variable in which the daemon tells the shim that it starts which versions it speaks, as `1-2`.
    pub const PROTOCOLS_VARIABLE: &str = "COFFERDAM_SHIM_PROTOCOLS";
}

/// The agent in a microVM.
#[cfg(feature = "agent")]
#[allow(clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod agent {
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/agent/mod.rs"));
    }
    pub use generated::agent::*;
    pub use generated::agent_ttrpc::*;
}
