//! Tells the daemon what happens: events go out in order, one at a time, over a connection that is made when needed.
//!
//! While the daemon is away events wait in a bounded queue. Invariant: exits and out-of-memory events are the last to
//! be given up, and giving one up is written to the shim's log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use ttrpc::context::{self, Context};

use crate::bundle::Bundle;
use crate::task::log;

const CAPACITY: usize = 256;
const ATTEMPT: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often an event may be refused by a daemon that does answer.
const REFUSALS: u32 = 5;

struct Waiting {
    envelope: Envelope,
    precious: bool,
}

pub struct Publisher {
    namespace: String,
    address: String,
    bundle: Bundle,
    queue: Mutex<VecDeque<Waiting>>,
    changed: Notify,
}

impl Publisher {
    pub fn new(namespace: String, address: &str, bundle: Bundle) -> Arc<Self> {
        let address = match address {
            "" => String::new(),
            uri if uri.contains("://") => uri.to_owned(),
            path => format!("unix://{path}"),
        };
        let queue = Mutex::new(VecDeque::new());
        Arc::new(Publisher { namespace, address, bundle, queue, changed: Notify::new() })
    }

    pub fn send<M: Message>(&self, topic: &str, event: &M) {
        if self.address.is_empty() {
            return;
        }
        let Ok(value) = event.write_to_bytes() else { return };
        // Not by reflection: that would build the descriptors of whole files, half a megabyte that is never given back.
        let type_url = format!("containerd.events.{}", M::NAME);
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(to_timestamp(log::now()));
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic.to_owned();
        envelope.event = MessageField::some(Any { type_url, value, ..Any::default() });
        let precious = topic == topics::TASK_EXIT_EVENT_TOPIC || topic == topics::TASK_OOM_EVENT_TOPIC;
        self.enqueue(Waiting { envelope, precious });
    }

    pub fn exit(&self, event: &events::TaskExit) {
        self.send(topics::TASK_EXIT_EVENT_TOPIC, event);
    }

    fn enqueue(&self, event: Waiting) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= CAPACITY {
            let victim = queue.iter().position(|w| !w.precious).unwrap_or(0);
            if let Some(lost) = queue.remove(victim).filter(|w| w.precious) {
                self.bundle.warn(&format!("event {} given up: the daemon is away", lost.envelope.topic));
            }
        }
        queue.push_back(event);
        drop(queue);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    fn first(&self) -> Option<Envelope> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.front().map(|w| w.envelope.clone())
    }

    fn done(&self, sent: &Envelope) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // The front may have been given up for room while it was on its way.
        if queue.front().is_some_and(|w| w.envelope == *sent) {
            queue.pop_front();
        }
        drop(queue);
        self.changed.notify_waiters();
    }

    /// Returns when nothing waits.
    pub async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.first().is_none() {
                return;
            }
            changed.await;
        }
    }

    /// Delivers for ever.
    pub async fn run(&self) {
        let mut client: Option<EventsClient> = None;
        let (mut pause, mut refusals) = (SHORTEST_PAUSE, 0);
        loop {
            let Some(envelope) = self.first() else {
                self.changed.notified().await;
                continue;
            };
            match timeout(ATTEMPT, self.deliver(&mut client, &envelope)).await {
                Ok(Ok(())) => {
                    (pause, refusals) = (SHORTEST_PAUSE, 0);
                    self.done(&envelope);
                    continue;
                }
                Ok(Err(ttrpc::Error::RpcStatus(status))) if refusals >= REFUSALS => {
                    refusals = 0;
                    self.bundle.warn(&format!("event {} refused: {}", envelope.topic, status.message));
                    self.done(&envelope);
                    continue;
                }
                Ok(Err(ttrpc::Error::RpcStatus(_))) => refusals += 1,
                Ok(Err(_)) | Err(_) => client = None,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn deliver(&self, client: &mut Option<EventsClient>, envelope: &Envelope) -> ttrpc::Result<()> {
        let client = match client {
            Some(client) => client,
            None => client.insert(EventsClient::new(Client::connect(&self.address).await?)),
        };
        let mut request = ForwardRequest::new();
        request.envelope = MessageField::some(envelope.clone());
        client.forward(self.context(), &request).await.map(drop)
    }

    fn context(&self) -> Context {
        let mut context = context::with_duration(ATTEMPT);
        context.set("containerd-namespace-ttrpc".to_owned(), vec![self.namespace.clone()]);
        context
    }
}

pub fn to_timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        nanos: since_epoch.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}
