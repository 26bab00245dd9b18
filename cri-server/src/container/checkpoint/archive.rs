//! The archive of a checkpoint, laid out as the kubelet's other runtimes and checkpointctl know it.
//!
//! ```text
//! checkpoint/        criu's images
//! config.dump        which container it was, and of which image
//! spec.dump          its OCI specification
//! status.dump        its times
//! rootfs-diff.tar    what it changed in its root file system
//! deleted.files      what it removed there
//! container.log      what it had printed
//! dump.log, stats-dump   criu's words and figures
//! ```

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::unnamed::Unnamed;
use super::{IMAGES, Taken, Work, failed};
use crate::container::{Container, ContainerError, ContainerState};

pub(super) const CHANGES: &str = "rootfs-diff.tar";
const CRIU_FILES: [&str; 2] = ["dump.log", "stats-dump"];
/// What other runtimes write for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A writer that refuses once its time is over.
pub(super) struct Until<W> {
    out: W,
    deadline: Instant,
}

impl<W: Write> Until<W> {
    pub fn new(out: W, deadline: Instant) -> Self {
        Self { out, deadline }
    }
}

impl<W: Write> Write for Until<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Puts the archive at the work's location, or nothing. Blocks.
pub(super) fn write(
    work: &Work,
    container: &Container,
    bundle: &Path,
    handler: &str,
    taken: &Taken,
) -> Result<(), ContainerError> {
    let location = &work.location;
    let mut scratch = Unnamed::beside(location)?;
    {
        let out = io::BufWriter::with_capacity(256 << 10, scratch.file());
        let mut tar = tar::Builder::new(Until::new(out, work.deadline));
        let texts = [
            ("config.dump", config(container, handler)),
            ("status.dump", status(container)),
            ("deleted.files", json!(taken.gone)),
        ];
        for (name, value) in texts {
            let text = value.to_string().into_bytes();
            append(&mut tar, name, text.len() as u64, text.as_slice()).map_err(failed("write", location))?;
        }
        append_file(&mut tar, "spec.dump", &bundle.join("config.json"))?;
        append_images(&mut tar, work)?;
        append_file(&mut tar, CHANGES, &work.folder.0.join(CHANGES))?;
        if let Some(log) = container.made().log_path.as_deref().filter(|log| log.exists()) {
            append_beginning(&mut tar, "container.log", log, taken.log)?;
        }
        tar.into_inner().and_then(|mut out| out.flush()).map_err(failed("write", location))?;
    }
    scratch.file().sync_all().map_err(failed("sync", location))?;
    failpoint!("checkpoint.archive_synced");
    scratch.name(location)
}

fn append_images<W: Write>(tar: &mut tar::Builder<W>, work: &Work) -> Result<(), ContainerError> {
    let folder = work.folder.images();
    let listing = || failed("list", &folder);
    let mut header = header(0);
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o700);
    let directory = tar.append_data(&mut header, format!("{IMAGES}/"), io::empty());
    directory.map_err(failed("write", &work.location))?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(listing())? {
        names.push(entry.map_err(listing())?.file_name());
    }
    names.sort_unstable();
    for name in names {
        let text = name.to_string_lossy();
        let inside = match CRIU_FILES.contains(&text.as_ref()) {
            true => text.into_owned(),
            false => format!("{IMAGES}/{text}"),
        };
        append_file(tar, &inside, &folder.join(&name))?;
    }
    Ok(())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()));
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, size: u64, data: impl Read) -> io::Result<()> {
    tar.append_data(&mut header(size), name, data)
}

/// Appends a regular file as long as it is now.
fn append_file<W: Write>(tar: &mut tar::Builder<W>, name: &str, path: &Path) -> Result<(), ContainerError> {
    append_beginning(tar, name, path, u64::MAX)
}

/// Appends no more than the first `most` bytes of a regular file: a log goes on growing.
fn append_beginning<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    path: &Path,
    most: u64,
) -> Result<(), ContainerError> {
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(failed("open", path))?;
    let data = file.metadata().map_err(failed("stat", path))?;
    if !data.is_file() {
        return Ok(());
    }
    let size = data.len().min(most);
    append(tar, name, size, file.chain(io::repeat(0)).take(size)).map_err(failed("archive", path))
}

fn config(container: &Container, handler: &str) -> Value {
    let made = container.made();
    json!({
        "id": made.id.as_str(),
        "name": made.config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default(),
        "rootfsImage": made.image_id,
        "rootfsImageRef": made.image_ref,
        "rootfsImageName": made.image_name,
        "runtime": handler,
        "createdTime": text(made.created_at),
        "checkpointedTime": text(crate::ports::now()),
        "restoredTime": NEVER,
        "restored": false,
    })
}

fn status(container: &Container) -> Value {
    let (pid, started_at) = match container.state() {
        ContainerState::Running { pid, started_at } => (pid, started_at),
        // It ended after the images were taken; they are of when it ran.
        ContainerState::Exited { started_at, .. } => (0, started_at),
        ContainerState::Creating | ContainerState::Created | ContainerState::Removing { .. } => (0, 0),
    };
    json!({
        "CreatedAt": container.made().created_at,
        "StartedAt": started_at,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Pid": pid,
        "Reason": "",
        "Message": "",
    })
}

/// Nanoseconds since the epoch as RFC 3339 has them.
fn text(nanoseconds: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    prost_types::Timestamp::from(SystemTime::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_other_runtimes_read_them() {
        assert_eq!(text(1_600_000_000_500_000_000), "2020-09-13T12:26:40.500Z");
    }

    #[test]
    fn nothing_is_written_after_the_deadline() {
        let mut bytes = Vec::new();
        Until::new(&mut bytes, Instant::now() + Duration::from_secs(60)).write_all(b"in time").unwrap();
        let late = Until::new(&mut bytes, Instant::now()).write_all(b"late").unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(bytes, b"in time");
    }
}
