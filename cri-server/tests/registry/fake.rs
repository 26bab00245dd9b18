//! A small HTTP/1.1 server with fail points: each answer says what goes wrong with it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Where a `Range: bytes=N-` starts.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// Send so many bytes of the body and then nothing more.
    pub stall_after: Option<usize>,
    /// Send the body one byte at a time with this pause.
    pub trickle: Option<Duration>,
    /// Do not say how long the body is.
    pub chunked: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut_after: None,
            stall_after: None,
            trickle: None,
            chunked: false,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(307, "").header("location", to)
    }
}

/// A running server; it ends when dropped.
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(handler, |stream| async move { Some(stream) }).await
    }

    pub async fn start_tls(
        config: rustls::ServerConfig,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::serve(handler, move |stream| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(stream).await.ok() }
        })
        .await
    }

    async fn serve<S, F>(
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        accept: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Option<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (handler, log, count) = (Arc::new(handler), requests.clone(), connections.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (handler, log, stream) = (handler.clone(), log.clone(), accept(stream));
                open.spawn(async move {
                    if let Some(stream) = stream.await {
                        // A client may hang up whenever it likes.
                        let _ = converse(stream, &*handler, &log).await;
                    }
                });
            }
        });
        Self { address, requests, connections, _tasks: tasks }
    }

    pub fn domain(&self) -> String {
        self.address.to_string()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    handler: &(impl Fn(&Request) -> Reply + ?Sized),
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read_request(&mut stream).await? else {
            // What Go's server tells those who speak something else, such as TLS.
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request").await?;
            return stream.shutdown().await;
        };
        log.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        if !write_reply(&mut stream, &reply).await? {
            return stream.shutdown().await;
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<Request>> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let Ok(line) = String::from_utf8(line) else { return Ok(None) };
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: String::new(),
    };
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

/// Says whether the connection may be used again.
async fn write_reply<S: AsyncWrite + Unpin>(stream: &mut S, reply: &Reply) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    let end = reply.cut_after.or(reply.stall_after).unwrap_or(reply.body.len()).min(reply.body.len());
    let body = &reply.body[..end];
    if let Some(pause) = reply.trickle {
        for byte in body {
            stream.write_all(&[*byte]).await?;
            stream.flush().await?;
            tokio::time::sleep(pause).await;
        }
    } else if reply.chunked {
        for part in body.chunks(1000) {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
            stream.write_all(part).await?;
            stream.write_all(b"\r\n").await?;
        }
        if reply.cut_after.is_none() && reply.stall_after.is_none() {
            stream.write_all(b"0\r\n\r\n").await?;
        }
    } else {
        stream.write_all(body).await?;
    }
    stream.flush().await?;
    if reply.stall_after.is_some() {
        std::future::pending::<()>().await;
    }
    Ok(reply.cut_after.is_none())
}
