//! A daemon that is to die or fail at a failpoint: started with orders, watched, started again without.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::{Node, binaries, eventually};

const ORDERS: &str = "COFFERDAM_FAILPOINTS";
const MARKS: &str = "COFFERDAM_FAILPOINTS_DIR";

/// Where the binaries with failpoints are.
pub fn failpoint_binaries() -> PathBuf {
    let folder = binaries().join("failpoints");
    let there = folder.join("cofferdam").exists() && folder.join("containerd-shim-cofferdam-v1").exists();
    assert!(there, "{} lacks the binaries with failpoints: make failpoints", folder.display());
    folder
}

impl Node {
    fn marks(&self) -> PathBuf {
        self.dir().join("failpoints")
    }

    /// What the next daemon, and whatever it starts, does at failpoints. Passings are counted anew.
    pub fn arm(&mut self, orders: &str) {
        self.disarm();
        let marks = self.marks();
        let _ = std::fs::remove_dir_all(&marks);
        std::fs::create_dir(&marks).expect("cannot make the folder of marks");
        self.env.push((ORDERS.into(), orders.into()));
        self.env.push((MARKS.into(), marks.display().to_string()));
    }

    /// The next daemon does nothing at failpoints. Shims that were started before keep their orders.
    pub fn disarm(&mut self) {
        self.env.retain(|(name, _)| name != ORDERS && name != MARKS);
    }

    /// How often a point has been passed since [`Node::arm`], and the process that acted there.
    pub fn passed(&self, point: &str) -> (usize, Option<i32>) {
        let mut acted = None;
        let mut count = 0;
        for number in 1.. {
            let Ok(mark) = std::fs::read_to_string(self.marks().join(format!("{point}.{number}"))) else {
                break;
            };
            count += 1;
            if let Some((pid, _action)) = mark.split_once(' ') {
                acted = acted.or(pid.parse().ok());
            }
        }
        (count, acted)
    }

    /// Starts the daemon and does not wait for it.
    pub fn begin(&mut self) {
        self.kill9();
        self.spawn();
    }

    /// Waits until the daemon serves; `false` when it ended before.
    pub async fn serves(&mut self) -> bool {
        let cri = self.cri.clone();
        let mut ended = None;
        let up = eventually(Duration::from_secs(20), async || {
            ended = self.ended();
            ended.is_some() || cri.version().await.is_ok()
        })
        .await;
        assert!(up, "the daemon neither serves nor ends:\n{}", self.daemon_log());
        ended.is_none()
    }

    /// How the daemon ended, if it did; reaped then.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let daemon = self.daemon.as_mut()?;
        daemon.try_wait().expect("cannot wait for the daemon")
    }

    /// Asks the daemon to end and waits for it, whatever way it ends.
    pub async fn terminate(&mut self) -> Option<ExitStatus> {
        let pid = nix::unistd::Pid::from_raw(self.daemon_pid()?.cast_signed());
        // One that has ended is a zombie until it is reaped here, so the number is still its own.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let mut status = None;
        let ended = eventually(Duration::from_secs(20), async || {
            status = self.ended();
            status.is_some()
        });
        assert!(ended.await, "SIGTERM does not end the daemon");
        self.daemon = None;
        status
    }
}
