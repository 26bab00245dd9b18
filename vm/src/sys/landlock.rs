//! Whether the kernel has Landlock. See landlock_create_ruleset(2).

/// With this flag the call answers a version and makes nothing.
const VERSION: libc::c_uint = 1;

pub fn is_available() -> bool {
    // SAFETY: with this flag the kernel wants no attributes and makes no descriptor.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    version >= 1
}
