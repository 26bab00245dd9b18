//! What the daemon finds at its start and later, and puts in order: reboots, lost and damaged data, what belongs to nobody.

#[path = "upkeep/boot.rs"]
mod boot;
#[path = "upkeep/cni.rs"]
mod cni;
#[path = "upkeep/damage.rs"]
mod damage;
#[path = "upkeep/disk.rs"]
mod disk;
#[path = "upkeep/room.rs"]
mod room;
#[path = "upkeep/sweep.rs"]
mod sweep;
