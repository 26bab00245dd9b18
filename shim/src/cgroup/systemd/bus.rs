//! The one call to systemd's manager that is needed, over D-Bus: no library for it is as small as this.
//!
//! Root talks to systemd's private socket, as systemctl does: no bus needs to run. Where that is not there, the system
//! bus serves. Invariant: a reply is bounded in size and in time.
//!
//! See the D-Bus specification, "Message Protocol".

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM: &str = "/run/dbus/system_bus_socket";
const MANAGER: &str = "org.freedesktop.systemd1";
const TIMEOUT: Duration = Duration::from_secs(20);
/// Replies to what is asked here are some hundred bytes; a signal in between may be a little longer.
const MAX_MESSAGE: usize = 1 << 20;

/// Why systemd did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("connect to {path}")]
    Connect { path: &'static str, source: io::Error },
    #[error("talk to systemd")]
    Io(#[from] io::Error),
    #[error("systemd does not let this process in: {0}")]
    Refused(String),
    #[error("systemd's answer is not understood")]
    Malformed,
    #[error("systemd refuses: {0}")]
    Failed(String),
}

/// A value of a unit's property.
pub enum Property {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u32>),
}

pub struct Bus {
    stream: UnixStream,
    serial: u32,
}

impl Bus {
    pub fn connect() -> Result<Self, BusError> {
        match Self::open(PRIVATE) {
            Err(BusError::Connect { .. }) => {
                let mut bus = Self::open(SYSTEM)?;
                bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "Hello", "", &[])?;
                Ok(bus)
            }
            opened => opened,
        }
    }

    fn open(path: &'static str) -> Result<Self, BusError> {
        let mut stream = UnixStream::connect(path).map_err(|source| BusError::Connect { path, source })?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let uid: String = nix::unistd::geteuid().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let answer = read_line(&mut stream)?;
        if !answer.starts_with("OK") {
            return Err(BusError::Refused(answer));
        }
        stream.write_all(b"BEGIN\r\n")?;
        Ok(Bus { stream, serial: 0 })
    }

    /// Starts a unit that exists for as long as it has something to do.
    pub fn start_transient_unit(
        &mut self,
        name: &str,
        properties: &[(&str, Property)],
    ) -> Result<(), BusError> {
        let mut body = Body::default();
        body.text(name);
        // A unit of this name that is there already is another's: it is not replaced.
        body.text("fail");
        body.array(8, |body| {
            for (key, value) in properties {
                body.align(8);
                body.text(key);
                body.property(value);
            }
        });
        // No further units.
        body.array(8, |_| {});
        let path = "/org/freedesktop/systemd1";
        self.call(MANAGER, path, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0)
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        member: &str,
        signature: &str,
        body: &[u8],
    ) -> Result<(), BusError> {
        self.serial += 1;
        let interface =
            if destination == MANAGER { "org.freedesktop.systemd1.Manager" } else { destination };
        let message = message(self.serial, [path, interface, member, destination], signature, body);
        self.stream.write_all(&message)?;
        loop {
            let reply = self.receive()?;
            if reply.answers != Some(self.serial) {
                // A signal, or what a bus tells every newcomer.
                continue;
            }
            return match reply.kind {
                METHOD_RETURN => Ok(()),
                ERROR => Err(BusError::Failed(reply.text())),
                _ => Err(BusError::Malformed),
            };
        }
    }

    fn receive(&mut self) -> Result<Reply, BusError> {
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed)?;
        let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        // Peers on one machine speak its byte order, which is this one on all that we run on.
        if fixed[0] != b'l' {
            return Err(BusError::Malformed);
        }
        let (body, fields) = (number(4) as usize, number(12) as usize);
        if body > MAX_MESSAGE || fields > MAX_MESSAGE {
            return Err(BusError::Malformed);
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest)?;
        let body = rest.split_off(fields.next_multiple_of(8));
        rest.truncate(fields);
        Ok(Reply { kind: fixed[1], answers: reply_serial(&rest), body })
    }
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

struct Reply {
    kind: u8,
    answers: Option<u32>,
    body: Vec<u8>,
}

impl Reply {
    /// The words of an error.
    fn text(&self) -> String {
        let length = self.body.first_chunk::<4>().map_or(0, |n| u32::from_le_bytes(*n) as usize);
        let words = self.body.get(4..4 + length.min(self.body.len())).unwrap_or_default();
        String::from_utf8_lossy(words).into_owned()
    }
}

/// The header field that says which call this answers: a byte 5, then a variant of type `u`.
fn reply_serial(fields: &[u8]) -> Option<u32> {
    let mut at = 0usize;
    loop {
        at = at.next_multiple_of(8);
        let code = *fields.get(at)?;
        let kind = *fields.get(at + 2)?;
        // Code, the length of a signature of one letter, the letter, its end.
        at += 4;
        let number = u32::from_le_bytes(*fields.get(at..)?.first_chunk::<4>()?);
        match kind {
            b'u' if code == 5 => return Some(number),
            b'u' => at += 4,
            b's' | b'o' => at = at.checked_add(5)?.checked_add(number as usize)?,
            b'g' => at += 2 + usize::from(*fields.get(at)?),
            _ => return None,
        }
    }
}

fn read_line(stream: &mut UnixStream) -> Result<String, BusError> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        if line.len() > 1024 {
            return Err(BusError::Malformed);
        }
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// A method call: the fixed part, the header fields, the body.
fn message(serial: u32, words: [&str; 4], signature: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Body(vec![b'l', METHOD_CALL, 0, 1]);
    out.number(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.number(serial);
    let kinds = [(1, 'o'), (2, 's'), (3, 's'), (6, 's')];
    out.array(8, |out| {
        for ((code, kind), word) in kinds.into_iter().zip(words) {
            out.align(8);
            out.0.push(code);
            out.signature(&kind.to_string());
            out.text(word);
        }
        if !signature.is_empty() {
            out.align(8);
            out.0.push(8);
            out.signature("g");
            out.signature(signature);
        }
    });
    out.align(8);
    out.0.extend_from_slice(body);
    out.0
}

/// Bytes in D-Bus' encoding; positions count from the beginning of a message or of its body, which is aligned.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, n: u32) {
        self.align(4);
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(signature.as_bytes());
        self.0.push(0);
    }

    /// The length counts the elements alone, not what aligns the first.
    fn array(&mut self, element: usize, fill: impl FnOnce(&mut Self)) {
        self.number(0);
        let length = self.0.len() - 4;
        self.align(element);
        let start = self.0.len();
        fill(self);
        let bytes = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    fn property(&mut self, value: &Property) {
        match value {
            Property::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Property::Flag(flag) => {
                self.signature("b");
                self.number(u32::from(*flag));
            }
            Property::Number(number) => {
                self.signature("t");
                self.align(8);
                self.0.extend_from_slice(&number.to_le_bytes());
            }
            Property::Numbers(numbers) => {
                self.signature("au");
                self.array(4, |body| numbers.iter().for_each(|n| body.number(*n)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Body::default();
        body.text("ab");
        body.array(8, |body| {
            body.align(8);
            body.text("k");
            body.property(&Property::Numbers(vec![7]));
        });
        let expected: &[u8] = &[
            2, 0, 0, 0, b'a', b'b', 0, 0, // the text, and up to the array's length
            20, 0, 0, 0, 0, 0, 0, 0, // the length, and up to the first struct
            1, 0, 0, 0, b'k', 0, 2, b'a', b'u', 0, 0, 0, // the key, the variant's signature
            4, 0, 0, 0, 7, 0, 0, 0, // the numbers
        ];
        assert_eq!(body.0, expected);
        let call = message(3, ["/p", "i.f", "M", "d.s"], "s", &body.0);
        assert_eq!(&call[..12], &[b'l', 1, 0, 1, 36, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(call.len() % 8, body.0.len() % 8, "the body is aligned");
    }

    #[test]
    fn the_call_that_is_answered_is_found_among_the_fields() {
        let mut fields = Body::default();
        fields.0.extend([6, 1, b's', 0]);
        fields.text(":1.42");
        fields.align(8);
        fields.0.extend([8, 1, b'g', 0]);
        fields.signature("o");
        fields.align(8);
        fields.0.extend([5, 1, b'u', 0]);
        fields.number(9);
        assert_eq!(reply_serial(&fields.0), Some(9));
        for cut in 0..fields.0.len() {
            assert_eq!(reply_serial(&fields.0[..cut]), None, "{cut}");
        }
        assert_eq!(reply_serial(&[0xff; 64]), None);
    }
}
