//! The daemon of Cofferdam: serves the CRI to the kubelet, decides, and drives shims, network, images and store.
//!
//! A module uses only those above it in this list; `server` and `cli` are the edges. `tests/tests/arch.rs` checks it.

#![forbid(unsafe_code)]

pub mod report;
pub mod notices;
pub mod model;
pub mod owner;
pub mod index;
pub mod operation;
pub mod places;
pub mod boot;
pub mod store;
pub mod cgroup;
pub mod node;
pub mod lsm;
pub mod io;
pub mod registry;
pub mod content;
pub mod snapshot;
pub mod image;
pub mod network;
pub mod spec;
pub mod cdi;
pub mod runtime;
pub mod volume;
pub mod stats;
pub mod nri;
pub mod config;
pub mod event;
pub mod ports;
pub mod task;
pub mod sandbox;
pub mod container;
pub mod pod;
pub mod reconcile;
pub mod streaming;
pub mod metrics;
pub mod rpc;
pub mod server;
pub mod cli;
#[cfg(feature = "failpoints")]
mod failpoint;
