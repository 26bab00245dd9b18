//! An external OCI runtime (crun, runc and their kin) by its command line.
//!
//! Its state also lies below the bundle; its log is read as JSON so that the cause of a failure comes through.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::runtime::Process;
use serde::Deserialize;

use super::spec::Fitted;
use super::{Failure, FailureKind, OciRuntime, Reporter, spec};
use crate::bundle::Bundle;
use crate::cgroup::CgroupPaths;
use crate::cgroup::systemd::Visit;
use crate::wire::{CreateOrder, Created, ExecOrder, TaskOrder};

pub struct Binary {
    path: PathBuf,
    systemd_cgroup: bool,
    reporter: Reporter,
}

#[derive(Deserialize)]
struct LogLine {
    level: String,
    msg: String,
}

impl Binary {
    pub fn new(path: &Path, systemd_cgroup: bool, reporter: Reporter) -> Self {
        Binary { path: path.to_owned(), systemd_cgroup, reporter }
    }

    fn command(&self, bundle: &Bundle) -> Command {
        let mut command = Command::new(&self.path);
        crate::sys::die_together(&mut command);
        command.arg("--root").arg(bundle.runtime_root());
        command.arg("--log").arg(bundle.join("oci-runtime.log")).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
    }

    fn run(&self, bundle: &Bundle, mut command: Command, doing: &str) -> Result<(), Failure> {
        let log = bundle.join("oci-runtime.log");
        drop(fs::remove_file(&log));
        let because =
            |e| Failure::because(FailureKind::Runtime, &format!("{doing} with {}", self.path.display()))(e);
        // The container inherits the child's standard streams through the runtime, so they cannot be captured.
        let status = command.status().map_err(because)?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last = last_error(&text).unwrap_or_else(|| status.to_string());
        Err(Failure::new(kind_of(&last), format!("{doing}: {last}")))
    }

    /// Takes away what was made and cannot be used.
    fn abandon(&self, bundle: &Bundle, id: &str) {
        let mut command = self.command(bundle);
        command.args(["delete", "--force"]).arg(id);
        if let Err(failure) = self.run(bundle, command, "take the unfinished container away") {
            self.reporter.warn(failure.message);
        }
    }

    fn read_pid(path: &Path) -> Result<i32, Failure> {
        let text = fs::read_to_string(path)
            .map_err(Failure::because(FailureKind::Runtime, "read the runtime's pid file"))?;
        text.trim().parse().map_err(Failure::because(FailureKind::Runtime, "read the runtime's pid file"))
    }
}

fn last_error(log: &str) -> Option<String> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    lines.rfind(|line| line.level == "error").map(|line| line.msg)
}

fn kind_of(message: &str) -> FailureKind {
    if message.contains("executable file not found")
        || message.contains("no such file or directory") && message.contains("exec")
    {
        FailureKind::ExecutableNotFound
    } else if message.contains("permission denied") && message.contains("exec") {
        FailureKind::ExecutableNotPermitted
    } else {
        FailureKind::Runtime
    }
}

impl OciRuntime for Binary {
    fn create(&self, order: &CreateOrder, fitted: &Fitted, visit: &Visit) -> Result<Created, Failure> {
        let bundle = Bundle::new(&order.bundle);
        let pid_file = bundle.join("oci.pid");
        fs::create_dir_all(bundle.runtime_root())
            .map_err(Failure::because(FailureKind::Runtime, "make the runtime's folder"))?;
        let mut command = self.command(&bundle);
        command.arg("create").arg("--bundle").arg(&fitted.bundle).arg("--pid-file").arg(&pid_file);
        if let Some(console) = &order.console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&order.id);
        self.run(&bundle, command, "create the container")?;
        let found = visit
            .end()
            .map_err(Failure::because(FailureKind::Runtime, "leave the pod's scope"))
            .and_then(|()| {
                let pid = Self::read_pid(&pid_file)?;
                let cgroups = CgroupPaths::of(pid)
                    .map_err(Failure::because(FailureKind::Runtime, "find the container's cgroups"))?;
                Ok((pid, cgroups))
            });
        let (pid, cgroups) = found.inspect_err(|_| self.abandon(&bundle, &order.id))?;
        Ok(Created { pid, cgroups, mounted_on_host: false, start_by_child: true, delete_by_child: true })
    }

    fn start(&self, order: &TaskOrder) -> Result<(), Failure> {
        let bundle = Bundle::new(&order.bundle);
        let mut command = self.command(&bundle);
        command.arg("start").arg(&order.id);
        self.run(&bundle, command, "start the container")
    }

    fn exec(&self, order: &ExecOrder) -> Result<i32, Failure> {
        let bundle = Bundle::new(&order.bundle);
        let mut process: Process = serde_json::from_str(&order.process)
            .map_err(Failure::because(FailureKind::Spec, "read the exec's process"))?;
        spec::clamp(&mut process, self.reporter);
        let writing = |e: io::Error| Failure::because(FailureKind::Runtime, "write the exec's process")(e);
        let text = serde_json::to_vec(&process).map_err(|e| writing(e.into()))?;
        let file = format!("exec-{}.json", order.exec_id);
        bundle.write(&file, &text).map_err(writing)?;
        let pid_file = bundle.join(&format!("exec-{}.pid", order.exec_id));
        let mut command = self.command(&bundle);
        command.args(["exec", "--detach", "--process"]).arg(bundle.join(&file));
        command.arg("--pid-file").arg(&pid_file);
        if let Some(console) = &order.console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&order.id);
        let ran = self.run(&bundle, command, "exec").and_then(|()| Self::read_pid(&pid_file));
        drop(fs::remove_file(bundle.join(&file)));
        drop(fs::remove_file(&pid_file));
        ran
    }

    fn delete(&self, order: &TaskOrder) -> Result<(), Failure> {
        let bundle = Bundle::new(&order.bundle);
        let mut command = self.command(&bundle);
        command.args(["delete", "--force"]).arg(&order.id);
        self.run(&bundle, command, "delete the container")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_tells_the_cause() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\",\"time\":\"t\"}\n\
                   {\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": executable file not found in $PATH\"}\nnoise\n";
        let last = last_error(log).unwrap();
        assert_eq!(kind_of(&last), FailureKind::ExecutableNotFound);
        assert_eq!(last_error("noise"), None);
    }
}
