//! `log-writer`: writes the CRI log for containers whose shim does not.
//!
//! It reads the FIFOs that a foreign shim fills, with the same code as the shim's own log. SIGHUP reopens the file,
//! SIGTERM ends it once the FIFOs are empty; without a signal it ends when every FIFO has been closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::options::DEFAULT_LOG_MAX_LINE;
use crate::sys;
use crate::task::log::{LogFile, StreamName};
use crate::task::sink::{Output, Sink, copy_output};
use crate::task::stream::Stream;

/// After SIGTERM the FIFOs are read until nothing has come for this long.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    log: PathBuf,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    max_line: usize,
}

fn parse(argv: &[String]) -> Result<Wanted, ShimError> {
    let mut wanted = Wanted { max_line: DEFAULT_LOG_MAX_LINE, ..Wanted::default() };
    let mut rest = argv.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| ShimError::Invalid(format!("{flag} lacks its value")))?;
        match flag.as_str() {
            "--log" => wanted.log = value.into(),
            "--stdout" => wanted.stdout = Some(value.into()),
            "--stderr" => wanted.stderr = Some(value.into()),
            "--max-line" => {
                let parsed = value.parse().ok().filter(|n| *n > 0);
                let wrong = || ShimError::Invalid(format!("--max-line {value:?} is no positive number"));
                wanted.max_line = parsed.ok_or_else(wrong)?;
            }
            other => return Err(ShimError::Invalid(format!("the flag {other} is not known"))),
        }
    }
    if wanted.log.as_os_str().is_empty() || (wanted.stdout.is_none() && wanted.stderr.is_none()) {
        return Err(ShimError::Invalid("--log and at least one of --stdout and --stderr are needed".into()));
    }
    Ok(wanted)
}

pub fn main(argv: &[String]) -> Result<(), ShimError> {
    let wanted = parse(argv)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGHUP);
    mask.add(Signal::SIGTERM);
    mask.thread_block().map_err(|e| ShimError::io("block signals")(e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ShimError::io("build the runtime"))?;
    runtime.block_on(run(wanted, mask))
}

async fn run(wanted: Wanted, mask: SigSet) -> Result<(), ShimError> {
    let failed = || ShimError::io("watch for signals");
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| failed()(e.into()))?;
    let signals = sys::watch(signals, Interest::READABLE).map_err(failed())?;
    let log =
        LogFile::open(&wanted.log, wanted.max_line).map_err(ShimError::path("open the log", &wanted.log))?;
    let log = Arc::new(log);
    let folder = Bundle::new(wanted.log.parent().unwrap_or(Path::new("/")));
    let mut copies = JoinSet::new();
    for (path, name) in [(&wanted.stdout, StreamName::Stdout), (&wanted.stderr, StreamName::Stderr)] {
        if let Some(path) = path {
            let source =
                Arc::new(Stream::fifo_until_closed(path).map_err(ShimError::path("open the FIFO", path))?);
            let sink = Sink::Log(Arc::clone(&log));
            let output = Output { stream: name, sink, taps: Arc::default() };
            copies.spawn(copy_output(source, output, folder.clone()));
        }
    }
    loop {
        let mut ready = tokio::select! {
            copied = copies.join_next() => match copied {
                Some(_) => continue,
                None => return Ok(()),
            },
            ready = signals.readable() => ready.map_err(failed())?,
        };
        let mut end = false;
        while let Ok(Some(signal)) = signals.get_ref().read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                end = true;
            } else {
                log.reopen().map_err(ShimError::path("reopen the log", &wanted.log))?;
            }
        }
        ready.clear_ready();
        if end {
            // The copies have read what there was as soon as they have to wait for more.
            drop(timeout(QUIET, async { while copies.join_next().await.is_some() {} }).await);
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Wanted, ShimError> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_and_mistakes_refused() {
        let wanted = words("--log /l --stdout /o --max-line 9").unwrap();
        assert_eq!((wanted.max_line, wanted.stdout, wanted.stderr), (9, Some("/o".into()), None));
        for line in ["--log /l", "--stdout /o", "--log /l --stdout /o --max-line 0", "--logs /l"] {
            assert!(words(line).is_err(), "{line}");
        }
    }
}
