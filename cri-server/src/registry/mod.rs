//! Registries: what an image is called, which hosts have it, and how its bytes are fetched.
//!
//! `reference` names, `hosts` says whom to ask, `client` asks (with `auth`, `challenge` and `credentials` for
//! logins, `transport` for connections), `transfer` reads blobs, `error` tells what went wrong.

mod auth;
mod challenge;
mod client;
mod credentials;
mod error;
mod hosts;
mod reference;
mod transfer;
mod transport;

pub use client::{Descriptor, Registry, RegistryConfig, Resolved};
pub use credentials::{AuthFields, Credentials};
pub use error::{Attempt, Detail, RegistryError, Tried, chain};
pub use reference::{Algorithm, Digest, DigestError, Reference, ReferenceError};
pub use transfer::Blob;
