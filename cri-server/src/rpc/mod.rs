//! The daemon's gRPC services: decode, call the domain, encode; one file for each resource.

pub mod admin;
pub mod image;
