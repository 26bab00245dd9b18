//! What can go wrong with a pod's machine.

use std::time::Duration;

use cofferdam_vm::agent::{AgentError, plain};
use cofferdam_vm::boot::BootError;
use cofferdam_vm::channel::ChannelError;
use cofferdam_vm::config::ConfigError;
use cofferdam_vm::net::NetError;
use cofferdam_vm::probe::ProbeError;
use cofferdam_vm::share::ShareError;
use cofferdam_vm::vmm::MonitorError;
use ttrpc::Code;

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("the pod has no machine")]
    NoMachine,
    #[error("the pod's machine has ended: {0}")]
    Ended(String),
    /// The container code in the guest refuses, in its own words.
    #[error("{words}")]
    Refused { code: Code, words: String },
    #[error("{call} in the guest: no answer within {} s", .after.as_secs())]
    Silent { call: &'static str, after: Duration },
    #[error("{call} in the guest: {words}")]
    Lost { call: &'static str, words: String },
}

impl VmError {
    pub fn code(&self) -> Code {
        match self {
            VmError::Refused { code, .. } => *code,
            VmError::Config(_) | VmError::Probe(_) | VmError::NoMachine => Code::FAILED_PRECONDITION,
            VmError::Ended(_) => Code::NOT_FOUND,
            VmError::Silent { .. } => Code::DEADLINE_EXCEEDED,
            VmError::Boot(_)
            | VmError::Agent(_)
            | VmError::Channel(_)
            | VmError::Net(_)
            | VmError::Share(_)
            | VmError::Monitor(_)
            | VmError::Lost { .. } => Code::INTERNAL,
        }
    }

    /// The guest's answer to a call, with its words bounded and made fit to be shown.
    pub fn of_call(call: &'static str, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => VmError::Refused {
                code: status.code.enum_value_or(Code::UNKNOWN),
                words: plain(&status.message),
            },
            other => VmError::Lost { call, words: plain(&other.to_string()) },
        }
    }
}

#[cfg(feature = "failpoints")]
impl From<cofferdam_failpoints::Injected> for VmError {
    fn from(injected: cofferdam_failpoints::Injected) -> Self {
        Self::Lost { call: "pass", words: injected.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_bounded_and_harmless() {
        let hostile = "\u{1b}[2J\n".repeat(5000);
        let error =
            VmError::of_call("start", ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, hostile)));
        assert_eq!(error.code(), Code::NOT_FOUND);
        let words = error.to_string();
        assert!(words.len() <= 2048 && !words.contains(['\u{1b}', '\n']));
    }
}
