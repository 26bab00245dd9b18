//! The container code: the shim of the same build, started as containerd would start it.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use cofferdam_vm::agent::RUNTIME;

const FOLDER: &str = "/run/cofferdam/runtime";

/// Starts it, and answers the path of its socket.
pub fn start() -> io::Result<String> {
    fs::create_dir_all(FOLDER)?;
    let output = Command::new(RUNTIME)
        .args(["-namespace", "k8s.io", "-id", "pod", "-bundle", FOLDER, "start"])
        .current_dir(FOLDER)
        .env_clear()
        .env("PATH", "/bin")
        .stdin(Stdio::null())
        .output()?;
    let address = String::from_utf8_lossy(&output.stdout).into_owned();
    match address.trim().strip_prefix("unix://") {
        Some(path) if output.status.success() => Ok(path.to_owned()),
        _ => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(io::Error::other(format!("the container code does not start ({}): {words}", output.status)))
        }
    }
}

pub fn is_alive() -> bool {
    let pid = fs::read_to_string(format!("{FOLDER}/shim.pid")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
