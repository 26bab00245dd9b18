//! The node: what its kernel and environment can do ([`Features`]), and what they lack ([`preflight`]).
//!
//! Invariant: looking changes nothing. Every probe reads; none loads a module, makes a namespace or writes a file.

mod capabilities;
mod features;

pub use capabilities::{CAPABILITIES, from_mask};
pub use features::Features;
