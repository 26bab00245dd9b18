//! The JSON of the Container Network Interface, versions 0.3.1 to 1.1.0, and the request built from it.
//!
//! Owns every type that crosses the plugin's border: configuration in, result or error out. Reading is lenient
//! (unknown keys are ignored, both shapes of an address are accepted), writing is exact for the version asked for.

mod conf;
mod error;
mod ipnet;
mod result;
mod version;

pub use conf::{
    Attachment, CniArgs, ConfArgs, ConfArgsCni, IpamConf, IpamRange, NetConf, PortMapping, Protocol, Request,
    RuntimeConfig, RuntimeDns,
};
pub use error::{CniError, ErrorCode};
pub use ipnet::{IpNet, IpNetError, Mac, MacError};
pub(crate) use ipnet::{from_bits, to_bits};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::{CniVersion, VersionInfo};
