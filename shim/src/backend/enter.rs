//! Work among a container's mounts, by a process that does nothing else.
//!
//! Invariant: the process that does it ends with the work, or with the process that asked for it, so nobody else is ever
//! in the container's mount namespace by mistake.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};

use super::join::become_root_of_the_namespace;
use super::{Failure, FailureKind};
use crate::sys::{self, Forked};

/// No complaint is longer.
const LONGEST: u64 = 4096;

/// As whom the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The host's root, whom no mount is closed to.
    Host,
    /// The container's root: the owner of what he makes.
    Container,
}

/// The container's namespaces, and its table of mounts, which its own /proc does not show this process.
struct Door {
    users: Option<File>,
    mounts: File,
    table: File,
}

impl Door {
    fn of(pid: i32, who: Who) -> io::Result<Self> {
        let name = |of: &str| fs::read_link(format!("/proc/{of}/ns/user"));
        let foreign = who == Who::Container && name(&pid.to_string())? != name("self")?;
        let open = |path: &str| File::open(format!("/proc/{pid}/{path}"));
        let users = if foreign { Some(open("ns/user")?) } else { None };
        Ok(Door { users, mounts: open("ns/mnt")?, table: open("mountinfo")? })
    }

    fn enter(self) -> io::Result<File> {
        if let Some(users) = self.users {
            setns(users, CloneFlags::CLONE_NEWUSER)?;
            become_root_of_the_namespace().map_err(|failure| io::Error::other(failure.message))?;
        }
        setns(self.mounts, CloneFlags::CLONE_NEWNS)?;
        Ok(self.table)
    }
}

/// Does `work` among the mounts of the container whose first process is `pid`; it is given their table, to be read as
/// often as it likes. `doing` says in an error what it was.
pub fn mounts_of(
    pid: i32,
    who: Who,
    doing: &str,
    work: impl FnOnce(File) -> io::Result<()>,
) -> Result<(), Failure> {
    let failed = |words: String| Failure::new(FailureKind::Runtime, format!("{doing}: {words}"));
    let door = Door::of(pid, who).map_err(|error| failed(error.to_string()))?;
    let (mut ours, mut theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    let own = std::process::id().cast_signed();
    match sys::fork().map_err(|errno| failed(errno.to_string()))? {
        Forked::Child => {
            drop(ours);
            // After the change of the user, which would take the wish to die together back.
            let done = door.enter().and_then(|table| sys::die_with(own).and_then(|()| work(table)));
            if let Err(error) = done {
                let _ = theirs.write_all(error.to_string().as_bytes());
            }
            sys::exit_now(0)
        }
        Forked::Parent(child) => {
            drop(theirs);
            let mut words = String::new();
            let read = Read::by_ref(&mut ours).take(LONGEST).read_to_string(&mut words);
            match (read, waitpid(child, None)) {
                (Ok(0), Ok(WaitStatus::Exited(_, 0))) => Ok(()),
                (Ok(1..), _) => Err(failed(words)),
                _ => Err(failed("the process that does it has failed".to_owned())),
            }
        }
    }
}
