//! A plugin: from its connection to its name, its subscription and its view of the node; then the calls that it takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_proto::nri::{self, Event};
use prost::Message;
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use super::connection::{CallError, Connection};
use super::error::{HandshakeError, NriError};
use super::wire::MAX_MESSAGE;

/// A bit for every event there is.
const ALL_EVENTS: i32 = (1 << (Event::Last as i32 - 1)) - 1;
/// gRPC's UNIMPLEMENTED: a plugin of a version without this call.
const UNIMPLEMENTED: i32 = 12;
/// Left of a message for what ttrpc puts around it.
const ENVELOPE: usize = 1024;
/// The version of the interface that the daemon serves.
pub const NRI_VERSION: &str = "v0.12.2";

/// Who a plugin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Two digits.
    pub index: String,
    pub base: String,
}

impl Identity {
    /// Checked: `index` is two digits, `base` is made of letters, digits and `_.+-`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(index: &str, base: &str) -> Result<Self, HandshakeError> {
        let wrong = |what, value: &str, why| HandshakeError::Identity { what, value: value.to_owned(), why };
        if index.len() != 2 || !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("index", index, "it is not two digits"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
        if base.is_empty() || base.len() > 255 || !base.bytes().all(plain) {
            return Err(wrong("name", base, "it is not made of letters, digits and _.+-"));
        }
        Ok(Self { index: index.to_owned(), base: base.to_owned() })
    }

    /// The name by which it is called, as in a folder of plugins.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }
}

/// What a plugin is told at the beginning.
pub struct Greeting<'a> {
    pub config: String,
    pub registration: Duration,
    pub request: Duration,
    pub runtime_version: &'a str,
}

/// A plugin that is registered and configured.
#[derive(Debug)]
pub struct Plugin {
    pub identity: Identity,
    pub name: String,
    connection: Connection,
    events: i32,
    limit: Duration,
    /// Set for one that knows events only by StateChange.
    old: AtomicBool,
    /// The process, for one that the daemon started.
    process: Mutex<Option<Child>>,
}

impl Plugin {
    /// Configures a plugin that has registered.
    ///
    /// # Errors
    /// When it refuses, or subscribes to what does not exist.
    pub async fn configure(
        identity: Identity,
        connection: Connection,
        greeting: Greeting<'_>,
    ) -> Result<Self, HandshakeError> {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = nri::ConfigureRequest {
            config: greeting.config,
            runtime_name: "cofferdam".to_owned(),
            runtime_version: greeting.runtime_version.to_owned(),
            registration_timeout: milliseconds(greeting.registration),
            request_timeout: milliseconds(greeting.request),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer = connection.call::<nri::ConfigureResponse>("Configure", &request, greeting.request).await;
        let events = answer.map_err(|source| HandshakeError::Call { call: "Configure", source })?.events;
        if events & !ALL_EVENTS != 0 {
            return Err(HandshakeError::Events(events));
        }
        Ok(Self {
            name: identity.name(),
            identity,
            connection,
            events: if events == 0 { ALL_EVENTS } else { events },
            limit: greeting.request,
            old: AtomicBool::new(false),
            process: Mutex::new(None),
        })
    }

    /// Makes the plugin the owner of its process: it ends with the connection.
    pub fn own(&self, process: Child) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
    }

    #[must_use]
    pub fn subscribes(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Cancelled when the connection has ended.
    pub fn closed(&self) -> CancellationToken {
        self.connection.closed()
    }

    /// The connection, for what the plugin asks.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Ends the connection, and the process if it is ours.
    pub fn close(&self) {
        self.connection.close();
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It was started to be killed when it is dropped, and is reaped in the background.
        drop(process);
    }

    /// Tells it that the daemon ends.
    pub async fn shut_down(&self, limit: Duration) {
        // Nothing follows from its answer.
        let _ = self.connection.call::<nri::Empty>("Shutdown", &nri::Empty {}, limit).await;
        self.close();
    }

    /// Shows the plugin all pods and containers, in parts where one message is too small; gives the changes that it
    /// wants.
    ///
    /// # Errors
    /// When it does not answer, or does not understand parts.
    pub async fn synchronize(
        &self,
        pods: Vec<nri::PodSandbox>,
        containers: Vec<nri::Container>,
        limit: Duration,
    ) -> Result<Vec<nri::ContainerUpdate>, HandshakeError> {
        let deadline = tokio::time::Instant::now() + limit;
        for request in parts(pods, containers, MAX_MESSAGE - ENVELOPE) {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let answer = self.connection.call("Synchronize", &request, left).await;
            let answer: nri::SynchronizeResponse = answer.map_err(|error| match error {
                CallError::Request(source) => HandshakeError::TooLarge(source),
                source => HandshakeError::Call { call: "Synchronize", source },
            })?;
            if !request.more {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(HandshakeError::Parts);
            }
        }
        Ok(Vec::new())
    }

    /// Asks about an event. None from one that does not subscribe to it, and from one that does not answer: that one
    /// is let go, and the pod goes on without it.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub async fn ask<A: Message + Default>(
        &self,
        event: Event,
        method: &'static str,
        request: &impl Message,
    ) -> Result<Option<A>, NriError> {
        if !self.subscribes(event) || self.is_closed() {
            return Ok(None);
        }
        let answer = self.connection.call(method, request, self.limit).await;
        self.judge(method, answer)
    }

    /// Tells of an event by its own call or, to a plugin of an older version, by StateChange.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub async fn tell(
        &self,
        event: Event,
        method: &'static str,
        request: &impl Message,
        change: impl FnOnce() -> nri::StateChangeEvent,
    ) -> Result<(), NriError> {
        if !self.subscribes(event) || self.is_closed() {
            return Ok(());
        }
        if !self.old.load(Ordering::Relaxed) {
            match self.connection.call::<nri::Empty>(method, request, self.limit).await {
                Err(CallError::Refused { code: UNIMPLEMENTED, .. }) => self.old.store(true, Ordering::Relaxed),
                answer => return self.judge(method, answer).map(drop),
            }
        }
        let answer = self.connection.call::<nri::Empty>("StateChange", &change(), self.limit).await;
        self.judge(method, answer).map(drop)
    }

    fn judge<A>(&self, call: &'static str, answer: Result<A, CallError>) -> Result<Option<A>, NriError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_fatal() => {
                let error = crate::report::chain(&error);
                tracing::error!(plugin = self.name, call, error, "the NRI plugin is let go");
                self.close();
                Ok(None)
            }
            Err(source) => Err(NriError::Refused { plugin: self.name.clone(), call, source }),
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.close();
    }
}

/// The requests of a synchronization, none larger than `most` unless one pod or container is.
fn parts(
    pods: Vec<nri::PodSandbox>,
    containers: Vec<nri::Container>,
    most: usize,
) -> Vec<nri::SynchronizeRequest> {
    /// The tag and the length of a field.
    const FIELD: usize = 6;
    let mut requests = vec![nri::SynchronizeRequest::default()];
    let mut size = 0;
    let mut fit = |length: usize, requests: &mut Vec<nri::SynchronizeRequest>| {
        size += length + FIELD;
        if size > most && size > length + FIELD {
            requests.push(nri::SynchronizeRequest::default());
            size = length + FIELD;
        }
    };
    for pod in pods {
        fit(pod.encoded_len(), &mut requests);
        requests.last_mut().into_iter().for_each(|r| r.pods.push(pod.clone()));
    }
    for container in containers {
        fit(container.encoded_len(), &mut requests);
        requests.last_mut().into_iter().for_each(|r| r.containers.push(container.clone()));
    }
    let last = requests.len() - 1;
    requests[..last].iter_mut().for_each(|request| request.more = true);
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(size: usize) -> nri::PodSandbox {
        nri::PodSandbox { id: "p".repeat(size), ..Default::default() }
    }

    #[test]
    fn a_synchronization_is_cut_between_pods_and_containers() {
        let container = nri::Container { id: "c".repeat(60), ..Default::default() };
        let requests = parts(vec![pod(60), pod(60), pod(300)], vec![container.clone(), container], 150);
        let shape: Vec<_> = requests.iter().map(|r| (r.pods.len(), r.containers.len(), r.more)).collect();
        assert_eq!(shape, [(2, 0, true), (1, 0, true), (0, 2, false)]);
        assert_eq!(parts(Vec::new(), Vec::new(), 150), [nri::SynchronizeRequest::default()]);
    }

    #[test]
    fn names_and_indices_are_checked() {
        assert_eq!(Identity::new("05", "my-plugin.x").unwrap().name(), "05-my-plugin.x");
        for (index, base) in [("5", "a"), ("a5", "a"), ("005", "a"), ("05", ""), ("05", "a/b"), ("05", "ä")] {
            assert!(Identity::new(index, base).is_err(), "{index} {base}");
        }
    }

    #[test]
    fn the_mask_of_all_events_has_fourteen_bits() {
        assert_eq!(ALL_EVENTS, 0x3fff);
    }
}
