//! Makes the processes of a container anew from criu's images.
//!
//! The container was made like any other before: its first process waits, in the namespaces, with the mounts and in the
//! cgroup that the specification asks for. What is restored takes its place. The images may say anything, so criu works in
//! that cgroup itself and leaves the processes stopped, and [`check`] compares them with the one that waits. Invariant: no
//! instruction of a restored process runs before that.

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::Spec;
use rustix::io::{FdFlags, fcntl_setfd};

use super::super::{Failure, FailureKind, Reporter};
use super::stage::Stage;
use super::{DESCRIPTORS, NETWORK, PROCESSES, Run, check, failed, image, refused};
use crate::bundle::Bundle;
use crate::wire::{RestoreOrder, Restored};

const LOG: &str = "restore.log";
const PID: &str = "pid";
/// The longest list of what the standard streams were.
const LONGEST: u64 = 64 << 10;

/// The namespaces of the waiting process that criu's own are to be, for its processes inherit them.
const INHERITED: [(&str, CloneFlags); 3] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// Descriptors that criu gives to what it restores, each under the name that the images know.
#[derive(Default)]
struct Inherited {
    words: Vec<String>,
    open: Vec<OwnedFd>,
}

impl Inherited {
    fn add(&mut self, fd: OwnedFd, name: &str) -> Result<(), Failure> {
        fcntl_setfd(&fd, FdFlags::empty()).map_err(failed("pass a descriptor to criu"))?;
        self.words.extend(["--inherit-fd".to_owned(), format!("fd[{}]:{name}", fd.as_raw_fd())]);
        self.open.push(fd);
        Ok(())
    }
}

/// Restores what the order's folder holds; the processes are stopped then.
pub fn restore(order: &RestoreOrder, reporter: Reporter) -> Result<Restored, Failure> {
    let bundle = Bundle::new(&order.bundle);
    let spec = Spec::load(bundle.join("config.json"))
        .map_err(Failure::because(FailureKind::Spec, "read config.json"))?;
    let stopped = image::stopped(&order.images)?;
    image::share_namespaces(&order.images)?;
    let before = check::Around::look()?;
    for folder in order.cgroups.folders() {
        fs::write(folder.join("cgroup.procs"), "0").map_err(failed("enter the container's cgroup"))?;
    }
    failpoint!("shim.child.restore_entered");
    let stage = Stage::build(&bundle, order.model)?;
    failpoint!("shim.child.restore_staged");
    let inherited = inherited(order)?;
    let words = arguments(order, &stage, &inherited);
    for (name, flag) in INHERITED {
        let entering = format!("enter the container's {name} namespace");
        let file = File::open(format!("/proc/{}/ns/{name}", order.model)).map_err(failed(&entering))?;
        setns(&file, flag).map_err(failed(&entering))?;
    }
    Run { words, limit: order.limit, log: &stage.work().join(LOG) }.until_done()?;
    failpoint!("shim.child.restored");
    drop(inherited);
    let pid =
        fs::read_to_string(stage.work().join(PID)).map_err(failed("read the restored process's number"))?;
    let pid = pid.trim().parse().map_err(failed("read the restored process's number"))?;
    check::Check { order, spec: &spec, around: &before, pid }.all(reporter)?;
    failpoint!("shim.child.restore_checked", infallible);
    Ok(Restored { pid, stopped })
}

fn inherited(order: &RestoreOrder) -> Result<Inherited, Failure> {
    let mut inherited = Inherited::default();
    let namespace = |kind: &str| {
        File::open(format!("/proc/{}/ns/{kind}", order.model))
            .map_err(failed("open the container's namespace"))
    };
    inherited.add(namespace("net")?.into(), NETWORK)?;
    inherited.add(namespace("pid")?.into(), PROCESSES)?;
    for (at, name) in streams(order)?.iter().enumerate().take(3) {
        // Other files than pipes are the container's own, by their path.
        let pipe = name.strip_prefix("pipe:[").and_then(|name| name.strip_suffix(']'));
        if pipe.is_none_or(|number| number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let options = File::options().read(at == 0).write(at != 0).custom_flags(libc::O_NONBLOCK).to_owned();
        let end = options
            .open(format!("/proc/{}/fd/{at}", order.model))
            .map_err(failed("open a standard stream"))?;
        // So that the open waits for nobody; the container's end is an ordinary one.
        rustix::fs::fcntl_setfl(&end, rustix::fs::OFlags::empty())
            .map_err(failed("open a standard stream"))?;
        inherited.add(end.into(), name)?;
    }
    Ok(inherited)
}

/// What the standard streams were when the images were written.
fn streams(order: &RestoreOrder) -> Result<Vec<String>, Failure> {
    let path = order.images.join(DESCRIPTORS);
    let size = fs::metadata(&path).map_err(failed("look at descriptors.json"))?.len();
    if size > LONGEST {
        return Err(refused("descriptors.json of the checkpoint is too long"));
    }
    let text = fs::read(&path).map_err(failed("read descriptors.json"))?;
    serde_json::from_slice(&text).map_err(failed("understand descriptors.json"))
}

fn arguments(order: &RestoreOrder, stage: &Stage, inherited: &Inherited) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut words = vec!["restore".to_owned(), "--images-dir".into(), text(&order.images)];
    words.extend(["--work-dir".into(), text(&stage.work()), "--log-file".into(), LOG.into(), "-v2".into()]);
    words.extend(["--root".into(), text(&stage.root())]);
    words.extend(["--restore-detached", "--leave-stopped", "--file-locks"].map(str::to_owned));
    words.extend(["--pidfile".into(), text(&stage.work().join(PID))]);
    // The cgroup is inherited: the images have no say in it.
    words.push("--manage-cgroups=ignore".into());
    for (point, place) in &stage.external {
        words.extend(["--external".to_owned(), format!("mnt[{point}]:{}", text(place))]);
    }
    words.extend(inherited.words.iter().cloned());
    words
}
