//! The socket over which a terminal's master side comes out of the container.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::stream::Stream;
use crate::backend::bind_in_folder;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::sys;

/// The runtime has sent the terminal before it reports success; the bound only covers a foreign one that did not.
const ARRIVAL: Duration = Duration::from_secs(5);

pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

impl ConsoleSocket {
    pub fn bind(bundle: &Bundle, name: &str) -> Result<Self, ShimError> {
        let path = bundle.join(&format!("console-{name}.sock"));
        drop(fs::remove_file(&path));
        let failed = || ShimError::path("listen on the console socket", path.clone());
        let listener = bind_in_folder(&path).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let listener = UnixListener::from_std(listener).map_err(failed())?;
        Ok(ConsoleSocket { path, listener })
    }

    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub async fn receive(self) -> Result<Stream, ShimError> {
        let failed = || ShimError::io("receive the terminal");
        let arrived = timeout(ARRIVAL, async {
            let (connection, _) = self.listener.accept().await?;
            connection.readable().await?;
            Ok(connection)
        });
        let connection = arrived.await.map_err(|e| failed()(e.into()))?.map_err(failed())?;
        let mut name = [0; 256];
        let mut iov = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut iov, Some(&mut space), flags)
            .map_err(|e| failed()(e.into()))?;
        for control in message.cmsgs().map_err(|e| failed()(e.into()))? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(fd) = fds.first()
            {
                return Stream::new(sys::adopt(*fd).map_err(failed())?).map_err(failed());
            }
        }
        Err(failed()(std::io::Error::from(std::io::ErrorKind::InvalidData)))
    }
}
