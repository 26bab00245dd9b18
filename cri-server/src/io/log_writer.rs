//! The process that writes the CRI log of a container on a foreign shim: `containerd-shim-cofferdam-v1 log-writer`
//! between the shim's FIFOs and the log file. It survives the daemon, and ends when the FIFOs do.
//!
//! Invariant: a process is signalled only through a descriptor of itself, after its start time was compared: a number
//! that was given to another process is never hit.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use super::IoError;

/// How long the writer may take to make the log file.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// What the writer connects.
#[derive(Clone, Copy, Debug)]
pub struct LogRoute<'a> {
    /// The log file.
    pub log: &'a Path,
    /// The FIFO of stdout.
    pub stdout: &'a str,
    /// The FIFO of stderr; empty with a terminal.
    pub stderr: &'a str,
    /// The longest text of one record.
    pub max_line: Option<u32>,
}

/// A running writer, as recorded in `<bundle>/io/log-writer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWriter {
    pid: i32,
    /// In clock ticks since boot: with the number, it names the process.
    started: u64,
    log: PathBuf,
}

impl LogWriter {
    /// Starts the writer and returns once the log file exists.
    ///
    /// # Errors
    /// When it cannot be run, or ends at once: then with its own words.
    pub async fn start(shim: &Path, bundle: &Path, route: LogRoute<'_>) -> Result<Self, IoError> {
        let words = bundle.join("io/log-writer.err");
        let stderr = File::create(&words).map_err(|e| IoError::at("create", &words, e))?;
        let mut command = Command::new(shim);
        command.arg("log-writer").arg("--log").arg(route.log).args(["--stdout", route.stdout]);
        if !route.stderr.is_empty() {
            command.args(["--stderr", route.stderr]);
        }
        if let Some(bytes) = route.max_line {
            command.arg("--max-line").arg(bytes.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).process_group(0);
        let failed = |source| IoError::at("start log writer", shim, source);
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let begun = Instant::now();
        while !route.log.exists() {
            if let Some(status) = child.try_wait().map_err(failed)? {
                let words = std::fs::read_to_string(&words).unwrap_or_default();
                return Err(failed(io::Error::other(format!("{status}: {}", words.trim()))));
            }
            if begun.elapsed() > PATIENCE {
                let _ = child.kill().await;
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            tokio::time::sleep(POLL).await;
        }
        let started = start_time(pid).map_err(failed)?;
        let writer = Self { pid, started, log: route.log.to_owned() };
        writer.record(bundle)?;
        Ok(writer)
    }

    fn record(&self, bundle: &Path) -> Result<(), IoError> {
        let path = bundle.join("io/log-writer.json");
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|json| std::fs::write(&path, json))
            .map_err(|e| IoError::at("write", &path, e))
    }

    /// The writer of this bundle, as an earlier daemon may have started it.
    #[must_use]
    pub fn recorded(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(bundle.join("io/log-writer.json")).ok()?).ok()
    }

    /// Has the writer open its log file anew, after the old one was renamed; returns once the new one exists.
    ///
    /// # Errors
    /// When the writer has ended, or makes no file.
    pub async fn reopen(&self) -> Result<(), IoError> {
        let failed = |source| IoError::at("reopen log", &self.log, source);
        if !self.signal(Signal::HUP).map_err(failed)? {
            return Err(failed(io::Error::other("its writer has ended")));
        }
        let begun = Instant::now();
        while !self.log.exists() {
            if begun.elapsed() > PATIENCE {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Whether the process is there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started)
    }

    /// Ends a writer whose container was never made; one that has ended is no error.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop(&self) -> Result<(), IoError> {
        self.signal(Signal::KILL).map(drop).map_err(|e| IoError::at("stop log writer of", &self.log, e))
    }

    /// `false` where the process is no more.
    fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            other => other?,
        };
        if !self.is_running() {
            return Ok(false);
        }
        match pidfd_send_signal(&process, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(false),
            other => other.map(|()| true).map_err(Into::into),
        }
    }
}

/// When a living process was started; a zombie is none.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The name, in brackets, may hold anything; the state is the 1st and the start time the 20th field after it.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn start_times_survive_odd_names() {
        let numbers = "1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert_eq!(parse_start_time(&format!("12 (a) b) S {numbers}")), Some(777));
        assert_eq!(parse_start_time(&format!("12 (a) Z {numbers}")), None);
        assert_eq!(parse_start_time("12 (a"), None);
    }

    /// A stand-in that reads its FIFO, appends to its log and opens it anew on SIGHUP; also where that is ignored, as below
    /// nohup.
    const WRITER: &str = r#"#!/usr/bin/env -S --default-signal=HUP bash
while [ $# -gt 0 ]; do case $1 in --log) log=$2; shift;; --stdout) out=$2; shift;; esac; shift; done
case $log in *refuse*) echo "no such folder" >&2; exit 1;; esac
exec 4>>"$log"
trap 'exec 4>>"$log"' HUP
exec 3<>"$out"
while true; do read -r -t 0.05 line <&3 && echo "$line" >&4; done
"#;

    #[tokio::test]
    async fn a_writer_outlives_its_record_and_reopens() {
        let bundle = tempfile::tempdir().unwrap();
        let at = |name: &str| bundle.path().join(name);
        std::fs::create_dir(at("io")).unwrap();
        std::fs::write(at("shim"), WRITER).unwrap();
        std::fs::set_permissions(at("shim"), PermissionsExt::from_mode(0o755)).unwrap();
        super::super::fifo::make_fifo(&at("io/stdout")).unwrap();
        let stdout = at("io/stdout");
        let (log, refused) = (at("0.log"), at("refuse.log"));
        let route = LogRoute { log: &log, stdout: stdout.to_str().unwrap(), stderr: "", max_line: None };
        let error = LogWriter::start(&at("shim"), bundle.path(), LogRoute { log: &refused, ..route })
            .await
            .unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("no such folder"));

        LogWriter::start(&at("shim"), bundle.path(), route).await.unwrap();
        let writer = LogWriter::recorded(bundle.path()).unwrap();
        assert!(writer.is_running());
        std::fs::write(&stdout, "one\n").unwrap();
        holds(&log, "one\n").await;
        std::fs::rename(&log, at("0.log.old")).unwrap();
        writer.reopen().await.unwrap();
        std::fs::write(&stdout, "two\n").unwrap();
        holds(&log, "two\n").await;

        let other = LogWriter { started: writer.started + 1, ..writer.clone() };
        other.stop().unwrap();
        assert!(writer.is_running(), "a process of another start time was hit");
        writer.stop().unwrap();
        while writer.is_running() {
            tokio::time::sleep(POLL).await;
        }
        assert!(writer.reopen().await.is_err());
    }

    async fn holds(path: &Path, text: &str) {
        let begun = Instant::now();
        while std::fs::read_to_string(path).is_ok_and(|found| found != text) {
            assert!(begun.elapsed() < Duration::from_secs(5), "{} has not {text:?}", path.display());
            tokio::time::sleep(POLL).await;
        }
    }
}
