//! The little of rtnetlink that a pod's network needs, on both sides of the machine's wall: messages built attribute by
//! attribute, one at a time, each acknowledged.
//!
//! A socket belongs to the network namespace of the thread that opened it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const HEADER: usize = 16;
const RECEIVE: usize = 64 << 10;

/// A message under construction, its header's length not yet filled in.
#[derive(Debug, Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request that is acknowledged; `flags` come on top.
    #[must_use]
    pub fn new(kind: u16, flags: i32) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Message(bytes)
    }

    /// The fixed part behind the header.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    #[must_use]
    pub fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.raw(&[&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat())
    }

    /// An attribute that holds attributes.
    #[must_use]
    pub fn nested(self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Self {
        let inside = fill(Message(Vec::new())).0;
        self.attribute(kind, &inside)
    }
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl std::str::FromStr for Prefix {
    type Err = io::Error;

    fn from_str(text: &str) -> Result<Self, io::Error> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no ADDRESS/LENGTH"));
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length > most { Err(wrong()) } else { Ok(Prefix { address, length }) }
    }
}

#[must_use]
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[must_use]
pub fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> io::Result<Self> {
        // Without a protocol it is that of routes and links, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Has the kernel do one thing.
    ///
    /// # Errors
    /// When it refuses.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, |_, _| ())
    }

    /// Gives every answer to `take`: its type and what follows the header.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn dump(&mut self, message: Message, take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(message, take)
    }

    fn exchange(&mut self, message: Message, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let mut bytes = message.0;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut buffer = vec![0; RECEIVE];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..count];
            while let Some((kind, sequence, body, next)) = split(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(body),
                    _ => take(kind, body),
                }
            }
        }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The first message in `bytes`: type, sequence, body and what follows.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(number(bytes, 0)?)).ok()?;
    let kind = u16::from_ne_bytes(number(bytes, 4)?);
    let sequence = u32::from_ne_bytes(number(bytes, 8)?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn outcome(body: &[u8]) -> io::Result<()> {
    match number(body, 0).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::Error::other("the kernel's answer is malformed")),
    }
}

/// The attributes in `bytes`, by type.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes, 0)?));
        let kind = u16::from_ne_bytes(number(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_again() {
        let message =
            Message::new(1, 0).attribute(3, b"eth0\0").nested(7, |inside| inside.attribute(1, &[9]));
        let found: Vec<_> = attributes(&message.0[HEADER..]).collect();
        assert_eq!(found[0], (3, &b"eth0\0"[..]));
        assert_eq!(attributes(found[1].1).next(), Some((1, &[9][..])));
    }

    #[test]
    fn torn_answers_end_the_reading() {
        assert!(attributes(&[200, 0, 1, 0, 5]).next().is_none());
        assert!(attributes(&[2, 0, 1, 0]).next().is_none());
        assert!(split(&[0; 8]).is_none());
    }

    #[test]
    fn prefixes_are_checked() {
        assert!("10.0.0.1/24".parse::<Prefix>().is_ok() && "fd00::1/64".parse::<Prefix>().is_ok());
        for text in ["10.0.0.1", "10.0.0.1/33", "x/1", "fd00::/129", "/"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }
}
