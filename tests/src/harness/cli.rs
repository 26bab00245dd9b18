//! Runs the operator's commands and crictl against a node.

use std::path::Path;
use std::process::Output;

use super::Node;
use super::netns::Netns;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The output of a command that had to work.
    pub fn expect_ok(self) -> String {
        assert!(self.ok, "the command failed: {self:?}");
        self.stdout
    }
}

/// Runs `cofferdam ARGS` on the node's socket.
pub async fn cofferdam(node: &Node, args: &[&str]) -> Ran {
    run(cofferdam_command(node, args)).await
}

/// The same, not run yet.
pub fn cofferdam_command(node: &Node, args: &[&str]) -> std::process::Command {
    command_at(&node.netns, node.cri.socket(), args)
}

/// The same, for who cannot hold the node.
pub fn command_at(netns: &Netns, socket: &Path, args: &[&str]) -> std::process::Command {
    let mut command = netns.command(super::binaries().join("cofferdam"));
    command.arg("--socket").arg(socket).args(args);
    command
}

/// Runs crictl on the node's socket; `None`, and a word about it, when PATH has none.
pub async fn crictl(node: &Node, args: &[&str]) -> Option<Ran> {
    Some(run(crictl_command(node, args)?).await)
}

/// The same, not run yet.
pub fn crictl_command(node: &Node, args: &[&str]) -> Option<std::process::Command> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("crictl").exists()));
    if !found {
        println!("skipped: crictl is not in PATH");
        return None;
    }
    let endpoint = format!("unix://{}", node.cri.socket().display());
    let mut command = node.netns.command("crictl");
    command.args(["--config", "/dev/null", "--timeout", "30s", "--runtime-endpoint", &endpoint]);
    command.args(["--image-endpoint", &endpoint]).args(args);
    Some(command)
}

async fn run(mut command: std::process::Command) -> Ran {
    command.stdin(std::process::Stdio::null());
    // On a thread of its own, so that the runtime goes on; output() waits there, and with it the parent-death signal.
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.expect("the thread panicked").expect("cannot run the command: make build").into()
}
