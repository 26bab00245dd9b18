//! The daemon of Cofferdam: serves the CRI to the kubelet, decides, and drives shims, network, images and store.
//!
//! A module uses only those above it in this list; `rpc` and `cli` are the edges.

pub mod cgroup;
pub mod cli;
pub mod container;
pub mod content;
pub mod image;
pub mod io;
pub mod model;
pub mod network;
pub mod node;
pub mod registry;
pub mod rpc;
pub mod runtime;
pub mod sandbox;
pub mod snapshot;
pub mod spec;
pub mod stats;
pub mod store;
