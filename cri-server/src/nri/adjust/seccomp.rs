//! A plugin's seccomp policy, which takes the place of the container's.

use cofferdam_proto::nri;
use oci_spec::runtime::{Linux, LinuxSeccomp};
use serde_json::json;

use crate::node::Features;
use crate::spec::SpecError;

/// Sets the policy, read by the runtime specification's names.
pub fn apply(linux: &mut Linux, wanted: Option<&nri::LinuxSeccomp>, features: &Features) -> Result<(), SpecError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if !features.seccomp {
        return Err(SpecError::Unavailable {
            what: "seccomp policy",
            value: wanted.default_action.clone(),
            why: "the kernel has no seccomp",
        });
    }
    let policy: LinuxSeccomp = serde_json::from_value(as_json(wanted))
        .map_err(|source| SpecError::SeccompProfile { name: "of an NRI plugin".to_owned(), source })?;
    linux.set_seccomp(Some(policy));
    Ok(())
}

fn as_json(wanted: &nri::LinuxSeccomp) -> serde_json::Value {
    let errno = |errno: &Option<nri::OptionalUInt32>| errno.as_ref().map(|errno| errno.value);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let argument = |argument: &nri::LinuxSeccompArg| {
        json!({
            "index": argument.index,
            "value": argument.value,
            "valueTwo": argument.value_two,
            "op": argument.op,
        })
    };
    let syscall = |syscall: &nri::LinuxSyscall| {
        json!({
            "names": syscall.names,
            "action": syscall.action,
            "errnoRet": errno(&syscall.errno_ret),
            "args": syscall.args.iter().map(argument).collect::<Vec<_>>(),
        })
    };
    json!({
        "defaultAction": wanted.default_action,
        "defaultErrnoRet": errno(&wanted.default_errno),
        "architectures": wanted.architectures,
        "flags": wanted.flags,
        "listenerPath": text(&wanted.listener_path),
        "listenerMetadata": text(&wanted.listener_metadata),
        "syscalls": wanted.syscalls.iter().map(syscall).collect::<Vec<_>>(),
    })
}
