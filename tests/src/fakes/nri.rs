//! An NRI plugin. It speaks the multiplexer and ttrpc by itself, so that the daemon's own code is not its judge.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_proto::nri::{self, Event};
use cofferdam_proto::ttrpc;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Where the daemon calls the plugin, and the other way round.
const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// What the plugin does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// An empty message.
    Empty,
    Bytes(Vec<u8>),
    Refuse(i32, String),
    /// Bytes, after a while.
    Late(Duration, Vec<u8>),
    /// Nothing, ever.
    Silence,
    /// The end of the connection.
    HangUp,
}

impl Answer {
    pub fn message(message: &impl Message) -> Self {
        Self::Bytes(message.encode_to_vec())
    }

    /// An adjustment of a container being created.
    pub fn adjust(adjust: nri::ContainerAdjustment) -> Self {
        Self::message(&nri::CreateContainerResponse { adjust: Some(adjust), ..Default::default() })
    }
}

/// A request that the plugin has heard.
#[derive(Clone, Debug)]
pub struct Heard {
    pub method: String,
    pub payload: Vec<u8>,
}

impl Heard {
    pub fn decode<M: Message + Default>(&self) -> M {
        M::decode(self.payload.as_slice()).expect("the daemon's request cannot be decoded")
    }

    /// The pod and the container of any event.
    pub fn subject(&self) -> nri::StartContainerRequest {
        self.decode()
    }
}

type Script = Arc<dyn Fn(&str, &[u8]) -> Answer + Send + Sync>;

/// How a plugin behaves.
#[derive(Clone)]
pub struct Behaviour {
    pub index: String,
    pub name: String,
    pub events: i32,
    script: Script,
}

impl Behaviour {
    /// Subscribes to `events` and answers all of them with nothing.
    pub fn new(index: &str, name: &str, events: &[Event]) -> Self {
        let events = events.iter().map(|event| 1 << (*event as i32 - 1)).sum();
        Self { index: index.into(), name: name.into(), events, script: Arc::new(|_, _| Answer::Empty) }
    }

    /// Answers one method with something else.
    pub fn on(mut self, method: &'static str, answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> Self {
        let script = self.script;
        self.script = Arc::new(move |asked, payload| {
            if asked == method { answer(payload) } else { script(asked, payload) }
        });
        self
    }
}

/// All container and pod events.
pub const ALL: &[Event] = &[
    Event::RunPodSandbox,
    Event::StopPodSandbox,
    Event::RemovePodSandbox,
    Event::CreateContainer,
    Event::PostCreateContainer,
    Event::StartContainer,
    Event::PostStartContainer,
    Event::UpdateContainer,
    Event::PostUpdateContainer,
    Event::StopContainer,
    Event::RemoveContainer,
    Event::UpdatePodSandbox,
    Event::PostUpdatePodSandbox,
];

type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<ttrpc::Response>>>>;

/// A connected plugin; dropping it ends the connection.
pub struct Plugin {
    heard: Arc<Mutex<Vec<Heard>>>,
    outgoing: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: Mutex<u32>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plugin {
    /// Connects, registers and waits until the daemon has synchronized it.
    pub async fn connect(socket: &Path, behaviour: Behaviour) -> io::Result<Self> {
        let plugin = Self::begin(UnixStream::connect(socket).await?, &behaviour).await?;
        for _ in 0..500 {
            if plugin.heard().iter().any(|heard| heard.method == "Synchronize") {
                // The daemon takes it in once it has read the answer.
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok(plugin);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not synchronize the plugin"))
    }

    /// Registers on a connection and does not wait for what comes then.
    pub async fn begin(stream: UnixStream, behaviour: &Behaviour) -> io::Result<Self> {
        let (outgoing, sending) = mpsc::channel(64);
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let waiting = Waiting::default();
        let (read, write) = stream.into_split();
        let served = Served {
            behaviour: behaviour.clone(),
            heard: Arc::clone(&heard),
            outgoing: outgoing.clone(),
            waiting: Arc::clone(&waiting),
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                _ = served.receive(read) => {}
                _ = send(write, sending) => {}
            }
            served.waiting.lock().expect("poisoned").clear();
        });
        let plugin = Self { heard, outgoing, waiting, next: Mutex::new(1), task };
        let request = nri::RegisterPluginRequest {
            plugin_name: behaviour.name.clone(),
            plugin_idx: behaviour.index.clone(),
            nri_version: "v0.12.2".into(),
        };
        plugin.call("RegisterPlugin", &request).await.map_err(io::Error::other)?;
        Ok(plugin)
    }

    /// Calls the daemon's Runtime service.
    pub async fn call(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, String> {
        let (sender, receiver) = oneshot::channel();
        let stream = {
            let mut next = self.next.lock().expect("poisoned");
            *next += 2;
            *next - 2
        };
        self.waiting.lock().expect("poisoned").insert(stream, sender);
        let request = ttrpc::Request {
            service: "nri.pkg.api.v1alpha1.Runtime".into(),
            method: method.into(),
            payload: request.encode_to_vec(),
            timeout_nano: 0,
        };
        let bytes = message(stream, REQUEST, &request.encode_to_vec());
        self.outgoing.send(frame(RUNTIME, &bytes)).await.map_err(|error| error.to_string())?;
        let response = tokio::time::timeout(Duration::from_secs(20), receiver).await;
        let response = response.map_err(|_| "no answer")?.map_err(|_| "the connection ended")?;
        match response.status {
            Some(status) if status.code != 0 => Err(format!("{}: {}", status.code, status.message)),
            _ => Ok(response.payload),
        }
    }

    /// What it has heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("poisoned").clone()
    }

    /// The methods that it has heard about one pod or container, in order.
    pub fn methods(&self, id: &str) -> Vec<String> {
        let about = |heard: &Heard| match heard.method.as_str() {
            "Configure" | "Synchronize" | "ValidateContainerAdjustment" => false,
            "StateChange" => {
                let event: nri::StateChangeEvent = heard.decode();
                event.container.map(|c| c.id).or(event.pod.map(|p| p.id)).is_some_and(|known| known == id)
            }
            _ => {
                let subject = heard.subject();
                subject.container.map(|c| c.id).or(subject.pod.map(|p| p.id)).is_some_and(|known| known == id)
            }
        };
        self.heard().into_iter().filter(about).map(|heard| heard.method).collect()
    }

    /// Whether the daemon has ended the connection.
    pub fn is_closed(&self) -> bool {
        self.task.is_finished()
    }
}

/// The daemon's calls.
struct Served {
    behaviour: Behaviour,
    heard: Arc<Mutex<Vec<Heard>>>,
    outgoing: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
}

impl Served {
    async fn receive(&self, mut stream: OwnedReadHalf) -> io::Result<()> {
        let mut pieces: HashMap<u32, Vec<u8>> = HashMap::new();
        loop {
            let connection = stream.read_u32().await?;
            let mut payload = vec![0; stream.read_u32().await? as usize];
            stream.read_exact(&mut payload).await?;
            let known = pieces.entry(connection).or_default();
            known.extend(payload);
            while let Some((stream, kind, body)) = split(known) {
                match kind {
                    REQUEST => {
                        if !self.request(stream, &body).await? {
                            return Ok(());
                        }
                    }
                    _ => {
                        let response = ttrpc::Response::decode(body.as_slice())?;
                        let waiting = self.waiting.lock().expect("poisoned").remove(&stream);
                        waiting.map(|waiting| waiting.send(response));
                    }
                }
            }
        }
    }

    /// Whether the connection goes on.
    async fn request(&self, stream: u32, body: &[u8]) -> io::Result<bool> {
        let request = ttrpc::Request::decode(body)?;
        assert_eq!(request.service, "nri.pkg.api.v1alpha1.Plugin");
        let heard = Heard { method: request.method.clone(), payload: request.payload.clone() };
        self.heard.lock().expect("poisoned").push(heard);
        let mut answer = (self.behaviour.script)(&request.method, &request.payload);
        if let (Answer::Empty, "Configure") = (&answer, request.method.as_str()) {
            answer = Answer::message(&nri::ConfigureResponse { events: self.behaviour.events });
        }
        if let (Answer::Empty, "Synchronize") = (&answer, request.method.as_str()) {
            let more = nri::SynchronizeRequest::decode(request.payload.as_slice())?.more;
            answer = Answer::message(&nri::SynchronizeResponse { more, ..Default::default() });
        }
        let respond = |response: ttrpc::Response| frame(PLUGIN, &message(stream, RESPONSE, &response.encode_to_vec()));
        let bytes = |payload| respond(ttrpc::Response { status: None, payload });
        let frames = match answer {
            Answer::Empty => bytes(Vec::new()),
            Answer::Bytes(payload) => bytes(payload),
            Answer::Refuse(code, message) => {
                let status = Some(ttrpc::Status { code, message });
                respond(ttrpc::Response { status, payload: Vec::new() })
            }
            Answer::Late(after, payload) => {
                let (frames, outgoing) = (bytes(payload), self.outgoing.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    // The test may be over.
                    let _ = outgoing.send(frames).await;
                });
                return Ok(true);
            }
            Answer::Silence => return Ok(true),
            Answer::HangUp => return Ok(false),
        };
        Ok(self.outgoing.send(frames).await.is_ok())
    }
}

async fn send(mut stream: OwnedWriteHalf, mut sending: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(frames) = sending.recv().await {
        stream.write_all(&frames).await?;
    }
    Ok(())
}

/// The first whole message of the bytes: stream, kind, body.
fn split(bytes: &mut Vec<u8>) -> Option<(u32, u8, Vec<u8>)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (length, stream) = (word(0)? as usize, word(4)?);
    let kind = *bytes.get(8)?;
    let body = bytes.get(10..10 + length)?.to_vec();
    bytes.drain(..10 + length);
    Some((stream, kind, body))
}

/// A message of ttrpc.
pub fn message(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("too long");
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], body].concat()
}

/// A frame of the multiplexer.
pub fn frame(connection: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("too long");
    [&connection.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
}
