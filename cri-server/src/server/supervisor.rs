//! What started the daemon and looks after it: systemd, or whoever speaks its protocol (sd_notify(3)).
//!
//! Without one in the environment nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// The supervisor's socket, and how long it waits for a sign of life.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// Beyond this without a beat, the supervisor kills the daemon.
    pub(super) patience: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names. One that cannot be reached is a warning: pods matter more.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let socket = variable("NOTIFY_SOCKET").and_then(|name| {
            connect(&name)
                .inspect_err(|error| tracing::warn!(%error, ?name, "the supervisor cannot be told anything"))
                .ok()
        });
        let own = variable("WATCHDOG_PID").is_none_or(|pid| *pid == *std::process::id().to_string());
        let patience = variable("WATCHDOG_USEC").filter(|_| own && socket.is_some());
        let patience = patience.and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_micros);
        Self { socket, patience: patience.filter(|patience| !patience.is_zero()) }
    }

    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    pub(super) fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    pub(super) fn beat(&self) {
        self.tell("WATCHDOG=1");
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=Ending; pods run on");
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::debug!(%error, state, "the supervisor was not told");
        }
    }
}

/// `@name` is an abstract socket, everything else a path.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(Path::new(name))?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A supervisor that does not read must not hold the daemon up.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_reached_and_others_are_refused() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("notify");
        let abstract_name = format!("cofferdam-test-{}", std::process::id());
        let listeners = [
            (UnixDatagram::bind(&path)?, path.clone().into_os_string()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?,
                format!("@{abstract_name}").into(),
            ),
        ];
        for (listener, name) in listeners {
            let supervisor = Supervisor { socket: Some(connect(&name)?), patience: None };
            supervisor.ready("Serving");
            let mut heard = [0; 64];
            let length = listener.recv(&mut heard)?;
            assert_eq!(&heard[..length], b"READY=1\nSTATUS=Serving");
        }
        assert_eq!(connect(OsStr::new("vsock:2:1")).unwrap_err().kind(), io::ErrorKind::Unsupported);
        Ok(())
    }
}
