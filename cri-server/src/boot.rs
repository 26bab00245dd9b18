//! Which start of the kernel this is. After another one nothing of a pod runs, whatever the records say.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The kernel's own name for its present start; see random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One start of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// The present one.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read_to_string(Path::new(BOOT_ID))?;
        Ok(Self(text.trim().to_owned()))
    }
}

/// What a daemon leaves behind for the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub boot: BootId,
    /// Whether it came to its end by itself.
    pub clean: bool,
}

/// How this start of the daemon follows the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The kernel was started anew since.
    pub rebooted: bool,
    /// The daemon, or the node, died.
    pub unclean: bool,
}

impl Past {
    /// What `last`, the run before if one is known, means under the present boot.
    #[must_use]
    pub fn of(last: Option<&Run>, now: &BootId) -> Self {
        last.map_or(Self::default(), |last| Self { rebooted: last.boot != *now, unclean: !last.clean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_told_from_another() {
        let now = BootId::current().unwrap();
        let run = |boot: &BootId, clean| Some(Run { boot: boot.clone(), clean });
        let other = BootId("other".to_owned());
        assert_eq!(Past::of(run(&now, true).as_ref(), &now), Past { rebooted: false, unclean: false });
        assert_eq!(Past::of(run(&other, false).as_ref(), &now), Past { rebooted: true, unclean: true });
        assert_eq!(Past::of(None, &now), Past::default());
    }
}
