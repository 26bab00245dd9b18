//! nf_tables in its own netlink words: tables, chains, rules, sets and elements of one table, sent in transactions.
//!
//! Only what the plugin's few rules need. Registers are counted in 4-byte slots from [`slot`] 0 on, as the kernel
//! has done since 4.1. Meaning is in `nat`.

use crate::sys::netlink::{Message, NetlinkError, Socket, attr, attrs, read_u32, text};

const SUBSYSTEM: u16 = 10;
const FAMILY_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENID: u16 = 1;
const MAP_FLAG: u32 = 0x8;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// The kernel refuses longer user data; nft shows at most this as a comment.
const COMMENT_MAX: usize = 250;

pub const DROP: u32 = 0;
pub const RETURN: u32 = -5i32 as u32;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;

/// A set or map: names and numbers as `nft` itself uses them, so that `nft list` reads well.
#[derive(Debug, Clone, Copy)]
pub struct SetSpec {
    pub name: &'static str,
    pub key_type: u32,
    pub key_len: u32,
    pub data: DataSpec,
    /// Whether the key is in the host's byte order and not the network's; matters to those who list it only.
    pub host_order: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum DataSpec {
    None,
    Verdict,
    Value { kind: u32, len: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    None,
    Bytes(Vec<u8>),
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub set: &'static str,
    pub key: Vec<u8>,
    pub value: Value,
    pub comment: String,
}

/// Where a base chain sits.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// The register that is the n-th 4-byte slot.
pub const fn slot(n: u32) -> u32 {
    8 + n
}

fn message(operation: impl Into<String>, kind: i32, flags: i32) -> Message {
    Message::new(operation, SUBSYSTEM << 8 | kind as u16, flags).raw(&[FAMILY_INET, 0, 0, 0])
}

pub fn new_table(table: &str) -> Message {
    message("create the nf_tables table", libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .attr_str(1, table)
        .attr_be32(2, 0)
}

pub fn delete_table(table: &str) -> Message {
    message("delete the nf_tables table", libc::NFT_MSG_DELTABLE, 0).attr_str(1, table)
}

pub fn new_chain(table: &str, name: &str, hook: Option<Hook>) -> Message {
    let chain = message(
        format!("create chain {name}"),
        libc::NFT_MSG_NEWCHAIN,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
    )
    .attr_str(1, table)
    .attr_str(3, name);
    match hook {
        None => chain,
        Some(hook) => chain
            .nested(4, |m| m.attr_be32(1, hook.number).attr_be32(2, hook.priority as u32))
            .attr_str(7, hook.kind),
    }
}

/// Empties the chain and deletes it: two messages of one transaction.
pub fn delete_chain(table: &str, name: &str) -> [Message; 2] {
    let empty = message(format!("empty chain {name}"), libc::NFT_MSG_DELRULE, 0);
    let delete = message(format!("delete chain {name}"), libc::NFT_MSG_DELCHAIN, 0);
    [empty.attr_str(1, table).attr_str(2, name), delete.attr_str(1, table).attr_str(3, name)]
}

/// A rule made of `expressions`, at the end of the chain.
pub fn new_rule(table: &str, chain: &str, expressions: &[Expression]) -> Message {
    message(
        format!("add a rule to chain {chain}"),
        libc::NFT_MSG_NEWRULE,
        libc::NLM_F_CREATE | libc::NLM_F_APPEND,
    )
    .attr_str(1, table)
    .attr_str(2, chain)
    .nested(4, |list| expressions.iter().fold(list, |list, e| e.write(list)))
}

pub fn new_set(table: &str, set: &SetSpec, id: u32) -> Message {
    let is_map = !matches!(set.data, DataSpec::None);
    let order: u32 = if set.host_order { 1 } else { 2 };
    let head = message(
        format!("create set {}", set.name),
        libc::NFT_MSG_NEWSET,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
    )
    .attr_str(1, table)
    .attr_str(2, set.name)
    .attr_be32(3, if is_map { MAP_FLAG } else { 0 })
    .attr_be32(4, set.key_type)
    .attr_be32(5, set.key_len)
    .attr_be32(10, id)
    // User data for nft: type 0 is the key's byte order, 4 bytes long, 1 the host's and 2 the network's.
    .attr(13, &[&[0, 4], &order.to_ne_bytes()[..]].concat());
    match set.data {
        DataSpec::None => head,
        DataSpec::Verdict => head.attr_be32(6, VERDICT_TYPE).attr_be32(7, 0),
        DataSpec::Value { kind, len } => head.attr_be32(6, kind).attr_be32(7, len),
    }
}

/// Adds an element; with `exclusive` one with the same key that is there already is a failure.
pub fn new_element(table: &str, element: &Element, exclusive: bool) -> Message {
    let flags = libc::NLM_F_CREATE | if exclusive { libc::NLM_F_EXCL } else { 0 };
    let head = message(format!("add to {}", element.set), libc::NFT_MSG_NEWSETELEM, flags);
    head.attr_str(1, table).attr_str(2, element.set).nested(3, |list| {
        list.nested(1, |item| {
            let item = item.nested(1, |key| key.attr(1, &element.key));
            let item = match &element.value {
                Value::None => item,
                Value::Bytes(bytes) => item.nested(2, |data| data.attr(1, bytes)),
                Value::Goto(chain) => item.nested(2, |data| verdict(data, GOTO, Some(chain))),
            };
            if element.comment.is_empty() { item } else { item.attr(6, &comment(&element.comment)) }
        })
    })
}

pub fn delete_element(table: &str, set: &str, key: &[u8]) -> Message {
    message(format!("delete from {set}"), libc::NFT_MSG_DELSETELEM, 0)
        .attr_str(1, table)
        .attr_str(2, set)
        .nested(3, |list| list.nested(1, |item| item.nested(1, |k| k.attr(1, key))))
}

/// nft's own form of user data: type 0 is a comment, ended by a zero byte.
fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(COMMENT_MAX)];
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

fn read_comment(bytes: &[u8]) -> Option<String> {
    match bytes {
        [0, length, rest @ ..] => rest.get(..usize::from(*length)).map(text),
        _ => None,
    }
}

fn verdict(message: Message, code: u32, chain: Option<&str>) -> Message {
    message.nested(2, |m| {
        let m = m.attr_be32(1, code);
        match chain {
            Some(chain) => m.attr_str(2, chain),
            None => m,
        }
    })
}

/// The elements of one set. `ENOENT` when the table is not there.
pub fn elements(socket: &mut Socket, table: &str, set: &'static str) -> Result<Vec<Element>, NetlinkError> {
    let request =
        message(format!("list {set}"), libc::NFT_MSG_GETSETELEM, 0).attr_str(1, table).attr_str(2, set);
    let bodies = socket.dump(&request)?;
    let lists = bodies.iter().filter_map(|body| attr(body.get(4..)?, 3));
    Ok(lists.flat_map(attrs).filter_map(|(_, item)| parse_element(set, item)).collect())
}

fn parse_element(set: &'static str, item: &[u8]) -> Option<Element> {
    let data = attr(item, 2).unwrap_or(&[]);
    let goto = attr(data, 2).and_then(|v| attr(v, 2)).map(|chain| Value::Goto(text(chain)));
    let bytes = attr(data, 1).map(|bytes| Value::Bytes(bytes.to_vec()));
    Some(Element {
        set,
        key: attr(attr(item, 1)?, 1)?.to_vec(),
        value: goto.or(bytes).unwrap_or(Value::None),
        comment: attr(item, 6).and_then(read_comment).unwrap_or_default(),
    })
}

/// The number of the present ruleset. A transaction made with it fails if anything has changed since.
pub fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let operation = "read the ruleset's generation";
    let body = socket.fetch(message(operation, libc::NFT_MSG_GETGEN, 0))?;
    let id = body.get(4..).and_then(|a| attr(a, 1)).and_then(|id| read_u32(id, 0));
    id.map(u32::from_be).ok_or_else(|| NetlinkError::Malformed { operation: operation.to_owned() })
}

/// Carries out all messages or none.
pub fn commit(
    socket: &mut Socket,
    messages: Vec<Message>,
    generation: Option<u32>,
) -> Result<(), NetlinkError> {
    let border = |operation: &str, kind| Message::new(operation, kind, 0).raw(&[0, 0, 0, SUBSYSTEM as u8]);
    let mut begin = border("begin an nf_tables transaction", BATCH_BEGIN);
    if let Some(generation) = generation {
        begin = begin.attr_be32(BATCH_GENID, generation);
    }
    let mut batch = vec![begin];
    batch.extend(messages);
    batch.push(border("end an nf_tables transaction", BATCH_END));
    socket.transaction(batch)
}

/// The expressions that rules are made of; operands are register slots.
#[derive(Debug, Clone)]
pub enum Expression {
    /// The address family of the packet, 1 byte.
    LoadFamily(u32),
    LoadL4Proto(u32),
    LoadInputName(u32),
    LoadNetwork {
        to: u32,
        offset: u32,
        len: u32,
    },
    LoadTransport {
        to: u32,
        offset: u32,
        len: u32,
    },
    LoadCtStatus(u32),
    /// The kind of route that leads to the destination (local, unicast, ...).
    LoadDestinationType(u32),
    Mask {
        at: u32,
        mask: Vec<u8>,
    },
    Equal {
        at: u32,
        value: Vec<u8>,
    },
    NotEqual {
        at: u32,
        value: Vec<u8>,
    },
    Lookup {
        set: &'static str,
        key: u32,
    },
    LookupValue {
        set: &'static str,
        key: u32,
        to: u32,
    },
    LookupVerdict {
        set: &'static str,
        key: u32,
    },
    Dnat {
        family: u8,
        addr: u32,
        port: u32,
    },
    Masquerade,
    Verdict(u32),
    Jump(&'static str),
}

impl Expression {
    fn write(&self, list: Message) -> Message {
        let meta = |to: u32, key: u32| ("meta", vec![(1u16, to), (2, key)]);
        let payload = |to: u32, base: u32, offset: u32, len: u32| {
            ("payload", vec![(1u16, to), (2, base), (3, offset), (4, len)])
        };
        let (name, numbers) = match self {
            Self::LoadFamily(to) => meta(*to, 15),
            Self::LoadL4Proto(to) => meta(*to, 16),
            Self::LoadInputName(to) => meta(*to, 6),
            Self::LoadNetwork { to, offset, len } => payload(*to, 1, *offset, *len),
            Self::LoadTransport { to, offset, len } => payload(*to, 2, *offset, *len),
            Self::LoadCtStatus(to) => ("ct", vec![(1, *to), (2, 2)]),
            Self::LoadDestinationType(to) => ("fib", vec![(1, *to), (2, 3), (3, 2)]),
            Self::Dnat { family, addr, port } => {
                ("nat", vec![(1, 1), (2, u32::from(*family)), (3, *addr), (5, *port)])
            }
            Self::Masquerade => ("masq", Vec::new()),
            other => return other.write_composite(list),
        };
        expression(list, name, |data| numbers.iter().fold(data, |d, (kind, n)| d.attr_be32(*kind, *n)))
    }

    /// Those with more than numbers in them.
    fn write_composite(&self, list: Message) -> Message {
        let compare = |list, at: u32, how: u32, value: &[u8]| {
            expression(list, "cmp", |d| d.attr_be32(1, at).attr_be32(2, how).nested(3, |v| v.attr(1, value)))
        };
        let lookup = |list, set: &str, key: u32, to: Option<u32>| {
            expression(list, "lookup", |d| {
                let d = d.attr_str(1, set).attr_be32(2, key);
                match to {
                    Some(to) => d.attr_be32(3, to),
                    None => d,
                }
            })
        };
        match self {
            Self::Mask { at, mask } => expression(list, "bitwise", |d| {
                let d = d.attr_be32(1, *at).attr_be32(2, *at).attr_be32(3, mask.len() as u32);
                d.nested(4, |v| v.attr(1, mask)).nested(5, |v| v.attr(1, &vec![0; mask.len()]))
            }),
            Self::Equal { at, value } => compare(list, *at, 0, value),
            Self::NotEqual { at, value } => compare(list, *at, 1, value),
            Self::Lookup { set, key } => lookup(list, set, *key, None),
            Self::LookupValue { set, key, to } => lookup(list, set, *key, Some(*to)),
            Self::LookupVerdict { set, key } => lookup(list, set, *key, Some(0)),
            Self::Verdict(code) => immediate(list, *code, None),
            Self::Jump(chain) => immediate(list, JUMP, Some(chain)),
            Self::LoadFamily(_)
            | Self::LoadL4Proto(_)
            | Self::LoadInputName(_)
            | Self::LoadNetwork { .. }
            | Self::LoadTransport { .. }
            | Self::LoadCtStatus(_)
            | Self::LoadDestinationType(_)
            | Self::Dnat { .. }
            | Self::Masquerade => list,
        }
    }
}

fn expression(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nested(1, |item| item.attr_str(1, name).nested(2, fill))
}

fn immediate(list: Message, code: u32, chain: Option<&str>) -> Message {
    expression(list, "immediate", |d| d.attr_be32(1, 0).nested(2, |v| verdict(v, code, chain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_were_written() {
        let values = [Value::None, Value::Bytes(vec![10, 0, 0, 1]), Value::Goto("br0-1".to_owned())];
        for value in values {
            let element = Element {
                set: "pods4",
                key: vec![1, 2, 3, 4],
                value,
                comment: "net@br0/one/eth0".to_owned(),
            };
            let written = new_element("t", &element, true);
            let item = attr(attr(&written.body()[4..], 3).unwrap(), 1).unwrap();
            assert_eq!(parse_element("pods4", item), Some(element));
            for cut in 0..item.len() {
                let _ = parse_element("pods4", &item[..cut]);
            }
        }
    }

    #[test]
    fn comments_are_bounded_and_lying_lengths_refused() {
        assert_eq!(read_comment(&comment("abc")).unwrap(), "abc");
        assert_eq!(read_comment(&comment(&"x".repeat(999))).unwrap().len(), COMMENT_MAX);
        for bad in [&[][..], &[0], &[0, 9, b'a'], &[7, 1, 0]] {
            assert_eq!(read_comment(bad), None, "{bad:?}");
        }
    }
}
