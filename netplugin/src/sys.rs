//! What talks to the kernel directly: netlink sockets, network namespaces, sysctls. Nothing here knows of CNI.

pub mod netlink;
pub mod netns;
pub mod sysctl;
