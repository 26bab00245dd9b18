//! `cri-bench`: measures a CRI runtime with real calls, alone or against a second one.
//!
//! Invariant: whatever it made is removed again, also after an error or an interrupt: pods are found by the label of
//! this run, not by what was counted.

mod cycle;
mod endpoint;
mod memory;
mod report;
mod samples;
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use endpoint::Endpoint;
use report::Report;

/// Measures a CRI runtime: latency of every call, pods a second, memory.
#[derive(Clone, Debug, Parser)]
#[command(name = "cri-bench", version)]
pub struct Args {
    /// Socket of the runtime to measure
    #[arg(long, value_name = "SOCKET")]
    endpoint: String,
    /// Socket of a runtime to compare with: the samples alternate between both
    #[arg(long, value_name = "SOCKET")]
    against: Option<String>,
    /// How often each operation is measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
    /// How many pods are made at the same time when counting pods a second; 0 leaves it out
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=256))]
    parallel: u32,
    /// Idle pods for the memory and list measurements; 0 leaves them out
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pods: u32,
    /// Image with `sleep` and `true`; it is pulled, and removed again if it was not there before
    #[arg(long, value_name = "REF", default_value = "docker.io/library/busybox:latest")]
    image: String,
    /// Runtime handler of the pods
    #[arg(long, value_name = "NAME", default_value = "")]
    runtime_handler: String,
    /// Runtime handler of the pods on the second endpoint
    #[arg(long, value_name = "NAME", default_value = "")]
    against_handler: String,
    /// Do not measure PullImage
    #[arg(long)]
    no_pull: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Why a benchmark ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} on {socket} failed ({:?}): {}", status.code(), status.message())]
    Call { operation: &'static str, socket: String, status: Box<tonic::Status> },
    #[error("cannot make a folder for the logs")]
    Folder { source: std::io::Error },
    #[error("cannot wait for signals")]
    Signal { source: std::io::Error },
    #[error("a worker panicked")]
    Worker,
    #[error("interrupted")]
    Interrupted,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(report) => {
            match args.output {
                Output::Json => println!("{}", report.json()),
                Output::Table => print!("{}", report.table()),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("cri-bench: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<Report, Error> {
    let mut endpoints = vec![Arc::new(Endpoint::new(0, &args.endpoint, &args.runtime_handler, &args.image)?)];
    if let Some(against) = &args.against {
        endpoints.push(Arc::new(Endpoint::new(1, against, &args.against_handler, &args.image)?));
    }
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| Error::Signal { source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|source| Error::Signal { source })?;
    let result = tokio::select! {
        result = report::measure(args, &endpoints) => result,
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    };
    let mut cleaned = Ok(());
    for endpoint in &endpoints {
        if let Err(error) = endpoint.clean().await {
            eprintln!("cri-bench: cleaning up {}: {error}", endpoint.socket);
            cleaned = Err(error);
        }
    }
    let report = result?;
    cleaned.map(|()| report)
}
