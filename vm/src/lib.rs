//! The microVM backend: pods that need stronger isolation run in a small virtual machine of their own.
//!
//! The crate knows neither the CRI nor shims. Modules use only those above them:
//! - [`architecture`]: the processors that guests are made for
//! - [`config`]: what an operator says about the machines
//! - `sys`: the kernel's interfaces: processes held by pidfd, mounts, network namespaces
//! - [`wire`]: the byte stream between host and guest: virtio-serial or vsock
//! - [`channel`]: many streams over the one byte stream between host and guest; both ends use it
//! - [`agent`]: the client of the agent in the guest
//! - [`vmm`]: monitors behind one trait: `vmm/qemu` and `vmm/cloud_hypervisor`
//! - [`size`]: how large a machine is
//! - [`net`]: the pod's network, for the guest
//! - [`share`]: the folder that a pod's guest sees of the host
//! - [`machine`]: a pod's machine, from its boot to its end
//! - [`boot`]: how a machine gets there, in phases
//! - [`probe`]: whether KVM can be used, by really booting
//! - [`measure`]: what a machine costs the node
//! - [`image`]: the guest's initramfs
//!
//! Invariant: the guest is not trusted. What it sends is bounded and checked where it is read, and no text of its ever
//! becomes a path on the host.
#![deny(unsafe_code)]

pub mod architecture;

pub mod config;
pub mod sys;

pub mod wire;

pub mod channel;

pub mod agent;
pub mod vmm;

pub mod size;

pub mod net;

pub mod share;

pub mod machine;

pub mod boot;

pub mod probe;

pub mod measure;

pub mod image;

use std::fmt;
use std::str::FromStr;

/// How strongly a pod is kept apart from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Namespaces and cgroups of the node's own kernel.
    #[default]
    Namespaces,
    /// A kernel of its own inside a virtual machine.
    Vm,
}

/// An isolation that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("isolation {0:?} is not known; use \"\" or \"vm\"")]
pub struct UnknownIsolation(String);

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(text: &str) -> Result<Self, UnknownIsolation> {
        match text {
            "" => Ok(Isolation::Namespaces),
            "vm" => Ok(Isolation::Vm),
            other => Err(UnknownIsolation(other.to_owned())),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Namespaces => "",
            Isolation::Vm => "vm",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_isolations_parse() {
        assert_eq!("".parse(), Ok(Isolation::Namespaces));
        assert_eq!("vm".parse(), Ok(Isolation::Vm));
        assert_eq!("kata".parse::<Isolation>(), Err(UnknownIsolation("kata".into())));
    }
}
