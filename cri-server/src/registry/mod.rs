//! Registries: what an image is called, which hosts have it, and how its bytes are fetched.

mod reference;

pub use reference::{Algorithm, Digest, DigestError, Reference, ReferenceError};
