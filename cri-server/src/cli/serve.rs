//! `cofferdam serve`: the daemon.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Overrides};
use crate::server;

/// What is logged where COFFERDAM_LOG says nothing. ttrpc logs every shim that ends as an error; what matters of that
/// comes back from the calls.
const DEFAULT_FILTER: &str = "info,ttrpc=off";

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// The configuration file [default: /etc/cofferdam/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data that survives a reboot
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Data that does not
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Logs as JSON, a line each
    #[arg(long)]
    log_json: bool,
}

impl Serve {
    /// Serves at `socket`, or where the configuration says.
    pub(super) fn run(self, socket: Option<PathBuf>) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
        let Self { config, root, state, log_json } = self;
        let config = Config::load(config.as_deref(), &Overrides { root, state, socket })?;
        init_log(log_json)?;
        let own_exe = std::env::current_exe()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let stop = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stopped = stop.clone();
            let watching = tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("ending; pods run on");
                stopped.cancel();
            });
            let served = server::serve(config, &own_exe, stop).await;
            watching.abort();
            served?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn init_log(json: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
    let filter = EnvFilter::try_from_env("COFFERDAM_LOG").or_else(|_| EnvFilter::try_new(DEFAULT_FILTER))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        log.json().try_init()?;
    } else {
        log.with_ansi(false).try_init()?;
    }
    Ok(())
}
