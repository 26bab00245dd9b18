//! The texts of a shim's start: what it gets (arguments, environment, standard input) and what it answers.
//! Pure: nothing here runs a process.
//!
//! Three generations of shims are spoken to. The newest take `BootstrapParams` on standard input and answer with a
//! protobuf `BootstrapResult`; those before take the runtime's options as an `Any` and answer with JSON or with a
//! bare address. Which input a shim wants cannot be seen from outside, see [`Dialect`].

use std::ffi::OsString;
use std::path::Path;

use cofferdam_proto::shim::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, PROTOCOLS_VARIABLE};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::{Deserialize, Serialize};

use super::held::ProcessName;

/// The newest Task service known to us, `containerd.task.v3.Task`.
const NEWEST_VERSION: i32 = 3;
/// The Task service of shims that announce nothing.
const OLDEST_VERSION: i32 = 2;

/// Which protocol extras a shim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShimKind {
    /// `containerd-shim-cofferdam-v1`: writes logs itself, serves `ReopenLog`, kills what an exec started.
    Own,
    /// `containerd-shim-runc-v2`: its processes are the host's.
    Runc,
    /// Any other.
    Foreign,
}

/// The form of a shim's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `BootstrapParams`, since containerd 2.3.
    Bootstrap,
    /// The options alone, as `Any`.
    Legacy,
}

/// What is told to a shim about its task and about us.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    /// The task.
    pub id: &'a str,
    /// The namespace; tasks of different namespaces never meet.
    pub namespace: &'a str,
    /// The daemon's name for itself; shims hash it into their socket's name.
    pub grpc_address: &'a str,
    /// Where events go.
    pub ttrpc_address: &'a str,
    /// The daemon's executable.
    pub daemon: &'a Path,
    /// Where the shim may make its socket.
    pub socket_dir: Option<&'a str>,
}

impl Identity<'_> {
    /// The arguments of `action`; `delete` also names the bundle.
    pub fn arguments(&self, action: &str, bundle: Option<&Path>) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["-namespace", self.namespace, "-address", self.grpc_address].map(Into::into).into();
        arguments.extend(["-publish-binary".into(), self.daemon.into(), "-id".into(), self.id.into()]);
        if let Some(bundle) = bundle {
            arguments.extend(["-bundle".into(), bundle.into()]);
        }
        arguments.push(action.into());
        arguments
    }

    /// The environment beyond the daemon's own.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("TTRPC_ADDRESS", self.ttrpc_address.to_owned()),
            ("GRPC_ADDRESS", self.grpc_address.to_owned()),
            ("NAMESPACE", self.namespace.to_owned()),
            ("MAX_SHIM_VERSION", NEWEST_VERSION.to_string()),
            // Shims in Go start a thread per processor otherwise.
            ("GOMAXPROCS", "2".to_owned()),
            (PROTOCOLS_VARIABLE, format!("{OLDEST_PROTOCOL}-{NEWEST_PROTOCOL}")),
        ]
    }

    /// The standard input of `start`.
    pub fn input(&self, dialect: Dialect, options: Option<&Any>) -> Result<Vec<u8>, protobuf::Error> {
        match dialect {
            Dialect::Legacy => options.map_or(Ok(Vec::new()), Message::write_to_bytes),
            Dialect::Bootstrap => BootstrapParams {
                instance_id: self.id.to_owned(),
                namespace: self.namespace.to_owned(),
                containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
                containerd_ttrpc_address: self.ttrpc_address.to_owned(),
                containerd_grpc_address: self.grpc_address.to_owned(),
                containerd_binary: self.daemon.to_string_lossy().into_owned(),
                extensions: options
                    .map(|value| Extension { value: MessageField::some(value.clone()), ..Default::default() })
                    .into_iter()
                    .collect(),
                socket_dir: self.socket_dir.map(str::to_owned),
                ..Default::default()
            }
            .write_to_bytes(),
        }
    }
}

/// How a running shim is reached; stored by the daemon for its own restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `unix:///path`.
    pub address: String,
    /// The version of the Task service: 2 or 3.
    pub version: i32,
    /// What it serves beside the Task service.
    pub kind: ShimKind,
    /// Of our own shim, which version of what it serves beside the Task service, and of the files in its bundle. Shims that
    /// announce none, and records of before, are of the first.
    #[serde(default = "first_protocol")]
    pub protocol: u32,
    /// The shim's process, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
}

fn first_protocol() -> u32 {
    1
}

/// Why an answer to `start` is not understood.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Nothing was printed.
    #[error("it printed nothing")]
    Empty,
    /// None of the known forms.
    #[error("neither a message nor JSON nor an address: {0:?}")]
    Garbage(String),
    /// A protocol that the daemon does not speak.
    #[error("unsupported protocol {0:?}, expected \"ttrpc\"")]
    Protocol(String),
    /// A version of the Task service that the daemon does not speak.
    #[error("unsupported version {0} of the task service")]
    Version(i32),
    /// Of our own shim, an extension that the daemon does not speak.
    #[error(
        "it speaks protocol {0} of Cofferdam's shims, this daemon {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL}: install the two of one version"
    )]
    Extension(u32),
    /// An address that is no path of a unix socket.
    #[error("unsupported address {0:?}, expected unix:///PATH")]
    Address(String),
    /// More than an answer has.
    #[error("it printed more than {0} bytes")]
    TooLong(usize),
}

/// The answer of the second generation.
#[derive(Deserialize)]
struct JsonAnswer {
    #[serde(default)]
    version: i32,
    #[serde(default)]
    address: String,
    #[serde(default)]
    protocol: String,
    /// Our own shim's, when it was asked.
    #[serde(default = "first_protocol")]
    cofferdam: u32,
}

/// Reads the answer to `start`: a message, JSON or a bare address. `kind` is carried into the result.
pub fn parse_answer(answer: &[u8], kind: ShimKind) -> Result<Endpoint, AnswerError> {
    let text = answer.trim_ascii();
    if text.is_empty() {
        return Err(AnswerError::Empty);
    }
    let garbage = || AnswerError::Garbage(excerpt(answer));
    let mut extension = first_protocol();
    let (version, address, protocol) = if text.starts_with(b"{") {
        let json: JsonAnswer = serde_json::from_slice(text).map_err(|_| garbage())?;
        extension = json.cofferdam;
        (json.version, json.address, json.protocol)
    } else if text.starts_with(b"/")
        || text.windows(3).take(16).any(|bytes| bytes == b"://") && text[0] > b' '
    {
        let address = std::str::from_utf8(text).map_err(|_| garbage())?;
        (OLDEST_VERSION, address.to_owned(), String::new())
    } else {
        // Not trimmed: the bytes of a message may look like white space.
        let result = BootstrapResult::parse_from_bytes(answer).map_err(|_| garbage())?;
        if result.address.is_empty() {
            return Err(garbage());
        }
        (result.version, result.address, result.protocol)
    };
    if !matches!(protocol.as_str(), "" | "ttrpc") {
        return Err(AnswerError::Protocol(protocol));
    }
    let version = if version == 0 { OLDEST_VERSION } else { version };
    if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&version) {
        return Err(AnswerError::Version(version));
    }
    if kind == ShimKind::Own && !(OLDEST_PROTOCOL..=NEWEST_PROTOCOL).contains(&extension) {
        return Err(AnswerError::Extension(extension));
    }
    let endpoint = Endpoint { address, version, kind, protocol: extension, process: None };
    endpoint.socket_path().ok_or_else(|| AnswerError::Address(endpoint.address.clone()))?;
    Ok(endpoint)
}

impl Endpoint {
    /// The path of the socket, or `None` for any other kind of address.
    pub fn socket_path(&self) -> Option<&Path> {
        let text = self.address.strip_prefix("ttrpc+").unwrap_or(&self.address);
        let path = text.strip_prefix("unix://").unwrap_or(text);
        (path.starts_with('/') && !path.contains(['\0', '\n'])).then(|| Path::new(path))
    }

    /// Whether the daemon speaks what this shim serves beside the Task service; not after an older daemon took over from
    /// a newer one.
    pub fn is_spoken(&self) -> bool {
        self.kind != ShimKind::Own || (OLDEST_PROTOCOL..=NEWEST_PROTOCOL).contains(&self.protocol)
    }
}

/// The beginning of a shim's output, fit for one line of an error.
pub fn excerpt(output: &[u8]) -> String {
    const LONGEST: usize = 512;
    let text = String::from_utf8_lossy(&output[..output.len().min(LONGEST)]);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: ShimKind = ShimKind::Foreign;
    const SOCKET: &str = "unix:///run/x/s/abc";

    fn message(version: i32, protocol: &str) -> Vec<u8> {
        let result = BootstrapResult {
            version,
            address: SOCKET.to_owned(),
            protocol: protocol.to_owned(),
            ..Default::default()
        };
        result.write_to_bytes().unwrap()
    }

    #[test]
    fn answers_of_every_generation_are_understood() {
        let json = format!(r#"{{"version":3,"address":"{SOCKET}","protocol":"ttrpc"}}"#).into_bytes();
        let table: [(Vec<u8>, i32); 6] = [
            (message(3, "ttrpc"), 3),
            (message(2, ""), 2),
            (json, 3),
            (format!("  {{\"address\":\"{SOCKET}\"}}\n").into_bytes(), 2),
            (SOCKET.as_bytes().to_vec(), 2),
            (format!("{SOCKET}\n").into_bytes(), 2),
        ];
        for (answer, version) in table {
            let endpoint = parse_answer(&answer, FOREIGN).unwrap_or_else(|e| panic!("{answer:?}: {e}"));
            let address = SOCKET.to_owned();
            assert_eq!(endpoint, Endpoint { address, version, kind: FOREIGN, protocol: 1, process: None });
            assert_eq!(endpoint.socket_path(), Some(Path::new("/run/x/s/abc")));
        }
        assert_eq!(
            parse_answer(b"/run/s.sock", ShimKind::Own).unwrap().socket_path(),
            Some(Path::new("/run/s.sock"))
        );
    }

    #[test]
    fn our_own_shim_tells_its_protocol_and_a_newer_one_is_refused_in_words() {
        let answer =
            |protocol: u32| format!(r#"{{"version":3,"address":"{SOCKET}","cofferdam":{protocol}}}"#);
        let parse = |protocol: u32, kind| parse_answer(answer(protocol).as_bytes(), kind);
        for protocol in OLDEST_PROTOCOL..=NEWEST_PROTOCOL {
            assert_eq!(parse(protocol, ShimKind::Own).unwrap().protocol, protocol);
        }
        let bare = parse_answer(SOCKET.as_bytes(), ShimKind::Own).unwrap();
        assert_eq!(bare.protocol, 1, "shims of before tell none");
        let refused = parse(NEWEST_PROTOCOL + 1, ShimKind::Own).unwrap_err();
        assert!(refused.to_string().contains("install the two of one version"), "{refused}");
        assert!(parse(NEWEST_PROTOCOL + 1, FOREIGN).is_ok(), "it means nothing there");
        let stored = r#"{"address":"unix:///s","version":3,"kind":"own"}"#;
        let mut before: Endpoint = serde_json::from_str(stored).unwrap();
        assert_eq!((before.protocol, before.process, before.is_spoken()), (1, None, true));
        before.protocol = NEWEST_PROTOCOL + 1;
        assert!(!before.is_spoken());
    }

    #[test]
    fn other_answers_are_refused_with_their_reason() {
        let refused = |answer: &[u8]| parse_answer(answer, FOREIGN).unwrap_err();
        assert!(matches!(refused(b""), AnswerError::Empty));
        assert!(matches!(refused(b" \n"), AnswerError::Empty));
        assert!(matches!(refused(b"panic: oh no"), AnswerError::Garbage(_)));
        assert!(matches!(refused(b"{not json"), AnswerError::Garbage(_)));
        assert!(matches!(refused(&[0xff; 40]), AnswerError::Garbage(_)));
        assert!(matches!(refused(&message(3, "grpc")), AnswerError::Protocol(_)));
        assert!(matches!(refused(&message(9, "ttrpc")), AnswerError::Version(9)));
        assert!(matches!(refused(&message(-1, "ttrpc")), AnswerError::Version(-1)));
        assert!(matches!(refused(b"vsock://3:1024"), AnswerError::Address(_)));
        assert!(matches!(refused(b"unix://relative"), AnswerError::Address(_)));
        assert!(matches!(refused(b"{}"), AnswerError::Address(_)));
        assert!(matches!(refused(b"unix:///a\nwarning: b"), AnswerError::Address(_)));
    }

    #[test]
    fn arguments_and_input_carry_the_identity() {
        let identity = Identity {
            id: "c1",
            namespace: "k8s.io",
            grpc_address: "/run/c.sock",
            ttrpc_address: "/run/events.sock",
            daemon: Path::new("/usr/bin/cofferdam"),
            socket_dir: Some("/run/s"),
        };
        assert_eq!(
            identity.arguments("delete", Some(Path::new("/b/c1"))),
            [
                "-namespace",
                "k8s.io",
                "-address",
                "/run/c.sock",
                "-publish-binary",
                "/usr/bin/cofferdam",
                "-id",
                "c1",
                "-bundle",
                "/b/c1",
                "delete"
            ]
        );
        let options = Any { type_url: "t".to_owned(), value: vec![1, 2], ..Default::default() };
        let params =
            BootstrapParams::parse_from_bytes(&identity.input(Dialect::Bootstrap, Some(&options)).unwrap())
                .unwrap();
        assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("c1", "k8s.io"));
        assert_eq!(params.socket_dir.as_deref(), Some("/run/s"));
        assert_eq!(*params.extensions[0].value, options);
        let legacy =
            Any::parse_from_bytes(&identity.input(Dialect::Legacy, Some(&options)).unwrap()).unwrap();
        assert_eq!(legacy, options);
        assert!(identity.input(Dialect::Legacy, None).unwrap().is_empty());
    }
}
