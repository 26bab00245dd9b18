//! Compares restored processes, which are stopped, with the process that the specification made and that waits.
//!
//! A checkpoint's images set whatever the kernel can set: capabilities, users, filters, mounts. Invariant: a restored
//! process has no right that the waiting one has not, is in its cgroup and namespaces, and sees its mounts and no
//! others of the node. What a filter of system calls allows is the checkpoint's: only that there is one is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use oci_spec::runtime::Spec;

use super::super::rootfs::unescape;
use super::super::{Failure, Reporter};
use super::{failed, refused};
use crate::cgroup;
use crate::wire::RestoreOrder;

/// Those in which a restored process must be where the waiting one is.
const SHARED: [&str; 5] = ["net", "ipc", "uts", "user", "cgroup"];
/// Flags of a mount that take something away.
const RESTRICTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];

/// What this process sees before it enters the container.
pub struct Around {
    devices: BTreeSet<String>,
}

impl Around {
    pub fn look() -> Result<Self, Failure> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(failed("read mounts"))?;
        Ok(Self { devices: table.lines().filter_map(|l| l.split(' ').nth(2).map(str::to_owned)).collect() })
    }
}

pub struct Check<'a> {
    pub order: &'a RestoreOrder,
    pub spec: &'a Spec,
    pub around: &'a Around,
    /// The first of the restored processes.
    pub pid: i32,
}

/// What /proc/pid/status says. proc_pid_status(5)
struct Status(BTreeMap<String, String>);

impl Status {
    fn of(pid: i32) -> Result<Self, Failure> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed("look at a process"))?;
        let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.into(), value.trim().into()));
        Ok(Self(text.lines().filter_map(pair).collect()))
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Everything, where the kernel tells nothing: what is compared with it fails then.
    fn mask(&self, name: &str) -> u64 {
        u64::from_str_radix(self.text(name), 16).unwrap_or(u64::MAX)
    }

    fn number(&self, name: &str) -> u32 {
        self.text(name).parse().unwrap_or_default()
    }

    fn users(&self) -> Vec<u32> {
        self.text("Uid").split_whitespace().map(|uid| uid.parse().unwrap_or_default()).collect()
    }
}

impl Check<'_> {
    /// Checks every process, and gives it the out-of-memory score of the waiting one.
    pub fn all(&self, reporter: Reporter) -> Result<(), Failure> {
        let model = Status::of(self.order.model)?;
        let folder = self.order.cgroups.primary().ok_or_else(|| refused("the container has no cgroup"))?;
        let own = std::process::id().cast_signed();
        let mut restored = cgroup::processes(folder);
        restored.retain(|pid| *pid != own && *pid != self.order.model);
        if !restored.contains(&self.pid) {
            return Err(refused("the restored process is not in the container's cgroup"));
        }
        let place = mounts_of(self.order.model)?;
        compare_mounts(&place, &mounts_of(self.pid)?, &self.around.devices)?;
        for pid in restored {
            self.rights(pid, &Status::of(pid)?, &model)?;
            self.place(pid)?;
            self.labels(pid)?;
            self.score(pid, reporter);
        }
        Ok(())
    }

    fn rights(&self, pid: i32, status: &Status, model: &Status) -> Result<(), Failure> {
        let more = |what: &str| {
            let name = status.text("Name");
            Err(refused(format!("the checkpoint gives {name} more than the container may have: {what}")))
        };
        let bound = model.mask("CapBnd");
        if ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().any(|set| status.mask(set) & !bound != 0)
        {
            return more("capabilities");
        }
        if status.number("NoNewPrivs") < model.number("NoNewPrivs") {
            return more("new privileges by exec");
        }
        if status.number("Seccomp") < model.number("Seccomp") {
            return more("system calls without a filter");
        }
        let users = model.users();
        if users.iter().all(|uid| *uid != 0) {
            let first = pid == self.pid;
            let wrong = |uid: &u32| *uid == 0 || (first && !users.contains(uid));
            if status.users().iter().any(wrong) {
                return more("another user");
            }
        }
        Ok(())
    }

    fn place(&self, pid: i32) -> Result<(), Failure> {
        let namespace = |of: i32, kind: &str| {
            fs::read_link(format!("/proc/{of}/ns/{kind}")).map_err(failed("look at a process's namespaces"))
        };
        for kind in SHARED {
            if namespace(pid, kind)? != namespace(self.order.model, kind)? {
                return Err(refused(format!(
                    "a restored process is in another {kind} namespace than its pod"
                )));
            }
        }
        for kind in ["mnt", "pid"] {
            if namespace(pid, kind)? != namespace(self.pid, kind)? {
                return Err(refused(format!("a restored process has a {kind} namespace of its own")));
            }
        }
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let own = namespaces
            .iter()
            .any(|n| n.typ() == oci_spec::runtime::LinuxNamespaceType::Pid && n.path().is_none());
        let (restored, model) = (namespace(self.pid, "pid")?, namespace(self.order.model, "pid")?);
        if own == (restored == model) {
            let (was, is) = if own { ("shared", "its own") } else { ("its own", "shared") };
            let words =
                format!("the checkpoint's pid namespace was {was}, and the container's is to be {is}");
            return Err(refused(words));
        }
        let cgroups = |of: i32| {
            fs::read_to_string(format!("/proc/{of}/cgroup")).map_err(failed("look at a process's cgroups"))
        };
        if cgroups(pid)? != cgroups(self.order.model)? {
            return Err(refused("a restored process is in another cgroup than its container"));
        }
        Ok(())
    }

    /// What the node's security modules confine a process to.
    fn labels(&self, pid: i32) -> Result<(), Failure> {
        let process = self.spec.process().as_ref();
        let apparmor = process.and_then(|process| process.apparmor_profile().as_deref());
        let selinux = process.and_then(|process| process.selinux_label().as_deref());
        let asked = [apparmor, selinux].into_iter().flatten().filter(|label| !label.is_empty());
        for label in asked {
            let text = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap_or_default();
            let current = text.trim_end_matches(['\0', '\n']);
            // AppArmor adds its mode in brackets.
            if current != label && current.split(" (").next() != Some(label) {
                return Err(refused(format!(
                    "a restored process is confined to {current:?}, not to {label:?}"
                )));
            }
        }
        Ok(())
    }

    fn score(&self, pid: i32, reporter: Reporter) {
        let path = |of: i32| format!("/proc/{of}/oom_score_adj");
        let wanted = fs::read_to_string(path(self.order.model)).unwrap_or_default();
        if fs::read_to_string(path(pid)).is_ok_and(|now| now == wanted) {
            return;
        }
        if let Err(error) = fs::write(path(pid), wanted.trim()) {
            reporter.warn(format!("a restored process keeps its out-of-memory score: {error}"));
        }
    }
}

/// A mount as a process sees it. proc_pid_mountinfo(5)
struct Mounted {
    device: String,
    root: String,
    kind: String,
    options: Vec<String>,
}

/// By mount point; of several on one point the last, which hides the others.
type Mounts = BTreeMap<String, Mounted>;

fn mounts_of(pid: i32) -> Result<Mounts, Failure> {
    fs::read_to_string(format!("/proc/{pid}/mountinfo"))
        .map(|table| mounts(&table))
        .map_err(failed("read mounts"))
}

fn mounts(table: &str) -> Mounts {
    let one = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        let options = fields.next()?.split(',').map(str::to_owned).collect();
        let kind = after.split(' ').next()?.to_owned();
        Some((unescape(point), Mounted { device: device.to_owned(), root: root.to_owned(), kind, options }))
    };
    table.lines().filter_map(one).collect()
}

fn compare_mounts(wanted: &Mounts, found: &Mounts, node: &BTreeSet<String>) -> Result<(), Failure> {
    for (point, mount) in found {
        let Some(model) = wanted.get(point) else {
            // What a container mounted in memory for itself shows it nothing else.
            if mount.kind == "tmpfs" && !node.contains(&mount.device) {
                continue;
            }
            return Err(refused(format!("the checkpoint has a mount at {point} that the container has not")));
        };
        let same = mount.device == model.device;
        // A file system of the node is the very same; one of the container's own may be a new one.
        let own = !node.contains(&mount.device) && !node.contains(&model.device);
        if mount.kind != model.kind || mount.root != model.root || !(same || own) {
            return Err(refused(format!("the checkpoint has another mount at {point} than the container")));
        }
        let has = |mount: &Mounted, word: &str| mount.options.iter().any(|option| option == word);
        if let Some(word) = RESTRICTIONS.iter().find(|word| has(model, word) && !has(mount, word)) {
            return Err(refused(format!("the checkpoint's mount at {point} is not {word}")));
        }
    }
    match wanted.keys().find(|point| !found.contains_key(*point)) {
        Some(point) => Err(refused(format!("the checkpoint has no mount at {point}, and the container has"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &str = "1 0 0:40 / / rw - overlay overlay rw\n2 1 0:50 / /proc rw,nosuid - proc proc rw\n\
                          3 1 254:0 /pods/hosts /etc/hosts ro - ext4 /dev/vda rw\n\
                          4 2 0:51 / /proc/scsi ro - tmpfs tmpfs ro\n";

    fn compared(found: &str) -> Result<(), String> {
        let node = ["254:0", "0:20"].map(str::to_owned).into();
        compare_mounts(&mounts(WANTED), &mounts(found), &node).map_err(|failure| failure.message)
    }

    #[test]
    fn new_file_systems_in_memory_are_the_containers_own() {
        let found = WANTED.replace("0:50", "0:60").replace("0:51", "0:61");
        compared(&format!("{found}9 1 0:70 / /mine rw - tmpfs tmpfs rw\n")).unwrap();
    }

    #[test]
    fn mounts_that_show_more_are_refused() {
        let changed = |from: &str, to: &str| compared(&WANTED.replace(from, to)).unwrap_err();
        assert!(changed("/pods/hosts", "/etc").contains("another mount at /etc/hosts"));
        assert!(changed("/etc/hosts ro", "/etc/hosts rw").contains("is not ro"));
        assert!(
            changed("4 2 0:51 / /proc/scsi ro - tmpfs tmpfs ro\n", "").contains("no mount at /proc/scsi")
        );
        assert!(changed("0:40", "254:0").contains("another mount at /"));
        assert!(changed("0:51", "0:20").contains("another mount at /proc/scsi"));
        for more in [
            "9 1 254:0 / /host rw - ext4 /dev/vda rw\n",
            "9 1 0:70 / /host rw - overlay overlay rw\n",
            "9 1 0:20 / /host rw - tmpfs tmpfs rw\n",
        ] {
            assert!(compared(&format!("{WANTED}{more}")).unwrap_err().contains("at /host that"), "{more}");
        }
        // What lies on top counts.
        let hidden = "9 1 254:0 /etc /proc/scsi ro - ext4 /dev/vda rw\n";
        assert!(compared(&format!("{WANTED}{hidden}")).is_err());
    }

    #[test]
    fn what_the_kernel_does_not_tell_counts_as_everything() {
        let status = Status(BTreeMap::from([("CapEff".to_owned(), "a8".to_owned())]));
        assert_eq!(status.mask("CapEff"), 0xa8);
        assert_eq!(status.mask("CapBnd"), u64::MAX);
    }
}
