//! Joins every stream that the host opens to what it is for.

use std::io;

use cofferdam_proto::agent::create_agent;
use cofferdam_vm::channel::{self, Purpose, Stream};
use cofferdam_vm::wire::Wire;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::service::Service;
use crate::{forward, stdio};

/// Connections to the agent's own service that wait to be taken.
const WAITING: usize = 4;

/// Serves until the wire ends. `runtime` is the path of the container code's socket.
pub async fn serve(wire: Box<dyn Wire>, runtime: String) -> io::Result<()> {
    let (calls, waiting) = mpsc::channel(WAITING);
    let listener = Listener::new(futures::stream::unfold(waiting, |mut waiting| async {
        waiting.recv().await.map(|stream| (Ok::<Stream, io::Error>(stream), waiting))
    }));
    let mut server =
        Server::new().add_listener(listener).register_service(create_agent(std::sync::Arc::new(Service)));
    server.start().await.map_err(io::Error::other)?;
    let mut streams = JoinSet::new();
    channel::guest(wire.compat(), |stream| {
        while streams.try_join_next().is_some() {}
        streams.spawn(take(stream, calls.clone(), runtime.clone()));
    })
    .await;
    Err(io::Error::other("the host is gone"))
}

/// A stream that ends badly is its own matter.
async fn take(mut stream: Stream, calls: mpsc::Sender<Stream>, runtime: String) {
    let Ok(purpose) = channel::read_purpose(&mut stream).await else { return };
    let outcome = match purpose {
        Purpose::Agent => {
            if channel::answer(&mut stream, Ok(())).await.is_ok() {
                drop(calls.send(stream).await);
            }
            return;
        }
        Purpose::Task => match UnixStream::connect(&runtime).await {
            Ok(mut socket) => match channel::answer(&mut stream, Ok(())).await {
                Ok(()) => tokio::io::copy_bidirectional(&mut stream, &mut socket).await.map(drop),
                Err(error) => Err(error),
            },
            Err(error) => channel::answer(&mut stream, Err(error.to_string())).await,
        },
        Purpose::Input(name) => stdio::input(stream, &name).await,
        Purpose::Output(name) => stdio::output(stream, &name).await,
        Purpose::Port(port) => forward::connection(stream, port).await,
    };
    if let Err(error) = outcome {
        eprintln!("cofferdam-agent: a stream ended: {error}");
    }
}
