//! Which deaths and failures are tried: every point in every way that its process can end there.

use cofferdam_failpoints::{POINTS, Place, Point};

/// What happens at the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The process that passes it is killed.
    Kill,
    /// The step fails.
    Error,
    /// The shim that passes it is killed, and the daemon with it.
    Both,
}

/// Who makes the pod's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// The daemon, in its own process.
    Builtin,
    /// The binary, as a CNI plugin.
    Plugin,
    /// The daemon, for a pod in a virtual machine.
    Machine,
}

/// What has happened before the daemon that meets the point begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// A daemon was killed while everything ran.
    Death,
    /// A daemon was killed at this point.
    DeathAt(&'static str),
    /// As `Death`, and the shim of this container; of the pod, where there is no name.
    ShimOf(&'static str),
    /// A daemon was killed after a pull, and a layer is gone.
    LostLayer,
    /// As `Death`, and an address is leased to nobody.
    StaleLease,
    /// As `Death`, and the shim of this container hangs.
    HungShimOf(&'static str),
    /// As `Death`, and nobody knows a pod that runs besides.
    Orphans,
    /// As `Death`, in the middle of an exec.
    Exec,
    /// A daemon was killed after a pull, and this is damaged.
    Damaged(Part),
}

/// What of the stored things is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A file of a layer.
    Layer,
    /// The file that describes a layer.
    Description,
    Blob,
    Store,
    /// The store that a substitute stood in for.
    Substituted,
    /// The key in the daemon's ids is gone.
    Owner,
}

/// One trial.
#[derive(Clone, Debug)]
pub struct Case {
    pub point: Point,
    pub mode: Mode,
    /// At which passing.
    pub nth: u32,
    pub before: Before,
    /// Orders for other points, which lead here.
    pub with: Option<&'static str>,
    pub net: Net,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { point, mode, nth, before, with, net } = self;
        write!(f, "{} {mode:?} @{nth}", point.name)?;
        if *before != Before::Nothing {
            write!(f, " after {before:?}")?;
        }
        if let Some(with) = with {
            write!(f, " with {with}")?;
        }
        match net {
            Net::Builtin => Ok(()),
            Net::Plugin => write!(f, " in the CNI binary"),
            Net::Machine => write!(f, " in a virtual machine"),
        }
    }
}

/// How a point is reached that an undisturbed life does not pass: what comes before, and what else fails.
fn way(name: &str) -> (Before, Option<&'static str>) {
    match name {
        "sandbox.run.undoing" => (Before::Nothing, Some("sandbox.run.task_created=error")),
        "network.attach.failed" => (Before::Nothing, Some("network.attach.added=error")),
        "container.create.undoing" => (Before::Nothing, Some("container.create.spec_written=error")),
        "container.prepare.undoing" => (Before::Nothing, Some("container.prepare.io_made=error")),
        "container.start.failure_recorded" => (Before::Nothing, Some("container.prepare.io_made=error@1+")),
        "container.stop.forced" => (Before::Nothing, Some("shim.kill.cgroup_signalled=stop")),
        "sandbox.recover.loaded" | "sandbox.recover.connected" | "sandbox.recover.done" => {
            (Before::Death, None)
        }
        "sandbox.recover.lost_recorded" => (Before::ShimOf(""), None),
        "container.recover.connected" | "container.recover.done" => (Before::Death, None),
        "container.recover.exit_recorded" => (Before::ShimOf("sleeper"), None),
        "container.recover.start_recorded" => (Before::DeathAt("container.start.started"), None),
        "image.disown.deleted" | "image.repair.layers_unpacked" | "image.repair.synced" => {
            (Before::LostLayer, None)
        }
        "container.stop.signalled_directly" => (Before::HungShimOf("server"), None),
        "reconcile.finished" => (Before::Nothing, None),
        "reconcile.look_recorded" => (Before::Death, None),
        "reconcile.exec_ended" | "reconcile.streams_removed" => (Before::Exec, None),
        "restore.left_discarded" => (Before::DeathAt("restore.parts_taken"), None),
        "layer.aside.alias_removed" | "layer.aside.renamed" | "image.verify.broken" => {
            (Before::Damaged(Part::Layer), None)
        }
        "layer.load.set_aside" => (Before::Damaged(Part::Description), None),
        "image.verify.blob_removed" => (Before::Damaged(Part::Blob), None),
        "owner.key_written" | "owner.key_replaced" => (Before::Damaged(Part::Owner), None),
        "store.set_aside" | "store.salvaged" => (Before::Damaged(Part::Store), None),
        "store.substitute.way_cleared" => (Before::Damaged(Part::Substituted), None),
        "plugin.gc.withdrawn" | "plugin.gc.unwired" => (Before::Death, None),
        "plugin.gc.released" => (Before::StaleLease, None),
        name if ["task.force.", "task.wait.", "shim.cleanup."]
            .iter()
            .any(|begin| name.starts_with(begin)) =>
        {
            (Before::Nothing, Some("shim.exec.added=kill"))
        }
        name if name.starts_with("reconcile.") => (Before::Orphans, None),
        _ => (Before::Nothing, None),
    }
}

/// Passings that are more than the first one worth a death: the first happens where nothing is at stake.
fn passings(point: &Point) -> &'static [u32] {
    match (point.name, point.place) {
        // At its start the daemon sweeps as well, and finds nothing.
        (
            "image.sweep.layers_detached"
            | "image.sweep.detached"
            | "image.sweep.blobs_removed"
            | "image.sweep.layers_removed",
            _,
        ) => &[2],
        // First the pod's own, then its container's.
        (
            "shim.vm.files_shown"
            | "shim.vm.bundle_put"
            | "shim.vm.streams_joined"
            | "shim.vm.container_made"
            | "shim.vm.container_started",
            _,
        ) => &[2],
        (name, _) if in_machine(name) => &[1],
        ("store.written" | "store.committed", _) => &[1, 2, 3, 4, 6, 8, 10, 12],
        (name, Place::Shim | Place::Child) if one_shim(name) => &[1],
        // First the pod's shim, then a container's.
        (_, Place::Shim | Place::Child) => &[1, 2],
        _ => &[1],
    }
}

/// Points that the pause's shim does not come to, or only at the end.
fn one_shim(name: &str) -> bool {
    let begins =
        ["shim.exec.", "shim.log.", "shim.checkpoint.", "shim.pause.", "shim.resume.", "shim.cleanup."];
    begins.iter().any(|begin| name.starts_with(begin)) || is_restore(name)
}

/// Points on the way from a checkpoint to a container.
pub fn is_restore(name: &str) -> bool {
    ["restore.", "shim.restore.", "shim.child.restore"].iter().any(|begin| name.starts_with(begin))
}

/// Points of pods in virtual machines.
fn in_machine(name: &str) -> bool {
    name.starts_with("shim.vm.")
}

/// All trials.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for point in POINTS {
        let (before, with) = way(point.name);
        if in_machine(point.name) {
            // Each trial boots two machines.
            let nth = passings(point)[0];
            all.push(Case { point: *point, mode: Mode::Kill, nth, before, with, net: Net::Machine });
            continue;
        }
        let mut modes = vec![(Mode::Kill, Net::Builtin)];
        let cni = point.name.starts_with("cni.");
        if point.fails && before == Before::Nothing && with.is_none() {
            modes.push((Mode::Error, Net::Builtin));
        }
        match point.place {
            Place::Daemon if cni => modes.iter_mut().for_each(|(_, net)| *net = Net::Plugin),
            Place::Plugin if before == Before::Nothing && !point.name.contains("teardown") => {
                modes.push((Mode::Kill, Net::Plugin));
            }
            Place::Shim | Place::Child => modes.push((Mode::Both, Net::Builtin)),
            Place::Daemon | Place::Plugin => {}
        }
        for (mode, net) in modes {
            let passings = if mode == Mode::Error { &passings(point)[..1] } else { passings(point) };
            for nth in passings {
                all.push(Case { point: *point, mode, nth: *nth, before, with, net });
            }
        }
    }
    all
}
