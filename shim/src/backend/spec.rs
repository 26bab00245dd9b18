//! Fits the container's specification to what this node may do, before the runtime sees it.
//!
//! Two limits need a capability that a shim in a restricted environment lacks: a lower `oom_score_adj` and higher hard
//! rlimits. They are clamped with a warning instead of failing the container. The changed specification is written
//! below the runtime's own folder; the bundle's `config.json` stays what the daemon wrote.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::idmap::Mapping;
use super::late::Late;
use super::rootfs::{self, Place};
use super::{Failure, FailureKind, Reporter, cgroup_mount, guard, selinux, staging, workdir};
use crate::wire::CreateOrder;

const CAP_SYS_RESOURCE: u32 = 24;
/// No sane passwd file is longer; a hostile one is not read further.
const PASSWD_LIMIT: u64 = 1 << 20;

pub struct Prepared {
    pub spec: Spec,
    changed: bool,
}

/// A specification that the runtime can carry out.
pub struct Fitted {
    /// The folder that it lies in.
    pub bundle: PathBuf,
    /// What is left for afterwards.
    pub late: Late,
}

impl Prepared {
    /// Says the same in the way that libcontainer can carry out. Limits stay in it for a container that is a unit of
    /// systemd's, which would take away what it does not know of.
    fn fit_libcontainer(&mut self, is_unit: bool, labels: bool) -> Result<(), Failure> {
        // A container must not get less than it asked for unseen.
        let process = self.spec.process().as_ref();
        let label = process.and_then(|p| p.selinux_label().as_deref()).unwrap_or_default();
        if !label.is_empty() && !labels {
            let words = "SELinux labels are off: set selinux = true, or an external OCI runtime as binary of the handler";
            return Err(Failure::new(FailureKind::Spec, words));
        }
        self.changed |= selinux::spread(&mut self.spec);
        self.name_propagation();
        if !is_unit {
            self.leave_limits_out();
        }
        let table = fs::read_to_string("/proc/self/mountinfo");
        let table = table.map_err(Failure::because(FailureKind::Spec, "read /proc/self/mountinfo"))?;
        self.changed |= cgroup_mount::replace(&mut self.spec, &table);
        Ok(())
    }

    /// Takes what cannot be reached any more once the runtime is behind a user namespace.
    fn take_sources(&mut self, bundle: &Path, place: Place) -> Result<(), Failure> {
        if !staging::is_needed(&self.spec) {
            return Ok(());
        }
        match place {
            Place::Private => {}
            Place::Unchanged => rootfs::enter_private_namespace(bundle)?,
            Place::Host => {
                let words = "a volume with mapped owners, or a user namespace, and a volume that propagates its mounts \
                             to the host cannot be had in one container";
                return Err(Failure::new(FailureKind::Spec, words));
            }
        }
        staging::take(&mut self.spec, bundle)?;
        self.changed = true;
        Ok(())
    }

    /// Limits are put into force by [`crate::cgroup::limits`], when a container is made as when they change later:
    /// libcontainer knows no hybrid nodes and an older scale of weights.
    fn leave_limits_out(&mut self) {
        let Some(resources) = self.spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut())
        else {
            return;
        };
        resources.set_cpu(None).set_memory(None).set_pids(None).set_block_io(None);
        resources.set_hugepage_limits(None).set_unified(None);
        self.changed = true;
    }

    /// libcontainer always acts on the whole tree and only knows the names without the `r` that says so; other
    /// runtimes tell the two apart.
    fn name_propagation(&mut self) {
        let Some(linux) = self.spec.linux_mut() else { return };
        let plain = match linux.rootfs_propagation().as_deref() {
            Some("rshared") => "shared",
            Some("rslave") => "slave",
            Some("rprivate") => "private",
            _ => return,
        };
        linux.set_rootfs_propagation(Some(plain.to_owned()));
        self.changed = true;
    }
}

pub fn prepare(bundle: &Path, reporter: Reporter) -> Result<Prepared, Failure> {
    let path = bundle.join("config.json");
    let mut spec = Spec::load(&path).map_err(Failure::because(FailureKind::Spec, "read config.json"))?;
    let mut changed = false;
    if let Some(process) = spec.process_mut() {
        changed |= clamp(process, reporter);
    }
    Ok(Prepared { spec, changed })
}

/// Completes the specification once the root filesystem is there, and says in which folder it lies.
pub fn finish(mut prepared: Prepared, order: &CreateOrder, place: Place) -> Result<Fitted, Failure> {
    let (bundle, mut late) = (&order.bundle, Late::default());
    let root = prepared.spec.root().as_ref().map(|r| bundle.join(r.path()));
    if let Some(root) = &root {
        // As the specification has the mounts, before their sources get other names.
        guard::before(&prepared.spec, root)?;
        let mapping = order.rootfs.iter().find_map(|mount| Mapping::of_options(&mount.options).transpose());
        let owner = mapping.transpose()?.and_then(|mapping| mapping.root());
        let cwd = prepared.spec.process().as_ref().map(|p| p.cwd().display().to_string()).unwrap_or_default();
        let doing = format!("make the working directory {cwd}");
        workdir::make(&prepared.spec, root, owner).map_err(Failure::because(FailureKind::Rootfs, &doing))?;
    }
    prepared.take_sources(bundle, place)?;
    if order.options.binary.is_none() {
        let unit = order.options.systemd_cgroup && super::plain_path(&prepared.spec).is_none();
        prepared.fit_libcontainer(unit, order.options.selinux)?;
        if let Some(root) = &root {
            late = Late::plan(&mut prepared.spec, root, order.console.is_some())?;
            prepared.changed |= !late.is_empty();
        }
    }
    if let (Some(process), Some(root)) = (prepared.spec.process_mut(), &root) {
        prepared.changed |= give_home(process, root);
    }
    if !prepared.changed {
        return Ok(Fitted { bundle: bundle.to_owned(), late });
    }
    if let (Some(spec_root), Some(root)) = (prepared.spec.root_mut(), root) {
        spec_root.set_path(root);
    }
    let folder = bundle.join("oci").join("bundle");
    let writing =
        |e: std::io::Error| Failure::because(FailureKind::Runtime, "write the fitted config.json")(e);
    fs::create_dir_all(&folder).map_err(writing)?;
    let text = serde_json::to_vec(&prepared.spec).map_err(|e| writing(e.into()))?;
    fs::write(folder.join("config.json"), text).map_err(writing)?;
    Ok(Fitted { bundle: folder, late })
}

/// Lowers what this process may not grant. True when something changed.
pub fn clamp(process: &mut Process, reporter: Reporter) -> bool {
    if may_raise_limits() {
        return false;
    }
    let mut changed = false;
    if let (Some(wanted), Some(current)) = (process.oom_score_adj(), own_oom_score_adj())
        && wanted < current
    {
        reporter
            .warn(format!("oom_score_adj {wanted} needs CAP_SYS_RESOURCE; the container keeps {current}"));
        process.set_oom_score_adj(Some(current));
        changed = true;
    }
    if let Some(limits) = process.rlimits().clone() {
        let clamped: Vec<PosixRlimit> = limits.iter().map(|limit| clamp_rlimit(*limit, reporter)).collect();
        changed |= clamped != limits;
        process.set_rlimits(Some(clamped));
    }
    changed
}

fn clamp_rlimit(limit: PosixRlimit, reporter: Reporter) -> PosixRlimit {
    let Some((_, hard)) = resource(limit.typ()).and_then(|r| getrlimit(r).ok()) else { return limit };
    if limit.hard() <= hard {
        return limit;
    }
    reporter.warn(format!(
        "{:?} {} needs CAP_SYS_RESOURCE; the container gets {hard}",
        limit.typ(),
        limit.hard()
    ));
    let builder = PosixRlimitBuilder::default().typ(limit.typ()).hard(hard).soft(limit.soft().min(hard));
    builder.build().unwrap_or(limit)
}

pub fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    })
}

fn own_oom_score_adj() -> Option<i32> {
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    bits & (1 << CAP_SYS_RESOURCE) != 0
}

/// Sets HOME as the image's own passwd file says. Done here because looking it up later, inside the container and by
/// the C library, could load code from the image into a process that is not yet the user's.
fn give_home(process: &mut Process, root: &Path) -> bool {
    if process.env().as_ref().is_some_and(|env| env.iter().any(|pair| pair.starts_with("HOME="))) {
        return false;
    }
    let home = read_passwd(root).and_then(|text| home_of(&text, process.user().uid()));
    let mut env = process.env().clone().unwrap_or_default();
    env.push(format!("HOME={}", home.unwrap_or_else(|| "/".into())));
    process.set_env(Some(env));
    true
}

fn read_passwd(root: &Path) -> Option<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, "etc/passwd", flags, Mode::empty(), inside).ok()?;
    // Merely opening a device can set something off on the node, so it is looked at first.
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found).ok()?.st_mode);
    if kind != rustix::fs::FileType::RegularFile {
        return None;
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    let mut text = String::new();
    file.take(PASSWD_LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

fn home_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && home.starts_with('/')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_a_file_of_the_image_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let passwd = root.path().join("etc/passwd");
        std::fs::create_dir(root.path().join("etc")).unwrap();
        assert_eq!(read_passwd(root.path()), None);
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A writer that waits would be let go by a reader.
        let path = passwd.clone();
        let writer = std::thread::spawn(move || std::fs::write(path, "evil").is_ok());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(read_passwd(root.path()), None);
        assert!(!writer.is_finished(), "the FIFO was opened");
        assert_eq!(std::fs::read_to_string(&passwd).unwrap(), "evil");
        assert!(writer.join().unwrap());
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/etc/real", &passwd).unwrap();
        std::fs::write(root.path().join("etc/real"), "own").unwrap();
        assert_eq!(read_passwd(root.path()).as_deref(), Some("own"));
    }

    #[test]
    fn the_home_folder_is_the_sixth_field() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/false\n";
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_of(passwd, 7), None);
    }
}
