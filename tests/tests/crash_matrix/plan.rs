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
        if *net == Net::Plugin {
            write!(f, " in the CNI binary")?;
        }
        Ok(())
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
        "image.disown.deleted" => (Before::LostLayer, None),
        "plugin.gc.withdrawn" | "plugin.gc.unwired" => (Before::Death, None),
        "plugin.gc.released" => (Before::StaleLease, None),
        name if name.starts_with("task.force.") || name.starts_with("shim.cleanup.") => {
            (Before::Nothing, Some("shim.exec.added=kill"))
        }
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
        ("store.written" | "store.committed", _) => &[1, 2, 3, 4, 6, 8, 10, 12],
        (name, Place::Shim | Place::Child) if one_shim(name) => &[1],
        // First the pod's shim, then a container's.
        (_, Place::Shim | Place::Child) => &[1, 2],
        _ => &[1],
    }
}

/// Points that the pause's shim does not come to, or only at the end.
fn one_shim(name: &str) -> bool {
    ["shim.exec.", "shim.log.", "shim.checkpoint.", "shim.pause.", "shim.resume.", "shim.cleanup."]
        .iter()
        .any(|begin| name.starts_with(begin))
}

/// All trials.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for point in POINTS {
        let (before, with) = way(point.name);
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
