//! A monitor whose guest was taken over. It is started as QEMU is, with the same connections, and boots nothing: what
//! speaks on the channel is this program, and it misbehaves as the last part of its own name says (`double-garbage`).
//!
//! As `double-well` it is a guest that does what it should, until a container whose command names a trick comes.

mod agent;
mod task;

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_tests::harness::inherited;
use cofferdam_vm::channel::{self, Purpose, Stream};
use containerd_shim_protos::shim_async::create_task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

/// What the two services and the streams know of each other.
#[derive(Default)]
struct Guest {
    trick: String,
    /// The containers' specifications, by id.
    specs: Mutex<HashMap<String, String>>,
    /// Streams towards the host, by name.
    outputs: Mutex<HashMap<String, Stream>>,
    off: Notify,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&std::env::args().collect::<Vec<_>>()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\u{1b}[2Jno such machine: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> io::Result<()> {
    if words.iter().any(|word| word.contains("accel=kvm")) {
        return Err(io::Error::other("there is no KVM here"));
    }
    let trick = words[0].rsplit('-').next().unwrap_or_default().to_owned();
    if trick == "dies" {
        return Err(io::Error::other("it dies"));
    }
    let number = words.iter().find_map(|word| word.strip_prefix("socket,id=agent,fd=")?.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("there is no channel"))?;
    let wire = std::os::unix::net::UnixStream::from(inherited(number));
    wire.set_nonblocking(true)?;
    misbehave(UnixStream::from_std(wire)?, trick).await
}

async fn misbehave(mut wire: UnixStream, trick: String) -> io::Result<()> {
    match trick.as_str() {
        "garbage" => flood(&mut wire, |_| vec![0xff; 4096]).await,
        // The beginnings of streams, which only the host may open: version 0, a window, SYN, an even number.
        "opener" => {
            flood(&mut wire, |n| {
                let id = (n + 1).wrapping_mul(2).to_be_bytes();
                [&[0, 1, 0, 1], id.as_slice(), &[0; 4]].concat()
            })
            .await;
        }
        "hangs" => while matches!(wire.read(&mut [0; 4096]).await, Ok(1..)) {},
        "closes" => drop(wire),
        _ => return serve(wire, trick).await,
    }
    std::future::pending().await
}

/// Writes without end; what the host sends is left unread.
async fn flood(to: &mut (impl AsyncWriteExt + Unpin), part: impl Fn(u32) -> Vec<u8>) {
    for number in 0.. {
        if to.write_all(&part(number)).await.is_err() {
            return;
        }
    }
}

async fn serve(wire: UnixStream, trick: String) -> io::Result<()> {
    let guest = Arc::new(Guest { trick, ..Guest::default() });
    let (agents, _agent) = server(cofferdam_proto::agent::create_agent(guest.clone())).await?;
    let (tasks, _task) = server(create_task(guest.clone())).await?;
    let mut streams = JoinSet::new();
    let host = channel::guest(wire.compat(), |stream| {
        let (guest, agents, tasks) = (Arc::clone(&guest), agents.clone(), tasks.clone());
        streams.spawn(async move { drop(take(&guest, stream, agents, tasks).await) });
    });
    tokio::select! {
        () = host => {}
        () = guest.off.notified() => {}
    }
    Ok(())
}

type Services = HashMap<String, ttrpc::asynchronous::Service>;

/// A server to which streams are given as connections.
async fn server(services: Services) -> io::Result<(mpsc::Sender<Stream>, Server)> {
    let (calls, waiting) = mpsc::channel::<Stream>(4);
    let listener = Listener::new(futures::stream::unfold(waiting, |mut waiting| async {
        waiting.recv().await.map(|stream| (Ok::<Stream, io::Error>(stream), waiting))
    }));
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await.map_err(io::Error::other)?;
    Ok((calls, server))
}

async fn take(
    guest: &Guest,
    mut stream: Stream,
    agents: mpsc::Sender<Stream>,
    tasks: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let purpose = channel::read_purpose(&mut stream).await?;
    if guest.trick == "refuses" && purpose == Purpose::Task {
        return channel::answer(&mut stream, Err("\u{1b}]0;owned\u{7} no ".repeat(1000))).await;
    }
    channel::answer(&mut stream, Ok(())).await?;
    match purpose {
        Purpose::Agent => drop(agents.send(stream).await),
        Purpose::Task => match guest.trick.as_str() {
            "taskgarbage" => flood(&mut stream, |_| vec![0xee; 4096]).await,
            // The header of an answer of almost 4 GiB, and its bytes.
            "taskhuge" => {
                stream.write_all(&[0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 2, 0]).await?;
                flood(&mut stream, |_| vec![0; 4096]).await;
            }
            // Answers to calls that nobody made; those that were made stay without one.
            "taskforeign" => {
                flood(&mut stream, |n| [&[0, 0, 0, 0], n.to_be_bytes().as_slice(), &[2, 0]].concat()).await;
            }
            _ => drop(tasks.send(stream).await),
        },
        Purpose::Input(_) | Purpose::Port(_) => {
            // Taken, and never read.
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Purpose::Output(name) => {
            drop(guest.outputs.lock().expect("poisoned").insert(name, stream));
        }
    }
    Ok(())
}
