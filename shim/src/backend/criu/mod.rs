//! The program `criu`, by its command line: images of a running container, and a container made of images.
//!
//! Invariant: criu ends with the runtime child, and within its time; what it says is told in its own words.

mod check;
mod dump;
mod image;
mod restore;
mod stage;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use dump::dump;
pub use restore::restore;

use super::{Failure, FailureKind};

const PROGRAM: &str = "criu";
/// Where runc and its kin look for what the container's standard streams were.
const DESCRIPTORS: &str = "descriptors.json";
/// The names that runc gives what it restores them with.
const NETWORK: &str = "extRootNetNS";
const PROCESSES: &str = "extRootPidNS";
/// Each namespace has its own instance of these, which criu mounts anew.
const OF_NAMESPACES: [&str; 4] = ["proc", "sysfs", "mqueue", "devpts"];
const LOOK: Duration = Duration::from_millis(10);
/// More of the log is not looked at for the cause of a failure, nor more of it told.
const MOST_LINES: usize = 200_000;
const MOST_CAUSES: usize = 3;

fn failed<E: std::error::Error>(doing: &str) -> impl FnOnce(E) -> Failure + use<'_, E> {
    Failure::because(FailureKind::Checkpoint, doing)
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Checkpoint, message)
}

/// One run of criu.
struct Run<'a> {
    /// The first one says what it does.
    words: Vec<String>,
    limit: Duration,
    log: &'a Path,
}

impl Run<'_> {
    fn until_done(self) -> Result<(), Failure> {
        let mut command = Command::new(PROGRAM);
        crate::sys::die_together(&mut command);
        command.args(&self.words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut criu = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => refused("the program criu is not in the PATH of this node"),
            _ => failed("run criu")(error),
        })?;
        while started.elapsed() < self.limit {
            if let Some(status) = criu.try_wait().map_err(failed("wait for criu"))? {
                return self.ended(status);
            }
            std::thread::sleep(LOOK);
        }
        criu.kill().and_then(|()| criu.wait()).map_err(failed("end criu"))?;
        Err(refused(format!("criu was not done within {:?} and was ended", self.limit)))
    }

    fn ended(self, status: ExitStatus) -> Result<(), Failure> {
        if status.success() {
            return Ok(());
        }
        let log = fs::read(self.log).unwrap_or_default();
        let causes = causes(&String::from_utf8_lossy(&log));
        let said = if causes.is_empty() { "it says nothing".to_owned() } else { causes.join("; ") };
        let verb = self.words.first().map(String::as_str).unwrap_or_default();
        Err(refused(format!("criu {verb} ({status}): {said}")))
    }
}

/// The first errors of a log: what comes later follows from them.
fn causes(log: &str) -> Vec<String> {
    let errors = log.lines().take(MOST_LINES).filter_map(|line| {
        let (_, said) = line.split_once("Error (")?;
        Some(said.split_once("): ").map_or(said, |(_, words)| words).trim().to_owned())
    });
    // Said by every run without the right to raise limits, and by one that finds no rule of its own to take away in the
    // pod's network; of no consequence.
    errors
        .filter(|words| !words.starts_with("rlimit:") && words != "exited, status=1")
        .take(MOST_CAUSES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_of_the_log_tell_the_cause() {
        let log = "(00.01) Warn  (criu/kerndat.c:1): no\n\
                   (00.02) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                   (00.03) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n\
                   (00.04) Error (criu/crtools.c:260): Could not initialize\n";
        assert_eq!(causes(log), ["vdso: Unexpected rt vDSO area bounds", "Could not initialize"]);
        assert!(causes("all is well\n").is_empty());
    }
}
