//! A client of the streaming server: exec, attach and port-forward over SPDY and over WebSocket.

pub mod upgrade;
pub mod wire;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use cofferdam_proto::cri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Cri;
use crate::harness::netns::Netns;
use upgrade::{BoxIo, Url};
use wire::{Said, Wire};

/// The channels of a command.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;

/// More than any test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which streams a command has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    pub stdin: bool,
    pub tty: bool,
}

/// How the client talks: `None` is SPDY, otherwise the WebSocket protocol.
pub type Protocol = Option<&'static str>;

/// A session of either transport.
pub struct Session {
    io: BoxIo,
    input: BytesMut,
    wire: Wire,
    opened: bool,
}

/// All that was said from now on, by channel, to the end of the session.
pub type Rest = BTreeMap<u8, Vec<u8>>;

impl Cri {
    /// The URL of a new exec.
    pub async fn exec_url(&self, id: &str, cmd: &[&str], flags: Flags) -> Result<String, tonic::Status> {
        let request = cri::ExecRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(|part| (*part).to_owned()).collect(),
            tty: flags.tty,
            stdin: flags.stdin,
            stdout: true,
            stderr: !flags.tty,
        };
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// The URL of a new attach.
    pub async fn attach_url(&self, id: &str, flags: Flags) -> Result<String, tonic::Status> {
        let request = cri::AttachRequest {
            container_id: id.into(),
            stdin: flags.stdin,
            tty: flags.tty,
            stdout: true,
            stderr: !flags.tty,
        };
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    /// The URL of a new port-forward.
    pub async fn forward_url(&self, pod: &str, ports: &[u16]) -> Result<String, tonic::Status> {
        let port = ports.iter().map(|port| i32::from(*port)).collect();
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.into(), port };
        Ok(self.runtime.clone().port_forward(request).await?.into_inner().url)
    }
}

impl Session {
    /// A command at `url`.
    pub async fn command(netns: &Netns, url: &str, protocol: Protocol, flags: Flags) -> Self {
        Self::command_trusting(netns, url, protocol, flags, None).await
    }

    /// The same over TLS, with a server that shows a certificate by `authority`.
    pub async fn command_trusting(
        netns: &Netns,
        url: &str,
        protocol: Protocol,
        flags: Flags,
        authority: Option<&Path>,
    ) -> Self {
        let mut session = Self::open(netns, url, protocol, "v4.channel.k8s.io", authority).await;
        if protocol.is_none() {
            let names = ["stdin", "stdout", "stderr", "error", "resize"];
            let wanted = [flags.stdin, true, !flags.tty, true, flags.tty];
            for (channel, (name, _)) in (0..).zip(names.iter().zip(wanted)).filter(|(_, (_, wanted))| *wanted)
            {
                session.stream(channel, &[("streamtype", name)]).await;
            }
        }
        session
    }

    /// Forwarded ports at `url`.
    pub async fn forward(netns: &Netns, url: &str, protocol: Protocol) -> Self {
        Self::forward_trusting(netns, url, protocol, None).await
    }

    /// The same over TLS, with a server that shows a certificate by `authority`.
    pub async fn forward_trusting(
        netns: &Netns,
        url: &str,
        protocol: Protocol,
        authority: Option<&Path>,
    ) -> Self {
        Self::open(netns, url, protocol, "portforward.k8s.io", authority).await
    }

    async fn open(
        netns: &Netns,
        url: &str,
        protocol: Protocol,
        spdy: &str,
        authority: Option<&Path>,
    ) -> Self {
        let url = Url::parse(url);
        let io =
            upgrade::connect(netns, &url, authority).await.expect("the streaming server does not let us in");
        let answer = match protocol {
            None => {
                let headers =
                    [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", spdy)];
                upgrade::request(io, "POST", &url.path, &headers).await
            }
            Some(name) => {
                let headers = [
                    ("Connection", "Upgrade"),
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Version", "13"),
                    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                    ("Sec-WebSocket-Protocol", name),
                ];
                upgrade::request(io, "GET", &url.path, &headers).await
            }
        };
        let head = answer.head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{}", answer.head);
        assert!(head.contains(protocol.unwrap_or(spdy)), "another protocol: {}", answer.head);
        let wire = match protocol {
            None => Wire::Spdy,
            Some(name) if name.contains("base64") => Wire::Base64,
            Some(_) => Wire::Binary,
        };
        Self { io: answer.io, input: answer.rest, wire, opened: false }
    }

    /// Opens the SPDY stream that stands for a channel.
    pub async fn stream(&mut self, channel: u8, headers: &[(&str, &str)]) {
        let mut output = BytesMut::new();
        wire::open(&mut output, channel, headers, !std::mem::replace(&mut self.opened, true));
        self.io.write_all(&output).await.expect("the daemon hung up");
        self.io.flush().await.expect("the daemon hung up");
    }

    /// One forwarded connection over SPDY: its data is on channel `2n + 1`, its errors on `2n`.
    pub async fn connection(&mut self, n: u8, port: u16) {
        let (port, number) = (port.to_string(), n.to_string());
        for (channel, kind) in [(2 * n, "error"), (2 * n + 1, "data")] {
            let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", number.as_str())];
            self.stream(channel, &headers).await;
        }
    }

    pub async fn send(&mut self, channel: u8, data: &[u8]) {
        self.try_send(channel, data).await.expect("the daemon hung up");
    }

    /// The same where the daemon may hang up.
    pub async fn try_send(&mut self, channel: u8, data: &[u8]) -> std::io::Result<()> {
        let mut output = BytesMut::new();
        wire::put(&mut output, self.wire, channel, data);
        self.io.write_all(&output).await?;
        // Over TLS, what the socket did not take at once waits for this.
        self.io.flush().await
    }

    /// Ends our side of a channel.
    pub async fn end(&mut self, channel: u8) {
        let mut output = BytesMut::new();
        wire::end(&mut output, self.wire, channel);
        self.io.write_all(&output).await.expect("the daemon hung up");
        self.io.flush().await.expect("the daemon hung up");
    }

    pub async fn resize(&mut self, columns: u16, rows: u16) {
        self.send(RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes()).await;
    }

    /// The next that is said; `None` when the daemon hung up.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            match wire::take(&mut self.input, self.wire) {
                Some(Said::Other) => {}
                Some(said) => return Some(said),
                None => {
                    let read = tokio::time::timeout(PATIENCE, self.io.read_buf(&mut self.input)).await;
                    match read.expect("nothing comes for half a minute") {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return None,
                    }
                }
            }
        }
    }

    /// Reads one channel until it said `text`; gives all that it said. Other channels must be silent.
    pub async fn until(&mut self, wanted: u8, text: &str) -> String {
        let mut all = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&all).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            match self.next().await {
                Some(Said::Data { channel, data }) if channel == wanted => all.extend(data),
                Some(Said::Data { data, .. }) if data.is_empty() => {}
                other => panic!("{other:?} while {text:?} was awaited after {so_far:?}"),
            }
        }
    }

    /// Reads to the end of the session.
    pub async fn rest(&mut self) -> Rest {
        let mut rest = Rest::new();
        while let Some(said) = self.next().await {
            match said {
                Said::Data { channel, data } => rest.entry(channel).or_default().extend(data),
                Said::Farewell => break,
                _ => {}
            }
        }
        rest
    }
}

/// What the error channel says of a command's end: its exit code, if it had one.
pub fn exit_code(error: &[u8]) -> Result<i32, String> {
    let text = String::from_utf8_lossy(error).into_owned();
    let status: serde_json::Value = serde_json::from_slice(error).map_err(|_| text.clone())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    if status["reason"] != "NonZeroExitCode" {
        return Err(text);
    }
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["reason"], "ExitCode", "{text}");
    cause["message"].as_str().and_then(|code| code.parse().ok()).ok_or(text)
}
