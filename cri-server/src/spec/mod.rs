//! Builds OCI runtime specs from CRI messages: policy as pure functions, so that every rule is a line in a table.
//!
//! Invariant: nothing here reads the host by itself. What a spec depends on (the node's abilities, device numbers,
//! mount propagation, the bytes of a seccomp profile) comes in with the input, through [`host::Host`] where it has to
//! be asked for. The result is complete: a runtime needs nothing but the spec and the rootfs.
//!
//! Follows the OCI runtime specification 1.2 (config.md, config-linux.md) and the CRI v1 messages.

pub mod annotations;
pub mod capabilities;
pub mod container;
pub mod devices;
pub mod env;
pub mod error;
pub mod host;
pub mod mounts;
pub mod namespaces;
pub mod process;
pub mod resources;
pub mod sandbox;
pub mod seccomp;
pub mod security;
pub mod selinux;
pub mod signal;
pub mod sysctl;
pub mod user;
pub mod userns;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod privileged;

pub use container::{ContainerInput, container_spec};
pub use error::{SpecError, SpecErrorKind};
pub use namespaces::SandboxNamespaces;
pub use sandbox::{SandboxInput, sandbox_spec};
pub use signal::stop_signal;
pub use user::{ResolvedUser, UserError};
pub use userns::UserNamespace;

/// The `ociVersion` that is written; every runtime of the last years reads it.
const OCI_VERSION: &str = "1.0.2";

/// What the operator's configuration decides about every spec.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Lets unprivileged processes of a pod with its own network bind ports below 1024.
    pub unprivileged_ports: bool,
    /// Lets unprivileged processes of a pod with its own network send ICMP echo requests.
    pub unprivileged_icmp: bool,
    /// The seccomp profile of containers for which the CRI request names none.
    pub seccomp_when_unset: security::SeccompWhenUnset,
    /// Masks and write-protects the usual /proc paths even where the request lists none.
    pub always_mask_proc: bool,
    /// Limit of processes in a container, where the operator sets one.
    pub pids_limit: Option<i64>,
    /// Name of the AppArmor profile that serves as RuntimeDefault, once it is loaded.
    pub apparmor_profile: Option<String>,
    /// Whether pods are told apart by SELinux labels that the daemon chooses, and their volumes labelled.
    pub selinux: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            unprivileged_ports: true,
            unprivileged_icmp: true,
            seccomp_when_unset: security::SeccompWhenUnset::Unconfined,
            always_mask_proc: false,
            pids_limit: None,
            apparmor_profile: None,
            selinux: false,
        }
    }
}
