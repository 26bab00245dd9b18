//! The long-lived server: one thread, one runtime, the services on one socket.
//!
//! It ends when a Shutdown found no task left, after a bounded attempt to hand over the last events.

use cofferdam_failpoints::failpoint;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::shim as extension;
use containerd_shim_protos::shim_async::{Task, create_task};
use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use ttrpc::r#async::transport::Listener;
use ttrpc::asynchronous::Server;

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::publish::Publisher;
use crate::reaper::Reaper;
use crate::service::Service;
use crate::sys;
use crate::vm;

/// How long the last events may take after Shutdown.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// The answer to Shutdown is under way when the process is told to end.
const LAST_ANSWER: Duration = Duration::from_millis(20);

pub struct Setup {
    pub namespace: String,
    /// The daemon's ttrpc address for events; empty for none.
    pub events: String,
    pub bundle: Bundle,
    /// For a pod in a virtual machine: the folder that keeps what is known of KVM on this node.
    pub vm: Option<PathBuf>,
}

pub fn serve(setup: Setup, listener: StdListener) -> Result<(), ShimError> {
    sys::become_subreaper().map_err(ShimError::io("become the subreaper"))?;
    ignore_requests_to_end()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ShimError::io("build the runtime"))?;
    let served = runtime.block_on(run(setup, listener));
    // A thread in the middle of a system call that does not return keeps nobody here.
    runtime.shutdown_background();
    served
}

/// Nobody but Shutdown ends the shim: a signal to the whole service must not take the containers' keepers along.
fn ignore_requests_to_end() -> Result<(), ShimError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|e| ShimError::io("block signals")(e.into()))
}

fn register<S: Task + extension::Shim + Send + Sync + 'static>(
    mut server: Server,
    service: &Arc<S>,
) -> Server {
    for (name, methods) in create_task(service.clone()) {
        // Both versions carry the same messages; which one a caller uses follows from the bootstrap's answer.
        server = server.register_service([(name, methods)].into());
    }
    for (_, methods) in create_task(service.clone()) {
        server = server.register_service([("containerd.task.v2.Task".to_owned(), methods)].into());
    }
    server.register_service(extension::create_shim(service.clone()))
}

async fn run(setup: Setup, listener: StdListener) -> Result<(), ShimError> {
    let reaper = Arc::new(Reaper::default());
    let signals = Reaper::signals().map_err(ShimError::io("watch for ended processes"))?;
    let publisher = Publisher::new(setup.namespace, &setup.events, setup.bundle);
    let shutdown = Arc::new(Notify::new());
    listener.set_nonblocking(true).map_err(ShimError::io("prepare the socket"))?;
    let listener = UnixListener::from_std(listener).map_err(ShimError::io("prepare the socket"))?;
    let server = Server::new().add_listener(Listener::from(listener));
    let (told, ended) = (Arc::clone(&publisher), Arc::clone(&shutdown));
    let mut server = match setup.vm {
        Some(probes) => register(server, &Arc::new(vm::Service::new(told, ended, probes))),
        None => register(server, &Arc::new(Service::new(Arc::clone(&reaper), told, ended))),
    };
    server.start().await.map_err(|e| ShimError::io("serve")(std::io::Error::other(e)))?;

    failpoint!("shim.server.serving");
    // One and the same until the end: begun anew it would send what is under way a second time.
    let mut publishing = pin!(publisher.run());
    tokio::select! {
        ended = reaper.run(signals) => ended.map_err(ShimError::io("watch for ended processes"))?,
        () = &mut publishing => {}
        () = shutdown.notified() => {}
    }
    tokio::select! {
        () = &mut publishing => {}
        () = publisher.drained() => {}
        () = tokio::time::sleep(LAST_EVENTS) => {}
    }
    tokio::time::sleep(LAST_ANSWER).await;
    Ok(())
}
