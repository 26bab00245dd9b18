//! The CNI bridge plugin, as a library that the daemon calls in process and as the binary `cofferdam-bridge`.
//!
//! Every call works in the network namespace of the calling thread ("the host") and blocks: an asynchronous caller
//! uses a thread for it. No other program is run and the caller's thread never changes its namespace.
//!
//! README.md lists the keys of the configuration. What a network leaves in the kernel: the bridge, per pod a pair
//! of links, and elements in the maps of the nf_tables table `inet cofferdam` (see [`nat`]).
#![deny(unsafe_code)]

mod bridge;
mod command;
mod conntrack;
mod error;
mod ipam;
mod link;
mod names;
mod nat;
mod nft;
mod plan;
mod pod;
mod sys;
pub mod types;

use types::{Attachment, ErrorCode};
pub use types::{CniError, CniResult, NetConf, Request};

/// The plugin's name in a configuration's `type`, and the name of its binary.
pub const PLUGIN_TYPE: &str = "cofferdam-bridge";

/// Attaches the container. After an error nothing of the attachment is left.
pub fn add(request: &Request) -> Result<CniResult, CniError> {
    command::add(request).map_err(|e| error::answer(&e, &request.config.cni_version))
}

/// Detaches the container; what is not there counts as detached.
pub fn del(request: &Request) -> Result<(), CniError> {
    command::del(request).map_err(|e| error::answer(&e, &request.config.cni_version))
}

/// Whether the attachment is still as `prevResult` in the configuration says.
pub fn check(request: &Request) -> Result<(), CniError> {
    command::check(request).map_err(|e| error::answer(&e, &request.config.cni_version))
}

/// Removes everything of this network that belongs to no attachment of `valid`. No ADD of the network may run
/// meanwhile that is not in `valid`.
pub fn gc(config: &NetConf, valid: &[Attachment]) -> Result<(), CniError> {
    command::gc(config, valid).map_err(|e| error::answer(&e, &config.cni_version))
}

/// Whether ADD could succeed now; the error's code says how bad it is.
pub fn status(config: &NetConf) -> Result<(), CniError> {
    command::status(config).map_err(|e| {
        let answer = error::answer(&e, &config.cni_version);
        if answer.code < ErrorCode::TryAgainLater as u32 && answer.code != ErrorCode::Io as u32 {
            return answer;
        }
        CniError { code: ErrorCode::NotAvailable as u32, ..answer }
    })
}

/// Removes bridge, rules and leases' record if no pod is attached to the network; says whether they are gone.
pub fn teardown_if_unused(config: &NetConf) -> Result<bool, CniError> {
    command::teardown_if_unused(config).map_err(|e| error::answer(&e, &config.cni_version))
}
