//! One plugin's socket: calls both ways, and the end of it.
//!
//! Invariant: whatever the other side sends or fails to read, a call ends with its answer, its time limit or the
//! connection, and what is kept for the connection is bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_proto::ttrpc;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::mux;
use super::wire::{Assembler, Message, WireError};

/// What the daemon calls.
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// Messages that wait for a plugin that does not read.
const OUTGOING: usize = 16;
/// Requests of a plugin that wait for the one being carried out.
const INCOMING: usize = 16;
/// gRPC's RESOURCE_EXHAUSTED.
const EXHAUSTED: i32 = 8;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{message} (code {code})")]
    Refused { code: i32, message: String },
    #[error("no answer within {after:?}")]
    TimedOut { after: Duration },
    #[error("the connection ended")]
    Closed,
    #[error("the answer")]
    Malformed(#[from] prost::DecodeError),
    #[error("the request")]
    Request(#[source] WireError),
}

impl CallError {
    /// Whether the plugin is of no use any more; otherwise it has answered, if only to refuse.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Closed | Self::Malformed(_) => true,
            Self::Refused { .. } | Self::Request(_) => false,
        }
    }
}

/// A request of the plugin, to be answered by [`Connection::answer`].
#[derive(Debug)]
pub struct Incoming {
    pub stream: u32,
    pub request: ttrpc::Request,
}

#[derive(Debug, Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<ttrpc::Response>>,
}

/// A connected plugin. Dropping it does not close it: see [`Connection::close`].
#[derive(Debug)]
pub struct Connection {
    outgoing: mpsc::Sender<Vec<u8>>,
    calls: Arc<Mutex<Calls>>,
    closed: CancellationToken,
}

/// The work of a connection, for its owner to run until it ends.
pub struct Driver {
    stream: UnixStream,
    outgoing: mpsc::Receiver<Vec<u8>>,
    replies: mpsc::Sender<Vec<u8>>,
    incoming: mpsc::Sender<Incoming>,
    calls: Arc<Mutex<Calls>>,
    closed: CancellationToken,
}

impl Connection {
    /// A connection that ends at the latest with `ending`, what runs it, and what the plugin asks.
    pub fn new(stream: UnixStream, ending: &CancellationToken) -> (Self, Driver, mpsc::Receiver<Incoming>) {
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let (incoming, requests) = mpsc::channel(INCOMING);
        let calls = Arc::<Mutex<Calls>>::default();
        let closed = ending.child_token();
        let driver = Driver {
            stream,
            outgoing,
            replies: sender.clone(),
            incoming,
            calls: Arc::clone(&calls),
            closed: closed.clone(),
        };
        (Self { outgoing: sender, calls, closed }, driver, requests)
    }

    /// Calls a method of the plugin.
    pub async fn call<A: prost::Message + Default>(
        &self,
        method: &'static str,
        request: &impl prost::Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let (sender, receiver) = oneshot::channel();
        let stream = self.expect(sender);
        let request = ttrpc::Request {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let answer = async {
            let message = Message::Request { stream, request }.encode().map_err(CallError::Request)?;
            let frames = mux::frames(mux::PLUGIN, &message);
            self.outgoing.send(frames).await.map_err(|_| CallError::Closed)?;
            tokio::select! {
                biased;
                response = receiver => response.map_err(|_| CallError::Closed),
                () = self.closed.cancelled() => Err(CallError::Closed),
            }
        };
        let answered = tokio::time::timeout(limit, answer).await;
        self.lock().waiting.remove(&stream);
        let response = answered.map_err(|_| CallError::TimedOut { after: limit })??;
        match response.status {
            Some(status) if status.code != 0 => {
                Err(CallError::Refused { code: status.code, message: status.message })
            }
            _ => Ok(A::decode(response.payload.as_slice())?),
        }
    }

    /// Answers a request of the plugin.
    pub async fn answer(&self, stream: u32, answer: Result<Vec<u8>, ttrpc::Status>) {
        // A plugin that is gone or does not read is found out by its next call.
        let _ = self.outgoing.send(response(stream, answer)).await;
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.cancel();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Resolves when the connection has ended.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// The stream of a new call: clients of ttrpc use odd numbers.
    fn expect(&self, sender: oneshot::Sender<ttrpc::Response>) -> u32 {
        let mut calls = self.lock();
        let stream = if calls.last == 0 { 1 } else { calls.last.wrapping_add(2) };
        calls.last = stream;
        calls.waiting.insert(stream, sender);
        stream
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn response(stream: u32, answer: Result<Vec<u8>, ttrpc::Status>) -> Vec<u8> {
    let response = match answer {
        Ok(payload) => ttrpc::Response { status: None, payload },
        Err(status) => ttrpc::Response { status: Some(status), payload: Vec::new() },
    };
    let encoded = Message::Response { stream, response }.encode().or_else(|error| {
        let status = ttrpc::Status { code: EXHAUSTED, message: error.to_string() };
        let response = ttrpc::Response { status: Some(status), payload: Vec::new() };
        Message::Response { stream, response }.encode()
    });
    mux::frames(mux::RUNTIME, &encoded.unwrap_or_default())
}

impl Driver {
    /// Moves messages both ways until the connection ends.
    ///
    /// # Errors
    /// What the plugin did wrong.
    pub async fn run(self) -> Result<(), WireError> {
        let Self { stream, outgoing, replies, incoming, calls, closed } = self;
        let (read, write) = stream.into_split();
        let moved = async {
            tokio::select! {
                received = receive(read, &calls, incoming, replies) => received,
                sent = send(write, outgoing) => sent,
            }
        };
        let ended = closed.run_until_cancelled(moved).await.unwrap_or(Ok(()));
        closed.cancel();
        calls.lock().unwrap_or_else(PoisonError::into_inner).waiting.clear();
        ended
    }
}

async fn receive(
    mut stream: OwnedReadHalf,
    calls: &Mutex<Calls>,
    incoming: mpsc::Sender<Incoming>,
    replies: mpsc::Sender<Vec<u8>>,
) -> Result<(), WireError> {
    let mut answers = Assembler::default();
    let mut requests = Assembler::default();
    while let Some(frame) = mux::read(&mut stream).await? {
        match frame.connection {
            mux::PLUGIN => answers.push(&frame.payload),
            mux::RUNTIME => requests.push(&frame.payload),
            // Nobody opened it.
            _ => continue,
        }
        while let Some(message) = answers.next()? {
            let Message::Response { stream, response } = message else { return Err(WireError::Kind(1)) };
            let waiting = calls.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&stream);
            if let Some(waiting) = waiting {
                // The caller may have given up.
                let _ = waiting.send(response);
            }
        }
        while let Some(message) = requests.next()? {
            let Message::Request { stream, request } = message else { return Err(WireError::Kind(2)) };
            if incoming.try_send(Incoming { stream, request }).is_err() {
                let message = "too many requests at a time".to_owned();
                let refusal = response(stream, Err(ttrpc::Status { code: EXHAUSTED, message }));
                // One that neither waits for its answers nor reads them has lost this one.
                let _ = replies.try_send(refusal);
            }
        }
    }
    Ok(())
}

async fn send(mut stream: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Vec<u8>>) -> Result<(), WireError> {
    while let Some(frames) = outgoing.recv().await {
        stream.write_all(&frames).await?;
    }
    Ok(())
}
