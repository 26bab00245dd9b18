//! RuntimeDefault: our seccomp profile, kept as data in `seccomp_default.json` and narrowed or widened by the
//! capabilities that a container holds.
//!
//! Invariant: an allow-list. What no rule names fails with EPERM; a rule may depend on capabilities, on the processor's
//! architecture and on arguments.

use std::sync::LazyLock;

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSyscall,
};
use serde::Deserialize;

const EPERM: u32 = 1;

static DATA: LazyLock<Profile> = LazyLock::new(|| {
    // The file is part of the program; a test reads it, so it cannot be broken in a release.
    serde_json::from_str(include_str!("seccomp_default.json")).unwrap_or_default()
});

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(rename = "about")]
    _about: String,
    architectures: Vec<Family>,
    rules: Vec<Rule>,
}

/// A processor's own architecture and those whose programs it runs as well.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    processor: String,
    architectures: Vec<Arch>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "about")]
    _about: String,
    /// Holds for containers with all of these.
    #[serde(default)]
    with: Vec<Capability>,
    /// Holds for containers with none of these.
    #[serde(default)]
    without: Vec<Capability>,
    /// Holds on these processors; empty means all.
    #[serde(default)]
    processors: Vec<String>,
    /// The error to fail with; absent means that the call is allowed.
    errno: Option<u32>,
    /// Each is an alternative; absent means any arguments.
    #[serde(default)]
    when: Vec<LinuxSeccompArg>,
    names: Vec<String>,
}

impl Rule {
    fn applies(&self, held: &Capabilities, processor: &str) -> bool {
        self.with.iter().all(|cap| held.contains(cap))
            && !self.without.iter().any(|cap| held.contains(cap))
            && (self.processors.is_empty() || self.processors.iter().any(|known| known == processor))
    }

    fn syscall(&self, condition: Option<LinuxSeccompArg>) -> LinuxSyscall {
        let mut syscall = LinuxSyscall::default();
        syscall.set_names(self.names.clone());
        syscall.set_action(match self.errno {
            Some(_) => LinuxSeccompAction::ScmpActErrno,
            None => LinuxSeccompAction::ScmpActAllow,
        });
        syscall.set_errno_ret(self.errno);
        syscall.set_args(condition.map(|condition| vec![condition]));
        syscall
    }

    fn syscalls(&self) -> Vec<LinuxSyscall> {
        match self.when.as_slice() {
            [] => vec![self.syscall(None)],
            // Conditions within one rule of the spec must all hold, so that alternatives are rules of their own.
            conditions => conditions.iter().map(|condition| self.syscall(Some(*condition))).collect(),
        }
    }
}

/// The profile for a container that holds these capabilities, on this processor.
#[must_use]
pub fn default_profile(held: &Capabilities) -> LinuxSeccomp {
    profile_for(held, std::env::consts::ARCH)
}

fn profile_for(held: &Capabilities, processor: &str) -> LinuxSeccomp {
    let family = DATA.architectures.iter().find(|family| family.processor == processor);
    let rules = DATA.rules.iter().filter(|rule| rule.applies(held, processor));
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(EPERM));
    profile.set_architectures(family.map(|family| family.architectures.clone()));
    profile.set_syscalls(Some(rules.flat_map(Rule::syscalls).collect()));
    profile
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::LinuxSeccompOperator;

    use super::*;

    fn allowed(profile: &LinuxSeccomp, name: &str) -> Option<Vec<LinuxSyscall>> {
        let hits: Vec<_> = profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow)
            .filter(|rule| rule.names().iter().any(|known| known == name))
            .cloned()
            .collect();
        (!hits.is_empty()).then_some(hits)
    }

    fn plain() -> LinuxSeccomp {
        profile_for(&super::super::capabilities::DEFAULT.into_iter().collect(), "x86_64")
    }

    fn with(cap: Capability) -> LinuxSeccomp {
        let mut held: Capabilities = super::super::capabilities::DEFAULT.into_iter().collect();
        held.insert(cap);
        profile_for(&held, "x86_64")
    }

    #[test]
    fn the_data_is_whole() {
        let data: Profile = serde_json::from_str(include_str!("seccomp_default.json")).unwrap();
        assert!(data.rules.len() > 20);
        // The same rule twice would hide a slip of the pen: unconditional names occur once.
        let mut seen = HashSet::new();
        for rule in &data.rules {
            assert!(!rule.names.is_empty());
            let unconditional = rule.with.is_empty()
                && rule.without.is_empty()
                && rule.when.is_empty()
                && rule.processors.is_empty();
            for name in &rule.names {
                assert!(
                    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                    "{name}"
                );
                assert!(!unconditional || seen.insert(name.clone()), "{name} is named twice");
            }
        }
    }

    #[test]
    fn everyday_calls_pass_and_the_hosts_do_not() {
        let profile = plain();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
        for name in [
            "read",
            "openat2",
            "execve",
            "futex_waitv",
            "epoll_pwait2",
            "memfd_create",
            "landlock_create_ruleset",
        ] {
            assert!(allowed(&profile, name).is_some(), "{name}");
        }
        for name in [
            "mount",
            "umount2",
            "setns",
            "unshare",
            "bpf",
            "perf_event_open",
            "reboot",
            "kexec_load",
            "init_module",
            "finit_module",
            "swapon",
            "settimeofday",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "keyctl",
            "add_key",
            "userfaultfd",
            "open_by_handle_at",
            "pivot_root",
            "move_mount",
            "open_tree",
            "clone3",
            "fsopen",
            "quotactl",
            "lookup_dcookie",
            "acct",
            "iopl",
            "ioperm",
            "chroot_",
            "nfsservctl",
            "vhangup",
        ] {
            assert!(allowed(&profile, name).is_none(), "{name}");
        }
        assert!(allowed(&profile, "chroot").is_some(), "the default set holds CAP_SYS_CHROOT");
        assert!(allowed(&profile_for(&Capabilities::new(), "x86_64"), "chroot").is_none());
    }

    #[test]
    fn capabilities_open_their_calls() {
        let table = [
            (Capability::SysAdmin, "mount"),
            (Capability::SysAdmin, "clone3"),
            (Capability::SysAdmin, "setns"),
            (Capability::SysModule, "finit_module"),
            (Capability::SysPtrace, "kcmp"),
            (Capability::SysTime, "settimeofday"),
            (Capability::SysBoot, "reboot"),
            (Capability::DacReadSearch, "open_by_handle_at"),
            (Capability::Bpf, "bpf"),
            (Capability::Perfmon, "perf_event_open"),
            (Capability::SysNice, "mbind"),
            (Capability::Syslog, "syslog"),
            (Capability::SysTtyConfig, "vhangup"),
            (Capability::SysRawio, "iopl"),
            (Capability::SysPacct, "acct"),
        ];
        for (cap, name) in table {
            assert!(allowed(&plain(), name).is_none(), "{name} without {cap}");
            assert!(allowed(&with(cap), name).is_some(), "{name} with {cap}");
        }
        for name in ["io_uring_setup", "userfaultfd", "keyctl"] {
            assert!(allowed(&with(Capability::SysAdmin), name).is_none(), "{name}");
        }
    }

    #[test]
    fn arguments_narrow_what_is_allowed() {
        let profile = plain();
        let values = |name: &str| {
            let one = |rule: LinuxSyscall| {
                let arg = rule.args().as_ref().unwrap()[0];
                (arg.index(), arg.op(), arg.value(), arg.value_two())
            };
            allowed(&profile, name).unwrap().into_iter().map(one).collect::<Vec<_>>()
        };
        let personalities: Vec<u64> = values("personality").into_iter().map(|arg| arg.2).collect();
        assert_eq!(personalities, [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff]);
        assert_eq!(values("clone"), [(0, LinuxSeccompOperator::ScmpCmpMaskedEq, 0x7e02_0000, Some(0))]);
        // Everything below and above AF_VSOCK (40), apart from AF_ALG (38).
        assert_eq!(
            values("socket"),
            [
                (0, LinuxSeccompOperator::ScmpCmpLt, 38, None),
                (0, LinuxSeccompOperator::ScmpCmpEq, 39, None),
                (0, LinuxSeccompOperator::ScmpCmpGt, 40, None)
            ]
        );
        let clone3 =
            profile.syscalls().iter().flatten().find(|rule| rule.names().contains(&"clone3".to_owned()));
        assert_eq!(clone3.unwrap().errno_ret(), Some(38));
        assert!(
            allowed(&with(Capability::SysAdmin), "clone").unwrap().iter().any(|rule| rule.args().is_none())
        );
    }

    #[test]
    fn each_processor_has_its_own_calls() {
        let arm = profile_for(&Capabilities::new(), "aarch64");
        assert_eq!(arm.architectures().as_deref(), Some(&[Arch::ScmpArchAarch64, Arch::ScmpArchArm][..]));
        assert!(allowed(&arm, "arch_prctl").is_none() && allowed(&plain(), "arch_prctl").is_some());
        assert!(plain().architectures().as_ref().unwrap().contains(&Arch::ScmpArchX86));
    }
}
