//! The kernel's security modules, as far as the daemon has to prepare something for them.
//!
//! Whether they are there at all is [`Features`](crate::node::Features)'s to say; which container asks for what is the
//! spec's. This module loads what containers run under, and labels what they use.

pub mod apparmor;
pub mod relabel;
pub mod selinux;
