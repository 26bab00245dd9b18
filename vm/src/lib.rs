//! The microVM backend: pods that need stronger isolation run in a small virtual machine of their own.
//!
//! This crate owns the choice between isolations and, when they are there, the monitors behind one trait. Today no
//! monitor is built in: asking for [`Isolation::Vm`] is answered by [`Error::NotAvailable`], never by silently
//! running the container with less isolation than was asked for.

use std::fmt;
use std::str::FromStr;

/// How strongly a pod is kept apart from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Namespaces and cgroups of the node's own kernel.
    #[default]
    Namespaces,
    /// A kernel of its own inside a virtual machine.
    Vm,
}

/// Why a pod cannot get the isolation that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("isolation {0:?} is not known; use \"\" or \"vm\"")]
    Unknown(String),
    #[error("isolation \"{0}\" is not available on this node yet: no virtual machine monitor is built in")]
    NotAvailable(Isolation),
}

impl Isolation {
    /// Refuses an isolation that this node cannot give.
    pub fn ensure_available(self) -> Result<(), Error> {
        match self {
            Isolation::Namespaces => Ok(()),
            Isolation::Vm => Err(Error::NotAvailable(self)),
        }
    }
}

impl FromStr for Isolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "" => Ok(Isolation::Namespaces),
            "vm" => Ok(Isolation::Vm),
            other => Err(Error::Unknown(other.to_owned())),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Namespaces => "",
            Isolation::Vm => "vm",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_isolations_parse_and_the_vm_is_refused() {
        assert_eq!("".parse(), Ok(Isolation::Namespaces));
        assert_eq!(
            "vm".parse::<Isolation>().unwrap().ensure_available(),
            Err(Error::NotAvailable(Isolation::Vm))
        );
        assert_eq!("kata".parse::<Isolation>(), Err(Error::Unknown("kata".into())));
        assert!(Isolation::Namespaces.ensure_available().is_ok());
    }
}
