//! One ttrpc connection to a shim: unary calls that never wait for each other, and the news of its end.
//!
//! Invariant: a call that has begun is never cut off by its caller going away (a write cut in the middle would end the
//! connection for everybody); it ends with its answer, its deadline or the connection.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use protobuf::Message;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::error::RuntimeError;

/// Added to the deadline that the shim is told, so that ours always runs out first and names the call.
const GRACE: Duration = Duration::from_secs(1);

/// A connection that can be shared and called concurrently.
pub struct Connection {
    client: Client,
    lost: CancellationToken,
    calls: TaskTracker,
    /// Ends the connection with the last holder and the last call, also when the other side's bytes make no sense.
    open: Arc<DropGuard>,
    /// The last answer that was waited for did not come in time.
    silent: AtomicBool,
}

impl Connection {
    /// Connects to the socket at `path`, however long the path is.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let stream = connect(path).await?;
        // Without a holder it counts as lost, whatever becomes of the tasks that read and write it.
        let closing = CancellationToken::new();
        let lost = closing.child_token();
        let watched = Watched {
            stream,
            closing: Box::pin(closing.clone().cancelled_owned()),
            lost: lost.clone(),
            _ended: lost.clone().drop_guard(),
        };
        let client = Client::new(Socket::new(watched));
        let open = Arc::new(closing.drop_guard());
        Ok(Self { client, lost, calls: TaskTracker::new(), open, silent: AtomicBool::new(false) })
    }

    /// Resolves when the other side is gone.
    pub async fn closed(&self) {
        self.lost.cancelled().await;
    }

    /// Cancelled when the other side is gone, or the last holder of this connection.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Ends it for all its holders: nobody needs the other side any more.
    pub fn hang_up(&self) {
        self.lost.cancel();
    }

    /// Whether the other side is gone.
    pub fn is_closed(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Whether the other side is there but answers nothing, as far as is known: it may hang.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Calls `method` of `service`; without a deadline it lasts as long as the connection.
    pub async fn call<A: Message>(
        &self,
        service: &str,
        method: &'static str,
        request: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<A, RuntimeError> {
        let malformed = |source| RuntimeError::Message { call: method, source };
        let mut wire = ttrpc::Request::new();
        wire.service = service.to_owned();
        wire.method = method.to_owned();
        wire.payload = request.write_to_bytes().map_err(malformed)?;
        let (client, lost) = (self.client.clone(), self.lost.clone());
        let response = match deadline {
            None => exchange(client, lost, wire, method).await?,
            Some(after) => {
                wire.timeout_nano = i64::try_from((after + GRACE).as_nanos()).unwrap_or(0);
                let open = Arc::clone(&self.open);
                let bounded = async move {
                    let answered = tokio::time::timeout(after, exchange(client, lost, wire, method)).await;
                    drop(open);
                    answered
                };
                let answered = self.calls.spawn(bounded).await;
                self.silent.store(matches!(answered, Ok(Err(_))), Ordering::Relaxed);
                match answered {
                    Ok(Ok(answer)) => answer?,
                    Ok(Err(_)) => return Err(RuntimeError::Timeout { call: method, after }),
                    Err(_) => return Err(RuntimeError::ConnectionLost { call: method }),
                }
            }
        };
        A::parse_from_bytes(&response.payload).map_err(malformed)
    }
}

/// One request and its answer, or the end of the connection.
async fn exchange(
    client: Client,
    lost: CancellationToken,
    request: ttrpc::Request,
    call: &'static str,
) -> Result<ttrpc::Response, RuntimeError> {
    tokio::select! {
        biased;
        answer = client.request(request) => answer.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => {
                RuntimeError::refused(call, status.code(), status.message)
            }
            ttrpc::Error::Others(message) if !lost.is_cancelled() => {
                RuntimeError::Shim { call, code: ttrpc::Code::UNKNOWN, message }
            }
            _ => RuntimeError::ConnectionLost { call },
        }),
        () = lost.cancelled() => Err(RuntimeError::ConnectionLost { call }),
    }
}

/// Connects by way of the folder's descriptor where the path exceeds what a socket's address holds.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    /// Of `sun_path`, with its final zero.
    const LONGEST: usize = 107;
    if path.as_os_str().len() <= LONGEST {
        return UnixStream::connect(path).await;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)).await
}

/// A stream that tells of its end: when reading finds it, and at the latest when the connection drops it.
struct Watched {
    stream: UnixStream,
    /// Resolves when nobody needs the connection any more.
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    lost: CancellationToken,
    _ended: DropGuard,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closing.as_mut().poll(context).is_ready() {
            self.lost.cancel();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let wanted = buffer.remaining() > 0;
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(result) = &polled
            && (result.is_err() || (wanted && buffer.filled().len() == before))
        {
            self.lost.cancel();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
