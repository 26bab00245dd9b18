//! Usage of containers and pods, read from cgroups and /proc: one open and one read per file, no shim, no lock held
//! while reading. Of a container that is in no cgroup of the node, `told` reads what its shim says.
//!
//! Invariant: a file that is missing makes its own number `None` and nothing else; a container that ends in the middle
//! of a listing never fails the listing.
//!
//! See `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/memory.rst` and `accounting/psi.rst` of the kernel.

mod catalogue;
mod detail;
mod families;
mod network;
mod parse;
mod processes;
mod rate;
mod sample;
mod told;

#[cfg(test)]
mod privileged;

pub use catalogue::{DiskUsage, Family, Kind, Seen};
pub use detail::{Detail, detail, device_name};
pub use families::{CONTAINER, POD};
pub use network::{InterfaceCounters, NetworkSample, network_of_pod};
pub use parse::{Pressure, PressureLine};
pub use processes::{Processes, processes_of};
pub use rate::CpuRates;
pub use sample::{Cpu, Io, Memory, Sample, Swap, sample};
pub use told::{Told, told};
