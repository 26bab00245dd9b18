//! Registries: what an image is called, which hosts have it, and how its bytes are fetched.
//!
//! `reference` and `digest` name, `hosts` says whom to ask, `client` asks one host after another, `request` a single
//! one (with `auth`, `challenge` and `credentials` for logins, `transport` for connections), `transfer` reads blobs,
//! `error` tells what went wrong.

mod auth;
mod challenge;
mod client;
mod credentials;
mod digest;
mod error;
mod hosts;
mod hosts_toml;
mod reference;
mod request;
mod transfer;
mod transport;

pub use client::{Descriptor, Registry, RegistryConfig, Resolved};
pub use credentials::{AuthFields, Credentials};
pub use digest::{Algorithm, Digest, DigestError};
pub use error::{Attempt, Detail, RegistryError, Tried, chain};
pub use reference::{Problem, Reference, ReferenceError};
pub use transfer::Blob;
