//! The HTTP side: listens, redeems tokens, upgrades, and hands the connection to its session.
//!
//! Invariant: without a valid token every request gets the same answer, and no connection that has none lives longer
//! than a few seconds. Sessions are tasks of the daemon's tracker: none is cut off in the middle of its clean-up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::remote::negotiate::{self, CommandProtocol, ForwardProtocol, Refusal};
use super::remote::{CommandSession, ForwardSession, Limits, RemoteError};
use super::tls::Certificate;
use super::token::Tokens;
use super::{Parts, Ticket, attach, exec, forward};
use crate::report::chain;

/// How many connections are open at a time.
const MOST: usize = 1024;
/// How long a client may take for its request's head.
const HEAD: Duration = Duration::from_secs(10);
/// The largest head.
const HEAD_SIZE: usize = 16 << 10;
/// Between an answer and the upgraded connection.
const UPGRADE: Duration = Duration::from_secs(10);
/// After a failed accept, as for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;

/// What connections share.
pub(super) struct Server {
    pub parts: Parts,
    pub tokens: Arc<Tokens<Ticket>>,
    pub tls: Option<Arc<Certificate>>,
    pub connections: Arc<Semaphore>,
    pub forwards: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(parts: Parts, tokens: Arc<Tokens<Ticket>>, tls: Option<Arc<Certificate>>) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(MOST));
        let forwards = Arc::new(Semaphore::new(forward::MOST));
        Arc::new(Self { parts, tokens, tls, connections, forwards })
    }

    /// Accepts until the daemon ends.
    pub(super) async fn listen(self: Arc<Self>, listener: TcpListener) {
        let stopping = self.parts.ports.stopping.clone();
        while let Some(accepted) = stopping.run_until_cancelled(listener.accept()).await {
            match (accepted, Arc::clone(&self.connections).try_acquire_owned()) {
                (Ok((stream, peer)), Ok(room)) => {
                    let served = Arc::clone(&self).connection(stream, peer, room);
                    self.parts.ports.tracker.spawn(served);
                }
                (Ok((_, peer)), Err(_)) => tracing::warn!(%peer, "too many streaming connections"),
                (Err(error), _) => {
                    tracing::warn!(%error, "accept a streaming connection");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, room: OwnedSemaphorePermit) {
        // A session is mostly single keystrokes; and a peer whose machine died must be noticed.
        let prepared = stream.set_nodelay(true).and_then(|()| {
            rustix::net::sockopt::set_socket_keepalive(&stream, true).map_err(std::io::Error::from)
        });
        if let Err(error) = prepared {
            return tracing::debug!(%peer, %error, "streaming connection");
        }
        let Some(tls) = &self.tls else { return self.http(stream, peer, room).await };
        match tokio::time::timeout(HEAD, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, peer, room).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake"),
            Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Arc<Self>,
        stream: S,
        peer: SocketAddr,
        room: OwnedSemaphorePermit,
    ) {
        let room = Arc::new(room);
        let service = service_fn(|request| {
            let answer = self.answer(request, &room);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_SIZE);
        let served = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let stopping = self.parts.ports.stopping.clone();
        match stopping.run_until_cancelled(tokio::time::timeout(HEAD * 2, served)).await {
            Some(Ok(Err(error))) => tracing::debug!(%peer, %error, "streaming request"),
            Some(Err(_)) => tracing::debug!(%peer, "streaming request took too long"),
            Some(Ok(Ok(()))) | None => {}
        }
    }

    fn answer(self: &Arc<Self>, mut request: Request<Incoming>, room: &Arc<OwnedSemaphorePermit>) -> Answer {
        let Some(ticket) = self.redeem(request.uri().path()) else { return nothing() };
        let upgraded = hyper::upgrade::on(&mut request);
        let agreed = match ticket {
            Ticket::Forward(wanted) => {
                negotiate::forward(request.method(), request.headers()).map(|agreed| {
                    let session = Session::Forward(wanted, agreed.protocol);
                    (agreed.headers, session)
                })
            }
            Ticket::Exec(wanted) => negotiate::command(request.method(), request.headers())
                .map(|agreed| (agreed.headers, Session::Exec(wanted, agreed.protocol))),
            Ticket::Attach(wanted) => negotiate::command(request.method(), request.headers())
                .map(|agreed| (agreed.headers, Session::Attach(wanted, agreed.protocol))),
        };
        match agreed {
            Ok((headers, session)) => {
                let span = session.span();
                let run = Arc::clone(self).run(session, upgraded, Arc::clone(room)).instrument(span);
                self.parts.ports.tracker.spawn(run);
                with_headers(Response::new(Full::default()), StatusCode::SWITCHING_PROTOCOLS, headers)
            }
            Err(Refusal { status, headers, body }) => {
                with_headers(Response::new(Full::from(body)), status, headers)
            }
        }
    }

    /// The ticket of `/<kind>/<token>`.
    fn redeem(&self, path: &str) -> Option<Ticket> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        self.tokens.take(token, |ticket| ticket.kind() == kind)
    }

    async fn run(self: Arc<Self>, session: Session, upgraded: OnUpgrade, _room: Arc<OwnedSemaphorePermit>) {
        let io = match tokio::time::timeout(UPGRADE, upgraded).await {
            Ok(Ok(io)) => TokioIo::new(io),
            Ok(Err(error)) => return tracing::debug!(%error, "upgrade"),
            Err(_) => return tracing::debug!("the upgrade took too long"),
        };
        if let Err(error) = self.begin(session, io).await {
            tracing::debug!(error = %chain(&error), "streaming session");
        }
    }

    async fn begin(
        &self,
        session: Session,
        io: TokioIo<hyper::upgrade::Upgraded>,
    ) -> Result<(), RemoteError> {
        let Parts { ports, containers } = &self.parts;
        let (limits, stopping) = (Limits::default(), &ports.stopping);
        match session {
            Session::Exec(wanted, protocol) => {
                let client = CommandSession::open(io, protocol, wanted.streams, limits).await?;
                exec::serve(containers, wanted, client, stopping).await;
            }
            Session::Attach(wanted, protocol) => {
                let client = CommandSession::open(io, protocol, wanted.streams, limits).await?;
                attach::serve(containers, wanted, client, stopping).await;
            }
            Session::Forward(wanted, protocol) => {
                let client = ForwardSession::open(io, protocol, &wanted.ports, limits);
                forward::serve(wanted, client, &self.forwards, stopping).await;
            }
        }
        Ok(())
    }
}

/// What was agreed with a client.
enum Session {
    Exec(exec::Request, CommandProtocol),
    Attach(attach::Request, CommandProtocol),
    Forward(forward::Request, ForwardProtocol),
}

impl Session {
    fn span(&self) -> tracing::Span {
        match self {
            Self::Exec(wanted, _) => tracing::info_span!("exec session", container = %wanted.container.id()),
            Self::Attach(wanted, _) => {
                tracing::info_span!("attach session", container = %wanted.container.id())
            }
            Self::Forward(wanted, _) => {
                tracing::info_span!("forward session", sandbox = %wanted.sandbox.id())
            }
        }
    }
}

/// The answer to whatever has no valid token.
fn nothing() -> Answer {
    with_headers(Response::new(Full::from("not found\n")), StatusCode::NOT_FOUND, HeaderMap::new())
}

fn with_headers(mut answer: Answer, status: StatusCode, headers: HeaderMap) -> Answer {
    *answer.status_mut() = status;
    answer.headers_mut().extend(headers);
    if status != StatusCode::SWITCHING_PROTOCOLS {
        // One request is all that a connection is good for.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}
