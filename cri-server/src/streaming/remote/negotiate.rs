//! Which transport and protocol a request gets: pure decisions on method and headers, answered by the headers of the
//! 101 response or by a refusal that lists what is supported.

#![expect(clippy::result_large_err, reason = "one decision per connection; a box would only be in the way")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use sha1::{Digest, Sha1};

const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// From RFC 6455, section 1.3.
const ACCEPT_SALT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The version of remotecommand: what the error stream says, and what a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandVersion {
    V1,
    V2,
    V3,
    V4,
    V5,
}

/// How channels are written in WebSocket messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// First byte the channel, then bytes.
    Binary,
    /// First character the channel's digit, then base64.
    Base64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandProtocol {
    Spdy(CommandVersion),
    WebSocket(CommandVersion, Coding),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardProtocol {
    Spdy,
    WebSocket(Coding),
    /// SPDY inside the binary messages of a WebSocket.
    Tunnel,
}

/// An agreed protocol and the headers of the 101 response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed<P> {
    pub protocol: P,
    pub headers: HeaderMap,
}

/// The response when nothing was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

type Table<P> = [(&'static str, P)];

const SPDY_COMMANDS: [(&str, CommandVersion); 4] = [
    ("v4.channel.k8s.io", CommandVersion::V4),
    ("v3.channel.k8s.io", CommandVersion::V3),
    ("v2.channel.k8s.io", CommandVersion::V2),
    ("channel.k8s.io", CommandVersion::V1),
];

const WEBSOCKET_COMMANDS: [(&str, (CommandVersion, Coding)); 7] = [
    ("v5.channel.k8s.io", (CommandVersion::V5, Coding::Binary)),
    ("v4.channel.k8s.io", (CommandVersion::V4, Coding::Binary)),
    ("v4.base64.channel.k8s.io", (CommandVersion::V4, Coding::Base64)),
    ("v3.channel.k8s.io", (CommandVersion::V3, Coding::Binary)),
    ("v2.channel.k8s.io", (CommandVersion::V2, Coding::Binary)),
    ("channel.k8s.io", (CommandVersion::V1, Coding::Binary)),
    ("base64.channel.k8s.io", (CommandVersion::V1, Coding::Base64)),
];

const WEBSOCKET_FORWARDS: [(&str, ForwardProtocol); 5] = [
    (TUNNEL, ForwardProtocol::Tunnel),
    ("v4.channel.k8s.io", ForwardProtocol::WebSocket(Coding::Binary)),
    ("v4.base64.channel.k8s.io", ForwardProtocol::WebSocket(Coding::Base64)),
    ("channel.k8s.io", ForwardProtocol::WebSocket(Coding::Binary)),
    ("base64.channel.k8s.io", ForwardProtocol::WebSocket(Coding::Base64)),
];

/// Decides for exec and attach.
pub fn command(method: &Method, headers: &HeaderMap) -> Result<Agreed<CommandProtocol>, Refusal> {
    match transport(method, headers)? {
        Transport::Spdy => {
            let (chosen, mut answer) = spdy(headers, &SPDY_COMMANDS)?;
            // Clients older than the negotiation say nothing and speak version 1.
            let version = match chosen {
                Some((name, version)) => {
                    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
                    version
                }
                None => CommandVersion::V1,
            };
            Ok(Agreed { protocol: CommandProtocol::Spdy(version), headers: answer })
        }
        Transport::WebSocket => {
            let fallback = (CommandVersion::V1, Coding::Binary);
            let ((version, coding), headers) = websocket(headers, &WEBSOCKET_COMMANDS, fallback)?;
            Ok(Agreed { protocol: CommandProtocol::WebSocket(version, coding), headers })
        }
    }
}

/// Decides for port-forward.
pub fn forward(method: &Method, headers: &HeaderMap) -> Result<Agreed<ForwardProtocol>, Refusal> {
    match transport(method, headers)? {
        Transport::Spdy => {
            let (_, mut answer) = spdy(headers, &[(SPDY_FORWARD, ())])?;
            answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(SPDY_FORWARD));
            Ok(Agreed { protocol: ForwardProtocol::Spdy, headers: answer })
        }
        Transport::WebSocket => {
            let fallback = ForwardProtocol::WebSocket(Coding::Binary);
            let (protocol, headers) = websocket(headers, &WEBSOCKET_FORWARDS, fallback)?;
            Ok(Agreed { protocol, headers })
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Spdy,
    WebSocket,
}

fn transport(method: &Method, headers: &HeaderMap) -> Result<Transport, Refusal> {
    if method != Method::GET && method != Method::POST {
        let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
        refusal.headers.insert(http::header::ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(refusal);
    }
    let upgrades = words(headers, &UPGRADE);
    let asked = words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"));
    let offers = |name: &str| asked && upgrades.iter().any(|word| word.eq_ignore_ascii_case(name));
    if offers(SPDY) {
        return Ok(Transport::Spdy);
    }
    if offers("websocket") {
        if method != Method::GET {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is opened with GET"));
        }
        return Ok(Transport::WebSocket);
    }
    let mut refusal = refuse(
        StatusCode::BAD_REQUEST,
        &format!("an upgrade to {SPDY} or websocket is needed, with Connection: Upgrade"),
    );
    refusal.headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1, websocket"));
    Err(refusal)
}

type Chosen<P> = Option<(&'static str, P)>;

/// The first protocol of the client's list that is in the table; nothing if the client has no list.
fn choose<P: Copy>(asked: &[String], table: &Table<P>) -> Result<Chosen<P>, String> {
    if asked.is_empty() {
        return Ok(None);
    }
    let known = |word: &String| table.iter().find(|(name, _)| *name == word).copied();
    asked.iter().find_map(known).map(Some).ok_or_else(|| {
        let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
        format!("no common protocol: asked for {}, supported are {}", asked.join(", "), names.join(", "))
    })
}

fn spdy<P: Copy>(headers: &HeaderMap, table: &Table<P>) -> Result<(Chosen<P>, HeaderMap), Refusal> {
    let chosen = choose(&words(headers, &STREAM_PROTOCOL), table).map_err(|body| {
        let mut refusal = refuse(StatusCode::FORBIDDEN, &body);
        for (name, _) in table {
            refusal.headers.append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        refusal
    })?;
    Ok((chosen, switching(SPDY)))
}

fn websocket<P: Copy>(headers: &HeaderMap, table: &Table<P>, fallback: P) -> Result<(P, HeaderMap), Refusal> {
    if words(headers, &SEC_WEBSOCKET_VERSION) != ["13"] {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version 13 is supported");
        refusal.headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map(|nonce| nonce.len()) != Ok(16) {
        return Err(refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let chosen = choose(&words(headers, &SEC_WEBSOCKET_PROTOCOL), table)
        .map_err(|body| refuse(StatusCode::FORBIDDEN, &body))?;
    let mut answer = switching("websocket");
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
    let Some((name, protocol)) = chosen else { return Ok((fallback, answer)) };
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    Ok((protocol, answer))
}

fn accept(key: &[u8]) -> HeaderValue {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_SALT).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).expect("base64 is a valid header value")
}

fn switching(to: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    headers
}

fn refuse(status: StatusCode, body: &str) -> Refusal {
    Refusal { status, headers: HeaderMap::new(), body: format!("{body}\n") }
}

/// The comma separated words of all headers of this name.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
