//! Adjustments of the container's first process.

use cofferdam_proto::nri::{self, IoPrioClass, LinuxSchedulerFlag as Flag};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriorityBuilder, LinuxSchedulerFlag, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Scheduler,
};

use super::named;
use crate::nri::collect::{removal, variable};
use crate::node::Features;
use crate::spec::{SpecError, resources};

/// Of the kernel's I/O priorities, the last.
const LOWEST_IO_PRIORITY: i32 = 7;

/// Sets and removes variables; one that is there keeps its place.
pub fn env(process: &mut Process, wanted: &[nri::KeyValue]) -> Result<(), SpecError> {
    let mut env = process.env().clone().unwrap_or_default();
    for entry in wanted {
        let (name, removed) = removal(&entry.key);
        if name.contains(['=', '\0']) || entry.value.contains('\0') {
            let why = "a name has no \"=\", and neither name nor value a zero byte";
            return Err(SpecError::Invalid { field: "variable", value: entry.key.clone(), why });
        }
        let known = env.iter().position(|known| variable(known) == name);
        let text = format!("{name}={}", entry.value);
        match (known, removed) {
            (_, true) => env.retain(|known| variable(known) != name),
            (Some(at), false) => env[at] = text,
            (None, false) => env.push(text),
        }
    }
    process.set_env(Some(env));
    Ok(())
}

/// Takes the place of the arguments.
pub fn args(process: &mut Process, wanted: &[String]) {
    if !wanted.is_empty() {
        process.set_args(Some(wanted.to_vec()));
    }
}

/// Takes the place of the limits of the same kind.
pub fn rlimits(process: &mut Process, wanted: &[nri::PosixRlimit]) -> Result<(), SpecError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in wanted {
        let limit = rlimit(limit)?;
        limits.retain(|known| known.typ() != limit.typ());
        limits.push(limit);
    }
    process.set_rlimits(Some(limits));
    Ok(())
}

fn rlimit(wanted: &nri::PosixRlimit) -> Result<PosixRlimit, SpecError> {
    let typ: PosixRlimitType = named("resource limit", &wanted.r#type)?;
    let invalid = |why| SpecError::Invalid { field: "resource limit", value: wanted.r#type.clone(), why };
    if wanted.soft > wanted.hard {
        return Err(invalid("the soft limit is above the hard one"));
    }
    let built = PosixRlimitBuilder::default().typ(typ).hard(wanted.hard).soft(wanted.soft).build();
    built.map_err(|_| invalid("the runtime specification does not take it"))
}

/// The score, raised to what the daemon may give.
pub fn oom_score_adj(
    process: &mut Process,
    wanted: Option<&nri::OptionalInt>,
    features: &Features,
) -> Result<(), SpecError> {
    if let Some(wanted) = wanted {
        process.set_oom_score_adj(Some(resources::oom_score_adj(wanted.value, features)?));
    }
    Ok(())
}

/// The class NONE takes the priority away.
pub fn io_priority(process: &mut Process, wanted: Option<&nri::LinuxIoPriority>) -> Result<(), SpecError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let invalid = |value: i32, why| SpecError::Invalid { field: "I/O priority", value: value.to_string(), why };
    let class = IoPrioClass::try_from(wanted.class);
    let class = class.map_err(|_| invalid(wanted.class, "no class of the interface"))?;
    if class == IoPrioClass::IoprioClassNone {
        process.set_io_priority(None);
        return Ok(());
    }
    if !(0..=LOWEST_IO_PRIORITY).contains(&wanted.priority) {
        return Err(invalid(wanted.priority, "expected 0 to 7"));
    }
    let built = LinuxIOPriorityBuilder::default()
        .class(named::<IOPriorityClass>("I/O priority", class.as_str_name())?)
        .priority(i64::from(wanted.priority))
        .build();
    let built = built.map_err(|_| invalid(wanted.priority, "the runtime specification does not take it"))?;
    process.set_io_priority(Some(built));
    Ok(())
}

/// The policy NONE takes the attributes away.
pub fn scheduler(process: &mut Process, wanted: Option<&nri::LinuxScheduler>) -> Result<(), SpecError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let invalid = |value: i32, why| SpecError::Invalid { field: "scheduler", value: value.to_string(), why };
    let policy = nri::LinuxSchedulerPolicy::try_from(wanted.policy);
    let policy = policy.map_err(|_| invalid(wanted.policy, "no policy of the interface"))?;
    if policy == nri::LinuxSchedulerPolicy::SchedNone {
        process.set_scheduler(None);
        return Ok(());
    }
    if !(-20..=19).contains(&wanted.nice) {
        return Err(invalid(wanted.nice, "a nice value is -20 to 19"));
    }
    let flag = |flag: &i32| {
        let known = Flag::try_from(*flag).map_err(|_| invalid(*flag, "no flag of the interface"))?;
        Ok(match known {
            Flag::SchedFlagResetOnFork => LinuxSchedulerFlag::SchedResetOnFork,
            Flag::SchedFlagReclaim => LinuxSchedulerFlag::SchedFlagReclaim,
            Flag::SchedFlagDlOverrun => LinuxSchedulerFlag::SchedFlagDLOverrun,
            Flag::SchedFlagKeepPolicy => LinuxSchedulerFlag::SchedFlagKeepPolicy,
            Flag::SchedFlagKeepParams => LinuxSchedulerFlag::SchedFlagKeepParams,
            Flag::SchedFlagUtilClampMin => LinuxSchedulerFlag::SchedFlagUtilClampMin,
            Flag::SchedFlagUtilClampMax => LinuxSchedulerFlag::SchedFlagUtilClampMax,
        })
    };
    let flags = wanted.flags.iter().map(flag).collect::<Result<Vec<_>, SpecError>>()?;
    let mut scheduler = Scheduler::default();
    scheduler.set_policy(named("scheduler", policy.as_str_name())?);
    scheduler.set_nice((wanted.nice != 0).then_some(wanted.nice));
    scheduler.set_priority((wanted.priority != 0).then_some(wanted.priority));
    scheduler.set_flags((!flags.is_empty()).then_some(flags));
    scheduler.set_runtime((wanted.runtime != 0).then_some(wanted.runtime));
    scheduler.set_deadline((wanted.deadline != 0).then_some(wanted.deadline));
    scheduler.set_period((wanted.period != 0).then_some(wanted.period));
    process.set_scheduler(Some(scheduler));
    Ok(())
}
