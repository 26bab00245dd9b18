//! Specs and CRI messages in the words that plugins know.

use cofferdam_proto::{cri, nri};
use oci_spec::runtime as oci;
use serde::Serialize;

fn optional(value: i64) -> nri::OptionalInt64 {
    nri::OptionalInt64 { value }
}

fn optional_unsigned(value: u64) -> nri::OptionalUInt64 {
    nri::OptionalUInt64 { value }
}

/// The name that the runtime specification has for a value.
fn name(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// Adds to a container what its spec says.
pub fn with_spec(container: &mut nri::Container, spec: &oci::Spec) {
    container.annotations.extend(spec.annotations().clone().unwrap_or_default());
    container.mounts = spec.mounts().iter().flatten().map(mount).collect();
    container.hooks = spec.hooks().as_ref().map(hooks);
    if let Some(process) = spec.process() {
        container.args = process.args().clone().unwrap_or_default();
        container.env = process.env().clone().unwrap_or_default();
        container.rlimits = process.rlimits().iter().flatten().map(rlimit).collect();
        container.user = Some(nri::User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
        });
    }
    let linux = container.linux.get_or_insert_default();
    if let Some(process) = spec.process() {
        linux.oom_score_adj = process.oom_score_adj().map(|score| nri::OptionalInt { value: score.into() });
        linux.io_priority = process.io_priority().as_ref().map(io_priority);
        linux.scheduler = process.scheduler().as_ref().map(scheduler);
    }
    if let Some(from) = spec.linux() {
        with_linux(linux, from);
    }
}

fn with_linux(linux: &mut nri::LinuxContainer, from: &oci::Linux) {
    linux.namespaces = namespaces(from);
    linux.devices = from.devices().iter().flatten().map(device).collect();
    linux.resources = from.resources().as_ref().map(resources);
    linux.cgroups_path = from.cgroups_path().as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    linux.seccomp_policy = from.seccomp().as_ref().map(seccomp);
    linux.sysctl = from.sysctl().clone().unwrap_or_default();
    let net_device = |(host, device): (&String, &oci::LinuxNetDevice)| {
        (host.clone(), nri::LinuxNetDevice { name: device.name().clone().unwrap_or_default() })
    };
    linux.net_devices = from.net_devices().iter().flatten().map(net_device).collect();
    linux.rdt = from.intel_rdt().as_ref().map(|rdt| nri::LinuxRdt {
        clos_id: rdt.clos_id().clone().map(|value| nri::OptionalString { value }),
        schemata: rdt.schemata().clone().map(|value| nri::OptionalRepeatedString { value }),
        enable_monitoring: rdt.enable_monitoring().map(|value| nri::OptionalBool { value }),
        remove: false,
    });
}

/// The namespaces of a spec.
#[must_use]
pub fn namespaces(linux: &oci::Linux) -> Vec<nri::LinuxNamespace> {
    let one = |namespace: &oci::LinuxNamespace| nri::LinuxNamespace {
        r#type: name(namespace.typ()),
        path: namespace.path().as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
    };
    linux.namespaces().iter().flatten().map(one).collect()
}

fn mount(from: &oci::Mount) -> nri::Mount {
    nri::Mount {
        destination: from.destination().display().to_string(),
        r#type: from.typ().clone().unwrap_or_default(),
        source: from.source().as_ref().map(|source| source.display().to_string()).unwrap_or_default(),
        options: from.options().clone().unwrap_or_default(),
    }
}

fn hooks(from: &oci::Hooks) -> nri::Hooks {
    let all = |hooks: &Option<Vec<oci::Hook>>| hooks.iter().flatten().map(hook).collect();
    nri::Hooks {
        #[allow(deprecated, reason = "the interface still has prestart hooks")]
        prestart: all(from.prestart()),
        create_runtime: all(from.create_runtime()),
        create_container: all(from.create_container()),
        start_container: all(from.start_container()),
        poststart: all(from.poststart()),
        poststop: all(from.poststop()),
    }
}

fn hook(from: &oci::Hook) -> nri::Hook {
    nri::Hook {
        path: from.path().display().to_string(),
        args: from.args().clone().unwrap_or_default(),
        env: from.env().clone().unwrap_or_default(),
        timeout: from.timeout().map(|value| nri::OptionalInt { value }),
    }
}

fn rlimit(from: &oci::PosixRlimit) -> nri::PosixRlimit {
    nri::PosixRlimit { r#type: name(from.typ()), hard: from.hard(), soft: from.soft() }
}

fn io_priority(from: &oci::LinuxIOPriority) -> nri::LinuxIoPriority {
    let class = nri::IoPrioClass::from_str_name(&name(from.class())).unwrap_or_default();
    nri::LinuxIoPriority { class: class.into(), priority: i32::try_from(from.priority()).unwrap_or_default() }
}

fn scheduler(from: &oci::Scheduler) -> nri::LinuxScheduler {
    use oci::LinuxSchedulerFlag as Flag;
    let flag = |flag: &Flag| {
        i32::from(match flag {
            Flag::SchedResetOnFork => nri::LinuxSchedulerFlag::SchedFlagResetOnFork,
            Flag::SchedFlagReclaim => nri::LinuxSchedulerFlag::SchedFlagReclaim,
            Flag::SchedFlagDLOverrun => nri::LinuxSchedulerFlag::SchedFlagDlOverrun,
            Flag::SchedFlagKeepPolicy => nri::LinuxSchedulerFlag::SchedFlagKeepPolicy,
            Flag::SchedFlagKeepParams => nri::LinuxSchedulerFlag::SchedFlagKeepParams,
            Flag::SchedFlagUtilClampMin => nri::LinuxSchedulerFlag::SchedFlagUtilClampMin,
            Flag::SchedFlagUtilClampMax => nri::LinuxSchedulerFlag::SchedFlagUtilClampMax,
        })
    };
    nri::LinuxScheduler {
        policy: nri::LinuxSchedulerPolicy::from_str_name(&name(from.policy())).unwrap_or_default().into(),
        nice: from.nice().unwrap_or_default(),
        priority: from.priority().unwrap_or_default(),
        flags: from.flags().iter().flatten().map(flag).collect(),
        runtime: from.runtime().unwrap_or_default(),
        deadline: from.deadline().unwrap_or_default(),
        period: from.period().unwrap_or_default(),
    }
}

fn device(from: &oci::LinuxDevice) -> nri::LinuxDevice {
    nri::LinuxDevice {
        path: from.path().display().to_string(),
        r#type: from.typ().as_str().to_owned(),
        major: from.major(),
        minor: from.minor(),
        file_mode: from.file_mode().map(|value| nri::OptionalFileMode { value }),
        uid: from.uid().map(|value| nri::OptionalUInt32 { value }),
        gid: from.gid().map(|value| nri::OptionalUInt32 { value }),
    }
}

/// The resources of a spec.
#[must_use]
pub fn resources(from: &oci::LinuxResources) -> nri::LinuxResources {
    let rule = |rule: &oci::LinuxDeviceCgroup| nri::LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|typ| typ.as_str().to_owned()).unwrap_or_default(),
        major: rule.major().map(optional),
        minor: rule.minor().map(optional),
        access: rule.access().clone().unwrap_or_default(),
    };
    nri::LinuxResources {
        memory: from.memory().as_ref().map(memory),
        cpu: from.cpu().as_ref().map(cpu),
        hugepage_limits: from
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| nri::HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or_default(),
            })
            .collect(),
        unified: from.unified().clone().unwrap_or_default(),
        devices: from.devices().iter().flatten().map(rule).collect(),
        pids: from.pids().as_ref().map(|pids| nri::LinuxPids { limit: pids.limit() }),
        ..Default::default()
    }
}

fn memory(from: &oci::LinuxMemory) -> nri::LinuxMemory {
    #[allow(deprecated, reason = "the interface still has them")]
    let (kernel, kernel_tcp) = (from.kernel(), from.kernel_tcp());
    nri::LinuxMemory {
        limit: from.limit().map(optional),
        reservation: from.reservation().map(optional),
        swap: from.swap().map(optional),
        kernel: kernel.map(optional),
        kernel_tcp: kernel_tcp.map(optional),
        swappiness: from.swappiness().map(optional_unsigned),
        disable_oom_killer: from.disable_oom_killer().map(|value| nri::OptionalBool { value }),
        use_hierarchy: from.use_hierarchy().map(|value| nri::OptionalBool { value }),
    }
}

fn cpu(from: &oci::LinuxCpu) -> nri::LinuxCpu {
    nri::LinuxCpu {
        shares: from.shares().map(optional_unsigned),
        quota: from.quota().map(optional),
        period: from.period().map(optional_unsigned),
        realtime_runtime: from.realtime_runtime().map(optional),
        realtime_period: from.realtime_period().map(optional_unsigned),
        cpus: from.cpus().clone().unwrap_or_default(),
        mems: from.mems().clone().unwrap_or_default(),
    }
}

fn seccomp(from: &oci::LinuxSeccomp) -> nri::LinuxSeccomp {
    let errno = |errno: Option<u32>| errno.map(|value| nri::OptionalUInt32 { value });
    let argument = |argument: &oci::LinuxSeccompArg| nri::LinuxSeccompArg {
        index: u32::try_from(argument.index()).unwrap_or_default(),
        value: argument.value(),
        value_two: argument.value_two().unwrap_or_default(),
        op: name(argument.op()),
    };
    let syscall = |syscall: &oci::LinuxSyscall| nri::LinuxSyscall {
        names: syscall.names().clone(),
        action: name(syscall.action()),
        errno_ret: errno(syscall.errno_ret()),
        args: syscall.args().iter().flatten().map(argument).collect(),
    };
    nri::LinuxSeccomp {
        default_action: name(from.default_action()),
        default_errno: errno(from.default_errno_ret()),
        architectures: from.architectures().iter().flatten().map(name).collect(),
        flags: from.flags().iter().flatten().map(name).collect(),
        listener_path: from.listener_path().as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        listener_metadata: from.listener_metadata().clone().unwrap_or_default(),
        syscalls: from.syscalls().iter().flatten().map(syscall).collect(),
    }
}

/// The kind of seccomp profile that the kubelet asked for.
#[must_use]
pub fn seccomp_profile(profile: &cri::SecurityProfile) -> nri::SecurityProfile {
    // The two enumerations have the same numbers.
    nri::SecurityProfile { profile_type: profile.profile_type, localhost_ref: profile.localhost_ref.clone() }
}

/// Resources as the kubelet gives them.
#[must_use]
pub fn cri_resources(from: &cri::LinuxContainerResources) -> nri::LinuxResources {
    let unsigned = |value: i64| optional_unsigned(u64::try_from(value).unwrap_or_default());
    let swap = from.memory_swap_limit_in_bytes;
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: Some(optional(from.memory_limit_in_bytes)),
            swap: (swap != 0).then(|| optional(swap)),
            ..Default::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: Some(unsigned(from.cpu_shares)),
            quota: Some(optional(from.cpu_quota)),
            period: Some(unsigned(from.cpu_period)),
            cpus: from.cpuset_cpus.clone(),
            mems: from.cpuset_mems.clone(),
            ..Default::default()
        }),
        hugepage_limits: from
            .hugepage_limits
            .iter()
            .map(|limit| nri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: from.unified.clone(),
        ..Default::default()
    }
}
