//! A shim that goes wrong where a test wants it: a script in front of the real one, and sockets on which nobody serves the
//! protocol.
//!
//! The mode is read at each start, so that a test can change it under a running daemon.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::harness::binaries;

/// `delete` always works: it is what cleans up.
const SCRIPT: &str = r#"#!/bin/bash
for last; do :; done
if [ "$last" != start ]; then exec "@SHIM@" "$@"; fi
mode="$(cat "@DIR@/mode")"
case "$mode" in
  hang) exec sleep 4321 ;;
  stopped)
    answer="$("@SHIM@" "$@")" || exit 1
    kill -STOP "$(cat shim.pid)"
    printf %s "$answer" ;;
  socket) printf '{"version":3,"address":"unix://@DIR@/fake.sock","protocol":"ttrpc"}' ;;
  newer) printf '{"version":3,"address":"unix://@DIR@/fake.sock","protocol":"ttrpc","cofferdam":99}' ;;
  *) exec "@SHIM@" "$@" ;;
esac
"#;

/// What the script and the socket do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The real shim.
    Well,
    /// `start` does not end.
    StartHangs,
    /// The shim starts and does nothing more.
    Stopped,
    /// The socket takes connections and answers nothing.
    Silent,
    /// The socket answers what is no message.
    Garbage,
    /// The socket closes every connection.
    Closes,
    /// It announces a protocol that no daemon speaks yet.
    Newer,
}

/// A script in a folder of its own, and the sockets.
#[derive(Debug)]
pub struct FakeShim {
    folder: tempfile::TempDir,
    server: std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl FakeShim {
    /// Behaves until [`Self::set`].
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("cft-shim-").tempdir_in("/tmp").expect("no temp folder");
        let shim = binaries().join("containerd-shim-cofferdam-v1");
        let text = SCRIPT
            .replace("@DIR@", &folder.path().display().to_string())
            .replace("@SHIM@", &shim.display().to_string());
        let fake = Self { folder, server: std::sync::Mutex::default() };
        std::fs::write(fake.path(), text).expect("cannot write the script");
        std::fs::set_permissions(fake.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        std::fs::write(fake.folder.path().join("mode"), "well").expect("cannot write the mode");
        fake
    }

    /// The executable.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("containerd-shim-cofferdam-v1")
    }

    /// `[runtimes.cofferdam]` with this shim.
    pub fn config(&self) -> String {
        format!("type = \"io.containerd.cofferdam.v1\"\npath = \"{}\"", self.path().display())
    }

    /// What goes wrong from now on. Needs a runtime around it.
    pub fn set(&self, mode: Mode) {
        let word = match mode {
            Mode::Well => "well",
            Mode::StartHangs => "hang",
            Mode::Stopped => "stopped",
            Mode::Silent | Mode::Garbage | Mode::Closes => "socket",
            Mode::Newer => "newer",
        };
        let socket = self.folder.path().join("fake.sock");
        let mut server = self.server.lock().expect("poisoned");
        if let Some(before) = server.take() {
            before.abort();
            // There was one.
            let _ = std::fs::remove_file(&socket);
        }
        if word == "socket" {
            *server = Some(tokio::spawn(serve(mode, listen(&socket))));
        }
        std::fs::write(self.folder.path().join("mode"), word).expect("cannot write the mode");
    }
}

impl Default for FakeShim {
    fn default() -> Self {
        Self::new()
    }
}

fn listen(socket: &Path) -> UnixListener {
    UnixListener::bind(socket).expect("cannot listen on the fake socket")
}

async fn serve(mode: Mode, listener: UnixListener) {
    let mut held = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        match mode {
            Mode::Garbage => {
                tokio::spawn(async move {
                    let mut heard = [0; 256];
                    while let Ok(1..) = stream.read(&mut heard).await {
                        if stream.write_all(&[0xa5; 512]).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Mode::Closes => drop(stream),
            _ => held.push(stream),
        }
    }
}
