//! Forgets UDP flows to a host port, so that a client that keeps its socket is not led to where the port led before.
//!
//! TCP needs nothing like it: a new connection is a new flow.

use crate::sys::netlink::{Message, NetlinkError, Socket, attr};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;

fn message(operation: &str, kind: u16, family: u8) -> Message {
    Message::new(operation, SUBSYSTEM << 8 | kind, 0).raw(&[family, 0, 0, 0])
}

/// Forgets every UDP flow that was first sent to one of `ports`.
pub fn forget_udp(socket: &mut Socket, ports: &[u16]) -> Result<(), NetlinkError> {
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for flow in socket.dump(&message("list flows", GET, family))? {
            let attrs = flow.get(4..).unwrap_or(&[]);
            if udp_port(attrs).is_some_and(|port| ports.contains(&port)) {
                forget(socket, family, attrs)?;
            }
        }
    }
    Ok(())
}

/// The port that a UDP flow was first sent to.
fn udp_port(flow: &[u8]) -> Option<u16> {
    let protocol = attr(attr(flow, TUPLE_ORIGINAL)?, TUPLE_PROTOCOL)?;
    if attr(protocol, PROTOCOL_NUMBER)? != [libc::IPPROTO_UDP as u8] {
        return None;
    }
    attr(protocol, PROTOCOL_DESTINATION)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// A flow that ended by itself meanwhile is as good as forgotten.
fn forget(socket: &mut Socket, family: u8, flow: &[u8]) -> Result<(), NetlinkError> {
    let mut request = message("forget a flow", DELETE, family);
    if let Some(tuple) = attr(flow, TUPLE_ORIGINAL) {
        request = request.nested(TUPLE_ORIGINAL, |m| m.raw(tuple));
    }
    for kind in [ID, ZONE] {
        if let Some(value) = attr(flow, kind) {
            request = request.attr(kind, value);
        }
    }
    match socket.request(request) {
        Err(error) if error.is(nix::errno::Errno::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_udp_flow_is_found_and_nothing_else() {
        let flow = |number: u8| {
            Message::new("test", 0, 0).nested(TUPLE_ORIGINAL, |m| {
                m.nested(TUPLE_PROTOCOL, |m| {
                    m.attr_u8(PROTOCOL_NUMBER, number).attr(PROTOCOL_DESTINATION, &[0x14, 0xb4])
                })
            })
        };
        assert_eq!(udp_port(flow(17).body()), Some(5300));
        assert_eq!(udp_port(flow(6).body()), None);
        assert_eq!(udp_port(&[]), None);
    }
}
