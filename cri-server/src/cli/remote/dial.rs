//! From the daemon's answer to a connection that speaks SPDY: TCP, TLS where the server has it, the upgrade.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::Response;

use super::{RemoteError, tls};
use crate::rpc::STREAMING_FINGERPRINT;
use crate::streaming::remote::{BoxDuplex, Io};

const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// From the first packet to the upgraded connection. The server is on this machine or near it.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is read of a refusal.
const WORDS: usize = 4096;

/// Where the daemon sends us, and by what we know that we are there.
#[derive(Debug)]
pub(in crate::cli) struct Target {
    url: String,
    fingerprint: Option<String>,
}

impl Target {
    /// The target in an answer of the daemon; `url` picks it out of the message.
    pub(in crate::cli) fn of<T>(answer: Response<T>, url: impl FnOnce(T) -> String) -> Self {
        let fingerprint = answer.metadata().get(STREAMING_FINGERPRINT);
        let fingerprint = fingerprint.and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { url: url(answer.into_inner()), fingerprint }
    }

    fn unclear(&self) -> RemoteError {
        RemoteError::Url { url: self.url.clone() }
    }
}

/// A connection to `target` on which streams can be opened.
pub(in crate::cli) async fn dial(target: &Target, protocol: &'static str) -> Result<BoxDuplex, RemoteError> {
    let uri: Uri = target.url.parse().map_err(|_| target.unclear())?;
    let authority = uri.authority().ok_or_else(|| target.unclear())?;
    let address = authority.to_string();
    let connected = async {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().ok_or_else(|| target.unclear())?;
        let failed = |source| RemoteError::Connect { address: address.clone(), source };
        let tcp = TcpStream::connect((host, port)).await.map_err(failed)?;
        // Keystrokes are small, and each is awaited by a person.
        tcp.set_nodelay(true).map_err(failed)?;
        match (uri.scheme_str(), &target.fingerprint) {
            (Some("http"), _) => upgrade(tcp, &uri, protocol).await,
            (Some("https"), Some(fingerprint)) => {
                let connector = tls::connector(fingerprint)?;
                let name = tls::server_name(host).ok_or_else(|| target.unclear())?;
                let failed = |source| RemoteError::Tls { address: address.clone(), source };
                let stream = connector.connect(name, tcp).await.map_err(failed)?;
                upgrade(stream, &uri, protocol).await
            }
            _ => Err(target.unclear()),
        }
    };
    match tokio::time::timeout(PATIENCE, connected).await {
        Ok(done) => done,
        Err(_) => Err(RemoteError::Slow { address: address.clone() }),
    }
}

async fn upgrade(io: impl Io, uri: &Uri, protocol: &'static str) -> Result<BoxDuplex, RemoteError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.path())
        .header(HOST, host)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, SPDY)
        .header(STREAM_PROTOCOL, protocol)
        .body(Empty::<Bytes>::new())?;
    let asked = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(hyper::upgrade::on(answer).await?);
        }
        let words = Limited::new(answer.into_body(), WORDS).collect().await;
        let words = words.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
        Err(RemoteError::Refused { status, words: words.unwrap_or_default() })
    };
    // The connection works for the request; what became of both, the request says.
    let (_, upgraded) = tokio::join!(connection.with_upgrades(), asked);
    Ok(Box::new(TokioIo::new(upgraded?)))
}
