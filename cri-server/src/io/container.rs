//! Where a container's stdin, stdout and stderr go: the three texts of Create, and what must stand ready behind them.

use std::path::Path;

use super::IoError;
use super::fifo::make_fifo;
use super::log_writer::{LogRoute, LogWriter};

/// Where our own shim writes what nobody keeps.
const DISCARD: &str = "file:///dev/null";

/// Who writes the container's log.
#[derive(Clone, Copy, Debug)]
pub enum LogKeeper<'a> {
    /// Our own shim, told by a URI.
    Shim,
    /// A process of its own, run from this executable of our shim.
    Writer {
        /// `containerd-shim-cofferdam-v1`.
        binary: &'a Path,
        /// The longest text of one record.
        max_line: Option<u32>,
    },
}

/// What the container's configuration asks for.
#[derive(Clone, Copy, Debug)]
pub struct IoPlan<'a> {
    /// Whether it gets a terminal; then there is no stderr.
    pub terminal: bool,
    /// Whether its stdin is open for attach.
    pub stdin: bool,
    /// Its log, an absolute path; `None` discards.
    pub log: Option<&'a Path>,
    /// Who writes the log.
    pub keeper: LogKeeper<'a>,
}

/// The container's streams, ready for Create.
#[derive(Debug, Default)]
pub enum ContainerIo {
    /// Nothing is read or kept.
    #[default]
    Null,
    /// The shim writes the log.
    Shim(Streams),
    /// A process writes the log from FIFOs.
    Fifos(Streams, LogWriter),
    /// Only stdin is connected.
    StdinOnly(Streams),
}

/// The texts of Create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// A FIFO's path or nothing.
    pub stdin: String,
    /// A FIFO's path, a URI or nothing.
    pub stdout: String,
    /// A FIFO's path, a URI or nothing.
    pub stderr: String,
}

impl ContainerIo {
    /// Makes the FIFOs in `<bundle>/io` and starts the log writer where one is needed. What it made goes with the
    /// bundle, but a writer must be ended by [`Self::abandon`] when the container is not made after all.
    ///
    /// # Errors
    /// When FIFOs or log writer fail; nothing runs then.
    pub async fn prepare(bundle: &Path, plan: IoPlan<'_>) -> Result<Self, IoError> {
        let ours = matches!(plan.keeper, LogKeeper::Shim);
        if plan.log.is_none() && !plan.stdin && !ours {
            return Ok(Self::Null);
        }
        let folder = bundle.join("io");
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(&folder).map_err(|e| IoError::at("make folder", &folder, e))?;
        let fifo = |name: &str| {
            let path = folder.join(name);
            // An earlier preparation may have failed half-way.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(IoError::at("remove FIFO", &path, error));
                }
                Ok(()) | Err(_) => {}
            }
            make_fifo(&path).map(|()| path.to_string_lossy().into_owned())
        };
        let stdin = match (plan.stdin, plan.keeper) {
            (false, _) => String::new(),
            // Our shim keeps it open whoever goes, until CloseIO: the daemon may restart.
            (true, LogKeeper::Shim) => format!("fifo://{}", fifo("stdin")?),
            (true, LogKeeper::Writer { .. }) => fifo("stdin")?,
        };
        match plan.keeper {
            LogKeeper::Shim => {
                // Clients attach to streams that nobody keeps, too.
                let log = plan.log.map(|log| format!("cri-log://{}", log.display()));
                let stdout = log.unwrap_or_else(|| DISCARD.to_owned());
                let stderr = if plan.terminal { String::new() } else { stdout.clone() };
                Ok(Self::Shim(Streams { stdin, stdout, stderr }))
            }
            LogKeeper::Writer { binary, max_line } => {
                let Some(log) = plan.log else {
                    return Ok(Self::StdinOnly(Streams { stdin, ..Default::default() }));
                };
                let stdout = fifo("stdout")?;
                let stderr = if plan.terminal { String::new() } else { fifo("stderr")? };
                let route = LogRoute { log, stdout: &stdout, stderr: &stderr, max_line };
                let writer = LogWriter::start(binary, bundle, route).await?;
                Ok(Self::Fifos(Streams { stdin, stdout, stderr }, writer))
            }
        }
    }

    /// The texts for Create.
    #[must_use]
    pub fn streams(&self) -> Streams {
        match self {
            Self::Null => Streams::default(),
            Self::Shim(streams) | Self::Fifos(streams, _) | Self::StdinOnly(streams) => streams.clone(),
        }
    }

    /// Undoes [`Self::prepare`]: ends the log writer. The FIFOs go with the bundle.
    ///
    /// # Errors
    /// When the writer cannot be signalled.
    pub fn abandon(&self) -> Result<(), IoError> {
        if let Self::Fifos(_, writer) = self { writer.stop() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use super::*;

    #[tokio::test]
    async fn streams_follow_the_plan() {
        let log = Path::new("/var/log/pods/p/c/0.log");
        let plan = IoPlan { terminal: false, stdin: false, log: Some(log), keeper: LogKeeper::Shim };
        let prepare = async |plan| {
            let bundle = tempfile::tempdir().unwrap();
            let streams = ContainerIo::prepare(bundle.path(), plan).await.unwrap().streams();
            if !streams.stdin.is_empty() {
                let made = std::fs::metadata(streams.stdin.trim_start_matches("fifo://")).unwrap();
                assert!(made.file_type().is_fifo());
                assert_eq!(made.permissions().mode() & 0o777, 0o600);
            }
            streams
        };
        let uri = "cri-log:///var/log/pods/p/c/0.log";
        let plain = prepare(plan).await;
        assert_eq!((plain.stdin.as_str(), plain.stdout.as_str(), plain.stderr.as_str()), ("", uri, uri));
        let terminal = prepare(IoPlan { terminal: true, stdin: true, ..plan }).await;
        assert!(terminal.stdin.ends_with("/io/stdin"));
        assert_eq!((terminal.stdout.as_str(), terminal.stderr.as_str()), (uri, ""));
        let unkept = prepare(IoPlan { log: None, ..plan }).await;
        assert_eq!((unkept.stdin.as_str(), unkept.stdout.as_str()), ("", DISCARD));
        let bundle = tempfile::tempdir().unwrap();
        let keeper = LogKeeper::Writer { binary: Path::new("/nonexistent"), max_line: None };
        let foreign = IoPlan { log: None, keeper, ..plan };
        assert_eq!(ContainerIo::prepare(bundle.path(), foreign).await.unwrap().streams(), Streams::default());
        let stdin =
            ContainerIo::prepare(bundle.path(), IoPlan { stdin: true, ..foreign }).await.unwrap().streams();
        assert!(stdin.stdin.starts_with('/') && stdin.stdout.is_empty());
    }

    #[tokio::test]
    async fn a_missing_writer_is_an_error() {
        let bundle = tempfile::tempdir().unwrap();
        let keeper = LogKeeper::Writer { binary: Path::new("/nonexistent/shim"), max_line: Some(10) };
        let log = bundle.path().join("0.log");
        let plan = IoPlan { terminal: false, stdin: false, log: Some(&log), keeper };
        let error = ContainerIo::prepare(bundle.path(), plan).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/shim"), "{error}");
    }
}
