//! Bytes with descriptors beside them, over a Unix socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// More than one message of ours carries.
pub const MOST: usize = 4;

/// Sends all of `bytes`; `passed` goes with the first of them.
///
/// # Errors
/// When the other end is gone, or does not take it.
pub async fn send(stream: &mut UnixStream, bytes: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = if passed.is_empty() {
        0
    } else {
        let attempt = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !beside.push(SendAncillaryMessage::ScmRights(passed)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(sendmsg(&*stream, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?)
        };
        loop {
            stream.writable().await?;
            match stream.try_io(Interest::WRITABLE, attempt) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => break outcome?,
            }
        }
    };
    stream.write_all(&bytes[sent..]).await
}
