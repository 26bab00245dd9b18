//! The daemon's socket: a unix socket that only root may use, and that a dead daemon's leftover does not block.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};

use super::ServeError;

/// How long new connections wait after one that could not be accepted: without a descriptor the next one cannot be either.
const BREATH: Duration = Duration::from_millis(100);

/// Listens at `path`; the answer yields the connections.
pub(super) async fn bind(
    path: &Path,
) -> Result<impl Stream<Item = io::Result<UnixStream>> + use<>, ServeError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source| ServeError::Socket { operation, path, source }
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::InUse { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove old")(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(failed("set the mode of"))?;
    Ok(futures::stream::unfold(listener, async |listener| Some((Ok(next(&listener).await), listener))))
}

async fn next(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
