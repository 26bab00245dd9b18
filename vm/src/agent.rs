//! The client of the agent in the guest.
//!
//! Invariant: every call has a deadline, and what the guest answers is checked here; no answer is used as a path on the
//! host.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent as proto;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

use crate::channel::{Channel, ChannelError, Purpose};

/// Of the protocol in `agent.proto`.
pub const VERSION: u32 = 1;
/// Where the guest keeps bundles.
pub const BUNDLES: &str = "/run/cofferdam/containers";
/// Where the guest keeps the pod's /dev/shm.
pub const SHM: &str = "/run/cofferdam/shm";
/// The pod's network namespace in the guest.
pub const NETNS: &str = "/run/cofferdam/netns";
/// Where the guest keeps the FIFOs of standard streams.
pub const STREAMS: &str = "/run/cofferdam/io";
/// Connections to ports of a pod at a time: part of the streams that the channel has, so that commands find one as well.
pub const MOST_CONNECTIONS: usize = 128;
/// The tag by which the guest mounts the pod's share.
pub const TAG: &str = "pod";
/// What the kernel gives to the guest's first process: the groups of modules to load besides those of every guest.
pub const MODULES: &str = "COFFERDAM_MODULES";
/// The container code in the guest.
pub const RUNTIME: &str = "/bin/containerd-shim-cofferdam-v1";

/// What is little work; a node that is busy with many guests takes its time all the same.
const LIGHT: Duration = Duration::from_secs(30);
const SLACK: Duration = Duration::from_secs(1);
const LONGEST_RELEASE: usize = 64;
/// More than any machine of ours has of one kind.
const MOST_DEVICES: usize = 64;
/// No words of a guest are longer in an error of ours.
const LONGEST_WORDS: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the agent in the guest: {call}: {words}")]
    Call { call: &'static str, words: String },
    #[error("the agent in the guest: {call}: it answers nonsense: {what}")]
    Nonsense { call: &'static str, what: String },
    #[error("the agent in the guest: {call}: no answer within {} s", .after.as_secs())]
    Silent { call: &'static str, after: Duration },
}

impl AgentError {
    fn of_call(call: &'static str, error: &ttrpc::Error) -> Self {
        let words = match error {
            ttrpc::Error::RpcStatus(status) => status.message.clone(),
            other => other.to_string(),
        };
        AgentError::Call { call, words: plain(&words) }
    }
}

/// A name of a device, as kernels make them.
fn is_plain(name: &str) -> bool {
    name.len() <= LONGEST_RELEASE && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c))
}

/// A guest's words, bounded and without what a terminal would obey.
#[must_use]
pub fn plain(words: &str) -> String {
    let obeyed = |c: char| c.is_control() || turns_text(c);
    words.chars().take(LONGEST_WORDS).map(|c| if obeyed(c) { ' ' } else { c }).collect()
}

/// What makes a terminal show the words around it in another order.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What booted, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub kernel_release: String,
}

/// What makes the guest a pod's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSetup {
    pub hostname: String,
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    /// In bytes; 0 for the kernel's default.
    pub shm_size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub mac: String,
    pub name: String,
    pub mtu: u32,
    /// ADDRESS/LENGTH
    pub addresses: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// ADDRESS/LENGTH
    pub destination: String,
    pub gateway: String,
    pub interface: String,
}

/// What the guest's kernel says it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    pub disks: Vec<Disk>,
    /// Addresses of network cards that no pod has yet.
    pub cards: Vec<String>,
    pub shares: u32,
    /// In bytes.
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Below the guest's /dev.
    pub device: String,
    pub serial: String,
    /// In bytes.
    pub size: u64,
}

pub struct Agent {
    client: proto::AgentClient,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agent")
    }
}

/// The client's own deadline, a little later than that of [`within`], which has words.
fn later(after: Duration) -> Context {
    context::with_duration(after + SLACK)
}

async fn within<T>(
    call: &'static str,
    after: Duration,
    calling: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(after, calling).await {
        Ok(answer) => answer.map_err(|error| AgentError::of_call(call, &error)),
        Err(_) => Err(AgentError::Silent { call, after }),
    }
}

impl Agent {
    /// Waits for the agent to come up, and hears what it is.
    ///
    /// # Errors
    /// When it does not answer in time, or is none of ours.
    pub async fn greet(channel: &Channel, deadline: Duration) -> Result<(Agent, Guest), AgentError> {
        let call = "hello";
        let greeting = async {
            let stream = channel.open(&Purpose::Agent, deadline).await?;
            let client = proto::AgentClient::new(ttrpc::asynchronous::Client::new(Socket::new(stream)));
            let request = proto::HelloRequest { version: VERSION, ..Default::default() };
            let answer = client.hello(context::with_duration(deadline), &request).await;
            let answer = answer.map_err(|error| AgentError::of_call(call, &error))?;
            Ok::<_, AgentError>((client, answer))
        };
        let timed = tokio::time::timeout(deadline, greeting).await;
        let (client, answer) = timed.map_err(|_| AgentError::Silent { call, after: deadline })??;
        let nonsense = |what: String| AgentError::Nonsense { call, what };
        if answer.version != VERSION {
            return Err(nonsense(format!("version {} instead of {VERSION}", answer.version)));
        }
        let release = answer.kernel_release;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+~".contains(c);
        if release.is_empty() || release.len() > LONGEST_RELEASE || !release.chars().all(plain) {
            return Err(nonsense("the kernel's release".to_owned()));
        }
        Ok((Agent { client }, Guest { kernel_release: release }))
    }

    /// # Errors
    /// When the guest refuses, or does not answer in time.
    pub async fn set_up(&self, setup: &GuestSetup, deadline: Duration) -> Result<(), AgentError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let interface = |one: &Interface| proto::Interface {
            mac: one.mac.clone(),
            name: one.name.clone(),
            mtu: one.mtu,
            addresses: one.addresses.clone(),
            ..Default::default()
        };
        let route = |one: &Route| proto::Route {
            destination: one.destination.clone(),
            gateway: one.gateway.clone(),
            interface: one.interface.clone(),
            ..Default::default()
        };
        let request = proto::SetUpRequest {
            time: i64::try_from(now).unwrap_or_default(),
            hostname: setup.hostname.clone(),
            interfaces: setup.interfaces.iter().map(interface).collect(),
            routes: setup.routes.iter().map(route).collect(),
            shm_size: setup.shm_size,
            ..Default::default()
        };
        within("set up the pod", deadline, self.client.set_up(later(deadline), &request)).await.map(drop)
    }

    /// Where the bundle is in the guest.
    pub async fn put_bundle(&self, id: &str, config: Vec<u8>) -> Result<PathBuf, AgentError> {
        let call = "make a bundle";
        let request = proto::PutBundleRequest { id: id.to_owned(), config, ..Default::default() };
        let answer = within(call, LIGHT, self.client.put_bundle(later(LIGHT), &request)).await?;
        let expected = Path::new(BUNDLES).join(id);
        if Path::new(&answer.path) != expected {
            return Err(AgentError::Nonsense { call, what: "another path than it must be".to_owned() });
        }
        Ok(expected)
    }

    pub async fn remove_bundle(&self, id: &str) -> Result<(), AgentError> {
        let request = proto::RemoveBundleRequest { id: id.to_owned(), ..Default::default() };
        let calling = self.client.remove_bundle(later(LIGHT), &request);
        within("remove a bundle", LIGHT, calling).await.map(drop)
    }

    /// What there is by now: a device that was added a moment ago may still be on its way.
    ///
    /// # Errors
    /// When the agent does not answer, or with more than a machine can have.
    pub async fn hardware(&self) -> Result<Hardware, AgentError> {
        let call = "look at the hardware";
        let request = proto::HardwareRequest::default();
        let answer = within(call, LIGHT, self.client.hardware(later(LIGHT), &request)).await?;
        let are_plain = answer.disks.iter().all(|disk| is_plain(&disk.device) && is_plain(&disk.serial))
            && answer.cards.iter().all(|card| is_plain(card));
        if answer.disks.len().max(answer.cards.len()) > MOST_DEVICES || !are_plain {
            return Err(AgentError::Nonsense { call, what: "the devices".to_owned() });
        }
        let disk = |one: proto::Disk| Disk { device: one.device, serial: one.serial, size: one.size };
        Ok(Hardware {
            disks: answer.disks.into_iter().map(disk).collect(),
            cards: answer.cards,
            shares: answer.shares,
            memory: answer.memory,
        })
    }

    /// Asks for the end. The machine may be gone before the answer, so there is none.
    pub async fn power_off(&self, deadline: Duration) {
        let request = proto::PowerOffRequest::default();
        drop(self.client.power_off(context::with_duration(deadline), &request).await);
    }
}
