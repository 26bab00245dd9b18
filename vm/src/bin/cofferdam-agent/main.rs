//! `cofferdam-agent`: the first process of a microVM. It makes the guest fit for containers, starts the container code
//! (the shim's own, from the same build), and joins the host's streams to it.
//!
//! When it ends, the kernel ends the machine. It prints to the console what kept it from its work.
#![deny(unsafe_code)]

mod early;
mod forward;
mod hardware;
mod network;
mod port;
mod reaper;
mod runtime;
mod serve;
mod service;
mod stdio;
mod sys;

use std::io;
use std::process::ExitCode;

use cofferdam_vm::wire;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("cofferdam-agent is the first process of a microVM and nothing else");
        return ExitCode::FAILURE;
    }
    if let Err(error) = work() {
        eprintln!("cofferdam-agent: {error}");
    }
    sys::power_off();
    ExitCode::FAILURE
}

fn work() -> io::Result<()> {
    early::load_modules()?;
    early::move_root()?;
    early::mount_all()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        // Started before anything is buried, so that its end is seen by whoever waits for it.
        let address = runtime::start()?;
        let way = std::env::var(wire::VARIABLE).ok();
        let wire: Box<dyn wire::Wire> = match wire::announce(way.as_deref())? {
            Some(vsock) => Box::new(vsock),
            None => Box::new(port::open()?),
        };
        tokio::select! {
            ended = serve::serve(wire, address) => ended,
            ended = reaper::run() => ended,
        }
    })
}
