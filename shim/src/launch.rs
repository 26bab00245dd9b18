//! Starts the short-lived child that talks to the OCI runtime, and reads its reports.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::backend::{CHILD_COMMAND, Failure, FailureKind};
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::reaper::{Launching, Reaper};
use crate::sys;
use crate::wire::{Created, Order, Report, Restored};

/// After the child ended, its last words are already in the socket; this only bounds reading them.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A child that failed removes the cgroups it made; more than this it does not get.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// As whom the child shows itself.
const NAME: &str = "containerd-shim-cofferdam-v1";

/// Descriptors that a service manager passed to the daemon: libcontainer would pass whatever has their numbers on.
const NOT_FOR_CONTAINERS: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"];

/// The longest report, and the most of them in one conversation: the child may have been taken over by then.
const LONGEST_REPORT: u64 = 64 * 1024;
const MOST_REPORTS: u32 = 1000;

/// The container's ends of its standard streams; an absent one is /dev/null.
#[derive(Default)]
pub struct ContainerEnds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// What comes over the socket, report by report.
struct Reports {
    stream: BufReader<UnixStream>,
    /// The beginning of a report whose end has not come yet.
    line: Vec<u8>,
    taken: u32,
}

impl Reports {
    fn new(stream: UnixStream) -> Self {
        Reports { stream: BufReader::with_capacity(1024, stream), line: Vec::new(), taken: 0 }
    }

    /// The next report, or `None` at the end. Nothing is lost when the caller stops waiting.
    async fn next(&mut self) -> io::Result<Option<Report>> {
        let room = LONGEST_REPORT - self.line.len() as u64;
        match (&mut self.stream).take(room).read_until(b'\n', &mut self.line).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(e),
        }
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(None);
        }
        self.taken += 1;
        if line.len() as u64 >= LONGEST_REPORT || self.taken > MOST_REPORTS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime child says too much"));
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

/// The child and what it says.
pub struct Child {
    /// Its process, for as long as anybody may want to end it; none on a kernel that has no such handles.
    handle: Option<Arc<OwnedFd>>,
    reports: Reports,
    exited: oneshot::Receiver<u32>,
    ended: bool,
    details: Vec<String>,
    bundle: Bundle,
    _launching: Launching,
}

/// The rest of the conversation after the child is gone: the container's process holds the other end until its exec.
pub struct UntilExec {
    reports: Reports,
}

fn stdio(end: Option<OwnedFd>) -> Stdio {
    end.map_or_else(Stdio::null, |fd| Stdio::from(File::from(fd)))
}

pub fn spawn(
    reaper: &Arc<Reaper>,
    bundle: &Bundle,
    order: &Order,
    ends: ContainerEnds,
) -> Result<Child, ShimError> {
    let failed = ShimError::io("start the runtime child");
    spawn_child(reaper, bundle, order, ends).map_err(failed)
}

fn spawn_child(
    reaper: &Arc<Reaper>,
    bundle: &Bundle,
    order: &Order,
    ends: ContainerEnds,
) -> io::Result<Child> {
    let (ours, theirs) = StdStream::pair()?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    let launching = reaper.launching();
    // The process has one thread, so no other spawn can slip in between and inherit the socket as well.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let program = sys::program::own()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command
        .arg0(NAME)
        .arg(CHILD_COMMAND)
        .arg(theirs.as_raw_fd().to_string())
        .arg(std::process::id().to_string())
        .current_dir(bundle.path())
        .stdin(stdio(ends.stdin))
        .stdout(stdio(ends.stdout))
        .stderr(stdio(ends.stderr));
    for variable in NOT_FOR_CONTAINERS {
        command.env_remove(variable);
    }
    let child = command.spawn()?;
    drop((theirs, program));
    let pid = child.id().cast_signed();
    // It cannot have been waited for: that is done by this thread, and later.
    let handle = rustix::process::Pid::from_raw(pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    let exited = reaper.watch(pid);
    (&ours).write_all(&line)?;
    ours.set_nonblocking(true)?;
    let reports = Reports::new(UnixStream::from_std(ours)?);
    Ok(Child {
        handle: handle.map(Arc::new),
        reports,
        exited,
        ended: false,
        details: Vec::new(),
        bundle: bundle.clone(),
        _launching: launching,
    })
}

impl Child {
    /// The child's process, which no other can take the place of.
    pub fn handle(&self) -> Option<Arc<OwnedFd>> {
        self.handle.clone()
    }

    /// The next report, or `None` when the child ended without another word.
    async fn next(&mut self) -> Result<Option<Report>, ShimError> {
        let reading = ShimError::io("read the runtime child's report");
        if !self.ended {
            tokio::select! {
                biased;
                read = self.reports.next() => return read.map_err(reading),
                _ = &mut self.exited => self.ended = true,
            }
        }
        match timeout(LAST_WORDS, self.reports.next()).await {
            Ok(read) => read.map_err(reading),
            Err(_) => Ok(None),
        }
    }

    /// Reads on until `pick` has what it wants; warnings are logged and details join the failure on the way.
    async fn until<T>(&mut self, pick: impl Fn(Report) -> Option<T>) -> Result<T, ShimError> {
        while let Some(report) = self.next().await? {
            match report {
                Report::Warning(text) => self.bundle.warn(&text),
                Report::Detail(text) => self.details.push(text),
                Report::Failed(failure) => {
                    self.cleaned_up().await;
                    return Err(ShimError::Runtime(self.explain(failure)));
                }
                wanted => {
                    if let Some(value) = pick(wanted) {
                        return Ok(value);
                    }
                }
            }
        }
        let failure = Failure::new(FailureKind::Runtime, "the runtime child ended without an answer");
        Err(ShimError::ChildLost(self.explain(failure)))
    }

    /// The child undoes what it did before it ends; only then may the caller try again.
    async fn cleaned_up(&mut self) {
        if !self.ended {
            self.ended = timeout(CLEAN_UP, &mut self.exited).await.is_ok();
        }
    }

    fn explain(&mut self, mut failure: Failure) -> Failure {
        if failure.kind.is_about_the_executable() {
            return failure;
        }
        // The first detail comes from the deepest place; the later ones repeat it with less precision.
        if let Some(detail) = self.details.first() {
            failure.message = format!("{}: {detail}", failure.message);
        }
        failure
    }

    pub async fn created(mut self) -> Result<(Created, UntilExec), ShimError> {
        let created = self.until(|r| if let Report::Created(c) = r { Some(c) } else { None }).await?;
        Ok((created, UntilExec { reports: self.reports }))
    }

    pub async fn executed(&mut self) -> Result<i32, ShimError> {
        self.until(|r| if let Report::Executed(pid) = r { Some(pid) } else { None }).await
    }

    pub async fn restored(mut self) -> Result<Restored, ShimError> {
        self.until(|r| if let Report::Restored(restored) = r { Some(restored) } else { None }).await
    }

    pub async fn done(mut self) -> Result<(), ShimError> {
        self.until(|r| matches!(r, Report::Done).then_some(())).await
    }

    pub fn until_exec(self) -> UntilExec {
        UntilExec { reports: self.reports }
    }
}

impl UntilExec {
    /// Returns when the program runs, or says why it does not.
    pub async fn wait(mut self, bundle: &Bundle) -> Result<(), ShimError> {
        loop {
            match self.reports.next().await.map_err(ShimError::io("wait for the program's exec"))? {
                None => return Ok(()),
                Some(Report::Failed(failure)) => return Err(ShimError::Runtime(failure)),
                Some(Report::Warning(text) | Report::Detail(text)) => bundle.warn(&text),
                Some(_) => {}
            }
        }
    }
}
