//! Where output goes, and the loop that carries it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::io::append_file;
use super::log::{self, LogFile, Records, StreamName};
use super::stream::Stream;
use super::tap::Taps;
use crate::bundle::Bundle;
use crate::error::ShimError;

/// A destination as the request names it.
#[derive(Debug, PartialEq, Eq)]
pub enum Destination {
    Null,
    Fifo(PathBuf),
    File(PathBuf),
    CriLog { path: PathBuf, max_line: usize },
}

impl Destination {
    /// `""`, a path, `file:///path` or `cri-log:///path[?max_line=N]`.
    pub fn parse(uri: &str, max_line: usize) -> Result<Self, ShimError> {
        let invalid = |why: &str| ShimError::Invalid(format!("output {uri:?}: {why}"));
        let Some((scheme, rest)) = uri.split_once("://") else {
            return match uri {
                "" => Ok(Destination::Null),
                path if path.starts_with('/') => Ok(Destination::Fifo(path.into())),
                _ => Err(invalid("it is neither an absolute path nor a URI")),
            };
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') {
            return Err(invalid("the path is not absolute"));
        }
        match scheme {
            "fifo" => Ok(Destination::Fifo(path.into())),
            "file" => Ok(Destination::File(path.into())),
            "cri-log" => {
                let mut max_line = max_line;
                for pair in query.split('&').filter(|p| !p.is_empty()) {
                    match pair.split_once('=') {
                        Some(("max_line", n)) => {
                            let parsed = n.parse().ok().filter(|n| *n > 0);
                            max_line = parsed.ok_or_else(|| invalid("max_line is no positive number"))?;
                        }
                        _ => return Err(invalid("a parameter is not known")),
                    }
                }
                Ok(Destination::CriLog { path: path.into(), max_line })
            }
            _ => Err(invalid("the scheme is not known; use fifo, file or cri-log")),
        }
    }

    pub fn open(self, logs: &mut Logs) -> Result<Sink, ShimError> {
        match self {
            Destination::Null => Ok(Sink::Null),
            Destination::Fifo(path) => {
                let fifo = Stream::fifo_writer(&path).map_err(ShimError::path("open the FIFO", path))?;
                Ok(Sink::Fifo(fifo))
            }
            Destination::File(path) => {
                Ok(Sink::File(append_file(&path).map_err(ShimError::path("open", path))?))
            }
            Destination::CriLog { path, max_line } => {
                Ok(Sink::Log(logs.open(&path, max_line).map_err(ShimError::path("open the log", path))?))
            }
        }
    }
}

/// The log files of one process; both streams usually share one.
#[derive(Default)]
pub struct Logs(Vec<(PathBuf, Arc<LogFile>)>);

impl Logs {
    pub fn open(&mut self, path: &Path, max_line: usize) -> io::Result<Arc<LogFile>> {
        if let Some((_, log)) = self.0.iter().find(|(p, _)| p == path) {
            return Ok(Arc::clone(log));
        }
        let log = Arc::new(LogFile::open(path, max_line)?);
        self.0.push((path.to_owned(), Arc::clone(&log)));
        Ok(log)
    }

    pub fn reopen(&self) -> io::Result<bool> {
        for (_, log) in &self.0 {
            log.reopen()?;
        }
        Ok(!self.0.is_empty())
    }
}

pub enum Sink {
    Null,
    Fifo(Stream),
    File(File),
    Log(Arc<LogFile>),
}

/// A sink with what it has to remember between two reads.
enum Writer {
    Null,
    Fifo(Stream),
    File(File),
    Log(Arc<LogFile>, Records),
}

impl Writer {
    fn new(sink: Sink, stream: StreamName) -> Self {
        match sink {
            Sink::Null => Writer::Null,
            Sink::Fifo(fifo) => Writer::Fifo(fifo),
            Sink::File(file) => Writer::File(file),
            Sink::Log(log) => {
                let records = log.records(stream);
                Writer::Log(log, records)
            }
        }
    }

    async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Writer::Null => Ok(()),
            Writer::Fifo(fifo) => fifo.write_all(data).await,
            Writer::File(file) => file.write_all(data),
            Writer::Log(log, records) => {
                let text = records.push(data, log::now());
                log.append(&text)
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Writer::Null | Writer::Fifo(_) | Writer::File(_) => Ok(()),
            Writer::Log(log, records) => {
                let text = records.finish(log::now());
                log.append(&text)
            }
        }
    }
}

/// Where one stream goes.
pub struct Output {
    pub stream: StreamName,
    pub sink: Sink,
    pub taps: Arc<Taps>,
}

/// Carries one stream until its end.
pub async fn copy_output(source: Arc<Stream>, output: Output, bundle: Bundle) {
    let Output { stream, sink, taps } = output;
    let mut writer = Writer::new(sink, stream);
    let mut lost = 0;
    let mut note = |outcome: io::Result<()>, size: usize| match outcome {
        Ok(()) if lost == 0 => {}
        Ok(()) => bundle
            .warn(&format!("output is written again; up to {} bytes were lost", std::mem::take(&mut lost))),
        Err(error) => {
            // Once per spell of trouble: a full disk must not be filled further with complaints.
            if lost == 0 {
                bundle.warn(&format!("output is being lost: {error}"));
            }
            lost += size.max(1);
        }
    };
    let mut buffer = Vec::new();
    while let Ok(1..) = source.read_into(&mut buffer).await {
        note(writer.write(&buffer).await, buffer.len());
        taps.write(&buffer);
        // Given back rather than kept: a container that is silent costs no buffer.
        buffer = Vec::new();
    }
    note(writer.finish(), 0);
    taps.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_told_apart() {
        let parse = |uri| Destination::parse(uri, 7);
        assert_eq!(parse("").unwrap(), Destination::Null);
        assert_eq!(parse("/run/f").unwrap(), Destination::Fifo("/run/f".into()));
        assert_eq!(parse("file:///a/b").unwrap(), Destination::File("/a/b".into()));
        assert_eq!(parse("cri-log:///l").unwrap(), Destination::CriLog { path: "/l".into(), max_line: 7 });
        let long = Destination::CriLog { path: "/l".into(), max_line: 90 };
        assert_eq!(parse("cri-log:///l?max_line=90").unwrap(), long);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for uri in ["relative", "binary:///x", "cri-log://l", "cri-log:///l?max_line=0", "cri-log:///l?tap=1"]
        {
            assert!(Destination::parse(uri, 7).is_err(), "{uri}");
        }
    }
}
