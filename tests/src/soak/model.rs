//! What the soak knows must be: its pods and containers, and what each has been told to do.

use std::path::PathBuf;

use crate::harness::Pod;

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Logs 1, 2, 3 and so on until it is asked to end, which it does at once with code 0.
    Counts,
    /// Ends by itself after so many milliseconds with this code.
    Ends { after: u64, code: i32 },
    /// Does not hear SIGTERM, and has children.
    Deaf,
}

impl Kind {
    pub fn script(self) -> String {
        match self {
            Self::Counts => {
                "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done".into()
            }
            Self::Ends { after, code } => {
                format!("echo 1; sleep {}.{:03}; echo 2; exit {code}", after / 1000, after % 1000)
            }
            Self::Deaf => {
                "trap '' TERM; sleep 4000 & sleep 4000 & echo 1; while :; do sleep 0.5; done".into()
            }
        }
    }
}

/// How a container is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Running,
    /// Exited with this code.
    Code(i32),
    /// Exited with one of these: which came first is not ours to say.
    Either(i32, i32),
    /// Its shim was killed: exited, but not well.
    Lost,
}

impl Wanted {
    pub fn allows(self, code: i32) -> bool {
        match self {
            Self::Running => false,
            Self::Code(wanted) => code == wanted,
            Self::Either(one, other) => code == one || code == other,
            Self::Lost => code != 0,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub kind: Kind,
    pub wanted: Wanted,
    pub log: PathBuf,
    /// Where the log was before it was rotated, oldest first.
    pub rotated: Vec<PathBuf>,
}

impl Container {
    pub fn new(id: String, kind: Kind, log: PathBuf) -> Self {
        let wanted = match kind {
            Kind::Counts | Kind::Deaf => Wanted::Running,
            Kind::Ends { code, .. } => Wanted::Code(code),
        };
        Self { id, kind, wanted, log, rotated: Vec::new() }
    }

    /// Runs for as long as nobody ends it.
    pub fn stays(&self) -> bool {
        self.wanted == Wanted::Running
    }

    /// It is being ended; what was settled before stays.
    pub fn ending(&mut self, wanted: Wanted) {
        if self.wanted == Wanted::Running {
            self.wanted = wanted;
        }
    }
}

#[derive(Clone, Debug)]
pub struct PodModel {
    pub pod: Pod,
    pub containers: Vec<Container>,
    /// Without: its pause process was killed.
    pub ready: bool,
    pub host_network: bool,
    pub serial: usize,
}
