//! The guest of the double: no kernel, but the agent's side of the channel, reached the way that the kernel's line names.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use cofferdam_proto::agent as proto;
use cofferdam_vm::agent::VERSION;
use cofferdam_vm::channel::{self, Purpose, Stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;
use ttrpc::r#async::TtrpcContext;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

/// What the guest's kernel calls itself.
pub const RELEASE: &str = "6.1-double";

struct Agent;

#[async_trait]
impl proto::Agent for Agent {
    async fn hello(&self, _: &TtrpcContext, _: proto::HelloRequest) -> ttrpc::Result<proto::HelloResponse> {
        Ok(proto::HelloResponse {
            version: VERSION,
            kernel_release: RELEASE.to_owned(),
            ..Default::default()
        })
    }

    async fn set_up(&self, _: &TtrpcContext, _: proto::SetUpRequest) -> ttrpc::Result<proto::SetUpResponse> {
        Ok(proto::SetUpResponse::new())
    }
}

/// Connects to the node as a guest's connection would arrive there: at the socket's name with the port after it.
pub fn announce(socket: &Path, kernel_line: &str) -> JoinHandle<()> {
    let word = kernel_line.split(' ').find_map(|word| word.strip_prefix("COFFERDAM_CHANNEL=vsock:"));
    let port: u32 = word.expect("the kernel's line names no port").parse().unwrap();
    let stream = UnixStream::connect(format!("{}_{port}", socket.display())).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(stream));
    })
}

async fn serve(stream: UnixStream) {
    stream.set_nonblocking(true).unwrap();
    let wire = tokio::net::UnixStream::from_std(stream).unwrap();
    let (calls, waiting) = mpsc::channel::<Stream>(4);
    let listener = Listener::new(futures::stream::unfold(waiting, |mut waiting| async {
        waiting.recv().await.map(|stream| (Ok::<Stream, std::io::Error>(stream), waiting))
    }));
    let mut server =
        Server::new().add_listener(listener).register_service(proto::create_agent(Arc::new(Agent)));
    server.start().await.unwrap();
    let mut streams = JoinSet::new();
    channel::guest(wire.compat(), |mut stream| {
        let calls = calls.clone();
        streams.spawn(async move {
            if channel::read_purpose(&mut stream).await.is_ok_and(|purpose| purpose == Purpose::Agent)
                && channel::answer(&mut stream, Ok(())).await.is_ok()
            {
                drop(calls.send(stream).await);
            }
        });
    })
    .await;
}
