//! What others connect to the daemon, as small as it can be and made to misbehave where a test wants it.

pub mod fuse;
pub mod nri;
pub mod shim;
