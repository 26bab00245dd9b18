//! From a URL to an upgraded connection, as a client far from the daemon would do it: TCP, TLS, one HTTP request.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::harness::netns::Netns;

/// Any connection.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub type BoxIo = Box<dyn Io>;

/// A URL of the streaming server, taken apart.
#[derive(Clone, Debug)]
pub struct Url {
    pub tls: bool,
    pub address: SocketAddr,
    pub path: String,
}

/// What a server answered to the request.
pub struct Answer {
    /// The status line and the headers.
    pub head: String,
    /// What came behind them already.
    pub rest: BytesMut,
    pub io: BoxIo,
}

impl Url {
    pub fn parse(text: &str) -> Self {
        let (scheme, rest) = text.split_once("://").expect("a URL has a scheme");
        let (address, path) = rest.split_once('/').expect("a URL has a path");
        let address = address.parse().expect("the server listens at an address");
        Self { tls: scheme == "https", address, path: format!("/{path}") }
    }
}

/// Connects from inside `netns`, over TLS if the URL says so: `authority` is the certificate that is trusted then.
pub async fn connect(netns: &Netns, url: &Url, authority: Option<&Path>) -> std::io::Result<BoxIo> {
    let address = url.address;
    let limit = Duration::from_secs(5);
    let stream = netns.run(move || std::net::TcpStream::connect_timeout(&address, limit))?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let Some(authority) = authority.filter(|_| url.tls) else { return Ok(Box::new(stream)) };
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(authority).expect("no certificate to trust");
    roots.add(certificate).expect("a certificate that nobody could trust");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("rustls knows its own versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::from(url.address.ip());
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Sends a request with these headers and reads the head of the answer.
pub async fn request(mut io: BoxIo, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: node\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    io.write_all(text.as_bytes()).await.expect("the request was not taken");
    let mut input = BytesMut::new();
    loop {
        if let Some(at) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = input.split_to(at + 4);
            return Answer { head: String::from_utf8_lossy(&head).into_owned(), rest: input, io };
        }
        let read = tokio::time::timeout(Duration::from_secs(10), io.read_buf(&mut input)).await;
        let count = read.expect("no answer within ten seconds").expect("the connection broke");
        assert!(count > 0, "the answer ends within its head: {input:?}");
    }
}
