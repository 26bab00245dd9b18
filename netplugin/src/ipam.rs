//! Host-local address management: ranges from the configuration, leases on disk, one lock per network.
//!
//! ```text
//! <dataDir>/<network>/lock      flock'ed by whoever reads or changes the leases
//! <dataDir>/<network>/leases    JSON, replaced by rename
//! ```
//!
//! The lock orders processes; the rename makes each state whole. Nothing is synced to disk: after a power cut
//! every network namespace is gone too, and an empty file then means that there are no leases.

mod leases;
mod range;
mod store;

pub use leases::{Allocation, LeaseError};
pub use range::{RangeError, RangeSet, range_sets, requested_addresses};
pub use store::{Store, StoreError};
