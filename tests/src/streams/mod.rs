//! Clients of a runtime's streaming server, down to the bytes: what no well-meaning client would let a test say.
//!
//! They block, and know no windows, as the clients of Kubernetes do not.

mod spdy;
pub mod websocket;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub use spdy::{Deflater, Frame, Session, control, data, syn};

use crate::harness::netns::Netns;

/// The longest that a client in here waits for a byte.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a URL of the streaming server leads: address and path.
pub fn target(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is not plain HTTP"));
    let (authority, path) = rest.split_once('/').unwrap_or_else(|| panic!("{url} has no path"));
    (authority.parse().unwrap_or_else(|error| panic!("{authority}: {error}")), format!("/{path}"))
}

/// Connects from inside a node's network.
pub fn connect(netns: &Netns, address: SocketAddr) -> TcpStream {
    let stream = netns.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)));
    let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
    for set in [stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE))] {
        set.expect("cannot set a time-out");
    }
    // The clients of Kubernetes do so, too.
    stream.set_nodelay(true).expect("cannot set TCP_NODELAY");
    stream
}

/// Sends a request's head and reads the answer's; gives its status and the connection behind it.
pub fn request(netns: &Netns, url: &str, method: &str, headers: &[(&str, &str)]) -> (u16, TcpStream) {
    let (address, path) = target(url);
    let mut stream = connect(netns, address);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    // One that refuses may close before it has read all.
    let _ = stream.write_all(head.as_bytes());
    let status = status(&mut stream);
    (status, stream)
}

/// Reads a head, and no byte more; gives its status, 0 for a connection that ended instead.
pub fn status(stream: &mut TcpStream) -> u16 {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return 0,
        }
    }
    let head = String::from_utf8_lossy(&head);
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// The request of a SPDY client; panics when it is not granted.
pub fn spdy(netns: &Netns, url: &str, protocol: &str) -> TcpStream {
    let upgrade =
        [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)];
    let (status, stream) = request(netns, url, "POST", &upgrade);
    assert_eq!(status, 101, "no SPDY");
    stream
}

/// The request of a WebSocket client; panics when it is not granted.
pub fn websocket(netns: &Netns, url: &str, protocol: &str) -> TcpStream {
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "MDEyMzQ1Njc4OTAxMjM0NQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    let (status, stream) = request(netns, url, "GET", &upgrade);
    assert_eq!(status, 101, "no WebSocket");
    stream
}
