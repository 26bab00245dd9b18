//! The kernel's numbers of capabilities, as masks in /proc show them.

use oci_spec::runtime::{Capabilities, Capability};

/// Every capability at the place of its kernel number, so that a mask from /proc can be read.
pub const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The capabilities of a mask as `/proc/<pid>/status` prints it; bits that have no name yet are left out.
#[must_use]
pub fn from_mask(mask: u64) -> Capabilities {
    CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, cap)| *cap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_read_by_the_kernels_numbers() {
        assert!(from_mask(0).is_empty());
        let some = from_mask(1 << 0 | 1 << 21 | 1 << 40);
        let expected = [Capability::Chown, Capability::SysAdmin, Capability::CheckpointRestore];
        assert_eq!(some, expected.into_iter().collect());
        assert_eq!(from_mask(u64::MAX).len(), 41);
    }
}
