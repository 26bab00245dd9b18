//! `cofferdam logs`: the output of a container from its CRI log, as far as the node has it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri;

use super::client::Client;
use super::cri_log::{Record, Stream};
use super::error::{CliError, is_lost};
use super::follow::Follower;
use super::lookup;
use super::time::{moment, now};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How often the daemon is asked whether the container still runs, in looks at the log.
const LOOKS: u32 = 4;
/// How often a daemon that is away is asked again: for half a minute.
const PATIENCE: u32 = 150;
/// What a rotation during the last reads may still hold back.
const LAST_READS: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Goes on until the container has ended
    #[arg(short, long)]
    follow: bool,
    /// Begins with the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Begins at a time (2026-11-21T12:00:00Z) or so long ago (10m)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<i64>,
    /// Shows when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// A name, an id or the beginning of an id; a pod with one container will do
    container: String,
}

fn since(text: &str) -> Result<i64, &'static str> {
    moment(text, now()).ok_or("expected a time as 2026-11-21T12:00:00Z or a length as 90s, 10m, 2h, 1d")
}

impl Logs {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let container = lookup::container(client, &self.container).await?;
        let status = client.container_status(&container.id).await?;
        if status.log_path.is_empty() {
            let text = format!("{} was made without a log; nothing kept its output", self.container);
            return Err(CliError::Refused(text));
        }
        let mut log = Follower::new(Path::new(&status.log_path));
        let mut tail = Tail::new(self.tail);
        let from = self.since.unwrap_or(i64::MIN);
        log.read(|record| {
            if record.at >= from {
                tail.push(record);
            }
            Ok(())
        })?;
        let mut printer = Printer::new(self.timestamps);
        for record in tail.records {
            printer.record(&record)?;
        }
        if self.follow {
            return follow(client, &container.id, &mut log, &mut |record| {
                if record.at >= from { printer.record(&record) } else { Ok(()) }
            })
            .await;
        }
        let text = "its log is gone, or it has not been started";
        if log.found() { Ok(()) } else { Err(CliError::Refused(format!("{}: {text}", self.container))) }
    }
}

/// Gives out the records of a log until the container has ended and all is read.
pub(super) async fn follow(
    client: &mut Client,
    id: &str,
    log: &mut Follower,
    each: &mut (dyn FnMut(Record) -> Result<(), CliError> + Send),
) -> Result<(), CliError> {
    let mut silent = 0;
    loop {
        let ended = match has_ended(client, id).await {
            // The container and its log survive the daemon; it may be starting again.
            Err(CliError::Call(status)) if is_lost(&status) && silent < PATIENCE => {
                silent += 1;
                false
            }
            answer => {
                silent = 0;
                answer?
            }
        };
        let reads = if ended { LAST_READS } else { 1 };
        for _ in 0..reads {
            log.read(&mut *each)?;
        }
        if ended {
            return Ok(());
        }
        for _ in 0..LOOKS {
            tokio::time::sleep(POLL).await;
            log.read(&mut *each)?;
        }
    }
}

/// Whether nothing more will come: what was removed has ended, too.
async fn has_ended(client: &mut Client, id: &str) -> Result<bool, CliError> {
    match client.container_status(id).await {
        Ok(status) => Ok(matches!(
            status.state(),
            cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown
        )),
        Err(CliError::Call(status)) if status.code() == tonic::Code::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The last lines; a line of several records counts once.
struct Tail {
    limit: Option<usize>,
    records: VecDeque<Record>,
    lines: usize,
}

impl Tail {
    fn new(limit: Option<usize>) -> Self {
        Self { limit, records: VecDeque::new(), lines: 0 }
    }

    fn push(&mut self, record: Record) {
        if self.limit == Some(0) {
            return;
        }
        self.lines += usize::from(!record.partial);
        self.records.push_back(record);
        while self.limit.is_some_and(|limit| self.lines > limit) {
            match self.records.pop_front() {
                Some(first) => self.lines -= usize::from(!first.partial),
                None => break,
            }
        }
    }
}

/// Writes records to the streams they came from.
#[derive(Debug)]
pub(super) struct Printer {
    timestamps: bool,
    /// Whether stdout's and stderr's last record is to be continued.
    open: [bool; 2],
}

impl Printer {
    /// Nothing printed yet; with `timestamps` each line begins with its time.
    pub(super) fn new(timestamps: bool) -> Self {
        Self { timestamps, open: [false; 2] }
    }

    /// Writes one record.
    pub(super) fn record(&mut self, record: &Record) -> Result<(), CliError> {
        let bytes = self.bytes(record);
        let written = match record.stream {
            Stream::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&bytes).and_then(|()| stdout.flush())
            }
            Stream::Stderr => io::stderr().lock().write_all(&bytes),
        };
        written.map_err(CliError::Output)
    }

    fn bytes(&mut self, record: &Record) -> Vec<u8> {
        let open = &mut self.open[usize::from(record.stream == Stream::Stderr)];
        let mut bytes = Vec::with_capacity(record.text.len() + 40);
        if self.timestamps && !*open {
            bytes.extend_from_slice(record.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(&record.text);
        if !record.partial {
            bytes.push(b'\n');
        }
        *open = record.partial;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cri_log::parse;

    fn record(tag: &str, text: &str) -> Record {
        parse(format!("2026-11-21T12:00:00Z stdout {tag} {text}").as_bytes()).unwrap()
    }

    #[test]
    fn a_line_of_several_records_is_printed_as_one() {
        let mut printer = Printer::new(true);
        let mut bytes = Vec::new();
        for record in [record("P", "one "), record("F", "line"), record("F", "")] {
            bytes.extend(printer.bytes(&record));
        }
        assert_eq!(bytes, b"2026-11-21T12:00:00Z one line\n2026-11-21T12:00:00Z \n");
    }

    #[test]
    fn the_tail_counts_lines_and_not_records() {
        let all = [record("F", "one"), record("P", "two "), record("F", "three"), record("F", "four")];
        for (limit, expected) in [(Some(2), 3), (Some(1), 1), (Some(0), 0), (None, 4), (Some(9), 4)] {
            let mut tail = Tail::new(limit);
            all.iter().cloned().for_each(|record| tail.push(record));
            assert_eq!(tail.records.len(), expected, "{limit:?}");
        }
    }
}
