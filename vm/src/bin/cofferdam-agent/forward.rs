//! Connections that the host opens to ports of the pod, from inside the pod's network namespace: what listens on the
//! pod's loopback alone is reached as well.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use cofferdam_vm::agent::{MOST_CONNECTIONS, NETNS};
use cofferdam_vm::channel::{Stream, answer, relay};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{Semaphore, oneshot};

/// Loopback answers at once, unless the listener's queue is full.
const PATIENCE: Duration = Duration::from_secs(5);
const STACK: usize = 64 << 10;

/// The host keeps to the number, but hears of the end of a connection before what listens here does.
static ROOM: Semaphore = Semaphore::const_new(MOST_CONNECTIONS);

/// Connects, says whether that worked, and carries what follows.
pub async fn connection(mut stream: Stream, port: u16) -> io::Result<()> {
    let Ok(_room) = ROOM.try_acquire() else {
        return answer(&mut stream, Err(format!("{MOST_CONNECTIONS} connections are open already"))).await;
    };
    let socket = match dial(port).await {
        Ok(socket) => socket,
        Err(error) => return answer(&mut stream, Err(error.to_string())).await,
    };
    answer(&mut stream, Ok(())).await?;
    let (from_pod, to_pod) = socket.into_split();
    // A socket that is gone is an error of its reader, or of the next write.
    drop(relay(stream, from_pod, to_pod, async |_: &_| std::future::pending().await).await);
    Ok(())
}

async fn dial(port: u16) -> io::Result<tokio::net::TcpStream> {
    let (sender, answered) = oneshot::channel();
    // The thread is in that namespace for good, so it ends with this.
    std::thread::Builder::new()
        .name("dial".into())
        .stack_size(STACK)
        .spawn(move || drop(sender.send(connect(port))))?;
    let socket = answered.await.map_err(|_| io::Error::other("the thread that connects died"))??;
    socket.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(socket)
}

/// First by IPv4, then by IPv6; when both refuse, the first refusal counts.
fn connect(port: u16) -> io::Result<TcpStream> {
    let namespace = File::open(NETNS)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let connect = |address: SocketAddr| TcpStream::connect_timeout(&address, PATIENCE);
    match connect((Ipv4Addr::LOCALHOST, port).into()) {
        Ok(socket) => Ok(socket),
        Err(first) => connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| first),
    }
}
