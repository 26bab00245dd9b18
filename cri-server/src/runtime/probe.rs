//! Asks our own shim to try on this node what a pod with users of its own needs, and what a handler with a stronger
//! isolation needs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use protobuf::Message;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Handler, ShimKind};
use crate::node::UserNamespaces;
use crate::report::chain;

/// It takes milliseconds; a file system that hangs must not keep the daemon from starting.
const LIMIT: Duration = Duration::from_secs(5);

/// A machine is tried once in the life of a node, or when its files change; the answer is there at once otherwise.
const MACHINE: Duration = Duration::from_secs(15);

/// Under emulation a machine may take this long to boot.
const MEASURED: Duration = Duration::from_secs(180);

/// What the shim of a handler says of what it isolates by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Means {
    pub kvm: bool,
    /// Why it is not KVM.
    pub obstacle: Option<String>,
    /// What a pod takes beside its containers, as configured.
    #[serde(rename = "overheadMiB")]
    pub overhead_mib: u64,
}

/// Whether pods of the handler can run: nothing for one whose pods need no more than its shim.
pub async fn means(handler: &Handler, state: &Path) -> Option<Result<Means, String>> {
    if handler.kind != ShimKind::Own || handler.isolation.is_empty() {
        return None;
    }
    // Where the shims of pods keep what they have found out.
    let asked = ask(handler, "check-machines", &[&state.join("s")], MACHINE).await;
    Some(asked.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string())))
}

/// Boots a machine of the handler in `folder`, and answers what it costs, as the shim tells it.
///
/// # Errors
/// When no machine boots, with the shim's words.
pub async fn measure(handler: &Handler, folder: &Path) -> Result<String, String> {
    ask(handler, "measure-machine", &[&folder.join("machine"), &folder.join("probes")], MEASURED).await
}

/// Runs a command of our shim with the handler's options on stdin; what it prints, or why it failed.
async fn ask(handler: &Handler, action: &str, paths: &[&Path], limit: Duration) -> Result<String, String> {
    let shim = handler.check().map_err(|error| chain(&error))?;
    let options = handler.options.as_ref().map(Message::write_to_bytes).transpose();
    let options = options.map_err(|error| error.to_string())?.unwrap_or_default();
    let mut command = Command::new(shim);
    command.arg(action).args(paths).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&options).await?;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(words(&output.stderr)),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("the trial did not end within {limit:?}")),
    }
}

/// What our shim says of its failure, without its name.
fn words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    text.strip_prefix("containerd-shim-cofferdam-v1: ").unwrap_or(text).to_owned()
}

/// What came of the trial in the folders of layers (`root`) and of bundles (`state`).
pub async fn user_namespaces(own: &Handler, root: &Path, state: &Path) -> UserNamespaces {
    let shim = match own.check() {
        Ok(shim) => shim,
        Err(error) => return UserNamespaces::Unavailable(chain(&error)),
    };
    let mut command = Command::new(shim);
    command.arg("probe-user-namespaces").arg(root).arg(state);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => UserNamespaces::Available,
        Ok(Ok(output)) => UserNamespaces::Unavailable(words(&output.stderr)),
        Ok(Err(error)) => UserNamespaces::Unavailable(chain(&error)),
        Err(_) => UserNamespaces::Unavailable(format!("the trial did not end within {LIMIT:?}")),
    }
}
