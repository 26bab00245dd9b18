//! Writes the images of a running container.
//!
//! What the container does not own is named as external: its mounts of the node's file systems by their mount points, as
//! runc names them, and the network namespace of its pod. Invariant: the container runs on, also when criu fails or is
//! ended: it holds the processes by ptrace, and the shim puts the freezer back.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::super::rootfs::unescape;
use super::super::{Failure, FailureKind};
use super::{DESCRIPTORS, NETWORK, OF_NAMESPACES, PROCESSES, Run, failed};
use crate::wire::CheckpointOrder;

const LOG: &str = "dump.log";

/// Writes the images of the container's processes into the order's folder.
pub fn dump(order: &CheckpointOrder) -> Result<(), Failure> {
    let words = arguments(order)?;
    let streams = standard_streams(order.init_pid)?;
    Run { words, limit: order.limit, log: &order.images.join(LOG) }.until_done()?;
    let text = serde_json::to_vec(&streams).map_err(failed("describe the standard streams"))?;
    fs::write(order.images.join(DESCRIPTORS), text).map_err(failed("write descriptors.json"))
}

/// What the container's first three descriptors lead to.
fn standard_streams(pid: i32) -> Result<Vec<String>, Failure> {
    let one = |fd| fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    // A program may have closed some.
    let name = |fd| one(fd).map_or_else(|_| String::new(), |path| path.to_string_lossy().into_owned());
    Ok((0..3).map(name).collect())
}

fn arguments(order: &CheckpointOrder) -> Result<Vec<String>, Failure> {
    let pid = order.init_pid;
    let images = order.images.display().to_string();
    let mut words = vec!["dump".to_owned(), "--tree".into(), pid.to_string()];
    words.extend(["--images-dir".into(), images.clone(), "--work-dir".into(), images]);
    words.extend(["--log-file", LOG, "-v4", "--leave-running", "--file-locks"].map(str::to_owned));
    words.push("--manage-cgroups=soft".into());
    let mut external = |text: String| words.extend(["--external".to_owned(), text]);
    if let Some(inode) = foreign_namespace(pid, "net")? {
        external(format!("net[{inode}]:{NETWORK}"));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed("look at the process"))?;
    if let (Some(inode), false) = (foreign_namespace(pid, "pid")?, is_first(&status)) {
        external(format!("pid[{inode}]:{PROCESSES}"));
    }
    let read = |of: &str| fs::read_to_string(format!("/proc/{of}/mountinfo")).map_err(failed("read mounts"));
    for point in external_mounts(&read("self")?, &read(&pid.to_string())?)? {
        external(format!("mnt[{point}]:{point}"));
    }
    let cgroups = &order.cgroups;
    let freezer = if cgroups.is_v2() { cgroups.unified.as_deref() } else { cgroups.controller("freezer") };
    if let Some(freezer) = freezer {
        words.extend(["--freeze-cgroup".to_owned(), freezer.display().to_string()]);
    }
    Ok(words)
}

/// The process's namespace of this kind, if it is not ours as well.
fn foreign_namespace(pid: i32, kind: &str) -> Result<Option<u64>, Failure> {
    let inode = |of: &str| {
        fs::metadata(format!("/proc/{of}/ns/{kind}"))
            .map(|data| data.ino())
            .map_err(failed("look at namespaces"))
    };
    let theirs = inode(&pid.to_string())?;
    Ok((theirs != inode("self")?).then_some(theirs))
}

/// Whether the process is the first one of its pid namespace. proc_pid_status(5)
fn is_first(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|pids| pids.split_whitespace().last()) == Some("1")
}

/// Mount points of the container below which lies a file system of the node. proc_pid_mountinfo(5)
fn external_mounts(ours: &str, theirs: &str) -> Result<Vec<String>, Failure> {
    let device = |line: &str| line.split(' ').nth(2).map(str::to_owned);
    let known: Vec<String> = ours.lines().filter_map(device).collect();
    let mut found = Vec::new();
    for line in theirs.lines() {
        let mut fields = line.split(' ').skip(2);
        let (Some(device), Some(root), Some(point)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
        let anew = root == "/" && OF_NAMESPACES.contains(&kind);
        if point == "/" || anew || !known.iter().any(|known| known == device) {
            continue;
        }
        let point = unescape(point);
        if point.contains(']') {
            let text = format!("criu cannot be told of the mount at {point}, for its name has a bracket");
            return Err(Failure::new(FailureKind::Checkpoint, text));
        }
        found.push(point);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_has_mounted_is_external_to_the_container() {
        let ours = "30 1 254:0 / / rw - ext4 /dev/vda rw\n31 30 0:39 / /run/shm rw - tmpfs shm rw\n\
                    32 30 0:20 / /sys rw - sysfs sysfs rw\n";
        let theirs = "1 0 0:40 / / rw - overlay overlay rw\n2 1 0:50 / /proc rw - proc proc rw\n\
                      3 1 254:0 /pods/hosts /etc/hosts rw - ext4 /dev/vda rw\n\
                      4 1 0:39 / /dev/shm rw - tmpfs shm rw\n5 1 0:20 / /sys ro - sysfs sysfs rw\n\
                      6 1 254:0 /v /my\\040data rw - ext4 /dev/vda rw\n";
        assert_eq!(external_mounts(ours, theirs).unwrap(), ["/etc/hosts", "/dev/shm", "/my data"]);
        let odd = "6 1 254:0 /v /a]b rw - ext4 /dev/vda rw\n";
        assert!(external_mounts(ours, odd).unwrap_err().message.contains("/a]b"));
    }

    #[test]
    fn the_first_process_of_a_namespace_has_number_one_there() {
        assert!(is_first("Name:\tsh\nNSpid:\t17038\t1\n"));
        assert!(!is_first("Name:\tsh\nNSpid:\t17038\t21\n"));
        assert!(!is_first("Name:\tsh\n"));
    }
}
