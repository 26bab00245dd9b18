//! A container's limits: OCI `LinuxResources` written to the files of its cgroups, when it is made and while it runs.
//!
//! Invariant: all or nothing. When a file refuses its value, those written before get back what they held, and the
//! error names the file. What is not in the request stays as it is.

mod block;
mod legacy;
pub mod place;
mod unified;

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxResources};

use super::CgroupPaths;
use crate::error::ShimError;

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    path: PathBuf,
    text: String,
    /// What takes it back; what the file held before where there is nothing here.
    undo: Option<String>,
}

impl Change {
    fn new(folder: &Path, file: &str, text: impl ToString) -> Self {
        Change { path: folder.join(file), text: text.to_string(), undo: None }
    }

    fn is(&self, file: &str) -> bool {
        self.path.file_name().is_some_and(|name| name == file)
    }
}

/// Puts the limits of a request in JSON, as shims are sent it, into force.
pub fn update(paths: &CgroupPaths, json: &[u8]) -> Result<(), ShimError> {
    let resources: LinuxResources =
        serde_json::from_slice(json).map_err(|e| ShimError::Invalid(format!("resources: {e}")))?;
    apply(paths, &resources)
}

/// Puts limits into force.
pub fn apply(paths: &CgroupPaths, resources: &LinuxResources) -> Result<(), ShimError> {
    let changes = match (&paths.unified, paths.is_v2()) {
        (Some(folder), true) => unified::plan(folder, resources)?,
        _ => legacy::plan(paths, resources)?,
    };
    let mut done: Vec<(&Path, String)> = Vec::new();
    for change in &changes {
        let before = change.undo.clone().or_else(|| fs::read_to_string(&change.path).ok());
        if let Err(error) = write(&change.path, &change.text) {
            for (path, text) in done.into_iter().rev() {
                // The file took this value before; should it not now, the first refusal is still what matters.
                drop(write(path, &text));
            }
            return Err(refusal(change, error));
        }
        done.extend(before.map(|text| (change.path.as_path(), text)));
        failpoint!("shim.update.file_written", infallible);
    }
    Ok(())
}

/// A cgroup file takes its value in one write; an empty value needs a line's end to be a write at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let text = text.trim_end();
    let text = if text.is_empty() { "\n" } else { text };
    // Not made where it is not there: that is another error than "not permitted".
    File::options().write(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

/// Why a file did not take its value, in words that its user understands.
fn refusal(change: &Change, source: io::Error) -> ShimError {
    let (path, text) = (change.path.display(), &change.text);
    let cpuset = change.path.to_string_lossy().contains("/cpuset.");
    match source.raw_os_error() {
        Some(libc::EBUSY) if path.to_string().contains("/memory.") => {
            let used = used(&change.path).map_or_else(String::new, |bytes| format!(" ({bytes} bytes)"));
            ShimError::Limit(format!("{path} cannot become {text}: the container uses more{used}"))
        }
        Some(libc::ENOENT) => {
            ShimError::Invalid(format!("there is no {path} to set to {text}: this node lacks it"))
        }
        Some(libc::EINVAL | libc::ERANGE | libc::EOVERFLOW) => {
            ShimError::Invalid(format!("{path} does not take {text:?}: {source}"))
        }
        Some(libc::EACCES | libc::ENOSPC) if cpuset => {
            ShimError::Invalid(format!("{path} does not take {text:?}: not all of it is the pod's"))
        }
        _ => {
            let source = io::Error::new(source.kind(), format!("{source} (value {text})"));
            ShimError::Path { operation: "write", path: change.path.clone(), source }
        }
    }
}

/// The use that a v1 limit bounds.
fn used(limit: &Path) -> Option<u64> {
    let name = limit.file_name()?.to_str()?.replace("limit_in_bytes", "usage_in_bytes");
    number(&limit.with_file_name(name))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn cpusets(folder: &Path, cpu: &LinuxCpu) -> impl Iterator<Item = Change> {
    let files = [("cpuset.cpus", cpu.cpus().clone()), ("cpuset.mems", cpu.mems().clone())];
    let set = files.map(|(file, value)| {
        value.filter(|value| !value.is_empty()).map(|value| Change::new(folder, file, value))
    });
    set.into_iter().flatten()
}

/// Zero and below mean that there is no limit.
fn limit(n: i64) -> String {
    if n <= 0 { "max".to_owned() } else { n.to_string() }
}

/// Limits of huge pages: of those in use, and where the kernel counts them, of those set aside.
fn hugepages(folder: &Path, limits: &[LinuxHugepageLimit], end: &str) -> Result<Vec<Change>, ShimError> {
    let mut changes = Vec::new();
    for limit in limits {
        let size = limit.page_size();
        if size.is_empty() || !size.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(ShimError::Invalid(format!("{size:?} is not a size of huge pages")));
        }
        let text = if limit.limit() < 0 { "max".to_owned() } else { limit.limit().to_string() };
        changes.push(Change::new(folder, &format!("hugetlb.{size}.{end}"), &text));
        let reserved = format!("hugetlb.{size}.rsvd.{end}");
        if folder.join(&reserved).exists() {
            changes.push(Change::new(folder, &reserved, &text));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests;
