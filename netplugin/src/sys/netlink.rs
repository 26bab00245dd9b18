//! A blocking netlink socket, messages built attribute by attribute, and replies read with bounds checks.
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever. Each request carries its own
//! sequence number and replies to anything else are passed over, so a failed exchange cannot confuse the next.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};

const HEADER: usize = 16;
/// Larger than any buffer that the kernel fills for a dump (32 KiB).
const RECEIVE: usize = 64 * 1024;
const NLA_TYPE_MASK: u16 = !((libc::NLA_F_NESTED | libc::NLA_F_NET_BYTEORDER) as u16);
const NLMSGERR_ATTR_MSG: u16 = 1;
const DUMP_TRIES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink socket: cannot {step}")]
    Socket { step: &'static str, source: Errno },
    #[error("{operation}: {errno}{}{hint}", if hint.is_empty() { "" } else { ": " })]
    Refused { operation: String, errno: Errno, hint: String },
    #[error("{operation}: the kernel's answer is malformed")]
    Malformed { operation: String },
    #[error("{operation}: the kernel's tables changed during every try to read them")]
    Unstable { operation: String },
}

impl NetlinkError {
    /// The kernel's refusal, if that is what it was.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { .. } | Self::Malformed { .. } | Self::Unstable { .. } => None,
        }
    }

    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno)
    }
}

/// A message under construction, with the words that name it in an error.
#[derive(Debug, Clone)]
pub struct Message {
    operation: String,
    bytes: Vec<u8>,
}

impl Message {
    /// `NLM_F_REQUEST` is implied.
    pub fn new(operation: impl Into<String>, kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { operation: operation.into(), bytes }
    }

    /// The fixed part that follows the netlink header, or raw payload.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        let value = &value[..usize::from(length) - 4];
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn attr_u8(self, kind: u16, value: u8) -> Self {
        self.attr(kind, &[value])
    }

    pub fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub fn attr_be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn attr_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds what `fill` adds.
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.bytes.len() - start).unwrap_or(u16::MAX);
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// What follows the netlink header.
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn seal(&mut self, sequence: u32, more_flags: i32) {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more_flags as u16;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// A message from the kernel without its netlink header.
#[derive(Debug)]
struct Reply<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Links, addresses and routes.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nf_tables and connection tracking.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let wrong = |step| move |source| NetlinkError::Socket { step, source };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(wrong("open it"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(wrong("bind it"))?;
        set_option(&fd, libc::NETLINK_CAP_ACK).map_err(wrong("ask for short acknowledgements"))?;
        set_option(&fd, libc::NETLINK_EXT_ACK).map_err(wrong("ask for error messages"))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE] })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends one request and waits until the kernel has carried it out.
    pub fn request(&mut self, mut message: Message) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        message.seal(sequence, libc::NLM_F_ACK);
        self.send(&message.bytes)?;
        self.replies(&message.operation, |reply| Ok(reply.sequence == sequence && is_error(reply)), |_| {})
    }

    /// Sends one request that is answered by one message, whose body is returned.
    pub fn fetch(&mut self, mut message: Message) -> Result<Vec<u8>, NetlinkError> {
        let sequence = self.next_sequence();
        message.seal(sequence, 0);
        self.send(&message.bytes)?;
        let mut body = None;
        self.replies(
            &message.operation,
            |reply| Ok(reply.sequence == sequence),
            |reply| {
                if reply.sequence == sequence && !is_error(reply) {
                    body = Some(reply.body.to_vec());
                }
            },
        )?;
        body.ok_or(NetlinkError::Malformed { operation: message.operation })
    }

    /// Sends a dump request and returns the bodies of all answers; starts again when the kernel says that the
    /// tables changed meanwhile.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            if let Some(bodies) = self.dump_once(message.clone())? {
                return Ok(bodies);
            }
        }
        Err(NetlinkError::Unstable { operation: message.operation.clone() })
    }

    fn dump_once(&mut self, mut message: Message) -> Result<Option<Vec<Vec<u8>>>, NetlinkError> {
        let sequence = self.next_sequence();
        message.seal(sequence, libc::NLM_F_DUMP);
        self.send(&message.bytes)?;
        let (mut bodies, mut whole) = (Vec::new(), true);
        let end = |reply: &Reply<'_>| {
            Ok(reply.sequence == sequence && (i32::from(reply.kind) == libc::NLMSG_DONE || is_error(reply)))
        };
        self.replies(&message.operation, end, |reply| {
            if reply.sequence != sequence || is_error(reply) {
                return;
            }
            whole &= i32::from(reply.flags) & libc::NLM_F_DUMP_INTR == 0;
            if i32::from(reply.kind) != libc::NLMSG_DONE {
                bodies.push(reply.body.to_vec());
            }
        })?;
        Ok(whole.then_some(bodies))
    }

    /// Sends all messages in one piece and waits for the last. The first is expected to open a transaction and the
    /// last to close it; the one before the last is acknowledged, every failure is reported.
    pub fn transaction(&mut self, mut messages: Vec<Message>) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let count = messages.len();
        let mut bytes = Vec::new();
        for (index, message) in messages.iter_mut().enumerate() {
            let sequence = self.next_sequence();
            message.seal(sequence, if index + 2 == count { libc::NLM_F_ACK } else { 0 });
            bytes.extend_from_slice(&message.bytes);
        }
        self.send(&bytes)?;
        let acknowledged = first.wrapping_add(count.saturating_sub(2) as u32);
        let named = |reply: &Reply<'_>| {
            let index = reply.sequence.wrapping_sub(first) as usize;
            messages.get(index).map(|m| m.operation.clone())
        };
        let mut failure = None;
        self.replies(
            "nf_tables transaction",
            |reply| {
                if let (Some(operation), true) = (named(reply), is_error(reply)) {
                    let outcome = error_of(&operation, reply);
                    failure = failure.take().or(outcome.err());
                    return Ok(reply.sequence == acknowledged || reply.sequence == first);
                }
                Ok(false)
            },
            |_| {},
        )?;
        failure.map_or(Ok(()), Err)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(NetlinkError::Socket { step: "send a request", source }),
            }
        }
    }

    /// Reads messages, shows each to `see`, until `last` says that one ends the exchange; that one's error, if it
    /// is an error, is the outcome. An error of `last` itself ends the exchange too.
    fn replies(
        &mut self,
        operation: &str,
        mut last: impl FnMut(&Reply<'_>) -> Result<bool, NetlinkError>,
        mut see: impl FnMut(&Reply<'_>),
    ) -> Result<(), NetlinkError> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(NetlinkError::Socket { step: "receive an answer", source }),
            };
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let (reply, tail) =
                    split(rest).ok_or_else(|| NetlinkError::Malformed { operation: operation.to_owned() })?;
                rest = tail;
                see(&reply);
                if last(&reply)? {
                    return if is_error(&reply) { error_of(operation, &reply) } else { Ok(()) };
                }
            }
        }
    }
}

fn set_option(fd: &OwnedFd, option: i32) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the whole call, and the pointer and the length describe `on`, which
    // outlives it; the kernel only reads it. See setsockopt(2), netlink(7).
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(outcome).map(drop)
}

fn is_error(reply: &Reply<'_>) -> bool {
    i32::from(reply.kind) == libc::NLMSG_ERROR
}

/// The first message of `bytes` and what follows it.
fn split(bytes: &[u8]) -> Option<(Reply<'_>, &[u8])> {
    let length = read_u32(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    let reply =
        Reply { kind: read_u16(bytes, 4)?, flags: read_u16(bytes, 6)?, sequence: read_u32(bytes, 8)?, body };
    Some((reply, bytes.get(length.next_multiple_of(4)..).unwrap_or(&[])))
}

/// An acknowledgement is an error of number 0.
fn error_of(operation: &str, reply: &Reply<'_>) -> Result<(), NetlinkError> {
    let malformed = || NetlinkError::Malformed { operation: operation.to_owned() };
    let number = read_u32(reply.body, 0).ok_or_else(malformed)? as i32;
    if number == 0 {
        return Ok(());
    }
    // With short acknowledgements the request's header follows, and after it the attributes.
    let hint = attrs(reply.body.get(4 + HEADER..).unwrap_or(&[]))
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| text(value))
        .unwrap_or_default();
    Err(NetlinkError::Refused { operation: operation.to_owned(), errno: Errno::from_raw(-number), hint })
}

/// The attributes of `bytes`, up to the first that does not fit.
pub fn attrs(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        let kind = read_u16(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Text up to its terminating zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_written_padded_and_read_back() {
        let message =
            Message::new("test", 1, 0).attr(5, &[1, 2, 3]).nested(6, |m| m.attr_u32(7, 9)).attr_str(8, "ab");
        let body = message.body();
        assert_eq!(body.len() % 4, 0);
        assert_eq!(attr(body, 5), Some(&[1u8, 2, 3][..]));
        assert_eq!(read_u32(attr(attr(body, 6).unwrap(), 7).unwrap(), 0), Some(9));
        assert_eq!(text(attr(body, 8).unwrap()), "ab");
    }

    #[test]
    fn truncated_and_lying_input_ends_the_reading() {
        for bad in [&[][..], &[1], &[3, 0, 1, 0], &[0, 0, 1, 0], &[200, 0, 1, 0, 9], &[255, 255, 255, 255]] {
            assert_eq!(attrs(bad).count(), 0, "{bad:?}");
        }
        let mut good = Message::new("test", 2, 0).raw(&[1, 2, 3, 4]);
        good.seal(7, 0);
        let (reply, rest) = split(&good.bytes).unwrap();
        assert_eq!((reply.kind, reply.sequence, reply.body, rest.len()), (2, 7, &[1u8, 2, 3, 4][..], 0));
        for cut in 0..good.bytes.len() {
            assert!(split(&good.bytes[..cut]).is_none(), "{cut}");
        }
        let mut short = good.bytes.clone();
        short[0] = 3;
        assert!(split(&short).is_none());
    }
}
