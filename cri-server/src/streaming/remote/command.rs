//! Sessions of exec and attach: stdin, stdout, stderr, resizes and the status.

use super::super::link::LinkError;
use super::negotiate::{Coding, CommandProtocol, CommandVersion};
use super::{BoxRead, BoxWrite, Io, Limits, RemoteError, Resizes, StatusSink, Streams};

/// A client that waits for a command. Streams that were not asked for, or that the client's protocol lacks, are `None`.
pub struct CommandSession {
    pub stdin: Option<BoxRead>,
    pub stdout: Option<BoxWrite>,
    pub stderr: Option<BoxWrite>,
    pub resize: Resizes,
    pub status: StatusSink,
}

impl CommandSession {
    /// Opens a session on an upgraded connection, by the protocol that was agreed.
    pub async fn open(
        io: impl Io,
        protocol: CommandProtocol,
        want: Streams,
        limits: Limits,
    ) -> Result<Self, RemoteError> {
        match protocol {
            CommandProtocol::Spdy(version) => spdy_command(io, version, want, limits).await,
            CommandProtocol::WebSocket(version, coding) => {
                Ok(websocket_command(io, version, coding, want, limits))
            }
        }
    }
}

pub async fn spdy_command(
    _io: impl Io,
    _version: CommandVersion,
    _want: Streams,
    _limits: Limits,
) -> Result<CommandSession, RemoteError> {
    Err(RemoteError::Link(LinkError::Gone))
}
pub fn websocket_command(
    _io: impl Io,
    _version: CommandVersion,
    _coding: Coding,
    _want: Streams,
    _limits: Limits,
) -> CommandSession {
    unreachable!()
}
