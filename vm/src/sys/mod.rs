//! The kernel's interfaces: the only place with `unsafe`.
//!
//! Invariant: every function takes and gives owned or borrowed typed values.
#![allow(unsafe_code)]

pub mod landlock;
pub mod mount;
pub mod netlink;
pub mod process;
pub mod rights;
pub mod socket;
pub mod tap;
pub mod vsock;
