//! The daemon's socket: a unix socket that only root may use, and that a dead daemon's leftover does not block.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

use super::ServeError;

/// Listens at `path`.
pub(super) async fn bind(path: &Path) -> Result<UnixListenerStream, ServeError> {
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
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("remove old")(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(failed("set the mode of"))?;
    Ok(UnixListenerStream::new(listener))
}
