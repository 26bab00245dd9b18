//! The SELinux level of a pod: chosen or named when it is made, kept in its record, free again when it is forgotten.

use cofferdam_proto::cri;

use super::{Sandbox, SandboxError, SandboxRecord, Sandboxes};
use crate::lsm::selinux::{self, Held, SelinuxError};
use crate::ports::Ports;
use crate::spec::SpecError;
use crate::spec::selinux::{SelinuxLabels, asked_level, for_pod};

impl Sandboxes {
    /// The level of a new pod; none where labels are off, or with a policy that knows no containers.
    pub(super) fn level_for(&self, config: &cri::PodSandboxConfig) -> Result<Option<Held>, SandboxError> {
        if !self.ports.spec_defaults.selinux {
            return Ok(None);
        }
        if let Some(level) = asked_level(config) {
            return Ok(Some(self.levels.hold(level)));
        }
        if !selinux::separates_containers()? {
            tracing::warn!(
                "the node's SELinux policy knows no containers: they are told apart where asked for only"
            );
            return Ok(None);
        }
        Ok(Some(self.levels.choose()?))
    }

    /// The level that a record of before names, taken again.
    pub(super) fn level_of(&self, record: &SandboxRecord) -> Option<Held> {
        record.selinux_level.as_deref().map(|level| self.levels.hold(level))
    }
}

/// The labels of the pod's files, which the node's policy knows; none where labels are off.
pub(super) fn labels(ports: &Ports, sandbox: &Sandbox) -> Result<SelinuxLabels, SandboxError> {
    if !ports.spec_defaults.selinux {
        return Ok(SelinuxLabels::default());
    }
    let labels = for_pod(sandbox.config(), sandbox.selinux_level(), &ports.features);
    check::<SandboxError>(&labels)?;
    Ok(labels)
}

/// Refuses labels that the policy does not know now, and not when the process starts.
pub(crate) fn check<E: From<SelinuxError> + From<SpecError>>(labels: &SelinuxLabels) -> Result<(), E> {
    for label in [&labels.process, &labels.mount].into_iter().flatten() {
        match selinux::check(label) {
            Err(SelinuxError::Unknown(value)) => {
                let why = "the policy does not know it";
                return Err(SpecError::Unavailable { what: "SELinux label", value, why }.into());
            }
            other => other?,
        }
    }
    Ok(())
}
