//! Asks our own shim to try on this node what a pod with users of its own needs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Handler;
use crate::node::UserNamespaces;
use crate::report::chain;

/// It takes milliseconds; a file system that hangs must not keep the daemon from starting.
const LIMIT: Duration = Duration::from_secs(5);

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
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = text.trim();
            UserNamespaces::Unavailable(
                text.strip_prefix("containerd-shim-cofferdam-v1: ").unwrap_or(text).to_owned(),
            )
        }
        Ok(Err(error)) => UserNamespaces::Unavailable(chain(&error)),
        Err(_) => UserNamespaces::Unavailable(format!("the trial did not end within {LIMIT:?}")),
    }
}
