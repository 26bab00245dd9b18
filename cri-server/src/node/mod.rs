//! The node: what its kernel and environment can do ([`Features`]), and what they lack ([`preflight`]).
//!
//! Invariant: looking changes nothing. Every probe reads; none loads a module, makes a namespace or writes a file.

mod capabilities;
mod features;
mod findings;
mod preflight;

pub use capabilities::{CAPABILITIES, from_mask};
pub use features::{Features, UserNamespaces};
pub use findings::{Facts, Finding, Severity, judge};
pub use preflight::preflight;
