//! The plugin against the kernel, in network namespaces of the tests' own. They need root.

mod attach;
mod binary;
mod host;
mod ports;
